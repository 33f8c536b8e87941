//! The files that a corpus is read from: their names, a window that slides over one, and the line and
//! column of an error.
//!
//! Independent of formats. Memory is one window; lines are counted only for a message, by reading the file
//! again, so that valid files cost nothing extra.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::base::{Error, Place, Result, fs, units};

/// A file and its name in provenance and messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Its name within its source, with `/`; never an absolute path. Its extension determines the format.
    pub name: String,
    /// The present path of its bytes.
    pub path: PathBuf,
    /// Its size in bytes, for progress.
    pub size: u64,
}

impl InputFile {
    /// A file under its own name.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn new(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(InputFile { name, path: path.to_path_buf(), size: fs::size(path)? })
    }

    /// The extension of the name, in lower case; empty when there is none.
    pub fn ending(&self) -> String {
        Path::new(&self.name).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
    }

    /// An error at byte `at` of the file, with its line and column.
    pub fn error(&self, at: u64, message: impl Into<String>) -> Error {
        let message = message.into();
        match self.place(at) {
            Ok(place) => Error::input(message).at(place),
            Err(e) => Error::input(format!("`{}`, byte {at}: {message}", self.name)).cause(e),
        }
    }

    /// Line, column and the line itself for byte `at`; reads the file up to there.
    ///
    /// # Errors
    /// When the file can no longer be read.
    pub fn place(&self, at: u64) -> Result<Place> {
        let mut window = Window::open(self)?;
        let (mut line, mut column, mut line_start) = (1, 1, 0);
        let mut after_cr = false;
        while window.offset() < at && (!window.bytes().is_empty() || window.more()?) {
            let here = window.offset();
            let take = window.bytes().len().min((at - here) as usize);
            for (i, byte) in window.bytes()[..take].iter().enumerate() {
                // A CR ends a line too; the LF after it is part of the same break.
                if matches!(byte, b'\n' | b'\r') {
                    line += usize::from(!(after_cr && *byte == b'\n'));
                    (column, line_start) = (1, here + i as u64 + 1);
                } else if byte & 0xC0 != 0x80 {
                    column += 1; // counts characters: continuation bytes of UTF-8 are not heads
                }
                after_cr = *byte == b'\r';
            }
            window.skip(take);
        }
        let excerpt = self.excerpt(line_start, at)?;
        Ok(Place { file: self.name.clone(), line, column, excerpt, width: 1 })
    }

    /// The bytes `start..end`, as far as the file has them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_range(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        let read = |e| Error::io("read", &self.path, &e);
        let mut file = fs::open(&self.path)?;
        file.seek(SeekFrom::Start(start)).map_err(read)?;
        let mut bytes = Vec::new();
        file.take(end.saturating_sub(start)).read_to_end(&mut bytes).map_err(read)?;
        Ok(bytes)
    }

    /// The line that starts at byte `start`; empty when `at` lies too far into it to be shown.
    fn excerpt(&self, start: u64, at: u64) -> Result<String> {
        const LONGEST: u64 = 1 << 20;
        let at = at.max(start);
        if at - start > LONGEST {
            return Ok(String::new());
        }
        let bytes = self.read_range(start, at + 4096)?;
        let end = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// The bytes of a file that are read and not yet consumed. It grows on request.
pub struct Window {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    head: usize,
    offset: u64,
    ended: bool,
}

impl Window {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(input: &InputFile) -> Result<Self> {
        let file = fs::open(&input.path)?;
        Ok(Window { file, path: input.path.clone(), buffer: Vec::new(), head: 0, offset: 0, ended: false })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.head..]
    }

    /// The offset in the file of the first byte of [`Window::bytes`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether [`Window::bytes`] reach to the end of the file.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads on; `false` at the end of the file. Each call may double the window, so that a search
    /// that starts over after each call still takes linear time.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn more(&mut self) -> Result<bool> {
        const LEAST: usize = 256 << 10;
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.head);
        self.head = 0;
        let old = self.buffer.len();
        let want = old.max(LEAST) as u64;
        let read = (&mut self.file).take(want).read_to_end(&mut self.buffer);
        read.map_err(|e| Error::io("read", &self.path, &e))?;
        self.ended = ((self.buffer.len() - old) as u64) < want;
        Ok(self.buffer.len() > old)
    }

    /// The length of the next line without its LF; more than `limit` when it is longer than that;
    /// `None` at the end of the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn line_length(&mut self, limit: u64) -> Result<Option<usize>> {
        let mut from = 0;
        loop {
            let bytes = self.bytes();
            if let Some(at) = bytes[from..].iter().position(|b| *b == b'\n') {
                return Ok(Some(from + at));
            }
            from = bytes.len();
            if from as u64 > limit {
                return Ok(Some(from));
            }
            if !self.more()? {
                return Ok((from > 0).then_some(from));
            }
        }
    }

    /// Consumes `n` bytes.
    pub fn skip(&mut self, n: usize) {
        self.head += n;
        self.offset += n as u64;
    }

    /// Consumes `n` bytes and returns them.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let taken = self.bytes()[..n].to_vec();
        self.skip(n);
        taken
    }

    /// Consumes a byte order mark at the start of the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn skip_byte_order_mark(&mut self) -> Result<bool> {
        if self.bytes().is_empty() {
            self.more()?;
        }
        let found = self.offset == 0 && self.bytes().starts_with(b"\xEF\xBB\xBF");
        if found {
            self.skip(3);
        }
        Ok(found)
    }
}

/// One record of a file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The bytes of the file that it was cut from (rows for Parquet): `start..end`.
    pub start: u64,
    pub end: u64,
    /// The line where it starts (text, JSONL, CSV) or the number of the element or row, from 1.
    pub row: u64,
    pub bytes: Vec<u8>,
}

impl Record {
    /// The text of the bytes.
    ///
    /// # Errors
    /// `not_utf8`, at the first byte that is no UTF-8.
    pub fn into_text(self) -> Result<String, BadRecord> {
        String::from_utf8(self.bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let message = format!("the byte 0x{:02X} is not valid UTF-8", e.as_bytes()[at]);
            BadRecord::new("not_utf8", self.start + at as u64, message).help("save the file as UTF-8")
        })
    }
}

/// The next record, its error, or `None` at the end.
pub type Next = Result<Option<Result<Record, BadRecord>>>;

/// A batch of records of about `most` bytes; empty at the end of the file. A fatal error ends a batch.
///
/// # Errors
/// When the file cannot be read.
pub fn batch(most: usize, mut next: impl FnMut() -> Next) -> Result<Vec<Result<Record, BadRecord>>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < most {
        let Some(next) = next()? else { break };
        bytes += next.as_ref().map_or(0, |record| record.bytes.len()) + size_of::<Record>();
        let fatal = next.as_ref().is_err_and(|bad| bad.fatal);
        batch.push(next);
        if fatal {
            break;
        }
    }
    Ok(batch)
}

/// An error of one record, cheap to make: line and column are only computed for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// The cause that it is counted by: `broken_json`.
    pub cause: &'static str,
    /// The byte of the file; `None` where rows have none (Parquet).
    pub at: Option<u64>,
    pub message: String,
    pub help: Vec<String>,
    /// Never skipped, whatever `on_bad_row` is.
    pub fatal: bool,
}

impl BadRecord {
    pub fn new(cause: &'static str, at: impl Into<Option<u64>>, message: impl Into<String>) -> Self {
        BadRecord { cause, at: at.into(), message: message.into(), help: Vec::new(), fatal: false }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    pub fn suggest(self, suggestion: Option<String>) -> Self {
        match suggestion {
            Some(name) => self.help(format!("did you mean `{name}`?")),
            None => self,
        }
    }

    pub fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    /// The error with its line and column in `file`.
    pub fn into_error(self, file: &InputFile) -> Error {
        let error = match self.at {
            Some(at) => file.error(at, self.message),
            None => Error::input(format!("`{}`: {}", file.name, self.message)),
        };
        self.help.into_iter().fold(error, Error::help)
    }
}

/// The error of a record that exceeds the limit.
pub fn too_long(what: &str, at: u64, limit: u64, way_out: &str) -> BadRecord {
    let message = format!("the {what} that starts here is longer than {} ({limit} B)", units::bytes(limit));
    BadRecord::new("too_long", at, message).help(way_out).fatal()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn file(bytes: &[u8]) -> (tempfile::TempDir, InputFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, bytes).unwrap();
        let file = InputFile::new(&path).unwrap();
        (dir, file)
    }

    #[test]
    fn a_place_counts_characters_and_shows_the_line() {
        let (_dir, file) = file("eins\nzwö drei\r\nvier".as_bytes());
        let place = file.place(10).unwrap();
        assert_eq!((place.line, place.column, place.excerpt.as_str()), (2, 5, "zwö drei"));
        assert_eq!(file.place(0).unwrap().line, 1);
        assert_eq!(file.place(9).unwrap().column, 4);
        let end = file.place(1000).unwrap();
        assert_eq!((end.line, end.excerpt.as_str()), (3, "vier"), "beyond the end is the end");
    }

    #[test]
    fn a_cr_alone_ends_a_line_too() {
        let (_dir, file) = file(b"one\rtwo\r\n\rfour five");
        let place = file.place(15).unwrap();
        assert_eq!((place.line, place.column, place.excerpt.as_str()), (4, 6, "four five"));
    }

    #[test]
    fn a_window_slides_over_a_file_of_any_size() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
        let (_dir, file) = file(&bytes);
        let mut window = Window::open(&file).unwrap();
        let mut seen = Vec::new();
        while window.more().unwrap() {
            let most = window.bytes().len().saturating_sub(1000);
            seen.extend(window.take(most));
            assert_eq!(window.offset(), seen.len() as u64);
        }
        let rest = window.bytes().len();
        seen.extend(window.take(rest));
        assert!(window.ended() && seen == bytes);
    }
}
