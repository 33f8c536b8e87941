//! GPT-2's two files: `vocab.json`, the tokens with their ids, and `merges.txt`, a pair of tokens a line, the
//! first merged first (<https://github.com/openai/gpt-2/blob/master/src/encoder.py>). Tokens are spelled in
//! symbols of bytes. OpenAI calls the files `encoder.json` and `vocab.bpe`, Hugging Face as above.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::Format;
use super::build::{Draft, byte_level, json_of};
use super::compare::same_on_own_texts;
use super::lines::Lines;
use super::vocab_json::{self, Vocab};
use crate::base::{Error, Files, Result, fs};
use crate::tokenizer::cut::Cut;
use crate::tokenizer::train::{Algorithm, form};
use crate::tokenizer::{Names, TOKENIZER_CONFIG_FILE, Tokenizer, byte_symbol};

pub struct Gpt2;

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// What the two files are called: by Hugging Face, by OpenAI.
const PAIRS: [(&str, &str); 2] = [(VOCAB, MERGES), ("encoder.json", "vocab.bpe")];
/// The first line of many merges files, which is no merge.
const VERSION: &str = "#version";
/// Tokens that were added later, in folders of transformers.
const ADDED: &str = "added_tokens.json";

impl Format for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn summary(&self) -> &'static str {
        "GPT-2: `vocab.json` and `merges.txt`, or OpenAI's `encoder.json` and `vocab.bpe`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        pair(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let (vocab, merges) = pair(files).ok_or_else(|| {
            Error::input(format!("`{}` has not one `{VOCAB}` with its `{MERGES}`", files.label))
                .help("name a folder with both files; their names may have the same beginning")
        })?;
        if files.find(ADDED).is_some() {
            return Err(Error::input(format!("`{}` has an `{ADDED}`, which is not read", files.label)).help(
                "convert the tokenizer to a `tokenizer.json`: transformers' `AutoTokenizer` writes one",
            ));
        }
        let names = Names::beside(|name| files.find(name))?;
        let (vocab_file, merges_file) = (vocab.display().to_string(), merges.display().to_string());
        let vocab: Vocab =
            vocab_json::parse(&vocab_file, &fs::read_text(vocab)?, "a vocabulary of tokens with ids")?;
        let tokens = vocab.without_gaps(&vocab_file)?;
        let merges = read_merges(&merges_file, &fs::read_text(merges)?, &tokens)?;
        tokenizer(&vocab_file, &tokens, &merges, &names)
    }

    fn refuses(&self, algorithm: Algorithm) -> Option<String> {
        (algorithm != Algorithm::ByteBpe).then(|| "it holds byte-level BPE alone (`byte_bpe`)".into())
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let (tokens, merges) = parts_of(tokenizer)?;
        let names = Names::default();
        let read = self::tokenizer("the files", &tokens, &merges, &names)?;
        same_on_own_texts(self.name(), tokenizer, &read, &[])?;
        let vocab: Vec<String> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| format!("{}: {id}", Value::String(token.clone())))
            .collect();
        fs::write(&into.join(VOCAB), format!("{{{}}}", vocab.join(", ")).as_bytes())?;
        let lines: String = merges.iter().map(|(left, right)| format!("{left} {right}\n")).collect();
        fs::write(&into.join(MERGES), format!("{VERSION}: 0.2\n{lines}").as_bytes())?;
        match tokenizer.config()? {
            Some(config) => fs::write(&into.join(TOKENIZER_CONFIG_FILE), &config),
            None => Ok(()),
        }
    }
}

/// A file whose name ends as `vocab.json`, and the one called alike that ends as `merges.txt`, or OpenAI's.
fn pair(files: &Files) -> Option<(&Path, &Path)> {
    let mut pairs = files.all.iter().filter_map(|(name, vocab)| {
        PAIRS.iter().find_map(|(first, second)| {
            let start = name.strip_suffix(first)?;
            Some((vocab.as_path(), files.find(&format!("{start}{second}"))?))
        })
    });
    pairs.next().filter(|_| pairs.next().is_none())
}

/// Pairs of tokens, the first merged first.
pub(super) type Merges = Vec<(String, String)>;

fn read_merges(file: &str, text: &str, tokens: &[String]) -> Result<Merges> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let mut merges = Vec::new();
    for (at, line) in Lines::of(file, text).enumerate() {
        if line.text.is_empty() || (at == 0 && line.text.starts_with(VERSION)) {
            continue;
        }
        let mut parts = line.text.split(' ');
        let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
            let what = format!("found {:?}, expected two tokens with one space between", line.text);
            return Err(Error::input(what).at(line.place(0)));
        };
        let made = format!("{left}{right}");
        for (part, at) in [(left, 0), (right, left.len() + 1), (made.as_str(), 0)] {
            if !known.contains(part) {
                let what = format!("the token {part:?} of this merge is not in the vocabulary");
                return Err(Error::input(what).at(line.place(at)));
            }
        }
        merges.push((left.to_string(), right.to_string()));
    }
    Ok(merges)
}

/// The tokenizer of tokens by id and their merges, both spelled in symbols of bytes.
fn tokenizer(file: &str, tokens: &[String], merges: &[(String, String)], names: &Names) -> Result<Tokenizer> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let bytes: Vec<String> = (0..=255).map(|byte| byte_symbol(byte).to_string()).collect();
    if let Some(byte) = (0..=255usize).find(|byte| !known.contains(bytes[*byte].as_str())) {
        let what = format!("`{file}` has no token for the byte 0x{byte:02X}, spelled `{}`", bytes[byte]);
        return Err(Error::input(what).help("without it some texts could not be encoded"));
    }
    let made: HashSet<String> =
        merges.iter().map(|(left, right)| format!("{left}{right}")).chain(bytes).collect();
    // No text is encoded to them, and they look as special tokens do.
    let is_special = |token: &String| !made.contains(token) && token.starts_with('<') && token.ends_with('>');
    let special = tokens.iter().zip(0..).filter(|(token, _)| is_special(token));
    let draft = Draft {
        normalizer: Value::Null,
        pre_tokenizer: byte_level(true),
        decoder: byte_level(true),
        special: special.map(|(token, id)| (id, token.clone())).collect(),
        model: form::bpe(tokens, merges, None, false),
    };
    draft.tokenizer(file, names)
}

/// Tokens by id and merges.
pub(super) fn parts_of(tokenizer: &Tokenizer) -> Result<(Vec<String>, Merges)> {
    let cannot = |why: String| {
        Error::input(format!("GPT-2's files cannot hold this tokenizer: {why}"))
            .help("they hold byte-level BPE with GPT-2's words, as `algorithm: byte_bpe` trains it")
    };
    let json = json_of(tokenizer)?;
    if json["model"]["type"] != "BPE" || Cut::of(&json) != Some(Cut::Bytes) {
        return Err(cannot("its model is no byte-level BPE over GPT-2's words".into()));
    }
    let added = json["added_tokens"].as_array().into_iter().flatten();
    if let Some(token) = added.filter(|token| token["special"] == false).map(|token| &token["content"]).next()
    {
        return Err(cannot(format!("the token {token} is matched in text before all others")));
    }
    let token = |id| tokenizer.token(id).ok_or_else(|| cannot(format!("the id {id} has no token")));
    let tokens = (0..tokenizer.vocab_size() as u32).map(token).collect::<Result<_>>()?;
    Ok((tokens, super::build::merges_of(&json)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::tokenizer::Special;
    use crate::tokenizer::format::tests_common::{files, folder, forms, ids_of_texts, shared};

    fn small() -> (String, String) {
        let mut tokens: Vec<String> = vec!["<|endoftext|>".into()];
        tokens.extend((0..=255).map(|byte| byte_symbol(byte).to_string()));
        tokens.extend(["th", "the", "Ġthe"].map(String::from));
        let vocab: serde_json::Map<String, Value> =
            tokens.into_iter().zip(0..).map(|(t, id)| (t, json!(id))).collect();
        (Value::Object(vocab).to_string(), "#version: 0.2\nt h\nth e\nĠ the\n".to_string())
    }

    fn read(vocab: &str, merges: &str) -> Result<Tokenizer> {
        let (_dir, files) = files(&[(VOCAB, vocab.as_bytes()), (MERGES, merges.as_bytes())]);
        assert!(Gpt2.recognizes(&files));
        Gpt2.read(&files)
    }

    #[test]
    fn merges_are_read_with_and_without_the_version() {
        let (vocab, merges) = small();
        let with = read(&vocab, &merges).unwrap();
        let without = read(&vocab, merges.strip_prefix("#version: 0.2\n").unwrap().trim_end()).unwrap();
        assert_eq!(with.json(), without.json());
        assert_eq!(with.encode("the the<|endoftext|>").unwrap()[..2], [258, 259]);
        assert_eq!([Special::Bos, Special::Eos].map(|s| with.special(s)), [Some(0); 2]);
        assert_eq!(with.decode(&with.encode("the thé\r\n中").unwrap()).unwrap(), "the thé\r\n中");
        let (_dir, openai) = files(&[("encoder.json", vocab.as_bytes()), ("vocab.bpe", merges.as_bytes())]);
        assert_eq!(Gpt2.read(&openai).unwrap().json(), with.json());
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        let (vocab, merges) = small();
        let error = |vocab: &str, merges: &str| read(vocab, merges).unwrap_err().to_string();
        for (from, to, due) in [
            ("th e", "the", ["merges.txt:3:1", "expected two tokens"]),
            ("th e", "th  e", ["merges.txt:3:1", "expected two tokens"]),
            ("th e", "th e x", ["merges.txt:3:1", "expected two tokens"]),
            ("th e", "tx e", ["merges.txt:3:1", "\"tx\""]),
            ("th e", "t xe", ["merges.txt:3:3", "\"xe\""]),
            ("th e", "h e", ["merges.txt:3:1", "\"he\""]),
        ] {
            let found = error(&vocab, &merges.replacen(from, to, 1));
            assert!(due.iter().all(|part| found.contains(part)), "{from} -> {to}: {found}");
        }
        for (from, to, due) in [
            ("\"the\":258", "\"the\":257", "both have the id 257"),
            ("\"the\":258", "\"th\":258", "\"th\" is there twice"),
            ("\"the\":258", "\"the\":358", "no token has the id 258"),
            ("\"the\":258", "\"the\":-1", "vocab.json:1:"),
            ("\"the\":258", "\"the\":\"258\"", "vocab.json:1:"),
            ("\"the\":258", "\"the\":99999999", "too large"),
            ("\"the\":258", "\"the\" 258", "vocab.json:1:"),
            ("\"!\":", "\"!!\":", "no token for the byte 0x21"),
        ] {
            assert!(vocab.contains(from), "{from}");
            let found = error(&vocab.replacen(from, to, 1), "t h\n");
            assert!(found.contains(due), "{from} -> {to}: {found}");
        }
        assert!(error("[]", &merges).contains("an object of tokens"));
        assert!(error("{}", &merges).contains("there are no tokens"));
        for at in (0..vocab.len()).step_by(97).filter(|at| vocab.is_char_boundary(*at)) {
            assert!(error(&vocab[..at], &merges).contains("vocab.json:1:"));
        }
    }

    #[test]
    fn what_was_read_or_trained_here_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (vocab, merges) = small();
        for tokenizer in
            [read(&vocab, &merges).unwrap(), Tokenizer::load(&folder("tokenizers/byte_bpe.json")).unwrap()]
        {
            Gpt2.write(&tokenizer, dir.path()).unwrap();
            let again = Gpt2.read(&Files::at(dir.path()).unwrap()).unwrap();
            assert_eq!(
                super::super::build::merges_of(&json_of(&again).unwrap()),
                parts_of(&tokenizer).unwrap().1
            );
            assert!(again.is_part_of(&tokenizer).is_ok() && tokenizer.is_part_of(&again).is_ok());
            assert_eq!(
                again.encode("the fox was walking").unwrap(),
                tokenizer.encode("the fox was walking").unwrap()
            );
        }
        let error = Gpt2.write(&Tokenizer::load(&folder("tokenizers/unigram.json")).unwrap(), dir.path());
        assert!(error.unwrap_err().to_string().contains("no byte-level BPE"));
    }

    /// By tiktoken, from the same two files.
    #[test]
    fn the_reference_ids_are_met() {
        let Some(dir) = shared("tok_gpt2_cs336") else { return };
        for (name, start) in [("gpt2", "gpt2_"), ("cs336", "train-bpe-reference-")] {
            let files = Files {
                label: start.into(),
                all: [VOCAB, MERGES].map(|end| (end.to_string(), dir.join(format!("{start}{end}")))).into(),
            };
            let tokenizer = Gpt2.read(&files).unwrap();
            assert_eq!(ids_of_texts(&tokenizer), forms()[name]["ids"], "{name}");
            let lines = fs::read_text(&dir.join("corpus.en")).unwrap();
            let ids: Vec<Vec<u32>> = lines.lines().map(|line| tokenizer.encode(line).unwrap()).collect();
            assert_eq!(
                crate::tokenizer::format::tests_common::digest(&ids),
                forms()[name]["corpus.en"],
                "{name}"
            );
        }
    }
}
