//! Makes untrusted text safe to print.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with control characters other than line break and tab escaped as `\x1b`, so that a terminal shows
/// rather than interprets them.
pub fn visible(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) {
            let written = write!(out, "\\x{:02x}", u32::from(c));
            debug_assert!(written.is_ok(), "writing to a String cannot fail");
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The first `most` characters, and how many more there are.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((at, _)) => {
            let more = text[at..].chars().count();
            Cow::Owned(format!("{}… ({more} characters more)", &text[..at]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(visible("\x1b]0;title\x07 a\tb\nc\u{9b}31m é"), "\\x1b]0;title\\x07 a\tb\nc\\x9b31m é");
        assert!(matches!(visible("plain"), Cow::Borrowed("plain")));
        assert_eq!(shortened("abcdef", 4), "abcd… (2 characters more)");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}
