//! Documents and conversations: which of them are scored, and what their tokens cost.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::items::{Item, Task};
use super::windows::windows;
use super::{Options, Reach, Scored};
use crate::base::{Monitor, Result};
use crate::corpus::document::Document;
use crate::corpus::held_out::{Extremes, Rule, is_unseen};
use crate::generate::{self, Strategy};
use crate::model::{Executor, Model, Prediction, Sequences};
use crate::tokenizer::{Inputs, Special, Text, chat};

#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    pub texts: u64,
    pub tokens: u64,
    pub bytes: u64,
    pub loss: f64,
    pub perplexity: f64,
    pub bits_per_byte: f64,
    pub bytes_per_token: f64,
    pub top1_accuracy: f64,
    pub top5_accuracy: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    texts: u64,
    tokens: u64,
    bytes: u64,
    nats: f64,
    top1: u64,
    top5: u64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, o: Sums) {
        self.texts += o.texts;
        self.tokens += o.tokens;
        self.bytes += o.bytes;
        self.nats += o.nats;
        self.top1 += o.top1;
        self.top5 += o.top5;
    }
}

impl Sums {
    fn item(self, task: Task, text: &ScoredText) -> Item {
        let Sums { tokens, bytes, nats, top1, top5, .. } = self;
        let item = Item::scored(task, &text.source, &text.id, 0.0);
        Item { tokens, bytes, nats, top1, top5, ..item }
    }

    fn scores(self) -> Scores {
        let tokens = self.tokens as f64;
        Scores {
            texts: self.texts,
            tokens: self.tokens,
            bytes: self.bytes,
            loss: self.nats / tokens,
            perplexity: libm::exp(self.nats / tokens),
            bits_per_byte: self.nats / std::f64::consts::LN_2 / self.bytes as f64,
            bytes_per_token: self.bytes as f64 / tokens,
            top1_accuracy: self.top1 as f64 / tokens,
            top5_accuracy: self.top5 as f64 / tokens,
        }
    }
}

/// A text as token ids, whether each is scored, and how many bytes the scored ones stand for.
struct ScoredText {
    id: String,
    source: String,
    ids: Vec<u32>,
    scored: Vec<bool>,
    bytes: u64,
}

/// The texts that a model is scored on.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// Texts of which some were trained on: [`Options::scored`] selects.
    pub split: Inputs,
    /// Texts that no training used: all are scored.
    pub validation: Inputs,
}

impl Texts {
    /// The documents alone, and the conversations alone.
    fn by_sort(&self) -> [Texts; 2] {
        let documents = |all: &Inputs| Inputs { documents: all.documents.clone(), ..Inputs::default() };
        let chats = |all: &Inputs| Inputs { conversations: all.conversations.clone(), ..Inputs::default() };
        [
            Texts { split: documents(&self.split), validation: documents(&self.validation) },
            Texts { split: chats(&self.split), validation: chats(&self.validation) },
        ]
    }
}

/// What was found of texts.
#[derive(Default)]
pub(super) struct Found {
    pub documents: Option<Scores>,
    pub chats: Option<Scores>,
    pub completion_accuracy: Option<f64>,
    pub completions: u64,
    /// `documents` or `chats` of which some were read and none was scored, and why.
    pub not_scored: BTreeMap<&'static str, String>,
    pub items: Vec<Item>,
}

/// Scores `model` on documents and conversations.
///
/// # Errors
/// Files that cannot be read, cancellation.
pub(super) fn score(
    model: &Model,
    executor: &mut Executor,
    texts: &Texts,
    reach: Reach,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Found> {
    let [documents, chats] = texts.by_sort();
    let documents = Selection::of(model, &documents, &options.held_out.documents, options)?;
    let chats = Selection::of(model, &chats, &options.held_out.conversations, options)?;
    let mut found = Found::default();
    for (what, selection) in [("documents", &documents), ("chats", &chats)] {
        if selection.read > 0 && selection.items.is_empty() {
            let why = format!("none of {} is held out from training", selection.read);
            tracing::warn!("{what} are not scored: {why}; `split: all` scores what was trained on");
            found.not_scored.insert(what, why);
        }
    }
    let mut scorer = Scorer { model, executor, reach, monitor };
    found.documents = scorer.score(&documents.items, Task::Documents, &mut found.items)?;
    found.chats = scorer.score(&chats.items, Task::Chats, &mut found.items)?;
    let completed = completions(model, &documents.texts, options, monitor)?;
    found.completions = completed.len() as u64;
    let hits: f64 = completed.iter().map(|item| item.score).sum();
    found.completion_accuracy = (!completed.is_empty()).then(|| hits / completed.len() as f64);
    found.items.extend(completed);
    Ok(found)
}

/// The documents or the conversations that are scored, as token ids.
#[derive(Default)]
struct Selection {
    items: Vec<ScoredText>,
    /// The first documents, for completion.
    texts: Vec<Document>,
    tokens: u64,
    /// Texts read, whether scored or not.
    read: u64,
}

impl Selection {
    /// Selects documents or conversations; `own` are the model's rules for them.
    fn of(model: &Model, texts: &Texts, own: &[Rule], options: &Options) -> Result<Self> {
        let rules = match options.scored {
            Scored::All => Vec::new(),
            Scored::Validation => rules(own, options.validation_fraction, &texts.split)?,
        };
        let mut selection = Selection::default();
        for (inputs, rules) in [(&texts.validation, &[][..]), (&texts.split, &rules)] {
            for text in inputs.texts()? {
                let text = text?;
                selection.read += u64::from(text.bytes() > 0);
                if text.bytes() > 0 && is_unseen(rules, text.id()) && selection.tokens < options.max_tokens {
                    selection.add(model, text, options)?;
                }
            }
        }
        Ok(selection)
    }

    fn add(&mut self, model: &Model, text: Text, options: &Options) -> Result<()> {
        let item = ScoredText::of(model, &text)?;
        self.tokens += item.scored.iter().filter(|scored| **scored).count() as u64;
        self.items.push(item);
        if let Text::Document(document) = text
            && self.texts.len() < options.completions
        {
            self.texts.push(document);
        }
        Ok(())
    }
}

/// The rules by which texts count as held out: a model's `own` for them, or where it has none that of a fraction.
///
/// # Errors
/// When a text cannot be read.
pub fn rules(own: &[Rule], validation_fraction: f64, inputs: &Inputs) -> Result<Vec<Rule>> {
    if !own.is_empty() {
        return Ok(own.to_vec());
    }
    let mut extremes = Extremes::default();
    for text in inputs.texts()? {
        let text = text?;
        if text.bytes() > 0 {
            extremes.add(text.id());
        }
    }
    Ok(vec![Rule::new(validation_fraction, &extremes)])
}

impl ScoredText {
    fn of(model: &Model, text: &Text) -> Result<Self> {
        match text {
            Text::Document(document) => {
                let (bos, eos) =
                    (model.tokenizer.require(Special::Bos)?, model.tokenizer.require(Special::Eos)?);
                let ids = [&[bos], model.tokenizer.encode(&document.text)?.as_slice(), &[eos]].concat();
                let mut scored = vec![true; ids.len()];
                scored[0] = false;
                let (id, source) = (document.id.clone(), document.source.clone());
                Ok(ScoredText { id, source, ids, scored, bytes: document.text.len() as u64 })
            }
            Text::Conversation(conversation) => {
                let rendered = chat::render(&model.tokenizer, &conversation.messages)
                    .map_err(|e| e.context(format!("conversation `{}`", conversation.id)))?;
                let learned = conversation.messages.iter().filter(|m| m.is_learned());
                let bytes = learned.map(|m| m.content.len() as u64).sum();
                let (id, source) = (conversation.id.clone(), conversation.source.clone());
                Ok(ScoredText { id, source, ids: rendered.ids, scored: rendered.target, bytes })
            }
        }
    }
}

struct Scorer<'a> {
    model: &'a Model,
    executor: &'a mut Executor,
    reach: Reach,
    monitor: &'a dyn Monitor,
}

impl Scorer<'_> {
    /// The scores of all texts, with an item of each.
    fn score(&mut self, texts: &[ScoredText], task: Task, items: &mut Vec<Item>) -> Result<Option<Scores>> {
        let (mut sums, mut done, what) = (Sums::default(), 0, task.name());
        let total: u64 = texts.iter().map(|text| text.ids.len() as u64).sum();
        let begun = std::time::Instant::now();
        for text in texts {
            self.monitor.step(what, done, Some(total), "tokens")?;
            let own = self.sums(text)?;
            items.push(own.item(task, text));
            sums += own;
            done += text.ids.len() as u64;
        }
        if sums.tokens == 0 {
            return Ok(None);
        }
        let speed = total as f64 / begun.elapsed().as_secs_f64();
        self.monitor.measure(&format!("{what}_tokens_per_s"), speed, "tok/s");
        Ok(Some(sums.scores()))
    }

    fn sums(&mut self, text: &ScoredText) -> Result<Sums> {
        let mut sums = Sums { texts: 1, bytes: text.bytes, ..Sums::default() };
        for window in windows(text.ids.len(), self.reach.context, self.reach.stride) {
            self.monitor.check()?;
            let targets = window.targets(&text.ids, |i| text.scored[i]);
            let all = Sequences::new(&text.ids[window.read.clone()], &targets, window.read.len());
            let predictions = self.executor.predictions(&self.model.transformer, all);
            predictions.into_iter().for_each(|prediction| sums += sums_of(prediction));
        }
        Ok(sums)
    }
}

fn sums_of(Prediction { nats, rank }: Prediction) -> Sums {
    Sums { tokens: 1, nats, top1: u64::from(rank == 0), top5: u64::from(rank < 5), ..Sums::default() }
}

/// Of each document that is long enough, whether its next word is said.
fn completions(
    model: &Model,
    documents: &[Document],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Vec<Item>> {
    let greedy = generate::Options { strategy: Strategy::Greedy, max_new_tokens: 12, ..Default::default() };
    let one = |document: &Document| -> Result<Option<Item>> {
        monitor.check()?;
        let Some((head, word)) = cut_in_half(&document.text) else { return Ok(None) };
        let said = generate::continuation(model, &generate::ids_of(model, head)?, &greedy, 1)?;
        let hit = said.split_whitespace().next() == Some(word);
        let score = f64::from(u8::from(hit));
        Ok(Some(Item::scored(Task::Completion, &document.source, &document.id, score)))
    };
    let some = documents.par_iter().take(options.completions);
    some.map(one).filter_map(Result::transpose).collect()
}

/// The words up to the middle of the first 60, and the next word.
pub(super) fn cut_in_half(text: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = text.split_whitespace().take(60).collect();
    let word = *words.get(words.len() / 2).filter(|_| words.len() >= 6)?;
    let at = word.as_ptr() as usize - text.as_ptr() as usize;
    Some((text[..at].trim_end(), word))
}
