//! How to decode, and what of that is in range.

use std::collections::BTreeMap;
use std::fmt;

use super::sampler::Sampler;
use crate::base::Invalid;
use crate::model::Model;

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
    /// Continuations that [`Strategy::Beam`] follows side by side, 1 to 64.
    pub num_beams: usize,
    /// Beams are compared by the sum of their tokens' log-probabilities over their length to this power: above
    /// 0 for longer texts, below 0 for shorter ones.
    pub length_penalty: f64,
    /// Divides positive and multiplies negative logits of tokens that the sequence already has (Keskar et
    /// al., 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Added to the logits of ids before any penalty, -100 to 100; -100 bans an id, and ids of 100 are the only ones
    /// that may be chosen (`logit_bias` of OpenAI's API).
    pub logit_bias: BTreeMap<u32, f64>,
    /// Subtracted from the logits of ids that the new text has, -2 to 2 (OpenAI's API); 0 changes nothing.
    pub presence_penalty: f64,
    /// Subtracted from the logit of an id as often as the new text has it, -2 to 2 (OpenAI's API); 0 changes
    /// nothing.
    pub frequency_penalty: f64,
    pub max_new_tokens: usize,
    /// Texts that end generation: the result ends where the first to be complete begins.
    pub stop: Vec<String>,
    pub seed: u64,
    /// Of how many of the most probable ids to give the log-probability at each new token, 0 to 20. What is chosen
    /// doesn't depend on it.
    pub top_logprobs: usize,
}

/// The largest [`Options::top_logprobs`], as in OpenAI's API.
pub const MOST_TOP_LOGPROBS: usize = 20;

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
            logit_bias: BTreeMap::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_new_tokens: 100,
            stop: Vec::new(),
            seed: 0,
            top_logprobs: 0,
        }
    }
}

impl Options {
    /// # Errors
    /// The first param that is out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_filters()?;
        self.validate_beams()?;
        self.validate_penalties()?;
        if self.stop.iter().any(String::is_empty) {
            return invalid("stop", "empty", "a text of at least one character");
        }
        if self.top_logprobs > MOST_TOP_LOGPROBS {
            return invalid("top_logprobs", self.top_logprobs, &format!("0 to {MOST_TOP_LOGPROBS}"));
        }
        Ok(())
    }

    /// [`Options::validate`], and that `model` has the ids of `logit_bias` and is left something to choose.
    ///
    /// # Errors
    /// The first param that is out of range or doesn't fit.
    pub fn validate_for(&self, model: &Model) -> Result<(), Invalid> {
        self.validate()?;
        let tokens = model.tokenizer.vocab_size().min(model.transformer.config.vocab_size);
        if let Some(id) = self.logit_bias.keys().find(|id| **id as usize >= tokens) {
            let expected = format!("an id below {tokens}, the number of the model's tokens");
            return invalid("logit_bias", format_args!("for token {id}"), &expected);
        }
        if !self.logit_bias.is_empty() && !Sampler::new(model, self).may_choose() {
            let why = "leaves no token that may be chosen";
            return Err(Invalid::new("logit_bias", why).help("ban fewer, or force one that is part of texts"));
        }
        Ok(())
    }

    fn validate_filters(&self) -> Result<(), Invalid> {
        if !is_positive(self.temperature) {
            return invalid("temperature", self.temperature, "a number above 0")
                .map_err(|invalid| invalid.help("for 0 use the strategy `greedy`"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return invalid("min_p", self.min_p, "a number from 0 to 1");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top_p", self.top_p, "a number above 0, at most 1");
        }
        Ok(())
    }

    fn validate_beams(&self) -> Result<(), Invalid> {
        if !self.length_penalty.is_finite() {
            return invalid("length_penalty", self.length_penalty, "a number");
        }
        if self.num_beams == 0 || self.num_beams > 64 {
            return invalid("num_beams", self.num_beams, "1 to 64");
        }
        Ok(())
    }

    fn validate_penalties(&self) -> Result<(), Invalid> {
        if !is_positive(self.repetition_penalty) {
            return invalid("repetition_penalty", self.repetition_penalty, "a number above 0");
        }
        let openai =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        if let Some((param, value)) = openai.iter().find(|(_, value)| !(-2.0..=2.0).contains(value)) {
            return invalid(param, value, "a number from -2 to 2");
        }
        match self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
            Some((id, bias)) => {
                invalid("logit_bias", format_args!("{bias} for token {id}"), "a number from -100 to 100")
            }
            None => Ok(()),
        }
    }
}

fn is_positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

fn invalid(param: &str, found: impl fmt::Display, expected: &str) -> Result<(), Invalid> {
    Err(Invalid::new(param, format!("is {found}: expected {expected}")))
}
