//! A conversation is a list of messages with roles; a `conversations` artifact is
//! `conversations.parquet` with one conversation a row.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
    StructBuilder, UInt64Array, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use serde::{Deserialize, Serialize};

use super::parquet_io::column;
use super::table::{Columns, RowReader, RowWriter};
use crate::base::{Digest, Error, Result};

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

fn messages_builder() -> ListBuilder<StructBuilder> {
    let columns: Vec<Box<dyn arrow::array::ArrayBuilder>> =
        vec![Box::new(StringBuilder::new()), Box::new(StringBuilder::new())];
    ListBuilder::new(StructBuilder::new(message_fields(), columns)).with_field(item())
}

/// Writes conversations as they come.
pub type ConversationWriter = RowWriter<ConversationColumns>;

/// Iterates over the conversations of a file.
pub type ConversationReader = RowReader<ConversationColumns>;

pub struct ConversationColumns {
    id: StringBuilder,
    source: StringBuilder,
    row: UInt64Builder,
    messages: ListBuilder<StructBuilder>,
}

impl Default for ConversationColumns {
    fn default() -> Self {
        ConversationColumns {
            id: StringBuilder::new(),
            source: StringBuilder::new(),
            row: UInt64Builder::new(),
            messages: messages_builder(),
        }
    }
}

impl Columns for ConversationColumns {
    type Row = Conversation;
    const FILE_NAME: &'static str = FILE_NAME;
    const WHAT: &'static str = "conversations";
    const TEXT: &'static str = "content";

    fn schema() -> Arc<Schema> {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("source", DataType::Utf8, false),
            Field::new("row", DataType::UInt64, false),
            Field::new("messages", DataType::List(item()), false),
        ]))
    }

    fn push(&mut self, conversation: &Conversation) -> usize {
        self.id.append_value(&conversation.id);
        self.source.append_value(&conversation.source);
        self.row.append_value(conversation.row);
        let items = self.messages.values();
        for message in &conversation.messages {
            for (i, text) in [message.role.as_str(), &message.content].into_iter().enumerate() {
                if let Some(builder) = items.field_builder::<StringBuilder>(i) {
                    builder.append_value(text);
                }
            }
            items.append(true);
        }
        self.messages.append(true);
        conversation.len()
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.row.finish()),
            Arc::new(self.messages.finish()),
        ]
    }

    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Conversation>> {
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
