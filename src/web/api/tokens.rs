//! Tokens as text, and their log-probabilities as OpenAI's two APIs have them.

use serde_json::{Map, Value, json};

use crate::generate::Token;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Texts of tokens, one behind the other.
#[derive(Clone)]
pub struct TokenTexts {
    tokenizer: Tokenizer,
    decoder: StreamDecoder,
}

/// A token as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    /// What it adds to the text; of a special token, or one that is a part of a character, its name in the
    /// vocabulary.
    pub text: String,
    /// Whether `text` is a part of the text.
    pub is_text: bool,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub name: Name,
    /// None for the first token of a text, before which there is nothing.
    pub logprob: Option<f64>,
    /// The most probable tokens at its place, the most probable first.
    pub top: Vec<(Name, f64)>,
    /// Characters of the text before it.
    pub offset: usize,
}

impl TokenTexts {
    /// Of tokens that follow `prompt`.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let mut decoder = tokenizer.decoder();
        prompt.iter().for_each(|id| drop(decoder.push(*id)));
        decoder.finish();
        TokenTexts { tokenizer: tokenizer.clone(), decoder }
    }

    /// The next token.
    pub fn push(&mut self, id: u32) -> Name {
        match self.decoder.push(id) {
            Some(text) => Name { text, is_text: true },
            None => Name { text: self.tokenizer.token(id).unwrap_or_default(), is_text: false },
        }
    }

    /// The next token, were it `id`.
    pub fn name(&self, id: u32) -> Name {
        self.clone().push(id)
    }

    /// The next token with its log-probability; `offset` counts the characters so far.
    pub fn scored(&mut self, token: &Token, offset: &mut usize) -> Scored {
        let top = token.top.iter().map(|(id, logprob)| (self.name(*id), *logprob)).collect();
        self.placed(token.id, Some(token.logprob), top, offset)
    }

    /// A token before which there is nothing.
    pub fn first(&mut self, id: u32, offset: &mut usize) -> Scored {
        self.placed(id, None, Vec::new(), offset)
    }

    fn placed(&mut self, id: u32, logprob: Option<f64>, top: Vec<(Name, f64)>, offset: &mut usize) -> Scored {
        let (name, at) = (self.push(id), *offset);
        if name.is_text {
            *offset += name.text.chars().count();
        }
        Scored { name, logprob, top, offset: at }
    }
}

/// What stands for less in JSON, which has no infinity.
const LEAST: f64 = -9999.0;

/// `logprobs` of a chat completion.
pub fn of_chat(tokens: &[Scored]) -> Value {
    let one = |name: &Name, logprob: f64| {
        let bytes = name.is_text.then_some(name.text.as_bytes());
        json!({"token": name.text, "logprob": logprob.max(LEAST), "bytes": bytes})
    };
    let token = |scored: &Scored| {
        let mut value = one(&scored.name, scored.logprob.unwrap_or(0.0));
        value["top_logprobs"] = scored.top.iter().map(|(name, logprob)| one(name, *logprob)).collect();
        value
    };
    json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion.
pub fn of_completion(tokens: &[Scored]) -> Value {
    json!({
        "tokens": tokens.iter().map(|t| &t.name.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprob.map(|x| x.max(LEAST))).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(by_text).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
    })
}

/// The most probable tokens, and the one that is there. Of several with the same text the most probable counts.
fn by_text(scored: &Scored) -> Option<Map<String, Value>> {
    let own = (scored.name.clone(), scored.logprob?);
    let mut map = Map::new();
    for (name, logprob) in scored.top.iter().chain([&own]) {
        map.entry(name.text.clone()).or_insert_with(|| json!(logprob.max(LEAST)));
    }
    Some(map)
}
