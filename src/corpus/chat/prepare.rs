//! One row to conversations: decoded, parsed, checked and cleaned, independently of other rows.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::check::{self, Repairs, Roles, Rules, Turn};
use super::row::{Content, FieldNames, Join, Names, Row};
use super::rows::Places;
use super::shape::{Shape, unknown_format};
use super::{FormatChoice, Options, text};
use crate::base::Result;
use crate::corpus::clean::Cleaning;
use crate::corpus::conversation::Conversation;
use crate::corpus::decode::{Decoded, Encoding, OnInvalid, decode};
use crate::corpus::input::{BadRecord, Record};
use crate::corpus::json::{Object, object};
use crate::corpus::preference::{NoPair, Preference};
use crate::corpus::transcode::Readable;

/// The result of one row.
pub struct Prepared {
    pub shape: Shape,
    /// Each with its repairs; a bad one does not affect the others of its row.
    pub conversations: Vec<Result<(Conversation, Repairs), BadRecord>>,
    pub pair: Option<Preference>,
    /// Keys that are not read.
    pub unknown: BTreeSet<String>,
    pub bad_metadata: Vec<String>,
    /// The fields that the user named and that the row has.
    pub named: Vec<String>,
}

/// Makes conversations of rows, each independently.
#[derive(Clone, Copy)]
pub struct Preparer<'a> {
    pub options: &'a Options,
    pub roles: &'a Roles,
    /// Names of fields, when the user gave them.
    pub names: Option<&'a Names<'a>>,
    pub source: &'a Readable,
    pub places: Places,
    /// The format of the file, as far as it is known.
    pub shape: Option<Shape>,
}

/// The text of a row, with its place in the file.
struct RowText {
    decoded: Decoded,
    places: Places,
    start: u64,
    row: u64,
}

impl RowText {
    /// An error at an offset of the text, with its place in the file.
    fn located(&self, bad: BadRecord) -> BadRecord {
        let at = match self.places {
            Places::Exact => bad.at.map(|at| self.start + self.decoded.source_offset(at as usize) as u64),
            Places::Record => Some(self.start),
            Places::Nowhere => None,
        };
        BadRecord { at, message: format!("row {}: {}", self.row, bad.message), ..bad }
    }
}

impl Preparer<'_> {
    /// # Errors
    /// A row that is bad as a whole.
    pub fn prepare(&self, record: Record) -> Result<Prepared, BadRecord> {
        let text = self.text(record)?;
        let prepared = match self.shape {
            Some(Shape::Text) => self.turns(&text),
            _ => self.row(&text),
        };
        let mut prepared = prepared.map_err(|bad| text.located(bad))?;
        for conversation in &mut prepared.conversations {
            if let Err(bad) = conversation {
                *bad = text.located(bad.clone());
            }
        }
        if let Some(Ok((_, repairs))) = prepared.conversations.first_mut() {
            repairs.text.invalid_bytes_replaced += text.decoded.replaced;
        }
        Ok(prepared)
    }

    /// The fields of a row, and the places of its errors; `None` when it is no object.
    pub fn fields(
        &self,
        record: &Record,
    ) -> Option<(Map<String, Value>, impl Fn(BadRecord) -> BadRecord + use<>)> {
        let text = self.text(record.clone()).ok()?;
        let object = self.object(&text).ok()?;
        Some((object.fields, move |bad| text.located(bad)))
    }

    fn text(&self, record: Record) -> Result<RowText, BadRecord> {
        let Record { start, row, bytes, .. } = record;
        let exact = self.places == Places::Exact;
        let encoding = if exact { self.source.encoding } else { Encoding::Utf8 };
        let replace = self.options.on_invalid == OnInvalid::Replace;
        let decoded = decode(bytes, encoding, replace).map_err(|invalid| {
            let bad = self.source.invalid(start + invalid.at as u64, invalid.byte);
            self.options.invalid(&bad, row)
        })?;
        Ok(RowText { decoded, places: self.places, start, row })
    }

    /// A conversation of plain text.
    fn turns(&self, text: &RowText) -> Result<Prepared, BadRecord> {
        let turns = text::turns(&text.decoded.text, self.roles)?;
        Ok(Prepared {
            shape: Shape::Text,
            conversations: vec![Ok(self.check(turns, text)?)],
            pair: None,
            unknown: BTreeSet::new(),
            bad_metadata: Vec::new(),
            named: Vec::new(),
        })
    }

    /// The conversations of an object.
    fn row(&self, text: &RowText) -> Result<Prepared, BadRecord> {
        let object = self.object(text)?;
        let (fields, shape) = (&object.fields, self.shape_of(&object)?);
        let usual = Names::of(shape);
        let names = self.names.unwrap_or(&usual);
        let join = Join(&self.options.join);
        let row = Row { text: &text.decoded.text, fields, names, join, roles: self.roles };
        let (content, unknown) = row.read(shape)?;
        let (conversations, pair) = match content {
            Content::Conversations(all) => {
                (all.into_iter().map(|turns| self.check(turns?, text)).collect(), None)
            }
            Content::Pair { chosen, rejected } => {
                let (chosen, pair) = self.pair(chosen, rejected, text)?;
                (vec![Ok(chosen)], Some(pair))
            }
        };
        let named = self.options.fields.iter().flat_map(FieldNames::named).map(|(_, name)| name);
        let named = named.filter(|name| fields.contains_key(*name)).map(str::to_string).collect();
        Ok(Prepared { shape, conversations, pair, unknown, bad_metadata: object.bad_metadata, named })
    }

    fn check(&self, turns: Vec<Turn>, text: &RowText) -> Result<(Conversation, Repairs), BadRecord> {
        let mut repairs = Repairs::default();
        let options = self.options;
        let cleaning = Cleaning {
            nfc: options.nfc,
            control_characters: options.strip_control_characters,
            blanks: options.strip_blanks,
        };
        let rules = Rules { roles: self.roles, same_role: options.same_role, cleaning };
        let messages = check::check(turns, &text.decoded.text, rules, &mut repairs)?;
        Ok((Conversation::new(messages, self.source.file.name.as_str(), text.row), repairs))
    }

    /// The preferred conversation of two, and both as a pair.
    fn pair(
        &self,
        chosen: Vec<Turn>,
        rejected: Vec<Turn>,
        text: &RowText,
    ) -> Result<((Conversation, Repairs), Preference), BadRecord> {
        let chosen = self.check(chosen, text).map_err(|bad| of_side(bad, "chosen"))?;
        let (rejected, _) = self.check(rejected, text).map_err(|bad| of_side(bad, "rejected"))?;
        let name = self.source.file.name.as_str();
        let pair = Preference::of(&chosen.0.messages, &rejected.messages, name, text.row);
        Ok((chosen, pair.map_err(no_pair)?))
    }

    fn object(&self, text: &RowText) -> Result<Object, BadRecord> {
        let usual = Names::of(Shape::Preference); // those of the other formats are among them
        let names = self.names.unwrap_or(&usual);
        object(&text.decoded.text, 0, &|key| names.need(key))
    }

    /// The format of a row: by its fields, or that of its file.
    fn shape_of(&self, object: &Object) -> Result<Shape, BadRecord> {
        let fixed = self.names.is_some() || self.options.format != FormatChoice::Auto;
        match self.shape {
            Some(shape) if fixed => Ok(shape),
            other => Shape::of(&object.fields).or(other).ok_or_else(|| unknown_format(&object.fields)),
        }
    }
}

fn of_side(bad: BadRecord, side: &str) -> BadRecord {
    BadRecord { message: format!("`{side}`: {}", bad.message), ..bad }
}

fn no_pair(why: NoPair) -> BadRecord {
    match why {
        NoPair::Equal => BadRecord::new("equal_pair", 0, "`chosen` and `rejected` are the same"),
        NoPair::Beginning => {
            BadRecord::new("no_answer", 0, "one of `chosen` and `rejected` is the beginning of the other")
        }
        NoPair::OtherPrompt => BadRecord::new(
            "other_prompt",
            0,
            "`chosen` and `rejected` do not part at an answer of the assistant",
        ),
    }
}
