//! Conversations from the formats that people keep them in, to a `conversations` artifact: read as a
//! stream, roles checked, cleaned, freed of exact duplicates, and counted.
//!
//! Pairs of a preferred and a rejected answer go to `preferences.parquet` beside; prompt and preferred
//! answer are a conversation as well, since supervised learning of preferred answers comes before
//! learning of preferences (Rafailov et al., 2023, DPO, section 4).
//!
//! Of the conversations kept so far 16 bytes and their place in a hash set stay in memory. Rows are
//! prepared on all threads of the rayon pool and taken in the order of the files.
//!
//! No trees of alternative replies, no tool calls, no near-duplicates.

pub mod check;
pub mod row;
pub mod rows;
pub mod shape;
pub mod text;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::check::{Mended, Roles, Rules, SameRole, Turn};
use self::row::{Content, FieldNames, Join, Names, Row};
use self::rows::{Places, Rows};
use self::shape::{Shape, unknown_format};
use self::text::TextBoundary;
use super::clean::Cleaning;
use super::conversation::{Conversation, ConversationWriter, Role};
use super::csv::delimiter_mistake;
use super::decode::{Decoded, Encoding, OnInvalid, decode};
use super::ingest::{OnBadRow, write_report};
use super::input::{Bad, InputFile, Record};
use super::json::{Object, UnknownKeys, object};
use super::preference::{NoPair, Preference, PreferenceWriter};
use super::transcode::{Readable, readable};
use crate::base::{Error, Monitor, Result, suggest, units};

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
    /// What is out of range: the param and what is wrong with it.
    pub fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.max_row_bytes == 0 {
            found.push(("max_row_bytes", "`max_row_bytes` must be positive".into()));
        }
        if let Some(mistake) = Join(&self.join).mistake() {
            found.push(("join", mistake));
        }
        found.extend(delimiter_mistake(self.delimiter).map(|mistake| ("delimiter", mistake)));
        found.extend(self.fields.as_ref().and_then(|fields| self.mistaken_fields(fields)));
        found
    }

    /// The defect of a byte in `row` that is not in the encoding: one to be skipped if `on_invalid` says so.
    fn invalid(&self, bad: &Bad, row: u64) -> Bad {
        let fatal = self.on_invalid != OnInvalid::SkipDocument;
        Bad { fatal, message: format!("row {row}: {}", bad.message), ..bad.clone() }
    }

    fn mistaken_fields(&self, fields: &FieldNames) -> Option<(&'static str, String)> {
        let named = fields.named();
        if !matches!(self.format, FormatChoice::Auto | FormatChoice::Prompt | FormatChoice::Instruction) {
            let message = "`fields` names the fields of rows with one question and one answer; `format` says \
                           that the rows are of another kind";
            return Some(("fields", message.into()));
        }
        named.iter().enumerate().find_map(|(i, (param, name))| {
            if name.is_empty() {
                return Some((*param, format!("`{param}` is empty")));
            }
            let (other, _) = named[..i].iter().find(|(_, other)| other == name)?;
            Some((*param, format!("`{param}` and `{other}` both name `{name}`")))
        })
    }
}

/// What was read, changed and removed. `rows_in` = `rows_kept` + all of `rows_dropped`, and
/// `conversations_in` = `conversations_out` + all of `removed` that are no pairs; a bad row counts as one
/// conversation. `preferences_in` = `preferences_out` + `removed.duplicate_preferences`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub bytes_in: u64,
    /// Of all contents.
    pub bytes_out: u64,
    pub rows_in: u64,
    /// Rows of which something was written: a conversation or a pair.
    pub rows_kept: u64,
    /// By cause: that of the first defect, or `exact_duplicates`.
    pub rows_dropped: BTreeMap<&'static str, u64>,
    pub conversations_in: u64,
    pub conversations_out: u64,
    /// Pairs of a preferred and a rejected answer.
    pub preferences_in: u64,
    pub preferences_out: u64,
    /// Messages written, by role.
    pub messages: BTreeMap<&'static str, u64>,
    /// Answers written that are context and not learned.
    pub messages_of_weight_0: u64,
    /// In the longest conversation written.
    pub most_messages: u64,
    /// Conversations written, by the format that they came in.
    pub formats: BTreeMap<&'static str, u64>,
    pub removed: Removed,
    pub changed: Mended,
    /// Lines of plain text between conversations.
    pub comment_lines: u64,
    pub blank_lines: u64,
    pub files: Vec<FileReport>,
}

/// Conversations that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub exact_duplicates: u64,
    /// By cause.
    pub bad_rows: BTreeMap<&'static str, u64>,
    /// Pairs that were there before.
    pub duplicate_preferences: u64,
}

/// Of one file, in sums as [`Report`] has them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FileReport {
    pub name: String,
    /// That of its first row; `None` when it holds none.
    pub format: Option<Shape>,
    /// As its byte order mark says, else as `encoding` does.
    pub encoding: Encoding,
    pub bytes: u64,
    pub rows_in: u64,
    pub rows_kept: u64,
    pub rows_dropped: BTreeMap<&'static str, u64>,
    pub conversations_in: u64,
    pub conversations_out: u64,
    pub preferences_out: u64,
    pub comment_lines: u64,
    pub blank_lines: u64,
    /// Kept rows that hold something under a key that is not read, by key.
    pub ignored_keys: UnknownKeys,
    /// Kept rows of which a field that is not read cannot be parsed, by key.
    pub bad_metadata: UnknownKeys,
}

/// Reads `files` in their order and writes `conversations.parquet`, `report.json` and, when there are
/// pairs, `preferences.parquet` into the folder `out`; files in UTF-16 and UTF-32 are copied into the
/// folder `scratch` while they are read.
///
/// # Errors
/// A file that cannot be read or whose format is not known; what `options` say is an error; nothing
/// left at the end. [`Error::cancelled`] when the monitor says so.
pub fn ingest_chat(
    files: &[InputFile],
    options: &Options,
    out: &Path,
    scratch: &Path,
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
    /// Of fields, when the user gave them.
    names: Option<Names<'a>>,
    seen: HashSet<[u8; 16]>,
    conversations: ConversationWriter,
    /// Made for the first pair.
    preferences: Option<PreferenceWriter>,
    out: PathBuf,
    report: Report,
}

/// What is known of a file while it is read.
#[derive(Default)]
struct Known {
    report: FileReport,
    /// The keys of its first row.
    keys: Vec<String>,
    /// Those that `fields` names and a row had.
    found: BTreeSet<String>,
    /// Somebody was told of a bad row.
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
        let mut known = Known::default();
        (known.report.name, known.report.bytes) = (file.name.clone(), file.size);
        known.report.encoding = source.encoding;
        known.report.format = match rows {
            Rows::Text(_) => Some(Shape::Text),
            _ if self.names.is_some() => Some(Shape::Prompt),
            _ => options.format.shape(),
        };
        let mut read = 0;
        loop {
            self.step(read)?;
            let batch = rows.batch()?;
            let Some(last) = batch.last() else { break };
            if rows.places() != Places::Nowhere {
                read = last.as_ref().map_or(read, |record| record.end);
            }
            let preparer = Preparer {
                options,
                roles: &self.roles,
                names: self.names.as_ref(),
                source: &source,
                places: rows.places(),
                shape: known.report.format,
            };
            let batch = self.first_row(batch, preparer, &mut known)?;
            let preparer = Preparer { shape: known.report.format, ..preparer };
            let taken: Vec<_> =
                batch.into_par_iter().map(|row| row.and_then(|row| preparer.prepare(row))).collect();
            for row in taken {
                known.report.rows_in += 1;
                match row {
                    Ok(prepared) => self.take(file, prepared, &mut known)?,
                    Err(bad) => self.bad_row(file, bad, &mut known)?,
                }
            }
        }
        (known.report.comment_lines, known.report.blank_lines) =
            (rows.skipped().comment_lines, rows.skipped().blank_lines);
        self.report.changed.text.invalid_bytes_replaced += rows.replaced();
        self.close(file, known)
    }

    fn step(&self, read: u64) -> Result<()> {
        let total = self.files.iter().map(|f| f.size).sum();
        self.monitor.step("reading", self.report.bytes_in + read, Some(total), "B")
    }

    /// Tells the format of the file from the first row of the batch that is an object.
    fn first_row(
        &self,
        batch: Vec<Result<Record, Bad>>,
        preparer: Preparer,
        known: &mut Known,
    ) -> Result<Vec<Result<Record, Bad>>> {
        if known.report.format == Some(Shape::Text) || !known.keys.is_empty() {
            return Ok(batch);
        }
        for record in batch.iter().flatten() {
            let Ok((decoded, object)) = preparer.object(record) else { continue };
            known.keys = object.fields.keys().cloned().collect();
            if known.report.format.is_none() {
                let shape = Shape::of(&object.fields);
                let bad = || preparer.located(unknown_format(&object.fields), &decoded, record);
                known.report.format = Some(shape.ok_or_else(|| bad().into_error(&preparer.source.file))?);
            }
            break;
        }
        Ok(batch)
    }

    /// What is said of a whole file.
    fn close(&mut self, file: &InputFile, known: Known) -> Result<()> {
        self.has_named_fields(file, &known)?;
        let found = known.report;
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
        let report = &mut self.report;
        report.bytes_in += file.size;
        report.rows_in += found.rows_in;
        report.rows_kept += found.rows_kept;
        for (cause, rows) in &found.rows_dropped {
            *report.rows_dropped.entry(cause).or_default() += rows;
        }
        report.conversations_in += found.conversations_in;
        report.conversations_out += found.conversations_out;
        report.preferences_out += found.preferences_out;
        report.comment_lines += found.comment_lines;
        report.blank_lines += found.blank_lines;
        report.files.push(found);
        Ok(())
    }

    /// Each field that `fields` names was in some row.
    fn has_named_fields(&self, file: &InputFile, known: &Known) -> Result<()> {
        let named = self.options.fields.as_ref().map(FieldNames::named).unwrap_or_default();
        let missing = named.into_iter().find(|(_, name)| !known.found.contains(*name));
        let Some((param, name)) = missing.filter(|_| !known.keys.is_empty()) else { return Ok(()) };
        let others = known.report.ignored_keys.rows().keys();
        let keys: BTreeSet<&str> = known.keys.iter().chain(others).map(String::as_str).collect();
        Err(Error::input(format!("no row of `{}` has the field `{name}`, which `{param}` names", file.name))
            .suggest(suggest::closest(name, keys.iter().copied()))
            .help(format!("its rows have {}", suggest::list(keys))))
    }

    fn take(&mut self, file: &InputFile, row: Prepared, known: &mut Known) -> Result<()> {
        let mut written = false;
        let mut cause = None;
        for conversation in row.conversations {
            match conversation {
                Ok(conversation) => {
                    known.report.conversations_in += 1;
                    match self.conversation(conversation, row.shape)? {
                        true => {
                            known.report.conversations_out += 1;
                            written = true;
                        }
                        false => cause = cause.or(Some("exact_duplicates")),
                    }
                }
                Err(bad) => {
                    cause = cause.or(Some(bad.cause));
                    self.bad_conversation(file, bad, known)?;
                }
            }
        }
        if let Some(pair) = row.pair
            && self.pair(&pair)?
        {
            known.report.preferences_out += 1;
            written = true;
        }
        known.found.extend(row.named);
        if written {
            known.report.rows_kept += 1;
            known.report.ignored_keys.add(row.unknown.iter().map(String::as_str));
            known.report.bad_metadata.add(row.bad_metadata.iter().map(String::as_str));
        } else {
            *known.report.rows_dropped.entry(cause.unwrap_or("exact_duplicates")).or_default() += 1;
        }
        Ok(())
    }

    /// Writes a conversation; `false` when it was there before.
    fn conversation(&mut self, (conversation, mended): (Conversation, Mended), shape: Shape) -> Result<bool> {
        if self.options.exact_duplicates && !self.seen.insert(id_bytes(&conversation.id)) {
            self.report.removed.exact_duplicates += 1;
            return Ok(false);
        }
        let report = &mut self.report;
        report.changed.add(&mended);
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

    /// Writes a pair; `false` when it was there before.
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
    fn bad_row(&mut self, file: &InputFile, bad: Bad, known: &mut Known) -> Result<()> {
        *known.report.rows_dropped.entry(bad.cause).or_default() += 1;
        self.bad_conversation(file, bad, known)
    }

    fn bad_conversation(&mut self, file: &InputFile, bad: Bad, known: &mut Known) -> Result<()> {
        let skip = bad.cause == "invalid_encoding" || self.options.on_bad_row == OnBadRow::Skip;
        if bad.fatal || !skip {
            let help = !bad.fatal;
            let error = bad.into_error(file);
            return Err(match help {
                true => error.help("or set `on_bad_row: skip` to leave such rows out and count them"),
                false => error,
            });
        }
        known.report.conversations_in += 1;
        *self.report.removed.bad_rows.entry(bad.cause).or_default() += 1;
        if !std::mem::replace(&mut known.warned, true) {
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
        write_report(&self.out, &report)?;
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

/// What one row gave.
struct Prepared {
    shape: Shape,
    /// Each with what was mended; a bad one does not cost the others of its row.
    conversations: Vec<Result<(Conversation, Mended), Bad>>,
    pair: Option<Preference>,
    /// Keys that are not read.
    unknown: BTreeSet<String>,
    bad_metadata: Vec<String>,
    /// The fields that the user named and that the row has.
    named: Vec<String>,
}

/// Makes conversations of rows; knows nothing of other rows.
#[derive(Clone, Copy)]
struct Preparer<'a> {
    options: &'a Options,
    roles: &'a Roles,
    names: Option<&'a Names<'a>>,
    source: &'a Readable,
    places: Places,
    /// The format of the file, as far as it is known.
    shape: Option<Shape>,
}

impl Preparer<'_> {
    fn prepare(&self, record: Record) -> Result<Prepared, Bad> {
        if self.shape == Some(Shape::Text) {
            return self.text(&record);
        }
        let (decoded, object) = self.object(&record)?;
        let located = |bad| self.located(bad, &decoded, &record);
        let fields = &object.fields;
        let shape = self.shape_of(&object).map_err(located)?;
        let usual;
        let names = match self.names {
            Some(names) => names,
            None => {
                usual = Names::of(shape);
                &usual
            }
        };
        let join = Join(&self.options.join);
        let row = Row { text: &decoded.text, fields, names, join, roles: self.roles };
        let (content, unknown) = row.read(shape).map_err(located)?;
        let named = self.options.fields.iter().flat_map(FieldNames::named).map(|(_, name)| name);
        let mut out = Prepared {
            shape,
            conversations: Vec::new(),
            pair: None,
            unknown,
            bad_metadata: object.bad_metadata,
            named: named.filter(|name| fields.contains_key(*name)).map(str::to_string).collect(),
        };
        match content {
            Content::Conversations(all) => {
                let judge =
                    |turns: Result<_, Bad>| turns.and_then(|turns| self.check(turns, &decoded, &record));
                out.conversations = all.into_iter().map(|turns| judge(turns).map_err(located)).collect();
            }
            Content::Pair { chosen, rejected } => {
                let (chosen, mended) =
                    self.check(chosen, &decoded, &record).map_err(|bad| located(of_side(bad, "chosen")))?;
                let (rejected, _) = self
                    .check(rejected, &decoded, &record)
                    .map_err(|bad| located(of_side(bad, "rejected")))?;
                let name = self.source.file.name.as_str();
                let pair = Preference::of(&chosen.messages, &rejected.messages, name, record.row);
                out.pair = Some(pair.map_err(|why| located(no_pair(why)))?);
                out.conversations.push(Ok((chosen, mended)));
            }
        }
        if let Some(Ok((_, mended))) = out.conversations.first_mut() {
            mended.text.invalid_bytes_replaced += decoded.replaced;
        }
        Ok(out)
    }

    fn text(&self, record: &Record) -> Result<Prepared, Bad> {
        let decoded = self.decode(record)?;
        let located = |bad| self.located(bad, &decoded, record);
        let turns = text::turns(&decoded.text, self.roles).map_err(located)?;
        let (conversation, mut mended) = self.check(turns, &decoded, record).map_err(located)?;
        mended.text.invalid_bytes_replaced += decoded.replaced;
        Ok(Prepared {
            shape: Shape::Text,
            conversations: vec![Ok((conversation, mended))],
            pair: None,
            unknown: BTreeSet::new(),
            bad_metadata: Vec::new(),
            named: Vec::new(),
        })
    }

    fn check(
        &self,
        turns: Vec<Turn>,
        decoded: &Decoded,
        record: &Record,
    ) -> Result<(Conversation, Mended), Bad> {
        let mut mended = Mended::default();
        let options = self.options;
        let cleaning = Cleaning {
            nfc: options.nfc,
            control_characters: options.strip_control_characters,
            blanks: options.strip_blanks,
        };
        let rules = Rules { roles: self.roles, same_role: options.same_role, cleaning };
        let messages = check::check(turns, &decoded.text, rules, &mut mended)?;
        Ok((Conversation::new(messages, self.source.file.name.as_str(), record.row), mended))
    }

    /// The text of a record and the object that it is.
    fn object(&self, record: &Record) -> Result<(Decoded, Object), Bad> {
        let decoded = self.decode(record)?;
        let needed = |key: &str| match self.names {
            Some(names) => names.need(key),
            None => Names::of(Shape::Preference).need(key),
        };
        let object = object(&decoded.text, 0, &needed).map_err(|bad| self.located(bad, &decoded, record))?;
        Ok((decoded, object))
    }

    /// The format of a row: its own, or that of its file when its fields tell none.
    fn shape_of(&self, object: &Object) -> Result<Shape, Bad> {
        let fixed = self.names.is_some() || self.options.format != FormatChoice::Auto;
        match self.shape {
            Some(shape) if fixed => Ok(shape),
            other => Shape::of(&object.fields).or(other).ok_or_else(|| unknown_format(&object.fields)),
        }
    }

    fn decode(&self, record: &Record) -> Result<Decoded, Bad> {
        let exact = self.places == Places::Exact;
        let encoding = if exact { self.source.encoding } else { Encoding::Utf8 };
        let replace = self.options.on_invalid == OnInvalid::Replace;
        decode(record.bytes.clone(), encoding, replace).map_err(|invalid| {
            let at = record.start + invalid.at as u64;
            self.options.invalid(&self.source.invalid(at, invalid.byte), record.row)
        })
    }

    /// A defect at a byte of the text of a row, with its place in the file.
    fn located(&self, bad: Bad, decoded: &Decoded, record: &Record) -> Bad {
        let at = match self.places {
            Places::Exact => bad.at.map(|at| record.start + decoded.source_offset(at as usize) as u64),
            Places::Record => Some(record.start),
            Places::Nowhere => None,
        };
        Bad { at, message: format!("row {}: {}", record.row, bad.message), ..bad }
    }
}

fn of_side(bad: Bad, side: &str) -> Bad {
    Bad { message: format!("`{side}`: {}", bad.message), ..bad }
}

fn no_pair(why: NoPair) -> Bad {
    match why {
        NoPair::Equal => Bad::new("equal_pair", 0, "`chosen` and `rejected` are the same"),
        NoPair::Beginning => {
            Bad::new("no_answer", 0, "one of `chosen` and `rejected` is the beginning of the other")
        }
        NoPair::OtherPrompt => {
            Bad::new("other_prompt", 0, "`chosen` and `rejected` do not part at an answer of the assistant")
        }
    }
}

impl Mended {
    fn add(&mut self, other: &Mended) {
        self.merged_messages += other.merged_messages;
        self.trailing_user_dropped += other.trailing_user_dropped;
        self.empty_system_dropped += other.empty_system_dropped;
        self.markers_dropped += other.markers_dropped;
        self.special_tokens_in_content += other.special_tokens_in_content;
        self.text += other.text;
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
mod tests;
