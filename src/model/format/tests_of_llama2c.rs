//! llama2.c's checkpoints: one of its own, when it is there, and tiny ones made by
//! `tests/fixtures/make_import_fixtures.py`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::container::container;
use super::tests_of_import::{agrees, file_of, fixture};
use super::*;
use crate::base::damage::damaged;
use crate::base::{Files, fs};
use crate::kernel::Team;
use crate::model::tests::logits;
use crate::model::{Cache, Decoder, Reading, Transformer, gpt2, llama, preset};

fn read(path: &Path) -> Result<Imported> {
    container("llama2c")?.read(&Files::at(path)?)
}

#[test]
fn checkpoints_compute_what_the_twin_does() {
    for name in ["model.bin", "version1.bin"] {
        agrees(&read(&fixture("llama2c").join(name)).unwrap().transformer, "llama2c");
    }
    let tied = read(&fixture("llama2c").join("tied.bin")).unwrap().transformer;
    assert!(tied.config.tied && tied.config.n_kv_head == 1);
}

/// Angles apart, which the fixture leaves 0 and which nobody reads.
#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.bin", "tied.bin"] {
        let (path, read) = (fixture("llama2c").join(name), read(&fixture("llama2c").join(name)).unwrap());
        let to = dir.path().join(name);
        llama2c::write(&read.transformer, &to).unwrap();
        let (old, mut new) = (fs::read(&path).unwrap(), fs::read(&to).unwrap());
        let config = &read.transformer.config;
        let behind = if config.tied { 0 } else { 4 * config.vocab_size * config.d_model };
        let angles = new.len() - behind - 4 * config.seq_len * config.d_head..new.len() - behind;
        // Position 1 of the first pair turns by 1.
        let number = |at: usize| f32::from_le_bytes(new[at..at + 4].try_into().unwrap());
        let pair = 4 * config.d_head / 2;
        assert_eq!(number(angles.start + pair), 1f32.cos());
        assert_eq!(number(angles.start + angles.len() / 2 + pair), 1f32.sin());
        new[angles].fill(0);
        assert!(old == new, "{name}");
    }
}

fn stories() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/model_stories260K");
    if !folder.is_dir() {
        eprintln!("skipped: there is no {}", folder.display());
    }
    folder.is_dir().then_some(folder)
}

#[test]
fn stories260k_gives_the_logits_of_llama2c() {
    let Some(folder) = stories() else { return };
    let gpt = read(&folder.join("stories260K.bin")).unwrap().transformer;
    assert_eq!(gpt.config, Config { dropout: 0.0, ..preset("stories-260k").unwrap().clone() });
    let golden: Value = serde_json::from_slice(&fs::read(&folder.join("golden.json")).unwrap()).unwrap();
    let golden = golden["logits"].as_array().unwrap();
    let ids: Vec<u32> = golden.iter().map(|row| row["token"].as_u64().unwrap() as u32).collect();
    for (row, golden) in logits(&gpt, &ids).iter().zip(golden) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        for (found, expected) in order.iter().zip(golden["top5"].as_array().unwrap()) {
            let logit = expected[1].as_f64().unwrap();
            assert_eq!(*found as u64, expected[0].as_u64().unwrap());
            // Five digits are given.
            assert!((f64::from(row[*found]) - logit).abs() < 5e-5, "{} {logit}", row[*found]);
        }
    }
}

/// The mean over the first 40 stories of fewer than 512 tokens, which `golden.json` has from numpy in f64.
#[test]
fn stories260k_has_its_loss_and_its_text() {
    let Some(folder) = stories() else { return };
    let Imported { transformer, tokenizer, .. } = read(&folder).unwrap();
    let tokenizer = tokenizer.expect("tok512.bin lies beside");
    let golden: Value = serde_json::from_slice(&fs::read(&folder.join("golden.json")).unwrap()).unwrap();
    let expected = &golden["mean_nll_40_stories_under_512_tokens"];
    let text = fs::read_text(&folder.join("../tinystories_sample/train_944k.txt")).unwrap();
    let ids = |text: &str| [&[1], tokenizer.encode(text).unwrap().as_slice()].concat();
    // Paragraphs are separated by an empty line, stories by a line break.
    let stories = text.replace("\n\n", "\r").replace('\n', "\u{1}").replace('\r', "\n\n");
    let all: Vec<Vec<u32>> = stories.split('\u{1}').map(ids).filter(|ids| ids.len() < 512).take(40).collect();
    let (mut sum, mut count) = (0.0, 0);
    for ids in &all {
        for (row, next) in logits(&transformer, ids).iter().zip(&ids[1..]) {
            let largest = row.iter().fold(f32::MIN, |m, x| m.max(*x));
            let total: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            sum += total.ln() + f64::from(largest - row[*next as usize]);
            count += 1;
        }
    }
    assert_eq!(count, expected["tokens"].as_u64().unwrap());
    let mean = expected["mean_nll_nats"].as_f64().unwrap();
    assert!((sum / f64::from(count as u32) - mean).abs() < 1e-5, "{} {mean}", sum / f64::from(count as u32));
    let text = tokenizer.decode(&greedy(&transformer, 1, 200)).unwrap();
    let golden = fs::read_text(&folder.join("expected_greedy_200steps.txt")).unwrap();
    assert!(golden.len() > 400 && text.trim_start().starts_with(&golden), "{text}");
}

/// The likeliest ids after `first`.
fn greedy(gpt: &Transformer, first: u32, steps: usize) -> Vec<u32> {
    let (mut decoder, mut cache) = (Decoder::new(gpt, Team::new(2)), Cache::default());
    let mut ids = vec![first];
    for _ in 0..steps {
        let new = [*ids.last().unwrap()];
        let row = decoder.read(&mut [Reading { cache: &mut cache, ids: &new }]).unwrap();
        ids.push((0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32);
    }
    ids.split_off(1)
}

#[test]
fn damaged_checkpoints_are_errors() {
    for name in ["model.bin", "version1.bin"] {
        let whole = fs::read(&fixture("llama2c").join(name)).unwrap();
        for (damage, bytes) in damaged(&whole) {
            let dir = tempfile::tempdir().unwrap();
            match read(&file_of(&dir, "model.bin", &bytes)) {
                Ok(read) => {
                    let all = read.transformer.weights.iter().all(|x| x.is_finite());
                    assert!(all && bytes.len() == whole.len(), "{damage}");
                }
                Err(e) => assert!(!e.message().is_empty()),
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let whole = fs::read(&fixture("llama2c").join("model.bin")).unwrap();
    let version1 = fs::read(&fixture("llama2c").join("version1.bin")).unwrap();
    let word = |bytes: &[u8], at: usize, n: i32| {
        let mut bytes = bytes.to_vec();
        bytes[4 * at..4 * at + 4].copy_from_slice(&n.to_le_bytes());
        bytes
    };
    let nan = word(&whole, 7 + 12 * 11 + 2, f32::NAN.to_bits() as i32);
    for (bytes, expected) in [
        (Vec::new(), "ends within the header"),
        (whole[..27].to_vec(), "ends within the header"),
        (version1[..30].to_vec(), "ends within the header"),
        (whole[..28].to_vec(), "has 28 bytes, but its header stands for "),
        (
            [&whole, &[0; 4][..]].concat(),
            "dim 12, hidden_dim 10, n_layers 2, n_heads 3, n_kv_heads 1, vocab_size 11",
        ),
        (word(&whole, 0, 0), "`dim` of the header is 0: no size of a model"),
        (word(&whole, 0, i32::MAX), "`dim` of the header is 2147483647"),
        (word(&whole, 1, -10), "`hidden_dim` of the header is -10"),
        (word(&whole, 2, 1 << 24), "its header stands for "),
        (word(&whole, 3, 5), "`n_heads` of the header is 5: these heads do not divide a `dim` of 12"),
        (word(&whole, 3, 4), "`n_heads` of the header is 4: these heads do not divide"),
        (word(&whole, 4, 2), "`n_kv_heads` of the header is 2: it does not divide the 3 heads"),
        (word(&whole, 5, 11), "its header stands for "),
        (word(&whole, 5, i32::MIN), "`vocab_size` of the header is -2147483648"),
        (word(&whole, 6, 9), "its header stands for "),
        (word(&whole, 6, i32::MAX), "`seq_len` of the header is 2147483647"),
        (word(&version1, 1, 2), "of llama2.c's version 2 (int8): version 2, expected 0 or 1"),
        (word(&version1, 1, 7), "that is not known: version 7"),
        (word(&version1, 7, -11), "`vocab_size` of the header is -11"),
        (word(&version1, 8, 1 << 24), "`seq_len` of the header is 16777216: longer than what is computed"),
        (nan, "tensor `rms_att_weight[0]` has NaN as its number 2"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = read(&file_of(&dir, "x.bin", &bytes)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "expected {expected}, found {error}");
    }
}

#[test]
fn other_files_are_not_taken_for_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let recognizes = |path: &Path| container("llama2c").unwrap().recognizes(&Files::at(path).unwrap());
    let whole = fs::read(&fixture("llama2c").join("model.bin")).unwrap();
    // Tokens of u16, of a size that no header gives.
    assert!(!recognizes(&file_of(&dir, "train.bin", &[3, 0, 17, 0].repeat(500))));
    assert!(!recognizes(&file_of(&dir, "short.bin", &whole[..whole.len() - 1])));
    assert!(!recognizes(dir.path()), "none of several");
    file_of(&dir, "some.bin", &whole);
    assert!(recognizes(dir.path()), "one of several");
    if let Some(folder) = stories() {
        assert!(!recognizes(&folder.join("tok512.bin")));
        assert!(recognizes(&folder));
    }
}

#[test]
fn what_llama2c_does_not_compute_is_refused() {
    let refuses = |config: &Config| {
        container("llama2c").unwrap().refuses(config, &ExportOptions::default()).unwrap_or_default()
    };
    let base = llama(11, 12, 1, 2, 8);
    assert_eq!(refuses(&Config { d_ff: 7, n_kv_head: 1, tied: false, dropout: 0.3, ..base.clone() }), "");
    let yarn = crate::model::Yarn {
        factor: 2.0,
        original_seq_len: 4,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    for (config, why) in [
        (gpt2(11, 12, 1, 2, 8), "`position` is \"learned\", expected \"rotary\""),
        (Config { norm_eps: 1e-6, ..base.clone() }, "`norm_eps` is 1e-6, expected 0.00001"),
        (Config { rope_base: 5e5, ..base.clone() }, "`rope_base` is 500000.0, expected 10000.0"),
        (Config { qk_norm: true, ..base.clone() }, "`qk_norm` is true, expected false"),
        (Config { attn_bias: true, ..base.clone() }, "`attn_bias` is true"),
        (
            Config { activation: Activation::Gelu, ..base.clone() },
            "`activation` is \"gelu\", expected \"silu\"",
        ),
        (Config { d_head: 4, ..base.clone() }, "`d_head` is 4, expected 6"),
        (Config { rope_scaling: Some(yarn), ..base.clone() }, "`rope_scaling` is {"),
    ] {
        assert!(refuses(&config).contains(why), "{why}: {}", refuses(&config));
    }
    let options = ExportOptions { dtype: Some(crate::kernel::BlockType::Q8_0) };
    let why = container("llama2c").unwrap().refuses(&base, &options).unwrap();
    assert!(why.contains("f32, not of q8_0"), "{why}");
}
