//! The items of evaluation sets, read from whatever form they have: questions, choices, pairs, cloze items and
//! prompts in JSONL, JSON, CSV, TSV, YAML or lines of text, documents, conversations.
//!
//! What counts of an item: all that is asked (questions, contexts, prompts, sentences of pairs, messages of
//! users, and the text of a cloze item with its accepted word), and of what is answered (choices, accepted
//! answers, messages of the assistant) only texts of at least as many words as an n-gram. A short right
//! answer occurs in any text, and GPT-3 (Brown et al. 2020, appendix C) compares whole examples, of which
//! n-grams never lie within such an answer. Regular expressions, answers that are rejected and system
//! messages, which are the same for all items, do not count.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::index::{Index, Sort};
use crate::base::yaml::{self, Limits};
use crate::base::{Error, Monitor, Result};
use crate::corpus::conversation::{ConversationReader, Role};
use crate::corpus::csv::CsvRows;
use crate::corpus::decode::{Encoding, decode};
use crate::corpus::document::DocumentReader;
use crate::corpus::input::{BadRecord, InputFile, Record, Window, too_long};
use crate::corpus::json::{self, JsonRows, UnknownKeys, describe};
use crate::corpus::transcode::{Readable, readable};

/// The longest row.
const MOST_BYTES: u64 = 64 << 20;

const QUESTIONS: [&str; 18] = [
    "question",
    "context",
    "prompt",
    "text",
    "passage",
    "good",
    "bad",
    "sentence_good",
    "sentence_bad",
    "sentence",
    "instruction",
    "input",
    "user",
    "content",
    "value",
    "query",
    "premise",
    "hypothesis",
];
const ANSWERS: [&str; 14] = [
    "choices",
    "accept",
    "answer",
    "answers",
    "accepted",
    "options",
    "endings",
    "output",
    "completion",
    "response",
    "target",
    "chosen",
    "rejected",
    "assistant",
];
const HELP: &str = "name its texts `question`, `context`, `prompt`, `text`, `good` and `bad`, or list them under \
    `turns` or `messages`; answers are `choices`, `accept` or `answer`";
const TURNS: [&str; 4] = ["turns", "messages", "conversation", "conversations"];

/// Where items of evaluation sets come from.
#[derive(Debug, Clone)]
pub enum Against {
    /// A file of rows or lines.
    File(InputFile),
    /// The file of a `documents` artifact.
    Documents { name: String, path: PathBuf },
    /// The file of a `conversations` artifact.
    Conversations { name: String, path: PathBuf },
}

/// One item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The number of its set.
    pub set: u32,
    /// Its `id`, or paradigm and number of a pair; `row 7` where it has none.
    pub id: String,
    /// The line or row of its file, from 1.
    pub row: u64,
}

/// What was read of a set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Set {
    pub name: String,
    pub items: u64,
    /// Items of which some text is compared. The others hold nothing but short answers or no words.
    pub compared: u64,
    /// In how many rows a field holds something and isn't compared.
    pub fields_not_compared: UnknownKeys,
}

/// The items of all sets and their n-grams.
pub struct Sets {
    pub sets: Vec<Set>,
    pub items: Vec<Item>,
    pub index: Index,
    /// Different n-grams.
    pub ngrams: u64,
}

impl Sets {
    /// Reads all sets, in their order.
    ///
    /// # Errors
    /// A file or row that cannot be read, at its place; a row without a text to compare; a set without items.
    pub fn read(all: &[Against], ngram: usize, scratch: &Path, monitor: &dyn Monitor) -> Result<Self> {
        let mut sets = Sets { sets: Vec::new(), items: Vec::new(), index: Index::new(ngram), ngrams: 0 };
        for (number, against) in all.iter().enumerate() {
            monitor.step("reading evaluation sets", number as u64, Some(all.len() as u64), "sets")?;
            let name = match against {
                Against::File(file) => &file.name,
                Against::Documents { name, .. } | Against::Conversations { name, .. } => name,
            };
            sets.sets.push(Set { name: name.clone(), ..Set::default() });
            match against {
                Against::File(file) => sets.file(file, scratch, monitor)?,
                Against::Documents { path, .. } => sets.documents(path, monitor)?,
                Against::Conversations { path, .. } => sets.conversations(path, monitor)?,
            }
            if sets.set().items == 0 {
                return Err(Error::input(format!("the evaluation set `{name}` holds no item")));
            }
        }
        sets.ngrams = sets.index.finish();
        Ok(sets)
    }

    fn set(&mut self) -> &mut Set {
        self.sets.last_mut().expect("a set is being read")
    }

    fn push(&mut self, id: String, row: u64, texts: &[(String, Sort)]) {
        let number = self.items.len() as u32;
        let mut compared = false;
        for (text, sort) in texts {
            compared |= self.index.add(number, text, *sort);
        }
        self.items.push(Item { set: self.sets.len() as u32 - 1, id, row });
        self.set().items += 1;
        self.set().compared += u64::from(compared);
    }

    fn documents(&mut self, path: &Path, monitor: &dyn Monitor) -> Result<()> {
        for (row, document) in (1..).zip(DocumentReader::open(path)?) {
            monitor.check()?;
            let document = document?;
            self.push(document.id, row, &[(document.text, Sort::Question)]);
        }
        Ok(())
    }

    fn conversations(&mut self, path: &Path, monitor: &dyn Monitor) -> Result<()> {
        for (row, conversation) in (1..).zip(ConversationReader::open(path)?) {
            monitor.check()?;
            let conversation = conversation?;
            let messages = conversation.messages.into_iter();
            let texts: Vec<_> = messages.filter_map(|m| Some((m.content, sort_of(m.role)?))).collect();
            self.push(conversation.id, row, &texts);
        }
        Ok(())
    }

    fn file(&mut self, file: &InputFile, scratch: &Path, monitor: &dyn Monitor) -> Result<()> {
        let ending = file.ending();
        match ending.as_str() {
            "jsonl" | "ndjson" | "json" => self.json(&readable(file, Encoding::Utf8, scratch)?, monitor),
            "csv" | "tsv" => self.csv(&readable(file, Encoding::Utf8, scratch)?, monitor),
            "txt" | "text" | "md" | "markdown" => {
                self.lines(&readable(file, Encoding::Utf8, scratch)?, monitor)
            }
            "yaml" | "yml" => self.yaml(file),
            _ => Err(unknown_form(file, &ending)),
        }
    }

    fn json(&mut self, source: &Readable, monitor: &dyn Monitor) -> Result<()> {
        let file = &source.file;
        let mut rows = JsonRows::open(file, MOST_BYTES)?;
        while let Some(record) = rows.next()? {
            monitor.check()?;
            let record = record.map_err(|bad| bad.into_error(file))?;
            let text = decoded(source, &record)?;
            let row = json::parse_json(&text, record.start).map_err(|bad| bad.into_error(file))?;
            self.row(&row, record.row, &|message| file.error(record.start, message))?;
        }
        Ok(())
    }

    fn csv(&mut self, source: &Readable, monitor: &dyn Monitor) -> Result<()> {
        let file = &source.file;
        let delimiter = if file.ending() == "tsv" { b'\t' } else { b',' };
        let mut rows = CsvRows::open(file, delimiter, MOST_BYTES)?;
        while let Some(record) = rows.next() {
            monitor.check()?;
            let record = record.map_err(|bad| bad.into_error(file))?;
            let mut object = Map::new();
            for (name, field) in rows.headers().iter().zip(rows.fields()) {
                let whole = Record { bytes: field.to_vec(), ..record.clone() };
                object.insert(name.clone(), decoded(source, &whole)?.into());
            }
            self.row(&object.into(), record.row, &|message| file.error(record.start, message))?;
        }
        Ok(())
    }

    /// Each line that isn't blank is an item.
    fn lines(&mut self, source: &Readable, monitor: &dyn Monitor) -> Result<()> {
        let file = &source.file;
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        let mut row = 0;
        while let Some(length) = window.line_length(MOST_BYTES)? {
            monitor.check()?;
            let start = window.offset();
            if length as u64 > MOST_BYTES {
                let way_out = "put each prompt or sentence on a line of its own";
                return Err(too_long("line", start, MOST_BYTES, way_out).into_error(file));
            }
            let bytes = window.take(length);
            window.skip(1.min(window.bytes().len()));
            row += 1;
            let text = decoded(source, &Record { start, end: start + length as u64, row, bytes })?;
            if !text.trim().is_empty() {
                self.push(format!("row {row}"), row, &[(text, Sort::Question)]);
            }
        }
        Ok(())
    }

    /// A list of texts or of rows.
    fn yaml(&mut self, file: &InputFile) -> Result<()> {
        let text = crate::base::fs::read_text(&file.path)?;
        let node = yaml::parse(&file.name, &text, Limits::default())?;
        let yaml::Value::Seq(rows) = &node.value else {
            return Err(node.error(format!("expected a list of items, found {}", node.describe())));
        };
        for (number, row) in (1..).zip(rows) {
            self.row(&row.to_json(), number, &|message| row.error(message))?;
        }
        Ok(())
    }

    fn row(&mut self, row: &Value, number: u64, error: &dyn Fn(String) -> Error) -> Result<()> {
        let fields = match row {
            Value::String(text) => {
                self.push(format!("row {number}"), number, &[(text.clone(), Sort::Question)]);
                return Ok(());
            }
            Value::Object(fields) => fields,
            other => return Err(error(format!("expected an object or a text, found {}", describe(other)))),
        };
        let texts = texts_of(fields).map_err(error)?;
        if texts.is_empty() {
            return Err(error(format!("this row has no text to compare: it has {}", json::names_of(fields)))
                .help(HELP));
        }
        let unread: Vec<&str> = json::unknown_keys(fields, &is_known).collect();
        self.set().fields_not_compared.add(unread);
        self.push(id_of(fields, number), number, &texts);
        Ok(())
    }
}

fn is_known(key: &str) -> bool {
    QUESTIONS.contains(&key) || ANSWERS.contains(&key) || TURNS.contains(&key)
}

fn decoded(source: &Readable, record: &Record) -> Result<String> {
    decode(record.bytes.clone(), Encoding::Utf8, false).map(|decoded| decoded.text).map_err(|invalid| {
        let at = record.start + invalid.at as u64;
        let bad: BadRecord = source.invalid(at, invalid.byte);
        bad.into_error(&source.file)
    })
}

fn unknown_form(file: &InputFile, ending: &str) -> Error {
    let error = Error::input(format!("`{}` is not read as an evaluation set", file.name));
    match ending {
        "zip" | "gz" | "zst" | "xz" | "bz2" => error.help("unpack it first"),
        "parquet" | "pq" => error.help("read it as documents or conversations first, or write it as JSONL"),
        _ => error.help(
            "sets are read from .jsonl, .json, .csv, .tsv and .yaml, and line by line from .txt and .md",
        ),
    }
}

fn id_of(fields: &Map<String, Value>, row: u64) -> String {
    let text = |names: &[&str]| {
        let value = names.iter().find_map(|name| fields.get(*name))?;
        match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    };
    let pair = || Some(format!("{}/{}", text(&["uid", "UID"])?, text(&["pair_id", "pairID"])?));
    text(&["id"]).or_else(pair).unwrap_or_else(|| format!("row {row}"))
}

/// What a message counts as.
fn sort_of(role: Role) -> Option<Sort> {
    match role {
        Role::System => None,
        Role::User => Some(Sort::Question),
        Role::Assistant => Some(Sort::Answer),
    }
}

/// The texts of a row that count; with none, the row holds no field that is known.
fn texts_of(fields: &Map<String, Value>) -> Result<Vec<(String, Sort)>, String> {
    let mut texts = Vec::new();
    if let (Some(Value::String(text)), Some(accept)) = (fields.get("text"), fields.get("accept")) {
        let mut words = Vec::new();
        collect(accept, "accept", Sort::Answer, &mut words)?;
        texts.extend(words.into_iter().map(|(word, _)| (format!("{text} {word}"), Sort::Question)));
        return Ok(texts);
    }
    let of_role = role_of(fields);
    for (key, value) in fields {
        match key.as_str() {
            "content" | "text" | "value" if of_role.is_some() => {
                if let Some(sort) = of_role.flatten() {
                    collect(value, key, sort, &mut texts)?;
                }
            }
            key if QUESTIONS.contains(&key) => collect(value, key, Sort::Question, &mut texts)?,
            key if ANSWERS.contains(&key) => collect(value, key, Sort::Answer, &mut texts)?,
            key if TURNS.contains(&key) => collect(value, key, Sort::Question, &mut texts)?,
            _ => {}
        }
    }
    Ok(texts)
}

/// What the content of a message counts as, where the row is one.
fn role_of(fields: &Map<String, Value>) -> Option<Option<Sort>> {
    let role = ["role", "from"].iter().find_map(|key| fields.get(*key)?.as_str())?;
    Some(match role {
        "system" => None,
        "assistant" | "gpt" | "bot" | "model" => Some(Sort::Answer),
        _ => Some(Sort::Question),
    })
}

fn collect(value: &Value, key: &str, sort: Sort, texts: &mut Vec<(String, Sort)>) -> Result<(), String> {
    match value {
        Value::String(text) if sort == Sort::Answer && is_regex(text) => {}
        Value::String(text) => texts.push((text.clone(), sort)),
        Value::Array(all) => all.iter().try_for_each(|value| collect(value, key, sort, texts))?,
        Value::Object(fields) => texts.extend(texts_of(fields)?),
        Value::Null => {}
        _ if sort == Sort::Answer => {} // the number of the right choice
        other => return Err(format!("`{key}`: expected a text, found {}", describe(other))),
    }
    Ok(())
}

fn is_regex(text: &str) -> bool {
    text.len() > 1 && text.starts_with('/') && text.ends_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Quiet, fs};

    fn read(name: &str, text: &str) -> Result<Sets> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text.as_bytes()).unwrap();
        Sets::read(&[Against::File(InputFile::new(&path).unwrap())], 4, dir.path(), &Quiet)
    }

    fn texts(row: &str) -> Vec<(String, Sort)> {
        texts_of(serde_json::from_str::<Value>(row).unwrap().as_object().unwrap()).unwrap()
    }

    #[test]
    fn every_form_of_item_gives_what_is_asked_and_what_is_answered() {
        use Sort::{Answer, Question};
        let text = |text: &str, sort| (text.to_string(), sort);
        assert_eq!(
            texts(r#"{"text": "The cat", "accept": ["sat", "ran"]}"#),
            [text("The cat sat", Question), text("The cat ran", Question)]
        );
        assert_eq!(
            texts(r#"{"question": "q", "choices": ["a", "b"], "answer": 1, "category": "x"}"#),
            [text("q", Question), text("a", Answer), text("b", Answer)]
        );
        assert_eq!(
            texts(
                r#"{"system": "Be brief.", "turns": [{"user": "u", "accept": [["a", "/b/"]], "reject": ["c"]}, {"user": "v"}]}"#
            ),
            [text("u", Question), text("a", Answer), text("v", Question)]
        );
        assert_eq!(
            texts(
                r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#
            ),
            [text("u", Question), text("a", Answer)]
        );
        assert_eq!(texts(r#"{"sentence_good": "g", "sentence_bad": "b", "UID": "x"}"#).len(), 2);
    }

    #[test]
    fn all_files_give_items_with_ids_and_rows() {
        let tsv =
            read("p.tsv", "uid\tpair_id\tgood\tbad\nagreement\t0\tThe cat sits.\tThe cat sit.\n").unwrap();
        assert_eq!(tsv.items, [Item { set: 0, id: "agreement/0".into(), row: 2 }]);
        assert_eq!(tsv.sets[0].fields_not_compared.rows()["uid"], 1);
        let lines = read("p.txt", "Once upon\r\n\n a time there\n").unwrap();
        assert_eq!(lines.items.iter().map(|item| item.row).collect::<Vec<_>>(), [1, 3]);
        let yaml = read("p.yaml", "- |-\n  One.\n\n  Two.\n- {id: 7, prompt: Three}\n").unwrap();
        assert_eq!(yaml.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["row 1", "7"]);
        let json = read(
            "q.json",
            r#"[{"id": "a", "question": "Why?", "accept": ["yes"]}, {"id": "b", "accept": ["yes"]}]"#,
        );
        let set = json.unwrap().sets.remove(0);
        assert_eq!((set.items, set.compared), (2, 1), "an answer of a word is not compared");
    }

    #[test]
    fn rows_and_files_that_hold_nothing_to_compare_are_named() {
        for (name, text, says) in [
            ("q.jsonl", "{\"question\": \"a\"}\n{\"frage\": \"b\"}\n", "q.jsonl:2:1"),
            ("q.jsonl", "{\"frage\": \"b\"}\n", "it has `frage`"),
            ("q.jsonl", "{\"question\": 5}\n", "`question`: expected a text, found the number 5"),
            ("q.jsonl", "[1]\n", "expected an object or a text, found the number 1"),
            ("q.tsv", "a\tb\n1\t2\n", "q.tsv:2:1"),
            ("q.yaml", "a: b\n", "expected a list of items"),
            ("q.txt", "\n\n", "holds no item"),
            ("q.zip", "PK", "unpack it first"),
            ("q.parquet", "PAR1", "write it as JSONL"),
        ] {
            let error = read(name, text).map(drop).unwrap_err();
            assert!(format!("{error} {:?}", error).contains(says), "{name}: {error}");
        }
    }
}
