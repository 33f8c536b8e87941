//! Checks JSON lines, before polars reads them, for what it accepts silently: of a duplicate key it takes
//! one, an unpaired surrogate becomes U+0000, and a number among objects `{}`.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::base::{Error, Result, fs};
use crate::corpus::input::{BadRecord, InputFile};
use crate::corpus::json::{self, Step};

/// Calls `take` with each line that is not blank, trimmed, with its number and the byte at which it starts.
/// A byte order mark is skipped.
///
/// # Errors
/// An error of `take`, with its place; a line that is not UTF-8.
pub(crate) fn each_line(
    path: &Path,
    mut take: impl FnMut(&str, u64, u64) -> Result<(), BadRecord>,
) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, fs::open(path)?);
    let (mut line, mut offset) = (Vec::new(), 0);
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, &e))? == 0 {
            break;
        }
        let marked = if number == 1 && line.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        let body = line[marked..].trim_ascii_end();
        let blanks = body.len() - body.trim_ascii_start().len();
        let start = offset + (marked + blanks) as u64;
        let taken = match std::str::from_utf8(&body[blanks..]) {
            Ok("") => Ok(()),
            Ok(text) => take(text, number, start),
            Err(e) => {
                let byte = body[blanks + e.valid_up_to()];
                let message = format!("the byte 0x{byte:02X} is not valid UTF-8");
                Err(BadRecord::new("invalid_encoding", start + e.valid_up_to() as u64, message))
            }
        };
        taken.map_err(|bad| located(bad, path))?;
        offset += line.len() as u64;
    }
    Ok(())
}

fn located(bad: BadRecord, path: &Path) -> Error {
    let file = InputFile { name: path.display().to_string(), path: path.to_path_buf(), size: 0 };
    let broken = matches!(bad.cause, "broken_json" | "not_an_object");
    let error = bad.into_error(&file);
    if broken { error.context("this line is not a JSON object") } else { error }
}

/// Every line is a JSON object without duplicate keys, and no column mixes types that polars cannot hold.
/// Values are not kept.
///
/// # Errors
/// The first line that violates this.
pub(super) fn check(path: &Path) -> Result<()> {
    let mut columns: HashMap<String, (Kind, u64)> = HashMap::new();
    each_line(path, |text, number, start| {
        for (key, kind) in kinds(text, start)? {
            let Some((before, line)) = columns.get(&key) else {
                columns.insert(key, (kind, number));
                continue;
            };
            if before.clashes(kind) {
                let at = start + json::locate(text, &[Step::Key(&key)]).start as u64;
                let message =
                    format!("`{key}` is {} here, and {} in line {line}", kind.name(), before.name());
                return Err(BadRecord::new("mixed_types", at, message).help(
                    "a column of a table has values of one kind: rename the key in some of the lines",
                ));
            }
        }
        Ok(())
    })
}

/// The keys of the object `text` and the types of their values, without nulls.
fn kinds(text: &str, start: u64) -> Result<Vec<(String, Kind)>, BadRecord> {
    let row = Row::default();
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = Check { row: &row, top: true }.deserialize(&mut parser);
    if matches!(parsed, Ok(Kind::Object)) && parser.end().is_ok() {
        return Ok(row.members.take());
    }
    let unknown = || BadRecord::new("broken_json", start, "this line cannot be read");
    Err(json::object(text, start, &|_| true).err().unwrap_or_else(unknown))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Bool,
    Number,
    Text,
    List,
    Object,
}

impl Kind {
    /// Whether polars has no type for both: with text, numbers and lists become text.
    fn clashes(self, other: Kind) -> bool {
        let pair = |a, b| (self, other) == (a, b) || (other, self) == (a, b);
        (self == Kind::Object) != (other == Kind::Object) || pair(Kind::Bool, Kind::Number)
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Bool => "a boolean",
            Kind::Number => "a number",
            Kind::Text => "a text",
            Kind::List => "a list",
            Kind::Object => "an object",
        }
    }
}

/// The members of a row that are not null.
#[derive(Default)]
struct Row {
    members: Cell<Vec<(String, Kind)>>,
}

/// The type of a value; an error when an object in it has a duplicate key.
#[derive(Clone, Copy)]
struct Check<'a> {
    row: &'a Row,
    /// Whether the value is the row itself.
    top: bool,
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Bool)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Kind, E> {
        Ok(Kind::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Number)
    }

    fn visit_str<E>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Kind, A::Error> {
        while list.next_element_seed(Check { top: false, ..self })?.is_some() {}
        Ok(Kind::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut seen = HashSet::new();
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let kind = map.next_value_seed(Check { top: false, ..self })?;
            if self.top && kind != Kind::Null {
                members.push((key.clone(), kind));
            }
            if !seen.insert(key) {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        if self.top {
            self.row.members.set(members);
        }
        Ok(Kind::Object)
    }
}
