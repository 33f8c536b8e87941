//! Files of text, Markdown, JSONL, CSV or Parquet to a `documents` artifact: read as a stream, cleaned,
//! filtered, deduplicated, split by length, and counted.
//!
//! Memory holds one batch of records (8 MiB, or one document when that is longer) and, of the documents
//! kept so far, about 1 KiB each, 0.1 KiB without near-duplicates (see [`super::duplicates::Seen`]); a
//! corpus may be larger than memory. Records are prepared in parallel on the rayon pool and checked for
//! duplicates in the order of the files, so the result does not depend on the number of threads.
//!
//! Not done: language detection, quality classifiers, paragraph-level deduplication.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::boilerplate;
use super::clean::{Changes, Cleaning, clean};
use super::csv::{field_start, validate_delimiter};
use super::decode::{Decoded, Encoding, InvalidByte, OnInvalid, decode};
use super::document::{Document, DocumentWriter};
use super::duplicates::{DuplicateWriter, Likeness, Origin, Seen};
use super::input::{self, BadRecord, InputFile, Record};
use super::json::{self, Step, UnknownKeys, describe};
use super::minhash::{MinHasher, Signature};
use super::read::{Format, FormatChoice, Reader, Reading};
use super::split;
use super::transcode::{Readable, readable};
use crate::base::{Digest, Error, Invalid, Monitor, Result, fs, suggest, units};

/// The file of the report.
pub const REPORT_NAME: &str = "report.json";

/// The document separator of `separator: auto`.
const END_OF_TEXT: &str = "<|endoftext|>";

/// How files become documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What the files hold; `auto` tells it from the ending of each name.
    pub format: FormatChoice,
    /// The field (JSONL) or column (CSV, Parquet) with the text.
    pub text_field: String,
    /// What stands between two documents of a txt or md file, such as "\n\n\n"; a line break stands for
    /// LF, CR LF and CR. `auto`: `<|endoftext|>`. `null`: a file is one document.
    pub separator: Option<String>,
    /// Between the fields of CSV, one ASCII character. `null`: a tab in `.tsv`, else a comma.
    pub delimiter: Option<char>,
    /// Keys (JSONL) and columns (CSV, Parquet) beside `text_field` and `id` that may be left out without
    /// a warning; `["*"]` for all. The report counts them in any case.
    pub ignore: Vec<String>,
    /// `utf-8`; `windows-1252`, also called `latin-1`; `utf-16le`, `utf-16be`, `utf-32le`, `utf-32be`. A
    /// byte order mark tells it by itself. Parquet is always UTF-8.
    pub encoding: Encoding,
    /// What happens to bytes that are not in the encoding: `error`, `replace` (by U+FFFD) or
    /// `skip_document`.
    pub on_invalid: OnInvalid,
    /// What happens to broken JSON, missing or non-text fields, and CSV records of another length or with
    /// a misplaced quote: `error` or `skip`. Skipped rows are counted by cause.
    pub on_bad_row: OnBadRow,
    /// The longest document, line or record that is taken into memory.
    pub max_document_bytes: u64,

    /// Unicode NFC.
    pub nfc: bool,
    /// Remove control characters other than tab and line break.
    pub strip_control_characters: bool,
    /// Remove blanks at ends of lines and documents, and blank lines beyond one.
    pub strip_blanks: bool,
    /// Remove what stands outside Project Gutenberg's start and end markers with the credits and
    /// farewell inside them, and the front matter of Markdown.
    pub strip_boilerplate: bool,

    /// Documents with fewer characters, once cleaned, are left out.
    pub min_chars: usize,
    /// Documents with more characters, once cleaned, are left out. `null`: none.
    pub max_chars: Option<usize>,

    /// Leave out documents whose cleaned text was there before.
    pub exact_duplicates: bool,
    /// Leave out documents that resemble an earlier one; never those whose digits, operators or emoji
    /// differ. `null`: off.
    pub near_duplicates: Option<NearDuplicates>,

    /// Each Markdown heading of this level or higher (1 to 6) starts a document. `null`: off.
    pub split_headings: Option<usize>,
    /// Longer documents are cut into parts of at most this many characters, between paragraphs where
    /// possible, after duplicates were judged: a few long books then give enough documents for a
    /// held-out split. `null`: off.
    pub split_chars: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            format: FormatChoice::Auto,
            text_field: "text".into(),
            separator: Some("auto".into()),
            delimiter: None,
            ignore: Vec::new(),
            encoding: Encoding::Utf8,
            on_invalid: OnInvalid::Error,
            on_bad_row: OnBadRow::Error,
            max_document_bytes: 64 << 20,
            nfc: true,
            strip_control_characters: true,
            strip_blanks: true,
            strip_boilerplate: true,
            min_chars: 1,
            max_chars: None,
            exact_duplicates: true,
            near_duplicates: Some(NearDuplicates::default()),
            split_headings: None,
            split_chars: Some(20_000),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// An error that names the row.
    #[default]
    Error,
    /// The row is left out and counted.
    Skip,
}

/// Near-duplicates by MinHash and locality-sensitive hashing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NearDuplicates {
    /// The estimated Jaccard similarity of the sets of shingles from which on two documents count as
    /// near-duplicates: above 0, at most 1.
    pub threshold: f64,
    /// Words in a shingle; signs that carry meaning count as words.
    pub shingle_words: usize,
    /// Hash functions; the estimate's standard error is at most 0.5 / sqrt(permutations).
    pub permutations: usize,
    /// Bands of the index; a divisor of `permutations`. A pair of similarity s is looked at with
    /// probability 1 - (1 - s^(permutations / bands))^bands: 0.95 at s = 0.8 with the defaults.
    pub bands: usize,
}

impl Default for NearDuplicates {
    fn default() -> Self {
        NearDuplicates { threshold: 0.8, shingle_words: 5, permutations: 128, bands: 16 }
    }
}

impl NearDuplicates {
    fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, param: &str, why: String| {
            if !ok {
                found.push(Invalid::new(format!("near_duplicates.{param}"), why));
            }
        };
        check(
            self.threshold > 0.0 && self.threshold <= 1.0,
            "threshold",
            format!("must be above 0 and at most 1, found {}", self.threshold),
        );
        check(self.shingle_words > 0, "shingle_words", "must be positive".into());
        check(
            self.bands > 0 && self.permutations > 0 && self.permutations.is_multiple_of(self.bands),
            "bands",
            format!("must divide `permutations` ({}), found {}", self.permutations, self.bands),
        );
        found
    }
}

impl Options {
    /// Every param that is out of range.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found: Vec<Invalid> = validate_delimiter(self.delimiter).err().into_iter().collect();
        let mut check = |ok: bool, param, why: String| {
            if !ok {
                found.push(Invalid::new(param, why));
            }
        };
        check(!self.text_field.is_empty(), "text_field", "is empty".into());
        check(
            self.separator.as_deref() != Some(""),
            "separator",
            "is empty: write `null` to take each file as one document".into(),
        );
        check(self.max_document_bytes > 0, "max_document_bytes", "must be positive".into());
        check(
            self.max_chars.is_none_or(|most| most >= self.min_chars),
            "max_chars",
            format!("is less than `min_chars` ({}): nothing would be left", self.min_chars),
        );
        check(
            self.split_headings.is_none_or(|level| (1..=6).contains(&level)),
            "split_headings",
            format!("must be 1 to 6, found {}", self.split_headings.unwrap_or(0)),
        );
        check(self.split_chars != Some(0), "split_chars", "must be positive, or `null`".into());
        found.extend(self.near_duplicates.iter().flat_map(NearDuplicates::validate));
        found
    }

    fn reading(&self) -> Reading {
        let separator = match self.separator.as_deref() {
            Some("auto") => Some(END_OF_TEXT.to_string()),
            other => other.map(str::to_string),
        };
        Reading {
            separator,
            text_field: self.text_field.clone(),
            delimiter: self.delimiter.map(|c| c as u8),
            max_bytes: self.max_document_bytes,
        }
    }
}

/// What was read, changed and removed: of each file, and of all together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub bytes_in: u64,
    #[serde(flatten)]
    pub total: Counts,
    pub files: Vec<FileReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    pub name: String,
    pub format: Format,
    pub encoding: Encoding,
    pub bytes: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// In how many rows a key or column that was not read holds something. In a Parquet file without
    /// statistics: all its rows.
    pub ignored_keys: UnknownKeys,
}

/// Each row that was read is accounted for:
/// `rows_in` + `further_documents` = `documents_in` = `documents_kept` + all of `removed`.
/// What is kept is written as `documents_out` rows of the artifact, which count the parts of split
/// documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    pub bytes_out: u64,
    pub characters_out: u64,
    /// Records, bad ones included: texts between separators, JSON values, CSV records, Parquet rows.
    /// Blank ones of text, JSONL and CSV are none.
    pub rows_in: u64,
    /// Documents beyond the first of a row: of books in one text, and of `split_headings`.
    pub further_documents: u64,
    pub documents_in: u64,
    pub documents_kept: u64,
    /// Kept documents that were cut into parts.
    pub documents_split: u64,
    pub documents_out: u64,
    pub removed: Removed,
    pub changed: Changes,
    pub boilerplate: Boilerplate,
    /// Rows with a key other than the text's whose value is not JSON: it was left out, the text kept.
    pub bad_metadata: u64,
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.bytes_out += other.bytes_out;
        self.characters_out += other.characters_out;
        self.rows_in += other.rows_in;
        self.further_documents += other.further_documents;
        self.documents_in += other.documents_in;
        self.documents_kept += other.documents_kept;
        self.documents_split += other.documents_split;
        self.documents_out += other.documents_out;
        self.removed += &other.removed;
        self.changed += other.changed;
        self.boilerplate.records += other.boilerplate.records;
        self.boilerplate.bytes += other.boilerplate.bytes;
        self.bad_metadata += other.bad_metadata;
    }
}

/// Documents that were left out, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub empty: u64,
    pub shorter_than_min_chars: u64,
    pub longer_than_max_chars: u64,
    pub invalid_encoding: u64,
    pub exact_duplicates: u64,
    pub near_duplicates: u64,
    /// By cause.
    pub bad_rows: BTreeMap<&'static str, u64>,
}

impl AddAssign<&Removed> for Removed {
    fn add_assign(&mut self, other: &Removed) {
        self.empty += other.empty;
        self.shorter_than_min_chars += other.shorter_than_min_chars;
        self.longer_than_max_chars += other.longer_than_max_chars;
        self.invalid_encoding += other.invalid_encoding;
        self.exact_duplicates += other.exact_duplicates;
        self.near_duplicates += other.near_duplicates;
        for (cause, count) in &other.bad_rows {
            *self.bad_rows.entry(*cause).or_default() += count;
        }
    }
}

impl Removed {
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    fn by_reason(&self) -> Vec<(String, u64)> {
        let mut all = vec![
            ("empty".into(), self.empty),
            ("shorter than `min_chars`".into(), self.shorter_than_min_chars),
            ("longer than `max_chars`".into(), self.longer_than_max_chars),
            ("not in the encoding".into(), self.invalid_encoding),
            ("exact duplicates".into(), self.exact_duplicates),
            ("near-duplicates".into(), self.near_duplicates),
        ];
        all.extend(self.bad_rows.iter().map(|(cause, count)| (format!("bad rows ({cause})"), *count)));
        all
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Boilerplate {
    /// Records from which something was stripped, and how much.
    pub records: u64,
    pub bytes: u64,
}

/// Reads `files` in their order and writes `documents.parquet`, `duplicates.parquet` and `report.json`
/// into the folder `out`; files in UTF-16 and UTF-32 are copied into the folder `scratch` while they
/// are read.
///
/// # Errors
/// A file that cannot be read or whose format is not known; what `options` make an error; no document left.
/// [`Error::cancelled`] on cancellation.
pub fn ingest(
    files: &[InputFile],
    options: &Options,
    out: &Path,
    scratch: &Path,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some(invalid) = options.validate().into_iter().next() {
        return Err(Error::invalid(invalid));
    }
    let near = options.near_duplicates.as_ref();
    let hasher = near.map(|near| MinHasher::new(near.permutations, near.bands, near.shingle_words));
    let mut ingestion = Ingestion::new(files, options, hasher.as_ref(), out, monitor)?;
    for number in 0..files.len() {
        ingestion.file(number, scratch)?;
    }
    ingestion.finish(out)
}

struct Ingestion<'a> {
    files: &'a [InputFile],
    options: &'a Options,
    monitor: &'a dyn Monitor,
    hasher: Option<&'a MinHasher>,
    seen: Seen,
    documents: DocumentWriter,
    duplicates: DuplicateWriter,
    report: Report,
    current: Current,
}

/// The state of reading a file.
#[derive(Default)]
struct Current {
    counts: Counts,
    unknown: UnknownKeys,
    warned_of_row: bool,
    warned_of_metadata: bool,
}

/// Raw bytes of a batch that is prepared in parallel.
const BATCH_BYTES: usize = 8 << 20;

impl<'a> Ingestion<'a> {
    fn new(
        files: &'a [InputFile],
        options: &'a Options,
        hasher: Option<&'a MinHasher>,
        out: &Path,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        Ok(Ingestion {
            files,
            options,
            monitor,
            hasher,
            seen: Seen::new(
                options.exact_duplicates,
                options.near_duplicates.as_ref().map(|near| near.threshold),
            ),
            documents: DocumentWriter::create(out)?,
            duplicates: DuplicateWriter::create(out)?,
            report: Report::default(),
            current: Current::default(),
        })
    }

    fn file(&mut self, number: usize, scratch: &Path) -> Result<()> {
        let file = &self.files[number];
        let format = self.options.format.of(file)?;
        let readable = match format {
            Format::Parquet => Readable::as_it_is(file),
            _ => readable(file, self.options.encoding, scratch)?,
        };
        let mut reader = Reader::open(&readable.file, format, &self.options.reading())?;
        self.current = Current::default();
        let preparer = Preparer {
            options: self.options,
            hasher: self.hasher,
            source: &readable,
            format,
            csv_column: reader.csv_column(),
        };
        self.records(number, &mut reader, &preparer)?;
        reader.unread_columns(&mut self.current.unknown);
        self.close(file, format, readable.encoding);
        Ok(())
    }

    /// Reports on a file that was read to its end.
    fn close(&mut self, file: &InputFile, format: Format, encoding: Encoding) {
        let Current { counts, unknown, .. } = std::mem::take(&mut self.current);
        if counts.documents_in == 0 {
            tracing::warn!("`{}` holds no document", file.name);
        }
        unknown.warn(&file.name, &self.options.ignore, "`text_field` names the one with the text");
        self.report.bytes_in += file.size;
        self.report.total += &counts;
        self.report.files.push(FileReport {
            name: file.name.clone(),
            format,
            encoding,
            bytes: file.size,
            counts,
            ignored_keys: unknown,
        });
    }

    fn records(&mut self, number: usize, reader: &mut Reader, preparer: &Preparer) -> Result<()> {
        let mut read = 0;
        loop {
            self.step(if preparer.format == Format::Parquet { 0 } else { read })?;
            let batch = input::batch(BATCH_BYTES, || reader.next())?;
            let Some(last) = batch.last() else { return Ok(()) };
            read = last.as_ref().map_or(read, |record| record.end);
            let prepared: Vec<_> = batch
                .into_par_iter()
                .map(|record| record.and_then(|record| preparer.prepare(record)))
                .collect();
            for item in prepared {
                match item {
                    Ok(prepared) => self.take(number, prepared)?,
                    Err(bad) => self.bad_row(&preparer.source.file, bad)?,
                }
            }
        }
    }

    fn step(&self, read: u64) -> Result<()> {
        let total = self.files.iter().map(|f| f.size).sum();
        self.monitor.step("reading", self.report.bytes_in + read, Some(total), "B")
    }

    fn bad_row(&mut self, file: &InputFile, bad: BadRecord) -> Result<()> {
        if bad.fatal || self.options.on_bad_row == OnBadRow::Error {
            let skippable = !bad.fatal;
            let error = bad.into_error(file);
            return Err(match skippable {
                true => error.help("or set `on_bad_row: skip` to leave such rows out and count them"),
                false => error,
            });
        }
        let counts = &mut self.current.counts;
        counts.rows_in += 1;
        counts.documents_in += 1;
        *counts.removed.bad_rows.entry(bad.cause).or_default() += 1;
        if !std::mem::replace(&mut self.current.warned_of_row, true) {
            tracing::warn!(
                "a bad row is skipped (further ones in this file are only counted): {}",
                bad.into_error(file)
            );
        }
        Ok(())
    }

    fn take(&mut self, number: usize, prepared: Prepared) -> Result<()> {
        self.monitor.check()?;
        self.current.counts += &prepared.counts;
        self.current.unknown.add(prepared.unknown.iter().map(String::as_str));
        if let Some((row, key)) = prepared.bad_metadata
            && !std::mem::replace(&mut self.current.warned_of_metadata, true)
        {
            let file = &self.files[number].name;
            tracing::warn!(
                "the value of `{key}` is not valid JSON (`{file}`, row {row}): it is left out, the text is kept; \
                 further ones in this file are only counted"
            );
        }
        for section in prepared.sections {
            self.section(number, section)?;
        }
        Ok(())
    }

    fn section(&mut self, number: usize, section: Section) -> Result<()> {
        let Section { id, start, end, signature, pieces } = section;
        let origin = Origin { id, file: number as u32, start, end };
        if let Some(found) = self.seen.check(origin, signature.as_ref()) {
            let removed = &mut self.current.counts.removed;
            match found.likeness {
                Likeness::Exact => removed.exact_duplicates += 1,
                Likeness::Near => removed.near_duplicates += 1,
            }
            let name = |file: u32| self.files[file as usize].name.as_str();
            return self.duplicates.push(&origin, name(origin.file), &found, name(found.kept.file));
        }
        let counts = &mut self.current.counts;
        counts.documents_kept += 1;
        counts.documents_split += u64::from(pieces.len() > 1);
        for document in pieces {
            counts.documents_out += 1;
            counts.bytes_out += document.text.len() as u64;
            counts.characters_out += document.text.chars().count() as u64;
            self.documents.push(&document)?;
        }
        Ok(())
    }

    fn finish(self, out: &Path) -> Result<Report> {
        self.step(0)?;
        let report = self.report;
        let total = &report.total;
        if total.documents_out == 0 {
            return Err(nothing_left(&report));
        }
        self.documents.finish()?;
        self.duplicates.finish()?;
        fs::write_json(&out.join(REPORT_NAME), &report)?;
        tracing::info!(
            "{} documents read, {} removed, {} written ({})",
            units::count(total.documents_in),
            units::count(total.removed.total()),
            units::count(total.documents_out),
            units::bytes(total.bytes_out)
        );
        Ok(report)
    }
}

fn nothing_left(report: &Report) -> Error {
    let files = report.files.len();
    if report.total.documents_in == 0 {
        let message = format!("no document in {files} file(s) of {} B", report.bytes_in);
        return Error::input(message).help("are they the right files, and is any of them not empty?");
    }
    let reasons: Vec<String> = report
        .total
        .removed
        .by_reason()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    Error::input(format!("no document is left of {} read from {files} file(s)", report.total.documents_in))
        .cause(format!("removed were {}", reasons.join(", ")))
        .help("loosen the params named here, or look at the input")
}

/// The result of one record, with the counts that do not depend on other records.
#[derive(Default)]
struct Prepared {
    sections: Vec<Section>,
    counts: Counts,
    /// Keys that were not read.
    unknown: Vec<String>,
    /// The row and the first key whose value could not be read.
    bad_metadata: Option<(u64, String)>,
}

/// A document before deduplication, with the parts that it will be written as.
struct Section {
    id: [u8; 16],
    start: u64,
    end: u64,
    signature: Option<Signature>,
    pieces: Vec<Document>,
}

/// Makes documents of records, each independently.
struct Preparer<'a> {
    options: &'a Options,
    hasher: Option<&'a MinHasher>,
    source: &'a Readable,
    format: Format,
    csv_column: Option<(u8, usize)>,
}

impl Preparer<'_> {
    fn prepare(&self, mut record: Record) -> Result<Prepared, BadRecord> {
        let mut out = Prepared::default();
        out.counts.rows_in = 1;
        let bytes = std::mem::take(&mut record.bytes);
        let Some(mut decoded) = self.decode(bytes, &record, &mut out.counts)? else {
            return Ok(out);
        };
        if self.format == Format::Jsonl {
            let text = self.field(&decoded.text, &record, &mut out).map_err(|mut bad| {
                let inside = |at: u64| decoded.source_offset(at.saturating_sub(record.start) as usize) as u64;
                bad.at = bad.at.map(|at| record.start + inside(at));
                bad
            })?;
            decoded.text = text;
        }
        for range in self.ranges(&decoded.text, &record, &mut out.counts) {
            let section = self.section(&decoded, &record, range, &mut out.counts);
            out.sections.extend(section);
        }
        out.counts.further_documents = out.counts.documents_in - 1;
        Ok(out)
    }

    /// `None` when the document is to be skipped.
    fn decode(
        &self,
        bytes: Vec<u8>,
        record: &Record,
        counts: &mut Counts,
    ) -> Result<Option<Decoded>, BadRecord> {
        if self.format == Format::Parquet {
            let not_utf8 =
                |_| BadRecord::new("invalid_encoding", None, format!("row {} is not UTF-8", record.row));
            return Decoded::from_utf8(bytes).map(Some).map_err(not_utf8);
        }
        match decode(bytes, self.source.encoding, self.options.on_invalid == OnInvalid::Replace) {
            Ok(decoded) => {
                counts.changed.invalid_bytes_replaced += decoded.replaced;
                Ok(Some(decoded))
            }
            Err(_) if self.options.on_invalid == OnInvalid::SkipDocument => {
                counts.documents_in += 1;
                counts.removed.invalid_encoding += 1;
                Ok(None)
            }
            Err(invalid) => Err(self.invalid(invalid, record)),
        }
    }

    fn invalid(&self, invalid: InvalidByte, record: &Record) -> BadRecord {
        let at = match self.csv_column {
            // The decoded bytes are a field's; the offset must be found in the file.
            Some((delimiter, column)) => {
                let mut raw = self.source.file.read_range(record.start, record.end).unwrap_or_default();
                let field = field_start(&raw, delimiter, column);
                let found = decode(raw.split_off(field), self.source.encoding, false).err();
                field + found.map_or(0, |found| found.at)
            }
            None => invalid.at,
        };
        self.source.invalid(record.start + at as u64, invalid.byte)
    }

    /// The text of a JSON object.
    fn field(&self, json: &str, record: &Record, out: &mut Prepared) -> Result<String, BadRecord> {
        let name = self.options.text_field.as_str();
        let is_text = |key: &str| key == name;
        let mut object = json::object(json, record.start, &is_text)?;
        out.unknown = json::unknown_keys(&object.fields, &is_text).map(str::to_string).collect();
        if let Some(key) = object.bad_metadata.pop() {
            out.counts.bad_metadata = 1;
            out.bad_metadata = Some((record.row, key));
        }
        match object.fields.remove(name) {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(other) => {
                let at = json::locate(json, &[Step::Key(name)]).start as u64;
                let message = format!("the field `{name}` holds {}, expected a text", describe(&other));
                Err(BadRecord::new("not_text", record.start + at, message))
            }
            None => {
                let names = object.fields.keys().map(String::as_str);
                Err(BadRecord::new("missing_field", record.start, format!("this row has no field `{name}`"))
                    .suggest(suggest::closest(name, names.clone()))
                    .help(format!(
                        "it has {}; name the one with the text in `text_field`",
                        suggest::list(names)
                    )))
            }
        }
    }

    /// The ranges of `text` that are documents.
    fn ranges(&self, text: &str, record: &Record, counts: &mut Counts) -> Vec<Range<usize>> {
        let mut ranges = vec![0..text.len()];
        if self.options.strip_boilerplate {
            ranges = boilerplate::without_gutenberg(text);
            let opens_file = matches!(record.start, 0 | 3); // 3: behind a byte order mark
            if let Some(first) = ranges.first_mut().filter(|_| self.format == Format::Md && opens_file) {
                first.start = first.start.max(boilerplate::front_matter(text)).min(first.end);
            }
            let kept: usize = ranges.iter().map(Range::len).sum();
            counts.boilerplate.records += u64::from(kept < text.len());
            counts.boilerplate.bytes += (text.len() - kept) as u64;
        }
        match self.options.split_headings {
            Some(level) => ranges
                .into_iter()
                .flat_map(|range| {
                    let start = range.start;
                    let found = split::sections(&text[range], level).into_iter();
                    found.map(move |r| start + r.start..start + r.end).collect::<Vec<_>>()
                })
                .collect(),
            None => ranges,
        }
    }

    fn section(
        &self,
        decoded: &Decoded,
        record: &Record,
        range: Range<usize>,
        counts: &mut Counts,
    ) -> Option<Section> {
        counts.documents_in += 1;
        let range = self.trimmed(&decoded.text, range);
        let text = self.clean(&decoded.text[range.clone()], &mut counts.changed);
        let count = text.chars().count();
        let removed = &mut counts.removed;
        if text.trim().is_empty() {
            removed.empty += 1;
        } else if count < self.options.min_chars {
            removed.shorter_than_min_chars += 1;
        } else if self.options.max_chars.is_some_and(|most| count > most) {
            removed.longer_than_max_chars += 1;
        } else {
            let mut id = [0; 16];
            id.copy_from_slice(&Digest::of(text.as_bytes()).bytes()[..16]);
            let signature = self.hasher.and_then(|hasher| hasher.signature(&text));
            let (start, end) = self.source_range(decoded, record, &range);
            let pieces = self.pieces(decoded, record, range, text, count);
            return Some(Section { id, start, end, signature, pieces });
        }
        None
    }

    fn pieces(
        &self,
        decoded: &Decoded,
        record: &Record,
        range: Range<usize>,
        text: String,
        count: usize,
    ) -> Vec<Document> {
        let document = |text, range: &Range<usize>| {
            let (start, end) = self.source_range(decoded, record, range);
            Document::new(text, self.source.file.name.as_str(), start, end)
        };
        let Some(most) = self.options.split_chars.filter(|most| count > *most) else {
            return vec![document(text, &range)];
        };
        split::parts(&decoded.text[range.clone()], most)
            .into_iter()
            .filter_map(|part| {
                let part = self.trimmed(&decoded.text, range.start + part.start..range.start + part.end);
                // Its changes were counted when the whole was cleaned.
                let text = self.clean(&decoded.text[part.clone()], &mut Changes::default());
                (!text.trim().is_empty()).then(|| document(text, &part))
            })
            .collect()
    }

    fn clean(&self, text: &str, changes: &mut Changes) -> String {
        let how = Cleaning {
            nfc: self.options.nfc,
            control_characters: self.options.strip_control_characters,
            blanks: self.options.strip_blanks,
        };
        clean(text, how, changes)
    }

    /// The bytes of the file of a range of the text; those of the whole record where escapes or quotes may
    /// change lengths.
    fn source_range(&self, decoded: &Decoded, record: &Record, range: &Range<usize>) -> (u64, u64) {
        match self.format {
            Format::Txt | Format::Md => {
                let at = |offset| record.start + decoded.source_offset(offset) as u64;
                (at(range.start), at(range.end))
            }
            _ => (record.start, record.end),
        }
    }

    /// `range` without line breaks at its ends and blanks after its last line, where it is a range of the
    /// file.
    fn trimmed(&self, text: &str, range: Range<usize>) -> Range<usize> {
        if !matches!(self.format, Format::Txt | Format::Md) {
            return range;
        }
        let body = text[range.clone()].trim_end();
        let lead = body.len() - body.trim_start_matches(['\n', '\r']).len();
        range.start + lead..range.start + body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::corpus::document::{DocumentReader, FILE_NAME};
    use std::sync::Arc;

    struct Ran {
        dir: tempfile::TempDir,
        result: Result<Report>,
    }

    impl Ran {
        fn documents(&self) -> Vec<Document> {
            let path = self.dir.path().join("out").join(FILE_NAME);
            DocumentReader::open(&path).unwrap().collect::<Result<_>>().unwrap()
        }

        fn texts(&self) -> Vec<String> {
            self.documents().into_iter().map(|d| d.text).collect()
        }

        fn report(&self) -> &Report {
            self.result.as_ref().unwrap()
        }

        fn total(&self) -> &Counts {
            &self.report().total
        }

        fn error(&self) -> String {
            self.result.as_ref().unwrap_err().to_string()
        }
    }

    fn run(files: &[(&str, &[u8])], options: Options) -> Ran {
        let dir = tempfile::tempdir().unwrap();
        let inputs: Vec<InputFile> = files
            .iter()
            .map(|(name, bytes)| {
                let path = dir.path().join(name);
                fs::write(&path, bytes).unwrap();
                InputFile::new(&path).unwrap()
            })
            .collect();
        let result = ingest(&inputs, &options, &dir.path().join("out"), dir.path(), &Quiet);
        if let Ok(report) = &result {
            let mut sum = Counts::default();
            for counts in report.files.iter().map(|file| &file.counts).chain([&report.total]) {
                assert_eq!(counts.rows_in + counts.further_documents, counts.documents_in, "{report:?}");
                assert_eq!(counts.documents_in, counts.documents_kept + counts.removed.total(), "{report:?}");
            }
            report.files.iter().for_each(|file| sum += &file.counts);
            assert_eq!(sum, report.total);
        }
        Ran { dir, result }
    }

    fn parquet(texts: &[Option<&str>]) -> Vec<u8> {
        let column: arrow::array::ArrayRef = Arc::new(arrow::array::StringArray::from(texts.to_vec()));
        let batch = arrow::array::RecordBatch::try_from_iter([("text", column)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    fn skipping() -> Options {
        Options { on_bad_row: OnBadRow::Skip, ..Options::default() }
    }

    #[test]
    fn every_format_becomes_documents_with_provenance() {
        let parquet = parquet(&[Some("six"), Some("seven")]);
        let files: [(&str, &[u8]); 5] = [
            ("a.txt", "\u{FEFF}one\r\n<|endoftext|>\r\ntwo Cafe\u{301}".as_bytes()),
            ("b.md", b"---\ntitle: x\n---\n# three\n"),
            ("c.jsonl", b"{\"text\": \"four\\n\"}\n"),
            ("d.csv", b"id,text\n1,\"five, quoted\"\n"),
            ("e.parquet", &parquet),
        ];
        let ran = run(&files, Options::default());
        let documents = ran.documents();
        let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(texts, ["one", "two Café", "# three", "four", "five, quoted", "six", "seven"]);
        let places: Vec<(&str, u64, u64)> =
            documents.iter().map(|d| (d.source.as_str(), d.start, d.end)).collect();
        let expected = [
            ("a.txt", 3, 6),
            ("a.txt", 23, 33),
            ("b.md", 17, 24),
            ("c.jsonl", 0, 18),
            ("d.csv", 8, 24),
            ("e.parquet", 0, 1),
            ("e.parquet", 1, 2),
        ];
        assert_eq!(places, expected);
        let report = ran.total();
        assert_eq!((report.documents_out, report.boilerplate.records), (7, 1));
        assert_eq!(report.changed.normalized_to_nfc, 1);
        let json = fs::read_text(&ran.dir.path().join("out").join(REPORT_NAME)).unwrap();
        assert!(json.contains("\"documents_out\": 7") && !json.contains("/tmp"), "{json}");
    }

    #[test]
    fn invalid_utf8_is_located_replaced_or_skipped() {
        let bytes: &[u8] = b"fine\n<|endoftext|>\nse\xC3\xA9 bad\xFFbyte";
        let error = run(&[("a.txt", bytes)], Options::default()).error();
        assert!(error.contains("0xFF") && error.contains("a.txt:3:8"), "{error}");
        let how = |on_invalid| Options { on_invalid, ..Options::default() };
        let replaced = run(&[("a.txt", bytes)], how(OnInvalid::Replace));
        assert_eq!(replaced.texts(), ["fine", "seé bad\u{FFFD}byte"]);
        assert_eq!(replaced.total().changed.invalid_bytes_replaced, 1);
        let skipped = run(&[("a.txt", bytes)], how(OnInvalid::SkipDocument));
        assert_eq!((skipped.texts().len(), skipped.total().removed.invalid_encoding), (1, 1));
        let latin = Options { encoding: Encoding::Latin1, ..Options::default() };
        assert_eq!(run(&[("a.txt", b"caf\xE9")], latin).texts(), ["café"]);
        let error = run(&[("a.csv", b"n,text\n1,ok\n2,b\xFFd\n")], Options::default()).error();
        assert!(error.contains("a.csv:3:4"), "{error}");
        let error =
            run(&[("a.jsonl", b"{\"text\":\"ok\"}\n{\"text\":\"\xFF\"}\n")], Options::default()).error();
        assert!(error.contains("a.jsonl:2:10"), "{error}");
    }

    #[test]
    fn bad_rows_are_located_or_skipped() {
        let json = b"{\"text\": \"one\"}\n{\"text\": broken}\n{\"txt\": \"x\"}\n{\"text\": 5}\n[]\n{\"text\": \"two\"}\n";
        let error = |from: usize| {
            let lines: Vec<&[u8]> = json.split_inclusive(|b| *b == b'\n').collect();
            run(&[("a.jsonl", &[lines[0], lines[from]].concat())], Options::default()).error()
        };
        assert!(error(1).contains("a.jsonl:2:10"), "{}", error(1));
        assert!(
            error(2).contains("no field `text`") && error(2).contains("did you mean `txt`"),
            "{}",
            error(2)
        );
        assert!(error(3).contains("the number 5") && error(3).contains("a.jsonl:2:2"), "{}", error(3));
        assert!(error(4).contains("found a list") || error(4).contains("array"), "{}", error(4));
        let ran = run(&[("a.jsonl", json)], skipping());
        assert_eq!(ran.texts(), ["one", "two"]);
        let causes: Vec<(&str, u64)> = ran.total().removed.bad_rows.iter().map(|(c, n)| (*c, *n)).collect();
        assert_eq!(causes, [("broken_json", 1), ("missing_field", 1), ("not_an_object", 1), ("not_text", 1)]);
    }

    #[test]
    fn csv_and_parquet_mistakes_are_named() {
        let csv = b"id,text\n1,one\n2,two,three\n4,four\n";
        let error = run(&[("a.csv", csv)], Options::default()).error();
        assert!(error.contains("a.csv:3:1") && error.contains("3 fields, the header has 2"), "{error}");
        assert_eq!(run(&[("a.csv", csv)], skipping()).texts(), ["one", "four"]);
        let error = run(&[("a.csv", b"id,texts\n1,one\n")], Options::default()).error();
        assert!(error.contains("no column `text`") && error.contains("did you mean `texts`"), "{error}");
        assert_eq!(run(&[("a.tsv", b"id\ttext\n1\ta, b\n")], Options::default()).texts(), ["a, b"]);
        let error = run(&[("a.parquet", b"not parquet at all")], Options::default()).error();
        assert!(error.contains("cannot read `a.parquet` as Parquet"), "{error}");
        let cut = parquet(&[Some("x")]);
        let error = run(&[("a.parquet", &cut[..cut.len() - 9])], Options::default()).error();
        assert!(error.contains("a.parquet"), "{error}");
        let nulls = parquet(&[Some("x"), None]);
        let error = run(&[("a.parquet", &nulls)], Options::default()).error();
        assert!(error.contains("row 2") && error.contains("null"), "{error}");
        assert_eq!(run(&[("a.parquet", &nulls)], skipping()).texts(), ["x"]);
    }

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_other_text_never_a_panic() {
        let whole = parquet(&[Some("a text"), Some("another text")]);
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            let ran = run(&[("a.parquet", &damaged)], Options::default());
            assert!(ran.result.is_ok() || ran.error().contains("a.parquet"), "byte {at}: {}", ran.error());
        }
    }

    #[test]
    fn nothing_left_says_what_took_it() {
        let error = run(&[("a.txt", b"")], Options::default()).error();
        assert!(error.contains("no document in 1 file"), "{error}");
        let options = Options { min_chars: 5, ..Options::default() };
        let error = run(&[("a.txt", b"one<|endoftext|>two")], options).error();
        assert!(error.contains("2 shorter than `min_chars`"), "{error}");
        let error = run(&[("a.bin", b"text")], Options::default()).error();
        assert!(error.contains("`a.bin` does not tell its format"), "{error}");
    }

    #[test]
    fn a_document_that_is_too_long_is_refused_with_a_way_out() {
        let options = Options { max_document_bytes: 10, ..skipping() };
        let error = run(&[("a.txt", b"short\n<|endoftext|>\nmuch longer than ten")], options.clone()).error();
        assert!(error.contains("a.txt:2:14") && error.contains("`max_document_bytes`"), "{error}");
        let error = run(&[("a.jsonl", b"{\"text\": \"long\"}")], options).error();
        assert!(error.contains("a.jsonl:1:1") && error.contains("longer than 10 B"), "{error}");
    }

    #[test]
    fn long_documents_are_cut_and_their_ranges_are_exact() {
        let text = "First  paragraph.\r\n\r\nSecond one — longer.\r\n\r\nThird.";
        let options = Options { split_chars: Some(30), ..Options::default() };
        let ran = run(&[("a.txt", text.as_bytes())], options);
        assert_eq!(ran.texts(), ["First  paragraph.", "Second one — longer.\n\nThird."]);
        for document in ran.documents() {
            let raw = &text[document.start as usize..document.end as usize];
            assert_eq!(raw.replace("\r\n", "\n"), document.text);
        }
        assert_eq!((ran.total().documents_kept, ran.total().documents_split), (1, 1));
    }

    #[test]
    fn duplicates_are_removed_and_reported() {
        let word =
            |i: u32| format!("word{}{} ", (b'a' + (i / 26) as u8) as char, (b'a' + (i % 26) as u8) as char);
        let story: String = (0..200).map(word).collect();
        let near = story.replace(&word(100), "changed ");
        let text = [story.as_str(), "other", &near, &story].join("\n<|endoftext|>\n");
        let ran = run(&[("a.txt", text.as_bytes())], Options::default());
        assert_eq!(ran.texts().len(), 2);
        let removed = &ran.total().removed;
        assert_eq!((removed.exact_duplicates, removed.near_duplicates), (1, 1));
        let pairs = fs::open(&ran.dir.path().join("out/duplicates.parquet")).unwrap();
        let batches = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(pairs, 100).unwrap();
        let batch = batches.map(|b| b.unwrap()).next().unwrap();
        let column =
            |name| arrow::array::AsArray::as_string::<i32>(batch.column_by_name(name).unwrap()).clone();
        assert_eq!((column("kind").value(0), column("kind").value(1)), ("near", "exact"));
        assert_eq!(column("id").value(1), ran.documents()[0].id);
        assert_eq!(column("kept_id").value(0), ran.documents()[0].id);
        let keep = Options { exact_duplicates: false, near_duplicates: None, ..Options::default() };
        assert_eq!(run(&[("a.txt", text.as_bytes())], keep).texts().len(), 4);
    }

    /// What `tracing` was told while `work` ran on this thread.
    fn warnings_of(work: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Told(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Told {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let told = Told::default();
        let writer = told.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = told.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn bad_metadata_costs_no_text_and_every_key_that_is_not_read_is_counted() {
        let json = b"{\"text\":\"one is fine\",\"who\":\"\\ud83d\",\"id\":1}\n{\"text\":\"two is fine\",\"score\":NaN,\"tags\":[\"a\"]}\n\
                     {\"text\":\"three is fine\",\"tags\":[]}\n";
        let csv = b"id,text,title\n1,four,A\n2,five,\n";
        let parquet = parquet(&[Some("six")]);
        let files: [(&str, &[u8]); 3] = [("a.jsonl", json), ("b.csv", csv), ("c.parquet", &parquet)];
        let told = warnings_of(|| {
            let ran = run(&files, Options::default());
            assert_eq!((ran.texts().len(), ran.total().rows_in, ran.total().bad_metadata), (6, 6, 2));
            let keys = |i: usize| serde_json::to_string(&ran.report().files[i].ignored_keys).unwrap();
            assert_eq!([keys(0), keys(1), keys(2)], ["{\"tags\":1}", "{\"title\":1}", "{}"]);
        });
        assert_eq!(told.matches("is not valid JSON").count(), 1, "once a file: {told}");
        assert!(told.contains("`who`") && told.contains("`a.jsonl`, row 1"), "{told}");
        assert!(told.contains("`tags` (1 rows)") && told.contains("`title`"), "{told}");
        let quiet = Options { ignore: vec!["tags".into(), "title".into()], ..Options::default() };
        let told = warnings_of(|| {
            let ran = run(&files, quiet);
            assert_eq!(ran.report().files[0].ignored_keys.rows()["tags"], 1, "counted all the same");
        });
        assert!(!told.contains("keys that are not read"), "{told}");
    }

    #[test]
    fn columns_of_parquet_that_are_not_read_are_counted_from_statistics() {
        use arrow::array::{ArrayRef, Int64Array, StringArray};
        let column = |name: &str, column: ArrayRef| (name.to_string(), column);
        let columns = [
            column("text", Arc::new(StringArray::from(vec!["one", "two", "three"]))),
            column("score", Arc::new(Int64Array::from(vec![Some(1), None, None]))),
        ];
        let ran = run(&[("a.parquet", &parquet_of(&columns))], Options::default());
        assert_eq!(ran.report().files[0].ignored_keys.rows()["score"], 1);
    }

    fn parquet_of(columns: &[(String, arrow::array::ArrayRef)]) -> Vec<u8> {
        let field = |(name, column): &(String, arrow::array::ArrayRef)| {
            arrow::datatypes::Field::new(name, column.data_type().clone(), true)
        };
        let schema = Arc::new(arrow::datatypes::Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let arrays = columns.iter().map(|(_, column)| column.clone()).collect();
        let batch = arrow::array::RecordBatch::try_new(schema.clone(), arrays).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn names_that_stand_twice_are_refused_in_every_format() {
        use arrow::array::{ArrayRef, StringArray};
        let column = |text: &str| ("text".to_string(), Arc::new(StringArray::from(vec![text])) as ArrayRef);
        let parquet = parquet_of(&[column("first"), column("second")]);
        let files: [(&str, &[u8]); 4] = [
            ("a.jsonl", b"{\"text\":\"first\",\"text\":\"second\"}\n"),
            ("b.jsonl", b"{\"text\":\"x\",\"meta\":{\"text\":1,\"text\":2}}\n"),
            ("c.csv", b"text,id,text\nfirst,1,second\n"),
            ("d.parquet", &parquet),
        ];
        for (name, bytes) in files {
            let error = run(&[(name, bytes)], Options::default()).error();
            assert!(error.contains("`text`") && (error.contains("twice") || error.contains("two columns")));
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn columns_that_hold_no_text_are_named_with_their_type() {
        use arrow::array::{ArrayRef, BinaryArray, Float16Array, Int64Array};
        let half = 0x3C00u16.to_le_bytes().to_vec(); // 1.0
        let data = arrow::array::ArrayData::builder(arrow::datatypes::DataType::Float16)
            .len(1)
            .add_buffer(arrow::buffer::Buffer::from_vec(half))
            .build()
            .unwrap();
        let columns: [(&str, ArrayRef); 3] = [
            ("Float16", Arc::new(Float16Array::from(data))),
            ("Int64", Arc::new(Int64Array::from(vec![1]))),
            ("Binary", Arc::new(BinaryArray::from(vec![&b"x"[..]]))),
        ];
        for (ty, column) in columns {
            let bytes = parquet_of(&[("text".to_string(), column)]);
            let error = run(&[("a.parquet", &bytes)], Options::default()).error();
            assert!(error.contains(&format!("holds {ty}, expected text")), "{error}");
        }
    }

    #[test]
    fn every_encoding_is_read_in_every_format_of_text() {
        let wide = |text: &str| -> Vec<u8> {
            std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect()
        };
        let files: [(&str, &[u8]); 4] = [
            ("a.txt", &wide("Guten Abend 🙂\r\n")),
            ("b.jsonl", &wide("{\"text\": \"Zweiter\"}\n{\"text\": \"Dritter – ja\"}\n")),
            ("c.csv", &wide("id,text\n1,\"Vierter, ja\"\n")),
            ("d.md", b"\xEF\xBB\xBF---\ntitle: x\n---\nF\xC3\xBCnfter"),
        ];
        let ran = run(&files, Options::default());
        let expected = ["Guten Abend 🙂", "Zweiter", "Dritter – ja", "Vierter, ja", "Fünfter"];
        assert_eq!(ran.texts(), expected);
        let encodings: Vec<&str> = ran.report().files.iter().map(|f| f.encoding.name()).collect();
        assert_eq!(encodings, ["utf-16be", "utf-16be", "utf-16be", "utf-8"]);
        assert_eq!(ran.documents()[1].start, 0, "offsets are of the UTF-8 form");
        let left: Vec<_> =
            std::fs::read_dir(ran.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), files.len() + 1, "the copies are gone: {left:?}");
        let windows = Options { encoding: Encoding::Windows1252, ..Options::default() };
        assert_eq!(run(&[("a.txt", b"premi\xE8re \x93ligne\x94")], windows).texts(), ["première “ligne”"]);
    }

    #[test]
    fn halves_of_pairs_and_nul_bytes_follow_on_invalid() {
        let mut lone: Vec<u8> =
            "\u{FEFF}fine\n<|endoftext|>\nhalf ".encode_utf16().flat_map(u16::to_le_bytes).collect();
        lone.extend([0x3D, 0xD8]);
        let error = run(&[("a.txt", &lone)], Options::default()).error();
        assert!(error.contains("not valid UTF-16LE") && error.contains("a.txt:3:6"), "{error}");
        let nul: &[u8] = b"fine text\n<|endoftext|>\nsome\0text";
        let error = run(&[("a.txt", nul)], Options::default()).error();
        assert!(error.contains("NUL byte") && error.contains("a.txt:3:5"), "{error}");
        for bytes in [&lone, nul] {
            let how = |on_invalid| Options { on_invalid, ..Options::default() };
            let replaced = run(&[("a.txt", bytes)], how(OnInvalid::Replace));
            assert!(replaced.texts()[1].contains('\u{FFFD}'));
            assert_eq!(replaced.total().changed.invalid_bytes_replaced, 1);
            let skipped = run(&[("a.txt", bytes)], how(OnInvalid::SkipDocument));
            assert_eq!((skipped.texts().len(), skipped.total().removed.invalid_encoding), (1, 1));
        }
        let error = run(&[("a.csv", b"a,text\n\"x\",\"q \"\"\0\"\n")], Options::default()).error();
        assert!(error.contains("a.csv:2:10"), "{error}");
        let error = run(&[("a.csv", b"a,text\n\xFF,\"ok\xFE\"\n")], Options::default()).error();
        assert!(error.contains("0xFE") && error.contains("a.csv:2:6"), "{error}");
    }

    #[test]
    fn an_unclosed_quote_is_counted_and_what_follows_is_read() {
        let mut csv = "text,id\nfirst,1\n\"never closed,2\n".to_string();
        csv.extend((3..=40).map(|i| format!("line {i} is here,{i}\n")));
        let error = run(&[("a.csv", csv.as_bytes())], Options::default()).error();
        assert!(error.contains("a.csv:3:1") && error.contains("lines 3 to 41"), "{error}");
        let ran = run(&[("a.csv", csv.as_bytes())], skipping());
        let counts = &ran.report().files[0].counts;
        assert_eq!(
            (counts.rows_in, counts.documents_kept, counts.removed.bad_rows["unclosed_quote"]),
            (40, 39, 1)
        );
    }

    #[test]
    fn the_caret_stands_under_the_key_and_signs_make_four_documents() {
        let json = "{\"a\": \"text\", \"ß\": 1, \"text\": 5}\n";
        let error = run(&[("a.jsonl", json.as_bytes())], Options::default()).error();
        assert!(error.contains("a.jsonl:1:23"), "{error}");
        let latin = Options { encoding: Encoding::Latin1, ..Options::default() };
        let error = run(&[("a.jsonl", b"{\"a\": \"\xDF\xDF\", \"text\": 5}\n")], latin).error();
        assert!(error.contains("a.jsonl:1:13"), "{error}");
        let around = "so it went on and nobody knew why the old clock had stopped ".repeat(6);
        for around in ["", &around] {
            let signs = [
                "7 + 2 = 9 and 8 > 3.",
                "7 - 2 = 9 and 8 < 3.",
                "I liked the soup 🙂",
                "I liked the soup 🙁",
            ];
            let text = signs.map(|sign| format!("{around}{sign} {around}")).join("<|endoftext|>");
            assert_eq!(run(&[("a.txt", text.as_bytes())], Options::default()).texts().len(), 4);
        }
    }

    #[test]
    fn documents_beyond_the_first_of_a_row_are_counted() {
        let book = |n: u32| {
            format!(
                "*** START OF THE PROJECT GUTENBERG EBOOK {n} ***\nBook {n}\n*** END OF THE PROJECT GUTENBERG EBOOK {n} ***\n"
            )
        };
        let text = format!("{}{}<|endoftext|>Another.", book(1), book(2));
        let ran = run(&[("a.txt", text.as_bytes())], Options::default());
        let counts = ran.total();
        assert_eq!((counts.rows_in, counts.further_documents, counts.documents_in), (2, 1, 3));
    }

    #[test]
    fn headings_start_documents() {
        let options = Options { split_headings: Some(2), ..Options::default() };
        let ran = run(&[("a.txt", b"## A\n\none\n\n## B\n\ntwo\n")], options);
        assert_eq!(ran.texts(), ["## A\n\none", "## B\n\ntwo"]);
        assert_eq!(ran.documents()[1].start, 11);
    }

    #[test]
    fn it_stops_when_asked() {
        struct Stop;
        impl Monitor for Stop {
            fn progress(&self, _: crate::base::Progress) {}
            fn measure(&self, _: &str, _: f64, _: &str) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, b"text").unwrap();
        let files = [InputFile::new(&path).unwrap()];
        let error =
            ingest(&files, &Options::default(), &dir.path().join("out"), dir.path(), &Stop).unwrap_err();
        assert!(error.is_cancelled());
    }

    /// The real corpus, where it is there: nothing is lost but what the report says.
    #[test]
    fn the_childrens_books_are_ingested() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/corpus_childrens_books/corpus.txt");
        let Ok(file) = InputFile::new(Path::new(path)) else {
            println!("skipped: {path} is not there");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let report = ingest(&[file], &Options::default(), dir.path(), dir.path(), &Quiet).unwrap().total;
        assert_eq!((report.documents_in, report.documents_kept, report.documents_split), (45, 45, 45));
        assert!(report.documents_out > 700 && report.bytes_out > 15_000_000, "{report:?}");
    }
}
