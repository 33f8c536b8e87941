//! Conversations from the formats that people keep them in, to a `conversations` artifact: read as a
//! stream, roles checked, cleaned, freed of exact duplicates, and counted.
//!
//! Of the conversations kept so far 16 bytes and their place in a hash set stay in memory. Rows are
//! prepared on all threads of the rayon pool and taken in the order of the files.
//!
//! No trees of alternative replies, no tool calls, no near-duplicates.

pub mod check;
pub mod shape;
pub mod text;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::check::{Mended, Roles, SameRole, Turn};
use self::shape::Shape;
use self::text::{Blocks, TextBoundary};
use super::clean::Cleaning;
use super::conversation::{Conversation, ConversationWriter, Role};
use super::csv::CsvRows;
use super::ingest::{OnBadRow, write_report};
use super::input::{Bad, InputFile, Record};
use super::json::{JsonRows, Next, parse_json};
use crate::base::{Error, Monitor, Result, units};

/// How files become conversations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How the rows hold conversations; `auto` tells it for each file from its first row, and plain
    /// text by the ending of its name.
    pub format: FormatChoice,
    /// In plain text, where a conversation ends: at a `blank_line`, or behind every `pair` of question
    /// and answer.
    pub text_boundary: TextBoundary,
    /// Further names of roles, such as `{therapist: assistant}`, beside `human`, `gpt`, `bot` and the
    /// like.
    pub roles: BTreeMap<String, Role>,
    /// Two messages of one role in a row: `error` (a bad row), or `merge` with a line break between.
    pub same_role: SameRole,
    /// A row that breaks a rule: `error`, or `skip`, counted by cause.
    pub on_bad_row: OnBadRow,
    /// The longest row that is taken into memory.
    pub max_row_bytes: u64,
    /// Unicode NFC.
    pub nfc: bool,
    /// Remove control characters other than tab and line break.
    pub strip_control_characters: bool,
    /// Remove blanks at ends of lines, and blank lines beyond one. Both ends of a message are always
    /// stripped.
    pub strip_blanks: bool,
    /// Leave out conversations that were there before.
    pub exact_duplicates: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            format: FormatChoice::Auto,
            text_boundary: TextBoundary::BlankLine,
            roles: BTreeMap::new(),
            same_role: SameRole::Error,
            on_bad_row: OnBadRow::Error,
            max_row_bytes: 64 << 20,
            nfc: true,
            strip_control_characters: true,
            strip_blanks: true,
            exact_duplicates: true,
        }
    }
}

/// A format, or the wish to have it found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatChoice {
    #[default]
    Auto,
    /// `{"messages": [{"role": …, "content": …}]}` (OpenAI)
    Messages,
    /// `{"conversations": [{"from": "human", "value": …}]}`
    Sharegpt,
    /// `{"conversation": [{"role": …, "text": …}]}`
    Conversation,
    /// Plain text: `<user>: … <eos>`
    Text,
    /// `{"instruction": …, "input": …, "output": …}`
    Instruction,
    /// `{"prompt": …, "completion": …}`
    Prompt,
}

impl FormatChoice {
    fn shape(self) -> Option<Shape> {
        match self {
            FormatChoice::Auto => None,
            FormatChoice::Messages => Some(Shape::Messages),
            FormatChoice::Sharegpt => Some(Shape::Sharegpt),
            FormatChoice::Conversation => Some(Shape::Conversation),
            FormatChoice::Text => Some(Shape::Text),
            FormatChoice::Instruction => Some(Shape::Instruction),
            FormatChoice::Prompt => Some(Shape::Prompt),
        }
    }
}

impl Options {
    /// What is out of range: the param and what is wrong with it.
    pub fn mistakes(&self) -> Vec<(&'static str, String)> {
        match self.max_row_bytes {
            0 => vec![("max_row_bytes", "`max_row_bytes` must be positive".into())],
            _ => Vec::new(),
        }
    }
}

/// What was read, changed and removed. `conversations_in` = `conversations_out` + all of `removed`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub bytes_in: u64,
    /// Of all contents.
    pub bytes_out: u64,
    pub rows_in: u64,
    pub conversations_in: u64,
    pub conversations_out: u64,
    /// Messages written, by role.
    pub messages: BTreeMap<&'static str, u64>,
    /// In the longest conversation written.
    pub most_messages: u64,
    /// Conversations written, by the format that they came in.
    pub formats: BTreeMap<&'static str, u64>,
    pub removed: Removed,
    pub changed: Mended,
    pub files: Vec<FileReport>,
}

/// Conversations that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub exact_duplicates: u64,
    /// By cause.
    pub bad_rows: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    pub name: String,
    /// `None` when it holds no row.
    pub format: Option<Shape>,
    pub bytes: u64,
    pub rows_in: u64,
    pub conversations_out: u64,
}

/// Reads `files` in their order and writes `conversations.parquet` and `report.json` into the folder
/// `out`.
///
/// # Errors
/// A file that cannot be read or whose format is not known; what `options` say is an error; nothing
/// left at the end. [`Error::cancelled`] when the monitor says so.
pub fn ingest_chat(
    files: &[InputFile],
    options: &Options,
    out: &Path,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some((param, message)) = options.mistakes().into_iter().next() {
        return Err(Error::usage(format!("{param}: {message}")));
    }
    let mut ingestion = Ingestion {
        files,
        options,
        monitor,
        roles: Roles::with(&options.roles),
        seen: HashSet::new(),
        writer: ConversationWriter::create(out)?,
        report: Report::default(),
    };
    for file in files {
        ingestion.file(file)?;
    }
    ingestion.finish(out)
}

/// The rows of one file.
enum Rows {
    Text(Blocks),
    Json(JsonRows),
    Csv(CsvRows),
}

impl Rows {
    fn open(file: &InputFile, options: &Options) -> Result<Self> {
        let limit = options.max_row_bytes;
        let text = || Ok(Rows::Text(Blocks::open(file, options.text_boundary, limit)?));
        let json = || Ok(Rows::Json(JsonRows::open(file, limit)?));
        match (options.format, file.ending().as_str()) {
            (FormatChoice::Text, _) | (FormatChoice::Auto, "txt" | "text") => text(),
            (_, "csv") => Ok(Rows::Csv(CsvRows::open(file, b',', limit)?)),
            (_, "tsv") => Ok(Rows::Csv(CsvRows::open(file, b'\t', limit)?)),
            (FormatChoice::Auto, "json" | "jsonl" | "ndjson") => json(),
            (FormatChoice::Auto, _) => Err(Error::input(format!(
                "the name `{}` does not tell its format",
                file.name
            ))
            .help(
                "set the param `format`, or end the name with `.jsonl`, `.json`, `.txt`, `.csv` or `.tsv`",
            )),
            _ => json(),
        }
    }

    fn next(&mut self) -> Next {
        match self {
            Rows::Text(blocks) => blocks.next(),
            Rows::Json(rows) => rows.next(),
            Rows::Csv(rows) => Ok(rows.next().map(|record| {
                let record = record?;
                let object: serde_json::Map<String, Value> = rows
                    .headers()
                    .iter()
                    .zip(rows.fields())
                    .map(|(name, field)| (name.clone(), Value::from(String::from_utf8_lossy(field))))
                    .collect();
                if rows.fields().iter().any(|field| std::str::from_utf8(field).is_err()) {
                    return Err(Bad::new("invalid_encoding", record.start, "this record is not valid UTF-8"));
                }
                Ok(Record { bytes: Value::from(object).to_string().into_bytes(), ..record })
            })),
        }
    }

    /// About 4 MiB of rows; empty at the end. A fatal defect ends a batch.
    fn batch(&mut self) -> Result<Vec<Result<Record, Bad>>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < (4 << 20) {
            let Some(next) = self.next()? else { break };
            bytes += next.as_ref().map_or(0, |record| record.bytes.len()) + size_of::<Record>();
            let fatal = next.as_ref().is_err_and(|bad| bad.fatal);
            batch.push(next);
            if fatal {
                break;
            }
        }
        Ok(batch)
    }
}

struct Ingestion<'a> {
    files: &'a [InputFile],
    options: &'a Options,
    monitor: &'a dyn Monitor,
    roles: Roles,
    seen: HashSet<[u8; 16]>,
    writer: ConversationWriter,
    report: Report,
}

impl Ingestion<'_> {
    fn file(&mut self, file: &InputFile) -> Result<()> {
        let mut rows = Rows::open(file, self.options)?;
        let mut shape = match rows {
            Rows::Text(_) => Some(Shape::Text),
            _ => self.options.format.shape(),
        };
        let before = (self.report.rows_in, self.report.conversations_out);
        let (mut read, mut warned) = (0, false);
        loop {
            let total = self.files.iter().map(|f| f.size).sum();
            self.monitor.step("reading", self.report.bytes_in + read, Some(total), "B")?;
            let batch = rows.batch()?;
            let Some(last) = batch.last() else { break };
            read = last.as_ref().map_or(read, |record| record.end);
            if shape.is_none() {
                shape = batch
                    .iter()
                    .flatten()
                    .find_map(|record| detect(record).transpose())
                    .transpose()
                    .map_err(|bad| bad.into_error(file))?;
            }
            let (options, roles) = (self.options, &self.roles);
            let prepare = |row| prepare(options, roles, file, row, shape);
            let taken: Vec<_> = batch.into_par_iter().map(|row| row.and_then(prepare)).collect();
            for row in taken {
                self.report.rows_in += 1;
                match row {
                    Ok(row) => self.take(row, shape.unwrap_or(Shape::Messages))?,
                    Err(bad) => self.bad_row(file, bad, &mut warned)?,
                }
            }
        }
        if self.report.rows_in == before.0 {
            tracing::warn!("`{}` holds no conversation", file.name);
        }
        self.report.bytes_in += file.size;
        self.report.files.push(FileReport {
            name: file.name.clone(),
            format: shape,
            bytes: file.size,
            rows_in: self.report.rows_in - before.0,
            conversations_out: self.report.conversations_out - before.1,
        });
        Ok(())
    }

    fn take(&mut self, row: Vec<(Conversation, Mended)>, shape: Shape) -> Result<()> {
        for (conversation, mended) in row {
            self.report.conversations_in += 1;
            if self.options.exact_duplicates && !self.seen.insert(id_bytes(&conversation.id)) {
                self.report.removed.exact_duplicates += 1;
                continue;
            }
            let report = &mut self.report;
            report.changed.add(&mended);
            report.conversations_out += 1;
            report.bytes_out += conversation.len() as u64;
            report.most_messages = report.most_messages.max(conversation.messages.len() as u64);
            *report.formats.entry(shape.as_str()).or_default() += 1;
            for message in &conversation.messages {
                *report.messages.entry(message.role.as_str()).or_default() += 1;
            }
            self.writer.push(&conversation)?;
        }
        Ok(())
    }

    fn bad_row(&mut self, file: &InputFile, bad: Bad, warned: &mut bool) -> Result<()> {
        if bad.fatal {
            return Err(bad.into_error(file));
        }
        if self.options.on_bad_row == OnBadRow::Error {
            let help = "or set `on_bad_row: skip` to leave such rows out and count them";
            return Err(bad.into_error(file).help(help));
        }
        self.report.conversations_in += 1;
        *self.report.removed.bad_rows.entry(bad.cause).or_default() += 1;
        if !std::mem::replace(warned, true) {
            tracing::warn!(
                "a bad row is skipped (further ones in this file are only counted): {}",
                bad.into_error(file)
            );
        }
        Ok(())
    }

    fn finish(self, out: &Path) -> Result<Report> {
        self.monitor.check()?;
        let report = self.report;
        if report.conversations_out == 0 {
            return Err(nothing_left(&report));
        }
        if report.changed.special_tokens_in_content > 0 {
            tracing::warn!(
                "{} messages contain the text of a special token such as `<eos>`",
                report.changed.special_tokens_in_content
            );
        }
        self.writer.finish()?;
        write_report(out, &report)?;
        tracing::info!(
            "{} conversations read, {} written ({})",
            units::count(report.conversations_in),
            units::count(report.conversations_out),
            units::bytes(report.bytes_out)
        );
        Ok(report)
    }
}

/// The conversations of one row, checked; each with what was mended.
fn prepare(
    options: &Options,
    roles: &Roles,
    file: &InputFile,
    row: Record,
    shape: Option<Shape>,
) -> Result<Vec<(Conversation, Mended)>, Bad> {
    let named = |bad: Bad| Bad { message: format!("row {}: {}", row.row, bad.message), ..bad };
    let how = Cleaning {
        nfc: options.nfc,
        control_characters: options.strip_control_characters,
        blanks: options.strip_blanks,
    };
    let check = |turns| {
        let mut mended = Mended::default();
        let same_role = options.same_role;
        let messages = check::check(turns, roles, same_role, how, row.start, &mut mended)?;
        Ok((Conversation::new(messages, file.name.as_str(), row.row), mended))
    };
    let all = turns(&row, shape, roles).map_err(named)?;
    all.into_iter().map(check).collect::<Result<_, Bad>>().map_err(named)
}

impl Mended {
    fn add(&mut self, other: &Mended) {
        self.merged_messages += other.merged_messages;
        self.trailing_user_dropped += other.trailing_user_dropped;
        self.empty_system_dropped += other.empty_system_dropped;
        self.special_tokens_in_content += other.special_tokens_in_content;
        self.text += other.text;
    }
}

/// The shape of a row; `None` when it cannot be told because the row is broken.
fn detect(record: &Record) -> Result<Option<Shape>, Bad> {
    let text = String::from_utf8_lossy(&record.bytes);
    match parse_json(&text, record.start) {
        Ok(value) if value.is_object() => Shape::of(&value, record.start).map(Some),
        _ => Ok(None),
    }
}

fn turns(row: &Record, shape: Option<Shape>, roles: &Roles) -> Result<Vec<Vec<Turn>>, Bad> {
    let text = std::str::from_utf8(&row.bytes).map_err(|e| {
        let at = e.valid_up_to();
        let message = format!("the byte 0x{:02X} is not valid UTF-8", row.bytes[at]);
        Bad::new("invalid_encoding", row.start + at as u64, message).help("save the file as UTF-8")
    })?;
    match shape {
        Some(Shape::Text) => Ok(vec![text::turns(text, row.start, roles)?]),
        _ => {
            let value = parse_json(text, row.start)?;
            let shape = shape.map_or_else(|| Shape::of(&value, row.start), Ok)?;
            shape.turns(&value, text, row.start)
        }
    }
}

fn id_bytes(id: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&crate::base::Digest::of(id.as_bytes()).bytes()[..16]);
    bytes
}

fn nothing_left(report: &Report) -> Error {
    let files = report.files.len();
    if report.conversations_in == 0 {
        let message = format!("no conversation in {files} file(s) of {} B", report.bytes_in);
        return Error::input(message).help("are they the right files, and is any of them not empty?");
    }
    let mut reasons: Vec<String> =
        report.removed.bad_rows.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
    if report.removed.exact_duplicates > 0 {
        reasons.push(format!("{} exact duplicates", report.removed.exact_duplicates));
    }
    Error::input(format!("no conversation is left of {} read", report.conversations_in))
        .cause(format!("removed were {}", reasons.join(", ")))
        .help("set `on_bad_row: error` to see the first bad row in full")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Quiet, fs};
    use crate::corpus::conversation::{ConversationReader, FILE_NAME};

    fn run(files: &[(&str, &[u8])], options: Options) -> Result<(Report, Vec<Conversation>)> {
        let dir = tempfile::tempdir().unwrap();
        let inputs: Vec<InputFile> = files
            .iter()
            .map(|(name, bytes)| {
                let path = dir.path().join(name);
                fs::write(&path, bytes).unwrap();
                InputFile::new(&path).unwrap()
            })
            .collect();
        let out = dir.path().join("out");
        let report = ingest_chat(&inputs, &options, &out, &Quiet)?;
        let removed = report.removed.exact_duplicates + report.removed.bad_rows.values().sum::<u64>();
        assert_eq!(report.conversations_in, report.conversations_out + removed);
        let all = ConversationReader::open(&out.join(FILE_NAME))?.collect::<Result<_>>()?;
        Ok((report, all))
    }

    fn error(name: &str, bytes: &[u8]) -> String {
        run(&[(name, bytes)], Options::default()).unwrap_err().to_string()
    }

    #[test]
    fn each_file_has_its_format() {
        let files: [(&str, &[u8]); 5] = [
            ("a.jsonl", b"{\"messages\":[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"}]}\n"),
            ("b.json", b"[\n{\"conversations\":[{\"from\":\"human\",\"value\":\"3\"},{\"from\":\"gpt\",\"value\":\"4\"}]}\n]"),
            ("c.txt", b"<user>: 5 <eos>\n<assistant>: 6 <eos>\n\n<user>: 7\n<assistant>: 8 <eos>\n"),
            ("d.csv", b"prompt,completion\n\"9, or so\",10\n"),
            ("e.jsonl", b"{\"instruction\":\"11\",\"input\":\"\",\"output\":\"12\"}\n"),
        ];
        let (report, all) = run(&files, Options::default()).unwrap();
        let questions: Vec<&str> = all.iter().map(|c| c.messages[0].content.as_str()).collect();
        assert_eq!(questions, ["1", "3", "5", "7", "9, or so", "11"]);
        let rows: Vec<u64> = all.iter().map(|c| c.row).collect();
        assert_eq!(rows, [1, 1, 1, 4, 2, 1]);
        let formats: Vec<_> = report.files.iter().map(|f| f.format.unwrap().as_str()).collect();
        assert_eq!(formats, ["messages", "sharegpt", "text", "prompt", "instruction"]);
        assert_eq!(report.messages["assistant"], 6);
    }

    #[test]
    fn mistakes_name_the_row_and_the_place() {
        let good = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\n";
        let with = |row: &str| error("a.jsonl", format!("{good}{row}\n").as_bytes());
        let found = with(r#"{"messages":[{"role":"user","content":"q"},{"role":"asistant","content":"a"}]}"#);
        assert!(found.contains("row 2: message 2 has the unknown role \"asistant\""), "{found}");
        assert!(found.contains("a.jsonl:2:52") && found.contains("did you mean `assistant`"), "{found}");
        let found = with(r#"{"messages":[{"role":"user","content":"q"},{"role":"user","content":"a"}]}"#);
        assert!(found.contains("must alternate") && found.contains("same_role: merge"), "{found}");
        let found = with(r#"{"messages":[{"role":"user","content":"q"}"#);
        assert!(found.contains("row 2: this is not JSON") && found.contains("a.jsonl:2:"), "{found}");
        let found = with(r#"{"messages":[{"role":"user","content":null}]}"#);
        assert!(found.contains("message 1: the field `content` holds null"), "{found}");
        let found = with(r#"{"message":[]}"#);
        assert!(found.contains("missing is `messages`"), "{found}");
        let found = error("a.jsonl", b"{\"question\": 1}\n");
        assert!(found.contains("no known format") && found.contains("found `question`"), "{found}");
        assert!(error("a.jsonl", b"").contains("no conversation in 1 file"));
        assert!(error("a.bin", b"x").contains("does not tell its format"));
        let found = error("a.txt", b"<user>: Hi <eos>\n<asistant>: Yo <eos>\n");
        assert!(found.contains("a.txt:2:1") && found.contains("did you mean `assistant`"), "{found}");
        let found = error("a.jsonl", b"{\"prompt\":\"\xFF\"}\n");
        assert!(found.contains("0xFF") && found.contains("a.jsonl:1:12"), "{found}");
    }

    #[test]
    fn bad_rows_are_skipped_and_counted_and_duplicates_removed() {
        let text = "{\"prompt\":\"q\",\"completion\":\"a\"}\nnonsense\n{\"prompt\":\"q\",\"completion\":\" a\\r\\n\"}\n\
                    {\"prompt\":\"q\"}\n{\"prompt\":\"\",\"completion\":\"a\"}\n";
        let options = Options { on_bad_row: OnBadRow::Skip, ..Options::default() };
        let (report, all) = run(&[("a.jsonl", text.as_bytes())], options).unwrap();
        assert_eq!((all.len(), report.rows_in, report.removed.exact_duplicates), (1, 5, 1));
        let causes: Vec<(&str, u64)> = report.removed.bad_rows.into_iter().collect();
        assert_eq!(causes, [("broken_json", 1), ("empty_message", 1), ("missing_field", 1)]);
    }

    #[test]
    fn users_may_name_roles() {
        let text = b"{\"messages\":[{\"role\":\"Klien\",\"content\":\"q\"},{\"role\":\"terapis\",\"content\":\"a\"}]}";
        let roles = [("klien".to_string(), Role::User), ("Terapis".to_string(), Role::Assistant)].into();
        let (_, all) = run(&[("a.jsonl", text)], Options { roles, ..Options::default() }).unwrap();
        assert_eq!(all[0].messages[1].role, Role::Assistant);
    }

    /// Real files, where they are there: (file, conversations in, conversations out).
    #[test]
    fn real_conversations_are_ingested() {
        let real = [
            ("conv_synthetic_persona_chat/messages.jsonl", 1_962),
            ("conv_sharegpt_format/dummy_conversation.json", 500),
            ("instr_fairytaleqa/qa.jsonl", 10_580),
        ];
        for (name, rows) in real {
            let path = format!("{}/../shared/data/{name}", env!("CARGO_MANIFEST_DIR"));
            let Ok(file) = InputFile::new(Path::new(&path)) else {
                println!("skipped: {path} is not there");
                continue;
            };
            let dir = tempfile::tempdir().unwrap();
            let options =
                Options { same_role: SameRole::Merge, on_bad_row: OnBadRow::Skip, ..Options::default() };
            let report = ingest_chat(&[file], &options, dir.path(), &Quiet).unwrap();
            assert_eq!(report.rows_in, rows, "{name}");
            assert!(report.conversations_out > 0, "{report:?}");
        }
    }
}
