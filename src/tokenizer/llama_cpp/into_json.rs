//! A `tokenizer.json` for the vocabulary of a GGUF file.

use serde_json::{Map, Value, json};

use super::bpe::halves;
use super::encoder::is_in_text;
use super::pre::{DEFAULT, GPT2, Pre};
use super::{GgufVocabulary, Ids, VocabularyModel, token_type};
use crate::base::{Error, Result};
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::known::{byte_of_name, pieces_decoder};
use crate::tokenizer::{Names, Tokenizer, base64};

impl GgufVocabulary {
    /// A tokenizer that gives the same ids; `file` is what messages call the GGUF file.
    ///
    /// # Errors
    /// When the vocabulary is damaged, or asks for what is not supported here.
    pub fn into_tokenizer(self, file: &str) -> Result<Tokenizer> {
        let read = || -> Result<Tokenizer> {
            self.encoder()?;
            let library =
                tokenizers::Tokenizer::from_bytes(self.json()?.to_string()).and_then(|t| t.to_string(true));
            let json = library.map_err(|e| Error::input("its vocabulary does not fit together").cause(e))?;
            Tokenizer::parse_with(file, json.into_bytes(), &self.names(file))
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
    fn is_special(&self, id: u32) -> bool {
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

    fn spm(&self) -> Result<Parts> {
        let unknown = self.unknown_or(0).ok();
        let prefix = self.add_space_prefix.unwrap_or(true);
        let has_bytes = self.tokens.iter().any(|token| byte_of_name(token).is_some());
        let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &self.tokens[id as usize]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": has_bytes, "ignore_merges": false, "vocab": self.vocab(), "merges": self.spm_merges()?});
        let mut steps = vec![replace(json!({"String": " "}), "▁")];
        if prefix {
            steps.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        }
        Ok(vec![("normalizer", sequence(steps)), ("decoder", spaces_decoder(prefix)), ("model", model)])
    }

    /// All pairs of tokens that are a token together, that of the highest score first. What is no text has no
    /// merges.
    fn spm_merges(&self) -> Result<Vec<(&str, &str)>> {
        let scores = self.finite_scores()?;
        let is_text = |id: u32| !self.is_special(id) && self.type_of(id) != token_type::BYTE;
        let texts = || (0..self.tokens.len() as u32).filter(|id| is_text(*id));
        let ids: Ids = texts().map(|id| (self.tokens[id as usize].as_str(), id)).collect();
        let mut made: Vec<u32> = texts().collect();
        made.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
        let mut merges = Vec::new();
        for id in made {
            let token = self.tokens[id as usize].as_str();
            let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut halves: Vec<_> =
                halves.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, (a, b)))).collect();
            let score = |id: u32| scores[id as usize];
            halves.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then(score(b.1).total_cmp(&score(a.1))));
            merges.extend(halves.into_iter().map(|(.., both)| both));
        }
        Ok(merges)
    }

    fn unigram(&self) -> Result<Parts> {
        let unknown = self.unknown_or(2)?;
        let scores = self.finite_scores()?;
        let normal = (0..).zip(scores).filter(|(id, _)| self.type_of(*id) == token_type::NORMAL);
        let lowest = normal.map(|(_, score)| *score).fold(f32::MAX, f32::min);
        // What is no text is in the library's trie as well: there it is the least likely.
        let score = |id: u32| match self.type_of(id) {
            token_type::NORMAL | token_type::UNUSED => scores[id as usize],
            token_type::USER_DEFINED => 0.0,
            _ => lowest,
        };
        let vocab: Vec<_> =
            (0..).zip(&self.tokens).map(|(id, token)| (token, f64::from(score(id)))).collect();
        let model = json!({"type": "Unigram", "unk_id": unknown, "byte_fallback": false, "vocab": vocab});
        let prefixed = self.add_space_prefix == Some(true) || self.remove_extra_whitespaces == Some(true);
        Ok(vec![
            ("normalizer", self.unigram_normalizer()),
            ("decoder", spaces_decoder(prefixed)),
            ("model", model),
        ])
    }

    fn unigram_normalizer(&self) -> Value {
        let mut steps = Vec::new();
        if let Some(charsmap) = self.precompiled_charsmap.as_ref().filter(|bytes| !bytes.is_empty()) {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(charsmap)}));
        }
        if self.remove_extra_whitespaces == Some(true) {
            steps.push(replace(json!({"Regex": "^ +| +$"}), ""));
            steps.push(replace(json!({"Regex": " {2,}"}), " "));
            steps.push(json!({"type": "Prepend", "prepend": SPACE}));
        } else if self.add_space_prefix == Some(true) {
            // Spaces alone get none.
            steps.push(replace(json!({"Regex": "^(?= *[^ ])"}), "▁"));
        }
        steps.push(replace(json!({"String": " "}), "▁"));
        sequence(steps)
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
        Ok(vec![
            (
                "normalizer",
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": self.strip_accents.unwrap_or(lowercase), "lowercase": lowercase}),
            ),
            ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
            ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
            ("model", model),
        ])
    }

    fn vocab(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }
}

/// Parts of a `tokenizer.json`, by their keys.
type Parts = Vec<(&'static str, Value)>;

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", "normalizers": steps})
}

/// Joins tokens, [`SPACE`] as a space; the first is left out if `prefixed`.
fn spaces_decoder(prefixed: bool) -> Value {
    let mut decoder = pieces_decoder();
    if let (true, Some(steps)) = (prefixed, decoder["decoders"].as_array_mut()) {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    decoder
}

/// Cuts by regular expressions, then spells bytes; the last may be GPT-2's, which spelling bytes includes.
fn pre_tokenizer(splits: &[&str], level: impl Fn(bool) -> Value) -> Value {
    let (splits, gpt2) = match splits {
        [others @ .., last] if *last == GPT2 => (others, true),
        all => (all, false),
    };
    let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let steps: Vec<Value> = splits.iter().map(split).chain([level(gpt2)]).collect();
    match steps.as_slice() {
        [only] => only.clone(),
        _ => json!({"type": "Sequence", "pretokenizers": steps}),
    }
}
