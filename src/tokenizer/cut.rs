//! The two common ways of cutting text into words, GPT-2's and ours for SentencePiece-style models, many
//! times as fast as by the regular expressions that define them: one pass over the characters, with the
//! table of [`Classes`].
//!
//! Tests compare the words with the library's.

use std::ops::Range;

use serde_json::Value;

use super::classes::{Class, Classes, MARKED, PLAIN};
use super::{byte_of_symbol, byte_symbol};

/// U+2581, which stands for a space.
pub const SPACE: char = '▁';

/// Where SentencePiece-style text may be cut: contractions, letters, numbers, other signs, white
/// space, as GPT-2 does it, with marks among the letters and `<` by itself.
///
/// GPT-2's, which the library has built into its `ByteLevel`, is
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
pub const PIECES: &str =
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}+|<| ?[^\s\p{L}\p{M}\p{N}<]+|\s+(?!\S)|\s+";

/// Bytes of the parts of a long text that are encoded in parallel.
const PART_BYTES: usize = 128 << 10;

/// A pre-tokenizer that this module supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// GPT-2's words, each byte as its symbol.
    Bytes,
    /// [`PIECES`], each space as [`SPACE`].
    Pieces,
}

impl Cut {
    /// The pre-tokenizer of a `tokenizer.json`; `None` for another one, or when there is a normalizer.
    pub fn of(json: &Value) -> Option<Cut> {
        if !json.get("normalizer").is_none_or(Value::is_null) {
            return None;
        }
        let how = json.get("pre_tokenizer")?;
        if how["type"] == "ByteLevel" {
            let plain = how["add_prefix_space"] == false && how["use_regex"].as_bool().unwrap_or(true);
            return plain.then_some(Cut::Bytes);
        }
        let steps = how["pretokenizers"].as_array()?;
        let [split, space] = steps.as_slice() else { return None };
        let ours = split["pattern"]["Regex"] == PIECES
            && split["behavior"] == "Isolated"
            && split["invert"] == false
            && space["type"] == "Metaspace"
            && space["replacement"] == SPACE.to_string()
            && space["prepend_scheme"] == "never"
            && space["split"] == false;
        ours.then_some(Cut::Pieces)
    }

    /// Calls `each` with the range in `text` of every word of `part`, which must begin and end at words'
    /// boundaries, as those of [`Cut::parts`] do.
    ///
    /// # Errors
    /// An error of `each`.
    pub fn words<E>(
        self,
        text: &str,
        part: Range<usize>,
        mut each: impl FnMut(Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let classes = match self {
            Cut::Bytes => &*PLAIN,
            Cut::Pieces => &*MARKED,
        };
        let mut at = part.start;
        while at < part.end {
            let end = end_of_word(classes, text, at);
            each(at..end)?;
            at = end;
        }
        Ok(())
    }

    /// A word in the vocabulary's spelling.
    pub fn spell(self, word: &str) -> String {
        match self {
            Cut::Bytes => word.bytes().map(byte_symbol).collect(),
            Cut::Pieces => word.chars().map(|c| if c == ' ' { SPACE } else { c }).collect(),
        }
    }

    /// A text that [`Cut::spell`] spells as this word, and that therefore has the same ids.
    pub fn unspell(self, word: &str) -> String {
        match self {
            Cut::Bytes => {
                let bytes: Vec<u8> = word.chars().filter_map(byte_of_symbol).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Cut::Pieces => word.replace(SPACE, " "),
        }
    }

    /// Cuts a long text where a blank follows something else: every pre-tokenizer begins a word there.
    pub fn parts(self, text: &str) -> Vec<Range<usize>> {
        let bytes = text.as_bytes();
        let mut parts = Vec::new();
        let mut start = 0;
        while bytes.len() - start > PART_BYTES {
            let begins_word =
                |i: &usize| matches!(bytes[*i], b' ' | b'\n') && bytes[*i - 1].is_ascii_graphic();
            let Some(end) = (start + PART_BYTES..bytes.len()).find(begins_word) else { break };
            parts.push(start..end);
            start = end;
        }
        parts.push(start..bytes.len());
        parts
    }
}

/// The end of the word that begins at `start`: the alternatives of the pattern in their order.
#[inline]
fn end_of_word(classes: &Classes, text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let (class, len) = classes.at(text, start);
    let next = start + len;
    match class {
        Class::Alone => next,
        Class::Blank => {
            if bytes[start] == b' ' && next < bytes.len() {
                let (word, len) = classes.at(text, next);
                if word != Class::Blank && word != Class::Alone {
                    return classes.run(text, next + len, word);
                }
            }
            end_of_blanks(classes, text, start)
        }
        _ => match bytes[start] {
            b'\'' => contraction(&bytes[next..]).map(|len| next + len),
            _ => None,
        }
        .unwrap_or_else(|| classes.run(text, next, class)),
    }
}

/// `\s+(?!\S)|\s+`: of several blanks before a word, the last belongs to the word.
fn end_of_blanks(classes: &Classes, text: &str, start: usize) -> usize {
    let end = classes.run(text, start, Class::Blank);
    let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
    if end < text.len() && end - last > start { end - last } else { end }
}

/// The length of a contraction after its apostrophe.
fn contraction(rest: &[u8]) -> Option<usize> {
    match rest {
        [b's' | b't' | b'm' | b'd', ..] => Some(1),
        [b'l', b'l', ..] | [b'v' | b'r', b'e', ..] => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use crate::tokenizer::train::{Algorithm, form};

    fn quick(cut: Cut, text: &str) -> Vec<String> {
        words_of(cut, text, 0..text.len())
    }

    fn words_of(cut: Cut, text: &str, part: Range<usize>) -> Vec<String> {
        let mut words = Vec::new();
        let all: Result<(), ()> = cut.words(text, part, |word| {
            words.push(cut.spell(&text[word]));
            Ok(())
        });
        all.unwrap();
        words
    }

    fn slow(algorithm: Algorithm, text: &str) -> Vec<String> {
        let model = form::word_level(&["<unk>".to_string()], "<unk>");
        let library = form::Form::of(algorithm, false).library(model, &[]).unwrap();
        let mut cut = PreTokenizedString::from(text);
        library.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::None);
        splits.into_iter().map(|(word, _, _)| word.to_string()).filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn the_forms_that_we_write_are_known() {
        for (algorithm, cut) in [
            (Algorithm::ByteBpe, Some(Cut::Bytes)),
            (Algorithm::SentencepieceBpe, Some(Cut::Pieces)),
            (Algorithm::Unigram, Some(Cut::Pieces)),
            (Algorithm::Word, None),
            (Algorithm::Char, None),
        ] {
            let form = form::Form::of(algorithm, false);
            let json = json!({"normalizer": form.normalizer, "pre_tokenizer": form.pre_tokenizer});
            assert_eq!(Cut::of(&json), cut, "{algorithm:?}");
            let lower = json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": form.pre_tokenizer});
            assert_eq!(Cut::of(&lower), None);
        }
    }

    #[test]
    fn the_last_blank_goes_with_the_word() {
        assert_eq!(quick(Cut::Bytes, "a  b\n\nc d  "), ["a", "Ġ", "Ġb", "Ċ", "Ċ", "c", "Ġd", "ĠĠ"]);
        assert_eq!(quick(Cut::Pieces, " <user> it's"), ["▁", "<", "user", ">", "▁it", "'s"]);
    }

    #[test]
    fn the_words_of_parts_are_those_of_the_whole() {
        let text = "It's  <one> word,\n\n  and\u{3000}an other: \u{A0}é e\u{301} 12 ".repeat(20_000);
        for cut in [Cut::Bytes, Cut::Pieces] {
            let parts = cut.parts(&text);
            assert!(parts.len() > 5 && parts.windows(2).all(|w| w[0].end == w[1].start));
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, text.len()));
            let of_parts: Vec<String> =
                parts.into_iter().flat_map(|part| words_of(cut, &text, part)).collect();
            assert_eq!(of_parts, quick(cut, &text));
        }
        assert_eq!(Cut::Bytes.parts(&"a".repeat(1 << 20)), [0..1 << 20], "nowhere to cut");
        assert_eq!(Cut::Bytes.parts(""), [0..0]);
    }

    proptest! {
        #[test]
        fn the_words_are_those_of_the_library(text in prop_oneof![
            any::<String>(),
            "( |  |\n|\t|\r|\u{85}|\u{A0}|\u{3000}|[a-z]{1,4}|[0-9]|'s|'ll|'v|'|<|>|[.,]|é|e\u{301}|中|😀|Ⅷ|ⓐ|\u{200d}|\u{1F}){0,40}",
        ]) {
            prop_assert_eq!(quick(Cut::Bytes, &text), slow(Algorithm::ByteBpe, &text));
            prop_assert_eq!(quick(Cut::Pieces, &text), slow(Algorithm::Unigram, &text));
        }
    }
}
