//! Whether a tokenizer that was written in another form still gives the same ids.

use std::path::Path;

use rayon::prelude::*;

use super::Format;
use crate::base::{Error, Files, Result};
use crate::tokenizer::{EachText, Tokenizer};

/// Texts that are unlike those of most corpora: white space, signs, languages, spellings of special tokens.
const ODD_TEXTS: &str = include_str!("../../../tests/fixtures/odd_texts.json");

/// How many texts are encoded at a time.
const BATCH: usize = 4096;

/// Reads back what `form` wrote into `folder`, and encodes `texts` by it and by `tokenizer`. Returns how many
/// texts there were. Odd texts were compared when it was written.
///
/// # Errors
/// The first text whose ids differ, with both.
pub fn check_written(
    form: &dyn Format,
    tokenizer: &Tokenizer,
    folder: &Path,
    texts: &EachText,
) -> Result<u64> {
    let written = form.read(&Files::at(folder)?)?;
    let (mut batch, mut count) = (Vec::new(), 0);
    texts(&mut |text| {
        batch.push(text.to_string());
        count += 1;
        if batch.len() < BATCH {
            return Ok(());
        }
        same(form.name(), tokenizer, &written, &std::mem::take(&mut batch))
    })?;
    same(form.name(), tokenizer, &written, &batch)?;
    Ok(count)
}

/// Compares the ids of odd texts and of the spellings of tokens, those aside that hold one of the characters
/// in `apart`, which the form is known to read otherwise.
pub(super) fn same_on_own_texts(
    form: &str,
    tokenizer: &Tokenizer,
    written: &Tokenizer,
    apart: &[char],
) -> Result<()> {
    let mut texts = [odd_texts()?, spellings(tokenizer)?].concat();
    texts.retain(|text| !text.contains(apart));
    same(form, tokenizer, written, &texts)
}

/// # Errors
/// When the file of them, which is part of the program, is not JSON, which would be a bug.
pub(in crate::tokenizer) fn odd_texts() -> Result<Vec<String>> {
    serde_json::from_str(ODD_TEXTS).map_err(|e| Error::bug(format!("odd_texts.json: {e}")))
}

/// The text of each token alone, and of some neighbours in a row.
fn spellings(tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    let alone = ids.iter().map(|id| tokenizer.decode(&[*id]));
    alone.chain(ids.chunks(16).map(|ids| tokenizer.decode(ids))).collect()
}

fn same(form: &str, own: &Tokenizer, its: &Tokenizer, texts: &[String]) -> Result<()> {
    let differs = |text: &String| match (own.encode(text), its.encode(text)) {
        (Ok(a), Ok(b)) if a == b => None,
        (Err(_), Err(_)) => None,
        (Err(e), Ok(_)) | (Ok(_), Err(e)) => Some(e.context(format!("{text:?} cannot be encoded in both"))),
        (Ok(a), Ok(b)) => Some(difference(form, text, &a, &b)),
    };
    texts.par_iter().find_map_first(differs).map_or(Ok(()), Err)
}

fn difference(form: &str, text: &str, own: &[u32], its: &[u32]) -> Error {
    let same = own.iter().zip(its).take_while(|(a, b)| a == b).count();
    let shown = |ids: &[u32]| {
        let near = &ids[same.saturating_sub(2).min(ids.len())..ids.len().min(same + 8)];
        near.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    };
    let start: String = text.chars().take(80).collect();
    Error::input(format!("as `{form}`, the tokenizer would give other ids than here"))
        .cause(format!("{start:?} is … {} … here and … {} … there", shown(own), shown(its)))
        .help("write it as `tokenizer_json`, which holds every tokenizer")
}
