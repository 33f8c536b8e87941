//! GGUF: the files of llama.cpp (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). A header of keys
//! with values and of tensors with shapes, then the tensors' bytes, numbers or blocks of integers.
//!
//! ```text
//!  value      a key's value
//!  read       a file's header, checked; its tensors one by one
//!  write      a file, tensor by tensor
//!  names      names and shapes of tensors
//!  keys       an architecture as keys
//!  vocabulary a tokenizer as keys
//!  model      a model's folder with `model.gguf`
//!  container  a whole model in one file
//! ```

mod container;
mod keys;
mod model;
mod names;
mod read;
mod value;
mod vocabulary;
mod write;

pub use self::container::Gguf;
pub use self::keys::{Architecture, config_of, metadata, why_not_llama_cpp};
pub use self::names::stored;
pub use self::read::{File, Tensor};
pub use self::value::{Array, Value};
pub use self::vocabulary::{tokenizer_of, vocabulary_of};
pub use self::write::{Declared, write};

/// The weights of a model's folder, instead of safetensors.
pub const GGUF_FILE: &str = "model.gguf";

/// What a file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Tensors begin at multiples of this, unless a file says otherwise.
const ALIGNMENT: usize = 32;

const ALIGNMENT_KEY: &str = "general.alignment";
const ARCHITECTURE_KEY: &str = "general.architecture";
const FILE_TYPE_KEY: &str = "general.file_type";
const VOCABULARY_KEY: &str = "tokenizer.ggml.model";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_damage;
#[cfg(test)]
mod tests_with_llama_cpp;
