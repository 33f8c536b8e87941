//! The fields of a JSON object of a request: each is asked for by name and type, and what nobody asked for is
//! refused, so that nothing that a client meant goes unnoticed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;
use crate::base::suggest;

/// The object of a request, or one inside of it.
pub struct Fields {
    map: Map<String, Value>,
    /// Before the names of fields in messages: `messages[0].`.
    prefix: String,
    /// The fields that were asked for.
    known: Vec<&'static str>,
}

impl Fields {
    /// The body of a request.
    pub fn new(map: Map<String, Value>) -> Self {
        Fields { map, prefix: String::new(), known: Vec::new() }
    }

    /// The object that the field `name` is.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(name: String, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, prefix: format!("{name}."), known: Vec::new() }),
            other => Err(wrong(&name, &other, "an object")),
        }
    }

    /// A field as it is; `None` where it is missing or null.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// What messages call a field.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The error of a field.
    pub fn wrong(&self, name: &str, found: &Value, expected: &str) -> ApiError {
        wrong(&self.name(name), found, expected)
    }

    /// The error of a field that must be there.
    pub fn missing(&self, name: &str, expected: &str) -> ApiError {
        let name = self.name(name);
        ApiError::param(&name, format!("there is no `{name}`: expected {expected}"))
    }

    /// # Errors
    /// When the field is no text.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "a text")),
        }
    }

    /// # Errors
    /// When the field is neither true nor false.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    /// # Errors
    /// When the field is no number of the range.
    pub fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = value.as_f64().filter(|x| range.contains(x));
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        found.map(Some).ok_or_else(|| self.wrong(name, &value, &expected()))
    }

    /// # Errors
    /// When the field is no whole number of the range.
    pub fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = whole(&value).filter(|n| range.contains(n));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        found.map(Some).ok_or_else(|| self.wrong(name, &value, &expected()))
    }

    /// # Errors
    /// When the field is no list.
    pub fn list(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, &other, "a list")),
        }
    }

    /// Takes fields that change nothing of what is answered.
    pub fn ignore(&mut self, names: &[&'static str]) {
        names.iter().for_each(|name| drop(self.take(name)));
    }

    /// Takes a field that may only have the values of `allowed`, which change nothing.
    ///
    /// # Errors
    /// When it has another; `why` says what is missing here.
    pub fn only(
        &mut self,
        name: &'static str,
        allowed: impl Fn(&Value) -> bool,
        why: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !allowed(&value) => {
                let name = self.name(name);
                let what = format!("`{name}` is {}: {why}", shown(&value));
                Err(ApiError::param(name, what).code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When there is a field that nobody asked for.
    pub fn finish(self) -> Result<(), ApiError> {
        let Some(unknown) = self.map.keys().next() else { return Ok(()) };
        let hint = suggest::closest(unknown, self.known.iter().copied());
        let hint = match hint {
            Some(name) => format!("did you mean `{}{name}`?", self.prefix),
            None => format!("leave it out; there are {}", suggest::list(self.known.iter().copied())),
        };
        let name = self.name(unknown);
        let what = format!("the field `{name}` is unknown: {hint}");
        Err(ApiError::param(name, what).code("unknown_parameter"))
    }
}

/// The error of a value.
pub fn wrong(name: &str, found: &Value, expected: &str) -> ApiError {
    ApiError::param(name, format!("`{name}` is {}: expected {expected}", shown(found)))
}

/// A whole number, be it written as `3` or `3.0`.
pub fn whole(value: &Value) -> Option<i64> {
    let exact = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(exact))
}

/// A value in a message, cut where it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("`{}…`", &text[..at]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of("body".to_string(), value).unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_found() {
        let mut body = fields(json!({"t": "hot", "n": 2.5, "k": 3.0, "none": null, "list": 1}));
        let error = body.number("t", 0.0..=2.0).unwrap_err();
        assert_eq!(error.message, "`body.t` is `\"hot\"`: expected a number from 0 to 2");
        assert_eq!(error.param.as_deref(), Some("body.t"));
        assert!(body.integer("n", 1..=4).unwrap_err().message.contains("a whole number from 1 to 4"));
        assert_eq!(body.integer("k", 1..=4).unwrap(), Some(3));
        assert_eq!(body.text("none").unwrap(), None);
        assert!(body.list("list").is_err());
        body.finish().unwrap();
    }

    #[test]
    fn a_field_that_nobody_asked_for_is_refused() {
        let mut body = fields(json!({"temprature": 1}));
        assert_eq!(body.number("temperature", 0.0..=2.0).unwrap(), None);
        let error = body.finish().unwrap_err();
        assert_eq!(error.message, "the field `body.temprature` is unknown: did you mean `body.temperature`?");
        assert_eq!(
            (error.code, error.param.as_deref()),
            (Some("unknown_parameter"), Some("body.temprature"))
        );
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert!(shown(&json!("ä".repeat(100))).ends_with("ä…`"));
    }
}
