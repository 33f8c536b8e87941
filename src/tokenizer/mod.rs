//! Text to token ids and back, over a `tokenizer.json` in the format of Hugging Face `tokenizers`.
//!
//! [`Tokenizer`] is the one door to that library: nobody else touches it. Content is data: the text
//! `<user>` inside a document never becomes the role token, whoever made the tokenizer. What this
//! room deliberately does not do: truncation, padding, and templates of special tokens, which a
//! `tokenizer.json` may ask for; the rooms that build batches do that themselves.

mod bpe;
mod cache;
pub mod chat;
mod classes;
mod cut;
mod known;
mod stream;
mod texts;
pub mod train;

#[cfg(test)]
mod tests_with_library;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Model as _;

use crate::base::{Digest, Error, Place, Result, fs, suggest};

use bpe::{Bpe, Work};
use cache::WordCache;
use cut::Cut;
use known::{Known, Model, Vocabulary};
pub use stream::StreamDecoder;
pub use texts::{Inputs, Text, Texts};

/// The special tokens that our tokenizers begin with; the discriminant is the id there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// Fills a batch up; never trained on.
    Pad,
    /// What the vocabulary has no token for.
    Unk,
    /// Begins a document or a conversation.
    Bos,
    /// Ends a document or an answer.
    Eos,
    User,
    Assistant,
    System,
}

impl Special {
    /// In the order of their ids, from 0.
    pub const ALL: [Special; 7] = [
        Special::Pad,
        Special::Unk,
        Special::Bos,
        Special::Eos,
        Special::User,
        Special::Assistant,
        Special::System,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Special::Pad => "<pad>",
            Special::Unk => "<unk>",
            Special::Bos => "<bos>",
            Special::Eos => "<eos>",
            Special::User => "<user>",
            Special::Assistant => "<assistant>",
            Special::System => "<system>",
        }
    }
}

/// A loaded `tokenizer.json`. Cloning is cheap: clones share everything.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

/// Who knows the tokens and turns ids into text.
enum Engine {
    /// We do, and encode as well.
    Own(Vocabulary),
    Library(Box<tokenizers::Tokenizer>),
}

struct Inner {
    engine: Engine,
    json: Vec<u8>,
    digest: Digest,
    vocab_size: usize,
    /// How to cut text without the library, where that is known.
    cut: Option<Cut>,
    /// How to encode words without the library, where that is known.
    bpe: Option<Bpe>,
    /// Whether a word may be encoded to a special token.
    forgeable: bool,
    /// What encoding has at hand; as many as ever encoded at once.
    desks: Mutex<Vec<Desk>>,
    /// Ids that text must not produce and decoding leaves out, without the id of unknown text.
    control: BTreeSet<u32>,
    /// The id of what the vocabulary has no token for.
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, ours or another's.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer; names the file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), fs::read(path)?)
    }

    /// [`Tokenizer::load`] from bytes; `file` is what messages call them.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn parse(file: &str, json: Vec<u8>) -> Result<Self> {
        match Known::read(&json) {
            Some(known) => Ok(Self::own(known, json)),
            None => Self::of_library(file, json),
        }
    }

    fn own(known: Known, json: Vec<u8>) -> Self {
        let Known { cut, bpe, vocabulary, unknown } = known;
        let named = Special::ALL.iter().filter_map(|s| vocabulary.id(s.as_str()));
        let control = named.chain(vocabulary.special()).collect();
        let vocab_size = vocabulary.size();
        Self::new(json, Engine::Own(vocabulary), (Some(cut), Some(bpe)), vocab_size, control, unknown)
    }

    fn of_library(file: &str, json: Vec<u8>) -> Result<Self> {
        let value: Value = serde_json::from_slice(&json).map_err(|e| not_json(file, &json, &e))?;
        let mut library = tokenizers::Tokenizer::from_bytes(&json).map_err(|e| not_a_tokenizer(file, &e))?;
        library.set_encode_special_tokens(true);
        library.with_padding(None);
        library.with_truncation(None).map_err(|e| not_a_tokenizer(file, &e))?;
        let highest = library.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        if vocab_size == 0 {
            return Err(Error::input(format!("the tokenizer `{file}` has an empty vocabulary")));
        }
        let unknown = unknown_id(&library, &value);
        let mut control: BTreeSet<u32> =
            Special::ALL.iter().filter_map(|s| library.token_to_id(s.as_str())).collect();
        control
            .extend(library.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id));
        let cut = Cut::of(&value);
        let model = cut.and_then(|_| Model::deserialize(&value["model"]).ok());
        let bpe = cut.zip(model).and_then(|(cut, model)| Bpe::of(&model, cut));
        Ok(Self::new(json, Engine::Library(Box::new(library)), (cut, bpe), vocab_size, control, unknown))
    }

    fn new(
        json: Vec<u8>,
        engine: Engine,
        (cut, bpe): (Option<Cut>, Option<Bpe>),
        vocab_size: usize,
        mut control: BTreeSet<u32>,
        unknown: Option<u32>,
    ) -> Self {
        if let Some(unknown) = unknown {
            control.remove(&unknown);
        }
        let forgeable = bpe.as_ref().is_none_or(|bpe| control.iter().any(|id| bpe.can_give(*id)));
        let digest = Digest::of(&json);
        let desks = Mutex::default();
        Tokenizer(Arc::new(Inner {
            engine,
            json,
            digest,
            vocab_size,
            cut,
            bpe,
            forgeable,
            desks,
            control,
            unknown,
        }))
    }

    /// The library, for what is only asked of it where it was needed to read the file.
    fn library(&self) -> Result<&tokenizers::Tokenizer> {
        match &self.0.engine {
            Engine::Library(library) => Ok(library),
            Engine::Own(_) => Err(Error::bug("a tokenizer that is known was left to the library")),
        }
    }

    /// The highest id + 1, added tokens included: how many rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The ids of a text. No special token is added, and none comes out of the text either, however
    /// it is spelled (but for the id of unknown text). A long text is encoded in parallel on the
    /// current rayon pool.
    ///
    /// # Errors
    /// When the text holds what the vocabulary has no token for and there is no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some(cut) = self.0.cut else { return self.encode_by_library(text) };
        match cut.parts(text).as_slice() {
            [part] => self.encode_part(cut, text, part.clone()),
            parts => {
                let part = |part: &Range<usize>| self.encode_part(cut, text, part.clone());
                let ids: Vec<Result<Vec<u32>>> = parts.par_iter().map(part).collect();
                Ok(ids.into_iter().collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }

    /// [`Tokenizer::encode`] of each text, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that fails.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect::<Vec<_>>().into_iter().collect()
    }

    fn encode_by_library(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.library()?.encode_fast(text, false).map_err(|e| not_encodable(text, &e))?;
        self.without_control(encoding.get_ids().to_vec())
    }

    /// The ids of a word as the pre-tokenizer leaves it; special tokens are not spelled out.
    fn encode_spelled(&self, word: &str) -> Result<Vec<u32>> {
        match (self.0.cut, &self.0.bpe) {
            (Some(cut), Some(bpe)) => {
                let mut ids = Vec::new();
                bpe.encode(&cut.unspell(word), &mut ids, &mut Work::default());
                Ok(ids)
            }
            _ => self.encode_word(word),
        }
    }

    /// [`Tokenizer::encode_spelled`] by the library.
    fn encode_word(&self, word: &str) -> Result<Vec<u32>> {
        let tokens = self.library()?.get_model().tokenize(word).map_err(|e| not_encodable(word, &e))?;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    fn without_control(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        if ids.iter().any(|id| self.0.control.contains(id)) { self.spell_out(&ids) } else { Ok(ids) }
    }

    /// The ids of a part of a text that begins and ends where words do: what the library's
    /// `encode_fast` gives, special tokens spelled out.
    fn encode_part(&self, cut: Cut, text: &str, part: Range<usize>) -> Result<Vec<u32>> {
        let desks = || self.0.desks.lock().unwrap_or_else(PoisonError::into_inner);
        let free = desks().pop();
        let mut desk = free.unwrap_or_default();
        let mut ids = Vec::with_capacity(part.len() / 3 + 8);
        cut.words(text, part, |word| match desk.cache.get(text.as_bytes(), word.clone(), &mut ids) {
            Ok(()) => Ok(()),
            Err(place) => {
                self.encode_new(cut, &text[word], &mut desk)?;
                ids.extend_from_slice(&desk.word);
                desk.cache.put(place, &desk.word);
                Ok(())
            }
        })?;
        desks().push(desk);
        Ok(ids)
    }

    /// Leaves the ids of a word, as it stands in the text, on the desk.
    fn encode_new(&self, cut: Cut, word: &str, desk: &mut Desk) -> Result<()> {
        match &self.0.bpe {
            Some(bpe) => bpe.encode(word, &mut desk.word, &mut desk.work),
            None => desk.word = self.encode_word(&cut.spell(word))?,
        }
        if self.0.forgeable {
            desk.word = self.without_control(std::mem::take(&mut desk.word))?;
        }
        Ok(())
    }

    /// The text of ids, special tokens left out.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.0.vocab_size) {
            return Err(Error::input(format!("token id {id} is not in the vocabulary"))
                .help(format!("this tokenizer's ids are 0 to {}", self.0.vocab_size - 1)));
        }
        self.text_of(ids)
    }

    fn text_of(&self, ids: &[u32]) -> Result<String> {
        let shown: Vec<u32> = ids.iter().copied().filter(|id| !self.0.control.contains(id)).collect();
        match &self.0.engine {
            Engine::Own(vocabulary) => Ok(vocabulary.decode(&shown)),
            Engine::Library(library) => library
                .decode(&shown, true)
                .map_err(|e| Error::input("these token ids cannot be decoded").cause(e)),
        }
    }

    /// Decodes ids as they come.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// The id of a special token, when the vocabulary has it.
    pub fn special(&self, special: Special) -> Option<u32> {
        self.id(special.as_str())
    }

    /// The id of a special token.
    ///
    /// # Errors
    /// When the vocabulary does not have it.
    pub fn require(&self, special: Special) -> Result<u32> {
        self.special(special).ok_or_else(|| {
            let has: Vec<String> = self.0.control.iter().take(12).filter_map(|id| self.token(*id)).collect();
            Error::input(format!("the tokenizer has no special token `{}`", special.as_str()))
                .help(match has.as_slice() {
                    [] => "it has no special tokens at all".to_string(),
                    some => {
                        format!("its special tokens are {}", suggest::list(some.iter().map(String::as_str)))
                    }
                })
                .help("a tokenizer made by `train_tokenizer` has all that are needed")
        })
    }

    /// Whether `id` is a special token; never true of what plain text encodes to, unknown text aside.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.control.contains(&id) || self.0.unknown == Some(id)
    }

    /// The id that stands for what the vocabulary has no token for.
    pub fn unknown(&self) -> Option<u32> {
        self.0.unknown
    }

    /// The token as the vocabulary spells it, which is not always text: `Ġthe`, `<0x0A>`.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.0.engine {
            Engine::Own(vocabulary) => vocabulary.token(id).map(str::to_string),
            Engine::Library(library) => library.id_to_token(id),
        }
    }

    /// Whether `other` says with each of this one's ids what this one says; it may have more.
    ///
    /// # Errors
    /// The first id that means something else: a model trained with this one would read nonsense.
    pub fn is_part_of(&self, other: &Tokenizer) -> Result<()> {
        for id in 0..self.vocab_size() as u32 {
            let (own, its) = (self.token(id), other.token(id));
            if own != its {
                let shown = |t: Option<String>| t.map_or("nothing".to_string(), |t| format!("`{t}`"));
                let what = format!(
                    "token {id} is {} for the model and {} for the tokenizer",
                    shown(own),
                    shown(its)
                );
                return Err(Error::input(what).help(
                    "connect the tokenizer that the model was trained with, or one that only adds to it",
                ));
            }
        }
        Ok(())
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.0.engine {
            Engine::Own(vocabulary) => vocabulary.id(token),
            Engine::Library(library) => library.token_to_id(token),
        }
    }

    /// The digest of [`Tokenizer::json`].
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The bytes of the file, to be copied beside a model.
    pub fn json(&self) -> &[u8] {
        &self.0.json
    }

    /// `ids` with every special token in it replaced by its letters. Some models (unigram, word
    /// level) know their special tokens as ordinary vocabulary and would let text forge a role.
    fn spell_out(&self, ids: &[u32]) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(ids.len() + 8);
        for id in ids {
            match self.token(*id).filter(|_| self.0.control.contains(id)) {
                None => out.push(*id),
                Some(token) => {
                    for letter in token.chars() {
                        out.extend(self.letter(letter, &token)?);
                    }
                }
            }
        }
        Ok(out)
    }

    /// A letter by its own token, else by those of its bytes, else as unknown.
    fn letter(&self, letter: char, token: &str) -> Result<Vec<u32>> {
        let mut buffer = [0; 4];
        let bytes = letter.encode_utf8(&mut buffer).as_bytes();
        let plain = |text: String| self.id(&text).filter(|id| !self.0.control.contains(id));
        let spelled = plain(letter.to_string())
            .map(|id| vec![id])
            .or_else(|| bytes.iter().map(|b| plain(format!("<0x{b:02X}>"))).collect())
            .or_else(|| bytes.iter().map(|b| plain(byte_symbol(*b).to_string())).collect())
            .or_else(|| self.0.unknown.map(|id| vec![id]));
        spelled.ok_or_else(|| {
            Error::input(format!("the text holds the special token `{token}`, which cannot be spelled out"))
                .help("the tokenizer has no token for its letters and none for unknown text; clean the text")
        })
    }
}

/// What one thread needs to encode, kept from one text to the next.
#[derive(Default)]
struct Desk {
    cache: WordCache,
    word: Vec<u32>,
    work: Work,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("digest", &self.0.digest)
            .field("vocab_size", &self.0.vocab_size)
            .finish()
    }
}

/// The printable character that stands for a byte in byte-level vocabularies
/// (`bytes_to_unicode` in <https://github.com/openai/gpt-2/blob/master/src/encoder.py>).
pub fn byte_symbol(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character stands for in byte-level vocabularies: the inverse of [`byte_symbol`].
pub fn byte_of_symbol(symbol: char) -> Option<u8> {
    static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
        let mut bytes = [None; 0x144];
        for byte in 0..=255 {
            bytes[byte_symbol(byte) as usize] = Some(byte);
        }
        bytes
    });
    *BYTES.get(symbol as usize)?
}

fn unknown_id(library: &tokenizers::Tokenizer, json: &Value) -> Option<u32> {
    let model = json.get("model")?;
    if let Some(id) = model.get("unk_id").and_then(Value::as_u64) {
        return u32::try_from(id).ok();
    }
    let named = model.get("unk_token").and_then(Value::as_str);
    library.token_to_id(named.unwrap_or(Special::Unk.as_str()))
}

fn not_json(file: &str, json: &[u8], error: &serde_json::Error) -> Error {
    let line = json.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or(b"");
    let place = Place {
        file: file.to_string(),
        line: error.line().max(1),
        column: error.column().max(1),
        excerpt: String::from_utf8_lossy(line).into_owned(),
        width: 1,
    };
    Error::input("this is not a tokenizer.json: it is not JSON").cause(error).at(place)
}

fn not_a_tokenizer(file: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(format!("`{file}` is not a tokenizer.json"))
        .cause(error)
        .help("it must be in the format of Hugging Face `tokenizers`, with a `model` of BPE, Unigram, WordPiece or WordLevel")
}

fn not_encodable(text: &str, error: &dyn std::fmt::Display) -> Error {
    let start: String = text.chars().take(60).collect();
    Error::input(format!("the text beginning {start:?} cannot be encoded"))
        .cause(error)
        .help("the tokenizer has no token for some of it and none for unknown text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer(value: &Value) -> Result<Tokenizer> {
        Tokenizer::parse("t/tokenizer.json", value.to_string().into_bytes())
    }

    /// A unigram model as others make them: its special tokens are pieces that match text, there is
    /// no pre-tokenizer, and it asks for truncation and padding.
    fn foreign() -> Value {
        let pieces = json!([
            ["<unk>", 0.0],
            ["<s>", 0.0],
            ["</s>", 0.0],
            ["<", -3.0],
            ["s", -2.0],
            [">", -3.0],
            ["a", -1.0]
        ]);
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
            "added_tokens": [special(1, "<s>"), special(2, "</s>"), special(7, "<later>")],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false},
        })
    }

    #[test]
    fn a_foreign_tokenizer_is_told_by_its_first_strange_token() {
        let load = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers");
            Tokenizer::load(&std::path::Path::new(folder).join(name)).unwrap()
        };
        let (bytes, words) = (load("byte_bpe.json"), load("word.json"));
        bytes.is_part_of(&load("byte_bpe.json")).unwrap();
        let error = bytes.is_part_of(&words).unwrap_err().to_string();
        let first = (0..).find(|id| bytes.token(*id) != words.token(*id)).unwrap();
        assert!(error.contains(&format!("token {first} is `{}`", bytes.token(first).unwrap())), "{error}");
    }

    #[test]
    fn another_programs_tokenizer_cannot_be_tricked_by_text() {
        let tokenizer = tokenizer(&foreign()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 8, "with the added token");
        assert_eq!(
            tokenizer.encode("a<s>aaa").unwrap(),
            [6, 3, 4, 5, 6, 6, 6],
            "spelled out, not cut or padded"
        );
        assert_eq!(tokenizer.encode("x").unwrap(), [0]);
        assert_eq!(tokenizer.decode(&[1, 6, 2, 7]).unwrap(), "a");
        assert_eq!(tokenizer.encode_batch(&["a", "<s>"]).unwrap(), [vec![6], vec![3, 4, 5]]);
    }

    #[test]
    fn what_a_tokenizer_lacks_is_named_with_what_it_has() {
        let tokenizer = tokenizer(&foreign()).unwrap();
        assert_eq!(tokenizer.special(Special::User), None);
        let error = tokenizer.require(Special::User).unwrap_err().to_string();
        assert!(error.contains("`<user>`") && error.contains("`<later>`"), "{error}");
        let error = tokenizer.decode(&[8]).unwrap_err().to_string();
        assert!(error.contains("id 8") && error.contains("0 to 7"), "{error}");
        assert_eq!(tokenizer.decoder().push(8).as_deref(), Some("\u{FFFD}"));
    }

    #[test]
    fn broken_files_are_refused_by_name_and_place() {
        let error = Tokenizer::parse("t.json", b"{\n  \"version\": oops\n}".to_vec()).unwrap_err();
        assert_eq!(error.place().map(|p| (p.line, p.file.as_str())), Some((2, "t.json")), "{error}");
        let mut no_model = foreign();
        no_model["model"] = json!({"type": "Neural"});
        for value in [json!({}), json!([1]), no_model] {
            let error = tokenizer(&value).unwrap_err();
            assert!(error.message().contains("t/tokenizer.json"), "{error}");
        }
        let missing = Tokenizer::load(Path::new("no/such/tokenizer.json")).unwrap_err();
        assert!(missing.message().contains("no/such/tokenizer.json"), "{missing}");
    }

    #[test]
    fn bytes_have_the_symbols_of_gpt_2() {
        let symbols: BTreeSet<char> = (0..=255).map(byte_symbol).collect();
        assert_eq!(symbols.len(), 256);
        assert_eq!([b' ', b'\n', b'a', 0xAD].map(byte_symbol), ['Ġ', 'Ċ', 'a', 'Ń']);
        assert!((0..=255).all(|byte| byte_of_symbol(byte_symbol(byte)) == Some(byte)));
        assert_eq!([' ', '\n', '中'].map(byte_of_symbol), [None; 3]);
    }
}
