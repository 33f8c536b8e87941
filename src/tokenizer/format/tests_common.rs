//! What tests of several forms share.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::{Files, fs};
use crate::tokenizer::Tokenizer;

/// A file of the reference data that lies beside the repository, where it is.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if !path.exists() {
        eprintln!("skipped: there is no `{}`", path.display());
        return None;
    }
    Some(path)
}

/// A path in `tests/fixtures`.
pub fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// One file in a temporary folder.
pub fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Files) {
    files(&[(name, bytes)])
}

/// Some files in a temporary folder.
pub fn files(all: &[(&str, &[u8])]) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in all {
        fs::write(&dir.path().join(name), bytes).unwrap();
    }
    let files = Files::at(dir.path()).unwrap();
    (dir, files)
}

/// What the original programs give: `make_tokenizer_form_fixtures.py`.
pub fn forms() -> Value {
    serde_json::from_slice(&fs::read(&folder("tokenizer_forms.json")).unwrap()).unwrap()
}

/// The ids of the odd texts.
pub fn ids_of_texts(tokenizer: &Tokenizer) -> Value {
    let texts = super::compare::odd_texts().unwrap();
    texts.iter().map(|text| json!(tokenizer.encode(text).unwrap())).collect()
}

/// The SHA-256 of ids as JSON, a list a text.
pub fn digest(ids: &[Vec<u32>]) -> String {
    Sha256::digest(json!(ids).to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}
