//! Whether llama.cpp encodes texts as a tokenizer does.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::encoder::Buffers;
use super::limits::{Limit, Limits};
use super::{Encoder, GgufVocabulary};
use crate::base::{Error, Result};
use crate::tokenizer::format::odd_texts;
use crate::tokenizer::{EachText, Tokenizer};

/// Texts are compared in parallel, so many bytes at a time.
const BATCH_BYTES: usize = 8 << 20;

impl GgufVocabulary {
    /// Compares the ids of texts by llama.cpp's rules with those of `tokenizer`: of some odd texts, and of
    /// `texts`. Returns how many texts there were.
    ///
    /// An odd text may differ for a reason that is known: WordPiece, for example, treats form feeds otherwise
    /// there. That is a warning; of `texts`, all must be the same.
    ///
    /// # Errors
    /// The first text with different ids, with an excerpt and both ids; and errors of `texts`.
    pub fn compare(&self, tokenizer: &Tokenizer, texts: &EachText) -> Result<u64> {
        let encoder = self.encoder()?;
        let limits = Limits::of(self, &encoder, tokenizer)?;
        let comparison = Comparison { vocabulary: self, encoder: &encoder, tokenizer, limits };
        let odd = odd_texts()?;
        comparison.check_odd(&odd)?;
        let (mut batch, mut bytes, mut count) = (Vec::new(), 0, odd.len() as u64);
        texts(&mut |text| {
            count += 1;
            bytes += text.len();
            batch.push(text.to_string());
            if bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            comparison.check(&std::mem::take(&mut batch))
        })?;
        comparison.check(&batch)?;
        Ok(count)
    }
}

struct Comparison<'a> {
    vocabulary: &'a GgufVocabulary,
    encoder: &'a Encoder<'a>,
    tokenizer: &'a Tokenizer,
    limits: Limits<'a>,
}

/// The two ids of a text that has two.
struct Difference<'a> {
    text: &'a str,
    own: Vec<u32>,
    its: Vec<u32>,
}

impl Comparison<'_> {
    /// # Errors
    /// The first of the odd texts that differs, unless the reason is known.
    fn check_odd(&self, texts: &[String]) -> Result<()> {
        let mut known: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for text in texts {
            let Some(difference) = self.difference(text, &mut Buffers::default())? else { continue };
            match self.limits.find(text, &difference.own) {
                Some(limit) => known.entry(limit.reason).or_default().push(text),
                None => return Err(self.error(&difference).help("the text is one that is always compared")),
            }
        }
        for (reason, found) in known {
            let (some, all) = (found.len(), texts.len());
            tracing::warn!(
                "{reason}: of {all} odd texts, {some} have other ids there, such as {:?}",
                found[0]
            );
        }
        Ok(())
    }

    /// # Errors
    /// The first of `texts` that differs.
    fn check(&self, texts: &[String]) -> Result<()> {
        let differences =
            texts.par_iter().map_init(Buffers::default, |buffers, text| self.difference(text, buffers));
        match differences.find_map_first(Result::transpose) {
            None => Ok(()),
            Some(difference) => {
                let difference = difference?;
                let error = self.error(&difference);
                Err(match self.limits.find(difference.text, &difference.own) {
                    Some(Limit { reason, help }) => error.help(reason).help(help),
                    None => error,
                })
            }
        }
    }

    fn difference<'a>(&self, text: &'a str, buffers: &mut Buffers) -> Result<Option<Difference<'a>>> {
        let own = self.tokenizer.encode(text)?;
        let its = self.encoder.encode_with(text, buffers)?;
        Ok((own != its).then_some(Difference { text, own, its }))
    }

    fn error(&self, Difference { text, own, its }: &Difference) -> Error {
        let same = own.iter().zip(its).take_while(|(a, b)| a == b).count();
        let shown = |ids: &[u32]| {
            let start = same.saturating_sub(2);
            let token = |id: &u32| match self.vocabulary.tokens.get(*id as usize) {
                Some(token) => format!("{id} {token:?}"),
                None => id.to_string(),
            };
            let near: Vec<String> = ids[start..].iter().take(8).map(token).collect();
            let dots = |cut: bool| if cut { "… " } else { "" };
            let (before, after) = (dots(start > 0), dots(ids.len() > start + near.len()));
            format!("{before}{} {after}", near.join(", ")).trim_end().to_string()
        };
        Error::input(format!("llama.cpp would encode {} differently", self.excerpt(text, &own[..same])))
            .cause(format!("this tokenizer gives it {}", shown(own)))
            .cause(format!("llama.cpp would give it {}", shown(its)))
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
