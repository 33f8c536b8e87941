//! What every module may use: digests, errors with a place, YAML with positions, the owner of the file
//! system, seeded randomness, progress reports and cancellation.
//!
//! It has no part of language models or pipelines, and never prints.

pub mod canonical;
#[cfg(test)]
pub mod damage;
pub mod digest;
pub mod error;
pub mod files;
pub mod fs;
pub mod invalid;
pub mod machine;
pub mod monitor;
pub mod rng;
pub mod suggest;
pub mod table;
pub mod text;
pub mod units;
pub mod yaml;

pub use digest::Digest;
pub use error::{Error, Place, Result};
pub use files::Files;
pub use invalid::Invalid;
pub use monitor::{Monitor, Progress, Quiet};
pub use rng::Rng;
