//! Logits by position, in any order: from Parquet into a scratch file of fixed-size records, so that memory
//! holds no more than is asked for.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::array::{Array, Float32Array, ListArray, RecordBatch, UInt16Array, UInt32Array, UInt64Array};

use super::{Logits, LogitsFile, probability, reader};
use crate::base::{Error, Monitor, Result, fs};
use crate::corpus::parquet_io::{self, unreadable};
use crate::shard::TokenStream;

/// Rows decoded in one go.
const BATCH_ROWS: usize = 4096;

/// The ids and probabilities of every position of a stream, read from where they lie on disk.
pub struct Table {
    file: File,
    path: PathBuf,
    top_k: usize,
    positions: usize,
    bytes: Vec<u8>,
}

impl Table {
    /// Writes a scratch file of `8 top_k` bytes a position into the folder `scratch`. The rows must be those
    /// of `stream`.
    ///
    /// # Errors
    /// Rows that are damaged or of other tokens, named by file and row; a full disk; cancellation.
    pub fn new(logits: &Logits, stream: &TokenStream, scratch: &Path, monitor: &dyn Monitor) -> Result<Self> {
        if logits.positions != stream.len() as u64 {
            return Err(other_stream(&format!(
                "the logits have {} positions, the shards {} tokens to train on",
                logits.positions,
                stream.len()
            )));
        }
        let path = scratch.join("logits.bin");
        let mut writer = Records {
            out: BufWriter::new(fs::create(&path)?),
            path: &path,
            logits,
            stream,
            position: 0,
            expected: Vec::new(),
        };
        for file in &logits.files {
            parquet_io::guarded(Path::new(&file.name), || writer.add(file, monitor))?;
        }
        writer.out.flush().map_err(|e| Error::io("write", &path, &e))?;
        Ok(Table {
            file: fs::open(&path)?,
            path,
            top_k: logits.header.top_k,
            positions: stream.len(),
            bytes: Vec::new(),
        })
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Reads `positions` into `ids` and `probabilities`, `[N, top_k]`.
    ///
    /// # Errors
    /// When the scratch file cannot be read.
    ///
    /// # Panics
    /// When there are not so many positions, or an output is of another size.
    pub fn read(
        &mut self,
        positions: Range<usize>,
        ids: &mut [u32],
        probabilities: &mut [f32],
    ) -> Result<()> {
        let (k, n) = (self.top_k, positions.len());
        assert!(positions.end <= self.positions && ids.len() == n * k && probabilities.len() == n * k);
        self.bytes.resize(8 * k * n, 0);
        self.file
            .seek(SeekFrom::Start((positions.start * 8 * k) as u64))
            .and_then(|_| self.file.read_exact(&mut self.bytes))
            .map_err(|e| Error::io("read", &self.path, &e))?;
        let rows = ids.chunks_exact_mut(k).zip(probabilities.chunks_exact_mut(k));
        for (record, (ids, probabilities)) in self.bytes.chunks_exact(8 * k).zip(rows) {
            let (first, second) = record.split_at(4 * k);
            let words = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
            ids.iter_mut().zip(first.chunks_exact(4)).for_each(|(id, bytes)| *id = words(bytes));
            let bits = second.chunks_exact(4).map(words);
            probabilities.iter_mut().zip(bits).for_each(|(p, bits)| *p = f32::from_bits(bits));
        }
        Ok(())
    }
}

/// The scratch file, being written.
struct Records<'a> {
    out: BufWriter<File>,
    path: &'a Path,
    logits: &'a Logits,
    stream: &'a TokenStream,
    /// The next.
    position: usize,
    /// The tokens of the stream at the rows of a batch.
    expected: Vec<u32>,
}

impl Records<'_> {
    fn add(&mut self, file: &LogitsFile, monitor: &dyn Monitor) -> Result<()> {
        let named = Path::new(&file.name);
        let batches = reader(&file.name, &file.path)?.with_batch_size(BATCH_ROWS).build();
        let mut row = 0;
        for batch in batches.map_err(|e| unreadable(named, &e))? {
            monitor.step("logits", self.position as u64, Some(self.logits.positions), "positions")?;
            let batch = batch.map_err(|e| unreadable(named, &e))?;
            self.add_batch(&Columns::of(&batch, named)?)
                .map_err(|(i, why)| Error::input(format!("`{}`, row {}: {why}", file.name, row + i)))??;
            row += batch.num_rows();
        }
        Ok(())
    }

    /// The outer error is of a row of the batch, the inner one of the disk.
    fn add_batch(&mut self, columns: &Columns) -> Result<Result<()>, (usize, String)> {
        let n = columns.tokens.len();
        self.expected.resize(n.min(self.stream.len() - self.position), 0);
        self.stream.window(self.position, &mut self.expected);
        for i in 0..n {
            self.check(columns, i).map_err(|why| (i, why))?;
            if let Err(e) = self.write(columns, i) {
                return Ok(Err(Error::io("write", self.path, &e)));
            }
            self.position += 1;
        }
        Ok(Ok(()))
    }

    fn check(&self, columns: &Columns, i: usize) -> Result<(), String> {
        let (header, due) = (&self.logits.header, self.position as u64);
        if columns.positions.value(i) != due {
            return Err(format!("it is position {}, expected is {due}", columns.positions.value(i)));
        }
        if self.expected.get(i) != Some(&columns.tokens[i]) {
            let there = self.expected.get(i).map_or("none".to_string(), u32::to_string);
            return Err(format!("the token is {}, that of the shards {there}", columns.tokens[i]));
        }
        let k = header.top_k;
        let found = [columns.ids.range(i).len(), columns.log_probs.range(i).len()];
        if found != [k, k] {
            return Err(format!(
                "expected {k} ids and log-probabilities, found {} and {}",
                found[0], found[1]
            ));
        }
        check_row(columns.ids.row(i), columns.log_probs.row(i), header.vocab_size)
    }

    fn write(&mut self, columns: &Columns, i: usize) -> std::io::Result<()> {
        for id in columns.ids.row(i) {
            self.out.write_all(&id.to_le_bytes())?;
        }
        for log_prob in columns.log_probs.row(i) {
            self.out.write_all(&probability(*log_prob).to_le_bytes())?;
        }
        Ok(())
    }
}

/// What is wrong with the ids and log-probabilities of a row.
fn check_row(ids: &[u32], log_probs: &[f32], vocab_size: usize) -> Result<(), String> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(format!("the id {id} is beyond the vocabulary of {vocab_size}"));
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("the id {} stands twice", twice[0]));
    }
    if let Some(odd) = log_probs.iter().find(|log_prob| !(log_prob.is_finite() && **log_prob <= 0.0)) {
        return Err(format!("expected log-probabilities, found {odd}"));
    }
    let sum: f64 = log_probs.iter().map(|log_prob| f64::from(probability(*log_prob))).sum();
    if sum > 1.001 { Err(format!("its probabilities sum to {sum:.4}")) } else { Ok(()) }
}

/// A batch of rows.
struct Columns {
    positions: UInt64Array,
    tokens: Vec<u32>,
    ids: Lists<u32>,
    log_probs: Lists<f32>,
}

struct Lists<T> {
    values: Vec<T>,
    ends: Vec<i32>,
}

impl<T> Lists<T> {
    fn of(list: &ListArray, values: Vec<T>) -> Self {
        Lists { values, ends: list.value_offsets().to_vec() }
    }

    fn range(&self, i: usize) -> Range<usize> {
        self.ends[i] as usize..self.ends[i + 1] as usize
    }

    fn row(&self, i: usize) -> &[T] {
        &self.values[self.range(i)]
    }
}

impl Columns {
    fn of(batch: &RecordBatch, name: &Path) -> Result<Self> {
        let ids: ListArray = parquet_io::column(batch, "ids", name)?;
        let log_probs: ListArray = parquet_io::column(batch, "log_probs", name)?;
        let values = log_probs.values().as_any().downcast_ref::<Float32Array>();
        let values = values.ok_or_else(|| unreadable(name, &"its `log_probs` are not floats"))?;
        let tokens = batch.column_by_name("token").map(|column| column.as_ref());
        let not_ids = || unreadable(name, &"its `token` and `ids` are not token ids");
        Ok(Columns {
            positions: parquet_io::column(batch, "position", name)?,
            tokens: tokens.and_then(numbers).ok_or_else(not_ids)?,
            ids: Lists::of(&ids, numbers(ids.values()).ok_or_else(not_ids)?),
            log_probs: Lists::of(&log_probs, values.values().to_vec()),
        })
    }
}

/// Token ids of either width.
fn numbers(array: &dyn Array) -> Option<Vec<u32>> {
    let any = array.as_any();
    let narrow =
        any.downcast_ref::<UInt16Array>().map(|all| all.values().iter().map(|t| u32::from(*t)).collect());
    narrow.or_else(|| any.downcast_ref::<UInt32Array>().map(|all| all.values().to_vec()))
}

fn other_stream(what: &str) -> Error {
    Error::input(what.to_string()).help("learn from the shards that the logits were computed over")
}
