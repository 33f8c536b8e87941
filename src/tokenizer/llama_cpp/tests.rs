use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};

use super::*;
use crate::tokenizer::Tokenizer;

/// The reference files of llama.cpp; `None`, with a word, where they are absent.
fn references() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tok_llamacpp_vocab");
    if !folder.is_dir() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// The vocabulary of a GGUF file, read by candle.
fn read(path: &Path) -> GgufVocabulary {
    let content = Content::read(&mut std::fs::File::open(path).unwrap()).unwrap();
    let keys: BTreeMap<String, Value> = content.metadata.into_iter().collect();
    let get = |key: &str| keys.get(&format!("tokenizer.ggml.{key}"));
    let text = |key| get(key).map(|v| v.to_string().unwrap().clone());
    let list = |key| get(key).map(|v| v.to_vec().unwrap());
    let id = |key: &str| get(&format!("{key}_token_id")).map(|v| v.to_u32().unwrap());
    let texts = |values: &Vec<Value>| values.iter().map(|v| v.to_string().unwrap().clone()).collect();
    let types = list("token_type").unwrap().iter().map(|v| v.to_i32().unwrap()).collect();
    let model = VocabularyModel::of_name(&text("model").unwrap()).unwrap();
    let mut vocabulary = GgufVocabulary::new(model, texts(list("tokens").unwrap()), types);
    vocabulary.pre = text("pre");
    vocabulary.merges = list("merges").map(texts);
    vocabulary.scores = list("scores").map(|all| all.iter().map(|v| v.to_f32().unwrap()).collect());
    (vocabulary.bos, vocabulary.eos, vocabulary.unknown) = (id("bos"), id("eos"), id("unknown"));
    vocabulary.padding = id("padding");
    vocabulary
}

/// The texts and expected ids beside a reference file.
fn cases(path: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |ending: &str| std::fs::read_to_string(format!("{}{ending}", path.display())).unwrap();
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let input = beside(".inp");
    let texts = input.split("\n__ggml_vocab_test__\n").map(str::to_string);
    texts.zip(beside(".out").lines().map(ids)).collect()
}

fn meets_the_reference(name: &str) {
    let Some(folder) = references() else { return };
    let path = folder.join(format!("ggml-vocab-{name}.gguf"));
    let vocabulary = read(&path);
    let encoder = vocabulary.encoder().unwrap();
    let tokenizer = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
    let cases = cases(&path);
    assert!(cases.len() > 40, "{}", cases.len());
    for (text, ids) in cases {
        assert_eq!(encoder.encode(&text).unwrap(), ids, "llama.cpp's rules: {text:?}");
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "tokenizer.json: {text:?}");
    }
    assert_eq!(vocabulary.bos.map(|id| vocabulary.tokens[id as usize].clone()), {
        tokenizer.special(crate::tokenizer::Special::Bos).and_then(|id| tokenizer.token(id))
    });
}

#[test]
fn gpt_2_meets_the_reference() {
    meets_the_reference("gpt-2");
}

#[test]
fn mpt_with_user_defined_tokens_meets_the_reference() {
    meets_the_reference("mpt");
}

fn fixture(name: &str) -> Tokenizer {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers");
    Tokenizer::load(&Path::new(folder).join(format!("{name}.json"))).unwrap()
}

#[test]
fn ours_go_there_and_back() {
    let tokenizer = fixture("byte_bpe");
    let vocabulary = GgufVocabulary::of(&tokenizer).unwrap();
    assert_eq!(vocabulary.pre.as_deref(), Some("gpt-2"));
    assert_eq!(
        vocabulary.compare(&tokenizer, &|_| Ok(())).unwrap(),
        compare::odd_texts().unwrap().len() as u64
    );
    let back = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
    vocabulary.compare(&back, &|_| Ok(())).unwrap();
    tokenizer.is_part_of(&back).unwrap();
}

#[test]
fn phi_3_meets_the_reference() {
    meets_the_reference("phi-3");
}

#[test]
fn look() {
    for name in ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece", "word", "char"] {
        let tokenizer = fixture(name);
        let vocabulary = match GgufVocabulary::of(&tokenizer) {
            Ok(v) => v,
            Err(e) => {
                eprintln!("{name}: {e}");
                continue;
            }
        };
        let back = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
        let encoder = vocabulary.encoder().unwrap();
        for text in compare::odd_texts().unwrap() {
            let (a, b, c) = (
                tokenizer.encode(&text).unwrap(),
                encoder.encode(&text).unwrap(),
                back.encode(&text).unwrap(),
            );
            if a != b {
                eprintln!("{name} ORIG {text:?}\n   {a:?}\n   {b:?}");
            }
            if b != c {
                eprintln!("{name} BACK {text:?}\n   {b:?}\n   {c:?}");
            }
        }
    }
}
