use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file;

use super::*;
use crate::base::{Files, fs};
use crate::kernel::BlockType;
use crate::model::{
    CONFIG_FILE, Config, Layout, Model, Role, Transformer, WEIGHTS_FILE, Yarn, gpt2, llama, modern,
};
use crate::tokenizer::Tokenizer;

/// Of 300 tokens.
fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/byte_bpe.json");
    Tokenizer::load(&path).unwrap()
}

/// One of each architecture and of each way to differ in it; the last is of none that llama.cpp has.
fn small() -> [Config; 5] {
    const V: usize = 1000;
    let yarn = Yarn {
        factor: 4.0,
        original_seq_len: 2,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: Some(1.5),
    };
    let grouped = Config { n_kv_head: 1, tied: false, rope_base: 5e5, ..llama(V, 64, 2, 2, 6) };
    let biased = Config { attn_bias: true, mlp_bias: true, d_head: 6, ..llama(V, 32, 1, 2, 6) };
    let scaled = Config { d_head: 6, rope_scaling: Some(yarn), ..modern(V, 32, 2, 2, 64, 6) };
    let mixed = Config { residual_mix: true, head_bias: true, ..gpt2(V, 32, 1, 2, 6) };
    [gpt2(V, 32, 2, 2, 6), grouped, biased, scaled, mixed]
}

fn model(config: &Config) -> Model {
    Model { transformer: Transformer::fresh(config, 5), tokenizer: tokenizer() }
}

/// A model's folder with all matrices of `ty`, and its GGUF file.
fn saved(config: &Config, ty: BlockType) -> (tempfile::TempDir, PathBuf, Model) {
    let (dir, model) = (tempfile::tempdir().unwrap(), model(config));
    let mut choose = |stored: &crate::model::format::Stored, rows: &[f32]| {
        let ty = ty.for_rows_of(*stored.shape.last().unwrap());
        Ok((ty, ty.encode(rows)?))
    };
    model.save_blocks(dir.path(), &mut choose).unwrap();
    let path = dir.path().join(GGUF_FILE);
    (dir, path, model)
}

/// Everything but what a GGUF file says nothing of.
fn known(config: &Config) -> Config {
    // A quotient of f32.
    let rounded = |factor: f64| (factor * 1e6).round() / 1e6;
    let scaling =
        config.rope_scaling.map(|y| Yarn { attention_factor: y.attention_factor.map(rounded), ..y });
    Config { dropout: 0.0, init: crate::model::Init::Gpt2, rope_scaling: scaling, ..config.clone() }
}

#[test]
fn every_architecture_reads_back_from_a_folder() {
    let names = ["gpt2", "llama", "llama", "qwen3", "tinylm"];
    for (config, name) in small().iter().zip(names) {
        let (dir, path, model) = saved(config, BlockType::F32);
        let file = File::open(&path).unwrap();
        assert_eq!(file.value("general.architecture"), Some(&Value::from(name)));
        assert_eq!(known(&config_of(&file).unwrap()), known(config));
        let read = Transformer::open(&Files::at(dir.path()).unwrap()).unwrap();
        assert_eq!(read.config, *config);
        assert!(read.weights[..] == model.transformer.weights[..], "{name}");
    }
}

#[test]
fn tensors_hold_every_number_once() {
    for config in small() {
        let layout = Layout::new(&config);
        let (mut seen, mut names) = (vec![0; layout.len], BTreeSet::new());
        for tensor in stored(&config, &layout) {
            assert_eq!(tensor.places(&layout).count(), tensor.shape.iter().product::<usize>());
            tensor.places(&layout).for_each(|place| seen[place] += 1);
            assert!(names.insert(tensor.name));
        }
        assert!(seen.iter().all(|n| *n == 1), "{}", config.describe());
    }
}

/// A reader that is not ours sees the same.
#[test]
fn candle_reads_what_is_written() {
    for ty in [BlockType::F32, BlockType::Q8_0, BlockType::Q4_0] {
        let (_dir, path, model) = saved(&small()[1], ty);
        let mut file = fs::open(&path).unwrap();
        let read = gguf_file::Content::read(&mut file).unwrap();
        assert_eq!(read.metadata["llama.attention.head_count_kv"].to_u32().unwrap(), 1);
        let expected_type = if ty == BlockType::F32 { 0 } else { ty.id() };
        let file_type = read.metadata["general.file_type"].to_u32().unwrap();
        assert_eq!(file_type, if ty == BlockType::Q8_0 { 7 } else { expected_type });
        let layout = &model.transformer.layout;
        for stored in stored(&model.transformer.config, layout) {
            let tensor = read.tensor(&mut file, &stored.name, &Device::Cpu).unwrap();
            assert_eq!(tensor.shape().dims(), stored.shape);
            let found: Vec<f32> =
                tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mut expected = model.transformer.numbers(&stored);
            if matches!(layout.parameters[stored.parameter].role, Role::Matrix | Role::Embedding | Role::Head)
            {
                let bytes = ty.encode(&expected).unwrap();
                ty.decode(&bytes, &mut expected);
            }
            assert!(found == expected, "{}", stored.name);
        }
    }
}

/// Meta's order of queries and keys: pairs side by side.
#[test]
fn queries_of_llama_are_interleaved_and_of_qwen3_are_not() {
    let rows = |config: &Config| {
        let layout = Layout::new(config);
        let queries = stored(config, &layout).into_iter().find(|s| s.name == "blk.0.attn_q.weight").unwrap();
        (0..8).map(|row| queries.column(row)).collect::<Vec<_>>()
    };
    assert_eq!(rows(&Config { d_head: 6, ..llama(9, 12, 1, 2, 6) }), [0, 3, 1, 4, 2, 5, 6, 9]);
    assert_eq!(rows(&Config { d_head: 6, ..modern(9, 12, 1, 2, 8, 6) }), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn blocks_of_another_file_are_copied_as_they_are() {
    let config = &small()[2];
    let (_dir, path, model) = saved(config, BlockType::Q5_1);
    let other = tempfile::tempdir().unwrap();
    model.save_blocks_of(&path, other.path()).unwrap();
    assert_eq!(fs::read(&other.path().join(GGUF_FILE)).unwrap(), fs::read(&path).unwrap());
    // A file may lack a bias, which is then 0.
    let (file, without) = (File::open(&path).unwrap(), other.path().join("without.gguf"));
    let kept: Vec<_> = file.tensors.iter().filter(|t| t.name != "blk.0.attn_output.bias").collect();
    let declared: Vec<_> =
        kept.iter().map(|t| Declared { name: t.name.clone(), shape: t.shape.clone() }).collect();
    write(&without, &file.metadata, &declared, &mut |i| Ok((kept[i].ty, file.bytes(kept[i])?))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_blocks_of(&without, folder.path()).unwrap();
    assert_eq!(fs::read(&folder.path().join(GGUF_FILE)).unwrap(), fs::read(&path).unwrap(), "it was 0");
}

#[test]
fn a_small_model_is_small() {
    let config = gpt2(5_000, 128, 3, 4, 128);
    let (dir, path, model) = saved(&config, BlockType::Q8_0);
    let matrices: usize = {
        let matrix = |r: Role| matches!(r, Role::Matrix | Role::Embedding | Role::Head);
        model.transformer.parameters().iter().filter(|p| matrix(p.role)).map(|p| p.range.len()).sum()
    };
    let vectors = model.transformer.layout.len - matrices;
    let expected = matrices * 34 / 32 + vectors * 4;
    let found = fs::size(&path).unwrap() as usize;
    assert!(found < expected + 6_000, "{found} bytes, {expected} of them numbers");
    assert!(!dir.path().join(WEIGHTS_FILE).exists());
}

#[test]
fn a_folder_of_two_models_is_refused() {
    let [one, other, ..] = small();
    let (dir, _, _) = saved(&one, BlockType::F32);
    let open = || Transformer::open(&Files::at(dir.path()).unwrap()).err().unwrap().to_string();
    fs::write(&dir.path().join(WEIGHTS_FILE), b"").unwrap();
    assert!(open().contains("has a `model.safetensors` and a `model.gguf`"));
    fs::remove(&dir.path().join(WEIGHTS_FILE)).unwrap();
    let configure = |config: &Config| {
        let json = config.to_json(None, None).unwrap().to_string();
        fs::write(&dir.path().join(CONFIG_FILE), json.as_bytes()).unwrap();
    };
    configure(&other);
    let found = open();
    assert!(
        found.contains("`general.architecture` is \"gpt2\", and by the `config.json` beside \"llama\""),
        "{found}"
    );
    configure(&Config { n_layer: 3, ..one });
    let found = open();
    assert!(found.contains("`gpt2.block_count` is 2, and by the `config.json` beside 3"), "{found}");
}
