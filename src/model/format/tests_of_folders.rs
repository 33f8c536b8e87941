//! Folders as Hugging Face has them: what is written, sharded weights, damaged files.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::hf::HuggingFace;
use super::weights::INDEX_FILE;
use super::*;
use crate::base::damage::damaged;
use crate::base::{Files, fs};
use crate::kernel::BlockType;
use crate::model::{CONFIG_FILE, Model, Transformer, WEIGHTS_FILE, gpt2};
use crate::tokenizer::{GENERATION_FILE, Names, Special, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/char.json");
    Tokenizer::load(&path).unwrap()
}

/// A folder as it is saved, and its model.
fn saved() -> (tempfile::TempDir, Model) {
    let tokenizer = tokenizer();
    let config = gpt2(tokenizer.vocab_size(), 4, 2, 1, 6);
    let model = Model { transformer: Transformer::fresh(&config, 5), tokenizer };
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path()).unwrap();
    (dir, model)
}

fn read(folder: &Path) -> Result<Imported> {
    HuggingFace.read(&Files::at(folder)?)
}

fn error(folder: &Path) -> String {
    read(folder).err().expect("an error").to_string()
}

fn json_at(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(&folder.join(name)).unwrap()).unwrap()
}

#[test]
fn a_saved_folder_is_whole_and_read_back_as_it_was() {
    let (dir, model) = saved();
    let files = Files::at(dir.path()).unwrap();
    let names: Vec<&str> = files.all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]);
    assert_eq!(
        json_at(dir.path(), GENERATION_FILE),
        json!({"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0})
    );
    let config = json_at(dir.path(), TOKENIZER_CONFIG_FILE);
    let expected = json!(["PreTrainedTokenizerFast", "<bos>", "<eos>", "<pad>", "<unk>", 6, false]);
    let keys = [
        "tokenizer_class",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "model_max_length",
        "clean_up_tokenization_spaces",
    ];
    assert_eq!(json!(keys.map(|key| config[key].clone())), expected);
    let read = read(dir.path()).unwrap();
    let own = read.tokenizer.unwrap();
    assert!(own.json() == model.tokenizer.json() && !own.has_foreign_template());
    for special in Special::ALL {
        assert_eq!(own.special(special), model.tokenizer.special(special));
    }
    let again = tempfile::tempdir().unwrap();
    Model { transformer: read.transformer, tokenizer: own }.save(again.path()).unwrap();
    for (name, path) in &files.all {
        assert!(fs::read(path).unwrap() == fs::read(&again.path().join(name)).unwrap(), "{name}");
    }
}

#[test]
fn weights_of_two_bytes_are_written_and_read() {
    let (_dir, mut model) = saved();
    for (ty, name, bits) in [(BlockType::F16, "float16", 10), (BlockType::Bf16, "bfloat16", 7)] {
        let dir = tempfile::tempdir().unwrap();
        model.save_as(dir.path(), ty).unwrap();
        assert_eq!(json_at(dir.path(), CONFIG_FILE)["torch_dtype"], name);
        let found = read(dir.path()).unwrap().transformer;
        for (x, y) in model.transformer.weights.iter().zip(&found.weights[..]) {
            // Half a unit of the last place, or of the smallest f16.
            assert!((x - y).abs() <= x.abs() * 0.5f32.powi(bits + 1) + 2f32.powi(-25), "{x} {y}");
        }
    }
    model.transformer.weights[3] = 1e5;
    let error = model.transformer.to_safetensors_as(BlockType::F16).unwrap_err().to_string();
    assert!(error.contains("tensor `transformer.wte.weight` has 100000, too large for f16"), "{error}");
    assert!(model.transformer.to_safetensors_as(BlockType::Bf16).is_ok());
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_their_tensor() {
    for ty in [BlockType::F32, BlockType::F16, BlockType::Bf16] {
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let (dir, mut model) = saved();
            model.save_as(dir.path(), ty).unwrap();
            // What is written is what there is; f16 refuses to write infinity.
            let path = dir.path().join(WEIGHTS_FILE);
            let mut bytes = fs::read(&path).unwrap();
            let size = ty.bytes(1);
            let at = bytes.len() - 3 * size;
            let mut encoded = vec![0; size];
            match ty {
                BlockType::F16 => encoded.copy_from_slice(&half::f16::from_f32(bad).to_le_bytes()),
                BlockType::Bf16 => encoded.copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes()),
                _ => encoded.copy_from_slice(&bad.to_le_bytes()),
            }
            bytes[at..at + size].copy_from_slice(&encoded);
            fs::write(&path, &bytes).unwrap();
            let found = error(dir.path());
            assert!(
                found.contains("tensor `transformer.") && found.contains("is NaN or infinite"),
                "{found}"
            );
            model.transformer.weights[0] = 1.0;
        }
    }
}

/// Divides the weights of a folder into two files with an index, and gives the index.
fn shard(folder: &Path) -> Value {
    let path = folder.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut map = json!({});
    for (i, part) in all.chunks(all.len() / 2 + 1).enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        part.iter().for_each(|(tensor, _)| map[tensor] = json!(name));
        let views = part.iter().map(|(name, view)| (name, view));
        fs::write(&folder.join(name), &safetensors::serialize(views, None).unwrap()).unwrap();
    }
    std::fs::remove_file(path).unwrap();
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": map});
    write_index(folder, &index);
    index
}

fn write_index(folder: &Path, index: &Value) {
    fs::write(&folder.join(INDEX_FILE), index.to_string().as_bytes()).unwrap();
}

#[test]
fn weights_in_several_files_are_read_as_the_index_says() {
    let (dir, model) = saved();
    let folder = dir.path();
    let index = shard(folder);
    assert!(read(folder).unwrap().transformer.weights[..] == model.transformer.weights[..]);
    let with = |tensor: &str, file: Value| {
        let mut index = index.clone();
        index["weight_map"][tensor] = file;
        write_index(folder, &index);
        error(folder)
    };
    let second = "model-00002-of-00002.safetensors";
    let in_first =
        index["weight_map"].as_object().unwrap().iter().find(|(_, file)| **file != second).unwrap().0;
    let cases = [
        (with(in_first, json!("model-00003.safetensors")), "has no file `model-00003.safetensors`"),
        (
            with(in_first, json!(second)),
            "is in `model-00001-of-00002.safetensors`, expected in `model-00002-of-00002.safetensors`",
        ),
        (with("more", json!(second)), "has no tensor `more`"),
        (with(in_first, json!("../config.json")), "expected the name of a file beside"),
        (with(in_first, json!("/etc/passwd")), "expected the name of a file beside"),
        (with(in_first, json!("..")), "expected the name of a file beside"),
        (with(in_first, json!(7)), "is 7, expected the name of a file beside"),
        (with(in_first, json!(CONFIG_FILE)), "is not a whole safetensors file"),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found}");
    }
    let mut less = index.clone();
    less["weight_map"].as_object_mut().unwrap().remove(in_first);
    write_index(folder, &less);
    let found = error(folder);
    assert!(found.contains(&format!("tensor `{in_first}` of")) && found.contains("is not named"), "{found}");
    for bad in [json!({}), json!({"weight_map": []}), json!([1])] {
        write_index(folder, &bad);
        assert!(error(folder).contains("`weight_map` is missing"), "{bad}");
    }
    fs::write(&folder.join(INDEX_FILE), br#"{"weight_map": {"a": "x", "a": "y"}}"#).unwrap();
    assert!(error(folder).contains("stands twice"));
    // The same tensor in both files.
    write_index(folder, &index);
    let bytes =
        [1, 2].map(|i| fs::read(&folder.join(format!("model-0000{i}-of-00002.safetensors"))).unwrap());
    let mut all: Vec<(String, TensorView)> = SafeTensors::deserialize(&bytes[0]).unwrap().tensors();
    all.extend(SafeTensors::deserialize(&bytes[1]).unwrap().tensors());
    let both = safetensors::serialize(all.iter().map(|(name, view)| (name, view)), None).unwrap();
    fs::write(&folder.join(second), &both).unwrap();
    let found = error(folder);
    assert!(found.contains("is in `model-00002-of-00002.safetensors`, expected in `model-00001"), "{found}");
}

#[test]
fn a_damaged_file_is_an_error_or_another_model() {
    let (dir, _) = saved();
    let (sharded, _) = saved();
    shard(sharded.path());
    let files = [
        (dir.path(), WEIGHTS_FILE),
        (dir.path(), CONFIG_FILE),
        (dir.path(), TOKENIZER_CONFIG_FILE),
        (dir.path(), GENERATION_FILE),
        (sharded.path(), INDEX_FILE),
    ];
    let mut refused = 0;
    for (folder, name) in files {
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        for (_, bytes) in damaged(&whole) {
            fs::write(&path, &bytes).unwrap();
            refused += usize::from(read(folder).is_err());
        }
        fs::write(&path, &whole).unwrap();
        read(folder).unwrap();
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn files_that_lie_are_refused_with_what_is_wrong() {
    let (dir, model) = saved();
    let weights = fs::read(&dir.path().join(WEIGHTS_FILE)).unwrap();
    let with = |name: &str, bytes: &[u8]| {
        let before = fs::read(&dir.path().join(name)).unwrap();
        fs::write(&dir.path().join(name), bytes).unwrap();
        let found = error(dir.path());
        fs::write(&dir.path().join(name), &before).unwrap();
        found
    };
    let tensor = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        let header =
            format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat()
    };
    let huge = [&u64::MAX.to_le_bytes(), &weights[8..]].concat();
    let cases = [
        (huge, "is not a whole safetensors file"),
        (weights[..weights.len() - 1].to_vec(), "is not a whole safetensors file"),
        (tensor("a", "F32", "[4]", "[0,99]"), "is not a whole safetensors file"),
        (tensor("a", "F32", "[4611686018427387904]", "[0,16]"), "is not a whole safetensors file"),
        (tensor("a", "X9", "[4]", "[0,16]"), "is not a whole safetensors file"),
        (tensor("a", "F32", "[4]", "[16,0]"), "is not a whole safetensors file"),
        (tensor("a", "F32", "[4]", "[0,16]"), "has no tensor `transformer.wte.weight`"),
        (tensor("transformer.wte.weight", "F32", "[4]", "[0,16]"), "has shape [4], expected"),
    ];
    for (bytes, expected) in cases {
        let found = with(WEIGHTS_FILE, &bytes);
        assert!(found.contains(expected), "{found}");
    }
    let typed = {
        let views: Vec<_> = SafeTensors::deserialize(&weights).unwrap().tensors();
        let view = |(name, view): &(String, TensorView)| {
            let data = [view.data(), view.data()].concat();
            (name.clone(), view.shape().to_vec(), data)
        };
        let owned: Vec<_> = views.iter().map(view).collect();
        let views = owned
            .iter()
            .map(|(name, shape, data)| (name, TensorView::new(Dtype::F64, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    };
    assert!(with(WEIGHTS_FILE, &typed).contains("is F64, expected F32, F16 or BF16"));
    let config = |key: &str, value: Value| {
        let mut all = json_at(dir.path(), CONFIG_FILE);
        all[key] = value;
        with(CONFIG_FILE, all.to_string().as_bytes())
    };
    assert!(config("n_layer", json!(3)).contains("has no tensor `transformer.h.2."));
    assert!(config("n_embd", json!(8)).contains("expected ["), "the wrong model");
    assert!(config("n_embd", json!(1u64 << 40)).contains("config.json"), "too large");
    let names = |json: Value| with(TOKENIZER_CONFIG_FILE, json.to_string().as_bytes());
    for (json, expected) in [
        (json!({"bos_token": 1}), "`bos_token` is 1, expected a token"),
        (json!({"bos_token": "<nowhere>"}), "the tokenizer has no such token"),
        (json!({"chat_template": {"a": 1}}), "`chat_template` is {\"a\":1}"),
        (json!({"role_tokens": {"user": "<bos>", "assistant": "<bos>"}}), "are to be the same token"),
        (json!(null), "is not a JSON object"),
    ] {
        let found = names(json);
        assert!(found.contains(expected), "{found}");
    }
    assert!(with(GENERATION_FILE, br#"{"eos_token_id": [3, -1]}"#).contains("`eos_token_id` is [3,-1]"));
    assert!(with(GENERATION_FILE, b"{").contains("is not JSON"));
    assert!(read(dir.path()).unwrap().transformer.weights[..] == model.transformer.weights[..]);
    assert_eq!(Names::default().ends, Vec::<u32>::new());
}
