//! How good a model is, in figures that mean the same for every tokenizer where they can.
//!
//! - **bits per byte**: nats of all scored tokens / ln 2 / UTF-8 bytes of the text. `<bos>` is context
//!   and not scored; the `<eos>` that ends a document is.
//! - **perplexity**: e to the mean nats a token.
//! - **top-1, top-5**: how often the next token is the likeliest, or among the five likeliest.
//! - **completion**: of texts cut in half at a word, how many are continued, greedily, with the very
//!   word that follows.
//!
//! Long documents are scored in windows that overlap by half, so that every token is scored once and
//! has at least half a window of context (but at a document's beginning).

mod gates;

use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use gates::{Gate, missed};

use crate::base::{Error, Monitor, Result};
use crate::corpus::conversation::ConversationReader;
use crate::corpus::document::DocumentReader;
use crate::generate::{self, Strategy};
use crate::kernel::Team;
use crate::model::{IGNORE, Model, Pass, Prediction, Sequences};
use crate::shard::{Split, split_of};
use crate::tokenizer::{Special, chat};

/// Which of the documents that are connected count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scored {
    /// Those that `shard` and `finetune` hold out, by the same rule: no training has seen them.
    #[default]
    Validation,
    All,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub scored: Scored,
    pub validation_fraction: f64,
    /// Tokens scored at most, of documents and of conversations each; whole documents.
    pub max_tokens: u64,
    /// Documents tried for completion at most.
    pub completions: usize,
}

/// What was measured. Everything in it follows from the inputs; nothing from the clock.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub parameters: u64,
    /// Of the weights file.
    pub model_bytes: u64,
    pub vocab_size: usize,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Scores>,
    /// The assistant's tokens only, given all that was said before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chats: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_accuracy: Option<f64>,
    pub completions: u64,
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

/// A text as ids, which of them are scored, and the bytes that those stand for.
struct Item {
    ids: Vec<u32>,
    scored: Vec<bool>,
    bytes: u64,
}

/// Scores `model` on documents and conversations, given as Parquet files.
///
/// # Errors
/// Files that do not read, nothing held out to score, a wish to stop.
pub fn evaluate(
    model: &Model,
    documents: &[PathBuf],
    conversations: &[PathBuf],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    let counts = |id: &str| {
        options.scored == Scored::All || split_of(id, options.validation_fraction) == Split::Validation
    };
    let (items, texts) = document_items(model, documents, &counts, options)?;
    let chats = chat_items(model, conversations, &counts, options)?;
    for (given, found, what) in [
        (documents.is_empty(), items.is_empty(), "document"),
        (conversations.is_empty(), chats.is_empty(), "conversation"),
    ] {
        if !given && found {
            return Err(Error::input(format!("not one {what} is held out to be scored"))
                .help("raise `validation_fraction`, or score what was trained on with `split: all`"));
        }
    }
    let (hits, tried) = completions(model, &texts, options, monitor)?;
    Ok(Report {
        parameters: model.gpt.config.parameters() as u64,
        model_bytes: model.gpt.to_safetensors()?.len() as u64,
        vocab_size: model.gpt.config.vocab_size,
        documents: score(model, &items, "documents", monitor)?,
        chats: score(model, &chats, "chats", monitor)?,
        completion_accuracy: (tried > 0).then(|| hits as f64 / tried as f64),
        completions: tried,
    })
}

fn document_items(
    model: &Model,
    files: &[PathBuf],
    counts: &dyn Fn(&str) -> bool,
    options: &Options,
) -> Result<(Vec<Item>, Vec<String>)> {
    let (bos, eos) = (model.tokenizer.require(Special::Bos)?, model.tokenizer.require(Special::Eos)?);
    let (mut items, mut texts, mut tokens) = (Vec::new(), Vec::new(), 0u64);
    for file in files {
        for document in DocumentReader::open(file)? {
            let document = document?;
            if document.text.is_empty() || !counts(&document.id) || tokens >= options.max_tokens {
                continue;
            }
            let mut ids = vec![bos];
            ids.extend(model.tokenizer.encode(&document.text)?);
            ids.push(eos);
            let mut scored = vec![true; ids.len()];
            scored[0] = false;
            tokens += ids.len() as u64 - 1;
            items.push(Item { ids, scored, bytes: document.text.len() as u64 });
            if texts.len() < options.completions {
                texts.push(document.text);
            }
        }
    }
    Ok((items, texts))
}

fn chat_items(
    model: &Model,
    files: &[PathBuf],
    counts: &dyn Fn(&str) -> bool,
    options: &Options,
) -> Result<Vec<Item>> {
    let (mut items, mut tokens) = (Vec::new(), 0u64);
    for file in files {
        for conversation in ConversationReader::open(file)? {
            let conversation = conversation?;
            if !counts(&conversation.id) || tokens >= options.max_tokens {
                continue;
            }
            let rendered = chat::render(&model.tokenizer, &conversation.messages)?;
            let answers = conversation.messages.iter().filter(|m| m.role.as_str() == "assistant");
            let bytes = answers.map(|m| m.content.len() as u64).sum();
            tokens += rendered.target.iter().filter(|t| **t).count() as u64;
            items.push(Item { ids: rendered.ids, scored: rendered.target, bytes });
        }
    }
    Ok(items)
}

fn score(model: &Model, items: &[Item], what: &str, monitor: &dyn Monitor) -> Result<Option<Scores>> {
    let mut sums = Sums::default();
    let total: u64 = items.iter().map(|i| i.ids.len() as u64).sum();
    let mut done = 0;
    let begun = std::time::Instant::now();
    let mut pass = Pass::forward_only(&model.gpt.config, Team::new(rayon::current_num_threads()));
    for item in items {
        monitor.step(what, done, Some(total), "tokens")?;
        sums += score_item(model, &mut pass, item, monitor)?;
        done += item.ids.len() as u64;
    }
    if sums.tokens == 0 {
        return Ok(None);
    }
    monitor.measure(&format!("{what}_tokens_per_s"), total as f64 / begun.elapsed().as_secs_f64(), "tok/s");
    Ok(Some(sums.scores()))
}

/// Windows of the model's length, each half a window further; only what no earlier one scored counts.
fn score_item(model: &Model, pass: &mut Pass, item: &Item, monitor: &dyn Monitor) -> Result<Sums> {
    let room = model.gpt.config.seq_len;
    let mut sums = Sums { texts: 1, bytes: item.bytes, ..Sums::default() };
    let mut next = 1;
    let mut start = 0;
    while next < item.ids.len() {
        monitor.check()?;
        let end = (start + room).min(item.ids.len() - 1);
        // Position i of the window speaks of the id at start + i + 1.
        let counts = |i: usize| i >= next && item.scored[i];
        let targets: Vec<u32> =
            (start + 1..=end).map(|i| if counts(i) { item.ids[i] } else { IGNORE }).collect();
        let all = Sequences { ids: &item.ids[start..end], targets: &targets, length: end - start };
        pass.predictions(&model.gpt, all).into_iter().for_each(|prediction| sums += sums_of(prediction));
        next = end + 1;
        start = end.saturating_sub(room / 2);
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

/// The words up to the middle of the first 60, and the word behind them.
fn cut_in_half(text: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = text.split_whitespace().take(60).collect();
    let word = *words.get(words.len() / 2).filter(|_| words.len() >= 6)?;
    let at = word.as_ptr() as usize - text.as_ptr() as usize;
    Some((text[..at].trim_end(), word))
}

#[cfg(test)]
mod tests;
