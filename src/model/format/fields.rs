//! The keys of a `config.json`: what is missing or odd is refused with its name, and what nobody asked for
//! is told.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::{Map, Value};

use crate::base::{Error, Result, suggest};

/// An object of a `config.json`.
pub struct Fields<'a> {
    file: &'a str,
    /// The keys that lead to the object, each with a dot behind it.
    path: String,
    map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<&'a str>>,
    notes: RefCell<Vec<String>>,
}

/// Keys that change nothing of what a model computes.
const HARMLESS: [&str; 35] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "n_ctx",
    "n_special",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "predict_special_tokens",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "return_dict",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

impl<'a> Fields<'a> {
    /// # Errors
    /// When `value` is no object.
    pub fn of(file: &'a str, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self::at(file, String::new(), map)),
            _ => Err(Error::input(format!("`{file}` is not a JSON object"))),
        }
    }

    fn at(file: &'a str, path: String, map: &'a Map<String, Value>) -> Self {
        Fields { file, path, map, asked: RefCell::default(), notes: RefCell::default() }
    }

    /// The name of the file.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The error that `name` has a value that is not as `expected` says.
    pub fn wrong(&self, name: &str, expected: impl Display) -> Error {
        let found = self.map.get(name).map_or("missing".to_string(), Value::to_string);
        Error::input(format!("`{}`: `{}{name}` is {found}: {expected}", self.file, self.path))
    }

    /// The error that `name` asks for what can't be computed.
    pub fn refused(&self, name: &str, computed: impl Display) -> Error {
        self.wrong(name, computed)
            .help("use a model without it: its weights mean nothing when something else is computed")
    }

    /// Something that the user is to be told.
    pub fn note(&self, what: String) {
        self.notes.borrow_mut().push(format!("`{}`: {what}", self.file));
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// The keys that nobody asked for.
    pub fn unknown(&self) -> Option<String> {
        let asked = self.asked.borrow();
        let known = |key: &str| asked.contains(key) || HARMLESS.contains(&key);
        let unknown: Vec<&str> = self.map.keys().map(String::as_str).filter(|key| !known(key)).collect();
        let what = if unknown.len() == 1 { "a key that is" } else { "keys that are" };
        let list = || suggest::list(unknown.iter().copied());
        (!unknown.is_empty())
            .then(|| format!("`{}` has {what} not known and not used: {}", self.file, list()))
    }

    pub fn all(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value, unless it is missing or null.
    pub fn get(&self, name: &'a str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// As [`Fields::get`], by a name of any origin.
    pub fn find(&self, name: &str) -> Option<&'a Value> {
        let (key, value) = self.map.get_key_value(name)?;
        self.asked.borrow_mut().insert(key.as_str());
        Some(value).filter(|value| !value.is_null())
    }

    /// # Errors
    /// When it is no whole number.
    pub fn size(&self, name: &'a str) -> Result<usize> {
        let found = self.get(name).and_then(Value::as_u64);
        found.map(|n| n as usize).ok_or_else(|| self.wrong(name, "expected a whole number"))
    }

    /// # Errors
    /// When it is there and no whole number.
    pub fn size_or(&self, name: &'a str, default: usize) -> Result<usize> {
        if self.get(name).is_some() { self.size(name) } else { Ok(default) }
    }

    /// # Errors
    /// When it is there and no number.
    pub fn float(&self, name: &'a str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(name, "expected a number"))
    }

    /// # Errors
    /// When it is there and neither true nor false.
    pub fn flag(&self, name: &'a str, default: bool) -> Result<bool> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(name, "expected true or false"))
    }

    /// # Errors
    /// When it is there and no text.
    pub fn text(&self, name: &'a str, default: &'a str) -> Result<&'a str> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.wrong(name, "expected a text"))
    }

    /// # Errors
    /// When it is there and no object.
    pub fn object(&self, name: &'a str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::at(self.file, format!("{}{name}.", self.path), map))),
            Some(_) => Err(self.wrong(name, "expected an object")),
        }
    }

    /// # Errors
    /// When it is there with another value than the one that can be computed.
    pub fn only(&self, name: &'a str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let same =
            |found: &Value| *found == value || found.as_f64().is_some_and(|x| Some(x) == value.as_f64());
        match self.get(name) {
            Some(found) if !same(found) => {
                Err(self.refused(name, format_args!("what can be computed is {value}")))
            }
            _ => Ok(()),
        }
    }
}
