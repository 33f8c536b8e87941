//! Conversations from common formats to a `conversations` artifact: read as a stream, roles checked,
//! cleaned, exact duplicates removed, and counted.
//!
//! Pairs of a preferred and a rejected answer go to `preferences.parquet` beside; prompt and preferred
//! answer are a conversation as well, since supervised learning of preferred answers comes before
//! learning of preferences (Rafailov et al., 2023, DPO, section 4).
//!
//! A kept conversation takes 16 bytes and its entry in a hash set of memory. Rows are prepared in parallel
//! on the rayon pool and processed in the order of the files.
//!
//! Not supported: trees of alternative replies, tool calls, near-duplicates.

pub mod check;
mod prepare;
mod report;
pub mod row;
pub mod rows;
pub mod shape;
pub mod text;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::report::{FileReport, Removed, Report};

use self::check::{Repairs, Roles, SameRole};
use self::prepare::{Prepared, Preparer};
use self::report::nothing_left;
use self::row::{FieldNames, Join, Names};
use self::rows::{Places, Rows};
use self::shape::{Shape, unknown_format};
use self::text::TextBoundary;
use super::conversation::{Conversation, ConversationWriter, Role};
use super::csv::validate_delimiter;
use super::decode::{Encoding, OnInvalid};
use super::ingest::{OnBadRow, REPORT_NAME};
use super::input::{BadRecord, InputFile, Record};
use super::preference::{Preference, PreferenceWriter};
use super::transcode::{Readable, readable};
use crate::base::{Error, Invalid, Monitor, Result, fs, suggest, units};

/// How files become conversations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How the rows hold conversations; `auto` tells it from the fields of each row, and plain text by
    /// the ending of the file's name. In every format `system` or `system_prompt` of a row becomes the
    /// system message, and a message of `weight: 0` is context that is not learned.
    pub format: FormatChoice,
    /// For rows with one question and one answer under other names: `{user: question, assistant: answer,
    /// system: …, context: …, history: …}`; the last three may be left out. A file of which no row has a
    /// field that is named here is an error.
    pub fields: Option<FieldNames>,
    /// How a question and its context (`input`, `context`) become one message.
    pub join: String,
    /// Keys of rows that may be left out without a warning, such as `topic` or `messages[].name`; `*`
    /// for all. They are counted all the same. Columns of Parquet that are named here are not read.
    pub ignore: Vec<String>,
    /// Between the fields of CSV, one ASCII character. `null`: a tab in `.tsv`, else a comma.
    pub delimiter: Option<char>,
    /// `utf-8`, `windows-1252`, `latin-1` (the same reading), or `utf-16le`, `utf-16be`, `utf-32le` and
    /// `utf-32be`. A byte order mark tells it by itself. Parquet is always UTF-8.
    pub encoding: Encoding,
    /// What happens to bytes that are not in the encoding: `error`, `replace` (by U+FFFD) or
    /// `skip_document` (the row is left out and counted).
    pub on_invalid: OnInvalid,
    /// In plain text, where a conversation ends: at a `blank_line` before a message of the user or the
    /// system, or behind every `pair` of question and answer. Blank lines and comments (`#`) between
    /// conversations are skipped and counted.
    pub text_boundary: TextBoundary,
    /// Further names of roles, such as `{therapist: assistant}`, beside `human`, `gpt`, `bot` and the
    /// like.
    pub roles: BTreeMap<String, Role>,
    /// Two messages of one role in a row: `error` (a bad row), or `merge` with a line break between.
    pub same_role: SameRole,
    /// A row that breaks a rule: `error`, or `skip`, counted by cause. Calls of tools and content that
    /// is no text break one.
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
            fields: None,
            join: Join::USUAL.into(),
            ignore: Vec::new(),
            delimiter: None,
            encoding: Encoding::Utf8,
            on_invalid: OnInvalid::Error,
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

/// A format, or its detection.
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
    /// `{"instruction": …, "input": …, "output": …}` (Alpaca, Dolly, self-instruct), with `history`
    Instruction,
    /// `{"prompt": …, "completion": …}` or `{"question": …, "answer": …}`, texts or lists of messages
    Prompt,
    /// `{"prompt": …, "chosen": …, "rejected": …}`, texts or lists of messages
    Preference,
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
            FormatChoice::Preference => Some(Shape::Preference),
        }
    }
}

impl Options {
    /// Every param that is out of range.
    pub fn validate(&self) -> Vec<Invalid> {
        let size = match self.max_row_bytes {
            0 => Err(Invalid::new("max_row_bytes", "must be positive")),
            _ => Ok(()),
        };
        let delimiter = validate_delimiter(self.delimiter);
        let fields = self.fields.as_ref().map_or(Ok(()), |fields| self.validate_fields(fields));
        [size, Join(&self.join).validate(), delimiter, fields].into_iter().filter_map(Result::err).collect()
    }

    /// The error of a byte in `row` that is not in the encoding; not fatal with `on_invalid: skip_document`.
    fn invalid(&self, bad: &BadRecord, row: u64) -> BadRecord {
        let fatal = self.on_invalid != OnInvalid::SkipDocument;
        BadRecord { fatal, message: format!("row {row}: {}", bad.message), ..bad.clone() }
    }

    fn validate_fields(&self, fields: &FieldNames) -> Result<(), Invalid> {
        let named = fields.named();
        if !matches!(self.format, FormatChoice::Auto | FormatChoice::Prompt | FormatChoice::Instruction) {
            let why = "names the fields of rows with one question and one answer; `format` says that the \
                       rows are of another kind";
            return Err(Invalid::new("fields", why));
        }
        for (i, (param, name)) in named.iter().enumerate() {
            if name.is_empty() {
                return Err(Invalid::new(*param, "is empty"));
            }
            if let Some((other, _)) = named[..i].iter().find(|(_, other)| other == name) {
                return Err(Invalid::new(*param, format!("and `{other}` both name `{name}`")));
            }
        }
        Ok(())
    }
}

/// Reads `files` in their order and writes `conversations.parquet`, `report.json` and, when there are
/// pairs, `preferences.parquet` into the folder `out`; files in UTF-16 and UTF-32 are copied into the
/// folder `scratch` while they are read.
///
/// # Errors
/// A file that cannot be read or whose format is not known; what `options` make an error; no conversation
/// left. [`Error::cancelled`] on cancellation.
pub fn ingest_chat(
    files: &[InputFile],
    options: &Options,
    out: &Path,
    scratch: &Path,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some(invalid) = options.validate().into_iter().next() {
        return Err(Error::invalid(invalid));
    }
    let mut ingestion = Ingestion {
        files,
        options,
        monitor,
        roles: Roles::with(&options.roles),
        names: options.fields.as_ref().map(Names::given),
        seen: HashSet::new(),
        conversations: ConversationWriter::create(out)?,
        preferences: None,
        out: out.to_path_buf(),
        report: Report::default(),
    };
    for file in files {
        ingestion.file(file, scratch)?;
    }
    ingestion.finish()
}

struct Ingestion<'a> {
    files: &'a [InputFile],
    options: &'a Options,
    monitor: &'a dyn Monitor,
    roles: Roles,
    /// Names of fields, when the user gave them.
    names: Option<Names<'a>>,
    seen: HashSet<[u8; 16]>,
    conversations: ConversationWriter,
    /// Made for the first pair.
    preferences: Option<PreferenceWriter>,
    out: PathBuf,
    report: Report,
}

/// The state of reading a file.
#[derive(Default)]
struct FileState {
    report: FileReport,
    /// The keys of its first row.
    keys: Vec<String>,
    /// Those named in `fields` that some row had.
    found: BTreeSet<String>,
    /// A bad row has been reported.
    warned: bool,
}

impl<'a> Ingestion<'a> {
    fn file(&mut self, file: &InputFile, scratch: &Path) -> Result<()> {
        let options = self.options;
        let source = match rows::kind_of(file, options)? {
            rows::Kind::Parquet => Readable::as_it_is(file),
            _ => readable(file, options.encoding, scratch)?,
        };
        let file = &source.file;
        let mut rows = Rows::open(&source, options, &self.roles)?;
        let mut state = FileState::default();
        (state.report.name, state.report.bytes) = (file.name.clone(), file.size);
        state.report.encoding = source.encoding;
        state.report.format = match rows {
            Rows::Text(_) => Some(Shape::Text),
            _ if self.names.is_some() => Some(Shape::Prompt),
            _ => options.format.shape(),
        };
        self.rows(&source, &mut rows, &mut state)?;
        (state.report.comment_lines, state.report.blank_lines) =
            (rows.skipped().comment_lines, rows.skipped().blank_lines);
        self.report.changed.text.invalid_bytes_replaced += rows.replaced();
        self.close(file, state)
    }

    fn rows(&mut self, source: &Readable, rows: &mut Rows, state: &mut FileState) -> Result<()> {
        let mut read = 0;
        loop {
            self.step(read)?;
            let batch = rows.batch()?;
            let Some(last) = batch.last() else { return Ok(()) };
            if rows.places() != Places::Nowhere {
                read = last.as_ref().map_or(read, |record| record.end);
            }
            for row in self.prepared(source, rows.places(), batch, state)? {
                state.report.rows_in += 1;
                match row {
                    Ok(prepared) => self.take(&source.file, prepared, state)?,
                    Err(bad) => self.bad_row(&source.file, bad, state)?,
                }
            }
        }
    }

    /// Processes the rows of a batch, in their order.
    fn prepared(
        &self,
        source: &Readable,
        places: Places,
        batch: Vec<Result<Record, BadRecord>>,
        state: &mut FileState,
    ) -> Result<Vec<Result<Prepared, BadRecord>>> {
        let mut preparer = Preparer {
            options: self.options,
            roles: &self.roles,
            names: self.names.as_ref(),
            source,
            places,
            shape: state.report.format,
        };
        if state.report.format != Some(Shape::Text) && state.keys.is_empty() {
            first_row(&batch, &preparer, state)?;
            preparer.shape = state.report.format;
        }
        Ok(batch.into_par_iter().map(|row| row.and_then(|row| preparer.prepare(row))).collect())
    }

    fn step(&self, read: u64) -> Result<()> {
        let total = self.files.iter().map(|f| f.size).sum();
        self.monitor.step("reading", self.report.bytes_in + read, Some(total), "B")
    }

    /// The warnings about a whole file.
    fn close(&mut self, file: &InputFile, state: FileState) -> Result<()> {
        self.has_named_fields(file, &state)?;
        let found = state.report;
        if found.rows_in == 0 {
            tracing::warn!("`{}` holds no conversation", file.name);
        }
        let way_out = "`fields` names those of a question, its answer and its context";
        found.ignored_keys.warn(&file.name, &self.options.ignore, way_out);
        if !found.bad_metadata.rows().is_empty() {
            let keys = found.bad_metadata.rows().keys().map(String::as_str);
            tracing::warn!(
                "`{}`: of some rows these fields are no JSON and were left out: {}",
                file.name,
                suggest::list(keys)
            );
        }
        self.report.add(found);
        Ok(())
    }

    /// Fails when a field named in `fields` was in no row.
    fn has_named_fields(&self, file: &InputFile, state: &FileState) -> Result<()> {
        let named = self.options.fields.as_ref().map(FieldNames::named).unwrap_or_default();
        let missing = named.into_iter().find(|(_, name)| !state.found.contains(*name));
        let Some((param, name)) = missing.filter(|_| !state.keys.is_empty()) else { return Ok(()) };
        let others = state.report.ignored_keys.rows().keys();
        let keys: BTreeSet<&str> = state.keys.iter().chain(others).map(String::as_str).collect();
        Err(Error::input(format!("no row of `{}` has the field `{name}`, which `{param}` names", file.name))
            .suggest(suggest::closest(name, keys.iter().copied()))
            .help(format!("its rows have {}", suggest::list(keys))))
    }

    fn take(&mut self, file: &InputFile, row: Prepared, state: &mut FileState) -> Result<()> {
        let mut written = false;
        let mut cause = None;
        for conversation in row.conversations {
            match conversation {
                Ok(conversation) => {
                    state.report.conversations_in += 1;
                    match self.conversation(conversation, row.shape)? {
                        true => {
                            state.report.conversations_out += 1;
                            written = true;
                        }
                        false => cause = cause.or(Some("exact_duplicates")),
                    }
                }
                Err(bad) => {
                    cause = cause.or(Some(bad.cause));
                    self.bad_conversation(file, bad, state)?;
                }
            }
        }
        if let Some(pair) = row.pair
            && self.pair(&pair)?
        {
            state.report.preferences_out += 1;
            written = true;
        }
        state.found.extend(row.named);
        if written {
            state.report.rows_kept += 1;
            state.report.ignored_keys.add(row.unknown.iter().map(String::as_str));
            state.report.bad_metadata.add(row.bad_metadata.iter().map(String::as_str));
        } else {
            *state.report.rows_dropped.entry(cause.unwrap_or("exact_duplicates")).or_default() += 1;
        }
        Ok(())
    }

    /// Writes a conversation; `false` for a duplicate.
    fn conversation(
        &mut self,
        (conversation, repairs): (Conversation, Repairs),
        shape: Shape,
    ) -> Result<bool> {
        if self.options.exact_duplicates && !self.seen.insert(id_bytes(&conversation.id)) {
            self.report.removed.exact_duplicates += 1;
            return Ok(false);
        }
        let report = &mut self.report;
        report.changed.add(&repairs);
        report.bytes_out += conversation.len() as u64;
        report.most_messages = report.most_messages.max(conversation.messages.len() as u64);
        *report.formats.entry(shape.as_str()).or_default() += 1;
        for message in &conversation.messages {
            *report.messages.entry(message.role.as_str()).or_default() += 1;
            report.messages_of_weight_0 += u64::from(message.weight == 0);
        }
        self.conversations.push(&conversation)?;
        Ok(true)
    }

    /// Writes a pair; `false` for a duplicate.
    fn pair(&mut self, pair: &Preference) -> Result<bool> {
        self.report.preferences_in += 1;
        if self.options.exact_duplicates && !self.seen.insert(id_bytes(&pair.id)) {
            self.report.removed.duplicate_preferences += 1;
            return Ok(false);
        }
        let writer = match &mut self.preferences {
            Some(writer) => writer,
            None => self.preferences.insert(PreferenceWriter::create(&self.out)?),
        };
        writer.push(pair)?;
        Ok(true)
    }

    /// A row that is bad as a whole.
    fn bad_row(&mut self, file: &InputFile, bad: BadRecord, state: &mut FileState) -> Result<()> {
        *state.report.rows_dropped.entry(bad.cause).or_default() += 1;
        self.bad_conversation(file, bad, state)
    }

    fn bad_conversation(&mut self, file: &InputFile, bad: BadRecord, state: &mut FileState) -> Result<()> {
        let skip = bad.cause == "invalid_encoding" || self.options.on_bad_row == OnBadRow::Skip;
        if bad.fatal || !skip {
            let help = !bad.fatal;
            let error = bad.into_error(file);
            return Err(match help {
                true => error.help("or set `on_bad_row: skip` to leave such rows out and count them"),
                false => error,
            });
        }
        state.report.conversations_in += 1;
        *self.report.removed.bad_rows.entry(bad.cause).or_default() += 1;
        if !std::mem::replace(&mut state.warned, true) {
            tracing::warn!(
                "a bad row is skipped (further ones in this file are only counted): {}",
                bad.into_error(file)
            );
        }
        Ok(())
    }

    fn finish(self) -> Result<Report> {
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
        self.conversations.finish()?;
        self.preferences.map(PreferenceWriter::finish).transpose()?;
        fs::write_json(&self.out.join(REPORT_NAME), &report)?;
        let pairs = match report.preferences_out {
            0 => String::new(),
            pairs => format!(", and {} pairs of a chosen and a rejected answer", units::count(pairs)),
        };
        tracing::info!(
            "{} conversations read, {} written ({}){pairs}",
            units::count(report.conversations_in),
            units::count(report.conversations_out),
            units::bytes(report.bytes_out)
        );
        Ok(report)
    }
}

/// Finds the keys and, where it is not given, the format of a file from its first row that is an object.
fn first_row(batch: &[Result<Record, BadRecord>], preparer: &Preparer, state: &mut FileState) -> Result<()> {
    let Some(fields) = batch.iter().flatten().find_map(|record| preparer.fields(record)) else {
        return Ok(());
    };
    let (fields, bad) = fields;
    state.keys = fields.keys().cloned().collect();
    if state.report.format.is_none() {
        let shape = Shape::of(&fields);
        let unknown = || bad(unknown_format(&fields)).into_error(&preparer.source.file);
        state.report.format = Some(shape.ok_or_else(unknown)?);
    }
    Ok(())
}

fn id_bytes(id: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&crate::base::Digest::of(id.as_bytes()).bytes()[..16]);
    bytes
}

#[cfg(test)]
mod tests;
