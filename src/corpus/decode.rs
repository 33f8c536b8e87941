//! Bytes to text, with a map from offsets in the text to offsets of the bytes.
//!
//! The encoding is that of a byte order mark, else the caller's; it is never guessed: a wrong guess in one
//! of a thousand files damages a corpus silently. UTF-16 and UTF-32 are made UTF-8 before they are read,
//! see [`super::transcode`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A character encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// Read as its superset Windows-1252, as browsers do
    /// (<https://encoding.spec.whatwg.org/#names-and-labels>).
    #[serde(rename = "latin-1")]
    Latin1,
    /// The same reading as `latin-1`, under its own name.
    #[serde(rename = "windows-1252")]
    Windows1252,
    /// UTF-16 without a byte order mark, the low byte first; with a mark it needs no naming.
    #[serde(rename = "utf-16le")]
    Utf16Le,
    #[serde(rename = "utf-16be")]
    Utf16Be,
    #[serde(rename = "utf-32le")]
    Utf32Le,
    #[serde(rename = "utf-32be")]
    Utf32Be,
}

impl Encoding {
    /// Its name, as a param and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Utf8 => "utf-8",
            Encoding::Latin1 => "latin-1",
            Encoding::Windows1252 => "windows-1252",
            Encoding::Utf16Le => "utf-16le",
            Encoding::Utf16Be => "utf-16be",
            Encoding::Utf32Le => "utf-32le",
            Encoding::Utf32Be => "utf-32be",
        }
    }

    /// The bytes of a code unit: 2 in UTF-16, 4 in UTF-32, 1 in the others.
    pub fn unit(self) -> usize {
        match self {
            Encoding::Utf16Le | Encoding::Utf16Be => 2,
            Encoding::Utf32Le | Encoding::Utf32Be => 4,
            _ => 1,
        }
    }
}

/// How bytes that are not in the encoding are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalid {
    /// An error that names file, line, column and byte.
    #[default]
    Error,
    /// Each broken sequence becomes U+FFFD, and is counted.
    Replace,
    /// The document is left out, and counted.
    SkipDocument,
}

/// A byte that is not in the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidByte {
    pub at: usize,
    pub byte: u8,
}

/// A decoded text with a map to its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub text: String,
    /// Bytes that were replaced by U+FFFD.
    pub replaced: u64,
    /// (offset in the text, offset in the bytes), ascending: from each on, both advance equally.
    marks: Vec<(usize, usize)>,
}

impl Decoded {
    /// The text of bytes that are known to be UTF-8, as those of Parquet; NUL may be among them.
    ///
    /// # Errors
    /// When they are not.
    pub fn from_utf8(bytes: Vec<u8>) -> Result<Self, std::string::FromUtf8Error> {
        String::from_utf8(bytes).map(Decoded::plain)
    }

    fn plain(text: String) -> Self {
        Decoded { text, replaced: 0, marks: Vec::new() }
    }

    /// U+FFFD for the `length` bytes at `source`; nothing when there are none.
    fn replace(&mut self, source: &mut usize, length: usize) {
        if length > 0 {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.replaced += length as u64;
            *source += length;
            self.marks.push((self.text.len(), *source));
        }
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

/// Decodes `bytes`. With `replace`, what is invalid becomes U+FFFD instead of an error. UTF-16 and
/// UTF-32 are read as the UTF-8 that [`super::transcode::readable`] made of them.
///
/// # Errors
/// The first byte that is not in the encoding. In Latin-1 that is only NUL, which no text has: it means
/// another encoding or damage.
pub fn decode(bytes: Vec<u8>, encoding: Encoding, replace: bool) -> Result<Decoded, InvalidByte> {
    if matches!(encoding, Encoding::Latin1 | Encoding::Windows1252) {
        return latin1(&bytes, replace);
    }
    let invalid = match String::from_utf8(bytes) {
        Ok(text) if !text.as_bytes().contains(&0) => return Ok(Decoded::plain(text)),
        Ok(text) => text.into_bytes(),
        Err(e) => e.into_bytes(),
    };
    if replace {
        return Ok(utf8_lossy(&invalid));
    }
    let valid = invalid.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
    let at = invalid[..valid].iter().position(|b| *b == 0).unwrap_or(valid);
    Err(InvalidByte { at, byte: invalid[at] })
}

fn utf8_lossy(bytes: &[u8]) -> Decoded {
    let mut out = Decoded::plain(String::with_capacity(bytes.len() + 16));
    let mut source = 0;
    for chunk in bytes.utf8_chunks() {
        for part in chunk.valid().split_inclusive('\0') {
            let text = part.trim_end_matches('\0');
            out.text.push_str(text);
            source += text.len();
            out.replace(&mut source, part.len() - text.len());
        }
        out.replace(&mut source, chunk.invalid().len());
    }
    out
}

/// Windows-1252 for 0x80..=0x9F; the five that it leaves open stay the control characters of Latin-1.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
];

fn latin1(bytes: &[u8], replace: bool) -> Result<Decoded, InvalidByte> {
    let mut out = Decoded::plain(String::with_capacity(bytes.len() + bytes.len() / 8));
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0 if !replace => return Err(InvalidByte { at, byte: 0 }),
            0 => out.replace(&mut { at }, 1),
            0x80..=0x9F => out.text.push(WINDOWS_1252[usize::from(byte - 0x80)]),
            _ => out.text.push(char::from(*byte)),
        }
        if *byte >= 0x80 {
            out.marks.push((out.text.len(), at + 1));
        }
    }
    Ok(out)
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
    fn windows_1252_is_latin_1_and_nul_is_in_neither() {
        let bytes = b"premi\xE8re \x93ligne\x94 \x96 \x805".to_vec();
        let decoded = decode(bytes, Encoding::Windows1252, false).unwrap();
        assert_eq!(decoded.text, "première “ligne” – €5");
        for encoding in [Encoding::Utf8, Encoding::Latin1, Encoding::Windows1252] {
            let nul = decode(b"a\0b".to_vec(), encoding, false);
            assert_eq!(nul, Err(InvalidByte { at: 1, byte: 0 }), "{encoding:?}");
            let replaced = decode(b"a\0\0b".to_vec(), encoding, true).unwrap();
            assert_eq!(replaced.replaced, 2);
            assert_eq!(replaced.source_offset(replaced.text.find('b').unwrap()), 3, "{encoding:?}");
        }
    }

    #[test]
    fn invalid_bytes_are_named_or_replaced() {
        let bytes = b"ab\xFFcd\xE2\x82".to_vec();
        assert_eq!(decode(bytes.clone(), Encoding::Utf8, false), Err(InvalidByte { at: 2, byte: 0xFF }));
        let decoded = decode(bytes, Encoding::Utf8, true).unwrap();
        assert_eq!((decoded.text.as_str(), decoded.replaced), ("ab\u{FFFD}cd\u{FFFD}", 3));
        assert_eq!(decoded.source_offset(decoded.text.find('c').unwrap()), 3);
    }

    proptest! {
        #[test]
        fn offsets_lead_back_to_the_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let decoded = decode(bytes.clone(), Encoding::Utf8, true).unwrap();
            prop_assert!(!decoded.text.contains('\0'));
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
