//! Files of prompts: JSON lines with `prompt` or `messages` and an optional `id`, or plain text with a prompt
//! on each line.

use std::path::Path;

use serde_json::{Map, Value};

use crate::base::{Error, Result, fs, suggest};
use crate::corpus::conversation::{Message, Role};
use crate::corpus::input::{BadRecord, InputFile, Record};
use crate::corpus::json::{self, JsonRows, Step, UnknownKeys, describe, locate};

/// The longest row that is taken into memory.
const MOST_BYTES: u64 = 64 << 20;

pub struct Prompts {
    pub file: InputFile,
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// A text or a number.
    pub id: Option<Value>,
    pub asked: Asked,
    /// The byte of the file where it starts.
    pub at: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// A text that is continued.
    Prompt(String),
    /// A conversation that is answered.
    Messages(Vec<Message>),
}

impl Prompts {
    /// # Errors
    /// The first row that cannot be used, with its place; a file without rows, or of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let file = InputFile::new(path)?;
        let rows = match file.ending().as_str() {
            "jsonl" | "ndjson" | "json" => json_rows(&file)?,
            "txt" => lines(&file)?,
            _ => {
                return Err(Error::usage(format!(
                    "the name `{}` does not tell how its prompts are read",
                    path.display()
                ))
                .help("name it `.jsonl` for a JSON object with `prompt` or `messages` on each line")
                .help("name it `.txt` for a prompt on each line"));
            }
        };
        if rows.is_empty() {
            return Err(Error::input(format!("`{}` has no prompts", path.display()))
                .help("write one a line, as text or as {\"prompt\": \"…\"}"));
        }
        Ok(Prompts { file, rows })
    }
}

fn lines(file: &InputFile) -> Result<Vec<Row>> {
    let text = fs::read_text(&file.path)?;
    let (mut rows, mut at, mut blank) = (Vec::new(), 0, 0u64);
    for line in text.split_inclusive('\n') {
        let prompt = line.trim_end_matches(['\n', '\r']).trim_start_matches('\u{FEFF}');
        match prompt.trim().is_empty() {
            true => blank += 1,
            false => rows.push(Row { id: None, asked: Asked::Prompt(prompt.to_string()), at }),
        }
        at += line.len() as u64;
    }
    if blank > 0 {
        tracing::info!("`{}`: lines that are empty, and no prompts: {blank}", file.name);
    }
    Ok(rows)
}

fn json_rows(file: &InputFile) -> Result<Vec<Row>> {
    let mut records = JsonRows::open(file, MOST_BYTES)?;
    let (mut rows, mut unknown) = (Vec::new(), UnknownKeys::default());
    while let Some(record) = records.next()? {
        let row = record.and_then(|record| row(record, &mut unknown));
        rows.push(row.map_err(|bad| bad.into_error(file))?);
    }
    let names: Vec<String> =
        unknown.rows().iter().map(|(name, rows)| format!("`{name}` ({rows} rows)")).collect();
    if !names.is_empty() {
        let names = names.join(", ");
        tracing::warn!(
            "`{}` has fields that are not read: {names}; how to decode is set by options",
            file.name
        );
    }
    Ok(rows)
}

fn row(record: Record, unknown: &mut UnknownKeys) -> Result<Row, BadRecord> {
    let at = record.start;
    let text = record.into_text()?;
    let object = json::object(&text, at, &|_| true)?;
    let reader = RowReader { text: &text, at, fields: &object.fields };
    let row = Row { id: reader.id()?, asked: reader.asked(unknown)?, at };
    unknown.add(json::unknown_keys(&object.fields, &|key| key == "prompt" || key == "messages"));
    Ok(row)
}

struct RowReader<'a> {
    text: &'a str,
    at: u64,
    fields: &'a Map<String, Value>,
}

impl RowReader<'_> {
    /// An error at the value that `path` leads to, or at what holds it.
    fn bad(&self, path: &[Step], message: impl Into<String>) -> BadRecord {
        BadRecord::new("bad_prompt", self.at + locate(self.text, path).value.start as u64, message)
    }

    fn id(&self) -> Result<Option<Value>, BadRecord> {
        match self.fields.get("id") {
            None | Some(Value::Null) => Ok(None),
            Some(id @ (Value::String(_) | Value::Number(_))) => Ok(Some(id.clone())),
            Some(other) => {
                let message = format!("`id` is {}, expected a text or a number", describe(other));
                Err(self.bad(&[Step::Key("id")], message).help("leave it out, or give each row a name"))
            }
        }
    }

    fn asked(&self, unknown: &mut UnknownKeys) -> Result<Asked, BadRecord> {
        match (self.fields.get("prompt"), self.fields.get("messages")) {
            (Some(_), Some(_)) => {
                let error = self.bad(&[Step::Key("messages")], "the row has both `prompt` and `messages`");
                Err(error.help("`prompt` is continued, `messages` are answered: make two rows of it"))
            }
            (Some(prompt), None) => {
                let path = [Step::Key("prompt")];
                self.string(&path, "prompt", prompt).map(|text| Asked::Prompt(text.to_string()))
            }
            (None, Some(messages)) => self.messages(messages, unknown).map(Asked::Messages),
            (None, None) => {
                let names = || self.fields.keys().map(String::as_str);
                let known = ["prompt", "messages"];
                let meant = names().find_map(|name| suggest::closest(name, known));
                let error = self.bad(&[], "the row has neither `prompt` nor `messages`").suggest(meant);
                Err(if self.fields.is_empty() {
                    error
                } else {
                    error.help(format!("it has {}", suggest::list(names())))
                })
            }
        }
    }

    fn string<'v>(&self, path: &[Step], name: &str, value: &'v Value) -> Result<&'v str, BadRecord> {
        value.as_str().ok_or_else(|| {
            let message = format!("`{name}` is {}, expected a text", describe(value));
            self.bad(path, message).help("write a text in quotes")
        })
    }

    fn messages(&self, value: &Value, unknown: &mut UnknownKeys) -> Result<Vec<Message>, BadRecord> {
        let path = [Step::Key("messages")];
        let expected = r#"write [{"role": "user", "content": "…"}]"#;
        let Some(all) = value.as_array() else {
            let message = format!("`messages` is {}, expected a list", describe(value));
            return Err(self.bad(&path, message).help(expected));
        };
        let messages = all.iter().enumerate().map(|(i, value)| self.message(i, value, unknown));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        match messages.last().map(|message| message.role) {
            None => Err(self.bad(&path, "`messages` is empty: there is nothing to answer").help(expected)),
            Some(Role::Assistant) => {
                let last = [path[0], Step::Index(messages.len() - 1)];
                let error =
                    self.bad(&last, "the last message is the assistant's: there is nothing to answer");
                Err(error.help("end with a message of the user, or continue a text as `prompt`"))
            }
            Some(Role::System | Role::User) => Ok(messages),
        }
    }

    fn message(&self, i: usize, value: &Value, unknown: &mut UnknownKeys) -> Result<Message, BadRecord> {
        let at = |name| [Step::Key("messages"), Step::Index(i), Step::Key(name)];
        let Some(fields) = value.as_object() else {
            let message = format!("a message is {}, expected an object", describe(value));
            return Err(self.bad(&at("role")[..2], message).help("it has a `role` and a `content`"));
        };
        let field = |name| {
            let missing = || self.bad(&at(name)[..2], format!("the message has no `{name}`"));
            let value =
                fields.get(name).ok_or_else(|| missing().help("it needs a `role` and a `content`"))?;
            self.string(&at(name), name, value)
        };
        let (role, content) = (field("role")?, field("content")?);
        let role = Role::parse(role).ok_or_else(|| {
            let error = self.bad(&at("role"), format!("`{role}` is no role"));
            error.help("there are `system`, `user` and `assistant`")
        })?;
        unknown.add(json::unknown_keys(fields, &|key| key == "role" || key == "content"));
        Ok(Message::new(role, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        Prompts::read(&path).map(|prompts| prompts.rows)
    }

    #[test]
    fn a_mark_and_line_ends_of_windows_are_no_part_of_a_prompt() {
        let asked = |name, bytes| -> Vec<Asked> {
            read(name, bytes).unwrap().into_iter().map(|row| row.asked).collect()
        };
        let expected = ["a ", " b", "c"].map(|text| Asked::Prompt(text.to_string()));
        assert_eq!(asked("p.txt", "\u{FEFF}a \r\n\r\n b\r\nc".as_bytes()), expected);
        let json = "\u{FEFF}{\"prompt\": \"a \"}\r\n\r\n{\"prompt\": \" b\"}\r\n{\"prompt\": \"c\"}";
        assert_eq!(asked("p.jsonl", json.as_bytes()), expected);
        let chat = r#"[{"id": 7, "messages": [{"role": "user", "content": "Hi", "name": "Ann"}]}]"#;
        let rows = read("p.json", chat.as_bytes()).unwrap();
        assert_eq!(rows[0].id, Some(Value::from(7)));
        assert_eq!(rows[0].asked, Asked::Messages(vec![Message::new(Role::User, "Hi")]));
    }

    #[test]
    fn a_bad_row_is_told_by_its_place_and_the_way_out() {
        for (row, expected) in [
            (r#"{"promt": "a"}"#, "neither `prompt` nor `messages`\n--> p.jsonl:2:1|did you mean `prompt`?"),
            (r#"{"prompt": 3}"#, "`prompt` is the number 3, expected a text\n--> p.jsonl:2:12"),
            (r#"{"prompt": "a", "messages": []}"#, "both `prompt` and `messages`\n--> p.jsonl:2:29"),
            (r#"{"messages": "Hi"}"#, "`messages` is a text, expected a list\n--> p.jsonl:2:14"),
            (r#"{"messages": []}"#, "`messages` is empty: there is nothing to answer\n--> p.jsonl:2:14"),
            (r#"{"messages": [{"role": "bot", "content": "Hi"}]}"#, "`bot` is no role\n--> p.jsonl:2:24"),
            (r#"{"messages": [{"role": "user"}]}"#, "has no `content`\n--> p.jsonl:2:15"),
            (r#"{"messages": [{"role": "assistant", "content": "Hi"}]}"#, "is the assistant's"),
            (r#"{"id": [1], "prompt": "a"}"#, "`id` is a list, expected a text or a number\n--> p.jsonl:2:8"),
            (r#"{"prompt": "a""#, "p.jsonl:2:"),
        ] {
            let error = read("p.jsonl", format!("{{\"prompt\": \"x\"}}\n{row}\n").as_bytes()).unwrap_err();
            let error = error.to_string().replace("  -->", "-->").replace("\n ", "\n");
            for part in expected.split('|') {
                assert!(error.contains(part), "{row}: {error}");
            }
        }
        assert!(read("p.txt", b"good\nb\xE9d\n").unwrap_err().to_string().contains("p.txt:2:2"));
        assert!(read("p.txt", b"\n \n").unwrap_err().to_string().contains("has no prompts"));
        assert!(read("p.csv", b"a").unwrap_err().to_string().contains("name it `.txt`"));
    }
}
