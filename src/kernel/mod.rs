//! Training and inference on a CPU: layers with their way forward and back, side by side, on memory that
//! is made once.
//!
//! ```text
//!  simd       16 lanes that mean the same on every CPU; one source for all      (x86, neon, portable)
//!  math       e^x and what follows from it
//!  team       threads that share loops
//!  buffer     aligned memory in large pages
//!  matmul     C = A·B
//!  linear, norm, gelu, rotary, attention, dropout, embedding, loss      a layer each
//!  adamw      the update
//! ```
//!
//! **A layer** is a file with `forward`, which reads its input and its numbers and writes its output and
//! what the way back will need, and `backward`, which *adds* to the gradients of its numbers and gives the
//! gradient of its input. It keeps nothing: all memory is the caller's (see `model::executor`). A new kind of
//! layer is a new file here and two calls there.
//!
//! **The same bytes everywhere**: results depend on neither the number of threads nor the instructions.
//! Every element is one chain of operations in one order; tasks split what is independent (rows, columns,
//! heads) and never a sum; sums across the lanes of a vector go through one tree of 16; functions are our
//! own. Twins in plain code and candle's autograd test the values, and a test compares the bytes of all
//! that the machine can run.
//!
//! Unsafe code is here for three things: instructions of a CPU that was asked whether it has them,
//! threads that write disjoint parts of one slice, and memory in large pages.

pub mod activation;
pub mod adamw;
pub mod attention;
mod buffer;
pub mod dropout;
mod dtype;
pub mod embedding;
pub mod linear;
pub mod loss;
mod math;
pub mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
mod portable;
pub mod residual;
pub mod rotary;
mod simd;
mod team;
#[cfg(test)]
mod testing;
pub mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use buffer::Buffer;
pub use dropout::Dropout;
pub use dtype::Dtype;
pub use loss::IGNORE;
pub use matmul::{instructions, peak};
pub use simd::{Isa, Number, to_bf16};
pub use team::Team;
pub use weight::Weight;
