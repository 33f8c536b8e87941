//! Detects files that are not text: by a known signature, or by too many control characters.

use super::decode::Encoding;

/// Signatures of file types with which no text begins.
const SIGNS: [(&[u8], &str); 24] = [
    (b"\x7FELF", "ELF executable"),
    (b"\xCF\xFA\xED\xFE", "Mach-O executable"),
    (b"\xCE\xFA\xED\xFE", "Mach-O executable"),
    (b"\xFE\xED\xFA\xCE", "Mach-O executable"),
    (b"\xFE\xED\xFA\xCF", "Mach-O executable"),
    (b"\xCA\xFE\xBA\xBE", "Mach-O executable or Java class"),
    (b"\0asm", "WebAssembly module"),
    (b"\x89PNG\r\n\x1A\n", "PNG image"),
    (b"\xFF\xD8\xFF", "JPEG image"),
    (b"II*\0", "TIFF image"),
    (b"MM\0*", "TIFF image"),
    (b"%PDF-1.", "PDF document"),
    (b"%PDF-2.", "PDF document"),
    (b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", "Microsoft Office document"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"\x89HDF\r\n\x1A\n", "HDF5 file"),
    (b"\x1F\x8B", "gzip archive"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"PK\x05\x06", "ZIP archive"),
    (b"\x28\xB5\x2F\xFD", "zstd archive"),
    (b"\xFD7zXZ\0", "xz archive"),
    (b"7z\xBC\xAF\x27\x1C", "7-Zip archive"),
    (b"\xFF\xFE", "UTF-16 text"),
    (b"\xFE\xFF", "UTF-16 text"),
];

/// Signatures of ASCII letters, with which a text may begin too: they count where control characters follow.
const WORDS: [(&[u8], &str); 10] = [
    (b"GIF8", "GIF image"),
    (b"\x93NUMPY", "NumPy array"),
    (b"MZ", "Windows executable"),
    (b"PAR1", "Parquet file"),
    (b"ARROW1", "Arrow IPC file"),
    (b"GGUF", "GGUF model"),
    (b"BZh", "bzip2 archive"),
    (b"RIFF", "RIFF file (WAV, AVI, WebP)"),
    (b"OggS", "Ogg file"),
    (b"ID3", "MP3 file"),
];

/// The type of a file that begins with `head`, with an article for a message: `an ELF executable`.
pub fn described(head: &[u8]) -> Option<String> {
    let kind = known_as(head)?;
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'H']) { "an" } else { "a" };
    Some(format!("{article} {kind}"))
}

/// The type of a file that begins with `head`, by its signature.
pub fn known_as(head: &[u8]) -> Option<&'static str> {
    let words = WORDS.iter().filter(|_| head.iter().any(|byte| is_control(*byte)));
    let found = SIGNS.iter().chain(words).find(|(sign, _)| head.starts_with(sign));
    found.map(|(_, name)| *name)
}

/// Whether more than 3 % of `head` are control characters, which are rare in text: encrypted and compressed
/// bytes have 10 %, and UTF-16 read as bytes 5 % and more.
pub fn is_binary(head: &[u8]) -> bool {
    let controls = head.iter().filter(|byte| is_control(**byte)).count();
    controls >= 4 && controls * 33 > head.len()
}

/// C0 controls other than blanks, backspace (overstrike) and escape (colours of a terminal).
fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=7 | 0x0E..=0x1A | 0x1C..=0x1F)
}

/// The encoding with code units of several bytes that `head` looks like, by where its NUL bytes stand:
/// blanks, line breaks and digits have one at the same end of each unit, whatever the language.
pub fn wide_encoding(head: &[u8]) -> Option<Encoding> {
    let mut zeros = [0usize; 4];
    for (at, _) in head.iter().enumerate().filter(|(_, byte)| **byte == 0) {
        zeros[at % 4] += 1;
    }
    let units = head.len() / 4;
    let (even, odd) = (zeros[0] + zeros[2], zeros[1] + zeros[3]);
    if units > 0 && zeros[3] >= units && zeros[2] * 10 >= units * 9 && zeros[0] * 10 < units {
        return Some(Encoding::Utf32Le);
    }
    if units > 0 && zeros[0] >= units && zeros[1] * 10 >= units * 9 && zeros[3] * 10 < units {
        return Some(Encoding::Utf32Be);
    }
    // At least one unit in 50, and hardly any at the other end.
    let many = |here: usize, there: usize| here >= 3 && here * 100 >= head.len() && here > 10 * there;
    match () {
        _ if many(odd, even) => Some(Encoding::Utf16Le),
        _ if many(even, odd) => Some(Encoding::Utf16Be),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_known_and_words_are_not_taken_for_them() {
        assert_eq!(known_as(b"\x7FELF\x02\x01\x01\0"), Some("ELF executable"));
        assert_eq!(described(b"\x7FELF\x02").as_deref(), Some("an ELF executable"));
        assert_eq!(known_as(b"MZ\x90\0\x03\0\0\0"), Some("Windows executable"));
        assert_eq!(known_as(b"MZ is how an executable begins."), None);
        assert_eq!(known_as(b"PAR1 races were held in the Philippines."), None);
    }

    #[test]
    fn control_characters_tell_bytes_from_text() {
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        assert!(is_binary(&noise));
        assert!(!is_binary("Zwölf Boxkämpfer\tjagen\r\n\u{1B}[1mViktor\u{1B}[0m\u{C}".as_bytes()));
        assert!(!is_binary(b"a\x07 bell"), "one in a short text may be meant");
    }

    #[test]
    fn zeros_tell_the_encoding() {
        let units = |text: &str, width: usize, big: bool| -> Vec<u8> {
            let unit = |c: char| match big {
                true => (c as u32).to_be_bytes()[4 - width..].to_vec(),
                false => (c as u32).to_le_bytes()[..width].to_vec(),
            };
            text.chars().flat_map(unit).collect()
        };
        for text in ["Good evening", "Добрый вечер, как прошёл день?", "あなたは 元気\nですか そう です"]
        {
            assert_eq!(wide_encoding(&units(text, 2, false)), Some(Encoding::Utf16Le), "{text}");
            assert_eq!(wide_encoding(&units(text, 2, true)), Some(Encoding::Utf16Be), "{text}");
            assert_eq!(wide_encoding(&units(text, 4, false)), Some(Encoding::Utf32Le), "{text}");
            assert_eq!(wide_encoding(&units(text, 4, true)), Some(Encoding::Utf32Be), "{text}");
        }
        assert_eq!(wide_encoding(b"some\0text\0with\0zeros\n"), None);
        assert_eq!(wide_encoding(b""), None);
    }
}
