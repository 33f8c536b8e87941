//! Files of text, Markdown, JSONL, CSV or Parquet to a `documents` artifact: read as a stream, cleaned,
//! filtered, freed of duplicates, cut to length, and counted.
//!
//! Memory holds one batch of records (8 MiB, or one document when that is longer) and, of the
//! documents kept so far, about 1 KiB each, 0.1 KiB without near-duplicates (see
//! [`super::duplicates::Seen`]); a corpus may be larger than memory.
//! Records are prepared on all threads of the rayon pool and judged in the order of the files, so the
//! result does not depend on the number of threads.
//!
//! No language detection, no quality classifier, no paragraph-level deduplication.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::boilerplate;
use super::clean::{Changes, Cleaning, clean};
use super::decode::{Decoded, Encoding, Invalid, OnInvalid, decode};
use super::document::{Document, DocumentWriter};
use super::duplicates::{DuplicateWriter, Likeness, Origin, Seen};
use super::input::{Bad, InputFile, Record};
use super::json::{describe, parse_json};
use super::minhash::{MinHasher, Signature};
use super::read::{Format, FormatChoice, Reader, Reading};
use super::split;
use crate::base::{Digest, Error, Monitor, Result, fs, suggest, units};

/// What was read, changed and removed, beside the documents.
pub const REPORT_NAME: &str = "report.json";

/// What `<|endoftext|>` is to a text is what `separator: auto` looks for.
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
    /// `utf-8`, or `latin-1` (read as Windows-1252). Parquet is always UTF-8.
    pub encoding: Encoding,
    /// What happens to bytes that are not in the encoding: `error`, `replace` (by U+FFFD) or
    /// `skip_document`.
    pub on_invalid: OnInvalid,
    /// What happens to broken JSON lines, missing or non-text fields, and CSV records of another
    /// length: `error` or `skip`. Skipped rows are counted by cause.
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
    /// Leave out documents that resemble an earlier one. `null`: off.
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
    /// The stage fails and names the row.
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
    /// Words in a shingle.
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

impl Options {
    /// What is out of range: the param (with dots into nested ones) and what is wrong with it.
    pub fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, param, message: String| {
            if !ok {
                found.push((param, message));
            }
        };
        check(!self.text_field.is_empty(), "text_field", "`text_field` is empty".into());
        check(
            self.separator.as_deref() != Some(""),
            "separator",
            "`separator` is empty: write `null` to take each file as one document".into(),
        );
        check(
            self.delimiter.is_none_or(|c| c.is_ascii() && !matches!(c, '"' | '\n' | '\r')),
            "delimiter",
            format!("`delimiter` must be one ASCII character, found {:?}", self.delimiter.unwrap_or(' ')),
        );
        check(
            self.max_document_bytes > 0,
            "max_document_bytes",
            "`max_document_bytes` must be positive".into(),
        );
        check(
            self.max_chars.is_none_or(|most| most >= self.min_chars),
            "max_chars",
            format!("`max_chars` is less than `min_chars` ({}): nothing would be left", self.min_chars),
        );
        check(
            self.split_headings.is_none_or(|level| (1..=6).contains(&level)),
            "split_headings",
            format!("`split_headings` must be 1 to 6, found {}", self.split_headings.unwrap_or(0)),
        );
        check(self.split_chars != Some(0), "split_chars", "`split_chars` must be positive, or `null`".into());
        if let Some(near) = &self.near_duplicates {
            check(
                near.threshold > 0.0 && near.threshold <= 1.0,
                "near_duplicates.threshold",
                format!("`threshold` must be above 0 and at most 1, found {}", near.threshold),
            );
            check(
                near.shingle_words > 0,
                "near_duplicates.shingle_words",
                "`shingle_words` must be positive".into(),
            );
            check(
                near.bands > 0 && near.permutations > 0 && near.permutations.is_multiple_of(near.bands),
                "near_duplicates.bands",
                format!("`bands` must divide `permutations` ({}), found {}", near.permutations, near.bands),
            );
        }
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

/// What was read, changed and removed. `documents_in` = `documents_kept` + all of `removed`; the rows of
/// the artifact are `documents_out`, which counts the parts of split documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub characters_out: u64,
    pub documents_in: u64,
    pub documents_kept: u64,
    /// Kept documents that were cut into parts.
    pub documents_split: u64,
    pub documents_out: u64,
    pub removed: Removed,
    pub changed: Changes,
    pub boilerplate: Boilerplate,
    pub files: Vec<FileReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    pub name: String,
    pub format: Format,
    pub bytes: u64,
    pub documents_in: u64,
    pub documents_out: u64,
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
/// into the folder `out`.
///
/// # Errors
/// A file that cannot be read or whose format is not known; what `options` say is an error; nothing
/// left at the end. [`Error::cancelled`] when the monitor says so.
pub fn ingest(files: &[InputFile], options: &Options, out: &Path, monitor: &dyn Monitor) -> Result<Report> {
    if let Some((param, message)) = options.mistakes().into_iter().next() {
        return Err(Error::usage(format!("{param}: {message}")));
    }
    let mut ingestion = Ingestion::new(files, options, out, monitor)?;
    for number in 0..files.len() {
        ingestion.file(number)?;
    }
    ingestion.finish(out)
}

struct Ingestion<'a> {
    files: &'a [InputFile],
    options: &'a Options,
    monitor: &'a dyn Monitor,
    hasher: Option<MinHasher>,
    seen: Seen,
    documents: DocumentWriter,
    duplicates: DuplicateWriter,
    report: Report,
    warned: bool,
}

/// Raw bytes that are prepared side by side.
const BATCH_BYTES: usize = 8 << 20;

impl<'a> Ingestion<'a> {
    fn new(
        files: &'a [InputFile],
        options: &'a Options,
        out: &Path,
        monitor: &'a dyn Monitor,
    ) -> Result<Self> {
        let near = options.near_duplicates.as_ref();
        Ok(Ingestion {
            files,
            options,
            monitor,
            hasher: near.map(|near| MinHasher::new(near.permutations, near.bands, near.shingle_words)),
            seen: Seen::new(options.exact_duplicates, near.map(|near| near.threshold)),
            documents: DocumentWriter::create(out)?,
            duplicates: DuplicateWriter::create(out)?,
            report: Report::default(),
            warned: false,
        })
    }

    fn file(&mut self, number: usize) -> Result<()> {
        let file = &self.files[number];
        let format = self.options.format.of(file)?;
        let mut reader = Reader::open(file, format, &self.options.reading())?;
        let before = (self.report.documents_in, self.report.documents_out);
        self.warned = false;
        let mut read = 0;
        loop {
            self.step(if format == Format::Parquet { 0 } else { read })?;
            let batch = next_batch(&mut reader)?;
            let Some(last) = batch.last() else { break };
            read = last.as_ref().map_or(read, |record| record.end);
            let preparer = Preparer { options: self.options, hasher: self.hasher.as_ref(), file, format };
            let prepared: Vec<_> = batch
                .into_par_iter()
                .map(|record| record.and_then(|record| preparer.prepare(record)))
                .collect();
            for item in prepared {
                match item {
                    Ok(prepared) => self.take(number, prepared)?,
                    Err(bad) => self.bad_row(file, bad)?,
                }
            }
        }
        if self.report.documents_in == before.0 {
            tracing::warn!("`{}` holds no document", file.name);
        }
        self.report.bytes_in += file.size;
        self.report.files.push(FileReport {
            name: file.name.clone(),
            format,
            bytes: file.size,
            documents_in: self.report.documents_in - before.0,
            documents_out: self.report.documents_out - before.1,
        });
        Ok(())
    }

    fn step(&self, read: u64) -> Result<()> {
        let total = self.files.iter().map(|f| f.size).sum();
        self.monitor.step("reading", self.report.bytes_in + read, Some(total), "B")
    }

    fn bad_row(&mut self, file: &InputFile, bad: Bad) -> Result<()> {
        if bad.fatal || self.options.on_bad_row == OnBadRow::Error {
            let skippable = !bad.fatal;
            let error = bad.into_error(file);
            return Err(match skippable {
                true => error.help("or set `on_bad_row: skip` to leave such rows out and count them"),
                false => error,
            });
        }
        self.report.documents_in += 1;
        *self.report.removed.bad_rows.entry(bad.cause).or_default() += 1;
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "a bad row is skipped (further ones in this file are only counted): {}",
                bad.into_error(file)
            );
        }
        Ok(())
    }

    fn take(&mut self, number: usize, prepared: Prepared) -> Result<()> {
        self.monitor.check()?;
        self.report += prepared.tally;
        for section in prepared.sections {
            self.section(number, section)?;
        }
        Ok(())
    }

    fn section(&mut self, number: usize, section: Section) -> Result<()> {
        let Section { id, start, end, signature, pieces } = section;
        let origin = Origin { id, file: number as u32, start, end };
        if let Some(found) = self.seen.check(origin, signature.as_ref()) {
            match found.likeness {
                Likeness::Exact => self.report.removed.exact_duplicates += 1,
                Likeness::Near => self.report.removed.near_duplicates += 1,
            }
            let name = |file: u32| self.files[file as usize].name.as_str();
            return self.duplicates.push(&origin, name(origin.file), &found, name(found.kept.file));
        }
        self.report.documents_kept += 1;
        self.report.documents_split += u64::from(pieces.len() > 1);
        for document in pieces {
            self.report.documents_out += 1;
            self.report.bytes_out += document.text.len() as u64;
            self.report.characters_out += document.text.chars().count() as u64;
            self.documents.push(&document)?;
        }
        Ok(())
    }

    fn finish(self, out: &Path) -> Result<Report> {
        self.step(0)?;
        let report = self.report;
        if report.documents_out == 0 {
            return Err(nothing_left(&report));
        }
        self.documents.finish()?;
        self.duplicates.finish()?;
        write_report(out, &report)?;
        tracing::info!(
            "{} documents read, {} removed, {} written ({})",
            units::count(report.documents_in),
            units::count(report.removed.total()),
            units::count(report.documents_out),
            units::bytes(report.bytes_out)
        );
        Ok(report)
    }
}

/// `report.json`, for people and programs: stable order, a line break at the end.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write_report(out: &Path, report: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::bug(format!("a report does not fit in JSON: {e}")))?;
    json.push(b'\n');
    fs::write(&out.join(REPORT_NAME), &json)
}

fn nothing_left(report: &Report) -> Error {
    let files = report.files.len();
    if report.documents_in == 0 {
        let message = format!("no document in {files} file(s) of {} B", report.bytes_in);
        return Error::input(message).help("are they the right files, and is any of them not empty?");
    }
    let reasons: Vec<String> = report
        .removed
        .by_reason()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    Error::input(format!("no document is left of {} read from {files} file(s)", report.documents_in))
        .cause(format!("removed were {}", reasons.join(", ")))
        .help("loosen the params named here, or look at the input")
}

/// Records of together about [`BATCH_BYTES`]; empty at the end of the file. A fatal defect ends a batch.
fn next_batch(reader: &mut Reader) -> Result<Vec<Result<Record, Bad>>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES {
        let Some(next) = reader.next()? else { break };
        bytes += next.as_ref().map_or(0, |record| record.bytes.len()) + size_of::<Record>();
        let fatal = next.as_ref().is_err_and(|bad| bad.fatal);
        batch.push(next);
        if fatal {
            break;
        }
    }
    Ok(batch)
}

/// What one record gave.
#[derive(Default)]
struct Prepared {
    sections: Vec<Section>,
    tally: Tally,
}

/// The counts of a record that do not depend on other records.
#[derive(Default)]
struct Tally {
    documents_in: u64,
    removed: Removed,
    changed: Changes,
    boilerplate: Boilerplate,
}

impl AddAssign<Tally> for Report {
    fn add_assign(&mut self, tally: Tally) {
        self.documents_in += tally.documents_in;
        self.removed.empty += tally.removed.empty;
        self.removed.shorter_than_min_chars += tally.removed.shorter_than_min_chars;
        self.removed.longer_than_max_chars += tally.removed.longer_than_max_chars;
        self.removed.invalid_encoding += tally.removed.invalid_encoding;
        self.changed += tally.changed;
        self.boilerplate.records += tally.boilerplate.records;
        self.boilerplate.bytes += tally.boilerplate.bytes;
    }
}

/// A document before duplicates are judged, with the parts that it will be written as.
struct Section {
    id: [u8; 16],
    start: u64,
    end: u64,
    signature: Option<Signature>,
    pieces: Vec<Document>,
}

/// Makes documents of records; knows nothing of other records.
struct Preparer<'a> {
    options: &'a Options,
    hasher: Option<&'a MinHasher>,
    file: &'a InputFile,
    format: Format,
}

impl Preparer<'_> {
    fn prepare(&self, mut record: Record) -> Result<Prepared, Bad> {
        let mut out = Prepared::default();
        let bytes = std::mem::take(&mut record.bytes);
        let Some(mut decoded) = self.decode(bytes, &record, &mut out.tally)? else {
            return Ok(out);
        };
        if self.format == Format::Jsonl {
            let text = self.field(&decoded.text, &record)?;
            decoded.text = text;
        }
        for range in self.ranges(&decoded.text, &record, &mut out.tally) {
            let section = self.section(&decoded, &record, range, &mut out.tally);
            out.sections.extend(section);
        }
        Ok(out)
    }

    /// `None` when the document is to be skipped.
    fn decode(&self, bytes: Vec<u8>, record: &Record, tally: &mut Tally) -> Result<Option<Decoded>, Bad> {
        let encoding = if self.format == Format::Parquet { Encoding::Utf8 } else { self.options.encoding };
        match decode(bytes, encoding, self.options.on_invalid == OnInvalid::Replace) {
            Ok(decoded) => {
                tally.changed.invalid_bytes_replaced += decoded.replaced;
                Ok(Some(decoded))
            }
            Err(_) if self.options.on_invalid == OnInvalid::SkipDocument => {
                tally.documents_in += 1;
                tally.removed.invalid_encoding += 1;
                Ok(None)
            }
            Err(invalid) => Err(self.invalid(invalid, record)),
        }
    }

    fn invalid(&self, invalid: Invalid, record: &Record) -> Bad {
        let at = match self.format {
            // What was decoded is a field; where its byte lies, the file must tell.
            Format::Csv => {
                let raw = self.file.read_range(record.start, record.end).unwrap_or_default();
                std::str::from_utf8(&raw).err().map_or(0, |e| e.valid_up_to())
            }
            _ => invalid.at,
        };
        let message = format!("the byte 0x{:02X} is not valid UTF-8", invalid.byte);
        Bad::new("invalid_encoding", record.start + at as u64, message)
            .help("set `encoding: latin-1` if that is what the file is, or")
            .help("set `on_invalid` to `replace` or `skip_document`")
            .fatal()
    }

    /// The text of a JSON object.
    fn field(&self, json: &str, record: &Record) -> Result<String, Bad> {
        let name = self.options.text_field.as_str();
        let value = parse_json(json, record.start)?;
        let Some(object) = value.as_object() else {
            let message = format!("expected an object with the field `{name}`, found {}", describe(&value));
            return Err(Bad::new("not_an_object", record.start, message));
        };
        match object.get(name) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(other) => {
                let at = json.find(&format!("\"{name}\"")).unwrap_or(0) as u64;
                let message = format!("the field `{name}` holds {}, expected a text", describe(other));
                Err(Bad::new("not_text", record.start + at, message))
            }
            None => {
                let names = object.keys().map(String::as_str);
                Err(Bad::new("missing_field", record.start, format!("this row has no field `{name}`"))
                    .suggest(suggest::closest(name, names.clone()))
                    .help(format!(
                        "it has {}; name the one with the text in `text_field`",
                        suggest::list(names)
                    )))
            }
        }
    }

    /// The ranges of `text` that are documents.
    fn ranges(&self, text: &str, record: &Record, tally: &mut Tally) -> Vec<Range<usize>> {
        let mut ranges = vec![0..text.len()];
        if self.options.strip_boilerplate {
            ranges = boilerplate::without_gutenberg(text);
            let opens_file = record.start == 0 || (record.start == 3 && text.starts_with("---"));
            if let Some(first) = ranges.first_mut().filter(|_| self.format == Format::Md && opens_file) {
                first.start = first.start.max(boilerplate::front_matter(text)).min(first.end);
            }
            let kept: usize = ranges.iter().map(Range::len).sum();
            tally.boilerplate.records += u64::from(kept < text.len());
            tally.boilerplate.bytes += (text.len() - kept) as u64;
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
        tally: &mut Tally,
    ) -> Option<Section> {
        tally.documents_in += 1;
        let range = self.trimmed(&decoded.text, range);
        let text = self.clean(&decoded.text[range.clone()], &mut tally.changed);
        let count = text.chars().count();
        let removed = &mut tally.removed;
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
            Document::new(text, self.file.name.as_str(), start, end)
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

    /// The bytes of the file behind a range of the text; the whole record where fields hide them.
    fn source_range(&self, decoded: &Decoded, record: &Record, range: &Range<usize>) -> (u64, u64) {
        match self.format {
            Format::Txt | Format::Md => {
                let at = |offset| record.start + decoded.source_offset(offset) as u64;
                (at(range.start), at(range.end))
            }
            _ => (record.start, record.end),
        }
    }

    /// `range` without line breaks at its ends and blanks behind its last line, where it is a range of
    /// the file and should be tight.
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
        let result = ingest(&inputs, &options, &dir.path().join("out"), &Quiet);
        if let Ok(report) = &result {
            assert_eq!(report.documents_in, report.documents_kept + report.removed.total(), "{report:?}");
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
            ("d.csv", 8, 25),
            ("e.parquet", 0, 1),
            ("e.parquet", 1, 2),
        ];
        assert_eq!(places, expected);
        let report = ran.report();
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
        assert_eq!(replaced.report().changed.invalid_bytes_replaced, 1);
        let skipped = run(&[("a.txt", bytes)], how(OnInvalid::SkipDocument));
        assert_eq!((skipped.texts().len(), skipped.report().removed.invalid_encoding), (1, 1));
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
        let causes: Vec<(&str, u64)> = ran.report().removed.bad_rows.iter().map(|(c, n)| (*c, *n)).collect();
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
        assert_eq!((ran.report().documents_kept, ran.report().documents_split), (1, 1));
    }

    #[test]
    fn duplicates_are_removed_and_reported() {
        let story: String = (0..200).map(|i| format!("word{i} ")).collect();
        let near = story.replace("word100", "changed");
        let text = [story.as_str(), "other", &near, &story].join("\n<|endoftext|>\n");
        let ran = run(&[("a.txt", text.as_bytes())], Options::default());
        assert_eq!(ran.texts().len(), 2);
        let removed = &ran.report().removed;
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
        let error = ingest(&files, &Options::default(), &dir.path().join("out"), &Stop).unwrap_err();
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
        let report = ingest(&[file], &Options::default(), dir.path(), &Quiet).unwrap();
        assert_eq!((report.documents_in, report.documents_kept, report.documents_split), (45, 45, 45));
        assert!(report.documents_out > 700 && report.bytes_out > 15_000_000, "{report:?}");
    }
}
