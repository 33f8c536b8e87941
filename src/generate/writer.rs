//! The result of a continuation as it grows: tokens, their log-probabilities, and text up to a stop string.

use super::stop::Stops;
use super::{Continuation, Finish, Options};
use crate::model::Model;
use crate::tokenizer::StreamDecoder;

#[derive(Clone)]
pub struct Writer {
    decoder: StreamDecoder,
    stops: Stops,
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
    text: String,
}

impl Writer {
    /// Of text that follows `prompt`.
    pub fn new(model: &Model, prompt: &[u32], options: &Options) -> Self {
        let mut decoder = model.tokenizer.decoder();
        // Whether the first new token begins with a space depends on the prompt's last token.
        prompt.iter().for_each(|id| drop(decoder.push(*id)));
        decoder.finish();
        let stops = Stops::new(&options.stop);
        Writer { decoder, stops, tokens: Vec::new(), logprobs: Vec::new(), text: String::new() }
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The text that no further token changes.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Appends a token, and gives why the text ends with it, if it does.
    pub fn push(&mut self, id: u32, logprob: f64, most: usize) -> Option<Finish> {
        self.tokens.push(id);
        self.logprobs.push(logprob);
        if let Some(piece) = self.decoder.push(id) {
            self.text += &self.stops.push(&piece);
        }
        let full = (self.tokens.len() >= most).then_some(Finish::Length);
        self.stops.met().then_some(Finish::Stop).or(full)
    }

    /// The result, with the text that was held back where no stop string was met.
    pub fn end(mut self, finish: Finish) -> Continuation {
        let rest = self.decoder.finish().filter(|_| !self.stops.met());
        self.text += &self.stops.push(&rest.unwrap_or_default());
        self.text += &self.stops.finish();
        // A stop string may end with the bytes of a character that is not whole.
        let finish = if self.stops.met() { Finish::Stop } else { finish };
        Continuation { text: self.text, tokens: self.tokens, logprobs: self.logprobs, finish }
    }
}
