//! The words of a text for comparison: lower case, without punctuation and white space, as in appendix C of
//! Brown et al. 2020 (GPT-3).
//!
//! A word is a run of letters and digits with their accents, in NFC. An apostrophe between two of its letters
//! is left out and does not end it: "don’t" and "dont" are one word. An arithmetic sign between two numbers is
//! a word of its own, since "7 + 5" and "7 - 5" are different questions.

use std::iter::Peekable;
use std::ops::Range;
use std::str::CharIndices;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Calls `found` with each word of `text`, in order, and the bytes that it stands at.
pub fn each_word(text: &str, mut found: impl FnMut(&str, Range<usize>)) {
    let mut chars = text.char_indices().peekable();
    let mut word = String::new();
    let mut after_number = false;
    while let Some((at, c)) = chars.next() {
        if c.is_alphanumeric() {
            let end = take_word(c, at, &mut chars, &mut word);
            after_number = text[..end].ends_with(char::is_numeric);
            found(&word, at..end);
        } else if !c.is_whitespace() {
            let rest = &text[at + c.len_utf8()..];
            if after_number && is_arithmetic(c) && rest.trim_start().starts_with(char::is_numeric) {
                found(sign(c), at..at + c.len_utf8());
            }
            after_number = false;
        }
    }
}

/// The words of `text`.
#[cfg(test)]
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    each_word(text, |word, _| words.push(word.to_string()));
    words
}

/// Puts the word that begins with `first` at byte `at` into `word`; gives the byte where it ends.
fn take_word(first: char, at: usize, chars: &mut Peekable<CharIndices>, word: &mut String) -> usize {
    word.clear();
    word.extend(first.to_lowercase());
    let mut end = at + first.len_utf8();
    while let Some(&(at, c)) = chars.peek() {
        if c.is_alphanumeric() || is_combining_mark(c) {
            word.extend(c.to_lowercase());
        } else if !(is_apostrophe(c) && is_followed_by_letter(chars)) {
            break;
        }
        end = at + c.len_utf8();
        chars.next();
    }
    if !word.is_ascii() && is_nfc_quick(word.chars()) != IsNormalized::Yes {
        *word = word.nfc().collect();
    }
    end
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}' | '\u{2BC}')
}

/// Whether a letter stands behind the next character.
fn is_followed_by_letter(chars: &Peekable<CharIndices>) -> bool {
    chars.clone().nth(1).is_some_and(|(_, c)| c.is_alphabetic())
}

fn is_arithmetic(c: char) -> bool {
    matches!(c, '+' | '-' | '*' | '/' | '^' | '=' | '<' | '>' | '\u{D7}' | '\u{F7}' | '\u{2212}')
}

/// The one spelling of an arithmetic sign.
fn sign(c: char) -> &'static str {
    match c {
        '+' => "+",
        '*' | '\u{D7}' => "*",
        '/' | '\u{F7}' => "/",
        '^' => "^",
        '=' => "=",
        '<' => "<",
        '>' => ">",
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_white_space_do_not_count() {
        assert_eq!(words("  “Don’t”, she\n\nsaid: DONT-go!"), ["dont", "she", "said", "dont", "go"]);
        assert_eq!(words("the dogs' tails, 'twas rock 'n' roll"), words("the dogs tails twas rock n roll"));
        assert_eq!(words("Cafe\u{301} ÜBER"), ["café", "über"]);
        assert_eq!(words(" … "), [""; 0]);
    }

    #[test]
    fn a_sign_between_numbers_is_a_word() {
        assert_eq!(words("7 + 5 = 12"), ["7", "+", "5", "=", "12"]);
        assert_eq!(words("7\u{2212}5, 3×4"), ["7", "-", "5", "3", "*", "4"]);
        assert_eq!(
            words("well-known - a list: - 7, and/or 8."),
            ["well", "known", "a", "list", "7", "and", "or", "8"]
        );
    }

    #[test]
    fn ranges_are_those_of_the_words() {
        let text = "Ça va? It’s 5 + 6.";
        let mut found = Vec::new();
        each_word(text, |_, range| found.push(&text[range]));
        assert_eq!(found, ["Ça", "va", "It’s", "5", "+", "6"]);
    }
}
