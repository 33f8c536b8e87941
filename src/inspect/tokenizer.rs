//! A `tokenizer.json` of Hugging Face's form, read as JSON.
//!
//! <https://huggingface.co/docs/tokenizers/api/tokenizer>; the serialized form is that of
//! `tokenizers::Tokenizer::save`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Page, json};
use crate::base::table::Table;
use crate::base::{Error, Result, units};

#[derive(Debug, Clone, Serialize)]
pub struct TokenizerSummary {
    /// `BPE`, `Unigram`, `WordPiece`, `WordLevel`.
    pub algorithm: String,
    /// One more than the highest id, added tokens included: what a model's embedding must have.
    pub vocab_size: u64,
    /// Entries of the vocabulary itself and of the added tokens that it lacks.
    pub tokens: u64,
    pub merges: Option<u64>,
    pub unknown_token: Option<String>,
    pub byte_fallback: bool,
    pub special_tokens: Vec<Token>,
    /// By characters; as they are written in the vocabulary.
    pub longest_tokens: Vec<Token>,
    pub normalizer: Option<String>,
    pub pre_tokenizer: Option<String>,
    pub post_processor: Option<String>,
    pub decoder: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    pub id: u64,
    pub token: String,
}

/// Tokens listed as the longest.
const LONGEST: usize = 10;

/// Whether a JSON document has the keys of a `tokenizer.json`.
pub(super) fn is_tokenizer(value: &Value) -> bool {
    value.get("model").is_some_and(|model| model.get("vocab").is_some())
}

/// # Errors
/// When an id is no whole number or a token is no string.
pub(super) fn read(value: &Value) -> Result<TokenizerSummary> {
    let model = &value["model"];
    let (all, special_tokens) = all_tokens(value)?;
    let part = |name: &str| value.get(name).filter(|part| !part.is_null()).map(component);
    Ok(TokenizerSummary {
        algorithm: algorithm(model),
        vocab_size: all.iter().map(|token| token.id + 1).max().unwrap_or(0),
        tokens: all.len() as u64,
        merges: model["merges"].as_array().map(|merges| merges.len() as u64),
        unknown_token: unknown(model, &all),
        byte_fallback: model["byte_fallback"].as_bool().unwrap_or(false),
        longest_tokens: longest(all, &special_tokens),
        special_tokens,
        normalizer: part("normalizer"),
        pre_tokenizer: part("pre_tokenizer"),
        post_processor: part("post_processor"),
        decoder: part("decoder"),
    })
}

/// The tokens of the vocabulary and those that are added to it, and of them the special ones by their ids.
fn all_tokens(value: &Value) -> Result<(Vec<Token>, Vec<Token>)> {
    let mut all = listed(&value["model"]["vocab"])?;
    let mut special = Vec::new();
    for (i, added) in value["added_tokens"].as_array().into_iter().flatten().enumerate() {
        let (Some(id), Some(token)) = (added["id"].as_u64(), added["content"].as_str()) else {
            return Err(damaged(format!("added token {i} has no id or no content")));
        };
        let token = Token { id, token: token.to_string() };
        if added["special"].as_bool() == Some(true) {
            special.push(token.clone());
        }
        if !all.contains(&token) {
            all.push(token);
        }
    }
    special.sort_by_key(|token| token.id);
    Ok((all, special))
}

/// Every token of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// In the order of the ids; as they are written in the vocabulary.
    pub tokens: Vec<Token>,
    /// The ids of special tokens.
    pub special: BTreeSet<u64>,
}

/// The tokens of the `tokenizer.json` at `path`.
///
/// # Errors
/// When it is no such file, or damaged.
pub fn vocabulary(path: &Path) -> Result<Vocabulary> {
    let value = json::read(path)?;
    if !is_tokenizer(&value) {
        return Err(Error::input("this file is no tokenizer: it has no vocabulary"));
    }
    let (mut tokens, special) = all_tokens(&value)?;
    tokens.sort_by_key(|token| token.id);
    Ok(Vocabulary { tokens, special: special.into_iter().map(|token| token.id).collect() })
}

fn damaged(why: String) -> Error {
    Error::input(format!("this tokenizer is damaged: {why}"))
}

/// Token to id, or a list of `[token, score]` whose places are the ids.
fn listed(vocab: &Value) -> Result<Vec<Token>> {
    match vocab {
        Value::Object(map) => {
            let token = |(token, id): (&String, &Value)| match id.as_u64() {
                Some(id) => Ok(Token { id, token: token.clone() }),
                None => Err(damaged(format!("the id of `{token}` is {id}, expected a whole number"))),
            };
            map.iter().map(token).collect()
        }
        Value::Array(items) => {
            let token = |(id, item): (usize, &Value)| match item[0].as_str() {
                Some(token) => Ok(Token { id: id as u64, token: token.to_string() }),
                None => {
                    Err(damaged(format!("entry {id} of its vocabulary is {item}, expected [token, score]")))
                }
            };
            items.iter().enumerate().map(token).collect()
        }
        _ => Err(damaged("its vocabulary is neither an object nor a list".to_string())),
    }
}

/// Older files do not name the type: it is inferred from the vocabulary.
fn algorithm(model: &Value) -> String {
    let guess = if model["merges"].is_array() {
        "BPE"
    } else if model["vocab"].is_array() {
        "Unigram"
    } else if model.get("continuing_subword_prefix").is_some() {
        "WordPiece"
    } else {
        "WordLevel"
    };
    model["type"].as_str().unwrap_or(guess).to_string()
}

fn unknown(model: &Value, all: &[Token]) -> Option<String> {
    let by_id = |id: u64| all.iter().find(|token| token.id == id).map(|token| token.token.clone());
    let named = model["unk_token"].as_str().map(str::to_string);
    named.or_else(|| model["unk_id"].as_u64().and_then(by_id))
}

fn longest(mut all: Vec<Token>, special: &[Token]) -> Vec<Token> {
    all.retain(|token| !special.contains(token));
    all.sort_by_key(|token| (std::cmp::Reverse(token.token.chars().count()), token.id));
    all.truncate(LONGEST);
    all
}

/// `Sequence[NFC, Replace(pattern="x", content="y")]`: the type of a part and its settings.
fn component(part: &Value) -> String {
    let Some(map) = part.as_object() else { return part.to_string() };
    let name = part["type"].as_str().unwrap_or("unnamed");
    let nested = ["normalizers", "pretokenizers", "processors", "decoders"];
    if let Some(parts) = nested.iter().find_map(|key| part[*key].as_array()) {
        let parts: Vec<String> = parts.iter().map(component).collect();
        return format!("{name}[{}]", parts.join(", "));
    }
    let settings: Vec<String> = map
        .iter()
        .filter(|(key, value)| *key != "type" && !value.is_null())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if settings.is_empty() { name.to_string() } else { format!("{name}({})", settings.join(", ")) }
}

impl TokenizerSummary {
    pub(super) fn summary(&self) -> String {
        format!("{} tokenizer of {} tokens", self.algorithm, units::count(self.vocab_size))
    }

    pub(super) fn render(&self, page: &mut Page) {
        page.field("algorithm", Some(&self.algorithm));
        page.field("vocabulary", Some(units::count(self.vocab_size)));
        if self.tokens != self.vocab_size {
            page.field("", Some(format!("{} tokens: some ids have none", units::count(self.tokens))));
        }
        page.field("merges", self.merges.map(units::count));
        page.field("unknown token", self.unknown_token.as_ref());
        page.field("byte fallback", Some("yes").filter(|_| self.byte_fallback));
        page.field("normalizer", self.normalizer.as_ref());
        page.field("pre-tokenizer", self.pre_tokenizer.as_ref());
        page.field("post-processor", self.post_processor.as_ref());
        page.field("decoder", self.decoder.as_ref());
        for (title, tokens) in
            [("special token", &self.special_tokens), ("longest tokens", &self.longest_tokens)]
        {
            let mut table = Table::new([">id", title]);
            for token in tokens {
                table.push([token.id.to_string(), token.token.clone()]);
            }
            page.table(&table);
        }
    }
}
