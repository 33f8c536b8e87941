//! One value of a frame: as JSON, which keeps everything, and as a short text for a terminal.

use polars::prelude::{AnyValue, Series};
use serde_json::{Number, Value};

use super::guarded;

/// The value as JSON: lists as arrays, structs as objects. What JSON has no form for becomes a
/// string: dates, decimals, bytes (`0x…`), numbers that are not finite, and integers beyond 64 bits.
pub fn json(value: &AnyValue) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(v) => Value::Bool(*v),
        AnyValue::List(items) | AnyValue::Array(items, _) => items.iter().map(|item| json(&item)).collect(),
        AnyValue::Struct(..) => json(&value.clone().into_static()),
        AnyValue::StructOwned(fields) => {
            let names = fields.1.iter().map(|field| field.name.to_string());
            Value::Object(names.zip(fields.0.iter().map(json)).collect())
        }
        AnyValue::Binary(bytes) => Value::String(hex(bytes)),
        AnyValue::BinaryOwned(bytes) => Value::String(hex(bytes)),
        AnyValue::Float32(v) => float(f64::from(*v), v.to_string()),
        AnyValue::Float64(v) => float(*v, v.to_string()),
        other => match other.get_str() {
            Some(text) => Value::String(text.to_string()),
            None => number(other).unwrap_or_else(|| Value::String(described(other))),
        },
    }
}

fn number(value: &AnyValue) -> Option<Value> {
    if !value.is_integer() {
        return None;
    }
    // Through text, as polars' integers are of ten types; those beyond 64 bits stay text.
    let text = value.to_string();
    let signed = text.parse::<i64>().map(Number::from);
    signed.or_else(|_| text.parse::<u64>().map(Number::from)).ok().map(Value::Number)
}

/// The value as polars formats it; where that panics (dates out of range, unknown time zones), the number
/// in the file.
fn described(value: &AnyValue) -> String {
    let (number, unit) = match value {
        AnyValue::Date(days) => (i64::from(*days), "days".to_string()),
        AnyValue::Datetime(n, unit, _) => (*n, unit.to_string()),
        AnyValue::DatetimeOwned(n, unit, _) => (*n, unit.to_string()),
        AnyValue::Time(n) => return guarded(|| value.to_string()).unwrap_or_else(|_| format!("{n} ns")),
        other => return other.to_string(),
    };
    guarded(|| value.to_string()).unwrap_or_else(|_| format!("{number} {unit} since 1970-01-01"))
}

/// `shortest` is the shortest text of the number in its own precision: 0.1 rather than
/// 0.10000000149011612 for a single.
fn float(value: f64, shortest: String) -> Value {
    if !value.is_finite() {
        return Value::String(shortest);
    }
    Number::from_f64(shortest.parse().unwrap_or(value)).map_or(Value::Null, Value::Number)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_string(), |text, byte| text + &format!("{byte:02x}"))
}

/// The value in about `max` characters on one line; of a long list only the items that fit are formatted.
pub fn text(value: &AnyValue, max: usize) -> String {
    let mut out = String::new();
    write(value, &mut out, max, false);
    crate::base::table::shorten(&out, max)
}

fn write(value: &AnyValue, out: &mut String, max: usize, nested: bool) {
    match value {
        AnyValue::List(items) | AnyValue::Array(items, _) => list(items, out, max),
        AnyValue::Struct(..) => write(&value.clone().into_static(), out, max, nested),
        AnyValue::StructOwned(fields) => {
            out.push('{');
            for (i, (field, value)) in fields.1.iter().zip(&fields.0).enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                out.push_str(&field.name);
                out.push_str(": ");
                write(value, out, max, true);
            }
            out.push('}');
        }
        other => match (other.get_str(), nested) {
            (Some(text), false) => out.extend(text.chars().take(max + 1)),
            (Some(text), true) => {
                out.push('"');
                out.extend(text.chars().take(max + 1));
                out.push('"');
            }
            (None, _) => match json(other) {
                Value::String(text) => out.push_str(&text),
                value => out.push_str(&value.to_string()),
            },
        },
    }
}

fn list(items: &Series, out: &mut String, max: usize) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        // Bytes are at least as many as characters: once past, nothing more would show.
        if out.len() > 4 * max {
            break;
        }
        write(&item, out, max, true);
    }
    out.push(']');
}
