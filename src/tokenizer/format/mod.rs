//! The forms that tokenizers are stored in by this and other programs, a file each, and the one list of them.
//! What is read becomes a `tokenizer.json`, which means the same.

mod build;
mod compare;
mod gpt2;
mod lines;
pub(crate) mod llama2c;
mod pieces;
mod sentencepiece;
mod splits;
mod strict_words;
#[cfg(test)]
mod tests_common;
mod tiktoken;
mod tiny_lm;
mod tokenizer_json;
mod vocab_json;
mod word_list;

use std::path::Path;

use super::Tokenizer;
use super::train::Algorithm;
use crate::base::{Error, Files, Result, suggest};
pub use compare::check_written;
pub(super) use compare::odd_texts;
pub use strict_words::{all_words, strict_words, strict_words_until};
pub use word_list::word_list;

/// A form that tokenizers are stored in.
pub trait Format: Sync {
    /// `sentencepiece`, as params and the command line call it.
    fn name(&self) -> &'static str;

    /// One line for help: whose form it is, and which files it is made of.
    fn summary(&self) -> &'static str;

    /// Whether these files are of the form, by their names and first bytes.
    fn recognizes(&self, files: &Files) -> bool;

    /// Reads a tokenizer.
    ///
    /// # Errors
    /// When a file is damaged, or asks for what can't be done.
    fn read(&self, files: &Files) -> Result<Tokenizer>;

    /// Why tokenizers that are trained by this algorithm can't be written in the form; `None` when they can,
    /// or when only the tokenizer itself tells.
    fn refuses(&self, _: Algorithm) -> Option<String> {
        None
    }

    /// Writes a tokenizer into the empty folder `into`.
    ///
    /// # Errors
    /// When the form cannot hold it, with the reason, or a file cannot be written.
    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()>;
}

/// All of them. What recognizes files first reads them.
pub static FORMATS: [&dyn Format; 8] = [
    &tokenizer_json::TokenizerJson,
    &sentencepiece::SentencePiece,
    &gpt2::Gpt2,
    &tiktoken::Tiktoken,
    &llama2c::Llama2c,
    &tiny_lm::TinyLm,
    &word_list::WordList,
    &strict_words::StrictWords,
];

/// The form called `name`.
///
/// # Errors
/// When there is none; says which there are.
pub fn format(name: &str) -> Result<&'static dyn Format> {
    let names = || FORMATS.iter().map(|f| f.name());
    FORMATS.iter().find(|f| f.name() == name).copied().ok_or_else(|| {
        Error::usage(format!("there is no format `{name}` of tokenizers"))
            .suggest(suggest::closest(name, names()))
            .help(format!("there are {}", suggest::list(names())))
    })
}

/// The form that these files are of.
///
/// # Errors
/// When they are of none that is known.
pub fn detect(files: &Files) -> Result<&'static dyn Format> {
    FORMATS.iter().find(|f| f.recognizes(files)).copied().ok_or_else(|| {
        let forms = FORMATS.iter().map(|f| format!("{} ({})", f.name(), f.summary()));
        Error::input(format!("`{}` is no tokenizer of a known form", files.label))
            .help(format!("known are {}", forms.collect::<Vec<_>>().join("; ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_say_before_there_is_a_tokenizer_which_algorithms_they_hold() {
        let holds = |name: &str| {
            use Algorithm::{ByteBpe, SentencepieceBpe, Unigram, Wordpiece};
            let form = format(name).unwrap();
            [ByteBpe, SentencepieceBpe, Unigram, Wordpiece].map(|a| form.refuses(a).is_none())
        };
        assert_eq!(holds("tokenizer_json"), [true; 4]);
        assert_eq!([holds("gpt2"), holds("tiktoken")], [[true, false, false, false]; 2]);
        assert_eq!(holds("sentencepiece"), [false, true, true, false]);
        for name in ["llama2c", "strict_words", "word_list", "tiny_lm"] {
            assert_eq!(holds(name), [false; 4], "{name}");
        }
    }
}
