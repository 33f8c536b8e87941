//! YAML as a tree in which every key and value has its line and column, read defensively: depth, size and
//! alias expansion are bounded, duplicate keys and second documents refused.
//!
//! [`parse`] makes the tree, [`decode`] turns a node into any serde type, with errors that point at
//! the node at fault. Reading events is left to `saphyr-parser`; writing YAML is not done here.
//! Scalars follow the YAML 1.2 core schema (so `no` is a string).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as RawSpan};
use serde::de::{self, IntoDeserializer, Visitor};

use super::{Error, Place, Result, suggest};

/// A text with its name in messages: a path, or `--set`.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub text: String,
}

/// A stretch of one line of a source.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    source: Arc<Source>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    width: usize,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    pub span: Span,
    /// The spelling of a plain scalar that is no text, see [`Node::written`].
    spelling: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// 64 bits, signed or unsigned.
    Int(i128),
    Float(f64),
    Str(String),
    Seq(Vec<Node>),
    /// In the order of the file; keys are distinct.
    Map(Vec<(Key, Node)>),
}

/// A key of a map and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub name: String,
    pub span: Span,
}

/// Limits on the size of a document.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    pub depth: usize,
    /// The most values, with each expansion of an alias counted.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 16 << 20, depth: 64, nodes: 1_000_000 }
    }
}

/// Reads one document. An empty text is an empty map's place holder: `Null`.
///
/// # Errors
/// Malformed YAML, a duplicate or non-scalar key, a second document, an unknown alias, or more than
/// `limits` allow; each with its place.
pub fn parse(name: &str, text: &str, limits: Limits) -> Result<Node> {
    let source = Arc::new(Source { name: name.to_string(), text: text.to_string() });
    if text.len() > limits.bytes {
        return Err(Error::usage(format!(
            "`{name}` has {} bytes of YAML; at most {} are read",
            text.len(),
            limits.bytes
        )));
    }
    let build = |events| Builder { events, source, limits, nodes: 0, anchors: HashMap::new() }.document();
    if text.len() < LONG {
        return build(Events::Here(Box::new(Parser::new_from_str(text))));
    }
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(8);
        let ahead = std::thread::Builder::new().name("yaml".into());
        match ahead.spawn_scoped(scope, move || parse_ahead(text, &sender)) {
            Ok(_) => build(Events::Ahead { batches, batch: Vec::new().into_iter() }),
            Err(_) => build(Events::Here(Box::new(Parser::new_from_str(text)))),
        }
    })
}

/// From this size on, one thread parses events while another builds the tree.
const LONG: usize = 1 << 16;

/// Events that are sent at once.
const BATCH: usize = 1024;

type Parsed<'a> = Result<(Event<'a>, RawSpan), ScanError>;

enum Events<'a> {
    Here(Box<Parser<'a, saphyr_parser::StrInput<'a>>>),
    Ahead { batches: Receiver<Vec<Parsed<'a>>>, batch: std::vec::IntoIter<Parsed<'a>> },
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Option<Parsed<'a>> {
        match self {
            Events::Here(parser) => parser.next_event(),
            Events::Ahead { batches, batch } => loop {
                match batch.next() {
                    Some(parsed) => return Some(parsed),
                    None => *batch = batches.recv().ok()?.into_iter(),
                }
            },
        }
    }
}

/// Sends all events of `text`, up to an error or until the receiver is dropped.
fn parse_ahead<'a>(text: &'a str, batches: &SyncSender<Vec<Parsed<'a>>>) {
    let mut parser = Parser::new_from_str(text);
    let mut more = true;
    while more {
        let mut batch = Vec::with_capacity(BATCH);
        while more && batch.len() < BATCH {
            let parsed = parser.next_event();
            more = matches!(&parsed, Some(Ok((event, _))) if *event != Event::StreamEnd);
            batch.extend(parsed);
        }
        more &= batches.send(batch).is_ok();
    }
}

/// Reads a file as [`parse`] does.
///
/// # Errors
/// As [`parse`], or when the file cannot be read.
pub fn load(path: &std::path::Path, limits: Limits) -> Result<Node> {
    parse(&path.display().to_string(), &super::fs::read_text(path)?, limits)
}

struct Builder<'a> {
    events: Events<'a>,
    source: Arc<Source>,
    limits: Limits,
    nodes: usize,
    anchors: HashMap<usize, Node>,
}

impl<'a> Builder<'a> {
    fn document(mut self) -> Result<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                _ if root.is_some() => {
                    return Err(self
                        .error(&span, "a second document in one file")
                        .help("keep one, remove `---`"));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        let start = Span { source: self.source, line: 1, column: 1, width: 1 };
        let empty = Node { spelling: Some("".into()), ..Node::new(Value::Null, start) };
        Ok(root.unwrap_or(empty))
    }

    fn next(&mut self) -> Result<(Event<'a>, RawSpan)> {
        match self.events.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => {
                let mark = *e.marker();
                Err(self.error(&RawSpan::empty(mark), format!("this is not YAML: {}", e.info())))
            }
            None => Err(Error::bug("the YAML parser ended without an end")),
        }
    }

    fn node(&mut self, event: Event<'a>, span: RawSpan, depth: usize) -> Result<Node> {
        if depth > self.limits.depth {
            return Err(self.error(&span, format!("nested deeper than {} levels", self.limits.depth)));
        }
        self.count(1, &span)?;
        let place = self.span(&span);
        let mut spelling = None;
        let (value, anchor) = match event {
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned();
                let node = node.ok_or_else(|| self.error(&span, "this alias has no anchor before it"))?;
                self.count(size(&node), &span)?;
                if depth + height(&node) > self.limits.depth {
                    return Err(self.error(&span, format!("nested deeper than {} levels", self.limits.depth)));
                }
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    return Err(self
                        .error(&span, format!("the tag `{tag}` means nothing here"))
                        .help("remove it"));
                }
                match scalar(&text, style) {
                    Plain::Text => (Value::Str(text.into_owned()), anchor),
                    Plain::BadNumber => return Err(self.bad_number(&span, &text)),
                    Plain::Value(value) => {
                        spelling = Some(text.into_owned().into_boxed_str());
                        (value, anchor)
                    }
                }
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break (Value::Seq(items), anchor),
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, _) => (Value::Map(self.map(depth)?), anchor),
            _ => return Err(self.error(&span, "this is not a value")),
        };
        let node = Node { value, span: place, spelling };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>> {
        // Most maps of a pipeline have one entry; the default capacity of four would be most of the tree's
        // memory.
        let mut entries: Vec<(Key, Node)> = Vec::with_capacity(1);
        let mut seen = Seen::default();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(text, ..), span) => Key { name: text.into_owned(), span: self.span(&span) },
                (_, span) => return Err(self.error(&span, "a key must be a plain word")),
            };
            if let Some(line) = seen.earlier(&key, &entries) {
                return Err(Error::usage(format!("the key `{}` stands here a second time", key.name))
                    .at(key.span.place())
                    .help(format!("its first is on line {line}; remove one")));
            }
            let (event, span) = self.next()?;
            entries.push((key, self.node(event, span, depth + 1)?));
        }
    }

    fn count(&mut self, n: usize, span: &RawSpan) -> Result<()> {
        self.nodes += n;
        if self.nodes > self.limits.nodes {
            let what = format!("more than {} values once aliases are expanded", self.limits.nodes);
            return Err(self.error(span, what));
        }
        Ok(())
    }

    /// An integer beyond 64 bits, NaN or an infinity, which JSON, and so the key of a stage, cannot
    /// represent.
    fn bad_number(&self, span: &RawSpan, text: &str) -> Error {
        match is_whole(text) {
            true => self.error(span, format!("the number {text} does not fit in 64 bits")),
            false => self
                .error(span, format!("expected a finite number, found {text}"))
                .help(format!("for the text \"{text}\", write it in quotes")),
        }
    }

    fn span(&self, raw: &RawSpan) -> Span {
        let (start, end) = (raw.start, raw.end);
        let width = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
        Span { source: self.source.clone(), line: start.line(), column: start.col() + 1, width: width.max(1) }
    }

    fn error(&self, raw: &RawSpan, message: impl Into<String>) -> Error {
        Error::usage(message).at(self.span(raw).place())
    }
}

/// The keys of a map so far. Most maps have a handful, which are compared faster than hashed.
#[derive(Default)]
struct Seen(HashMap<String, usize>);

impl Seen {
    const FEW: usize = 16;

    /// The line of an earlier `key`, if there is one; `entries` are all those before it.
    fn earlier(&mut self, key: &Key, entries: &[(Key, Node)]) -> Option<usize> {
        if entries.len() < Self::FEW {
            return entries.iter().find(|(k, _)| k.name == key.name).map(|(k, _)| k.span.line);
        }
        if self.0.is_empty() {
            self.0.extend(entries.iter().map(|(k, _)| (k.name.clone(), k.span.line)));
        }
        self.0.insert(key.name.clone(), key.span.line)
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Seq(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, n)| size(n)).sum(),
        _ => 0,
    }
}

fn height(node: &Node) -> usize {
    1 + match &node.value {
        Value::Seq(items) => items.iter().map(height).max().unwrap_or(0),
        Value::Map(entries) => entries.iter().map(|(_, n)| height(n)).max().unwrap_or(0),
        _ => 0,
    }
}

/// The core schema's reading of a scalar.
fn scalar(text: &str, style: ScalarStyle) -> Plain {
    match style {
        ScalarStyle::Plain => plain(text),
        _ => Plain::Text,
    }
}

enum Plain {
    Value(Value),
    Text,
    /// Not finite, or an integer beyond 64 bits.
    BadNumber,
}

fn plain(text: &str) -> Plain {
    Plain::Value(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan"
        | ".NaN" | ".NAN" => return Plain::BadNumber,
        _ => return number(text),
    })
}

fn number(text: &str) -> Plain {
    let fits = |n: &i128| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(n);
    let whole = |n: Result<i128, std::num::ParseIntError>| {
        n.ok().filter(fits).map_or(Plain::BadNumber, |n| Plain::Value(Value::Int(n)))
    };
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").filter(|h| h.chars().all(|c| c.is_ascii_hexdigit())) {
        whole(i128::from_str_radix(hex, 16))
    } else if is_whole(text) {
        whole(text.parse())
    } else if is_float(digits) {
        let finite = text.parse().ok().filter(|x: &f64| x.is_finite());
        finite.map_or(Plain::BadNumber, |x| Plain::Value(Value::Float(x)))
    } else {
        Plain::Text
    }
}

/// `[-+]?[0-9]+`
fn is_whole(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a plain scalar reads as a number that is refused: not finite, or beyond 64 bits.
pub fn is_bad_number(text: &str) -> bool {
    matches!(plain(text.trim()), Plain::BadNumber)
}

/// `[0-9]*\.?[0-9]*([eE][-+]?[0-9]+)?` with at least one digit in front of the exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(i) => (&text[..i], Some(&text[i + 1..])),
        None => (text, None),
    };
    let exponent_ok = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit())
    });
    exponent_ok
        && mantissa.bytes().filter(|b| *b == b'.').count() <= 1
        && mantissa.bytes().any(|b| b.is_ascii_digit())
        && mantissa.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

impl Span {
    /// The place of values that are in no file, such as defaults.
    pub fn named(name: &str) -> Span {
        let source = Arc::new(Source { name: name.to_string(), text: String::new() });
        Span { source, line: 1, column: 1, width: 1 }
    }

    pub fn place(&self) -> Place {
        let excerpt = self.source.text.lines().nth(self.line.saturating_sub(1)).unwrap_or("").to_string();
        Place {
            file: self.source.name.clone(),
            line: self.line,
            column: self.column,
            excerpt,
            width: self.width,
        }
    }

    /// The name of its source.
    pub fn file(&self) -> &str {
        &self.source.name
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source.name, self.line, self.column)
    }
}

impl Node {
    pub fn new(value: Value, span: Span) -> Node {
        Node { value, span, spelling: None }
    }

    /// The same value at another place.
    pub fn moved_to(&self, span: Span) -> Node {
        Node { span, ..self.clone() }
    }

    /// A scalar as it is written in its source: `007`, `1.10`, `0x1F`, where the value is 7, 1.1 and 31.
    /// `None` for a list or a map.
    pub fn written(&self) -> Option<Cow<'_, str>> {
        match (&self.value, &self.spelling) {
            (Value::Seq(_) | Value::Map(_), _) => None,
            (Value::Str(text), _) => Some(text.into()),
            (_, Some(spelling)) => Some(spelling.as_ref().into()),
            _ => Some(self.to_json().to_string().into()),
        }
    }

    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::usage(message).at(self.span.place())
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(k, _)| k.name == key).map(|(_, n)| n)
    }

    /// The entries of a map; of anything else none.
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// [`Node::entries`], taken out of the map.
    pub fn into_entries(self) -> Vec<(Key, Node)> {
        match self.value {
            Value::Map(entries) => entries,
            _ => Vec::new(),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Follows `a.b.0.c` through maps and lists, as far as it goes.
    pub fn locate(&self, path: &str) -> &Node {
        let mut node = self;
        for part in path.split('.').filter(|p| !p.is_empty()) {
            let next = match &node.value {
                Value::Seq(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
                _ => node.get(part),
            };
            match next {
                Some(found) => node = found,
                None => break,
            }
        }
        node
    }

    /// What was found, for "expected a number, found …".
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Int(_) | Value::Float(_) => format!("the number {}", self.written().unwrap_or_default()),
            Value::Str(s) => format!("the text {s:?}"),
            Value::Seq(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => i64::try_from(*n).map_or_else(|_| Json::from(*n as u64), Json::from),
            Value::Float(x) => Json::from(*x),
            Value::Str(s) => Json::String(s.clone()),
            Value::Seq(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => entries.iter().map(|(k, n)| (k.name.clone(), n.to_json())).collect(),
        }
    }
}

/// A node as any serde type. `Null` where a map is expected reads as an empty map, so that `params:` with
/// nothing below it is no error.
///
/// # Errors
/// Unknown and missing fields, wrong types, at the node at fault.
pub fn decode<T: de::DeserializeOwned>(node: &Node) -> Result<T> {
    T::deserialize(node).map_err(|e| e.into_error(node))
}

/// serde's errors, with the place of the innermost node.
#[derive(Debug)]
pub struct DecodeError {
    message: String,
    help: Option<String>,
    span: Option<Span>,
}

impl DecodeError {
    fn into_error(self, node: &Node) -> Error {
        let span = self.span.as_ref().unwrap_or(&node.span);
        let error = Error::usage(self.message).at(span.place());
        match self.help {
            Some(help) => error.help(help),
            None => error,
        }
    }

    fn or_at(mut self, span: &Span) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }

    fn unknown(what: &str, found: &str, expected: &'static [&'static str]) -> Self {
        let known = suggest::list(expected.iter().copied());
        let help = match suggest::closest(found, expected.iter().copied()) {
            Some(name) => format!("did you mean `{name}`? (known: {known})"),
            None => format!("known: {known}"),
        };
        DecodeError { message: format!("unknown {what} `{found}`"), help: Some(help), span: None }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        DecodeError { message: message.to_string(), help: None, span: None }
    }

    fn invalid_type(found: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, found {}", in_words(expected), unexpected(&found)))
    }

    fn invalid_value(found: de::Unexpected, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown("key", found, expected)
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown("value", found, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("the key `{field}` is missing"))
    }
}

/// What serde expects, without the names of Rust's types.
fn in_words(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, 0 or more".into(),
        "i32" | "i64" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a string" | "string" => "a text".into(),
        other => other.into(),
    }
}

fn unexpected(found: &de::Unexpected) -> String {
    match found {
        de::Unexpected::Str(s) => format!("the text {s:?}"),
        de::Unexpected::Signed(n) => format!("the number {n}"),
        de::Unexpected::Unsigned(n) => format!("the number {n}"),
        de::Unexpected::Float(x) => format!("the number {x}"),
        de::Unexpected::Bool(b) => format!("the boolean {b}"),
        de::Unexpected::Map => "a map".into(),
        de::Unexpected::Seq => "a list".into(),
        de::Unexpected::Unit => "nothing".into(),
        other => other.to_string(),
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => match i64::try_from(*n) {
                Ok(n) => visitor.visit_i64(n),
                Err(_) => visitor.visit_u64(*n as u64),
            },
            Value::Float(x) => visitor.visit_f64(*x),
            Value::Str(s) => visitor.visit_borrowed_str(s),
            Value::Seq(items) => visitor.visit_seq(Items(items.iter())),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
        .map_err(|e| e.or_at(&self.span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Int(n) => visitor.visit_f64(*n as f64),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Null => visitor.visit_map(Entries { entries: [].iter(), value: None }),
            _ => return self.deserialize_any(visitor),
        }
        .map_err(|e: DecodeError| e.or_at(&self.span))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::Str(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Map(entries) if entries.len() == 1 => {
                let (key, value) = &entries[0];
                visitor.visit_enum(Variant { key, value })
            }
            _ => Err(DecodeError {
                message: format!(
                    "expected one of {}, found {}",
                    suggest::list(variants.iter().copied()),
                    self.describe()
                ),
                help: None,
                span: None,
            }),
        }
        .map_err(|e| e.or_at(&self.span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct identifier ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Node>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        self.0.next().map(|node| seed.deserialize(node).map_err(|e| e.or_at(&node.span))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de Node>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        let name: de::value::BorrowedStrDeserializer<DecodeError> =
            de::value::BorrowedStrDeserializer::new(&key.name);
        seed.deserialize(name).map(Some).map_err(|e| e.or_at(&key.span))
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let node =
            self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        seed.deserialize(node).map_err(|e| e.or_at(&node.span))
    }
}

struct Variant<'de> {
    key: &'de Key,
    value: &'de Node,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = DecodeError;
    type Variant = &'de Node;

    fn variant_seed<V: de::DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, &'de Node), DecodeError> {
        let name: de::value::BorrowedStrDeserializer<DecodeError> =
            de::value::BorrowedStrDeserializer::new(&self.key.name);
        let variant = seed.deserialize(name).map_err(|e| e.or_at(&self.key.span))?;
        Ok((variant, self.value))
    }
}

impl<'de> de::VariantAccess<'de> for &'de Node {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        match self.value {
            Value::Null => Ok(()),
            _ => Err(DecodeError {
                message: format!("expected nothing here, found {}", self.describe()),
                help: None,
                span: Some(self.span.clone()),
            }),
        }
    }

    fn newtype_variant_seed<T: de::DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DecodeError> {
        seed.deserialize(self).map_err(|e| e.or_at(&self.span))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        de::Deserializer::deserialize_map(self, visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    fn read(text: &str) -> Result<Node> {
        parse("t.yaml", text, Limits::default())
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Params {
        steps: u32,
        #[serde(default)]
        rate: Option<f64>,
        #[serde(default)]
        mode: Mode,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Fast,
        Slow {
            by: u32,
        },
    }

    fn mistake(text: &str) -> (usize, usize, String) {
        let error = read(text).and_then(|n| decode::<Params>(&n)).unwrap_err();
        let place = error.place().expect("every mistake has a place");
        (place.line, place.column, error.to_string())
    }

    #[test]
    fn it_decodes_structs_options_and_enums() {
        let node = read("steps: 3\nrate: 1\nmode: { slow: { by: 2 } }").unwrap();
        let params: Params = decode(&node).unwrap();
        assert_eq!(params, Params { steps: 3, rate: Some(1.0), mode: Mode::Slow { by: 2 } });
    }

    #[test]
    fn mistakes_are_placed_where_they_are() {
        let (line, column, text) = mistake("steps: 3\nrat: 1\n");
        assert_eq!((line, column), (2, 1));
        assert!(text.contains("did you mean `rate`"), "{text}");
        let (line, column, text) = mistake("steps: many\n");
        assert_eq!((line, column), (1, 8));
        assert!(text.contains("found the text \"many\""), "{text}");
        assert_eq!(mistake("rate: 1").0, 1);
        let (line, column, text) = mistake("steps: 1\nmode: fats");
        assert_eq!((line, column), (2, 7));
        assert!(text.contains("did you mean `fast`"), "{text}");
        assert_eq!(mistake("steps: 1\nmode:\n  slow:\n    by: -1").0, 4);
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        let node = read("[no, 0x1F, 1e3, .5, -7, '7', ~, true, 1.2.3, 12ab]").unwrap();
        let Value::Seq(items) = node.value else { panic!("not a list") };
        let values: Vec<_> = items.into_iter().map(|n| n.value).collect();
        let text = |s: &str| Value::Str(s.into());
        assert_eq!(
            values,
            [
                text("no"),
                Value::Int(31),
                Value::Float(1000.0),
                Value::Float(0.5),
                Value::Int(-7),
                text("7"),
                Value::Null,
                Value::Bool(true),
                text("1.2.3"),
                text("12ab")
            ]
        );
    }

    #[test]
    fn a_scalar_keeps_its_spelling() {
        let node = read("[007, 0x1F, 1.10, 1e3, +5, True, ~, no, '1.10', {a: &b 0o7, c: *b}]").unwrap();
        let Value::Seq(items) = &node.value else { panic!("not a list") };
        let written: Vec<_> = items.iter().map(|n| n.written().unwrap_or("none".into())).collect();
        assert_eq!(written, ["007", "0x1F", "1.10", "1e3", "+5", "True", "~", "no", "1.10", "none"]);
        assert_eq!(node.locate("9.c").written().unwrap(), "0o7");
        assert_eq!(items[1].describe(), "the number 0x1F");
        assert_eq!(read("").unwrap().written().unwrap(), "");
    }

    #[test]
    fn numbers_that_json_has_none_for_are_refused_where_they_stand() {
        for text in [".nan", "-.inf", "1e999", "+.INF"] {
            let error = read(&format!("rate: {text}")).unwrap_err();
            assert!(error.message().contains(&format!("expected a finite number, found {text}")), "{error}");
            assert_eq!(error.place().map(|p| (p.line, p.column)), Some((1, 7)));
        }
        assert!(read("n: 18446744073709551616").unwrap_err().message().contains("does not fit in 64 bits"));
        let seed = read("18446744073709551615").unwrap();
        assert_eq!(decode::<u64>(&seed).unwrap(), u64::MAX);
        assert_eq!(seed.to_json(), serde_json::json!(u64::MAX));
    }

    #[test]
    fn bombs_and_towers_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..10 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(read(&bomb).unwrap_err().message().contains("aliases"));
        // The parser has a bound of its own for brackets; ours is for every kind of nesting.
        for tower in ["[".repeat(100_000), "[".repeat(80) + &"]".repeat(80), "- ".repeat(5_000)] {
            let error = read(&tower).unwrap_err();
            assert!(
                error.message().contains("nested deeper") || error.message().contains("recursion"),
                "{error}"
            );
        }
    }

    #[test]
    fn duplicates_and_second_documents_are_refused() {
        let error = read("a: 1\nb: 2\na: 3").unwrap_err();
        assert_eq!(error.place().unwrap().line, 3);
        assert!(error.to_string().contains("its first is on line 1"));
        assert!(read("a: 1\n---\nb: 2").unwrap_err().message().contains("second document"));
    }

    #[test]
    fn a_long_text_reads_like_a_short_one() {
        let entry = |i: usize| format!("k{i}: [{i}, {{a: 'x'}}]\n");
        let long: String = (0..LONG / 8).map(entry).collect();
        assert!(long.len() > LONG);
        let node = read(&long).unwrap();
        assert_eq!(node.entries().len(), LONG / 8);
        for (i, (key, value)) in node.entries().iter().enumerate().step_by(997) {
            let short = read(&entry(i)).unwrap();
            assert_eq!(
                (&key.name, value.to_json()),
                (&short.entries()[0].0.name, short.entries()[0].1.to_json())
            );
            assert_eq!((key.span.line, key.span.column), (i + 1, 1));
        }
        let error = read(&(long.clone() + "k7: 1\n")).unwrap_err();
        assert_eq!(error.place().unwrap().line, LONG / 8 + 1);
        assert!(error.to_string().contains("its first is on line 8"), "{error}");
        // Each side may be the one that finds the mistake.
        assert!(read(&(long.clone() + "}: [\n")).unwrap_err().message().contains("not YAML"));
        assert!(read(&("a: 1\na: 2\n".to_string() + &long)).unwrap_err().message().contains("second time"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_with_a_place(text in "[ -~\n\t&*{}\\[\\]:#'\"-]{0,200}") {
            if let Err(error) = read(&text) {
                prop_assert!(error.place().is_some(), "{}", error);
            }
        }
    }
}
