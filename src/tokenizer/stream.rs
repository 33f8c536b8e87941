//! Decoding ids one by one, as a model produces them: text comes out as soon as it is certain, and a
//! character whose bytes are spread over several tokens comes out whole.

use super::Tokenizer;

/// After this many ids without certain text, what there is comes out as it is.
const PATIENCE: usize = 64;

/// See [`Tokenizer::decoder`]. What [`StreamDecoder::push`] and [`StreamDecoder::finish`] return is,
/// put together, what [`Tokenizer::decode`] makes of all ids.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// The ids behind the last text that came out: decoders treat the first token of a text
    /// otherwise, so new ids are decoded behind these.
    context: Vec<u32>,
    /// The ids whose text has not come out.
    pending: Vec<u32>,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        StreamDecoder { tokenizer, context: Vec::new(), pending: Vec::new() }
    }

    /// The text that `id` makes certain; `None` when there is none yet. Special tokens have none; an
    /// id outside the vocabulary shows as U+FFFD.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.tokenizer.is_special(id) {
            return None;
        }
        if self.tokenizer.token(id).is_none() {
            return Some(self.finish().unwrap_or_default() + "\u{FFFD}");
        }
        self.pending.push(id);
        let text = self.pending_text();
        // What ends in a replacement character may be the beginning of a character.
        let doubtful = text.ends_with(char::REPLACEMENT_CHARACTER) && self.pending.len() < PATIENCE;
        if doubtful { None } else { self.emit(text) }
    }

    /// What was held back: the broken bytes at the end of a text.
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

    /// The text of the pending ids as it reads behind the context.
    fn pending_text(&self) -> String {
        let decode = |ids: &[u32]| self.tokenizer.text_of(ids).unwrap_or_default();
        let whole = decode(&[self.context.as_slice(), &self.pending].concat());
        match whole.strip_prefix(decode(&self.context).as_str()) {
            Some(text) => text.to_string(),
            // A run of byte tokens is valid or broken as a whole: broken, it changes what came before.
            None => decode(&self.pending),
        }
    }
}
