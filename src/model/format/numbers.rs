//! Numbers of files that know no types of their own.

use crate::base::{Error, Result};

/// Little-endian f32.
pub fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

/// # Errors
/// At the first number that is NaN or infinite.
pub fn expect_finite(file: &str, tensor: &str, mut numbers: impl Iterator<Item = f32>) -> Result<()> {
    let mut at = 0;
    let found = numbers.find(|x| {
        at += 1;
        !x.is_finite()
    });
    match found {
        None => Ok(()),
        Some(x) => Err(Error::input(format!("`{file}`: tensor `{tensor}` has {x} as its number {}", at - 1))
            .help("the file is damaged, or the training that made it diverged")),
    }
}
