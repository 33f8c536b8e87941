//! The transformer: its configuration, its forward pass, its files.
//!
//! The architecture is GPT-2's (Radford et al., 2019): pre-norm blocks, learned positions, GELU in its
//! tanh form, output tied to the token embedding. The files are GPT-2's as Hugging Face writes them, so
//! that `transformers` loads what tinylm trains. Math runs on candle, whose autograd is the reference
//! that faster kernels are to be tested against.
//!
//! Letters in shapes: `B` sequences, `T` positions, `C` = d_model, `H` heads, `D` = C/H, `F` = d_ff,
//! `V` = vocab_size.

mod config;
mod cross_entropy;
mod files;
mod gpt;
mod ops;

pub use config::{Config, PRESETS, Preset, preset};
pub use cross_entropy::{IGNORE, cross_entropy};
pub use files::{CONFIG_FILE, Model, TOKENIZER_FILE, WEIGHTS_FILE};
pub use gpt::{Cache, Dropout, Gpt, Parameter};

use crate::base::Error;

/// candle's own errors are shapes and devices gone wrong inside: ours to mend.
pub fn math(error: candle_core::Error) -> Error {
    Error::bug(format!("in the model's math: {error}"))
}

#[cfg(test)]
mod tests;
