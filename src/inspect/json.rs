//! One JSON document: a report, a configuration.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Page;
use crate::base::table::shorten;
use crate::base::{Error, Result, fs};
use crate::corpus::input::InputFile;
use crate::corpus::json;

#[derive(Debug, Clone, Serialize)]
pub struct Document {
    pub value: Value,
}

/// No object in the file at `path`, which is JSON, has a key twice.
///
/// # Errors
/// Names the first key that stands twice, and where.
pub(super) fn expect_unique_keys(path: &Path) -> Result<()> {
    let text = fs::read_text(path)?;
    let body = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let start = (text.len() - body.len()) as u64;
    let file = InputFile { name: path.display().to_string(), path: path.to_path_buf(), size: 0 };
    json::parse_json(body, start).map(drop).map_err(|bad| bad.into_error(&file))
}

/// # Errors
/// With line and column where it is not JSON.
pub(super) fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path)?;
    let body = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    serde_json::from_slice(body).map_err(|e| {
        let line_start: usize =
            body.split_inclusive(|b| *b == b'\n').take(e.line().max(1) - 1).map(<[u8]>::len).sum();
        let at = (line_start + e.column().max(1) - 1).min(body.len());
        let problem =
            if e.is_eof() { "the JSON ends too early: the file is cut off" } else { "this is not JSON" };
        Error::input(problem).at(fs::place_of_byte(&path.display().to_string(), body, at)).cause(e)
    })
}

/// The most items of an array, keys of an object and characters of a string that a terminal is shown.
const ITEMS: usize = 20;
const KEYS: usize = 100;
const CHARS: usize = 300;

impl Document {
    pub(super) fn summary(&self) -> String {
        match &self.value {
            Value::Object(map) => format!("JSON object of {} keys", map.len()),
            Value::Array(items) => format!("JSON array of {} items", items.len()),
            _ => "JSON value".to_string(),
        }
    }

    pub(super) fn render(&self, page: &mut Page) {
        if let Ok(text) = serde_json::to_string_pretty(&cut(&self.value)) {
            page.heading(&text);
        }
    }
}

/// The value, shortened to what a terminal is shown.
fn cut(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(shorten_long(text)),
        Value::Array(items) => {
            let mut shown: Vec<Value> = items.iter().take(ITEMS).map(cut).collect();
            if items.len() > ITEMS {
                shown.push(Value::String(format!("… {} more", items.len() - ITEMS)));
            }
            Value::Array(shown)
        }
        Value::Object(map) => {
            let mut shown: Map<String, Value> =
                map.iter().take(KEYS).map(|(k, v)| (k.clone(), cut(v))).collect();
            if map.len() > KEYS {
                shown.insert("…".to_string(), Value::String(format!("{} more keys", map.len() - KEYS)));
            }
            Value::Object(shown)
        }
        other => other.clone(),
    }
}

fn shorten_long(text: &str) -> String {
    if text.chars().nth(CHARS).is_some() { shorten(text, CHARS) } else { text.to_string() }
}
