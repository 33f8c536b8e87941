//! The two tokenizers of Python's `tiny_lm`: characters (`{"char_to_id": {…}, "vocab_size": n}`), and a
//! byte-pair encoding of words with `</w>` at their end (`{"vocab": {…}, "merges": [[a, b], …], "vocab_size": n}`).
//!
//! Of the latter, `</w>` is a symbol in merges and no token of the vocabulary: where no merge takes it up, the
//! original gives `<UNK>`. The same ids are given here: `<UNK>` is called `</w>`, and what has no token stands
//! in a word of its own, so that it is not taken for the end of another.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::Format;
use super::build::Draft;
use super::vocab_json::{self, Vocab};
use super::word_list::PYTHON_SPACE;
use crate::base::{Error, Files, Result, files, fs};
use crate::tokenizer::train::{Algorithm, form};
use crate::tokenizer::{Names, Tokenizer};

pub struct TinyLm;

const PAD: &str = "<PAD>";
const UNKNOWN: &str = "<UNK>";
const BOS: &str = "<BOS>";
const EOS: &str = "<EOS>";
const END_OF_WORD: &str = "</w>";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CharFile {
    char_to_id: Vocab,
    vocab_size: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BpeFile {
    vocab: Vocab,
    merges: Vec<(String, String)>,
    vocab_size: usize,
}

/// Which of them a file is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    char_to_id: Option<IgnoredAny>,
    vocab: Option<IgnoredAny>,
    merges: Option<IgnoredAny>,
    #[serde(rename = "vocab_size")]
    _vocab_size: IgnoredAny,
}

impl Format for TinyLm {
    fn name(&self) -> &'static str {
        "tiny_lm"
    }

    fn summary(&self) -> &'static str {
        "Python's `tiny_lm`: JSON with `char_to_id`, or with `vocab` and `merges`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        let json = files.only().filter(|path| files::head(path, 1) == b"{");
        json.and_then(|path| fs::read_text(path).ok()).and_then(|text| is_bpe(&text)).is_some()
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = files.only().or_else(|| files.ending(".json")).ok_or_else(|| {
            Error::input(format!("`{}` has several files", files.label))
                .help("name the one with the tokenizer")
        })?;
        let (file, text) = (path.display().to_string(), fs::read_text(path)?);
        match is_bpe(&text) {
            Some(true) => bpe(&file, vocab_json::parse(&file, &text, "a BPE tokenizer of `tiny_lm`")?),
            _ => characters(&file, vocab_json::parse(&file, &text, "a tokenizer of `tiny_lm`")?),
        }
    }

    fn refuses(&self, _: Algorithm) -> Option<String> {
        Some("it is only read".into())
    }

    fn write(&self, _: &Tokenizer, _: &Path) -> Result<()> {
        Err(Error::input("tokenizers of Python's `tiny_lm` are only read")
            .help("write `tokenizer_json`, which other programs read"))
    }
}

fn is_bpe(text: &str) -> Option<bool> {
    let shape: Shape = serde_json::from_str(text).ok()?;
    match (shape.char_to_id, shape.vocab, shape.merges) {
        (Some(_), None, None) => Some(false),
        (None, Some(_), Some(_)) => Some(true),
        _ => None,
    }
}

/// The names of the special tokens that are there.
fn names(tokens: &[String]) -> Names {
    let there = |name: &str| tokens.iter().any(|token| token == name).then(|| name.to_string());
    Names { bos: there(BOS), eos: there(EOS), pad: there(PAD), ..Names::default() }
}

/// The tokens by id; `<UNK>` is one of them.
fn tokens(file: &str, vocab: Vocab, vocab_size: usize) -> Result<Vec<String>> {
    let tokens = vocab.without_gaps(file)?;
    if vocab_size < tokens.len() {
        let what = format!("`{file}` has {} tokens, and `vocab_size` is {vocab_size}", tokens.len());
        return Err(Error::input(what));
    }
    if !tokens.iter().any(|token| token == UNKNOWN) {
        return Err(Error::input(format!("`{file}` has no token `{UNKNOWN}`")));
    }
    Ok(tokens)
}

/// The special tokens with their ids.
fn special(tokens: &[String], names: &[&str]) -> Vec<(u32, String)> {
    let all = tokens.iter().zip(0..).filter(|(token, _)| names.contains(&token.as_str()));
    all.map(|(token, id)| (id, token.clone())).collect()
}

fn characters(file: &str, read: CharFile) -> Result<Tokenizer> {
    let tokens = tokens(file, read.char_to_id, read.vocab_size)?;
    let all = [PAD, UNKNOWN, BOS, EOS];
    let is_longer = |token: &&String| token.chars().count() != 1 && !all.contains(&token.as_str());
    if let Some(token) = tokens.iter().find(is_longer) {
        return Err(Error::input(format!("`{file}`: the token {token:?} is not one character")));
    }
    let draft = Draft {
        normalizer: Value::Null,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Fuse"}),
        model: form::bpe(&tokens, &[], Some(UNKNOWN), false),
        special: special(&tokens, &all),
    };
    draft.tokenizer(file, &names(&tokens))
}

fn bpe(file: &str, read: BpeFile) -> Result<Tokenizer> {
    let mut tokens = tokens(file, read.vocab, read.vocab_size)?;
    check_merges(file, &tokens, &read.merges)?;
    for token in tokens.iter_mut().filter(|token| *token == UNKNOWN) {
        *token = END_OF_WORD.into();
    }
    let replace = |pattern: String, content: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content});
    // One space behind each word, the last too.
    let normalizer = json!({"type": "Sequence", "normalizers": [
        replace(format!(r"\A{PYTHON_SPACE}+"), ""),
        replace(format!(r"(?<=[^\s\x1c-\x1f]){PYTHON_SPACE}*\z"), " "),
        replace(format!("{PYTHON_SPACE}+"), " "),
    ]});
    let known: String = tokens
        .iter()
        .filter_map(|token| only_char(token))
        .map(|c| format!("\\x{{{:X}}}", c as u32))
        .collect();
    let words = if known.is_empty() { r"[\s\S]".to_string() } else { format!(r"[{known}]+ ?|[\s\S]") };
    let draft = Draft {
        normalizer,
        pre_tokenizer: json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false}),
        decoder: json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": END_OF_WORD}, "content": " "}, {"type": "Fuse"}]}),
        model: form::bpe(&tokens, &read.merges, Some(END_OF_WORD), false),
        special: special(&tokens, &[PAD, END_OF_WORD, BOS, EOS]),
    };
    draft.tokenizer(file, &names(&tokens))
}

fn only_char(token: &str) -> Option<char> {
    let mut chars = token.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// The original applies each merge once, in the order of the list, to the whole word. That is the same as
/// merging the first of the list again and again when no merge makes a token that an earlier one takes up.
fn check_merges(file: &str, tokens: &[String], merges: &[(String, String)]) -> Result<()> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    if known.contains(END_OF_WORD) {
        return Err(Error::input(format!(
            "`{file}` has the token `{END_OF_WORD}`, which `tiny_lm` does not have"
        )));
    }
    let made: Vec<String> = merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    let last_made: HashMap<&str, usize> =
        made.iter().zip(0..).map(|(token, at)| (token.as_str(), at)).collect();
    for (at, (left, right)) in merges.iter().enumerate() {
        for part in [left, right, &made[at]] {
            if part != END_OF_WORD && !known.contains(part.as_str()) {
                return Err(Error::input(format!(
                    "`{file}`: merge {at} has {part:?}, which is not in the vocabulary"
                )));
            }
        }
        let later = [left, right]
            .into_iter()
            .find_map(|part| last_made.get(part.as_str()).filter(|last| **last >= at));
        if let Some(later) = later {
            return Err(Error::input(format!(
                "`{file}`: merge {later} makes {:?}, which merge {at} takes up before",
                made[*later]
            ))
            .help("`tiny_lm` applies merges once and in order, which a tokenizer.json cannot say of such a list"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Special;
    use crate::tokenizer::format::tests_common::{file, folder, forms, ids_of_texts};

    fn fixture(name: &str) -> String {
        fs::read_text(&folder(&format!("tokenizer_forms/tiny_lm_{name}.json"))).unwrap()
    }

    fn read(text: &str) -> Result<Tokenizer> {
        let (_dir, files) = file("t.json", text.as_bytes());
        TinyLm.read(&files)
    }

    #[test]
    fn the_ids_are_those_of_the_original() {
        for name in ["char", "bpe"] {
            let (_dir, files) = file("t.json", fixture(name).as_bytes());
            assert!(TinyLm.recognizes(&files));
            let tokenizer = TinyLm.read(&files).unwrap();
            assert_eq!(ids_of_texts(&tokenizer), forms()["tiny_lm"][name]["ids"], "{name}");
            let found =
                [Special::Pad, Special::Unk, Special::Bos, Special::Eos].map(|s| tokenizer.special(s));
            assert_eq!(found, [0, 1, 2, 3].map(Some), "{name}");
        }
        let tokenizer = read(&fixture("bpe")).unwrap();
        let ids = tokenizer.encode("the fox the§ the").unwrap();
        assert_eq!(
            tokenizer.decode(&ids).unwrap(),
            "the fox thethe ",
            "an end that no merge takes up is lost"
        );
    }

    #[test]
    fn what_is_not_theirs_is_refused() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        let chars =
            r#"{"char_to_id": {"<PAD>": 0, "<UNK>": 1, "<BOS>": 2, "<EOS>": 3, "a": 4}, "vocab_size": 5}"#;
        let bpe = r#"{"vocab": {"<PAD>": 0, "<UNK>": 1, "<BOS>": 2, "<EOS>": 3, "a": 4, "b": 5, "ab": 6, "ab</w>": 7},
            "merges": [["a", "b"], ["ab", "</w>"]], "vocab_size": 9}"#;
        for (good, from, to, due) in [
            (chars, "\"a\": 4", "\"aa\": 4", "\"aa\" is not one character"),
            (chars, "\"a\": 4", "\"a\": 3", "both have the id 3"),
            (chars, "\"a\": 4", "\"a\": 5", "no token has the id 4"),
            (chars, "\"a\": 4", "\"a\": null", "t.json:1:"),
            (chars, "<UNK>", "<unk>", "no token `<UNK>`"),
            (chars, "\"vocab_size\": 5", "\"vocab_size\": 4", "has 5 tokens, and `vocab_size` is 4"),
            (chars, "\"vocab_size\": 5", "\"vocab_size\": -5", "t.json:1:"),
            (chars, "vocab_size", "size", "t.json:1:"),
            (bpe, "[\"a\", \"b\"]", "[\"a\"]", "t.json:2:"),
            (bpe, "[\"a\", \"b\"]", "[\"a\", \"c\"]", "merge 0 has \"c\""),
            (bpe, "[\"a\", \"b\"]", "[\"b\", \"a\"]", "merge 0 has \"ba\""),
            (
                bpe,
                "[[\"a\", \"b\"], [\"ab\", \"</w>\"]]",
                "[[\"ab\", \"</w>\"], [\"a\", \"b\"]]",
                "merge 1 makes \"ab\", which merge 0 takes up",
            ),
            (bpe, "\"ab\": 6", "\"</w>\": 6", "has the token `</w>`"),
            (bpe, "\"ab\": 6", "\"ab\": 7", "both have the id 7"),
        ] {
            assert!(good.contains(from) && read(good).is_ok(), "{from}");
            let found = error(&good.replacen(from, to, 1));
            assert!(found.contains(due), "{from} -> {to}: {found}");
        }
        for at in 0..bpe.len() {
            assert!(read(&bpe[..at]).is_err());
        }
        let tokenizer = read(chars).unwrap();
        assert!(TinyLm.write(&tokenizer, Path::new("")).unwrap_err().to_string().contains("only read"));
    }
}
