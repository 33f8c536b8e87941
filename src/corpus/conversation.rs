//! A conversation is a list of messages with roles; a `conversations` artifact is
//! `conversations.parquet` with one conversation a row.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray, StructBuilder, UInt8Array, UInt8Builder, UInt64Array, UInt64Builder,
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
    /// 0: an answer that is context and not part of the loss. 1: any other message.
    #[serde(default = "one")]
    pub weight: u8,
}

fn one() -> u8 {
    1
}

impl Message {
    /// A message of weight 1.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into(), weight: 1 }
    }

    /// Whether its tokens are part of the loss.
    pub fn is_learned(&self) -> bool {
        self.role == Role::Assistant && self.weight == 1
    }
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
        Conversation { id: id_of(&[&messages]), source: source.into(), row, messages }
    }

    /// Bytes of all contents.
    pub fn len(&self) -> usize {
        self.messages.iter().map(|m| m.content.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// 32 hex digits from the digest of lists of messages.
pub(super) fn id_of(lists: &[&[Message]]) -> String {
    let mut text = String::new();
    for (i, messages) in lists.iter().enumerate() {
        if i > 0 {
            text.push('\0'); // no role is empty: lists cannot run into one another
        }
        for message in *messages {
            text.push_str(message.role.as_str());
            text.push('\0');
            text.push_str(&message.content);
            text.push('\0');
            if message.weight != 1 {
                text.push_str("weight=0\0"); // nothing for 1: such conversations keep the ids of old
            }
        }
    }
    Digest::of(text.as_bytes()).hex()[..32].to_string()
}

fn message_fields() -> Fields {
    vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
        Field::new("weight", DataType::UInt8, false),
    ]
    .into()
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(message_fields()), false))
}

/// A column of lists of messages.
pub(super) struct MessageLists(ListBuilder<StructBuilder>);

impl Default for MessageLists {
    fn default() -> Self {
        let columns: Vec<Box<dyn ArrayBuilder>> = vec![
            Box::new(StringBuilder::new()),
            Box::new(StringBuilder::new()),
            Box::new(UInt8Builder::new()),
        ];
        MessageLists(ListBuilder::new(StructBuilder::new(message_fields(), columns)).with_field(item()))
    }
}

impl MessageLists {
    pub fn field(name: &str) -> Field {
        Field::new(name, DataType::List(item()), false)
    }

    pub fn push(&mut self, messages: &[Message]) {
        let items = self.0.values();
        for message in messages {
            for (i, text) in [message.role.as_str(), &message.content].into_iter().enumerate() {
                if let Some(builder) = items.field_builder::<StringBuilder>(i) {
                    builder.append_value(text);
                }
            }
            if let Some(builder) = items.field_builder::<UInt8Builder>(2) {
                builder.append_value(message.weight);
            }
            items.append(true);
        }
        self.0.append(true);
    }

    pub fn take(&mut self) -> ArrayRef {
        Arc::new(self.0.finish())
    }

    /// The list of each row of column `name`.
    pub fn read(batch: &RecordBatch, name: &str, path: &Path) -> Result<Vec<Vec<Message>>> {
        let lists: ListArray = column(batch, name, path)?;
        (0..batch.num_rows()).map(|row| messages_of(&lists.value(row), row, path)).collect()
    }
}

fn messages_of(list: &ArrayRef, row: usize, path: &Path) -> Result<Vec<Message>> {
    let fields = || {
        let list = list.as_any().downcast_ref::<StructArray>()?;
        let texts = |name: &str| list.column_by_name(name)?.as_any().downcast_ref::<StringArray>().cloned();
        let weights = list.column_by_name("weight")?.as_any().downcast_ref::<UInt8Array>().cloned();
        Some((texts("role")?, texts("content")?, weights?))
    };
    let (roles, contents, weights) = fields().ok_or_else(|| {
        let path = path.display();
        Error::input(format!("`{path}`: its messages are not structs of role, content and weight"))
    })?;
    let message = |i: usize| {
        let role = Role::parse(roles.value(i)).ok_or_else(|| {
            Error::input(format!("`{}` row {row}: unknown role {:?}", path.display(), roles.value(i)))
        })?;
        Ok(Message { role, content: contents.value(i).to_string(), weight: weights.value(i) })
    };
    (0..list.len()).map(message).collect()
}

/// Writes conversations as they come.
pub type ConversationWriter = RowWriter<ConversationColumns>;

/// Iterates over the conversations of a file.
pub type ConversationReader = RowReader<ConversationColumns>;

#[derive(Default)]
pub struct ConversationColumns {
    id: StringBuilder,
    source: StringBuilder,
    row: UInt64Builder,
    messages: MessageLists,
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
            MessageLists::field("messages"),
        ]))
    }

    fn push(&mut self, conversation: &Conversation) -> usize {
        self.id.append_value(&conversation.id);
        self.source.append_value(&conversation.source);
        self.row.append_value(conversation.row);
        self.messages.push(&conversation.messages);
        conversation.len()
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.row.finish()),
            self.messages.take(),
        ]
    }

    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Conversation>> {
        let id: StringArray = column(batch, "id", path)?;
        let source: StringArray = column(batch, "source", path)?;
        let row: UInt64Array = column(batch, "row", path)?;
        let messages = MessageLists::read(batch, "messages", path)?;
        let row_of = |(i, messages)| Conversation {
            id: id.value(i).to_string(),
            source: source.value(i).to_string(),
            row: row.value(i),
            messages,
        };
        Ok(messages.into_iter().enumerate().map(row_of).collect())
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
                let say = |role, text: &str| Message::new(role, format!("{text} {i}"));
                let mut messages = vec![say(Role::User, "Halo?"), say(Role::Assistant, "Ya — “di sini”.")];
                messages[1].weight = (i % 3).min(1) as u8;
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
    #[test]
    fn weights_of_one_keep_the_id_and_others_change_it() {
        let mut messages = vec![Message::new(Role::User, "q"), Message::new(Role::Assistant, "a")];
        let old = Digest::of(b"user\0q\0assistant\0a\0").hex()[..32].to_string();
        assert_eq!(Conversation::new(messages.clone(), "", 1).id, old);
        messages[1].weight = 0;
        assert_ne!(Conversation::new(messages, "", 1).id, old);
    }
}
