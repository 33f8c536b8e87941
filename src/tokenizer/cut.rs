//! The two common ways of cutting text into words, GPT-2's and ours for SentencePiece-style models,
//! several times as fast as in the library, which tracks where each character came from.
//!
//! Both patterns end in `\s+(?!\S)|\s+`; the look-ahead, which alone makes them slow, is done by
//! hand. Tests hold the words to those of the library.

use std::sync::LazyLock;

use fancy_regex::Regex;
use serde_json::Value;

use super::byte_symbol;

/// U+2581, which stands for a space.
pub const SPACE: char = '▁';

/// Where SentencePiece-style text may be cut: contractions, letters, numbers, other signs, white
/// space, as GPT-2 does it, with marks among the letters and `<` by itself.
pub const PIECES: &str =
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}+|<| ?[^\s\p{L}\p{M}\p{N}<]+|\s+(?!\S)|\s+";

/// Of GPT-2; the library has it built into its `ByteLevel`.
const BYTES: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LOOK_AHEAD: &str = r"\s+(?!\S)|";

static BYTES_RE: LazyLock<Regex> = LazyLock::new(|| compile(BYTES));
static PIECES_RE: LazyLock<Regex> = LazyLock::new(|| compile(PIECES));
static SYMBOLS: LazyLock<[char; 256]> = LazyLock::new(|| std::array::from_fn(|b| byte_symbol(b as u8)));

fn compile(pattern: &str) -> Regex {
    Regex::new(&pattern.replace(LOOK_AHEAD, "")).expect("our own pattern")
}

/// A way of cutting that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// GPT-2's words, each byte as its symbol.
    Bytes,
    /// [`PIECES`], each space as [`SPACE`].
    Pieces,
}

impl Cut {
    /// The way that a `tokenizer.json` asks for; `None` when it is another, or text is changed or
    /// searched for added tokens before it is cut.
    pub fn of(json: &Value) -> Option<Cut> {
        let added = json.get("added_tokens").and_then(Value::as_array);
        let all_special = added.into_iter().flatten().all(|t| t["special"] == true);
        if !json.get("normalizer").is_none_or(Value::is_null) || !all_special {
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

    /// Calls `each` with every word of `text`, as the model is to see it.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn words<E>(self, text: &str, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let regex = match self {
            Cut::Bytes => &*BYTES_RE,
            Cut::Pieces => &*PIECES_RE,
        };
        let mut at = 0;
        let mut word = String::new();
        // Without look-around nothing is tried twice, and so nothing can take too long and fail.
        while let Some(found) = regex.find_from_pos(text, at).expect("a plain pattern") {
            at = end_of(text, found.start(), found.end());
            word.clear();
            self.spell(&text[found.start()..at], &mut word);
            each(&word)?;
        }
        Ok(())
    }

    fn spell(self, word: &str, out: &mut String) {
        match self {
            Cut::Bytes => out.extend(word.bytes().map(|b| SYMBOLS[b as usize])),
            Cut::Pieces => out.extend(word.chars().map(|c| if c == ' ' { SPACE } else { c })),
        }
    }
}

/// Where a match ends once `\s+(?!\S)` is reckoned with: of several blanks before a word, the last
/// is left to the word.
fn end_of(text: &str, start: usize, end: usize) -> usize {
    let Some(last) = text[start..end].chars().next_back().filter(|c| c.is_whitespace()) else { return end };
    let before = end - last.len_utf8();
    if before > start && end < text.len() { before } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use crate::tokenizer::train::{Algorithm, form};

    fn quick(cut: Cut, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let all: Result<(), ()> = cut.words(text, |word| {
            words.push(word.to_string());
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
            let added = json!({"pre_tokenizer": form.pre_tokenizer, "added_tokens": [{"special": false}]});
            assert_eq!(Cut::of(&added), None);
        }
    }

    #[test]
    fn the_last_blank_goes_with_the_word() {
        assert_eq!(quick(Cut::Bytes, "a  b\n\nc d  "), ["a", "Ġ", "Ġb", "Ċ", "Ċ", "c", "Ġd", "ĠĠ"]);
        assert_eq!(quick(Cut::Pieces, " <user> it's"), ["▁", "<", "user", ">", "▁it", "'s"]);
    }

    proptest! {
        #[test]
        fn the_words_are_those_of_the_library(text in prop_oneof![
            any::<String>(),
            "( |  |\n|\t|\u{A0}|\u{3000}|[a-z]{1,4}|[0-9]|'s|'|<|>|[.,]|é|e\u{301}|中|😀|Ⅷ|ⓐ|\u{200d}){0,40}",
        ]) {
            prop_assert_eq!(quick(Cut::Bytes, &text), slow(Algorithm::ByteBpe, &text));
            prop_assert_eq!(quick(Cut::Pieces, &text), slow(Algorithm::Unigram, &text));
        }
    }
}
