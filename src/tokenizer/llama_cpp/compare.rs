//! Whether llama.cpp encodes texts as a tokenizer does.

use rayon::prelude::*;

use super::encoder::Buffers;
use super::{Encoder, GgufVocabulary};
use crate::base::{Error, Result};
use crate::tokenizer::{EachText, Tokenizer};

/// Texts that are unlike those of most corpora: white space, signs, languages, spellings of special tokens.
/// Scripts that compare with llama.cpp itself read the same file.
const ODD_TEXTS: &str = include_str!("../../../tests/fixtures/odd_texts.json");

/// Texts are compared in parallel, so many bytes at a time.
const BATCH_BYTES: usize = 8 << 20;

impl GgufVocabulary {
    /// Encodes texts by llama.cpp's rules and by `tokenizer`: [`odd_texts`], and those of `texts`. Returns how
    /// many there were.
    ///
    /// # Errors
    /// The first text with different ids, with an excerpt and both ids; and errors of `texts`.
    pub fn compare(&self, tokenizer: &Tokenizer, texts: &EachText) -> Result<u64> {
        let encoder = self.encoder()?;
        let comparison = Comparison { vocabulary: self, encoder: &encoder, tokenizer };
        let odd = odd_texts()?;
        comparison
            .check(&odd)
            .map_err(|e| e.help("the text is one of the odd texts that are always compared"))?;
        let (mut batch, mut bytes, mut count) = (Vec::new(), 0, odd.len() as u64);
        texts(&mut |text| {
            bytes += text.len();
            batch.push(text.to_string());
            if bytes < BATCH_BYTES {
                return Ok(());
            }
            (bytes, count) = (0, count + batch.len() as u64);
            comparison.check(&std::mem::take(&mut batch))
        })?;
        comparison.check(&batch)?;
        Ok(count + batch.len() as u64)
    }
}

/// The odd texts that are always compared.
///
/// # Errors
/// When the file of them, which is part of the program, is not JSON, which would be a bug.
pub fn odd_texts() -> Result<Vec<String>> {
    serde_json::from_str(ODD_TEXTS).map_err(|e| Error::bug(format!("odd_texts.json: {e}")))
}

struct Comparison<'a> {
    vocabulary: &'a GgufVocabulary,
    encoder: &'a Encoder<'a>,
    tokenizer: &'a Tokenizer,
}

impl Comparison<'_> {
    /// # Errors
    /// The first of `texts` that differs.
    fn check(&self, texts: &[String]) -> Result<()> {
        let error =
            texts.par_iter().map_init(Buffers::default, |buffers, text| self.check_text(text, buffers).err());
        error.find_map_first(|error| error).map_or(Ok(()), Err)
    }

    fn check_text(&self, text: &str, buffers: &mut Buffers) -> Result<()> {
        let own = self.tokenizer.encode(text)?;
        let its = self.encoder.encode_with(text, buffers)?;
        if own == its { Ok(()) } else { Err(self.difference(text, &own, &its)) }
    }

    fn difference(&self, text: &str, own: &[u32], its: &[u32]) -> Error {
        let same = own.iter().zip(its).take_while(|(a, b)| a == b).count();
        let shown = |ids: &[u32]| {
            let near = &ids[same.saturating_sub(2)..ids.len().min(same + 8)];
            let token = |id: &u32| format!("{id} {:?}", self.vocabulary.tokens[*id as usize]);
            near.iter().map(token).collect::<Vec<_>>().join(", ")
        };
        Error::input(format!("llama.cpp would encode {} differently", self.excerpt(text, &own[..same])))
            .cause(format!("this tokenizer: … {}", shown(own)))
            .cause(format!("llama.cpp: … {}", shown(its)))
    }

    /// The text around the end of its first ids.
    fn excerpt(&self, text: &str, ids: &[u32]) -> String {
        let before = self.tokenizer.decode(ids).ok().filter(|before| text.starts_with(before.as_str()));
        let at = before.map_or(0, |before| before.len());
        let start = text[..at].char_indices().rev().nth(29).map_or(0, |(i, _)| i);
        let end = text[at..].char_indices().nth(50).map_or(text.len(), |(i, _)| at + i);
        let dots = |cut: bool| if cut { "…" } else { "" };
        format!("{}{:?}{}", dots(start > 0), &text[start..end], dots(end < text.len()))
    }
}
