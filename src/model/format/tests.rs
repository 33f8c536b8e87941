use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::base::{Rng, fs};
use crate::model::{
    CONFIG_FILE, Init, Norm, PRESETS, Placement, Position, Transformer, WEIGHTS_FILE, Yarn, gpt2, llama,
    modern, preset,
};

fn back(config: &Config) -> Config {
    // As text, as it goes through a file.
    let text = config.to_json(Some(1), None).unwrap().to_string();
    let read = read("config.json", &serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(read.notes, Vec::<String>::new(), "{text}");
    assert_eq!(read.format.model_type(), of(config).model_type());
    read.config
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.index(of.len())]
}

/// Half of them with the parts of one of the foreign types, so that each occurs.
fn random(rng: &mut Rng) -> Config {
    let n_head = pick(rng, &[1, 2, 4, 6]);
    let (v, c, l, t) = (1 + rng.index(99), n_head * (1 + rng.index(9)), 1 + rng.index(3), 1 + rng.index(99));
    let flag = |rng: &mut Rng| rng.index(2) == 0;
    let base = match rng.index(4) {
        0 => gpt2(v, c, l, n_head, t),
        1 => llama(v, c, l, n_head, t),
        2 => modern(v, c, l, n_head, 7, t),
        _ => Config {
            position: pick(rng, &[Position::Sinusoidal, Position::None, Position::Rotary, Position::Learned]),
            norm: pick(rng, &[Norm::LayerNorm, Norm::RmsNorm]),
            norm_weight: flag(rng),
            norm_bias: flag(rng),
            placement: pick(rng, &[Placement::Pre, Placement::Post]),
            qk_norm: flag(rng),
            embed_norm: flag(rng),
            embed_scale: flag(rng),
            residual_mix: flag(rng),
            gated: flag(rng),
            head_bias: flag(rng),
            logit_cap: flag(rng).then_some(1.0 + rng.uniform() * 30.0),
            ..gpt2(v, c, l, n_head, t)
        },
    };
    let rotary = base.position == Position::Rotary;
    let yarn = Yarn {
        factor: 1.0 + 8.0 * rng.uniform(),
        original_seq_len: 1 + rng.index(999),
        beta_fast: 30.0 + rng.uniform(),
        beta_slow: 0.5 + rng.uniform(),
        attention_factor: flag(rng).then_some(rng.uniform() + 0.1),
    };
    Config {
        n_kv_head: if flag(rng) { base.n_kv_head } else { 1 },
        d_head: if flag(rng) { base.d_head } else { 2 + 2 * rng.index(9) },
        d_ff: 1 + rng.index(99),
        dropout: rng.uniform() * 0.9,
        norm_eps: 1e-6 + rng.uniform() * 1e-4,
        rope_base: if flag(rng) { 1.5 + 1e6 * rng.uniform() } else { 10_000.0 },
        rope_scaling: (rotary && flag(rng)).then_some(yarn),
        activation: pick(rng, &[Activation::GeluTanh, Activation::Gelu, Activation::Relu2, Activation::Silu]),
        attn_bias: if flag(rng) { base.attn_bias } else { flag(rng) },
        mlp_bias: if flag(rng) { base.mlp_bias } else { flag(rng) },
        tied: flag(rng),
        init: pick(rng, &[Init::Gpt2, Init::Normal, Init::Xavier, Init::ZeroOutput]),
        ..base
    }
}

#[test]
fn every_architecture_reads_back_as_it_was_written() {
    for preset in &PRESETS {
        assert_eq!(back(&preset.config), preset.config, "{}", preset.name);
    }
    let mut rng = Rng::new(1, "configs");
    let mut types = BTreeSet::new();
    for _ in 0..2_000 {
        let config = random(&mut rng);
        if config.validate().is_ok() {
            types.insert(of(&config).model_type());
            assert_eq!(back(&config), config);
        }
    }
    assert_eq!(types.len(), FORMATS.len(), "{types:?}");
}

/// Every number of the buffer has exactly one place in a file, whatever the type.
#[test]
fn tensors_hold_every_number_once() {
    let mut rng = Rng::new(2, "configs");
    for config in std::iter::repeat_with(|| random(&mut rng)).filter(|c| c.validate().is_ok()).take(100) {
        let layout = Layout::new(&config);
        let mut seen = vec![0; layout.len];
        let stored = of(&config).tensors(&layout);
        for tensor in &stored {
            assert_eq!(tensor.places(&layout).count(), tensor.shape.iter().product::<usize>());
            tensor.places(&layout).for_each(|place| seen[place] += 1);
        }
        assert!(seen.iter().all(|n| *n == 1), "{}", of(&config).model_type());
        let names: BTreeSet<&str> = stored.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names.len(), stored.len());
    }
}

#[test]
fn presets_leave_as_the_type_that_holds_them() {
    let type_of = |name: &str| of(preset(name).unwrap()).model_type();
    assert_eq!(type_of("tinylm-1.5m"), "gpt2");
    assert_eq!(type_of("slm-50m"), "gpt2");
    assert_eq!(type_of("stories-260k"), "llama");
    assert_eq!(type_of("gqa-104m"), "llama");
    assert_eq!(type_of("modern-medium"), "qwen3");
    // Sinusoidal positions; no biases of attention; a residual mix.
    for name in ["conversational", "transformer-tiny", "go-tiny", "record-1.5m"] {
        assert_eq!(type_of(name), "tinylm", "{name}");
    }
}

/// The bytes that were written when GPT-2's was the only type.
#[test]
fn gpt2s_configuration_is_what_it_was() {
    let json = preset("tiny").unwrap().to_json(Some(2), Some(3)).unwrap();
    assert_eq!(
        json.to_string(),
        concat!(
            r#"{"architectures":["GPT2LMHeadModel"],"model_type":"gpt2","vocab_size":512,"n_positions":64,"#,
            r#""n_embd":32,"n_layer":2,"n_head":2,"n_inner":128,"activation_function":"gelu_new","#,
            r#""layer_norm_epsilon":0.00001,"resid_pdrop":0.1,"embd_pdrop":0.1,"attn_pdrop":0.1,"#,
            r#""tie_word_embeddings":true,"bos_token_id":2,"eos_token_id":3,"torch_dtype":"float32"}"#
        )
    );
}

fn error(value: &Value) -> String {
    let Err(error) = read("config.json", value) else { panic!("{value} was read") };
    error.to_string()
}

fn note(value: &Value) -> String {
    read("config.json", value).unwrap().notes.join("\n")
}

fn with(base: &Config, key: &str, value: Value) -> Value {
    let mut json = base.to_json(Some(1), Some(2)).unwrap();
    json[key] = value;
    json
}

#[test]
fn what_cannot_be_computed_is_refused_by_its_key() {
    let (gpt2, llama, qwen3) =
        (preset("tiny").unwrap(), preset("stories-260k").unwrap(), preset("modern-1.5m").unwrap());
    let cases = [
        (
            gpt2,
            "activation_function",
            json!("relu"),
            r#"`activation_function` is "relu": what is computed is"#,
        ),
        (gpt2, "scale_attn_weights", json!(false), "`scale_attn_weights` is false"),
        (gpt2, "scale_attn_by_inverse_layer_idx", json!(true), "`scale_attn_by_inverse_layer_idx` is true"),
        (gpt2, "n_embd", json!("x"), r#"`n_embd` is "x": expected a whole number"#),
        (gpt2, "n_head", json!(3), "`n_head` is 3: these heads do not divide `n_embd` 32"),
        (gpt2, "n_layer", Value::Null, "`n_layer` is null: expected a whole number"),
        (gpt2, "layer_norm_epsilon", json!(0), "`layer_norm_epsilon` must be above 0"),
        (gpt2, "model_type", json!("gptneo"), "`model_type` is \"gptneo\": expected one of `gpt2`"),
        (llama, "partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5"),
        (llama, "sliding_window", json!(64), "`sliding_window` is 64"),
        (llama, "quantization_config", json!({"bits": 4}), "`quantization_config` is"),
        (llama, "num_key_value_heads", json!(3), "`num_key_value_heads` is 3, which does not divide"),
        (llama, "rope_theta", json!(5.0), "`rope_parameters.rope_theta` is 10000.0: the file has another"),
        (
            llama,
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "`rope_parameters.rope_type` is \"llama3\"",
        ),
        (
            llama,
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "`rope_scaling.type` is \"linear\"",
        ),
        (llama, "rope_parameters", json!({"full_attention": {}}), "`rope_parameters.full_attention` is {}"),
        (qwen3, "mlp_bias", json!(true), "`mlp_bias` is true"),
        (
            qwen3,
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "`layer_types` is [\"full_attention\",\"sliding_attention\"]",
        ),
        (qwen3, "tinylm", json!({"mix": 1}), "`tinylm.mix` is 1: expected `init`, `rope_base`"),
        (qwen3, "tinylm", json!({"init": "zeros"}), "`tinylm.init` is \"zeros\": unknown variant"),
    ];
    for (base, key, value, expected) in cases {
        let found = error(&with(base, key, value));
        assert!(found.contains(&format!("`config.json`: {expected}")), "{found}");
    }
    let record = preset("record-1.5m").unwrap();
    assert!(error(&with(record, "norm", json!("batch"))).contains("`norm` is \"batch\": unknown variant"));
    assert!(error(&with(record, "logit_cap", json!(0.5))).contains("`logit_cap` must be at least 1"));
    let mut less = record.to_json(None, None).unwrap();
    less.as_object_mut().unwrap().remove("qk_norm");
    assert!(error(&less).contains("`qk_norm` is missing"));
    assert!(error(&json!([1])).contains("is not a JSON object"));
}

#[test]
fn windows_that_no_layer_uses_are_none() {
    let qwen3 = preset("modern-1.5m").unwrap();
    for (key, value) in [("sliding_window", json!(16)), ("layer_types", json!(vec!["full_attention"; 3]))] {
        assert_eq!(Config::from_json("c", &with(qwen3, key, value)).unwrap(), *qwen3);
    }
    let mut json = with(qwen3, "sliding_window", json!(16));
    json["use_sliding_window"] = json!(true);
    assert_eq!(Config::from_json("c", &json).unwrap(), *qwen3, "the first 28 layers are without");
    json["max_window_layers"] = json!(2);
    assert!(error(&json).contains("`sliding_window` is 16"));
}

#[test]
fn keys_that_nobody_knows_and_dropout_that_differs_are_told() {
    let tiny = preset("tiny").unwrap();
    assert_eq!(
        note(&with(tiny, "attn_gate", json!(true))),
        "`config.json` has a key that is not known and not used: `attn_gate`"
    );
    assert_eq!(note(&with(tiny, "use_cache", json!(true))), "");
    assert!(
        note(&with(tiny, "attn_pdrop", json!(0.0))).contains("`attn_pdrop` 0: dropout is 0.1 everywhere")
    );
}

/// What `transformers` 4 wrote.
#[test]
fn older_keys_of_rotary_positions_are_read() {
    let yarn = json!({
        "vocab_size": 99, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 256, "model_type": "llama",
        "rope_theta": 500000.0, "pretraining_tp": 1,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                         "mscale": 1.0, "mscale_all_dim": 0.5},
    });
    let config = Config::from_json("config.json", &yarn).unwrap();
    assert_eq!((config.rope_base, config.norm_eps, config.d_head, config.tied), (500_000.0, 1e-6, 8, false));
    let scaling = config.rope_scaling.unwrap();
    assert_eq!((scaling.factor, scaling.original_seq_len, scaling.beta_fast), (4.0, 64, 32.0));
    let ln4 = 4f64.ln();
    let factor = (0.1 * ln4 + 1.0) / (0.05 * ln4 + 1.0);
    assert!((scaling.attention_factor() - factor).abs() < 1e-12);
}

/// The two files of a model of `config`, and the model.
fn saved(config: &Config) -> (tempfile::TempDir, PathBuf, PathBuf, Transformer) {
    let dir = tempfile::tempdir().unwrap();
    let (path, weights) = (dir.path().join(CONFIG_FILE), dir.path().join(WEIGHTS_FILE));
    let gpt = Transformer::fresh(config, 5);
    fs::write(&path, config.to_json(Some(2), Some(3)).unwrap().to_string().as_bytes()).unwrap();
    fs::write(&weights, &gpt.to_safetensors().unwrap()).unwrap();
    (dir, path, weights, gpt)
}

fn small() -> [Config; 4] {
    let mixed = Config { residual_mix: true, tied: false, ..llama(11, 8, 2, 2, 6) };
    let grouped = Config { n_kv_head: 1, attn_bias: true, mlp_bias: true, ..llama(11, 8, 2, 2, 6) };
    [gpt2(11, 8, 2, 2, 6), grouped, Config { d_head: 6, ..modern(11, 8, 2, 2, 5, 6) }, mixed]
}

#[test]
fn weights_of_every_type_read_back_and_save_to_the_same_bytes() {
    for config in small() {
        let (_dir, path, weights, gpt) = saved(&config);
        let read = Transformer::load(&path, &weights).unwrap();
        assert_eq!(read.config, config);
        assert!(read.weights[..] == gpt.weights[..], "{}", config.describe());
        assert_eq!(read.to_safetensors().unwrap(), fs::read(&weights).unwrap());
    }
}

type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Writes the file again with what `change` makes of its tensors.
fn rewrite(weights: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut tensors: Tensors = file.tensors().into_iter().map(owned).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(weights, &safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_file_of_bf16_without_prefixes_and_with_masks_is_read() {
    let config = gpt2(11, 8, 2, 2, 6);
    let (_dir, path, weights, gpt) = saved(&config);
    rewrite(&weights, |tensors| {
        for (name, dtype, _, data) in tensors.iter_mut() {
            *name = name.strip_prefix("transformer.").unwrap().to_string();
            *dtype = safetensors::Dtype::BF16;
            *data = data.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
        }
        tensors.push(("h.0.attn.bias".into(), safetensors::Dtype::U8, vec![1, 1, 6, 6], vec![1; 36]));
    });
    let read = Transformer::load(&path, &weights).unwrap();
    for (found, whole) in read.weights.iter().zip(&gpt.weights[..]) {
        assert_eq!(found.to_bits(), whole.to_bits() & 0xffff_0000);
    }
}

#[test]
fn a_tied_output_must_be_the_embedding_and_an_untied_one_be_there() {
    let (_dir, path, weights, _) = saved(&gpt2(11, 8, 2, 2, 6));
    let head = |tensors: &mut Tensors| {
        let mut head = tensors.iter().find(|t| t.0.ends_with("wte.weight")).unwrap().clone();
        head.0 = "lm_head.weight".into();
        tensors.push(head);
    };
    rewrite(&weights, head);
    assert!(Transformer::load(&path, &weights).is_ok());
    rewrite(&weights, |tensors| tensors.iter_mut().find(|t| t.0 == "lm_head.weight").unwrap().3[2] ^= 1);
    let message = |path, weights| Transformer::load(path, weights).err().unwrap().to_string();
    assert!(message(&path, &weights).contains("`lm_head.weight` is not the token embedding"));

    let (_dir, path, weights, _) = saved(&Config { tied: false, ..gpt2(11, 8, 2, 2, 6) });
    rewrite(&weights, |tensors| tensors.retain(|t| t.0 != "lm_head.weight"));
    let found = message(&path, &weights);
    assert!(found.contains("has no tensor `lm_head.weight`"), "{found}");
}

#[test]
fn a_key_that_stands_twice_is_refused_with_its_place() {
    let (_dir, path, weights, _) = saved(&gpt2(11, 8, 2, 2, 6));
    fs::write(&path, b"{\"model_type\": \"gpt2\",\n \"n_head\": 2, \"n_head\": 4}").unwrap();
    let error = Transformer::load(&path, &weights).err().unwrap();
    assert!(error.to_string().contains("the key `n_head` stands twice"));
    assert_eq!(error.place().map(|p| (p.line, p.column)), Some((2, 15)));
}
