//! Decoding: from a model's probabilities to text. Greedy, sampling (temperature, top-k, top-p) and
//! beam search, with a repetition penalty, a KV cache and streaming.
//!
//! A model sees `seq_len` tokens at most. When a sequence is longer, its older tokens are dropped and the
//! newest `seq_len / 2` are read again into an empty cache ([`Session::feed`]).

mod beam;
mod sampler;
mod stop;

use std::ops::ControlFlow;

use crate::base::monitor::Monitor;
use crate::base::{Error, Invalid, Result, Rng};
use crate::corpus::clean;
use crate::corpus::conversation::Message;
use crate::kernel::{Team, loss};
use crate::model::{Cache, Decoder, Model, Reading};
use crate::tokenizer::{Special, StreamDecoder, chat};

pub use sampler::Sampler;
use stop::Stops;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Always the most probable token.
    Greedy,
    /// Drawn by probability, after temperature, top-k and top-p.
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
    /// Only tokens of at least this share of the most probable token's probability; 0 for all (Nguyen et al.,
    /// 2024).
    pub min_p: f64,
    pub num_beams: usize,
    /// Beams are compared by the sum of their tokens' log-probabilities over their length to this power: above
    /// 0 for longer texts, below 0 for shorter ones.
    pub length_penalty: f64,
    /// Divides positive and multiplies negative logits of tokens that the sequence already has (Keskar et
    /// al., 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
    /// Texts that end generation where the first of them begins; they are not part of the result.
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
        if let Some(i) = self.stop.iter().position(String::is_empty) {
            let found = format!("empty at index {i}");
            return invalid("stop", found, "a text of at least one character");
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// All new tokens, without the one that ended the text.
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
        let ids = self.sequence.append(ids, config.seq_len);
        let reading = Reading { cache: &mut self.sequence.cache, ids: &ids };
        let logits = self.decoder.read(&mut [reading])?;
        self.sequence.set_logits(logits)?;
        Ok(self.sequence.dropped - before)
    }

    /// The log-probability of `id` as the next token.
    fn logprob(&self, id: u32) -> f64 {
        let mut logits = self.sequence.logits.clone();
        let vocab_size = logits.len();
        -loss::predictions(self.decoder.team(), &mut logits, vocab_size, &[id])[0].nats
    }

    /// Reads one id in each of several sequences, as one batch.
    fn read_each(&mut self, sequences: &mut [Sequence], ids: &[u32]) -> Result<()> {
        let config = &self.model.transformer.config;
        config.validate_ids(ids)?;
        if sequences.is_empty() {
            return Ok(());
        }
        let new: Vec<Vec<u32>> = sequences
            .iter_mut()
            .zip(ids)
            .map(|(sequence, id)| sequence.append(&[*id], config.seq_len))
            .collect();
        let caches = sequences.iter_mut().map(|sequence| &mut sequence.cache);
        let mut readings: Vec<Reading> =
            caches.zip(&new).map(|(cache, ids)| Reading { cache, ids }).collect();
        let logits = self.decoder.read(&mut readings)?;
        for (sequence, row) in sequences.iter_mut().zip(logits.chunks_exact(config.vocab_size)) {
            sequence.set_logits(row.to_vec())?;
        }
        Ok(())
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
    stream_with(session, prompt, options, &mut Rng::new(options.seed, "generate"), on_text)
}

fn stream_with(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    rng: &mut Rng,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Continuation> {
    options.validate().map_err(Error::invalid)?;
    if session.sequence.logits.is_empty() {
        return Err(Error::input("there is nothing to continue: the prompt has no tokens"));
    }
    let sampler = Sampler::new(session.model, options);
    let mut writer = Writer::new(session.model, prompt, options);
    let mut beam = match options.strategy {
        Strategy::Beam => Some(beam::search(session, &sampler, options)?.into_iter()),
        Strategy::Greedy | Strategy::Sample => None,
    };
    while writer.out.tokens.len() < options.max_new_tokens {
        let id = match (&mut beam, options.strategy) {
            (Some(ids), _) => ids.next(),
            (None, Strategy::Greedy) => Some(sampler.greedy(&session.sequence)),
            (None, _) => Some(sampler.sample(&session.sequence, rng)),
        };
        let Some(id) = id.filter(|id| !sampler.is_end(*id)) else {
            writer.out.finish = Finish::End;
            break;
        };
        let go_on = writer.push(id, session.logprob(id), on_text);
        session.feed(&[id])?;
        if go_on.is_break() {
            break;
        }
    }
    Ok(writer.end(on_text))
}

/// A text as it grows.
struct Writer {
    decoder: StreamDecoder,
    stops: Stops,
    out: Continuation,
    broken: bool,
}

impl Writer {
    fn new(model: &Model, prompt: &[u32], options: &Options) -> Self {
        let mut decoder = model.tokenizer.decoder();
        // Whether the first new token begins with a space depends on the prompt's last token.
        prompt.iter().for_each(|id| drop(decoder.push(*id)));
        decoder.finish();
        let out = Continuation {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish: Finish::Length,
        };
        Writer { decoder, stops: Stops::new(&options.stop), out, broken: false }
    }

    fn push(
        &mut self,
        id: u32,
        logprob: f64,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.out.tokens.push(id);
        self.out.logprobs.push(logprob);
        let piece = self.decoder.push(id).map(|piece| self.stops.push(&piece)).unwrap_or_default();
        self.say(&piece, on_text);
        if self.stops.met() {
            self.out.finish = Finish::Stop;
        }
        if self.broken || self.stops.met() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn say(&mut self, piece: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        self.out.text.push_str(piece);
        if !piece.is_empty() && !self.broken {
            self.broken = on_text(piece).is_break();
        }
    }

    fn end(mut self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Continuation {
        if self.out.finish != Finish::Stop {
            let rest = self.decoder.finish().unwrap_or_default();
            let rest = self.stops.push(&rest) + &self.stops.finish();
            if self.stops.met() {
                self.out.finish = Finish::Stop;
            }
            self.say(&rest, on_text);
        }
        self.out
    }
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
    let mut all = Sequence::default();
    all.append(ids, model.transformer.config.seq_len);
    if all.dropped > 0 {
        tracing::warn!("{}", cut_to_fit(model, ids.len(), all.dropped));
    }
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

/// The model's continuations of several prompts, each drawn with its own stream of the seed; the first with
/// that of a single prompt.
///
/// # Errors
/// As [`stream`].
pub fn continue_all(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &Options,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Vec<Continuation>> {
    let one = |(i, ids): (usize, &Vec<u32>)| {
        monitor.step("generating", i as u64, Some(prompts.len() as u64), "prompts")?;
        let mut session = Session::new(model, threads);
        session.feed(ids)?;
        let label = if i == 0 { "generate".to_string() } else { format!("generate {i}") };
        let mut rng = Rng::new(options.seed, &label);
        stream_with(&mut session, ids, options, &mut rng, &mut |_| ControlFlow::Continue(()))
    };
    prompts.iter().enumerate().map(one).collect()
}

/// The model's answers to conversations, as [`continue_all`] continues their prompts. Logs a warning for each
/// that is too long and is cut.
///
/// # Errors
/// As [`stream`] and [`chat::prompt`].
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
