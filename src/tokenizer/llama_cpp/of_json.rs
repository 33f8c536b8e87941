//! The vocabulary that llama.cpp needs for a tokenizer.

use serde_json::Value;

use super::into_json::OTHER_BLANKS;
use super::pre::{DIGIT, GPT2, Pre, as_llama_cpp};
use super::{GgufVocabulary, VocabularyModel, token_type};
use crate::base::{Error, Result, suggest};
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::{Special, Tokenizer};

impl GgufVocabulary {
    /// The vocabulary by which llama.cpp encodes text as `tokenizer` does, as far as its rules can express
    /// that: see [`GgufVocabulary::compare`].
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
pub struct Source<'a> {
    pub tokenizer: &'a Tokenizer,
    pub json: Value,
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
    pub fn base(&self, model: VocabularyModel) -> Result<GgufVocabulary> {
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
        // Not all tokenizers can tell roles.
        base.chat_template = self.tokenizer.chat_template().ok();
        Ok(base)
    }

    fn type_of(&self, id: u32) -> i32 {
        let Some(token) = self.tokenizer.token(id) else { return token_type::UNUSED };
        let inner = &self.tokenizer.0;
        let model = &self.json["model"];
        // Those of a unigram model without byte fallback are not made from text either, if it was read here.
        let has_bytes = model["byte_fallback"] == true || model["type"] == "Unigram";
        if inner.control.contains(&id) {
            token_type::CONTROL
        } else if inner.unknown == Some(id) {
            token_type::UNKNOWN
        } else if inner.special.contains(&id) {
            token_type::CONTROL
        } else if has_bytes && byte_of_name(&token).is_some() {
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
    pub fn steps(&self, part: &str, steps: &str) -> Vec<&Value> {
        match &self.json[part] {
            Value::Null => Vec::new(),
            one if one["type"] == "Sequence" => one[steps].as_array().into_iter().flatten().collect(),
            one => vec![one],
        }
    }

    pub fn pre_tokenizers(&self) -> Vec<&Value> {
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

    fn word_piece(&self) -> Result<GgufVocabulary> {
        let mut base = self.base(VocabularyModel::WordPiece)?;
        let words = &self.json["pre_tokenizer"];
        let normalizer = match self.steps("normalizer", "normalizers").as_slice() {
            [only] => only,
            [blanks, bert] if is_blanks(blanks) => bert,
            _ => &Value::Null,
        };
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

    pub fn merges(&self) -> Result<Vec<[String; 2]>> {
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

/// Whether a step makes spaces of [`OTHER_BLANKS`].
fn is_blanks(step: &Value) -> bool {
    step["type"] == "Replace" && step["pattern"]["Regex"] == OTHER_BLANKS && step["content"] == " "
}

pub fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

pub fn no_rules(why: &str) -> Error {
    Error::input(format!("llama.cpp has no rules for this tokenizer: {why}")).help(
        "it knows byte-level BPE, SentencePiece's BPE and unigram, and WordPiece: train a tokenizer with \
         `algorithm: byte_bpe` for a model that is to be used there",
    )
}

fn no_eos() -> Error {
    Error::input("the tokenizer has no token that ends a text, which llama.cpp needs")
        .help("say which token does: `special_tokens: { eos: \"…\" }`")
}
