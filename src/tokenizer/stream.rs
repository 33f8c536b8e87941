//! Streaming decoder: ids one by one, as a model produces them, to text as soon as it is final; a character
//! whose bytes are in several tokens comes out whole.

use super::Tokenizer;

/// After this many ids without final text, the pending text comes out as it is.
const PATIENCE: usize = 64;

/// See [`Tokenizer::decoder`]. The concatenation of what [`StreamDecoder::push`] and
/// [`StreamDecoder::finish`] return is [`Tokenizer::decode`] of all ids.
#[derive(Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// The last ids whose text came out: decoders treat the first token of a text differently, so new ids are
    /// decoded after these.
    context: Vec<u32>,
    /// The pending ids, whose text has not come out.
    pending: Vec<u32>,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        StreamDecoder { tokenizer, context: Vec::new(), pending: Vec::new() }
    }

    /// The text that is final with `id`; `None` when there is none yet. Special tokens have none; an id
    /// outside the vocabulary gives U+FFFD.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.tokenizer.is_special(id) {
            return None;
        }
        if self.tokenizer.token(id).is_none() {
            return Some(self.finish().unwrap_or_default() + "\u{FFFD}");
        }
        self.pending.push(id);
        let text = self.pending_text();
        // A replacement character at the end may be the beginning of a character.
        let doubtful = text.ends_with(char::REPLACEMENT_CHARACTER) && self.pending.len() < PATIENCE;
        if doubtful { None } else { self.emit(text) }
    }

    /// The pending text: incomplete bytes at the end become U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.pending_text();
        self.emit(text)
    }

    fn emit(&mut self, text: String) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        self.context = std::mem::take(&mut self.pending);
        Some(text)
    }

    /// The text of the pending ids after the context.
    fn pending_text(&self) -> String {
        let decode = |ids: &[u32]| self.tokenizer.text_of(ids).unwrap_or_default();
        let whole = decode(&[self.context.as_slice(), &self.pending].concat());
        match whole.strip_prefix(decode(&self.context).as_str()) {
            Some(text) => text.to_string(),
            // A run of byte tokens is valid or invalid as a whole: an invalid byte changes the text before
            // it.
            None => decode(&self.pending),
        }
    }
}
