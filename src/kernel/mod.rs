//! Training and inference on a CPU: each layer's forward and backward pass, on memory that is allocated once.
//!
//! ```text
//!  dtype       f32, bf16 or bf16 in tiles
//!  blocks      the types that files store numbers in, quantized ones too
//!  simd        vectors of 16 lanes, the same on every CPU              (x86, neon, portable)
//!  math        exp, sigmoid, tanh, the normal distribution
//!  team        threads that share loops
//!  buffer      aligned memory in huge pages
//!  matmul      C = A·B
//!  quantized   weight matrices of integers with scales, and products with them
//!  weight      weight matrices as they are stored, and products with them
//!
//!  embedding   token embeddings, and positions that are added to them
//!  norm        LayerNorm, RMSNorm
//!  linear      y = x·W + b
//!  lora        low-rank adapters of that
//!  rotary      normalized and rotated queries and keys
//!  attention   causal, multi-head, grouped-query and multi-query
//!  activation  GELU, SiLU, ReLU², plain or gated
//!  dropout     of activations and attention weights
//!  residual    x = a·x + b·x0
//!  loss        the output projection, cross-entropy and divergence from a teacher, their gradients
//!
//!  adamw, muon, sgd, average      updates of the weights
//! ```
//!
//! **A layer** is a file with `forward`, which reads its input and parameters and writes its output and what
//! `backward` needs, and `backward`, which *adds* to the gradients of its parameters and computes the gradient
//! of its input. It owns no memory: all is the caller's (see `model`). A new kind of layer is a new file here.
//!
//! **The same bytes everywhere**: results depend on neither the number of threads nor the instruction set.
//! Each element is one chain of operations in one order. Tasks split what is independent (rows, columns,
//! heads), never a sum; sums over the lanes of a vector are added as one tree of 16; elementary functions are
//! our own. Tests compare each layer with its definition in f64 and its gradients with finite differences and
//! candle's autograd, and the bytes on all instruction sets of the machine.
//!
//! **Letters** of shapes:
//!
//! ```text
//!  B  sequences of a batch         H  heads of queries (n_head)
//!  T  tokens of a sequence         K  heads of keys and values (n_kv_head)
//!  N  rows, B·T                    D  width of a head (d_head)
//!  C  width of a row (d_model)     F  width of the feed-forward part (d_ff)
//!  V  ids of the vocabulary
//!  m, n, k  of a product: [m, n] = [m, k] · [k, n]
//! ```
//!
//! A matrix is a slice of rows, one after the other; where a `stride` is given, a row begins every `stride`
//! numbers. `dx` is the gradient of the loss with respect to `x`. `stats` of a norm are mean and rstd
//! (`1 / standard deviation`) of each row, those of attention the max and the inverse sum of each softmax.
//!
//! Unsafe code is here for four things: instructions whose presence was checked at run time, threads that
//! write disjoint parts of one slice, memory in huge pages, and numbers read as the bytes that they are.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod average;
pub mod blocks;
mod buffer;
pub mod dropout;
mod dtype;
pub mod embedding;
pub mod linear;
pub mod lora;
pub mod loss;
mod math;
pub mod matmul;
pub mod muon;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
mod portable;
pub mod quantized;
pub mod residual;
pub mod rotary;
pub mod sgd;
mod simd;
mod team;
#[cfg(test)]
mod testing;
pub mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use blocks::{Block, BlockType};
pub use buffer::Buffer;
pub use dropout::Dropout;
pub use dtype::Dtype;
pub use loss::IGNORE;
pub use matmul::{instructions, peak};
pub use simd::{Isa, Number, to_bf16};
pub use team::Team;
pub use weight::Weight;
