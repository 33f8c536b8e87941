//! Reads a `tokenizer.json` of which every part is supported here: byte-pair encoding over words of
//! [`Cut`], as in our own tokenizers and GPT-2's. Such a tokenizer does not need the `tokenizers` library,
//! which takes several times as long to read the file.
//!
//! Errors are deliberately not reported here: a file that is not exactly as expected is left to the
//! library, which reads it or reports the error.

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use foldhash::fast::FixedState;
use serde::de::{self, Deserialize, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::bpe::Bpe;
use super::cut::{Cut, SPACE};
use super::in_text::InText;
use super::{Special, byte_of_symbol};

/// The `model` of a `tokenizer.json`, when it is a byte-pair encoding.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BpeJson<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(borrow)]
    pub vocab: HashMap<JsonStr<'a>, u32, FixedState>,
    #[serde(borrow)]
    pub merges: Vec<Merge<'a>>,
    pub dropout: Option<f64>,
    pub unk_token: Option<String>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    pub byte_fallback: Option<bool>,
    pub ignore_merges: Option<bool>,
}

/// A string borrowed from the file, if it has no escapes.
#[derive(serde::Deserialize, PartialEq, Eq, Hash)]
pub struct JsonStr<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Borrow<str> for JsonStr<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The two tokens of a merge: `"a b"` in older files, `["a", "b"]` in newer ones.
pub struct Merge<'a>(pub Cow<'a, str>, pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("two tokens")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Merge<'de>, E> {
        let (left, right) = halves(text).ok_or_else(|| E::custom("not two tokens"))?;
        Ok(Merge(left.into(), right.into()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge<'de>, E> {
        let (left, right) = halves(text).ok_or_else(|| E::custom("not two tokens"))?;
        Ok(Merge(left.to_string().into(), right.to_string().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut both: A) -> Result<Merge<'de>, A::Error> {
        let mut next = || both.next_element::<JsonStr>();
        match (next()?, next()?, next()?) {
            (Some(left), Some(right), None) => Ok(Merge(left.0, right.0)),
            _ => Err(de::Error::custom("not two tokens")),
        }
    }
}

fn halves(text: &str) -> Option<(&str, &str)> {
    text.split_once(' ').filter(|(_, right)| !right.contains(' '))
}

/// A whole `tokenizer.json`. Parts without a field are not supported.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    version: String,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: BpeJson<'a>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Added {
    id: u32,
    content: String,
    special: bool,
    // How it is matched in a text, unless it is special.
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
}

impl Added {
    /// Whether it is matched in a text without normalization, if at all.
    fn is_plain(&self) -> bool {
        self.special || !(self.single_word || self.lstrip || self.rstrip || self.normalized)
    }
}

/// A tokenizer without the library.
pub struct OwnTokenizer {
    pub cut: Cut,
    pub bpe: Bpe,
    pub vocabulary: Vocabulary,
    /// The id of the unknown token.
    pub unknown: Option<u32>,
    /// Of tokens that are marked as special, those of single bytes aside.
    pub special: BTreeSet<u32>,
    pub in_text: Option<InText>,
    /// The dropout of the file.
    pub dropout: f64,
}

impl OwnTokenizer {
    /// `None` when a part of the file is not supported, or the file is invalid.
    pub fn read(json: &[u8]) -> Option<OwnTokenizer> {
        let file: File = serde_json::from_slice(json).ok()?;
        let nothing = [&file.truncation, &file.padding, &file.post_processor].into_iter().all(Value::is_null);
        let cut = Cut::of(&json!({"normalizer": file.normalizer, "pre_tokenizer": file.pre_tokenizer}))?;
        if file.version != "1.0" || !nothing || !decodes(cut, &file.decoder) {
            return None;
        }
        let bpe = Bpe::of(&file.model, cut)?;
        let known = |t: &Added| t.is_plain() && file.model.vocab.get(t.content.as_str()) == Some(&t.id);
        if !file.added_tokens.iter().all(known) {
            return None;
        }
        let raw = file.added_tokens.iter().filter(|t| !t.normalized);
        let in_text = InText::of(raw.map(|t| (t.content.as_str(), t.id, t.special))).ok()?;
        let is_byte = |t: &Added| cut == Cut::Pieces && byte_of_name(&t.content).is_some();
        let special = file.added_tokens.iter().filter(|t| t.special && !is_byte(t)).map(|t| t.id).collect();
        let dropout = file.model.dropout.unwrap_or(0.0);
        let unknown = file.model.unk_token.as_deref().unwrap_or(Special::Unk.as_str());
        let unknown = file.model.vocab.get(unknown).copied();
        let vocabulary = Vocabulary::new(file.model, cut)?;
        Some(OwnTokenizer { cut, bpe, vocabulary, unknown, special, in_text, dropout })
    }
}

/// The decoder for the symbols of `cut`.
fn decodes(cut: Cut, decoder: &Value) -> bool {
    match cut {
        Cut::Bytes => {
            let keys = ["type", "add_prefix_space", "trim_offsets", "use_regex"];
            let plain = |(key, value): (&String, &Value)| key == "type" || value.is_boolean();
            decoder["type"] == "ByteLevel"
                && decoder
                    .as_object()
                    .is_some_and(|all| all.iter().all(|pair| keys.contains(&pair.0.as_str()) && plain(pair)))
        }
        Cut::Pieces => *decoder == pieces_decoder(),
    }
}

/// The decoder of SentencePiece-style tokenizers.
pub fn pieces_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]})
}

/// The tokens by id and back, and their text.
pub struct Vocabulary {
    tokens: Vec<Option<Box<str>>>,
    ids: HashMap<Box<str>, u32, FixedState>,
    cut: Cut,
}

impl Vocabulary {
    fn new(model: BpeJson, cut: Cut) -> Option<Self> {
        let ids: HashMap<Box<str>, u32, FixedState> =
            model.vocab.into_iter().map(|(token, id)| (token.0.into(), id)).collect();
        let mut tokens = vec![None; ids.values().max().map_or(0, |id| *id as usize + 1)];
        for (token, id) in &ids {
            // With two tokens of one id, the library decides.
            if tokens[*id as usize].replace(token.clone()).is_some() {
                return None;
            }
        }
        Some(Vocabulary { tokens, ids, cut })
    }

    /// The highest id + 1.
    pub fn size(&self) -> usize {
        self.tokens.len()
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The text of ids; ids outside the vocabulary have none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let tokens = ids.iter().filter_map(|id| self.token(*id));
        match self.cut {
            Cut::Bytes => {
                let mut bytes = Vec::new();
                for token in tokens {
                    match token.chars().map(byte_of_symbol).collect::<Option<Vec<u8>>>() {
                        Some(spelled) => bytes.extend(spelled),
                        None => bytes.extend(token.as_bytes()),
                    }
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Cut::Pieces => joined(tokens),
        }
    }
}

/// Pieces end to end. A run of byte tokens is text if all of it is valid, else as many U+FFFD.
fn joined<'a>(pieces: impl Iterator<Item = &'a str>) -> String {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    for piece in pieces {
        match byte_of_name(piece) {
            Some(byte) => bytes.push(byte),
            None => {
                end_bytes(&mut bytes, &mut text);
                text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c }));
            }
        }
    }
    end_bytes(&mut bytes, &mut text);
    text
}

fn end_bytes(bytes: &mut Vec<u8>, text: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => text.extend(bytes.iter().map(|_| char::REPLACEMENT_CHARACTER)),
    }
    bytes.clear();
}

/// `<0x0A>` is the byte 10.
pub fn byte_of_name(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}
