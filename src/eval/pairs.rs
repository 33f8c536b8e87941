//! Minimal pairs: a good sentence and a bad one, of which a model should find the good one more probable
//! (BLiMP; Warstadt et al., 2020).
//!
//! Rows are JSON lines, CSV or TSV, with the names of BLiMP's files or shorter ones: `sentence_good` or `good`,
//! `sentence_bad` or `bad`, the paradigm as `UID` or `uid`, the number as `pairID` or `pair_id`. A sentence is
//! scored as a whole behind `<bos>`, without an `<eos>`; a tie counts one half.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Reach;
use super::items::{Item, Tally, Task, by_group};
use super::rows::{self, Entry, Form, Row};
use super::short::{self, Short};
use crate::base::{Monitor, Result};
use crate::corpus::input::InputFile;
use crate::corpus::json::Step;
use crate::generate;
use crate::model::{Executor, Model};

/// The figures of pairs.
#[derive(Debug, Clone, Serialize)]
pub struct Pairs {
    #[serde(flatten)]
    pub all: Tally,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_paradigm: BTreeMap<String, Tally>,
    /// Pairs with a sentence that was scored in several windows.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub longer_than_context: u64,
}

const GOOD: [&str; 2] = ["sentence_good", "good"];
const BAD: [&str; 2] = ["sentence_bad", "bad"];

const FORM: Form = Form {
    what: "pairs",
    id: &["pair_id", "pairID", "id"],
    group: &["uid", "UID"],
    by_group: true,
    fields: &["sentence_good", "good", "sentence_bad", "bad"],
    unused: &[
        "term",
        "field",
        "linguistics_term",
        "simple_LM_method",
        "one_prefix_method",
        "two_prefix_method",
        "lexically_identical",
    ],
    strict: false,
    tables: true,
};

/// Scores the pairs in `files`. Gives their items, and how many have a sentence longer than the context.
///
/// # Errors
/// A row that is no pair, with its place; cancellation; logits that are NaN.
pub fn judge(
    model: &Model,
    executor: &mut Executor,
    files: &[InputFile],
    reach: Reach,
    monitor: &dyn Monitor,
) -> Result<(Vec<Item>, u64)> {
    let (mut items, mut long) = (Vec::new(), 0);
    let parse = |row: &Row| pair(row, model);
    rows::read(files, &FORM, monitor, parse, |entries| {
        monitor.step("pairs", items.len() as u64, None, "pairs")?;
        let texts: Vec<Short> = entries.iter().flat_map(|entry| entry.content.sentences.clone()).collect();
        let nats = short::nats(model, executor, &texts, reach, monitor)?;
        for (entry, nats) in entries.iter().zip(nats.chunks_exact(2)) {
            let longest = entry.content.sentences.iter().map(|s| s.ids.len()).max();
            long += u64::from(longest.is_some_and(|tokens| tokens > reach.context + 1));
            items.push(item(entry, nats[0], nats[1]));
        }
        Ok(())
    })?;
    Ok((items, long))
}

/// The figures of the pairs among `items`; `None` where there is none.
pub fn figures(items: &[Item], longer_than_context: u64) -> Option<Pairs> {
    let all = Tally::of(items)?;
    Some(Pairs { all, by_paradigm: by_group(items), longer_than_context })
}

struct Pair {
    /// The good one and the bad one.
    sentences: [Short; 2],
    bytes: u64,
}

fn item(entry: &Entry<Pair>, good: f64, bad: f64) -> Item {
    let score = match good.total_cmp(&bad) {
        std::cmp::Ordering::Less => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 0.0,
    };
    let Pair { sentences, bytes } = &entry.content;
    let tokens = sentences.iter().map(Short::scored).sum();
    let item = Item::scored(Task::Pairs, &entry.group, &entry.id, score);
    Item { tokens, bytes: *bytes, nats: bad - good, ..item }
}

fn pair(row: &Row, model: &Model) -> Result<Pair> {
    let (good, bad) = (row.needed_text(&GOOD)?, row.needed_text(&BAD)?);
    if good == bad {
        let (name, _) = row.needed(&BAD)?;
        let error =
            row.error(&[Step::Key(name)], format!("the good and the bad sentence are the same: {good:?}"));
        return Err(error.help("correct one of them, or leave the row out"));
    }
    let sentence = |text: &str, names: &[&'static str]| {
        let short = Short { ids: generate::ids_of(model, text)?, first: 1 };
        match short.scored() {
            0 => Err(too_short(row, text, names)),
            _ => Ok(short),
        }
    };
    let bytes = (good.len() + bad.len()) as u64;
    Ok(Pair { sentences: [sentence(good, &GOOD)?, sentence(bad, &BAD)?], bytes })
}

fn too_short(row: &Row, text: &str, names: &[&'static str]) -> crate::base::Error {
    let path: Vec<Step> = row.first(names).map(|(name, _)| Step::Key(name)).into_iter().collect();
    let error = row.error(&path, format!("{text:?} has one token alone, and nothing predicts it"));
    error.help("leave the row out, or use a tokenizer that has a token to begin texts with")
}
