//! The model against PyTorch, against itself with a cache, and against files that are wrong.

use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::base::fs;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model")).join(name)
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn tiny() -> Config {
    Config { vocab_size: 11, d_model: 8, n_layer: 2, n_head: 2, d_ff: 16, seq_len: 6, dropout: 0.0 }
}

/// Made by `tests/fixtures/make_model_fixtures.py` with `transformers`' GPT-2.
#[test]
fn logits_loss_and_gradients_agree_with_pytorch() {
    let gpt = Gpt::load(&fixture("config.json"), &fixture("model.safetensors")).unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(&fixture("expected.json")).unwrap()).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let logits = gpt.forward(&rows, None).unwrap();
    let found = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let worst =
        found.iter().zip(numbers(&expected["logits"])).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "logits differ by {worst}");

    let targets = ids.iter().flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();
    let loss = cross_entropy(&logits, targets).unwrap();
    let difference = f64::from(loss.to_scalar::<f32>().unwrap()) - expected["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-3, "the loss differs by {difference}");

    let gradients = loss.backward().unwrap();
    for (name, expected) in expected["gradients"].as_object().unwrap() {
        let parameter = gpt.parameters().iter().find(|p| p.name == *name).unwrap_or_else(|| panic!("{name}"));
        let found = gradients.get(&parameter.var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = numbers(expected);
        let size = expected.iter().fold(0f32, |m, g| m.max(g.abs()));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4 * size.max(1.0), "{name}: gradients differ by {worst} of {size}");
    }
}

#[test]
fn parameters_are_counted_as_they_are_and_the_preset_is_as_named() {
    for preset in PRESETS.iter().filter(|p| p.config.d_model <= 128) {
        let gpt = Gpt::fresh(&preset.config, 1).unwrap();
        let sum: usize = gpt.parameters().iter().map(|p| p.var.elem_count()).sum();
        assert_eq!(sum, preset.config.parameters(), "{}", preset.name);
    }
    let config = preset("tinylm-1.5m").unwrap();
    assert_eq!(
        (config.vocab_size, config.d_model, config.n_layer, config.n_head, config.seq_len),
        (5_000, 128, 3, 4, 128)
    );
    assert_eq!(config.parameters(), 1_251_456);
    assert!(preset("tinylm-15m").unwrap_err().to_string().contains("did you mean `tinylm-1.5m`"));
}

#[test]
fn what_comes_later_changes_nothing_before_it() {
    let gpt = Gpt::fresh(&tiny(), 3).unwrap();
    let logits = |ids: &[u32]| gpt.forward(&[ids], None).unwrap().to_vec2::<f32>().unwrap();
    let (a, b) = (logits(&[1, 2, 3, 4, 5]), logits(&[1, 2, 3, 9, 10]));
    assert_eq!(a[..3], b[..3]);
    assert_ne!(a[3], b[3]);
}

#[test]
fn a_cache_gives_what_the_whole_gives() {
    let gpt = Gpt::fresh(&tiny(), 4).unwrap();
    let ids = [1, 5, 2, 7, 3, 9];
    let whole = gpt.forward(&[&ids], None).unwrap().to_vec2::<f32>().unwrap();
    for pieces in [vec![1, 1, 1, 1, 1, 1], vec![3, 1, 2], vec![6]] {
        let mut cache = Cache::default();
        let mut start = 0;
        for n in pieces {
            let next = gpt.next(&ids[start..start + n], &mut cache).unwrap();
            start += n;
            let worst = next.iter().zip(&whole[start - 1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "at {start}: {worst}");
        }
        assert!(gpt.next(&[1], &mut cache).is_err(), "there are {} positions", gpt.config.seq_len);
    }
}

#[test]
fn dropout_follows_its_label_and_its_rate() {
    let ones =
        candle_core::Tensor::ones((100, 100), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let config = Config { dropout: 0.25, ..tiny() };
    let gpt = Gpt::fresh(&config, 1).unwrap();
    let run = |label: &str| {
        let mut dropout = Dropout::new(0.25, 1, label);
        gpt.forward(&[&[1, 2, 3]], Some(&mut dropout)).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(run("a"), run("a"));
    assert_ne!(run("a"), run("b"));
    let masked = Dropout::new(0.25, 1, "rate").apply(&ones).unwrap();
    let kept = masked.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let zeros = kept.iter().filter(|x| **x == 0.0).count();
    assert!((2_300..2_700).contains(&zeros), "{zeros} of 10,000 dropped");
    assert!(kept.iter().all(|x| *x == 0.0 || (*x - 4.0 / 3.0).abs() < 1e-6));
}

#[test]
fn cross_entropy_is_its_plain_twin() {
    let device = candle_core::Device::Cpu;
    let data: Vec<f32> = (0..24).map(|i| ((i * 7919) % 13) as f32 / 3.0 - 2.0).collect();
    let logits =
        candle_core::Var::from_tensor(&candle_core::Tensor::from_vec(data, (4, 6), &device).unwrap())
            .unwrap();
    let fused = cross_entropy(&logits, vec![1, IGNORE, 5, 0]).unwrap();
    let rows = candle_core::Tensor::new(&[0u32, 2, 3], &device).unwrap();
    let targets = candle_core::Tensor::new(&[1u32, 5, 0], &device).unwrap();
    let plain = candle_nn::loss::cross_entropy(&logits.index_select(&rows, 0).unwrap(), &targets).unwrap();
    let plain = (plain * 3.0).unwrap();
    let gap = fused.to_scalar::<f32>().unwrap() - plain.to_scalar::<f32>().unwrap();
    assert!(gap.abs() < 1e-5, "{gap}");
    let gradient = |t: &candle_core::Tensor| {
        t.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let worst = gradient(&fused).iter().zip(gradient(&plain)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6, "{worst}");
}

/// A tiny model's two files.
fn saved() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = (dir.path().join(CONFIG_FILE), dir.path().join(WEIGHTS_FILE));
    let gpt = Gpt::fresh(&tiny(), 5).unwrap();
    fs::write(&config, gpt.config.to_json(Some(2), Some(3)).to_string().as_bytes()).unwrap();
    fs::write(&weights, &gpt.to_safetensors().unwrap()).unwrap();
    (dir, config, weights)
}

#[test]
fn a_saved_model_reads_back_and_saves_to_the_same_bytes() {
    let (_dir, config, weights) = saved();
    let gpt = Gpt::load(&config, &weights).unwrap();
    assert_eq!(gpt.config, tiny());
    assert_eq!(gpt.to_safetensors().unwrap(), fs::read(&weights).unwrap());
    assert_eq!(Gpt::fresh(&tiny(), 5).unwrap().to_safetensors().unwrap(), fs::read(&weights).unwrap());
    assert_ne!(Gpt::fresh(&tiny(), 6).unwrap().to_safetensors().unwrap(), fs::read(&weights).unwrap());
}

#[test]
fn wrong_files_are_refused_with_the_tensor_or_field_at_fault() {
    let (_dir, config, weights) = saved();
    let message = |config: &PathBuf, weights: &PathBuf| Gpt::load(config, weights).err().unwrap().to_string();
    let text = String::from_utf8(fs::read(&config).unwrap()).unwrap();
    fs::write(&config, text.replace("\"n_embd\":8", "\"n_embd\":16").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("tensor `transformer.wte.weight` has shape [11, 8]"));
    fs::write(&config, text.replace("\"n_layer\":2", "\"n_layer\":3").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("has no tensor `transformer.h.2.ln_1.weight`"));
    fs::write(&config, text.replace("\"gpt2\"", "\"llama\"").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("model_type is \"llama\""));
    fs::write(&config, text.replace("\"n_head\":2", "\"n_head\":3").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("3 heads do not divide d_model 8"));
    fs::write(&config, text.as_bytes()).unwrap();
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    assert!(message(&config, &weights).contains("is not a whole safetensors file"));
}

#[test]
fn an_extended_model_says_the_same_of_what_it_knew() {
    let gpt = Gpt::fresh(&tiny(), 8).unwrap();
    let wider = gpt.extended(14, 1).unwrap();
    assert_eq!(wider.config.vocab_size, 14);
    let logits = |g: &Gpt| g.forward(&[&[1, 2, 3]], None).unwrap().to_vec2::<f32>().unwrap();
    let (old, new) = (logits(&gpt), logits(&wider));
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(new.len(), 14);
        let worst = old.iter().zip(new).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }
    assert!(gpt.extended(5, 1).is_err());
}
