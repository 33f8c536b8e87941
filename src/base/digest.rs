//! A digest is BLAKE3 of content, written `blake3:<hex>`; never a `String`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use super::{Error, Result, machine};

/// 32 bytes of BLAKE3. Displays and serializes as `blake3:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

const PREFIX: &str = "blake3:";

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Streams a file; its content is never whole in memory. A large one is hashed by all cores while
    /// its next part is being read.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut file = super::fs::open(path)?;
        let large = file.metadata().is_ok_and(|meta| meta.len() > 2 * PART);
        let digest = match large.then(machine::pool).flatten() {
            Some(pool) => pool.install(|| of_large(&mut file)),
            None => of_small(&mut file),
        };
        digest.map_err(|e| Error::io("read", path, &e))
    }

    /// The 64 hex digits without the prefix, for file names.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `blake3:` and the first 12 digits, for a terminal.
    pub fn short(&self) -> String {
        format!("{PREFIX}{}", &self.hex()[..12])
    }
}

/// Bytes of a file that are read and hashed at once.
const PART: u64 = 1 << 20;

/// Reads the next part of `file` into `part`, which is empty at the end.
fn next_part(file: &mut File, part: &mut Vec<u8>) -> std::io::Result<()> {
    part.clear();
    file.take(PART).read_to_end(part).map(drop)
}

fn of_small(file: &mut File) -> std::io::Result<Digest> {
    let (mut hasher, mut part) = (Hasher::new(), Vec::new());
    loop {
        next_part(file, &mut part)?;
        if part.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(&part);
    }
}

/// On a rayon pool: one thread reads ahead, the others hash.
fn of_large(file: &mut File) -> std::io::Result<Digest> {
    let (mut hasher, mut part, mut next) = (blake3::Hasher::new(), Vec::new(), Vec::new());
    next_part(file, &mut part)?;
    while !part.is_empty() {
        let (read, _) = rayon::join(
            || next_part(file, &mut next),
            || {
                hasher.update_rayon(&part);
            },
        );
        read?;
        std::mem::swap(&mut part, &mut next);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// A digest of bytes that come in pieces.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix(PREFIX)
            .and_then(|hex| blake3::Hash::from_hex(hex).ok())
            .map(|hash| Digest(*hash.as_bytes()))
            .ok_or_else(|| {
                Error::input(format!("`{text}` is not a digest: expected `{PREFIX}` and 64 hex digits"))
            })
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes() {
        let digest = Digest::of(b"tinylm");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("blake3:12".parse::<Digest>().is_err());
        assert!(digest.hex().parse::<Digest>().is_err(), "the prefix is part of the form");
    }

    #[test]
    fn a_file_digests_as_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for size in [0, 1, 300_000, PART as usize, 2 * PART as usize + 1, 5_000_001] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            std::fs::write(file.path(), &bytes).unwrap();
            assert_eq!(Digest::of_file(file.path()).unwrap(), Digest::of(&bytes), "{size}");
        }
    }
}
