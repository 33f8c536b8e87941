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
    /// content of assistant messages of weight 1 and their `<eos>`, and nothing else.
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
        out.push(&tokenizer.encode(&message.content)?, message.is_learned());
        if answer {
            out.push(&[eos], message.is_learned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// One token a letter, and the special tokens.
    fn letters() -> Tokenizer {
        let tokens =
            Special::ALL.map(Special::as_str).into_iter().chain(["a", "b", "c", "<", "e", "o", "s", ">"]);
        let vocab: serde_json::Map<_, _> =
            tokens.zip(0..).map(|(t, id)| (t.to_string(), json!(id))).collect();
        let value = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": {"type": "Fuse"}, "truncation": null, "padding": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}});
        Tokenizer::parse("letters.json", value.to_string().into_bytes()).unwrap()
    }

    fn say(role: Role, content: &str) -> Message {
        Message::new(role, content)
    }

    #[test]
    fn only_the_answers_are_learned_and_turns_hold_their_role() {
        let messages = [
            say(Role::System, "c"),
            say(Role::User, "ab"),
            say(Role::Assistant, "ba"),
            say(Role::User, ""),
            say(Role::Assistant, ""),
        ];
        let out = render(&letters(), &messages).unwrap();
        assert_eq!(out.ids, [2, 6, 9, 4, 7, 8, 5, 8, 7, 3, 4, 5, 3]);
        let learned: Vec<usize> = (0..out.ids.len()).filter(|i| out.target[*i]).collect();
        assert_eq!(learned, [7, 8, 9, 12]);
        assert_eq!(out.turns, [1..3, 3..6, 6..10, 10..11, 11..13]);
    }

    #[test]
    fn an_answer_of_weight_0_is_context() {
        let mut messages = [
            say(Role::User, "a"),
            say(Role::Assistant, "b"),
            say(Role::User, "a"),
            say(Role::Assistant, "b"),
        ];
        let all = render(&letters(), &messages).unwrap();
        messages[1].weight = 0;
        let out = render(&letters(), &messages).unwrap();
        assert_eq!(out.ids, all.ids);
        assert_eq!(out.target.iter().filter(|t| **t).count(), 2);
        assert!(out.target[out.turns[3].clone()][1..].iter().all(|t| *t));
    }

    #[test]
    fn a_prompt_ends_where_the_answer_begins() {
        let tokenizer = letters();
        let ids = prompt(&tokenizer, &[say(Role::User, "a")]).unwrap();
        assert_eq!(ids, [2, 4, 7, 5]);
        let whole = render(&tokenizer, &[say(Role::User, "a"), say(Role::Assistant, "b")]).unwrap();
        assert_eq!(whole.ids[..4], ids, "what is asked is what was learned");
    }

    #[test]
    fn content_cannot_end_a_turn() {
        let out = render(&letters(), &[say(Role::User, "<eos>")]).unwrap();
        assert_eq!(out.ids, [2, 4, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn nothing_to_say_is_an_error() {
        assert!(render(&letters(), &[]).unwrap_err().message().contains("without messages"));
    }
}
