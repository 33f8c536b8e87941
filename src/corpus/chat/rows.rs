//! The rows of a file of conversations in any format: plain text as it is, all others as JSON.

use std::path::Path;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::json::LineDelimitedWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use serde_json::{Map, Value};

use super::check::Roles;
use super::text::{Blocks, Skipped};
use super::{FormatChoice, Options};
use crate::base::{Error, Result, suggest};
use crate::corpus::csv::CsvRows;
use crate::corpus::decode::{OnInvalid, decode};
use crate::corpus::input::{self, BadRecord, InputFile, Next, Record};
use crate::corpus::json::JsonRows;
use crate::corpus::parquet_io::{self, guarded, unreadable};
use crate::corpus::transcode::Readable;

/// The rows of one file.
pub enum Rows<'a> {
    Text(Blocks),
    Json(JsonRows),
    Csv(CsvTexts<'a>),
    Parquet(ParquetRows),
}

/// How an offset in the text of a row maps to its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// To the byte of the file, through the decoding's map.
    Exact,
    /// To the start of the record, since the text was made from its fields.
    Record,
    /// None: a row of Parquet.
    Nowhere,
}

const READABLE: [&str; 9] =
    [".jsonl", ".ndjson", ".json", ".txt", ".text", ".csv", ".tsv", ".parquet", ".pq"];

/// The reader of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Json,
    Csv,
    Parquet,
}

/// The reader for `file`.
///
/// # Errors
/// When neither the options nor the name of the file determine it.
pub fn kind_of(file: &InputFile, options: &Options) -> Result<Kind> {
    match (options.format, file.ending().as_str()) {
        (FormatChoice::Text, _) | (FormatChoice::Auto, "txt" | "text") => Ok(Kind::Text),
        (_, "csv" | "tsv") => Ok(Kind::Csv),
        (_, "parquet" | "pq") => Ok(Kind::Parquet),
        (FormatChoice::Auto, "json" | "jsonl" | "ndjson") => Ok(Kind::Json),
        (FormatChoice::Auto, ending) => Err(unreadable_ending(file, ending)),
        _ => Ok(Kind::Json),
    }
}

impl<'a> Rows<'a> {
    /// # Errors
    /// When the file cannot be read or its name determines no format.
    pub fn open(source: &'a Readable, options: &'a Options, roles: &Roles) -> Result<Self> {
        let (file, limit) = (&source.file, options.max_row_bytes);
        Ok(match kind_of(file, options)? {
            Kind::Text => {
                Rows::Text(Blocks::open(file, roles, options.text_boundary, source.encoding, limit)?)
            }
            Kind::Json => Rows::Json(JsonRows::open(file, limit)?),
            Kind::Csv => Rows::Csv(CsvTexts::open(source, options)?),
            Kind::Parquet => Rows::Parquet(ParquetRows::open(file, options)?),
        })
    }

    pub fn places(&self) -> Places {
        match self {
            Rows::Text(_) | Rows::Json(_) => Places::Exact,
            Rows::Csv(_) => Places::Record,
            Rows::Parquet(_) => Places::Nowhere,
        }
    }

    /// Lines of plain text that belong to no conversation.
    pub fn skipped(&self) -> Skipped {
        match self {
            Rows::Text(blocks) => blocks.skipped(),
            _ => Skipped::default(),
        }
    }

    /// Bytes of CSV that were not in the encoding and were replaced.
    pub fn replaced(&self) -> u64 {
        match self {
            Rows::Csv(rows) => rows.replaced,
            _ => 0,
        }
    }

    fn next(&mut self) -> Next {
        match self {
            Rows::Text(blocks) => blocks.next(),
            Rows::Json(rows) => rows.next(),
            Rows::Csv(rows) => Ok(rows.next()),
            Rows::Parquet(rows) => rows.next(),
        }
    }

    /// About 4 MiB of rows; empty at the end. A fatal error ends a batch.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn batch(&mut self) -> Result<Vec<Result<Record, BadRecord>>> {
        input::batch(4 << 20, || self.next())
    }
}

fn unreadable_ending(file: &InputFile, ending: &str) -> Error {
    let error = match ending {
        "yml" | "yaml" => {
            Error::input(format!("`{}` is YAML, which is not read as conversations", file.name))
                .help("write it as JSONL, one conversation a line")
        }
        "md" | "markdown" => {
            Error::input(format!("`{}` is Markdown: a document, not a conversation", file.name))
                .help("end the name with `.txt` if it holds turns such as `<user>: … <eos>`")
        }
        "gz" | "zst" | "xz" | "bz2" | "zip" => {
            return Error::input(format!("`{}` is compressed", file.name)).help("unpack it first");
        }
        _ => Error::input(format!("the name `{}` does not tell its format", file.name)),
    };
    let readable: Vec<String> = READABLE.iter().map(|ending| format!("`{ending}`")).collect();
    error
        .help(format!("files that end with {} are read", readable.join(", ")))
        .help("or set the param `format`, if that is what it holds")
}

/// Records of CSV as objects of texts.
pub struct CsvTexts<'a> {
    rows: CsvRows,
    source: &'a Readable,
    options: &'a Options,
    replaced: u64,
}

impl<'a> CsvTexts<'a> {
    fn open(source: &'a Readable, options: &'a Options) -> Result<Self> {
        let usual = if source.file.ending() == "tsv" { '\t' } else { ',' };
        let delimiter = options.delimiter.unwrap_or(usual);
        let rows = CsvRows::open(&source.file, delimiter as u8, options.max_row_bytes)?;
        Ok(CsvTexts { rows, source, options, replaced: 0 })
    }

    fn next(&mut self) -> Option<Result<Record, BadRecord>> {
        let record = match self.rows.next()? {
            Ok(record) => record,
            Err(bad) => return Some(Err(bad)),
        };
        let mut object = Map::new();
        for (name, field) in self.rows.headers().iter().zip(self.rows.fields()) {
            let replace = self.options.on_invalid == OnInvalid::Replace;
            match decode(field.to_vec(), self.source.encoding, replace) {
                Ok(decoded) => {
                    self.replaced += decoded.replaced;
                    object.insert(name.clone(), decoded.text.into());
                }
                Err(_) => return Some(Err(self.invalid(&record))),
            }
        }
        Some(Ok(Record { bytes: Value::from(object).to_string().into_bytes(), ..record }))
    }

    /// The error of a record that is not in the encoding, at the byte of the file.
    fn invalid(&self, record: &Record) -> BadRecord {
        let raw = self.source.file.read_range(record.start, record.end).unwrap_or_default();
        let (at, byte) = match decode(raw, self.source.encoding, false) {
            Err(invalid) => (invalid.at, invalid.byte),
            Ok(_) => (0, 0),
        };
        self.options.invalid(&self.source.invalid(record.start + at as u64, byte), record.row)
    }
}

/// Rows of Parquet as JSON, with nested values.
pub struct ParquetRows {
    batches: ParquetRecordBatchReader,
    name: String,
    lines: std::vec::IntoIter<Vec<u8>>,
    row: u64,
    limit: u64,
}

/// Rows that are converted to JSON at once.
const BATCH_ROWS: usize = 64;

impl ParquetRows {
    fn open(file: &InputFile, options: &Options) -> Result<Self> {
        let name = Path::new(&file.name);
        let builder = parquet_io::open(file)?;
        let columns = text_columns(file, builder.schema(), &options.ignore)?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
        let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
        let batches = guarded(name, || builder.build().map_err(|e| unreadable(name, &e)))?;
        let lines = Vec::new().into_iter();
        Ok(ParquetRows { batches, name: file.name.clone(), lines, row: 0, limit: options.max_row_bytes })
    }

    fn next(&mut self) -> Next {
        loop {
            if let Some(line) = self.lines.next() {
                self.row += 1;
                return Ok(Some(self.record(line)));
            }
            let name = Path::new(&self.name);
            let batches = &mut self.batches;
            let lines = guarded(name, || {
                let Some(batch) = batches.next() else { return Ok(None) };
                let mut writer = LineDelimitedWriter::new(Vec::new());
                let written = batch.and_then(|batch| writer.write(&batch)).and_then(|()| writer.finish());
                written.map_err(|e| unreadable(name, &e))?;
                Ok(Some(writer.into_inner()))
            })?;
            let Some(lines) = lines else { return Ok(None) };
            // This writer's JSON has no line breaks.
            let lines: Vec<Vec<u8>> =
                lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
            self.lines = lines.into_iter();
        }
    }

    fn record(&self, bytes: Vec<u8>) -> Result<Record, BadRecord> {
        let row = self.row;
        if bytes.len() as u64 > self.limit {
            let message = format!("row {row} holds {} B, more than {} B", bytes.len(), self.limit);
            return Err(BadRecord::new("too_long", None, message).help("raise `max_row_bytes`").fatal());
        }
        Ok(Record { start: row - 1, end: row, row, bytes })
    }
}

/// The columns that are read: all but those that `ignore` names, of types that JSON can represent.
fn text_columns(file: &InputFile, schema: &Schema, ignore: &[String]) -> Result<Vec<usize>> {
    let mut columns = Vec::new();
    for (i, field) in schema.fields().iter().enumerate() {
        if ignore.contains(field.name()) {
            continue;
        }
        if let Some(ty) = binary_type(field) {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            return Err(Error::input(format!(
                "the column `{}` of `{}` holds {ty}, which is no text",
                field.name(),
                file.name
            ))
            .help("name it in `ignore` if it may be left out, or write it as a column of text")
            .help(format!("its columns are {}", suggest::list(names))));
        }
        columns.push(i);
    }
    Ok(columns)
}

/// The binary type nested in a column, if there is one.
fn binary_type(field: &Field) -> Option<&DataType> {
    match field.data_type() {
        ty @ (DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)) => Some(ty),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            binary_type(item)
        }
        DataType::Struct(fields) => fields.iter().find_map(|field| binary_type(field)),
        DataType::Map(entries, _) => binary_type(entries),
        _ => None,
    }
}
