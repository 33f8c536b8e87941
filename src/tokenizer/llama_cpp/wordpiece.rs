//! WordPiece: each word is spelled in the longest tokens from its beginning, which is marked by
//! [`SPACE`]; a word that cannot be is the unknown token.

use std::sync::LazyLock;

use unicode_normalization::char::decompose_canonical;

use super::{GgufVocabulary, Ids};
use crate::base::Result;
use crate::tokenizer::classes::ranges;
use crate::tokenizer::cut::SPACE;

pub struct WordPiece {
    unknown: u32,
    lowercase: bool,
    strip_accents: bool,
    /// Bytes of the longest token.
    longest: usize,
}

impl WordPiece {
    /// # Errors
    /// When there is no unknown token.
    pub fn of(vocabulary: &GgufVocabulary) -> Result<Self> {
        let lowercase = vocabulary.lowercase.unwrap_or(true);
        Ok(WordPiece {
            unknown: vocabulary.unknown_or(100)?,
            lowercase,
            strip_accents: vocabulary.strip_accents.unwrap_or(lowercase),
            longest: vocabulary.tokens.iter().map(String::len).max().unwrap_or(0),
        })
    }

    /// Appends the ids of a text.
    pub fn encode(&self, ids: &Ids, text: &str, out: &mut Vec<u32>) {
        let mut word = String::from(SPACE);
        for c in text.chars() {
            match self.role(c) {
                Role::Dropped => {}
                Role::OfWord(c) => word.push(c),
                Role::Space => self.end_word(ids, &mut word, out),
                Role::Word(c) => {
                    self.end_word(ids, &mut word, out);
                    word.push(c);
                    self.end_word(ids, &mut word, out);
                }
            }
        }
        self.end_word(ids, &mut word, out);
    }

    fn role(&self, c: char) -> Role {
        let mut first = None;
        if self.strip_accents {
            // Of a decomposition, llama.cpp keeps the first character alone.
            decompose_canonical(c, |part| _ = first.get_or_insert(part));
        }
        let c = first.unwrap_or(c);
        if c.is_whitespace() {
            Role::Space
        } else if matches!(c, '\0' | '\u{FFFD}') || CONTROL.has(c) || self.strip_accents && MARK.has(c) {
            Role::Dropped
        } else {
            let alone = is_alone(c);
            let c = if self.lowercase { lower(c) } else { c };
            if alone { Role::Word(c) } else { Role::OfWord(c) }
        }
    }

    /// Appends the ids of a word, if it is not empty, and begins the next.
    fn end_word(&self, ids: &Ids, word: &mut String, out: &mut Vec<u32>) {
        let (start, mut at) = (out.len(), 0);
        if word.len() == SPACE.len_utf8() {
            return;
        }
        while at < word.len() {
            let ends = (at + 1..=word.len().min(at + self.longest)).rev();
            let mut found = ends.filter_map(|end| Some((end, *ids.get(word.get(at..end)?)?)));
            match found.next() {
                Some((end, id)) => {
                    out.push(id);
                    at = end;
                }
                None => {
                    out.truncate(start);
                    out.push(self.unknown);
                    break;
                }
            }
        }
        word.truncate(SPACE.len_utf8());
    }
}

/// What a character is to words.
enum Role {
    Space,
    Dropped,
    OfWord(char),
    /// A word by itself.
    Word(char),
}

/// Characters, as sorted ranges.
struct Set(Vec<(char, char)>);

impl Set {
    fn has(&self, c: char) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < c);
        self.0.get(at).is_some_and(|(first, _)| *first <= c)
    }
}

static CONTROL: LazyLock<Set> = LazyLock::new(|| Set(ranges(r"[\p{Cc}\p{Cf}\p{Co}]")));
static MARK: LazyLock<Set> = LazyLock::new(|| Set(ranges(r"\p{M}")));
static PUNCTUATION: LazyLock<Set> = LazyLock::new(|| Set(ranges(r"\p{P}")));

/// Punctuation, ASCII symbols, and CJK ideographs.
fn is_alone(c: char) -> bool {
    c.is_ascii_punctuation() || PUNCTUATION.has(c) || is_ideograph(c)
}

/// The ranges of BERT's implementations, the gap between extensions D and E included.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c), 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x2_0000..=0x2_A6DF | 0x2_A700..=0x2_B73F
        | 0x2_B740..=0x2_B81F | 0x2_B920..=0x2_CEAF | 0xF900..=0xFAFF | 0x2_F800..=0x2_FA1F)
}

/// The simple lower case, one character: that of `İ` is `i`.
fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}
