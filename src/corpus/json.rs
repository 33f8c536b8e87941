//! Rows of JSON: cut out of a file one at a time, parsed strictly, and with exact places for messages.
//!
//! Duplicate keys are an error. A field that is not needed and cannot be parsed does not invalidate the
//! row; keys that are not read are counted and warned about.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::input::{BadRecord, InputFile, Next, Record, Window, too_long};
use crate::base::{Result, suggest, units};

/// The layout of the values in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One on each line, with or without a comma after it.
    Lines,
    /// The elements of one array.
    Array,
    /// Concatenated over any number of lines, with or without a comma between.
    Values,
}

/// JSON values of a file: one on each line (JSONL), the elements of one array, or pretty-printed objects
/// one after the other. The first value determines which of them it is.
///
/// [`Record::row`] is the line in JSONL, and the number of the value otherwise.
pub struct JsonRows {
    window: Window,
    limit: u64,
    layout: Option<Layout>,
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
        Ok(JsonRows { window, limit, layout: None, row: 0, ended: false })
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn next(&mut self) -> Next {
        let layout = match self.layout {
            Some(layout) => layout,
            None => *self.layout.insert(find_layout(&mut self.window, self.limit)?),
        };
        match layout {
            _ if self.ended => Ok(None),
            Layout::Lines => self.next_line(),
            Layout::Array => self.next_element(),
            Layout::Values => self.next_value(),
        }
    }

    fn next_line(&mut self) -> Next {
        loop {
            let start = self.window.offset();
            let Some(length) = self.window.line_length(self.limit)? else {
                return Ok(None);
            };
            if length as u64 > self.limit {
                return self.fail(too_long("line", start, self.limit, RAISE));
            }
            let bytes = self.window.take(length);
            self.window.skip(1.min(self.window.bytes().len()));
            self.row += 1;
            let text = without_comma(bytes.trim_ascii());
            if text.is_empty() {
                continue;
            }
            let start = start + (bytes.len() - bytes.trim_ascii_start().len()) as u64;
            let end = start + text.len() as u64;
            return Ok(Some(Ok(Record { start, end, row: self.row, bytes: text.to_vec() })));
        }
    }

    fn next_element(&mut self) -> Next {
        let first = self.row == 0;
        match self.take_mark()? {
            Some(b']') if !first => return self.after_array(),
            Some(mark) if mark == if first { b'[' } else { b',' } => {}
            found => {
                let at = self.window.offset().saturating_sub(1);
                return self.fail(not_an_array(found, at));
            }
        }
        if peek(&mut self.window)? == Some(b']') && first {
            self.take_mark()?;
            return self.after_array();
        }
        self.cut("element")
    }

    fn next_value(&mut self) -> Next {
        if peek(&mut self.window)? == Some(b',') && self.row > 0 {
            self.window.skip(1);
        }
        match peek(&mut self.window)? {
            None => Ok(None),
            Some(b'{' | b'[') => self.cut("value"),
            Some(found) => {
                let found = found.escape_ascii().to_string();
                let message = format!("expected another object, found `{found}`");
                let bad = BadRecord::new("broken_json", self.window.offset(), message)
                    .help("this file holds objects over several lines, one after the other")
                    .fatal();
                self.fail(bad)
            }
        }
    }

    /// The value that the window starts with; the rest of the file when it does not end.
    fn cut(&mut self, what: &str) -> Next {
        let start = self.window.offset();
        let length = loop {
            match value_length(self.window.bytes()) {
                Some(length) => break length,
                None if self.window.bytes().len() as u64 > self.limit => {
                    return self.fail(too_long(what, start, self.limit, RAISE));
                }
                None if self.window.more()? => {}
                None => return self.unended(what),
            }
        };
        self.row += 1;
        let bytes = self.window.take(length);
        Ok(Some(Ok(Record { start, end: start + length as u64, row: self.row, bytes })))
    }

    /// A value without an end: never skipped, since it may contain any number of rows.
    fn unended(&mut self, what: &str) -> Next {
        let (start, text) = (self.window.offset(), String::from_utf8_lossy(self.window.bytes()));
        let bad = parse_json(&text, start).err().unwrap_or_else(|| {
            BadRecord::new("broken_json", start, format!("the {what} that starts here does not end"))
        });
        self.fail(bad.fatal())
    }

    fn fail(&mut self, bad: BadRecord) -> Next {
        self.ended = true;
        Ok(Some(Err(bad)))
    }

    fn take_mark(&mut self) -> Result<Option<u8>> {
        let mark = peek(&mut self.window)?;
        self.window.skip(usize::from(mark.is_some()));
        Ok(mark)
    }

    fn after_array(&mut self) -> Next {
        self.ended = true;
        let rest = peek(&mut self.window)?;
        let at = self.window.offset();
        Ok(rest.map(|_| {
            Err(BadRecord::new("broken_json", at, "something follows the end of the array")
                .help("a file holds one array, one value a line (JSONL), or objects one after the other")
                .fatal())
        }))
    }
}

/// The next byte that is not a blank; the window starts with it.
fn peek(window: &mut Window) -> Result<Option<u8>> {
    loop {
        let blanks = window.bytes().iter().take_while(|b| b.is_ascii_whitespace()).count();
        window.skip(blanks);
        if let Some(byte) = window.bytes().first() {
            return Ok(Some(*byte));
        }
        if !window.more()? {
            return Ok(None);
        }
    }
}

/// Objects over several lines differ from JSONL with a truncated first line in that they end, and in that
/// no string has a line break.
fn find_layout(window: &mut Window, limit: u64) -> Result<Layout> {
    let mut start = 0; // of the first value: nothing is consumed, since lines are counted
    let first = loop {
        start += window.bytes()[start..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        if let Some(byte) = window.bytes().get(start) {
            break *byte;
        }
        if !window.more()? {
            return Ok(Layout::Lines);
        }
    };
    match first {
        b'[' => return Ok(Layout::Array),
        b'{' => {}
        _ => return Ok(Layout::Lines),
    }
    loop {
        let bytes = &window.bytes()[start..];
        match value_length(bytes) {
            Some(length) => return Ok(layout_behind(&bytes[..length], &bytes[length..])),
            None if bytes.len() as u64 > limit || !window.more()? => return Ok(Layout::Lines),
            None => {}
        }
    }
}

/// The layout of a file whose first value is `value`, followed by `rest`.
fn layout_behind(value: &[u8], rest: &[u8]) -> Layout {
    let line = rest.split(|b| *b == b'\n').next().unwrap_or(rest).trim_ascii();
    let line = line.strip_prefix(b",").unwrap_or(line).trim_ascii_start();
    let several = value.contains(&b'\n') && !breaks_string(value);
    if several || line.first() == Some(&b'{') { Layout::Values } else { Layout::Lines }
}

/// Whether a string of this value has a line break, which JSON does not allow.
fn breaks_string(value: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    value.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        quoted && *byte == b'\n'
    })
}

/// `text` without the comma after a whole value.
fn without_comma(text: &[u8]) -> &[u8] {
    match text.strip_suffix(b",") {
        Some(value) if value_length(value) == Some(value.trim_ascii_end().len()) => value.trim_ascii_end(),
        _ => text,
    }
}

fn not_an_array(found: Option<u8>, at: u64) -> BadRecord {
    let found = found.map_or("the end of the file".to_string(), |b| format!("`{}`", b.escape_ascii()));
    BadRecord::new("broken_json", at, format!("expected `,` or `]` after an element, found {found}"))
        .help("this file starts with `[`, so it is read as one JSON array")
        .fatal()
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
            b',' | b':' | b']' | b'}' if depth == 0 => return Some(i),
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

/// Parses the JSON of a record that starts at byte `start` of its file.
///
/// # Errors
/// `broken_json` at the byte where the parser stopped, or `duplicate_key` at the second of two equal
/// keys of one object, on any level.
pub fn parse_json(text: &str, start: u64) -> Result<Value, BadRecord> {
    let duplicate = Cell::new(false);
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = Unique(&duplicate).deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    match value {
        Ok(value) => Ok(value),
        Err(_) if duplicate.get() => Err(duplicate_key(text, start)),
        Err(e) => Err(broken(text, start, &e)),
    }
}

fn duplicate_key(text: &str, start: u64) -> BadRecord {
    let (at, key) = find_duplicate(text, 0..text.len()).unwrap_or_default();
    let message = format!("the key `{key}` stands twice in one object");
    BadRecord::new("duplicate_key", start + at as u64, message).help("keep one of them, or rename the other")
}

/// The offset of the first duplicate key.
fn find_duplicate(text: &str, value: Range<usize>) -> Option<(usize, String)> {
    if let Ok(members) = members(text, value.clone()) {
        let mut seen = BTreeSet::new();
        return members.into_iter().find_map(|member| {
            let inside = || find_duplicate(text, member.value.clone());
            if seen.insert(member.key.clone()) { inside() } else { Some((member.start, member.key)) }
        });
    }
    elements(text, value).into_iter().flatten().find_map(|element| find_duplicate(text, element))
}

/// A value; the flag is set when an object has a duplicate key.
#[derive(Clone, Copy)]
struct Unique<'a>(&'a Cell<bool>);

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if all.contains_key(&key) {
                self.0.set(true);
                return Err(A::Error::custom("duplicate key"));
            }
            let value = members.next_value_seed(self)?;
            all.insert(key, value);
        }
        Ok(all.into())
    }
}

/// The message of a parser's error, with words for common causes.
fn broken(text: &str, start: u64, error: &serde_json::Error) -> BadRecord {
    let lines: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let at = (lines + error.column().saturating_sub(1)).min(text.len());
    let place = |at: usize| start + at as u64;
    if let Some(half) = lone_surrogate(text).filter(|half| (*half..half + 13).contains(&at)) {
        let escape = &text[half..half + 6];
        let message = format!("`{escape}` is half of a pair of escapes: an emoji or the like cut in two");
        return BadRecord::new("broken_json", place(half), message).help(
            "write both halves (such as `\\ud83d\\ude42`) or the character itself, or take the half out",
        );
    }
    let word = |c: char| c.is_ascii_alphabetic() || c == '-';
    let head = text.get(..at).map_or(0, |t| t.trim_end_matches(word).len());
    let found = text[head..].split(|c| !word(c)).next().unwrap_or("");
    let bad = |message: &str| BadRecord::new("broken_json", place(head), message);
    match found.trim_start_matches('-').to_ascii_lowercase().as_str() {
        "nan" | "infinity" | "inf" => bad(&format!("JSON has no number `{found}`"))
            .help("write `null` or a number, or leave the field out"),
        "none" | "true" | "false" => bad(&format!("`{found}` is Python, not JSON"))
            .help("JSON writes `null`, `true` and `false`: write the file with a JSON library"),
        _ => {
            let message = error.to_string();
            let what = message.split(" at line ").next().unwrap_or("");
            BadRecord::new("broken_json", place(at), format!("this is not JSON: {what}"))
                .help("in JSONL each line is one whole JSON value; a `.json` file may also be one array")
        }
    }
}

/// The offset of an unpaired surrogate such as `\ud83d`.
fn lone_surrogate(text: &str) -> Option<usize> {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = text[at..].find('\\') {
        at += found;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => return Some(at),
            _ => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
    None
}

/// The fields of a row that is an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub fields: Map<String, Value>,
    /// Fields that cannot be parsed (`NaN`, an unpaired surrogate) and are not needed: left out of `fields`,
    /// to be counted by the caller.
    pub bad_metadata: Vec<String>,
}

/// Parses a row that is an object. A field that cannot be parsed is left out when its key is not
/// `needed`.
///
/// # Errors
/// As [`parse_json`], at the place of the field; `not_an_object`.
pub fn object(text: &str, start: u64, needed: &dyn Fn(&str) -> bool) -> Result<Object, BadRecord> {
    let strict = match parse_json(text, start) {
        Ok(Value::Object(fields)) => return Ok(Object { fields, bad_metadata: Vec::new() }),
        Ok(other) => {
            let message = format!("expected an object, found {}", describe(&other));
            return Err(BadRecord::new("not_an_object", start, message));
        }
        Err(bad) if bad.cause == "duplicate_key" => return Err(bad),
        Err(bad) => bad,
    };
    let Ok(members) = members(text, 0..text.len()) else { return Err(strict) };
    let mut out = Object { fields: Map::new(), bad_metadata: Vec::new() };
    for member in members {
        if out.fields.contains_key(&member.key) || out.bad_metadata.contains(&member.key) {
            return Err(duplicate_key(text, start));
        }
        match parse_json(&text[member.value.clone()], start + member.value.start as u64) {
            Ok(value) => drop(out.fields.insert(member.key, value)),
            Err(bad) if needed(&member.key) || bad.cause == "duplicate_key" => return Err(bad),
            Err(_) => out.bad_metadata.push(member.key),
        }
    }
    if out.bad_metadata.is_empty() { Err(strict) } else { Ok(out) }
}

/// A member of an object: the ranges of its key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    key: String,
    start: usize,
    value: Range<usize>,
}

/// A step into a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    Key(&'a str),
    /// Of an array, from 0.
    Index(usize),
}

/// A place in the text of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The byte where it starts: the quote of a key, or the first byte of an element.
    pub start: usize,
    /// Its value alone.
    pub value: Range<usize>,
}

/// The place of `path` in the JSON `text`, as far as it exists: the place of `[Key("messages"), Index(2),
/// Key("role")]` is that of the third message's role, or of the message when it has none.
pub fn locate(text: &str, path: &[Step]) -> Span {
    let blanks = text.len() - text.trim_ascii_start().len();
    let mut span = Span { start: blanks, value: blanks..text.len() };
    for step in path {
        let next = match step {
            Step::Key(key) => members_so_far(text, span.value.clone())
                .into_iter()
                .find(|member| member.key == *key)
                .map(|member| Span { start: member.start, value: member.value }),
            Step::Index(index) => elements(text, span.value.clone())
                .and_then(|all| all.get(*index).cloned())
                .map(|value| Span { start: value.start, value }),
        };
        match next {
            Some(next) => span = next,
            None => break,
        }
    }
    span
}

/// Scans the structure of a value; scalars are not parsed.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
    end: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..self.end]
    }

    fn blanks(&mut self) {
        self.at += self.rest().iter().take_while(|b| b.is_ascii_whitespace()).count();
    }

    /// Skips `mark` and the blanks around it, if it is next.
    fn mark(&mut self, mark: u8) -> bool {
        self.blanks();
        let here = self.rest().first() == Some(&mark);
        self.at += usize::from(here);
        self.blanks();
        here
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        // A scalar may reach to the end of the text.
        let length = value_length(self.rest()).unwrap_or(self.end - start);
        self.at += length;
        (length > 0).then_some(start..self.at)
    }

    fn member(&mut self) -> Option<Member> {
        let key = self.value()?;
        let raw = &self.text[key.clone()];
        if !raw.starts_with('"') || !self.mark(b':') {
            return None;
        }
        let name = serde_json::from_str(raw).unwrap_or_else(|_| raw.trim_matches('"').to_string());
        Some(Member { key: name, start: key.start, value: self.value()? })
    }

    /// Items between `open` and `close` with commas; `Err` holds those before the first that is broken.
    fn list<T>(&mut self, open: u8, close: u8, item: fn(&mut Self) -> Option<T>) -> Result<Vec<T>, Vec<T>> {
        let mut all = Vec::new();
        if !self.mark(open) {
            return Err(all);
        }
        if self.mark(close) {
            return Ok(all);
        }
        loop {
            match item(self) {
                Some(found) => all.push(found),
                None => return Err(all),
            }
            match self.mark(b',') {
                true => {}
                false if self.mark(close) && self.at == self.end => return Ok(all),
                false => return Err(all),
            }
        }
    }
}

/// The members of the object that `text[value]` is; those before the first that is broken as `Err`.
fn members(text: &str, value: Range<usize>) -> Result<Vec<Member>, Vec<Member>> {
    Lexer { text, at: value.start, end: value.end }.list(b'{', b'}', Lexer::member)
}

fn members_so_far(text: &str, value: Range<usize>) -> Vec<Member> {
    members(text, value).unwrap_or_else(|found| found)
}

/// The elements of the array that `text[value]` is.
fn elements(text: &str, value: Range<usize>) -> Option<Vec<Range<usize>>> {
    Lexer { text, at: value.start, end: value.end }.list(b'[', b']', Lexer::value).ok()
}

/// The type of a value, for "expected a text, found …".
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

/// Whether a value is empty: `null`, `""`, `[]`, `{}`.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The keys of `fields` that are not empty and that the reader does not read. `id` is never listed:
/// provenance names rows by number.
pub fn unknown_keys<'a, 'k>(
    fields: &'a Map<String, Value>,
    known: &'k dyn Fn(&str) -> bool,
) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
    let unknown = move |(key, value): &(&String, &Value)| *key != "id" && !known(key) && !is_empty(value);
    fields.iter().filter(unknown).map(|(key, _)| key.as_str())
}

/// Of one file: key -> how many rows have a value under it that is not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct UnknownKeys(BTreeMap<String, u64>);

/// More names than these are counted as one, so that memory does not grow with the file.
const MOST_NAMES: usize = 200;
const OTHER_NAMES: &str = "(others)";

impl UnknownKeys {
    /// Counts one row with these keys, each of which is named once.
    pub fn add<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) {
        let name = |key: &'a str| match self.0.contains_key(key) || self.0.len() < MOST_NAMES {
            true => key,
            false => OTHER_NAMES,
        };
        let names: BTreeSet<&str> = keys.into_iter().map(name).collect();
        for name in names {
            *self.0.entry(name.to_string()).or_default() += 1;
        }
    }

    /// Counts `rows` rows with this key.
    pub fn add_rows(&mut self, key: &str, rows: u64) {
        if rows > 0 {
            *self.0.entry(key.to_string()).or_default() += rows;
        }
    }

    /// Rows by key.
    pub fn rows(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    /// Warns once about the keys that `ignore` does not name (`*` stands for all). `way_out` is the help: how
    /// they can be read.
    pub fn warn(&self, file: &str, ignore: &[String], way_out: &str) {
        let ignored = |key: &str| ignore.iter().any(|name| name == "*" || name == key);
        let keys: Vec<String> = self
            .0
            .iter()
            .filter(|(key, _)| !ignored(key))
            .map(|(key, rows)| format!("`{key}` ({} rows)", units::count(*rows)))
            .collect();
        if !keys.is_empty() {
            tracing::warn!(
                "`{file}` has keys that are not read: {}; {way_out}, or list them in `ignore` if they may be left out",
                keys.join(", ")
            );
        }
    }
}

/// "It has …" for a row that lacks a field.
pub fn names_of(fields: &Map<String, Value>) -> String {
    suggest::list(fields.keys().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use proptest::prelude::*;

    fn rows(text: &str, limit: u64) -> (Vec<(u64, String)>, Option<BadRecord>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, text.as_bytes()).unwrap();
        let mut reader = JsonRows::open(&InputFile::new(&path).unwrap(), limit).unwrap();
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

    fn row(number: u64, text: &str) -> (u64, String) {
        (number, text.to_string())
    }

    #[test]
    fn lines_and_elements_are_cut_alike() {
        let (lines, _) = rows("\u{FEFF}\n {\"a\":1} \r\n\n{\"b\":2}", 100);
        assert_eq!(lines, [row(2, "{\"a\":1}"), row(4, "{\"b\":2}")]);
        let (elements, _) = rows("\n[ {\"a\":\"]}\\\"\"} ,\n 3,[1,[2]], \"x\" ] \n", 100);
        let texts: Vec<&str> = elements.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["{\"a\":\"]}\\\"\"}", "3", "[1,[2]]", "\"x\""]);
        assert_eq!(rows("[]", 9), (vec![], None));
        assert_eq!(rows("", 9), (vec![], None));
    }

    #[test]
    fn objects_over_several_lines_are_one_row_each() {
        let one = "{\n \"a\": [\n  1\n ]\n}";
        for (text, count) in
            [(format!("{one},\n"), 1), (format!("\n{one}\n"), 1), (format!("{one},\n{one}\n\n{one}"), 3)]
        {
            let (found, bad) = rows(&text, 100);
            assert_eq!(bad, None, "{text}");
            assert_eq!(found, (1..=count).map(|i| row(i, one)).collect::<Vec<_>>());
        }
        assert_eq!(rows("{\"a\":1}{\"a\":2}", 99).0.len(), 2);
        let bad = rows("{\n\"a\": 1\n}\nx", 99).1.unwrap();
        assert!(bad.fatal && bad.message.contains("found `x`"), "{bad:?}");
        let bad = rows("{\n\"a\": 1\n}\n{\n\"b\": 2\n", 99).1.unwrap();
        assert!(bad.fatal && bad.message.contains("EOF"), "{bad:?}");
    }

    #[test]
    fn a_comma_behind_a_line_is_no_defect_and_a_broken_first_line_is_one_row() {
        assert_eq!(rows("{\"a\":1},\n{\"b\":2} ,\n", 99).0, [row(1, "{\"a\":1}"), row(2, "{\"b\":2}")]);
        assert_eq!(rows("{\"a\":[1\n{\"b\":2}\n", 99).0, [row(1, "{\"a\":[1"), row(2, "{\"b\":2}")]);
        assert_eq!(rows("{\"a\":\"x\n{\"b\":\"2\"}\n", 99).0.len(), 2);
    }

    #[test]
    fn broken_arrays_and_long_rows_are_named() {
        assert!(rows("[1 2]", 9).1.unwrap().message.contains("found `2`"));
        assert!(rows("[1,2", 9).1.unwrap().message.contains("does not end"));
        assert!(rows("[1] x", 9).1.unwrap().message.contains("follows the end"));
        assert!(rows("{}\n{\"a\": \"long\"}\n", 9).1.unwrap().message.contains("longer than 9 B"));
        let bad = parse_json("{\"a\": nope}", 100).unwrap_err();
        assert_eq!(bad.at, Some(107), "{bad:?}");
    }

    #[test]
    fn a_key_that_stands_twice_is_named_where_it_stands_again() {
        for (text, key, at) in [
            (r#"{"text":"a","text":"b"}"#, "text", 12),
            (r#"{"x":1, "m":[{"a":1},{"b":{"c":1,"\u0063":2}}]}"#, "c", 33),
        ] {
            let bad = parse_json(text, 100).unwrap_err();
            assert_eq!((bad.cause, bad.at), ("duplicate_key", Some(100 + at)), "{text}");
            assert!(bad.message.contains(&format!("`{key}`")), "{bad:?}");
        }
        let bad = object(r#"{"a":NaN,"b":1,"a":2}"#, 0, &|_| false).unwrap_err();
        assert_eq!((bad.cause, bad.at), ("duplicate_key", Some(15)));
    }

    #[test]
    fn bad_metadata_does_not_cost_the_row() {
        let text = r#"{"who":"\ud83d","text":"good \ud83d\ude42","score":-Infinity, "x": [NaN]}"#;
        let found = object(text, 0, &|key| key == "text").unwrap();
        assert_eq!(found.fields["text"], "good 🙂");
        assert_eq!(found.bad_metadata, ["who", "score", "x"]);
        let bad = object(text, 10, &|key| key == "who").unwrap_err();
        assert_eq!(bad.at, Some(18), "{bad:?}");
        assert!(bad.message.contains("half of a pair") && bad.help[0].contains("take the half out"));
        let bad = object(text, 0, &|key| key == "score").unwrap_err();
        let place = text.find("-Inf").map(|at| at as u64);
        assert_eq!((bad.at, bad.message.as_str()), (place, "JSON has no number `-Infinity`"));
        assert!(parse_json("{\"a\": None}", 0).unwrap_err().message.contains("Python"));
        assert_eq!(object("{\"a\":1} x", 0, &|_| false).unwrap_err().cause, "broken_json");
        assert_eq!(object("[1]", 0, &|_| false).unwrap_err().cause, "not_an_object");
    }

    #[test]
    fn places_are_those_of_the_thing_and_not_of_the_word() {
        let text = r#" {"role": 1, "messages": [{"role": "role"}, {"content": "role", "role": "x"}]}"#;
        let path = [Step::Key("messages"), Step::Index(1), Step::Key("role")];
        let span = locate(text, &path);
        assert_eq!((&text[span.start..span.start + 6], &text[span.value]), ("\"role\"", "\"x\""));
        assert_eq!(span.start, 64);
        let as_far = locate(text, &[Step::Key("messages"), Step::Index(0), Step::Key("nothing")]);
        assert_eq!(&text[as_far.value], "{\"role\": \"role\"}");
    }

    #[test]
    fn unknown_keys_are_counted_by_row() {
        let value = parse_json(r#"{"id":1,"a":"","b":[],"c":{},"d":null,"e":0,"f":1,"g":2}"#, 0).unwrap();
        let fields = value.as_object().unwrap();
        let known = |key: &str| key == "g";
        assert_eq!(unknown_keys(fields, &known).collect::<Vec<_>>(), ["e", "f"]);
        let mut counts = UnknownKeys::default();
        counts.add(["e", "f", "e"]);
        counts.add(["e"]);
        assert_eq!(serde_json::to_string(&counts).unwrap(), r#"{"e":2,"f":1}"#);
    }

    /// A JSON value of few letters, deep and wide enough.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            "[a\"\\\\,:{}\\[\\]\n é]{0,4}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ab\"]{0,2}", inner, 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    /// Every value inside of `value` is found at its place.
    fn all_found(text: &str, value: &Value, path: &mut Vec<Step<'static>>) {
        let found: Value = serde_json::from_str(&text[locate(text, path).value]).unwrap();
        assert_eq!(&found, value);
        let inside: Vec<(Step<'static>, &Value)> = match value {
            Value::Array(all) => all.iter().enumerate().map(|(i, v)| (Step::Index(i), v)).collect(),
            Value::Object(all) => {
                all.iter().map(|(k, v)| (Step::Key(Box::leak(k.clone().into_boxed_str())), v)).collect()
            }
            _ => Vec::new(),
        };
        for (step, value) in inside {
            path.push(step);
            all_found(text, value, path);
            path.pop();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn offsets_lead_back(value in any_value(), pretty in any::<bool>()) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            all_found(&text, &value, &mut Vec::new());
            prop_assert_eq!(parse_json(&text, 0).unwrap(), value);
        }

        #[test]
        fn an_array_reads_as_its_elements(values in proptest::collection::vec("[a\\[\\]{},\"\\\\ ]{0,6}", 0..6)) {
            let text = serde_json::to_string_pretty(&values).unwrap();
            let (rows, bad) = rows(&text, 1000);
            prop_assert_eq!(bad, None);
            let back: Vec<String> = rows.iter().map(|(_, t)| serde_json::from_str(t).unwrap()).collect();
            prop_assert_eq!(back, values);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{},:\"a1é\\\\ \n]{0,40}|([{\"a:,}]|NaN|\\\\ud83d|\\\\u){0,12}") {
            let (_, _) = rows(&text, 1000);
            let _ = object(&text, 0, &|key| key == "a");
            let span = locate(&text, &[Step::Key("a"), Step::Index(1), Step::Key("")]);
            prop_assert!(text.get(span.start..).is_some() && text.get(span.value).is_some());
        }
    }
}
