//! Encodes words by a unigram language model: the pieces with the highest sum of scores, by Viterbi's
//! algorithm (`Model::EncodeOptimized` in
//! <https://github.com/google/sentencepiece/blob/master/src/unigram_model.cc>).
//!
//! Other than in the `tokenizers` library, no text matches special tokens, the unknown token or those of
//! bytes. Scores of models of SentencePiece are summed in binary32, as there: of pieces that repeat, such as in
//! `aaaaa`, several orders have the same sum, and rounding decides which of them is taken.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;
use serde_json::Value;

use super::known::byte_of_name;

/// What an unknown character costs below the least score.
const UNKNOWN_PENALTY: f64 = 10.0;

/// The model.
pub struct Unigram {
    /// The node behind a node and a byte; the root is 0.
    children: HashMap<(u32, u8), u32, FixedState>,
    /// By node, the piece that ends there.
    pieces: Vec<Option<Piece>>,
    unknown: Option<u32>,
    unknown_score: f64,
    /// The ids of bytes, where they stand for what is unknown.
    bytes: Option<Box<[u32; 256]>>,
    /// Whether sums are rounded to binary32.
    single: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    score: f64,
}

/// The best pieces up to a place.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    /// `None` for an unknown character.
    id: Option<u32>,
}

/// Whether a score fits in binary32.
pub fn is_single(score: f64) -> bool {
    f64::from(score as f32) == score
}

impl Unigram {
    /// The `model` of a `tokenizer.json`; no text is to match the tokens in `apart`. `None` when it is
    /// another model, or is to spell what is unknown in bytes and lacks some.
    pub fn of(model: &Value, apart: &BTreeSet<u32>) -> Option<Unigram> {
        if model["type"] != "Unigram" {
            return None;
        }
        let unknown = model["unk_id"].as_u64().map(|id| id as u32);
        let fallback = model["byte_fallback"] == true;
        let (mut all, mut bytes) = (Vec::new(), vec![None; 256]);
        for (id, pair) in (0u32..).zip(model["vocab"].as_array()?) {
            let (text, score) = (pair[0].as_str()?, pair[1].as_f64()?);
            match byte_of_name(text).filter(|_| fallback) {
                Some(byte) => bytes[byte as usize] = Some(id),
                None if apart.contains(&id) || unknown == Some(id) => {}
                None => all.push((text, Piece { id, score })),
            }
        }
        // Half of them, since those of user-defined symbols are not.
        let single = all.iter().filter(|(_, piece)| is_single(piece.score)).count() * 2 > all.len();
        // In a model of SentencePiece, scores that are not binary32 are of user-defined symbols.
        let normal = all.iter().map(|(_, piece)| piece.score).filter(|score| !single || is_single(*score));
        let least = normal.fold(f64::INFINITY, f64::min);
        // With some bytes missing, what is unknown depends on the text.
        let bytes = match fallback {
            true => Some(bytes.into_iter().collect::<Option<Vec<u32>>>()?),
            false => None,
        };
        let mut unigram = Unigram {
            children: HashMap::default(),
            pieces: vec![None],
            unknown,
            unknown_score: least - UNKNOWN_PENALTY,
            bytes: bytes.and_then(|bytes| <Box<[u32; 256]>>::try_from(bytes).ok()),
            single,
        };
        for (text, piece) in all {
            unigram.add(text, piece);
        }
        Some(unigram)
    }

    fn add(&mut self, text: &str, piece: Piece) {
        let mut node = 0;
        for byte in text.bytes() {
            let next = self.pieces.len() as u32;
            node = *self.children.entry((node, byte)).or_insert(next);
            if node == next {
                self.pieces.push(None);
            }
        }
        self.pieces[node as usize] = Some(piece);
    }

    /// Whether scores are those of a model of SentencePiece.
    pub fn has_single_scores(&self) -> bool {
        self.single
    }

    /// A sum of scores as it is compared.
    fn rounded(&self, score: f64) -> f64 {
        if self.single { f64::from(score as f32) } else { score }
    }

    /// Appends the ids of a word.
    ///
    /// # Errors
    /// When it has an unknown character, and the model has neither an unknown token nor bytes.
    pub fn encode(&self, word: &str, ids: &mut Vec<u32>) -> Result<(), &'static str> {
        let best = self.best(word);
        let mut end = word.len();
        let mut path = Vec::new();
        while let Some(node) = best[end].filter(|_| end > 0) {
            path.push((node.id, node.start..end));
            end = node.start;
        }
        let mut follows_unknown = false;
        for (id, range) in path.into_iter().rev() {
            match (id, &self.bytes, self.unknown) {
                (Some(id), ..) => ids.push(id),
                (None, Some(bytes), _) => ids.extend(word[range].bytes().map(|byte| bytes[byte as usize])),
                // Several in a row are one.
                (None, None, Some(_)) if follows_unknown => {}
                (None, None, Some(unknown)) => ids.push(unknown),
                (None, None, None) => return Err("it has a character without a piece, and no unknown token"),
            }
            follows_unknown = id.is_none();
        }
        Ok(())
    }

    /// By the end of each character, the best pieces up to there.
    fn best(&self, word: &str) -> Vec<Option<Best>> {
        let bytes = word.as_bytes();
        let mut best: Vec<Option<Best>> = vec![None; bytes.len() + 1];
        for (start, c) in word.char_indices() {
            let before = best[start].map_or(0.0, |node| node.score);
            let mut improve = |end: usize, score: f64, id: Option<u32>| {
                let score = self.rounded(score);
                if best[end].is_none_or(|node| score > node.score) {
                    best[end] = Some(Best { score, start, id });
                }
            };
            let (mut node, mut is_known) = (0, false);
            for (end, byte) in (start + 1..).zip(&bytes[start..]) {
                let Some(next) = self.children.get(&(node, *byte)) else { break };
                node = *next;
                if let Some(piece) = self.pieces[node as usize] {
                    improve(end, piece.score + before, Some(piece.id));
                    is_known |= end - start == c.len_utf8();
                }
            }
            if !is_known {
                improve(start + c.len_utf8(), self.rounded(self.unknown_score) + before, None);
            }
        }
        best
    }
}
