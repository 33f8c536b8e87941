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

    /// The texts that are encoded separately: the document, or each message.
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
    /// Bytes of text in all of them, when the files record it.
    pub bytes: Option<u64>,
    texts: Box<dyn Iterator<Item = Result<Text>> + Send>,
}

/// Calls a function with each of some texts, until it fails.
pub type EachText<'a> = dyn Fn(&mut dyn FnMut(&str) -> Result<()>) -> Result<()> + 'a;

/// Texts to be worked on together, in parallel.
#[derive(Default)]
pub struct Batch {
    pub texts: Vec<Text>,
    /// Of text.
    pub bytes: usize,
}

/// A batch takes no further text once it has so many bytes, or so many texts.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_TEXTS: usize = 8192;

impl Texts {
    /// Calls `work` with all texts in batches, and reads the next batch meanwhile.
    ///
    /// # Errors
    /// The first error of reading or of `work`.
    pub fn batches(mut self, mut work: impl FnMut(Batch) -> Result<()> + Send) -> Result<()> {
        let mut batch = self.batch()?;
        while !batch.texts.is_empty() {
            let (done, next) = rayon::join(|| work(batch), || self.batch());
            done?;
            batch = next?;
        }
        Ok(())
    }

    /// The next texts; none at the end.
    fn batch(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        while batch.bytes < BATCH_BYTES && batch.texts.len() < BATCH_TEXTS {
            let Some(text) = self.next() else { break };
            let text = text?;
            batch.bytes += text.bytes();
            batch.texts.push(text);
        }
        Ok(batch)
    }
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
        let mut all: Vec<Box<dyn Iterator<Item = Result<Text>> + Send>> = Vec::new();
        let (mut total, mut bytes) = (0, Some(0));
        for path in &self.documents {
            let documents = DocumentReader::open(path)?;
            total += documents.rows;
            bytes = bytes.zip(documents.text_bytes).map(|(sum, more)| sum + more);
            all.push(Box::new(documents.map(|d| d.map(Text::Document))));
        }
        for path in &self.conversations {
            let conversations = ConversationReader::open(path)?;
            total += conversations.rows;
            bytes = bytes.zip(conversations.text_bytes).map(|(sum, more)| sum + more);
            all.push(Box::new(conversations.map(|c| c.map(Text::Conversation))));
        }
        Ok(Texts { total, bytes, texts: Box::new(all.into_iter().flatten()) })
    }
}
