//! Decoding: from a model's probabilities to text. Greedy, sampling (temperature, top-k, top-p, min-p) and
//! beam search, with a repetition penalty, stop strings, a KV cache and streaming; one prompt, or many as a
//! batch.
//!
//! A model sees `seq_len` tokens at most. When a sequence is longer, its older tokens are dropped and the
//! newest `seq_len / 2` are read again into an empty cache ([`Session::feed`]).

mod batch;
mod beam;
mod sampler;
mod search;
mod stop;
mod writer;

use std::ops::ControlFlow;

use serde::Serialize;

use crate::base::monitor::Monitor;
use crate::base::{Error, Invalid, Result};
use crate::corpus::clean;
use crate::corpus::conversation::Message;
use crate::kernel::Team;
use crate::model::{Cache, Decoder, Model, Reading};
use crate::tokenizer::{Special, chat};

pub use batch::continue_each;
pub use sampler::Sampler;
use search::{Chooser, Search};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Always the most probable token.
    Greedy,
    /// Drawn by probability, after temperature, top-k, top-p and min-p.
    #[default]
    Sample,
    /// The most probable of `num_beams` continuations that are extended side by side.
    Beam,
}

/// How to decode.
#[derive(Debug, Clone)]
pub struct Options {
    pub strategy: Strategy,
    /// Divides the logits: below 1 for likelier tokens, above 1 for more varied ones.
    pub temperature: f64,
    /// Only the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability; 1 for all (nucleus sampling;
    /// Holtzman et al., 2020).
    pub top_p: f64,
    /// Only tokens of at least this share of the most probable token's probability, both after temperature; 0
    /// for all (Nguyen et al., 2024).
    pub min_p: f64,
    pub num_beams: usize,
    /// Beams are compared by the sum of their tokens' log-probabilities over their length to this power: above
    /// 0 for longer texts, below 0 for shorter ones.
    pub length_penalty: f64,
    /// Divides positive and multiplies negative logits of tokens that the sequence already has (Keskar et
    /// al., 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
    /// Texts that end generation: the result ends where the first to be complete begins.
    pub stop: Vec<String>,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            strategy: Strategy::Sample,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            num_beams: 4,
            length_penalty: 1.0,
            repetition_penalty: 1.0,
            max_new_tokens: 100,
            stop: Vec::new(),
            seed: 0,
        }
    }
}

impl Options {
    /// # Errors
    /// The first param that is out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let invalid = |param: &str, found: String, expected: &str| {
            Err(Invalid::new(param, format!("is {found}: expected {expected}")))
        };
        if !positive(self.temperature) {
            return invalid("temperature", self.temperature.to_string(), "a number above 0")
                .map_err(|invalid| invalid.help("for 0 use the strategy `greedy`"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return invalid("min_p", self.min_p.to_string(), "a number from 0 to 1");
        }
        if !self.length_penalty.is_finite() {
            return invalid("length_penalty", self.length_penalty.to_string(), "a number");
        }
        if self.stop.iter().any(String::is_empty) {
            return invalid("stop", "empty".to_string(), "a text of at least one character");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top_p", self.top_p.to_string(), "a number above 0, at most 1");
        }
        if self.num_beams == 0 || self.num_beams > 64 {
            return invalid("num_beams", self.num_beams.to_string(), "1 to 64");
        }
        if !positive(self.repetition_penalty) {
            return invalid("repetition_penalty", self.repetition_penalty.to_string(), "a number above 0");
        }
        Ok(())
    }
}

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
}

/// Tokens that a model has read, and its prediction of the next one.
#[derive(Clone, Default)]
pub struct Sequence {
    cache: Cache,
    /// All tokens read so far, those dropped from the cache included.
    pub tokens: Vec<u32>,
    /// `[V]`, of the next token; empty before anything is read.
    pub logits: Vec<f32>,
    /// How many of the first tokens the model no longer sees.
    pub dropped: usize,
}

impl Sequence {
    /// Appends `ids`, and gives the tokens to read: `ids`, or, when the cache would exceed `seq_len`, the
    /// newest `seq_len / 2` tokens into an empty cache.
    fn append(&mut self, ids: &[u32], seq_len: usize) -> Vec<u32> {
        self.tokens.extend_from_slice(ids);
        if self.cache.len() + ids.len() <= seq_len {
            return ids.to_vec();
        }
        self.cache = Cache::default();
        let kept = self.tokens.len().min(seq_len.div_ceil(2));
        self.dropped = self.tokens.len() - kept;
        self.tokens[self.dropped..].to_vec()
    }

    fn set_logits(&mut self, logits: Vec<f32>) -> Result<()> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::input("the model's logits are NaN")
                .help("its weights are damaged, or its training diverged: train it anew"));
        }
        self.logits = logits;
        Ok(())
    }
}

/// A model and a sequence that it reads and continues.
pub struct Session<'a> {
    model: &'a Model,
    decoder: Decoder<'a>,
    pub sequence: Sequence,
}

impl<'a> Session<'a> {
    /// A session whose matrix products use up to `threads` threads; small models use one.
    pub fn new(model: &'a Model, threads: usize) -> Self {
        Session {
            model,
            decoder: Decoder::new(&model.transformer, Team::new(threads)),
            sequence: Sequence::default(),
        }
    }

    /// Reads `ids`. When the sequence exceeds `seq_len`, only its newest `seq_len / 2` tokens stay in the
    /// cache. Gives how many tokens this dropped, some of `ids` among them where there are so many.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or logits that are NaN.
    pub fn feed(&mut self, ids: &[u32]) -> Result<usize> {
        let config = &self.model.transformer.config;
        // Before the sequence is changed.
        config.validate_ids(ids)?;
        if ids.is_empty() {
            return Ok(0);
        }
        let before = self.sequence.dropped;
        let mut sequence = std::mem::take(&mut self.sequence);
        let read = self.read_each(vec![(&mut sequence, ids)]);
        self.sequence = sequence;
        read.map(|()| self.sequence.dropped - before)
    }

    /// Reads on in several sequences, as one batch; each has something to read.
    fn read_each(&mut self, mut all: Vec<(&mut Sequence, &[u32])>) -> Result<()> {
        let config = &self.model.transformer.config;
        all.iter().try_for_each(|(_, ids)| config.validate_ids(ids))?;
        if all.is_empty() {
            return Ok(());
        }
        let new = all.iter_mut().map(|(sequence, ids)| sequence.append(ids, config.seq_len));
        let new: Vec<Vec<u32>> = new.collect();
        let caches = all.iter_mut().map(|(sequence, _)| &mut sequence.cache);
        let mut readings: Vec<Reading> =
            caches.zip(&new).map(|(cache, ids)| Reading { cache, ids }).collect();
        let logits = self.decoder.read(&mut readings)?;
        let rows = logits.chunks_exact(config.vocab_size);
        all.iter_mut().zip(rows).try_for_each(|((sequence, _), row)| sequence.set_logits(row.to_vec()))
    }
}

/// Continues `session` until an end token, a stop string, `max_new_tokens`, or a `Break` of `on_text`, which
/// gets the text as soon as it is certain. The text follows that of `prompt`, the tokens read last.
///
/// # Errors
/// When an option is out of range, nothing was read yet, or the model's logits are NaN.
pub fn stream(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Continuation> {
    options.validate().map_err(Error::invalid)?;
    if session.sequence.logits.is_empty() {
        return Err(Error::input("there is nothing to continue: the prompt has no tokens"));
    }
    let sampler = Sampler::new(session.model, options);
    let beams = options.strategy == Strategy::Beam;
    let sequence = if beams { session.sequence.clone() } else { std::mem::take(&mut session.sequence) };
    let read_before = sequence.tokens.len();
    let rng = batch::stream_of(options, 0, 0);
    let (mut search, mut said) = (Search::new(session.model, sequence, prompt, options, rng), 0);
    while !search.is_over() {
        search.step(&Chooser { sampler: &sampler, options, team: session.decoder.team() });
        let new = &search.text()[said..];
        if !new.is_empty() && on_text(new).is_break() {
            break;
        }
        said = search.text().len();
        search.read(session)?;
    }
    let (result, sequence) = search.finish();
    if !beams {
        session.sequence = sequence;
    }
    // The session reads all that was said: in a conversation, the next turn follows it.
    let read = session.sequence.tokens.len() - read_before;
    session.feed(&result.tokens[read..])?;
    Ok(result)
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

/// The model's continuations of several prompts, computed side by side, each drawn with its own stream of the
/// seed; the first with that of a single prompt.
///
/// # Errors
/// As [`continue_each`].
pub fn continue_all(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Vec<Continuation>> {
    let mut all = Vec::with_capacity(prompts.len());
    continue_each(model, prompts, 1, options, threads, monitor, &mut |_, _, continuation| {
        all.push(continuation);
        Ok(())
    })?;
    Ok(all)
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
mod tests_of_search;
