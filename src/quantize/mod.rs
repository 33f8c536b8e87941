//! Quantization: the matrices of a model as blocks of integers ([`BlockType`]), and what that costs.
//!
//! ```text
//!  types        which type each matrix gets, by patterns of names
//!  calibration  windows of training text
//!  inputs       what layers read of it
//!  scales       the best scales and mins of blocks, by search
//!  gptq         the codes with the least error in what layers compute
//!  speed        tokens a second
//! ```
//!
//! bench/README.md ("Quantization") has what the methods were measured to be worth, and what was tried beside them.

mod calibration;
mod gptq;
mod inputs;
mod scales;
mod speed;
mod types;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use calibration::{Windows, windows};
pub use inputs::Inputs;
pub use speed::tokens_per_second;
pub use types::Types;

use crate::base::{Error, Monitor, Result};
use crate::kernel::BlockType;
use crate::model::format::{Stored, gguf};
use crate::model::{Model, Role, Transformer};
use gptq::Hessian;

/// How numbers become codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Each to the nearest, with the scales of ggml's reference ([`BlockType::encode`]).
    Round,
    /// So that what layers compute of calibration text changes least.
    Gptq,
}

/// A tensor as it was stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rounded {
    /// As GGUF files have it.
    pub name: String,
    /// `[out, in]`, or `[V, C]`.
    pub shape: Vec<usize>,
    #[serde(rename = "type")]
    pub ty: BlockType,
    /// What was asked for, where rows are no whole blocks of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<BlockType>,
    pub bytes: u64,
    /// Of the weights.
    pub mean_squared_error: f64,
    /// Of what the layer computes of the calibration text: the share of its mean square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
}

/// The share of the mean of a Hessian's diagonal that is added to it, GPTQ's `percdamp`.
const DAMPING: f64 = 0.01;

/// The same for an output projection that is the token embedding, too: it is also looked up, which makes an error of
/// each of its numbers count, whatever others make up for.
const DAMPING_OF_LOOKED_UP: f64 = 1.0;

/// Writes `model` into `folder` with matrices rounded as `types` says: each number to the nearest, or by GPTQ where
/// there is calibration text.
///
/// # Errors
/// When `types` does not fit the model, a number is not finite, a file cannot be written; cancellation.
pub fn save(
    model: &Model,
    folder: &Path,
    types: &Types,
    inputs: Option<Inputs>,
    monitor: &dyn Monitor,
) -> Result<Vec<Rounded>> {
    let gpt = &model.transformer;
    let stored = matrices(gpt);
    let names: Vec<&str> = stored.iter().map(|s| s.name.as_str()).collect();
    let types = types.assign(&names)?;
    let mut work = Work { gpt, types, inputs, hessian: None, done: Vec::new(), total: names.len(), monitor };
    model.save_blocks(folder, &mut |stored, numbers| work.round(stored, numbers))?;
    Ok(work.done)
}

/// The tensors that can be quantized, as GGUF files have them.
fn matrices(gpt: &Transformer) -> Vec<Stored> {
    let role = |stored: &Stored| gpt.layout.parameters[stored.parameter].role;
    let is_matrix = |s: &Stored| matches!(role(s), Role::Matrix | Role::Embedding | Role::Head);
    gguf::stored(&gpt.config, &gpt.layout).into_iter().filter(is_matrix).collect()
}

struct Work<'a> {
    gpt: &'a Transformer,
    types: BTreeMap<String, BlockType>,
    inputs: Option<Inputs<'a>>,
    /// Of the layer whose weights begin there: parts of one parameter read the same.
    hessian: Option<(usize, Hessian)>,
    done: Vec<Rounded>,
    total: usize,
    monitor: &'a dyn Monitor,
}

impl Work<'_> {
    /// A matrix `[n, k]`.
    fn round(&mut self, stored: &Stored, numbers: &[f32]) -> Result<(BlockType, Vec<u8>)> {
        let (done, total) = (self.done.len() as u64, self.total as u64);
        self.monitor.step("quantizing", done, Some(total), "tensors")?;
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(Error::input(format!("number {i} is {}", numbers[i]))
                .help("the model is damaged, or its training diverged: train it anew"));
        }
        let asked = self.types[&stored.name];
        // Of scales of 16 bits, and of numbers.
        let greatest = f32::from(half::f16::MAX);
        if asked != BlockType::F32
            && let Some(x) = numbers.iter().find(|x| x.abs() > greatest)
        {
            return Err(Error::input(format!("{x} is beyond what {} can store", asked.name()))
                .help(format!("keep it as it is: `tensors: {{ \"{}\": f32 }}`", stored.name)));
        }
        let k = *stored.shape.last().expect("a matrix has rows");
        let ty = asked.for_rows_of(k);
        let hessian = self.hessian(stored, k)?;
        let bytes = match hessian {
            Some(hessian) if ty.is_quantized() => gptq::round(ty, numbers, hessian),
            _ => ty.encode(numbers)?,
        };
        let mut error = vec![0.0; numbers.len()];
        ty.decode(&bytes, &mut error);
        error.iter_mut().zip(numbers).for_each(|(q, w)| *q -= w);
        let squares: f64 = error.iter().map(|e| f64::from(*e).powi(2)).sum();
        let output_error =
            hessian.map(|h| h.norm(&error) / h.norm(numbers)).filter(|error| error.is_finite());
        self.done.push(Rounded {
            name: stored.name.clone(),
            shape: stored.shape.clone(),
            ty,
            instead_of: (ty != asked).then_some(asked),
            bytes: bytes.len() as u64,
            mean_squared_error: squares / numbers.len() as f64,
            output_error,
        });
        Ok((ty, bytes))
    }

    fn hessian(&mut self, stored: &Stored, k: usize) -> Result<Option<&Hessian>> {
        let Some(inputs) = &mut self.inputs else { return Ok(None) };
        let layout = &self.gpt.layout;
        let range = &layout.parameters[stored.parameter].range;
        if self.hessian.as_ref().is_none_or(|(start, _)| *start != range.start) {
            let damping = if *range == layout.tokens { DAMPING_OF_LOOKED_UP } else { DAMPING };
            let hessian = match inputs.gram(range, self.monitor)? {
                Some(gram) => Hessian::new(gram, damping)?,
                None => Hessian::identity(k),
            };
            self.hessian = Some((range.start, hessian));
        }
        Ok(self.hessian.as_ref().map(|(_, hessian)| hessian))
    }
}
