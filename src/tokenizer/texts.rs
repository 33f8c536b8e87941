//! The texts behind documents and conversations files, in input order, one at a time.

use std::path::PathBuf;

use crate::base::Result;
use crate::corpus::conversation::{Conversation, ConversationReader};
use crate::corpus::document::{Document, DocumentReader};

/// `documents.parquet` and `conversations.parquet` files.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    pub documents: Vec<PathBuf>,
    pub conversations: Vec<PathBuf>,
}

/// A document or a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    Document(Document),
    Conversation(Conversation),
}

impl Text {
    pub fn id(&self) -> &str {
        match self {
            Text::Document(d) => &d.id,
            Text::Conversation(c) => &c.id,
        }
    }

    /// Bytes of text, roles not counted.
    pub fn bytes(&self) -> usize {
        match self {
            Text::Document(d) => d.text.len(),
            Text::Conversation(c) => c.len(),
        }
    }

    /// What is encoded in one piece: the document, or each message.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            Text::Document(d) => vec![&d.text],
            Text::Conversation(c) => c.messages.iter().map(|m| m.content.as_str()).collect(),
        }
    }
}

/// All texts of some [`Inputs`].
pub struct Texts {
    /// How many there are.
    pub total: u64,
    texts: Box<dyn Iterator<Item = Result<Text>>>,
}

impl Iterator for Texts {
    type Item = Result<Text>;

    fn next(&mut self) -> Option<Result<Text>> {
        self.texts.next()
    }
}

impl Inputs {
    /// # Errors
    /// When a file cannot be opened, or is not of documents or conversations.
    pub fn texts(&self) -> Result<Texts> {
        let mut all: Vec<Box<dyn Iterator<Item = Result<Text>>>> = Vec::new();
        let mut total = 0;
        for path in &self.documents {
            let documents = DocumentReader::open(path)?;
            total += documents.rows;
            all.push(Box::new(documents.map(|d| d.map(Text::Document))));
        }
        for path in &self.conversations {
            let conversations = ConversationReader::open(path)?;
            total += conversations.rows;
            all.push(Box::new(conversations.map(|c| c.map(Text::Conversation))));
        }
        Ok(Texts { total, texts: Box::new(all.into_iter().flatten()) })
    }
}
