//! The formats that documents come in, each as a stream of records: text and Markdown cut at
//! separators, JSONL by line, CSV by record, Parquet by row.
//!
//! Records are not decoded or parsed here, which [`super::ingest`] does; only their bytes and places are
//! found.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::csv::{CsvRows, column_of};
use super::input::{BadRecord, InputFile, Next, Record, Window, too_long};
use super::json::{JsonRows, UnknownKeys};
use super::parquet_io::{self, filled_rows, guarded, unreadable};
use crate::base::{Error, Result, suggest};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Txt,
    Md,
    Jsonl,
    Csv,
    Parquet,
}

/// A format, or its detection from the extension of each file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatChoice {
    /// By the extension: `.txt`, `.text`, `.md`, `.markdown`, `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`,
    /// `.parquet`.
    #[default]
    Auto,
    Txt,
    Md,
    /// One JSON object a line, or one array of objects.
    Jsonl,
    Csv,
    Parquet,
}

const ENDINGS: [(&str, Format); 11] = [
    ("txt", Format::Txt),
    ("text", Format::Txt),
    ("md", Format::Md),
    ("markdown", Format::Md),
    ("jsonl", Format::Jsonl),
    ("ndjson", Format::Jsonl),
    ("json", Format::Jsonl),
    ("csv", Format::Csv),
    ("tsv", Format::Csv),
    ("parquet", Format::Parquet),
    ("pq", Format::Parquet),
];

impl FormatChoice {
    /// The format of `file`.
    ///
    /// # Errors
    /// When its extension is not known.
    pub fn of(self, file: &InputFile) -> Result<Format> {
        let ending = match self {
            FormatChoice::Txt => return Ok(Format::Txt),
            FormatChoice::Md => return Ok(Format::Md),
            FormatChoice::Jsonl => return Ok(Format::Jsonl),
            FormatChoice::Csv => return Ok(Format::Csv),
            FormatChoice::Parquet => return Ok(Format::Parquet),
            FormatChoice::Auto => file.ending(),
        };
        if let Some((_, format)) = ENDINGS.iter().find(|(known, _)| *known == ending) {
            return Ok(*format);
        }
        let error = Error::input(format!("the name `{}` does not tell its format", file.name));
        Err(match ending.as_str() {
            "gz" | "zst" | "xz" | "bz2" | "zip" => {
                error.help(format!("unpack it first: `.{ending}` is not read"))
            }
            _ => error.help(format!(
                "set the param `format` to one of {}, or end the name with one of {}",
                suggest::list(["txt", "md", "jsonl", "csv", "parquet"]),
                suggest::list(ENDINGS.iter().map(|(ending, _)| *ending))
            )),
        })
    }
}

/// The options of a reader.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Between the documents of a text; `None`: the whole file is one.
    pub separator: Option<String>,
    /// The field or column with the text.
    pub text_field: String,
    /// Between the fields of CSV; `None`: a tab for `.tsv`, else a comma.
    pub delimiter: Option<u8>,
    /// The longest record.
    pub max_bytes: u64,
}

/// The records of one file.
pub enum Reader {
    Text(Segments),
    Json(JsonRows),
    Csv(CsvTexts),
    Parquet(ParquetRows),
}

impl Reader {
    /// # Errors
    /// When the file cannot be read, is not of the format, or has no column for the text.
    pub fn open(file: &InputFile, format: Format, how: &Reading) -> Result<Self> {
        match format {
            Format::Txt | Format::Md => {
                Ok(Reader::Text(Segments::open(file, how.separator.as_deref(), how.max_bytes)?))
            }
            Format::Jsonl => Ok(Reader::Json(JsonRows::open(file, how.max_bytes)?)),
            Format::Csv => {
                let delimiter = how.delimiter.unwrap_or(if file.ending() == "tsv" { b'\t' } else { b',' });
                let rows = CsvRows::open(file, delimiter, how.max_bytes)?;
                let column = match rows.headers() {
                    [] => 0, // an empty file has no records either
                    headers => column_of(&how.text_field, headers, file)?,
                };
                let filled = vec![0; rows.headers().len()];
                Ok(Reader::Csv(CsvTexts { rows, delimiter, column, filled }))
            }
            Format::Parquet => Ok(Reader::Parquet(ParquetRows::open(file, &how.text_field, how.max_bytes)?)),
        }
    }

    /// The next record. After a fatal error there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next(&mut self) -> Next {
        match self {
            Reader::Text(segments) => segments.next(),
            Reader::Json(rows) => rows.next(),
            Reader::Parquet(rows) => rows.next(),
            Reader::Csv(texts) => Ok(texts.next()),
        }
    }

    /// Of CSV, the delimiter and the number of the column with the text.
    pub fn csv_column(&self) -> Option<(u8, usize)> {
        match self {
            Reader::Csv(texts) => Some((texts.delimiter, texts.column)),
            _ => None,
        }
    }

    /// Adds the columns other than the text's and `id`, with how many rows are not empty there; for JSON, the
    /// parser of the rows counts them.
    pub fn unread_columns(&self, unknown: &mut UnknownKeys) {
        let columns: Vec<(&String, u64)> = match self {
            Reader::Text(_) | Reader::Json(_) => Vec::new(),
            Reader::Csv(texts) => texts.rows.headers().iter().zip(texts.filled.iter().copied()).collect(),
            Reader::Parquet(rows) => rows.others.iter().map(|(name, rows)| (name, *rows)).collect(),
        };
        for (name, rows) in columns.into_iter().filter(|(name, _)| *name != "id") {
            unknown.add_rows(name, rows);
        }
    }
}

/// One column of a CSV file.
pub struct CsvTexts {
    rows: CsvRows,
    delimiter: u8,
    column: usize,
    /// Of each other column, in how many records it is not empty.
    filled: Vec<u64>,
}

impl CsvTexts {
    fn next(&mut self) -> Option<Result<Record, BadRecord>> {
        let record = self.rows.next()?;
        Some(record.map(|record| {
            let fields = self.rows.fields();
            for (i, field) in fields.iter().enumerate().filter(|(i, _)| *i != self.column) {
                self.filled[i] += u64::from(!field.is_empty());
            }
            Record { bytes: fields.get(self.column).unwrap_or(b"").to_vec(), ..record }
        }))
    }
}

/// Stretches of text between separators, without the blanks around them; empty ones are passed over.
pub struct Segments {
    window: Window,
    separator: Option<Vec<u8>>,
    limit: u64,
    ended: bool,
}

impl Segments {
    /// A line break in `separator` stands for LF, CR LF and CR.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &InputFile, separator: Option<&str>, limit: u64) -> Result<Self> {
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        let separator = separator.map(|s| s.as_bytes().to_vec()).filter(|s| !s.is_empty());
        Ok(Segments { window, separator, limit, ended: false })
    }

    fn next(&mut self) -> Next {
        while !self.ended {
            let start = self.window.offset();
            let Some((length, separator)) = self.find()? else {
                self.ended = true;
                let way_out = "set `separator` to what stands between the documents (such as \"\\n\\n\"), \
                               or raise `max_document_bytes`";
                return Ok(Some(Err(too_long("document", start, self.limit, way_out))));
            };
            let bytes = self.window.take(length);
            self.window.skip(separator);
            let text = bytes.trim_ascii();
            if !text.is_empty() {
                let start = start + (bytes.len() - bytes.trim_ascii_start().len()) as u64;
                let end = start + text.len() as u64;
                return Ok(Some(Ok(Record { start, end, row: 1, bytes: text.to_vec() })));
            }
        }
        Ok(None)
    }

    /// The length of the next segment and of the separator behind it; `None` when it is too long.
    fn find(&mut self) -> Result<Option<(usize, usize)>> {
        let mut from = 0;
        loop {
            let bytes = self.window.bytes();
            let found = self.separator.as_deref().and_then(|s| find(bytes, from, s, self.window.ended()));
            let length = found.map_or(bytes.len(), |(at, _)| at);
            if length as u64 > self.limit {
                return Ok(None);
            }
            if found.is_some() {
                return Ok(found);
            }
            let overlap = self.separator.as_deref().map_or(0, |s| 2 * s.len());
            from = bytes.len().saturating_sub(overlap);
            if !self.window.more()? && self.window.ended() {
                // Again at the end of the file: a separator at the very end only counts once the end is
                // known.
                let found = self.separator.as_deref().and_then(|s| find(self.window.bytes(), from, s, true));
                self.ended = found.is_none();
                return Ok(Some(found.unwrap_or((self.window.bytes().len(), 0))));
            }
        }
    }
}

/// Where `separator` first stands in `bytes` from `from` on, and how long it is there. A match that
/// touches the end of a window that may grow does not count: its CR may have a LF behind it.
fn find(bytes: &[u8], from: usize, separator: &[u8], ended: bool) -> Option<(usize, usize)> {
    let first = separator[0];
    let mut at = from;
    loop {
        let next = |b: &u8| *b == first || (first == b'\n' && *b == b'\r');
        at += bytes[at..].iter().position(next)?;
        match match_length(&bytes[at..], separator) {
            Some(length) if ended || at + length < bytes.len() => return Some((at, length)),
            _ => at += 1,
        }
    }
}

fn match_length(bytes: &[u8], separator: &[u8]) -> Option<usize> {
    let mut length = 0;
    for expected in separator {
        length += match (expected, &bytes[length..]) {
            (b'\n', [b'\r', b'\n', ..]) => 2,
            (b'\n', [b'\r' | b'\n', ..]) => 1,
            (expected, [found, ..]) if found == expected => 1,
            _ => return None,
        };
    }
    Some(length)
}

/// The texts of one column, by row.
pub struct ParquetRows {
    batches: ParquetRecordBatchReader,
    name: String,
    column: String,
    batch: Option<(ArrayRef, usize)>,
    row: u64,
    limit: u64,
    /// The other columns, and in how many rows they are not empty.
    others: Vec<(String, u64)>,
}

impl ParquetRows {
    fn open(file: &InputFile, column: &str, limit: u64) -> Result<Self> {
        let name = std::path::Path::new(&file.name);
        let builder = parquet_io::open(file)?;
        let headers: Vec<String> = builder.schema().fields().iter().map(|f| f.name().clone()).collect();
        let root = column_of(column, &headers, file)?;
        let others = headers.iter().filter(|name| *name != column);
        let others = others.map(|name| (name.clone(), filled_rows(builder.metadata(), name))).collect();
        let ty = builder.schema().field(root).data_type();
        let is_text = |ty: &DataType| matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        if !is_text(ty) && !matches!(ty, DataType::Dictionary(_, value) if is_text(value)) {
            let message = format!("the column `{column}` of `{}` holds {ty}, expected text", file.name);
            return Err(Error::input(message).help("name another column in `text_field`"));
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), [root]);
        let batches =
            builder.with_projection(mask).with_batch_size(64).build().map_err(|e| unreadable(name, &e))?;
        Ok(ParquetRows {
            batches,
            name: file.name.clone(),
            column: column.into(),
            batch: None,
            row: 0,
            limit,
            others,
        })
    }

    fn next(&mut self) -> Next {
        loop {
            if let Some((texts, at)) = self.batch.as_mut().filter(|(texts, at)| *at < texts.len()) {
                let (texts, index) = (texts.clone(), *at);
                *at += 1;
                self.row += 1;
                let texts = texts.as_string::<i64>();
                return Ok(Some(self.record((!texts.is_null(index)).then(|| texts.value(index)))));
            }
            let name = std::path::Path::new(&self.name);
            let batches = &mut self.batches;
            let texts = guarded(name, || {
                let Some(batch) = batches.next() else { return Ok(None) };
                let batch = batch.map_err(|e| unreadable(name, &e))?;
                let texts = arrow::compute::cast(batch.column(0), &DataType::LargeUtf8);
                texts.map(Some).map_err(|e| unreadable(name, &e))
            })?;
            let Some(texts) = texts else { return Ok(None) };
            self.batch = Some((texts, 0));
        }
    }

    fn record(&self, text: Option<&str>) -> Result<Record, BadRecord> {
        let row = self.row;
        let Some(text) = text else {
            return Err(BadRecord::new(
                "not_text",
                None,
                format!("row {row}: `{}` is null, expected text", self.column),
            )
            .help("set `on_bad_row: skip` to leave such rows out"));
        };
        if text.len() as u64 > self.limit {
            let message = format!("row {row} holds {} B of text, more than {} B", text.len(), self.limit);
            return Err(BadRecord::new("too_long", None, message).help("raise `max_document_bytes`").fatal());
        }
        Ok(Record { start: row - 1, end: row, row, bytes: text.as_bytes().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use proptest::prelude::*;

    fn segments(text: &[u8], separator: Option<&str>, limit: u64) -> Vec<Result<(u64, String), BadRecord>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, text).unwrap();
        let mut segments = Segments::open(&InputFile::new(&path).unwrap(), separator, limit).unwrap();
        let mut out = Vec::new();
        while let Some(next) = segments.next().unwrap() {
            out.push(next.map(|r| {
                assert_eq!(&text[r.start as usize..r.end as usize], r.bytes);
                (r.start, String::from_utf8_lossy(&r.bytes).into_owned())
            }));
        }
        out
    }

    fn texts(text: &[u8], separator: &str) -> Vec<String> {
        segments(text, Some(separator), 1 << 20).into_iter().map(|s| s.unwrap().1).collect()
    }

    #[test]
    fn separators_cut_whatever_the_line_breaks() {
        assert_eq!(
            texts(b"\xEF\xBB\xBFone\n<|endoftext|>\ntwo<|endoftext|>", "<|endoftext|>"),
            ["one", "two"]
        );
        assert_eq!(texts(b"a\nb\r\n\r\n\r\nc\r\r\rd\n\n\n", "\n\n\n"), ["a\nb", "c", "d"]);
        assert_eq!(texts(b"<<|x|>a<|x|>", "<|x|>"), ["<", "a"]);
        assert_eq!(texts(b"", "\n"), Vec::<String>::new());
        assert_eq!(segments(b" whole\n\n\nfile ", None, 99), [Ok((1, "whole\n\n\nfile".to_string()))]);
    }

    #[test]
    fn a_document_beyond_the_limit_names_the_way_out() {
        let found = segments(b"short\n\nmuch too long for it", Some("\n\n"), 8);
        let bad = found[1].as_ref().unwrap_err();
        assert_eq!((found.len(), bad.at), (2, Some(7)));
        assert!(bad.fatal && bad.help[0].contains("separator"), "{bad:?}");
    }

    #[test]
    fn a_separator_is_found_across_the_edge_of_a_window() {
        for pad in (256 << 10) - 16..(256 << 10) + 3 {
            let mut text = vec![b'x'; pad];
            text.extend_from_slice(b"<|endoftext|>tail\r\n\r\nend");
            let all = segments(&text, Some("<|endoftext|>"), 1 << 20);
            assert_eq!(all[1], Ok((pad as u64 + 13, "tail\r\n\r\nend".to_string())));
            text.truncate(pad);
            text.extend_from_slice(b"\r\n\r\nthe tail without more\n");
            assert_eq!(segments(&text, Some("\n\n"), 1 << 20).len(), 2, "{pad}");
        }
    }

    proptest! {
        #[test]
        fn segments_are_what_split_gives(text in "[ab|\\n]{0,60}") {
            let expected: Vec<&str> = text.split("|\n").map(str::trim).filter(|s| !s.is_empty()).collect();
            prop_assert_eq!(texts(text.as_bytes(), "|\n"), expected);
        }
    }

    #[test]
    fn endings_tell_the_format_or_help_does() {
        let of =
            |name: &str| FormatChoice::Auto.of(&InputFile { name: name.into(), path: name.into(), size: 0 });
        assert_eq!(of("a/B.TXT").unwrap(), Format::Txt);
        assert_eq!(of("x.markdown").unwrap(), Format::Md);
        let error = of("corpus.bin").unwrap_err().to_string();
        assert!(error.contains("corpus.bin") && error.contains("`format`"), "{error}");
        assert!(of("corpus.txt.gz").unwrap_err().to_string().contains("unpack"));
    }
}
