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

/// A token's text to be looked at, on one line: spaces as `␣`, line breaks as `⏎`, tabs as `⇥`; characters that are not
/// seen, turn the order of others around or have no place in XML as `\u{200b}`.
pub fn label(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' => out.push('␣'),
            '\n' => out.push('⏎'),
            '\t' => out.push('⇥'),
            c if is_unseen(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Control characters, other spaces, joiners, marks of direction, and what is no character.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || c.is_whitespace()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
        || u32::from(c) & 0xfffe == 0xfffe
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
        assert_eq!(label(" a\n\t\u{a0}\r\u{202e}é\u{ffff}"), "␣a⏎⇥\\u{a0}\\u{d}\\u{202e}é\\u{ffff}");
        assert_eq!(shortened("abcdef", 4), "abcd… (2 characters more)");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}
