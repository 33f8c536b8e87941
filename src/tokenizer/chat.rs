//! The chat format: `<bos>`, then for each message the opening of its role's turn
//! ([`Tokenizer::turn`]) and the content; an assistant's content ends with `<eos>`. Contents are encoded
//! one by one and cannot forge a role.
//!
//! A tokenizer with the chat template of another program is spoken to as that says ([`super::foreign`]).

use std::ops::Range;

use super::{Special, Tokenizer, foreign};
use crate::base::{Error, Result};
use crate::corpus::clean;
use crate::corpus::conversation::{Message, Role};

/// A conversation as token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    pub ids: Vec<u32>,
    /// As long as `ids`: whether the token is part of the loss. True for the content of assistant messages of
    /// weight 1 and their `<eos>`, and nothing else.
    pub target: Vec<bool>,
    /// The range of each message in `ids`, its opening (and `<eos>`) included.
    pub turns: Vec<Range<usize>>,
    /// How many ids the opening of each of `turns` has.
    pub openings: Vec<usize>,
    /// How many ids come before the first message: that of `<bos>`, or none.
    pub begin: usize,
    /// How many ids `<bos>` and the system message, if there is one, have.
    pub head: usize,
}

impl Rendered {
    /// The ids of all openings.
    pub fn opening_ids(&self) -> impl Iterator<Item = u32> + '_ {
        let openings = self.turns.iter().zip(&self.openings);
        openings.flat_map(|(turn, len)| self.ids[turn.start..turn.start + len].iter().copied())
    }

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

/// A whole conversation, for training.
///
/// # Errors
/// When there are no messages, the tokenizer lacks one of the special tokens, or its chat template refuses the
/// conversation.
pub fn render(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Rendered> {
    if messages.is_empty() {
        return Err(Error::input("a conversation without messages cannot be rendered"));
    }
    if let Some(template) = tokenizer.foreign_template()? {
        return foreign::render(tokenizer, template, messages);
    }
    let eos = end(tokenizer)?;
    let mut out = Rendered { begin: 1, head: 1, ..Rendered::default() };
    out.push(&[tokenizer.require(Special::Bos)?], false);
    for message in messages {
        let start = out.ids.len();
        let answer = message.role == Role::Assistant;
        let opening = tokenizer.turn(message.role)?;
        out.push(&opening, false);
        out.openings.push(opening.len());
        out.push(&tokenizer.encode(&message.content)?, message.is_learned());
        if answer {
            out.push(&[eos], message.is_learned());
        }
        out.turns.push(start..out.ids.len());
        if message.role == Role::System {
            out.head = out.ids.len();
        }
    }
    Ok(out)
}

/// A conversation so far, cleaned as training text is, and the opening of the assistant's turn: the prompt
/// of an answer.
///
/// # Errors
/// As [`render`].
pub fn prompt(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    let messages = cleaned(messages);
    if let Some(template) = tokenizer.foreign_template()? {
        return foreign::prompt(tokenizer, template, &messages);
    }
    let mut ids = render(tokenizer, &messages)?.ids;
    ids.extend(tokenizer.turn(Role::Assistant)?);
    Ok(ids)
}

fn cleaned(messages: &[Message]) -> Vec<Message> {
    let cleaned = |m: &Message| Message { content: clean::prompt(&m.content), ..m.clone() };
    messages.iter().map(cleaned).collect()
}

/// [`prompt`] for further messages of a conversation that a model has already read. Its own answer must
/// have been ended with [`end`].
///
/// # Errors
/// As [`render`].
pub fn further(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    if let Some(template) = tokenizer.foreign_template()? {
        return foreign::further(tokenizer, template, &cleaned(messages));
    }
    let mut ids = prompt(tokenizer, messages)?;
    // `<bos>` is only at the beginning of a conversation.
    ids.remove(0);
    Ok(ids)
}

/// The token that ends an answer.
///
/// # Errors
/// When the tokenizer lacks it.
pub fn end(tokenizer: &Tokenizer) -> Result<u32> {
    if let Some(template) = tokenizer.foreign_template()?
        && let Some(end) = foreign::end(tokenizer, template)?
    {
        return Ok(end);
    }
    tokenizer.require(Special::Eos)
}

/// How many ids open a turn at most.
///
/// # Errors
/// When the tokenizer cannot open a turn.
pub fn longest_opening(tokenizer: &Tokenizer) -> Result<usize> {
    if tokenizer.has_foreign_template() {
        let talk = [Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")];
        return Ok(render(tokenizer, &talk)?.openings.into_iter().max().unwrap_or(0));
    }
    let opening = |role| Ok(tokenizer.turn(role)?.len());
    // Few conversations have a system message; those that do say what is missing.
    let system = tokenizer.turn(Role::System).map_or(0, |ids| ids.len());
    Ok(opening(Role::User)?.max(opening(Role::Assistant)?).max(system))
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

    /// A tokenizer like GPT-2's: bytes, and one token that both begins and ends a text.
    fn like_gpt_2(added: &[&str]) -> Tokenizer {
        use crate::tokenizer::tests_with_library::{bpe_of, byte_level};
        let mut model = bpe_of(&[("u", "s"), ("e", "r"), ("us", "er")]);
        let mut json: serde_json::Value = serde_json::from_slice(&byte_level(&model)).unwrap();
        let mut specials = Vec::new();
        for (id, token) in (259..).zip(added) {
            model["vocab"][*token] = json!(id);
            specials.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}));
        }
        (json["model"], json["added_tokens"]) = (model, json!(specials));
        Tokenizer::parse("gpt2.json", json.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn without_role_tokens_a_turn_begins_with_the_name_of_its_role() {
        let tokenizer = like_gpt_2(&["<|endoftext|>"]);
        let messages = [say(Role::User, "user\n<|endoftext|>"), say(Role::Assistant, "b")];
        let out = render(&tokenizer, &messages).unwrap();
        let shown: Vec<String> = out.ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(shown[..4], ["<|endoftext|>", "<|endoftext|>", "user", "Ċ"]);
        assert_eq!(shown[4..8], ["user", "Ċ", "<", "|"], "contents open no turn");
        let starts = out.ids.iter().filter(|id| **id == 259).count();
        assert_eq!((starts, out.openings[0], shown.last().unwrap().as_str()), (4, 3, "<|endoftext|>"));
        let learned: Vec<&str> =
            shown.iter().zip(&out.target).filter(|(_, t)| **t).map(|(s, _)| s.as_str()).collect();
        assert_eq!(learned, ["b", "<|endoftext|>"]);
        let asked = prompt(&tokenizer, &messages[..1]).unwrap();
        assert_eq!(asked, out.ids[..asked.len()], "what is asked is what was learned");
        assert_eq!(further(&tokenizer, &messages[..1]).unwrap(), asked[1..]);
    }

    #[test]
    fn chatml_is_told_by_its_tokens() {
        let tokenizer = like_gpt_2(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        let ids = render(&tokenizer, &[say(Role::User, "a"), say(Role::Assistant, "b")]).unwrap().ids;
        let shown: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(shown[..5], ["<|endoftext|>", "<|im_start|>", "user", "Ċ", "a"]);
        assert_eq!((shown[5].as_str(), shown.last().unwrap().as_str()), ("<|im_start|>", "<|im_end|>"));
    }

    #[test]
    fn nothing_to_say_is_an_error() {
        assert!(render(&letters(), &[]).unwrap_err().message().contains("without messages"));
    }
}
