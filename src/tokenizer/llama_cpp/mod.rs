//! The vocabulary of a GGUF file, and llama.cpp's own rules of encoding text with it, so that a model can
//! be exchanged with llama.cpp and be known to see the same ids there.
//!
//! [`GgufVocabulary`] knows nothing of GGUF's container: its fields are the values of `tokenizer.*` keys
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). [`Encoder`] is a second implementation of
//! the rules of llama.cpp's `src/llama-vocab.cpp` (as of November 2026), with the Unicode tables of the
//! `tokenizers` library.

mod bpe;
mod compare;
mod encoder;
mod into_json;
mod into_pieces;
mod limits;
mod of_json;
mod of_pieces;
mod pairs;
mod pre;
mod spm;
mod unigram;
mod wordpiece;

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::base::{Error, Result, suggest};

pub use encoder::Encoder;

/// `tokenizer.ggml.model`: by which rules text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabularyModel {
    /// `gpt2`: byte-level BPE with ranks of merges.
    Bpe,
    /// `llama`: SentencePiece's BPE, which merges by scores of tokens.
    Spm,
    /// `t5`: SentencePiece's unigram language model.
    Unigram,
    /// `bert`: WordPiece.
    WordPiece,
}

impl VocabularyModel {
    pub const ALL: [VocabularyModel; 4] =
        [VocabularyModel::Bpe, VocabularyModel::Spm, VocabularyModel::Unigram, VocabularyModel::WordPiece];

    /// As `tokenizer.ggml.model` has it.
    pub fn name(self) -> &'static str {
        match self {
            VocabularyModel::Bpe => "gpt2",
            VocabularyModel::Spm => "llama",
            VocabularyModel::Unigram => "t5",
            VocabularyModel::WordPiece => "bert",
        }
    }

    /// # Errors
    /// When it is none of those that are supported here.
    pub fn of_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            Error::input(format!("`tokenizer.ggml.model` is `{name}`, which is not supported"))
                .help(format!("supported are {}", suggest::list(Self::ALL.map(Self::name))))
        })
    }
}

/// The values of `tokenizer.ggml.token_type`.
pub mod token_type {
    pub const NORMAL: i32 = 1;
    /// The unknown token.
    pub const UNKNOWN: i32 = 2;
    /// A special token, which text is not encoded to.
    pub const CONTROL: i32 = 3;
    /// Matched in text before anything else.
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    /// `<0x0A>`, a single byte.
    pub const BYTE: i32 = 6;
}

/// The vocabulary of a GGUF file. Each field is named with its key; `None` where the file does not have it.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`
    pub model: VocabularyModel,
    /// `tokenizer.ggml.pre`: how [`VocabularyModel::Bpe`] cuts text into words.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, a value of [`token_type`] for each token; empty where the file has none.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.scores`, one for each token
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`: two tokens each, with a space between them
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn of a conversation
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id`, spelled so
    pub separator: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub padding: Option<u32>,
    /// `tokenizer.ggml.mask_token_id`
    pub mask: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.normalizer.lowercase`, of [`VocabularyModel::WordPiece`]
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`, of [`VocabularyModel::WordPiece`]
    pub strip_accents: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`: SentencePiece's normalization rules
    pub precompiled_charsmap: Option<Vec<u8>>,
    /// `tokenizer.chat_template`, in Jinja
    pub chat_template: Option<String>,
}

impl GgufVocabulary {
    /// One with these tokens, of the given types, and nothing else.
    pub fn new(model: VocabularyModel, tokens: Vec<String>, types: Vec<i32>) -> Self {
        GgufVocabulary {
            model,
            pre: None,
            tokens,
            types,
            scores: None,
            merges: None,
            bos: None,
            eos: None,
            eot: None,
            unknown: None,
            separator: None,
            padding: None,
            mask: None,
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            lowercase: None,
            strip_accents: None,
            precompiled_charsmap: None,
            chat_template: None,
        }
    }

    /// The ids of special tokens, with their keys.
    pub fn special_ids(&self) -> [(&'static str, Option<u32>); 7] {
        [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
            ("tokenizer.ggml.seperator_token_id", self.separator),
            ("tokenizer.ggml.padding_token_id", self.padding),
            ("tokenizer.ggml.mask_token_id", self.mask),
        ]
    }

    /// The ids of `text` by llama.cpp's rules, special tokens not parsed, and neither bos nor eos added. For
    /// several texts, make one [`Encoder`].
    ///
    /// # Errors
    /// As [`GgufVocabulary::encoder`] and [`Encoder::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encoder()?.encode(text)
    }

    /// Encodes text by llama.cpp's rules.
    ///
    /// # Errors
    /// When the vocabulary is damaged (the message names the key), or its `pre` is not known here.
    pub fn encoder(&self) -> Result<Encoder<'_>> {
        Encoder::of(self)
    }

    /// # Errors
    /// When there are no scores, or one is not a number.
    fn finite_scores(&self) -> Result<&[f32]> {
        let model = self.model.name();
        let scores = self.scores.as_deref().ok_or_else(|| {
            Error::input(format!("`tokenizer.ggml.scores` is missing, which a `{model}` vocabulary needs"))
        })?;
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(at) => Err(Error::input(format!("`tokenizer.ggml.scores`: entry {at} is {}", scores[at]))),
        }
    }

    /// The id of the unknown token, which is `default` where no key says it.
    ///
    /// # Errors
    /// When there is no such token.
    fn unknown_or(&self, default: u32) -> Result<u32> {
        let id = self.unknown.or(Some(default).filter(|id| (*id as usize) < self.tokens.len()));
        let model = self.model.name();
        id.ok_or_else(|| {
            Error::input(format!(
                "`tokenizer.ggml.unknown_token_id` is missing, which a `{model}` vocabulary needs"
            ))
        })
    }

    /// The type of a token.
    fn type_of(&self, id: u32) -> i32 {
        self.types.get(id as usize).copied().unwrap_or(token_type::NORMAL)
    }

    /// The ids by token.
    ///
    /// # Errors
    /// When a key has another length than `tokens`, a token is there twice, or an id of a special token is
    /// too high.
    fn ids(&self) -> Result<Ids<'_>> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(Error::input("`tokenizer.ggml.tokens` is empty"));
        }
        self.check_length("tokenizer.ggml.token_type", Some(self.types.len()).filter(|len| *len > 0))?;
        self.check_length("tokenizer.ggml.scores", self.scores.as_ref().map(Vec::len))?;
        for (key, id) in self.special_ids() {
            if let Some(id) = id.filter(|id| *id as usize >= count) {
                return Err(Error::input(format!("`{key}` is {id}, and there are {count} tokens")));
            }
        }
        let mut ids = Ids::with_capacity_and_hasher(count, FixedState::default());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id as u32) {
                return Err(duplicate(token, first, id));
            }
        }
        Ok(ids)
    }

    fn check_length(&self, key: &str, len: Option<usize>) -> Result<()> {
        match len.filter(|len| *len != self.tokens.len()) {
            None => Ok(()),
            Some(len) => {
                let tokens = self.tokens.len();
                Err(Error::input(format!("`{key}` has {len} values for {tokens} tokens")))
            }
        }
    }
}

/// The ids by token.
type Ids<'a> = HashMap<&'a str, u32, FixedState>;

fn duplicate(token: &str, first: u32, second: usize) -> Error {
    Error::input(format!("the token {token:?} has two ids, {first} and {second}")).help(
        "llama.cpp refuses `tokenizer.ggml.tokens` with a token twice, since text could not be encoded to \
         both",
    )
}

#[cfg(test)]
mod tests;
