//! A zip archive as `torch.save` writes it: entries that are stored, not compressed (PKWARE's APPNOTE.TXT 6.3.10,
//! with its 64-bit form). Every size is compared with the file's before anything is read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::base::{Error, Result, fs};

/// What an archive begins with.
pub const MAGIC: [u8; 4] = *b"PK\x03\x04";

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

/// Of the record at the end, without its comment, which may have 65,535 bytes.
const END_LEN: usize = 22;
const LOCAL_LEN: u64 = 30;
const CENTRAL_LEN: usize = 46;

/// An archive, open for reading.
pub struct Archive {
    path: PathBuf,
    file: File,
    pub entries: Vec<Entry>,
}

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Bytes.
    pub size: u64,
    crc: u32,
    /// Where its local header stands.
    header: u64,
}

/// Little-endian numbers of a record; 0 behind its end.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn number(&self, at: usize, width: usize) -> u64 {
        let bytes = self.0.get(at..at + width).unwrap_or_default();
        bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn u16(&self, at: usize) -> usize {
        self.number(at, 2) as usize
    }

    fn u32(&self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }
}

impl Archive {
    /// Reads the list of entries.
    ///
    /// # Errors
    /// When the file is cut off or damaged, or an entry is compressed, encrypted, or there twice.
    pub fn open(path: &Path) -> Result<Self> {
        let mut archive = Archive { path: path.into(), file: fs::open(path)?, entries: Vec::new() };
        let size = fs::size(path)?;
        let (start, len) = archive.directory(size)?;
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(archive.damaged("its list of entries lies beyond its end"));
        }
        let bytes = archive.bytes(start, len)?;
        archive.entries = archive.entries_of(&bytes, start)?;
        Ok(archive)
    }

    fn damaged(&self, why: impl std::fmt::Display) -> Error {
        Error::input(format!("`{}` is not a whole zip archive of torch.save: {why}", self.path.display()))
            .help("copy or save the checkpoint once more")
    }

    /// # Panics
    /// When `len` was not compared with the file's size.
    fn bytes(&mut self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(|e| Error::io("read", &self.path, &e))
    }

    /// Where the list of entries begins, and its length.
    fn directory(&mut self, size: u64) -> Result<(u64, u64)> {
        let len = size.min(END_LEN as u64 + 65_535);
        let tail = self.bytes(size - len, len)?;
        let at =
            tail.windows(4).rposition(|w| w == END.to_le_bytes()).filter(|at| at + END_LEN <= tail.len());
        let at = at.ok_or_else(|| self.damaged("it has no end record, so it is cut off"))?;
        let end = Record(&tail[at..]);
        let (start, length) = (end.u32(16), end.u32(12));
        if start != u32::MAX && length != u32::MAX && end.u16(10) != 0xffff {
            return Ok((u64::from(start), u64::from(length)));
        }
        let locator = at.checked_sub(20).map(|at| Record(&tail[at..])).filter(|l| l.u32(0) == LOCATOR_64);
        let record =
            locator.map(|l| l.number(8, 8)).filter(|at| at.checked_add(56).is_some_and(|end| end <= size));
        let record = record.ok_or_else(|| self.damaged("it has no 64-bit end record"))?;
        let bytes = self.bytes(record, 56)?;
        let end = Record(&bytes);
        match end.u32(0) {
            END_64 => Ok((end.number(48, 8), end.number(40, 8))),
            _ => Err(self.damaged("its 64-bit end record is not where it should be")),
        }
    }

    fn entries_of(&self, mut bytes: &[u8], start: u64) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut names = std::collections::HashSet::new();
        while !bytes.is_empty() {
            let record = Record(bytes);
            let lengths = [record.u16(28), record.u16(30), record.u16(32)];
            let len = CENTRAL_LEN + lengths.iter().sum::<usize>();
            if record.u32(0) != CENTRAL || bytes.len() < len {
                return Err(
                    self.damaged(format_args!("its list of entries breaks off behind {}", entries.len()))
                );
            }
            let entry = self.entry(bytes, lengths, start)?;
            if !names.insert(entry.name.clone()) {
                return Err(self.damaged(format_args!("the entry `{}` is there twice", entry.name)));
            }
            entries.push(entry);
            bytes = &bytes[len..];
        }
        Ok(entries)
    }

    /// The entry of a whole record; entries lie before `end`.
    fn entry(&self, bytes: &[u8], [name, extra, _]: [usize; 3], end: u64) -> Result<Entry> {
        let record = Record(bytes);
        let (name, rest) = bytes[CENTRAL_LEN..].split_at(name);
        let name = String::from_utf8_lossy(name).into_owned();
        let [mut size, mut packed, mut header] = [24, 20, 42].map(|at| u64::from(record.u32(at)));
        wide(&rest[..extra], [&mut size, &mut packed, &mut header]);
        if record.u16(8) & 1 != 0 || record.u16(10) != 0 || size != packed {
            return Err(self.damaged(format_args!("the entry `{name}` is compressed or encrypted")));
        }
        let fits =
            header.checked_add(LOCAL_LEN).and_then(|at| at.checked_add(size)).is_some_and(|at| at <= end);
        if !fits {
            return Err(self.damaged(format_args!("the entry `{name}` of {size} bytes lies beyond its end")));
        }
        Ok(Entry { name, size, crc: record.u32(16), header })
    }

    /// An entry's bytes.
    ///
    /// # Errors
    /// When they are not those that the archive was written with.
    pub fn read(&mut self, entry: &Entry) -> Result<Vec<u8>> {
        let local = self.bytes(entry.header, LOCAL_LEN)?;
        let record = Record(&local);
        let at = entry.header + LOCAL_LEN + (record.u16(26) + record.u16(28)) as u64;
        let size = fs::size(&self.path)?;
        if record.u32(0) != LOCAL || at.checked_add(entry.size).is_none_or(|end| end > size) {
            return Err(self.damaged(format_args!("the entry `{}` is not where its list says", entry.name)));
        }
        let bytes = self.bytes(at, entry.size)?;
        if crc32(&bytes) != entry.crc {
            let what = format_args!("the bytes of the entry `{}` have another checksum", entry.name);
            return Err(self.damaged(what));
        }
        Ok(bytes)
    }
}

/// Replaces the numbers that are too large for 32 bits by those in the extra field 1, which has them in this order.
fn wide(mut extra: &[u8], numbers: [&mut u64; 3]) {
    while extra.len() >= 4 {
        let (id, len) = (Record(extra).u16(0), Record(extra).u16(2));
        let field = &extra[4..(4 + len).min(extra.len())];
        if id == 1 {
            let large = numbers.into_iter().filter(|n| **n == u64::from(u32::MAX));
            large.zip(field.chunks_exact(8)).for_each(|(n, bytes)| *n = Record(bytes).number(0, 8));
            return;
        }
        extra = &extra[(4 + len).min(extra.len())..];
    }
}

/// CRC-32 of ISO 3309, which zip uses, a byte at a time by table.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, b| TABLE[usize::from(crc as u8 ^ b)] ^ crc >> 8)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An archive of these entries, stored.
    pub fn written(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
        let (mut all, mut list) = (Vec::new(), Vec::new());
        for (name, bytes) in entries {
            let (header, size) = ((all.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
            let lengths = [(name.len() as u16).to_le_bytes(), [0; 2]].concat();
            let common =
                [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &crc32(bytes).to_le_bytes()[..], &size, &size, &lengths];
            all.extend([&MAGIC[..], &common.concat(), name.as_bytes(), bytes].concat());
            list.extend(
                [b"PK\x01\x02\x14\0", &common.concat()[..], &[0; 10], &header, name.as_bytes()].concat(),
            );
        }
        let (start, count) = ((all.len() as u32).to_le_bytes(), (entries.len() as u16).to_le_bytes());
        let len = (list.len() as u32).to_le_bytes();
        let end = [b"PK\x05\x06\0\0\0\0", &count[..], &count, &len, &start, &[0; 2]].concat();
        [all, list, end].concat()
    }

    fn open(bytes: &[u8]) -> Result<Vec<Entry>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        fs::write(&path, bytes)?;
        let mut archive = Archive::open(&path)?;
        let entries = archive.entries.clone();
        entries.iter().try_for_each(|entry| archive.read(entry).map(drop))?;
        Ok(entries)
    }

    /// `a` of 3 bytes and `b` of none: local headers at 0 and 34, the list from 65 on, its end record at 159.
    fn two() -> Vec<u8> {
        written(&[("a".to_string(), b"xyz".to_vec()), ("b".to_string(), Vec::new())])
    }

    #[test]
    fn what_is_wrong_with_an_archive_is_said() {
        let names = open(&two()).unwrap().iter().map(|e| (e.name.clone(), e.size)).collect::<Vec<_>>();
        assert_eq!(names, [("a".to_string(), 3), ("b".to_string(), 0)]);
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = two();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            open(&bytes).err().map(|e| e.to_string()).unwrap_or_default()
        };
        for (found, expected) in [
            (open(b"PK").err().unwrap().to_string(), "it has no end record, so it is cut off"),
            (open(&two()[..170]).err().unwrap().to_string(), "it has no end record"),
            (with(&[(175, 0xff)]), "its list of entries lies beyond its end"),
            (with(&[(171, 46)]), "its list of entries breaks off behind 0"),
            (with(&[(171, 60)]), "breaks off behind 1"),
            (with(&[(65, 0)]), "breaks off behind 0"),
            (with(&[(65 + 28, 0xff), (65 + 29, 0xff)]), "breaks off behind 0"),
            (with(&[(65 + 10, 8)]), "the entry `a` is compressed or encrypted"),
            (with(&[(65 + 8, 1)]), "the entry `a` is compressed or encrypted"),
            (with(&[(65 + 24, 4)]), "the entry `a` is compressed or encrypted"),
            (with(&[(65 + 22, 1), (65 + 26, 1)]), "the entry `a` of 65539 bytes lies beyond its end"),
            (with(&[(65 + 45, 0x7f)]), "the entry `a` of 3 bytes lies beyond its end"),
            (with(&[(65 + 42, 1)]), "the entry `a` is not where its list says"),
            (with(&[(26, 0xff), (27, 0xff)]), "the entry `a` is not where its list says"),
            (with(&[(32, 0)]), "the bytes of the entry `a` have another checksum"),
            (with(&[(65 + 47 + 46, b'a')]), "the entry `a` is there twice"),
            (with(&[(175, 0xff), (176, 0xff), (177, 0xff), (178, 0xff)]), "it has no 64-bit end record"),
        ] {
            assert!(found.contains(expected), "expected {expected}, found {found}");
        }
    }

    #[test]
    fn checksums_are_those_of_zip() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn large_sizes_are_in_the_extra_field() {
        let (mut size, mut packed, mut header) = (u64::from(u32::MAX), u64::from(u32::MAX), 7);
        let extra =
            [&[9, 9, 1, 0, 5, 1, 0, 16, 0][..], &(1u64 << 33).to_le_bytes(), &(1u64 << 34).to_le_bytes()];
        wide(&extra.concat(), [&mut size, &mut packed, &mut header]);
        assert_eq!((size, packed, header), (1 << 33, 1 << 34, 7));
        wide(&[1, 0, 255, 255, 1], [&mut size, &mut packed, &mut header]);
        assert_eq!((size, packed, header), (1 << 33, 1 << 34, 7));
    }
}
