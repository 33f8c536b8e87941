//! A conversation is a list of messages with roles; a `conversations` artifact is
//! `conversations.parquet` with one conversation a row.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray, StructBuilder,
    UInt64Array, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde::{Deserialize, Serialize};

use super::parquet_io::{self, column, unreadable};
use crate::base::{Digest, Error, Result, fs};

/// The file of a `conversations` artifact.
pub const FILE_NAME: &str = "conversations.parquet";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    pub fn parse(text: &str) -> Option<Role> {
        [Role::System, Role::User, Role::Assistant].into_iter().find(|r| r.as_str() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// 32 hex digits from the digest of the messages. Equal conversations have equal ids.
    pub id: String,
    /// The file's name within its source, or `synthesize:<domain>`.
    pub source: String,
    /// The row or line of `source`, from 1.
    pub row: u64,
    pub messages: Vec<Message>,
}

impl Conversation {
    pub fn new(messages: Vec<Message>, source: impl Into<String>, row: u64) -> Self {
        let mut text = String::new();
        for message in &messages {
            text.push_str(message.role.as_str());
            text.push('\0');
            text.push_str(&message.content);
            text.push('\0');
        }
        let id = Digest::of(text.as_bytes()).hex()[..32].to_string();
        Conversation { id, source: source.into(), row, messages }
    }

    /// Bytes of all contents.
    pub fn len(&self) -> usize {
        self.messages.iter().map(|m| m.content.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

fn message_fields() -> Fields {
    vec![Field::new("role", DataType::Utf8, false), Field::new("content", DataType::Utf8, false)].into()
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(message_fields()), false))
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, false),
        Field::new("row", DataType::UInt64, false),
        Field::new("messages", DataType::List(item()), false),
    ]))
}

fn messages_builder() -> ListBuilder<StructBuilder> {
    let columns: Vec<Box<dyn arrow::array::ArrayBuilder>> =
        vec![Box::new(StringBuilder::new()), Box::new(StringBuilder::new())];
    ListBuilder::new(StructBuilder::new(message_fields(), columns)).with_field(item())
}

/// Writes conversations as they come.
pub struct ConversationWriter {
    writer: ArrowWriter<File>,
    path: PathBuf,
    id: StringBuilder,
    source: StringBuilder,
    row: UInt64Builder,
    messages: ListBuilder<StructBuilder>,
    bytes: usize,
    rows: u64,
}

impl ConversationWriter {
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let writer = parquet_io::writer(&path, schema(), Vec::new())?;
        Ok(ConversationWriter {
            writer,
            path,
            id: StringBuilder::new(),
            source: StringBuilder::new(),
            row: UInt64Builder::new(),
            messages: messages_builder(),
            bytes: 0,
            rows: 0,
        })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, conversation: &Conversation) -> Result<()> {
        self.id.append_value(&conversation.id);
        self.source.append_value(&conversation.source);
        self.row.append_value(conversation.row);
        let items = self.messages.values();
        for message in &conversation.messages {
            let field = |items: &mut StructBuilder, i: usize, text: &str| {
                if let Some(builder) = items.field_builder::<StringBuilder>(i) {
                    builder.append_value(text);
                }
            };
            field(items, 0, message.role.as_str());
            field(items, 1, &message.content);
            items.append(true);
        }
        self.messages.append(true);
        self.bytes += conversation.len();
        self.rows += 1;
        if self.bytes >= parquet_io::ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<()> {
        let batch = RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(self.id.finish()),
                Arc::new(self.source.finish()),
                Arc::new(self.row.finish()),
                Arc::new(self.messages.finish()),
            ],
        )
        .map_err(|e| Error::bug(format!("conversations do not fit their schema: {e}")))?;
        self.bytes = 0;
        self.writer
            .write(&batch)
            .and_then(|()| self.writer.flush())
            .map_err(|e| parquet_io::unwritable(&self.path, &e))
    }

    /// Closes the file; without this it is not a Parquet file.
    ///
    /// # Errors
    /// As [`ConversationWriter::push`].
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        self.writer.close().map_err(|e| parquet_io::unwritable(&self.path, &e))?;
        Ok(self.rows)
    }
}

/// Iterates over the conversations of a file, one batch of rows in memory at a time.
pub struct ConversationReader {
    batches: ParquetRecordBatchReader,
    path: PathBuf,
    ready: std::vec::IntoIter<Conversation>,
    /// Rows in the whole file.
    pub rows: u64,
}

impl ConversationReader {
    /// # Errors
    /// When the file is not Parquet or not of conversations.
    pub fn open(path: &Path) -> Result<Self> {
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(fs::open(path)?).map_err(|e| unreadable(path, &e))?;
        parquet_io::expect_columns(path, builder.schema(), &schema(), "conversations")?;
        let rows = builder.metadata().file_metadata().num_rows() as u64;
        let batches = builder.with_batch_size(256).build().map_err(|e| unreadable(path, &e))?;
        Ok(ConversationReader { batches, path: path.to_path_buf(), ready: Vec::new().into_iter(), rows })
    }

    fn rows_of(&self, batch: &RecordBatch) -> Result<Vec<Conversation>> {
        let path = &self.path;
        let id: StringArray = column(batch, "id", path)?;
        let source: StringArray = column(batch, "source", path)?;
        let row: UInt64Array = column(batch, "row", path)?;
        let messages: ListArray = column(batch, "messages", path)?;
        let not_messages = || {
            Error::input(format!("`{}`: its messages are not structs of role and content", path.display()))
        };
        let mut out = Vec::with_capacity(batch.num_rows());
        for i in 0..batch.num_rows() {
            let list = messages.value(i);
            let list = list.as_any().downcast_ref::<StructArray>().ok_or_else(not_messages)?;
            let texts = |name: &str| {
                list.column_by_name(name)
                    .and_then(|c| c.as_any().downcast_ref::<StringArray>().cloned())
                    .ok_or_else(not_messages)
            };
            let (roles, contents) = (texts("role")?, texts("content")?);
            let mut all = Vec::with_capacity(list.len());
            for j in 0..list.len() {
                let role = Role::parse(roles.value(j)).ok_or_else(|| {
                    Error::input(format!("`{}` row {i}: unknown role {:?}", path.display(), roles.value(j)))
                })?;
                all.push(Message { role, content: contents.value(j).to_string() });
            }
            out.push(Conversation {
                id: id.value(i).to_string(),
                source: source.value(i).to_string(),
                row: row.value(i),
                messages: all,
            });
        }
        Ok(out)
    }
}

impl Iterator for ConversationReader {
    type Item = Result<Conversation>;

    fn next(&mut self) -> Option<Result<Conversation>> {
        loop {
            if let Some(conversation) = self.ready.next() {
                return Some(Ok(conversation));
            }
            let batch = match self.batches.next()? {
                Ok(batch) => batch,
                Err(e) => return Some(Err(unreadable(&self.path, &e))),
            };
            match self.rows_of(&batch) {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<Conversation> = (0..700)
            .map(|i| {
                let say = |role, text: &str| Message { role, content: format!("{text} {i}") };
                let mut messages = vec![say(Role::User, "Halo?"), say(Role::Assistant, "Ya — “di sini”.")];
                if i % 2 == 0 {
                    messages.insert(0, say(Role::System, "Be brief."));
                }
                Conversation::new(messages, "chats.jsonl", i + 1)
            })
            .collect();
        let mut writer = ConversationWriter::create(dir.path()).unwrap();
        for conversation in &all {
            writer.push(conversation).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), 700);
        let reader = ConversationReader::open(&dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(reader.rows, 700);
        assert_eq!(reader.collect::<Result<Vec<_>>>().unwrap(), all);
    }
}
