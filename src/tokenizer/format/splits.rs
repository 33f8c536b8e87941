//! The ways to split a token into two, in the order in which a list of merges must have them.

use serde_json::{Value, json};
use tokenizers::Model as _;

use crate::base::{Error, Result};

/// The longest token in bytes: far longer than any in use, and short enough for all its splits to be looked
/// up.
pub(super) const LONGEST: usize = 1024;

/// Where a token can be split. Two splits of one token overlap in a text `x y z` when both `x y` and `y z`
/// spell it. Programs that merge by the score of the token take the leftmost, and a list of merges the one
/// that comes first: that is `x y` here. Of a token that repeats a part, such as `aaa`, either could be the
/// left one; there the longer left part comes first, since runs are merged from the left and end with what
/// is left over.
pub(super) fn splits(token: &[u8]) -> Vec<usize> {
    let all = token.len();
    // `x` and `z` are equally long, and `y` begins and ends the token.
    let overlaps = |left: usize| token[left..] == token[..all - left];
    let mut splits: Vec<usize> = (1..all).collect();
    splits.sort_by_key(|left| {
        let first = overlaps(*left) && !overlaps(all - *left);
        (usize::MAX - (*left).max(all - *left), !first, usize::MAX - *left)
    });
    splits
}

/// The first of some words, each with its token, that a BPE model gives other tokens for; `None` when all
/// words are encoded to their token.
///
/// # Errors
/// When the library refuses the model.
pub(super) fn reaches_all<'a>(
    model: &Value,
    mut words: impl Iterator<Item = (&'a str, u32)>,
) -> Result<Option<&'a str>> {
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
    let library = tokenizers::Tokenizer::from_bytes(file.to_string())
        .map_err(|e| Error::input("the tokens and their merges do not fit together").cause(e))?;
    let reached = |word: &str, id: u32| {
        let tokens = library.get_model().tokenize(word);
        tokens.is_ok_and(|tokens| matches!(tokens.as_slice(), [token] if token.id == id))
    };
    Ok(words.find(|(word, id)| !reached(word, *id)).map(|(word, _)| word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_of_overlapping_splits_comes_first() {
        assert_eq!(splits(b"aba"), [2, 1], "[ab][a][ba]");
        assert_eq!(splits(b"ababa"), [4, 1, 2, 3], "[ab][aba][ba]");
        assert_eq!(splits(b"aaa"), [2, 1]);
        assert_eq!(splits(b"abc"), [2, 1]);
        assert!(splits(b"a").is_empty());
    }
}
