//! The tokens of a text for near-duplicate detection: its words, and meaningful signs.
//!
//! "7 + 2" and "7 - 2" have the same words, and so have "I liked it 🙂" and "I liked it 🙁": in long texts
//! that differ in one of them, the sets of word n-grams hardly differ. So the sequence of digits, operators
//! and emoji has a hash of its own and must be equal. The price is that two editions of a text that differ
//! in a number, such as a page number, are both kept.
//!
//! Punctuation and typography (hyphens, quotes, commas, bullets of lists) do not count.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

use crate::base::rng::mix;

/// The tokens of a text, as hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Words in lower case and meaningful signs, in order.
    pub hashes: Vec<u64>,
    /// A hash of the sequence of words with a digit and of meaningful signs.
    pub signs: u64,
}

/// A run of one sign, such as a rule of `=`, counts as at most this many.
const LONGEST_RUN: usize = 3;

impl Tokens {
    /// The tokens of `text`.
    pub fn of(text: &str) -> Self {
        let mut tokens = Tokens::default();
        let mut before = Before { digit: false, line: true, run: (' ', 0) };
        let mut at = 0;
        while at < text.len() {
            let (word, digit) = tokens.word(text, at);
            if word > at {
                before = Before { digit, line: false, run: (' ', 0) };
                at = word;
                continue;
            }
            let c = char_at(text, at);
            at += c.len_utf8();
            if c == '\n' {
                before = Before { digit: false, line: true, run: (' ', 0) };
            } else if !c.is_whitespace() {
                let sign = before.meaning_of(c, &text[at..]);
                before.pass(c);
                if let Some(sign) = sign.filter(|_| before.run.1 <= LONGEST_RUN) {
                    tokens.sign(mix(lower_case_hash(FNV_OFFSET, sign)));
                }
            }
        }
        tokens
    }

    /// The end of the word, a run of letters and digits, that begins at `at`, and whether it ends with a
    /// digit; `at` when none begins there.
    fn word(&mut self, text: &str, mut at: usize) -> (usize, bool) {
        let (start, mut hash) = (at, FNV_OFFSET);
        let (mut last, mut digit) = (false, false);
        while at < text.len() {
            let c = char_at(text, at);
            if !c.is_alphanumeric() {
                break;
            }
            hash = lower_case_hash(hash, c);
            last = c.is_numeric();
            digit |= last;
            at += c.len_utf8();
        }
        match at > start {
            true if digit => self.sign(mix(hash)),
            true => self.hashes.push(mix(hash)),
            false => {}
        }
        (at, last)
    }

    fn sign(&mut self, hash: u64) {
        self.hashes.push(hash);
        self.signs = mix(self.signs ^ hash);
    }
}

/// What precedes a sign, blanks aside.
struct Before {
    digit: bool,
    /// Nothing else in this line.
    line: bool,
    /// The sign before and how often it stood in a row.
    run: (char, usize),
}

impl Before {
    fn pass(&mut self, c: char) {
        let times = if self.run.0 == c { self.run.1 + 1 } else { 1 };
        *self = Before { digit: false, line: false, run: (c, times) };
    }

    /// The sign that `c`, which is followed by `rest`, counts as; `None` when it has no meaning.
    fn meaning_of(&self, c: char, rest: &str) -> Option<char> {
        let blank = rest.starts_with([' ', '\t', '\u{A0}']);
        let digit = || rest.trim_start_matches([' ', '\t', '\u{A0}']).starts_with(char::is_numeric);
        match c {
            '*' | '/' | '^' | '%' => Some(c).filter(|_| self.digit || digit()),
            '-' | '\u{2010}'..='\u{2015}' => Some('-').filter(|_| self.digit || digit()),
            '\u{2212}' => Some('-'),
            '+' | '\u{25A0}'..='\u{25FF}' | '\u{2794}'..='\u{27BE}' if self.line && blank && !digit() => None,
            '+' | '<' | '=' | '>' | '|' | '~' | '$' => Some(c),
            _ if c.is_ascii() => None,
            '\u{2016}'..='\u{2043}' => None, // quotes and the like, before they are looked up
            _ => is_symbol(c).then_some(c),
        }
    }
}

/// Mathematical signs, currencies, emoji with their skin tones, flags, and other symbols.
fn is_symbol(c: char) -> bool {
    static SYMBOLS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| {
        let symbols = r"[\p{Sm}\p{Sc}\p{So}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}]";
        match regex_syntax::parse(symbols).expect("our own pattern").kind() {
            HirKind::Class(Class::Unicode(class)) => class.iter().map(|r| (r.start(), r.end())).collect(),
            other => unreachable!("a class of characters, not {other:?}"),
        }
    });
    let after = SYMBOLS.partition_point(|(first, _)| *first <= c);
    after > 0 && c <= SYMBOLS[after - 1].1
}

/// The character that begins at `at`; most are ASCII, and need no decoding.
#[inline]
fn char_at(text: &str, at: usize) -> char {
    match text.as_bytes()[at] {
        byte if byte.is_ascii() => char::from(byte),
        _ => text[at..].chars().next().unwrap_or_default(),
    }
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;

/// FNV-1a over the lower case of `c`.
#[inline]
fn lower_case_hash(hash: u64, c: char) -> u64 {
    let add = |hash: u64, c: char| (hash ^ u64::from(c)).wrapping_mul(0x0100_0000_01B3);
    match c.is_ascii() {
        true => add(hash, c.to_ascii_lowercase()),
        false => c.to_lowercase().fold(hash, add),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_carry_the_meaning_tell_texts_apart() {
        let pairs = [
            ("7 + 2 = 9 and 8 > 3.", "7 - 2 = 9 and 8 < 3."),
            ("I liked the soup 🙂", "I liked the soup 🙁"),
            ("Thumbs up 👍🏻!", "Thumbs up 👍🏿!"),
            ("We met in room 12", "We met in room 13"),
            ("It costs €5", "It costs £5"),
            ("a ≤ b", "a ≥ b"),
            ("6*3", "6/3"),
            ("7\n- 2\n= 9", "7\n+ 2\n= 9"),
            ("under -5 degrees", "under 5 degrees"),
            ("5 % of it", "5 of it"),
            ("🇳🇴 won", "🇸🇪 won"),
            ("x == 1", "x = 1"),
        ];
        for (a, b) in pairs {
            assert_ne!(Tokens::of(a).signs, Tokens::of(b).signs, "{a} | {b}");
        }
    }

    #[test]
    fn signs_that_only_set_the_text_do_not_count() {
        let pairs = [
            ("a well-known, old 'song'", "A well known old “song”…"),
            ("- apples\n- pears", "* apples\n• pears"),
            ("+ apples\n■ pears", "– apples\n➤ pears"),
            ("from 1914-1918", "from 1914 – 1918"),
            ("Title\n=====", "Title\n========="),
            ("*so* _it_ was (they say)", "so it was, they say"),
        ];
        for (a, b) in pairs {
            assert_eq!(Tokens::of(a), Tokens::of(b), "{a} | {b}");
        }
        assert_eq!(Tokens::of(" … \n—"), Tokens::default());
    }
}
