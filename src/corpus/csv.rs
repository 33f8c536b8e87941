//! Records of a CSV file with a header, one at a time, without ever holding a whole file.
//!
//! The end of a record is found by its quotes alone, then its fields are parsed. After a record with wrong
//! quotes reading continues in the line after the one where the quote opens, so that an unclosed quote does
//! not consume the rest of the file.

use super::decode::{Encoding, decode};
use super::input::{BadRecord, InputFile, Record, Window, too_long};
use crate::base::{Error, Invalid, Result, suggest};

/// Records of a CSV file with a header.
pub struct CsvRows {
    window: Window,
    delimiter: u8,
    limit: u64,
    /// The number of the next line.
    line: u64,
    ended: bool,
    headers: Vec<String>,
    /// Boxed for its size, half a KiB of states.
    parser: Box<csv_core::Reader>,
    text: Vec<u8>,
    ends: Vec<usize>,
    record: csv::ByteRecord,
}

/// Validates a user's `delimiter`.
pub fn validate_delimiter(delimiter: Option<char>) -> Result<(), Invalid> {
    match delimiter.filter(|c| !c.is_ascii() || matches!(c, '"' | '\n' | '\r')) {
        Some(c) => Err(Invalid::new("delimiter", format!("must be one ASCII character, found {c:?}"))),
        None => Ok(()),
    }
}

const RAISE: &str = "raise the limit if this is meant, or look for a `\"` that is not closed";
const DOUBLE: &str = "inside a quoted field, a double quote is written twice: \"\"";

impl CsvRows {
    /// No record may be longer than `limit` bytes.
    ///
    /// # Errors
    /// When the file cannot be read, or its header is broken or names a column twice.
    pub fn open(file: &InputFile, delimiter: u8, limit: u64) -> Result<Self> {
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        let mut rows = CsvRows {
            window,
            delimiter,
            limit,
            line: 1,
            ended: false,
            headers: Vec::new(),
            parser: Box::new(csv_core::ReaderBuilder::new().delimiter(delimiter).build()),
            text: Vec::new(),
            ends: Vec::new(),
            record: csv::ByteRecord::new(),
        };
        if let Some(record) = rows.read()? {
            let record = record.map_err(|bad| bad.into_error(file))?;
            rows.headers = rows.record.iter().map(header).collect();
            if let Some(name) = repeated(&rows.headers) {
                return Err(file
                    .error(record.start, format!("the header has two columns called `{name}`"))
                    .help("rename one of them: which of the two is meant cannot be told"));
            }
        }
        Ok(rows)
    }

    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    /// The fields of the record that [`CsvRows::next`] found last.
    pub fn fields(&self) -> &csv::ByteRecord {
        &self.record
    }

    /// The range of the next record, without its line break; its `bytes` are empty, see [`CsvRows::fields`].
    pub fn next(&mut self) -> Option<Result<Record, BadRecord>> {
        let record = match self.read() {
            Ok(record) => record?,
            Err(e) => Err(BadRecord::new("broken_csv", self.window.offset(), e.to_string()).fatal()),
        };
        Some(record.and_then(|record| {
            let (found, wanted) = (self.record.len(), self.headers.len());
            if found == wanted {
                return Ok(record);
            }
            let message = format!("this record has {found} fields, the header has {wanted}");
            Err(BadRecord::new("unequal_columns", record.start, message)
                .help("quote fields that hold the delimiter, or name another `delimiter`"))
        }))
    }

    /// The next record with any number of fields; blank lines are skipped.
    fn read(&mut self) -> Result<Option<Result<Record, BadRecord>>> {
        while !self.ended && self.blank_line()? {}
        if self.ended || self.window.bytes().is_empty() {
            return Ok(None);
        }
        let mut scan = Scan::default();
        let end = loop {
            let bytes = self.window.bytes();
            match scan.run(bytes, self.delimiter) {
                Some(End::Record(length)) if length as u64 <= self.limit => break End::Record(length),
                Some(End::StrayQuote(at)) => break End::StrayQuote(at),
                _ if bytes.len() as u64 > self.limit => {
                    self.ended = true;
                    let at = self.window.offset();
                    return Ok(Some(Err(too_long("record", at, self.limit, RAISE))));
                }
                _ if !self.window.more()? => break scan.at_end_of_file(),
                _ => {}
            }
        };
        Ok(Some(match end {
            End::Record(length) => Ok(self.take(length, scan.fields)),
            End::StrayQuote(at) => Err(self.stray_quote(scan.quote, at)),
            End::OpenQuote => Err(self.unclosed_quote(scan.quote)),
        }))
    }

    /// Consumes a line break that stands next; `false` when there is none.
    fn blank_line(&mut self) -> Result<bool> {
        if self.window.bytes().len() < 2 {
            self.window.more()?; // behind a CR there may be a LF
        }
        let length = match self.window.bytes() {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => return Ok(false),
        };
        self.window.skip(length);
        self.line += 1;
        Ok(true)
    }

    fn take(&mut self, length: usize, fields: usize) -> Record {
        self.parse(length, fields);
        let (start, row) = (self.window.offset(), self.line);
        self.line += line_breaks(&self.window.bytes()[..length]);
        self.window.skip(length);
        Record { start, end: start + length as u64, row, bytes: Vec::new() }
    }

    fn parse(&mut self, length: usize, fields: usize) {
        // One more of each than is written: the parser stops at a full buffer.
        self.text.resize((length + 1).max(self.text.len()), 0);
        self.ends.resize((fields + 2).max(self.ends.len()), 0);
        let raw = &self.window.bytes()[..length];
        let (_, _, text, ends) = self.parser.read_record(raw, &mut self.text, &mut self.ends);
        // The line break ends the record for the parser, which then is ready for the next.
        let rest = (&mut self.text[text..], &mut self.ends[ends..]);
        let (_, _, _, more) = self.parser.read_record(b"\n", rest.0, rest.1);
        self.record.clear();
        let mut start = 0;
        for end in &self.ends[..ends + more] {
            self.record.push_field(&self.text[start..*end]);
            start = *end;
        }
    }

    fn stray_quote(&mut self, quote: usize, stray: usize) -> BadRecord {
        let at = self.window.offset() + stray as u64;
        let line = self.line + line_breaks(&self.window.bytes()[..quote]);
        self.skip_broken(quote);
        let message = format!("text follows the quote that closes this field (it opens on line {line})");
        BadRecord::new("stray_quote", at, message).help(DOUBLE)
    }

    fn unclosed_quote(&mut self, quote: usize) -> BadRecord {
        let bytes = self.window.bytes();
        let at = self.window.offset() + quote as u64;
        let first = self.line + line_breaks(&bytes[..quote]);
        let last = first + line_breaks(bytes[quote..].trim_ascii_end());
        self.skip_broken(quote);
        let swallowed = match last > first {
            true => format!(": it takes lines {first} to {last} with it"),
            false => String::new(),
        };
        let message = format!("the quote that opens on line {first} is never closed{swallowed}");
        BadRecord::new("unclosed_quote", at, message).help(format!("close it, or remove it; {DOUBLE}"))
    }

    /// Consumes up to the end of the line in which the quote at `quote` opens.
    fn skip_broken(&mut self, quote: usize) {
        let bytes = self.window.bytes();
        let rest = bytes[quote..].iter().position(|b| matches!(b, b'\n' | b'\r'));
        let length = rest.map_or(bytes.len(), |rest| quote + rest);
        self.line += line_breaks(&bytes[..length]);
        self.window.skip(length);
    }
}

/// The name of a column. Names that are not UTF-8 are read as Windows-1252; fields are decoded by the
/// caller.
fn header(bytes: &[u8]) -> String {
    let name = match std::str::from_utf8(bytes) {
        Ok(name) => name.to_string(),
        Err(_) => {
            decode(bytes.to_vec(), Encoding::Windows1252, true).map_or_else(|_| String::new(), |d| d.text)
        }
    };
    name.trim().to_string()
}

/// How many lines end in `bytes`: LF, CR LF and CR are one line break each.
fn line_breaks(bytes: &[u8]) -> u64 {
    let is_break = |(i, byte): (usize, &u8)| match byte {
        b'\n' => i == 0 || bytes[i - 1] != b'\r',
        byte => *byte == b'\r',
    };
    bytes.iter().enumerate().filter(|pair| is_break(*pair)).count() as u64
}

/// A duplicate in `names`. Blank names are ignored, since no param can name them.
pub fn repeated(names: &[String]) -> Option<&str> {
    let again = |(i, name): &(usize, &String)| !name.is_empty() && names[..*i].contains(name);
    names.iter().enumerate().find(again).map(|(_, name)| name.as_str())
}

/// Where in the bytes `raw` of a record its field number `field`, from 0, starts.
pub fn field_start(raw: &[u8], delimiter: u8, field: usize) -> usize {
    let mut scan = Scan::default();
    let seen =
        (1..=raw.len()).find(|seen| scan.fields == field || scan.run(&raw[..*seen], delimiter).is_some());
    seen.map_or(raw.len(), |seen| seen - 1)
}

/// Looks for the end of a record, a window at a time.
#[derive(Default)]
struct Scan {
    /// The bytes scanned so far.
    at: usize,
    state: State,
    /// Where the last quoted field opened.
    quote: usize,
    /// Fields that ended.
    fields: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    FieldStart,
    Unquoted,
    Quoted,
    /// After a quote in a quoted field: it closes the field, or is the first of two.
    Closing,
}

enum End {
    /// In front of the line break.
    Record(usize),
    StrayQuote(usize),
    OpenQuote,
}

impl Scan {
    /// Scans more of `bytes`, which start with the record; `None` when it continues after them.
    fn run(&mut self, bytes: &[u8], delimiter: u8) -> Option<End> {
        while let Some(byte) = bytes.get(self.at) {
            self.state = match (self.state, *byte) {
                (State::Quoted, b'"') => State::Closing,
                (State::Quoted, _) => State::Quoted,
                (State::Closing, b'"') => State::Quoted,
                (_, b'\n' | b'\r') => return Some(End::Record(self.at)),
                (_, byte) if byte == delimiter => {
                    self.fields += 1;
                    State::FieldStart
                }
                (State::Closing, _) => return Some(End::StrayQuote(self.at)),
                (State::FieldStart, b'"') => {
                    self.quote = self.at;
                    State::Quoted
                }
                (State::FieldStart | State::Unquoted, _) => State::Unquoted,
            };
            self.at += 1;
        }
        None
    }

    fn at_end_of_file(&self) -> End {
        match self.state {
            State::Quoted => End::OpenQuote,
            _ => End::Record(self.at),
        }
    }
}

/// The column called `name` among `found`.
///
/// # Errors
/// Lists the columns.
pub fn column_of(name: &str, found: &[String], file: &InputFile) -> Result<usize> {
    found.iter().position(|header| header == name).ok_or_else(|| {
        let names = found.iter().map(String::as_str);
        Error::input(format!("`{}` has no column `{name}`", file.name))
            .suggest(suggest::closest(name, names.clone()))
            .help(format!("its columns are {}", suggest::list(names)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use proptest::prelude::*;

    type Row = (u64, Vec<String>);

    fn open(bytes: &[u8], limit: u64) -> Result<(tempfile::TempDir, CsvRows)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, bytes).unwrap();
        let rows = CsvRows::open(&InputFile::new(&path).unwrap(), b',', limit)?;
        Ok((dir, rows))
    }

    /// The line and the fields of each record, and what is wrong with the others.
    fn read(bytes: &[u8]) -> (Vec<Row>, Vec<BadRecord>) {
        let (_dir, mut rows) = open(bytes, 1 << 20).unwrap();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        while let Some(next) = rows.next() {
            match next {
                Ok(record) => {
                    let fields = rows.fields().iter().map(|f| String::from_utf8_lossy(f).into_owned());
                    good.push((record.row, fields.collect()));
                }
                Err(e) => bad.push(e),
            }
        }
        (good, bad)
    }

    fn row(line: u64, fields: &[&str]) -> Row {
        (line, fields.iter().map(|f| f.to_string()).collect())
    }

    #[test]
    fn records_end_at_any_line_break_outside_of_quotes() {
        let text = "\u{FEFF}a, b \r\n\r\n1,\"two\r\nlines, \"\"quoted\"\"\"\r\r3,5\" pipe\n\n4,";
        let (rows, bad) = read(text.as_bytes());
        assert_eq!(bad, []);
        let expected =
            [row(3, &["1", "two\r\nlines, \"quoted\""]), row(6, &["3", "5\" pipe"]), row(8, &["4", ""])];
        assert_eq!(rows, expected);
        let (_dir, rows) = open(text.as_bytes(), 99).unwrap();
        assert_eq!(rows.headers(), ["a", "b"]);
        assert!(open(b"", 9).unwrap().1.next().is_none());
    }

    #[test]
    fn a_quote_that_nothing_closes_costs_its_line_and_names_what_it_takes() {
        let mut text = "text,id\nfirst,1\n\"never closed,2\n".to_string();
        text.extend((3..=40).map(|i| format!("row {i},{i}\n")));
        let (rows, bad) = read(text.as_bytes());
        assert_eq!((rows.len(), bad.len()), (39, 1));
        assert_eq!(rows[1], row(4, &["row 3", "3"]));
        assert_eq!((bad[0].cause, bad[0].at, bad[0].fatal), ("unclosed_quote", Some(16), false));
        assert!(bad[0].message.contains("opens on line 3") && bad[0].message.contains("lines 3 to 41"));
        let (rows, bad) = read(b"a,b\n\"x\ny\",\"open\n1,2\n");
        assert_eq!(rows, [row(4, &["1", "2"])], "it opens in the second line of its record");
        assert!(bad[0].message.contains("opens on line 3") && bad[0].at == Some(10), "{bad:?}");
    }

    #[test]
    fn a_quote_in_the_middle_of_a_field_is_bad_and_says_how_to_write_it() {
        let (rows, bad) = read(b"a,b\n\"he said \"hi\" twice\",1\nfine,2\n\"never,3\n\"whole\",4\n");
        assert_eq!(rows, [row(3, &["fine", "2"]), row(5, &["whole", "4"])]);
        assert_eq!(bad.iter().map(|b| b.cause).collect::<Vec<_>>(), ["stray_quote"; 2]);
        assert_eq!(bad[0].at, Some(14));
        assert!(bad[0].help[0].contains("\"\""), "{bad:?}");
    }

    #[test]
    fn records_of_another_length_and_headers_that_stand_twice_are_named() {
        let (rows, bad) = read(b"a,b\n1\n1,2,3\n1,2\n");
        assert_eq!((rows.len(), bad.len(), bad[1].at), (1, 2, Some(6)));
        let error = open(b"prompt,text, prompt\n1,2,3\n", 99).map(drop).unwrap_err().to_string();
        assert!(error.contains("a.csv:1:1") && error.contains("two columns called `prompt`"), "{error}");
        assert!(open(b"a,,\n1,,\n", 99).is_ok(), "columns without a name are nobody's");
        let (_dir, latin) = open(b"pr\xE9fix,pr\xEAfix\n1,2\n", 99).unwrap();
        assert_eq!(latin.headers(), ["préfix", "prêfix"]);
        let error = open(b"a,\"b\n1,2\n", 99).map(drop).unwrap_err().to_string();
        assert!(error.contains("never closed"), "{error}");
    }

    #[test]
    fn fields_are_found_in_the_bytes_of_a_record() {
        let raw = b"1,\"a,\"\"b\",5\" pipe,";
        let starts: Vec<usize> = (0..5).map(|field| field_start(raw, b',', field)).collect();
        assert_eq!(starts, [0, 2, 10, 18, 18]);
    }

    #[test]
    fn an_open_quote_does_not_swallow_a_big_file() {
        let mut text = b"text\n\"never closed\n".to_vec();
        text.resize(400_000, b'x');
        let bad = open(&text, 1000).unwrap().1.next().unwrap().unwrap_err();
        assert!(bad.fatal && bad.message.contains("longer than"), "{bad:?}");
    }

    proptest! {
        #[test]
        fn what_a_writer_wrote_is_read(rows in proptest::collection::vec(
            proptest::collection::vec("[a,\"\r\n \u{e9}]{0,6}", 2), 1..6)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["x", "y"]).unwrap();
            rows.iter().for_each(|row| writer.write_record(row).unwrap());
            let (found, bad) = read(&writer.into_inner().unwrap());
            prop_assert_eq!(bad, []);
            let found: Vec<Vec<String>> = found.into_iter().map(|(_, fields)| fields).collect();
            prop_assert_eq!(found, rows);
        }

        #[test]
        fn every_line_is_in_a_record_or_bad(text in "[a\",\n\r]{0,40}") {
            let bytes = format!("h\n{text}");
            let (good, bad) = read(bytes.as_bytes());
            let lines = text.split(['\n', '\r']).filter(|line| !line.is_empty()).count();
            prop_assert!(good.len() + bad.len() <= lines);
            prop_assert!(lines == 0 || good.len() + bad.len() > 0);
        }
    }
}
