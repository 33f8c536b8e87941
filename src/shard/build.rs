//! Documents and conversations to token shards: encoded in parallel, split by content, shuffled by a
//! keyed digest.
//!
//! Two passes, so that memory stays bounded however large the corpus is. The first encodes in input
//! order and drops each document into one of several scratch files by the leading bits of its
//! shuffle key; the second sorts one scratch file at a time and writes it out. The order is that of
//! the keys alone: it depends neither on how many scratch files there are nor on the threads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::write::{ShardWriter, Totals};
use super::{reader, token_type};
use crate::base::{Digest, Error, Invalid, Monitor, Result, fs};
use crate::corpus::held_out::{Extremes, HeldOut, Rule, Split};
use crate::tokenizer::{Inputs, Special, Text, Tokenizer, chat};

/// About how much text one scratch file holds; it is sorted in memory.
const BUCKET_BYTES: u64 = 64 << 20;
/// Scratch files open at once.
const MOST_BUCKETS: u64 = 256;

/// How the shards are to be made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The fraction of documents, and of conversations, held out, in 0..1: see [`Rule::new`].
    pub validation_fraction: f64,
    /// A file takes no further document once it has this many tokens.
    pub shard_tokens: u64,
    /// Of the order of the documents. The split does not depend on it.
    pub seed: u64,
}

impl Options {
    /// Every param that is out of range.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        if !(0.0..1.0).contains(&self.validation_fraction) {
            let why = format!("must be at least 0 and below 1, found {}", self.validation_fraction);
            found.push(Invalid::new("validation_fraction", why));
        }
        if self.shard_tokens == 0 {
            found.push(Invalid::new("shard_tokens", "must be above 0"));
        }
        found
    }
}

/// What was made; `report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub tokenizer: Digest,
    pub vocab_size: usize,
    /// `uint16` or `uint32`.
    pub token_type: String,
    pub documents: u64,
    pub conversations: u64,
    /// Documents without text, which were left out.
    pub empty: u64,
    /// Tokens for text that is not in the vocabulary.
    pub unknown_tokens: u64,
    /// Bytes of text for each token, special tokens not counted.
    pub bytes_per_token: f64,
    pub train: Totals,
    pub validation: Totals,
}

fn shuffle_key(seed: u64, id: &str) -> u64 {
    let digest = Digest::of(format!("shuffle\0{seed}\0{id}").as_bytes());
    u64::from_be_bytes(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

/// Writes `train-*.parquet` and `validation-*.parquet` into `folder`, and the rules by which a text came
/// into the one or the other ([`HeldOut`]); `scratch` is a folder for temporaries.
///
/// # Errors
/// When an input cannot be read, the tokenizer lacks a special token, there is no text, or a file
/// cannot be written.
pub fn build(
    inputs: &Inputs,
    tokenizer: &Tokenizer,
    options: &Options,
    folder: &Path,
    scratch: &Path,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some(invalid) = options.validate().into_iter().next() {
        return Err(Error::invalid(invalid));
    }
    let mut spill = Spill::create(scratch, bucket_count(inputs)?)?;
    let counts = encode_all(inputs, tokenizer, options, &mut spill, monitor)?;
    if spill.records == 0 {
        return Err(Error::input("there is no text to make shards of")
            .help(format!("{} documents came in, all of them empty", counts.empty)));
    }
    let buckets = spill.finish()?;
    let rule = |texts| Rule::new(options.validation_fraction, texts);
    let rules = [rule(&counts.extremes[0]), rule(&counts.extremes[1])];
    let writer = |split| {
        ShardWriter::new(folder, split, tokenizer.digest(), tokenizer.vocab_size(), options.shard_tokens)
    };
    let (mut train, mut validation) = (writer(Split::Train), writer(Split::Validation));
    for (done, path) in buckets.iter().enumerate() {
        monitor.step("write", done as u64, Some(buckets.len() as u64), "buckets")?;
        for record in sorted(&fs::read(path)?)? {
            let writer = match rules[usize::from(record.conversation)].split(record.id) {
                Split::Train => &mut train,
                Split::Validation => &mut validation,
            };
            writer.push(record.id, &record.tokens(), record.bytes)?;
        }
        fs::remove(path)?;
    }
    let (train, validation) = (train.finish()?, validation.finish()?);
    if validation.documents == 0 && options.validation_fraction > 0.0 {
        tracing::warn!("there are no two different texts: nothing is held out for validation");
    }
    let of = |rule: Rule, count: u64| if count > 0 { vec![rule] } else { Vec::new() };
    let [documents, conversations] = rules;
    let documents = of(documents, counts.documents);
    HeldOut { documents, conversations: of(conversations, counts.conversations) }.save(folder)?;
    Ok(counts.report(tokenizer, train, validation))
}

/// Enough scratch files for each to be sorted in memory.
fn bucket_count(inputs: &Inputs) -> Result<u64> {
    let mut bytes = 0;
    for path in inputs.documents.iter().chain(&inputs.conversations) {
        let metadata = reader(path)?;
        bytes +=
            metadata.metadata().row_groups().iter().map(|g| g.total_byte_size().max(0) as u64).sum::<u64>();
    }
    Ok((bytes / BUCKET_BYTES + 1).min(MOST_BUCKETS))
}

/// What the first pass counts.
#[derive(Default)]
struct Counts {
    documents: u64,
    conversations: u64,
    empty: u64,
    unknown: u64,
    tokens: u64,
    bytes: u64,
    /// Of the documents, and of the conversations.
    extremes: [Extremes; 2],
}

impl Counts {
    fn add(&mut self, record: &Encoded) {
        self.extremes[usize::from(record.conversation)].add(&record.id);
        self.unknown += record.unknown;
        self.tokens += record.plain;
        self.bytes += record.bytes;
    }

    fn report(self, tokenizer: &Tokenizer, train: Totals, validation: Totals) -> Report {
        Report {
            tokenizer: tokenizer.digest(),
            vocab_size: tokenizer.vocab_size(),
            token_type: token_type(tokenizer.vocab_size()).to_string().to_lowercase(),
            documents: self.documents,
            conversations: self.conversations,
            empty: self.empty,
            unknown_tokens: self.unknown,
            bytes_per_token: self.bytes as f64 / self.tokens.max(1) as f64,
            train,
            validation,
        }
    }
}

/// `<bos>` text `<eos>`; a conversation in the chat format, ended by `<eos>` whatever its last role. Gives
/// the ids, and how many of those that are not special tokens spell role names rather than text.
fn encode(text: &Text, tokenizer: &Tokenizer, bos: u32, eos: u32) -> Result<(Vec<u32>, u64)> {
    match text {
        Text::Document(document) => {
            Ok(([&[bos], tokenizer.encode(&document.text)?.as_slice(), &[eos]].concat(), 0))
        }
        Text::Conversation(conversation) => {
            let rendered = chat::render(tokenizer, &conversation.messages)
                .map_err(|e| e.context(format!("conversation `{}`", conversation.id)))?;
            let named = rendered.opening_ids().filter(|id| !tokenizer.is_special(*id)).count() as u64;
            let mut ids = rendered.ids;
            // Another program's chat template may write a line break behind it.
            let ended = tokenizer.has_foreign_template()
                && rendered.turns.last().is_some_and(|turn| ids[turn.clone()].contains(&eos));
            if ids.last() != Some(&eos) && !ended {
                ids.push(eos);
            }
            Ok((ids, named))
        }
    }
}

struct Encoded {
    id: String,
    key: u64,
    conversation: bool,
    bytes: u64,
    ids: Vec<u32>,
    /// How many of `ids` are of text, and how many of unknown text.
    plain: u64,
    unknown: u64,
}

fn encode_all(
    inputs: &Inputs,
    tokenizer: &Tokenizer,
    options: &Options,
    spill: &mut Spill,
    monitor: &dyn Monitor,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let texts = inputs.texts()?;
    let total = texts.total;
    let started = Instant::now();
    let mut done = 0;
    texts.batches(|mut batch| {
        done += batch.texts.len() as u64;
        for text in &batch.texts {
            match text {
                Text::Document(_) => counts.documents += 1,
                Text::Conversation(_) => counts.conversations += 1,
            }
        }
        let all = batch.texts.len();
        batch.texts.retain(|text| text.bytes() > 0);
        counts.empty += (all - batch.texts.len()) as u64;
        encode_batch(&batch.texts, tokenizer, options.seed, spill, &mut counts, monitor)?;
        monitor.step("encode", done, Some(total), "documents")
    })?;
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    monitor.measure("encode", counts.bytes as f64 / 1e6 / seconds, "MB/s");
    Ok(counts)
}

/// Encodes texts in parallel, and spills them in their order.
fn encode_batch(
    texts: &[Text],
    tokenizer: &Tokenizer,
    seed: u64,
    spill: &mut Spill,
    counts: &mut Counts,
    monitor: &dyn Monitor,
) -> Result<()> {
    let (bos, eos) = (tokenizer.require(Special::Bos)?, tokenizer.require(Special::Eos)?);
    let encoded = |text: &Text| {
        monitor.check()?;
        let (ids, named) = encode(text, tokenizer, bos, eos)
            .map_err(|e| e.context(format!("the document {} cannot be encoded", text.id())))?;
        let count = |of: &dyn Fn(u32) -> bool| ids.iter().filter(|id| of(**id)).count() as u64;
        let unknown = count(&|id| Some(id) == tokenizer.unknown());
        Ok(Encoded {
            key: shuffle_key(seed, text.id()),
            conversation: matches!(text, Text::Conversation(_)),
            bytes: text.bytes() as u64,
            plain: unknown + count(&|id| !tokenizer.is_special(id)) - named,
            unknown,
            id: text.id().to_string(),
            ids,
        })
    };
    // Collected whole before looking for errors, so that the first in order is the one reported.
    let encoded: Vec<Result<Encoded>> = texts.par_iter().map(encoded).collect();
    for record in encoded {
        let record = record?;
        counts.add(&record);
        spill.push(&record)?;
    }
    Ok(())
}

/// Scratch files of encoded documents, each with a range of the shuffle keys.
///
/// A record is, in little-endian: key u64, sequence u64, whether it is a
/// conversation u64, bytes u64, id length u32, token
/// count u32, the id, the tokens as u32.
struct Spill {
    files: Vec<(PathBuf, BufWriter<File>)>,
    records: u64,
}

const HEAD: usize = 4 * 8 + 2 * 4;

impl Spill {
    fn create(scratch: &Path, buckets: u64) -> Result<Self> {
        let mut files = Vec::new();
        for i in 0..buckets {
            let path = scratch.join(format!("bucket-{i:03}"));
            files.push((path.clone(), BufWriter::new(fs::create(&path)?)));
        }
        Ok(Spill { files, records: 0 })
    }

    fn push(&mut self, record: &Encoded) -> Result<()> {
        // The leading bits choose the file, so that the files in order hold the keys in order.
        let bucket = ((u128::from(record.key) * self.files.len() as u128) >> 64) as usize;
        let mut bytes = Vec::with_capacity(HEAD + record.id.len() + 4 * record.ids.len());
        for number in [record.key, self.records, u64::from(record.conversation), record.bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend((record.id.len() as u32).to_le_bytes());
        bytes.extend((record.ids.len() as u32).to_le_bytes());
        bytes.extend(record.id.as_bytes());
        bytes.extend(record.ids.iter().flat_map(|id| id.to_le_bytes()));
        self.records += 1;
        let (path, file) = &mut self.files[bucket];
        file.write_all(&bytes).map_err(|e| Error::io("write", path, &e))
    }

    fn finish(self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (path, mut file) in self.files {
            file.flush().map_err(|e| Error::io("write", &path, &e))?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// A record of a scratch file, borrowed from its bytes.
struct Record<'a> {
    key: u64,
    sequence: u64,
    conversation: bool,
    bytes: u64,
    id: &'a str,
    tokens: &'a [u8],
}

impl<'a> Record<'a> {
    /// The first record of `bytes`, and the bytes after it.
    fn split_off(bytes: &'a [u8]) -> Option<(Record<'a>, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let long = |i: usize| Some(u64::from_le_bytes(head.get(8 * i..8 * i + 8)?.try_into().ok()?));
        let short = |i: usize| Some(u32::from_le_bytes(head.get(32 + 4 * i..36 + 4 * i)?.try_into().ok()?));
        let (id, rest) = rest.split_at_checked(short(0)? as usize)?;
        let (tokens, rest) = rest.split_at_checked(4 * short(1)? as usize)?;
        let id = std::str::from_utf8(id).ok()?;
        let (key, sequence, conversation, bytes) = (long(0)?, long(1)?, long(2)? != 0, long(3)?);
        Some((Record { key, sequence, conversation, bytes, id, tokens }, rest))
    }

    fn tokens(&self) -> Vec<u32> {
        let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("chunks of 4"));
        self.tokens.chunks_exact(4).map(word).collect()
    }
}

/// The records of a scratch file in the order of their keys; equal documents in input order.
fn sorted(mut bytes: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = Record::split_off(bytes)
            .ok_or_else(|| Error::input("a scratch file was changed or cut short"))?;
        records.push(record);
        bytes = rest;
    }
    records.sort_by_key(|r| (r.key, r.sequence));
    Ok(records)
}

/// The ids of documents in the order in which `buckets` scratch files give them.
#[cfg(test)]
pub(super) fn order_of(texts: &[String], tokenizer: &Tokenizer, scratch: &Path, buckets: u64) -> Vec<String> {
    let mut spill = Spill::create(scratch, buckets).unwrap();
    let document = |text: &String| crate::corpus::document::Document::new(text.clone(), "a", 0, 1);
    let texts: Vec<Text> = texts.iter().map(|text| Text::Document(document(text))).collect();
    encode_batch(&texts, tokenizer, 1, &mut spill, &mut Counts::default(), &crate::base::Quiet).unwrap();
    let files = spill.finish().unwrap();
    let read = |path: &PathBuf| fs::read(path).unwrap();
    let ids = |bytes: Vec<u8>| sorted(&bytes).unwrap().iter().map(|r| r.id.to_string()).collect::<Vec<_>>();
    files.iter().flat_map(|path| ids(read(path))).collect()
}
