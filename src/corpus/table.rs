//! Rows to Parquet and back, one row group in memory at a time: shared by documents, conversations and
//! evaluated items. A type of row only defines its columns.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::Schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::parquet_io::{self, unreadable};
use crate::base::{Error, Result, fs};

/// The columns of a type of row, being filled.
pub trait Columns: Default {
    type Row;
    /// The file of an artifact of such rows.
    const FILE_NAME: &'static str;
    /// For messages: `documents`.
    const WHAT: &'static str;
    /// The column of text, by the last part of its path.
    const TEXT: &'static str;

    fn schema() -> Arc<Schema>;

    /// Adds a row; gives the bytes of its payload.
    fn push(&mut self, row: &Self::Row) -> usize;

    /// The columns in the schema's order, empty again afterwards.
    fn take(&mut self) -> Vec<ArrayRef>;

    /// # Errors
    /// When a column has another type than the schema's, or a value is invalid.
    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Self::Row>>;
}

/// Writes rows as they come; a row group is closed every few MiB of payload.
pub struct RowWriter<C: Columns> {
    writer: ArrowWriter<File>,
    path: PathBuf,
    columns: C,
    bytes: usize,
    rows: u64,
}

impl<C: Columns> RowWriter<C> {
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        Self::create_file(&folder.join(C::FILE_NAME))
    }

    /// [`RowWriter::create`] under another name.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create_file(path: &Path) -> Result<Self> {
        let writer = parquet_io::writer(path, C::schema(), Vec::new())?;
        Ok(RowWriter { writer, path: path.to_path_buf(), columns: C::default(), bytes: 0, rows: 0 })
    }

    /// # Errors
    /// When the disk is full or the file cannot be written.
    pub fn push(&mut self, row: &C::Row) -> Result<()> {
        self.bytes += self.columns.push(row);
        self.rows += 1;
        if self.bytes >= parquet_io::ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<()> {
        let batch = RecordBatch::try_new(C::schema(), self.columns.take())
            .map_err(|e| Error::bug(format!("{} do not fit their schema: {e}", C::WHAT)))?;
        self.bytes = 0;
        self.writer
            .write(&batch)
            .and_then(|()| self.writer.flush())
            .map_err(|e| parquet_io::unwritable(&self.path, &e))
    }

    /// Closes the file; without this it is not a Parquet file. Gives the number of rows.
    ///
    /// # Errors
    /// As [`RowWriter::push`].
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.writer.close().map_err(|e| parquet_io::unwritable(&self.path, &e))?;
        Ok(self.rows)
    }
}

/// Iterates over the rows of a file, one batch in memory at a time.
pub struct RowReader<C: Columns> {
    batches: ParquetRecordBatchReader,
    path: PathBuf,
    ready: std::vec::IntoIter<C::Row>,
    /// Rows in the whole file.
    pub rows: u64,
    /// Bytes of text in the whole file, when it records them.
    pub text_bytes: Option<u64>,
}

/// Rows read in one go.
const BATCH_ROWS: usize = 256;

impl<C: Columns> RowReader<C> {
    /// # Errors
    /// When the file is not Parquet or not of such rows.
    pub fn open(path: &Path) -> Result<Self> {
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(fs::open(path)?).map_err(|e| unreadable(path, &e))?;
        parquet_io::expect_columns(path, builder.schema(), &C::schema(), C::WHAT)?;
        let rows = builder.metadata().file_metadata().num_rows() as u64;
        let text_bytes = parquet_io::text_bytes(builder.metadata(), C::TEXT);
        let batches = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| unreadable(path, &e))?;
        Ok(RowReader { batches, path: path.to_path_buf(), ready: Vec::new().into_iter(), rows, text_bytes })
    }
}

impl<C: Columns> Iterator for RowReader<C> {
    type Item = Result<C::Row>;

    fn next(&mut self) -> Option<Result<C::Row>> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(Ok(row));
            }
            let batch = self.batches.next()?.map_err(|e| unreadable(&self.path, &e));
            match batch.and_then(|batch| C::rows(&batch, &self.path)) {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
