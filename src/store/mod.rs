//! Bytes by digest, and where they come from.

pub mod download;
