//! Text to token ids and back, over a `tokenizer.json` in the format of Hugging Face `tokenizers`.
//!
//! Only [`Tokenizer`] calls that library. Content is data: the text `<user>` inside a document never
//! becomes the role token, with any tokenizer. Truncation, padding and templates of special tokens, which a
//! `tokenizer.json` may configure, are deliberately not applied here: they belong to making batches.

mod base64;
mod bpe;
mod cache;
mod charsmap;
pub mod chat;
mod classes;
mod cut;
mod foreign;
pub mod format;
mod in_text;
mod known;
pub mod llama_cpp;
mod special;
mod stream;
mod template;
mod texts;
pub mod train;
mod unigram;
mod white_space;

#[cfg(test)]
mod tests_of_chat;
#[cfg(test)]
pub(crate) mod tests_with_library;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{Model as _, Normalizer as _, PreTokenizer as _};
use tokenizers::{NormalizedString, OffsetReferential, OffsetType, PreTokenizedString};

use crate::base::{Digest, Error, Place, Result, fs};
use crate::corpus::conversation::Role;

use bpe::{Bpe, Work};
use cache::WordCache;
use charsmap::Charsmap;
use cut::Cut;
use foreign::{Before, Spellings};
use in_text::{InText, Segment};
use known::{BpeJson, OwnTokenizer, Vocabulary};
pub use special::{GENERATION_FILE, Names, TOKENIZER_CONFIG_FILE};
use special::{Named, Template};
pub use stream::StreamDecoder;
use template::ChatTemplate;
pub use texts::{EachText, Inputs, Text, Texts};
use unigram::Unigram;

/// The file of a tokenizer, alone or in a model's folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The special tokens that our tokenizers begin with; the discriminant is the id there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// Padding of batches; never trained on.
    Pad,
    /// The unknown token.
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

    /// Those that begin a turn.
    pub const ROLES: [Special; 3] = [Special::User, Special::Assistant, Special::System];

    /// `bos`, as params call it.
    pub fn name(self) -> &'static str {
        self.as_str().trim_matches(['<', '>'])
    }

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

/// Holds the tokens and decodes ids.
enum Engine {
    /// Our own implementation, which encodes as well.
    Own(Vocabulary),
    Library(Box<tokenizers::Tokenizer>),
}

struct Inner {
    engine: Engine,
    json: Vec<u8>,
    digest: Digest,
    vocab_size: usize,
    /// The pre-tokenizer, where it is supported without the library.
    cut: Option<Cut>,
    /// The BPE model, where it is supported without the library.
    bpe: Option<Bpe>,
    /// The model, if it is a unigram language model.
    unigram: Option<Unigram>,
    /// The first step of the normalizer, where the library is not to do it.
    charsmap: Option<Charsmap>,
    /// Whether a word may be encoded to a special token.
    forgeable: bool,
    /// Buffers and caches of encoding, one for each thread that encoded at the same time.
    scratches: Mutex<Vec<Buffers>>,
    /// Added tokens that are matched in text.
    in_text: Option<InText>,
    /// Ids that text must not produce and decoding leaves out, except the unknown token's.
    control: BTreeSet<u32>,
    /// Ids that the file marks as special, without those of single bytes.
    special: BTreeSet<u32>,
    named: Named,
    /// [`Inner::named`] by the file alone.
    named_by_file: Named,
    /// The id of the unknown token.
    unknown: Option<u32>,
    /// The names that were given; a chat template only where it is another program's.
    names: Names,
    /// The chat template among them, compiled when it is first used.
    template: OnceLock<Result<ChatTemplate>>,
    /// The special tokens as text, for chat templates.
    spellings: OnceLock<Result<Spellings>>,
    /// See [`Tokenizer::turn_ends`].
    ends: OnceLock<Vec<u32>>,
    /// The library's tokenizer, set to recognize special tokens in text.
    recognizing: OnceLock<tokenizers::Tokenizer>,
}

/// The parts of a `tokenizer.json`, before the special tokens are resolved.
struct Parts {
    engine: Engine,
    vocab_size: usize,
    cut: Option<Cut>,
    bpe: Option<Bpe>,
    unigram: Option<Unigram>,
    charsmap: Option<Charsmap>,
    in_text: Option<InText>,
    special: BTreeSet<u32>,
    template: Template,
    unknown: Option<u32>,
}

impl Parts {
    /// With the dropout of the file.
    fn own(known: OwnTokenizer) -> (Parts, f64) {
        let OwnTokenizer { cut, bpe, vocabulary, unknown, special, in_text, dropout } = known;
        let vocab_size = vocabulary.size();
        let engine = Engine::Own(vocabulary);
        let template = Template::default();
        let (cut, bpe, unigram, charsmap) = (Some(cut), Some(bpe), None, None);
        let parts =
            Parts { engine, vocab_size, cut, bpe, unigram, charsmap, in_text, special, template, unknown };
        (parts, dropout)
    }

    /// [`Parts::own`], read by the library.
    fn of_library(file: &str, json: &[u8]) -> Result<(Parts, f64)> {
        let mut value: Value = serde_json::from_slice(json).map_err(|e| not_json(file, json, &e))?;
        let dropout = value["model"]["dropout"].as_f64().unwrap_or(0.0);
        let charsmap = take_charsmap(&mut value).map_err(|e| not_a_tokenizer(file, &e))?;
        let library = if dropout == 0.0 && charsmap.is_none() {
            library_of(json)
        } else {
            value["model"]["dropout"] = Value::Null;
            library_of(value.to_string().as_bytes())
        }
        .map_err(|e| not_a_tokenizer(file, &e))?;
        let highest = library.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        if vocab_size == 0 {
            return Err(Error::input(format!("the tokenizer `{file}` has an empty vocabulary")));
        }
        let mut added: Vec<_> = library.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let plain =
            added.iter().all(|(_, t)| t.special || !(t.normalized || t.single_word || t.lstrip || t.rstrip));
        let raw = added.iter().filter(|(_, t)| !t.normalized);
        let in_text = InText::of(raw.map(|(id, t)| (t.content.as_str(), *id, t.special)))?;
        let spells_bytes = value["model"]["byte_fallback"] == true;
        let is_special = |token: &tokenizers::AddedToken| {
            token.special && !(spells_bytes && known::byte_of_name(&token.content).is_some())
        };
        let special: BTreeSet<u32> = added.iter().filter(|(_, t)| is_special(t)).map(|(id, _)| *id).collect();
        let cut = Cut::of(&value).filter(|_| plain && charsmap.is_none());
        let model = cut.and_then(|_| BpeJson::deserialize(&value["model"]).ok());
        let bpe = cut.zip(model).and_then(|(cut, model)| Bpe::of(&model, cut));
        let unknown = unknown_id(&library, &value);
        let template = Template::of(&value["post_processor"]);
        let only_special = added.iter().all(|(_, t)| t.special);
        let unigram = Unigram::of(&value["model"], &special).filter(|_| cut.is_some() || only_special);
        let engine = Engine::Library(Box::new(library));
        let parts =
            Parts { engine, vocab_size, cut, bpe, unigram, charsmap, in_text, special, template, unknown };
        Ok((parts, dropout))
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.engine.id(token)
    }

    /// Whether the text of a token's spelling is encoded to that token.
    fn encodes_to(&self, token: &str, id: u32) -> bool {
        match (&self.bpe, &self.engine) {
            (Some(bpe), _) => bpe.can_give(id),
            (None, Engine::Library(library)) => {
                library.encode_fast(token, false).is_ok_and(|found| found.get_ids().contains(&id))
            }
            (None, Engine::Own(_)) => false,
        }
    }
}

impl Engine {
    fn id(&self, token: &str) -> Option<u32> {
        match self {
            Engine::Own(vocabulary) => vocabulary.id(token),
            Engine::Library(library) => library.token_to_id(token),
        }
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, ours or another's.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer; names the file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, &Names::default())
    }

    /// [`Tokenizer::load`], with names of special tokens that have precedence.
    ///
    /// # Errors
    /// As [`Tokenizer::load`], and when one of `names` cannot be a special token.
    pub fn load_with(path: &Path, names: &Names) -> Result<Self> {
        Self::parse_with(&path.display().to_string(), fs::read(path)?, names)
    }

    /// [`Tokenizer::load`] from bytes; `file` is what messages call them.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn parse(file: &str, json: Vec<u8>) -> Result<Self> {
        Self::parse_with(file, json, &Names::default())
    }

    /// [`Tokenizer::load_with`] from bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::load_with`].
    pub fn parse_with(file: &str, json: Vec<u8>, names: &Names) -> Result<Self> {
        let (parts, dropout) = match OwnTokenizer::read(&json) {
            Some(known) => Parts::own(known),
            None => Parts::of_library(file, &json)?,
        };
        if dropout > 0.0 {
            warn_of_dropout(file, &json, dropout);
        }
        Self::new(json, parts, names).map_err(|e| e.context(format!("`{file}` cannot be used so")))
    }

    fn new(json: Vec<u8>, parts: Parts, names: &Names) -> Result<Self> {
        let vocabulary = special::Vocabulary {
            id: &|token| parts.id(token),
            apart: &|token, id| parts.special.contains(&id) || !parts.encodes_to(token, id),
            template: parts.template.clone(),
            unknown: parts.unknown,
        };
        let named = Named::of(&vocabulary, names)?;
        if let Some(id) = names.ends.iter().find(|id| **id as usize >= parts.vocab_size) {
            let what = format!("`eos_token_id` is {id}, and the tokenizer has {} tokens", parts.vocab_size);
            return Err(Error::input(what).help(format!("correct it in `{GENERATION_FILE}`")));
        }
        let foreign = names.chat_template.clone().filter(|text| !template::is_own(text));
        let named_by_file = Named::of(&vocabulary, &Names::default())?;
        let Parts { engine, vocab_size, cut, bpe, unigram, charsmap, in_text, special, unknown, .. } = parts;
        let mut control: BTreeSet<u32> = special.iter().copied().chain(named.all()).collect();
        if let Some(unknown) = unknown {
            control.remove(&unknown);
        }
        let forgeable = bpe.as_ref().is_none_or(|bpe| control.iter().any(|id| bpe.can_give(*id)));
        Ok(Tokenizer(Arc::new(Inner {
            engine,
            digest: Digest::of(&json),
            json,
            vocab_size,
            cut,
            bpe,
            unigram,
            charsmap,
            forgeable,
            scratches: Mutex::default(),
            in_text,
            control,
            special,
            named,
            named_by_file,
            unknown,
            names: Names { chat_template: foreign, ..names.clone() },
            template: OnceLock::new(),
            spellings: OnceLock::new(),
            ends: OnceLock::new(),
            recognizing: OnceLock::new(),
        })))
    }

    /// The library's tokenizer; only called where it was needed to read the file.
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
    /// When the text has a part without a token and there is no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some(cut) = self.0.cut else { return self.encode_by_library(text) };
        match &self.0.in_text {
            None => self.encode_segment(cut, text),
            Some(in_text) => {
                let encode = |segment: &Segment| match segment {
                    Segment::Text(text) => self.encode_segment(cut, text),
                    Segment::Token(id) => Ok(vec![*id]),
                };
                in_order(&in_text.segments(text), encode)
            }
        }
    }

    /// [`Tokenizer::encode`] of text without added tokens to match.
    fn encode_segment(&self, cut: Cut, text: &str) -> Result<Vec<u32>> {
        in_order(&cut.parts(text), |part: &Range<usize>| self.encode_part(cut, text, part.clone()))
    }

    /// [`Tokenizer::encode`] of each text, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that fails.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect::<Vec<_>>().into_iter().collect()
    }

    fn encode_by_library(&self, text: &str) -> Result<Vec<u32>> {
        let library = self.library()?;
        let text = match &self.0.charsmap {
            Some(charsmap) => charsmap.normalize(text),
            None => Cow::Borrowed(text),
        };
        let ids = match &self.0.unigram {
            Some(_) => {
                let words = words_of(library, &text).map_err(|e| not_encodable(&text, &e))?;
                let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
                let ids = words.into_iter().map(|(word, _, _)| self.encode_word(word));
                ids.collect::<Result<Vec<_>>>()?.concat()
            }
            None => {
                let encoding = library.encode_fast(text.as_ref(), false).map_err(|e| {
                    let word = word_without_token(library, &text);
                    not_encodable(word.as_deref().unwrap_or(&text), &e)
                })?;
                encoding.get_ids().to_vec()
            }
        };
        self.without_control(ids)
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

    /// [`Tokenizer::encode_spelled`], where the model is not [`Bpe`].
    fn encode_word(&self, word: &str) -> Result<Vec<u32>> {
        if let Some(unigram) = &self.0.unigram {
            let mut ids = Vec::new();
            unigram.encode(word, &mut ids).map_err(|e| not_encodable(word, &e))?;
            return Ok(ids);
        }
        let tokens = self.library()?.get_model().tokenize(word).map_err(|e| not_encodable(word, &e))?;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    fn without_control(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        if ids.iter().any(|id| self.0.control.contains(id)) { self.spell_out(&ids) } else { Ok(ids) }
    }

    /// The ids of a part of a text that begins and ends where words do: what the library's
    /// `encode_fast` gives, special tokens spelled out.
    fn encode_part(&self, cut: Cut, text: &str, part: Range<usize>) -> Result<Vec<u32>> {
        let scratches = || self.0.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        let free = scratches().pop();
        let mut scratch = free.unwrap_or_default();
        let mut ids = Vec::with_capacity(part.len() / 3 + 8);
        cut.words(text, part, |word| match scratch.cache.get(text.as_bytes(), word.clone(), &mut ids) {
            Ok(()) => Ok(()),
            Err(place) => {
                self.encode_new(cut, &text[word], &mut scratch)?;
                ids.extend_from_slice(&scratch.word);
                scratch.cache.put(place, &scratch.word);
                Ok(())
            }
        })?;
        scratches().push(scratch);
        Ok(ids)
    }

    /// Puts the ids of a word of the text into `scratch`.
    fn encode_new(&self, cut: Cut, word: &str, scratch: &mut Buffers) -> Result<()> {
        match &self.0.bpe {
            Some(bpe) => bpe.encode(word, &mut scratch.word, &mut scratch.work),
            None => scratch.word = self.encode_word(&cut.spell(word))?,
        }
        if self.0.forgeable {
            scratch.word = self.without_control(std::mem::take(&mut scratch.word))?;
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
        let hidden = |id: &u32| self.0.control.contains(id) || self.0.special.contains(id);
        let shown: Vec<u32> = ids.iter().copied().filter(|id| !hidden(id)).collect();
        match &self.0.engine {
            Engine::Own(vocabulary) => Ok(vocabulary.decode(&shown)),
            // Not by the library, which would leave out bytes that are marked as special.
            Engine::Library(library) => library
                .decode(&shown, false)
                .map_err(|e| Error::input("these token ids cannot be decoded").cause(e)),
        }
    }

    /// Decodes ids as they come.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// The id of the token in the role of `special`, if the vocabulary has one.
    pub fn special(&self, special: Special) -> Option<u32> {
        self.0.named.get(special)
    }

    /// The id of the token in the role of `special`.
    ///
    /// # Errors
    /// When the vocabulary does not have it.
    pub fn require(&self, special: Special) -> Result<u32> {
        self.special(special).ok_or_else(|| {
            let has: Vec<String> = self.0.control.iter().take(12).filter_map(|id| self.token(*id)).collect();
            special::missing(special, &has)
        })
    }

    /// The tokens that begin a turn of `role`: its own token, or a token that begins any turn and the role's
    /// name on a line, as in ChatML.
    ///
    /// # Errors
    /// When the tokenizer has neither, or cannot spell the role.
    pub fn turn(&self, role: Role) -> Result<Vec<u32>> {
        let special = Special::of_role(role);
        if let Some(id) = self.special(special) {
            return Ok(vec![id]);
        }
        let start = match self.turn_start() {
            Some(start) => start,
            None => self.require(special)?,
        };
        let name = self.encode(&format!("{}\n", role.as_str()))?;
        if name.is_empty() || name.iter().any(|id| self.is_special(*id)) {
            return Err(Error::input(format!(
                "the tokenizer has no token for the role `{0}`, and cannot spell `{0}` either",
                role.as_str()
            ))
            .help(format!("name one: `special_tokens: {{ {}: \"…\" }}`", special.name())));
        }
        Ok([&[start], name.as_slice()].concat())
    }

    /// The token that begins a turn of a role without a token of its own; `None` when all have one.
    pub fn turn_start(&self) -> Option<u32> {
        self.0.named.turn_start
    }

    /// The `tokenizer_config.json` to be saved with [`Tokenizer::json`], where that alone does not determine
    /// the special tokens and the chat template.
    ///
    /// # Errors
    /// When it cannot be serialized.
    pub fn config(&self) -> Result<Option<Vec<u8>>> {
        if self.0.named == self.0.named_by_file && !self.has_foreign_template() {
            return Ok(None);
        }
        json_of(&self.names().to_json()).map(Some)
    }

    /// The `tokenizer_config.json` that `AutoTokenizer` of `transformers` needs beside [`Tokenizer::json`]:
    /// [`Tokenizer::config`] with our chat format as a template, and how many tokens the model of the tokenizer
    /// holds, where that is known.
    ///
    /// # Errors
    /// When it cannot be serialized.
    pub fn full_config(&self, seq_len: Option<usize>) -> Result<Vec<u8>> {
        // A tokenizer that cannot tell roles apart has no template.
        let names = Names { chat_template: self.chat_template().ok(), ..self.names() };
        let mut value = names.to_json();
        if let Some(unknown) = self.unknown().and_then(|id| self.token(id)) {
            value["unk_token"] = json!(unknown);
        }
        if let Some(seq_len) = seq_len {
            value["model_max_length"] = json!(seq_len);
        }
        value["clean_up_tokenization_spaces"] = json!(false);
        json_of(&value)
    }

    /// The names to be read back. Those that another program did not give stay away, as its chat template may
    /// ask for them.
    fn names(&self) -> Names {
        if self.has_foreign_template() {
            return self.0.names.clone();
        }
        let name = |special| self.special(special).and_then(|id| self.token(id));
        Names {
            bos: name(Special::Bos),
            eos: name(Special::Eos),
            pad: name(Special::Pad),
            user: name(Special::User),
            assistant: name(Special::Assistant),
            system: name(Special::System),
            ..Names::default()
        }
    }

    /// The chat template in Jinja: that of another program's model, or our format for this tokenizer's roles.
    ///
    /// # Errors
    /// When the tokenizer cannot tell the roles of a conversation.
    pub fn chat_template(&self) -> Result<String> {
        if let Some(text) = &self.0.names.chat_template {
            return Ok(text.clone());
        }
        self.require(Special::Bos)?;
        self.require(Special::Eos)?;
        let opening = |role| Ok((role, self.opening(role)?));
        let mut openings = vec![opening(Role::User)?, opening(Role::Assistant)?];
        // Few conversations have a system message.
        openings.extend(opening(Role::System).ok());
        Ok(template::own(&openings))
    }

    /// The text that [`Tokenizer::turn`] encodes.
    fn opening(&self, role: Role) -> Result<String> {
        let ids = self.turn(role)?;
        let token = self.token(ids[0]).unwrap_or_default();
        let named = self.special(Special::of_role(role)).is_none();
        Ok(token + &if named { format!("{}\n", role.as_str()) } else { String::new() })
    }

    /// Whether conversations are written as another program's chat template says.
    pub fn has_foreign_template(&self) -> bool {
        self.0.names.chat_template.is_some()
    }

    /// # Errors
    /// When it does not compile.
    fn foreign_template(&self) -> Result<Option<&ChatTemplate>> {
        let Some(text) = &self.0.names.chat_template else { return Ok(None) };
        let file = self.0.names.chat_template_file.as_deref().unwrap_or("chat_template");
        let compile = || ChatTemplate::new(file, text, self.0.names.variables());
        self.0.template.get_or_init(compile).as_ref().map(Some).map_err(Error::clone)
    }

    /// The special tokens as text.
    fn spellings(&self) -> Result<&Spellings> {
        let special = || {
            let ids = self.0.control.union(&self.0.special);
            Spellings::new(ids.filter_map(|id| Some((self.token(*id)?, *id))))
        };
        self.0.spellings.get_or_init(special).as_ref().map_err(Error::clone)
    }

    /// Tokens that end what is generated: `eos`, what a file beside the model says, and with a chat template of
    /// another program the token that it writes behind an answer, and special tokens whose names are in common use
    /// for it.
    pub fn turn_ends(&self) -> &[u32] {
        self.0.ends.get_or_init(|| {
            let mut all = self.stated_ends();
            if self.has_foreign_template() {
                let known = special::TURN_ENDS.iter().filter_map(|name| self.id(name));
                all.extend(known.filter(|id| self.0.special.contains(id)));
            }
            all.sort_unstable();
            all.dedup();
            all
        })
    }

    /// [`Tokenizer::turn_ends`] that a file or the chat template states, `eos` first.
    pub fn stated_ends(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.special(Special::Eos).into_iter().collect();
        let template = self.foreign_template().ok().flatten();
        // A template that refuses a question and its answer is told of where it is used.
        let written = template.and_then(|template| foreign::end(self, template).ok().flatten());
        for id in self.0.names.ends.iter().copied().chain(written) {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        all
    }

    /// [`Tokenizer::encode`] of a text between two special tokens, where that is not as by itself: as the
    /// library encodes the whole.
    fn encode_between(&self, before: Before, text: &str, next: Option<u32>) -> Result<Vec<u32>> {
        let Engine::Library(library) = &self.0.engine else { return self.encode(text) };
        if text.is_empty() || self.0.cut.is_some() || self.spellings()?.are_in(text) {
            return self.encode(text);
        }
        let recognizing = self.0.recognizing.get_or_init(|| {
            let mut library = tokenizers::Tokenizer::clone(library);
            library.set_encode_special_tokens(false);
            library
        });
        let ids_of = |text: &str| match recognizing.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(not_encodable(text, &e)),
        };
        let spelled = |id: u32| self.token(id).unwrap_or_default();
        let (head, known) = match before {
            Before::Nothing => (String::new(), Vec::new()),
            Before::Token(id) => (spelled(id), vec![id]),
            // A token by itself with every pre-tokenizer; `transformers` encodes parts of a chat so.
            Before::Text => ("\n".to_string(), ids_of("\n")?),
        };
        let tail = next.map(spelled).unwrap_or_default();
        let ids = ids_of(&format!("{head}{text}{tail}"))?;
        match ids.strip_prefix(known.as_slice()).and_then(|ids| ids.strip_suffix(next.as_slice())) {
            Some(ids) => self.without_control(ids.to_vec()),
            None => self.encode(text),
        }
    }

    /// The same tokens, of which those that `names` has are the special ones.
    ///
    /// # Errors
    /// When one of them is not in the vocabulary, or text is encoded to it.
    pub fn with_names(self, names: &Names) -> Result<Self> {
        if *names == Names::default() {
            return Ok(self);
        }
        let names = names.clone().or(self.0.names.clone());
        Tokenizer::parse_with(TOKENIZER_FILE, self.json().to_vec(), &names)
    }

    /// Whether `id` is a special token, which plain text is never encoded to, except to the unknown token.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.control.contains(&id) || self.0.unknown == Some(id)
    }

    /// The id of the unknown token.
    pub fn unknown(&self) -> Option<u32> {
        self.0.unknown
    }

    /// Whether this is a unigram language model with scores in binary32, as SentencePiece has them.
    fn has_single_scores(&self) -> bool {
        self.0.unigram.as_ref().is_some_and(Unigram::has_single_scores)
    }

    /// The token as the vocabulary spells it, which is not always text: `Ġthe`, `<0x0A>`.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.0.engine {
            Engine::Own(vocabulary) => vocabulary.token(id).map(str::to_string),
            Engine::Library(library) => library.id_to_token(id),
        }
    }

    /// A token by itself, to be looked at: its text behind other text, or where it has none that is whole (special
    /// tokens, bytes of a character), as the vocabulary spells it.
    pub fn shown(&self, id: u32) -> String {
        let spelled = || self.token(id).unwrap_or_else(|| format!("<{id}>"));
        if self.is_special(id) {
            return spelled();
        }
        // Decoders may leave out the space of a text's first token.
        let decode = |ids: &[u32]| self.text_of(ids).unwrap_or_default();
        match decode(&[id, id]).strip_prefix(decode(&[id]).as_str()) {
            Some(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => text.to_string(),
            _ => spelled(),
        }
    }

    /// Whether all ids and special tokens of this tokenizer mean the same in `other`, which may have more.
    ///
    /// # Errors
    /// The first that differs: a model trained with this tokenizer cannot be used with the other.
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
        special::agree(self, other)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.engine.id(token)
    }

    /// The digest of [`Tokenizer::json`].
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Whether `digest` is that of the file, or would be if it were laid out as the tokenizers that are trained here
    /// or without white space.
    pub fn has_digest(&self, digest: Digest) -> bool {
        let of = |json: fn(&[u8]) -> Vec<u8>| Digest::of(&json(self.json()));
        self.digest() == digest || of(white_space::pretty) == digest || of(white_space::compact) == digest
    }

    /// The bytes of the file, to be saved with a model.
    pub fn json(&self) -> &[u8] {
        &self.0.json
    }

    /// The same JSON without white space between its parts: less than half as long.
    pub fn compact_json(&self) -> Vec<u8> {
        white_space::compact(self.json())
    }

    /// `ids` with every special token replaced by its letters. Some models (unigram, word level) have their
    /// special tokens in the ordinary vocabulary, so that text could forge a role.
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

    /// A letter by its own token, else by those of its bytes, else the unknown token.
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

/// The ids of all `items`, in their order, encoded in parallel where there are several.
fn in_order<T: Sync>(items: &[T], encode: impl Fn(&T) -> Result<Vec<u32>> + Sync + Send) -> Result<Vec<u32>> {
    if let [item] = items {
        return encode(item);
    }
    let ids: Vec<Result<Vec<u32>>> = items.par_iter().map(encode).collect();
    Ok(ids.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// Buffers and cache for encoding on one thread, reused between texts.
#[derive(Default)]
struct Buffers {
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

/// The library's tokenizer, without truncation, padding and post-processing.
fn library_of(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut library = tokenizers::Tokenizer::from_bytes(json)?;
    library.set_encode_special_tokens(true);
    library.with_padding(None);
    library.with_truncation(None)?;
    Ok(library)
}

fn json_of(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::bug(format!("{TOKENIZER_CONFIG_FILE}: {e}")))
}

/// Once per tokenizer: a process may load it several times, under several names.
fn warn_of_dropout(file: &str, json: &[u8], dropout: f64) {
    static WARNED: Mutex<BTreeSet<Digest>> = Mutex::new(BTreeSet::new());
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(Digest::of(json)) {
        tracing::warn!(
            "`{file}` asks for dropout {dropout}, which is for training alone: text is encoded without it"
        );
    }
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

/// The words of a text, as the normalizer and the pre-tokenizer leave them.
fn words_of(library: &tokenizers::Tokenizer, text: &str) -> tokenizers::Result<PreTokenizedString> {
    let mut normalized = NormalizedString::from(text);
    library.get_normalizer().map_or(Ok(()), |normalizer| normalizer.normalize(&mut normalized))?;
    let mut words = PreTokenizedString::from(normalized);
    library.get_pre_tokenizer().map_or(Ok(()), |cut| cut.pre_tokenize(&mut words))?;
    Ok(words)
}

/// The first word of a text that cannot be encoded.
fn word_without_token(library: &tokenizers::Tokenizer, text: &str) -> Option<String> {
    let words = words_of(library, text).ok()?;
    let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
    let unknown = |word: &&str| library.get_model().tokenize(word).is_err();
    words.iter().map(|(word, _, _)| *word).find(unknown).map(str::to_string)
}

/// Takes SentencePiece's table of characters out of a `tokenizer.json`, where it is the first step and no
/// token is looked for in the text before.
fn take_charsmap(json: &mut Value) -> Result<Option<Charsmap>, String> {
    let is_in_text = |token: &Value| token["special"] == false;
    if json["added_tokens"].as_array().into_iter().flatten().any(is_in_text) {
        return Ok(None);
    }
    let Some(normalizer) = json.get_mut("normalizer") else { return Ok(None) };
    let is_table = |step: &Value| step["type"] == "Precompiled";
    let first = if is_table(normalizer) {
        normalizer.take()
    } else {
        match normalizer.get_mut("normalizers").and_then(Value::as_array_mut) {
            Some(steps) if steps.first().is_some_and(is_table) => steps.remove(0),
            _ => return Ok(None),
        }
    };
    match first["precompiled_charsmap"].as_str() {
        Some(table) => Charsmap::of_base64(table).map(Some),
        None => Err("`Precompiled` has no `precompiled_charsmap`".into()),
    }
}

fn not_encodable(text: &str, error: &dyn std::fmt::Display) -> Error {
    let (start, rest) = text.split_at(text.char_indices().nth(60).map_or(text.len(), |(at, _)| at));
    let more = if rest.is_empty() { "" } else { "…" };
    Error::input(format!("`{start}{more}` cannot be encoded"))
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

    /// The inline tokenizer with other names for its special tokens.
    fn named(names: &Names, change: impl Fn(&mut Value)) -> Result<Tokenizer> {
        let mut json = foreign();
        change(&mut json);
        Tokenizer::parse_with("t/tokenizer.json", json.to_string().into_bytes(), names)
    }

    #[test]
    fn special_tokens_go_by_what_is_said_then_by_the_file_then_by_usual_names() {
        let found = |t: &Tokenizer| [Special::Bos, Special::Eos, Special::Pad].map(|s| t.special(s));
        let plain = named(&Names::default(), |_| ()).unwrap();
        assert_eq!(found(&plain), [Some(1), Some(2), Some(2)], "of usual names; no token is for padding");
        assert_eq!(plain.config().unwrap(), None, "the file alone says it");
        let single = json!([{"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<later>", "type_id": 0}}]);
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
                "<later>": {"id": "<later>", "ids": [7], "tokens": ["<later>"]}}});
        let templated = named(&Names::default(), |json| json["post_processor"] = template.clone()).unwrap();
        assert_eq!(found(&templated), [Some(2), Some(7), Some(7)]);
        let names = Names { eos: Some("<s>".into()), ..Names::default() };
        let said = named(&names, |json| json["post_processor"] = template.clone()).unwrap();
        assert_eq!(found(&said), [Some(2), Some(1), Some(1)]);
        let config = said.config().unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TOKENIZER_CONFIG_FILE);
        fs::write(&path, &config).unwrap();
        let read = Names::beside(|name| (name == TOKENIZER_CONFIG_FILE).then_some(path.as_path())).unwrap();
        assert_eq!(
            found(&named(&read, |json| json["post_processor"] = template.clone()).unwrap()),
            found(&said)
        );
        assert!(plain.is_part_of(&said).unwrap_err().to_string().contains("`bos` is `<s>` for the model"));
    }

    #[test]
    fn only_what_no_text_gives_can_be_named_special() {
        let error = |token: &str| {
            let names = Names { bos: Some(token.into()), ..Names::default() };
            named(&names, |_| ()).unwrap_err().to_string()
        };
        assert!(error("<none>").contains("`bos` is to be `<none>`"), "{}", error("<none>"));
        assert!(error("a").contains("text is encoded to that token as well"), "{}", error("a"));
        let twice = Names { user: Some("<s>".into()), assistant: Some("<s>".into()), ..Names::default() };
        let error = named(&twice, |_| ()).unwrap_err().to_string();
        assert!(error.contains("`user` and `assistant` are to be the same token"), "{error}");
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
