//! Decoding ids one by one, as a model produces them: text comes out as soon as it is certain, and a
//! character whose bytes are spread over several tokens comes out whole.

use super::Tokenizer;

/// An unfinished UTF-8 sequence shows as at most this many replacement characters.
const UNFINISHED: usize = 3;
/// After this many ids without certain text, what there is comes out as it is.
const PATIENCE: usize = 64;

/// See [`Tokenizer::decoder`]. What [`StreamDecoder::push`] and [`StreamDecoder::finish`] return is,
/// put together, what [`Tokenizer::decode`] makes of all ids, as far as they are valid UTF-8.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// The ids behind the last text that came out: decoders treat the first token of a text
    /// otherwise, so new ids are decoded behind these.
    context: Vec<u32>,
    /// The ids whose text has not wholly come out.
    pending: Vec<u32>,
    /// Bytes of the text of `pending` that have.
    shown: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        StreamDecoder { tokenizer, context: Vec::new(), pending: Vec::new(), shown: 0 }
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
        let doubtful = match self.pending.len() {
            PATIENCE.. => 0,
            _ => {
                text.chars().rev().take(UNFINISHED).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count()
            }
        };
        if doubtful == 0 {
            return self.emit(&text);
        }
        let certain = text.len() - doubtful * char::REPLACEMENT_CHARACTER.len_utf8();
        let fresh = text.get(self.shown..certain).filter(|fresh| !fresh.is_empty())?.to_string();
        self.shown = certain;
        Some(fresh)
    }

    /// What was held back: the broken bytes at the end of a text.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.pending_text();
        self.emit(&text)
    }

    fn emit(&mut self, text: &str) -> Option<String> {
        let fresh = text.get(self.shown..).unwrap_or("").to_string();
        if !self.pending.is_empty() {
            self.context = std::mem::take(&mut self.pending);
        }
        self.shown = 0;
        Some(fresh).filter(|fresh| !fresh.is_empty())
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
