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

/// Vocabularies of all models and ways of cutting: those of our fixtures, and with other options.
fn vocabularies() -> Vec<(String, GgufVocabulary)> {
    let of = |name: &str| GgufVocabulary::of(&fixture(name)).unwrap();
    let [bytes, spm, unigram, pieces] = ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece"].map(of);
    let mut all = Vec::new();
    let mut add = |name: &str, base: &GgufVocabulary, change: &dyn Fn(&mut GgufVocabulary)| {
        let mut vocabulary = base.clone();
        change(&mut vocabulary);
        all.push((name.to_string(), vocabulary));
    };
    for (name, base) in [("byte_bpe", &bytes), ("sentencepiece_bpe", &spm), ("unigram", &unigram)] {
        add(name, base, &|_| ());
        add(&format!("{name} with tokens in text"), base, &|v| {
            // `<tool>` and three others, one of them a part of another.
            let last = v.tokens.len() - 3;
            for (id, token) in [(7, "<tool>"), (last, "a "), (last + 1, "a b"), (last + 2, "<|start|>")] {
                v.tokens[id] = token.to_string();
                v.types[id] = token_type::USER_DEFINED;
            }
            v.merges = v.merges.take().map(|merges| {
                let ids: std::collections::HashSet<&str> = v.tokens.iter().map(String::as_str).collect();
                let whole = |merge: &String| {
                    let (a, b) = bpe::halves(merge).unwrap();
                    [a, b, &format!("{a}{b}")].iter().all(|token| ids.contains(token))
                };
                merges.into_iter().filter(whole).collect()
            });
        });
    }
    for pre in ["smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "laguna", "falcon", "default"] {
        add(&format!("pre {pre}"), &bytes, &|v| v.pre = Some(pre.to_string()));
    }
    add("sentencepiece_bpe with a space before", &spm, &|v| v.add_space_prefix = Some(true));
    add("unigram with a space before", &unigram, &|v| v.add_space_prefix = Some(true));
    add("unigram of single spaces", &unigram, &|v| v.remove_extra_whitespaces = Some(true));
    for (lowercase, strip_accents) in [(false, false), (true, false), (true, true)] {
        let name = format!("wordpiece, lowercase {lowercase}, strip_accents {strip_accents}");
        add(&name, &pieces, &|v| {
            (v.lowercase, v.strip_accents) = (Some(lowercase), Some(strip_accents));
        });
    }
    all
}

/// For `make_llama_cpp_fixtures.py`, which makes GGUF files of them.
#[test]
#[ignore = "writes target/llama_cpp_vocabularies.json"]
fn write_the_vocabularies() {
    let all: serde_json::Map<String, serde_json::Value> = vocabularies()
        .into_iter()
        .map(|(name, v)| {
            let keys = serde_json::json!({
                "model": v.model.name(), "pre": v.pre, "tokens": v.tokens, "token_type": v.types,
                "scores": v.scores, "merges": v.merges, "bos_token_id": v.bos, "eos_token_id": v.eos,
                "eot_token_id": v.eot, "unknown_token_id": v.unknown, "seperator_token_id": v.separator,
                "padding_token_id": v.padding, "add_bos_token": v.add_bos, "add_eos_token": v.add_eos,
                "add_space_prefix": v.add_space_prefix,
                "remove_extra_whitespaces": v.remove_extra_whitespaces, "normalizer.lowercase": v.lowercase,
                "normalizer.strip_accents": v.strip_accents, "precompiled_charsmap": v.precompiled_charsmap,
            });
            (name, keys)
        })
        .collect();
    std::fs::write("target/llama_cpp_vocabularies.json", serde_json::to_vec(&all).unwrap()).unwrap();
}

#[test]
fn meets_llama_cpp() {
    let ids: BTreeMap<String, Vec<Vec<u32>>> =
        serde_json::from_str(include_str!("../../../tests/fixtures/llama_cpp_ids.json")).unwrap();
    let odd = compare::odd_texts().unwrap();
    for (name, vocabulary) in vocabularies() {
        let encoder = vocabulary.encoder().unwrap();
        let ids = ids.get(&name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(ids.len(), odd.len(), "{name}");
        for (text, ids) in odd.iter().zip(ids) {
            if &encoder.encode(text).unwrap() != ids {
                eprintln!("{name} LLAMA {text:?}\n   {:?}\n   {ids:?}", encoder.encode(text).unwrap());
            }
        }
    }
}

#[test]
fn look() {
    for (name, vocabulary) in vocabularies() {
        let back = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
        let encoder = vocabulary.encoder().unwrap();
        for text in compare::odd_texts().unwrap() {
            let (b, c) = (encoder.encode(&text).unwrap(), back.encode(&text).unwrap());
            if b != c {
                eprintln!("{name} BACK {text:?}\n   {b:?}\n   {c:?}");
            }
        }
    }
}
