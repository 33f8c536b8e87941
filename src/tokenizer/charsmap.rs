//! SentencePiece's normalization by a compiled table (`precompiled_charsmap`): at each place of a text the
//! longest of its rules that matches is applied, from the left
//! (`Normalizer::NormalizePrefix` in <https://github.com/google/sentencepiece/blob/master/src/normalizer.cc>).
//!
//! Not by the `tokenizers` library: its `Precompiled` looks at grapheme clusters, and so leaves out what
//! follows the first rule in some of them and composes no longer ones.

use std::borrow::Cow;

use super::base64;

/// A table: a trie of the texts to be replaced, and their replacements.
#[derive(Debug)]
pub struct Charsmap {
    /// A double-array trie, as Darts-clone stores it.
    units: Vec<u32>,
    /// Each ends with a NUL.
    replacements: String,
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & 0x7fff_ffff) as usize
}

fn label(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

impl Charsmap {
    /// A table in Base64, as a `tokenizer.json` has it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_base64(text: &str) -> Result<Self, String> {
        let bytes =
            base64::decode(text).map_err(|at| format!("the table of characters is not Base64 at {at}"))?;
        Charsmap::of(&bytes)
    }

    /// A table as SentencePiece stores it: the number of bytes of the trie, the trie, the replacements.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("the table of characters {what}"));
        let Some((size, rest)) = bytes.split_first_chunk::<4>() else { return wrong("is cut off") };
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || !size.is_multiple_of(4) || size >= rest.len() {
            return wrong(&format!("has {} bytes, and its trie {size}", rest.len()));
        }
        let (trie, replacements) = rest.split_at(size);
        let units = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        match std::str::from_utf8(replacements) {
            Ok(text) if text.ends_with('\0') => {
                let map = Charsmap { units, replacements: text.to_string() };
                map.check().map(|()| map)
            }
            _ => wrong("has replacements that are not UTF-8, or not ended"),
        }
    }

    /// Walks the whole trie, whose branches may join again, so that no text can lead outside of it.
    fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("the trie of the table of characters {what}"));
        let mut seen = vec![false; self.units.len()];
        let mut open = vec![offset(self.units[0])];
        while let Some(at) = open.pop() {
            if at | 0xff >= self.units.len() {
                return wrong("leads outside of it");
            }
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            for byte in 1..=255u8 {
                let unit = self.units[at ^ byte as usize];
                if label(unit) != u32::from(byte) {
                    continue;
                }
                let next = at ^ byte as usize ^ offset(unit);
                let leaf = self.units.get(next).map(|leaf| value(*leaf)).filter(|_| has_leaf(unit));
                if leaf.is_some_and(|at| {
                    at >= self.replacements.len() || !self.replacements.is_char_boundary(at)
                }) {
                    return wrong("has a rule without a replacement");
                }
                open.push(next);
            }
        }
        Ok(())
    }

    /// The longest beginning of `text` that has a rule, in bytes, and its replacement.
    pub fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut at = offset(self.units[0]);
        let mut longest = None;
        for (i, byte) in text.bytes().enumerate() {
            let unit = self.units[at ^ byte as usize];
            if label(unit) != u32::from(byte) {
                break;
            }
            at ^= byte as usize ^ offset(unit);
            // A rule for a part of a character would be none.
            if has_leaf(unit) && text.is_char_boundary(i + 1) {
                longest = Some((i + 1, value(self.units[at])));
            }
        }
        longest.map(|(length, start)| {
            let text = &self.replacements[start..];
            (length, text.split('\0').next().unwrap_or_default())
        })
    }

    /// The text with all rules applied.
    pub fn normalize<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut out: Option<String> = None;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match self.longest(&text[at..]) {
                None => {
                    out.iter_mut().for_each(|out| out.push(c));
                    at += c.len_utf8();
                }
                Some((length, replacement)) => {
                    out.get_or_insert_with(|| text[..at].to_string()).push_str(replacement);
                    at += length;
                }
            }
        }
        out.map_or(Cow::Borrowed(text), Cow::Owned)
    }
}
