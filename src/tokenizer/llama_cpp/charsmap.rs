//! The normalization rules of SentencePiece, as `tokenizer.ggml.precompiled_charsmap` holds them: a trie of
//! what is replaced, as a double array whose transitions are XORed (darts-clone,
//! <https://github.com/s-yata/darts-clone>), and the replacements, each ended by a zero.

use crate::base::{Error, Result};

/// Empty: nothing is replaced.
#[derive(Debug, Default)]
pub struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// # Errors
    /// When the length of the trie is not one of its bytes.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::input(format!("`tokenizer.ggml.precompiled_charsmap` {what}"));
        let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(bad(format!("has {} bytes, and its length alone needs 4", bytes.len())));
        };
        let len = u32::from_le_bytes(*head) as usize;
        if len >= rest.len() || !len.is_multiple_of(4) {
            return Err(bad(format!("says that its trie has {len} bytes, and {} follow", rest.len())));
        }
        let (units, replacements) = rest.split_at(len);
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Charsmap { units, replacements: replacements.to_vec() })
    }

    /// The longest beginning of `text` that is replaced: its length, and the replacement.
    ///
    /// # Errors
    /// When the trie leads out of its array or to no replacement.
    pub fn longest(&self, text: &[u8]) -> Result<Option<(usize, &[u8])>> {
        if self.units.is_empty() {
            return Ok(None);
        }
        let mut found = None;
        let mut node = base(self.unit(0)?);
        for (i, byte) in text.iter().enumerate().take_while(|(_, byte)| **byte != 0) {
            node ^= u32::from(*byte);
            let unit = self.unit(node)?;
            if unit & LABEL != u32::from(*byte) {
                break;
            }
            node ^= base(unit);
            if unit & HAS_LEAF != 0 {
                found = Some((i + 1, self.unit(node)? & !IS_LEAF));
            }
        }
        found.map(|(len, at)| Ok((len, self.replacement(at as usize)?))).transpose()
    }

    fn unit(&self, at: u32) -> Result<u32> {
        self.units.get(at as usize).copied().ok_or_else(|| damaged("leads out of its array"))
    }

    fn replacement(&self, at: usize) -> Result<&[u8]> {
        let rest = self.replacements.get(at..).ok_or_else(|| damaged("leads to no replacement"))?;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| damaged("has a replacement without end"))?;
        Ok(&rest[..end])
    }
}

const IS_LEAF: u32 = 1 << 31;
/// Of a node: the byte that leads to it. That of a leaf is no byte.
const LABEL: u32 = IS_LEAF | 0xFF;
const HAS_LEAF: u32 = 1 << 8;

/// The offset from a node to its children.
fn base(unit: u32) -> u32 {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}

fn damaged(what: &str) -> Error {
    Error::input(format!("`tokenizer.ggml.precompiled_charsmap` is damaged: its trie {what}"))
}
