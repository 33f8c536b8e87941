//! A document is a text with its provenance; a `documents` artifact is `documents.parquet` with one
//! document a row. Written and read in row groups, so that a corpus need not fit in memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, LargeStringArray, LargeStringBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array,
    UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::parquet_io::{self, column, unreadable};
use crate::base::{Digest, Error, Result, fs};

/// The file of a `documents` artifact.
pub const FILE_NAME: &str = "documents.parquet";

/// A text and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// 32 hex digits: the first half of the digest of the text. Equal texts have equal ids.
    pub id: String,
    pub text: String,
    /// The file's name within its source, or `synthesize:<domain>`; never an absolute path.
    pub source: String,
    /// The bytes of `source` that the text was cut from, before cleaning: `start..end`.
    pub start: u64,
    pub end: u64,
}

impl Document {
    pub fn new(text: String, source: impl Into<String>, start: u64, end: u64) -> Self {
        Document { id: text_id(&text), text, source: source.into(), start, end }
    }
}

/// 32 hex digits that name a text by its content.
pub fn text_id(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..32].to_string()
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("text", DataType::LargeUtf8, false),
        Field::new("source", DataType::Utf8, false),
        Field::new("start", DataType::UInt64, false),
        Field::new("end", DataType::UInt64, false),
    ]))
}

/// Writes documents as they come; a row group is closed every few MiB of text.
pub struct DocumentWriter {
    writer: ArrowWriter<File>,
    path: std::path::PathBuf,
    id: StringBuilder,
    text: LargeStringBuilder,
    source: StringBuilder,
    start: UInt64Builder,
    end: UInt64Builder,
    bytes: usize,
    rows: u64,
}

impl DocumentWriter {
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let writer = parquet_io::writer(&path, schema(), Vec::new())?;
        Ok(DocumentWriter {
            writer,
            path,
            id: StringBuilder::new(),
            text: LargeStringBuilder::new(),
            source: StringBuilder::new(),
            start: UInt64Builder::new(),
            end: UInt64Builder::new(),
            bytes: 0,
            rows: 0,
        })
    }

    /// # Errors
    /// When the disk is full or the file cannot be written.
    pub fn push(&mut self, document: &Document) -> Result<()> {
        self.id.append_value(&document.id);
        self.text.append_value(&document.text);
        self.source.append_value(&document.source);
        self.start.append_value(document.start);
        self.end.append_value(document.end);
        self.bytes += document.text.len();
        self.rows += 1;
        if self.bytes >= parquet_io::ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<()> {
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(self.id.finish()),
                Arc::new(self.text.finish()),
                Arc::new(self.source.finish()),
                Arc::new(self.start.finish()),
                Arc::new(self.end.finish()),
            ],
        )
        .map_err(|e| Error::bug(format!("documents do not fit their schema: {e}")))?;
        self.bytes = 0;
        self.writer
            .write(&batch)
            .and_then(|()| self.writer.flush())
            .map_err(|e| parquet_io::unwritable(&self.path, &e))
    }

    /// Closes the file; without this it is not a Parquet file.
    ///
    /// # Errors
    /// As [`DocumentWriter::push`].
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.writer.close().map_err(|e| parquet_io::unwritable(&self.path, &e))?;
        Ok(self.rows)
    }
}

/// Iterates over the documents of a file, one batch of rows in memory at a time.
pub struct DocumentReader {
    batches: ParquetRecordBatchReader,
    path: std::path::PathBuf,
    batch: Option<Columns>,
    row: usize,
    /// Rows in the whole file.
    pub rows: u64,
}

struct Columns {
    id: StringArray,
    text: LargeStringArray,
    source: StringArray,
    start: UInt64Array,
    end: UInt64Array,
}

impl DocumentReader {
    /// # Errors
    /// When the file is not Parquet or not of documents.
    pub fn open(path: &Path) -> Result<Self> {
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(fs::open(path)?).map_err(|e| unreadable(path, &e))?;
        parquet_io::expect_columns(path, builder.schema(), &schema(), "documents")?;
        let rows = builder.metadata().file_metadata().num_rows() as u64;
        let batches = builder.with_batch_size(256).build().map_err(|e| unreadable(path, &e))?;
        Ok(DocumentReader { batches, path: path.to_path_buf(), batch: None, row: 0, rows })
    }
}

impl Iterator for DocumentReader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        loop {
            if let Some(c) = self.batch.as_ref().filter(|c| self.row < c.id.len()) {
                let row = self.row;
                self.row += 1;
                return Some(Ok(Document {
                    id: c.id.value(row).to_string(),
                    text: c.text.value(row).to_string(),
                    source: c.source.value(row).to_string(),
                    start: c.start.value(row),
                    end: c.end.value(row),
                }));
            }
            let batch = match self.batches.next()? {
                Ok(batch) => batch,
                Err(e) => return Some(Err(unreadable(&self.path, &e))),
            };
            let columns = || {
                Ok(Columns {
                    id: column(&batch, "id", &self.path)?,
                    text: column(&batch, "text", &self.path)?,
                    source: column(&batch, "source", &self.path)?,
                    start: column(&batch, "start", &self.path)?,
                    end: column(&batch, "end", &self.path)?,
                })
            };
            match columns() {
                Ok(columns) => self.batch = Some(columns),
                Err(e) => return Some(Err(e)),
            }
            self.row = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_back_over_row_groups() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = DocumentWriter::create(dir.path()).unwrap();
        let documents: Vec<Document> = (0..50)
            .map(|i| Document::new(format!("{i} ").repeat(100_000), format!("f{}", i % 3), i, i + 1))
            .collect();
        for document in &documents {
            writer.push(document).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), 50);
        let reader = DocumentReader::open(&dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(reader.rows, 50);
        assert_eq!(reader.collect::<Result<Vec<_>>>().unwrap(), documents);
    }

    #[test]
    fn what_is_not_documents_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        fs::write(&path, b"hello").unwrap();
        let error = DocumentReader::open(&path).err().unwrap();
        assert!(error.message().contains("x.parquet"), "{error}");
    }
}
