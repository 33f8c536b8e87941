//! Encodes a text: user-defined tokens are found first, what lies between them is left to the model's rules.

use std::ops::Range;

use aho_corasick::AhoCorasick;

use super::bpe::Bpe;
use super::pairs::Pairs;
use super::spm::Spm;
use super::unigram::{Best, Unigram};
use super::wordpiece::WordPiece;
use super::{GgufVocabulary, Ids, VocabularyModel, token_type};
use crate::base::{Error, Result};
use crate::tokenizer::cache::WordCache;

/// Tokens that llama.cpp takes for special by their spelling, whatever their type is: those that end a text or
/// a turn, and those of filling in the middle.
const SPECIAL_BY_NAME: [&str; 50] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
    "<|fim_pad|>",
    "<PAD>",
    "[PAD]",
    "<|file_sep|>",
];

/// Tokens that llama.cpp takes for user-defined by their spelling.
const USER_DEFINED_BY_NAME: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Encodes texts by the rules of llama.cpp: see [`GgufVocabulary::encoder`].
pub struct Encoder<'a> {
    ids: Ids<'a>,
    in_text: Option<InText<'a>>,
    rules: Rules,
}

enum Rules {
    Bpe(Bpe),
    Spm(Spm),
    Unigram(Unigram),
    WordPiece(WordPiece),
}

/// Buffers and caches of encoding, for one encoder and one thread.
#[derive(Default)]
pub struct Buffers {
    pub cache: WordCache,
    pub words: Vec<Range<usize>>,
    pub spare: Vec<Range<usize>>,
    pub pairs: Pairs,
    pub escaped: String,
    pub best: Vec<Best>,
}

/// A part of a text.
#[derive(Debug, Clone)]
enum Fragment {
    Text(Range<usize>),
    Token(u32),
}

impl<'a> Encoder<'a> {
    pub(super) fn of(vocabulary: &'a GgufVocabulary) -> Result<Self> {
        let ids = vocabulary.ids()?;
        let rules = match vocabulary.model {
            VocabularyModel::Bpe => Rules::Bpe(Bpe::of(vocabulary, &ids)?),
            VocabularyModel::Spm => Rules::Spm(Spm::of(vocabulary, &ids)?),
            VocabularyModel::Unigram => Rules::Unigram(Unigram::of(vocabulary)?),
            VocabularyModel::WordPiece => Rules::WordPiece(WordPiece::of(vocabulary)?),
        };
        Ok(Encoder { in_text: InText::of(vocabulary)?, rules, ids })
    }

    /// The ids of a text, neither bos nor eos added.
    ///
    /// # Errors
    /// When llama.cpp would fail: it has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, &mut Buffers::default())
    }

    /// [`Encoder::encode`] with buffers, which must not be used with another encoder.
    pub(super) fn encode_with(&self, text: &str, buffers: &mut Buffers) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 8);
        for fragment in self.fragments(text) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(part) => self.encode_part(&text[part], buffers, &mut out)?,
            }
        }
        Ok(out)
    }

    /// Appends the ids of a part without user-defined tokens. What is before it is such a token, or nothing.
    fn encode_part(&self, text: &str, buffers: &mut Buffers, out: &mut Vec<u32>) -> Result<()> {
        match &self.rules {
            Rules::Bpe(bpe) => bpe.encode(&self.ids, text, buffers, out),
            Rules::Spm(spm) => return spm.encode(&self.ids, text, buffers, out),
            Rules::Unigram(unigram) => unigram.encode(text, buffers, out),
            Rules::WordPiece(pieces) => pieces.encode(&self.ids, text, out),
        }
        Ok(())
    }

    /// Whether a character is a token.
    pub(super) fn has_piece(&self, c: char) -> bool {
        self.ids.contains_key(&*c.encode_utf8(&mut [0; 4]))
    }

    fn fragments(&self, text: &str) -> Vec<Fragment> {
        match &self.in_text {
            Some(in_text) => in_text.fragments(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Fragment::Text(0..text.len())],
        }
    }
}

/// Whether a token is matched in text, before anything else is done.
pub fn is_in_text(vocabulary: &GgufVocabulary, id: u32) -> bool {
    let token = vocabulary.tokens[id as usize].as_str();
    let defined = vocabulary.type_of(id) == token_type::USER_DEFINED && !SPECIAL_BY_NAME.contains(&token);
    !token.is_empty() && (defined || USER_DEFINED_BY_NAME.contains(&token))
}

/// The user-defined tokens: the longest is searched for first, in all of the text, then the next in what is
/// left.
struct InText<'a> {
    /// The longest first.
    tokens: Vec<(&'a str, u32)>,
    /// Finds those that occur at all.
    any: AhoCorasick,
}

impl<'a> InText<'a> {
    fn of(vocabulary: &'a GgufVocabulary) -> Result<Option<Self>> {
        let tokens = vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id as u32));
        let mut tokens: Vec<_> = tokens.filter(|(_, id)| is_in_text(vocabulary, *id)).collect();
        if tokens.is_empty() {
            return Ok(None);
        }
        tokens.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let any = AhoCorasick::new(tokens.iter().map(|(token, _)| token));
        let any =
            any.map_err(|e| Error::input("user-defined tokens cannot be looked for in text").cause(e))?;
        Ok(Some(InText { tokens, any }))
    }

    fn fragments(&self, text: &str) -> Vec<Fragment> {
        let mut fragments = Vec::from_iter(Some(Fragment::Text(0..text.len())).filter(|_| !text.is_empty()));
        let mut occur = vec![false; self.tokens.len()];
        for found in self.any.find_overlapping_iter(text) {
            occur[found.pattern().as_usize()] = true;
        }
        for ((token, id), _) in self.tokens.iter().zip(occur).filter(|(_, occurs)| *occurs) {
            fragments = fragments.into_iter().flat_map(|f| cut_out(f, text, token, *id)).collect();
        }
        fragments
    }
}

/// A fragment without the occurrences of a token in it.
fn cut_out(fragment: Fragment, text: &str, token: &str, id: u32) -> Vec<Fragment> {
    let Fragment::Text(part) = fragment else { return vec![fragment] };
    let mut out = Vec::new();
    let mut at = part.start;
    while let Some(found) = text[at..part.end].find(token) {
        out.extend(Some(Fragment::Text(at..at + found)).filter(|_| found > 0));
        out.push(Fragment::Token(id));
        at += found + token.len();
    }
    out.extend(Some(Fragment::Text(at..part.end)).filter(|_| at < part.end));
    out
}
