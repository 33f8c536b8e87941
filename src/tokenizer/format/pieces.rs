//! Pieces with scores, as SentencePiece and its relatives have them, and the `tokenizer.json` that gives the
//! same ids.
//!
//! Of a byte-pair encoding, SentencePiece merges the pair of neighbours whose piece has the highest score, the
//! leftmost of equals; a `tokenizer.json` has a list of merges, the first come first. The list is made from the
//! scores ([`merges`]), as transformers' `convert_slow_tokenizer.py` does.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::build::{Draft, ids_of, json_of, merges_of};
use super::splits::{LONGEST, reaches_all, splits};
use crate::base::{Error, Result};
use crate::tokenizer::charsmap::Charsmap;
use crate::tokenizer::cut::{Cut, SPACE};
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::train::form;
use crate::tokenizer::unigram::is_single;
use crate::tokenizer::{Names, Tokenizer, base64};

/// What a piece is for; SentencePiece's `Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// What has no other piece.
    Unknown,
    /// Never made from text.
    Control,
    /// Found in text before all others.
    UserDefined,
    /// A byte of what has no other piece.
    Byte,
}

/// A token with its score.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// A space is [`SPACE`].
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// How pieces are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Algorithm {
    /// Pairs of neighbours are merged, the highest score first.
    #[default]
    Bpe,
    /// The highest sum of scores.
    Unigram,
    /// Single characters.
    Char,
}

/// Pieces by their ids, chosen in whole texts.
#[derive(Default)]
pub(super) struct Pieces {
    pub algorithm: Algorithm,
    pub pieces: Vec<Piece>,
    /// Whether a text begins with a space that is not written.
    pub dummy_prefix: bool,
    /// Whether spaces at both ends of a text are left out, and several are one.
    pub remove_extra_whitespaces: bool,
    /// SentencePiece's table of replacements of characters; none if empty.
    pub charsmap: Vec<u8>,
    /// Whether unknown characters are bytes before tokens are merged, as in llama2.c, rather than after, as
    /// in SentencePiece.
    pub spelled_before: bool,
}

impl Pieces {
    /// The tokenizer; `file` is what messages call its source.
    ///
    /// # Errors
    /// When it cannot be expressed as a `tokenizer.json`, with the reason.
    pub fn into_tokenizer(self, file: &str, names: &Names) -> Result<Tokenizer> {
        let texts: Vec<String> = self.pieces.iter().map(|piece| piece.text.clone()).collect();
        let ids = ids_of(file, &texts)?;
        self.check(file)?;
        let mut model = match self.algorithm {
            Algorithm::Unigram => self.unigram(),
            Algorithm::Bpe => self.bpe(&texts, &merges(file, &self.pieces, &ids)?),
            Algorithm::Char => self.bpe(&texts, &[]),
        };
        let pre_tokenizer = self.pre_tokenizer();
        if !pre_tokenizer.is_null() {
            self.check_reached(file, &model)?;
            // A symbol that is cut out is its token, though no merges make it.
            model["ignore_merges"] = json!(true);
        }
        let special = self.of_kind(Kind::Unknown).chain(self.of_kind(Kind::Control));
        let mut special: Vec<(u32, String)> = special.map(|(piece, id)| (id, piece.text.clone())).collect();
        special.sort_unstable();
        let (normalizer, decoder) = (self.normalizer(), self.decoder());
        Draft { normalizer, pre_tokenizer, decoder, model, special }.tokenizer(file, names)
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Piece, u32)> {
        self.pieces.iter().zip(0..).filter(move |(piece, _)| piece.kind == kind)
    }

    pub fn has_bytes(&self) -> bool {
        self.of_kind(Kind::Byte).next().is_some()
    }

    fn bpe(&self, texts: &[String], merges: &[Merge]) -> Value {
        let text = |id: u32| texts[id as usize].clone();
        let merges: Vec<(String, String)> = merges.iter().map(|m| (text(m.left), text(m.right))).collect();
        let unknown = self.of_kind(Kind::Unknown).next().map(|(piece, _)| piece.text.as_str());
        let mut model = form::bpe(texts, &merges, unknown, self.has_bytes());
        model["fuse_unk"] = json!(true);
        model
    }

    /// A user-defined symbol has the score that SentencePiece 0.2.3 gives it, by its bytes and the best score.
    fn unigram(&self) -> Value {
        let normal = self.of_kind(Kind::Normal).map(|(piece, _)| piece.score);
        let best = normal.fold(f32::NEG_INFINITY, f32::max);
        let score = |piece: &Piece| match piece.kind {
            Kind::UserDefined => f64::from(piece.text.len() as f32 * best) - 0.1,
            _ => f64::from(piece.score),
        };
        let scored: Vec<(String, f64)> = self.pieces.iter().map(|p| (p.text.clone(), score(p))).collect();
        let unknown = self.of_kind(Kind::Unknown).next().map_or(0, |(_, id)| id as usize);
        let mut model = form::unigram(&scored, unknown);
        model["byte_fallback"] = json!(self.has_bytes());
        model
    }

    fn check(&self, file: &str) -> Result<()> {
        for (id, piece) in self.pieces.iter().enumerate() {
            let what = match piece {
                Piece { score, .. } if !score.is_finite() => format!("has the score {score}"),
                Piece { text, .. } if text.is_empty() => "is empty".into(),
                Piece { text, .. } if text.len() > LONGEST => format!("is longer than {LONGEST} bytes"),
                Piece { text, kind: Kind::UserDefined, .. } if text.contains(' ') => "has a space".into(),
                _ => continue,
            };
            let start: String = piece.text.chars().take(40).collect();
            return Err(Error::input(format!("`{file}`: token {id} ({start:?}) {what}")));
        }
        if !self.charsmap.is_empty() {
            let table = Charsmap::of(&self.charsmap).map_err(|e| Error::input(format!("`{file}`: {e}")))?;
            let changed = |piece: &&(&Piece, u32)| table.normalize(&piece.0.text) != piece.0.text;
            if let Some((piece, id)) =
                self.of_kind(Kind::UserDefined).collect::<Vec<_>>().iter().find(changed)
            {
                return Err(Error::input(format!(
                    "`{file}`: the user-defined symbol {id} ({:?}) is changed by the table of characters",
                    piece.text
                ))
                .help("SentencePiece leaves it alone in texts, which a tokenizer.json cannot say"));
            }
        }
        if self.algorithm == Algorithm::Bpe && !self.spelled_before {
            self.check_characters(file)
        } else {
            Ok(())
        }
    }

    /// SentencePiece merges characters that are no pieces themselves, a `tokenizer.json` does not.
    fn check_characters(&self, file: &str) -> Result<()> {
        let known: HashSet<&str> =
            self.pieces.iter().filter(|p| p.kind != Kind::Control).map(|p| p.text.as_str()).collect();
        for (piece, id) in self.of_kind(Kind::Normal) {
            let mut unknown =
                piece.text.chars().filter(|c| !known.contains(c.encode_utf8(&mut [0; 4]) as &str));
            if let Some(c) = unknown.next() {
                let what = format!(
                    "`{file}`: token {id} ({:?}) has the character {c:?}, which is no token",
                    piece.text
                );
                return Err(Error::input(what)
                    .help("SentencePiece merges it all the same, which a tokenizer.json cannot say"));
            }
        }
        Ok(())
    }

    /// Between user-defined symbols, a text that is a token as a whole is that token.
    fn check_reached(&self, file: &str, model: &Value) -> Result<()> {
        if self.algorithm == Algorithm::Unigram {
            return Ok(());
        }
        match reaches_all(model, self.of_kind(Kind::Normal).map(|(piece, id)| (piece.text.as_str(), id)))? {
            None => Ok(()),
            Some(token) => Err(Error::input(format!("`{file}`: no merges make the token {token:?}")).help(
                "beside user-defined symbols, a tokenizer.json cannot say that text is not encoded to it",
            )),
        }
    }

    fn normalizer(&self) -> Value {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let regex = |regex: &str| json!({"Regex": regex});
        let space = SPACE.to_string();
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            steps
                .push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(&self.charsmap)}));
        }
        if self.remove_extra_whitespaces {
            steps.push(replace(regex(r"\A +| +\z"), ""));
            steps.push(replace(regex(" {2,}"), " "));
        }
        if self.dummy_prefix {
            steps.push(json!({"type": "Prepend", "prepend": space}));
        }
        steps.push(replace(json!({"String": " "}), &space));
        if self.remove_extra_whitespaces {
            // After spaces are replaced, as in SentencePiece: the sign itself at the end of a text goes too.
            steps.push(replace(regex(&format!(r"{SPACE}+\z")), ""));
        }
        json!({"type": "Sequence", "normalizers": steps})
    }

    /// User-defined symbols are cut out, the longest at each place.
    fn pre_tokenizer(&self) -> Value {
        if self.algorithm == Algorithm::Unigram {
            return Value::Null;
        }
        let mut symbols: Vec<&str> =
            self.of_kind(Kind::UserDefined).map(|(piece, _)| piece.text.as_str()).collect();
        if symbols.is_empty() {
            return Value::Null;
        }
        symbols.sort_by_key(|symbol| (usize::MAX - symbol.len(), *symbol));
        let escaped = |symbol: &&str| symbol.chars().map(escaped).collect::<String>();
        let any: Vec<String> = symbols.iter().map(escaped).collect();
        json!({"type": "Split", "pattern": {"Regex": any.join("|")}, "behavior": "Isolated", "invert": false})
    }

    fn decoder(&self) -> Value {
        let mut steps = vec![json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})];
        if self.has_bytes() {
            steps.push(json!({"type": "ByteFallback"}));
        }
        steps.push(json!({"type": "Fuse"}));
        if self.dummy_prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }

    /// The pieces of a tokenizer over whole texts, and of ours, whose words are cut first. Scores of a
    /// byte-pair encoding fall in the order of merges.
    ///
    /// # Errors
    /// When it has parts that are not of SentencePiece's, with the reason.
    pub fn of(tokenizer: &Tokenizer) -> Result<Pieces> {
        let json = json_of(tokenizer)?;
        let model = &json["model"];
        let is_set = |option: &&str| {
            !matches!(&model[*option], Value::Null | Value::Bool(false)) && model[*option] != ""
        };
        let algorithm = match model["type"].as_str() {
            Some("Unigram") => Algorithm::Unigram,
            Some("BPE") => Algorithm::Bpe,
            _ => return Err(not_pieces(&format!("its model is {}", model["type"]))),
        };
        if let Some(option) = ["continuing_subword_prefix", "end_of_word_suffix"].iter().find(|o| is_set(o)) {
            return Err(not_pieces(&format!("its model has the option `{option}`")));
        }
        let mut pieces = Pieces { algorithm, ..Pieces::default() };
        let kinds = Kinds::of(tokenizer, &json);
        for id in 0..tokenizer.vocab_size() as u32 {
            let text = tokenizer.token(id).ok_or_else(|| not_pieces(&format!("the id {id} has no token")))?;
            let score = model["vocab"][id as usize][1].as_f64().unwrap_or(0.0);
            pieces.pieces.push(Piece { kind: kinds.kind(id, &text, score), score: score as f32, text });
        }
        if algorithm == Algorithm::Bpe {
            set_scores(&mut pieces.pieces, &json);
        }
        pieces.set_normalizer(&json)?;
        Ok(pieces)
    }

    /// Of the steps that SentencePiece has, those of a `tokenizer.json`.
    fn set_normalizer(&mut self, json: &Value) -> Result<()> {
        if Cut::of(json) == Some(Cut::Pieces) {
            return Ok(());
        }
        let due = self.pre_tokenizer();
        if json["model"]["ignore_merges"] == true && due.is_null() {
            return Err(not_pieces("its model has the option `ignore_merges`"));
        }
        if json["pre_tokenizer"] != due {
            return Err(not_pieces(&format!(
                "it cuts texts into words by {}",
                json["pre_tokenizer"]["type"]
            )));
        }
        let table = json["normalizer"]["normalizers"][0]["precompiled_charsmap"].as_str().unwrap_or_default();
        self.charsmap = base64::decode(table).unwrap_or_default();
        for (prefix, remove) in [(true, false), (false, false), (true, true), (false, true)] {
            (self.dummy_prefix, self.remove_extra_whitespaces) = (prefix, remove);
            if json["normalizer"] == self.normalizer() {
                return Ok(());
            }
        }
        Err(not_pieces("it changes texts by a normalizer of its own"))
    }
}

/// A character in a regular expression.
fn escaped(c: char) -> String {
    if c.is_alphanumeric() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) }
}

/// What tells the kinds of a tokenizer's tokens.
struct Kinds<'a> {
    tokenizer: &'a Tokenizer,
    byte_fallback: bool,
    /// Whether scores tell user-defined symbols: they alone are not binary32.
    by_score: bool,
    /// Tokens that are matched in text, or cut out of it since no merge makes them.
    in_text: HashSet<String>,
}

impl<'a> Kinds<'a> {
    fn of(tokenizer: &'a Tokenizer, json: &Value) -> Self {
        let added = |special: bool| {
            let all = json["added_tokens"].as_array().into_iter().flatten();
            let some = all.filter(move |token| token["special"] == special);
            some.filter_map(|token| token["content"].as_str()).map(String::from)
        };
        let mut in_text: HashSet<String> = added(false).collect();
        if json["model"]["ignore_merges"] == true {
            let made = merges_of(json).into_iter().map(|(left, right)| left + &right);
            let others: HashSet<String> = made.chain(added(true)).collect();
            let tokens = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token(id));
            in_text.extend(tokens.filter(|token| token.chars().count() > 1 && !others.contains(token)));
        }
        let model = &json["model"];
        let by_score = model["type"] == "Unigram" && tokenizer.has_single_scores();
        Kinds { tokenizer, byte_fallback: model["byte_fallback"] == true, by_score, in_text }
    }

    fn kind(&self, id: u32, text: &str, score: f64) -> Kind {
        if self.byte_fallback && byte_of_name(text).is_some() {
            Kind::Byte
        } else if self.tokenizer.unknown() == Some(id) {
            Kind::Unknown
        } else if self.in_text.contains(text) || self.by_score && !is_single(score) {
            Kind::UserDefined
        } else if self.tokenizer.is_special(id) {
            Kind::Control
        } else {
            Kind::Normal
        }
    }
}

/// Tokens that are merged, in the order of their merges; then the other ones.
fn set_scores(pieces: &mut [Piece], json: &Value) {
    let ids: HashMap<String, usize> =
        pieces.iter().zip(0..).map(|(piece, id)| (piece.text.clone(), id)).collect();
    let mut ranks = vec![None; pieces.len()];
    let mut next = 0;
    let merged = merges_of(json).into_iter().map(|(left, right)| left + &right);
    let others = pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.text.clone());
    for text in merged.chain(others) {
        let rank = ids.get(&text).map(|id| &mut ranks[*id]).filter(|rank| rank.is_none());
        let Some(rank) = rank else { continue };
        *rank = Some(next);
        next += 1;
    }
    for (piece, rank) in pieces.iter_mut().zip(ranks) {
        piece.score = rank.filter(|_| piece.kind == Kind::Normal).map_or(0.0, |rank: u32| -(rank as f32));
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
fn merges(file: &str, pieces: &[Piece], ids: &HashMap<&str, u32>) -> Result<Vec<Merge>> {
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
    let merge = |at: usize| Some(Merge { left: part(&text[..at])?, right: part(&text[at..])?, made });
    splits(text.as_bytes()).into_iter().filter(|at| text.is_char_boundary(*at)).filter_map(merge).collect()
}

fn check_overlaps(file: &str, pieces: &[Piece], merges: &[Merge]) -> Result<()> {
    let mut by_right: HashMap<u32, Vec<u32>> = HashMap::new();
    for merge in merges {
        let made = by_right.entry(merge.right).or_default();
        // Two are enough to tell that one differs.
        if made.len() < 2 && !made.contains(&merge.made) {
            made.push(merge.made);
        }
    }
    let other = |merge: &Merge| {
        let made = by_right.get(&merge.left)?.iter().find(|made| **made != merge.made)?;
        Some((*made, *merge))
    };
    match merges.iter().find_map(other) {
        None => Ok(()),
        Some((before, merge)) => {
            let token = |id: u32| &pieces[id as usize].text;
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
