//! Holds encoding to the ids of the `tokenizers` library: on odd text, and on whole corpora.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::train::{Algorithm, Options, train};
use super::*;
use crate::base::Quiet;
use crate::corpus::document::{Document, DocumentWriter, FILE_NAME};

/// What the library itself gives, without anything of ours.
struct Library(tokenizers::Tokenizer);

impl Library {
    fn of(json: &[u8]) -> Self {
        let mut library = tokenizers::Tokenizer::from_bytes(json).unwrap();
        library.set_encode_special_tokens(true);
        Library(library)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        self.0.encode_fast(text, false).unwrap().get_ids().to_vec()
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name);
    fs::read(&path).unwrap()
}

/// A `tokenizer.json` of byte-level words around a model.
pub(crate) fn byte_level(model: &Value) -> Vec<u8> {
    let how =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": how, "post_processor": null, "decoder": how, "model": model})
    .to_string()
    .into_bytes()
}

/// A vocabulary of all bytes, and `merges` over them: each makes a token, equal ones the same.
pub(crate) fn bpe_of(merges: &[(&str, &str)]) -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (byte_symbol(byte).to_string(), json!(byte))).collect();
    for (left, right) in merges {
        let next = vocab.len();
        vocab.entry(format!("{left}{right}")).or_insert(json!(next));
    }
    let merges: Vec<Value> = merges.iter().map(|(left, right)| json!([left, right])).collect();
    json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges})
}

/// Pairs that overlap, one pair twice, two ways to the same token, and a long one.
fn tangled() -> Vec<u8> {
    byte_level(&bpe_of(&[
        ("a", "a"),
        ("a", "b"),
        ("aa", "b"),
        ("b", "a"),
        ("a", "ab"),
        ("ab", "a"),
        ("aa", "a"),
        ("a", "aa"),
        ("aa", "aa"),
        ("a", "b"),
        ("Ġ", "a"),
        ("Ġa", "b"),
        ("Ã", "©"),
        ("aaaa", "aaaa"),
        ("b", "b"),
        ("bb", "bb"),
    ]))
}

fn quick(json: Vec<u8>) -> Tokenizer {
    let tokenizer = Tokenizer::parse("t.json", json).unwrap();
    assert!(tokenizer.0.bpe.is_some(), "encoded without the library");
    tokenizer
}

fn odd_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ab ]{0,200}",
        "(a|aa|ab|b|aab| |é|e\u{301}|中|😀|ffi|İ|ß|▁|\u{85}|\u{200d}|\r\n|\t|the |fox|ing|<user>|<0x0A>|'s|'Ll|[0-9]{1,3}){0,60}",
        "(<think>|<think|</think>|a| |b|é b|é|hi|<th){0,30}",
        "[\\p{L}\\p{M}\\p{N}\\s]{0,60}",
        // Longer than what is cut in one way.
        "[ab]{60,300}",
    ]
}

#[test]
fn what_is_asked_for_beyond_plain_pairs_is_left_to_the_library() {
    for (key, value) in [
        ("ignore_merges", json!(true)),
        ("continuing_subword_prefix", json!("#")),
        ("end_of_word_suffix", json!("</w>")),
    ] {
        let mut model = bpe_of(&[]);
        model[key] = value;
        let tokenizer = Tokenizer::parse("t.json", byte_level(&model)).unwrap();
        assert!(tokenizer.0.bpe.is_none() && matches!(tokenizer.0.engine, Engine::Library(_)), "{key}");
    }
    let mut without = bpe_of(&[]);
    without["vocab"].as_object_mut().unwrap().remove("q");
    let tokenizer = Tokenizer::parse("t.json", byte_level(&without)).unwrap();
    assert!(tokenizer.0.bpe.is_none(), "a byte is missing");
}

/// Merges are dropped where a model is trained on several encodings of a text, never where text is
/// encoded.
#[test]
fn dropout_does_not_act_and_the_file_stays_as_it_is() {
    let text = "ab aab aaaa bbbb ab".repeat(20);
    for (key, value) in [("byte_fallback", json!(false)), ("continuing_subword_prefix", json!("#"))] {
        let merges = if key == "byte_fallback" { vec![("a", "b"), ("a", "a"), ("aa", "aa")] } else { vec![] };
        let mut model = bpe_of(&merges);
        model[key] = value;
        if merges.is_empty() {
            model["vocab"]["#b"] = json!(256);
            model["vocab"]["ab"] = json!(257);
            model["merges"] = json!([["a", "#b"]]);
        }
        let without = Tokenizer::parse("t.json", byte_level(&model)).unwrap();
        assert_eq!(without.0.bpe.is_some(), !merges.is_empty());
        for dropout in [0.0, 0.5, 1.0] {
            model["dropout"] = json!(dropout);
            let json = byte_level(&model);
            let with = Tokenizer::parse("t.json", json.clone()).unwrap();
            assert_eq!(with.encode(&text).unwrap(), without.encode(&text).unwrap(), "{key} {dropout}");
            assert!(with.json() == json && with.digest() == Digest::of(&json));
        }
    }
}

/// SentencePiece calls its byte tokens special in some conversions; they are bytes all the same.
#[test]
fn bytes_that_are_marked_as_special_are_bytes() {
    let mut json: Value = serde_json::from_slice(&fixture("sentencepiece_bpe.json")).unwrap();
    let plain = Tokenizer::parse("t.json", json.to_string().into_bytes()).unwrap();
    let text = "tab\tand 一二 ÿ <0x09>";
    let ids = plain.encode(text).unwrap();
    for byte in 0..=255u8 {
        let (content, id) = (format!("<0x{byte:02X}>"), plain.id(&format!("<0x{byte:02X}>")));
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": content,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    }
    let mut by_library = json.clone();
    by_library["post_processor"] = json!({"type": "Sequence", "processors": []});
    for (json, own) in [(json, true), (by_library, false)] {
        let marked = Tokenizer::parse("t.json", json.to_string().into_bytes()).unwrap();
        assert_eq!(matches!(marked.0.engine, Engine::Own(_)), own);
        assert_eq!(marked.encode(text).unwrap(), ids);
        assert_eq!(marked.decode(&ids).unwrap(), text);
        let mut stream = marked.decoder();
        let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        streamed.extend(stream.finish());
        assert_eq!(streamed, text);
        assert!(!marked.is_special(marked.id("<0x09>").unwrap()));
        assert!(marked.is_special(marked.id("<eos>").unwrap()));
    }
}

/// Byte-level tokens of which some stand in text as they are spelled, and one special one does not.
fn with_added() -> Vec<u8> {
    let mut model = bpe_of(&[("<", "t"), ("a", "b"), ("Ġ", "a"), ("h", "i")]);
    let mut added = Vec::new();
    for (content, special) in
        [("<think>", false), ("<think", false), ("</think>", false), ("<think>a", true), ("é b", false)]
    {
        let id = model["vocab"].as_object().unwrap().len();
        model["vocab"][content] = json!(id);
        added.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special}));
    }
    let mut json: Value = serde_json::from_slice(&byte_level(&model)).unwrap();
    json["added_tokens"] = json!(added);
    json.to_string().into_bytes()
}

#[test]
fn added_tokens_that_are_not_special_are_found_in_text() {
    let tokenizer = quick(with_added());
    assert!(matches!(tokenizer.0.engine, Engine::Own(_)));
    let ids = tokenizer.encode("hi<think> ab</think>").unwrap();
    let tokens: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
    assert_eq!(tokens, ["hi", "<think>", "Ġ", "ab", "</think>"]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hi<think> ab</think>");
    assert!(!tokenizer.is_special(ids[1]));
    // Those that take blanks with them are found by the library alone.
    let mut json: Value = serde_json::from_slice(&with_added()).unwrap();
    json["added_tokens"][0]["lstrip"] = json!(true);
    let json = json.to_string().into_bytes();
    let stripping = Tokenizer::parse("t.json", json.clone()).unwrap();
    assert!(stripping.0.cut.is_none());
    assert_eq!(stripping.encode("hi <think>a").unwrap(), Library::of(&json).encode("hi <think>a"));
}

/// A file with parts that change no id is read by the library, and still encoded by us.
#[test]
fn a_template_of_special_tokens_changes_nothing() {
    let mut json: Value = serde_json::from_slice(&tangled()).unwrap();
    json["post_processor"] =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let tokenizer = quick(json.to_string().into_bytes());
    assert!(matches!(tokenizer.0.engine, Engine::Library(_)));
    let ids = tokenizer.encode("ab aab").unwrap();
    assert_eq!(ids, quick(tangled()).encode("ab aab").unwrap());
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab aab");
}

#[test]
fn broken_merges_are_the_librarys_to_tell() {
    let mut model = bpe_of(&[("a", "b")]);
    model["merges"] = json!([["a", "nowhere"]]);
    let error = Tokenizer::parse("t.json", byte_level(&model)).unwrap_err().to_string();
    assert!(error.contains("t.json") && error.contains("nowhere"), "{error}");
}

#[test]
fn merges_of_older_files_are_read() {
    let mut model = bpe_of(&[("a", "b"), ("Ġ", "ab")]);
    let new = quick(byte_level(&model));
    model["merges"] = json!(["a b", "Ġ ab"]);
    let old = quick(byte_level(&model));
    assert_eq!(old.encode("ab abb").unwrap(), new.encode("ab abb").unwrap());
    assert_eq!(new.encode("ab abb").unwrap(), [256, 257, 98]);
}

/// A text long enough to be cut for several threads and to fill the table of known words.
#[test]
fn threads_and_what_was_encoded_before_change_nothing() {
    let tokenizer = quick(fixture("byte_bpe.json"));
    let text: String = (0..120_000).map(|i| format!("w{} the{} ", i % 60_000, i % 7)).collect();
    let due = Library::of(tokenizer.json()).encode(&text);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            assert!(tokenizer.encode(&text).unwrap() == due);
            assert!(
                tokenizer.encode_batch(&[&text, "", &text]).unwrap() == [due.clone(), vec![], due.clone()]
            );
        });
    }
}

/// The tokenizers that are encoded and decoded without the library, and the library's.
fn with_both<T>(check: impl FnOnce(&[(Tokenizer, Library)]) -> T) -> T {
    thread_local! {
        static BOTH: Vec<(Tokenizer, Library)> =
            [fixture("byte_bpe.json"), fixture("sentencepiece_bpe.json"), tangled(), with_added()]
                .into_iter()
                .map(|json| (quick(json.clone()), Library::of(&json)))
                .collect();
    }
    BOTH.with(|both| check(both))
}

#[test]
fn tokens_and_ids_are_those_of_the_library() {
    with_both(|both| {
        for (tokenizer, Library(library)) in both {
            assert!(matches!(tokenizer.0.engine, Engine::Own(_)));
            assert_eq!(tokenizer.vocab_size(), library.get_vocab_size(true));
            for id in 0..tokenizer.vocab_size() as u32 + 2 {
                assert_eq!(tokenizer.token(id), library.id_to_token(id));
                if let Some(token) = tokenizer.token(id) {
                    assert_eq!(tokenizer.id(&token), Some(id));
                }
            }
            assert_eq!(tokenizer.id("no such token"), None);
        }
    });
}

proptest! {
    #[test]
    fn any_ids_have_the_text_of_the_library(ids in proptest::collection::vec(0u32..430, 0..40)) {
        with_both(|both| {
            for (tokenizer, Library(library)) in both {
                let ids: Vec<u32> =
                    ids.iter().copied().filter(|id| (*id as usize) < tokenizer.vocab_size()).collect();
                prop_assert_eq!(tokenizer.decode(&ids).unwrap(), library.decode(&ids, true).unwrap());
            }
            Ok(())
        })?;
    }

    #[test]
    fn odd_text_has_the_ids_of_the_library(texts in proptest::collection::vec(odd_text(), 1..4)) {
        with_both(|both| {
            for (tokenizer, library) in both {
                for text in &texts {
                    prop_assert_eq!(tokenizer.encode(text).unwrap(), library.encode(text), "{:?}", text);
                }
            }
            Ok(())
        })?;
    }
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if !path.exists() {
        println!("skipped: there is no `{}`", path.display());
        return None;
    }
    Some(path)
}

/// GPT-2's own tokenizer, put together from OpenAI's two files.
pub(crate) fn gpt_2() -> Option<Vec<u8>> {
    let folder = shared("tok_gpt2_cs336")?;
    let vocab: Value = serde_json::from_slice(&fs::read(&folder.join("gpt2_vocab.json")).unwrap()).unwrap();
    let merges = String::from_utf8(fs::read(&folder.join("gpt2_merges.txt")).unwrap()).unwrap();
    let merges: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()).collect();
    let mut model = bpe_of(&[]);
    (model["vocab"], model["merges"]) = (vocab, json!(merges));
    Some(byte_level(&model))
}

pub(crate) fn trained_on(text: &str, algorithm: Algorithm) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = DocumentWriter::create(folder.path()).unwrap();
    writer.push(&Document::new(text.to_string(), "a", 0, text.len() as u64)).unwrap();
    writer.finish().unwrap();
    let inputs = Inputs { documents: vec![folder.path().join(FILE_NAME)], conversations: Vec::new() };
    let options = Options {
        algorithm,
        vocab_size: 4096,
        min_frequency: 2,
        special_tokens: Vec::new(),
        lowercase: false,
        character_coverage: 0.9995,
        max_token_length: 32,
        sample_bytes: u64::MAX,
        held_out_fraction: 0.0,
    };
    train(&inputs, &options, &Quiet).unwrap().tokenizer.json().to_vec()
}

#[test]
fn whole_corpora_have_the_ids_of_the_library() {
    let Some(fairytales) = shared("corpus_fairytales/corpus.txt") else { return };
    let fairytales = String::from_utf8(fs::read(&fairytales).unwrap()).unwrap();
    let mut jsons = vec![
        trained_on(&fairytales, Algorithm::ByteBpe),
        trained_on(&fairytales, Algorithm::SentencepieceBpe),
    ];
    jsons.extend(gpt_2());
    let files = [
        "corpus_fairytales/corpus.txt",
        "corpus_indonesian/debian_handbook_id.txt",
        "corpus_indonesian/nusax_indonesian.txt",
        "tinyshakespeare/input.txt",
        "tok_gpt2_cs336/german.txt",
        "tok_sentencepiece/botchan.txt",
        "conv_oasst_en100/en_100_tree.jsonl",
    ];
    for json in jsons {
        let (tokenizer, library) = (quick(json.clone()), Library::of(&json));
        for file in files.into_iter().filter_map(shared) {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
            let ours = tokenizer.encode(&text).unwrap();
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let theirs: Vec<Vec<u32>> = lines.par_iter().map(|line| library.encode(line)).collect();
            assert!(tokenizer.encode_batch(&lines).unwrap() == theirs, "{}", file.display());
            // As a whole: slow in the library, so only where it takes no time.
            if text.len() < 1 << 18 {
                assert!(ours == library.encode(&text), "{}", file.display());
            }
            assert!(tokenizer.decode(&ours).unwrap() == text.replace('▁', " ") || text.contains('▁'));
        }
    }
}
