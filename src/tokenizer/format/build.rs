//! A `tokenizer.json` from what other programs' files say.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::base::{Error, Result};
use crate::tokenizer::{Names, Tokenizer};

/// The parts of a `tokenizer.json`, as the `tokenizers` library calls them.
pub(super) struct Draft {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub model: Value,
    /// Tokens that no text is encoded to, with their ids.
    pub special: Vec<(u32, String)>,
}

impl Draft {
    /// The tokenizer; `names` name its special tokens.
    ///
    /// # Errors
    /// When the library refuses it.
    pub fn tokenizer(self, file: &str, names: &Names) -> Result<Tokenizer> {
        let added: Vec<Value> = self
            .special
            .iter()
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer, "post_processor": null,
            "decoder": self.decoder, "model": self.model,
        });
        let refused = |e: &dyn std::fmt::Display| {
            Error::input(format!("`{file}` does not make a tokenizer.json")).cause(e)
        };
        // As the library writes it, with tokens in the order of their ids.
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|e| refused(&e))?;
        let text = library.to_string(true).map_err(|e| refused(&e))?;
        Tokenizer::parse_with(file, text.into_bytes(), names)
    }
}

/// The ids of `tokens`, by their text.
///
/// # Errors
/// When two tokens are the same, or there is none.
pub(super) fn ids_of<'a>(file: &str, tokens: &'a [String]) -> Result<HashMap<&'a str, u32>> {
    if tokens.is_empty() {
        return Err(Error::input(format!("`{file}` has no tokens")));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(before) = ids.insert(token.as_str(), id as u32) {
            let what = format!("`{file}`: the tokens {before} and {id} are both {token:?}");
            return Err(Error::input(what).help("each token needs a spelling of its own"));
        }
    }
    Ok(ids)
}

/// The `tokenizer.json`.
///
/// # Errors
/// Never, for a tokenizer that was read from it.
pub(super) fn json_of(tokenizer: &Tokenizer) -> Result<Value> {
    serde_json::from_slice(tokenizer.json())
        .map_err(|e| Error::bug(format!("the tokenizer.json of a tokenizer cannot be read: {e}")))
}

/// Spells words in symbols of bytes; cut into GPT-2's words before, if `cut`.
pub(super) fn byte_level(cut: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut})
}

/// The merges of a BPE, each `"a b"` or `["a", "b"]` in the file.
pub(super) fn merges_of(json: &Value) -> Vec<(String, String)> {
    let halves = |merge: &Value| match merge {
        Value::String(both) => {
            both.split_once(' ').map(|(left, right)| (left.to_string(), right.to_string()))
        }
        both => Some((both[0].as_str()?.to_string(), both[1].as_str()?.to_string())),
    };
    json["model"]["merges"].as_array().into_iter().flatten().filter_map(halves).collect()
}
