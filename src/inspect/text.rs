//! A text: its size, whether it is UTF-8, its lines.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Serialize;

use super::{Options, Page};
use crate::base::{Error, Place, Result, fs, units};

#[derive(Debug, Clone, Serialize)]
pub struct TextSummary {
    pub lines: u64,
    /// Separated by white space.
    pub words: u64,
    pub characters: u64,
    pub blank_lines: u64,
    /// Lines that end with CR LF.
    pub crlf_lines: u64,
    pub byte_order_mark: bool,
    /// Whether all of it is ASCII.
    pub ascii: bool,
    /// The first byte that is not UTF-8.
    pub invalid: Option<InvalidUtf8>,
    /// The number of the longest line, from 1, and its characters.
    pub longest_line: (u64, u64),
    pub head: Vec<String>,
}

/// Where a text stops being UTF-8; line and column from 1, the column in characters.
#[derive(Debug, Clone, Serialize)]
pub struct InvalidUtf8 {
    pub offset: u64,
    pub line: usize,
    pub column: usize,
    pub byte: u8,
    /// How many lines are not UTF-8.
    pub lines: u64,
}

/// # Errors
/// When the file cannot be read.
pub(super) fn read(path: &Path, options: &Options) -> Result<TextSummary> {
    let mut reader = BufReader::with_capacity(1 << 18, fs::open(path)?);
    let mut text = TextSummary {
        lines: 0,
        words: 0,
        characters: 0,
        blank_lines: 0,
        crlf_lines: 0,
        byte_order_mark: false,
        ascii: true,
        invalid: None,
        longest_line: (0, 0),
        head: Vec::new(),
    };
    let (mut line, mut offset) = (Vec::new(), 0);
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, &e))?;
        if n == 0 {
            return Ok(text);
        }
        text.take(&line, offset);
        if text.head.len() < options.rows {
            text.head.push(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_string());
        }
        offset += n as u64;
    }
}

impl TextSummary {
    fn take(&mut self, line: &[u8], offset: u64) {
        self.lines += 1;
        self.byte_order_mark |= offset == 0 && line.starts_with(b"\xEF\xBB\xBF");
        self.crlf_lines += u64::from(line.ends_with(b"\r\n"));
        self.ascii &= line.is_ascii();
        if let Err(e) = std::str::from_utf8(line) {
            let at = e.valid_up_to();
            let Place { column, .. } = fs::place_of_byte("", line, at);
            let first = || InvalidUtf8 {
                offset: offset + at as u64,
                line: self.lines as usize,
                column,
                byte: line[at],
                lines: 0,
            };
            let mut invalid = self.invalid.take().unwrap_or_else(first);
            invalid.lines += 1;
            self.invalid = Some(invalid);
        }
        let shown = String::from_utf8_lossy(line);
        let words = shown.split_whitespace().count() as u64;
        let length = shown.trim_end_matches(['\r', '\n']).chars().count() as u64;
        self.words += words;
        self.characters += shown.chars().count() as u64;
        self.blank_lines += u64::from(words == 0);
        if length > self.longest_line.1 {
            self.longest_line = (self.lines, length);
        }
    }

    pub(super) fn summary(&self) -> String {
        let text = format!("text of {} lines, {} words", units::count(self.lines), units::count(self.words));
        if self.invalid.is_some() { text + ", not UTF-8" } else { text }
    }

    pub(super) fn render(&self, page: &mut Page) {
        let encoding = match (&self.invalid, self.ascii, self.byte_order_mark) {
            (Some(at), ..) => format!(
                "not UTF-8: byte {} (0x{:02X}) at line {}, column {}; {} lines are not",
                at.offset,
                at.byte,
                at.line,
                at.column,
                units::count(at.lines)
            ),
            (None, true, _) => "ASCII".to_string(),
            (None, _, true) => "UTF-8 with a byte order mark".to_string(),
            _ => "UTF-8".to_string(),
        };
        page.field("encoding", Some(encoding));
        page.field("characters", Some(units::count(self.characters)));
        page.field("blank lines", Some(units::count(self.blank_lines)).filter(|_| self.blank_lines > 0));
        page.field("CR LF lines", Some(units::count(self.crlf_lines)).filter(|_| self.crlf_lines > 0));
        let (line, length) = self.longest_line;
        page.field("longest line", Some(format!("{line}, of {} characters", units::count(length))));
        page.out.push('\n');
        for line in &self.head {
            page.line(format!("  {line}"));
        }
    }
}
