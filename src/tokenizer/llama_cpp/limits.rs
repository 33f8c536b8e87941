//! What llama.cpp's rules cannot express, so that its ids differ for some texts.

use serde_json::Value;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::{Encoder, GgufVocabulary, VocabularyModel};
use crate::base::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::cut::{Cut, SPACE};

/// A reason why a text has other ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub reason: &'static str,
    /// What to do about it.
    pub help: &'static str,
}

const COMPOSED: Limit = Limit {
    reason: "llama.cpp does not compose characters (NFC), which this tokenizer does",
    help: "normalize the text to NFC",
};
const CUT: Limit = Limit {
    reason: "llama.cpp does not cut text into words before it looks for tokens, which this tokenizer does",
    help: "use a tokenizer of `algorithm: byte_bpe`, which llama.cpp cuts in the same way",
};
const BYTES: Limit = Limit {
    reason: "llama.cpp's unigram models have no tokens for single bytes: a character without a piece is unknown",
    help: "train the tokenizer with `character_coverage: 1`, or use `algorithm: byte_bpe`",
};
const MARK: Limit = Limit {
    reason: "llama.cpp's WordPiece marks the beginning of a word by `▁`, which the text has",
    help: "remove the character from the text, or use a tokenizer of `algorithm: byte_bpe`",
};
const BLANK: Limit = Limit {
    reason: "llama.cpp's WordPiece ends a word at vertical tabs, form feeds and U+0085, which others drop",
    help: "replace these characters in the text by spaces",
};
const CASE: Limit = Limit {
    reason: "llama.cpp's WordPiece makes one character of each when it lowers case or strips accents",
    help: "use a tokenizer of `algorithm: byte_bpe`",
};

/// Finds the limits of a tokenizer.
pub struct Limits<'a> {
    vocabulary: &'a GgufVocabulary,
    encoder: &'a Encoder<'a>,
    composes: bool,
    cut: Option<Cut>,
    byte_fallback: bool,
}

impl<'a> Limits<'a> {
    pub fn of(
        vocabulary: &'a GgufVocabulary,
        encoder: &'a Encoder<'a>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let json: Value = serde_json::from_slice(tokenizer.json())
            .map_err(|e| Error::bug(format!("the tokenizer's own JSON cannot be read: {e}")))?;
        Ok(Limits {
            vocabulary,
            encoder,
            composes: json["normalizer"].to_string().contains("\"NFC\""),
            cut: Cut::of(&json).filter(|cut| *cut == Cut::Pieces),
            byte_fallback: json["model"]["byte_fallback"] == true,
        })
    }

    /// The limit that explains why a text has not the ids `own` in llama.cpp.
    pub fn find(&self, text: &str, own: &[u32]) -> Option<Limit> {
        let has = |which: fn(char) -> bool| text.contains(which);
        let v = self.vocabulary;
        match v.model {
            VocabularyModel::Bpe => (self.composes && !is_nfc(text)).then_some(COMPOSED),
            VocabularyModel::Unigram if self.byte_fallback && self.has_unknown(text) => Some(BYTES),
            VocabularyModel::Spm | VocabularyModel::Unigram => self.is_of_words(text, own).then_some(CUT),
            VocabularyModel::WordPiece if has(|c| c == SPACE) => Some(MARK),
            VocabularyModel::WordPiece if has(|c| matches!(c, '\x0B' | '\x0C' | '\u{85}')) => Some(BLANK),
            VocabularyModel::WordPiece => {
                let lowers = v.lowercase != Some(false) && has(|c| c.to_lowercase().count() > 1);
                let strips = v.strip_accents.or(v.lowercase) != Some(false) && text.nfd().ne(text.chars());
                (lowers || strips).then_some(CASE)
            }
        }
    }

    fn has_unknown(&self, text: &str) -> bool {
        let has_piece = |c: char| self.encoder.has_piece(if c == ' ' { SPACE } else { c });
        !text.chars().all(has_piece)
    }

    /// Whether llama.cpp gives these ids to the words one by one.
    fn is_of_words(&self, text: &str, own: &[u32]) -> bool {
        let mut ids = Vec::new();
        let mut words = |cut: Cut| {
            cut.words(text, 0..text.len(), |word| {
                self.encoder.encode(&text[word]).map(|of_word| ids.extend(of_word))
            })
        };
        self.cut.is_some_and(|cut| words(cut).is_ok()) && ids == own
    }
}
