//! Adapters of PEFT, made by `tests/fixtures/make_adapter_fixtures.py`: the same numbers give the same logits,
//! loss and gradients, and are written as they were read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;
use crate::base::fs;
use crate::kernel::Team;
use crate::model::tests::gap;
use crate::model::tests_with_transformers::numbers;
use crate::model::{CONFIG_FILE, Executor, IGNORE, Lora, Sequences, Target, Transformer, WEIGHTS_FILE};
use crate::model::{llama, modern};

/// Folders of fixtures, and their base models.
const ADAPTERS: [(&str, &str); 4] =
    [("gpt2", "gpt2"), ("gpt2_dense", "gpt2"), ("llama", "llama"), ("qwen3", "qwen3")];

fn folder(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind).join(name)
}

fn base(name: &str) -> Transformer {
    let folder = folder("model", name);
    Transformer::load(&folder.join(CONFIG_FILE), &folder.join(WEIGHTS_FILE)).unwrap()
}

fn with_adapter(base: Transformer, folder: &Path) -> Result<Transformer> {
    base.with_adapter_files(&folder.join(ADAPTER_CONFIG_FILE), &folder.join(ADAPTER_WEIGHTS_FILE))
}

/// Names, shapes and numbers of a file of adapters.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let numbers = |view: &TensorView| {
        view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), numbers(&view)))).collect()
}

fn logits(gpt: &Transformer, ids: &[u32], length: usize) -> Vec<f32> {
    let (mut logits, every) = (Vec::new(), vec![0; ids.len()]);
    let all = Sequences::new(ids, &every, length);
    let mut executor = Executor::forward_only(&gpt.config, Team::new(2));
    executor.each_logits(gpt, all, |_, some, _| logits.extend_from_slice(some));
    logits
}

#[test]
fn adapters_of_peft_give_its_logits_loss_and_gradients() {
    for (name, base_name) in ADAPTERS {
        let folder = folder("adapter", name);
        let mut gpt = with_adapter(base(base_name), &folder).unwrap();
        let expected: Value =
            serde_json::from_slice(&fs::read(&folder.join("expected.json")).unwrap()).unwrap();
        let rows: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let (ids, length) = (rows.concat(), rows[0].len());
        let targets: Vec<u32> =
            rows.iter().flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();

        let off = gap(&logits(&gpt, &ids, length), &numbers(&expected["logits"]));
        assert!(off < 1e-4, "{name}: logits are off by {off}");
        let mut gradient = vec![0.0; gpt.trained().len()];
        gpt.lora.as_mut().unwrap().dropout = 0.0;
        let mut executor = Executor::training(&gpt.config, Team::new(2));
        let loss = executor.gradient(&gpt, Sequences::new(&ids, &targets, length), 0, 0.0, &mut gradient);
        let expected_loss = expected["loss"].as_f64().unwrap();
        assert!((loss - expected_loss).abs() < 1e-4 * loss, "{name}: a loss of {loss}, not {expected_loss}");

        // Written as if they were the adapters, the gradients have PEFT's names and places.
        gpt.trained_mut().copy_from_slice(&gradient);
        let found = tensors(&gpt.adapter_files().unwrap().1);
        let gradients = expected["gradients"].as_object().unwrap();
        assert_eq!(found.len(), gradients.len(), "{name}");
        for (tensor, expected) in gradients {
            let (shape, found) = &found[tensor];
            let mut expected = numbers(expected);
            let mut found = found.clone();
            if name == "gpt2_dense" && tensor.contains("c_attn") {
                found = dense(shape, &found, gpt.lora.as_ref().unwrap().rank, tensor.contains("lora_A"));
            } else if name == "gpt2" && tensor.contains("c_attn.lora_B") {
                // PEFT also has gradients of what lies outside the blocks.
                expected.iter_mut().zip(&found).filter(|(_, own)| **own == 0.0).for_each(|(e, _)| *e = 0.0);
            }
            let off = gap(&found, &expected);
            assert!(off < 1e-4, "{name}: the gradient of {tensor} is off by {off}");
        }
    }
}

/// Gradients of three adapters as those of the one that they were made from: the same A in all, and the columns
/// of one B.
fn dense(shape: &[usize], found: &[f32], rank: usize, is_a: bool) -> Vec<f32> {
    let [rows, columns] = shape[..] else { panic!("a matrix") };
    if is_a {
        let at = |i: usize| (0..3).map(|part| found[part * rank * columns + i]).sum();
        return (0..rank * columns).map(at).collect();
    }
    let at = |i: usize| {
        let (row, r) = (i / rank, i % rank);
        found[row * columns + row / (rows / 3) * rank + r]
    };
    (0..rows * rank).map(at).collect()
}

#[test]
fn adapters_are_written_as_they_were_read() {
    for (name, base_name) in ADAPTERS {
        let folder = folder("adapter", name);
        let gpt = with_adapter(base(base_name), &folder).unwrap();
        let (config, bytes) = gpt.adapter_files().unwrap();
        let dir = tempfile::tempdir().unwrap();
        gpt.save_adapter(dir.path()).unwrap();
        let again = with_adapter(base(base_name), dir.path()).unwrap();
        assert_eq!(again.lora, gpt.lora, "{name}");
        assert!(again.weights[..] == gpt.weights[..], "{name}");
        if name == "gpt2_dense" {
            continue;
        }
        assert!(tensors(&bytes) == tensors(&fs::read(&folder.join(ADAPTER_WEIGHTS_FILE)).unwrap()), "{name}");
        let [own, theirs]: [Value; 2] = [config, fs::read(&folder.join(ADAPTER_CONFIG_FILE)).unwrap()]
            .map(|json| serde_json::from_slice(&json).unwrap());
        for (key, value) in
            own.as_object().unwrap().iter().filter(|(key, _)| *key != "base_model_name_or_path")
        {
            let names_of_modules = key == "target_modules" && name == "gpt2";
            assert!(
                names_of_modules || *value == theirs[key],
                "{name}: {key} is {value}, not {}",
                theirs[key]
            );
        }
    }
    let gpt = with_adapter(base("qwen3"), &folder("adapter", "qwen3")).unwrap();
    assert_eq!(gpt.lora.unwrap().targets, [Target::Q, Target::V, Target::Down]);
}

/// Some of the matrices of one tensor, of a type of file that PEFT does not know.
#[test]
fn targets_within_a_tensor_are_found_again() {
    let config = Config { residual_mix: true, n_kv_head: 1, ..llama(11, 8, 2, 2, 6) };
    for targets in [vec![Target::K], vec![Target::Q, Target::V, Target::Up], Target::of(&config)] {
        let lora = Lora { rank: 2, alpha: 3.5, dropout: 0.25, targets };
        let mut gpt = Transformer::fresh(&config, 1).with_adapters(&lora, 2).unwrap();
        gpt.trained_mut().iter_mut().enumerate().for_each(|(i, x)| *x += (i as f32).sin());
        let dir = tempfile::tempdir().unwrap();
        gpt.save_adapter(dir.path()).unwrap();
        let again = with_adapter(Transformer::fresh(&config, 1), dir.path()).unwrap();
        assert_eq!(again.lora, Some(lora));
        assert!(again.weights[..] == gpt.weights[..]);
    }
}

/// The error for the adapter `name` on a model, after `change` to its configuration and tensors.
fn refused(
    name: &str,
    base: Transformer,
    change: impl FnOnce(&mut Value, &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>),
) -> String {
    let (from, dir) = (folder("adapter", name), tempfile::tempdir().unwrap());
    let mut config = serde_json::from_slice(&fs::read(&from.join(ADAPTER_CONFIG_FILE)).unwrap()).unwrap();
    let mut all = tensors(&fs::read(&from.join(ADAPTER_WEIGHTS_FILE)).unwrap());
    change(&mut config, &mut all);
    let bytes: Vec<_> = all
        .iter()
        .map(|(name, (shape, x))| (name, shape, x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let written = safetensors::serialize(views, None).unwrap();
    fs::write(&dir.path().join(ADAPTER_WEIGHTS_FILE), &written).unwrap();
    fs::write(&dir.path().join(ADAPTER_CONFIG_FILE), config.to_string().as_bytes()).unwrap();
    with_adapter(base, dir.path()).err().expect("a refusal").to_string()
}

#[test]
fn adapters_that_don_t_fit_are_refused_with_the_tensor_or_key_at_fault() {
    let wider = || Transformer::fresh(&Config { d_ff: 24, ..llama(41, 32, 2, 4, 12) }, 1);
    let cases: Vec<(String, &str)> = vec![
        (
            refused("llama", wider(), |_, _| {}),
            "`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [3, 16], expected [3, 32]",
        ),
        (
            refused("llama", base("gpt2"), |_, _| {}),
            "the model has no place for the tensor `base_model.model.model.layers.0.mlp.down_proj.lora_A.weight`",
        ),
        (
            refused("llama", base("llama"), |_, all| {
                all.retain(|name, _| !name.contains("layers.1.mlp.up_proj"));
            }),
            "has no tensor `base_model.model.model.layers.1.mlp.up_proj.lora_A.weight`",
        ),
        (
            refused("llama", base("llama"), |_, all| {
                all.retain(|name, _| !name.contains("layers.1.mlp.up_proj.lora_B"));
            }),
            "has no tensor `base_model.model.model.layers.1.mlp.up_proj.lora_B.weight`, but",
        ),
        (refused("llama", base("llama"), |_, all| all.clear()), "has no tensors"),
        (refused("llama", base("llama"), |c, _| c["r"] = json!(2)), "expected [2, 16] with the rank 2"),
        (refused("llama", base("llama"), |c, _| c["r"] = json!(0)), "`r` is 0: must be 1 to"),
        (refused("llama", base("llama"), |c, _| c["use_dora"] = json!(true)), "`use_dora` is true: only"),
        (refused("llama", base("llama"), |c, _| c["bias"] = json!("all")), "`bias` is \"all\""),
        (refused("llama", base("llama"), |c, _| c["peft_type"] = json!("LOHA")), "`peft_type` is \"LOHA\""),
        (
            refused("llama", base("llama"), |c, _| c["alpha_pattern"] = json!({"q_proj": 12})),
            "alpha / rank of `model.layers.0.self_attn.q_proj` is 12 / 3, elsewhere 2",
        ),
        (
            refused("llama", base("llama"), |c, _| c["alpha_pattern"] = json!({"q_pro.*": 12})),
            "`alpha_pattern.q_pro.*` is the end of no module's name",
        ),
        (
            refused("gpt2", base("gpt2"), |_, all| {
                let name = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight";
                all.get_mut(name).unwrap().1[11] = 1.0;
            }),
            "has rank 12, and row 0 is not 0 in the columns 8..12 of `v`",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found}, not {expected}");
    }
}

/// For `make_adapter_fixtures.py --check`, which PEFT is needed for: a folder of each type of file, with the logits
/// of the adapted model.
#[test]
#[ignore = "writes folders below $TINYLM_MODELS, to be checked with PEFT"]
fn write_adapters_for_peft() {
    let into = PathBuf::from(std::env::var("TINYLM_MODELS").expect("TINYLM_MODELS names a folder"));
    let models = [
        ("gpt2", crate::model::gpt2(41, 32, 2, 4, 32), vec![Target::Q, Target::V, Target::O, Target::Down]),
        ("llama", Config { n_kv_head: 2, ..llama(41, 32, 2, 4, 32) }, vec![Target::Gate, Target::K]),
        ("qwen3", Config { n_kv_head: 1, ..modern(41, 32, 2, 4, 24, 32) }, Target::ALL.to_vec()),
    ];
    for (name, config, targets) in models {
        let lora = Lora { rank: 3, alpha: 5.0, dropout: 0.0, targets };
        let mut gpt = Transformer::fresh(&config, 1);
        gpt.weights.iter_mut().enumerate().for_each(|(i, x)| *x += 0.3 * (i as f32).sin());
        let folder = into.join(name);
        std::fs::create_dir_all(folder.join("adapter")).unwrap();
        let write = |file: &str, bytes: &[u8]| fs::write(&folder.join(file), bytes).unwrap();
        write(CONFIG_FILE, config.to_json(Some(2), Some(3)).unwrap().to_string().as_bytes());
        write(WEIGHTS_FILE, &gpt.to_safetensors().unwrap());
        let mut gpt = gpt.with_adapters(&lora, 1).unwrap();
        gpt.trained_mut().iter_mut().enumerate().for_each(|(i, x)| *x += 0.3 * (i as f32).cos());
        gpt.save_adapter(&folder.join("adapter")).unwrap();
        let ids: Vec<u32> = (0..32).map(|i| i * 7 % 41).collect();
        let logits = logits(&gpt, &ids, ids.len());
        write("logits.json", json!({ "ids": ids, "logits": logits }).to_string().as_bytes());
    }
}
