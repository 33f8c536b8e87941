//! SentencePiece's models (`tokenizer.model`), a message of Protocol Buffers
//! (<https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>): byte-pair encodings,
//! unigram language models and single characters.
//!
//! Whether a program adds `<s>` and `</s>` to a text is not in the file, so that no text is given any here.
//! In a text, U+2581 is a space to SentencePiece; our tokenizers, which cut words first, take it for a sign when
//! they cut. They are written where all else is the same.
//!
//! A user-defined symbol that is named as a role (`<user>`) is the token of that role: as with all tokenizers
//! here, no text is encoded to it.
//!
//! One thing is otherwise than in SentencePiece, in byte-pair encodings with user-defined symbols: a text behind
//! or between such symbols that is, as a whole, the spelling of the unknown token, a byte (`<0x41>`) or a
//! control symbol (`<s>`) becomes that token or byte, or the letters of the symbol.

use std::path::Path;

use prost::Message;

use super::Format;
use super::compare::same_on_own_texts;
use super::pieces::{Algorithm, Kind, Piece, Pieces};
use crate::base::{Error, Files, Result, files, fs};
use crate::tokenizer::cut::SPACE;
use crate::tokenizer::known::byte_of_name;
use crate::tokenizer::train;
use crate::tokenizer::{Names, Special, TOKENIZER_CONFIG_FILE, Tokenizer};

pub struct SentencePiece;

/// The file that is written.
const FILE: &str = "tokenizer.model";
const END: &str = ".model";

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "Type", optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
enum Type {
    /// Protocol Buffers 2 has no 0; the default is 1.
    None = 0,
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// What encoding depends on, and the names of special tokens.
#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    vocab_size: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
    #[prost(string, optional, tag = "45")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pad_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

impl Format for SentencePiece {
    fn name(&self) -> &'static str {
        "sentencepiece"
    }

    fn summary(&self) -> &'static str {
        "SentencePiece: `tokenizer.model`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        files.ending(END).is_some_and(begins_so)
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = files.only().or_else(|| files.ending(END)).ok_or_else(|| {
            Error::input(format!("`{}` has not one file whose name ends in `{END}`", files.label))
                .help("name the file")
        })?;
        let names = Names::beside(|name| files.find(name))?;
        parse(&path.display().to_string(), &fs::read(path)?, names)
    }

    fn refuses(&self, algorithm: train::Algorithm) -> Option<String> {
        use train::Algorithm::{ByteBpe, Word, Wordpiece};
        let is_another = matches!(algorithm, ByteBpe | Wordpiece | Word);
        is_another.then(|| "it holds pieces of SentencePiece (`sentencepiece_bpe`, `unigram`)".into())
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let bytes = proto_of(tokenizer, Pieces::of(tokenizer)?).encode_to_vec();
        same_on_own_texts(self.name(), tokenizer, &parse(FILE, &bytes, Names::default())?, &[SPACE])?;
        fs::write(&into.join(FILE), &bytes)?;
        match tokenizer.config()? {
            Some(config) => fs::write(&into.join(TOKENIZER_CONFIG_FILE), &config),
            None => Ok(()),
        }
    }
}

/// Whether the first field of the file is a piece, which begins with its text.
fn begins_so(path: &Path) -> bool {
    let head = files::head(path, 3);
    head.first() == Some(&0x0a) && head.get(2) == Some(&0x0a)
}

/// Reads the file's bytes; `given` names of special tokens have precedence.
fn parse(file: &str, bytes: &[u8], given: Names) -> Result<Tokenizer> {
    let model = ModelProto::decode(bytes)
        .map_err(|e| Error::input(format!("`{file}` is no model of SentencePiece")).cause(e))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    let algorithm = algorithm(file, &trainer)?;
    let cannot = |what: &str| {
        Err(Error::input(format!("`{file}` cannot be used: {what}")).help("a tokenizer.json cannot say that"))
    };
    if normalizer.escape_whitespaces == Some(false) {
        return cannot("its pieces have spaces (`escape_whitespaces` is off)");
    }
    if trainer.treat_whitespace_as_suffix == Some(true) {
        return cannot("its spaces belong to the word before (`treat_whitespace_as_suffix`)");
    }
    let pieces = model.pieces.into_iter().enumerate().map(|(id, piece)| piece_of(file, id, piece));
    let pieces: Vec<Piece> = pieces.collect::<Result<_>>()?;
    check_kinds(file, &pieces, trainer.byte_fallback == Some(true))?;
    let control = |id: i32| {
        let piece = pieces.get(usize::try_from(id).ok()?)?;
        (piece.kind == Kind::Control).then(|| piece.text.clone())
    };
    let names = Names {
        bos: control(trainer.bos_id.unwrap_or(1)),
        eos: control(trainer.eos_id.unwrap_or(2)),
        pad: control(trainer.pad_id.unwrap_or(-1)),
        ..Names::default()
    };
    let names = given.or(names);
    let pieces = Pieces {
        algorithm,
        pieces,
        dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
        remove_extra_whitespaces: normalizer.remove_extra_whitespaces.unwrap_or(true),
        charsmap: normalizer.precompiled_charsmap.unwrap_or_default(),
        spelled_before: false,
    };
    pieces.into_tokenizer(file, &names)
}

fn algorithm(file: &str, trainer: &TrainerSpec) -> Result<Algorithm> {
    match trainer.model_type.unwrap_or(1) {
        1 => Ok(Algorithm::Unigram),
        2 => Ok(Algorithm::Bpe),
        4 => Ok(Algorithm::Char),
        3 => Err(Error::input(format!("`{file}` is a model of whole words, which is not supported"))
            .help("of several unknown words in a row it makes one token, which a tokenizer.json cannot say")),
        other => Err(Error::input(format!("`{file}`: there is no `model_type` {other} in SentencePiece"))),
    }
}

fn piece_of(file: &str, id: usize, piece: PieceProto) -> Result<Piece> {
    let text = piece.piece.unwrap_or_default();
    let kind = match Type::try_from(piece.kind.unwrap_or(1)) {
        Ok(Type::Normal) => Kind::Normal,
        Ok(Type::Unknown) => Kind::Unknown,
        Ok(Type::Control) => Kind::Control,
        Ok(Type::UserDefined) => Kind::UserDefined,
        Ok(Type::Byte) => Kind::Byte,
        Ok(Type::Unused) => {
            return Err(Error::input(format!("`{file}`: token {id} ({text:?}) is marked as unused"))
                .help("SentencePiece takes it apart again, which a tokenizer.json cannot say"));
        }
        Ok(Type::None) | Err(_) => {
            let found = piece.kind.unwrap_or_default();
            return Err(Error::input(format!(
                "`{file}`: token {id} ({text:?}) has the type {found}, expected 1 to 6"
            )));
        }
    };
    Ok(Piece { text, score: piece.score.unwrap_or(0.0), kind })
}

fn check_kinds(file: &str, pieces: &[Piece], byte_fallback: bool) -> Result<()> {
    let wrong = |what: String| Err(Error::input(format!("`{file}` is no model of SentencePiece: {what}")));
    let of_kind = |kind: Kind| pieces.iter().zip(0..).filter(move |(piece, _)| piece.kind == kind);
    let unknown: Vec<u32> = of_kind(Kind::Unknown).map(|(_, id)| id).collect();
    if unknown.len() != 1 {
        return wrong(format!("it has {} unknown tokens, expected one", unknown.len()));
    }
    let mut bytes = [false; 256];
    for (piece, id) in of_kind(Kind::Byte) {
        match byte_of_name(&piece.text) {
            Some(byte) if byte_fallback => bytes[byte as usize] = true,
            Some(_) => return wrong(format!("token {id} is a byte, and `byte_fallback` is off")),
            None => {
                return wrong(format!("token {id} ({:?}) is marked as a byte, such as <0x41>", piece.text));
            }
        }
    }
    match bytes.iter().position(|there| !there).filter(|_| byte_fallback) {
        Some(byte) => wrong(format!("`byte_fallback` is on, and the token <0x{byte:02X}> is not there")),
        None => Ok(()),
    }
}

/// The message for a tokenizer of these pieces.
fn proto_of(tokenizer: &Tokenizer, all: Pieces) -> ModelProto {
    let pad = tokenizer.special(Special::Pad);
    let named = |special: Special| tokenizer.special(special).map(|id| (id as i32, tokenizer.token(id)));
    // Without a token for padding, the one that ends a text is taken, which SentencePiece does not.
    let named = |special| {
        named(special).filter(|_| special != Special::Pad || pad != tokenizer.special(Special::Eos))
    };
    let id = |special| Some(named(special).map_or(-1, |(id, _)| id));
    let text = |special| named(special).and_then(|(_, text)| text);
    let unknown = all.of_kind(Kind::Unknown).next().map(|(piece, id)| (id as i32, piece.text.clone()));
    let (unk_id, unk_piece) = unknown.unzip();
    let trainer = TrainerSpec {
        model_type: Some(if all.algorithm == Algorithm::Unigram { 1 } else { 2 }),
        vocab_size: Some(all.pieces.len() as i32),
        treat_whitespace_as_suffix: None,
        byte_fallback: Some(all.has_bytes()),
        unk_id,
        unk_piece,
        bos_id: id(Special::Bos),
        bos_piece: text(Special::Bos),
        eos_id: id(Special::Eos),
        eos_piece: text(Special::Eos),
        pad_id: id(Special::Pad),
        pad_piece: text(Special::Pad),
    };
    let normalizer = NormalizerSpec {
        name: Some(if all.charsmap.is_empty() { "identity" } else { "user_defined" }.into()),
        precompiled_charsmap: Some(all.charsmap),
        add_dummy_prefix: Some(all.dummy_prefix),
        remove_extra_whitespaces: Some(all.remove_extra_whitespaces),
        escape_whitespaces: Some(true),
    };
    let piece = |piece: Piece| {
        let kind = match piece.kind {
            Kind::Normal => Type::Normal,
            Kind::Unknown => Type::Unknown,
            Kind::Control => Type::Control,
            Kind::UserDefined => Type::UserDefined,
            Kind::Byte => Type::Byte,
        };
        PieceProto { piece: Some(piece.text), score: Some(piece.score), kind: Some(kind as i32) }
    };
    ModelProto {
        pieces: all.pieces.into_iter().map(piece).collect(),
        trainer: Some(trainer),
        normalizer: Some(normalizer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::damage::damaged;
    use crate::tokenizer::format::check_written;
    use crate::tokenizer::format::tests_common::{digest, folder, forms, ids_of_texts, shared};
    use crate::tokenizer::tests_with_library::trained_on;
    use crate::tokenizer::train;

    fn model(name: &str) -> Vec<u8> {
        fs::read(&folder(&format!("tokenizer_forms/{name}.model"))).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Tokenizer> {
        parse("t.model", bytes, Names::default())
    }

    /// A change to a model.
    fn changed(name: &str, change: impl Fn(&mut ModelProto)) -> Vec<u8> {
        let mut proto = ModelProto::decode(model(name).as_slice()).unwrap();
        change(&mut proto);
        proto.encode_to_vec()
    }

    const ALL: [&str; 6] = ["bpe", "bpe_bytes", "bpe_no_prefix", "char", "unigram", "unigram_bytes"];

    #[test]
    fn the_ids_are_those_of_sentencepiece() {
        for name in ALL {
            let tokenizer = read(&model(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (found, due) = (ids_of_texts(&tokenizer), forms()["sentencepiece"][name]["ids"].clone());
            let texts = super::super::compare::odd_texts().unwrap();
            for (i, text) in texts.iter().enumerate() {
                assert_eq!(found[i], due[i], "{name}: {text:?}");
            }
            let runs = ["a", "b", "ab", "aab", ".", " ", "1", "play, ", "<tag>", "x <bot>a"];
            let runs = runs.into_iter().flat_map(|part| (1..30).map(move |n| part.repeat(n)));
            let ids: Vec<Vec<u32>> = runs.map(|text| tokenizer.encode(&text).unwrap()).collect();
            assert_eq!(digest(&ids), forms()["sentencepiece"][name]["runs"], "{name}: what repeats");
        }
        let special = [Special::Bos, Special::Eos, Special::Pad, Special::Unk];
        let found = |name: &str| special.map(|special| read(&model(name)).unwrap().special(special));
        assert_eq!(found("bpe"), [1, 2, 2, 0].map(Some));
        assert_eq!(found("bpe_bytes"), [1, 2, 3, 0].map(Some));
        assert_eq!(found("unigram_bytes"), [0, 1, 2, 3].map(Some));
    }

    /// A symbol for a role is its token, which no text is encoded to, as in all tokenizers here.
    #[test]
    fn a_user_defined_role_is_not_forged_by_text() {
        for name in ["bpe", "unigram"] {
            let bytes = changed(name, |p| p.pieces[3].piece = Some("<user>".into()));
            let tokenizer = read(&bytes).unwrap();
            assert_eq!(tokenizer.special(Special::User), Some(3));
            assert!(!tokenizer.encode("a <user> b").unwrap().contains(&3), "{name}");
            assert!(tokenizer.encode("a <bot> b").unwrap().contains(&4), "{name}");
            let dir = tempfile::tempdir().unwrap();
            SentencePiece.write(&tokenizer, dir.path()).unwrap();
            let again = SentencePiece.read(&Files::at(dir.path()).unwrap()).unwrap();
            assert_eq!(again.json(), tokenizer.json(), "{name}");
        }
    }

    #[test]
    fn text_comes_back() {
        for name in ["bpe_bytes", "unigram_bytes"] {
            let tokenizer = read(&model(name)).unwrap();
            let text = "the fox é 中\n<s> <unk> 😀";
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{name}");
        }
    }

    #[test]
    fn the_reference_ids_are_met() {
        let Some(dir) = shared("tok_sentencepiece") else { return };
        let files = Files::at(&dir.join("test_model.model")).unwrap();
        assert!(SentencePiece.recognizes(&files));
        let tokenizer = SentencePiece.read(&files).unwrap();
        assert_eq!(ids_of_texts(&tokenizer), forms()["botchan"]["ids"]);
        let text = fs::read_text(&dir.join("botchan.txt")).unwrap();
        let ids: Vec<Vec<u32>> = text.split('\n').map(|line| tokenizer.encode(line).unwrap()).collect();
        assert_eq!(digest(&ids), forms()["botchan"]["botchan.txt"]);
    }

    #[test]
    fn what_was_read_is_written_and_read_alike() {
        for name in ALL {
            let dir = tempfile::tempdir().unwrap();
            let tokenizer = read(&model(name)).unwrap();
            SentencePiece.write(&tokenizer, dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let files = Files::at(dir.path()).unwrap();
            assert!(SentencePiece.recognizes(&files));
            assert_eq!(SentencePiece.read(&files).unwrap().json(), tokenizer.json(), "{name}");
        }
    }

    /// Ours cut words first: what SentencePiece would merge across them is told by the text.
    #[test]
    fn tokenizers_of_ours_are_written_where_they_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let error = |name: &str| {
            let tokenizer = Tokenizer::load(&folder(&format!("tokenizers/{name}.json"))).unwrap();
            SentencePiece.write(&tokenizer, dir.path()).unwrap_err().to_string()
        };
        for name in ["sentencepiece_bpe", "unigram"] {
            let found = error(name);
            assert!(found.contains("other ids than here") && found.contains("\"'sun 'tis 'the"), "{found}");
        }
        assert!(error("byte_bpe").contains("cuts texts into words by \"ByteLevel\""));
        assert!(error("wordpiece").contains("its model is \"WordPiece\""));
        let text = "seekor kucing sedang berjalan di bawah pohon, dan kucing itu bermain. ".repeat(20);
        for algorithm in [train::Algorithm::SentencepieceBpe, train::Algorithm::Unigram] {
            let tokenizer = Tokenizer::parse("t", trained_on(&text, algorithm)).unwrap();
            SentencePiece.write(&tokenizer, dir.path()).unwrap();
            let files = Files::at(dir.path()).unwrap();
            let again = SentencePiece.read(&files).unwrap();
            tokenizer.is_part_of(&again).unwrap();
            let one = |work: &mut dyn FnMut(&str) -> Result<()>| work(&text);
            assert_eq!(check_written(&SentencePiece, &tokenizer, dir.path(), &one).unwrap(), 1);
            let other = |work: &mut dyn FnMut(&str) -> Result<()>| work("kucing\u{2581}kucing");
            let found =
                check_written(&SentencePiece, &tokenizer, dir.path(), &other).unwrap_err().to_string();
            assert!(found.contains("kucing▁kucing"), "{found}");
        }
    }

    /// `cargo test --release --lib write_models -- --ignored`, then `make_tokenizer_form_fixtures.py --check`.
    #[test]
    #[ignore = "writes into the temporary folder, for SentencePiece to read"]
    fn write_models_for_sentencepiece() {
        let out = std::env::temp_dir().join("tinylm_written_models");
        let written = ALL.map(|name| (name.to_string(), read(&model(name)).unwrap()));
        let own = ["sentencepiece_bpe", "unigram"].map(|name| {
            (name.to_string(), Tokenizer::load(&folder(&format!("tokenizers/{name}.json"))).unwrap())
        });
        for (name, tokenizer) in written.into_iter().chain(own) {
            let bytes = proto_of(&tokenizer, Pieces::of(&tokenizer).unwrap()).encode_to_vec();
            fs::write(&out.join(format!("{name}.model")), &bytes).unwrap();
            // By the model that was written, as it is read here.
            let ids = ids_of_texts(&read(&bytes).unwrap());
            fs::write(&out.join(format!("{name}.json")), ids.to_string().as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_a_tokenizer_json_cannot_say_is_refused() {
        let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(error(&model("word")).contains("a model of whole words"));
        let trainer = |proto: &mut ModelProto| proto.trainer.clone().unwrap();
        type Case<'a> = (&'a str, &'a dyn Fn(&mut ModelProto), &'a str);
        let cases: [Case; 14] = [
            ("bpe", &|p| p.pieces[9].kind = Some(5), "is marked as unused"),
            ("bpe", &|p| p.pieces[9].kind = Some(9), "has the type 9, expected 1 to 6"),
            ("bpe", &|p| p.pieces[0].kind = Some(1), "it has 0 unknown tokens"),
            ("bpe", &|p| p.pieces[9].kind = Some(2), "it has 2 unknown tokens"),
            ("bpe", &|p| p.pieces[9].piece = p.pieces[10].piece.clone(), "the tokens 9 and 10 are both"),
            ("bpe", &|p| p.pieces[9].piece = None, "token 9 (\"\") is empty"),
            ("bpe", &|p| p.pieces[9].score = Some(f32::NAN), "has the score NaN"),
            ("bpe", &|p| p.pieces[9].piece = Some("é§".into()), "has the character '§', which is no token"),
            ("bpe_bytes", &|p| p.pieces[9].piece = Some("<0x>".into()), "is marked as a byte"),
            ("bpe_bytes", &|p| p.pieces[9].kind = Some(3), "the token <0x05> is not there"),
            ("bpe_bytes", &|p| p.trainer.as_mut().unwrap().byte_fallback = None, "token 4 is a byte, and"),
            (
                "bpe",
                &|p| p.trainer = Some(TrainerSpec { model_type: Some(7), ..trainer(p) }),
                "`model_type` 7",
            ),
            (
                "bpe",
                &|p| p.normalizer.as_mut().unwrap().escape_whitespaces = Some(false),
                "`escape_whitespaces` is off",
            ),
            (
                "bpe",
                &|p| p.trainer.as_mut().unwrap().treat_whitespace_as_suffix = Some(true),
                "`treat_whitespace_as_suffix`",
            ),
        ];
        for (name, change, due) in cases {
            let found = error(&changed(name, change));
            assert!(found.contains(due), "{due}: {found}");
        }
        let table = |change: &dyn Fn(&mut Vec<u8>)| {
            error(&changed("unigram", |p| {
                change(p.normalizer.as_mut().unwrap().precompiled_charsmap.as_mut().unwrap())
            }))
        };
        assert!(table(&|t| t.truncate(3)).contains("is cut off"));
        assert!(table(&|t| t[3] = 0x7f).contains("and its trie"));
        assert!(table(&|t| t.truncate(600)).contains("trie"));
        assert!(table(&|t| t[4..8].fill(0xff)).contains("leads outside"));
        assert!(table(&|t| *t.last_mut().unwrap() = 0xff).contains("not UTF-8"));
    }

    #[test]
    fn no_damage_makes_it_fail_otherwise() {
        for name in ["unigram", "bpe"] {
            let mut refused = 0;
            for (what, bytes) in damaged(&model(name)) {
                match read(&bytes) {
                    Err(error) => {
                        assert!(error.to_string().contains("t.model"), "{what}: {error}");
                        refused += 1;
                    }
                    Ok(tokenizer) => drop(tokenizer.encode("the fox <user> é e\u{301} ﬁ\u{301}").unwrap()),
                }
            }
            assert!(refused > 60, "{refused} of {name}");
        }
    }
}
