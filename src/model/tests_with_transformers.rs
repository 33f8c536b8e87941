//! Models of `transformers`, made by `tests/fixtures/make_model_fixtures.py`: the same weights give the same
//! logits, loss, gradients and attention weights.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Value, json};

use super::format;
use super::reference::Reference;
use super::tests::gap;
use super::*;
use crate::base::fs;
use crate::corpus::conversation::Message;
use crate::kernel::Team;
use crate::tokenizer::{Names, Tokenizer, chat};

/// Folders of fixtures.
const MODELS: [&str; 6] = ["gpt2", "gpt2_untied", "llama", "llama_yarn", "llama_bias", "qwen3"];

/// What is computed of a model and sequences.
struct Computed {
    /// `[B*T, V]`
    logits: Vec<f32>,
    loss: f64,
    /// Laid out like the weights.
    gradient: Vec<f32>,
}

fn by_reference(gpt: &Transformer, all: Sequences) -> Computed {
    let plain = Reference::new(gpt, &Device::Cpu).unwrap();
    let logits = plain.logits(gpt, all, None).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let (loss, gradient) = plain.gradient(gpt, all, None).unwrap();
    Computed { logits, loss, gradient }
}

fn by_kernels(gpt: &Transformer, all: Sequences) -> Computed {
    let mut pass = Executor::training(&gpt.config, Team::new(2));
    let (mut logits, every) = (Vec::new(), vec![0; all.ids.len()]);
    pass.each_logits(gpt, Sequences { targets: &every, ..all }, |_, some, _| logits.extend_from_slice(some));
    let mut gradient = vec![0.0; gpt.weights.len()];
    let loss = pass.gradient(gpt, all, 0, 0.0, &mut gradient);
    Computed { logits, loss, gradient }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model").join(name)
}

fn load(folder: &Path) -> Transformer {
    Transformer::load(&folder.join(CONFIG_FILE), &folder.join(WEIGHTS_FILE)).unwrap()
}

pub(super) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn agrees(name: &str, compute: impl Fn(&Transformer, Sequences) -> Computed) {
    let gpt = load(&folder(name));
    let expected: Value =
        serde_json::from_slice(&fs::read(&folder(name).join("expected.json")).unwrap()).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let targets: Vec<u32> = rows.iter().flat_map(|row| row[1..].iter().copied().chain([IGNORE])).collect();
    let (ids, length) = (rows.concat(), rows[0].len());
    let found = compute(&gpt, Sequences::new(&ids, &targets, length));

    let logits = gap(&found.logits, &numbers(&expected["logits"]));
    assert!(logits < 1e-4, "{name}: logits differ by {logits}");
    let loss = found.loss - expected["loss"].as_f64().unwrap();
    assert!(loss.abs() < 1e-4 * found.loss, "{name}: the loss differs by {loss}");
    let stored = format::of(&gpt.config).tensors(&gpt.layout);
    let gradients = expected["gradients"].as_object().unwrap();
    assert!(gradients.len() >= stored.len() / 2, "{name}: gradients of few tensors");
    for (tensor, expected) in gradients {
        let stored = stored.iter().find(|s| s.name == *tensor).unwrap_or_else(|| panic!("{name}: {tensor}"));
        let own: Vec<f32> = stored.places(&gpt.layout).map(|place| found.gradient[place]).collect();
        let gradient = gap(&own, &numbers(expected));
        assert!(gradient < 1e-4, "{name}: gradients of {tensor} differ by {gradient}");
    }
}

#[test]
fn the_plain_twin_agrees_with_transformers() {
    for name in MODELS {
        agrees(name, by_reference);
    }
}

#[test]
fn the_kernels_agree_with_transformers() {
    for name in MODELS {
        agrees(name, by_kernels);
    }
}

/// `output_attentions`, `[L, B, H, T, T]`.
#[test]
fn attention_weights_agree_with_transformers() {
    for name in MODELS {
        let gpt = load(&folder(name));
        let expected: Value =
            serde_json::from_slice(&fs::read(&folder(name).join("expected.json")).unwrap()).unwrap();
        let rows: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let all = numbers(&expected["attentions"]);
        let (heads, t) = (gpt.config.n_head, rows[0].len());
        let mut seen = 0;
        for (b, ids) in rows.iter().enumerate() {
            let which = attention::Which::default();
            let compare = &mut |layer: usize, head: usize, map: attention::Map| {
                let first = ((layer * rows.len() + b) * heads + head) * t * t;
                let off = map.weights.iter().zip(&all[first..]).map(|(a, b)| (a - b).abs());
                let off = off.fold(0.0, f32::max);
                assert!(off < 1e-5, "{name}: sequence {b}, layer {layer}, head {head} differs by {off}");
                seen += map.weights.len();
            };
            attention::each_map(&gpt, ids, which, 1, 2, compare).unwrap();
        }
        assert_eq!(seen, all.len(), "{name}");
    }
}

/// The cases of `make_loss_fixtures.py`, whose model is this one.
fn losses() -> (Transformer, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/losses.json");
    (load(&folder("llama")), serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())
}

/// The ids and targets of a case, and the length of its sequences.
fn batch(case: &Value) -> (Vec<u32>, Vec<u32>, usize) {
    let rows = |name: &str| -> Vec<Vec<i64>> { serde_json::from_value(case[name].clone()).unwrap() };
    let (ids, targets) = (rows("ids"), rows("targets"));
    let target = |id: &i64| u32::try_from(*id).unwrap_or(IGNORE);
    let length = ids[0].len();
    (ids.concat().iter().map(target).collect(), targets.concat().iter().map(target).collect(), length)
}

fn gradients_agree(name: &str, gpt: &Transformer, case: &Value, gradient: &[f32]) {
    let stored = format::of(&gpt.config).tensors(&gpt.layout);
    let expected = case["gradients"].as_object().unwrap();
    assert_eq!(expected.len(), 4);
    for (tensor, expected) in expected {
        let stored = stored.iter().find(|s| s.name == *tensor).unwrap_or_else(|| panic!("{name}: {tensor}"));
        let own: Vec<f32> = stored.places(&gpt.layout).map(|place| gradient[place]).collect();
        let off = gap(&own, &numbers(expected));
        assert!(off < 1e-4, "{name}: gradients of {tensor} differ by {off}");
    }
}

#[test]
fn weighted_and_distilled_losses_agree_with_pytorch() {
    let (gpt, cases) = losses();
    for name in ["weighted", "all ids", "five ids"] {
        let case = &cases[name];
        let (ids, targets, length) = batch(case);
        let real = |name: &str| case[name].as_f64().unwrap_or(0.0) as f32;
        let weights = case["weights"].as_array().map(|_| numbers(&case["weights"]));
        let named: Vec<u32> = serde_json::from_value(case["named"].clone()).unwrap_or_default();
        let probabilities = case["probabilities"].as_array().map(|_| numbers(&case["probabilities"]));
        let soft = probabilities.as_deref().map(|probabilities| Soft {
            k: case["k"].as_u64().unwrap() as usize,
            ids: &named,
            probabilities,
            temperature: real("temperature"),
            share: real("share"),
        });
        let all = Sequences { weights: weights.as_deref(), soft, ..Sequences::new(&ids, &targets, length) };
        let mut gradient = vec![0.0; gpt.weights.len()];
        let mut pass = Executor::training(&gpt.config, Team::new(2));
        let loss = pass.gradient(&gpt, all, 0, real("smoothing"), &mut gradient);
        let off = (loss - case["loss"].as_f64().unwrap()).abs();
        assert!(off < 1e-5 * loss.abs().max(10.0), "{name}: the loss differs by {off}");
        gradients_agree(name, &gpt, case, &gradient);
    }
}

/// DPO's gradient: that of each sequence's nats times a factor of the whole pair.
#[test]
fn a_loss_of_pairs_agrees_with_pytorch() {
    let (gpt, cases) = losses();
    let case = &cases["preferred"];
    let ((ids, targets, length), beta) = (batch(case), case["beta"].as_f64().unwrap());
    let reference: Vec<f64> = serde_json::from_value(case["reference"].clone()).unwrap();
    let all = Sequences::new(&ids, &targets, length);
    let mut pass = Executor::training(&gpt.config, Team::new(2));
    let sums: Vec<f32> = pass.sequence_nats(&gpt, all, Some(0)).iter().map(|nats| -nats as f32).collect();
    let off = gap(&sums, &numbers(&case["sums"]));
    assert!(off < 1e-5, "log-probabilities of sequences differ by {off}");
    let margin = |i: usize| f64::from(sums[i]) - reference[i];
    let (mut loss, mut weights) = (0.0, Vec::new());
    for pair in (0..sums.len()).step_by(2) {
        let z = beta * (margin(pair) - margin(pair + 1));
        loss += (1.0 + (-z).exp()).ln();
        let factor = (beta / (1.0 + z.exp())) as f32;
        weights.extend([vec![factor; length], vec![-factor; length]].concat());
    }
    let off = (loss - case["loss"].as_f64().unwrap()).abs();
    assert!(off < 1e-5 * loss, "the loss differs by {off}");
    let mut gradient = vec![0.0; gpt.weights.len()];
    pass.gradient(&gpt, Sequences { weights: Some(&weights), ..all }, 0, 0.0, &mut gradient);
    gradients_agree("preferred", &gpt, case, &gradient);
}

/// What `transformers` wrote is what we write, to the byte.
#[test]
fn weights_of_transformers_are_written_as_they_were() {
    for name in MODELS {
        let bytes = fs::read(&folder(name).join(WEIGHTS_FILE)).unwrap();
        assert!(load(&folder(name)).to_safetensors().unwrap() == bytes, "{name}");
    }
}

/// For `make_model_fixtures.py --check`, which `transformers` is needed for: a folder of each type of file,
/// with the logits of the plain twin.
#[test]
#[ignore = "writes folders below $TINYLM_MODELS, to be checked with transformers"]
fn write_models_for_transformers() {
    let into = PathBuf::from(std::env::var("TINYLM_MODELS").expect("TINYLM_MODELS names a folder"));
    let yarn = |config: &Config| {
        let yarn =
            Yarn { factor: 4.0, original_seq_len: 8, beta_fast: 2.0, beta_slow: 0.1, attention_factor: None };
        Config { rope_scaling: Some(yarn), rope_base: 500.0, ..config.clone() }
    };
    let fixture = |name: &str, names: &Names| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        Tokenizer::load_with(&path, names).unwrap()
    };
    let ours = fixture("tokenizers/byte_bpe.json", &Names::default());
    let cases: Value = serde_json::from_slice(
        &fs::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/cases.json")).unwrap(),
    )
    .unwrap();
    let chatml = &cases["templates"]["chatml"];
    let text = |value: &Value| value.as_str().map(str::to_string);
    let names = Names {
        bos: text(&chatml["bos"]),
        eos: text(&chatml["eos"]),
        chat_template: text(&chatml["source"]),
        ..Names::default()
    };
    let theirs = fixture("chat/bytes.json", &names);
    // ChatML's tokens without a template.
    let names = Names { bos: names.bos, eos: names.eos, ..Names::default() };
    let like = fixture("chat/bytes.json", &names);
    let (v, w) = (ours.vocab_size(), theirs.vocab_size());
    let llama_of = |v| Config { n_kv_head: 2, attn_bias: true, tied: false, ..llama(v, 32, 2, 4, 96) };
    let qwen3_of = |v| Config { n_kv_head: 1, d_head: 6, dropout: 0.1, ..modern(v, 32, 2, 4, 24, 96) };
    let models = [
        ("gpt2", Config { activation: Activation::Relu2, tied: false, ..gpt2(v, 32, 2, 4, 96) }, &ours),
        ("llama_yarn", yarn(&llama_of(v)), &ours),
        ("llama", llama_of(w), &theirs),
        ("qwen3_yarn", yarn(&qwen3_of(v)), &ours),
        ("qwen3", qwen3_of(w), &like),
    ];
    for (name, config, tokenizer) in models {
        let mut gpt = Transformer::fresh(&config, 1);
        gpt.weights.iter_mut().enumerate().for_each(|(i, x)| *x += 0.3 * (i as f32).sin());
        let ids: Vec<u32> = (0..32).map(|i| i * 7 % config.vocab_size as u32).collect();
        let all = Sequences::new(&ids, &ids, ids.len());
        let logits = by_reference(&gpt, all).logits;
        let greedy = greedy(&gpt, &ids[..8], 40);
        let texts: Vec<Value> = ODD.iter().map(|t| json!([t, tokenizer.encode(t).unwrap()])).collect();
        let talk = |messages: &Value| {
            let read: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
            json!([messages, chat::prompt(tokenizer, &read).unwrap()])
        };
        let chats: Vec<Value> =
            ["question", "system", "more", "signs"].map(|name| talk(&cases["conversations"][name])).to_vec();
        let folder = into.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Model { transformer: gpt, tokenizer: tokenizer.clone() }.save(&folder).unwrap();
        let expected =
            json!({"ids": ids, "logits": logits, "greedy": greedy, "texts": texts, "chats": chats});
        fs::write(&folder.join("logits.json"), expected.to_string().as_bytes()).unwrap();
    }
}

/// Texts that tokenizers stumble over; none spells a special token.
const ODD: [&str; 10] = [
    "",
    " ",
    "  two  spaces \n\n and\tmore \r\n",
    "don't I'LL we've 's",
    "1234 3.14 ½ Ⅷ",
    "中文 和 日本語 한국어",
    "naïve cafe\u{301} — “so” ist es…",
    "😀👍🏽 👨\u{200d}👩",
    "Orang-orang tua berjalan-jalan ke pasar , lalu pulang .",
    "\u{0} control \u{7f} \u{a0}",
];

/// The likeliest continuation of `prompt`.
fn greedy(gpt: &Transformer, prompt: &[u32], len: usize) -> Vec<u32> {
    let mut decoder = Decoder::new(gpt, Team::new(1));
    let (mut cache, mut next, mut out) = (Cache::default(), prompt.to_vec(), Vec::new());
    while out.len() < len {
        let logits = decoder.read(&mut [Reading { cache: &mut cache, ids: &next }]).unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        out.push(best as u32);
        next = vec![best as u32];
    }
    out
}
