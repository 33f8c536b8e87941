//! Words of a text as they are compared with accepted ones: by letters and digits alone.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// The words of `text` in lower case and Unicode NFC. A word is a run of letters, marks and digits; a point or
/// comma between two digits, and a minus sign in front of the first digit of a word, belong to the number.
/// Everything else separates words: `Don't, she said.` are `don`, `t`, `she`, `said`.
pub fn words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.nfc().flat_map(char::to_lowercase).collect();
    let (mut words, mut word) = (Vec::new(), String::new());
    for (i, c) in chars.iter().enumerate() {
        if is_part(&chars, i) {
            word.push(if *c == '−' { '-' } else { *c });
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// Whether the character is one that words are made of.
pub fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || is_combining_mark(c)
}

/// Whether the character at `i` belongs to a word.
fn is_part(chars: &[char], i: usize) -> bool {
    let digit = |c: Option<&char>| c.is_some_and(|c| c.is_ascii_digit());
    let before = i.checked_sub(1).and_then(|i| chars.get(i));
    match chars[i] {
        '.' | ',' => digit(before) && digit(chars.get(i + 1)),
        '-' | '−' => digit(chars.get(i + 1)) && !before.is_some_and(|c| is_letter(*c)),
        c => is_letter(c),
    }
}

/// Whether `wanted` stand in `words` one after the other.
pub fn holds(words: &[String], wanted: &[String]) -> bool {
    !wanted.is_empty() && words.windows(wanted.len()).any(|some| some == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_punctuation_and_white_space_do_not_count() {
        let table: [(&str, &[&str]); 12] = [
            ("  It is\n 7. ", &["it", "is", "7"]),
            ("Twenty-one!", &["twenty", "one"]),
            ("don't DON’T", &["don", "t", "don", "t"]),
            ("“The fox’s den”", &["the", "fox", "s", "den"]),
            ("3.5, or 1,000.", &["3.5", "or", "1,000"]),
            ("-7 and −8, 10-3", &["-7", "and", "-8", "10", "3"]),
            ("7:30 (7/8) 5%", &["7", "30", "7", "8", "5"]),
            ("Selamat pagi—apa kabar?", &["selamat", "pagi", "apa", "kabar"]),
            ("cafe\u{301} CAFÉ", &["café", "café"]),
            ("Nama saya_Budi", &["nama", "saya", "budi"]),
            ("x.y, a.1 1.b", &["x", "y", "a", "1", "1", "b"]),
            ("… 🙂 - —", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn words_are_found_whole_and_in_their_order() {
        let holds = |text: &str, wanted: &str| holds(&words(text), &words(wanted));
        assert!(holds("The answer is 7.", "is 7") && holds("Good, morning", "good morning"));
        assert!(!holds("It is 17.", "7") && !holds("It is 7.5", "7") && !holds("It is -7", "7"));
        assert!(!holds("seven is it", "it is") && !holds("category", "cat") && !holds("cat", "…"));
    }

    proptest! {
        #[test]
        fn what_does_not_count_changes_nothing(
            text in "[a-zA-Z]{1,8}( [a-zA-Z]{1,8}){0,6}", mark in "[.,!?;:\"' \n]{1,4}", upper: bool,
        ) {
            let changed = text.replace(' ', &format!("{mark} "));
            let changed = if upper { changed.to_uppercase() } else { changed.to_lowercase() };
            prop_assert_eq!(words(&format!("{mark}{changed}{mark}")), words(&text));
        }

        #[test]
        fn words_are_their_own_words(text in "\\PC{0,40}") {
            let found = words(&text);
            prop_assert_eq!(words(&found.join(" ")), found);
        }
    }
}
