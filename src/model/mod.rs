//! The transformer: its architecture, its parameters, forward and backward, decoding, its files.
//!
//! ```text
//!  config      the architecture: sizes, and which parts            presets   architectures with a name
//!  layout      parameters: name, shape, place, how each begins
//!  transformer a config with its weights
//!  quantized   a transformer whose matrices are integers with scales
//!  lora        low-rank adapters, which are trained instead of the rest
//!  layer/      norm, attention, mlp, embed, head, adapter: what each keeps, forward and backward side by side
//!  block       how sublayers, norms and residual connections are put together: the only place
//!  workspace   activations and scratch of a micro-batch
//!  ordered     gradients that are added up in a fixed order
//!  executor    batches on all threads: loss, gradient, predictions
//!  teachers    the likeliest ids, for a student to learn from
//!  decode      reading on with cached keys and values
//!  attention   who attends to whom in a text
//!  reference   the same model on candle, written to be read, which tests compare with
//!  format/     config.json and names of tensors as Hugging Face's types have them, a file a type; GGUF
//!  describe    an architecture in words
//!  files       a model's folder
//! ```
//!
//! **A new part** (a norm, an activation, a kind of position) is a kernel with its forward and backward, a
//! variant in `config`, an arm where a layer chooses its kernel, and an arm in `reference`. Training, prompts
//! and single tokens go through the same [`block`].
//!
//! Letters in shapes: `B` sequences, `T` positions, `N` = B·T rows, `C` = d_model, `H` heads, `K` heads of keys
//! and values, `D` = d_head, `F` = d_ff, `V` = vocab_size.

pub mod attention;
mod block;
mod config;
mod decode;
mod describe;
mod embedding_rows;
mod executor;
mod files;
pub mod format;
mod layer;
mod layout;
mod lora;
mod ordered;
mod presets;
mod quantized;
pub mod reference;
mod teachers;
mod transformer;
mod workspace;

pub use config::{Activation, Config, Init, Norm, Placement, Position, Yarn};
pub use decode::{Cache, Decoder, Reading, decoder_memory};
pub use executor::{Executor, Sequences, round_of};
pub use files::{CONFIG_FILE, Model, TOKENIZER_FILE, WEIGHTS_FILE};
pub use format::gguf::GGUF_FILE;
pub use format::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE};
pub use layout::{Layout, Parameter, Role};
pub use lora::{Lora, Target};
pub use presets::{PRESETS, Preset, gpt2, llama, modern, post_norm, preset};
pub use teachers::mean_top_k;
pub use transformer::Transformer;

use crate::base::{Error, rng};
use crate::kernel::Dropout;
pub use crate::kernel::IGNORE;
pub use crate::kernel::loss::{Prediction, Soft};

/// The error of a model whose `what`, such as its logits, are NaN.
pub fn nan(what: &str) -> Error {
    Error::input(format!("the model's {what} are NaN"))
        .help("its weights are damaged, or its training diverged: train it anew")
}

/// What is dropped at one site of the model in the step that `key` stands for.
fn dropout_at(p: f64, key: u64, site: usize) -> Dropout {
    if p == 0.0 {
        return Dropout::NONE;
    }
    // Near keys and sites come out far apart.
    Dropout::new(p, rng::at(key, site as u64))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_lora;
#[cfg(test)]
mod tests_with_transformers;
