//! Duplicates among documents: exact, by digest, or near, by MinHash. The first is kept.
//!
//! Every pair is written to `duplicates.parquet`. Texts are not kept: see [`Seen`] for the memory of a
//! document.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, RecordBatch, StringBuilder, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

use super::minhash::{LshIndex, Signature};
use super::parquet_io;
use crate::base::{Error, Result};

/// The file of pairs.
pub const FILE_NAME: &str = "duplicates.parquet";

/// Where a document was read from and what its text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The first 16 bytes of the digest of the text, which are its id in hex.
    pub id: [u8; 16],
    /// The number of its file.
    pub file: u32,
    pub start: u64,
    pub end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    Exact,
    Near,
}

impl Likeness {
    pub fn as_str(self) -> &'static str {
        match self {
            Likeness::Exact => "exact",
            Likeness::Near => "near",
        }
    }
}

/// A kept document of which another is a duplicate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    pub kept: Origin,
    pub likeness: Likeness,
    /// 1 when exact, else the estimated Jaccard similarity.
    pub similarity: f64,
}

/// The documents kept so far. Each takes 40 bytes for its origin, 20 to 50 in the map of digests (exact),
/// and the memory of [`LshIndex`] (near): in all about 1 KiB with the defaults.
pub struct Seen {
    exact: bool,
    threshold: Option<f64>,
    kept: Vec<Origin>,
    by_id: HashMap<[u8; 16], u32>,
    index: LshIndex,
    /// The number in `kept` of each text of `index`.
    indexed: Vec<u32>,
}

impl Seen {
    /// Looks for equal texts when `exact`, and for near ones when there is a `threshold`.
    pub fn new(exact: bool, threshold: Option<f64>) -> Self {
        Seen {
            exact,
            threshold,
            kept: Vec::new(),
            by_id: HashMap::new(),
            index: LshIndex::default(),
            indexed: Vec::new(),
        }
    }

    /// The kept document that this one is a duplicate of. When there is none, this one is kept.
    pub fn check(&mut self, origin: Origin, signature: Option<&Signature>) -> Option<Match> {
        let found = self.find(&origin, signature);
        if found.is_none() {
            self.keep(origin, signature);
        }
        found
    }

    fn find(&self, origin: &Origin, signature: Option<&Signature>) -> Option<Match> {
        if let Some(number) = self.by_id.get(&origin.id).filter(|_| self.exact) {
            let kept = self.kept[*number as usize];
            return Some(Match { kept, likeness: Likeness::Exact, similarity: 1.0 });
        }
        let (number, similarity) = self.index.nearest(signature?, self.threshold?)?;
        let kept = self.kept[self.indexed[number as usize] as usize];
        Some(Match { kept, likeness: Likeness::Near, similarity })
    }

    fn keep(&mut self, origin: Origin, signature: Option<&Signature>) {
        let signature = signature.filter(|_| self.threshold.is_some());
        if !self.exact && signature.is_none() {
            return;
        }
        let number = self.kept.len() as u32;
        self.kept.push(origin);
        if self.exact {
            self.by_id.insert(origin.id, number);
        }
        if let Some(signature) = signature {
            self.index.insert(signature);
            self.indexed.push(number);
        }
    }
}

fn schema() -> Arc<Schema> {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let number = |name| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("kind"),
        Field::new("similarity", DataType::Float64, false),
        text("id"),
        text("source"),
        number("start"),
        number("end"),
        text("kept_id"),
        text("kept_source"),
        number("kept_start"),
        number("kept_end"),
    ]))
}

/// Writes the pairs as they are found.
pub struct DuplicateWriter {
    writer: ArrowWriter<File>,
    path: PathBuf,
    kind: StringBuilder,
    similarity: Float64Builder,
    removed: OriginColumns,
    kept: OriginColumns,
    waiting: usize,
}

#[derive(Default)]
struct OriginColumns {
    id: StringBuilder,
    source: StringBuilder,
    start: UInt64Builder,
    end: UInt64Builder,
}

impl OriginColumns {
    fn push(&mut self, origin: &Origin, source: &str) {
        self.id.append_value(hex(&origin.id));
        self.source.append_value(source);
        self.start.append_value(origin.start);
        self.end.append_value(origin.end);
    }

    fn finish(&mut self) -> [ArrayRef; 4] {
        [
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.start.finish()),
            Arc::new(self.end.finish()),
        ]
    }
}

/// 32 hex digits: the id of a document.
pub fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl DuplicateWriter {
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        Ok(DuplicateWriter {
            writer: parquet_io::writer(&path, schema(), Vec::new())?,
            path,
            kind: StringBuilder::new(),
            similarity: Float64Builder::new(),
            removed: OriginColumns::default(),
            kept: OriginColumns::default(),
            waiting: 0,
        })
    }

    /// Records that `removed` of file `source` is a duplicate of `found` in file `kept_source`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, removed: &Origin, source: &str, found: &Match, kept_source: &str) -> Result<()> {
        self.kind.append_value(found.likeness.as_str());
        self.similarity.append_value(found.similarity);
        self.removed.push(removed, source);
        self.kept.push(&found.kept, kept_source);
        self.waiting += 1;
        if self.waiting >= 8192 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(self.kind.finish()), Arc::new(self.similarity.finish())];
        columns.extend(self.removed.finish());
        columns.extend(self.kept.finish());
        let batch = RecordBatch::try_new(schema(), columns)
            .map_err(|e| Error::bug(format!("duplicates do not fit their schema: {e}")))?;
        self.waiting = 0;
        self.writer.write(&batch).map_err(|e| parquet_io::unwritable(&self.path, &e))
    }

    /// Closes the file; without this it is not a Parquet file.
    ///
    /// # Errors
    /// As [`DuplicateWriter::push`].
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.close().map(drop).map_err(|e| parquet_io::unwritable(&self.path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::minhash::MinHasher;

    #[test]
    fn the_first_stays() {
        let hasher = MinHasher::new(128, 16, 5);
        let mut seen = Seen::new(true, Some(0.8));
        let origin = |id: u8, start| Origin { id: [id; 16], file: 0, start, end: start + 1 };
        let word =
            |i: u32| format!("word{}{} ", (b'a' + (i / 26) as u8) as char, (b'a' + (i % 26) as u8) as char);
        let text: String = (0..300).map(word).collect();
        let first = hasher.signature(&text);
        let near = hasher.signature(&text.replace(&word(150), ""));
        assert_eq!(seen.check(origin(1, 0), first.as_ref()), None);
        let exact = seen.check(origin(1, 5), first.as_ref()).unwrap();
        assert_eq!((exact.likeness, exact.kept.start, exact.similarity), (Likeness::Exact, 0, 1.0));
        let found = seen.check(origin(2, 9), near.as_ref()).unwrap();
        assert_eq!((found.likeness, found.kept.start), (Likeness::Near, 0));
        assert_eq!(seen.check(origin(3, 9), hasher.signature("something else").as_ref()), None);
    }

    #[test]
    fn what_is_off_finds_nothing_and_keeps_nothing() {
        let mut seen = Seen::new(false, None);
        let origin = Origin { id: [1; 16], file: 0, start: 0, end: 1 };
        assert!(seen.check(origin, None).is_none() && seen.check(origin, None).is_none());
        assert!(seen.kept.is_empty());
    }
}
