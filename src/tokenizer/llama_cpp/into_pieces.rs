//! The parts of a `tokenizer.json` for SentencePiece's models.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::encoder::is_in_text;
use super::into_json::{Parts, replace, sequence, split};
use super::{GgufVocabulary, Ids, token_type};
use crate::base::Result;
use crate::tokenizer::base64;
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::known::{byte_of_name, pieces_decoder};

/// Several spaces.
pub const SPACES: &str = " {2,}";
/// Spaces at both ends.
pub const OUTER_SPACES: &str = r"\A +| +\z";
/// The beginning of a text that is not of spaces alone.
pub const HAS_TEXT: &str = "^(?= *[^ ])";
/// Begins the regular expression that cuts the spellings of special tokens.
pub const SPECIAL_CUT: &str = "(?#special tokens)";

impl GgufVocabulary {
    pub(super) fn spm(&self) -> Result<Parts> {
        let unknown = self.unknown_or(0).ok().map(|id| &self.tokens[id as usize]);
        let prefixed = self.add_space_prefix.unwrap_or(true);
        let has_bytes = self.tokens.iter().any(|token| byte_of_name(token).is_some());
        let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": has_bytes, "ignore_merges": false, "vocab": self.vocab(), "merges": self.spm_merges()?});
        let mut steps = vec![replace(json!({"String": " "}), "▁")];
        if prefixed {
            steps.insert(0, prepend());
        }
        Ok(vec![("normalizer", sequence(steps)), ("decoder", decoder(prefixed)), ("model", model)])
    }

    /// All pairs of tokens that are a token together, that of the highest score first; what is no text has none.
    ///
    /// Of equal scores, llama.cpp joins the leftmost pair in the text, which a list of merges cannot say: the
    /// lower id comes first. Such are tokens of spaces alone in Llama's vocabulary, where both give the same.
    fn spm_merges(&self) -> Result<Vec<(&str, &str)>> {
        let scores = self.finite_scores()?;
        let is_text =
            |id: u32| !self.is_special(id) && !is_in_text(self, id) && self.type_of(id) != token_type::BYTE;
        let texts = || (0..).zip(&self.tokens).filter(|(id, _)| is_text(*id));
        let ids: Ids = texts().map(|(id, token)| (token.as_str(), id)).collect();
        let score = |id: u32| scores[id as usize];
        let mut made: Vec<(u32, &String)> = texts().collect();
        made.sort_by(|(a, _), (b, _)| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
        let mut merges = Vec::new();
        for (_, token) in made {
            let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut halves: Vec<_> =
                halves.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, (a, b)))).collect();
            halves.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then(score(b.1).total_cmp(&score(a.1))));
            merges.extend(halves.into_iter().map(|(.., both)| both));
        }
        Ok(merges)
    }

    pub(super) fn unigram(&self) -> Result<Parts> {
        let unknown = self.unknown_or(2)?;
        let scores = self.finite_scores()?;
        let normal = (0..).zip(scores).filter(|(id, _)| self.type_of(*id) == token_type::NORMAL);
        let lowest = normal.map(|(_, score)| *score).fold(f32::MAX, f32::min);
        let score = |id: u32| match self.type_of(id) {
            token_type::NORMAL | token_type::UNUSED => scores[id as usize],
            token_type::USER_DEFINED => 0.0,
            // The library's unknown token is below the lowest score of all, llama.cpp's of normal tokens.
            _ => lowest,
        };
        let vocab: Vec<_> =
            (0..).zip(&self.tokens).map(|(id, token)| (token, f64::from(score(id)))).collect();
        let model = json!({"type": "Unigram", "unk_id": unknown, "byte_fallback": false, "vocab": vocab});
        let prefixed = self.add_space_prefix == Some(true) || self.remove_extra_whitespaces == Some(true);
        Ok(vec![
            ("normalizer", self.unigram_normalizer()),
            ("pre_tokenizer", self.special_cut()),
            ("decoder", decoder(prefixed)),
            ("model", model),
        ])
    }

    /// Cuts the spelling of a special token in two: its piece is in the library's trie, and not in llama.cpp's.
    fn special_cut(&self) -> Value {
        let is_text = |id: u32| {
            let ty = self.type_of(id);
            matches!(ty, token_type::NORMAL | token_type::UNUSED) || is_in_text(self, id)
        };
        let tokens = || (0..).zip(&self.tokens);
        let pieces: HashSet<&str> =
            tokens().filter(|(id, _)| is_text(*id)).map(|(_, token)| token.as_str()).collect();
        let spellings = tokens().filter(|(id, _)| !is_text(*id)).filter_map(|(_, token)| {
            let (head, tail) = in_two(token, &pieces)?;
            Some(format!("{}(?={})", regex_syntax::escape(head), regex_syntax::escape(tail)))
        });
        match spellings.collect::<Vec<String>>().as_slice() {
            [] => Value::Null,
            some => {
                let mut cut = split(&format!("{SPECIAL_CUT}{}", some.join("|")));
                cut["behavior"] = json!("MergedWithPrevious");
                cut
            }
        }
    }

    fn unigram_normalizer(&self) -> Value {
        let mut steps = Vec::new();
        if let Some(charsmap) = self.precompiled_charsmap.as_ref().filter(|bytes| !bytes.is_empty()) {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(charsmap)}));
        }
        if self.remove_extra_whitespaces == Some(true) {
            steps.push(replace(json!({"Regex": OUTER_SPACES}), ""));
            steps.push(replace(json!({"Regex": SPACES}), " "));
            steps.push(prepend());
        } else if self.add_space_prefix == Some(true) {
            steps.push(replace(json!({"Regex": HAS_TEXT}), "▁"));
        }
        steps.push(replace(json!({"String": " "}), "▁"));
        sequence(steps)
    }
}

/// Not between two characters without a piece, if possible, since these are one unknown token.
fn in_two<'a>(token: &'a str, pieces: &HashSet<&str>) -> Option<(&'a str, &'a str)> {
    let chars: Vec<(usize, char)> = token.char_indices().collect();
    let has_piece = |c: char| pieces.contains(&*c.encode_utf8(&mut [0; 4]));
    let known = |pair: &&[(usize, char)]| pair.iter().any(|(_, c)| has_piece(*c));
    let pair = chars.windows(2).find(known).or_else(|| chars.windows(2).next())?;
    Some(token.split_at(pair[1].0))
}

/// Begins a text with a space.
fn prepend() -> Value {
    json!({"type": "Prepend", "prepend": SPACE})
}

/// Joins tokens, [`SPACE`] as a space; the first is left out if `prefixed`.
fn decoder(prefixed: bool) -> Value {
    let mut decoder = pieces_decoder();
    if let (true, Some(steps)) = (prefixed, decoder["decoders"].as_array_mut()) {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    decoder
}
