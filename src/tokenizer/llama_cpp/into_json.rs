//! A `tokenizer.json` for the vocabulary of a GGUF file.

use serde_json::{Map, Value, json};

use super::bpe::halves;
use super::encoder::is_in_text;
use super::pre::{DEFAULT, GPT2, Pre};
use super::{Encoder, GgufVocabulary, VocabularyModel, token_type};
use crate::base::{Error, Result};
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::format::odd_texts;
use crate::tokenizer::{Names, Tokenizer};

/// White space that the library's WordPiece drops as control characters, and llama.cpp ends words at.
pub const OTHER_BLANKS: &str = r"[\x0B\x0C\u{85}]";

impl GgufVocabulary {
    /// A tokenizer that gives the same ids; `file` is what messages call the GGUF file. A warning says how many
    /// odd texts have other ids, if any: WordPiece, for example, lowers case otherwise in llama.cpp.
    ///
    /// # Errors
    /// When the vocabulary is damaged, or asks for what is not supported here.
    pub fn into_tokenizer(self, file: &str) -> Result<Tokenizer> {
        let read = || -> Result<Tokenizer> {
            let encoder = self.encoder()?;
            let library =
                tokenizers::Tokenizer::from_bytes(self.json()?.to_string()).and_then(|t| t.to_string(true));
            let json = library.map_err(|e| Error::input("its vocabulary does not fit together").cause(e))?;
            let tokenizer = Tokenizer::parse_with(file, json.into_bytes(), &self.names(file))?;
            warn_of_others(file, &encoder, &tokenizer)?;
            Ok(tokenizer)
        };
        read().map_err(|e| e.context(format!("the vocabulary of `{file}` cannot be used")))
    }

    fn names(&self, file: &str) -> Names {
        let name = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize)).cloned();
        let (bos, eos) = self.ends();
        Names {
            bos: name(bos),
            eos: name(eos),
            pad: name(self.padding),
            chat_template_file: self.chat_template.is_some().then(|| file.to_string()),
            chat_template: self.chat_template.clone(),
            ends: self.eot.filter(|eot| Some(*eot) != eos).into_iter().collect(),
            ..Names::default()
        }
    }

    /// What begins and what ends a text: without a key, llama.cpp takes fixed ids.
    fn ends(&self) -> (Option<u32>, Option<u32>) {
        match self.model {
            VocabularyModel::Bpe => (self.bos, self.eos),
            VocabularyModel::Spm => (self.bos.or(Some(1)), self.eos.or(Some(2))),
            VocabularyModel::Unigram => (self.bos, self.eos.or(Some(1))),
            VocabularyModel::WordPiece => (self.bos.or(Some(101)), self.eos.or(self.separator).or(Some(102))),
        }
    }

    fn json(&self) -> Result<Value> {
        let parts = match self.model {
            VocabularyModel::Bpe => self.byte_level()?,
            VocabularyModel::Spm => self.spm()?,
            VocabularyModel::Unigram => self.unigram()?,
            VocabularyModel::WordPiece => self.word_piece()?,
        };
        let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "post_processor": null,
            "normalizer": null, "added_tokens": self.added()});
        for (key, part) in parts {
            json[key] = part;
        }
        Ok(json)
    }

    /// Special tokens and those that are matched in text.
    fn added(&self) -> Vec<Value> {
        let ids = 0..self.tokens.len() as u32;
        let added = ids.filter_map(|id| {
            let content = &self.tokens[id as usize];
            let special = self.is_special(id);
            (special || is_in_text(self, id)).then(|| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            })
        });
        added.collect()
    }

    /// Whether a token is special: by its type, or since a key names it.
    pub(super) fn is_special(&self, id: u32) -> bool {
        let (bos, eos) = self.ends();
        let keys = self.special_ids().map(|(_, special)| special);
        let named = keys.into_iter().chain([bos, eos]).any(|special| special == Some(id));
        !is_in_text(self, id)
            && (named
                || matches!(
                    self.type_of(id),
                    token_type::CONTROL | token_type::UNKNOWN | token_type::USER_DEFINED
                ))
    }

    fn byte_level(&self) -> Result<Parts> {
        let pre = Pre::named(self.pre.as_deref().unwrap_or(DEFAULT))?;
        let mut seen = std::collections::HashSet::new();
        // Of merges that are the same, llama.cpp counts the first and the library the last.
        let merges = self.merges.iter().flatten().filter(|merge| seen.insert(merge.as_str()));
        let merges: Vec<_> = merges.filter_map(|merge| halves(merge)).collect();
        let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": self.vocab(), "merges": merges});
        Ok(vec![
            ("pre_tokenizer", pre_tokenizer(pre.splits, level)),
            ("decoder", level(true)),
            ("model", model),
        ])
    }

    fn word_piece(&self) -> Result<Parts> {
        let unknown = self.unknown_or(100)?;
        let lowercase = self.lowercase.unwrap_or(true);
        let spelled = |(id, token): (u32, &String)| {
            let spelled = match token.strip_prefix(SPACE) {
                Some(word) => word.to_string(),
                None if self.is_special(id) || self.type_of(id) != token_type::NORMAL => token.clone(),
                None => format!("##{token}"),
            };
            (spelled, json!(id))
        };
        let vocab: Map<String, Value> = (0..).zip(&self.tokens).map(spelled).collect();
        if vocab.len() < self.tokens.len() {
            return Err(Error::input("`tokenizer.ggml.tokens` has tokens that WordPiece spells alike"));
        }
        let model = json!({"type": "WordPiece", "unk_token": self.tokens[unknown as usize], "vocab": vocab,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": u32::MAX});
        let strip_accents = self.strip_accents.unwrap_or(lowercase);
        let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": strip_accents, "lowercase": lowercase});
        Ok(vec![
            ("normalizer", sequence(vec![replace(json!({"Regex": OTHER_BLANKS}), " "), bert])),
            ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
            ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
            ("model", model),
        ])
    }

    pub(super) fn vocab(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }
}

fn warn_of_others(file: &str, encoder: &Encoder, tokenizer: &Tokenizer) -> Result<()> {
    let texts = odd_texts()?;
    // Where llama.cpp fails, any ids will do.
    let differs = |text: &&String| {
        encoder.encode(text).ok().is_some_and(|its| tokenizer.encode(text).ok() != Some(its))
    };
    let others: Vec<&String> = texts.iter().filter(differs).collect();
    if let Some(first) = others.first() {
        tracing::warn!(
            "`{file}`: of {} odd texts, {} have other ids than in llama.cpp, such as {first:?}",
            texts.len(),
            others.len()
        );
    }
    Ok(())
}

/// Parts of a `tokenizer.json`, by their keys.
pub type Parts = Vec<(&'static str, Value)>;

pub fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

pub fn sequence(steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", "normalizers": steps})
}

pub fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// Cuts by regular expressions, then spells bytes; the last may be GPT-2's, which spelling bytes includes.
fn pre_tokenizer(splits: &[&str], level: impl Fn(bool) -> Value) -> Value {
    let (splits, gpt2) = match splits {
        [others @ .., last] if *last == GPT2 => (others, true),
        all => (all, false),
    };
    let steps: Vec<Value> = splits.iter().map(|regex| split(regex)).chain([level(gpt2)]).collect();
    match steps.as_slice() {
        [only] => only.clone(),
        _ => json!({"type": "Sequence", "pretokenizers": steps}),
    }
}
