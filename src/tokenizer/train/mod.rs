//! Trains a tokenizer on documents and conversations: counts words, learns a vocabulary, writes a
//! `tokenizer.json` and measures it.
//!
//! The bytes depend on the texts and the options alone: words are counted in a map and then sorted,
//! every tie is broken by the text, and sums of floats are made in a fixed order.

mod bpe;
pub(super) mod form;
mod unigram;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::in_text::InText;
use super::{Inputs, Special, Tokenizer, byte_symbol};
use crate::base::{Digest, Error, Invalid, Monitor, Result, units};

use form::Form;
use words::{Counted, Cutter, Word, Words};

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Byte-pair encoding over bytes, cut into words as GPT-2 does. Knows every text; decoding
    /// gives back exactly what was encoded.
    ByteBpe,
    /// Byte-pair encoding over characters, as in SentencePiece: a space is `▁`, and a character
    /// outside the alphabet is spelled in bytes. Decoding gives the text back (`▁` itself becomes a
    /// space).
    SentencepieceBpe,
    /// The unigram language model of SentencePiece, with bytes for what it does not know. Decoding
    /// gives the text back (`▁` itself becomes a space).
    Unigram,
    /// WordPiece, as in BERT: words and their pieces (`##ing`); white space is not kept.
    Wordpiece,
    /// The most frequent words and signs; others are `<unk>`, white space is not kept.
    Word,
    /// The most frequent characters; others are `<unk>`.
    Char,
}

impl Algorithm {
    /// Whether it spells unknown text in bytes.
    pub fn has_bytes(self) -> bool {
        matches!(self, Algorithm::ByteBpe | Algorithm::SentencepieceBpe | Algorithm::Unigram)
    }

    /// Whether it allows lower-casing, since it does not give the text back anyway.
    pub fn may_lowercase(self) -> bool {
        matches!(self, Algorithm::Wordpiece | Algorithm::Word | Algorithm::Char)
    }
}

/// A special token besides [`Special::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a token, or `{ token: \"<name>\", in_text: true }`")]
pub enum SpecialToken {
    /// Never matched in text.
    Plain(String),
    /// With the option to be matched in text.
    WithOptions(SpecialTokenOptions),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokenOptions {
    pub token: String,
    /// Whether a text that spells it has this token there, rather than ordinary ones.
    #[serde(default)]
    pub in_text: bool,
}

impl SpecialToken {
    pub fn as_str(&self) -> &str {
        match self {
            SpecialToken::Plain(token) => token,
            SpecialToken::WithOptions(options) => &options.token,
        }
    }

    pub fn in_text(&self) -> bool {
        matches!(self, SpecialToken::WithOptions(SpecialTokenOptions { in_text: true, .. }))
    }
}

/// What to train.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How text becomes tokens.
    pub algorithm: Algorithm,
    /// How many tokens at most, special tokens included. Reached unless there is too little text.
    pub vocab_size: usize,
    /// What occurs less often is not learned: a pair of tokens (BPE, WordPiece), a word (word,
    /// unigram), a character (char).
    pub min_frequency: u64,
    /// Further special tokens of the form `<name>`, after `<pad> <unk> <bos> <eos> <user> <assistant>
    /// <system>`, which are always there. No text is encoded to them, but to those written as
    /// `{ token: "<think>", in_text: true }` wherever it spells them.
    pub special_tokens: Vec<SpecialToken>,
    /// Lower-case the text (wordpiece, word and char only).
    pub lowercase: bool,
    /// The share of all characters that get a token of their own; rarer ones are spelled in bytes
    /// (sentencepiece_bpe, unigram) or unknown (wordpiece).
    pub character_coverage: f64,
    /// The longest token, in characters (in bytes for byte_bpe).
    pub max_token_length: usize,
    /// Bytes of text to train on at most. Of a larger corpus a sample of documents is taken, by the
    /// digests of their texts.
    pub sample_bytes: u64,
    /// The share of documents, by digest, not trained on but measured on. 0 switches it off.
    pub held_out_fraction: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            algorithm: Algorithm::ByteBpe,
            vocab_size: 4096,
            min_frequency: 2,
            special_tokens: Vec::new(),
            lowercase: false,
            character_coverage: 0.9999,
            max_token_length: 32,
            sample_bytes: 256 << 20,
            held_out_fraction: 0.05,
        }
    }
}

impl Options {
    /// Every special token, by id.
    fn special_tokens(&self) -> Vec<SpecialToken> {
        let named = Special::ALL.iter().map(|s| SpecialToken::Plain(s.as_str().to_string()));
        named.chain(self.special_tokens.iter().cloned()).collect()
    }

    /// The spellings of [`Options::special_tokens`].
    pub fn special(&self) -> Vec<String> {
        self.special_tokens().iter().map(|token| token.as_str().to_string()).collect()
    }

    /// The matcher of those that are matched in text; `None` when none is.
    fn in_text(&self) -> Result<Option<InText>> {
        let all = self.special_tokens();
        InText::of(all.iter().zip(0..).map(|(token, id)| (token.as_str(), id, !token.in_text())))
    }

    /// Every param that is out of range.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, param, why: String| {
            if !ok {
                found.push(Invalid::new(param, why));
            }
        };
        let (least, most) = (self.least_vocab_size(), 1 << 20);
        check(
            (least..=most).contains(&self.vocab_size),
            "vocab_size",
            format!("is {}: expected {least} to {most}", self.vocab_size),
        );
        check(
            self.character_coverage > 0.0 && self.character_coverage <= 1.0,
            "character_coverage",
            format!("must be above 0 and at most 1, found {}", self.character_coverage),
        );
        check(
            (0.0..1.0).contains(&self.held_out_fraction),
            "held_out_fraction",
            format!("must be at least 0 and below 1, found {}", self.held_out_fraction),
        );
        check(self.max_token_length > 0, "max_token_length", "must be above 0".into());
        check(self.sample_bytes > 0, "sample_bytes", "must be above 0".into());
        found.extend(self.validate_special_tokens());
        if self.lowercase && !self.algorithm.may_lowercase() {
            let why = "does not go with an algorithm that gives back the very text";
            let help = "use `wordpiece`, `word` or `char`, or lower-case the documents";
            found.push(Invalid::new("lowercase", why).help(help));
        }
        found
    }

    fn validate_special_tokens(&self) -> impl Iterator<Item = Invalid> {
        let all = self.special();
        self.special_tokens.iter().enumerate().filter_map(move |(i, token)| {
            let token = token.as_str();
            let inner = token.strip_prefix('<').and_then(|t| t.strip_suffix('>')).unwrap_or("");
            let why = if inner.is_empty() || token.chars().any(|c| c.is_whitespace() || c.is_control()) {
                // No text gives a token that begins with `<`: every algorithm cuts before and behind it.
                format!("is {token:?}, which is not of the form `<name>`")
            } else if inner.len() == 4 && inner.starts_with("0x") {
                format!("is `{token}`, the name of a byte")
            } else if all.iter().filter(|t| *t == token).count() > 1 {
                format!("is `{token}`, which is there twice")
            } else {
                return None;
            };
            Some(Invalid::new(format!("special_tokens[{i}]"), why))
        })
    }

    /// The smallest vocabulary that can be asked for: special tokens, bytes, one more.
    pub fn least_vocab_size(&self) -> usize {
        let bytes = if self.algorithm.has_bytes() { 256 } else { 0 };
        self.special().len() + bytes + 1
    }
}

/// Figures of a tokenizer on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
    pub tokens: u64,
    pub bytes_per_token: f64,
    /// The share of unknown tokens.
    pub unknown_rate: f64,
    /// The share of tokens that spell a character in bytes; `null` where single bytes are ordinary.
    pub byte_rate: Option<f64>,
}

/// What was trained; `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub algorithm: Algorithm,
    pub tokenizer: Digest,
    pub vocab_size: usize,
    pub vocab_size_asked: usize,
    pub special_tokens: Vec<String>,
    /// Those of them that are matched in text, with their counts in the text trained on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub in_text: BTreeMap<String, u64>,
    /// Bytes of text that came in; more than `train` and `held_out` together when it was sampled.
    pub corpus_bytes: u64,
    pub distinct_words: usize,
    pub train: Score,
    /// On documents that were not trained on; `null` when there are none.
    pub held_out: Option<Score>,
    /// Tokens that do not occur in the text trained on, special tokens and bytes left out.
    pub unused_tokens: usize,
    pub longest_tokens: Vec<String>,
}

/// A trained tokenizer and its report.
pub struct Trained {
    pub tokenizer: Tokenizer,
    pub report: Report,
}

/// Trains on `inputs`.
///
/// # Errors
/// When an input cannot be read, there is no text, or the vocabulary is too small for the alphabet.
pub fn train(inputs: &Inputs, options: &Options, monitor: &dyn Monitor) -> Result<Trained> {
    if let Some(invalid) = options.validate().into_iter().next() {
        return Err(Error::invalid(invalid));
    }
    let form = Form::of(options.algorithm, options.lowercase);
    let counted = words::count(inputs, &Cutter::of(options)?, options, monitor)?;
    let model = learn(&counted.train.words, options, monitor)?;
    let json = form.write(model, &options.special_tokens())?;
    let tokenizer = Tokenizer::parse("the trained tokenizer", json)?;
    let report = report(&tokenizer, &counted, options)?;
    if report.vocab_size < options.vocab_size {
        tracing::warn!(
            "the vocabulary has {} tokens rather than {}: there is not more to learn from {} with min_frequency {}",
            units::count(report.vocab_size as u64),
            units::count(options.vocab_size as u64),
            units::bytes(report.train.bytes),
            options.min_frequency,
        );
    }
    Ok(Trained { tokenizer, report })
}

/// The `model` part of the `tokenizer.json`.
fn learn(words: &[Word], options: &Options, monitor: &dyn Monitor) -> Result<Value> {
    let unknown = Special::Unk.as_str();
    match options.algorithm {
        Algorithm::ByteBpe => {
            let mut symbols: Vec<char> = (0..=255).map(byte_symbol).collect();
            symbols.sort_unstable();
            let trained = learn_bpe(words, options, symbols.iter().map(char::to_string), "", monitor)?;
            Ok(form::bpe(&trained.tokens, &trained.merges, None, false))
        }
        Algorithm::SentencepieceBpe => {
            let letters = alphabet(words, options.character_coverage);
            let initial = byte_names().chain(letters.iter().map(char::to_string));
            let trained = learn_bpe(words, options, initial, "", monitor)?;
            Ok(form::bpe(&trained.tokens, &trained.merges, Some(unknown), true))
        }
        Algorithm::Wordpiece => {
            let letters = alphabet(words, options.character_coverage);
            let trained = learn_bpe(words, options, pieces_of(words, &letters), "##", monitor)?;
            Ok(form::wordpiece(&trained.tokens, unknown))
        }
        Algorithm::Unigram => learn_unigram(words, options, monitor),
        Algorithm::Word => Ok(form::word_level(&most_frequent(words, options), unknown)),
        // Characters without merges: a BPE model with an empty list of them.
        Algorithm::Char => Ok(form::bpe(&most_frequent(words, options), &[], Some(unknown), false)),
    }
}

fn learn_bpe(
    words: &[Word],
    options: &Options,
    initial: impl Iterator<Item = String>,
    prefix: &str,
    monitor: &dyn Monitor,
) -> Result<bpe::Trained> {
    let special = options.special();
    // No ordinary token may be spelled like one of these, or text could forge it.
    let reserved: BTreeSet<String> = special.iter().cloned().chain(byte_names()).collect();
    let alphabet: Vec<String> = special.into_iter().chain(initial).collect();
    fits(&alphabet, options)?;
    let plan = bpe::Plan {
        alphabet,
        prefix,
        reserved: &reserved,
        vocab_size: options.vocab_size,
        min_frequency: options.min_frequency,
        max_length: options.max_token_length,
    };
    bpe::train(words, &plan, monitor)
}

fn learn_unigram(words: &[Word], options: &Options, monitor: &dyn Monitor) -> Result<Value> {
    let fixed: Vec<String> = options.special().into_iter().chain(byte_names()).collect();
    let letters = alphabet(words, options.character_coverage);
    let smallest: Vec<String> = fixed.iter().cloned().chain(letters.iter().map(char::to_string)).collect();
    fits(&smallest, options)?;
    let frequent: Vec<Word> = words.iter().filter(|w| w.count >= options.min_frequency).cloned().collect();
    let plan = unigram::Plan {
        alphabet: letters,
        pieces: options.vocab_size - fixed.len(),
        max_length: options.max_token_length,
    };
    let pieces = unigram::train(&frequent, &plan, monitor)?;
    // Special tokens and bytes never match text, so that their scores do not matter.
    let all: Vec<(String, f64)> = fixed.into_iter().map(|token| (token, 0.0)).chain(pieces).collect();
    Ok(form::unigram(&all, Special::Unk as usize))
}

/// Special tokens, then words by how often they occur, equal ones in byte order.
fn most_frequent(words: &[Word], options: &Options) -> Vec<String> {
    let mut tokens = options.special();
    let special: BTreeSet<String> = tokens.iter().cloned().collect();
    let mut frequent: Vec<&Word> = words
        .iter()
        .filter(|w| w.count >= options.min_frequency.max(1) && !special.contains(&w.text))
        .filter(|w| w.text.chars().count() <= options.max_token_length)
        .collect();
    frequent.sort_by(|a, b| b.count.cmp(&a.count).then(a.text.cmp(&b.text)));
    let room = options.vocab_size.saturating_sub(tokens.len());
    tokens.extend(frequent.into_iter().take(room).map(|w| w.text.clone()));
    tokens
}

/// The names of all bytes where they are a fallback.
fn byte_names() -> impl Iterator<Item = String> {
    (0..=255u8).map(|byte| format!("<0x{byte:02X}>"))
}

/// The most frequent characters, in the order of their code points, that make up `coverage` of all.
fn alphabet(words: &[Word], coverage: f64) -> Vec<char> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for word in words {
        for c in word.text.chars() {
            *counts.entry(c).or_default() += word.count;
        }
    }
    let total: u64 = counts.values().sum();
    let mut by_count: Vec<(char, u64)> = counts.into_iter().collect();
    by_count.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut covered = 0;
    let mut kept: Vec<char> = by_count
        .into_iter()
        .take_while(|(_, count)| {
            let open = (covered as f64) < coverage * total as f64;
            covered += count;
            open
        })
        .map(|(c, _)| c)
        .collect();
    kept.sort_unstable();
    kept
}

/// Each character as the beginning of a word and as `##` inside one, where it occurs so.
fn pieces_of(words: &[Word], letters: &[char]) -> impl Iterator<Item = String> {
    let known: BTreeSet<char> = letters.iter().copied().collect();
    let mut pieces = BTreeSet::new();
    for word in words {
        for (i, c) in word.text.chars().enumerate().filter(|(_, c)| known.contains(c)) {
            pieces.insert((i > 0, c));
        }
    }
    pieces.into_iter().map(|(inside, c)| if inside { format!("##{c}") } else { c.to_string() })
}

/// Fails when the initial tokens exceed the vocabulary.
fn fits(initial: &[String], options: &Options) -> Result<()> {
    if initial.len() <= options.vocab_size {
        return Ok(());
    }
    let special = options.special().len();
    let bytes = if options.algorithm.has_bytes() { 256 } else { 0 };
    Err(Error::input(format!(
        "`vocab_size` {} is too small: {special} special tokens, {bytes} bytes and {} characters are {}",
        options.vocab_size,
        initial.len() - special - bytes,
        initial.len(),
    ))
    .help("raise it, or lower `character_coverage` so that rare characters are left out"))
}

fn report(tokenizer: &Tokenizer, counted: &Counted, options: &Options) -> Result<Report> {
    let mut used = vec![false; tokenizer.vocab_size()];
    let train = score(tokenizer, &counted.train, options, Some(&mut used))?;
    let held_out = match counted.held_out.bytes {
        0 => None,
        _ => Some(score(tokenizer, &counted.held_out, options, None)?),
    };
    let fixed = options.least_vocab_size() - 1;
    let mut longest: Vec<(usize, String)> = (options.special().len()..tokenizer.vocab_size())
        .filter_map(|id| tokenizer.token(id as u32))
        .filter(|token| !is_byte_name(token))
        .map(|token| (token.chars().count(), token))
        .collect();
    longest.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(Report {
        algorithm: options.algorithm,
        tokenizer: tokenizer.digest(),
        vocab_size: tokenizer.vocab_size(),
        vocab_size_asked: options.vocab_size,
        special_tokens: options.special(),
        in_text: counted.train.in_text_of(options),
        corpus_bytes: counted.total_bytes,
        distinct_words: counted.train.words.len(),
        train,
        held_out,
        unused_tokens: used.iter().skip(fixed).filter(|used| !**used).count(),
        longest_tokens: longest.into_iter().take(20).map(|(_, token)| token).collect(),
    })
}

/// Encodes each distinct word once, which gives the same counts as encoding the text.
fn score(
    tokenizer: &Tokenizer,
    words: &Words,
    options: &Options,
    used: Option<&mut Vec<bool>>,
) -> Result<Score> {
    let encoded: Vec<Result<Vec<u32>>> =
        words.words.par_iter().map(|word| tokenizer.encode_spelled(&word.text)).collect();
    let fallback = matches!(options.algorithm, Algorithm::SentencepieceBpe | Algorithm::Unigram);
    let first_byte = options.special().len() as u32;
    let is_byte = |id: u32| fallback && (first_byte..first_byte + 256).contains(&id);
    let (mut tokens, mut unknown, mut bytes) = (words.in_text.values().sum::<u64>(), 0, 0);
    let mut seen = BTreeSet::new();
    for (word, ids) in words.words.iter().zip(encoded) {
        for id in ids? {
            tokens += word.count;
            unknown += if Some(id) == tokenizer.unknown() { word.count } else { 0 };
            bytes += if is_byte(id) { word.count } else { 0 };
            seen.insert(id);
        }
    }
    if let Some(used) = used {
        seen.into_iter().for_each(|id| used[id as usize] = true);
    }
    let rate = |n: u64| n as f64 / tokens.max(1) as f64;
    Ok(Score {
        documents: words.documents,
        bytes: words.bytes,
        tokens,
        bytes_per_token: words.bytes as f64 / tokens.max(1) as f64,
        unknown_rate: rate(unknown),
        byte_rate: fallback.then(|| rate(bytes)),
    })
}

fn is_byte_name(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}
