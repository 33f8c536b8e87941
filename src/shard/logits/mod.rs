//! What a model expects at every position of a token stream, in Parquet: the most probable next ids with their
//! log-probabilities, to be learned from by another model.
//!
//! A row is a position of the stream: `position: uint64`, `token: uint16 | uint32` (the id that stands there),
//! `ids: list<uint16 | uint32>` and `log_probs: list<float>` (the ids that are most probable after it, the
//! most probable first), `rest: float` (the probability of all other ids together). Files hold a bounded
//! number of rows. A footer names the tokenizer and the shards by digest, and says how it was computed.

mod table;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

pub use table::Table;
pub use write::LogitsWriter;

use super::{KEY, token_type};
use crate::base::{Digest, Error, Result, fs};
use crate::corpus::parquet_io::{self, unreadable};

/// Raise it when the layout changes.
const FORMAT: &str = "1";

/// As what a probability is stored. It is never 0, so that the logarithm is finite.
pub fn log_prob(probability: f32) -> f32 {
    libm::logf(probability.max(f32::MIN_POSITIVE))
}

/// [`log_prob`] reversed. The rounding of both is part of the bytes of what is learned.
pub fn probability(log_prob: f32) -> f32 {
    libm::expf(log_prob)
}

/// `logits-00003.parquet`
fn file_name(index: usize) -> String {
    format!("logits-{index:05}.parquet")
}

fn of_file_name(name: &str) -> Option<usize> {
    name.strip_prefix("logits-")?.strip_suffix(".parquet")?.parse().ok()
}

fn schema(vocab_size: usize) -> Arc<Schema> {
    let list = |item| DataType::List(Arc::new(Field::new("item", item, false)));
    Arc::new(Schema::new(vec![
        Field::new("position", DataType::UInt64, false),
        Field::new("token", token_type(vocab_size), false),
        Field::new("ids", list(token_type(vocab_size)), false),
        Field::new("log_probs", list(DataType::Float32), false),
        Field::new("rest", DataType::Float32, false),
    ]))
}

/// How logits were computed: what every file's footer records.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Of the `tokenizer.json` that gave the ids.
    pub tokenizer: Digest,
    /// Of the shards whose training stream it is.
    pub shards: Digest,
    /// All ids are below it.
    pub vocab_size: usize,
    /// Logits were divided by it before the softmax.
    pub temperature: f64,
    /// Ids of a row.
    pub top_k: usize,
    /// Tokens of the windows that the stream was cut into; a model sees nothing before its window.
    pub context: usize,
}

impl Header {
    fn pairs(&self) -> Vec<(String, String)> {
        let pair = |key: &str, value: String| (format!("{KEY}{key}"), value);
        vec![
            pair("logits", FORMAT.to_string()),
            pair("tokenizer", self.tokenizer.to_string()),
            pair("shards", self.shards.to_string()),
            pair("vocab_size", self.vocab_size.to_string()),
            pair("temperature", self.temperature.to_string()),
            pair("top_k", self.top_k.to_string()),
            pair("context", self.context.to_string()),
        ]
    }
}

/// The logits of one artifact, by their footers; no rows are read yet.
#[derive(Debug, Clone)]
pub struct Logits {
    pub header: Header,
    /// Rows of all files.
    pub positions: u64,
    files: Vec<LogitsFile>,
}

#[derive(Debug, Clone)]
struct LogitsFile {
    /// In the artifact.
    name: String,
    path: PathBuf,
    index: usize,
    rows: u64,
    header: Header,
}

impl Logits {
    /// Those among `files`, given as (name in the artifact, path of its bytes); other files are ignored.
    ///
    /// # Errors
    /// When there are none, one is damaged or missing in the row, or they were computed in different ways.
    pub fn open(files: &[(String, PathBuf)]) -> Result<Self> {
        let mut found = Vec::new();
        for (name, path) in files {
            if let Some(index) = of_file_name(name) {
                let (header, rows) = read_footer(name, path)?;
                found.push(LogitsFile { name: name.clone(), path: path.clone(), index, rows, header });
            }
        }
        found.sort_by_key(|file| file.index);
        let Some(header) = found.first().map(|file| file.header.clone()) else {
            return Err(Error::input(format!("there is no `{}` here", file_name(0)))
                .help("logits are computed by one model over the shards that another is to learn from"));
        };
        for (due, file) in found.iter().enumerate() {
            if file.index != due {
                return Err(Error::input(format!("the file `{}` is missing", file_name(due))));
            }
            if file.header != header {
                let what = "are not of one artifact: their footers differ";
                return Err(Error::input(format!("`{}` and `{}` {what}", found[0].name, file.name)));
            }
        }
        Ok(Logits { header, positions: found.iter().map(|file| file.rows).sum(), files: found })
    }
}

fn reader(name: &str, path: &Path) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>> {
    let named = Path::new(name);
    let opened = fs::open(path)?;
    let reader = parquet_io::guarded(named, || {
        ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|e| unreadable(named, &e))
    })?;
    parquet_io::expect_whole(named, reader.metadata(), fs::size(path)?)?;
    Ok(reader)
}

/// What the footer of a file says, and how many rows it has.
fn read_footer(name: &str, path: &Path) -> Result<(Header, u64)> {
    let reader = reader(name, path)?;
    let metadata = reader.metadata().file_metadata();
    let get = |key: &str| {
        let pairs = metadata.key_value_metadata();
        let found = pairs.and_then(|all| all.iter().find(|kv| kv.key.strip_prefix(KEY) == Some(key)));
        found.and_then(|kv| kv.value.clone()).ok_or_else(|| {
            Error::input(format!("`{name}` does not hold logits: its footer has no `{KEY}{key}`"))
        })
    };
    let format = get("logits")?;
    if format != FORMAT {
        return Err(Error::input(format!("`{name}` holds logits of format {format}"))
            .help(format!("this version reads format {FORMAT}: compute them anew")));
    }
    let not_a_number =
        |key: &str, text: &str| Error::input(format!("`{name}`: `{KEY}{key}` is {text:?}, not a number"));
    let number = |key: &str| {
        let text = get(key)?;
        text.parse::<usize>().map_err(|_| not_a_number(key, &text))
    };
    let digest = |key: &str| {
        let read = get(key)?.parse::<Digest>();
        read.map_err(|e| Error::input(format!("`{name}`: `{KEY}{key}`: {}", e.message())))
    };
    let temperature = get("temperature")?;
    let header = Header {
        tokenizer: digest("tokenizer")?,
        shards: digest("shards")?,
        vocab_size: number("vocab_size")?,
        temperature: temperature.parse().map_err(|_| not_a_number("temperature", &temperature))?,
        top_k: number("top_k")?,
        context: number("context")?,
    };
    parquet_io::expect_columns(Path::new(name), reader.schema(), &schema(header.vocab_size), "logits")?;
    Ok((header, metadata.num_rows().max(0) as u64))
}

#[cfg(test)]
mod tests;
