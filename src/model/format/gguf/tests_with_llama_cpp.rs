//! Models whose log-probabilities llama.cpp is to give, for `tests/fixtures/check_gguf.py`.

use std::path::Path;

use candle_core::Device;
use serde_json::json;

use super::tests::{small, tokenizer};
use super::*;
use crate::base::{Files, Rng, fs};
use crate::kernel::BlockType;
use crate::model::format::{Container, ExportOptions, Outgoing};
use crate::model::reference::Reference;
use crate::model::{Config, Model, Sequences, Transformer, gpt2, modern};

/// A model whose logits are spread, so that a mistake shows.
fn spread(config: &Config) -> Transformer {
    let mut model = Transformer::fresh(config, 5);
    for p in model.layout.parameters.clone() {
        let mut rng = Rng::new(9, &p.name);
        let scale = if p.shape.len() == 1 { 0.3 } else { 2.0 / (*p.shape.last().unwrap() as f64).sqrt() };
        model.weights[p.range.clone()].iter_mut().for_each(|x| {
            *x = if p.shape.len() == 1 { *x } else { 0.0 } + (scale * rng.normal()) as f32;
        });
    }
    model
}

/// The log-probabilities after each token.
fn log_probabilities(model: &Transformer, ids: &[u32]) -> Vec<Vec<f32>> {
    let reference = Reference::new(model, &Device::Cpu).unwrap();
    let logits = reference.logits(model, Sequences::new(ids, ids, ids.len()), None).unwrap();
    let logits = logits.reshape((ids.len(), model.config.vocab_size)).unwrap();
    candle_nn::ops::log_softmax(&logits, 1).unwrap().to_vec2().unwrap()
}

#[test]
#[ignore = "writes target/gguf"]
fn write_models_for_llama_cpp() {
    let folder = Path::new("target/gguf");
    let wide = |config: Config| Config { d_model: 256, d_ff: 512, seq_len: 64, ..config };
    let [_, grouped, biased, scaled, _] = small();
    let scaled = Config {
        rope_scaling: scaled.rope_scaling.map(|y| crate::model::Yarn { original_seq_len: 16, ..y }),
        ..scaled
    };
    let odd_heads =
        Config { n_head: 3, n_kv_head: 3, d_head: 10, tied: false, ..wide(modern(1000, 256, 2, 2, 512, 64)) };
    let configs = [
        ("gpt2", wide(gpt2(1000, 256, 2, 4, 64))),
        ("llama", wide(grouped)),
        ("llama_biased", Config { n_head: 3, n_kv_head: 3, ..wide(biased) }),
        ("llama_yarn", Config { qk_norm: false, ..wide(scaled.clone()) }),
        ("qwen3", wide(modern(1000, 256, 2, 4, 512, 64))),
        ("qwen3_yarn", wide(scaled)),
        ("qwen3_odd_heads", odd_heads),
    ];
    let mut rng = Rng::new(3, "ids");
    let ids: Vec<u32> = (0..40).map(|_| 10 + rng.below(280) as u32).collect();
    let mut all = Vec::new();
    for (name, config) in configs {
        let model = Model { transformer: spread(&config), tokenizer: tokenizer() };
        for ty in [BlockType::F32, BlockType::Q8_0, BlockType::Q4K] {
            let (options, name) = (ExportOptions { dtype: Some(ty) }, format!("{name}-{}", ty.name()));
            let into = folder.join(&name);
            let out =
                Outgoing { model: &model, files: &Files::default(), options: &options, texts: &|_| Ok(()) };
            Gguf.write(&out, &into).unwrap();
            let read = Gguf.read(&Files::at(&into).unwrap()).unwrap();
            let found = log_probabilities(&read.transformer.dequantized(), &ids);
            all.push(json!({"name": name, "type": ty.name(), "ids": ids, "log_probabilities": found}));
        }
    }
    fs::write(&folder.join("expected.json"), &serde_json::to_vec(&all).unwrap()).unwrap();
}
