//! The vocabulary that llama.cpp needs for a tokenizer.

use std::collections::HashMap;

use serde_json::Value;

use super::pre::{DIGIT, GPT2, Pre, as_llama_cpp};
use super::{GgufVocabulary, VocabularyModel, token_type};
use crate::base::{Error, Result, suggest};
use crate::tokenizer::cut::{Cut, SPACE};
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::{Special, Tokenizer, base64};

impl GgufVocabulary {
    /// The vocabulary by which llama.cpp encodes text as `tokenizer` does, as far as its rules can express
    /// that: see [`GgufVocabulary::compare`]. The chat template is not set.
    ///
    /// # Errors
    /// When llama.cpp cannot hold such a tokenizer; says why.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let json: Value = serde_json::from_slice(tokenizer.json())
            .map_err(|e| Error::bug(format!("the tokenizer's own JSON cannot be read: {e}")))?;
        let vocabulary = Source { tokenizer, json }.vocabulary()?;
        vocabulary.encoder()?;
        Ok(vocabulary)
    }
}

/// A tokenizer and its `tokenizer.json`.
struct Source<'a> {
    tokenizer: &'a Tokenizer,
    json: Value,
}

impl Source<'_> {
    fn vocabulary(&self) -> Result<GgufVocabulary> {
        match self.json["model"]["type"].as_str().unwrap_or("BPE") {
            "BPE" if self.is_byte_level() => self.byte_level(),
            "BPE" if self.json["model"]["byte_fallback"] == true => self.spm(),
            "BPE" => Err(no_rules("its BPE is over characters, and has no tokens for the bytes of others")),
            "Unigram" => self.unigram(),
            "WordPiece" => self.word_piece(),
            "WordLevel" => Err(no_rules("its tokens are whole words")),
            other => Err(no_rules(&format!("its model is `{other}`"))),
        }
    }

    /// What all models have: tokens, their types, and special tokens.
    fn base(&self, model: VocabularyModel) -> Result<GgufVocabulary> {
        let special = |special| self.tokenizer.special(special);
        let eos = special(Special::Eos).ok_or_else(no_eos)?;
        let ids = 0..self.tokenizer.vocab_size() as u32;
        let token = |id| self.tokenizer.token(id).unwrap_or_else(|| format!("[PAD{id}]"));
        let mut base = GgufVocabulary::new(
            model,
            ids.clone().map(token).collect(),
            ids.map(|id| self.type_of(id)).collect(),
        );
        // Without the keys, llama.cpp takes fixed ids.
        base.bos = special(Special::Bos).or(Some(eos));
        base.eos = Some(eos);
        base.eot = Some(eos);
        base.padding = special(Special::Pad);
        base.unknown = self.tokenizer.unknown();
        base.add_bos = Some(special(Special::Bos).is_some());
        base.add_eos = Some(false);
        Ok(base)
    }

    fn type_of(&self, id: u32) -> i32 {
        let Some(token) = self.tokenizer.token(id) else { return token_type::UNUSED };
        let inner = &self.tokenizer.0;
        let is_byte = || self.json["model"]["byte_fallback"] == true && byte_of_name(&token).is_some();
        if inner.control.contains(&id) {
            token_type::CONTROL
        } else if inner.unknown == Some(id) {
            token_type::UNKNOWN
        } else if inner.special.contains(&id) {
            token_type::CONTROL
        } else if is_byte() {
            token_type::BYTE
        } else if self.added().any(|added| added["id"] == id) {
            token_type::USER_DEFINED
        } else {
            token_type::NORMAL
        }
    }

    fn added(&self) -> impl Iterator<Item = &Value> {
        self.json["added_tokens"].as_array().into_iter().flatten()
    }

    /// The steps of a part that may be a sequence of several.
    fn steps(&self, part: &str, steps: &str) -> Vec<&Value> {
        match &self.json[part] {
            Value::Null => Vec::new(),
            one if one["type"] == "Sequence" => one[steps].as_array().into_iter().flatten().collect(),
            one => vec![one],
        }
    }

    fn pre_tokenizers(&self) -> Vec<&Value> {
        self.steps("pre_tokenizer", "pretokenizers")
    }

    fn is_byte_level(&self) -> bool {
        self.pre_tokenizers().iter().any(|step| step["type"] == "ByteLevel")
    }

    fn byte_level(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::Bpe)?;
        let normalizers = self.steps("normalizer", "normalizers");
        // Of composed text, which nearly all text is, it changes nothing.
        if let Some(other) = normalizers.iter().find(|step| step["type"] != "NFC") {
            return Err(no_rules(&format!("it normalizes text (`{}`)", kind(other))));
        }
        let splits = self.pre_tokenizers().into_iter().map(splits_of).collect::<Result<Vec<_>>>()?.concat();
        let model = &self.json["model"];
        let pre = Pre::that_splits(&splits, model["ignore_merges"] == true).ok_or_else(|| {
            no_rules("it cuts words in a way of its own").help(format!(
                "its regular expressions are {}",
                suggest::list(splits.iter().map(String::as_str))
            ))
        })?;
        base.pre = Some(pre.name().to_string());
        base.merges =
            Some(self.merges()?.into_iter().map(|[left, right]| format!("{left} {right}")).collect());
        Ok(base)
    }

    fn spm(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::Spm)?;
        let spaces = self.spaces()?;
        if spaces.charsmap.is_some() || spaces.merged || self.json["model"]["ignore_merges"] == true {
            return Err(no_rules("its BPE over characters normalizes text or ignores merges"));
        }
        let merges = self.merges()?;
        let mut scores: HashMap<String, f32> = HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            // The rank of the merge that makes a token; of several, the first.
            scores.entry(merge.concat()).or_insert(-(rank as f32));
        }
        // The others are never made of two.
        let score = |token: &String| scores.get(token).copied().unwrap_or(-(merges.len() as f32));
        base.scores = Some(base.tokens.iter().map(score).collect());
        base.add_space_prefix = Some(spaces.prefixed);
        Ok(base)
    }

    fn unigram(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::Unigram)?;
        let spaces = self.spaces()?;
        let pieces = self.json["model"]["vocab"].as_array().map_or(&[][..], Vec::as_slice);
        let score = |id: usize| pieces.get(id).and_then(|piece| piece[1].as_f64()).unwrap_or(0.0) as f32;
        base.scores = Some((0..base.tokens.len()).map(score).collect());
        if base.unknown.is_none() {
            return Err(no_rules("it has no unknown token"));
        }
        base.add_space_prefix = Some(spaces.prefixed);
        base.remove_extra_whitespaces = Some(spaces.merged);
        base.precompiled_charsmap = spaces.charsmap;
        Ok(base)
    }

    /// How SentencePiece's models treat spaces, and normalize text.
    fn spaces(&self) -> Result<Spaces> {
        let mut spaces = Spaces::default();
        for step in self.steps("normalizer", "normalizers") {
            spaces.normalize(step)?;
        }
        if Cut::of(&self.json) == Some(Cut::Pieces) {
            return Ok(spaces);
        }
        for step in self.pre_tokenizers() {
            match kind(step) {
                "Metaspace" if step["replacement"] == SPACE.to_string() => {
                    spaces.prefixed |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
                }
                // White space ends words, and is not kept.
                "WhitespaceSplit" => spaces.merged = true,
                _ => return Err(no_rules(&format!("its pre-tokenizer is {step}"))),
            }
        }
        Ok(spaces)
    }

    fn word_piece(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::WordPiece)?;
        let [normalizer, words] = ["normalizer", "pre_tokenizer"].map(|part| &self.json[part]);
        let as_bert = normalizer["type"] == "BertNormalizer"
            && normalizer["clean_text"] == true
            && normalizer["handle_chinese_chars"] == true
            && words["type"] == "BertPreTokenizer"
            && self.json["model"]["continuing_subword_prefix"] == "##";
        if !as_bert {
            return Err(no_rules("its WordPiece cuts or normalizes otherwise than BERT's"));
        }
        for (token, ty) in base.tokens.iter_mut().zip(&base.types) {
            if *ty == token_type::NORMAL {
                // Tokens that begin a word are marked there, not those that go on.
                *token = token.strip_prefix("##").map_or_else(|| format!("{SPACE}{token}"), str::to_string);
            }
        }
        let lowercase = normalizer["lowercase"] == true;
        base.lowercase = Some(lowercase);
        base.strip_accents = Some(normalizer["strip_accents"].as_bool().unwrap_or(lowercase));
        base.separator = base.eos;
        Ok(base)
    }

    fn merges(&self) -> Result<Vec<[String; 2]>> {
        let model = &self.json["model"];
        for option in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[option].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(no_rules(&format!("its BPE has the option `{option}`")));
            }
        }
        let merges = model["merges"].as_array().into_iter().flatten();
        merges.map(|merge| pair(merge).ok_or_else(|| Error::bug(format!("{merge} is no merge")))).collect()
    }
}

/// How spaces are treated, and text is normalized, before it is spelled in tokens.
#[derive(Default)]
struct Spaces {
    /// Text begins with a space.
    prefixed: bool,
    /// Several are one, and those at both ends are dropped.
    merged: bool,
    charsmap: Option<Vec<u8>>,
}

impl Spaces {
    fn normalize(&mut self, step: &Value) -> Result<()> {
        let to_space = step["content"] == SPACE.to_string() || step["content"] == " ";
        match kind(step) {
            "Prepend" if step["prepend"] == SPACE.to_string() => self.prefixed = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE.to_string() => {}
            "Replace" if step["pattern"]["Regex"] == " {2,}" && to_space => self.merged = true,
            "Replace" if step["pattern"]["Regex"] == "^ +| +$" && step["content"] == "" => {}
            "Replace" if step["pattern"]["Regex"] == "^(?= *[^ ])" && to_space => self.prefixed = true,
            "Strip" => {}
            "Precompiled" => {
                let text = step["precompiled_charsmap"].as_str().and_then(base64::decode);
                self.charsmap = Some(text.ok_or_else(|| no_rules("its character map is damaged"))?);
            }
            _ => return Err(no_rules(&format!("it normalizes text by {step}"))),
        }
        Ok(())
    }
}

/// The two tokens of a merge, `"a b"` or `["a", "b"]`.
fn pair(merge: &Value) -> Option<[String; 2]> {
    match merge {
        Value::String(both) => both.split_once(' ').map(|(a, b)| [a.to_string(), b.to_string()]),
        other => Some([other[0].as_str()?.to_string(), other[1].as_str()?.to_string()]),
    }
}

/// The regular expressions of a pre-tokenizer, as llama.cpp spells them.
fn splits_of(step: &Value) -> Result<Vec<String>> {
    let plain = |condition: bool| if condition { Ok(()) } else { Err(no_rules(&format!("of `{step}`"))) };
    match kind(step) {
        "ByteLevel" => {
            plain(step["add_prefix_space"] == false)?;
            Ok(if step["use_regex"] == false { Vec::new() } else { vec![GPT2.to_string()] })
        }
        "Digits" => {
            plain(step["individual_digits"] == true)?;
            Ok(vec![DIGIT.to_string()])
        }
        "Split" => {
            // What does not match is dropped, and everything matches.
            let all_match = step["behavior"] == "Removed" && step["invert"] == true;
            plain(all_match || step["behavior"] == "Isolated" && step["invert"] != true)?;
            let regex = step["pattern"]["Regex"].as_str();
            plain(regex.is_some())?;
            Ok(vec![as_llama_cpp(regex.unwrap_or_default())])
        }
        _ => Err(no_rules(&format!("of its pre-tokenizer {step}"))),
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

fn no_rules(why: &str) -> Error {
    Error::input(format!("llama.cpp has no rules for this tokenizer: {why}")).help(
        "it knows byte-level BPE, SentencePiece's BPE and unigram, and WordPiece: train a tokenizer with \
         `algorithm: byte_bpe` for a model that is to be used there",
    )
}

fn no_eos() -> Error {
    Error::input("the tokenizer has no token that ends a text, which llama.cpp needs")
        .help("say which token does: `special_tokens: { eos: \"…\" }`")
}
