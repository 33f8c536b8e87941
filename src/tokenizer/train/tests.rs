//! Trains each algorithm on a small corpus and holds it to what it promises.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use unicode_normalization::UnicodeNormalization;

use super::*;
use crate::base::{Quiet, fs};
use crate::corpus::document::{Document, DocumentWriter, FILE_NAME};

const ALL: [Algorithm; 6] = [
    Algorithm::ByteBpe,
    Algorithm::SentencepieceBpe,
    Algorithm::Unigram,
    Algorithm::Wordpiece,
    Algorithm::Word,
    Algorithm::Char,
];

fn options(algorithm: Algorithm, vocab_size: usize) -> Options {
    Options {
        algorithm,
        vocab_size,
        min_frequency: 2,
        special_tokens: vec![SpecialToken::Plain("<tool>".to_string())],
        lowercase: false,
        character_coverage: 1.0,
        max_token_length: 32,
        sample_bytes: 1 << 20,
        held_out_fraction: 0.1,
    }
}

/// A corpus that also spells special tokens and bytes, often enough for them to be learned.
fn corpus() -> Vec<String> {
    let who = ["the fox", "a bird", "Anna", "seekor kucing", "das Mädchen"];
    let does = ["was walking", "kept talking", "sedang berjalan", "is singing"];
    let wher = ["near the river", "in <user> land", "at <0x0A> o'clock", "under the <pad>", "don't ask"];
    (0..100)
        .map(|i| {
            let line = |j: usize| format!("{} {} {}.", who[(i + j) % 5], does[(i * 3 + j) % 4], wher[j % 5]);
            (0..6).map(line).collect::<Vec<_>>().join("\n") + &format!("\n\n«fin {i}» <eos> <tool>")
        })
        .collect()
}

fn write(folder: &Path, texts: &[String]) -> Inputs {
    let mut writer = DocumentWriter::create(folder).unwrap();
    for text in texts {
        writer.push(&Document::new(text.clone(), "corpus.txt", 0, text.len() as u64)).unwrap();
    }
    writer.finish().unwrap();
    Inputs { documents: vec![folder.join(FILE_NAME)], conversations: Vec::new() }
}

fn train_on(texts: &[String], options: &Options) -> Result<Trained> {
    let folder = tempfile::tempdir().unwrap();
    train(&write(folder.path(), texts), options, &Quiet)
}

fn trained(algorithm: Algorithm) -> Tokenizer {
    static MADE: OnceLock<Vec<Tokenizer>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        ALL.iter().map(|a| train_on(&corpus(), &options(*a, 420)).unwrap().tokenizer).collect()
    });
    made[ALL.iter().position(|a| *a == algorithm).unwrap()].clone()
}

#[test]
fn special_tokens_come_first_and_every_algorithm_compresses() {
    for algorithm in ALL {
        let trained = train_on(&corpus(), &options(algorithm, 420)).unwrap();
        for (id, special) in Special::ALL.into_iter().enumerate() {
            assert_eq!(trained.tokenizer.special(special), Some(id as u32), "{algorithm:?}");
        }
        assert_eq!(trained.tokenizer.id("<tool>"), Some(7));
        let report = trained.report;
        assert!(report.vocab_size <= 420 && report.vocab_size == trained.tokenizer.vocab_size());
        let least = if algorithm == Algorithm::Char { 0.9 } else { 2.0 };
        assert!(report.train.bytes_per_token > least, "{algorithm:?} {report:?}");
        let held_out = report.held_out.expect("some of 100 documents are held out");
        assert_eq!(report.train.documents + held_out.documents, 100);
        assert_eq!(report.train.bytes + held_out.bytes, report.corpus_bytes);
    }
}

#[test]
fn the_report_counts_what_encoding_gives() {
    for algorithm in ALL {
        let mut options = options(algorithm, 420);
        options.held_out_fraction = 0.0;
        let trained = train_on(&corpus(), &options).unwrap();
        let ids: Vec<u32> = corpus().iter().flat_map(|t| trained.tokenizer.encode(t).unwrap()).collect();
        assert_eq!(trained.report.train.tokens, ids.len() as u64, "{algorithm:?}");
        let used: BTreeSet<u32> = ids.into_iter().collect();
        let fixed = options.least_vocab_size() as u32 - 1;
        let unused = (fixed..trained.report.vocab_size as u32).filter(|id| !used.contains(id)).count();
        assert_eq!(trained.report.unused_tokens, unused, "{algorithm:?}");
    }
}

#[test]
fn text_cannot_forge_a_special_token_or_a_byte() {
    let texts = ["<user>", "a <user> b", "<eos><eos>", "x<pad>", "<tool>", "<0x41>", "<unk>", "<<user>>"];
    for algorithm in ALL {
        let tokenizer = trained(algorithm);
        for text in texts {
            let ids = tokenizer.encode(text).unwrap();
            let control = ids.iter().find(|id| **id < 8 && Some(**id) != tokenizer.unknown());
            assert_eq!(control, None, "{algorithm:?} {text}: {ids:?}");
            if algorithm.has_bytes() || algorithm == Algorithm::Char {
                assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{algorithm:?} {ids:?}");
            }
        }
    }
}

/// A token that is to stand in text: learned around, found, counted, shown; others stay text.
#[test]
fn a_token_that_is_to_stand_in_text_is_found_there() {
    let think =
        SpecialToken::WithOptions(SpecialTokenOptions { token: "<think>".to_string(), in_text: true });
    let texts: Vec<String> = corpus().iter().map(|text| format!("<think>{text} <think><tool>")).collect();
    let folder = tempfile::tempdir().unwrap();
    for algorithm in ALL {
        let mut options = Options { held_out_fraction: 0.0, ..options(algorithm, 420) };
        options.special_tokens.push(think.clone());
        let Trained { tokenizer, report } = train_on(&texts, &options).unwrap();
        let id = tokenizer.id("<think>").unwrap();
        assert_eq!((id, tokenizer.is_special(id)), (8, false), "{algorithm:?}");
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
        for (ids, text) in ids.iter().zip(&texts) {
            assert_eq!((ids[0], ids.iter().filter(|i| **i == id).count()), (id, 2), "{algorithm:?} {ids:?}");
            assert!(!ids.contains(&7), "{algorithm:?}: <tool> is text");
            let said = tokenizer.decode(ids).unwrap();
            assert!(said.contains("<think>"), "{algorithm:?} {said}");
            if algorithm.has_bytes() {
                assert_eq!(&said, text, "{algorithm:?}");
            }
        }
        assert_eq!(report.in_text, BTreeMap::from([("<think>".to_string(), 200)]), "{algorithm:?}");
        assert_eq!(report.train.tokens, ids.concat().len() as u64, "{algorithm:?}");
        // What is between is cut and learned as if it stood alone.
        let words = |texts: &[String], options: &Options| {
            let cutter = Cutter::of(options).unwrap();
            words::count(&write(folder.path(), texts), &cutter, options, &Quiet).unwrap().train.words
        };
        let parts: Vec<String> = texts
            .iter()
            .flat_map(|t| t.split("<think>").map(String::from))
            .filter(|t| !t.is_empty())
            .collect();
        assert_eq!(words(&texts, &options), words(&parts, &options), "{algorithm:?}");
        // The library finds the same.
        let mut library = tokenizers::Tokenizer::from_bytes(tokenizer.json()).unwrap();
        library.set_encode_special_tokens(true);
        assert_eq!(library.encode_fast(texts[3].as_str(), false).unwrap().get_ids(), ids[3], "{algorithm:?}");
    }
}

#[test]
fn threads_do_not_change_the_bytes() {
    for algorithm in ALL {
        let made = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train_on(&corpus(), &options(algorithm, 420)).unwrap().tokenizer.digest())
        };
        assert_eq!(made(1), made(3), "{algorithm:?}");
    }
}

fn fixture(algorithm: Algorithm) -> PathBuf {
    let name = serde_json::to_value(algorithm).unwrap();
    fixtures().join(format!("tokenizers/{}.json", name.as_str().unwrap()))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The files were written by another process, whose hash maps were seeded otherwise.
#[test]
fn the_bytes_are_those_of_the_fixtures() {
    for algorithm in ALL {
        let (made, due) = (trained(algorithm), fs::read(&fixture(algorithm)).unwrap());
        assert!(
            made.json() == due,
            "{algorithm:?}: other bytes than before: raise the version of `train_tokenizer`"
        );
    }
}

/// `cargo test --release --lib write_the_fixtures -- --ignored`, then `make_tokenizer_fixtures.py`.
#[test]
#[ignore = "writes into the repository"]
fn write_the_fixtures() {
    for algorithm in ALL {
        fs::write(&fixture(algorithm), trained(algorithm).json()).unwrap();
    }
}

/// What Hugging Face `tokenizers` makes of the same files, from `make_tokenizer_fixtures.py`.
#[test]
fn hugging_face_gives_the_same_ids() {
    let known: Value =
        serde_json::from_slice(&fs::read(&fixtures().join("tokenizer_ids.json")).unwrap()).unwrap();
    let texts: Vec<&str> = known["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(texts.len() >= 20);
    for algorithm in ALL {
        let path = fixture(algorithm);
        let theirs = &known["tokenizers"][path.file_name().unwrap().to_str().unwrap()];
        let tokenizer = Tokenizer::load(&path).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(serde_json::json!(ids), theirs["ids"][i], "{algorithm:?} {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), theirs["decoded"][i], "{algorithm:?} {text:?}");
        }
    }
}

#[test]
fn our_pairs_are_those_of_the_library() {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    let folder = tempfile::tempdir().unwrap();
    // Without text that spells special tokens: the library merges into those, we do not.
    let texts: Vec<String> = corpus().iter().map(|t| t.replace(['<', '>'], "")).collect();
    let options =
        Options { special_tokens: Vec::new(), held_out_fraction: 0.0, ..options(Algorithm::ByteBpe, 400) };
    let cutter = Cutter::of(&options).unwrap();
    let words = words::count(&write(folder.path(), &texts), &cutter, &options, &Quiet).unwrap().train.words;
    let ours = learn_bpe(
        &words,
        &options,
        {
            let mut symbols: Vec<char> = (0..=255).map(byte_symbol).collect();
            symbols.sort_unstable();
            symbols.into_iter().map(String::from)
        },
        "",
        &Quiet,
    )
    .unwrap();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .min_frequency(2)
        .vocab_size(400)
        .special_tokens(
            options.special().iter().map(|t| tokenizers::AddedToken::from(t.as_str(), true)).collect(),
        )
        .initial_alphabet((0..=255).map(byte_symbol).collect())
        .build();
    let mut model = BPE::default();
    let counts = words.iter().map(|w| (w.text.as_str().into(), w.count)).collect();
    trainer.do_train(&counts, &mut model).unwrap();
    let vocab = model.get_vocab();
    assert_eq!(vocab.len(), ours.tokens.len());
    for (id, token) in ours.tokens.iter().enumerate() {
        assert_eq!(vocab.get(token), Some(&(id as u32)), "{token}");
    }
}

#[test]
fn a_vocabulary_too_small_for_the_alphabet_is_refused_with_the_figures() {
    let error = |algorithm, size| train_on(&corpus(), &options(algorithm, size)).err().unwrap().to_string();
    let text = error(Algorithm::SentencepieceBpe, 270);
    assert!(text.contains("`vocab_size` 270") && text.contains("8 special tokens, 256 bytes"), "{text}");
    assert!(text.contains("character_coverage"), "{text}");
    assert!(error(Algorithm::Unigram, 270).contains("too small"));
    assert!(error(Algorithm::Wordpiece, 20).contains("too small"));
    assert!(error(Algorithm::ByteBpe, 200).contains("`vocab_size` is 200: expected 265 to"));
}

#[test]
fn text_that_is_not_there_is_said() {
    for texts in [vec![], vec![String::new()]] {
        let error = train_on(&texts, &options(Algorithm::ByteBpe, 400)).err().unwrap();
        assert!(error.message().contains("no text"), "{error}");
    }
    let few = Options { sample_bytes: 1, ..options(Algorithm::ByteBpe, 400) };
    let error = train_on(&corpus(), &few).err().unwrap();
    assert!(error.message().contains("sample of 1 bytes"), "{error}");
}

#[test]
fn what_cannot_be_learned_is_reported() {
    let trained = train_on(&["ab ab".to_string()], &options(Algorithm::ByteBpe, 400)).unwrap();
    assert_eq!(trained.report.vocab_size, 8 + 256 + 1, "only `ab` occurs twice: {:?}", trained.report);
    assert_eq!(trained.report.held_out, None);
}

#[test]
fn a_sample_is_a_part_and_always_the_same() {
    let half = Options { sample_bytes: 7_000, ..options(Algorithm::Word, 420) };
    let (a, b) = (train_on(&corpus(), &half).unwrap(), train_on(&corpus(), &half).unwrap());
    let taken = a.report.train.bytes + a.report.held_out.as_ref().map_or(0, |h| h.bytes);
    assert!(taken * 4 > a.report.corpus_bytes && taken * 4 < a.report.corpus_bytes * 3, "{:?}", a.report);
    assert_eq!(a.tokenizer.digest(), b.tokenizer.digest());
}

#[test]
fn rare_characters_are_left_to_the_bytes() {
    let mut texts = corpus();
    texts.push("一".to_string());
    let options = Options {
        character_coverage: 0.999,
        held_out_fraction: 0.0,
        ..options(Algorithm::SentencepieceBpe, 420)
    };
    let tokenizer = train_on(&texts, &options).unwrap().tokenizer;
    assert_eq!(tokenizer.id("一"), None);
    let ids = tokenizer.encode("一").unwrap();
    assert_eq!(ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect::<String>(), "<0xE4><0xB8><0x80>");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "一");
}

#[test]
fn lower_casing_is_done_where_it_is_asked_for() {
    for algorithm in [Algorithm::Wordpiece, Algorithm::Word, Algorithm::Char] {
        let options = Options { lowercase: true, ..options(algorithm, 420) };
        let tokenizer = train_on(&corpus(), &options).unwrap().tokenizer;
        assert_eq!(tokenizer.encode("ANNA").unwrap(), tokenizer.encode("anna").unwrap(), "{algorithm:?}");
        let ids = tokenizer.encode("The Fox was walking.").unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "the fox was walking.");
    }
}

#[test]
fn words_and_characters_that_are_unknown_are_unk() {
    let word = trained(Algorithm::Word);
    assert_eq!(word.encode("the zebra").unwrap(), [word.id("the").unwrap(), 1]);
    let char = trained(Algorithm::Char);
    assert_eq!(char.encode("a一b").unwrap(), [char.id("a").unwrap(), 1, char.id("b").unwrap()]);
    let pieces = trained(Algorithm::Wordpiece);
    assert_eq!(pieces.encode("一").unwrap(), [1]);
}

#[test]
fn pieces_split_where_the_words_do() {
    // "ab" and "cd" are the words; the unigram model finds them in their joins.
    let words: Vec<Word> = [("abcd", 30), ("cdab", 25), ("ab", 20), ("cd", 20), ("abab", 9)]
        .into_iter()
        .map(|(text, count)| Word { text: text.to_string(), count })
        .collect();
    let plan = unigram::Plan { alphabet: vec!['a', 'b', 'c', 'd'], pieces: 6, max_length: 8 };
    let pieces = unigram::train(&words, &plan, &Quiet).unwrap();
    let names: BTreeSet<&str> = pieces.iter().map(|p| p.0.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["a", "ab", "b", "c", "cd", "d"]), "{pieces:?}");
    assert!(pieces.windows(2).all(|w| w[0].1 >= w[1].1));
}

/// Text as `ingest` hands it on.
fn nfc(text: &str) -> String {
    text.nfc().collect()
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "(the |fox|<user>|<0x0A>|<|>|\n| |  |\t|é|😀|'s|[a-z]{1,5}|[0-9]{1,3}|[.,!?]){0,30}",
    ]
}

proptest! {
    #[test]
    fn any_text_comes_back_from_bytes(text in any_text()) {
        let tokenizer = trained(Algorithm::ByteBpe);
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn nfc_text_comes_back_from_pieces(text in any_text()) {
        // U+2581 stands for the space, as in SentencePiece itself.
        let text = nfc(&text).replace('▁', "_");
        for algorithm in [Algorithm::SentencepieceBpe, Algorithm::Unigram] {
            let tokenizer = trained(algorithm);
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)), "{:?} {:?}", algorithm, ids);
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), &*text, "{:?}", algorithm);
        }
    }

    #[test]
    fn a_stream_gives_the_text_in_whole_characters(text in any_text()) {
        for algorithm in [Algorithm::ByteBpe, Algorithm::SentencepieceBpe, Algorithm::Wordpiece] {
            let tokenizer = trained(algorithm);
            let ids = tokenizer.encode(&text).unwrap();
            let mut decoder = tokenizer.decoder();
            let mut streamed: String = ids.iter().filter_map(|id| decoder.push(*id)).collect();
            streamed.push_str(&decoder.finish().unwrap_or_default());
            prop_assert_eq!(streamed, tokenizer.decode(&ids).unwrap(), "{:?}", algorithm);
        }
    }

    #[test]
    fn no_ids_make_a_stream_fail(ids in proptest::collection::vec(0u32..430, 0..60)) {
        for algorithm in ALL {
            let mut decoder = trained(algorithm).decoder();
            for id in &ids {
                decoder.push(*id);
            }
            decoder.finish();
        }
    }
}
