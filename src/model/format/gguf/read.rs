//! Reading a GGUF file: the header into memory, tensors one by one. What a file says of itself is checked
//! against its size before any memory is taken for it.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::value::{Single, Value};
use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC};
use crate::base::{Error, Result, fs, suggest};
use crate::kernel::{Block, BlockType};

/// A GGUF file, of which the header was read.
#[derive(Debug, Clone)]
pub struct File {
    /// What messages call it.
    pub name: String,
    /// Of its form: 2 or 3.
    pub version: u32,
    /// In the order of the file.
    pub metadata: Vec<(String, Value)>,
    /// In the order of the file.
    pub tensors: Vec<Tensor>,
    path: PathBuf,
}

/// What the header says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    /// Rows first, as NumPy has it; the file has the length of a row first.
    pub shape: Vec<usize>,
    pub ty: BlockType,
    /// Where its bytes begin in the file.
    start: u64,
}

impl Tensor {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes they take in the file.
    pub fn bytes(&self) -> usize {
        self.ty.bytes(self.len())
    }
}

/// Dimensions of a tensor at most (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;

/// The fewest bytes of a key with its value, and of what is said of a tensor.
const LEAST: [u64; 2] = [8 + 4 + 1, 8 + 4 + 8 + 4 + 8];

/// Names of the types of tensors that are not read, by their numbers (`ggml_type`).
const OTHER_TYPES: [(u32, &str); 26] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl File {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// When the file is of another form or version, damaged, or has tensors of a type that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let version = reader.version()?;
        let [tensors, keys] = [reader.count("tensors", LEAST[1])?, reader.count("keys", LEAST[0])?];
        let metadata = reader.metadata(keys)?;
        let alignment = alignment(&reader, &metadata)?;
        let mut tensors = reader.tensors(tensors)?;
        reader.place(&mut tensors, alignment)?;
        Ok(File { name: reader.name, version, metadata, tensors, path: path.to_path_buf() })
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The bytes of a tensor of this file.
    ///
    /// # Errors
    /// When they can't be read, or a number or scale is infinite or NaN.
    pub fn bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.bytes()];
        let mut file = fs::open(&self.path)?;
        file.seek(SeekFrom::Start(tensor.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| Error::io("read", &self.path, &e))?;
        if let Some((i, x)) = not_finite(tensor.ty, &bytes) {
            let what = if tensor.ty.is_quantized() { "the scale or min of number" } else { "number" };
            return Err(self.wrong(format_args!("tensor `{}`: {what} {i} is {x}", tensor.name)).help(
                "a model with numbers that are not finite computes nothing: use a file from before the damage",
            ));
        }
        Ok(bytes)
    }

    /// The numbers of a tensor of this file.
    ///
    /// # Errors
    /// As [`File::bytes`].
    pub fn numbers(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut numbers = vec![0.0; tensor.len()];
        tensor.ty.decode(&self.bytes(tensor)?, &mut numbers);
        Ok(numbers)
    }

    /// An error of this file.
    pub(super) fn wrong(&self, what: impl Display) -> Error {
        Error::input(format!("`{}`: {what}", self.name))
    }
}

/// The first number that is infinite or NaN, of blocks the first of those that share a scale or min that is.
pub(super) fn not_finite(ty: BlockType, bytes: &[u8]) -> Option<(usize, f32)> {
    let (len, group) = (ty.block_len(), ty.group_len());
    let (mut block, mut numbers) = (Block::default(), [0.0]);
    for (i, bytes) in bytes.chunks_exact(ty.bytes(len)).enumerate() {
        if !ty.is_quantized() {
            ty.decode(bytes, &mut numbers);
            if !numbers[0].is_finite() {
                return Some((i, numbers[0]));
            }
            continue;
        }
        ty.unpack(bytes, &mut block);
        let scales = (0..len / group).map(|j| block.group(j));
        let odd = scales.enumerate().find(|(_, (scale, min))| !(scale.is_finite() && min.is_finite()));
        if let Some((j, (scale, min))) = odd {
            return Some((i * len + j * group, if scale.is_finite() { min } else { scale }));
        }
    }
    None
}

/// What the offsets of tensors are multiples of.
fn alignment(reader: &Reader, metadata: &[(String, Value)]) -> Result<u64> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT as u64);
    };
    match value {
        Value::U32(n) if n.is_power_of_two() => Ok((*n).into()),
        _ => {
            let what = format!("`{}`: `{ALIGNMENT_KEY}` is {value}", reader.name);
            Err(Error::input(format!("{what}: expected a power of two as uint32")))
        }
    }
}

/// A file from its beginning on.
pub(super) struct Reader {
    name: String,
    file: BufReader<std::fs::File>,
    at: u64,
    size: u64,
    /// What is being read, for messages.
    reading: String,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let (file, size) = (BufReader::new(fs::open(path)?), fs::size(path)?);
        Ok(Reader { name: path.display().to_string(), file, at: 0, size, reading: "the header".into() })
    }

    /// The error that what is being read is not as it should be.
    pub fn wrong(&self, what: impl Display) -> Error {
        let Reader { name, at, reading, .. } = self;
        Error::input(format!("`{name}`: {reading} is damaged: before byte {at}, {what}"))
    }

    fn left(&self) -> u64 {
        self.size.saturating_sub(self.at)
    }

    /// Takes note that `n` bytes are read, if there are so many.
    fn take(&mut self, n: u64) -> Result<()> {
        if n > self.left() {
            let Reader { name, at, size, reading, .. } = self;
            let what = format!("{n} bytes should follow byte {at}, and the file has {size} in all");
            return Err(Error::input(format!("`{name}`: {reading} is cut off or damaged: {what}"))
                .help("load or copy the file once more"));
        }
        self.at += n;
        Ok(())
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        let name = Path::new(&self.name);
        self.file.read_exact(bytes).map_err(|e| Error::io("read", name, &e))
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn string(&mut self) -> Result<String> {
        let length = u64::read(self)?;
        self.take(length)?;
        let mut bytes = vec![0; length as usize];
        self.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|e| {
            let text = String::from_utf8_lossy(e.as_bytes());
            self.wrong(format_args!("a text is not UTF-8: {:?}", excerpt(&text)))
        })
    }

    /// As many as a count before them says.
    pub fn many<T: Single>(&mut self) -> Result<Vec<T>> {
        let count = u64::read(self)?;
        if count.checked_mul(T::BYTES).is_none_or(|bytes| bytes > self.left()) {
            return Err(self.too_many(count, "values", T::BYTES));
        }
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(T::read(self)?);
        }
        Ok(values)
    }

    fn too_many(&self, count: u64, what: &str, least: u64) -> Error {
        let left = self.left();
        self.wrong(format_args!(
            "there should be {count} {what} of at least {least} bytes each, and {left} bytes are left"
        ))
    }

    fn version(&mut self) -> Result<u32> {
        let magic = self.bytes::<4>()?;
        if magic != MAGIC {
            let found = String::from_utf8_lossy(&magic).into_owned();
            return Err(Error::input(format!(
                "`{}` begins with {found:?}, and GGUF with \"GGUF\"",
                self.name
            )));
        }
        let version = u32::read(self)?;
        let refuse = |what: String, help| Err(Error::input(format!("`{}` is {what}", self.name)).help(help));
        match version {
            2 | 3 => Ok(version),
            1 => refuse(
                "GGUF of version 1: versions 2 and 3 are read".into(),
                "convert the original model again",
            ),
            _ if version & 0xffff == 0 => {
                let version = version.swap_bytes();
                let what = format!("GGUF of version {version} in big endian: little endian is read");
                refuse(what, "convert it with `gguf-convert-endian` of the Python package `gguf`")
            }
            _ => refuse(
                format!("GGUF of version {version}: versions 2 and 3 are read"),
                "is it a file of a newer llama.cpp, or damaged?",
            ),
        }
    }

    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let count = u64::read(self)?;
        match count.checked_mul(least).is_some_and(|bytes| bytes <= self.left()) {
            true => Ok(count),
            false => Err(self.too_many(count, what, least)),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Vec<(String, Value)>> {
        let (mut all, mut seen) = (Vec::with_capacity(count as usize), HashSet::new());
        for i in 0..count {
            self.reading = format!("key {i} of the metadata");
            let key = self.string()?;
            if key.is_empty() || !seen.insert(key.clone()) {
                let what = if key.is_empty() { "is empty" } else { "stands twice" };
                return Err(Error::input(format!("`{}`: the key `{}` {what}", self.name, excerpt(&key))));
            }
            self.reading = format!("the value of `{}`", excerpt(&key));
            all.push((key, Value::read(self)?));
        }
        Ok(all)
    }

    /// Places are still those relative to the first tensor.
    fn tensors(&mut self, count: u64) -> Result<Vec<Tensor>> {
        let (mut all, mut seen) = (Vec::with_capacity(count as usize), HashSet::new());
        for i in 0..count {
            self.reading = format!("the entry of tensor {i}");
            let name = self.string()?;
            if name.is_empty() || !seen.insert(name.clone()) {
                let what = if name.is_empty() { "without a name" } else { "which stands twice" };
                return Err(Error::input(format!(
                    "`{}` has a tensor `{}` {what}",
                    self.name,
                    excerpt(&name)
                )));
            }
            self.reading = format!("the entry of tensor `{}`", excerpt(&name));
            all.push(self.tensor(name)?);
        }
        Ok(all)
    }

    fn tensor(&mut self, name: String) -> Result<Tensor> {
        let dims = u32::read(self)?;
        if dims == 0 || dims > MAX_DIMS {
            return Err(self.wrong(format_args!("it has {dims} dimensions, expected 1 to {MAX_DIMS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.insert(0, u64::read(self)?);
        }
        let (id, start) = (u32::read(self)?, u64::read(self)?);
        let ty = BlockType::of_id(id).ok_or_else(|| self.unknown_type(&name, id))?;
        self.expect_shape(&shape, ty)?;
        Ok(Tensor { name, shape: shape.iter().map(|n| *n as usize).collect(), ty, start })
    }

    fn unknown_type(&self, name: &str, id: u32) -> Error {
        let known = OTHER_TYPES.iter().find(|(other, _)| *other == id);
        let what = known.map_or(format!("of a type that is not known, {id}"), |(_, name)| name.to_string());
        let names: Vec<_> = BlockType::all().map(BlockType::name).collect();
        Error::input(format!("`{}`: tensor `{}` is {what}", self.name, excerpt(name)))
            .help(format!("types that are read: {}", suggest::list(names)))
    }

    /// The numbers are whole blocks, and no more than the file could hold.
    fn expect_shape(&self, shape: &[u64], ty: BlockType) -> Result<()> {
        let (block, row) = (ty.block_len() as u64, *shape.last().expect("at least one dimension"));
        if shape.contains(&0) {
            return Err(self.wrong(format_args!("its shape is {shape:?}, which holds nothing")));
        }
        if !row.is_multiple_of(block) {
            let ty = ty.name();
            return Err(
                self.wrong(format_args!("rows of {row} are no whole blocks of {block}, as {ty} has them"))
            );
        }
        let blocks = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).map(|n| n / block);
        let bytes = blocks.and_then(|n| n.checked_mul(ty.bytes(block as usize) as u64));
        match bytes.is_some_and(|bytes| bytes <= self.size) {
            true => Ok(()),
            false => {
                let what = format!("a tensor of shape {shape:?} as {}", ty.name());
                Err(self.wrong(format_args!("{what} has more bytes than the file's {}", self.size)))
            }
        }
    }

    /// Makes places those in the file.
    fn place(&self, tensors: &mut [Tensor], alignment: u64) -> Result<()> {
        let first = self.at.next_multiple_of(alignment);
        for tensor in tensors.iter_mut() {
            let (name, offset) = (excerpt(&tensor.name), tensor.start);
            let wrong = |what: String| Err(Error::input(format!("`{}`: tensor `{name}` {what}", self.name)));
            if !offset.is_multiple_of(alignment) {
                return wrong(format!("begins at offset {offset}, which is no multiple of {alignment}"));
            }
            let start = first.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(tensor.bytes() as u64));
            if end.is_none_or(|end| end > self.size) {
                let (bytes, size) = (tensor.bytes(), self.size);
                return wrong(format!(
                    "has {bytes} bytes from offset {offset} on, beyond the file's {size} bytes"
                ))
                .map_err(|e| e.help("the file is cut off or damaged: load or copy it once more"));
            }
            tensor.start = first + offset;
        }
        let mut order: Vec<&Tensor> = tensors.iter().collect();
        order.sort_by_key(|tensor| tensor.start);
        let overlap = order.windows(2).find(|two| two[0].start + two[0].bytes() as u64 > two[1].start);
        match overlap {
            Some(two) => {
                let [one, other] = [&two[0].name, &two[1].name].map(|name| excerpt(name));
                Err(Error::input(format!("`{}`: the tensors `{one}` and `{other}` overlap", self.name)))
            }
            None => Ok(()),
        }
    }
}

/// The beginning of a text from a file, for messages.
fn excerpt(text: &str) -> String {
    crate::base::table::shorten(text, 80).replace('\n', " ")
}
