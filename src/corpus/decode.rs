//! Bytes to text, with a way back from an offset in the text to the offset of its bytes.
//!
//! Two encodings and no guessing: a guess that is wrong once in a thousand files damages a corpus
//! silently.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How bytes stand for characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Read as its superset Windows-1252, as browsers do
    /// (<https://encoding.spec.whatwg.org/#names-and-labels>).
    #[serde(rename = "latin-1")]
    Latin1,
}

/// What happens to bytes that are not in the encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalid {
    /// The stage fails and names file, line, column and byte.
    #[default]
    Error,
    /// Each broken sequence becomes U+FFFD, and is counted.
    Replace,
    /// The document is left out, and counted.
    SkipDocument,
}

/// A byte that is not in the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    pub at: usize,
    pub byte: u8,
}

/// A text that remembers where its characters came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub text: String,
    /// Bytes that were replaced by U+FFFD.
    pub replaced: u64,
    /// (offset in the text, offset in the bytes), ascending: from each on both run side by side.
    marks: Vec<(usize, usize)>,
}

impl Decoded {
    fn plain(text: String) -> Self {
        Decoded { text, replaced: 0, marks: Vec::new() }
    }

    /// The offset in the bytes of the character at offset `at` of the text.
    pub fn source_offset(&self, at: usize) -> usize {
        let after = self.marks.partition_point(|(text, _)| *text <= at);
        match after.checked_sub(1).map(|i| self.marks[i]) {
            Some((text, source)) => source + (at - text),
            None => at,
        }
    }
}

/// Decodes `bytes`. With `replace`, what is invalid becomes U+FFFD instead of an error.
///
/// # Errors
/// The first byte that is not in the encoding. Every byte is in Latin-1.
pub fn decode(bytes: Vec<u8>, encoding: Encoding, replace: bool) -> Result<Decoded, Invalid> {
    if encoding == Encoding::Latin1 {
        return Ok(latin1(&bytes));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Decoded::plain(text)),
        Err(e) if replace => Ok(utf8_lossy(e.as_bytes())),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            Err(Invalid { at, byte: e.as_bytes()[at] })
        }
    }
}

fn utf8_lossy(bytes: &[u8]) -> Decoded {
    let mut out = Decoded::plain(String::with_capacity(bytes.len() + 16));
    let mut source = 0;
    for chunk in bytes.utf8_chunks() {
        out.text.push_str(chunk.valid());
        source += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            out.text.push(char::REPLACEMENT_CHARACTER);
            source += chunk.invalid().len();
            out.replaced += chunk.invalid().len() as u64;
            out.marks.push((out.text.len(), source));
        }
    }
    out
}

/// Windows-1252 for 0x80..=0x9F; the five that it leaves open stay the control characters of Latin-1.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
];

fn latin1(bytes: &[u8]) -> Decoded {
    let mut out = Decoded::plain(String::with_capacity(bytes.len() + bytes.len() / 8));
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            0x80..=0x9F => out.text.push(WINDOWS_1252[usize::from(byte - 0x80)]),
            _ => out.text.push(char::from(*byte)),
        }
        if *byte >= 0x80 {
            out.marks.push((out.text.len(), i + 1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn latin_1_is_read_as_browsers_do() {
        let decoded = decode(b"\x93caf\xE9\x94".to_vec(), Encoding::Latin1, false).unwrap();
        assert_eq!(decoded.text, "“café”");
        let end = decoded.text.len();
        assert_eq!(decoded.source_offset(end), 6);
    }

    #[test]
    fn invalid_bytes_are_named_or_replaced() {
        let bytes = b"ab\xFFcd\xE2\x82".to_vec();
        assert_eq!(decode(bytes.clone(), Encoding::Utf8, false), Err(Invalid { at: 2, byte: 0xFF }));
        let decoded = decode(bytes, Encoding::Utf8, true).unwrap();
        assert_eq!((decoded.text.as_str(), decoded.replaced), ("ab\u{FFFD}cd\u{FFFD}", 3));
        assert_eq!(decoded.source_offset(decoded.text.find('c').unwrap()), 3);
    }

    proptest! {
        #[test]
        fn offsets_lead_back_to_the_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let decoded = decode(bytes.clone(), Encoding::Utf8, true).unwrap();
            for (at, c) in decoded.text.char_indices().filter(|(_, c)| *c != char::REPLACEMENT_CHARACTER) {
                let from = decoded.source_offset(at);
                let mut expected = [0; 4];
                let expected = c.encode_utf8(&mut expected).as_bytes();
                prop_assert_eq!(&bytes[from..from + expected.len()], expected);
            }
            prop_assert_eq!(decoded.source_offset(decoded.text.len()), bytes.len());
        }
    }
}
