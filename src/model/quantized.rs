//! Quantized models: matrices that are integers with scales, as files have them.
//!
//! A hidden matrix, the embedding or the output projection that is put as blocks stays integers, in the layout
//! of [`crate::kernel::quantized`]; its f32 memory goes back to the system. Matrices that lie side by side in one
//! parameter (queries, keys and values) may each be of a type of their own, f32 among them. All else is f32.

use std::ops::Range;

use super::format::Stored;
use super::layout::Role;
use super::{Parameter, Transformer};
use crate::base::Result;
use crate::kernel::BlockType;
use crate::kernel::quantized::Matrix;

impl Transformer {
    /// Sets the numbers of a tensor from the bytes of a file, which are of type `ty`. Quantized matrices stay
    /// integers where their blocks run along the sums of products: a hidden matrix that the file has as
    /// `[out, in]`, the embedding, the output projection. Other tensors become f32.
    ///
    /// # Panics
    /// When the bytes are not those of the tensor's shape.
    pub fn put(&mut self, stored: &Stored, ty: BlockType, bytes: &[u8]) {
        let p = &self.layout.parameters[stored.parameter];
        let (range, matrix) = (p.range.clone(), matrix_of(p, stored));
        if let Some((k, n, columns)) = matrix.clone().filter(|_| ty.is_quantized()) {
            let matrix = self.quantized.entry(range.start).or_insert_with(|| Matrix::new(k, n));
            matrix.set(columns, ty, bytes, |row| stored.column(row));
            if matrix.is_whole() {
                self.weights.release(range);
            }
            return;
        }
        if let (Some((_, _, columns)), Some(own)) = (matrix, self.quantized.get_mut(&range.start)) {
            own.clear(columns);
            self.quantized.retain(|_, matrix| !matrix.is_empty());
        }
        let mut numbers = vec![0.0; stored.shape.iter().product()];
        ty.decode(bytes, &mut numbers);
        stored.places(&self.layout).zip(numbers).for_each(|(place, x)| self.weights[place] = x);
    }

    /// The same model with all matrices rounded to blocks of a quantized type, or where a row is no whole blocks
    /// of the type that stands in for it, see [`BlockType::for_rows_of`].
    ///
    /// # Errors
    /// When a number is not finite.
    pub fn rounded_to(mut self, ty: BlockType) -> Result<Self> {
        for (i, p) in self.layout.parameters.clone().iter().enumerate() {
            let name = || p.name.clone();
            let tensors: Vec<Stored> = match p.role {
                Role::Matrix => p.columns.iter().map(|c| Stored::part(p, i, name(), c.clone())).collect(),
                Role::Embedding | Role::Head => vec![Stored::whole(p, i, name())],
                Role::Position | Role::Vector | Role::Scalar => continue,
            };
            for stored in tensors {
                let ty = ty.for_rows_of(stored.shape[1]);
                let numbers: Vec<f32> =
                    stored.places(&self.layout).map(|place| self.weights[place]).collect();
                let bytes = ty.encode(&numbers).map_err(|e| e.context(format!("`{}`", p.name)))?;
                self.put(&stored, ty, &bytes);
            }
        }
        Ok(self)
    }

    /// Whether matrices are integers with scales, which products read as they are. Such a model computes forward
    /// only, and [`Transformer::weights`] is 0 where they would stand.
    pub fn is_quantized(&self) -> bool {
        !self.quantized.is_empty()
    }

    /// The same model with all numbers as f32, to be trained.
    pub fn dequantized(mut self) -> Self {
        let all = std::mem::take(&mut self.quantized);
        for (start, matrix) in &all {
            let p = self.layout.parameters.iter().find(|p| p.range.start == *start);
            let p = p.expect("a quantized matrix is a parameter").clone();
            widen(&p, matrix, &mut self.weights[p.range.clone()]);
        }
        self
    }

    /// As [`Transformer::dequantized`]. Adapters are not copied.
    pub(super) fn dequantized_copy(&self) -> Self {
        let mut copy = Self::zeros(&self.config);
        for p in copy.layout.parameters.clone() {
            let numbers = &mut copy.weights[p.range.clone()];
            numbers.copy_from_slice(&self.weights[p.range.clone()]);
            if let Some(matrix) = self.quantized.get(&p.range.start) {
                widen(&p, matrix, numbers);
            }
        }
        copy
    }

    /// Bytes in memory of the weights, as they are read by products.
    pub fn weight_bytes(&self) -> usize {
        let of = |p: &Parameter| {
            let (mut numbers, mut bytes) = (p.range.len(), 0);
            if let Some(matrix) = self.quantized.get(&p.range.start) {
                numbers -= matrix.columns().count() * height(p);
                bytes = matrix.bytes();
            }
            bytes + numbers * self.bytes_of_number(p)
        };
        self.parameters().iter().map(of).sum()
    }
}

/// Puts the numbers of quantized columns to their places among the parameter's.
fn widen(p: &Parameter, matrix: &Matrix, numbers: &mut [f32]) {
    let k = height(p);
    let mut column = vec![0.0; k];
    for j in matrix.columns() {
        matrix.column(j, &mut column);
        match p.role {
            Role::Matrix => {
                let places = numbers[j..].iter_mut().step_by(p.shape[1]);
                places.zip(&column).for_each(|(to, x)| *to = *x);
            }
            _ => numbers[j * k..(j + 1) * k].copy_from_slice(&column),
        }
    }
}

/// The length of a column, as products have them: a hidden matrix is `[k, n]`, an embedding `[n, k]`.
fn height(p: &Parameter) -> usize {
    if p.role == Role::Matrix { p.shape[0] } else { p.shape[1] }
}

/// The matrix that a tensor is, or is part of, if products can read its rows as columns: its height and width,
/// and the tensor's columns.
fn matrix_of(p: &Parameter, stored: &Stored) -> Option<(usize, usize, Range<usize>)> {
    match (p.role, &p.shape[..]) {
        (Role::Matrix, [k, n]) if stored.transposed => Some((*k, *n, stored.columns.clone())),
        (Role::Embedding | Role::Head, [n, k]) if !stored.transposed && stored.columns == (0..*k) => {
            Some((*k, *n, 0..*n))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};
    use crate::model::{Cache, Config, Decoder, Executor, Reading, Sequences, gpt2, llama};

    /// A fresh model with its hidden matrices as `[out, in]`, as GGUF files have them, and a type for each.
    fn tensors(config: &Config, types: &[BlockType]) -> (Transformer, Vec<(Stored, BlockType, Vec<u8>)>) {
        let model = Transformer::fresh(config, 3);
        let mut all = Vec::new();
        for (i, p) in model.layout.parameters.iter().enumerate() {
            let parts = if p.columns.is_empty() {
                vec![Stored::whole(p, i, p.name.clone())]
            } else {
                let part = |c: &Range<usize>| Stored::part(p, i, p.name.clone(), c.clone());
                p.columns.iter().map(part).collect()
            };
            for mut stored in parts {
                if p.columns.len() == 3 && stored.columns.start < p.columns[2].start {
                    stored.interleaved = Some(config.d_head);
                }
                let matrix = stored.shape.len() == 2 && p.role != Role::Position;
                let ty = if matrix { types[all.len() % types.len()] } else { BlockType::F32 };
                // Far from 0, so that what is computed differs from token to token.
                let numbers: Vec<f32> =
                    stored.places(&model.layout).map(|place| model.weights[place] * 4.0).collect();
                all.push((stored, ty, ty.encode(&numbers).unwrap()));
            }
        }
        (model, all)
    }

    fn put_all(config: &Config, tensors: &[(Stored, BlockType, Vec<u8>)]) -> Transformer {
        let mut model = Transformer::zeros(config);
        tensors.iter().for_each(|(stored, ty, bytes)| model.put(stored, *ty, bytes));
        model
    }

    /// The same numbers as f32, read by [`BlockType::decode`].
    fn decoded(config: &Config, tensors: &[(Stored, BlockType, Vec<u8>)]) -> Transformer {
        let mut model = Transformer::zeros(config);
        for (stored, ty, bytes) in tensors {
            let mut numbers = vec![0.0; stored.shape.iter().product()];
            ty.decode(bytes, &mut numbers);
            stored.places(&model.layout).zip(numbers).for_each(|(place, x)| model.weights[place] = x);
        }
        model
    }

    fn configs() -> [Config; 2] {
        let own_head =
            Config { n_kv_head: 2, d_ff: 96, tied: false, head_bias: true, ..llama(400, 64, 2, 4, 24) };
        [gpt2(400, 64, 2, 4, 24), own_head]
    }

    const TYPES: [BlockType; 5] =
        [BlockType::Q8_0, BlockType::Q4_0, BlockType::F16, BlockType::Q5_1, BlockType::Q4_1];

    #[test]
    fn the_numbers_are_those_of_the_blocks() {
        for config in configs() {
            let (_, tensors) = tensors(&config, &TYPES);
            let (model, expected) = (put_all(&config, &tensors), decoded(&config, &tensors));
            assert!(model.is_quantized() && !expected.is_quantized());
            assert!(model.weight_bytes() < 2 * expected.weight_bytes() / 3);
            assert_eq!(model.to_safetensors().unwrap(), expected.to_safetensors().unwrap());
            let model = model.dequantized();
            assert!(!model.is_quantized() && model.weights[..] == expected.weights[..]);
            assert_eq!(model.weight_bytes(), 4 * model.layout.len);
            // What was put as blocks may be put as numbers, and the other way round.
            let mut model = put_all(&config, &tensors);
            for (stored, ty, bytes) in &tensors {
                let mut numbers = vec![0.0; stored.shape.iter().product()];
                ty.decode(bytes, &mut numbers);
                model.put(stored, BlockType::F32, &BlockType::F32.encode(&numbers).unwrap());
            }
            assert!(!model.is_quantized() && model.weights[..] == expected.weights[..]);
        }
    }

    /// All at once, in pieces and side by side with another text; alike on all instructions and threads; near
    /// what the same numbers give in f32.
    #[test]
    fn logits_are_the_same_however_a_text_is_read() {
        let ids: Vec<u32> = (0..20).map(|i| i * 37 % 400).collect();
        for config in configs() {
            let (_, tensors) = tensors(&config, &TYPES);
            let (model, in_f32) = (put_all(&config, &tensors), decoded(&config, &tensors));
            let read = |model: &Transformer, team: Team, pieces: &[usize]| {
                let (mut decoder, mut cache) = (Decoder::new(model, team), Cache::default());
                let (mut at, mut last) = (0, Vec::new());
                for len in pieces {
                    let ids = &ids[at..at + len];
                    last = decoder.read(&mut [Reading { cache: &mut cache, ids }]).unwrap().to_vec();
                    at += len;
                }
                last
            };
            let expected = read(&model, Team::new(1), &[20]);
            for isa in Isa::available() {
                for pieces in [&[20][..], &[1; 20], &[7, 1, 12]] {
                    assert!(
                        read(&model, Team::with(2, isa), pieces) == expected,
                        "{pieces:?} {}",
                        isa.name()
                    );
                }
            }
            let mut caches = [Cache::default(), Cache::default()];
            let mut both = Decoder::new(&model, Team::new(2));
            let [a, b] = &mut caches;
            let texts = &mut [Reading { cache: a, ids: &ids[5..9] }, Reading { cache: b, ids: &ids }];
            assert!(both.read(texts).unwrap()[400..] == expected);
            let near = read(&in_f32, Team::new(1), &[20]);
            let off: f32 = near.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
            let size: f32 = near.iter().map(|a| a * a).sum();
            assert!((off / size).sqrt() < 0.05, "{}", (off / size).sqrt());
        }
    }

    #[test]
    fn losses_are_those_of_the_logits() {
        let ids: Vec<u32> = (0..48).map(|i| i * 31 % 400).collect();
        let targets: Vec<u32> = (0..48).map(|i| i * 17 % 400).collect();
        for config in configs() {
            let (_, tensors) = tensors(&config, &TYPES);
            let (model, in_f32) = (put_all(&config, &tensors), decoded(&config, &tensors));
            let all = Sequences::new(&ids, &targets, 24);
            let mut executor = Executor::forward_only(&config, Team::new(2));
            let loss = executor.loss(&model, all);
            let predictions = executor.predictions(&model, all);
            let sum: f64 = predictions.iter().map(|p| p.nats).sum();
            assert!((loss - sum).abs() < 1e-4 * loss, "{loss}, not {sum}");
            let expected = executor.loss(&in_f32, all);
            assert!((loss - expected).abs() < 0.02 * expected, "{loss}, not {expected}");
        }
    }

    #[test]
    #[should_panic(expected = "must be `dequantized`")]
    fn gradients_are_refused() {
        let config = gpt2(40, 32, 1, 2, 8);
        let (_, tensors) = tensors(&config, &[BlockType::Q8_0]);
        let model = put_all(&config, &tensors);
        let mut gradient = vec![0.0; model.layout.len];
        let all = Sequences::new(&[1, 2], &[2, 3], 2);
        Executor::training(&config, Team::new(1)).gradient(&model, all, 0, 0.0, &mut gradient);
    }

    /// Adapters stand on f32.
    #[test]
    fn adapters_make_a_model_f32() {
        let config = gpt2(40, 32, 1, 2, 8);
        let (_, tensors) = tensors(&config, &[BlockType::Q8_0]);
        let lora =
            crate::model::Lora { rank: 2, alpha: 2.0, dropout: 0.0, targets: vec![crate::model::Target::Q] };
        let with = put_all(&config, &tensors).with_adapters(&lora, 1).unwrap();
        assert!(!with.is_quantized());
        assert!(with.merged().weights[..] == decoded(&config, &tensors).weights[..]);
    }
}
