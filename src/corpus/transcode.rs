//! Prepares a text file for byte-wise reading: UTF-16 and UTF-32 are copied to UTF-8, everything else is
//! read as it is; files that are not text are refused.
//!
//! Offsets into such a copy (provenance, places of errors) are those of the UTF-8 form.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use super::binary::{described, is_binary, wide_encoding};
use super::decode::Encoding;
use super::input::{BadRecord, InputFile};
use crate::base::{Error, Result, fs};

/// A text file whose encoding is known, ready to be read.
#[derive(Debug)]
pub struct Readable {
    /// The file, or a copy of it in UTF-8 under the same name and with the size of the original.
    pub file: InputFile,
    /// The encoding of the original: of its byte order mark, else the caller's.
    pub encoding: Encoding,
    /// Deletes the copy.
    _copy: Option<tempfile::TempPath>,
}

/// The bytes that the type of a file is detected from.
const HEAD: u64 = 64 << 10;

/// Written in a copy for a code unit that is no character: never part of UTF-8, so that decoding reports it
/// there.
const INVALID: u8 = 0xFF;

/// Makes `file` readable. A byte order mark tells the encoding, else it is `encoding`. A copy is made in
/// the folder `scratch`, and lives as long as what is returned.
///
/// # Errors
/// A file that is no text or looks like another encoding; what cannot be read or written.
pub fn readable(file: &InputFile, encoding: Encoding, scratch: &Path) -> Result<Readable> {
    let head = file.read_range(0, HEAD)?;
    let marked = mark(&head);
    let found = marked.map_or(encoding, |(encoding, _)| encoding);
    if found != encoding && encoding != Encoding::Utf8 {
        let (is, said) = (found.name(), encoding.name());
        tracing::warn!("`{}` is read as {is}, as its byte order mark says, not as {said}", file.name);
    }
    if found.unit() == 1 {
        refuse_bytes(file, &head)?;
        return Ok(Readable { file: file.clone(), encoding: found, _copy: None });
    }
    if marked.is_none() {
        refuse_ascii(file, &head, found)?;
    }
    let mut copy = tempfile::Builder::new()
        .prefix("utf-8-")
        .tempfile_in(scratch)
        .map_err(|e| Error::io("write", scratch, &e))?;
    transcode(file, marked.map_or(0, |(_, length)| length), found, copy.as_file_mut())?;
    let copy = copy.into_temp_path();
    let readable = InputFile { path: copy.to_path_buf(), ..file.clone() };
    refuse_bytes(&readable, &readable.read_range(0, HEAD)?)?;
    Ok(Readable { file: readable, encoding: found, _copy: Some(copy) })
}

impl Readable {
    /// A file that is not read as a text: Parquet.
    pub fn as_it_is(file: &InputFile) -> Self {
        Readable { file: file.clone(), encoding: Encoding::Utf8, _copy: None }
    }

    /// The error of a byte of [`Readable::file`] that is not in its encoding.
    pub fn invalid(&self, at: u64, byte: u8) -> BadRecord {
        let bad = |message: String| BadRecord::new("invalid_encoding", at, message).fatal();
        let replace = "set `on_invalid` to `replace` or `skip_document`";
        match byte {
            0 => {
                bad("a NUL byte (0x00), which no text holds: the file is damaged, or in another encoding"
                    .into())
                .help(format!("{replace}, if the rest is what it should be, or"))
                .help("set `encoding` (`utf-16le`, `utf-16be`, `utf-32le`, `utf-32be`)")
            }
            INVALID if self.encoding.unit() > 1 => {
                let name = self.encoding.name().to_uppercase();
                bad(format!("this is not valid {name}: a surrogate without its other half, or no character"))
                    .help(replace)
            }
            _ => bad(format!("the byte 0x{byte:02X} is not valid UTF-8"))
                .help("set `encoding: windows-1252` (or `latin-1`) if that is what the file is, or")
                .help(replace),
        }
    }
}

/// The encoding of the byte order mark of `head`, and its length.
fn mark(head: &[u8]) -> Option<(Encoding, usize)> {
    const MARKS: [(&[u8], Encoding); 5] = [
        (b"\xEF\xBB\xBF", Encoding::Utf8),
        (b"\xFF\xFE\0\0", Encoding::Utf32Le), // before UTF-16, whose mark it starts with
        (b"\0\0\xFE\xFF", Encoding::Utf32Be),
        (b"\xFF\xFE", Encoding::Utf16Le),
        (b"\xFE\xFF", Encoding::Utf16Be),
    ];
    let found = MARKS.iter().find(|(mark, _)| head.starts_with(mark));
    found.map(|(mark, encoding)| (*encoding, mark.len()))
}

/// # Errors
/// When bytes that begin with `head` are no text in any encoding of single bytes.
fn refuse_bytes(file: &InputFile, head: &[u8]) -> Result<()> {
    let name = &file.name;
    if let Some(kind) = described(head) {
        return Err(Error::input(format!("`{name}` is no text: it begins as {kind} does"))
            .help("leave it out of the files, or make a text of it first"));
    }
    if let Some(encoding) = wide_encoding(head) {
        let zero = head.iter().position(|byte| *byte == 0).unwrap_or(0);
        let upper = encoding.name().to_uppercase();
        return Err(Error::input(format!(
            "`{name}` has NUL bytes (the first is byte {zero}): it looks like {upper} without a byte order mark"
        ))
        .help(format!("set `encoding: {}`, or save the file as UTF-8", encoding.name())));
    }
    if is_binary(head) {
        return Err(Error::input(format!(
            "`{name}` is no text: too many of its first {} bytes are control characters",
            head.len()
        ))
        .help("leave it out of the files; if it is a text, save it as UTF-8"));
    }
    Ok(())
}

/// # Errors
/// When `head` is ASCII with its blanks anywhere, which no text in UTF-16 or UTF-32 has.
fn refuse_ascii(file: &InputFile, head: &[u8], encoding: Encoding) -> Result<()> {
    let blank_at = |odd: usize| {
        let mut bytes = head.iter().skip(odd).step_by(2);
        bytes.any(|byte| matches!(byte, b' ' | b'\n'))
    };
    let ascii = head.is_ascii() && !head.contains(&0) && blank_at(0) && blank_at(1);
    match ascii {
        true => {
            Err(Error::input(format!("`{}` is ASCII, not {}", file.name, encoding.name().to_uppercase()))
                .help("set `encoding: utf-8`"))
        }
        false => Ok(()),
    }
}

/// Writes `file` without its first `skip` bytes to `copy`, as UTF-8.
fn transcode(file: &InputFile, skip: usize, encoding: Encoding, copy: &mut File) -> Result<()> {
    const CHUNK: u64 = 1 << 20;
    let mut source = fs::open(&file.path)?;
    let mut units = Vec::new();
    let mut text = Vec::new();
    let mut skip = skip;
    loop {
        let read = (&mut source).take(CHUNK).read_to_end(&mut units);
        let ended = read.map_err(|e| Error::io("read", &file.path, &e))? == 0;
        units.drain(..std::mem::take(&mut skip));
        let whole = whole_characters(&units, encoding, ended);
        text.clear();
        match encoding.unit() {
            2 => utf16(&units[..whole], encoding == Encoding::Utf16Be, &mut text),
            _ => utf32(&units[..whole], encoding == Encoding::Utf32Be, &mut text),
        }
        copy.write_all(&text).map_err(|e| Error::io("copy", &file.path, &e))?;
        units.drain(..whole);
        if ended {
            let cut = if units.is_empty() { &[][..] } else { &[INVALID][..] };
            return copy.write_all(cut).map_err(|e| Error::io("copy", &file.path, &e));
        }
    }
}

/// The bytes of `units` up to which no character is cut by the end of a chunk.
fn whole_characters(units: &[u8], encoding: Encoding, ended: bool) -> usize {
    let whole = units.len() - units.len() % encoding.unit();
    if encoding.unit() != 2 || ended || whole == 0 {
        return whole;
    }
    let high = if encoding == Encoding::Utf16Be { units[whole - 2] } else { units[whole - 1] };
    if (0xD8..0xDC).contains(&high) { whole - 2 } else { whole }
}

fn utf16(bytes: &[u8], big_endian: bool, text: &mut Vec<u8>) {
    let unit = |pair: &[u8]| match big_endian {
        true => u16::from_be_bytes([pair[0], pair[1]]),
        false => u16::from_le_bytes([pair[0], pair[1]]),
    };
    for c in char::decode_utf16(bytes.chunks_exact(2).map(unit)) {
        push(c.ok(), text);
    }
}

fn utf32(bytes: &[u8], big_endian: bool, text: &mut Vec<u8>) {
    let unit = |four: &[u8]| match big_endian {
        true => u32::from_be_bytes([four[0], four[1], four[2], four[3]]),
        false => u32::from_le_bytes([four[0], four[1], four[2], four[3]]),
    };
    for number in bytes.chunks_exact(4).map(unit) {
        push(char::from_u32(number), text);
    }
}

fn push(c: Option<char>, text: &mut Vec<u8>) {
    match c {
        Some(c) => text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => text.push(INVALID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: [Encoding; 4] = [Encoding::Utf16Le, Encoding::Utf16Be, Encoding::Utf32Le, Encoding::Utf32Be];

    fn encoded(text: &str, encoding: Encoding) -> Vec<u8> {
        let short = |unit: u16| match encoding {
            Encoding::Utf16Be => unit.to_be_bytes(),
            _ => unit.to_le_bytes(),
        };
        let long = |c: char| match encoding {
            Encoding::Utf32Be => u32::from(c).to_be_bytes(),
            _ => u32::from(c).to_le_bytes(),
        };
        match encoding.unit() {
            1 => text.as_bytes().to_vec(),
            2 => text.encode_utf16().flat_map(short).collect(),
            _ => text.chars().flat_map(long).collect(),
        }
    }

    /// The size of a file as read, and its detected encoding.
    fn read(bytes: &[u8], encoding: Encoding) -> Result<(Vec<u8>, Encoding)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, bytes).unwrap();
        let found = readable(&InputFile::new(&path).unwrap(), encoding, dir.path())?;
        assert_eq!((found.file.name.as_str(), found.file.size), ("a.txt", bytes.len() as u64));
        Ok((fs::read(&found.file.path).unwrap(), found.encoding))
    }

    #[test]
    fn wide_encodings_are_read_by_their_mark_or_their_name() {
        let text = "Guten Abend — 🙂, как дела? ".repeat(90_000);
        for encoding in WIDE {
            let plain = encoded(&text, encoding);
            assert_eq!(read(&plain, encoding).unwrap(), (text.clone().into_bytes(), encoding));
            let marked = encoded(&format!("\u{FEFF}{text}"), encoding);
            assert_eq!(read(&marked, Encoding::Utf8).unwrap(), (text.clone().into_bytes(), encoding));
        }
        let utf8 = read(b"\xEF\xBB\xBFcaf\xC3\xA9", Encoding::Latin1).unwrap();
        assert_eq!(utf8.1, Encoding::Utf8, "a mark is not read as three letters");
    }

    #[test]
    fn what_is_no_character_is_marked() {
        let lone = [b"a\0".as_slice(), b"\x3D\xD8", b"b\0", b"c"].concat();
        assert_eq!(read(&lone, Encoding::Utf16Le).unwrap().0, b"a\xFFb\xFF");
        let beyond = [b"a\0\0\0".as_slice(), b"\0\0\x11\0", b"\0\xD8\0\0"].concat();
        assert_eq!(read(&beyond, Encoding::Utf32Le).unwrap().0, b"a\xFF\xFF");
    }

    #[test]
    fn a_wide_encoding_without_a_mark_is_named() {
        for encoding in WIDE {
            let bytes = encoded("Добрый вечер, как прошёл ваш день? Good.", encoding);
            for said in [Encoding::Utf8, Encoding::Latin1, Encoding::Windows1252] {
                let error = read(&bytes, said).unwrap_err().to_string();
                assert!(error.contains(&format!("`encoding: {}`", encoding.name())), "{error}");
            }
            let error = read(b"Plain words in a file.", encoding).unwrap_err().to_string();
            assert!(error.contains("is ASCII") && error.contains("`encoding: utf-8`"), "{error}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_under_any_encoding() {
        let noise: Vec<u8> = (0..9000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 | 1).collect();
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for encoding in [Encoding::Utf8, Encoding::Latin1, Encoding::Windows1252] {
            let error = |bytes: &[u8]| read(bytes, encoding).unwrap_err().to_string();
            assert!(error(&noise).contains("`a.txt` is no text"), "{}", error(&noise));
            assert!(error(&program[..4096]).contains("is no text"), "{}", error(&program[..4096]));
            assert!(error(b"\x89PNG\r\n\x1A\nrest").contains("a PNG image"));
        }
    }
}
