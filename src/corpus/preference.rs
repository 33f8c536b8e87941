//! A preference: two answers to one prompt, chosen and rejected. `preferences.parquet` is written with
//! `conversations.parquet` when the input has such pairs.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, StringBuilder, UInt64Array, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema};

use super::conversation::{Message, MessageLists, Role, id_of};
use super::parquet_io::column;
use super::table::{Columns, RowReader, RowWriter};
use crate::base::Result;

/// The file of pairs in a `conversations` artifact.
pub const FILE_NAME: &str = "preferences.parquet";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    /// 32 hex digits from the digest of all three. Equal pairs have equal ids.
    pub id: String,
    /// The file's name within its source.
    pub source: String,
    /// The row or line of `source`, from 1.
    pub row: u64,
    /// Ends with a message of the user.
    pub prompt: Vec<Message>,
    /// Starts with a message of the assistant, as `rejected` does.
    pub chosen: Vec<Message>,
    pub rejected: Vec<Message>,
}

/// Why two conversations are no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPair {
    /// Both are the same.
    Equal,
    /// One is the beginning of the other.
    Beginning,
    /// They first differ at a message that is not the assistant's.
    OtherPrompt,
}

impl Preference {
    /// The pair of two conversations: their common beginning is the prompt.
    ///
    /// # Errors
    /// When they do not first differ at an answer.
    pub fn of(
        chosen: &[Message],
        rejected: &[Message],
        source: impl Into<String>,
        row: u64,
    ) -> Result<Self, NoPair> {
        let shared = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
        let (prompt, chosen) = chosen.split_at(shared);
        let rejected = &rejected[shared..];
        match (chosen.first(), rejected.first()) {
            (None, None) => Err(NoPair::Equal),
            (None, _) | (_, None) => Err(NoPair::Beginning),
            (Some(a), Some(b)) if a.role != Role::Assistant || b.role != Role::Assistant => {
                Err(NoPair::OtherPrompt)
            }
            _ => Ok(Preference {
                id: id_of(&[prompt, chosen, rejected]),
                source: source.into(),
                row,
                prompt: prompt.to_vec(),
                chosen: chosen.to_vec(),
                rejected: rejected.to_vec(),
            }),
        }
    }

    /// The id of the prompt, which all pairs with this prompt have.
    pub fn prompt_id(&self) -> String {
        id_of(&[&self.prompt])
    }
}

/// Writes pairs as they come.
pub type PreferenceWriter = RowWriter<PreferenceColumns>;

/// Iterates over the pairs of a file.
pub type PreferenceReader = RowReader<PreferenceColumns>;

#[derive(Default)]
pub struct PreferenceColumns {
    id: StringBuilder,
    source: StringBuilder,
    row: UInt64Builder,
    prompt: MessageLists,
    chosen: MessageLists,
    rejected: MessageLists,
}

impl Columns for PreferenceColumns {
    type Row = Preference;
    const FILE_NAME: &'static str = FILE_NAME;
    const WHAT: &'static str = "preferences";
    const TEXT: &'static str = "content";

    fn schema() -> Arc<Schema> {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("source", DataType::Utf8, false),
            Field::new("row", DataType::UInt64, false),
            MessageLists::field("prompt"),
            MessageLists::field("chosen"),
            MessageLists::field("rejected"),
        ]))
    }

    fn push(&mut self, pair: &Preference) -> usize {
        self.id.append_value(&pair.id);
        self.source.append_value(&pair.source);
        self.row.append_value(pair.row);
        self.prompt.push(&pair.prompt);
        self.chosen.push(&pair.chosen);
        self.rejected.push(&pair.rejected);
        let all = [&pair.prompt, &pair.chosen, &pair.rejected];
        all.into_iter().flatten().map(|message| message.content.len()).sum()
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.row.finish()),
            self.prompt.take(),
            self.chosen.take(),
            self.rejected.take(),
        ]
    }

    fn rows(batch: &RecordBatch, path: &Path) -> Result<Vec<Preference>> {
        let id: StringArray = column(batch, "id", path)?;
        let source: StringArray = column(batch, "source", path)?;
        let row: UInt64Array = column(batch, "row", path)?;
        let lists = |name| MessageLists::read(batch, name, path);
        let parts = lists("prompt")?.into_iter().zip(lists("chosen")?).zip(lists("rejected")?);
        let row_of = |(i, ((prompt, chosen), rejected))| Preference {
            id: id.value(i).to_string(),
            source: source.value(i).to_string(),
            row: row.value(i),
            prompt,
            chosen,
            rejected,
        };
        Ok(parts.enumerate().map(row_of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(texts: &[&str]) -> Vec<Message> {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        roles.zip(texts).map(|(role, text)| Message::new(role, *text)).collect()
    }

    #[test]
    fn the_prompt_is_what_both_begin_with() {
        let (chosen, rejected) = (talk(&["a", "b", "c", "d"]), talk(&["a", "b", "c", "e"]));
        let pair = Preference::of(&chosen, &rejected, "a.jsonl", 3).unwrap();
        assert_eq!(
            (pair.prompt.len(), &pair.chosen[..], &pair.rejected[..]),
            (3, &chosen[3..], &rejected[3..])
        );
        let no = |rejected: &[&str]| Preference::of(&chosen, &talk(rejected), "", 1).unwrap_err();
        assert_eq!(no(&["a", "b", "c", "d"]), NoPair::Equal);
        assert_eq!(no(&["a", "b"]), NoPair::Beginning);
        assert_eq!(no(&["a", "b", "x", "d"]), NoPair::OtherPrompt);
    }

    #[test]
    fn pairs_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let pair = Preference::of(&talk(&["a", "b"]), &talk(&["a", "c", "d", "e"]), "x", 1).unwrap();
        let mut writer = PreferenceWriter::create(dir.path()).unwrap();
        writer.push(&pair).unwrap();
        writer.finish().unwrap();
        let reader = PreferenceReader::open(&dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(reader.collect::<Result<Vec<_>>>().unwrap(), [pair]);
    }
}
