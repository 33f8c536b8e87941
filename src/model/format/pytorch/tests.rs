//! Checkpoints made by `tests/fixtures/make_import_fixtures.py`, and damaged ones.

use serde_json::json;
use tempfile::TempDir;

use super::zip::Archive;
use super::*;
use crate::base::damage::damaged;
use crate::base::fs;
use crate::model::Activation;
use crate::model::format::tests_of_import::{agrees, file_of, fixture};

fn read_with(path: &Path, config: Value) -> Result<Transformer> {
    let Value::Object(config) = config else { panic!("no object") };
    Ok(PyTorch.read_with(&Files::at(path)?, &ImportOptions { config })?.transformer)
}

fn read(path: &Path) -> Result<Transformer> {
    read_with(path, json!({}))
}

#[test]
fn checkpoints_compute_what_their_programs_do() {
    for (name, file, config) in [
        ("nanogpt", "ckpt.pt", json!({})),
        ("slms", "best_model_params.pt", json!({"n_head": 3})),
        ("conversational", "tiny_llm_best.pt", json!({})),
        ("transformer_lm/best_model", "model.pt", json!({"n_head": 3})),
        ("transformer_lm/learned", "model.pt", json!({"n_head": 3})),
        ("tinylm_causal", "pretrain_16_epoch2.pth", json!({"n_head": 4, "seq_len": 12})),
        ("tiny_words", "tinylm_trained.pt", json!({})),
        ("views", "model.pt", json!({"n_head": 3})),
    ] {
        agrees(&read_with(&fixture(name).join(file), config).unwrap(), name);
    }
    agrees(&read(&fixture("hf")).unwrap(), "hf");
}

#[test]
fn architectures_are_those_of_the_tensors_and_settings() {
    let nanogpt = read(&fixture("nanogpt/ckpt.pt")).unwrap().config;
    let bias = [nanogpt.norm_bias, nanogpt.attn_bias, nanogpt.mlp_bias, nanogpt.head_bias];
    assert_eq!((nanogpt.n_head, nanogpt.seq_len, nanogpt.dropout, nanogpt.tied), (3, 8, 0.2, true));
    assert_eq!((bias, nanogpt.activation), ([false; 4], Activation::Gelu));
    let post =
        read_with(&fixture("conversational/tiny_llm_best.pt"), json!({"seq_len": 256})).unwrap().config;
    assert_eq!((post.seq_len, post.head_bias, post.tied, post.d_ff), (256, true, false, 20));
    let own = json!({"n_head": 4, "seq_len": 99, "rope_base": 5e5, "norm_eps": 1e-6, "d_model": 16});
    let causal = read_with(&fixture("tinylm_causal/pretrain_16_epoch2.pth"), own).unwrap().config;
    assert_eq!((causal.n_kv_head, causal.rope_base, causal.norm_eps, causal.tied), (2, 5e5, 1e-6, true));
    let views = read_with(&fixture("views/model.pt"), json!({"n_head": 2, "activation": "gelu_tanh"}))
        .unwrap()
        .config;
    assert!(views.tied, "equal numbers in two storages");
    assert_eq!((views.activation, views.d_head), (Activation::GeluTanh, 6));
}

#[test]
fn a_config_beside_completes_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    file_of(&dir, "model.pt", &fs::read(&fixture("slms/best_model_params.pt")).unwrap());
    file_of(&dir, "config.json", br#"{"num_heads": 3, "block_size": 8, "dropout": 0.05, "lr": "any"}"#);
    assert!(PyTorch.recognizes(&Files::at(dir.path()).unwrap()));
    let config = read(dir.path()).unwrap().config;
    assert_eq!((config.n_head, config.dropout), (3, 0.05));
    file_of(&dir, "model.safetensors", b"");
    assert!(!PyTorch.recognizes(&Files::at(dir.path()).unwrap()), "read as `hf`");
}

/// The entries of an archive, changed and written anew.
fn changed(fixture: &Path, change: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut archive = Archive::open(fixture).unwrap();
    let entries = archive.entries.clone();
    let mut entries = entries.iter().map(|e| (e.name.clone(), archive.read(e).unwrap())).collect();
    change(&mut entries);
    zip::tests::written(&entries)
}

/// With `from` in its pickle replaced, which must be there.
fn replaced(fixture: &Path, from: &[u8], to: &[u8]) -> Vec<u8> {
    changed(fixture, |entries| {
        let (_, pickle) = entries.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
        let at = pickle.windows(from.len()).position(|w| w == from).expect("something to replace");
        pickle.splice(at..at + from.len(), to.iter().copied());
    })
}

fn error(bytes: &[u8], config: Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    match read_with(&file_of(&dir, "model.pt", bytes), config) {
        Ok(_) => "no error".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_is_wrong_with_a_model_is_said() {
    let slms = fixture("slms/best_model_params.pt");
    let n_head = json!({"n_head": 3});
    let whole = fs::read(&slms).unwrap();
    let name = b"module.transformer.h.1.ln1.weight";
    let text = |n: &[u8]| [&[b'X', n.len() as u8, 0, 0, 0], n].concat();
    for (bytes, config, expected) in [
        (whole.clone(), json!({}), "is of HarshTomar1234/SLMs, and does not say `n_head`"),
        (whole.clone(), json!({"n_head": 5}), "`n_head` is 5, which does not divide the width 12"),
        (
            whole.clone(),
            json!({"n_head": "three"}),
            "`config.n_head` is \"three\", expected a number above 0",
        ),
        (whole.clone(), json!({"n_head": 3, "n_layers": 2}), "`config.n_layers` is no field"),
        (whole.clone(), json!({"n_head": 3, "n_layer": 5}), "`config.n_layer` is 5, but its tensors have 2"),
        (whole.clone(), json!({"n_head": 3, "seq_len": 9}), "`seq_len` is 9, but it has learned 8 positions"),
        (
            whole.clone(),
            json!({"n_head": 3, "qk_norm": true}),
            "`config.qk_norm` is true, but its tensors have false",
        ),
        (whole.clone(), json!({"n_head": 3, "norm_eps": 7}), "`norm_eps` must be above 0 and below 1"),
        (whole.clone(), json!({"n_head": 3, "activation": "tanh"}), "which `activation` cannot be"),
        (
            replaced(&slms, name, b"module.transformer.h.1.lnx.weight"),
            n_head.clone(),
            "that models of HarshTomar1234/SLMs have not: `transformer.h.1.lnx.weight`",
        ),
        (
            replaced(&slms, b"module.transformer.h.1.ln1.bias", b"module.transformer.h.0.ln1.bias"),
            n_head.clone(),
            "has two tensors `transformer.h.0.ln1.bias`",
        ),
        (
            replaced(
                &slms,
                &text(b"module.transformer.h.0.attn.bias"),
                &text(b"module.transformer.h.0.attn.norm"),
            ),
            n_head.clone(),
            "has 1 tensors that models of HarshTomar1234/SLMs have not: `transformer.h.0.attn.norm`",
        ),
        (
            replaced(&slms, b"K\x00K\x0c\x85", b"K\x00K\x06\x85"),
            n_head.clone(),
            "tensor `transformer.h.0.ln1.weight` has shape [6], expected [12]",
        ),
        (
            replaced(
                &slms,
                &text(b"module.transformer.h.1.mlp.c_proj.weight"),
                &text(b"module.transformer.h.1.mlp.attn.bias"),
            ),
            n_head.clone(),
            "has no tensor `transformer.h.1.mlp.c_proj.weight`",
        ),
    ] {
        let found = error(&bytes, config);
        assert!(found.contains(expected), "expected {expected}, found {found}");
    }
    let causal = fs::read(&fixture("tinylm_causal/pretrain_16_epoch2.pth")).unwrap();
    let found = error(&causal, json!({}));
    assert!(found.contains("does not say `n_head`, `seq_len`"), "{found}");
    assert!(found.contains("`config: { n_head: …, seq_len: … }`"), "{found}");
    let found = error(&causal, json!({"n_head": 4, "seq_len": 1 << 24}));
    assert!(found.contains("`seq_len` is 16777216, longer than what is computed"), "{found}");
    let found = error(&causal, json!({"n_head": 1, "seq_len": 8}));
    assert!(found.contains("has 8 rows, which is no number of heads"), "{found}");
}

#[test]
fn what_is_wrong_with_a_tensor_is_said() {
    let slms = fixture("slms/best_model_params.pt");
    let last = |bytes: Vec<u8>| error(&bytes, json!({"n_head": 3}));
    let data = |change: fn(&mut Vec<u8>)| {
        last(changed(&slms, |entries| {
            change(&mut entries.iter_mut().find(|(name, _)| name.ends_with("data/1")).unwrap().1);
        }))
    };
    // The first tensor: its storage, no offset, `[11, 12]`, strides `[12, 1]`.
    let view = b"K\x00K\x0bK\x0c\x86";
    for (found, expected) in [
        (
            data(|bytes| bytes[2..4].copy_from_slice(&[0xc0, 0x7f])),
            "tensor `transformer.wpe.weight` has NaN as its number 1",
        ),
        (data(|bytes| bytes[2..4].copy_from_slice(&[0x80, 0x7f])), "has inf as its number 1"),
        (data(|bytes| bytes.truncate(100)), "is larger than its storage of 50 numbers"),
        (
            last(replaced(&slms, view, b"K\x01K\x0bK\x0c\x86")),
            "from 1 on is larger than its storage of 132 numbers",
        ),
        (
            last(replaced(&slms, view, b"J\xff\xff\xff\xffK\x0bK\x0c\x86")),
            "is not described as torch.save does",
        ),
        (
            last(replaced(&slms, view, b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")),
            "is larger than its storage",
        ),
        (
            last(replaced(&slms, view, b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x0c\x86")),
            "is larger than its storage",
        ),
        (last(replaced(&slms, view, b"K\x00K\x0bK\x0cK\x01\x87")), "has 3 sizes and 2 strides"),
        (
            last(replaced(&slms, b"BFloat16Storage", b"ComplexFloatStorage")),
            "is of torch.ComplexFloatStorage, expected",
        ),
        (last(replaced(&slms, b"BFloat16Storage", b"ShortStorage")), "holds integers, expected f32"),
        (
            last(replaced(&slms, b"_rebuild_tensor_v2", b"_rebuild_qtensor")),
            "is made by torch._utils._rebuild_qtensor",
        ),
        (
            last(replaced(&slms, b"X\x01\x00\x00\x000", b"X\x02\x00\x00\x00no")),
            "refers to `best_model_params/data/no`",
        ),
        (
            last(changed(&slms, |entries| entries.retain(|(name, _)| !name.ends_with("data/2")))),
            "which the archive lacks",
        ),
    ] {
        assert!(found.contains(expected), "expected {expected}, found {found}");
    }
    // More numbers than there are: rows of the embedding that are one and the same.
    let expanded =
        replaced(&slms, b"K\x0bK\x0c\x86q\tK\x0cK\x01\x86", b"M\xff\xffK\x0c\x86q\tK\x00K\x01\x86");
    assert!(last(expanded).contains("is larger than its storage of 132 numbers"));
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_said() {
    let slms = fixture("slms/best_model_params.pt");
    let with = |name: &str, bytes: &[u8]| {
        changed(&slms, |entries| {
            let entry = entries.iter_mut().find(|(found, _)| found.ends_with(name)).unwrap();
            entry.1 = bytes.to_vec();
        })
    };
    let zipped = |entries: &[(&str, &[u8])]| {
        zip::tests::written(&entries.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect::<Vec<_>>())
    };
    for (bytes, expected) in [
        (zipped(&[("data.json", b"{}")]), "is a zip archive without a `data.pkl`"),
        (zipped(&[]), "has no checkpoint of PyTorch"),
        (with("byteorder", b"big"), "byte order \"big\", expected \"little\""),
        (with("data.pkl", b"\x80\x02](K\x01K\x02e."), "holds a list, expected a dict of tensors"),
        (with("data.pkl", b"\x80\x02}."), "holds no state dict"),
        (with("data.pkl", b"\x80\x02}X\x05\x00\x00\x00modelK\x01s."), "it has `model`"),
        (with("data.pkl", b"\x80\x02}"), "its pickle is damaged at byte 3"),
        (fs::read(&fixture("old/module.pt")).unwrap(), "holds an object of torch.nn.modules.linear.Linear"),
        (replaced(&slms, b"h.0.ln1.weight", b"h.0.lnx.weight"), "tensors of no program that is known"),
        (replaced(&slms, b"h.0.ln1.weight", b"h.0.lora_A.xyz"), "these are low-rank adapters"),
    ] {
        let found = error(&bytes, json!({"n_head": 3}));
        assert!(found.contains(expected), "expected {expected}, found {found}");
    }
    let table = fixture("conversational/tiny_llm_best.pt");
    let wrong = changed(&table, |entries| {
        let (_, bytes) = entries.iter_mut().find(|(name, _)| name.ends_with("data/1")).unwrap();
        bytes[4 * 13..4 * 14].copy_from_slice(&0.5f32.to_le_bytes());
    });
    let found = error(&wrong, json!({}));
    assert!(found.contains("`pos_encoder.pe` has 0.5 in row 1, column 1, where sines"), "{found}");
}

#[test]
fn old_forms_are_refused_with_lines_that_convert_them() {
    let refused = |name: &str| read(&fixture("old").join(name)).err().unwrap().to_string();
    let found = refused("legacy.pt");
    assert!(found.contains("before PyTorch 1.6"), "{found}");
    assert!(found.contains("saved = torch.load(file, map_location=\"cpu\")"), "{found}");
    let found = refused("tinylm_trained.gz");
    assert!(
        found.contains("with gzip.open(\"tinylm_trained.gz\", \"rb\") as file: saved = pickle.load(file)"),
        "{found}"
    );
    assert!(found.contains("torch.save(saved, \"tinylm_trained.pt\")"), "{found}");
    let dir = tempfile::tempdir().unwrap();
    let plain = file_of(&dir, "model.pkl.pt", b"\x80\x04}.");
    assert!(read(&plain).err().unwrap().to_string().contains("is a plain pickle"));
    file_of(&dir, "other.pt", &fs::read(&fixture("nanogpt/ckpt.pt")).unwrap());
    std::fs::rename(&plain, dir.path().join("notes.txt")).unwrap();
    file_of(&dir, "third.pt", &fs::read(&fixture("nanogpt/ckpt.pt")).unwrap());
    let found = read(dir.path()).err().unwrap().to_string();
    assert!(found.contains("has 2 checkpoints") && found.contains("third.pt"), "{found}");
    let config = gpt2_of(&fixture("nanogpt/ckpt.pt"));
    assert!(PyTorch.refuses(&config, &ExportOptions::default()).unwrap().contains("use `hf`"));
}

fn gpt2_of(path: &Path) -> Config {
    read(path).unwrap().config
}

/// Whatever is read is what the undamaged file has: checksums tell.
#[test]
fn damaged_checkpoints_are_errors() {
    for (name, config) in [
        ("nanogpt/ckpt.pt", json!({})),
        ("slms/best_model_params.pt", json!({"n_head": 3})),
        ("conversational/tiny_llm_best.pt", json!({})),
    ] {
        let whole = fs::read(&fixture(name)).unwrap();
        let undamaged = read_with(&fixture(name), config.clone()).unwrap();
        for (damage, bytes) in damaged(&whole) {
            let dir: TempDir = tempfile::tempdir().unwrap();
            match read_with(&file_of(&dir, "model.pt", &bytes), config.clone()) {
                Ok(read) => assert!(*read.weights == *undamaged.weights, "{name}: {damage}"),
                Err(e) => assert!(!e.message().is_empty()),
            }
        }
    }
}

/// Damage inside of pickles whose checksums are right.
#[test]
fn damaged_pickles_are_errors() {
    for (name, config) in [("nanogpt/ckpt.pt", json!({})), ("views/model.pt", json!({"n_head": 3}))] {
        let mut archive = Archive::open(&fixture(name)).unwrap();
        let entry = archive.entries.iter().find(|e| e.name.ends_with("data.pkl")).unwrap().clone();
        for (_, pickle) in damaged(&archive.read(&entry).unwrap()) {
            let bytes = changed(&fixture(name), |entries| {
                entries
                    .iter_mut()
                    .find(|(name, _)| name.ends_with("data.pkl"))
                    .unwrap()
                    .1
                    .clone_from(&pickle);
            });
            let dir = tempfile::tempdir().unwrap();
            if let Ok(read) = read_with(&file_of(&dir, "model.pt", &bytes), config.clone()) {
                assert!(read.weights.iter().all(|x| x.is_finite()));
            }
        }
    }
}
