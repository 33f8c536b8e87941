//! Counts the words of a corpus as the tokenizer to be trained will cut it, held-out documents apart.

use std::collections::HashMap;

use rayon::prelude::*;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::form::{self, Form};
use super::{Algorithm, Options};
use crate::base::{Digest, Error, Monitor, Result};
use crate::tokenizer::cut::Cut;
use crate::tokenizer::{Inputs, Special, Text};

/// Text cut into words at once, in bytes.
const BATCH_BYTES: usize = 4 << 20;

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
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
}

/// What a corpus is cut into.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    pub train: Words,
    pub held_out: Words,
    /// Bytes of text in the whole corpus, of which the above may be a sample.
    pub total_bytes: u64,
}

#[derive(Default)]
struct Side {
    counts: HashMap<String, u64>,
    documents: u64,
    bytes: u64,
}

impl Side {
    fn add(&mut self, counts: HashMap<String, u64>) {
        for (word, count) in counts {
            *self.counts.entry(word).or_default() += count;
        }
    }

    fn finish(self) -> Words {
        let mut words: Vec<Word> =
            self.counts.into_iter().map(|(text, count)| Word { text, count }).collect();
        words.sort_unstable();
        Words { words, documents: self.documents, bytes: self.bytes }
    }
}

/// How a text is cut into words, as the tokenizer to be trained will do it.
pub enum Cutter {
    /// A way that needs no library.
    Quick(Cut),
    /// The library's normalizer, then each character.
    Characters(Box<tokenizers::Tokenizer>),
    /// The library's normalizer and pre-tokenizer.
    Library(Box<tokenizers::Tokenizer>),
}

impl Cutter {
    /// # Errors
    /// When the library does not take our form, which would be a mistake here.
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

    /// Adds the words of `text` to `counts`.
    fn count(&self, text: &str, counts: &mut HashMap<String, u64>) -> Result<()> {
        let mut add = |word: &str| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => drop(counts.insert(word.to_string(), 1)),
        };
        match self {
            Cutter::Quick(cut) => {
                return cut.words(text, |word| {
                    add(word);
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

/// A point in 0..1 that only the id decides, so that a document keeps its fate when others come.
fn point(label: &str, id: &str) -> f64 {
    let digest = Digest::of(format!("{label}\0{id}").as_bytes());
    let bits = u64::from_be_bytes(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"));
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Counts the words of all texts, or of a sample where there are more than `options.sample_bytes`.
///
/// # Errors
/// When an input cannot be read, there is no text, or somebody asked to stop.
pub fn count(inputs: &Inputs, cutter: &Cutter, options: &Options, monitor: &dyn Monitor) -> Result<Counted> {
    let total_bytes = size(inputs, monitor)?;
    if total_bytes == 0 {
        return Err(Error::input("there is no text to train a tokenizer on")
            .help("every document and message that came in is empty"));
    }
    let keep = options.sample_bytes as f64 / total_bytes as f64;
    let is_held_out = |text: &Text| point("held out", text.id()) < options.held_out_fraction;
    let (mut train, mut held_out) = (Side::default(), Side::default());
    let (mut batch, mut waiting, mut read) = (Vec::new(), 0, 0);
    for text in inputs.texts()? {
        let text = text?;
        read += text.bytes() as u64;
        if point("sample", text.id()) >= keep {
            continue;
        }
        let side = if is_held_out(&text) { &mut held_out } else { &mut train };
        side.documents += 1;
        side.bytes += text.bytes() as u64;
        waiting += text.bytes();
        batch.push((is_held_out(&text), text));
        if waiting >= BATCH_BYTES {
            cut(&mut batch, cutter, &mut train, &mut held_out, monitor)?;
            waiting = 0;
            monitor.step("count words", read, Some(total_bytes), "B")?;
        }
    }
    cut(&mut batch, cutter, &mut train, &mut held_out, monitor)?;
    if train.bytes == 0 {
        std::mem::swap(&mut train, &mut held_out);
    }
    let counted = Counted { train: train.finish(), held_out: held_out.finish(), total_bytes };
    if counted.train.words.is_empty() {
        return Err(Error::input(format!(
            "the sample of {} bytes from {total_bytes} bytes of text holds no document",
            options.sample_bytes
        ))
        .help("raise `sample_bytes`"));
    }
    Ok(counted)
}

/// Bytes of text in all inputs.
fn size(inputs: &Inputs, monitor: &dyn Monitor) -> Result<u64> {
    let mut bytes = 0;
    for (i, text) in inputs.texts()?.enumerate() {
        bytes += text?.bytes() as u64;
        if i % 1024 == 0 {
            monitor.check()?;
        }
    }
    Ok(bytes)
}

fn cut(
    batch: &mut Vec<(bool, Text)>,
    cutter: &Cutter,
    train: &mut Side,
    held_out: &mut Side,
    monitor: &dyn Monitor,
) -> Result<()> {
    let counted: Vec<Result<(bool, HashMap<String, u64>)>> = batch
        .par_iter()
        .map(|(is_held_out, text)| {
            monitor.check()?;
            let mut counts = HashMap::new();
            for part in text.parts() {
                cutter.count(part, &mut counts)?;
            }
            Ok((*is_held_out, counts))
        })
        .collect();
    batch.clear();
    for side in counted {
        let (is_held_out, counts) = side?;
        if is_held_out { held_out.add(counts) } else { train.add(counts) }
    }
    Ok(())
}
