//! Words of a given list with single characters as a fallback, as of Python's `tinyLM`: text is lower-cased
//! and cut at white space; a word of the list is its token, of any other each character is its token, or
//! `[UNK]`.
//!
//! The list has `[PAD]`, `[UNK]`, `[BOS]` and `[EOS]` with the ids 0 to 3, and is JSON (`{"token": id, …}`) or
//! a text file with a token a line. Tokens called `[TOKEN_…]` fill such a list up; they are of no text.

use std::path::Path;

use serde_json::{Value, json};

use super::Format;
use super::build::{Draft, ids_of, json_of};
use super::lines::Lines;
use super::vocab_json::{self, Vocab};
use crate::base::{Error, Files, Result, files, fs};
use crate::tokenizer::train::{Algorithm, form};
use crate::tokenizer::{Names, Tokenizer};

pub struct WordList;

const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"];
const UNKNOWN: &str = SPECIAL[1];
const FILLER: &str = "[TOKEN_";
/// The file that is written.
const FILE: &str = "word_list.json";

/// White space as Python's `str.split` has it, which counts four more characters than Unicode does.
pub(super) const PYTHON_SPACE: &str = r"[\s\x1c-\x1f]";

impl Format for WordList {
    fn name(&self) -> &'static str {
        "word_list"
    }

    fn summary(&self) -> &'static str {
        "words with characters as a fallback: JSON of tokens with ids, or a token a line, `[PAD]` first"
    }

    fn recognizes(&self, files: &Files) -> bool {
        files.all.len() == 1 && files.only().is_some_and(begins_so)
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = files.only().or_else(|| files.find(FILE)).ok_or_else(|| {
            Error::input(format!("`{}` has several files", files.label)).help("name the one with the list")
        })?;
        let (file, text) = (path.display().to_string(), fs::read_text(path)?);
        let vocab = match text.trim_start().starts_with('{') {
            true => vocab_json::parse(&file, &text, "a list of tokens with ids")?,
            false => lines(&file, &text)?,
        };
        named_word_list(&file, vocab)
    }

    fn refuses(&self, _: Algorithm) -> Option<String> {
        Some("it has special tokens of its own names, such as `[BOS]`; tokenizers that are trained here have others".into())
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let json = json_of(tokenizer)?;
        let due = draft(Vocab::default());
        let same = json["normalizer"] == due.normalizer
            && json["pre_tokenizer"] == due.pre_tokenizer
            && json["model"]["ignore_merges"] == true
            && json["model"]["unk_token"] == UNKNOWN
            && json["model"]["merges"].as_array().is_some_and(Vec::is_empty);
        if !same {
            return Err(Error::input("the tokenizer is no list of words with characters as a fallback")
                .help("write it as `tokenizer_json`, which holds every tokenizer"));
        }
        let tokens = (0..tokenizer.vocab_size() as u32).filter_map(|id| Some((id, tokenizer.token(id)?)));
        let lines: Vec<String> = tokens.map(|(id, token)| format!("{}: {id}", Value::from(token))).collect();
        fs::write(&into.join(FILE), format!("{{{}}}\n", lines.join(",\n")).as_bytes())
    }
}

/// Whether the first token is `[PAD]`, in JSON or in the first line, and the other special tokens follow.
fn begins_so(path: &Path) -> bool {
    let head = files::head(path, 256);
    let text = String::from_utf8_lossy(&head);
    let first = text.trim_start_matches(['\u{FEFF}', ' ', '\n', '\r', '{', '"']);
    first.starts_with(SPECIAL[0]) && SPECIAL.iter().all(|token| text.contains(token))
}

/// The tokenizer of these tokens with their ids.
///
/// # Errors
/// When a token or an id is there twice, or the special tokens do not have the ids 0 to 3.
pub fn word_list(vocab: &[(String, u32)]) -> Result<Tokenizer> {
    let json: Vec<String> =
        vocab.iter().map(|(token, id)| format!("{}: {id}", Value::from(token.as_str()))).collect();
    let file = "the list of words";
    named_word_list(file, vocab_json::parse(file, &format!("{{{}}}", json.join(", ")), file)?)
}

fn named_word_list(file: &str, vocab: Vocab) -> Result<Tokenizer> {
    for (special, id) in SPECIAL.into_iter().zip(0..) {
        if vocab.id(special) != Some(id) {
            let found =
                vocab.id(special).map_or("is not there".into(), |found| format!("has the id {found}"));
            return Err(Error::input(format!("`{file}`: `{special}` {found}, expected the id {id}")).help(
                "a list with characters as a fallback begins with `[PAD]`, `[UNK]`, `[BOS]`, `[EOS]`",
            ));
        }
    }
    // Python lower-cases a sigma at the end of a word to another letter than elsewhere.
    if let Some((token, _)) = vocab.0.iter().find(|(token, _)| token.contains(['σ', 'ς'])) {
        return Err(Error::input(format!(
            "`{file}` has the token {token:?}: lower-casing of sigma depends on its place in the word"
        ))
        .help("a tokenizer.json cannot say that; lists with Greek words are not supported"));
    }
    draft(vocab).tokenizer(file, &Names::default())
}

fn draft(vocab: Vocab) -> Draft {
    let is_special = |token: &str| SPECIAL.contains(&token) || token.starts_with(FILLER);
    let special = vocab.0.iter().filter(|(token, _)| is_special(token));
    let special = special.map(|(token, id)| (*id, token.clone())).collect();
    let mut model = form::bpe(&[], &[], Some(UNKNOWN), false);
    model["vocab"] =
        vocab.0.into_iter().map(|(token, id)| (token, json!(id))).collect::<serde_json::Map<_, _>>().into();
    // A word of the list is its token; without merges, any other is its characters.
    model["ignore_merges"] = json!(true);
    Draft {
        normalizer: json!({"type": "Lowercase"}),
        pre_tokenizer: json!({"type": "Split", "pattern": {"Regex": format!("{PYTHON_SPACE}+")},
            "behavior": "Removed", "invert": false}),
        // With a space before each token, except signs that end a sentence or a part of it.
        decoder: json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"Regex": "^(?![.,!?;:]$)"}, "content": " "},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}),
        model,
        special,
    }
}

fn lines(file: &str, text: &str) -> Result<Vocab> {
    let mut tokens = Vec::new();
    for line in Lines::of(file, text) {
        if line.text.is_empty() {
            return Err(Error::input("found an empty line, expected a token a line")
                .at(line.place(0))
                .help("a line break as a token can only be written in JSON"));
        }
        tokens.push(line.text.to_string());
    }
    ids_of(file, &tokens)?;
    Ok(Vocab(tokens.into_iter().zip(0..).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Special;
    use crate::tokenizer::format::tests_common::{file, folder, forms, ids_of_texts};

    fn list() -> String {
        fs::read_text(&folder("tokenizer_forms/word_list.json")).unwrap()
    }

    fn read(name: &str, text: &str) -> Result<Tokenizer> {
        let (_dir, files) = file(name, text.as_bytes());
        WordList.read(&files)
    }

    #[test]
    fn the_ids_are_those_of_the_original() {
        let tokenizer = read("vocab.json", &list()).unwrap();
        assert_eq!(ids_of_texts(&tokenizer), forms()["word_list"]["ids"]);
        let ids = tokenizer.encode("Hello, the WORLD! [UNK]").unwrap();
        let tokens: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(tokens.join(" "), "h e l l o , the w o r l d ! [UNK] u n k [UNK]");
        let found = [Special::Pad, Special::Unk, Special::Bos, Special::Eos].map(|s| tokenizer.special(s));
        assert_eq!(found, [0, 1, 2, 3].map(Some));
        let said = ["hello", ".", "the", "[TOKEN_9]", "b", "?"].map(|token| tokenizer.id(token).unwrap());
        assert_eq!(tokenizer.decode(&said).unwrap(), "hello. the b?");
    }

    #[test]
    fn a_list_is_read_in_both_forms_and_written() {
        let text = "[PAD]\n[UNK]\n[BOS]\n[EOS]\nhello\nh\no\n \n";
        let tokenizer = read("list.txt", text).unwrap();
        assert_eq!(tokenizer.encode("Hello\x1cho x").unwrap(), [4, 5, 6, 1]);
        let (dir, files) = file("list.txt", text.as_bytes());
        assert!(WordList.recognizes(&files));
        WordList.write(&tokenizer, &dir.path().join("out")).unwrap();
        let written = Files::at(&dir.path().join("out")).unwrap();
        assert!(WordList.recognizes(&written));
        assert_eq!(WordList.read(&written).unwrap().json(), tokenizer.json());
        let list: Vec<(String, u32)> = text.lines().map(String::from).zip(0..).collect();
        assert_eq!(word_list(&list).unwrap().json(), tokenizer.json());
        let other = Tokenizer::load(&folder("tokenizers/word.json")).unwrap();
        assert!(WordList.write(&other, dir.path()).unwrap_err().to_string().contains("no list of words"));
    }

    #[test]
    fn wrong_lists_are_refused_with_the_place() {
        let error = |name: &str, text: &str| read(name, text).unwrap_err().to_string();
        let good = r#"{"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3, "a": 9}"#;
        assert_eq!(read("l.json", good).unwrap().vocab_size(), 10, "ids may have gaps");
        for (from, to, due) in [
            ("\"a\": 9", "\"a\": 3", "\"[EOS]\" and \"a\" both have the id 3"),
            ("\"a\": 9", "\"[BOS]\": 9", "\"[BOS]\" is there twice"),
            ("\"a\": 9", "\"a\": 1.5", "l.json:1:"),
            ("\"a\": 9", "\"a\": 4294967295", "too large"),
            ("\"a\": 9", "\"a\" 9", "l.json:1:"),
            ("\"[EOS]\": 3, ", "", "`[EOS]` is not there, expected the id 3"),
            ("\"[EOS]\": 3", "\"[EOS]\": 4", "`[EOS]` has the id 4, expected the id 3"),
            ("\"a\": 9", "\"τέλος\": 9", "sigma"),
        ] {
            let found = error("l.json", &good.replacen(from, to, 1));
            assert!(found.contains(due), "{from} -> {to}: {found}");
        }
        assert!(error("l.txt", "[PAD]\n[UNK]\n\n[BOS]\n").contains("l.txt:3:1"));
        assert!(
            error("l.txt", "[PAD]\n[UNK]\n[BOS]\n[EOS]\na\na\n")
                .contains("the tokens 4 and 5 are both \"a\"")
        );
        for at in 0..good.len() {
            assert!(!error("l.json", &good[..at]).is_empty());
        }
    }
}
