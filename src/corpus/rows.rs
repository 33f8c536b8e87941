//! Records of CSV files, one at a time, each with its place; read without ever holding a whole file.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::rc::Rc;

use super::input::{Bad, InputFile, Record, too_long};
use crate::base::{Error, Result, fs};

/// Records of a CSV file with a header.
pub struct CsvRows {
    reader: csv::Reader<Capped>,
    /// Bytes that may still be read for the current record.
    budget: Rc<Cell<u64>>,
    limit: u64,
    headers: Vec<String>,
    record: csv::ByteRecord,
}

/// A reader that refuses to go on when a record swallows the file: a quote that nothing closes.
struct Capped {
    file: File,
    budget: Rc<Cell<u64>>,
}

const OVER_BUDGET: &str = "over budget";

impl Read for Capped {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.budget.get();
        if left == 0 {
            return Err(std::io::Error::other(OVER_BUDGET));
        }
        let n = self.file.read(buffer)?;
        self.budget.set(left.saturating_sub(n as u64));
        Ok(n)
    }
}

impl CsvRows {
    /// # Errors
    /// When the file cannot be read or its header is not text.
    pub fn open(file: &InputFile, delimiter: u8, limit: u64) -> Result<Self> {
        let budget = Rc::new(Cell::new(limit + (1 << 16)));
        let capped = Capped { file: fs::open(&file.path)?, budget: budget.clone() };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(capped);
        let headers = reader.byte_headers().map_err(|e| csv_error(&e, 0, limit).fatal().into_error(file))?;
        let headers = headers.iter().map(|h| String::from_utf8_lossy(h).trim().to_string()).collect();
        Ok(CsvRows { reader, budget, limit, headers, record: csv::ByteRecord::new() })
    }

    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    /// The fields of the record that [`CsvRows::next`] found last.
    pub fn fields(&self) -> &csv::ByteRecord {
        &self.record
    }

    /// The place of the next record; its `bytes` are empty, see [`CsvRows::fields`].
    pub fn next(&mut self) -> Option<Result<Record, Bad>> {
        self.budget.set(self.limit + (1 << 16));
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => None,
            Ok(true) => {
                let (start, row) = self.record.position().map_or((0, 0), |p| (p.byte(), p.line()));
                let end = self.reader.position().byte();
                Some(Ok(Record { start, end, row, bytes: Vec::new() }))
            }
            Err(e) => Some(Err(csv_error(&e, self.reader.position().byte(), self.limit))),
        }
    }
}

fn csv_error(error: &csv::Error, at: u64, limit: u64) -> Bad {
    let at = error.position().map_or(at, csv::Position::byte);
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let message = format!("this record has {len} fields, the header has {expected_len}");
            Bad::new("unequal_columns", at, message)
                .help("quote fields that hold the delimiter, or name another `delimiter`")
        }
        csv::ErrorKind::Io(e) if e.to_string() == OVER_BUDGET => too_long(
            "record",
            at,
            limit,
            "raise the limit if this is meant, or look for a `\"` that is not closed",
        ),
        _ => Bad::new("broken_csv", at, format!("this is not CSV: {error}")).fatal(),
    }
}

/// The column called `name` among `found`.
///
/// # Errors
/// Names what there is.
pub fn column_of(name: &str, found: &[String], file: &InputFile) -> Result<usize> {
    found.iter().position(|header| header == name).ok_or_else(|| {
        let names = found.iter().map(String::as_str);
        Error::input(format!("`{}` has no column `{name}`", file.name))
            .suggest(crate::base::suggest::closest(name, names.clone()))
            .help(format!("its columns are {}", crate::base::suggest::list(names)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, InputFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let file = InputFile::new(&path).unwrap();
        (dir, file)
    }

    #[test]
    fn an_open_quote_does_not_swallow_a_big_file() {
        let mut text = b"text\n\"never closed\n".to_vec();
        text.resize(400_000, b'x');
        let (_dir, file) = file("a.csv", &text);
        let bad = CsvRows::open(&file, b',', 1000).unwrap().next().unwrap().unwrap_err();
        assert!(bad.fatal && bad.message.contains("longer than"), "{bad:?}");
    }
}
