//! Cloze: texts that break off before a word, which a model should say next.
//!
//! A row, which is JSON lines, is `{"id", "category", "text", "accept": ["word", …]}`. The text is continued
//! greedily; it counts where the continuation begins with the words of one of the accepted texts
//! ([`words`]: case and punctuation don't count). A continuation that goes on with the text's last word, such as
//! `s` behind `dog`, is none.

use std::collections::BTreeMap;

use serde::Serialize;

use super::items::{Item, Tally, Task, by_group};
use super::rows::{self, Entry, Form, Row};
use super::words::{is_letter, words};
use crate::base::{Monitor, Result};
use crate::corpus::input::InputFile;
use crate::corpus::json::Step;
use crate::generate::{self, Strategy};
use crate::model::Model;

/// The figures of cloze.
#[derive(Debug, Clone, Serialize)]
pub struct Cloze {
    #[serde(flatten)]
    pub all: Tally,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_category: BTreeMap<String, Tally>,
    /// Texts of which the model saw the end alone.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub longer_than_context: u64,
}

const FORM: Form = Form {
    what: "texts to be completed",
    id: &["id"],
    group: &["category"],
    by_group: false,
    fields: &["text", "accept"],
    unused: &[],
    strict: false,
    tables: false,
};

/// Texts that are continued side by side.
const AT_ONCE: usize = 64;

/// Continues the texts in `files`. Gives their items, and how many are longer than the model's context.
///
/// # Errors
/// A row that is no such text, with its place; cancellation; logits that are NaN.
pub fn judge(
    model: &Model,
    files: &[InputFile],
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<(Vec<Item>, u64)> {
    let (mut items, mut long) = (Vec::new(), 0);
    rows::read(files, &FORM, monitor, text, |entries| {
        for some in entries.chunks(AT_ONCE) {
            monitor.step("cloze", items.len() as u64, None, "texts")?;
            let prompts = some.iter().map(|entry| generate::ids_of(model, &entry.content.text));
            let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
            let seq_len = model.transformer.config.seq_len;
            long += prompts.iter().filter(|ids| ids.len() > seq_len).count() as u64;
            let options = greedy(some.iter().map(|entry| entry.content.longest).max().unwrap_or(0));
            let said = generate::continue_all(model, &prompts, &options, threads, monitor)?;
            items.extend(some.iter().zip(said).map(|(entry, said)| item(entry, &said.text)));
        }
        Ok(())
    })?;
    Ok((items, long))
}

/// The figures of `items`; `None` where there is none.
pub fn figures(items: &[Item], longer_than_context: u64) -> Option<Cloze> {
    Some(Cloze { all: Tally::of(items)?, by_category: by_group(items), longer_than_context })
}

/// Enough tokens for an accepted text of so many bytes in any spelling, and to see that its last word ends.
fn greedy(bytes: usize) -> generate::Options {
    generate::Options { strategy: Strategy::Greedy, max_new_tokens: bytes + 2, ..Default::default() }
}

struct Text {
    /// Without white space at its end.
    text: String,
    accept: Vec<Vec<String>>,
    /// Bytes of the longest of `accept`.
    longest: usize,
}

fn item(entry: &Entry<Text>, said: &str) -> Item {
    let score = f64::from(u8::from(entry.content.accepts(said)));
    Item::scored(Task::Cloze, &entry.group, &entry.id, score)
}

impl Text {
    fn accepts(&self, said: &str) -> bool {
        if self.text.ends_with(is_letter) && said.starts_with(is_letter) {
            return false;
        }
        let said = words(said);
        self.accept.iter().any(|wanted| said.starts_with(wanted))
    }
}

fn text(row: &Row) -> Result<Text> {
    let text = row.needed_text(&["text"])?.trim_end().to_string();
    let (name, value) = row.needed(&["accept"])?;
    let (mut accept, mut longest) = (Vec::new(), 0);
    for (i, value) in row.list(&[Step::Key(name)], name, value)?.iter().enumerate() {
        let path = [Step::Key(name), Step::Index(i)];
        let one = row.text(&path, name, value)?;
        let found = words(one);
        if found.is_empty() {
            let error = row.error(&path, format!("`{one}` has neither letters nor digits: it is no word"));
            return Err(error.help("write a word, or leave it out"));
        }
        longest = longest.max(one.trim().len());
        accept.push(found);
    }
    Ok(Text { text, accept, longest })
}
