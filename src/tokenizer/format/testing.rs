//! What tests of several forms share.

use std::path::{Path, PathBuf};

use crate::base::{Files, fs};

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
