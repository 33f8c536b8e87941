//! What each algorithm's `tokenizer.json` looks like around its vocabulary: normalizer,
//! pre-tokenizer, decoder, model.
//!
//! Every pre-tokenizer cuts after `<`, so that no text can be encoded to a special token or to a byte
//! token, whichever program loads the file; except added tokens that are not special and are matched in
//! text.

use serde_json::{Value, json};

use super::{Algorithm, SpecialToken};
use crate::base::{Error, Result};
use crate::tokenizer::cut::{PIECES, SPACE};
use crate::tokenizer::known::pieces_decoder;

/// The parts of a `tokenizer.json` around its model.
pub struct Form {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
}

impl Form {
    pub fn of(algorithm: Algorithm, lowercase: bool) -> Self {
        let lower = if lowercase { json!({"type": "Lowercase"}) } else { Value::Null };
        let words = json!({"type": "BertPreTokenizer"});
        // Joins with spaces, except before punctuation that follows a word.
        let joined = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        match algorithm {
            Algorithm::ByteBpe => {
                Form { normalizer: Value::Null, pre_tokenizer: byte_level(), decoder: byte_level() }
            }
            Algorithm::SentencepieceBpe | Algorithm::Unigram => Form {
                normalizer: Value::Null,
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
                    {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": false},
                ]}),
                decoder: pieces_decoder(),
            },
            Algorithm::Wordpiece => Form {
                normalizer: json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": false, "lowercase": lowercase}),
                pre_tokenizer: words,
                decoder: joined,
            },
            Algorithm::Word => Form { normalizer: lower, pre_tokenizer: words, decoder: joined },
            Algorithm::Char => {
                Form { normalizer: lower, pre_tokenizer: Value::Null, decoder: json!({"type": "Fuse"}) }
            }
        }
    }

    /// The bytes of the `tokenizer.json` with `model` in it, as the library writes them: maps in the
    /// order of ids.
    ///
    /// # Errors
    /// When the library refuses it, which would be a bug.
    pub fn write(&self, model: Value, special: &[SpecialToken]) -> Result<Vec<u8>> {
        let library = self.library(model, special)?;
        let text = library
            .to_string(true)
            .map_err(|e| Error::bug(format!("the tokenizer cannot be written: {e}")))?;
        Ok(text.into_bytes())
    }

    /// The library's tokenizer of this form.
    ///
    /// # Errors
    /// As [`Form::write`].
    pub fn library(&self, model: Value, special: &[SpecialToken]) -> Result<tokenizers::Tokenizer> {
        tokenizers::Tokenizer::from_bytes(self.json(model, special).to_string())
            .map_err(|e| Error::bug(format!("the library refuses a tokenizer of ours: {e}")))
    }

    /// The whole `tokenizer.json`.
    pub fn json(&self, model: Value, special: &[SpecialToken]) -> Value {
        let added: Vec<Value> = special
            .iter()
            .enumerate()
            .map(|(id, token)| {
                json!({"id": id, "content": token.as_str(), "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": !token.in_text()})
            })
            .collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer,
            "post_processor": null, "decoder": self.decoder, "model": model,
        })
    }
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// A BPE model; `fallback` spells what is not in the vocabulary as bytes.
pub fn bpe(tokens: &[String], merges: &[(String, String)], unknown: Option<&str>, fallback: bool) -> Value {
    json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": fallback, "ignore_merges": false,
        "vocab": vocabulary(tokens), "merges": merges})
}

pub fn wordpiece(tokens: &[String], unknown: &str) -> Value {
    json!({"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocabulary(tokens)})
}

pub fn word_level(tokens: &[String], unknown: &str) -> Value {
    json!({"type": "WordLevel", "unk_token": unknown, "vocab": vocabulary(tokens)})
}

/// Pieces in the order of their ids.
pub fn unigram(pieces: &[(String, f64)], unknown: usize) -> Value {
    json!({"type": "Unigram", "unk_id": unknown, "byte_fallback": true, "vocab": pieces})
}

fn vocabulary(tokens: &[String]) -> Value {
    tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
