//! The JSON shapes that conversations come in, told apart by their fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::Turn;
use crate::base::suggest;
use crate::corpus::input::Bad;
use crate::corpus::json::describe;

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
}

const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

impl Shape {
    /// The shape of a row with these fields.
    ///
    /// # Errors
    /// When no shape has such fields.
    pub fn of(row: &Value, at: u64) -> Result<Shape, Bad> {
        let known = ["messages", "conversations", "conversation", "instruction", "prompt"];
        let shapes =
            [Shape::Messages, Shape::Sharegpt, Shape::Conversation, Shape::Instruction, Shape::Prompt];
        let object = object(row, at)?;
        let found = known.iter().zip(shapes).find(|(field, _)| object.contains_key(**field));
        found.map(|(_, shape)| shape).ok_or_else(|| {
            let names: Vec<&str> = object.keys().map(String::as_str).collect();
            let near = names.iter().find_map(|name| suggest::closest(name, known));
            Bad::new("unknown_format", at, "no known format of conversations has these fields")
                .suggest(near)
                .help(format!("found {}; known are {}", suggest::list(names), suggest::list(known)))
                .fatal()
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Shape::Messages => "messages",
            Shape::Sharegpt => "sharegpt",
            Shape::Conversation => "conversation",
            Shape::Text => "text",
            Shape::Instruction => "instruction",
            Shape::Prompt => "prompt",
        }
    }

    /// The conversations of a row whose JSON is `raw` and starts at byte `at`: one, or one for each
    /// instance of an instruction.
    ///
    /// # Errors
    /// Fields that are missing or hold something else.
    pub fn turns(self, row: &Value, raw: &str, at: u64) -> Result<Vec<Vec<Turn>>, Bad> {
        let row = Row { object: object(row, at)?, raw, at };
        match self {
            Shape::Messages => Ok(vec![row.list("messages")?]),
            Shape::Sharegpt => Ok(vec![row.list("conversations")?]),
            Shape::Conversation => Ok(vec![row.list("conversation")?]),
            Shape::Instruction => row.instruction(),
            Shape::Prompt => {
                let mut turns = row.system()?;
                turns.push(row.turn("user", row.text(row.object, &["prompt"])?));
                turns.push(row.turn("assistant", row.text(row.object, &ANSWERS)?));
                Ok(vec![turns])
            }
            Shape::Text => Err(Bad::new("unknown_format", at, "JSON is not plain text").fatal()),
        }
    }
}

fn object(row: &Value, at: u64) -> Result<&Map<String, Value>, Bad> {
    row.as_object().ok_or_else(|| {
        Bad::new(
            "not_an_object",
            at,
            format!("expected an object with a conversation, found {}", describe(row)),
        )
    })
}

struct Row<'a> {
    object: &'a Map<String, Value>,
    raw: &'a str,
    at: u64,
}

impl Row<'_> {
    fn turn(&self, role: &str, content: String) -> Turn {
        Turn { role: role.into(), content, at: self.at }
    }

    /// The byte of the file where `literal` first stands in the row, as JSON writes it.
    fn place(&self, literal: &str) -> u64 {
        let quoted = Value::from(literal).to_string();
        self.at + self.raw.find(&quoted).unwrap_or(0) as u64
    }

    fn list(&self, field: &str) -> Result<Vec<Turn>, Bad> {
        let list = self.object.get(field).ok_or_else(|| self.missing(self.object, &[field]))?;
        let list = list.as_array().ok_or_else(|| {
            let message =
                format!("the field `{field}` holds {}, expected a list of messages", describe(list));
            Bad::new("not_a_list", self.place(field), message)
        })?;
        list.iter().enumerate().map(|(i, message)| self.message(message, i + 1)).collect()
    }

    fn message(&self, message: &Value, number: usize) -> Result<Turn, Bad> {
        let named = |bad: Bad| Bad { message: format!("message {number}: {}", bad.message), ..bad };
        let object = message.as_object().ok_or_else(|| {
            let found = describe(message);
            named(Bad::new("not_an_object", self.at, format!("expected an object, found {found}")))
        })?;
        let role = self.text(object, &["role", "from"]).map_err(named)?;
        let content = self.text(object, &["content", "value", "text"]).map_err(named)?;
        let at = self.place(&role);
        Ok(Turn { role, content, at })
    }

    fn system(&self) -> Result<Vec<Turn>, Bad> {
        match self.object.get("system") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(_) => Ok(vec![self.turn("system", self.text(self.object, &["system"])?)]),
        }
    }

    fn instruction(&self) -> Result<Vec<Vec<Turn>>, Bad> {
        let instances: Vec<&Map<String, Value>> = match self.object.get("instances") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_object).collect(),
            _ => vec![self.object],
        };
        let instruction = self.text(self.object, &["instruction"])?;
        let system = self.system()?;
        let conversation = |instance: &Map<String, Value>| {
            let input = match instance.get("input") {
                None | Some(Value::Null) => String::new(),
                Some(_) => self.text(instance, &["input"])?,
            };
            let question = match input.trim() {
                "" => instruction.clone(),
                _ => format!("{instruction}\n\n{input}"),
            };
            let mut turns = system.clone();
            turns.push(self.turn("user", question));
            turns.push(
                self.turn("assistant", self.text(instance, &["output", "response", "completion", "answer"])?),
            );
            Ok(turns)
        };
        instances.into_iter().map(conversation).collect()
    }

    /// The text of the first of `fields` that is there. A list of parts (OpenAI) is joined.
    fn text(&self, object: &Map<String, Value>, fields: &[&str]) -> Result<String, Bad> {
        let found = fields.iter().find_map(|field| object.get(*field).map(|value| (*field, value)));
        let (field, value) = found.ok_or_else(|| self.missing(object, fields))?;
        let parts = |parts: &Vec<Value>| -> Option<String> {
            parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect()
        };
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Array(all) => parts(all),
            _ => None,
        }
        .ok_or_else(|| {
            let message = format!("the field `{field}` holds {}, expected a text", describe(value));
            Bad::new("not_text", self.place(field), message)
        })
    }

    fn missing(&self, object: &Map<String, Value>, fields: &[&str]) -> Bad {
        let names = || object.keys().map(String::as_str);
        let near = fields.iter().find_map(|field| suggest::closest(field, names()));
        let known = near.as_deref().map(|name| self.place(name));
        Bad::new(
            "missing_field",
            known.unwrap_or(self.at),
            format!("missing is {}", suggest::list(fields.iter().copied())),
        )
        .help(match near {
            Some(name) => format!("it has {}; is `{name}` misspelt?", suggest::list(names())),
            None => format!("it has {}", suggest::list(names())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Vec<Vec<(String, String)>> {
        let row: Value = serde_json::from_str(json).unwrap();
        let all = Shape::of(&row, 0).unwrap().turns(&row, json, 0).unwrap();
        all.into_iter().map(|turns| turns.into_iter().map(|t| (t.role, t.content)).collect()).collect()
    }

    fn pair(question: &str, role: &str, answer: &str, other: &str) -> Vec<(String, String)> {
        vec![(role.into(), question.into()), (other.into(), answer.into())]
    }

    #[test]
    fn every_shape_is_read() {
        let user = |q: &str, a: &str| vec![pair(q, "user", a, "assistant")];
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]},{"role":"assistant","content":"Yo"}]}"#;
        assert_eq!(read(parts), user("Hi", "Yo"));
        let sharegpt =
            r#"{"id":1,"conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":"Yo"}]}"#;
        assert_eq!(read(sharegpt), vec![pair("Hi", "human", "Yo", "gpt")]);
        let text = r#"{"conversation":[{"role":"user","text":"Hi"},{"role":"assistant","text":"Yo"}]}"#;
        assert_eq!(read(text), user("Hi", "Yo"));
        assert_eq!(read(r#"{"instruction":"Add","input":"1 2","output":"3"}"#), user("Add\n\n1 2", "3"));
        assert_eq!(read(r#"{"prompt":"Hi","completion":"Yo"}"#), user("Hi", "Yo"));
        let seeds =
            r#"{"instruction":"Add","instances":[{"input":"","output":"0"},{"input":"1","output":"1"}]}"#;
        assert_eq!(read(seeds), [user("Add", "0"), user("Add\n\n1", "1")].concat());
        assert_eq!(read(r#"{"system":"Be","prompt":"Hi","response":"Yo"}"#)[0].len(), 3);
    }

    #[test]
    fn what_does_not_fit_is_located() {
        let json = r#"{"messages":[{"rolle":"user","content":"x"}]}"#;
        let row: Value = serde_json::from_str(json).unwrap();
        let bad = Shape::Messages.turns(&row, json, 100).unwrap_err();
        assert_eq!((bad.cause, bad.at), ("missing_field", Some(114)), "{bad:?}");
        assert!(bad.message.starts_with("message 1") && bad.help[0].contains("`rolle`"), "{bad:?}");
        let row: Value = serde_json::from_str(r#"{"mesages":[]}"#).unwrap();
        assert_eq!(Shape::of(&row, 0).unwrap_err().help[0], "did you mean `messages`?");
        assert_eq!(Shape::of(&Value::from(3), 0).unwrap_err().cause, "not_an_object");
    }
}
