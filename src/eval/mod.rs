//! How good a model is, in figures that mean the same for every tokenizer where they can.
//!
//! - **bits per byte**: nats of all scored tokens / ln 2 / UTF-8 bytes of the text that they stand for. `<bos>`
//!   is context and not scored; the `<eos>` that ends a document is, and stands for no byte.
//! - **perplexity**: e to the mean nats a token.
//! - **top-1, top-5**: how often the next token is the most probable, or among the five most probable.
//! - **completion**: of texts cut in half at a word, how many are continued, greedily, with the very
//!   word that follows.
//! - **cloze**: texts that are continued, greedily, with one of the accepted words ([`cloze`]).
//! - **pairs**: good and bad sentences of which the good one is the more probable ([`pairs`]).
//! - **choices**: questions of which the right answer is the most probable of several ([`choices`]).
//! - **exam**: questions of which the answer holds what is accepted ([`exam`]).
//!
//! Long texts are scored in windows of `context` tokens that begin `stride` apart, so that every token is
//! scored once and has at least `context - stride` tokens before it (but at a text's beginning). A figure
//! depends on both, so the report states them.
//!
//! Every figure is a quotient of sums over evaluated items ([`items`]), which are written beside it.

pub mod bootstrap;
pub mod compare;
pub mod choices;
pub mod cloze;
pub mod exam;
mod gates;
pub mod items;
pub mod pairs;
mod rows;
mod score;
pub mod sheet;
mod short;
pub mod sign_test;
mod texts;
mod windows;
mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use gates::{Gate, Needs, missed, needs};
pub use score::{TextScore, TokenScore, score_ids, score_text};
pub use texts::{Scores, Texts, rules};
pub use windows::stride;

use self::choices::Choices;
use self::cloze::Cloze;
use self::exam::{Answered, Exam};
use self::items::{FIGURES, Item};
use self::pairs::Pairs;
use crate::base::{Error, Invalid, Monitor, Result};
use crate::corpus::held_out::HeldOut;
use crate::corpus::input::InputFile;
use crate::kernel::Team;
use crate::model::{Executor, Model};

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
    /// The most tokens that the model reads before a token that is scored; `None`: all that it can.
    pub context: Option<usize>,
    /// How far apart the windows of a longer text begin; `None`: half the context.
    pub stride: Option<usize>,
    /// Whether a question with choices is a user's turn, and a choice what the assistant says.
    pub as_chat: bool,
    /// The most tokens of an answer in an exam.
    pub exam_max_new_tokens: usize,
    /// What intervals are resampled by; `None`: there are none.
    pub intervals: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            scored: Scored::Validation,
            held_out: HeldOut::default(),
            validation_fraction: 0.05,
            max_tokens: 100_000,
            completions: 100,
            context: None,
            stride: None,
            as_chat: false,
            exam_max_new_tokens: 60,
            intervals: None,
        }
    }
}

/// How much a model reads before a token that is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    pub context: usize,
    pub stride: usize,
}

impl Options {
    /// Context and stride for a model that reads `seq_len` tokens at most.
    ///
    /// # Errors
    /// When one of them is out of range.
    pub fn reach(&self, seq_len: usize) -> Result<Reach, Invalid> {
        let context = self.context.unwrap_or(seq_len);
        if context == 0 {
            return Err(Invalid::new("context", "is 0: expected 1 or more"));
        }
        if context > seq_len {
            let why = format!("is {context}: the model reads {seq_len} tokens at most");
            return Err(Invalid::new("context", why).help("leave it out for all that the model can read"));
        }
        let stride = self.stride.unwrap_or(stride(context));
        if stride == 0 || stride > context {
            let why = format!("is {stride}: expected 1 to the context, {context}");
            return Err(Invalid::new("stride", why).help("leave it out for half the context"));
        }
        Ok(Reach { context, stride })
    }
}

/// What a model is judged on, beside texts: files whose rows the modules of the tasks describe.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    /// [`cloze`]
    pub cloze: Vec<InputFile>,
    /// [`pairs`]
    pub pairs: Vec<InputFile>,
    /// [`choices`]
    pub choices: Vec<InputFile>,
    /// [`exam`]
    pub exam: Vec<InputFile>,
}

/// What was measured: a function of the inputs alone, without times.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub parameters: u64,
    /// Of the weights file.
    pub model_bytes: u64,
    pub vocab_size: usize,
    /// The most tokens that were read before a token that was scored.
    pub context: usize,
    /// How far apart the windows of longer texts began.
    pub stride: usize,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Scores>,
    /// Only the assistant's tokens are scored, given all tokens before them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chats: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_accuracy: Option<f64>,
    pub completions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloze: Option<Cloze>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exam: Option<Exam>,
    /// Figure -> where it lies, by 95 %, when as many items are drawn anew ([`bootstrap::interval`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub intervals: BTreeMap<&'static str, [f64; 2]>,
    /// `documents` or `chats` of which some were read and none was scored, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub not_scored: BTreeMap<&'static str, String>,
}

/// A report, and what it was computed from.
#[derive(Debug, Clone)]
pub struct Evaluation {
    pub report: Report,
    /// Task after task, each in the order of its inputs.
    pub items: Vec<Item>,
    /// The questions of the exam, in their order.
    pub answered: Vec<Answered>,
}

/// Judges `model` on documents, conversations and tasks.
///
/// # Errors
/// Files that cannot be read, rows that are no items, options out of range, cancellation. That nothing is held
/// out is no error: see [`Report::not_scored`].
pub fn evaluate(
    model: &Model,
    texts: &Texts,
    tasks: &Tasks,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Evaluation> {
    let config = &model.transformer.config;
    let reach = options.reach(config.seq_len).map_err(Error::invalid)?;
    let threads = rayon::current_num_threads();
    let mut executor = Executor::forward_only(config, Team::new(threads));
    let mut found = texts::score(model, &mut executor, texts, reach, options, monitor)?;
    let (cloze, of_cloze) = cloze::judge(model, &tasks.cloze, threads, monitor)?;
    let (pairs, of_pairs) = pairs::judge(model, &mut executor, &tasks.pairs, reach, monitor)?;
    let (choices, of_choices) =
        choices::judge(model, &mut executor, &tasks.choices, options.as_chat, reach, monitor)?;
    let exam = exam::sit(model, &tasks.exam, options.exam_max_new_tokens, threads, monitor)?;
    let of_exam = exam.items.iter().cloned();
    found.items.extend(of_cloze.into_iter().chain(of_pairs).chain(of_choices).chain(of_exam));
    let report = Report {
        parameters: config.parameters() as u64,
        model_bytes: model.transformer.to_safetensors()?.len() as u64,
        vocab_size: config.vocab_size,
        context: reach.context,
        stride: reach.stride,
        documents: found.documents,
        chats: found.chats,
        completion_accuracy: found.completion_accuracy,
        completions: found.completions,
        cloze,
        pairs,
        choices,
        exam: exam.figures(),
        intervals: options.intervals.map(|seed| intervals(&found.items, seed)).unwrap_or_default(),
        not_scored: found.not_scored,
    };
    Ok(Evaluation { report, items: found.items, answered: exam.answered })
}

/// The interval of each figure that was measured on two items at least.
fn intervals(items: &[Item], seed: u64) -> BTreeMap<&'static str, [f64; 2]> {
    let one = |figure: &items::Figure| Some((figure.name, bootstrap::interval(&figure.pairs(items), seed)?));
    FIGURES.iter().filter_map(one).collect()
}

/// For counts that a report has only where something was counted.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_tasks;
