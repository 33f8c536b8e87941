//! Token shards: documents as token ids in Parquet, one document a row, in files of bounded size,
//! split into training and validation.
//!
//! A row is `id: string` (the document's) and `tokens: list<uint16 | uint32>`, `<bos>` to `<eos>`. A file's
//! footer names its tokenizer by digest and counts documents and tokens. Documents are not packed into rows
//! here; [`TokenStream`] only gives windows of the ids laid end to end.

mod build;
pub mod flat;
pub mod logits;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::{Digest, Error, Result, fs};
use crate::corpus::held_out::Split;
use crate::corpus::parquet_io::{self, unreadable};
use arrow::array::{Array, ListArray, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

pub use build::{Options, Report, build};
pub use write::{ShardWriter, Totals};

/// Prefix of the footer's keys. Raise `tinylm.format` when the layout changes.
const KEY: &str = "tinylm.";
const FORMAT: &str = "1";

/// `train-00003.parquet`
pub fn file_name(split: Split, index: usize) -> String {
    format!("{}-{index:05}.parquet", split.as_str())
}

/// The split and index in a file name.
fn of_file_name(name: &str) -> Option<(Split, usize)> {
    let (split, index) = name.strip_suffix(".parquet")?.rsplit_once('-')?;
    let split = [Split::Train, Split::Validation].into_iter().find(|s| s.as_str() == split)?;
    Some((split, index.parse().ok()?))
}

/// The narrowest unsigned integer that holds every id of a vocabulary.
fn token_type(vocab_size: usize) -> DataType {
    if vocab_size <= 1 << 16 { DataType::UInt16 } else { DataType::UInt32 }
}

fn schema(vocab_size: usize) -> Arc<Schema> {
    let item = Field::new("item", token_type(vocab_size), false);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("tokens", DataType::List(Arc::new(item)), false),
    ]))
}

/// The shards of one artifact, by their footers; no tokens are read yet.
#[derive(Debug, Clone)]
pub struct Shards {
    /// Of the `tokenizer.json` that encoded them.
    pub tokenizer: Digest,
    /// All ids are below it.
    pub vocab_size: usize,
    pub train_tokens: u64,
    pub validation_tokens: u64,
    pub train_documents: u64,
    pub validation_documents: u64,
    /// Of the text behind the tokens: what bits per byte are counted against.
    pub train_bytes: u64,
    pub validation_bytes: u64,
    files: Vec<ShardFile>,
}

#[derive(Debug, Clone)]
struct ShardFile {
    split: Split,
    index: usize,
    path: PathBuf,
    footer: Footer,
}

/// What a file's footer records.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Footer {
    tokenizer: Digest,
    vocab_size: usize,
    split: Split,
    index: usize,
    tokens: u64,
    documents: u64,
    bytes: u64,
}

impl Footer {
    fn pairs(&self) -> Vec<(String, String)> {
        let pair = |key: &str, value: String| (format!("{KEY}{key}"), value);
        vec![
            pair("format", FORMAT.to_string()),
            pair("tokenizer", self.tokenizer.to_string()),
            pair("vocab_size", self.vocab_size.to_string()),
            pair("split", self.split.as_str().to_string()),
            pair("index", self.index.to_string()),
            pair("tokens", self.tokens.to_string()),
            pair("documents", self.documents.to_string()),
            pair("bytes", self.bytes.to_string()),
        ]
    }

    fn read(path: &Path) -> Result<Self> {
        let reader = reader(path)?;
        let pairs = reader.metadata().file_metadata().key_value_metadata();
        let get = |key: &str| {
            let found = pairs.and_then(|all| all.iter().find(|kv| kv.key.strip_prefix(KEY) == Some(key)));
            found.and_then(|kv| kv.value.clone()).ok_or_else(|| {
                Error::input(format!(
                    "`{}` is not a token shard: its footer has no `{KEY}{key}`",
                    path.display()
                ))
                .help("token shards are made of text and a tokenizer: name a folder that holds some")
            })
        };
        let format = get("format")?;
        if format != FORMAT {
            return Err(Error::input(format!("`{}` is a token shard of format {format}", path.display()))
                .help(format!("this version reads format {FORMAT}: make the shards anew")));
        }
        let number = |key: &str| {
            let text = get(key)?;
            text.parse::<u64>().map_err(|_| {
                Error::input(format!("`{}`: `{KEY}{key}` is {text:?}, not a number", path.display()))
            })
        };
        let vocab_size = number("vocab_size")? as usize;
        parquet_io::expect_columns(path, reader.schema(), &schema(vocab_size), "token shards")?;
        let split = match get("split")?.as_str() {
            "train" => Split::Train,
            "validation" => Split::Validation,
            other => {
                return Err(Error::input(format!("`{}`: unknown split {other:?}", path.display())));
            }
        };
        Ok(Footer {
            tokenizer: get("tokenizer")?.parse().map_err(|e: Error| {
                Error::input(format!("`{}`: `{KEY}tokenizer`: {}", path.display(), e.message()))
            })?,
            vocab_size,
            split,
            index: number("index")? as usize,
            tokens: number("tokens")?,
            documents: number("documents")?,
            bytes: number("bytes")?,
        })
    }
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>> {
    ParquetRecordBatchReaderBuilder::try_new(fs::open(path)?).map_err(|e| unreadable(path, &e))
}

impl Shards {
    /// The shards among `files`, given as (name in the artifact, path of its bytes); other files are ignored.
    ///
    /// # Errors
    /// When there are none, one is damaged or missing in the row, or they are of different tokenizers.
    pub fn open(files: &[(String, PathBuf)]) -> Result<Self> {
        let mut found = Vec::new();
        for (name, path) in files {
            let base = name.rsplit('/').next().unwrap_or(name);
            if let Some((split, index)) = of_file_name(base) {
                let footer = Footer::read(path)?;
                if (footer.split, footer.index) != (split, index) {
                    return Err(Error::input(format!(
                        "`{name}` says of itself that it is `{}`",
                        file_name(footer.split, footer.index)
                    )));
                }
                found.push(ShardFile { split, index, path: path.clone(), footer });
            }
        }
        found.sort_by_key(|f| (f.split, f.index));
        Self::of(found)
    }

    fn of(files: Vec<ShardFile>) -> Result<Self> {
        let Some(first) = files.first().filter(|f| f.split == Split::Train).map(|f| f.footer.clone()) else {
            return Err(Error::input(format!("there is no `{}` here", file_name(Split::Train, 0)))
                .help("token shards are made of text and a tokenizer: name a folder that holds some"));
        };
        for (i, file) in files.iter().enumerate() {
            let due = files[..i].iter().filter(|f| f.split == file.split).count();
            if file.index != due {
                return Err(Error::input(format!("the shard `{}` is missing", file_name(file.split, due))));
            }
            if (file.footer.tokenizer, file.footer.vocab_size) != (first.tokenizer, first.vocab_size) {
                return Err(Error::input(format!(
                    "`{}` was encoded by the tokenizer {}, but `{}` by {}",
                    file_name(file.split, file.index),
                    file.footer.tokenizer.short(),
                    file_name(Split::Train, 0),
                    first.tokenizer.short(),
                )));
            }
        }
        let sum = |split: Split, of: fn(&Footer) -> u64| {
            files.iter().filter(|f| f.split == split).map(|f| of(&f.footer)).sum::<u64>()
        };
        Ok(Shards {
            tokenizer: first.tokenizer,
            vocab_size: first.vocab_size,
            train_tokens: sum(Split::Train, |f| f.tokens),
            validation_tokens: sum(Split::Validation, |f| f.tokens),
            train_documents: sum(Split::Train, |f| f.documents),
            validation_documents: sum(Split::Validation, |f| f.documents),
            train_bytes: sum(Split::Train, |f| f.bytes),
            validation_bytes: sum(Split::Validation, |f| f.bytes),
            files,
        })
    }
}

/// The rows of one shard file, as (document id, token ids), a batch in memory at a time.
pub struct Rows {
    batches: ParquetRecordBatchReader,
    path: PathBuf,
    ready: std::vec::IntoIter<(String, Vec<u32>)>,
}

impl Rows {
    /// # Errors
    /// When the file cannot be read as Parquet.
    pub fn open(path: &Path) -> Result<Self> {
        let batches = reader(path)?.with_batch_size(256).build().map_err(|e| unreadable(path, &e))?;
        Ok(Rows { batches, path: path.to_path_buf(), ready: Vec::new().into_iter() })
    }

    fn rows_of(&self, batch: &RecordBatch) -> Result<Vec<(String, Vec<u32>)>> {
        let ids: StringArray = parquet_io::column(batch, "id", &self.path)?;
        let lists: ListArray = parquet_io::column(batch, "tokens", &self.path)?;
        (0..batch.num_rows())
            .map(|row| Ok((ids.value(row).to_string(), self.tokens(&lists.value(row))?)))
            .collect()
    }

    fn tokens(&self, list: &dyn Array) -> Result<Vec<u32>> {
        let any = list.as_any();
        if let Some(narrow) = any.downcast_ref::<UInt16Array>() {
            return Ok(narrow.values().iter().map(|t| u32::from(*t)).collect());
        }
        any.downcast_ref::<UInt32Array>().map(|wide| wide.values().to_vec()).ok_or_else(|| {
            Error::input(format!("`{}`: its tokens are {}", self.path.display(), list.data_type()))
                .help("expected uint16 or uint32")
        })
    }
}

impl Iterator for Rows {
    type Item = Result<(String, Vec<u32>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(Ok(row));
            }
            let batch = match self.batches.next()? {
                Ok(batch) => batch,
                Err(e) => return Some(Err(unreadable(&self.path, &e))),
            };
            match self.rows_of(&batch) {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// Token ids of many documents laid end to end, in the narrowest integer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Tokens,
    /// For each document, where it ends.
    ends: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tokens {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl TokenStream {
    /// Empty, for ids below `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        Self::with_room(vocab_size, 0, 0)
    }

    /// [`TokenStream::new`] with capacity for so many tokens and documents.
    fn with_room(vocab_size: usize, tokens: usize, documents: usize) -> Self {
        let tokens = match token_type(vocab_size) {
            DataType::UInt16 => Tokens::Narrow(Vec::with_capacity(tokens)),
            _ => Tokens::Wide(Vec::with_capacity(tokens)),
        };
        TokenStream { tokens, ends: Vec::with_capacity(documents) }
    }

    /// Adds the documents of another stream for the same vocabulary.
    ///
    /// # Panics
    /// When the vocabularies differ so much that their ids are of different widths.
    pub fn append(&mut self, other: &TokenStream) {
        let before = self.len();
        match (&mut self.tokens, &other.tokens) {
            (Tokens::Narrow(all), Tokens::Narrow(more)) => all.extend_from_slice(more),
            (Tokens::Wide(all), Tokens::Wide(more)) => all.extend_from_slice(more),
            _ => unreachable!("one vocabulary, one width"),
        }
        self.ends.extend(other.ends.iter().map(|end| before + end));
    }

    /// Adds a document. Ids must be below the `vocab_size` that it was made for.
    pub fn push(&mut self, document: &[u32]) {
        match &mut self.tokens {
            Tokens::Narrow(all) => all.extend(document.iter().map(|t| *t as u16)),
            Tokens::Wide(all) => all.extend_from_slice(document),
        }
        self.ends.push(self.len());
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        match &self.tokens {
            Tokens::Narrow(all) => all.len(),
            Tokens::Wide(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Panics
    /// When they don't lie within the stream.
    pub fn window(&self, start: usize, out: &mut [u32]) {
        let range = start..start + out.len();
        match &self.tokens {
            Tokens::Narrow(all) => out.iter_mut().zip(&all[range]).for_each(|(o, t)| *o = u32::from(*t)),
            Tokens::Wide(all) => out.copy_from_slice(&all[range]),
        }
    }

    /// Where each document lies, in order.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.ends.iter().enumerate().map(|(i, end)| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            start..*end
        })
    }
}
