//! `tokenizer.json` of Hugging Face's `tokenizers`, with the names of its special tokens beside it.

use std::path::Path;

use super::Format;
use crate::base::files::head;
use crate::base::{Files, Result, fs};
use crate::tokenizer::{Names, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

pub struct TokenizerJson;

/// Whether a file under another name begins as one does.
fn looks_so(path: &Path) -> bool {
    let head = String::from_utf8_lossy(&head(path, 4096)).into_owned();
    head.trim_start().starts_with('{') && head.contains("\"added_tokens\"")
}

impl Format for TokenizerJson {
    fn name(&self) -> &'static str {
        "tokenizer_json"
    }

    fn summary(&self) -> &'static str {
        "Hugging Face: `tokenizer.json`"
    }

    fn recognizes(&self, files: &Files) -> bool {
        files.find(TOKENIZER_FILE).is_some() || files.only().is_some_and(looks_so)
    }

    fn read(&self, files: &Files) -> Result<Tokenizer> {
        let path = files.only().map_or_else(|| files.file(TOKENIZER_FILE), Ok)?;
        Tokenizer::load_with(path, &Names::beside(|name| files.find(name))?)
    }

    fn write(&self, tokenizer: &Tokenizer, into: &Path) -> Result<()> {
        fs::write(&into.join(TOKENIZER_FILE), tokenizer.json())?;
        // One file where that says all, so that it can be written under a name of its own.
        match tokenizer.config()? {
            Some(_) => fs::write(&into.join(TOKENIZER_CONFIG_FILE), &tokenizer.full_config(None)?),
            None => Ok(()),
        }
    }
}
