//! Files of items that a model is judged on: their rows, read a batch at a time, with the place of each field
//! for messages. A row that cannot be used is an error: an evaluation of fewer items would be another one.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::base::{Digest, Error, Monitor, Result, canonical, suggest, units};
use crate::corpus::csv::{CsvRows, field_start};
use crate::corpus::input::{InputFile, Record};
use crate::corpus::json::{self, JsonRows, Step, describe, locate};

/// What the rows of a sort of files hold.
pub struct Form {
    /// What the items are called: `pairs`.
    pub what: &'static str,
    /// The names that the id of a row may have.
    pub id: &'static [&'static str],
    /// The names that its group may have: category, paradigm.
    pub group: &'static [&'static str],
    /// Whether ids count within their group alone, so that `group/id` is the id of an item.
    pub by_group: bool,
    /// The further fields that are read.
    pub fields: &'static [&'static str],
    /// Fields that are known to be of no use here.
    pub unused: &'static [&'static str],
    /// Whether another field is an error, rather than a warning with how many rows have it.
    pub strict: bool,
    /// Whether tables (CSV, TSV) are read as well as JSON.
    pub tables: bool,
}

/// A row that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<T> {
    /// As [`super::items::Item::id`].
    pub id: String,
    /// The category or paradigm; `""` where the row names none.
    pub group: String,
    pub content: T,
}

/// The longest row that is taken into memory.
const MOST_BYTES: u64 = 64 << 20;

/// Rows that are in memory at a time.
pub const BATCH: usize = 1024;

/// Reads all `files` and calls `each` with [`BATCH`] entries at a time; `parse` makes an entry's content of a row.
///
/// # Errors
/// The first row that is no such item, with its place; an id that stands twice; a file without rows; what
/// `each` returns; cancellation.
pub fn read<T>(
    files: &[InputFile],
    form: &Form,
    monitor: &dyn Monitor,
    parse: impl Fn(&Row) -> Result<T>,
    mut each: impl FnMut(Vec<Entry<T>>) -> Result<()>,
) -> Result<()> {
    let mut seen = Seen::default();
    let mut batch = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let mut rows = Rows::open(file, form)?;
        while let Some(row) = rows.next()? {
            let entry = Entry { id: row.id()?, group: row.group()?, content: parse(&row)? };
            seen.add(&entry.id, number, &row, files)?;
            batch.push(entry);
            if batch.len() == BATCH {
                monitor.check()?;
                each(std::mem::take(&mut batch))?;
            }
        }
        rows.finish()?;
    }
    if batch.is_empty() { Ok(()) } else { each(batch) }
}

/// The ids so far, by half of their digest, with the file and line of each.
#[derive(Default)]
struct Seen(HashMap<[u8; 16], (usize, u64)>);

impl Seen {
    fn add(&mut self, id: &str, file: usize, row: &Row, files: &[InputFile]) -> Result<()> {
        let mut key = [0; 16];
        key.copy_from_slice(&Digest::of(id.as_bytes()).bytes()[..16]);
        let Some((earlier, number)) = self.0.insert(key, (file, row.number)) else { return Ok(()) };
        let (what, other) = (row.unit(), &files[earlier].name);
        let message = format!("`{id}` is there already, in {what} {number} of `{other}`");
        let path: Vec<Step> = row.first(row.form.id).map(|(name, _)| Step::Key(name)).into_iter().collect();
        Err(row
            .error(&path, message)
            .help("each item counts once: give it an id of its own, or leave it out"))
    }
}

enum Reader {
    Json(JsonRows),
    Csv(Box<CsvRows>, u8),
}

/// The rows of one file.
struct Rows<'a> {
    file: &'a InputFile,
    form: &'a Form,
    reader: Reader,
    read: u64,
    /// Fields that are not read, with how many rows have them.
    unread: BTreeMap<String, u64>,
}

impl<'a> Rows<'a> {
    fn open(file: &'a InputFile, form: &'a Form) -> Result<Self> {
        let reader = match file.ending().as_str() {
            "jsonl" | "ndjson" | "json" => Reader::Json(JsonRows::open(file, MOST_BYTES)?),
            "csv" if form.tables => Reader::Csv(Box::new(CsvRows::open(file, b',', MOST_BYTES)?), b','),
            "tsv" if form.tables => Reader::Csv(Box::new(CsvRows::open(file, b'\t', MOST_BYTES)?), b'\t'),
            ending => return Err(unreadable(file, form, ending)),
        };
        Ok(Rows { file, form, reader, read: 0, unread: BTreeMap::new() })
    }

    fn next(&mut self) -> Result<Option<Row<'a>>> {
        let next = match &mut self.reader {
            Reader::Json(rows) => rows.next()?,
            Reader::Csv(rows, _) => rows.next(),
        };
        let Some(record) = next else { return Ok(None) };
        let record = record.map_err(|bad| bad.into_error(self.file))?;
        let row = match &self.reader {
            Reader::Json(_) => self.object(record)?,
            Reader::Csv(rows, delimiter) => self.table_row(&record, rows, *delimiter)?,
        };
        self.read += 1;
        self.check_names(&row)?;
        Ok(Some(row))
    }

    fn object(&self, record: Record) -> Result<Row<'a>> {
        let Record { start, row: number, .. } = record;
        let text = record.into_text().map_err(|bad| bad.into_error(self.file))?;
        let found = json::object(&text, start, &|_| true).map_err(|bad| bad.into_error(self.file))?;
        let (file, form, fields) = (self.file, self.form, found.fields);
        Ok(Row { file, form, number, start, source: Source::Json(text), fields })
    }

    fn table_row(&self, record: &Record, rows: &CsvRows, delimiter: u8) -> Result<Row<'a>> {
        let (file, form, headers) = (self.file, self.form, rows.headers().to_vec());
        let Record { start, end, row: number, .. } = *record;
        let source = Source::Csv { end, delimiter, headers: headers.clone() };
        let mut row = Row { file, form, number, start, source, fields: Map::new() };
        for (name, field) in headers.iter().zip(rows.fields()) {
            let Ok(text) = std::str::from_utf8(field) else {
                return Err(row
                    .error(&[Step::Key(name)], "this is not valid UTF-8")
                    .help("save the file as UTF-8"));
            };
            row.fields.insert(name.clone(), text.into());
        }
        Ok(row)
    }

    /// Counts fields that are not read, or refuses them.
    fn check_names(&mut self, row: &Row) -> Result<()> {
        let Form { id, group, fields, unused, strict, .. } = self.form;
        let read = || id.iter().chain(*group).chain(*fields).copied();
        let unknown = |name: &&String| !read().chain(unused.iter().copied()).any(|known| known == *name);
        for name in row.fields.keys().filter(unknown) {
            if *strict {
                return Err(row.unknown_field(&[], name, read()));
            }
            *self.unread.entry(name.clone()).or_default() += 1;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let (file, what) = (&self.file.name, self.form.what);
        if self.read == 0 {
            let error = Error::input(format!("`{file}` has no rows, of which {what} are made"));
            return Err(error.help("take the file out of the inputs, or make it anew"));
        }
        let of = |(name, rows): (&String, &u64)| format!("`{name}` ({} rows)", units::count(*rows));
        let unread: Vec<String> = self.unread.iter().map(of).collect();
        if !unread.is_empty() {
            tracing::warn!("`{file}` has fields that {what} do not have: {}", unread.join(", "));
        }
        Ok(())
    }
}

fn unreadable(file: &InputFile, form: &Form, ending: &str) -> Error {
    let (name, what) = (&file.name, form.what);
    let tables = if form.tables { ", `.csv` or `.tsv`" } else { "" };
    let expected = format!("{what} are read from files that end with `.jsonl`, `.json`{tables}");
    match ending {
        "gz" | "zst" | "xz" | "bz2" | "zip" | "tar" => {
            Error::input(format!("`{name}` is an archive")).help("unpack it, and connect the files in it")
        }
        _ => Error::input(format!("the name `{name}` does not tell how {what} are read")),
    }
    .help(expected)
}

/// The text of a row, from which places in it are found.
enum Source {
    Json(String),
    Csv { end: u64, delimiter: u8, headers: Vec<String> },
}

/// A row and its place.
pub struct Row<'a> {
    file: &'a InputFile,
    form: &'a Form,
    /// Its line (JSON lines, tables), or which of the values of a JSON file it is.
    number: u64,
    /// The byte where it starts.
    start: u64,
    source: Source,
    pub fields: Map<String, Value>,
}

impl<'a> Row<'a> {
    /// An error at the field or element that `path` leads to.
    pub fn error(&self, path: &[Step], message: impl Into<String>) -> Error {
        self.file.error(self.start + self.offset(path) as u64, message)
    }

    fn offset(&self, path: &[Step]) -> usize {
        match (&self.source, path) {
            (Source::Json(text), path) => locate(text, path).value.start,
            (Source::Csv { end, delimiter, headers }, [Step::Key(name), ..]) => {
                let raw = self.file.read_range(self.start, *end).unwrap_or_default();
                let column = headers.iter().position(|header| header == name);
                column.map_or(0, |column| field_start(&raw, *delimiter, column))
            }
            _ => 0,
        }
    }

    fn unit(&self) -> &'static str {
        if self.file.ending() == "json" { "row" } else { "line" }
    }

    /// The first of `names` that is a field with a value, and the value.
    pub fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.fields.get(*name).filter(|value| !value.is_null())?)))
    }

    /// The first of `names` that is a field.
    ///
    /// # Errors
    /// When there is none.
    pub fn needed<'n>(&self, names: &[&'n str]) -> Result<(&'n str, &Value)> {
        self.first(names).ok_or_else(|| self.missing(&[], names, &self.fields))
    }

    /// The error that the object at `path` with `fields` lacks a field that is called one of `names`.
    pub fn missing(&self, path: &[Step], names: &[&str], fields: &Map<String, Value>) -> Error {
        let wanted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let error = self.error(path, format!("the field {} is missing", wanted.join(" or ")));
        let found = || fields.keys().map(String::as_str);
        let error = error.suggest(names.iter().find_map(|name| suggest::closest(name, found())));
        if fields.is_empty() { error } else { error.help(format!("there are {}", suggest::list(found()))) }
    }

    /// The error that the object at `path` has a field that none of `known` is.
    pub fn unknown_field<'n>(
        &self,
        path: &[Step],
        name: &str,
        known: impl Iterator<Item = &'n str> + Clone,
    ) -> Error {
        let path: Vec<Step> = path.iter().copied().chain([Step::Key(name)]).collect();
        let error = self.error(&path, format!("there is no field `{name}` in {}", self.form.what));
        error
            .suggest(suggest::closest(name, known.clone()))
            .help(format!("there are {}", suggest::list(known)))
    }

    /// A value that is to be a text with something in it.
    ///
    /// # Errors
    /// When it is none.
    pub fn text<'v>(&self, path: &[Step], name: &str, value: &'v Value) -> Result<&'v str> {
        match value.as_str() {
            Some(text) if text.trim().is_empty() => {
                let error = self.error(path, format!("`{name}` is empty"));
                Err(error.help("write what it is, or leave the row out"))
            }
            Some(text) => Ok(text),
            None => Err(self.wrong(path, name, "a text", value)),
        }
    }

    /// The first of `names` that is a field, which must be a text.
    ///
    /// # Errors
    /// When there is none, or it is no text with something in it.
    pub fn needed_text(&self, names: &[&str]) -> Result<&str> {
        let (name, value) = self.needed(names)?;
        self.text(&[Step::Key(name)], name, value)
    }

    /// A value that is to be a list with something in it.
    ///
    /// # Errors
    /// When it is none.
    pub fn list<'v>(&self, path: &[Step], name: &str, value: &'v Value) -> Result<&'v [Value]> {
        match value.as_array() {
            Some(all) if all.is_empty() => {
                Err(self.error(path, format!("`{name}` is an empty list")).help("leave it out, or fill it"))
            }
            Some(all) => Ok(all),
            None => Err(self.wrong(path, name, "a list", value)),
        }
    }

    /// The error that a value is of another type.
    pub fn wrong(&self, path: &[Step], name: &str, expected: &str, found: &Value) -> Error {
        let shown = match found {
            Value::String(text) => format!("the text {text:?}"),
            other => describe(other),
        };
        let error = self.error(path, format!("`{name}` is {shown}, expected {expected}"));
        match (expected, found) {
            ("a list", Value::String(text)) => error.help(format!("write it in brackets: [{text:?}]")),
            _ => error.help(format!("write {expected}")),
        }
    }

    /// A short text that may be written as a number; `""` where there is none.
    fn label(&self, names: &[&str]) -> Result<String> {
        let Some((name, value)) = self.first(names) else { return Ok(String::new()) };
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(self.wrong(&[Step::Key(name)], name, "a text or a number", value)),
        }
    }

    fn group(&self) -> Result<String> {
        self.label(self.form.group)
    }

    /// The id that the row gives, or the first half of the digest of its fields.
    fn id(&self) -> Result<String> {
        let own = self.label(self.form.id)?;
        let id = match own.is_empty() {
            false => own,
            true => canonical::digest(&Value::Object(self.fields.clone())).hex()[..32].to_string(),
        };
        let group = self.group()?;
        Ok(if self.form.by_group && !group.is_empty() { format!("{group}/{id}") } else { id })
    }
}
