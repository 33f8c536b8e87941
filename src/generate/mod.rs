//! Decoding: from a model's probabilities to text. Greedy, sampling (temperature, top-k, top-p, min-p) and
//! beam search, with penalties, biases, stop strings, a KV cache and streaming.
//!
//! ```text
//!  options      how to decode                         sampler       the next token from logits
//!  session      a sequence that a model reads         stop          texts that end generation
//!  scheduler    requests that come and go, as a batch writer        tokens to text
//!  batch        many prompts that are there at once   beam          beam search
//!  conversation chat turns                            search        one continuation under way
//!  prefix       what was read, for prompts that begin alike
//! ```
//!
//! A model sees `seq_len` tokens at most. When a sequence is longer, its older tokens are dropped and the
//! newest `seq_len / 2` are read again into an empty cache ([`Session::feed`]).

mod batch;
mod beam;
mod conversation;
mod options;
mod prefix;
mod sampler;
mod scheduler;
mod search;
mod session;
mod stop;
mod writer;

use std::ops::ControlFlow;

use serde::Serialize;

use crate::base::Result;
use crate::base::monitor::Monitor;
use crate::corpus::clean;
use crate::corpus::conversation::Message;
use crate::model::Model;
use crate::tokenizer::{Special, chat};

pub use batch::{continue_all, continue_each};
pub use conversation::{Conversation, Turn};
pub use options::{MOST_TOP_LOGPROBS, Options, Strategy};
pub use sampler::Sampler;
pub use scheduler::{Event, Limits, Request, RequestId, Scheduler};
pub use session::{Sequence, Session, stream};

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model chose a token that ends texts.
    End,
    /// A stop string.
    Stop,
    /// `max_new_tokens`.
    Length,
}

/// What a model says behind a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    /// To be appended to the prompt's text.
    pub text: String,
    /// All new tokens: those of a stop string too, an end token not.
    pub tokens: Vec<u32>,
    /// Of each of `tokens`, by the model's own distribution: before temperature, penalty and filters.
    pub logprobs: Vec<f64>,
    pub finish: Finish,
    /// At each of `tokens` the `top_logprobs` most probable ids, the most probable first, with their
    /// log-probabilities by the same distribution.
    pub tops: Vec<Vec<(u32, f64)>>,
    /// The end token, where one was chosen; not with beams.
    pub end: Option<Token>,
}

impl Continuation {
    /// The tokens from the `start`th on.
    pub fn tokens_from(&self, start: usize) -> Vec<Token> {
        let Continuation { tokens, logprobs, tops, .. } = self;
        let token = |i: usize| Token { id: tokens[i], logprob: logprobs[i], top: tops[i].clone() };
        (start..tokens.len()).map(token).collect()
    }
}

/// A new token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// By the model's own distribution, as [`Continuation::logprobs`].
    pub logprob: f64,
    /// As one of [`Continuation::tops`].
    pub top: Vec<(u32, f64)>,
}

/// The tokens of a user's prompt, cleaned as training text is.
///
/// # Errors
/// When it cannot be encoded.
pub fn prompt_ids(model: &Model, prompt: &str) -> Result<Vec<u32>> {
    ids_of(model, &clean::prompt(prompt))
}

/// The tokens of `text`, after `<bos>` where the tokenizer has one.
///
/// # Errors
/// When it cannot be encoded.
pub fn ids_of(model: &Model, text: &str) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = model.tokenizer.special(Special::Bos).into_iter().collect();
    ids.extend(model.tokenizer.encode(text)?);
    Ok(ids)
}

/// The model's continuation of `prompt`. Logs a warning where the prompt is too long and is cut.
///
/// # Errors
/// As [`stream`].
pub fn text(model: &Model, prompt: &str, options: &Options, threads: usize) -> Result<String> {
    let ids = prompt_ids(model, prompt)?;
    warn_if_cut(model, &ids);
    continuation(model, &ids, options, threads)
}

/// The model's answer to a conversation. Logs a warning where it is too long and is cut.
///
/// # Errors
/// As [`stream`] and [`chat::prompt`].
pub fn answer(model: &Model, messages: &[Message], options: &Options, threads: usize) -> Result<String> {
    let ids = chat::prompt(&model.tokenizer, messages)?;
    warn_if_cut(model, &ids);
    let text = continuation(model, &ids, options, threads)?;
    Ok(text.trim().to_string())
}

fn warn_if_cut(model: &Model, ids: &[u32]) {
    let cut = cut(model, ids);
    if cut > 0 {
        tracing::warn!("{}", cut_to_fit(model, ids.len(), cut));
    }
}

/// How many of the first tokens of a prompt do not fit.
pub fn cut(model: &Model, ids: &[u32]) -> usize {
    let mut all = Sequence::default();
    all.append(ids, model.transformer.config.seq_len);
    all.dropped
}

/// The warning that of a prompt of `tokens` tokens the first `cut` do not fit.
pub fn cut_to_fit(model: &Model, tokens: usize, cut: usize) -> String {
    let seq_len = model.transformer.config.seq_len;
    format!("the prompt has {tokens} tokens, the model holds {seq_len}: the first {cut} are cut")
}

/// The model's continuation of `ids`, as text to be appended to theirs.
///
/// # Errors
/// As [`stream`].
pub fn continuation(model: &Model, ids: &[u32], options: &Options, threads: usize) -> Result<String> {
    let mut session = Session::new(model, threads);
    session.feed(ids)?;
    Ok(stream(&mut session, ids, options, &mut |_| ControlFlow::Continue(()))?.text)
}

/// The model's answers to conversations, as [`continue_all`] continues their prompts. Logs a warning for each
/// that is too long and is cut.
///
/// # Errors
/// As [`continue_each`] and [`chat::prompt`].
pub fn answers(
    model: &Model,
    conversations: &[Vec<Message>],
    options: &Options,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Vec<String>> {
    let prompts = conversations.iter().map(|messages| chat::prompt(&model.tokenizer, messages));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    prompts.iter().for_each(|ids| warn_if_cut(model, ids));
    let all = continue_all(model, &prompts, options, threads, monitor)?;
    Ok(all.into_iter().map(|one| one.text.trim().to_string()).collect())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_scheduler;
#[cfg(test)]
mod tests_of_search;
