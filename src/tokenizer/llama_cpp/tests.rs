use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

use super::*;
use crate::base::damage::damaged;
use crate::tokenizer::format::odd_texts;
use crate::tokenizer::{Special, Tokenizer, base64};

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
    for text in odd_texts().unwrap() {
        assert_eq!(tokenizer.encode(&text).unwrap(), encoder.encode(&text).unwrap(), "{text:?}");
    }
    assert_eq!(vocabulary.bos.map(|id| vocabulary.tokens[id as usize].clone()), {
        tokenizer.special(Special::Bos).and_then(|id| tokenizer.token(id))
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
fn phi_3_meets_the_reference() {
    meets_the_reference("phi-3");
}

fn no_texts(_: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    Ok(())
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
        add(&format!("{name} with tokens in text"), base, &define_tokens);
    }
    for pre in ["smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "laguna", "falcon", "default"] {
        add(&format!("pre {pre}"), &bytes, &|v| v.pre = Some(pre.to_string()));
    }
    add("sentencepiece_bpe with a space before", &spm, &|v| v.add_space_prefix = Some(true));
    add("unigram with a space before", &unigram, &|v| v.add_space_prefix = Some(true));
    add("unigram of single spaces", &unigram, &|v| v.remove_extra_whitespaces = Some(true));
    add("unigram with a charsmap", &unigram, &|v| v.precompiled_charsmap = Some(charsmap()));
    add("unigram with a charsmap, of single spaces, with tokens in text", &unigram, &|v| {
        define_tokens(v);
        v.precompiled_charsmap = Some(charsmap());
        (v.add_space_prefix, v.remove_extra_whitespaces) = (Some(true), Some(true));
    });
    for (lowercase, strip_accents) in [(false, false), (true, false), (true, true)] {
        let name = format!("wordpiece, lowercase {lowercase}, strip_accents {strip_accents}");
        add(&name, &pieces, &|v| {
            (v.lowercase, v.strip_accents) = (Some(lowercase), Some(strip_accents));
        });
    }
    all
}

/// Makes tokens that are matched in text of `<tool>` and the last four; one is a part of another, and one is
/// special by its spelling.
fn define_tokens(v: &mut GgufVocabulary) {
    let last = v.tokens.len() - 4;
    for (id, token) in
        [(7, "<tool>"), (last, "a "), (last + 1, "a b"), (last + 2, "<|start|>"), (last + 3, "</s>")]
    {
        v.tokens[id] = token.to_string();
        v.types[id] = token_type::USER_DEFINED;
    }
    let ids: BTreeSet<&str> = v.tokens.iter().map(String::as_str).collect();
    let is_whole = |merge: &String| {
        let (left, right) = bpe::halves(merge).unwrap();
        [left, right, &format!("{left}{right}")].iter().all(|token| ids.contains(token))
    };
    v.merges = v.merges.take().map(|merges| merges.into_iter().filter(is_whole).collect());
}

/// SentencePiece's normalization rules, a few of them: see `make_llama_cpp_fixtures.py`.
fn charsmap() -> Vec<u8> {
    base64::decode(include_str!("../../../tests/fixtures/charsmap.txt").trim()).unwrap()
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
fn the_ids_are_llama_cpps() {
    let ids: BTreeMap<String, Vec<Vec<u32>>> =
        serde_json::from_str(include_str!("../../../tests/fixtures/llama_cpp_ids.json")).unwrap();
    let odd = odd_texts().unwrap();
    let vocabularies = vocabularies();
    assert_eq!(vocabularies.len(), ids.len());
    for (name, vocabulary) in vocabularies {
        let encoder = vocabulary.encoder().unwrap();
        let its = &ids[&name];
        assert_eq!(its.len(), odd.len(), "{name}");
        for (text, its) in odd.iter().zip(its) {
            assert_eq!(&encoder.encode(text).unwrap(), its, "{name}: {text:?}");
        }
    }
}

/// Texts that a `tokenizer.json` cannot encode as llama.cpp does: see [`limits`].
fn is_beyond(name: &str, text: &str) -> bool {
    let letters = |set: &str| text.chars().any(|c| set.contains(c));
    let words = name.starts_with("wordpiece")
        && (text == "a▁b"
            || name.contains("lowercase true") && letters("İ")
            || name.contains("strip_accents true") && letters("한국\u{20e3}"));
    // The library looks characters up that are joined with others, and replaces them all.
    let charsmap = name.contains("charsmap") && (text.contains("\r\n") || text == "e\u{301}\u{302}\u{303}");
    // Special by its spelling, and still a piece: no text becomes a special token here.
    words
        || charsmap
        || name.starts_with("unigram") && name.ends_with("tokens in text") && text.contains("</s>")
}

#[test]
fn a_tokenizer_json_gives_the_same_ids() {
    let mut other = Vec::new();
    for (name, vocabulary) in vocabularies() {
        let encoder = vocabulary.encoder().unwrap();
        let tokenizer = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
        for text in odd_texts().unwrap() {
            if tokenizer.encode(&text).unwrap() != encoder.encode(&text).unwrap() && !is_beyond(&name, &text)
            {
                other.push(format!("{name}: {text:?}"));
            }
        }
    }
    assert_eq!(other, [""; 0]);
}

#[test]
fn ours_go_there_and_back() {
    for name in ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece"] {
        let tokenizer = fixture(name);
        let vocabulary = GgufVocabulary::of(&tokenizer).unwrap();
        let odd = odd_texts().unwrap().len() as u64;
        assert_eq!(vocabulary.compare(&tokenizer, &no_texts).unwrap(), odd, "{name}");
        let back = vocabulary.clone().into_tokenizer("model.gguf").unwrap();
        assert_eq!(back.special(Special::Eos), tokenizer.special(Special::Eos));
        assert_eq!(vocabulary.chat_template, Some(tokenizer.chat_template().unwrap()));
        assert_eq!(back.chat_template().unwrap(), tokenizer.chat_template().unwrap());
        assert!(!back.has_foreign_template());
        let again = GgufVocabulary::of(&back).unwrap();
        assert_eq!((&again.tokens, &again.types), (&vocabulary.tokens, &vocabulary.types), "{name}");
        let [once, twice] = [&vocabulary, &again].map(|v| v.encoder().unwrap());
        for text in odd_texts().unwrap() {
            assert_eq!(once.encode(&text).unwrap(), twice.encode(&text).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn what_llama_cpp_cannot_hold_is_refused_with_the_reason() {
    let error = |name| GgufVocabulary::of(&fixture(name)).unwrap_err().to_string();
    assert!(error("word").contains("whole words") && error("word").contains("byte_bpe"), "{}", error("word"));
    assert!(error("char").contains("characters"), "{}", error("char"));
}

/// The byte-level fixture with other parts.
fn changed(change: impl Fn(&mut serde_json::Value)) -> Tokenizer {
    let mut json = serde_json::from_slice(fixture("byte_bpe").json()).unwrap();
    change(&mut json);
    Tokenizer::parse("tokenizer.json", json.to_string().into_bytes()).unwrap()
}

#[test]
fn the_pre_is_found_by_what_a_tokenizer_does() {
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let pre = |change: &dyn Fn(&mut serde_json::Value)| {
        let tokenizer = changed(change);
        GgufVocabulary::of(&tokenizer).inspect(|v| assert!(v.compare(&tokenizer, &no_texts).unwrap() > 200))
    };
    let name = |change: &dyn Fn(&mut serde_json::Value)| pre(change).unwrap().pre.unwrap();
    let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|";
    let words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama = split(&format!("{contractions}{words}"));
    let qwen = split(&format!("{contractions}{}", words.replace("{1,3}", "")));
    assert_eq!(name(&|json| json["pre_tokenizer"] = llama.clone()), "dbrx", "which merges");
    let whole = |json: &mut serde_json::Value| {
        json["pre_tokenizer"] = llama.clone();
        json["model"]["ignore_merges"] = json!(true);
    };
    assert_eq!(name(&whole), "llama-bpe");
    let composing = |json: &mut serde_json::Value| {
        json["pre_tokenizer"] = qwen.clone();
        json["normalizer"] = json!({"type": "NFC"});
    };
    assert_eq!(name(&composing), "qwen2");
    let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]});
    assert_eq!(name(&|json| json["pre_tokenizer"] = digits.clone()), "smollm");

    let error = |change: &dyn Fn(&mut serde_json::Value)| pre(change).unwrap_err().to_string();
    let own = error(&|json| json["pre_tokenizer"] = split(r"\p{L}+|."));
    assert!(own.contains("a way of its own") && own.contains(r"`\p{L}+|.`"), "{own}");
    let lower = error(&|json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(lower.contains("normalizes text") && lower.contains("Lowercase"), "{lower}");
    let prefix = error(&|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true));
    assert!(prefix.contains("add_prefix_space"), "{prefix}");
}

#[test]
fn the_first_text_that_differs_is_shown() {
    let compare = |vocabulary: &GgufVocabulary, tokenizer: &Tokenizer, texts: &[&str]| {
        vocabulary.compare(tokenizer, &|each| texts.iter().try_for_each(|text| each(text)))
    };
    let bytes = fixture("byte_bpe");
    let mut vocabulary = GgufVocabulary::of(&bytes).unwrap();
    assert_eq!(compare(&vocabulary, &bytes, &["a", "b"]).unwrap(), 2 + odd_texts().unwrap().len() as u64);
    vocabulary.pre = Some("qwen2".into());
    let error = compare(&vocabulary, &bytes, &[]).unwrap_err().to_string();
    assert!(error.contains("always compared"), "{error}");

    let spm = fixture("sentencepiece_bpe");
    let vocabulary = GgufVocabulary::of(&spm).unwrap();
    let long = format!("{}said ''tis {}", "the fox ".repeat(20), "walked ".repeat(20));
    let error = compare(&vocabulary, &spm, &["fine", &long, "''re"]).unwrap_err().to_string();
    let expected = [
        "…\"the fox the fox the fox said ''tis walked",
        "this tokenizer gives it …",
        "llama.cpp would give it …",
        "does not cut text into words",
        "byte_bpe",
    ];
    assert!(expected.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn damaged_vocabularies_are_refused_by_key() {
    let of = |name: &str| GgufVocabulary::of(&fixture(name)).unwrap();
    let [bytes, spm, unigram, pieces] = ["byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece"].map(of);
    let refused = |base: &GgufVocabulary, expected: &str, change: &dyn Fn(&mut GgufVocabulary)| {
        let mut vocabulary = base.clone();
        change(&mut vocabulary);
        let encoding = vocabulary.encode("a").unwrap_err().to_string();
        assert!(encoding.contains(expected), "{encoding}");
        let reading = vocabulary.into_tokenizer("model.gguf").unwrap_err().to_string();
        assert!(reading.contains(expected) && reading.contains("`model.gguf`"), "{reading}");
    };
    let count = bytes.tokens.len();
    refused(&bytes, "`tokenizer.ggml.tokens` is empty", &|v| v.tokens.clear());
    refused(&bytes, "has two ids, 9 and 10", &|v| v.tokens[10] = v.tokens[9].clone());
    let types = format!("`tokenizer.ggml.token_type` has 3 values for {count} tokens");
    refused(&bytes, &types, &|v| v.types.truncate(3));
    refused(&bytes, "`tokenizer.ggml.eos_token_id` is 375", &|v| v.eos = Some(count as u32));
    refused(&bytes, "`tokenizer.ggml.mask_token_id` is 4294967295", &|v| v.mask = Some(u32::MAX));
    let merge = |v: &mut GgufVocabulary, merge: &str| v.merges.as_mut().unwrap()[1] = merge.into();
    refused(&bytes, "`tokenizer.ggml.merges` is missing", &|v| v.merges = None);
    refused(&bytes, "entry 1, \"ab\", is not two tokens", &|v| merge(v, "ab"));
    refused(&bytes, "needs the token \"zqe\"", &|v| merge(v, "zq e"));
    refused(&bytes, "`tokenizer.ggml.pre` is `gpt2`", &|v| v.pre = Some("gpt2".into()));
    let score = |v: &mut GgufVocabulary, score: f32| v.scores.as_mut().unwrap()[300] = score;
    refused(&spm, "`tokenizer.ggml.scores` is missing", &|v| v.scores = None);
    refused(&spm, "`tokenizer.ggml.scores` has 1 values", &|v| v.scores = Some(vec![0.0]));
    refused(&spm, "`tokenizer.ggml.scores`: entry 300 is NaN", &|v| score(v, f32::NAN));
    refused(&unigram, "`tokenizer.ggml.scores`: entry 300 is inf", &|v| score(v, f32::INFINITY));
    let charsmap = |v: &mut GgufVocabulary, bytes: &[u8]| v.precompiled_charsmap = Some(bytes.to_vec());
    refused(&unigram, "`tokenizer.ggml.precompiled_charsmap`: the table of characters is cut off", &|v| {
        charsmap(v, &[1; 3])
    });
    let lies = "has 4 bytes, and its trie 4";
    refused(&unigram, lies, &|v| charsmap(v, &[4, 0, 0, 0, 1, 2, 3, 4]));
    refused(&pieces, "`tokenizer.ggml.unknown_token_id` is 157", &|v| v.unknown = Some(157));
    refused(&pieces, "`tokenizer.ggml.unknown_token_id` is missing", &|v| {
        v.unknown = None;
        v.tokens.truncate(50);
        v.types.truncate(50);
    });
    let unsupported = VocabularyModel::of_name("rwkv").unwrap_err().to_string();
    assert!(unsupported.contains("`tokenizer.ggml.model` is `rwkv`"), "{unsupported}");
}

#[test]
fn without_tokens_for_bytes_a_strange_character_fails_as_in_llama_cpp() {
    let mut vocabulary = GgufVocabulary::of(&fixture("sentencepiece_bpe")).unwrap();
    vocabulary.tokens[8 + 0xC3] = "<none>".into();
    assert!(vocabulary.encode("the fox").is_ok());
    let error = vocabulary.encode("the foÿ").unwrap_err().to_string();
    assert!(error.contains("\"ÿ\"") && error.contains("<0xC3>"), "{error}");
}

#[test]
fn no_charsmap_leads_out_of_its_array() {
    let mut vocabulary = GgufVocabulary::of(&fixture("unigram")).unwrap();
    let text = odd_texts().unwrap().concat();
    let mut noticed = 0;
    for (_, bytes) in damaged(&charsmap()) {
        vocabulary.precompiled_charsmap = Some(bytes);
        noticed += u32::from(vocabulary.encode(&text).is_err());
    }
    assert!(noticed > 20, "{noticed} of them, and none panics");
}
