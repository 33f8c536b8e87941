//! Writing a GGUF file of version 3: one tensor after the other, so that no more than one is in memory.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::value::{Single, Value};
use super::{ALIGNMENT, FILE_TYPE_KEY, MAGIC};
use crate::base::{Error, Result, fs};
use crate::kernel::BlockType;

/// The version that is written.
const VERSION: u32 = 3;

/// A tensor that is to be written: its name, and its shape, rows first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    pub shape: Vec<usize>,
}

/// Types of tensors, and where they begin.
type Places = [(BlockType, u64)];

/// Writes a file. `make` gives the type and the bytes of the i-th tensor; it is called in the order of the
/// file. The value of `general.file_type`, where `metadata` has it, becomes that of the type of most numbers.
///
/// # Errors
/// When `make` fails, or the file cannot be written.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Declared],
    make: &mut dyn FnMut(usize) -> Result<(BlockType, Vec<u8>)>,
) -> Result<()> {
    // Types are known when all tensors were made. The header is of the same length before.
    let unknown = vec![(BlockType::F32, 0); tensors.len()];
    let mut file = BufWriter::new(fs::create(path)?);
    let io = |e: std::io::Error| Error::io("write", path, &e);
    let length = header(metadata, tensors, &unknown).len();
    file.write_all(&vec![0; length]).map_err(io)?;
    let (mut places, mut offset) = (Vec::new(), 0);
    for (i, tensor) in tensors.iter().enumerate() {
        let (ty, bytes) = make(i)?;
        expect_whole(tensor, ty, bytes.len())?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        file.write_all(&bytes).and_then(|()| file.write_all(&[0; ALIGNMENT][..padding])).map_err(io)?;
        places.push((ty, offset));
        offset += (bytes.len() + padding) as u64;
    }
    let header = header(&with_file_type(metadata, tensors, &places), tensors, &places);
    if header.len() != length {
        return Err(Error::bug(format!("`{}`: the header has another length", path.display())));
    }
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.write_all(&header))
        .and_then(|()| file.flush())
        .map_err(io)
}

/// The bytes of the header with its padding.
fn header(metadata: &[(String, Value)], tensors: &[Declared], places: &Places) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    VERSION.write(&mut out);
    (tensors.len() as u64).write(&mut out);
    (metadata.len() as u64).write(&mut out);
    for (key, value) in metadata {
        key.write(&mut out);
        value.write(&mut out);
    }
    for (tensor, (ty, offset)) in tensors.iter().zip(places) {
        tensor.name.write(&mut out);
        (tensor.shape.len() as u32).write(&mut out);
        tensor.shape.iter().rev().for_each(|n| (*n as u64).write(&mut out));
        ty.id().write(&mut out);
        offset.write(&mut out);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn expect_whole(tensor: &Declared, ty: BlockType, bytes: usize) -> Result<()> {
    let Declared { name, shape } = tensor;
    let row = shape.last().copied().unwrap_or(0);
    if !row.is_multiple_of(ty.block_len()) {
        let (len, ty) = (ty.block_len(), ty.name());
        return Err(Error::input(format!("tensor `{name}` has rows of {row}: {ty} has blocks of {len}"))
            .help("use another type for it"));
    }
    let expected = ty.bytes(shape.iter().product());
    match bytes == expected {
        true => Ok(()),
        false => Err(Error::bug(format!("`{name}` has {bytes} bytes of {}, expected {expected}", ty.name()))),
    }
}

fn with_file_type(
    metadata: &[(String, Value)],
    tensors: &[Declared],
    places: &Places,
) -> Vec<(String, Value)> {
    let types = tensors.iter().zip(places).map(|(tensor, (ty, _))| (*ty, tensor.shape.as_slice()));
    let file_type = Value::U32(file_type(types));
    let value =
        |key: &String, value: &Value| if key == FILE_TYPE_KEY { file_type.clone() } else { value.clone() };
    metadata.iter().map(|(key, v)| (key.clone(), value(key, v))).collect()
}

/// llama.cpp's number for a file whose matrices are mostly of a type (`llama_ftype` in `llama.h`).
fn file_type<'a>(types: impl Iterator<Item = (BlockType, &'a [usize])>) -> u32 {
    let mut numbers = [0; 11];
    types.filter(|(_, shape)| shape.len() > 1).for_each(|(ty, shape)| {
        numbers[ty as usize] += shape.iter().product::<usize>();
    });
    let most = BlockType::all().max_by_key(|ty| (numbers[*ty as usize], std::cmp::Reverse(*ty)));
    match most.expect("there are types") {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q5_0 => 8,
        BlockType::Q5_1 => 9,
        // With other types for some tensors (`_M`), as most are.
        BlockType::Q4K => 15,
        BlockType::Q5K => 17,
        BlockType::Q6K => 18,
        BlockType::Bf16 => 32,
    }
}
