//! Vocabularies in JSON, tokens with their ids, with the places of what is wrong in them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};

use super::lines::place_in;
use crate::base::{Error, Result};

/// Ids are below it, so that tables by id take little memory.
pub(super) const MOST_IDS: u32 = 1 << 24;

/// `{"token": id, …}` in the order of the file; no token or id is there twice.
#[derive(Debug, Default)]
pub(super) struct Vocab(pub Vec<(String, u32)>);

impl Vocab {
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.iter().find(|(t, _)| t == token).map(|(_, id)| *id)
    }

    /// The tokens by id, from 0 on.
    ///
    /// # Errors
    /// When an id between has no token.
    pub fn without_gaps(mut self, file: &str) -> Result<Vec<String>> {
        self.0.sort_unstable_by_key(|(_, id)| *id);
        if let Some((at, (token, id))) = self.0.iter().enumerate().find(|(at, (_, id))| *at != *id as usize) {
            let what = format!("`{file}`: no token has the id {at}; the next is {token:?} with {id}");
            return Err(Error::input(what).help("the ids of a vocabulary are 0, 1, 2 and so on"));
        }
        Ok(self.0.into_iter().map(|(token, _)| token).collect())
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tokens with their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut tokens = Vec::new();
        let mut seen: std::collections::HashSet<String> = std::collections::HashSet::new();
        let mut by_id: BTreeMap<u32, usize> = BTreeMap::new();
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            if id >= MOST_IDS {
                return Err(de::Error::custom(format!(
                    "the token {token:?} has the id {id}, which is too large"
                )));
            }
            if !seen.insert(token.clone()) {
                return Err(de::Error::custom(format!("the token {token:?} is there twice")));
            }
            if let Some(before) = by_id.insert(id, tokens.len()) {
                let (before, _): &(String, u32) = &tokens[before];
                return Err(de::Error::custom(format!(
                    "the tokens {before:?} and {token:?} both have the id {id}"
                )));
            }
            tokens.push((token, id));
        }
        if tokens.is_empty() {
            return Err(de::Error::custom("there are no tokens"));
        }
        Ok(Vocab(tokens))
    }
}

/// Reads JSON; `what` the file is to be.
///
/// # Errors
/// When it isn't, with line and column.
pub(super) fn parse<T: DeserializeOwned>(file: &str, text: &str, what: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        Error::input(format!("this is not {what}")).cause(&e).at(place_in(file, text, e.line(), e.column()))
    })
}
