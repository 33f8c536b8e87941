//! Shards written and read back, and what their split and order depend on.

use std::collections::BTreeMap;

use super::*;
use crate::base::Quiet;
use crate::corpus::conversation::{Conversation, ConversationWriter, Message, Role};
use crate::corpus::document::{self, Document, DocumentWriter};
use crate::corpus::held_out::{self, HeldOut, Rule};
use crate::tokenizer::{Inputs, Special, Tokenizer};

/// Letters, digits, a space, and the special tokens; `extra` more tokens that no text has.
fn letters(extra: usize) -> Tokenizer {
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789 ".chars().map(String::from);
    let tokens = Special::ALL.map(|s| s.as_str().to_string()).into_iter().chain(letters);
    let tokens = tokens.chain((0..extra).map(|i| format!("extra{i}")));
    let vocab: serde_json::Map<_, _> = tokens.zip(0..).map(|(t, id)| (t, id.into())).collect();
    let value = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"}, "truncation": null,
        "padding": null, "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}});
    Tokenizer::parse("letters.json", value.to_string().into_bytes()).unwrap()
}

fn texts(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("document {i} {}", "more of it ".repeat(i % 7))).collect()
}

fn documents(folder: &Path, texts: &[String]) -> Inputs {
    let mut writer = DocumentWriter::create(folder).unwrap();
    for text in texts {
        writer.push(&Document::new(text.clone(), "a.txt", 0, text.len() as u64)).unwrap();
    }
    writer.finish().unwrap();
    Inputs { documents: vec![folder.join(document::FILE_NAME)], conversations: Vec::new() }
}

fn options() -> Options {
    Options { validation_fraction: 0.1, shard_tokens: 1 << 20, seed: 7 }
}

struct Made {
    folder: tempfile::TempDir,
    report: Report,
}

impl Made {
    fn files(&self) -> Vec<(String, PathBuf)> {
        let paths = fs::files_below(&self.folder.path().join("out")).unwrap();
        paths.into_iter().map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), p)).collect()
    }

    fn shards(&self) -> Shards {
        Shards::open(&self.files()).unwrap()
    }

    /// By which the documents were split.
    fn rule(&self) -> Rule {
        HeldOut::load(&self.folder.path().join("out").join(held_out::FILE_NAME)).unwrap().documents.remove(0)
    }

    /// (document id, ids) in order.
    fn rows(&self, split: Split) -> Vec<(String, Vec<u32>)> {
        let shards = self.shards();
        let files = shards.files.iter().filter(|f| f.split == split);
        files.flat_map(|f| Rows::open(&f.path).unwrap().collect::<Result<Vec<_>>>().unwrap()).collect()
    }
}

fn make_with(inputs: &Inputs, tokenizer: &Tokenizer, options: &Options) -> Result<Made> {
    let folder = tempfile::tempdir().unwrap();
    let (out, scratch) = (folder.path().join("out"), folder.path().join("scratch"));
    fs::create_dir(&out)?;
    let report = build(inputs, tokenizer, options, &out, &scratch, &Quiet)?;
    Ok(Made { folder, report })
}

fn make(texts: &[String], options: &Options) -> Result<Made> {
    let folder = tempfile::tempdir().unwrap();
    make_with(&documents(folder.path(), texts), &letters(0), options)
}

#[test]
fn every_document_comes_back_once_between_bos_and_eos() {
    let tokenizer = letters(0);
    let made = make(&texts(200), &options()).unwrap();
    let mut found = BTreeMap::new();
    for split in [Split::Train, Split::Validation] {
        for (id, ids) in made.rows(split) {
            assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
            let text = tokenizer.decode(&ids).unwrap();
            assert_eq!(id, document::text_id(&text));
            assert_eq!(made.rule().split(&id), split);
            found.insert(text, split);
        }
    }
    let mut expected = texts(200);
    expected.sort();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), expected);
}

#[test]
fn footers_and_report_count_what_is_there() {
    let made = make(&texts(200), &options()).unwrap();
    let (shards, report) = (made.shards(), &made.report);
    let text_bytes: usize = texts(200).iter().map(String::len).sum();
    assert_eq!(shards.tokenizer, letters(0).digest());
    assert_eq!(shards.vocab_size, letters(0).vocab_size());
    assert_eq!(report.token_type, "uint16");
    assert_eq!(shards.train_documents + shards.validation_documents, 200);
    assert_eq!(shards.train_bytes + shards.validation_bytes, text_bytes as u64);
    // One token a letter, <bos> and <eos>.
    assert_eq!(shards.train_tokens + shards.validation_tokens, text_bytes as u64 + 400);
    assert_eq!(
        (report.train.tokens, report.validation.documents),
        (shards.train_tokens, shards.validation_documents)
    );
    assert!((5..40).contains(&shards.validation_documents), "about a tenth: {report:?}");
    assert_eq!((report.bytes_per_token, report.unknown_tokens, report.empty), (1.0, 0, 0));
}

#[test]
fn a_stream_gives_windows_over_document_boundaries() {
    let made = make(&texts(50), &options()).unwrap();
    let rows = made.rows(Split::Train);
    let stream = made.shards().read(Split::Train).unwrap();
    let all: Vec<u32> = rows.iter().flat_map(|r| r.1.clone()).collect();
    assert_eq!((stream.len(), stream.is_empty()), (all.len(), false));
    for (start, len) in [(0, 5), (17, 40), (all.len() - 3, 3), (all.len(), 0)] {
        let mut window = vec![99; len];
        stream.window(start, &mut window);
        assert_eq!(window, all[start..start + len]);
    }
    assert_eq!(stream.documents().len(), rows.len());
    for (range, row) in stream.documents().zip(&rows) {
        assert_eq!(all[range], row.1);
    }
}

#[test]
fn the_split_stays_when_documents_come_and_the_seed_only_moves_the_order() {
    let of = |made: &Made, split| made.rows(split).into_iter().map(|r| r.0).collect::<Vec<_>>();
    let few = make(&texts(100), &options()).unwrap();
    let many = make(&texts(300), &options()).unwrap();
    let held_out = of(&many, Split::Validation);
    assert!(!of(&few, Split::Validation).is_empty());
    assert!(of(&few, Split::Validation).iter().all(|id| held_out.contains(id)));
    assert!(of(&few, Split::Train).iter().all(|id| !held_out.contains(id)));

    let other = make(&texts(100), &Options { seed: 8, ..options() }).unwrap();
    let (mut a, mut b) = (of(&few, Split::Train), of(&other, Split::Train));
    assert_ne!(a, b, "shuffled otherwise");
    a.sort();
    b.sort();
    assert_eq!(a, b, "the same documents");
    let as_they_came: Vec<String> = texts(100).iter().map(|t| document::text_id(t)).collect();
    assert!(
        of(&few, Split::Train) != as_they_came.into_iter().filter(|id| a.contains(id)).collect::<Vec<_>>()
    );
}

#[test]
fn bytes_do_not_depend_on_threads_or_the_order_of_input() {
    let digests = |texts: &[String], threads: usize| -> Vec<Digest> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = Options { shard_tokens: 1000, ..options() };
        let made = pool.install(|| make(texts, &options).unwrap());
        made.files().iter().map(|f| Digest::of_file(&f.1).unwrap()).collect()
    };
    let forward = texts(120);
    let backward: Vec<String> = forward.iter().rev().cloned().collect();
    let first = digests(&forward, 1);
    assert!(first.len() > 3, "several files");
    assert_eq!(first, digests(&forward, 3));
    assert_eq!(first, digests(&backward, 2));
}

#[test]
fn the_order_does_not_depend_on_the_number_of_scratch_files() {
    let tokenizer = letters(0);
    let ids = |buckets: u64| -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        build::order_of(&texts(60), &tokenizer, folder.path(), buckets)
    };
    assert_eq!(ids(1).len(), 60);
    assert_eq!(ids(1), ids(5));
}

#[test]
fn both_splits_have_a_document_where_there_are_two() {
    let counts = |texts: &[String], fraction: f64| {
        let made = make(texts, &Options { validation_fraction: fraction, ..options() }).unwrap();
        (made.report.train.documents, made.report.validation.documents)
    };
    assert_eq!(counts(&texts(2), 1e-9), (1, 1), "too few would be held out");
    assert_eq!(counts(&texts(2), 1.0 - 1e-9), (1, 1), "too many would be");
    assert_eq!(counts(&texts(1), 1.0 - 1e-9), (1, 0), "one can only be trained on");
    assert_eq!(counts(&[texts(1), texts(1)].concat(), 1e-9), (2, 0), "the same text is never on both sides");
    assert_eq!(counts(&texts(30), 0.0), (30, 0), "nothing asked for");
}

#[test]
fn conversations_are_documents_in_the_chat_format() {
    let folder = tempfile::tempdir().unwrap();
    let say = |role, text: &str| Message { role, content: text.to_string() };
    let asked = Conversation::new(vec![say(Role::User, "a"), say(Role::Assistant, "b")], "c", 1);
    let open = Conversation::new(vec![say(Role::System, "c"), say(Role::User, "d")], "c", 2);
    let mut writer = ConversationWriter::create(folder.path()).unwrap();
    writer.push(&asked).unwrap();
    writer.push(&open).unwrap();
    writer.finish().unwrap();
    let inputs =
        Inputs { documents: Vec::new(), conversations: vec![folder.path().join("conversations.parquet")] };
    let made = make_with(&inputs, &letters(0), &Options { validation_fraction: 0.0, ..options() }).unwrap();
    let rows: BTreeMap<String, Vec<u32>> = made.rows(Split::Train).into_iter().collect();
    assert_eq!(rows[&asked.id], [2, 4, 7, 5, 8, 3], "one <eos>, not two");
    assert_eq!(rows[&open.id], [2, 6, 9, 4, 10, 3]);
    assert_eq!((made.report.conversations, made.report.documents), (2, 0));
}

#[test]
fn ids_are_as_wide_as_the_vocabulary_asks() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = documents(folder.path(), &texts(20));
    let own = letters(0).vocab_size();
    for (size, name) in [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")] {
        let made = make_with(&inputs, &letters(size - own), &options()).unwrap();
        assert_eq!(made.report.token_type, name);
        assert_eq!(made.shards().vocab_size, size);
        let stream = made.shards().read(Split::Train).unwrap();
        assert_eq!(stream.documents().len() as u64, made.report.train.documents);
        assert_eq!(made.rows(Split::Train)[0].1[0], 2);
    }
}

#[test]
fn text_that_is_empty_is_left_out_and_counted() {
    let made = make(&["a".to_string(), String::new()], &options()).unwrap();
    assert_eq!((made.report.empty, made.report.train.documents), (1, 1));
    let error = make(&[String::new()], &options()).err().unwrap().to_string();
    assert!(error.contains("no text") && error.contains("1 documents"), "{error}");
}

#[test]
fn a_tokenizer_without_special_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = documents(folder.path(), &texts(3));
    let json = br#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}}"#;
    let tokenizer = Tokenizer::parse("bare.json", json.to_vec()).unwrap();
    let error = make_with(&inputs, &tokenizer, &options()).err().unwrap();
    assert!(error.message().contains("`<bos>`"), "{error}");
}

#[test]
fn shards_that_do_not_go_together_are_refused() {
    let made = make(&texts(120), &Options { shard_tokens: 1000, ..options() }).unwrap();
    let files = made.files();
    let refused = |files: &[(String, PathBuf)]| Shards::open(files).unwrap_err().to_string();
    assert!(refused(&[]).contains("train-00000.parquet"));
    let without: Vec<_> = files.iter().filter(|f| f.0 != "train-00001.parquet").cloned().collect();
    assert!(refused(&without).contains("`train-00001.parquet` is missing"));
    let mut renamed = files.clone();
    let last = renamed.iter().position(|f| f.0 == "train-00001.parquet").unwrap();
    renamed[last].0 = "validation-00007.parquet".to_string();
    assert!(refused(&renamed).contains("says of itself that it is `train-00001.parquet`"));

    let folder = tempfile::tempdir().unwrap();
    let options = Options { validation_fraction: 0.0, ..options() };
    let other = make_with(&documents(folder.path(), &texts(3)), &letters(1), &options).unwrap();
    let mut mixed: Vec<_> = other.files();
    mixed.extend(files.iter().filter(|f| f.0 != "train-00000.parquet").cloned());
    assert!(refused(&mixed).contains("was encoded by the tokenizer"), "{}", refused(&mixed));

    let not_ours = [("train-00000.parquet".to_string(), folder.path().join(document::FILE_NAME))];
    assert!(refused(&not_ours).contains("not a token shard"));
    let broken = folder.path().join("train-00000.parquet");
    fs::write(&broken, b"PAR1").unwrap();
    assert!(refused(&[("train-00000.parquet".to_string(), broken)]).contains("train-00000.parquet"));
}

/// More than a row group takes, in files of several, over documents of no token and of many.
#[test]
fn a_stream_is_the_rows_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    for vocab_size in [1 << 16, 1 << 17] {
        let mut writer =
            ShardWriter::new(folder.path(), Split::Train, Digest::of(b"t"), vocab_size, 3_000_000);
        for i in 0..700u32 {
            let length = if i % 97 == 0 { 0 } else { 900 + (i * 7919) % 9000 };
            let tokens: Vec<u32> = (0..length).map(|t| (t * 31 + i) % vocab_size as u32).collect();
            writer.push(&i.to_string(), &tokens, 1).unwrap();
        }
        writer.finish().unwrap();
        let files = fs::files_below(folder.path()).unwrap();
        let named = |p: &PathBuf| (p.file_name().unwrap().to_string_lossy().into_owned(), p.clone());
        let shards = Shards::open(&files.iter().map(named).collect::<Vec<_>>()).unwrap();
        assert!(files.len() > 1 && reader(&files[0]).unwrap().metadata().num_row_groups() > 1);
        let mut due = TokenStream::new(vocab_size);
        for file in &shards.files {
            Rows::open(&file.path).unwrap().for_each(|row| due.push(&row.unwrap().1));
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| shards.read(Split::Train).unwrap()) == due);
        }
        assert!(shards.read(Split::Validation).unwrap().is_empty());
    }
}

#[test]
fn a_footer_that_lies_is_found() {
    let made = make(&texts(120), &Options { shard_tokens: 1000, ..options() }).unwrap();
    let mut shards = made.shards();
    let last = shards.files.iter().rposition(|f| f.split == Split::Train).unwrap();
    shards.files[last].footer.tokens += 1;
    let error = shards.read(Split::Train).unwrap_err().to_string();
    assert!(
        error.contains("is damaged: its footer says") && error.contains(&file_name(Split::Train, last)),
        "{error}"
    );
}

#[test]
fn an_id_outside_the_vocabulary_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::new(folder.path(), Split::Train, Digest::of(b"t"), 10, 100);
    writer.push("good", &[1, 2], 2).unwrap();
    writer.push("bad", &[1, 10], 2).unwrap();
    writer.finish().unwrap();
    let name = file_name(Split::Train, 0);
    let shards = Shards::open(&[(name.clone(), folder.path().join(name))]).unwrap();
    let error = shards.read(Split::Train).unwrap_err();
    assert!(error.message().contains("document bad has the token id 10"), "{error}");
}
