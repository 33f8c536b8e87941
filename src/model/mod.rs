//! The transformer: its configuration, its numbers, its ways forward and back, its files.
//!
//! The architecture is GPT-2's (Radford et al., 2019): pre-norm blocks, learned positions, GELU in its
//! tanh form, output tied to the token embedding. The files are GPT-2's as Hugging Face writes them, so
//! that `transformers` loads what tinylm trains. Math runs on [`crate::kernel`]; [`plain`] is the same
//! model on candle, which tests compare with.
//!
//! Letters in shapes: `B` sequences, `T` positions, `N` = B·T, `C` = d_model, `H` heads, `D` = C/H,
//! `F` = d_ff, `V` = vocab_size.

mod config;
mod decode;
mod executor;
mod files;
mod format;
mod layout;
mod presets;
pub mod reference;
mod transformer;

pub use config::{Activation, Config, Init, Norm, Placement, Position, Yarn};
pub use decode::{Cache, Decoder, Reading};
pub use executor::{Executor, Sequences, round_of};
pub use files::{CONFIG_FILE, Model, TOKENIZER_FILE, WEIGHTS_FILE};
pub use layout::{Layout, Parameter, Role};
pub use presets::{PRESETS, Preset, gpt2, llama, modern, post_norm, preset};
pub use transformer::Transformer;

use crate::kernel::Dropout;
pub use crate::kernel::IGNORE;
pub use crate::kernel::loss::Prediction;

/// What is dropped at one site of the model in the step that `key` stands for.
fn dropout_at(p: f64, key: u64, site: usize) -> Dropout {
    if p == 0.0 {
        return Dropout::NONE;
    }
    // SplitMix64's finalizer (Steele, Lea and Flood, 2014): near keys and sites come out far apart.
    let z = key.wrapping_add((site as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Dropout::new(p, z ^ (z >> 31))
}

#[cfg(test)]
mod tests;
