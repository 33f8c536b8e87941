//! Decontamination: which items of evaluation sets occur in training text, and training text without them.
//!
//! A text overlaps with an item where both have `ngram` consecutive words in common. Of an item with fewer
//! words, all must occur one after the other; of one with fewer than three, a text must consist of them.
//! Words are compared in lower case and without punctuation (the `words` module); what counts of an item is
//! said in the `sets` module. As in Brown et al. 2020 (GPT-3), appendix C, whose n-grams have 8 to 13 words, the
//! first shared n-gram decides; PaLM (Chowdhery et al. 2022, section 8) asks for 70 % of an item's 8-grams. GPT-3
//! cuts 200 characters around an overlap out of the training text, here it is the passage or the whole text.
//!
//! The n-grams of the evaluation sets are kept in memory; training text is streamed, some MiB at a time, on
//! all threads. The outputs keep the order of the inputs, so that they do not depend on the number of
//! threads.

mod index;
mod passages;
mod sets;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::index::Overlap;
pub use self::index::{LONGEST, SHORTEST};
use self::sets::Sets;
pub use self::sets::{Against, Set};
use super::conversation::{Conversation, ConversationColumns, Message};
use super::document::{Document, DocumentColumns};
use super::preference::{Preference, PreferenceColumns};
use super::table::{Columns, RowReader, RowWriter};
use crate::base::{Error, Invalid, Monitor, Result, fs};

/// The file of the report.
pub const REPORT_FILE: &str = "report.json";

/// The file with each overlap.
pub const OVERLAPS_FILE: &str = "overlaps.jsonl";

/// What happens to training text that overlaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Remove {
    /// It is passed on and reported.
    None,
    /// The document or conversation is left out.
    #[default]
    Document,
    /// The paragraphs that overlap are cut out of documents, of a paragraph over 1,000 bytes the sentences. A
    /// conversation is left out as a whole.
    Passage,
}

/// How overlaps are found and removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Consecutive words that an evaluation item and a training text must share, 3 to 63. Of an item with
    /// fewer, all its words.
    pub ngram: usize,
    /// What happens to training text that overlaps: `none`, `document` or `passage`.
    pub remove: Remove,
}

impl Default for Options {
    fn default() -> Self {
        Options { ngram: 8, remove: Remove::Document }
    }
}

impl Options {
    /// Every param that is out of range.
    pub fn validate(&self) -> Vec<Invalid> {
        let fits = (SHORTEST..=LONGEST).contains(&self.ngram);
        let why = format!("must be {SHORTEST} to {LONGEST} words, found {}", self.ngram);
        (!fits).then(|| Invalid::new("ngram", why)).into_iter().collect()
    }
}

/// The files of training text.
#[derive(Debug, Clone, Default)]
pub struct Training {
    pub documents: Vec<PathBuf>,
    pub conversations: Vec<PathBuf>,
    /// Pairs that stand beside conversations.
    pub preferences: Vec<PathBuf>,
}

/// The folders that are written.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    pub documents: &'a Path,
    pub conversations: &'a Path,
    pub report: &'a Path,
}

/// What was compared, found and removed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub options: Options,
    /// Different n-grams of all evaluation sets.
    pub ngrams: u64,
    pub evaluation: Vec<SetReport>,
    pub documents: Counts,
    pub conversations: Counts,
    pub preferences: Counts,
}

/// Of one evaluation set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetReport {
    #[serde(flatten)]
    pub set: Set,
    /// Items of which words occur in training text.
    pub overlapping: u64,
    /// `overlapping` over `items`.
    pub share: f64,
    /// The first overlap of the first items that have one.
    pub examples: Vec<Example>,
}

/// Of training texts of one sort. Texts are documents, conversations or pairs; passages are paragraphs of
/// documents (sentences of long ones) and messages.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    pub texts: u64,
    pub bytes: u64,
    pub overlapping_texts: u64,
    pub overlapping_passages: u64,
    /// Of those passages.
    pub overlapping_bytes: u64,
    /// Left out as a whole.
    pub removed_texts: u64,
    /// Cut out of texts that were kept.
    pub removed_passages: u64,
    /// Of both.
    pub removed_bytes: u64,
    pub kept_texts: u64,
    pub kept_bytes: u64,
}

/// An item and a training text that share words: a line of [`OVERLAPS_FILE`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    pub set: String,
    pub item: String,
    /// The line or row of the item.
    pub row: u64,
    /// The id of the training document, conversation or pair.
    pub document: String,
    pub source: String,
    /// The longest stretch of shared words, as the training text has it.
    pub words: String,
    /// How many stretches are shared.
    pub stretches: u64,
}

/// Examples of a set in the report.
const EXAMPLES: usize = 5;

/// Compares the texts of `training` with the evaluation sets `against` and writes `documents.parquet`,
/// `conversations.parquet`, where there are pairs `preferences.parquet`, and [`REPORT_FILE`] with
/// [`OVERLAPS_FILE`]. Files in UTF-16 are copied into the folder `scratch` while they are read.
///
/// # Errors
/// What cannot be read, at its place; a sort of text of which nothing would be left. [`Error::cancelled`] on
/// cancellation.
pub fn decontaminate(
    training: &Training,
    against: &[Against],
    options: &Options,
    out: &Outputs,
    scratch: &Path,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some(invalid) = options.validate().into_iter().next() {
        return Err(Error::invalid(invalid));
    }
    let sets = Sets::read(against, options.ngram, scratch, monitor)?;
    let mut comparison = Comparison::new(&sets, options, out.report, monitor)?;
    let documents = comparison.all::<DocumentColumns>(&training.documents, out.documents)?;
    let conversations = comparison.all::<ConversationColumns>(&training.conversations, out.conversations)?;
    let preferences = match training.preferences.is_empty() {
        true => Counts::default(),
        false => comparison.all::<PreferenceColumns>(&training.preferences, out.conversations)?,
    };
    let evaluation = comparison.finish()?;
    let options = options.clone();
    let report = Report { options, ngrams: sets.ngrams, evaluation, documents, conversations, preferences };
    fs::write_json(&out.report.join(REPORT_FILE), &report)?;
    Ok(report)
}

/// A training text of several parts that are compared one by one.
trait Text: Sized + Send {
    fn id(&self) -> &str;
    fn source(&self) -> &str;
    fn parts(&self) -> Vec<&str>;

    /// The stretches of a part that are counted, and cut out, as one.
    fn passages(part: &str) -> Vec<Range<usize>> {
        vec![0..part.len()]
    }

    /// The text without the passages that hold some of `shared`, and how many those are; `None` where
    /// nothing is left, or texts of this sort cannot be cut.
    fn without(&self, _shared: &[Range<usize>]) -> Option<(Self, u64)> {
        None
    }
}

impl Text for Document {
    fn id(&self) -> &str {
        &self.id
    }

    fn source(&self) -> &str {
        &self.source
    }

    fn parts(&self) -> Vec<&str> {
        vec![&self.text]
    }

    fn passages(part: &str) -> Vec<Range<usize>> {
        passages::passages(part)
    }

    fn without(&self, shared: &[Range<usize>]) -> Option<(Self, u64)> {
        let cut = passages::cut(&self.text, shared);
        let rest = Document::new(cut.rest?, self.source.as_str(), self.start, self.end);
        Some((rest, cut.removed as u64))
    }
}

fn contents<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Vec<&'a str> {
    messages.into_iter().map(|message| message.content.as_str()).collect()
}

impl Text for Conversation {
    fn id(&self) -> &str {
        &self.id
    }

    fn source(&self) -> &str {
        &self.source
    }

    fn parts(&self) -> Vec<&str> {
        contents(&self.messages)
    }
}

impl Text for Preference {
    fn id(&self) -> &str {
        &self.id
    }

    fn source(&self) -> &str {
        &self.source
    }

    fn parts(&self) -> Vec<&str> {
        contents(self.prompt.iter().chain(&self.chosen).chain(&self.rejected))
    }
}

/// A text after comparison.
struct Judged<T> {
    text: T,
    /// Of each item, in order, the shared words of one part.
    overlaps: Vec<(u32, String, u64)>,
    /// Passages that overlap, and their bytes.
    passages: (u64, u64),
    /// What is kept of it, and how many passages were cut out.
    kept: Option<(Option<T>, u64)>,
}

struct Comparison<'a> {
    sets: &'a Sets,
    remove: Remove,
    monitor: &'a dyn Monitor,
    overlaps: BufWriter<std::fs::File>,
    path: PathBuf,
    /// Of each item, whether it overlaps.
    found: Vec<bool>,
    examples: BTreeMap<u32, Vec<Example>>,
    compared: u64,
}

/// Texts that are compared in parallel.
const BATCH_BYTES: usize = 8 << 20;

impl<'a> Comparison<'a> {
    fn new(sets: &'a Sets, options: &Options, folder: &Path, monitor: &'a dyn Monitor) -> Result<Self> {
        let path = folder.join(OVERLAPS_FILE);
        Ok(Comparison {
            sets,
            remove: options.remove,
            monitor,
            overlaps: BufWriter::new(fs::create(&path)?),
            path,
            found: vec![false; sets.items.len()],
            examples: BTreeMap::new(),
            compared: 0,
        })
    }

    /// All rows of `files`, and what is kept of them as one file in the folder `out`.
    fn all<C: Columns<Row: Text>>(&mut self, files: &[PathBuf], out: &Path) -> Result<Counts> {
        let mut writer = RowWriter::<C>::create(out)?;
        let mut counts = Counts::default();
        for file in files {
            let mut rows = RowReader::<C>::open(file)?;
            loop {
                self.monitor.step("comparing", self.compared, None, C::WHAT)?;
                let batch = batch(&mut rows)?;
                if batch.is_empty() {
                    break;
                }
                self.compared += batch.len() as u64;
                let judged: Vec<Judged<C::Row>> =
                    batch.into_par_iter().map(|text| judge(self.sets, self.remove, text)).collect();
                for text in judged {
                    self.take(text, &mut writer, &mut counts)?;
                }
            }
        }
        counts.kept_texts = writer.finish()?;
        if counts.texts > 0 && counts.kept_texts == 0 {
            let (what, texts) = (C::WHAT, counts.texts);
            let message =
                format!("all {texts} {what} overlap with evaluation sets: nothing is left to train on");
            return Err(Error::input(message).help(
                "set `remove: none` to see in the report what overlaps, or a greater `ngram`; is an evaluation \
                 set the training text itself?",
            ));
        }
        Ok(counts)
    }

    fn take<C: Columns<Row: Text>>(
        &mut self,
        judged: Judged<C::Row>,
        writer: &mut RowWriter<C>,
        counts: &mut Counts,
    ) -> Result<()> {
        self.monitor.check()?;
        let bytes = bytes_of(&judged.text);
        counts.texts += 1;
        counts.bytes += bytes;
        counts.overlapping_texts += u64::from(!judged.overlaps.is_empty());
        counts.overlapping_passages += judged.passages.0;
        counts.overlapping_bytes += judged.passages.1;
        self.record(&judged)?;
        let kept = match &judged.kept {
            None => Some(&judged.text),
            Some((kept, passages)) => {
                counts.removed_passages += passages;
                kept.as_ref()
            }
        };
        let kept_bytes = kept.map_or(0, bytes_of);
        counts.removed_texts += u64::from(kept.is_none());
        counts.removed_bytes += bytes - kept_bytes;
        counts.kept_bytes += kept_bytes;
        kept.map_or(Ok(()), |text| writer.push(text))
    }

    /// Writes the overlaps of a text.
    fn record<T: Text>(&mut self, judged: &Judged<T>) -> Result<()> {
        for (number, words, stretches) in &judged.overlaps {
            let item = &self.sets.items[*number as usize];
            let example = Example {
                set: self.sets.sets[item.set as usize].name.clone(),
                item: item.id.clone(),
                row: item.row,
                document: judged.text.id().to_string(),
                source: judged.text.source().to_string(),
                words: words.clone(),
                stretches: *stretches,
            };
            let line = serde_json::to_string(&example)
                .map_err(|e| Error::bug(format!("an overlap cannot be written down: {e}")))?;
            writeln!(self.overlaps, "{line}").map_err(|e| Error::io("write", &self.path, &e))?;
            if !std::mem::replace(&mut self.found[*number as usize], true) {
                let examples = self.examples.entry(item.set).or_default();
                if examples.len() < EXAMPLES {
                    examples.push(example);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<SetReport>> {
        self.overlaps.flush().map_err(|e| Error::io("write", &self.path, &e))?;
        let mut overlapping = vec![0u64; self.sets.sets.len()];
        for (item, found) in self.sets.items.iter().zip(&self.found) {
            overlapping[item.set as usize] += u64::from(*found);
        }
        let reports = self.sets.sets.iter().zip(overlapping).enumerate();
        Ok(reports
            .map(|(number, (set, overlapping))| SetReport {
                set: set.clone(),
                overlapping,
                share: overlapping as f64 / set.items as f64,
                examples: self.examples.remove(&(number as u32)).unwrap_or_default(),
            })
            .collect())
    }
}

fn batch<C: Columns<Row: Text>>(rows: &mut RowReader<C>) -> Result<Vec<C::Row>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES as u64 {
        let Some(row) = rows.next().transpose()? else { break };
        bytes += bytes_of(&row) + 100;
        batch.push(row);
    }
    Ok(batch)
}

fn bytes_of<T: Text>(text: &T) -> u64 {
    text.parts().iter().map(|part| part.len() as u64).sum()
}

fn judge<T: Text>(sets: &Sets, remove: Remove, text: T) -> Judged<T> {
    let mut shared: BTreeMap<u32, (String, u64)> = BTreeMap::new();
    let mut passages = (0, 0);
    let mut ranges = Vec::new(); // of the last part, which is the only one of a document
    for part in text.parts() {
        let found = sets.index.find(part);
        ranges = found.iter().flat_map(|overlap| overlap.ranges.clone()).collect();
        for overlap in found {
            add(&mut shared, overlap, part);
        }
        for passage in T::passages(part).iter().filter(|passage| passages::touches(passage, &ranges)) {
            passages = (passages.0 + 1, passages.1 + passage.len() as u64);
        }
    }
    let kept = match remove {
        _ if shared.is_empty() => None,
        Remove::None => None,
        Remove::Document => Some((None, 0)),
        Remove::Passage => Some(text.without(&ranges).map_or((None, 0), |(rest, cut)| (Some(rest), cut))),
    };
    let overlaps = shared.into_iter().map(|(item, (words, stretches))| (item, words, stretches)).collect();
    Judged { text, overlaps, passages, kept }
}

/// Adds an overlap with `part` to those of the text: the longest stretch is kept.
fn add(shared: &mut BTreeMap<u32, (String, u64)>, overlap: Overlap, part: &str) {
    let entry = shared.entry(overlap.item).or_default();
    for range in overlap.ranges {
        if range.len() > entry.0.len() {
            entry.0 = part[range].to_string();
        }
        entry.1 += 1;
    }
}
