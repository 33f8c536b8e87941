//! Byte-level BPE: the words of [`super::pre`], the bytes of each joined by rank.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::encoder::Buffers;
use super::pairs::{Join, NONE};
use super::pre::{DEFAULT, Pre, Split, words};
use super::{GgufVocabulary, Ids};
use crate::base::{Error, Result};
use crate::tokenizer::byte_symbol;
use crate::tokenizer::cut::Cut;

pub struct Bpe {
    splits: Vec<Split>,
    /// The token of each byte, or [`NONE`].
    bytes: [u32; 256],
    /// By pair of tokens.
    merges: HashMap<(u32, u32), Join, FixedState>,
    ignore_merges: bool,
}

impl Bpe {
    /// # Errors
    /// When there are no merges, or one is of what is no token.
    pub fn of(vocabulary: &GgufVocabulary, ids: &Ids) -> Result<Self> {
        let pre = Pre::named(vocabulary.pre.as_deref().unwrap_or(DEFAULT))?;
        let merges = vocabulary.merges.as_ref().ok_or_else(no_merges)?;
        let id = |token: &str| ids.get(token).copied();
        let mut by_pair = HashMap::with_capacity_and_hasher(merges.len(), FixedState::default());
        for (rank, merge) in merges.iter().enumerate() {
            let (left, right) = halves(merge).ok_or_else(|| bad_merge(rank, merge, None))?;
            let need = |token: &str| id(token).ok_or_else(|| bad_merge(rank, merge, Some(token)));
            let join = Join { order: rank as u32, id: need(&[left, right].concat())? };
            // Of two that are the same, the first counts.
            by_pair.entry((need(left)?, need(right)?)).or_insert(join);
        }
        Ok(Bpe {
            splits: pre.cutter()?,
            bytes: std::array::from_fn(|byte| {
                id(byte_symbol(byte as u8).encode_utf8(&mut [0; 4])).unwrap_or(NONE)
            }),
            merges: by_pair,
            ignore_merges: pre.ignore_merges,
        })
    }

    /// Appends the ids of a text. As in llama.cpp, a byte without a token has none.
    pub fn encode(&self, ids: &Ids, text: &str, buffers: &mut Buffers, out: &mut Vec<u32>) {
        let mut parts = std::mem::take(&mut buffers.words);
        words(&self.splits, text, &mut parts, &mut buffers.spare);
        for word in &parts {
            if let Err(place) = buffers.cache.get(text.as_bytes(), word.clone(), out) {
                let start = out.len();
                self.encode_word(ids, &text[word.clone()], buffers, out);
                buffers.cache.put(place, &out[start..]);
            }
        }
        buffers.words = parts;
    }

    fn encode_word(&self, ids: &Ids, word: &str, buffers: &mut Buffers, out: &mut Vec<u32>) {
        if let Some(id) = ids.get(Cut::Bytes.spell(word).as_str()).filter(|_| self.ignore_merges) {
            out.push(*id);
            return;
        }
        let pairs = &mut buffers.pairs;
        pairs.clear();
        for byte in word.bytes() {
            pairs.push(1, self.bytes[byte as usize]);
        }
        pairs.join(
            |left, right| self.merges.get(&(left.id, right.id)).copied(),
            |symbol| out.extend(Some(symbol.id).filter(|id| *id != NONE)),
        );
    }
}

/// The two tokens of a merge: a space at its very beginning belongs to the first.
pub fn halves(merge: &str) -> Option<(&str, &str)> {
    let (at, _) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}

fn no_merges() -> Error {
    Error::input("`tokenizer.ggml.merges` is missing, which a `gpt2` vocabulary needs")
}

fn bad_merge(rank: usize, merge: &str, missing: Option<&str>) -> Error {
    let what = match missing {
        None => "is not two tokens with a space between them".to_string(),
        Some(token) => format!("needs the token {token:?}, which is not in `tokenizer.ggml.tokens`"),
    };
    Error::input(format!("`tokenizer.ggml.merges`: entry {rank}, {merge:?}, {what}"))
}
