//! SentencePiece's BPE: of all pairs of neighbours that are a token together, the one whose token has the
//! highest score is joined first. Words are not cut.

use super::encoder::Buffers;
use super::pairs::{Join, NONE};
use super::{GgufVocabulary, Ids};
use crate::base::{Error, Result};
use crate::tokenizer::cut::SPACE;

pub struct Spm {
    /// By token: how many scores are higher.
    order: Vec<u32>,
    /// The token of each byte, or [`NONE`].
    bytes: [u32; 256],
    /// Whether text begins with a space.
    add_space_prefix: bool,
}

impl Spm {
    /// # Errors
    /// When there are no scores, or one is not a number.
    pub fn of(vocabulary: &GgufVocabulary, ids: &Ids) -> Result<Self> {
        Ok(Spm {
            order: order(vocabulary.finite_scores()?),
            bytes: byte_tokens(ids),
            add_space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
        })
    }

    /// Appends the ids of a text that nothing precedes, or a user-defined token.
    ///
    /// # Errors
    /// When the text has a character without a token, and there are no tokens for its bytes.
    pub fn encode(&self, ids: &Ids, text: &str, buffers: &mut Buffers, out: &mut Vec<u32>) -> Result<()> {
        let Buffers { escaped, pairs, .. } = buffers;
        escaped.clear();
        escaped.extend(Some(SPACE).filter(|_| self.add_space_prefix));
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        pairs.clear();
        for c in escaped.chars() {
            let token = ids.get(&*c.encode_utf8(&mut [0; 4]));
            pairs.push(c.len_utf8(), token.copied().unwrap_or(NONE));
        }
        let mut failed = None;
        pairs.join(
            |left, right| {
                let id = *ids.get(&escaped[left.start as usize..right.end as usize])?;
                Some(Join { order: self.order[id as usize], id })
            },
            |symbol| match symbol.id {
                NONE => {
                    let bytes = &escaped[symbol.start as usize..symbol.end as usize];
                    failed = failed.take().or(self.spell(bytes, out).err());
                }
                id => out.push(id),
            },
        );
        failed.map_or(Ok(()), Err)
    }

    /// Appends the tokens of the bytes of a character.
    fn spell(&self, character: &str, out: &mut Vec<u32>) -> Result<()> {
        for byte in character.bytes() {
            match self.bytes[byte as usize] {
                NONE => return Err(no_byte(character, byte)),
                id => out.push(id),
            }
        }
        Ok(())
    }
}

/// The token `<0x0A>` of each byte, or [`NONE`].
fn byte_tokens(ids: &Ids) -> [u32; 256] {
    std::array::from_fn(|byte| ids.get(format!("<0x{byte:02X}>").as_str()).copied().unwrap_or(NONE))
}

/// For each score, how many different scores are higher.
fn order(scores: &[f32]) -> Vec<u32> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.dedup();
    let rank = |score: &f32| sorted.partition_point(|other| other > score) as u32;
    scores.iter().map(rank).collect()
}

fn no_byte(character: &str, byte: u8) -> Error {
    Error::input(format!(
        "llama.cpp fails at {character:?}: there is no token for it, and none `<0x{byte:02X}>`"
    ))
    .help("a `llama` vocabulary needs the tokens `<0x00>` to `<0xFF>`")
}
