//! Records of JSON files, one at a time, each with the bytes that it was cut from. JSON is cut here and
//! parsed by whoever wants it; a file is read without ever holding all of it.

use serde_json::Value;

use super::input::{Bad, InputFile, Record, Window, too_long};
use crate::base::Result;

/// What reading the next record may give: it, its defect, or nothing at the end.
pub type Next = Result<Option<Result<Record, Bad>>>;

/// JSON values: one a line (JSONL), or the elements of one array. Which of the two it is, the first
/// character tells.
pub struct JsonRows {
    window: Window,
    limit: u64,
    array: Option<bool>,
    row: u64,
    ended: bool,
}

const RAISE: &str = "raise the limit if this is meant, or look for a missing line break or bracket";

impl JsonRows {
    /// No record may be longer than `limit` bytes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &InputFile, limit: u64) -> Result<Self> {
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        Ok(JsonRows { window, limit, array: None, row: 0, ended: false })
    }

    /// Whether the file is one array; known after the first record.
    pub fn is_array(&self) -> bool {
        self.array == Some(true)
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn next(&mut self) -> Next {
        if self.array.is_none() {
            let first = self.peek()?;
            self.array = Some(first == Some(b'['));
        }
        match self.is_array() {
            _ if self.ended => Ok(None),
            true => self.next_element(),
            false => self.next_line(),
        }
    }

    /// The next byte that is not a blank, without consuming anything but line breaks (they count).
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let blanks = self.window.bytes().iter().take_while(|b| b.is_ascii_whitespace()).count();
            if let Some(byte) = self.window.bytes().get(blanks) {
                return Ok(Some(*byte));
            }
            let lines = self.window.bytes().iter().filter(|b| **b == b'\n').count();
            self.row += lines as u64;
            self.window.skip(blanks);
            if !self.window.more()? {
                return Ok(None);
            }
        }
    }

    fn next_line(&mut self) -> Next {
        loop {
            let start = self.window.offset();
            let Some(length) = self.window.line_length(self.limit)? else {
                return Ok(None);
            };
            if length as u64 > self.limit {
                self.ended = true;
                return Ok(Some(Err(too_long("line", start, self.limit, RAISE))));
            }
            let bytes = self.window.take(length);
            self.window.skip(1.min(self.window.bytes().len()));
            self.row += 1;
            let text = bytes.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let start = start + (bytes.len() - bytes.trim_ascii_start().len()) as u64;
            let end = start + text.len() as u64;
            return Ok(Some(Ok(Record { start, end, row: self.row, bytes: text.to_vec() })));
        }
    }

    fn next_element(&mut self) -> Next {
        let expected = if self.row == 0 { b'[' } else { b',' };
        match self.take_mark()? {
            Some(b']') if self.row > 0 => return self.after_array(),
            Some(mark) if mark == expected => {}
            found => return Ok(Some(Err(self.not_an_array(found)))),
        }
        if self.peek()? == Some(b']') && self.row == 0 {
            self.take_mark()?;
            return self.after_array();
        }
        let blanks = self.window.bytes().iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.window.skip(blanks);
        let start = self.window.offset();
        let length = loop {
            match value_length(self.window.bytes()) {
                Some(length) => break length,
                None if self.window.bytes().len() as u64 > self.limit => {
                    self.ended = true;
                    return Ok(Some(Err(too_long("element", start, self.limit, RAISE))));
                }
                None if !self.window.more()? => break self.window.bytes().len(),
                None => {}
            }
        };
        self.row += 1;
        let bytes = self.window.take(length);
        Ok(Some(Ok(Record { start, end: start + length as u64, row: self.row, bytes })))
    }

    fn take_mark(&mut self) -> Result<Option<u8>> {
        let mark = self.peek()?;
        let blanks = self.window.bytes().iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.window.skip(blanks + usize::from(mark.is_some()));
        Ok(mark)
    }

    fn after_array(&mut self) -> Next {
        self.ended = true;
        let rest = self.peek()?;
        let at = self.window.offset();
        Ok(rest.map(|_| {
            Err(Bad::new("broken_json", at, "something follows the end of the array")
                .help("a file holds one array, or one value a line (JSONL)")
                .fatal())
        }))
    }

    fn not_an_array(&mut self, found: Option<u8>) -> Bad {
        self.ended = true;
        let found = found.map_or("the end of the file".to_string(), |b| format!("`{}`", b.escape_ascii()));
        let at = self.window.offset().saturating_sub(1);
        Bad::new("broken_json", at, format!("expected `,` or `]` after an element, found {found}"))
            .help("this file starts with `[`, so it is read as one JSON array")
            .fatal()
    }
}

/// The length of the JSON value that `bytes` start with; `None` when it does not end in them.
fn value_length(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b',' | b']' | b'}' if depth == 0 => return Some(i),
            b'}' | b']' => depth -= 1,
            blank if depth == 0 && blank.is_ascii_whitespace() => return Some(i),
            _ => continue,
        }
        if depth == 0 && !quoted && !escaped && matches!(byte, b'"' | b'}' | b']') {
            return Some(i + 1);
        }
    }
    None
}

/// Parses the JSON of a record.
///
/// # Errors
/// The defect, at the byte where the parser stopped.
pub fn parse_json(text: &str, start: u64) -> Result<Value, Bad> {
    serde_json::from_str(text).map_err(|e| {
        let lines: usize = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
        let at = (lines + e.column().saturating_sub(1)).min(text.len());
        let message = e.to_string();
        let what = message.split(" at line ").next().unwrap_or("");
        Bad::new("broken_json", start + at as u64, format!("this is not JSON: {what}"))
            .help("in JSONL each line is one whole JSON value; a `.json` file may also be one array")
    })
}

/// What a value is, for "expected a text, found …".
pub fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use proptest::prelude::*;

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, InputFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let file = InputFile::new(&path).unwrap();
        (dir, file)
    }

    fn rows(text: &str, limit: u64) -> (Vec<(u64, String)>, Option<Bad>) {
        let (_dir, file) = file("a.json", text.as_bytes());
        let mut reader = JsonRows::open(&file, limit).unwrap();
        let mut out = Vec::new();
        while let Some(next) = reader.next().unwrap() {
            match next {
                Ok(record) => {
                    let cut = &text.as_bytes()[record.start as usize..record.end as usize];
                    assert_eq!(cut, record.bytes, "provenance is exact");
                    out.push((record.row, String::from_utf8(record.bytes).unwrap()));
                }
                Err(bad) => return (out, Some(bad)),
            }
        }
        (out, None)
    }

    #[test]
    fn lines_and_elements_are_cut_alike() {
        let (lines, _) = rows("\u{FEFF}\n {\"a\":1} \r\n\n{\"b\":2}", 100);
        assert_eq!(lines, [(2, "{\"a\":1}".into()), (4, "{\"b\":2}".into())]);
        let (elements, _) = rows("\n[ {\"a\":\"]}\\\"\"} ,\n 3,[1,[2]], \"x\" ] \n", 100);
        let texts: Vec<&str> = elements.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["{\"a\":\"]}\\\"\"}", "3", "[1,[2]]", "\"x\""]);
        assert_eq!(rows("[]", 9), (vec![], None));
        assert_eq!(rows("", 9), (vec![], None));
    }

    #[test]
    fn broken_arrays_and_long_rows_are_named() {
        assert!(rows("[1 2]", 9).1.unwrap().message.contains("found `2`"));
        assert!(rows("[1,2", 9).1.unwrap().message.contains("the end of the file"));
        assert!(rows("[1] x", 9).1.unwrap().message.contains("follows the end"));
        assert!(rows("{}\n{\"a\": \"long\"}\n", 9).1.unwrap().message.contains("longer than 9 B"));
        let bad = parse_json("{\"a\": nope}", 100).unwrap_err();
        assert_eq!(bad.at, Some(107), "{bad:?}");
    }

    proptest! {
        #[test]
        fn an_array_reads_as_its_elements(values in proptest::collection::vec("[a\\[\\]{},\"\\\\ ]{0,6}", 0..6)) {
            let text = serde_json::to_string_pretty(&values).unwrap();
            let (rows, bad) = rows(&text, 1000);
            prop_assert_eq!(bad, None);
            let back: Vec<String> = rows.iter().map(|(_, t)| serde_json::from_str(t).unwrap()).collect();
            prop_assert_eq!(back, values);
        }

        #[test]
        fn no_bytes_make_it_panic(text in "[\\[\\]{},:\"a1\\\\ \n]{0,40}") {
            let (_, _) = rows(&text, 1000);
        }
    }
}
