//! A vocabulary as keys `tokenizer.*`.

use super::value::{Array, Value};
use super::{File, TOKENS_KEY, VOCABULARY_KEY};
use crate::base::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::llama_cpp::{GgufVocabulary, VocabularyModel, token_type};

/// The value of `tokenizer.ggml.model` of a file without a vocabulary.
pub(super) const NO_VOCABULARY: &str = "none";

const PRE_KEY: &str = "tokenizer.ggml.pre";
const SCORES_KEY: &str = "tokenizer.ggml.scores";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const MERGES_KEY: &str = "tokenizer.ggml.merges";
const CHARSMAP_KEY: &str = "tokenizer.ggml.precompiled_charsmap";
const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// Below every other, so that no text becomes such a token.
const SCORE_OF_PADDING: f32 = -1e9;

/// The tokenizer of a file; `None` when it holds no vocabulary.
///
/// # Errors
/// When the vocabulary is damaged, or asks for what is not supported.
pub fn tokenizer_of(file: &File) -> Result<Option<Tokenizer>> {
    let vocabulary = vocabulary_of(file)?;
    vocabulary.map(|mut vocabulary| unpad(&mut vocabulary).into_tokenizer(&file.name)).transpose()
}

/// The vocabulary of a file; `None` when it holds none.
///
/// # Errors
/// When a key is missing or odd.
pub fn vocabulary_of(file: &File) -> Result<Option<GgufVocabulary>> {
    let keys = Keys(file);
    let Some(name) = keys.text(VOCABULARY_KEY)?.filter(|name| name != NO_VOCABULARY) else { return Ok(None) };
    let model = VocabularyModel::of_name(&name).map_err(|e| e.context(format!("`{}`", file.name)))?;
    let tokens = keys.texts(TOKENS_KEY)?;
    let tokens = tokens.ok_or_else(|| file.wrong(format_args!("has no key `{TOKENS_KEY}`")))?;
    let ids = |name: &str| keys.id(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| keys.flag(&format!("tokenizer.ggml.{name}"));
    let vocabulary = GgufVocabulary {
        pre: keys.text(PRE_KEY)?,
        scores: keys.scores()?,
        merges: keys.texts(MERGES_KEY)?,
        bos: ids("bos")?,
        eos: ids("eos")?,
        eot: ids("eot")?,
        unknown: ids("unknown")?,
        separator: ids("seperator")?,
        padding: ids("padding")?,
        mask: ids("mask")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
        lowercase: flag("normalizer.lowercase")?,
        strip_accents: flag("normalizer.strip_accents")?,
        precompiled_charsmap: keys.charsmap()?,
        chat_template: keys.text(TEMPLATE_KEY)?,
        ..GgufVocabulary::new(model, tokens, keys.types()?)
    };
    Ok(Some(vocabulary))
}

/// Adds tokens that are not used until there is one for each of `rows` of the embedding.
pub(super) fn pad(vocabulary: &mut GgufVocabulary, rows: usize) {
    let tokens = vocabulary.tokens.len();
    for id in tokens..rows.max(tokens) {
        let mut name = format!("[PAD{id}]");
        while vocabulary.tokens[..tokens].contains(&name) {
            name.insert(1, '_');
        }
        vocabulary.tokens.push(name);
        vocabulary.types.push(token_type::UNUSED);
        vocabulary.scores.iter_mut().for_each(|scores| scores.push(SCORE_OF_PADDING));
    }
}

/// Takes away what [`pad`] and llama.cpp's converter add at the end.
fn unpad(vocabulary: &mut GgufVocabulary) -> GgufVocabulary {
    let is_padding = |(token, ty): (&String, &i32)| *ty == token_type::UNUSED && token.starts_with("[PAD");
    let zipped = vocabulary.tokens.iter().zip(&vocabulary.types).rev();
    let padding = match vocabulary.types.len() == vocabulary.tokens.len() {
        true => zipped.take_while(|pair| is_padding(*pair)).count(),
        false => 0,
    };
    let tokens = vocabulary.tokens.len() - padding;
    if vocabulary.scores.as_ref().is_none_or(|scores| scores.len() == vocabulary.tokens.len()) {
        vocabulary.tokens.truncate(tokens);
        vocabulary.types.truncate(tokens);
        vocabulary.scores.iter_mut().for_each(|scores| scores.truncate(tokens));
    }
    vocabulary.clone()
}

/// The keys of a vocabulary, in the order of llama.cpp's converter.
pub(super) fn keys_of(vocabulary: GgufVocabulary) -> Vec<(String, Value)> {
    let ids = vocabulary.special_ids();
    let v = vocabulary;
    let flags = [
        ("tokenizer.ggml.add_bos_token", v.add_bos),
        ("tokenizer.ggml.add_eos_token", v.add_eos),
        ("tokenizer.ggml.add_space_prefix", v.add_space_prefix),
        ("tokenizer.ggml.remove_extra_whitespaces", v.remove_extra_whitespaces),
        ("tokenizer.ggml.normalizer.lowercase", v.lowercase),
        ("tokenizer.ggml.normalizer.strip_accents", v.strip_accents),
    ];
    let types = Some(v.types).filter(|types| !types.is_empty());
    let first = [
        (VOCABULARY_KEY, Some(Value::from(v.model.name()))),
        (PRE_KEY, v.pre.map(Value::from)),
        (TOKENS_KEY, Some(Value::from(v.tokens))),
        (SCORES_KEY, v.scores.map(Value::from)),
        (TYPES_KEY, types.map(Value::from)),
        (MERGES_KEY, v.merges.map(Value::from)),
        (CHARSMAP_KEY, v.precompiled_charsmap.map(Value::from)),
    ];
    let ids = ids.into_iter().map(|(key, id)| (key, id.map(Value::from)));
    let flags = flags.into_iter().map(|(key, flag)| (key, flag.map(Value::from)));
    let last = [(TEMPLATE_KEY, v.chat_template.map(Value::from))];
    let all = first.into_iter().chain(ids).chain(flags).chain(last);
    all.filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
}

/// Keys that are there or not, each of one type.
struct Keys<'a>(&'a File);

impl Keys<'_> {
    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.0.wrong(format_args!("`{key}` is {value}: expected {expected}"))
    }

    fn read<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, value, expected))
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        self.read(key, "a text", |value| value.as_str().map(str::to_string))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// llama.cpp takes the largest number, and -1 as one, for none.
    fn id(&self, key: &str) -> Result<Option<u32>> {
        let none = |value: &Value| matches!(value, Value::U32(u32::MAX) | Value::I32(-1));
        if self.0.value(key).is_some_and(none) {
            return Ok(None);
        }
        self.read(key, "a token's id", |value| u32::try_from(value.as_size()?).ok())
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.read(key, "texts", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.clone()),
            _ => None,
        })
    }

    fn scores(&self) -> Result<Option<Vec<f32>>> {
        self.read(SCORES_KEY, "numbers of 32 bits", |value| match value {
            Value::Array(Array::F32(scores)) => Some(scores.clone()),
            _ => None,
        })
    }

    fn types(&self) -> Result<Vec<i32>> {
        let types = self.read(TYPES_KEY, "whole numbers of 32 bits", |value| match value {
            Value::Array(Array::I32(types)) => Some(types.clone()),
            Value::Array(Array::U32(types)) => types.iter().map(|ty| i32::try_from(*ty).ok()).collect(),
            _ => None,
        })?;
        Ok(types.unwrap_or_default())
    }

    fn charsmap(&self) -> Result<Option<Vec<u8>>> {
        self.read(CHARSMAP_KEY, "bytes", |value| match value {
            Value::Array(Array::U8(bytes)) => Some(bytes.clone()),
            Value::Array(Array::I8(bytes)) => Some(bytes.iter().map(|byte| *byte as u8).collect()),
            _ => None,
        })
    }
}
