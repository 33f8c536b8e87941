//! The JSON of `tiny-lm` in Go: a model made by `tests/fixtures/make_import_fixtures.py`.

use std::path::Path;

use serde_json::{Value, json};

use super::container::container;
use super::tests_of_import::{agrees, file_of, fixture};
use super::*;
use crate::base::damage::damaged;
use crate::base::{Files, fs};
use crate::model::{Model, Transformer, gpt2, preset};
use crate::tokenizer::{EachText, Special};

fn read(path: &Path) -> Result<Imported> {
    container("json")?.read(&Files::at(path)?)
}

fn model() -> (Transformer, crate::tokenizer::Tokenizer) {
    let read = read(&fixture("go").join(GO_FILE)).unwrap();
    (read.transformer, read.tokenizer.unwrap())
}

#[test]
fn a_model_computes_what_the_twin_does() {
    let (gpt, tokenizer) = model();
    agrees(&gpt, "go");
    assert_eq!(
        (gpt.config.seq_len, gpt.config.d_ff, gpt.config.attn_bias, gpt.config.tied),
        (8, 5, false, false)
    );
    assert_eq!(tokenizer.encode("the cat  ate\na mat").unwrap(), [0, 1, 7, 8, 4]);
    assert_eq!((tokenizer.special(Special::Eos), tokenizer.special(Special::Bos)), (Some(9), None));
    assert!(tokenizer.encode("the bird").unwrap_err().to_string().contains("bird"));
    assert!(container("json").unwrap().recognizes(&Files::at(&fixture("go")).unwrap()));
}

#[test]
fn a_model_is_written_as_it_was_read() {
    let (mut transformer, tokenizer) = model();
    // Numbers with exponents, and those that few digits do not give.
    let odd = [1e-30, -3e30, 1.0 / 3.0, 16_777_217.0, f32::MIN_POSITIVE, -0.0, f32::from_bits(1), f32::MAX];
    transformer.weights[..8].copy_from_slice(&odd);
    let (dir, weights, config) =
        (tempfile::tempdir().unwrap(), transformer.weights.to_vec(), transformer.config.clone());
    let model = Model { transformer, tokenizer };
    let (files, options) = (Files::default(), ExportOptions::default());
    let texts: &EachText = &|_| Ok(());
    let out = Outgoing { model: &model, files: &files, options: &options, texts };
    container("json").unwrap().write(&out, dir.path()).unwrap();
    let again = read(dir.path()).unwrap();
    assert!(again.transformer.weights.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert_eq!(again.transformer.config, config);
    assert_eq!(again.tokenizer.unwrap().json(), model.tokenizer.json());
}

#[test]
fn what_the_go_program_does_not_compute_is_refused() {
    let refuses = |config: &Config| {
        container("json").unwrap().refuses(config, &ExportOptions::default()).unwrap_or_default()
    };
    let own = preset("go-tiny").unwrap();
    assert_eq!(refuses(own), "");
    for (config, why) in [
        (gpt2(9, 4, 1, 2, 6), "`attn_bias` is true, expected false"),
        (Config { tied: true, ..own.clone() }, "`tied` is true, expected false"),
        (Config { norm_eps: 1e-6, ..own.clone() }, "`norm_eps` is 1e-6, expected 0.00001"),
        (
            Config { activation: Activation::Gelu, ..own.clone() },
            "`activation` is \"gelu\", expected \"gelu_tanh\"",
        ),
    ] {
        assert!(refuses(&config).contains(why), "{why}: {}", refuses(&config));
    }
}

#[test]
fn what_is_wrong_is_said() {
    let whole: Value = serde_json::from_slice(&fs::read(&fixture("go").join(GO_FILE)).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = whole.clone();
        change(&mut value);
        value.to_string()
    };
    let weight = |name: &'static str, to: Value| with(&|v: &mut Value| v["weights"][name] = to.clone());
    let set = |key: &'static str, to: Value| with(&|v: &mut Value| v[key] = to.clone());
    let text = whole.to_string();
    for (text, expected) in [
        (String::new(), "x.json:1"),
        (text[..text.len() - 9].to_string(), "x.json:1:"),
        ("[]".to_string(), "is not a JSON object"),
        (text.replacen("0.", "NaN.", 1), "x.json:1:"),
        (text.replacen("\"d_model\":6", "\"d_model\":6,\"d_model\":6", 1), "the key `d_model` stands twice"),
        (text.replacen("\"ln_f.bias\"", "\"ln_f.weight\"", 1), "the key `ln_f.weight` stands twice"),
        (set("d_model", json!("6")), "`d_model` is \"6\": expected a whole number"),
        (set("d_model", json!(1 << 30)), "`n_heads` is 3: these heads do not divide `d_model` 1073741824"),
        (set("d_model", json!(9)), "has 6 entries, expected 9"),
        (set("n_heads", json!(0)), "`n_heads` is 0"),
        (set("n_heads", json!(4)), "these heads do not divide `d_model` 6"),
        (set("n_layers", json!(1_000_000)), "`n_layers` is 1000000: more than there are tensors"),
        (set("n_layers", json!(3)), "has no tensor `blocks.2."),
        (set("n_layers", json!(0)), "`n_layers` must be at least 1"),
        (set("vocab", json!([])), "`vocab` is []: expected a list of words"),
        (set("vocab", json!(["a", 1])), "`vocab[1]` is 1: expected a word"),
        (set("vocab", json!(["a", "b"])), "tensor `token_embed.weight` has 10 entries, expected 2"),
        (set("weights", json!([])), "`weights` is []: expected an object"),
        (set("weights", Value::Null), "`weights` is null: expected an object"),
        (weight("pos_embed.weight", Value::Null), "has no tensor `pos_embed.weight`"),
        (weight("ln_f.bias", json!([1, 2, 3])), "tensor `ln_f.bias` has 3 entries, expected 6"),
        (weight("ln_f.bias", json!(7)), "tensor `ln_f.bias` is 7, expected a list"),
        (weight("ln_f.bias", json!([1, 2, 3, 4, 5, "six"])), "number 5 of tensor `ln_f.bias` is \"six\""),
        (weight("ln_f.bias", json!([1, 2, 3, 4, 5, 1e39])), "number 5 of tensor `ln_f.bias` is 1e+39"),
        (
            with(&|v| v["weights"]["lm_head.weight"][1] = json!([1])),
            "row 1 of tensor `lm_head.weight` has 1 entries, expected 6",
        ),
        (
            with(&|v| v["weights"]["blocks.0.attn.W_q.weight"][0] = json!(1)),
            "row 0 of tensor `blocks.0.attn.W_q.weight` is 1",
        ),
        (with(&|v| v["vocab"][1] = json!("the")), "both \"the\""),
        (with(&|v| v["vocab"][1] = json!("")), "is empty"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&file_of(&dir, "x.json", text.as_bytes())).err().map(|e| e.to_string());
        let error = error.unwrap_or_default();
        assert!(error.contains(expected), "expected {expected}, found {error}");
    }
}

#[test]
fn damaged_files_are_errors() {
    for (_, bytes) in damaged(&fs::read(&fixture("go").join(GO_FILE)).unwrap()) {
        let dir = tempfile::tempdir().unwrap();
        if let Ok(read) = read(&file_of(&dir, "x.json", &bytes)) {
            assert!(read.transformer.weights.iter().all(|x| x.is_finite()));
        }
    }
}
