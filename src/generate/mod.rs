//! Decoding: from a model's probabilities to text. Greedy, sampling (temperature, top-k, top-p) and
//! beam search, with a repetition penalty, a KV cache and streaming.
//!
//! Positions are learned, so a model can hold `seq_len` tokens and no more. When they are full, the
//! older half is forgotten and the newer half read again ([`Session::feed`]).

mod beam;
mod choose;

use std::ops::ControlFlow;

use crate::base::{Error, Result, Rng};
use crate::corpus::clean;
use crate::corpus::conversation::Message;
use crate::kernel::Team;
use crate::model::{Cache, Decoder, Model, Reading};
use crate::tokenizer::{Special, chat};

pub use choose::Chooser;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Always the likeliest token.
    Greedy,
    /// Drawn by probability, after temperature, top-k and top-p.
    #[default]
    Sample,
    /// The likeliest of `num_beams` continuations that are followed side by side.
    Beam,
}

/// How to decode.
#[derive(Debug, Clone)]
pub struct Options {
    pub strategy: Strategy,
    /// Divides the logits: below 1 bolder, above 1 more varied.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1 for all (Holtzman et al., 2020).
    pub top_p: f64,
    pub num_beams: usize,
    /// Divides positive and multiplies negative logits of tokens already there (Keskar et al., 2019);
    /// 1 changes nothing.
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            strategy: Strategy::Sample,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            num_beams: 4,
            repetition_penalty: 1.0,
            max_new_tokens: 100,
            seed: 0,
        }
    }
}

impl Options {
    /// The first value that makes no sense: the option's name, the value, and what is expected.
    pub fn mistake(&self) -> Option<(&'static str, String, &'static str)> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.temperature) {
            let expected = "a number above 0; for 0 use the strategy `greedy`";
            return Some(("temperature", self.temperature.to_string(), expected));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Some(("top_p", self.top_p.to_string(), "a number above 0, at most 1"));
        }
        if self.num_beams == 0 || self.num_beams > 64 {
            return Some(("num_beams", self.num_beams.to_string(), "1 to 64"));
        }
        if !positive(self.repetition_penalty) {
            return Some(("repetition_penalty", self.repetition_penalty.to_string(), "a number above 0"));
        }
        None
    }

    /// # Errors
    /// The first value that makes no sense, by its name.
    pub fn check(&self) -> Result<()> {
        match self.mistake() {
            None => Ok(()),
            Some((name, found, expected)) => {
                Err(Error::usage(format!("`{name}` is {found}: expected {expected}")))
            }
        }
    }
}

/// What was read of a text, and what is expected next.
#[derive(Clone, Default)]
pub struct Text {
    cache: Cache,
    /// All tokens read so far, forgotten ones included.
    pub tokens: Vec<u32>,
    /// `[V]`, of what comes next; empty before anything is read.
    pub logits: Vec<f32>,
    /// How many of the tokens the model no longer sees.
    pub forgotten: usize,
}

impl Text {
    /// Takes note of `ids`, and gives those to read: they themselves, or, when there is no room for them,
    /// the newest half of what the model holds, from an empty cache.
    fn take(&mut self, ids: &[u32], room: usize) -> Vec<u32> {
        self.tokens.extend_from_slice(ids);
        if self.cache.len() + ids.len() <= room {
            return ids.to_vec();
        }
        self.cache = Cache::default();
        let kept = self.tokens.len().min(room.div_ceil(2));
        self.forgotten = self.tokens.len() - kept;
        self.tokens[self.forgotten..].to_vec()
    }

    fn expect(&mut self, logits: &[f32]) -> Result<()> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::input("the model expects NaN as its next token")
                .help("its weights are damaged, or its training diverged: train it anew"));
        }
        self.logits = logits.to_vec();
        Ok(())
    }
}

/// A model in the middle of a text.
pub struct Session<'a> {
    model: &'a Model,
    decoder: Decoder<'a>,
    pub text: Text,
}

impl<'a> Session<'a> {
    /// A session on this many threads; they help models of some size.
    pub fn new(model: &'a Model, threads: usize) -> Self {
        Session {
            model,
            decoder: Decoder::new(&model.transformer, Team::new(threads)),
            text: Text::default(),
        }
    }

    /// Reads `ids`. When there are more than the model holds, only the newest half of its room is kept.
    /// Gives how many tokens the model no longer sees that it saw before, or that are among `ids`.
    ///
    /// # Errors
    /// An id that the model does not have, or a model whose numbers are NaN.
    pub fn feed(&mut self, ids: &[u32]) -> Result<usize> {
        let gpt = &self.model.transformer;
        // Before anything is noted of them.
        gpt.config.validate_ids(ids)?;
        if ids.is_empty() {
            return Ok(0);
        }
        let before = self.text.forgotten;
        let ids = self.text.take(ids, gpt.config.seq_len);
        let reading = Reading { cache: &mut self.text.cache, ids: &ids };
        let logits = self.decoder.read(&mut [reading])?;
        self.text.expect(&logits)?;
        Ok(self.text.forgotten - before)
    }

    /// Reads one id in each of several texts, side by side.
    fn read_each(&mut self, texts: &mut [Text], ids: &[u32]) -> Result<()> {
        let gpt = &self.model.transformer;
        gpt.config.validate_ids(ids)?;
        if texts.is_empty() {
            return Ok(());
        }
        let room = gpt.config.seq_len;
        let new: Vec<Vec<u32>> =
            texts.iter_mut().zip(ids).map(|(text, id)| text.take(&[*id], room)).collect();
        let mut readings: Vec<Reading> =
            texts.iter_mut().zip(&new).map(|(text, ids)| Reading { cache: &mut text.cache, ids }).collect();
        let logits = self.decoder.read(&mut readings)?;
        for (text, row) in texts.iter_mut().zip(logits.chunks_exact(gpt.config.vocab_size)) {
            text.expect(row)?;
        }
        Ok(())
    }
}

/// Continues `session` until an end token, `max_new_tokens`, or the listener's `Break`. Gives the new
/// tokens without the end token.
///
/// # Errors
/// When an option makes no sense, nothing was read yet, or the model's math fails.
pub fn generate(
    session: &mut Session,
    options: &Options,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    options.check()?;
    if session.text.logits.is_empty() {
        return Err(Error::input("there is nothing to continue: the prompt has no tokens"));
    }
    let chooser = Chooser::new(session.model, options);
    if options.strategy == Strategy::Beam {
        let ids = beam::search(session, &chooser, options)?;
        session.feed(&ids)?;
        for id in &ids {
            if on_token(*id).is_break() {
                break;
            }
        }
        return Ok(ids);
    }
    let mut rng = Rng::new(options.seed, "generate");
    let mut out = Vec::new();
    while out.len() < options.max_new_tokens {
        let id = match options.strategy {
            Strategy::Greedy => chooser.likeliest(&session.text),
            _ => chooser.draw(&session.text, &mut rng),
        };
        if chooser.ends(id) {
            break;
        }
        out.push(id);
        let go_on = on_token(id);
        session.feed(&[id])?;
        if go_on.is_break() {
            break;
        }
    }
    Ok(out)
}

/// [`generate`] with the text of the new tokens as it becomes certain, as it is to be put behind the
/// text of the prompt, `prompt`.
///
/// # Errors
/// As [`generate`].
pub fn stream(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let mut decoder = session.model.tokenizer.decoder();
    // The first new token is decoded behind the prompt's last, which decides about a space.
    prompt.iter().for_each(|id| drop(decoder.push(*id)));
    decoder.finish();
    let mut stopped = false;
    let ids = generate(session, options, &mut |id| {
        let go_on = decoder.push(id).map_or(ControlFlow::Continue(()), |piece| on_text(&piece));
        stopped = go_on.is_break();
        go_on
    })?;
    if let Some(piece) = decoder.finish().filter(|_| !stopped) {
        let _ = on_text(&piece);
    }
    Ok(ids)
}

/// The tokens of a prompt that a user wrote, cleaned as training text is.
///
/// # Errors
/// When it cannot be encoded.
pub fn prompt_ids(model: &Model, prompt: &str) -> Result<Vec<u32>> {
    ids_of(model, &clean::prompt(prompt))
}

/// The tokens of the beginning of a text, `<bos>` in front where the tokenizer has one.
///
/// # Errors
/// When it cannot be encoded.
pub fn ids_of(model: &Model, text: &str) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = model.tokenizer.special(Special::Bos).into_iter().collect();
    ids.extend(model.tokenizer.encode(text)?);
    Ok(ids)
}

/// What the model says behind `prompt`. A prompt that is cut to fit is warned about.
///
/// # Errors
/// As [`generate`].
pub fn text(model: &Model, prompt: &str, options: &Options, threads: usize) -> Result<String> {
    let ids = prompt_ids(model, prompt)?;
    warn_if_cut(model, &ids);
    continuation(model, &ids, options, threads)
}

/// What the model answers to a conversation. One that is cut to fit is warned about.
///
/// # Errors
/// As [`generate`] and [`chat::prompt`].
pub fn answer(model: &Model, messages: &[Message], options: &Options, threads: usize) -> Result<String> {
    let ids = chat::prompt(&model.tokenizer, messages)?;
    warn_if_cut(model, &ids);
    let text = continuation(model, &ids, options, threads)?;
    Ok(text.trim().to_string())
}

fn warn_if_cut(model: &Model, ids: &[u32]) {
    let mut all = Text::default();
    all.take(ids, model.transformer.config.seq_len);
    if all.forgotten > 0 {
        tracing::warn!("{}", cut_to_fit(model, ids.len(), all.forgotten));
    }
}

/// What is to be said when of a prompt of `tokens` tokens the first `cut` do not fit.
pub fn cut_to_fit(model: &Model, tokens: usize, cut: usize) -> String {
    let room = model.transformer.config.seq_len;
    format!("the prompt has {tokens} tokens, the model holds {room}: the first {cut} are cut")
}

/// What the model says behind `ids`, as text that can be put behind theirs.
///
/// # Errors
/// As [`generate`].
pub fn continuation(model: &Model, ids: &[u32], options: &Options, threads: usize) -> Result<String> {
    let mut session = Session::new(model, threads);
    session.feed(ids)?;
    let mut text = String::new();
    stream(&mut session, ids, options, &mut |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests;
