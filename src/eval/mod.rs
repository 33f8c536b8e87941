//! How good a model is, in figures that mean the same for every tokenizer where they can.
//!
//! - **bits per byte**: nats of all scored tokens / ln 2 / UTF-8 bytes of the text. `<bos>` is context
//!   and not scored; the `<eos>` that ends a document is.
//! - **perplexity**: e to the mean nats a token.
//! - **top-1, top-5**: how often the next token is the most probable, or among the five most probable.
//! - **completion**: of texts cut in half at a word, how many are continued, greedily, with the very
//!   word that follows.
//!
//! Long documents are scored in windows that overlap by half, so that every token is scored once and
//! has at least half a window of context (but at a document's beginning).

pub mod bootstrap;
pub mod compare;
mod gates;
pub mod items;
mod score;
pub mod sign_test;
mod windows;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use gates::{Gate, Needs, missed, needs};
pub use score::{TextScore, TokenScore, score_text};
pub use windows::stride;
use windows::windows;

use crate::base::{Monitor, Result};
use crate::corpus::held_out::{Extremes, HeldOut, Rule, is_unseen};
use crate::generate::{self, Strategy};
use crate::kernel::Team;
use crate::model::{Executor, Model, Prediction, Sequences};
use crate::tokenizer::{Inputs, Special, Text, chat};

/// Which of the texts that training could have seen are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scored {
    /// Those held out from training, by the same rule: no training has seen them.
    #[default]
    Validation,
    All,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub scored: Scored,
    /// The rules by which the model's trainings held out texts.
    pub held_out: HeldOut,
    /// The share that counts as held out where the model has no rule: documents or conversations that none of
    /// its recorded trainings used, as for an imported model.
    pub validation_fraction: f64,
    /// Tokens scored at most, of documents and of conversations each; whole documents.
    pub max_tokens: u64,
    /// The most documents that completion is measured on.
    pub completions: usize,
}

/// What was measured: a function of the inputs alone, without times.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub parameters: u64,
    /// Of the weights file.
    pub model_bytes: u64,
    pub vocab_size: usize,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Scores>,
    /// Only the assistant's tokens are scored, given all tokens before them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chats: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_accuracy: Option<f64>,
    pub completions: u64,
    /// `documents` or `chats` of which some were read and none was scored, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub not_scored: BTreeMap<&'static str, String>,
}

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

/// Scores `model` on documents and conversations.
///
/// # Errors
/// Files that cannot be read, cancellation. That nothing is held out is no error: see
/// [`Report::not_scored`].
pub fn evaluate(model: &Model, texts: &Texts, options: &Options, monitor: &dyn Monitor) -> Result<Report> {
    let [documents, chats] = texts.by_sort();
    let documents = Selection::of(model, &documents, &options.held_out.documents, options)?;
    let chats = Selection::of(model, &chats, &options.held_out.conversations, options)?;
    let mut not_scored = BTreeMap::new();
    for (what, read, found) in [
        ("documents", documents.read, documents.items.is_empty()),
        ("chats", chats.read, chats.items.is_empty()),
    ] {
        if read > 0 && found {
            let why = format!("none of {read} is held out from training");
            tracing::warn!("{what} are not scored: {why}; `split: all` scores what was trained on");
            not_scored.insert(what, why);
        }
    }
    let (hits, tried) = completions(model, &documents.texts, options, monitor)?;
    Ok(Report {
        parameters: model.transformer.config.parameters() as u64,
        model_bytes: model.transformer.to_safetensors()?.len() as u64,
        vocab_size: model.transformer.config.vocab_size,
        documents: score(model, &documents.items, "documents", monitor)?,
        chats: score(model, &chats.items, "chats", monitor)?,
        completion_accuracy: (tried > 0).then(|| hits as f64 / tried as f64),
        completions: tried,
        not_scored,
    })
}

/// The documents or the conversations that are scored, as token ids.
#[derive(Default)]
struct Selection {
    items: Vec<ScoredText>,
    /// The first documents as text, for completion.
    texts: Vec<String>,
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
            self.texts.push(document.text);
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
                Ok(ScoredText { ids, scored, bytes: document.text.len() as u64 })
            }
            Text::Conversation(conversation) => {
                let rendered = chat::render(&model.tokenizer, &conversation.messages)
                    .map_err(|e| e.context(format!("conversation `{}`", conversation.id)))?;
                let learned = conversation.messages.iter().filter(|m| m.is_learned());
                let bytes = learned.map(|m| m.content.len() as u64).sum();
                Ok(ScoredText { ids: rendered.ids, scored: rendered.target, bytes })
            }
        }
    }
}

fn score(model: &Model, items: &[ScoredText], what: &str, monitor: &dyn Monitor) -> Result<Option<Scores>> {
    let mut sums = Sums::default();
    let total: u64 = items.iter().map(|i| i.ids.len() as u64).sum();
    let mut done = 0;
    let begun = std::time::Instant::now();
    let mut executor =
        Executor::forward_only(&model.transformer.config, Team::new(rayon::current_num_threads()));
    for item in items {
        monitor.step(what, done, Some(total), "tokens")?;
        sums += score_item(model, &mut executor, item, monitor)?;
        done += item.ids.len() as u64;
    }
    if sums.tokens == 0 {
        return Ok(None);
    }
    monitor.measure(&format!("{what}_tokens_per_s"), total as f64 / begun.elapsed().as_secs_f64(), "tok/s");
    Ok(Some(sums.scores()))
}

fn score_item(
    model: &Model,
    executor: &mut Executor,
    item: &ScoredText,
    monitor: &dyn Monitor,
) -> Result<Sums> {
    let mut sums = Sums { texts: 1, bytes: item.bytes, ..Sums::default() };
    for window in windows(item.ids.len(), model.transformer.config.seq_len) {
        monitor.check()?;
        let targets = window.targets(&item.ids, |i| item.scored[i]);
        let all = Sequences::new(&item.ids[window.read.clone()], &targets, window.read.len());
        executor
            .predictions(&model.transformer, all)
            .into_iter()
            .for_each(|prediction| sums += sums_of(prediction));
    }
    Ok(sums)
}

fn sums_of(Prediction { nats, rank }: Prediction) -> Sums {
    Sums { tokens: 1, nats, top1: u64::from(rank == 0), top5: u64::from(rank < 5), ..Sums::default() }
}

/// (hits, tried).
fn completions(
    model: &Model,
    texts: &[String],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<(u64, u64)> {
    let greedy = generate::Options { strategy: Strategy::Greedy, max_new_tokens: 12, ..Default::default() };
    let one = |text: &String| -> Result<Option<bool>> {
        monitor.check()?;
        let Some((head, word)) = cut_in_half(text) else { return Ok(None) };
        let said = generate::continuation(model, &generate::ids_of(model, head)?, &greedy, 1)?;
        Ok(Some(said.split_whitespace().next() == Some(word)))
    };
    let results: Vec<Result<Option<bool>>> = texts.par_iter().take(options.completions).map(one).collect();
    let (mut hits, mut tried) = (0, 0);
    for result in results {
        if let Some(hit) = result? {
            tried += 1;
            hits += u64::from(hit);
        }
    }
    Ok((hits, tried))
}

/// The words up to the middle of the first 60, and the next word.
fn cut_in_half(text: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = text.split_whitespace().take(60).collect();
    let word = *words.get(words.len() / 2).filter(|_| words.len() >= 6)?;
    let at = word.as_ptr() as usize - text.as_ptr() as usize;
    Some((text[..at].trim_end(), word))
}

#[cfg(test)]
mod tests;
