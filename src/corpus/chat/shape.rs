//! The formats of rows of conversations, recognized by their fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::suggest;
use crate::corpus::input::BadRecord;
use crate::corpus::json::names_of;

/// How one row holds a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// `{"messages": [{"role": …, "content": …}]}`
    Messages,
    /// `{"conversations": [{"from": "human", "value": …}]}`
    Sharegpt,
    /// `{"conversation": [{"role": …, "text": …}]}`
    Conversation,
    /// `<user>: … <eos>` in plain text.
    Text,
    /// `{"instruction": …, "input": …, "output": …}`, or `instances` with inputs and outputs.
    Instruction,
    /// `{"prompt": …, "completion": …}`
    Prompt,
    /// `{"prompt": …, "chosen": …, "rejected": …}`
    Preference,
}

/// Where an answer stands.
pub const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

const KNOWN: [(Shape, &str); 6] = [
    (Shape::Messages, "`messages` with `role` and `content`"),
    (Shape::Sharegpt, "`conversations` with `from` and `value`"),
    (Shape::Conversation, "`conversation` with `role` and `text`"),
    (Shape::Instruction, "`instruction` (`input`, `context`) and `output` or `response`, or `instances`"),
    (Shape::Prompt, "`prompt` or `question` and `completion`, `response`, `output` or `answer`"),
    (Shape::Preference, "`prompt`, `chosen` and `rejected`"),
];

impl Shape {
    /// The shape of a row with these fields; `None` when none has such fields.
    pub fn of(fields: &Map<String, Value>) -> Option<Shape> {
        let shapes = [
            Shape::Preference,
            Shape::Messages,
            Shape::Sharegpt,
            Shape::Conversation,
            Shape::Instruction,
            Shape::Prompt,
        ];
        shapes.into_iter().find(|shape| shape.fits(fields))
    }

    fn fits(self, fields: &Map<String, Value>) -> bool {
        let there = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        match self {
            Shape::Messages => there("messages"),
            Shape::Sharegpt => there("conversations"),
            Shape::Conversation => there("conversation"),
            Shape::Instruction => there("instruction"),
            // An object is a tree of messages.
            Shape::Prompt => {
                fields.get("prompt").is_some_and(|value| value.is_string() || value.is_array())
                    || (there("question") && ANSWERS.iter().any(|name| there(name)))
            }
            Shape::Preference => there("chosen") && there("rejected"),
            Shape::Text => false,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Shape::Messages => "messages",
            Shape::Sharegpt => "sharegpt",
            Shape::Conversation => "conversation",
            Shape::Text => "text",
            Shape::Instruction => "instruction",
            Shape::Prompt => "prompt",
            Shape::Preference => "preference",
        }
    }
}

/// The error of a row without a known shape: its fields, and the known shapes.
pub fn unknown_format(fields: &Map<String, Value>) -> BadRecord {
    let names = ["messages", "conversations", "conversation", "instruction", "prompt"];
    let likeness = likeness(fields);
    let near = || fields.keys().find_map(|name| suggest::closest(name, names));
    let known: Vec<String> =
        KNOWN.iter().map(|(shape, fields)| format!("  {}: {fields}", shape.as_str())).collect();
    let message = match likeness {
        Some(likeness) => format!("no known format of conversations: {likeness}"),
        None => "no known format of conversations has these fields".to_string(),
    };
    BadRecord::new("unknown_format", 0, message)
        .suggest(if likeness.is_none() { near() } else { None })
        .help(format!("found {}; known are\n{}", names_of(fields), known.join("\n")))
        .help(
            "rows with one question and one answer in other fields are read with \
             `fields: { user: …, assistant: … }`, which names them",
        )
        .fatal()
}

/// A hint at what a row with these fields may be.
fn likeness(fields: &Map<String, Value>) -> Option<&'static str> {
    let has = |name: &str| fields.contains_key(name);
    let texts = ["text", "content", "body", "document", "article"];
    if has("message_tree_id") || has("replies") {
        Some(
            "this is a tree of messages with alternative replies (OpenAssistant); write each path that is \
             wanted, from the prompt to one reply, as a row of `messages`",
        )
    } else if has("parent_id") {
        Some("this is one message of a tree (OpenAssistant); write each conversation as a row of `messages`")
    } else if texts.iter().any(|name| has(name)) {
        Some("this is a document, not a conversation: read it as one")
    } else if ["dialog", "dialogue", "utterances", "turns"].iter().any(|name| has(name)) {
        Some("this is a dialogue whose speakers are not said; write it as a row of `messages`, with roles")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: Value) -> Result<Shape, BadRecord> {
        let fields = value.as_object().unwrap();
        Shape::of(fields).ok_or_else(|| unknown_format(fields))
    }

    #[test]
    fn fields_tell_the_shape() {
        assert_eq!(of(json!({"messages": [], "chosen": 1, "rejected": 2})).unwrap(), Shape::Preference);
        assert_eq!(of(json!({"prompt": "a", "messages": null})).unwrap(), Shape::Prompt);
        assert_eq!(of(json!({"question": "a", "answer": "b"})).unwrap(), Shape::Prompt);
        assert_eq!(of(json!({"conversations": []})).unwrap(), Shape::Sharegpt);
    }

    #[test]
    fn what_is_not_known_is_said_to_be_what_it_looks_like() {
        let said = |value| {
            let bad = of(value).unwrap_err();
            assert!(bad.fatal && bad.help.iter().any(|help| help.contains("`fields: {")), "{bad:?}");
            format!("{} {}", bad.message, bad.help.join(" "))
        };
        assert!(
            said(json!({"message_tree_id": "1", "prompt": {"text": "a", "replies": []}})).contains("tree")
        );
        assert!(said(json!({"text": "Once"})).contains("a document, not a conversation"));
        assert!(said(json!({"mesages": []})).contains("did you mean `messages`?"));
        assert!(said(json!({"dialogue": ["a", "b"]})).contains("speakers are not said"));
    }
}
