//! Named tensors in a file of the safetensors format, f32: written from where they lie and read to where
//! they belong, without a copy of all of them in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::base::digest::Hasher;
use crate::base::{Digest, Error, Result, fs};
use crate::model::Parameter;

/// A tensor's name and shape, and its numbers.
pub struct Tensor<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: &'a mut [f32],
}

/// `values`, which hold `parameters` end to end, as a tensor for each, named `prefix` and its own name.
pub fn named<'a>(prefix: &str, parameters: &[Parameter], mut values: &'a mut [f32]) -> Vec<Tensor<'a>> {
    let mut tensors = Vec::with_capacity(parameters.len());
    for p in parameters {
        let (own, rest) = std::mem::take(&mut values).split_at_mut(p.range.len());
        values = rest;
        tensors.push(Tensor { name: format!("{prefix}{}", p.name), shape: p.shape.clone(), values: own });
    }
    tensors
}

/// A file and the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub path: PathBuf,
    pub digest: Digest,
}

/// Numbers that are converted to bytes and back at a time.
const CHUNK: usize = 1 << 14;
/// The longest header that the safetensors library accepts.
const LONGEST_HEADER: u64 = 100_000_000;

/// Writes a new file.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, tensors: &[Tensor]) -> Result<Stored> {
    let failed = |e: std::io::Error| Error::io("write", path, &e);
    let mut out = Hashed { file: BufWriter::new(fs::create(path)?), hasher: Hasher::new() };
    out.add(&header(tensors)?).map_err(failed)?;
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for chunk in tensors.iter().flat_map(|tensor| tensor.values.chunks(CHUNK)) {
        bytes.clear();
        chunk.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        out.add(&bytes).map_err(failed)?;
    }
    out.file.flush().map_err(failed)?;
    Ok(Stored { path: path.to_path_buf(), digest: out.hasher.finish() })
}

/// A file that is hashed as it is written.
struct Hashed {
    file: BufWriter<File>,
    hasher: Hasher,
}

impl Hashed {
    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

/// The length of the header in 8 bytes, then names, shapes and places as JSON, padded to whole 8 bytes.
///
/// # Errors
/// When two tensors have one name: a bug.
fn header(tensors: &[Tensor]) -> Result<Vec<u8>> {
    let mut end = 0;
    let place = |tensor: &Tensor| {
        let start = end;
        end += 4 * tensor.values.len();
        let info = TensorInfo { dtype: Dtype::F32, shape: tensor.shape.clone(), data_offsets: (start, end) };
        (tensor.name.clone(), info)
    };
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bug = |e: &dyn std::fmt::Display| Error::bug(format!("a header of safetensors: {e}"));
    let metadata = Metadata::new(Some(format), tensors.iter().map(place).collect()).map_err(|e| bug(&e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| bug(&e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

/// An open file that holds the tensors that were asked for.
pub struct Reader {
    path: PathBuf,
    file: File,
    /// Where each begins.
    starts: Vec<u64>,
}

impl Reader {
    /// Opens the file and compares its header with `tensors`, whose numbers are not touched.
    ///
    /// # Errors
    /// When it cannot be read, or a tensor is missing or of another shape or type.
    pub fn open(path: &Path, tensors: &[Tensor]) -> Result<Self> {
        let mut file = fs::open(path)?;
        let (metadata, data) = metadata(path, &mut file)?;
        let wrong =
            |name: &str, what: String| Error::input(format!("`{}`: tensor `{name}` {what}", path.display()));
        let mut starts = Vec::with_capacity(tensors.len());
        for Tensor { name, shape, values } in tensors {
            let info = metadata.info(name).ok_or_else(|| wrong(name, "is missing".into()))?;
            let bytes = 4 * values.len();
            let (start, end) = info.data_offsets;
            if info.dtype != Dtype::F32 || info.shape != *shape || end - start != bytes {
                let found =
                    format!("is {:?} of shape {:?}, expected F32 of {shape:?}", info.dtype, info.shape);
                return Err(wrong(name, found));
            }
            starts.push(data.saturating_add(start as u64));
        }
        Ok(Reader { path: path.to_path_buf(), file, starts })
    }

    /// Reads the numbers of the `tensors` that it was opened for.
    ///
    /// # Errors
    /// When the file cannot be read or ends too early.
    pub fn read(mut self, tensors: &mut [Tensor]) -> Result<()> {
        let path = self.path;
        let failed = |e: std::io::Error| Error::io("read", &path, &e);
        let mut bytes = vec![0; 4 * CHUNK];
        for (tensor, start) in tensors.iter_mut().zip(self.starts) {
            self.file.seek(SeekFrom::Start(start)).map_err(failed)?;
            for chunk in tensor.values.chunks_mut(CHUNK) {
                let bytes = &mut bytes[..4 * chunk.len()];
                self.file.read_exact(bytes).map_err(failed)?;
                let numbers = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                chunk.iter_mut().zip(numbers).for_each(|(x, number)| *x = number);
            }
        }
        Ok(())
    }
}

/// The header, and where the numbers begin after it.
fn metadata(path: &Path, file: &mut File) -> Result<(Metadata, u64)> {
    let failed = |e: std::io::Error| Error::io("read", path, &e);
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    let mut json = Vec::new();
    file.take(length.min(LONGEST_HEADER)).read_to_end(&mut json).map_err(failed)?;
    let wrong = |e| Error::input(format!("`{}` is not a whole safetensors file: {e}", path.display()));
    Ok((serde_json::from_slice(&json).map_err(wrong)?, 8 + length))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn tensors<'a>(a: &'a mut [f32], b: &'a mut [f32]) -> Vec<Tensor<'a>> {
        let tensor =
            |name: &str, shape: &[usize], values| Tensor { name: name.into(), shape: shape.to_vec(), values };
        vec![tensor("b/é", &[2, 3], a), tensor("a", &[40_000], b)]
    }

    /// The library reads what is written; what it wrote is read back to the bit.
    #[test]
    fn a_file_is_safetensors_and_reads_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let mut a = [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::from_bits(0x7fc0_1234), 3.0];
        let mut b: Vec<f32> = (0..40_000).map(|i| i as f32 / 7.0).collect();
        let stored = write(&path, &tensors(&mut a, &mut b)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(stored.digest, Digest::of(&bytes));
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b/é").unwrap().shape(), [2, 3]);
        let last = read.tensor("a").unwrap().data()[4 * 39_999..].to_vec();
        assert_eq!(last, b[39_999].to_le_bytes());

        let (mut c, mut d) = ([0.0; 6], vec![0.0; 40_000]);
        let mut back = tensors(&mut c, &mut d);
        back.reverse();
        Reader::open(&path, &back).unwrap().read(&mut back).unwrap();
        assert_eq!(c.map(f32::to_bits), a.map(f32::to_bits));
        assert_eq!(d, b);
    }

    #[test]
    fn another_shape_or_a_missing_tensor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let (mut a, mut b) = ([0.0; 6], vec![0.0; 40_000]);
        write(&path, &tensors(&mut a, &mut b)).unwrap();
        let error = |change: fn(&mut Tensor)| {
            let (mut a, mut b) = ([0.0; 6], vec![0.0; 40_000]);
            let mut tensors = tensors(&mut a, &mut b);
            change(&mut tensors[0]);
            Reader::open(&path, &tensors).err().unwrap().to_string()
        };
        let shape = error(|t| t.shape = vec![3, 2]);
        assert!(shape.contains("`b/é` is F32 of shape [2, 3], expected F32 of [3, 2]"), "{shape}");
        let missing = error(|t| t.name = "c".into());
        assert!(missing.contains("tensor `c` is missing"), "{missing}");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(30).unwrap();
        let cut = error(|_| ());
        assert!(cut.contains("not a whole safetensors file"), "{cut}");
    }
}
