//! The chat format: `<bos>`, then for each message its role token and the content; an assistant's
//! content ends with `<eos>`. Contents are encoded one by one and cannot forge a role.

use std::ops::Range;

use super::{Special, Tokenizer};
use crate::base::{Error, Result};
use crate::corpus::conversation::{Message, Role};

/// A conversation as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub ids: Vec<u32>,
    /// Of the length of `ids`: whether the model is to learn to produce this token. True for the
    /// content of assistant messages and their `<eos>`, and nothing else.
    pub target: Vec<bool>,
    /// Where each message lies in `ids`, its role token (and `<eos>`) included.
    pub turns: Vec<Range<usize>>,
}

impl Rendered {
    fn push(&mut self, ids: &[u32], target: bool) {
        self.ids.extend_from_slice(ids);
        self.target.resize(self.ids.len(), target);
    }
}

impl Special {
    pub fn of_role(role: Role) -> Special {
        match role {
            Role::System => Special::System,
            Role::User => Special::User,
            Role::Assistant => Special::Assistant,
        }
    }
}

/// A whole conversation, to learn from.
///
/// # Errors
/// When there are no messages, or the tokenizer lacks one of the special tokens.
pub fn render(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Rendered> {
    if messages.is_empty() {
        return Err(Error::input("a conversation without messages cannot be rendered"));
    }
    let eos = tokenizer.require(Special::Eos)?;
    let mut out = Rendered { ids: Vec::new(), target: Vec::new(), turns: Vec::new() };
    out.push(&[tokenizer.require(Special::Bos)?], false);
    for message in messages {
        let start = out.ids.len();
        let answer = message.role == Role::Assistant;
        out.push(&[tokenizer.require(Special::of_role(message.role))?], false);
        out.push(&tokenizer.encode(&message.content)?, answer);
        if answer {
            out.push(&[eos], true);
        }
        out.turns.push(start..out.ids.len());
    }
    Ok(out)
}

/// A conversation so far and the assistant's role token: what a model continues with its answer.
///
/// # Errors
/// As [`render`].
pub fn prompt(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    let mut ids = render(tokenizer, messages)?.ids;
    ids.push(tokenizer.require(Special::Assistant)?);
    Ok(ids)
}
