//! SentencePiece's unigram language model: of all ways to spell the text in tokens, the one with the highest
//! sum of scores (Viterbi; Kudo, 2018, <https://arxiv.org/abs/1804.10959>). Words are not cut.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::encoder::Buffers;
use super::{GgufVocabulary, token_type};
use crate::base::{Error, Result};
use crate::tokenizer::charsmap::Charsmap;
use crate::tokenizer::cut::SPACE;

/// The penalty of the unknown token, below the lowest score.
const UNKNOWN_PENALTY: f32 = 10.0;

pub struct Unigram {
    trie: Trie,
    /// The user-defined tokens alone.
    defined: Trie,
    /// By token.
    scores: Vec<f64>,
    unknown: u32,
    unknown_score: f64,
    charsmap: Option<Charsmap>,
    add_space_prefix: bool,
    merge_spaces: bool,
}

/// The best way to spell the text up to a place: its last token, where that begins, and the sum of scores.
#[derive(Debug, Clone, Copy)]
pub struct Best {
    id: u32,
    start: u32,
    score: f64,
}

impl Unigram {
    /// # Errors
    /// When there are no scores or there is no unknown token, one score is not a number, or the charsmap is
    /// damaged.
    pub fn of(vocabulary: &GgufVocabulary) -> Result<Self> {
        let unknown = vocabulary.unknown_or(2)?;
        let scores = vocabulary.finite_scores()?;
        let (mut trie, mut user_defined, mut lowest) = (Trie::default(), Trie::default(), f32::MAX);
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            let ty = vocabulary.type_of(id as u32);
            if ty == token_type::NORMAL {
                lowest = lowest.min(scores[id]);
            }
            if matches!(ty, token_type::NORMAL | token_type::USER_DEFINED | token_type::UNUSED) {
                trie.insert(token.as_bytes(), id as u32);
            }
            if ty == token_type::USER_DEFINED {
                user_defined.insert(token.as_bytes(), id as u32);
            }
        }
        let defined = |id: usize| vocabulary.type_of(id as u32) == token_type::USER_DEFINED;
        let score = |id: usize| if defined(id) { 0.0 } else { f64::from(scores[id]) };
        Ok(Unigram {
            trie,
            defined: user_defined,
            scores: (0..scores.len()).map(score).collect(),
            unknown,
            unknown_score: f64::from(lowest - UNKNOWN_PENALTY),
            charsmap: vocabulary
                .precompiled_charsmap
                .as_deref()
                .map(Charsmap::of)
                .transpose()
                .map_err(damaged)?,
            add_space_prefix: vocabulary.add_space_prefix.unwrap_or(false),
            merge_spaces: vocabulary.remove_extra_whitespaces.unwrap_or(false),
        })
    }

    /// Appends the ids of a text.
    pub fn encode(&self, text: &str, buffers: &mut Buffers, out: &mut Vec<u32>) {
        let Buffers { escaped, best, .. } = buffers;
        self.normalize(text, escaped);
        if escaped.is_empty() {
            return;
        }
        self.find_best(escaped, best);
        let start = out.len();
        let (mut at, mut after_unknown) = (escaped.len(), false);
        while at > 0 {
            let Best { id, start, .. } = best[at];
            // Adjacent unknown characters are one unknown token.
            if !(after_unknown && id == self.unknown) {
                out.push(id);
            }
            (at, after_unknown) = (start as usize, id == self.unknown);
        }
        out[start..].reverse();
    }

    fn find_best(&self, text: &str, best: &mut Vec<Best>) {
        best.clear();
        best.resize(text.len() + 1, Best { id: self.unknown, start: 0, score: f64::MIN });
        best[0].score = 0.0;
        for (start, c) in text.char_indices() {
            let before = best[start].score;
            let mut consider = |end: usize, id: u32, score: f64| {
                let champion = &mut best[end];
                if before + score > champion.score {
                    *champion = Best { id, start: start as u32, score: before + score };
                }
            };
            let mut has_own = false;
            self.trie.prefixes(&text.as_bytes()[start..], |len, id| {
                has_own |= len == c.len_utf8();
                consider(start + len, id, self.scores[id as usize]);
            });
            if !has_own {
                consider(start + c.len_utf8(), self.unknown, self.unknown_score);
            }
        }
    }

    /// Puts the text after the charsmap's replacements, with spaces as [`SPACE`], into `out`.
    fn normalize(&self, text: &str, out: &mut String) {
        out.clear();
        let (mut in_word, mut prefixed, mut at) = (false, false, 0);
        while let Some(first) = text[at..].chars().next() {
            let (len, replaced) = self.replace(&text[at..], first.len_utf8());
            at += len;
            for c in replaced.chars() {
                if c != ' ' && !in_word && (self.merge_spaces || self.add_space_prefix && !prefixed) {
                    out.push(SPACE);
                    prefixed = true;
                }
                in_word = c != ' ';
                match c {
                    ' ' if self.merge_spaces => {}
                    ' ' => out.push(SPACE),
                    other => out.push(other),
                }
            }
        }
    }
}

impl Unigram {
    /// What the beginning of a text is replaced by, and how long that is: a character, unless the charsmap has
    /// more. The beginning of a user-defined token is left as it is, even if the rest does not follow.
    fn replace<'a>(&'a self, text: &'a str, character: usize) -> (usize, &'a str) {
        let defined = text.floor_char_boundary(self.defined.longest_path(text.as_bytes()));
        if defined > 0 {
            return (defined, &text[..defined]);
        }
        let rule = self.charsmap.as_ref().and_then(|charsmap| charsmap.longest(text));
        rule.unwrap_or((character, &text[..character]))
    }
}

fn damaged(why: String) -> Error {
    Error::input(format!("`tokenizer.ggml.precompiled_charsmap`: {why}"))
}

/// Tokens by their bytes.
#[derive(Debug, Default)]
struct Trie {
    /// The child of a node by a byte; the root is 0.
    children: HashMap<(u32, u8), u32, FixedState>,
    /// By node.
    tokens: HashMap<u32, u32, FixedState>,
}

impl Trie {
    fn insert(&mut self, token: &[u8], id: u32) {
        let mut node = 0;
        for byte in token {
            let next = self.children.len() as u32 + 1;
            node = *self.children.entry((node, *byte)).or_insert(next);
        }
        self.tokens.insert(node, id);
    }

    /// How many bytes of `text` begin some token.
    fn longest_path(&self, text: &[u8]) -> usize {
        let mut node = 0;
        let follow = |byte: &&u8| match self.children.get(&(node, **byte)) {
            None => false,
            Some(child) => {
                node = *child;
                true
            }
        };
        text.iter().take_while(follow).count()
    }

    /// Calls `each` with the length and the id of every token that `text` begins with.
    fn prefixes(&self, text: &[u8], mut each: impl FnMut(usize, u32)) {
        let mut node = 0;
        for (i, byte) in text.iter().enumerate() {
            let Some(child) = self.children.get(&(node, *byte)) else { return };
            node = *child;
            if let Some(id) = self.tokens.get(&node) {
                each(i + 1, *id);
            }
        }
    }
}
