//! Reports on small files that our own writers made.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ListBuilder, RecordBatch, UInt16Builder};
use arrow::datatypes::{DataType, Field, Schema};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;
use crate::base::Digest;
use crate::corpus::conversation::{Conversation, ConversationWriter, Message, Role};
use crate::corpus::document::{Document as Doc, DocumentWriter};
use crate::corpus::{conversation, document, parquet_io};
use crate::eval::items;
use crate::shard::logits::{Header, LogitsWriter};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Files { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(&self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn documents(&self) -> PathBuf {
        let mut writer = DocumentWriter::create(self.folder.path()).unwrap();
        for (i, text) in ["a cat\nsat", "the dog — ran", &"long ".repeat(100)].into_iter().enumerate() {
            writer.push(&Doc::new(text.into(), "stories.txt", i as u64 * 10, i as u64 * 10 + 10)).unwrap();
        }
        writer.finish().unwrap();
        self.path(document::FILE_NAME)
    }

    fn conversations(&self) -> PathBuf {
        let mut writer = ConversationWriter::create(self.folder.path()).unwrap();
        let say = |role, text: &str| Message::new(role, text);
        let messages = vec![say(Role::User, "Hi"), say(Role::Assistant, "Hello!")];
        writer.push(&Conversation::new(messages, "c.jsonl", 1)).unwrap();
        writer.finish().unwrap();
        self.path(conversation::FILE_NAME)
    }

    fn shard(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let item = Arc::new(Field::new("item", DataType::UInt16, false));
        let schema = Arc::new(Schema::new(vec![Field::new("tokens", DataType::List(item.clone()), false)]));
        let mut builder = ListBuilder::new(UInt16Builder::new()).with_field(item);
        builder.append_value((5..25).map(Some));
        builder.append_value([Some(999)]);
        let metadata = vec![("tokenizer".to_string(), "blake3:12".to_string())];
        let mut writer = parquet_io::writer(&path, schema.clone(), metadata).unwrap();
        writer.write(&RecordBatch::try_new(schema, vec![Arc::new(builder.finish())]).unwrap()).unwrap();
        writer.close().unwrap();
        path
    }

    fn model(&self, name: &str) -> PathBuf {
        let numbers = |n: u32| (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
        let (embedding, bias) = (numbers(12), numbers(4));
        let view = |shape: Vec<usize>, data| TensorView::new(safetensors::Dtype::F32, shape, data).unwrap();
        let tensors = vec![
            ("h.10.bias".to_string(), view(vec![4], &bias)),
            ("h.2.bias".to_string(), view(vec![4], &bias)),
            ("lm_head.weight".to_string(), view(vec![3, 4], &embedding)),
            ("wte.weight".to_string(), view(vec![3, 4], &embedding)),
        ];
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
        self.write(name, &bytes)
    }
}

fn look(path: &Path, name: &str) -> Report {
    inspect(path, name, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn error(path: &Path, name: &str) -> String {
    inspect(path, name, &Options::default()).map(|r| panic!("{r}")).unwrap_err().to_string()
}

fn shows(report: &Report, parts: &[&str]) {
    let page = report.to_string();
    for part in parts {
        assert!(page.contains(part), "no `{part}` in:\n{page}");
    }
    assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
}

#[test]
fn of_an_evaluation_the_report_is_shown_and_its_items_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let items = [items::Item::scored(items::Task::Exam, "sums", "sums/1", 1.0)];
    items::write(&dir.path().join(items::ITEMS_FILE), &items).unwrap();
    fs::write(&dir.path().join("report.json"), b"{\"exam\": {\"pass_rate\": 0.83}}").unwrap();
    let report = look(dir.path(), "report");
    shows(&report, &["items.parquet", "Parquet of 1 rows, 10 columns", "report.json", "\"pass_rate\": 0.83"]);
    shows(&look(&dir.path().join(items::ITEMS_FILE), "items.parquet"), &["sums/1", "score_per_byte"]);
}

#[test]
fn documents_show_their_columns_and_first_rows() {
    let files = Files::new();
    let report = look(&files.documents(), "documents.parquet");
    let Content::Parquet(found) = &report.content else { panic!("{report}") };
    assert_eq!((found.rows, &found.row_groups, found.columns.len()), (3, &vec![3], 5));
    let statistics = |name: &str| {
        found.columns.iter().find(|c| c.name == name).and_then(|c| c.statistics.clone()).unwrap()
    };
    let text = statistics("text");
    assert_eq!(text.min, Some(json!("a cat⏎sat")));
    assert_eq!((text.max_length, text.nulls), (Some(500), 0));
    assert!((text.mean_length.unwrap() - (9.0 + 15.0 + 500.0) / 3.0).abs() < 1e-9);
    assert_eq!((statistics("end").min, statistics("end").max), (Some(json!(10)), Some(json!(30))));
    shows(&report, &["Parquet of 3 rows, 5 columns, ZSTD", "LargeUtf8", "the dog — ran", "long long", "…"]);
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["type"], "parquet");
    assert_eq!(value["columns"][3]["max"], 20);
    assert_eq!(value["head"][0]["text"], "a cat\nsat");
}

#[test]
fn nested_columns_show() {
    let files = Files::new();
    shows(
        &look(&files.conversations(), "x"),
        &["messages", "{\"role\":\"user\",\"content\":\"Hi\",\"weight\":1}", "2.0"],
    );
}

/// Ids of logits are alternatives: each is decoded by itself.
#[test]
fn ids_of_logits_are_decoded_one_by_one() {
    let files = Files::new();
    let header = Header {
        tokenizer: Digest::of(b"tokenizer"),
        shards: Digest::of(b"shards"),
        vocab_size: 9,
        top_k: 2,
        temperature: 1.0,
        context: 4,
    };
    let mut writer = LogitsWriter::new(&files.path(""), header, 10);
    writer.push(3, &[5, 7], &[0.5, 0.25]).unwrap();
    writer.finish().unwrap();
    let decode = |ids: &[u32]| Some(format!("<{} ids, {}>", ids.len(), ids[0]));
    let options = Options { decode: Some(&decode), ..Default::default() };
    shows(
        &inspect(&files.path("logits-00000.parquet"), "x", &options).unwrap(),
        &["ids decoded  <1 ids, 5> | <1 ids, 7>"],
    );
}

#[test]
fn token_columns_are_decoded() {
    let files = Files::new();
    let path = files.shard("blob[1]");
    let decode = |ids: &[u32]| (ids[0] < 100).then(|| format!("<{} ids>", ids.len()));
    let options = Options { decode: Some(&decode), ..Default::default() };
    let report = inspect(&path, "train-00000.parquet", &options).unwrap();
    shows(
        &report,
        &["tokens decoded  <20 ids>", "[5, 6, 7, 8, 9, 10, 11, 12, …] 20 items", "[999]", "blake3:12"],
    );
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["columns"][0]["max"], 999);
    assert_eq!(value["head"][1].get("tokens decoded"), None);
    let brief = Options { rows: 0, statistics: false, ..Default::default() };
    let value = serde_json::to_value(inspect(&path, "x", &brief).unwrap()).unwrap();
    assert_eq!(
        (value["rows"].as_u64(), value["columns"][0].get("max"), &value["head"]),
        (Some(2), None, &json!([]))
    );
}

#[test]
fn a_model_counts_tied_weights_once() {
    let files = Files::new();
    let path = files.model("blob");
    files.write("config.json", b"{\"d_model\": 4, \"vocab_size\": 3}");
    let report = look(&path, "model.safetensors");
    let Content::Model(model) = &report.content else { panic!("{report}") };
    assert_eq!((model.parameters, model.tensor_bytes), (20, 128));
    let names: Vec<_> = model.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["h.2.bias", "h.10.bias", "lm_head.weight", "wte.weight"]);
    assert_eq!(model.architecture, None, "these are not the keys of a known type");
    shows(&report, &["lm_head.weight = wte.weight", "3 × 4", "F32", "d_model=4 vocab_size=3", "format"]);
}

#[test]
fn an_adapter_is_told_by_its_rank_and_targets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapter/qwen3");
    let report = look(&folder, "adapter");
    let main = |report: &Report| match &report.content {
        Content::Files(files) => files.main.clone().unwrap(),
        _ => panic!("{report}"),
    };
    let Content::Model(model) = main(&report).content else { panic!("{report}") };
    // Two blocks with A and B each of 16 -> 24 queries, 16 -> 12 values, 24 -> 16 after the activation.
    assert_eq!(model.parameters, 2 * 8 * (16 + 24 + 16 + 12 + 24 + 16));
    let adapter = model.adapter.unwrap();
    assert_eq!((adapter.rank, adapter.alpha, adapter.dropout), (Some(8), Some(4.0), Some(0.05)));
    assert_eq!(adapter.targets, ["down_proj", "q_proj", "v_proj"]);
    shows(&report, &["adapter of rank 8, 1,728 parameters in 12 tensors", "down_proj, q_proj, v_proj"]);
    // Of the file beside its configuration, too, and without.
    let files = Files::new();
    let alone = files.write("blob", &fs::read(&folder.join("adapter_model.safetensors")).unwrap());
    assert_eq!(look(&alone, "blob").content.summary(), "adapter of 1,728 parameters in 12 tensors");
    let file = look(&folder.join("adapter_model.safetensors"), "adapter_model.safetensors");
    shows(&file, &["rank            8", "alpha           4"]);
}

#[test]
fn the_parts_of_an_architecture_are_named() {
    let files = Files::new();
    let path = files.model("blob");
    let config = crate::model::preset("stories-260k").unwrap().to_json(None, None).unwrap();
    files.write("config.json", config.to_string().as_bytes());
    let report = look(&path, "model.safetensors");
    shows(
        &report,
        &["architecture    RMSNorm, rotary positions (base 10,000), SwiGLU, grouped-query attention"],
    );
}

#[test]
fn a_gguf_file_shows_its_types_keys_and_architecture() {
    use crate::kernel::BlockType;
    use crate::model::{Model, Transformer, llama};
    let files = Files::new();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = crate::tokenizer::Tokenizer::load(&tokenizer).unwrap();
    let model = Model { transformer: Transformer::fresh(&llama(999, 32, 1, 2, 8), 1), tokenizer };
    let folder = files.path("model");
    model.save_blocks(&folder, &mut |_, rows| Ok((BlockType::Q8_0, BlockType::Q8_0.encode(rows)?))).unwrap();
    let alone = look(&folder.join("model.gguf"), "model.gguf");
    let parts =
        ["types           3 of F32, 8 of Q8_0", "llama.block_count", "tokenizer.ggml.model", "\"none\""];
    shows(&alone, &parts);
    shows(&alone, &["architecture    RMSNorm, rotary positions (base 10,000), SwiGLU", "999 × 32", "Q8_0"]);
    let Content::Model(summary) = &alone.content else { panic!("{alone}") };
    assert_eq!((summary.parameters, summary.tokens), (model.transformer.layout.len as u64, None));
    // Of a folder, with what `config.json` says.
    shows(&look(&folder, "model"), &["model.gguf", "model_type=llama", "48,448 parameters in 11 tensors"]);

    let file = crate::model::format::gguf::File::open(&folder.join("model.gguf")).unwrap();
    let tokens: Vec<String> = (0..50).map(|i| format!("t{i}")).collect();
    let metadata = [("tokenizer.ggml.model", "gpt2".into()), ("tokenizer.ggml.tokens", tokens.into())];
    let metadata =
        metadata.map(|(key, value): (&str, crate::model::format::gguf::Value)| (key.to_string(), value));
    let vocabulary = files.path("v");
    crate::model::format::gguf::write(&vocabulary, &metadata, &[], &mut |_| unreachable!()).unwrap();
    let report = look(&vocabulary, "v");
    shows(&report, &["v: vocabulary of 50 tokens", "[\"t0\", \"t1\","]);

    let whole = fs::read(&folder.join("model.gguf")).unwrap();
    let found = error(&files.write("d", &whole[..whole.len() - 100]), "model.gguf");
    let last = file.tensors.last().unwrap();
    assert!(
        found.contains(&format!("tensor `{}`", last.name)) && found.contains("beyond the file's"),
        "{found}"
    );
    assert!(
        error(&files.write("g", b"GGUF\x03\0\0\0rest"), "g").contains("the header is cut off or damaged")
    );
}

#[test]
fn damaged_models_are_told() {
    let files = Files::new();
    let whole = fs::read(&files.model("m")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut longer = whole.clone();
    longer.push(0);
    let mut shape = whole.clone();
    let at = whole.windows(5).position(|w| w == b"[3,4]").unwrap();
    shape[at + 1] = b'9';
    for (bytes, expected) in [
        (&whole[..whole.len() - 1], "cut off: 127 bytes of tensors, expected 128"),
        (&whole[..8 + header / 2], "its header should end at byte"),
        (&longer, "followed by other bytes"),
        (&shape, "F32 [9, 4], does not fit its bytes"),
    ] {
        let error = error(&files.write("d", bytes), "model.safetensors");
        assert!(error.contains(expected) && error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_tokenizer_shows_what_it_is_made_of() {
    let files = Files::new();
    let tokenizer = json!({
        "added_tokens": [
            {"id": 0, "content": "<pad>", "special": true},
            {"id": 1, "content": "<unk>", "special": true},
            {"id": 9, "content": "later", "special": false}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "unk_token": "<unk>", "merges": [["a", "b"]],
            "vocab": {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3, "ab": 4}}
    });
    let report = look(&files.write("blob", tokenizer.to_string().as_bytes()), "tokenizer.json");
    let Content::Tokenizer(found) = &report.content else { panic!("{report}") };
    assert_eq!((found.vocab_size, found.tokens, found.merges), (10, 6, Some(1)));
    let special: Vec<_> = found.special_tokens.iter().map(|t| t.token.as_str()).collect();
    assert_eq!(special, ["<pad>", "<unk>"]);
    let longest: Vec<_> = found.longest_tokens.iter().map(|t| t.token.as_str()).collect();
    assert_eq!(longest, ["later", "ab", "a", "b"]);
    shows(
        &report,
        &["BPE tokenizer of 10 tokens", "Sequence[NFC, Lowercase]", "ByteLevel(add_prefix_space=false)"],
    );

    let unigram = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5]]}});
    let report = look(&files.write("u", unigram.to_string().as_bytes()), "tokenizer.json");
    let Content::Tokenizer(found) = &report.content else { panic!("{report}") };
    assert_eq!((found.vocab_size, found.unknown_token.as_deref()), (2, Some("<unk>")));

    let wrong = json!({"model": {"vocab": {"a": -1}}});
    let error = error(&files.write("w", wrong.to_string().as_bytes()), "tokenizer.json");
    assert!(error.contains("the id of `a` is -1"), "{error}");
}

#[test]
fn metrics_show_their_course() {
    let files = Files::new();
    let mut text = String::new();
    for step in 0..100 {
        let val = if step % 50 == 0 { format!(",\"val_loss\":{}", 9 - step / 50) } else { String::new() };
        text += &format!("{{\"step\":{step},\"loss\":{}{val}}}\n", 8.0 / f64::from(step + 1));
    }
    let report = look(&files.write("blob", text.as_bytes()), "metrics.jsonl");
    let Content::Lines(lines) = &report.content else { panic!("{report}") };
    assert_eq!((lines.rows, lines.first.len(), lines.last.len()), (100, 3, 3));
    let val = lines.columns.iter().find(|c| c.name == "val_loss").unwrap();
    assert_eq!((val.count, val.min, val.max), (2, Some(8.0), Some(9.0)));
    assert_eq!(lines.last[2]["step"], 99);
    let loss = &lines.curves[0];
    assert!(loss.sparkline.starts_with('█') && loss.sparkline.ends_with('▁'), "{}", loss.sparkline);
    shows(&report, &["100 rows of JSON lines", "val_loss", "number", "row 98"]);
}

#[test]
fn a_bad_line_is_located() {
    let files = Files::new();
    let path = files.write("m", b"{\"a\":1}\n{\"a\":2}\n{\"a\":\n");
    let error = error(&path, "metrics.jsonl");
    assert!(error.contains("m:3:") && error.contains("not a JSON object"), "{error}");
}

#[test]
fn json_is_shown_whole_and_located_when_it_is_cut() {
    let files = Files::new();
    let report =
        look(&files.write("r", b"{\n \"bits_per_byte\": 2.1,\n \"samples\": [\"a\"]\n}\n"), "report.json");
    shows(&report, &["JSON object of 2 keys", "\"bits_per_byte\": 2.1"]);
    let error = error(&files.write("cut", b"{\n \"bits\": 2.1,\n \"sam"), "report.json");
    assert!(error.contains("cut off") && error.contains("cut:3:"), "{error}");
    shows(&look(&files.path("cut"), "notes"), &["text of 3 lines"]);
}

#[test]
fn text_is_counted_and_its_first_bad_byte_placed() {
    let files = Files::new();
    let report = look(&files.write("t", "Halo dunia\r\n\nsatu é tiga empat\n".as_bytes()), "t.txt");
    let Content::Text(text) = &report.content else { panic!("{report}") };
    assert_eq!((text.lines, text.words, text.blank_lines, text.crlf_lines), (3, 6, 1, 1));
    assert_eq!((text.longest_line, text.ascii, text.byte_order_mark), ((3, 17), false, false));
    let report = look(&files.write("b", b"fine\nse\xC3\xA9 \xFFbad\n\xFF\n"), "b.txt");
    shows(&report, &["not UTF-8: byte 10 (0xFF) at line 2, column 5; 2 lines"]);
}

#[test]
fn the_rest_is_named() {
    let files = Files::new();
    shows(&look(&files.write("e", b""), "e"), &["e: empty, 0 B"]);
    shows(&look(&files.write("s", b" \n "), "s"), &["text of 2 lines, 0 words"]);
    assert!(error(&files.path("absent"), "absent").contains("No such file"));
    let whole = fs::read(&files.documents()).unwrap();
    let cut = files.write("cut", &whole[..whole.len() - 20]);
    let error = error(&cut, "documents.parquet");
    assert!(error.contains("cut off or damaged") && error.contains("`documents.parquet`"), "{error}");
}

#[test]
fn an_artifact_shows_each_file_and_the_one_that_matters() {
    let files = Files::new();
    let named = vec![
        ("config.json".to_string(), files.write("1", b"{\"d_model\": 4}")),
        ("metrics.jsonl".to_string(), files.write("2", b"{\"loss\":1}\n{\"loss\":0.5}\n")),
        ("model.safetensors".to_string(), files.model("3")),
        ("tokenizer.json".to_string(), files.write("4", b"{\"model\": {\"vocab\": {\"a\": 0}}, ")),
    ];
    let report = inspect_files("two_stage:chat", &named, &Options::default()).unwrap();
    let Content::Files(found) = &report.content else { panic!("{report}") };
    assert_eq!(found.files.len(), 4);
    assert_eq!(found.main.as_ref().unwrap().name, "model.safetensors");
    shows(
        &report,
        &[
            "two_stage:chat: 4 files",
            "2 rows of JSON lines",
            "damaged: the JSON ends too early",
            "config          d_model=4",
        ],
    );
    let single = inspect_files("x", &named[1..2], &Options::default()).unwrap();
    assert!(matches!(single.content, Content::Lines(_)));
    let folder = look(files.folder.path(), "folder");
    shows(&folder, &["folder: 4 files"]);
}

proptest! {
    #[test]
    fn any_bytes_are_reported_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), sign in 0..5usize, name in 0..4usize) {
        let signs: [&[u8]; 5] = [b"", b"PAR1", b"\x10\0\0\0\0\0\0\0{", b"{\"model\":{\"vocab\":", b"[{\"a\":1}\n"];
        bytes.splice(0..0, signs[sign].iter().copied());
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let name = ["a", "a.json", "a.jsonl", "tokenizer.json"][name];
        if let Ok(report) = inspect(file.path(), name, &Options::default()) {
            prop_assert!(report.render(80).starts_with(name));
        }
    }
}
#[test]
fn flipped_bytes_are_reported_or_refused() {
    let files = Files::new();
    let mut refused = 0;
    for whole in
        [files.documents(), files.conversations(), files.shard("s")].map(|path| fs::read(&path).unwrap())
    {
        let mut rng = crate::base::Rng::new(1, "flipped");
        for _ in 0..100 {
            let mut bytes = whole.clone();
            let at = rng.index(bytes.len());
            bytes[at] ^= 1 << rng.index(8);
            let path = files.write("flipped", &bytes);
            refused += usize::from(inspect(&path, "f", &Options::default()).is_err());
            let table = crate::query::Source { name: "t".into(), files: vec![path] };
            let _ = crate::query::query(&[table], "SELECT * FROM t", None).map(|rows| rows.table(80));
        }
    }
    assert!(refused > 0, "a flipped bit of a footer is noticed");
}
