//! Writes logits: a new file after so many positions, a row group every few MiB.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListArray, RecordBatch, UInt16Array, UInt32Array, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;

use super::{Header, file_name, log_prob, probability, schema, token_type};
use crate::base::{Error, Result};
use crate::corpus::parquet_io::{self, unwritable};

/// The logits of one stream, being written.
pub struct LogitsWriter {
    folder: PathBuf,
    header: Header,
    /// Rows of a file at most.
    limit: u64,
    open: Option<(ArrowWriter<File>, PathBuf)>,
    /// Rows of the open file, with those that wait.
    in_file: u64,
    files: usize,
    /// Rows in all.
    positions: u64,
    rows: Rows,
    /// The sum of all rows' `rest`.
    rest: f64,
}

/// Rows that wait to become a row group.
#[derive(Default)]
struct Rows {
    first: u64,
    tokens: Vec<u32>,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    rest: Vec<f32>,
}

impl LogitsWriter {
    /// Files of at most `limit` positions in `folder`; none is created before the first row.
    pub fn new(folder: &Path, header: Header, limit: u64) -> Self {
        LogitsWriter {
            folder: folder.into(),
            header,
            limit: limit.max(1),
            open: None,
            in_file: 0,
            files: 0,
            positions: 0,
            rows: Rows::default(),
            rest: 0.0,
        }
    }

    /// Adds the next position, where `token` stands: the most probable ids after it and their
    /// probabilities, `top_k` of each.
    ///
    /// # Errors
    /// A probability that is not a number; a full disk.
    pub fn push(&mut self, token: u32, ids: &[u32], probabilities: &[f32]) -> Result<()> {
        if let Some(odd) = probabilities.iter().find(|p| !p.is_finite()) {
            let what = format!("a probability at position {} is {odd}", self.positions);
            return Err(Error::input(what).help("the model's weights or activations are too large"));
        }
        if self.in_file == self.limit {
            self.close()?;
        }
        let rows = &mut self.rows;
        if rows.tokens.is_empty() {
            rows.first = self.positions;
        }
        rows.tokens.push(token);
        rows.ids.extend_from_slice(ids);
        let begun = rows.log_probs.len();
        rows.log_probs.extend(probabilities.iter().map(|p| log_prob(*p)));
        let known: f32 = rows.log_probs[begun..].iter().map(|log_prob| probability(*log_prob)).sum();
        let rest = (1.0 - known).max(0.0);
        rows.rest.push(rest);
        self.rest += f64::from(rest);
        self.in_file += 1;
        self.positions += 1;
        // An id of 2 or 4 bytes and a probability of 4.
        let bytes = rows.ids.len() * 8;
        if bytes >= parquet_io::ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    /// What is written of rows that wait goes into the open file, or a new one.
    fn flush(&mut self) -> Result<()> {
        if self.rows.tokens.is_empty() {
            return Ok(());
        }
        let (writer, path) = match &mut self.open {
            Some(open) => open,
            none => {
                let path = self.folder.join(file_name(self.files));
                none.insert((create(&path, &self.header)?, path))
            }
        };
        let batch = std::mem::take(&mut self.rows).batch(&self.header)?;
        writer.write(&batch).and_then(|()| writer.flush()).map_err(|e| unwritable(path, &e))
    }

    fn close(&mut self) -> Result<()> {
        self.flush()?;
        if let Some((writer, path)) = self.open.take() {
            writer.close().map_err(|e| unwritable(&path, &e))?;
            self.files += 1;
            self.in_file = 0;
        }
        Ok(())
    }

    /// Closes the last file; without this it is not a Parquet file. Gives the mean probability of what is
    /// not among the ids, `None` of no positions.
    ///
    /// # Errors
    /// As [`LogitsWriter::push`].
    pub fn finish(mut self) -> Result<Option<f64>> {
        self.close()?;
        Ok((self.positions > 0).then(|| self.rest / self.positions as f64))
    }
}

fn create(path: &Path, header: &Header) -> Result<ArrowWriter<File>> {
    // Numbers that hardly repeat: dictionaries would only be in the way.
    parquet_io::writer_with(path, schema(header.vocab_size), header.pairs(), |properties| {
        properties
            .set_column_dictionary_enabled("position".into(), false)
            .set_column_encoding("position".into(), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled("log_probs.list.item".into(), false)
            .set_column_encoding("log_probs.list.item".into(), Encoding::BYTE_STREAM_SPLIT)
            .set_column_dictionary_enabled("rest".into(), false)
            .set_column_encoding("rest".into(), Encoding::BYTE_STREAM_SPLIT)
    })
}

impl Rows {
    fn batch(self, header: &Header) -> Result<RecordBatch> {
        let (rows, wide) = (self.tokens.len(), token_type(header.vocab_size) == DataType::UInt32);
        let tokens = |ids: Vec<u32>| -> ArrayRef {
            match wide {
                true => Arc::new(UInt32Array::from(ids)),
                false => Arc::new(UInt16Array::from_iter_values(ids.into_iter().map(|id| id as u16))),
            }
        };
        let list = |values: ArrayRef| {
            let item = Arc::new(Field::new("item", values.data_type().clone(), false));
            let offsets = OffsetBuffer::from_repeated_length(header.top_k, rows);
            ListArray::try_new(item, offsets, values, None)
        };
        let positions = UInt64Array::from_iter_values(self.first..self.first + rows as u64);
        let columns = || {
            let ids = list(tokens(self.ids))?;
            let log_probs = list(Arc::new(Float32Array::from(self.log_probs)))?;
            let rest = Float32Array::from(self.rest);
            let all: Vec<ArrayRef> = vec![
                Arc::new(positions),
                tokens(self.tokens),
                Arc::new(ids),
                Arc::new(log_probs),
                Arc::new(rest),
            ];
            RecordBatch::try_new(schema(header.vocab_size), all)
        };
        columns().map_err(|e| Error::bug(format!("logits do not fit their schema: {e}")))
    }
}
