//! A checked template file: `load` makes it, `draw` and `count` use it. Names are resolved to indices.

use serde::Serialize;

use super::text::TemplateText;
use crate::base::yaml::Span;

/// One template file.
#[derive(Debug)]
pub struct Domain {
    pub name: String,
    pub slots: Vec<Slot>,
    pub documents: Vec<Template<Document>>,
    pub conversations: Vec<Template<Chat>>,
    /// Named exchanges, and those written directly in a conversation.
    pub exchanges: Vec<Exchange>,
    pub warnings: Vec<Warning>,
}

/// A warning: something allowed and probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Warning {
    pub fn new(span: &Span, message: impl Into<String>) -> Self {
        let file = span.file().to_string();
        Warning { file, line: span.line, column: span.column, message: message.into() }
    }
}

#[derive(Debug)]
pub struct Slot {
    pub name: String,
    pub attributes: Vec<String>,
    pub entries: Vec<Entry>,
    pub weights: Vec<f64>,
    pub span: Span,
}

#[derive(Debug)]
pub struct Entry {
    pub value: TemplateText,
    /// One for each attribute of the slot; each a choice of texts.
    pub attributes: Vec<Texts>,
}

/// Texts of which one is drawn, with their weights.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    pub texts: Vec<TemplateText>,
    pub weights: Vec<f64>,
}

/// A template of a document or a conversation.
#[derive(Debug)]
pub struct Template<T> {
    pub name: String,
    pub category: String,
    /// Its probability among the templates of its kind in the domain, category included.
    pub weight: f64,
    pub body: T,
}

/// Paragraphs of parts.
#[derive(Debug)]
pub struct Document {
    pub paragraphs: Vec<Vec<Part>>,
}

/// Some sentences of a document, or the system message of a conversation.
#[derive(Debug)]
pub struct Part {
    pub texts: Texts,
    /// How many different texts are drawn: at least, at most.
    pub count: (usize, usize),
    /// In any order rather than that of the file.
    pub shuffle: bool,
    /// The probability that it is drawn at all.
    pub chance: f64,
}

/// A conversation: an optional system message, then its steps in order.
#[derive(Debug)]
pub struct Chat {
    pub system: Option<Part>,
    pub steps: Vec<Step>,
}

/// With probability `chance` one of these exchanges.
#[derive(Debug, Clone)]
pub struct Step {
    pub exchanges: Vec<usize>,
    pub weights: Vec<f64>,
    pub chance: f64,
}

/// A user message, the assistant's answer, and optional further steps.
#[derive(Debug)]
pub struct Exchange {
    pub pairs: Vec<Pair>,
    pub weights: Vec<f64>,
    pub then: Option<Step>,
}

#[derive(Debug)]
pub struct Pair {
    pub user: Texts,
    pub assistant: Texts,
}

impl Document {
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.paragraphs.iter().flatten()
    }
}
