use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file;

use super::*;
use crate::base::{Files, fs};
use crate::kernel::BlockType;
use crate::model::format::{Container, ExportOptions, Outgoing};
use crate::model::{
    CONFIG_FILE, Config, Layout, Model, Role, Transformer, WEIGHTS_FILE, Yarn, gpt2, llama, modern,
};
use crate::tokenizer::Tokenizer;

/// Of 300 tokens.
pub(super) fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/byte_bpe.json");
    Tokenizer::load(&path).unwrap()
}

/// One of each architecture and of each way to differ in it; the last is of none that llama.cpp has.
pub(super) fn small() -> [Config; 5] {
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

pub(super) fn model(config: &Config) -> Model {
    Model { transformer: Transformer::fresh(config, 5), tokenizer: tokenizer() }
}

/// A model's folder with all matrices of `ty`, and its GGUF file.
pub(super) fn saved(config: &Config, ty: BlockType) -> (tempfile::TempDir, PathBuf, Model) {
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
        let mut expected = model.transformer.weights.to_vec();
        // Learned positions are f16.
        for x in &mut expected[read.layout.positions.clone().unwrap_or(0..0)] {
            *x = half::f16::from_f32(*x).to_f32();
        }
        assert!(read.weights[..] == expected[..], "{name}");
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

/// A whole model in one file, and the folder it is in.
fn exported(
    model: &Model,
    files: &Files,
    dtype: Option<BlockType>,
) -> crate::base::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions { dtype };
    Gguf.write(&Outgoing { model, files, options: &options, texts: &|_| Ok(()) }, dir.path())?;
    Ok(dir)
}

#[test]
fn a_whole_model_leaves_and_comes_back() {
    for config in &small()[..4] {
        let model = model(config);
        let dir = exported(&model, &Files::default(), None).unwrap();
        let files = Files::at(dir.path()).unwrap();
        assert_eq!(crate::model::format::detect(&files).unwrap().name(), "gguf");
        let read = Gguf.read(&files).unwrap();
        assert_eq!(known(&read.transformer.config), known(config));
        assert!(read.transformer.weights[..] == model.transformer.weights[..]);
        assert_eq!(read.blocks, None);
        let tokenizer = read.tokenizer.unwrap();
        assert_eq!(tokenizer.vocab_size(), model.tokenizer.vocab_size(), "without the tokens that fill up");
        let text = "Naïve cats — 12 of them!\r\n";
        assert_eq!(tokenizer.encode(text).unwrap(), model.tokenizer.encode(text).unwrap());
        assert_eq!(tokenizer.chat_template().unwrap(), model.tokenizer.chat_template().unwrap());
        assert!(!tokenizer.has_foreign_template());
        // As many tokens as the embedding has rows.
        let vocabulary = vocabulary_of(&File::open(files.only().unwrap()).unwrap()).unwrap().unwrap();
        assert_eq!((vocabulary.tokens.len(), vocabulary.types.len()), (1000, 1000));
        assert_eq!((vocabulary.tokens[999].as_str(), vocabulary.types[999]), ("[PAD999]", 5));
    }
}

#[test]
fn blocks_leave_as_they_are_and_types_that_do_not_fit_are_replaced() {
    let (dir, path, model) = saved(&small()[1], BlockType::Q5_0);
    let files = Files::at(dir.path()).unwrap();
    let own = File::open(&path).unwrap();
    let alone = |dtype| {
        let dir = exported(&model, &files, dtype).unwrap();
        let file = File::open(&dir.path().join(GGUF_FILE)).unwrap();
        (dir, file)
    };
    let (folder, file) = alone(None);
    for (ours, theirs) in own.tensors.iter().zip(&file.tensors) {
        assert_eq!((&ours.name, ours.ty), (&theirs.name, theirs.ty));
        assert_eq!(own.bytes(ours).unwrap(), file.bytes(theirs).unwrap());
    }
    let read = Gguf.read(&Files::at(folder.path()).unwrap()).unwrap();
    assert_eq!(read.blocks.as_deref(), Some(folder.path().join(GGUF_FILE).as_path()));
    assert!(read.transformer.is_quantized());
    let quantized = Model { transformer: read.transformer, tokenizer: tokenizer() };
    let again = quantized.save_blocks(folder.path(), &mut |_, _| unreachable!()).unwrap_err();
    assert_eq!(again.message(), "the weights are quantized already");
    let (numbers, layout) = (quantized.transformer.dequantized(), Layout::new(&small()[1]));
    for stored in stored(&small()[1], &layout) {
        let tensor = own.find(&stored.name).unwrap();
        assert!(numbers.numbers(&stored) == own.numbers(tensor).unwrap(), "{}", stored.name);
    }
    // Rows of 64 are no whole blocks of 256, and those of 256 are.
    let (_folder, file) = alone(Some(BlockType::Q4K));
    let ty = |name: &str| file.find(name).unwrap().ty;
    assert_eq!(ty("blk.0.attn_q.weight"), BlockType::Q5_0);
    assert_eq!(ty("blk.0.ffn_down.weight"), BlockType::Q4K);
    assert_eq!((ty("token_embd.weight"), ty("output_norm.weight")), (BlockType::Q5_0, BlockType::F32));
    let (_folder, file) = alone(Some(BlockType::F16));
    assert_eq!(file.value("general.file_type"), Some(&Value::U32(1)));
}

#[test]
fn numbers_that_a_type_cannot_hold_are_refused() {
    let mut model = model(&small()[0]);
    model.transformer.weights[7] = 70_000.0;
    let found = exported(&model, &Files::default(), Some(BlockType::F16)).unwrap_err().to_string();
    assert!(
        found.contains("`token_embd.weight`") && found.contains("number 7 is 70000, too large for f16"),
        "{found}"
    );
    model.transformer.weights[7] = f32::NAN;
    let found = exported(&model, &Files::default(), None).unwrap_err().to_string();
    assert!(
        found.contains("`token_embd.weight`") && found.contains("number 7 of a tensor is NaN"),
        "{found}"
    );
    let mixed = exported(&self::model(&small()[4]), &Files::default(), None).unwrap_err();
    assert_eq!(
        mixed.message(),
        "llama.cpp does not compute embeddings mixed into each block (`residual_mix`)"
    );
}

/// llama.cpp's own files, where the shared data is there.
#[test]
fn vocabularies_of_llama_cpp_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tok_llamacpp_vocab");
    for (name, tokens) in [("gpt-2", 50_257), ("mpt", 50_432), ("phi-3", 32_064)] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let Ok(file) = File::open(&path) else { return };
        let vocabulary = vocabulary_of(&file).unwrap().unwrap();
        assert_eq!((vocabulary.tokens.len(), vocabulary.types.len()), (tokens, tokens), "{name}");
        let found = Gguf.read(&Files::at(&path).unwrap()).err().unwrap().to_string();
        assert!(found.contains("the file holds a vocabulary, but no tensors"), "{found}");
    }
    let tokenizer = Gguf.read_tokenizer(&Files::at(&folder.join("ggml-vocab-gpt-2.gguf")).unwrap()).unwrap();
    assert_eq!(tokenizer.unwrap().encode("ied 4 ½ months").unwrap(), [798, 604, 25208, 1933]);
}
