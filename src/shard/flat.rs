//! The token files of nanoGPT (<https://github.com/karpathy/nanoGPT>, `data/*/prepare.py`): ids end to end, little-
//! endian, 2 bytes each (4 where a vocabulary is larger than 65,536), and nothing else. `train.bin` is trained on,
//! `val.bin` is held out.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;

use super::write::{ShardWriter, Totals};
use super::{Rows, ShardFile, Shards};
use crate::base::{Digest, Error, Files, Monitor, Result, files, fs};
use crate::corpus::held_out::{HeldOut, Split};
use crate::tokenizer::{Special, TOKENIZER_CONFIG_FILE, Tokenizer};

/// Names of the files that are written.
pub const TRAIN_FILE: &str = "train.bin";
pub const VALIDATION_FILE: &str = "val.bin";

/// Names of the held-out file that are read.
const VALIDATION_NAMES: [&str; 3] = [VALIDATION_FILE, "validation.bin", "valid.bin"];

/// A longer document is cut, so that one is held in memory; its tokens stay in their order.
const LONGEST_DOCUMENT: usize = 1 << 22;

/// What files of llm.c begin with, which have a header of 1,024 bytes.
const LLM_C: u32 = 20_240_520;

/// Bytes of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Width {
    #[serde(rename = "uint16")]
    Two,
    #[serde(rename = "uint32")]
    Four,
}

impl Width {
    /// The narrowest that holds every id of a vocabulary.
    pub fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Width::Two } else { Width::Four }
    }

    fn bytes(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }
}

/// How token files are to be read.
#[derive(Debug, Clone, Default)]
pub struct FlatOptions {
    /// Default: 2 bytes where the vocabulary fits, else 4.
    pub width: Option<Width>,
    /// The id that ends a document. Without one, a file is a document.
    pub eos: Option<u32>,
    /// A shard takes no further document once it has this many tokens.
    pub shard_tokens: u64,
}

/// What was read or written; `report.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlatReport {
    pub tokenizer: Digest,
    pub vocab_size: usize,
    pub width: Width,
    pub train: Totals,
    pub validation: Totals,
    /// Documents at the end of a file that do not end with `eos`.
    pub unended: u64,
    /// Documents of more than 4,194,304 tokens, which were cut into several.
    pub cut: u64,
}

/// Reads `train.bin` and `val.bin` (or one file of any name, to be trained on) into token shards in `folder`, with
/// `held_out.json`, `report.json` and, where the tokenizer alone does not name the special tokens,
/// `tokenizer_config.json`. `tokenizer` is the one that made the ids; documents count the bytes that it decodes
/// them to.
///
/// # Errors
/// When a file's size is no number of ids, an id is beyond the vocabulary, or a file cannot be read or written.
pub fn import(
    files: &Files,
    tokenizer: &Tokenizer,
    options: &FlatOptions,
    folder: &Path,
    monitor: &dyn Monitor,
) -> Result<FlatReport> {
    let vocab_size = tokenizer.vocab_size();
    let mut report = FlatReport {
        tokenizer: tokenizer.digest(),
        vocab_size,
        width: options.width.unwrap_or(Width::of(vocab_size)),
        train: Totals::default(),
        validation: Totals::default(),
        unended: 0,
        cut: 0,
    };
    if let Some(eos) = options.eos.filter(|eos| *eos as usize >= vocab_size) {
        return Err(Error::usage(format!("`eos` is {eos}, but the tokenizer has {vocab_size} tokens")));
    }
    for (split, path) in splits(files)? {
        let mut writer =
            ShardWriter::new(folder, split, tokenizer.digest(), vocab_size, options.shard_tokens.max(1));
        let mut ids = Ids::open(path, report.width, vocab_size)?;
        let total = ids.left;
        while let Some((document, ending)) = ids.document(options.eos)? {
            monitor.step("read", total - ids.left, Some(total), "tokens")?;
            report.unended += u64::from(ending == Ending::File && options.eos.is_some());
            report.cut += u64::from(ending == Ending::Length);
            let bytes: Vec<u8> = document.iter().flat_map(|id| id.to_le_bytes()).collect();
            let text = tokenizer.decode(&document)?.len() as u64;
            writer.push(&Digest::of(&bytes).to_string(), &document, text)?;
        }
        let totals = writer.finish()?;
        match split {
            Split::Train => report.train = totals,
            Split::Validation => report.validation = totals,
        }
    }
    // Which texts these are is not known, so nothing can be said of others.
    HeldOut::default().save(folder)?;
    if let Some(json) = tokenizer.config()? {
        fs::write(&folder.join(TOKENIZER_CONFIG_FILE), &json)?;
    }
    fs::write_json(&folder.join("report.json"), &report)?;
    Ok(report)
}

/// The id that ends a document of `tokenizer`'s.
pub fn eos_of(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.special(Special::Eos)
}

/// Which file is of which split.
fn splits(files: &Files) -> Result<Vec<(Split, &Path)>> {
    let base = |name: &str| name.rsplit('/').next().unwrap_or(name).to_string();
    let find = |names: &[&str]| files.all.iter().find(|(name, _)| names.contains(&base(name).as_str()));
    let validation = find(&VALIDATION_NAMES).map(|(_, path)| (Split::Validation, path.as_path()));
    let train = find(&[TRAIN_FILE]).map(|(_, path)| path.as_path());
    let train = train.or_else(|| files.only().filter(|_| validation.is_none()));
    match train {
        Some(path) => Ok([(Split::Train, path)].into_iter().chain(validation).collect()),
        None => {
            let what = format!("`{}` has no `{TRAIN_FILE}`", files.label);
            Err(Error::input(what)
                .help("name the one file of tokens, or a folder with `train.bin` and `val.bin`"))
        }
    }
}

/// How a document ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Eos,
    File,
    Length,
}

/// The ids of a file, one after the other.
struct Ids<'a> {
    path: &'a Path,
    file: BufReader<File>,
    width: Width,
    vocab_size: usize,
    /// How many were read, and are left.
    at: u64,
    left: u64,
}

impl<'a> Ids<'a> {
    fn open(path: &'a Path, width: Width, vocab_size: usize) -> Result<Self> {
        let (name, size) = (path.display(), fs::size(path)?);
        let each = width.bytes() as u64;
        if files::head(path, 4) == LLM_C.to_le_bytes() {
            return Err(Error::input(format!("`{name}` is a token file of llm.c, which has a header"))
                .help("cut its first 1,024 bytes away: `tail -c +1025 OLD > train.bin`"));
        }
        if size == 0 {
            return Err(Error::input(format!("`{name}` is empty, expected token ids")));
        }
        if !size.is_multiple_of(each) {
            let what = format!("`{name}` has {size} bytes, which is no number of ids of {each} bytes");
            return Err(Error::input(what).help("it is cut off, or no file of token ids"));
        }
        let file = BufReader::with_capacity(1 << 20, fs::open(path)?);
        Ok(Ids { path, file, width, vocab_size, at: 0, left: size / each })
    }

    /// The next document with the `eos` that ends it; `None` at the end.
    fn document(&mut self, eos: Option<u32>) -> Result<Option<(Vec<u32>, Ending)>> {
        let mut ids = Vec::new();
        while self.left > 0 {
            let id = self.next()?;
            ids.push(id);
            if Some(id) == eos {
                return Ok(Some((ids, Ending::Eos)));
            }
            if ids.len() == LONGEST_DOCUMENT && self.left > 0 {
                return Ok(Some((ids, Ending::Length)));
            }
        }
        Ok((!ids.is_empty()).then_some((ids, Ending::File)))
    }

    fn next(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        let each = self.width.bytes();
        self.file.read_exact(&mut bytes[..each]).map_err(|e| Error::io("read", self.path, &e))?;
        let id = u32::from_le_bytes(bytes);
        if id as usize >= self.vocab_size {
            return Err(self.beyond(id));
        }
        self.at += 1;
        self.left -= 1;
        Ok(id)
    }

    fn beyond(&self, id: u32) -> Error {
        let (name, at, tokens) = (self.path.display(), self.at, self.vocab_size);
        let byte = at * self.width.bytes() as u64;
        let other = match self.width {
            Width::Two => "4",
            Width::Four => "2",
        };
        let what =
            format!("`{name}`: token {at}, at byte {byte}, is {id}, but the tokenizer has {tokens} tokens");
        Error::input(what)
            .help(format!("was it made with this tokenizer, and are its ids not of {other} bytes?"))
    }
}

/// Writes the tokens of shards, given as in [`Shards::open`], into `train.bin` and, where something is held out,
/// `val.bin`, in the order of the shards.
///
/// # Errors
/// When the shards are damaged, or a file cannot be written.
pub fn export(
    shards: &[(String, std::path::PathBuf)],
    width: Option<Width>,
    into: &Path,
    monitor: &dyn Monitor,
) -> Result<FlatReport> {
    let shards = Shards::open(shards)?;
    let (vocab_size, due) = (shards.vocab_size, Width::of(shards.vocab_size));
    let width = width.unwrap_or(due);
    if due == Width::Four && width == Width::Two {
        let what = format!("ids below {vocab_size} do not fit in 2 bytes");
        return Err(Error::usage(what).help("write 4 bytes an id, and read them as uint32"));
    }
    let write = |split, name| write_split(&shards, split, width, &into.join(name), monitor);
    let train = write(Split::Train, TRAIN_FILE)?;
    let held_out = shards.validation_documents > 0;
    let validation = if held_out { write(Split::Validation, VALIDATION_FILE)? } else { Totals::default() };
    Ok(FlatReport { tokenizer: shards.tokenizer, vocab_size, width, train, validation, unended: 0, cut: 0 })
}

fn write_split(
    shards: &Shards,
    split: Split,
    width: Width,
    path: &Path,
    monitor: &dyn Monitor,
) -> Result<Totals> {
    let mut file = BufWriter::with_capacity(1 << 20, fs::create(path)?);
    let mut totals = Totals { files: 1, ..Totals::default() };
    for shard in shards.files.iter().filter(|shard| shard.split == split) {
        let before = totals;
        for row in Rows::open(&shard.path)? {
            let (id, tokens) = row?;
            expect_known(shard, &id, &tokens)?;
            let bytes = tokens.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width.bytes()));
            file.write_all(&bytes.collect::<Vec<u8>>()).map_err(|e| Error::io("write", path, &e))?;
            totals.documents += 1;
            totals.tokens += tokens.len() as u64;
        }
        let found = (totals.tokens - before.tokens, totals.documents - before.documents);
        let due = (shard.footer.tokens, shard.footer.documents);
        if found != due {
            let (name, (tokens, documents)) = (shard.path.display(), found);
            let what =
                format!("`{name}` is damaged: its footer says {} tokens in {} documents", due.0, due.1);
            return Err(Error::input(format!("{what}, it holds {tokens} in {documents}")));
        }
        totals.bytes += shard.footer.bytes;
        monitor.step("write", totals.tokens, None, "tokens")?;
    }
    file.flush().map_err(|e| Error::io("write", path, &e))?;
    Ok(totals)
}

/// # Errors
/// When a document has an id outside of the vocabulary.
fn expect_known(shard: &ShardFile, document: &str, tokens: &[u32]) -> Result<()> {
    let vocab_size = shard.footer.vocab_size;
    match tokens.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            let what = format!("`{}`: document {document} has the token id {id}", shard.path.display());
            Err(Error::input(format!("{what}, but the vocabulary has {vocab_size} tokens")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::base::damage::damaged;
    use crate::tokenizer::format::strict_words;

    fn words(n: usize) -> Tokenizer {
        strict_words(&(0..n).map(|i| format!("w{i}")).collect::<Vec<_>>()).unwrap()
    }

    fn folder(all: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        all.iter().for_each(|(name, bytes)| fs::write(&dir.path().join(name), bytes).unwrap());
        let files = Files::at(dir.path()).unwrap();
        (dir, files)
    }

    fn u16s(ids: &[u16]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn options(eos: Option<u32>) -> FlatOptions {
        FlatOptions { width: None, eos, shard_tokens: 4 }
    }

    fn shards(folder: &Path) -> Vec<(String, std::path::PathBuf)> {
        Files::at(folder).unwrap().all
    }

    #[test]
    fn token_files_are_cut_at_ends_and_come_back_as_they_were() {
        let (train, val) = (u16s(&[1, 2, 0, 3, 0, 0, 4, 5]), u16s(&[6, 0]));
        let (_from, files) = folder(&[("train.bin", train.clone()), ("val.bin", val.clone())]);
        let to = tempfile::tempdir().unwrap();
        let report = import(&files, &words(7), &options(Some(0)), to.path(), &Quiet).unwrap();
        assert_eq!((report.train.documents, report.train.tokens, report.train.files), (4, 8, 2));
        assert_eq!((report.validation.documents, report.unended, report.cut), (1, 1, 0));
        // "w1 w2 w0", "w3 w0", "w0", "w4 w5"
        assert_eq!((report.train.bytes, report.width), (8 + 5 + 2 + 5, Width::Two));
        let read = Shards::open(&shards(to.path())).unwrap();
        let stream = read.read(Split::Train).unwrap();
        assert_eq!(stream.documents().collect::<Vec<_>>(), [0..3, 3..5, 5..6, 6..8]);
        let back = tempfile::tempdir().unwrap();
        let written = export(&shards(to.path()), None, back.path(), &Quiet).unwrap();
        assert_eq!((written.train.documents, written.validation.tokens), (4, 2));
        assert_eq!(fs::read(&back.path().join("train.bin")).unwrap(), train);
        assert_eq!(fs::read(&back.path().join("val.bin")).unwrap(), val);
        export(&shards(to.path()), Some(Width::Four), back.path(), &Quiet).unwrap();
        let wide: Vec<u8> = [6u32, 0].iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(fs::read(&back.path().join("val.bin")).unwrap(), wide);
    }

    #[test]
    fn one_file_without_ends_is_one_document() {
        let (_from, files) = folder(&[("any.bin", u16s(&[1, 2, 0, 3]))]);
        let to = tempfile::tempdir().unwrap();
        let report = import(&files, &words(4), &options(None), to.path(), &Quiet).unwrap();
        assert_eq!((report.train.documents, report.train.tokens, report.unended), (1, 4, 0));
        let back = tempfile::tempdir().unwrap();
        export(&shards(to.path()), None, back.path(), &Quiet).unwrap();
        assert!(!back.path().join("val.bin").exists());
        let held_out = HeldOut::load(&to.path().join("held_out.json")).unwrap();
        assert_eq!(held_out, HeldOut::default());
    }

    #[test]
    fn a_large_vocabulary_takes_four_bytes() {
        let ids = [70_000u32, 1, 65_536];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let (_from, files) = folder(&[("train.bin", bytes.clone())]);
        let to = tempfile::tempdir().unwrap();
        let report = import(&files, &words(70_001), &options(None), to.path(), &Quiet).unwrap();
        assert_eq!(report.width, Width::Four);
        let back = tempfile::tempdir().unwrap();
        export(&shards(to.path()), None, back.path(), &Quiet).unwrap();
        assert_eq!(fs::read(&back.path().join("train.bin")).unwrap(), bytes);
        let error = export(&shards(to.path()), Some(Width::Two), back.path(), &Quiet).unwrap_err();
        assert!(error.message().contains("ids below 70001 do not fit in 2 bytes"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let four = FlatOptions { width: Some(Width::Four), ..options(None) };
        let llm_c = [LLM_C.to_le_bytes(), [0; 4]].concat();
        for (name, bytes, options, expected) in [
            ("train.bin", Vec::new(), options(None), "is empty, expected token ids"),
            ("train.bin", vec![1], options(None), "has 1 bytes, which is no number of ids of 2 bytes"),
            ("train.bin", vec![0; 6], four.clone(), "has 6 bytes, which is no number of ids of 4 bytes"),
            (
                "train.bin",
                u16s(&[1, 3, 4]),
                options(None),
                "token 2, at byte 4, is 4, but the tokenizer has 4 tokens",
            ),
            ("train.bin", u16s(&[1, 0, 1, 1]), four, "token 1, at byte 4, is 65537"),
            ("train.bin", llm_c, options(None), "is a token file of llm.c, which has a header"),
            ("train.bin", u16s(&[1]), options(Some(4)), "`eos` is 4, but the tokenizer has 4 tokens"),
            ("val.bin", u16s(&[1]), options(None), "has no `train.bin`"),
        ] {
            let (_from, files) = folder(&[(name, bytes)]);
            let to = tempfile::tempdir().unwrap();
            let error = import(&files, &words(4), &options, to.path(), &Quiet).unwrap_err().to_string();
            assert!(error.contains(expected), "expected {expected}, found {error}");
        }
        let (_from, files) = folder(&[("a.bin", u16s(&[1])), ("b.bin", u16s(&[1]))]);
        let error = import(&files, &words(4), &options(None), files.all[0].1.parent().unwrap(), &Quiet);
        assert!(error.unwrap_err().message().contains("has no `train.bin`"));
    }

    #[test]
    fn damaged_files_are_errors_or_other_tokens() {
        for (_, bytes) in damaged(&u16s(&[1, 2, 0, 3, 0, 5].repeat(20))) {
            let (_from, files) = folder(&[("train.bin", bytes.clone())]);
            let to = tempfile::tempdir().unwrap();
            if let Ok(report) = import(&files, &words(6), &options(Some(0)), to.path(), &Quiet) {
                assert_eq!(report.train.tokens, bytes.len() as u64 / 2);
            }
        }
    }
}
