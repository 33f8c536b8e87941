//! Writes the shards of one split: a new file after so many tokens, a row group every few MiB.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringBuilder, UInt16Array, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use serde::Serialize;

use super::{Footer, file_name, schema, token_type};
use crate::base::{Digest, Error, Result};
use crate::corpus::held_out::Split;
use crate::corpus::parquet_io::{self, unwritable};

/// What a split holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub files: u64,
    pub documents: u64,
    /// `<bos>` and `<eos>` of each document included.
    pub tokens: u64,
    /// Of the text.
    pub bytes: u64,
}

/// The shards of one split, being written.
pub struct ShardWriter {
    folder: PathBuf,
    split: Split,
    tokenizer: Digest,
    vocab_size: usize,
    /// A file takes no further document once it has this many tokens.
    limit: u64,
    open: Option<Open>,
    totals: Totals,
}

struct Open {
    writer: ArrowWriter<File>,
    path: PathBuf,
    footer: Footer,
    ids: StringBuilder,
    tokens: Vec<u32>,
    /// For each document waiting in `tokens`, its length.
    lengths: Vec<usize>,
}

impl ShardWriter {
    /// Files of about `limit` tokens in `folder`; none is created before the first document.
    pub fn new(folder: &Path, split: Split, tokenizer: Digest, vocab_size: usize, limit: u64) -> Self {
        let totals = Totals::default();
        ShardWriter { folder: folder.into(), split, tokenizer, vocab_size, limit, open: None, totals }
    }

    /// Adds a document; `bytes` is the length of its text.
    ///
    /// # Errors
    /// When the disk is full or the file cannot be written.
    pub fn push(&mut self, id: &str, tokens: &[u32], bytes: u64) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.footer.tokens >= self.limit) {
            self.close()?;
        }
        let open = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => {
                let next = self.next_file()?;
                self.open.insert(next)
            }
        };
        open.ids.append_value(id);
        open.tokens.extend_from_slice(tokens);
        open.lengths.push(tokens.len());
        open.footer.documents += 1;
        open.footer.tokens += tokens.len() as u64;
        open.footer.bytes += bytes;
        if open.tokens.len() * 2 >= parquet_io::ROW_GROUP_BYTES {
            open.flush(self.vocab_size)
        } else {
            Ok(())
        }
    }

    fn next_file(&self) -> Result<Open> {
        let index = self.totals.files as usize;
        let path = self.folder.join(file_name(self.split, index));
        let footer = Footer {
            tokenizer: self.tokenizer,
            vocab_size: self.vocab_size,
            split: self.split,
            index,
            tokens: 0,
            documents: 0,
            bytes: 0,
        };
        Ok(Open {
            writer: parquet_io::writer(&path, schema(self.vocab_size), Vec::new())?,
            path,
            footer,
            ids: StringBuilder::new(),
            tokens: Vec::new(),
            lengths: Vec::new(),
        })
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.flush(self.vocab_size)?;
        for (key, value) in open.footer.pairs() {
            open.writer.append_key_value_metadata(KeyValue::new(key, value));
        }
        open.writer.close().map_err(|e| unwritable(&open.path, &e))?;
        self.totals.files += 1;
        self.totals.documents += open.footer.documents;
        self.totals.tokens += open.footer.tokens;
        self.totals.bytes += open.footer.bytes;
        Ok(())
    }

    /// Closes the last file; without this it is not a Parquet file.
    ///
    /// # Errors
    /// As [`ShardWriter::push`].
    pub fn finish(mut self) -> Result<Totals> {
        self.close()?;
        Ok(self.totals)
    }
}

impl Open {
    fn flush(&mut self, vocab_size: usize) -> Result<()> {
        if self.lengths.is_empty() {
            return Ok(());
        }
        let tokens = std::mem::take(&mut self.tokens);
        let values: ArrayRef = match token_type(vocab_size) {
            DataType::UInt16 => Arc::new(UInt16Array::from_iter_values(tokens.iter().map(|t| *t as u16))),
            _ => Arc::new(UInt32Array::from(tokens)),
        };
        let item = Arc::new(Field::new("item", token_type(vocab_size), false));
        let offsets = OffsetBuffer::from_lengths(std::mem::take(&mut self.lengths));
        let batch = ListArray::try_new(item, offsets, values, None)
            .and_then(|lists| {
                RecordBatch::try_new(schema(vocab_size), vec![Arc::new(self.ids.finish()), Arc::new(lists)])
            })
            .map_err(|e| Error::bug(format!("token shards do not fit their schema: {e}")))?;
        self.writer.write(&batch).and_then(|()| self.writer.flush()).map_err(|e| unwritable(&self.path, &e))
    }
}
