//! Counts the words of a corpus as the tokenizer to be trained will cut it, of held-out documents separately.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::FixedState;
use rayon::prelude::*;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::form::{self, Form};
use super::{Algorithm, Options};
use crate::base::{Digest, Error, Monitor, Result};
use crate::tokenizer::cut::Cut;
use crate::tokenizer::in_text::{InText, Segment};
use crate::tokenizer::{Inputs, Special, Text};

/// A distinct word and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    pub text: String,
    pub count: u64,
}

/// The words of some documents, in byte order, each once.
#[derive(Debug, Clone, Default)]
pub struct Words {
    pub words: Vec<Word>,
    /// Special tokens matched in the text, by id, with their counts; they are in no word.
    pub in_text: BTreeMap<u32, u64>,
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
}

impl Words {
    /// [`Words::in_text`] by their spelling, also those that do not occur.
    pub fn in_text_of(&self, options: &Options) -> BTreeMap<String, u64> {
        let all = options.special_tokens().into_iter().zip(0..).filter(|(token, _)| token.in_text());
        all.map(|(token, id)| (token.as_str().to_string(), self.in_text.get(&id).copied().unwrap_or(0)))
            .collect()
    }
}

/// The words of a corpus.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    pub train: Words,
    pub held_out: Words,
    /// Bytes of text in the whole corpus, of which the above may be a sample.
    pub total_bytes: u64,
}

/// How often each word occurs. Results are sorted, so that the order of the map does not matter.
type Counts = HashMap<Box<str>, u64, FixedState>;

/// Special tokens in text, by id.
type InTextCounts = BTreeMap<u32, u64>;

/// The counts of one thread: of documents to train on, and of held-out ones.
type Tally = [Counts; 2];

/// The documents to train on, or those held out.
#[derive(Default)]
struct Side {
    documents: u64,
    bytes: u64,
}

impl Side {
    fn add(&mut self, text: &Text) {
        self.documents += 1;
        self.bytes += text.bytes() as u64;
    }

    fn finish(self, counts: Counts, in_text: InTextCounts, cutter: &Cutter) -> Words {
        let mut words: Vec<Word> = counts
            .into_par_iter()
            .map(|(word, count)| Word { text: cutter.spell(word.into_string()), count })
            .collect();
        words.par_sort_unstable();
        // Different texts may have one spelling in the vocabulary: a space is `▁`.
        words.dedup_by(|next, word| {
            let same = next.text == word.text;
            word.count += if same { next.count } else { 0 };
            same
        });
        Words { words, in_text, documents: self.documents, bytes: self.bytes }
    }
}

/// Merges all; into the largest.
fn together(mut tallies: Vec<Counts>) -> Counts {
    tallies.sort_by_key(HashMap::len);
    let mut all = tallies.pop().unwrap_or_default();
    for (word, count) in tallies.into_iter().flatten() {
        *all.entry(word).or_default() += count;
    }
    all
}

/// The pre-tokenizer of the tokenizer to be trained.
pub enum Cutter {
    /// Without the library.
    Quick(Cut),
    /// The library's normalizer, then each character.
    Characters(Box<tokenizers::Tokenizer>),
    /// The library's normalizer and pre-tokenizer.
    Library(Box<tokenizers::Tokenizer>),
}

impl Cutter {
    /// # Errors
    /// When the library refuses our `tokenizer.json`, which would be a bug.
    pub fn of(options: &Options) -> Result<Self> {
        let form = Form::of(options.algorithm, options.lowercase);
        let unknown = Special::Unk.as_str();
        let model = form::word_level(&[unknown.to_string()], unknown);
        if let Some(cut) = Cut::of(&form.json(model.clone(), &[])) {
            return Ok(Cutter::Quick(cut));
        }
        let library = Box::new(form.library(model, &[])?);
        Ok(match options.algorithm {
            Algorithm::Char => Cutter::Characters(library),
            _ => Cutter::Library(library),
        })
    }

    /// Parts of a text that several threads may count.
    fn parts(&self, text: &str) -> Vec<Range<usize>> {
        match self {
            Cutter::Quick(cut) => cut.parts(text),
            _ => vec![0..text.len()],
        }
    }

    /// Adds the words of a part of `text` to `counts`, as they are before [`Cutter::spell`].
    fn count(&self, text: &str, part: Range<usize>, counts: &mut Counts) -> Result<()> {
        let mut add = |word: &str| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => drop(counts.insert(word.into(), 1)),
        };
        match self {
            Cutter::Quick(cut) => {
                return cut.words(text, part, |word| {
                    add(&text[word]);
                    Ok(())
                });
            }
            Cutter::Characters(library) => {
                let mut buffer = [0; 4];
                normalized(library, text)?.get().chars().for_each(|c| add(c.encode_utf8(&mut buffer)));
            }
            Cutter::Library(library) => {
                let mut cut = PreTokenizedString::from(normalized(library, text)?);
                if let Some(pre_tokenizer) = library.get_pre_tokenizer() {
                    pre_tokenizer.pre_tokenize(&mut cut).map_err(|e| uncut(&e))?;
                }
                let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::None);
                splits.into_iter().for_each(|(word, _, _)| add(word));
            }
        }
        Ok(())
    }

    /// A counted word in the vocabulary's spelling.
    fn spell(&self, word: String) -> String {
        match self {
            Cutter::Quick(cut) => cut.spell(&word),
            _ => word,
        }
    }
}

fn normalized(library: &tokenizers::Tokenizer, text: &str) -> Result<NormalizedString> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = library.get_normalizer() {
        normalizer.normalize(&mut normalized).map_err(|e| uncut(&e))?;
    }
    Ok(normalized)
}

fn uncut(error: &dyn std::fmt::Display) -> Error {
    Error::input("a text cannot be cut into words").cause(error)
}

/// A point in 0..1 from the id alone, so that a document stays held out or not when others are added.
fn point(label: &str, id: &str) -> f64 {
    let digest = Digest::of(format!("{label}\0{id}").as_bytes());
    let bits = u64::from_be_bytes(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"));
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Counts the words of all texts, or of a sample where there are more than `options.sample_bytes`.
///
/// # Errors
/// When an input cannot be read, there is no text, or on cancellation.
pub fn count(inputs: &Inputs, cutter: &Cutter, options: &Options, monitor: &dyn Monitor) -> Result<Counted> {
    let total_bytes = size(inputs, monitor)?;
    if total_bytes == 0 {
        return Err(Error::input("there is no text to train a tokenizer on")
            .help("every document and message that came in is empty"));
    }
    let keep = options.sample_bytes as f64 / total_bytes as f64;
    let is_held_out = |text: &Text| point("held out", text.id()) < options.held_out_fraction;
    let (mut train, mut held_out, mut read) = (Side::default(), Side::default(), 0);
    let tallies = Mutex::default();
    let in_text = options.in_text()?;
    let mut found = <[InTextCounts; 2]>::default();
    inputs.texts()?.batches(|batch| {
        let sampled = batch.texts.iter().filter(|text| point("sample", text.id()) < keep);
        let chosen: Vec<(&Text, bool)> = sampled.map(|text| (text, is_held_out(text))).collect();
        for (text, is_held_out) in &chosen {
            if *is_held_out { held_out.add(text) } else { train.add(text) }
        }
        let segments = segments(&chosen, in_text.as_ref(), &mut found);
        tally(&segments, cutter, &tallies, monitor)?;
        read += batch.bytes as u64;
        monitor.step("count words", read, Some(total_bytes), "B")
    })?;
    let tallies = tallies.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (mut words, mut held_out_words): (Vec<Counts>, Vec<Counts>) =
        tallies.into_iter().map(|[train, held_out]| (train, held_out)).unzip();
    let [mut in_train, mut in_held_out] = found;
    if train.bytes == 0 {
        std::mem::swap(&mut in_train, &mut in_held_out);
        std::mem::swap(&mut train, &mut held_out);
        std::mem::swap(&mut words, &mut held_out_words);
    }
    let counted = Counted {
        train: train.finish(together(words), in_train, cutter),
        held_out: held_out.finish(together(held_out_words), in_held_out, cutter),
        total_bytes,
    };
    if counted.train.words.is_empty() {
        return Err(Error::input(format!(
            "the sample of {} bytes from {total_bytes} bytes of text holds no document",
            options.sample_bytes
        ))
        .help("raise `sample_bytes`"));
    }
    Ok(counted)
}

/// Bytes of text in all inputs: from their statistics, else by reading them.
fn size(inputs: &Inputs, monitor: &dyn Monitor) -> Result<u64> {
    let texts = inputs.texts()?;
    if let Some(bytes) = texts.bytes {
        return Ok(bytes);
    }
    let mut bytes = 0;
    for (i, text) in texts.enumerate() {
        bytes += text?.bytes() as u64;
        if i % 1024 == 0 {
            monitor.check()?;
        }
    }
    Ok(bytes)
}

/// The text between special tokens, which are counted, each part with whether it is held out.
fn segments<'a>(
    texts: &[(&'a Text, bool)],
    in_text: Option<&InText>,
    found: &mut [InTextCounts; 2],
) -> Vec<(&'a str, bool)> {
    let parts =
        texts.iter().flat_map(|(text, is_held_out)| text.parts().into_iter().map(|p| (p, *is_held_out)));
    let Some(in_text) = in_text else { return parts.collect() };
    let mut segments = Vec::new();
    for (part, is_held_out) in parts {
        for segment in in_text.segments(part) {
            match segment {
                Segment::Text(text) => segments.push((text, is_held_out)),
                Segment::Token(id) => *found[usize::from(is_held_out)].entry(id).or_default() += 1,
            }
        }
    }
    segments
}

/// Counts the words of texts, each with whether it is held out, in parallel. A thread takes a free tally,
/// so that there are as many as threads.
fn tally(
    texts: &[(&str, bool)],
    cutter: &Cutter,
    tallies: &Mutex<Vec<Tally>>,
    monitor: &dyn Monitor,
) -> Result<()> {
    let parts: Vec<(&str, Range<usize>, bool)> = texts
        .iter()
        .flat_map(|(text, is_held_out)| {
            cutter.parts(text).into_iter().map(move |part| (*text, part, *is_held_out))
        })
        .collect();
    let all = || tallies.lock().unwrap_or_else(PoisonError::into_inner);
    let count = |(text, part, is_held_out): (&str, Range<usize>, bool)| {
        monitor.check()?;
        let free = all().pop();
        let mut tally = free.unwrap_or_default();
        let done = cutter.count(text, part, &mut tally[usize::from(is_held_out)]);
        all().push(tally);
        done
    };
    parts.into_par_iter().map(count).collect()
}
