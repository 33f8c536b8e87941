//! What the tests of containers share: fixtures of `tests/fixtures/make_import_fixtures.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::base::fs;
use crate::model::Transformer;
use crate::model::tests::{gap, logits};
use crate::model::tests_with_transformers::numbers;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import").join(name)
}

/// The logits of the ids in `expected.json` of a fixture, which another program computed.
pub fn agrees(gpt: &Transformer, name: &str) {
    let expected = fs::read(&fixture(name).join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let rows: Vec<f32> = expected["logits"].as_array().unwrap().iter().flat_map(numbers).collect();
    let off = gap(&logits(gpt, &ids).concat(), &rows);
    assert!(off < 1e-5, "{name}: logits are off by {off}");
}

/// A file in a folder of its own.
pub fn file_of(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}
