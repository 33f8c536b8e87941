//! Normalizes text for tokenizers: LF as line break, no control characters, Unicode NFC, no blanks at the
//! ends of lines or documents. Every change is counted.
//!
//! Cleaning is idempotent. Case, quotes, dashes and spelling are kept, since a language model should learn
//! them.

use std::borrow::Cow;
use std::ops::AddAssign;

use serde::Serialize;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Which of the optional steps are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleaning {
    pub nfc: bool,
    pub control_characters: bool,
    pub blanks: bool,
}

impl Default for Cleaning {
    fn default() -> Self {
        Cleaning { nfc: true, control_characters: true, blanks: true }
    }
}

/// How often each change was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// CR LF that became LF.
    pub crlf: u64,
    /// CR without LF that became LF.
    pub stray_cr: u64,
    /// Form feeds, vertical tabs, U+0085, U+2028 and U+2029 that became LF.
    pub other_line_breaks: u64,
    /// U+FEFF removed.
    pub byte_order_marks: u64,
    /// C0 and C1 controls other than tab and LF, and DEL, removed.
    pub control_characters: u64,
    /// Texts that were not in NFC.
    pub normalized_to_nfc: u64,
    /// Bytes of blanks removed at ends of lines, at both ends of texts, and of blank lines beyond one.
    pub blank_bytes: u64,
    /// Bytes that were not in the encoding and became U+FFFD.
    pub invalid_bytes_replaced: u64,
}

impl AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.crlf += other.crlf;
        self.stray_cr += other.stray_cr;
        self.other_line_breaks += other.other_line_breaks;
        self.byte_order_marks += other.byte_order_marks;
        self.control_characters += other.control_characters;
        self.normalized_to_nfc += other.normalized_to_nfc;
        self.blank_bytes += other.blank_bytes;
        self.invalid_bytes_replaced += other.invalid_bytes_replaced;
    }
}

/// `text` cleaned; changes are added to `changes`.
pub fn clean(text: &str, how: Cleaning, changes: &mut Changes) -> String {
    let mut text = line_breaks(text, changes);
    if how.control_characters {
        text = without_controls(text, changes);
    }
    if how.nfc {
        text = to_nfc(text, changes); // after the controls, which could keep two characters apart
    }
    if how.blanks { without_blanks(&text, changes) } else { text.into_owned() }
}

/// A user's prompt, cleaned as training text is, but with blanks kept: how a prompt ends is the user's
/// choice.
pub fn prompt(text: &str) -> String {
    clean(text, Cleaning { blanks: false, ..Cleaning::default() }, &mut Changes::default())
}

fn is_other_break(c: char) -> bool {
    matches!(c, '\u{B}' | '\u{C}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Every line break as LF, and no U+FEFF.
fn line_breaks<'a>(text: &'a str, changes: &mut Changes) -> Cow<'a, str> {
    if !text.contains(|c| c == '\r' || c == '\u{FEFF}' || is_other_break(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{FEFF}' => changes.byte_order_marks += 1,
            '\r' => {
                match chars.next_if_eq(&'\n') {
                    Some(_) => changes.crlf += 1,
                    None => changes.stray_cr += 1,
                }
                out.push('\n');
            }
            c if is_other_break(c) => {
                changes.other_line_breaks += 1;
                out.push('\n');
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn without_controls<'a>(text: Cow<'a, str>, changes: &mut Changes) -> Cow<'a, str> {
    let unwanted = |c: char| c.is_control() && c != '\n' && c != '\t';
    let count = text.chars().filter(|c| unwanted(*c)).count() as u64;
    if count == 0 {
        return text;
    }
    changes.control_characters += count;
    Cow::Owned(text.chars().filter(|c| !unwanted(*c)).collect())
}

fn to_nfc<'a>(text: Cow<'a, str>, changes: &mut Changes) -> Cow<'a, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return text;
    }
    let normal: String = text.nfc().collect();
    changes.normalized_to_nfc += u64::from(normal != text);
    Cow::Owned(normal)
}

/// No blanks at ends of lines, at most one blank line in a row, none at either end. The indent of a
/// line is kept, also that of the first.
fn without_blanks(text: &str, changes: &mut Changes) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank_lines = 0;
    for line in text.split('\n').map(str::trim_end) {
        if line.is_empty() {
            blank_lines += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if blank_lines > 0 { "\n\n" } else { "\n" });
        }
        out.push_str(line);
        blank_lines = 0;
    }
    changes.blank_bytes += (text.len() - out.len()) as u64;
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> (String, Changes) {
        let mut changes = Changes::default();
        (clean(text, Cleaning::default(), &mut changes), changes)
    }

    #[test]
    fn each_change_is_made_and_counted() {
        let (text, changes) = all("\u{FEFF}  one\r\ntwo\rthree\u{C}fo\u{7}ur  \n\n\n\nCafe\u{301}\t\n\n");
        assert_eq!(text, "  one\ntwo\nthree\nfour\n\nCafé");
        let expected = Changes {
            crlf: 1,
            stray_cr: 1,
            other_line_breaks: 1,
            byte_order_marks: 1,
            control_characters: 1,
            normalized_to_nfc: 1,
            blank_bytes: 7,
            invalid_bytes_replaced: 0,
        };
        assert_eq!(changes, expected);
    }

    #[test]
    fn what_is_switched_off_is_left_alone() {
        let off = Cleaning { nfc: false, control_characters: false, blanks: false };
        let text = "e\u{301}\u{7} \n\n\n\n";
        assert_eq!(clean(text, off, &mut Changes::default()), text);
    }

    #[test]
    fn a_prompt_keeps_its_blanks() {
        assert_eq!(prompt("\u{FEFF}ou\u{300}\r\n\u{7} "), "où\n ");
    }

    #[test]
    fn a_control_character_does_not_keep_an_accent_from_its_letter() {
        assert_eq!(all("e\u{0}\u{301}").0, "é");
    }

    /// Strings rich in what cleaning touches.
    fn messy() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\r".to_string()),
            Just("\r\n".to_string()),
            Just("\n\n".to_string()),
            Just(" \t".to_string()),
            Just("\u{0}".to_string()),
            Just("\u{FEFF}".to_string()),
            Just("e\u{301}".to_string()),
            Just("\u{1100}\u{1161}".to_string()),
            Just("\u{2028}".to_string()),
            "\\PC{0,4}",
            any::<char>().prop_map(String::from),
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent_nfc_and_without_cr(text in messy()) {
            let (once, _) = all(&text);
            let (twice, changes) = all(&once);
            prop_assert_eq!(&once, &twice);
            prop_assert_eq!(changes, Changes::default());
            prop_assert!(unicode_normalization::is_nfc(&once));
            prop_assert!(!once.contains(|c: char| c == '\r' || (c.is_control() && c != '\n' && c != '\t')));
            prop_assert!(!once.contains("\n\n\n") && !once.starts_with('\n') && !once.ends_with(char::is_whitespace));
        }

        #[test]
        fn no_visible_ascii_is_lost(text in messy()) {
            let visible = |t: &str| t.chars().filter(char::is_ascii_digit).collect::<String>();
            prop_assert_eq!(visible(&all(&text).0), visible(&text));
        }
    }
}
