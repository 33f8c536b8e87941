//! Words of a given list, separated by white space; any other word is an error. The tokenizer of language
//! models whose whole vocabulary is known, such as those of Go's `tiny-lm`.
//!
//! The list is a text file with a word a line, or a JSON array of strings.

use std::path::Path;

use serde_json::{Value, json};

use super::Format;
use super::build::{Draft, ids_of, json_of};
use super::lines::{Lines, place_in};
use crate::base::{Error, Files, Result, fs};
use crate::tokenizer::train::Algorithm;
use crate::tokenizer::{Names, Tokenizer};

pub struct StrictWords;

const NAMES: [&str; 2] = ["words.txt", "words.json"];

impl Format for StrictWords {
    fn name(&self) -> &'static str {
        "strict_words"
    }

    fn summary(&self) -> &'static str {
        "a list of all words: `words.txt`, a word a line, or `words.json`, an array"
    }

    fn recognizes(&self, files: &Files) -> bool {
        NAMES.iter().any(|name| files.find(name).is_some())
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let named = || NAMES.iter().find_map(|name| files.find(name));
        let path = files.only().or_else(named).map_or_else(|| files.file(NAMES[0]), Ok)?;
        let (file, text) = (path.display().to_string(), fs::read_text(path)?);
        let is_json = files.all.iter().any(|(name, at)| at == path && name.ends_with(".json"));
        let words = if is_json { array(&file, &text)? } else { lines(&file, &text)? };
        named_words(&file, &words, None)
    }

    fn refuses(&self, _: Algorithm) -> Option<String> {
        Some("it has no special tokens; tokenizers that are trained here have some".into())
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        let mut text = String::new();
        for word in words_of(tokenizer)? {
            if word.contains(char::is_whitespace) {
                let what = format!("the word {word:?} holds white space, which separates words here");
                return Err(Error::input(what));
            }
            text += &word;
            text.push('\n');
        }
        fs::write(&into.join(NAMES[0]), text.as_bytes())
    }
}

/// The tokenizer of these words, whose ids are their places.
///
/// # Errors
/// When there is none, or a word is there twice or empty.
pub fn strict_words(words: &[String]) -> Result<Tokenizer> {
    named_words("the list of words", words, None)
}

/// As [`strict_words`]; `end` is the word that ends a text, should it be among them, and no text is encoded to it.
///
/// # Errors
/// As [`strict_words`].
pub fn strict_words_until(words: &[String], end: &str) -> Result<Tokenizer> {
    named_words("the list of words", words, words.iter().position(|word| word == end))
}

fn named_words(file: &str, words: &[String], end: Option<usize>) -> Result<Tokenizer> {
    let ids = ids_of(file, words)?;
    if let Some(at) = ids.get("") {
        return Err(Error::input(format!("`{file}`: word {at} is empty")));
    }
    let draft = Draft {
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "WhitespaceSplit"}),
        decoder: Value::Null,
        // Without an unknown token in the vocabulary, an unknown word is an error.
        model: json!({"type": "WordLevel", "unk_token": "", "vocab": ids}),
        special: end.map(|id| (id as u32, words[id].clone())).into_iter().collect(),
    };
    draft.tokenizer(file, &Names { eos: end.map(|id| words[id].clone()), ..Names::default() })
}

/// The words by id, of a tokenizer like those made here without a special one.
fn words_of(tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let words = all_words(tokenizer)?;
    if json_of(tokenizer)?["added_tokens"].as_array().is_some_and(|added| !added.is_empty()) {
        return Err(Error::input("a list of words cannot say that one of them ends a text")
            .help("write it as `tokenizer_json`, which holds every tokenizer"));
    }
    Ok(words)
}

/// The words by id, of a tokenizer like those made here.
///
/// # Errors
/// When the tokenizer is another.
pub fn all_words(tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let json = json_of(tokenizer)?;
    let unknown = json["model"]["unk_token"].as_str().and_then(|token| tokenizer.id(token));
    let plain = json["normalizer"].is_null()
        && json["pre_tokenizer"]["type"] == "WhitespaceSplit"
        && json["model"]["type"] == "WordLevel";
    if !plain || unknown.is_some() {
        return Err(Error::input("the tokenizer is no list of words that are separated by white space")
            .help("write it as `tokenizer_json`, which holds every tokenizer"));
    }
    let word = |id| tokenizer.token(id).ok_or_else(|| Error::input(format!("the id {id} has no word")));
    (0..tokenizer.vocab_size() as u32).map(word).collect()
}

fn array(file: &str, text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).map_err(|e| {
        Error::input("this is not an array of words").cause(&e).at(place_in(file, text, e.line(), e.column()))
    })
}

fn lines(file: &str, text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for line in Lines::of(file, text) {
        let end = line.text.find(char::is_whitespace);
        if line.text.is_empty() || end.is_some() {
            let what = if line.text.is_empty() { "an empty line" } else { "white space inside a word" };
            let error = Error::input(format!("found {what}, expected a word a line"));
            return Err(error.at(line.place(end.unwrap_or(0))));
        }
        words.push(line.text.to_string());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::format::tests_common::{file, folder};

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn words_are_exact_and_others_are_named() {
        let tokenizer = strict_words(&words("the cat sat on mat big dog ate END")).unwrap();
        assert_eq!(tokenizer.encode("the  cat\n sat\u{85}END ").unwrap(), [0, 1, 2, 8]);
        assert_eq!(tokenizer.decode(&[0, 6, 8]).unwrap(), "the dog END");
        assert_eq!((tokenizer.encode("").unwrap(), tokenizer.vocab_size()), (vec![], 9));
        let ended = strict_words_until(&words("the cat END"), "END").unwrap();
        assert_eq!((ended.special(crate::tokenizer::Special::Eos), ended.vocab_size()), (Some(2), 3));
        assert_eq!(all_words(&ended).unwrap(), words("the cat END"));
        assert!(words_of(&ended).unwrap_err().message().contains("ends a text"));
        let error = tokenizer.encode("the cat saw The dog").unwrap_err().to_string();
        assert!(error.contains("`saw`"), "{error}");
        let mut stream = tokenizer.decoder();
        let text: String = [0, 1, 2].iter().filter_map(|id| stream.push(*id)).collect();
        assert_eq!(text, "the cat sat");
    }

    #[test]
    fn lists_are_read_in_both_forms_and_written() {
        let due = words("the cat 中 END");
        for (name, text) in
            [("words.txt", "the\r\ncat\n中\nEND\n"), ("words.json", r#"["the","cat","中","END"]"#)]
        {
            let (dir, files) = file(name, text.as_bytes());
            assert!(StrictWords.recognizes(&files));
            let tokenizer = StrictWords.read(&files).unwrap();
            assert_eq!(words_of(&tokenizer).unwrap(), due);
            StrictWords.write(&tokenizer, &dir.path().join("out")).unwrap();
            let again = StrictWords.read(&Files::at(&dir.path().join("out")).unwrap()).unwrap();
            assert_eq!(again.json(), tokenizer.json());
        }
    }

    #[test]
    fn wrong_lists_are_refused_with_the_place() {
        let error = |name: &str, text: &str| {
            let (_dir, files) = file(name, text.as_bytes());
            StrictWords.read(&files).unwrap_err().to_string()
        };
        let found = error("words.txt", "a\nb c\n");
        assert!(found.contains("words.txt:2:2") && found.contains("white space"), "{found}");
        let found = error("words.txt", "a\n\nb\n");
        assert!(found.contains("words.txt:2:1") && found.contains("empty line"), "{found}");
        assert!(error("words.txt", "a\nb\na\n").contains("the tokens 0 and 2 are both \"a\""));
        assert!(error("words.txt", "").contains("has no tokens"));
        let found = error("words.json", "[\"a\",\n 7]");
        assert!(found.contains("words.json:2:"), "{found}");
        assert!(error("words.json", "[\"a\",\"\"]").contains("word 1 is empty"));
        assert!(strict_words(&[]).is_err());
        let fixture = folder("tokenizers/word.json");
        let other = Tokenizer::load(&fixture).unwrap();
        assert!(words_of(&other).unwrap_err().to_string().contains("no list of words"));
    }
}
