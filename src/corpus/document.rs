//! A document is a text with its provenance; a `documents` artifact is `documents.parquet` with one
//! document a row. Written and read in row groups, so that a corpus need not fit in memory.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, LargeStringArray, LargeStringBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array,
    UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema};

use super::parquet_io::column;
use super::table::{Columns, RowReader, RowWriter};
use crate::base::{Digest, Result};

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

/// Writes documents as they come.
pub type DocumentWriter = RowWriter<DocumentColumns>;

/// Iterates over the documents of a file.
pub type DocumentReader = RowReader<DocumentColumns>;

#[derive(Default)]
pub struct DocumentColumns {
    id: StringBuilder,
    text: LargeStringBuilder,
    source: StringBuilder,
    start: UInt64Builder,
    end: UInt64Builder,
}

impl Columns for DocumentColumns {
    type Row = Document;
    const FILE_NAME: &'static str = FILE_NAME;
    const WHAT: &'static str = "documents";
    const TEXT: &'static str = "text";

    fn schema() -> Arc<Schema> {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("text", DataType::LargeUtf8, false),
            Field::new("source", DataType::Utf8, false),
            Field::new("start", DataType::UInt64, false),
            Field::new("end", DataType::UInt64, false),
        ]))
    }

    fn push(&mut self, document: &Document) -> usize {
        self.id.append_value(&document.id);
        self.text.append_value(&document.text);
        self.source.append_value(&document.source);
        self.start.append_value(document.start);
        self.end.append_value(document.end);
        document.text.len()
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.id.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.start.finish()),
            Arc::new(self.end.finish()),
        ]
    }

    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Document>> {
        let id: StringArray = column(batch, "id", path)?;
        let text: LargeStringArray = column(batch, "text", path)?;
        let source: StringArray = column(batch, "source", path)?;
        let start: UInt64Array = column(batch, "start", path)?;
        let end: UInt64Array = column(batch, "end", path)?;
        let document = |row: usize| Document {
            id: id.value(row).to_string(),
            text: text.value(row).to_string(),
            source: source.value(row).to_string(),
            start: start.value(row),
            end: end.value(row),
        };
        Ok((0..batch.num_rows()).map(document).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;

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
        let bytes = documents.iter().map(|d| d.text.len() as u64).sum();
        assert_eq!(reader.text_bytes, Some(bytes), "known without reading");
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
