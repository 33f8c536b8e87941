//! Pieces with scores, as SentencePiece and its relatives have them, and the `tokenizer.json` that gives the
//! same ids.
//!
//! SentencePiece merges the pair of neighbours whose piece has the highest score, the leftmost of equals; a
//! `tokenizer.json` has a list of merges, the first come first. The list is made from the scores
//! ([`merges`]), as transformers' `convert_slow_tokenizer.py` does.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::build::{Draft, ids_of, json_of};
use crate::base::{Error, Result};
use crate::tokenizer::cut::{Cut, SPACE};
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::train::form;
use crate::tokenizer::{Names, Tokenizer};

/// What a piece is for; SentencePiece's `Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// What has no other piece.
    Unknown,
    /// Never made from text.
    Control,
    /// A byte of what has no other piece.
    Byte,
}

/// A token with its score: the higher, the sooner it is merged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// A space is [`SPACE`].
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// A byte-pair encoding by scores, over whole texts.
pub(super) struct Pieces {
    /// By id.
    pub pieces: Vec<Piece>,
    /// Whether a text begins with a space that is not written.
    pub dummy_prefix: bool,
}

/// The longest piece in bytes. Far longer than any in use, and short enough that all its halves can be
/// looked up.
const LONGEST: usize = 1024;

impl Pieces {
    /// The tokenizer; `file` is what messages call its source.
    ///
    /// # Errors
    /// When it cannot be expressed as a `tokenizer.json`, with the reason.
    pub fn into_tokenizer(self, file: &str, names: &Names) -> Result<Tokenizer> {
        let texts: Vec<String> = self.pieces.iter().map(|piece| piece.text.clone()).collect();
        let ids = ids_of(file, &texts)?;
        self.check(file)?;
        let merges: Vec<(String, String)> = merges(file, &self.pieces, &ids)?
            .into_iter()
            .map(|merge| (texts[merge.left as usize].clone(), texts[merge.right as usize].clone()))
            .collect();
        let of_kind = |kind| self.pieces.iter().zip(0..).filter(move |(piece, _)| piece.kind == kind);
        let unknown = of_kind(Kind::Unknown).next().map(|(piece, _)| piece.text.as_str());
        let mut model = form::bpe(&texts, &merges, unknown, of_kind(Kind::Byte).next().is_some());
        model["fuse_unk"] = json!(true);
        let special = of_kind(Kind::Unknown).chain(of_kind(Kind::Control));
        let mut special: Vec<(u32, String)> = special.map(|(piece, id)| (id, piece.text.clone())).collect();
        special.sort_unstable();
        let (normalizer, decoder) = (self.normalizer(), self.decoder());
        Draft { normalizer, pre_tokenizer: Value::Null, decoder, model, special }.tokenizer(file, names)
    }

    /// The pieces of a tokenizer over whole texts, and of ours, whose words are cut first. Scores fall in the
    /// order of merges.
    ///
    /// # Errors
    /// When it has parts that are not of SentencePiece's, with the reason.
    pub fn of(tokenizer: &Tokenizer) -> Result<Pieces> {
        let json = json_of(tokenizer)?;
        let model = &json["model"];
        let is_set = |option: &&str| {
            !matches!(&model[*option], Value::Null | Value::Bool(false)) && model[*option] != ""
        };
        let options = ["continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"];
        if model["type"] != "BPE" {
            return Err(not_pieces(&format!("its model is {}", model["type"])));
        }
        if let Some(option) = options.iter().find(|option| is_set(option)) {
            return Err(not_pieces(&format!("its model has the option `{option}`")));
        }
        let dummy_prefix = whole_texts(&json)?;
        let mut pieces = Vec::new();
        for id in 0..tokenizer.vocab_size() as u32 {
            let text = tokenizer.token(id).ok_or_else(|| not_pieces(&format!("the id {id} has no token")))?;
            pieces.push(Piece { kind: kind_of(tokenizer, model, id, &text), score: 0.0, text });
        }
        let is_added = |token: &Value| token["special"] == false;
        if let Some(token) = json["added_tokens"].as_array().into_iter().flatten().find(|t| is_added(t)) {
            return Err(not_pieces(&format!(
                "the token {} is matched in text before all others",
                token["content"]
            )));
        }
        set_scores(&mut pieces, model);
        Ok(Pieces { pieces, dummy_prefix })
    }

    fn check(&self, file: &str) -> Result<()> {
        for (id, piece) in self.pieces.iter().enumerate() {
            let what = match piece {
                Piece { score, .. } if score.is_nan() => "has the score NaN",
                Piece { text, .. } if text.is_empty() => "is empty",
                Piece { text, .. } if text.len() > LONGEST => "is longer than 1024 bytes",
                _ => continue,
            };
            let start: String = piece.text.chars().take(40).collect();
            return Err(Error::input(format!("`{file}`: token {id} ({start:?}) {what}")));
        }
        Ok(())
    }

    fn normalizer(&self) -> Value {
        let mut steps = Vec::new();
        if self.dummy_prefix {
            steps.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        json!({"type": "Sequence", "normalizers": steps})
    }

    fn decoder(&self) -> Value {
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.dummy_prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }
}

/// Whether texts begin with a dummy prefix; they are not changed or cut otherwise, but into our words.
fn whole_texts(json: &Value) -> Result<bool> {
    let plain = |dummy_prefix| Pieces { pieces: Vec::new(), dummy_prefix }.normalizer();
    if Cut::of(json) == Some(Cut::Pieces) {
        return Ok(false);
    }
    if !json["pre_tokenizer"].is_null() {
        return Err(not_pieces(&format!("it cuts texts into words by {}", json["pre_tokenizer"]["type"])));
    }
    let same = |dummy_prefix: &bool| json["normalizer"] == plain(*dummy_prefix);
    [true, false]
        .into_iter()
        .find(same)
        .ok_or_else(|| not_pieces("it changes texts by a normalizer of its own"))
}

fn kind_of(tokenizer: &Tokenizer, model: &Value, id: u32, text: &str) -> Kind {
    if model["byte_fallback"] == true && byte_of_name(text).is_some() {
        Kind::Byte
    } else if tokenizer.unknown() == Some(id) {
        Kind::Unknown
    } else if tokenizer.is_special(id) {
        Kind::Control
    } else {
        Kind::Normal
    }
}

/// Tokens that are merged, in the order of their merges; then the other ones.
fn set_scores(pieces: &mut [Piece], model: &Value) {
    let ids: HashMap<String, usize> =
        pieces.iter().zip(0..).map(|(piece, id)| (piece.text.clone(), id)).collect();
    let mut ranks = vec![None; pieces.len()];
    let mut next = 0;
    let merged = model["merges"].as_array().into_iter().flatten().filter_map(merged);
    let others = pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.text.clone());
    for text in merged.chain(others) {
        let Some(rank) = ids.get(&text).map(|id| &mut ranks[*id]).filter(|rank| rank.is_none()) else {
            continue;
        };
        *rank = Some(next);
        next += 1;
    }
    for (piece, rank) in pieces.iter_mut().zip(ranks) {
        piece.score = rank.filter(|_| piece.kind == Kind::Normal).map_or(0.0, |rank: u32| -(rank as f32));
    }
}

/// The token that a merge makes, of `"a b"` or `["a", "b"]`.
fn merged(merge: &Value) -> Option<String> {
    match merge {
        Value::String(both) => both.split_once(' ').map(|(left, right)| format!("{left}{right}")),
        both => Some(format!("{}{}", both[0].as_str()?, both[1].as_str()?)),
    }
}

fn not_pieces(why: &str) -> Error {
    Error::input(format!("the tokenizer is not of SentencePiece's kind: {why}"))
        .help("write it as `tokenizer_json`, which holds every tokenizer")
}

/// A pair of tokens that become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    pub left: u32,
    pub right: u32,
    pub made: u32,
}

/// Of equal scores, the leftmost pair in the text is merged first, which a list can only say where it agrees
/// for all texts: in `x y z`, `x y` comes first.
///
/// # Errors
/// When two different tokens have the same score and overlap, so that a list of merges cannot say it.
pub(super) fn merges(file: &str, pieces: &[Piece], ids: &HashMap<&str, u32>) -> Result<Vec<Merge>> {
    let mut made: Vec<u32> = (0..pieces.len() as u32).collect();
    made.retain(|id| pieces[*id as usize].kind == Kind::Normal);
    let score = |id: u32| pieces[id as usize].score;
    made.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    let mut merges = Vec::new();
    for equal in made.chunk_by(|a, b| score(*a) == score(*b)) {
        let first = merges.len();
        for id in equal {
            merges.extend(halves(&pieces[*id as usize].text, *id, ids, pieces));
        }
        if equal.len() > 1 {
            check_overlaps(file, pieces, &merges[first..])?;
        }
    }
    Ok(merges)
}

/// All pairs of pieces that make a piece.
fn halves(text: &str, made: u32, ids: &HashMap<&str, u32>, pieces: &[Piece]) -> Vec<Merge> {
    let part = |text: &str| {
        let id = ids.get(text).copied()?;
        matches!(pieces[id as usize].kind, Kind::Normal | Kind::Byte).then_some(id)
    };
    // In `x y z` where both pairs make this piece, `x` and `z` are equally long.
    let (all, bytes) = (text.len(), text.as_bytes());
    let overlaps = |left: usize| bytes[left..] == bytes[..all - left];
    let mut cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
    cuts.sort_by_key(|left| {
        let first = overlaps(*left) && !overlaps(all - *left);
        let pair = (*left).max(all - *left);
        (std::cmp::Reverse(pair), !first, std::cmp::Reverse(*left))
    });
    let merge = |at: usize| Some(Merge { left: part(&text[..at])?, right: part(&text[at..])?, made });
    cuts.into_iter().filter_map(merge).collect()
}

fn check_overlaps(file: &str, pieces: &[Piece], merges: &[Merge]) -> Result<()> {
    let mut by_right: HashMap<u32, u32> = HashMap::new();
    let mut several: HashSet<u32> = HashSet::new();
    for merge in merges {
        if by_right.insert(merge.right, merge.made).is_some_and(|before| before != merge.made) {
            several.insert(merge.right);
        }
    }
    let other = |merge: &&Merge| {
        let left = merge.left;
        several.contains(&left) || by_right.get(&left).is_some_and(|made| *made != merge.made)
    };
    match merges.iter().find(other) {
        None => Ok(()),
        Some(merge) => {
            let token = |id: u32| &pieces[id as usize].text;
            let before = merges.iter().find(|m| m.right == merge.left && m.made != merge.made);
            let before = before.map_or(merge.made, |m| m.made);
            Err(Error::input(format!(
                "`{file}`: the tokens {:?} and {:?} have the same score {} and overlap at {:?}",
                token(before),
                token(merge.made),
                pieces[merge.made as usize].score,
                token(merge.left),
            ))
            .help("which of them is merged first depends on the text, which a tokenizer.json cannot say"))
        }
    }
}
