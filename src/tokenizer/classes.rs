//! Classes of characters (letters, numbers, blanks), by which words are cut, as a table.
//!
//! The Unicode tables are those of `regex-syntax`, which the regular expressions of the `tokenizers`
//! library use, so that both have the same classes.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as Ranges, HirKind};

/// The class of the characters of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Punctuation, symbols, and all other characters.
    #[default]
    Sign,
    Letter,
    Number,
    Blank,
    /// Always a word by itself.
    Alone,
}

const BLOCK: usize = 256;

/// The class of each character: blocks of 256, equal ones stored once.
pub struct Classes {
    ascii: [Class; 128],
    blocks: Vec<[Class; BLOCK]>,
    /// The index in `blocks` of each block of characters.
    index: Vec<u8>,
}

/// `\p{L}`, `\p{N}`, `\s`: as GPT-2 has them.
pub static PLAIN: LazyLock<Classes> = LazyLock::new(|| Classes::new(r"\p{L}", None));
/// Marks among the letters, and `<` alone: [`super::cut::PIECES`].
pub static MARKED: LazyLock<Classes> = LazyLock::new(|| Classes::new(r"[\p{L}\p{M}]", Some('<')));

impl Classes {
    fn new(letters: &str, alone: Option<char>) -> Self {
        let mut all = vec![Class::Sign; char::MAX as usize + 1];
        for (pattern, class) in [(letters, Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Blank)] {
            for (first, last) in ranges(pattern) {
                all[first as usize..=last as usize].fill(class);
            }
        }
        if let Some(alone) = alone {
            all[alone as usize] = Class::Alone;
        }
        let mut classes =
            Classes { ascii: std::array::from_fn(|c| all[c]), blocks: Vec::new(), index: Vec::new() };
        for block in all.as_chunks::<BLOCK>().0 {
            let known = classes.blocks.iter().position(|b| b == block);
            let at = known.unwrap_or_else(|| {
                classes.blocks.push(*block);
                classes.blocks.len() - 1
            });
            classes.index.push(u8::try_from(at).expect("Unicode has fewer kinds of blocks"));
        }
        classes
    }

    /// The class of the character that begins at `at`, and its length in bytes.
    ///
    /// # Panics
    /// When no character begins there.
    #[inline]
    pub fn at(&self, text: &str, at: usize) -> (Class, usize) {
        match self.ascii.get(text.as_bytes()[at] as usize) {
            Some(class) => (*class, 1),
            None => {
                let c = text[at..].chars().next().expect("a byte is there");
                (self.blocks[self.index[c as usize / BLOCK] as usize][c as usize % BLOCK], c.len_utf8())
            }
        }
    }

    /// The end of the run of characters of `class` from `at`.
    #[inline]
    pub fn run(&self, text: &str, mut at: usize, class: Class) -> usize {
        while at < text.len() {
            let (found, len) = self.at(text, at);
            if found != class {
                break;
            }
            at += len;
        }
        at
    }
}

/// The characters of a class, as inclusive ranges.
pub fn ranges(pattern: &str) -> Vec<(char, char)> {
    let parsed = regex_syntax::parse(pattern).expect("our own pattern");
    match parsed.kind() {
        HirKind::Class(Ranges::Unicode(class)) => class.iter().map(|r| (r.start(), r.end())).collect(),
        other => unreachable!("{pattern} is a class of characters, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    #[test]
    fn every_character_is_of_the_class_that_regular_expressions_say() {
        let patterns = [
            (&*PLAIN, r"^\p{L}", r"^[^\s\p{L}\p{N}]"),
            (&*MARKED, r"^[\p{L}\p{M}]", r"^[^\s\p{L}\p{M}\p{N}<]"),
        ];
        for (classes, letter, sign) in patterns {
            let by = [(letter, Class::Letter), (r"^\p{N}", Class::Number), (r"^\s", Class::Blank)];
            let by: Vec<(Regex, Class)> = by
                .into_iter()
                .chain([(sign, Class::Sign)])
                .map(|(pattern, class)| (Regex::new(pattern).unwrap(), class))
                .collect();
            for c in '\0'..=char::MAX {
                let text = c.to_string();
                let (class, len) = classes.at(&text, 0);
                let due = by.iter().find(|(regex, _)| regex.is_match(&text).unwrap());
                assert_eq!((class, len), (due.map_or(Class::Alone, |d| d.1), text.len()), "{c:?}");
            }
        }
    }
}
