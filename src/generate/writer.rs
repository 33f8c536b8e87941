//! The result of a continuation as it grows: tokens, their log-probabilities, and text up to a stop string.

use super::stop::Stops;
use super::{Continuation, Finish, Options, Token};
use crate::model::Model;
use crate::tokenizer::StreamDecoder;

/// How many of a prompt's last tokens what follows is decoded behind: more than a decoder waits for the rest of a
/// character.
const CONTEXT: usize = 128;

#[derive(Clone)]
pub struct Writer {
    decoder: StreamDecoder,
    stops: Stops,
    /// Its text is what no further token changes.
    written: Continuation,
}

impl Writer {
    /// Of text that follows `prompt`.
    pub fn new(model: &Model, prompt: &[u32], options: &Options) -> Self {
        let mut decoder = model.tokenizer.decoder();
        // Whether the first new token begins with a space depends on the prompt's last token.
        prompt[prompt.len().saturating_sub(CONTEXT)..].iter().for_each(|id| drop(decoder.push(*id)));
        decoder.finish();
        let (text, tokens, logprobs, tops) = Default::default();
        let written = Continuation { text, tokens, logprobs, finish: Finish::Length, tops, end: None };
        Writer { decoder, stops: Stops::new(&options.stop), written }
    }

    pub fn tokens(&self) -> &[u32] {
        &self.written.tokens
    }

    /// What there is so far; why it ends is not known yet.
    pub fn written(&self) -> &Continuation {
        &self.written
    }

    /// Appends a token, and gives why the text ends with it, if it does.
    pub fn push(&mut self, token: Token, most: usize) -> Option<Finish> {
        let Continuation { text, tokens, logprobs, tops, .. } = &mut self.written;
        tokens.push(token.id);
        logprobs.push(token.logprob);
        tops.push(token.top);
        if let Some(piece) = self.decoder.push(token.id) {
            *text += &self.stops.push(&piece);
        }
        let full = (tokens.len() >= most).then_some(Finish::Length);
        self.stops.met().then_some(Finish::Stop).or(full)
    }

    /// Keeps the token that ends the text.
    pub fn close(&mut self, token: Token) {
        self.written.end = Some(token);
    }

    /// The result, with the text that was held back where no stop string was met.
    pub fn end(mut self, finish: Finish) -> Continuation {
        let rest = self.decoder.finish().filter(|_| !self.stops.met());
        let text = &mut self.written.text;
        *text += &self.stops.push(&rest.unwrap_or_default());
        *text += &self.stops.finish();
        // A stop string may end with the bytes of a character that is not whole.
        self.written.finish = if self.stops.met() { Finish::Stop } else { finish };
        self.written
    }
}
