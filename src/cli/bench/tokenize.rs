//! `tinylm bench tokenize`: how fast tokenizers are trained and text is encoded, on a text of the user's
//! own; `bench/tokenizing.py` compares other programs.
//!
//! Training is what the stage `train_tokenizer` does: from a documents file to a `tokenizer.json` and its
//! report. Encoding is of the text's lines, all at once, by the tokenizer just trained. Making the
//! documents file is deliberately not measured: other programs have no such step.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::base::{Quiet, Result, fs};
use crate::corpus::document::{Document, DocumentWriter, FILE_NAME};
use crate::tokenizer::train::{self, Algorithm, Options};
use crate::tokenizer::{Inputs, Tokenizer};

/// A document of the file trained on has at least so many bytes, and ends where a line does.
const DOCUMENT_BYTES: usize = 64 << 10;

/// What was measured. Rates are medians over the repetitions, in 10^6 bytes of text a second.
#[derive(Debug, Clone, Serialize)]
pub struct TokenizeFigures {
    /// Of the text.
    pub bytes: usize,
    /// Of the tokenizer trained: less than was asked for when there is not more to learn.
    pub vocab_size: usize,
    pub train_mb_per_s: f64,
    pub encode_mb_per_s: f64,
    /// Of the whole text, encoded.
    pub tokens: usize,
    pub threads: usize,
}

/// Trains a byte-level BPE of up to `vocab_size` tokens on the file `text` and encodes it, `repeat`
/// times (once at least), on the current rayon pool.
///
/// # Errors
/// When the file cannot be read, is not UTF-8 or is empty, or the vocabulary is too small.
pub fn tokenize(text: &Path, vocab_size: usize, repeat: usize) -> Result<TokenizeFigures> {
    let all = fs::read_text(text)?;
    let lines: Vec<&str> = all.split_inclusive('\n').collect();
    let folder = fs::temp_dir(&std::env::temp_dir(), "bench-tokenize-")?;
    let inputs = documents(&lines, folder.path())?;
    let (mut train_seconds, mut encode_seconds) = (Vec::new(), Vec::new());
    let (mut size, mut tokens) = (0, 0);
    for _ in 0..repeat.max(1) {
        let started = Instant::now();
        let tokenizer = trained(&inputs, vocab_size)?;
        train_seconds.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let ids = tokenizer.encode_batch(&lines)?;
        encode_seconds.push(started.elapsed().as_secs_f64());
        (size, tokens) = (tokenizer.vocab_size(), ids.iter().map(Vec::len).sum());
    }
    let rate = |seconds: Vec<f64>| all.len() as f64 / 1e6 / median(seconds).max(1e-9);
    Ok(TokenizeFigures {
        bytes: all.len(),
        vocab_size: size,
        train_mb_per_s: rate(train_seconds),
        encode_mb_per_s: rate(encode_seconds),
        tokens,
        threads: rayon::current_num_threads(),
    })
}

fn documents(lines: &[&str], folder: &Path) -> Result<Inputs> {
    let mut writer = DocumentWriter::create(folder)?;
    let (mut document, mut start) = (String::new(), 0);
    for (i, line) in lines.iter().enumerate() {
        document.push_str(line);
        if document.len() >= DOCUMENT_BYTES || i + 1 == lines.len() {
            let end = start + document.len() as u64;
            writer.push(&Document::new(std::mem::take(&mut document), "text", start, end))?;
            start = end;
        }
    }
    writer.finish()?;
    Ok(Inputs { documents: vec![folder.join(FILE_NAME)], conversations: Vec::new() })
}

fn trained(inputs: &Inputs, vocab_size: usize) -> Result<Tokenizer> {
    let options = Options {
        algorithm: Algorithm::ByteBpe,
        vocab_size,
        min_frequency: 2,
        special_tokens: Vec::new(),
        lowercase: false,
        character_coverage: 1.0,
        max_token_length: usize::MAX,
        sample_bytes: u64::MAX,
        held_out_fraction: 0.0,
    };
    Ok(train::train(inputs, &options, &Quiet)?.tokenizer)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let half = seconds.len() / 2;
    if seconds.len() % 2 == 1 { seconds[half] } else { (seconds[half - 1] + seconds[half]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_of_the_whole_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text = "the fox and the bird near the river\n".repeat(8000);
        fs::write(&path, text.as_bytes()).unwrap();
        let figures = tokenize(&path, 280, 2).unwrap();
        assert_eq!((figures.bytes, figures.vocab_size), (text.len(), 280));
        assert!(figures.tokens > 8000 && figures.tokens < text.len(), "{figures:?}");
        assert!(figures.train_mb_per_s > 0.0 && figures.encode_mb_per_s > 0.0 && figures.threads > 0);
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, b"ab\xFFc").unwrap();
        let error = tokenize(&path, 300, 1).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("UTF-8"), "{error}");
        fs::write(&path, b"").unwrap();
        assert!(tokenize(&path, 300, 1).unwrap_err().to_string().contains("no text"));
        fs::write(&path, b"a b").unwrap();
        assert!(tokenize(&path, 10, 1).unwrap_err().to_string().contains("`vocab_size` is 10"));
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }
}
