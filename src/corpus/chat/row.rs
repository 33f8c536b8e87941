//! A row of JSON to turns: the fields of each format. Only types of fields are checked; keys that are not
//! read are listed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::{At, Roles, Turn};
use super::shape::{ANSWERS, Shape};
use crate::base::{Invalid, suggest};
use crate::corpus::conversation::Role;
use crate::corpus::input::BadRecord;
use crate::corpus::json::{Step, describe, is_empty, locate, names_of, unknown_keys};

/// The fields of rows that hold one question and one answer under names of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldNames {
    /// The question: a text or a list of messages.
    pub user: String,
    /// The answer: a text or a list of messages.
    pub assistant: String,
    /// The system message.
    #[serde(default)]
    pub system: Option<String>,
    /// What the question is about, joined to it as `join` says.
    #[serde(default)]
    pub context: Option<String>,
    /// The turns before: pairs of question and answer, or messages.
    #[serde(default)]
    pub history: Option<String>,
}

impl FieldNames {
    /// The param and the name of each field that is named.
    pub fn named(&self) -> Vec<(&'static str, &str)> {
        let optional = [
            ("fields.system", &self.system),
            ("fields.context", &self.context),
            ("fields.history", &self.history),
        ];
        let needed = [("fields.user", self.user.as_str()), ("fields.assistant", self.assistant.as_str())];
        let optional = optional.into_iter().filter_map(|(param, name)| Some((param, name.as_deref()?)));
        needed.into_iter().chain(optional).collect()
    }
}

/// The names of fields; the first that is not empty counts.
#[derive(Debug, Clone)]
pub struct Names<'a> {
    user: Vec<&'a str>,
    assistant: Vec<&'a str>,
    system: Vec<&'a str>,
    context: Vec<&'a str>,
    history: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// Those that the user gave, and the common ones for the others.
    pub fn given(fields: &'a FieldNames) -> Self {
        let taken: Vec<&str> = fields.named().into_iter().map(|(_, name)| name).collect();
        let or = |name: &'a Option<String>, usual: &[&'a str]| match name {
            Some(name) => vec![name.as_str()],
            None => usual.iter().copied().filter(|name| !taken.contains(name)).collect(),
        };
        let usual = Names::of(Shape::Prompt);
        Names {
            user: vec![&fields.user],
            assistant: vec![&fields.assistant],
            system: or(&fields.system, &usual.system),
            context: or(&fields.context, &usual.context),
            history: or(&fields.history, &usual.history),
        }
    }

    /// The common ones of a shape.
    pub fn of(shape: Shape) -> Self {
        let user = match shape {
            Shape::Instruction => vec!["instruction"],
            Shape::Preference => vec!["prompt", "question", "instruction"],
            _ => vec!["prompt", "question"],
        };
        Names {
            user,
            assistant: ANSWERS.to_vec(),
            system: vec!["system", "system_prompt"],
            context: vec!["input", "context"],
            history: vec!["history"],
        }
    }

    /// Whether a row may need the field `key`: it is then not left out when it cannot be parsed.
    pub fn need(&self, key: &str) -> bool {
        let lists = ["messages", "conversations", "conversation", "instances", "chosen", "rejected"];
        let all = [&self.user, &self.assistant, &self.system, &self.context, &self.history];
        all.into_iter().flatten().chain(&lists).chain(&TOOLS).any(|name| *name == key)
    }
}

/// Fields of tool calls, which conversations cannot represent.
const TOOLS: [&str; 2] = ["tool_calls", "function_call"];

/// How a question and its context become one message: a text with `{question}` and `{context}`.
#[derive(Debug, Clone, Copy)]
pub struct Join<'a>(pub &'a str);

impl Join<'_> {
    pub const USUAL: &'static str = "{question}\n\n{context}";
    const PLACES: [&'static str; 2] = ["{question}", "{context}"];

    /// # Errors
    /// When a place is missing or there twice.
    pub fn validate(self) -> Result<(), Invalid> {
        match Self::PLACES.into_iter().find(|place| self.0.matches(place).count() != 1) {
            Some(place) => Err(Invalid::new("join", format!("must hold `{place}` once, found {:?}", self.0))),
            None => Ok(()),
        }
    }

    fn apply(self, question: &str, context: &str) -> String {
        let mut out = String::new();
        let mut rest = self.0;
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let found = Self::PLACES.into_iter().zip([question, context]).find(|(p, _)| from.starts_with(p));
            let (text, length) = found.map_or(("{", 1), |(place, text)| (text, place.len()));
            out.push_str(text);
            rest = &from[length..];
        }
        out.push_str(rest);
        out
    }
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// One, or one for each instance of an instruction.
    Conversations(Vec<Result<Vec<Turn<'a>>, BadRecord>>),
    /// Two conversations, of which people prefer the first.
    Pair { chosen: Vec<Turn<'a>>, rejected: Vec<Turn<'a>> },
}

/// A row to be read, and how.
pub struct Row<'a> {
    /// Its JSON, which offsets of errors refer to.
    pub text: &'a str,
    pub fields: &'a Map<String, Value>,
    pub names: &'a Names<'a>,
    pub join: Join<'a>,
    pub roles: &'a Roles,
}

impl<'a> Row<'a> {
    /// The content, and the keys that are not empty and not read: `topic`, or `messages[].name`.
    ///
    /// # Errors
    /// Fields that are missing or of another type.
    pub fn read(&self, shape: Shape) -> Result<(Content<'a>, BTreeSet<String>), BadRecord> {
        let reading =
            Reading { row: self, top: Fields::new(self.fields, Vec::new()), nested: RefCell::default() };
        reading.no_tools(&reading.top)?;
        let content = match shape {
            Shape::Messages => reading.talk("messages")?,
            Shape::Sharegpt => reading.talk("conversations")?,
            Shape::Conversation => reading.talk("conversation")?,
            Shape::Instruction if reading.has_instances() => reading.instances()?,
            Shape::Instruction | Shape::Prompt => Content::Conversations(vec![Ok(reading.single()?)]),
            Shape::Preference => reading.pair()?,
            Shape::Text => return Err(BadRecord::new("unknown_format", 0, "JSON is not plain text").fatal()),
        };
        let mut unknown = reading.nested.take();
        unknown.extend(reading.top.unknown().into_iter().map(str::to_string));
        Ok((content, unknown))
    }
}

/// The fields of an object, and which of them were read.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: Vec<Step<'a>>,
    used: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Fields<'a> {
    fn new(map: &'a Map<String, Value>, path: Vec<Step<'a>>) -> Self {
        Fields { map, path, used: RefCell::default() }
    }

    /// The first of `names` that holds something, or else that is there.
    fn find(&self, names: &[&str]) -> Option<(&'a str, &'a Value)> {
        let there = || names.iter().filter_map(|name| self.map.get_key_value(*name));
        let found = there().find(|(_, value)| !is_empty(value)).or_else(|| there().next());
        let (name, value) = found?;
        self.used.borrow_mut().insert(name);
        Some((name, value))
    }

    /// All of `names` that are not empty.
    fn all(&self, names: &[&str]) -> Vec<(&'a str, &'a Value)> {
        let holding = |name: &&str| self.find(&[name]).filter(|(_, value)| !is_empty(value));
        names.iter().filter_map(holding).collect()
    }

    fn path_to(&self, name: &'a str) -> Vec<Step<'a>> {
        self.path.iter().copied().chain([Step::Key(name)]).collect()
    }

    fn unknown(&self) -> Vec<&'a str> {
        let used = self.used.borrow();
        unknown_keys(self.map, &|key| used.contains(key)).collect()
    }
}

/// A row while it is read.
struct Reading<'r, 'a> {
    row: &'r Row<'a>,
    top: Fields<'a>,
    /// Keys of messages and instances that were not read.
    nested: RefCell<BTreeSet<String>>,
}

impl<'a> Reading<'_, 'a> {
    fn place(&self, path: &[Step]) -> u64 {
        locate(self.row.text, path).value.start as u64
    }

    fn no_tools(&self, fields: &Fields<'a>) -> Result<(), BadRecord> {
        let Some((name, _)) = fields.all(&TOOLS).into_iter().next() else { return Ok(()) };
        let at = locate(self.row.text, &fields.path_to(name)).start as u64;
        Err(tools(at, format!("`{name}` is a call to a program, which is no text to learn")))
    }

    /// A conversation that is a list of messages.
    fn talk(&self, field: &'static str) -> Result<Content<'a>, BadRecord> {
        let (name, list) = self.need(&self.top, &[field])?;
        let mut turns = self.system()?;
        turns.extend(self.messages(list, self.top.path_to(name))?);
        Ok(Content::Conversations(vec![Ok(turns)]))
    }

    /// What comes before the question: the system message and the turns of the history.
    fn before(&self) -> Result<Vec<Turn<'a>>, BadRecord> {
        let mut turns = self.system()?;
        turns.extend(self.history()?);
        Ok(turns)
    }

    fn system(&self) -> Result<Vec<Turn<'a>>, BadRecord> {
        let found = self.top.all(&self.row.names.system).into_iter();
        found.map(|(name, value)| self.turn(Role::System, value, self.top.path_to(name))).collect()
    }

    fn history(&self) -> Result<Vec<Turn<'a>>, BadRecord> {
        let Some((name, value)) = self.top.find(&self.row.names.history).filter(|(_, v)| !is_empty(v)) else {
            return Ok(Vec::new());
        };
        let path = self.top.path_to(name);
        let pairs = value.as_array().filter(|all| all.iter().any(Value::is_array));
        let Some(pairs) = pairs else { return self.messages(value, path) };
        let mut turns = Vec::new();
        for (i, pair) in pairs.iter().enumerate() {
            turns.extend(self.exchange(pair, with(&path, Step::Index(i)))?);
        }
        Ok(turns)
    }

    /// A pair of question and answer.
    fn exchange(&self, pair: &'a Value, path: Vec<Step<'a>>) -> Result<Vec<Turn<'a>>, BadRecord> {
        let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else {
            let message = format!(
                "`history` holds {}, expected pairs of question and answer, or messages",
                match pair.as_array() {
                    Some(all) => format!("a list of {}", all.len()),
                    None => describe(pair),
                }
            );
            return Err(BadRecord::new("not_a_pair", self.place(&path), message));
        };
        Ok(vec![
            self.turn(Role::User, question, with(&path, Step::Index(0)))?,
            self.turn(Role::Assistant, answer, with(&path, Step::Index(1)))?,
        ])
    }

    /// One question and one answer, with what comes before.
    fn single(&self) -> Result<Vec<Turn<'a>>, BadRecord> {
        let mut turns = self.before()?;
        turns.extend(self.question(&self.contexts(&self.top)?)?);
        turns.extend(self.answer(&self.top)?);
        Ok(turns)
    }

    fn has_instances(&self) -> bool {
        self.row.fields.get("instances").is_some_and(|value| !value.is_null())
    }

    /// One conversation for each instance; a bad one does not affect the others.
    fn instances(&self) -> Result<Content<'a>, BadRecord> {
        let (name, value) = self.need(&self.top, &["instances"])?;
        let path = self.top.path_to(name);
        let all = value.as_array().ok_or_else(|| self.not_a_list(name, value, &path))?;
        if all.is_empty() {
            return Err(BadRecord::new("no_instances", self.place(&path), "`instances` is empty"));
        }
        let before = self.before()?;
        let shared = self.contexts(&self.top)?;
        let one = |(i, value): (usize, &'a Value)| {
            let path = with(&path, Step::Index(i));
            let turns = self.instance(value, path, &before, &shared);
            turns.map_err(|bad| BadRecord { message: format!("instance {}: {}", i + 1, bad.message), ..bad })
        };
        let all: Vec<_> = all.iter().enumerate().map(one).collect();
        self.question(&[])?; // an instruction that is missing is the row's defect
        Ok(Content::Conversations(all))
    }

    fn instance(
        &self,
        value: &'a Value,
        path: Vec<Step<'a>>,
        before: &[Turn<'a>],
        shared: &[String],
    ) -> Result<Vec<Turn<'a>>, BadRecord> {
        let map = value.as_object().ok_or_else(|| {
            let found = describe(value);
            let message = format!("expected an object with `input` and `output`, found {found}");
            BadRecord::new("not_an_object", self.place(&path), message)
        })?;
        let fields = Fields::new(map, path);
        let mut turns = before.to_vec();
        let contexts = [shared.to_vec(), self.contexts(&fields)?].concat();
        turns.extend(self.question(&contexts)?);
        turns.extend(self.answer(&fields)?);
        self.note_unknown("instances", &fields);
        Ok(turns)
    }

    fn pair(&self) -> Result<Content<'a>, BadRecord> {
        let before = self.before()?;
        let prompt = match self.top.find(&self.row.names.user).filter(|(_, value)| !is_empty(value)) {
            Some(_) => self.question(&self.contexts(&self.top)?)?,
            None => Vec::new(),
        };
        let side = |field: &'static str| {
            let (name, value) = self.need(&self.top, &[field])?;
            let path = self.top.path_to(name);
            if prompt.is_empty() && value.is_string() {
                let message = format!("`{name}` is a text, and nothing says what it answers");
                return Err(BadRecord::new("no_prompt", self.place(&path), message).help(
                    "put the question into `prompt`, or write `chosen` and `rejected` as lists of messages",
                ));
            }
            let said = self.said(Role::Assistant, value, path)?;
            let mut turns = before.clone();
            if !self.repeats(&prompt, &said) {
                turns.extend(prompt.iter().cloned());
            }
            turns.extend(said);
            Ok(turns)
        };
        Ok(Content::Pair { chosen: side("chosen")?, rejected: side("rejected")? })
    }

    /// Whether a list of messages holds the prompt itself before its first other answer.
    fn repeats(&self, prompt: &[Turn], said: &[Turn]) -> bool {
        let role = |turn: &Turn| self.row.roles.find(&turn.role);
        let same = |(a, b): (&Turn, &Turn)| role(a) == role(b) && a.content.trim() == b.content.trim();
        let from = said.iter().take_while(|turn| role(turn) == Some(Role::System)).count();
        let starts = |said: &[Turn]| prompt.len() <= said.len() && prompt.iter().zip(said).all(same);
        !prompt.is_empty() && (starts(said) || starts(&said[from..]))
    }

    /// The turns of the question, its contexts joined to the last user message.
    fn question(&self, contexts: &[String]) -> Result<Vec<Turn<'a>>, BadRecord> {
        let (name, value) = self.need(&self.top, &self.row.names.user)?;
        let mut turns = self.said(Role::User, value, self.top.path_to(name))?;
        let is_user = |turn: &&mut Turn| self.row.roles.find(&turn.role) == Some(Role::User);
        if let Some(turn) = turns.iter_mut().rev().find(is_user).filter(|_| !contexts.is_empty()) {
            turn.content = self.row.join.apply(&turn.content, &contexts.join("\n\n"));
        }
        Ok(turns)
    }

    fn answer(&self, fields: &Fields<'a>) -> Result<Vec<Turn<'a>>, BadRecord> {
        let (name, value) = self.need(fields, &self.row.names.assistant)?;
        self.said(Role::Assistant, value, fields.path_to(name))
    }

    fn contexts(&self, fields: &Fields<'a>) -> Result<Vec<String>, BadRecord> {
        let mut all = Vec::new();
        for (name, value) in fields.all(&self.row.names.context) {
            let text = self.text(name, value, &fields.path_to(name))?;
            if !text.trim().is_empty() {
                all.push(text);
            }
        }
        Ok(all)
    }

    /// A text of `role`, or a list of messages.
    fn said(&self, role: Role, value: &'a Value, path: Vec<Step<'a>>) -> Result<Vec<Turn<'a>>, BadRecord> {
        let is_message = |value: &Value| value.get("role").is_some() || value.get("from").is_some();
        match value.as_array() {
            Some(all) if all.iter().any(is_message) => self.messages(value, path),
            _ => Ok(vec![self.turn(role, value, path)?]),
        }
    }

    fn turn(&self, role: Role, value: &'a Value, path: Vec<Step<'a>>) -> Result<Turn<'a>, BadRecord> {
        let content = self.text(name_of(&path), value, &path)?;
        Ok(Turn { role: role.as_str().into(), content, weight: 1, at: At::Field(path) })
    }

    fn messages(&self, list: &'a Value, path: Vec<Step<'a>>) -> Result<Vec<Turn<'a>>, BadRecord> {
        let name = name_of(&path);
        let all = list.as_array().ok_or_else(|| self.not_a_list(name, list, &path))?;
        let message = |(i, message)| {
            self.message(name, message, with(&path, Step::Index(i)))
                .map_err(|bad| BadRecord { message: format!("message {}: {}", i + 1, bad.message), ..bad })
        };
        all.iter().enumerate().map(message).collect()
    }

    fn message(&self, list: &str, message: &'a Value, path: Vec<Step<'a>>) -> Result<Turn<'a>, BadRecord> {
        let map = message.as_object().ok_or_else(|| {
            let found = format!("expected an object, found {}", describe(message));
            BadRecord::new("not_an_object", self.place(&path), found)
        })?;
        let fields = Fields::new(map, path.clone());
        self.no_tools(&fields)?;
        let (role_key, role) = self.need(&fields, &["role", "from"])?;
        let role = self.text(role_key, role, &fields.path_to(role_key))?;
        let tool = ["tool", "function", "ipython", "observation", "function_call"].contains(&role.as_str());
        if tool && self.row.roles.find(&role).is_none() {
            let at = self.place(&fields.path_to(role_key));
            return Err(tools(at, format!("it is from the role `{role}`, the result of a program")));
        }
        let (content_key, content) = self.need(&fields, &["content", "value", "text"])?;
        let content = self.text(content_key, content, &fields.path_to(content_key))?;
        let weight = self.weight(&fields)?;
        self.note_unknown(list, &fields);
        Ok(Turn { role, content, weight, at: At::Message { path, role: role_key, content: content_key } })
    }

    fn weight(&self, fields: &Fields<'a>) -> Result<u8, BadRecord> {
        let Some((name, value)) = fields.find(&["weight"]).filter(|(_, value)| !value.is_null()) else {
            return Ok(1);
        };
        match value.as_f64() {
            Some(0.0) => Ok(0),
            Some(1.0) => Ok(1),
            _ => {
                let shown: String = value.to_string().chars().take(40).collect();
                let message = format!("the weight is {shown}, expected 0 (context) or 1 (to be learned)");
                Err(BadRecord::new("weight", self.place(&fields.path_to(name)), message))
            }
        }
    }

    fn note_unknown(&self, list: &str, fields: &Fields<'a>) {
        let names = fields.unknown().into_iter().map(|key| format!("{list}[].{key}"));
        self.nested.borrow_mut().extend(names);
    }

    /// The text of a field. A list of parts that are text (OpenAI) is joined.
    fn text(&self, name: &str, value: &Value, path: &[Step<'a>]) -> Result<String, BadRecord> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Array(parts) => {
                parts.iter().enumerate().map(|(i, part)| self.part(name, part, i, path)).collect()
            }
            _ => {
                let message = format!("the field `{name}` holds {}, expected a text", describe(value));
                Err(BadRecord::new("not_text", self.place(path), message))
            }
        }
    }

    fn part(&self, name: &str, part: &Value, index: usize, path: &[Step<'a>]) -> Result<String, BadRecord> {
        let kind = part.get("type").and_then(Value::as_str);
        let is_text = matches!(kind, None | Some("text" | "input_text" | "output_text"));
        let text = part.as_str().or_else(|| part.get("text").and_then(Value::as_str)).filter(|_| is_text);
        text.map(str::to_string).ok_or_else(|| {
            let what = match kind {
                Some(kind) if !is_text => format!("of the type `{kind}`"),
                _ => describe(part),
            };
            let message = format!("part {} of `{name}` is {what}, which is no text", index + 1);
            BadRecord::new("not_text", self.place(&with(path, Step::Index(index))), message)
        })
    }

    /// The first of `names` that holds something, or else that is there.
    fn need(&self, fields: &Fields<'a>, names: &[&str]) -> Result<(&'a str, &'a Value), BadRecord> {
        fields.find(names).ok_or_else(|| {
            let has = || fields.map.keys().map(String::as_str);
            let near = names.iter().find_map(|name| suggest::closest(name, has()));
            let span = match &near {
                Some(name) => {
                    let path: Vec<Step> =
                        fields.path.iter().copied().chain([Step::Key(name.as_str())]).collect();
                    locate(self.row.text, &path)
                }
                None => locate(self.row.text, &fields.path),
            };
            let message = format!("missing is {}", suggest::list(names.iter().copied()));
            let help = format!("it has {}", names_of(fields.map));
            BadRecord::new("missing_field", span.start as u64, message).help(match near {
                Some(name) => format!("{help}; is `{name}` misspelt?"),
                None => help,
            })
        })
    }

    fn not_a_list(&self, name: &str, value: &Value, path: &[Step<'a>]) -> BadRecord {
        let message = format!("the field `{name}` holds {}, expected a list", describe(value));
        BadRecord::new("not_a_list", self.place(path), message)
    }
}

fn tools(at: u64, message: String) -> BadRecord {
    BadRecord::new("tool_calls", at, message).help("write what was said as text, or leave such rows out")
}

fn with<'a>(path: &[Step<'a>], step: Step<'a>) -> Vec<Step<'a>> {
    path.iter().copied().chain([step]).collect()
}

/// The last key of a path.
fn name_of<'a>(path: &[Step<'a>]) -> &'a str {
    let keys = path.iter().rev().filter_map(|step| match step {
        Step::Key(key) => Some(*key),
        Step::Index(_) => None,
    });
    keys.into_iter().next().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::json::parse_json;

    type Said = Vec<(String, String)>;

    fn plain(turns: Vec<Turn>) -> Said {
        turns.into_iter().map(|turn| (turn.role, turn.content)).collect()
    }

    /// What a row gives: its conversations (chosen and rejected of a pair), and its unknown keys.
    fn read_as(text: &str, names: Option<Names>, join: &str) -> Result<(Vec<Said>, Vec<String>), BadRecord> {
        let value = parse_json(text, 0).unwrap();
        let fields = value.as_object().unwrap();
        let shape = if names.is_some() { Shape::Prompt } else { Shape::of(fields).unwrap() };
        let names = names.unwrap_or_else(|| Names::of(shape));
        let roles = Roles::default();
        let row = Row { text, fields, names: &names, join: Join(join), roles: &roles };
        let (content, unknown) = row.read(shape)?;
        let all = match content {
            Content::Conversations(all) => {
                all.into_iter().map(|turns| Ok(plain(turns?))).collect::<Result<_, BadRecord>>()?
            }
            Content::Pair { chosen, rejected } => vec![plain(chosen), plain(rejected)],
        };
        Ok((all, unknown.into_iter().collect()))
    }

    fn read(text: &str) -> Vec<Said> {
        read_as(text, None, Join::USUAL).unwrap().0
    }

    fn bad(text: &str) -> BadRecord {
        read_as(text, None, Join::USUAL).unwrap_err()
    }

    fn say(turns: &[(&str, &str)]) -> Said {
        turns.iter().map(|(role, content)| (role.to_string(), content.to_string())).collect()
    }

    fn exchange(question: &str, answer: &str) -> Said {
        say(&[("user", question), ("assistant", answer)])
    }

    #[test]
    fn every_shape_is_read() {
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]},{"role":"assistant","content":"Yo"}]}"#;
        assert_eq!(read(parts), [exchange("Hi", "Yo")]);
        let sharegpt =
            r#"{"id":1,"conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":"Yo"}]}"#;
        assert_eq!(read(sharegpt), [say(&[("human", "Hi"), ("gpt", "Yo")])]);
        let text = r#"{"conversation":[{"role":"user","text":"Hi"},{"role":"assistant","text":"Yo"}]}"#;
        assert_eq!(read(text), [exchange("Hi", "Yo")]);
        assert_eq!(
            read(r#"{"instruction":"Add","input":"1 2","output":"3"}"#),
            [exchange("Add\n\n1 2", "3")]
        );
        assert_eq!(read(r#"{"prompt":"Hi","completion":"Yo"}"#), [exchange("Hi", "Yo")]);
        assert_eq!(read(r#"{"question":"Hi","answer":"Yo"}"#), [exchange("Hi", "Yo")]);
        let seeds =
            r#"{"instruction":"Add","instances":[{"input":"","output":"0"},{"input":"1","output":"1"}]}"#;
        assert_eq!(read(seeds), [exchange("Add", "0"), exchange("Add\n\n1", "1")]);
    }

    #[test]
    fn a_rows_system_message_comes_first_in_every_shape() {
        let messages = r#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]"#;
        for row in [
            format!(r#"{{"system":"Be","messages":{messages}}}"#),
            format!(r#"{{"system_prompt":"Be","conversations":{messages}}}"#),
            format!(r#"{{"system":"Be","conversation":{messages}}}"#),
            r#"{"system_prompt":"Be","prompt":"q","response":"a"}"#.into(),
            r#"{"system":"Be","instruction":"q","output":"a"}"#.into(),
            r#"{"system":"Be","instruction":"q","instances":[{"output":"a"}]}"#.into(),
            r#"{"system":"Be","prompt":"q","chosen":"a","rejected":"b"}"#.into(),
        ] {
            assert_eq!(read(&row)[0], say(&[("system", "Be"), ("user", "q"), ("assistant", "a")]), "{row}");
        }
    }

    #[test]
    fn history_and_context_reach_the_conversation() {
        let before = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")];
        let pairs = r#"{"instruction":"two?","input":"","output":"2","history":[["one?","1"]]}"#;
        assert_eq!(read(pairs), [say(&before)]);
        let list = r#"{"prompt":"two?","answer":"2","history":[{"role":"user","content":"one?"},{"role":"assistant","content":"1"}]}"#;
        assert_eq!(read(list), [say(&before)]);
        assert_eq!(read(r#"{"prompt":"q","answer":"a","history":[]}"#), [exchange("q", "a")]);
        let short = bad(r#"{"prompt":"q","answer":"a","history":[["x","y"],["z"]]}"#);
        assert_eq!((short.cause, short.at), ("not_a_pair", Some(48)));
        let dolly = r#"{"instruction":"q {context}","context":"c","response":"a","category":"qa"}"#;
        let (all, unknown) = read_as(dolly, None, "About {context}: {question} {x}").unwrap();
        assert_eq!(
            (all, unknown),
            (vec![exchange("About c: q {context} {x}", "a")], vec!["category".into()])
        );
        assert!(Join("{question}").validate().unwrap_err().why.contains("`{context}`"));
        assert_eq!(Join(Join::USUAL).validate(), Ok(()));
    }

    #[test]
    fn prompts_and_completions_may_be_messages() {
        let row = r#"{"prompt":[{"role":"system","content":"Be"},{"role":"user","content":"q"}],"context":"c",
            "completion":[{"role":"assistant","content":"a"}]}"#;
        assert_eq!(read(row), [say(&[("system", "Be"), ("user", "q\n\nc"), ("assistant", "a")])]);
    }

    #[test]
    fn pairs_share_their_prompt_however_it_is_said() {
        let (good, other) = (exchange("q", "a"), exchange("q", "b"));
        let side = |answer: &str| {
            format!(r#"[{{"role":"user","content":"q"}},{{"role":"assistant","content":"{answer}"}}]"#)
        };
        for row in [
            r#"{"prompt":"q","chosen":"a","rejected":"b"}"#.to_string(),
            format!(r#"{{"chosen":{},"rejected":{}}}"#, side("a"), side("b")),
            format!(r#"{{"prompt":"q","chosen":{},"rejected":{}}}"#, side("a"), side("b")),
            r#"{"question":"q","chosen":[{"role":"assistant","content":"a"}],"rejected":"b"}"#.to_string(),
        ] {
            assert_eq!(read(&row), [good.clone(), other.clone()], "{row}");
        }
        assert_eq!(bad(r#"{"chosen":"a","rejected":"b"}"#).cause, "no_prompt");
    }

    #[test]
    fn other_names_are_given() {
        let fields = FieldNames {
            user: "input".into(),
            assistant: "ziel".into(),
            system: Some("ton".into()),
            context: None,
            history: None,
        };
        let row = r#"{"input":"q","ziel":"a","ton":"Be","context":"c","system":"no","output":"x"}"#;
        let (all, unknown) = read_as(row, Some(Names::given(&fields)), Join::USUAL).unwrap();
        assert_eq!(all, [say(&[("system", "Be"), ("user", "q\n\nc"), ("assistant", "a")])]);
        assert_eq!(unknown, ["output", "system"]);
    }

    #[test]
    fn weights_are_0_or_1() {
        let row = |weight: &str| {
            format!(r#"{{"weight":1,"messages":[{{"role":"assistant","content":"a","weight":{weight}}}]}}"#)
        };
        for (weight, expected) in [("0", 0), ("1", 1), ("1.0", 1), ("null", 1)] {
            let text = row(weight);
            let value = parse_json(&text, 0).unwrap();
            let (names, roles) = (Names::of(Shape::Messages), Roles::default());
            let fields = value.as_object().unwrap();
            let row = Row { text: &text, fields, names: &names, join: Join(Join::USUAL), roles: &roles };
            let Content::Conversations(all) = row.read(Shape::Messages).unwrap().0 else { panic!() };
            assert_eq!(all[0].as_ref().unwrap()[0].weight, expected);
        }
        for weight in ["0.5", "\"1\"", "-1", "true", "[1]"] {
            let bad = bad(&row(weight));
            let at = row(weight).rfind(weight).map(|at| at as u64);
            assert_eq!((bad.cause, bad.at), ("weight", at), "{weight}");
            assert!(bad.message.contains(weight), "{bad:?}");
        }
    }

    #[test]
    fn calls_of_programs_and_pictures_are_refused() {
        let with =
            |message: &str| bad(&format!(r#"{{"messages":[{{"role":"user","content":"q"}},{message}]}}"#));
        let call = with(r#"{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}"#);
        assert_eq!((call.cause, call.at), ("tool_calls", Some(78)), "{call:?}");
        assert_eq!(
            with(r#"{"role":"assistant","content":"","function_call":{"name":"f"}}"#).cause,
            "tool_calls"
        );
        let tool = with(r#"{"role":"tool","content":"21 degrees"}"#);
        assert!(tool.cause == "tool_calls" && tool.message.contains("message 2"), "{tool:?}");
        let picture = with(
            r#"{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{}}]}"#,
        );
        assert!(picture.cause == "not_text" && picture.message.contains("`image_url`"), "{picture:?}");
        assert!(picture.message.contains("part 2") && picture.at == Some(96), "{picture:?}");
    }

    #[test]
    fn instances_are_judged_one_by_one() {
        let empty = bad(r#"{"instruction":"Double","instances":[]}"#);
        assert_eq!((empty.cause, empty.at), ("no_instances", Some(36)));
        let text = r#"{"instruction":"Double","instances":["1 2",{"input":"3","output":"6","note":"x"}]}"#;
        let value = parse_json(text, 0).unwrap();
        let (names, roles) = (Names::of(Shape::Instruction), Roles::default());
        let row = Row {
            text,
            fields: value.as_object().unwrap(),
            names: &names,
            join: Join(Join::USUAL),
            roles: &roles,
        };
        let (Content::Conversations(all), unknown) = row.read(Shape::Instruction).unwrap() else { panic!() };
        let first = all[0].as_ref().unwrap_err();
        assert_eq!((first.cause, first.at), ("not_an_object", Some(37)));
        assert!(first.message.contains("instance 1") && all[1].is_ok());
        assert_eq!(unknown.into_iter().collect::<Vec<_>>(), ["instances[].note"]);
    }

    #[test]
    fn what_does_not_fit_is_located() {
        let missing = bad(r#"{"rolle":1,"messages":[{"rolle":"user","content":"x"}]}"#);
        assert_eq!((missing.cause, missing.at), ("missing_field", Some(24)), "{missing:?}");
        assert!(
            missing.message.starts_with("message 1") && missing.help[0].contains("`rolle`"),
            "{missing:?}"
        );
        let not_a_list = bad(r#"{"messages": "x"}"#);
        assert_eq!((not_a_list.cause, not_a_list.at), ("not_a_list", Some(13)));
    }
}
