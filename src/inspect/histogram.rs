//! The distribution of the numbers of one tensor of a model.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Serialize;

use super::model::{self, Declared};
use super::{gguf, sign};
use crate::base::{Error, Result, fs, suggest};
use crate::model::format::gguf::File as Gguf;

/// How the numbers of a tensor are distributed. Figures are of the finite ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub elements: u64,
    pub nan: u64,
    pub infinite: u64,
    pub zeros: u64,
    /// `None` where no number is finite.
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub mean: Option<f64>,
    /// The standard deviation of all numbers, without Bessel's correction (PyTorch's `correction=0`).
    pub std: Option<f64>,
    /// How many numbers lie in each of the intervals of equal width from `min` to `max`; the last one includes
    /// `max`.
    pub bins: Vec<u64>,
}

/// Bytes that are read at a time.
const PART: usize = 1 << 20;

/// The histogram with `bins` intervals of the tensor called `name` in the model at `path`: safetensors or GGUF,
/// whose blocks are decoded.
///
/// # Errors
/// When the file is neither or damaged, has no such tensor, or has it in a type whose numbers are not known.
pub fn histogram(path: &Path, name: &str, bins: usize) -> Result<Histogram> {
    let head = sign(path)?;
    if gguf::is_gguf(&head) {
        return of_gguf(path, name, bins);
    }
    if !model::is_safetensors(&head) {
        return Err(Error::input("this file is no model: it has no tensors"));
    }
    let (data, all) = model::declared(path)?;
    let tensor = all.get(name).ok_or_else(|| unknown(name, all.keys().map(String::as_str)))?;
    let mut reader = Numbers { file: fs::open(path)?, path, data, tensor };
    let mut found = Histogram::empty(name, format!("{:?}", tensor.dtype), tensor.shape.clone(), bins);
    let mut count = Count::default();
    reader.each(&mut |numbers| count.add(numbers))?;
    let mut spread = found.take(&count);
    reader.each(&mut |numbers| found.spread(numbers, &mut spread))?;
    found.finish(&count, spread);
    Ok(found)
}

fn of_gguf(path: &Path, name: &str, bins: usize) -> Result<Histogram> {
    let file = Gguf::open(path)?;
    let names = file.tensors.iter().map(|tensor| tensor.name.as_str());
    let tensor = file.find(name).ok_or_else(|| unknown(name, names))?;
    let summary = gguf::tensor(tensor);
    let numbers: Vec<f64> = file.numbers(tensor)?.into_iter().map(f64::from).collect();
    let mut found = Histogram::empty(name, summary.dtype, summary.shape, bins);
    let mut count = Count::default();
    count.add(&numbers);
    let mut spread = found.take(&count);
    found.spread(&numbers, &mut spread);
    found.finish(&count, spread);
    Ok(found)
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::usage(format!("there is no tensor `{name}`")).suggest(suggest::closest(name, known))
}

/// What the first pass over the numbers finds.
struct Count {
    elements: u64,
    finite: u64,
    nan: u64,
    zeros: u64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Default for Count {
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Count { elements: 0, finite: 0, nan: 0, zeros: 0, sum: 0.0, min, max }
    }
}

impl Count {
    fn add(&mut self, numbers: &[f64]) {
        self.elements += numbers.len() as u64;
        for &x in numbers {
            self.nan += u64::from(x.is_nan());
            self.zeros += u64::from(x == 0.0);
            if x.is_finite() {
                self.finite += 1;
                self.sum += x;
                self.min = self.min.min(x);
                self.max = self.max.max(x);
            }
        }
    }
}

/// The second pass: squares of the distances from the mean.
struct Spread {
    mean: f64,
    squares: f64,
}

impl Histogram {
    fn empty(name: &str, dtype: String, shape: Vec<u64>, bins: usize) -> Self {
        Histogram {
            name: name.to_string(),
            dtype,
            shape,
            elements: 0,
            nan: 0,
            infinite: 0,
            zeros: 0,
            min: None,
            max: None,
            mean: None,
            std: None,
            bins: vec![0; bins.max(1)],
        }
    }

    fn take(&mut self, count: &Count) -> Spread {
        (self.elements, self.nan, self.zeros) = (count.elements, count.nan, count.zeros);
        self.infinite = count.elements - count.finite - count.nan;
        if count.finite > 0 {
            (self.min, self.max) = (Some(count.min), Some(count.max));
            self.mean = Some(count.sum / count.finite as f64);
        }
        Spread { mean: self.mean.unwrap_or(0.0), squares: 0.0 }
    }

    fn spread(&mut self, numbers: &[f64], spread: &mut Spread) {
        let (Some(min), Some(max)) = (self.min, self.max) else { return };
        let bins = self.bins.len();
        // Halves, since the difference of two finite numbers may be infinite.
        let width = max / 2.0 - min / 2.0;
        for x in numbers.iter().filter(|x| x.is_finite()) {
            let share = if width > 0.0 { (x / 2.0 - min / 2.0) / width } else { 0.0 };
            self.bins[((share * bins as f64) as usize).min(bins - 1)] += 1;
            spread.squares += (x - spread.mean).powi(2);
        }
    }

    fn finish(&mut self, count: &Count, spread: Spread) {
        self.std = self.mean.map(|_| (spread.squares / count.finite as f64).sqrt());
    }
}

/// The numbers of a tensor in a safetensors file.
struct Numbers<'a> {
    file: File,
    path: &'a Path,
    /// The byte at which the tensors begin.
    data: u64,
    tensor: &'a Declared,
}

impl Numbers<'_> {
    /// Calls `take` with the numbers, a part of them at a time.
    fn each(&mut self, take: &mut dyn FnMut(&[f64])) -> Result<()> {
        let decode = decoder(self.tensor.dtype)?;
        let (start, end) = self.tensor.data_offsets;
        let failed = |e| Error::io("read", self.path, &e);
        self.file.seek(SeekFrom::Start(self.data + start)).map_err(failed)?;
        let (mut bytes, mut numbers) = (vec![0; PART], Vec::new());
        let mut left = (end - start) as usize;
        while left > 0 {
            let part = &mut bytes[..left.min(PART)];
            self.file.read_exact(part).map_err(failed)?;
            numbers.clear();
            decode(part, &mut numbers);
            take(&numbers);
            left -= part.len();
        }
        Ok(())
    }
}

type Decoder = fn(&[u8], &mut Vec<f64>);

/// From little-endian bytes.
fn decoder(dtype: Dtype) -> Result<Decoder> {
    macro_rules! of {
        ($ty:ty, $f64:expr) => {
            |bytes, out| {
                let numbers = bytes.chunks_exact(size_of::<$ty>());
                out.extend(numbers.map(|b| $f64(<$ty>::from_le_bytes(b.try_into().unwrap_or_default()))));
            }
        };
    }
    Ok(match dtype {
        Dtype::F64 => of!(f64, |x| x),
        Dtype::F32 => of!(f32, f64::from),
        Dtype::F16 => of!(f16, f64::from),
        Dtype::BF16 => of!(bf16, f64::from),
        Dtype::I64 => of!(i64, |x| x as f64),
        Dtype::U64 => of!(u64, |x| x as f64),
        Dtype::I32 => of!(i32, f64::from),
        Dtype::U32 => of!(u32, f64::from),
        Dtype::I16 => of!(i16, f64::from),
        Dtype::U16 => of!(u16, f64::from),
        Dtype::I8 => of!(i8, f64::from),
        Dtype::U8 | Dtype::BOOL => of!(u8, f64::from),
        other => {
            return Err(Error::input(format!("numbers of type {other:?} are not read")));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::*;

    fn file(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> tempfile::NamedTempFile {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let whole = safetensors::serialize(HashMap::from([("w", view)]), None).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &whole).unwrap();
        file
    }

    #[test]
    fn figures_are_of_the_finite_numbers_and_the_others_are_counted() {
        let numbers = [0.0f32, 1.0, 2.0, 3.0, 4.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let found = histogram(file(Dtype::F32, &[2, 4], &bytes).path(), "w", 4).unwrap();
        assert_eq!((found.elements, found.nan, found.infinite, found.zeros), (8, 1, 2, 1));
        assert_eq!((found.min, found.max, found.mean), (Some(0.0), Some(4.0), Some(2.0)));
        assert_eq!(found.std, Some(2.0f64.sqrt()));
        assert_eq!(found.bins, [1, 1, 1, 2]);
        assert_eq!(found.shape, [2, 4]);
    }

    #[test]
    fn types_constants_and_nothing_at_all() {
        let bytes: Vec<u8> = [-1.5f32, 2.5].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let found = histogram(file(Dtype::BF16, &[2], &bytes).path(), "w", 2).unwrap();
        assert_eq!((found.min, found.max, found.bins.as_slice()), (Some(-1.5), Some(2.5), &[1, 1][..]));
        let found = histogram(file(Dtype::I8, &[3], &[255; 3]).path(), "w", 3).unwrap();
        assert_eq!((found.mean, found.std, found.bins.as_slice()), (Some(-1.0), Some(0.0), &[3, 0, 0][..]));
        let found = histogram(file(Dtype::F32, &[0], &[]).path(), "w", 3).unwrap();
        assert_eq!((found.elements, found.min, found.std), (0, None, None));
        let wide: Vec<u8> = [f64::MIN, f64::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(histogram(file(Dtype::F64, &[2], &wide).path(), "w", 2).unwrap().bins, [1, 1]);
    }

    #[test]
    fn a_name_that_is_not_there_and_a_file_that_is_no_model_are_refused() {
        let model = file(Dtype::U8, &[1], &[1]);
        assert!(histogram(model.path(), "v", 2).unwrap_err().message().contains("no tensor `v`"));
        let text = tempfile::NamedTempFile::new().unwrap();
        fs::write(text.path(), b"text").unwrap();
        assert!(histogram(text.path(), "w", 2).unwrap_err().message().contains("no model"));
    }
}
