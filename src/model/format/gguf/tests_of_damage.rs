//! Damaged files: each is refused with a message that names what is wrong, and takes no memory to speak of.

use std::path::{Path, PathBuf};

use super::tests::{saved, small};
use super::value::Single;
use super::*;
use crate::base::damage::damaged;
use crate::base::{Files, fs};
use crate::kernel::BlockType;
use crate::model::format::Container;
use crate::model::{Config, llama};

/// A file whose parts may be other than a writer would make them.
struct Raw {
    magic: [u8; 4],
    version: u32,
    /// How many tensors and keys there should be, where that is not so many as there are.
    counts: [Option<u64>; 2],
    metadata: Vec<(Vec<u8>, Vec<u8>)>,
    tensors: Vec<RawTensor>,
    data: Vec<u8>,
}

struct RawTensor {
    name: &'static str,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

fn value(value: impl Into<Value>) -> Vec<u8> {
    let mut out = Vec::new();
    value.into().write(&mut out);
    out
}

/// A value of a type and further numbers.
fn odd(ty: u32, rest: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes(), rest].concat()
}

fn text(text: &[u8], out: &mut Vec<u8>) {
    (text.len() as u64).write(out);
    out.extend_from_slice(text);
}

impl Raw {
    fn whole() -> Self {
        let tensor = |name, dims: &[u64], ty: BlockType, offset| RawTensor {
            name,
            dims: dims.into(),
            ty: ty.id(),
            offset,
        };
        let key = |key: &str, value: Vec<u8>| (key.as_bytes().to_vec(), value);
        Raw {
            magic: MAGIC,
            version: 3,
            counts: [None; 2],
            metadata: vec![
                key("general.architecture", value("llama")),
                key("some.list", value(vec![1u32, 2])),
            ],
            tensors: vec![tensor("a", &[32, 2], BlockType::F32, 0), tensor("b", &[64], BlockType::Q8_0, 256)],
            data: vec![0; 256 + 68],
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Raw)) -> Vec<u8> {
        change(&mut self);
        let mut out = self.magic.to_vec();
        self.version.write(&mut out);
        self.counts[0].unwrap_or(self.tensors.len() as u64).write(&mut out);
        self.counts[1].unwrap_or(self.metadata.len() as u64).write(&mut out);
        for (key, value) in &self.metadata {
            text(key, &mut out);
            out.extend_from_slice(value);
        }
        for tensor in &self.tensors {
            text(tensor.name.as_bytes(), &mut out);
            (tensor.dims.len() as u32).write(&mut out);
            tensor.dims.iter().for_each(|n| n.write(&mut out));
            tensor.ty.write(&mut out);
            tensor.offset.write(&mut out);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend_from_slice(&self.data);
        out
    }

    fn list(&mut self, value: Vec<u8>) {
        self.metadata[1].1 = value;
    }
}

fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The error of the file, or of reading a tensor.
fn error(bytes: &[u8]) -> String {
    let (_dir, path) = written(bytes);
    let read =
        File::open(&path).and_then(|file| file.tensors.iter().try_for_each(|t| file.bytes(t).map(drop)));
    read.expect_err("a damaged file was read").to_string()
}

#[test]
fn what_is_wrong_with_a_damaged_file_is_said() {
    let (_dir, path) = written(&Raw::whole().with(|_| ()));
    let file = File::open(&path).unwrap();
    assert_eq!((file.version, file.tensors[1].shape.as_slice(), file.metadata.len()), (3, &[64][..], 2));

    type Change = fn(&mut Raw);
    let cases: &[(Change, &str)] = &[
        (|r| r.magic = *b"GGML", "begins with \"GGML\", and GGUF with \"GGUF\""),
        (|r| r.version = 1, "is GGUF of version 1: versions 2 and 3 are read"),
        (|r| r.version = 9, "is GGUF of version 9: versions 2 and 3 are read"),
        (|r| r.version = 3 << 24, "is GGUF of version 3 in big endian: little endian is read"),
        (
            |r| r.counts[0] = Some(u64::MAX),
            "there should be 18446744073709551615 tensors of at least 32 bytes",
        ),
        (|r| r.counts[1] = Some(1 << 40), "there should be 1099511627776 keys of at least 13 bytes"),
        (|r| r.counts[1] = Some(3), "the entry of tensor 0 is cut off or damaged"),
        (|r| r.counts[0] = Some(3), "has a tensor `` without a name"),
        (
            |r| r.metadata[1].0 = b"general.architecture".to_vec(),
            "the key `general.architecture` stands twice",
        ),
        (|r| r.metadata[1].0.clear(), "the key `` is empty"),
        (|r| r.metadata[1].0 = vec![b'a', 0xff], "key 1 of the metadata is damaged: before byte"),
        (|r| r.list(odd(13, &[])), "the value of `some.list` is damaged: before byte"),
        (|r| r.list(odd(13, &[])), "13 is no type of values"),
        (|r| r.list(odd(7, &[7])), "the byte 7 is neither true nor false"),
        (|r| r.list(odd(8, &u64::MAX.to_le_bytes())), "18446744073709551615 bytes should follow byte"),
        (|r| r.list(odd(8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe])), "a text is not UTF-8"),
        (|r| r.list(odd(9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])), "an array of arrays"),
        (|r| r.list(odd(9, &[77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])), "77 is no type of values"),
        (
            |r| r.list(odd(9, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
            "there should be 72057594037927936 values",
        ),
        (
            |r| r.list(odd(9, &[12, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255])),
            "values of at least 8 bytes",
        ),
        (
            |r| r.metadata[1] = (b"general.alignment".to_vec(), value(24u32)),
            "`general.alignment` is 24: expected a power",
        ),
        (
            |r| r.metadata[1] = (b"general.alignment".to_vec(), value("32")),
            "`general.alignment` is \"32\": expected",
        ),
        (|r| r.tensors[1].name = "a", "has a tensor `a` which stands twice"),
        (|r| r.tensors[1].name = "", "has a tensor `` without a name"),
        (|r| r.tensors[0].dims.clear(), "the entry of tensor `a` is damaged"),
        (|r| r.tensors[0].dims = vec![1; 5], "it has 5 dimensions, expected 1 to 4"),
        (|r| r.tensors[0].dims = vec![32, 0], "its shape is [0, 32], which holds nothing"),
        (|r| r.tensors[0].dims = vec![1 << 40, 1 << 40], "has more bytes than the file's"),
        (|r| r.tensors[0].dims = vec![u64::MAX], "has more bytes than the file's"),
        (|r| r.tensors[0].dims = vec![32, 100], "as f32 has more bytes than the file's"),
        (|r| r.tensors[1].dims = vec![48], "rows of 48 are no whole blocks of 32, as q8_0 has them"),
        (|r| r.tensors[0].ty = 10, "tensor `a` is Q2_K"),
        (|r| r.tensors[0].ty = 99, "tensor `a` is of a type that is not known, 99"),
        (|r| r.tensors[1].offset = 257, "begins at offset 257, which is no multiple of 32"),
        (|r| r.tensors[1].offset = 288, "tensor `b` has 68 bytes from offset 288 on, beyond the file's"),
        (|r| r.tensors[1].offset = u64::MAX - 31, "beyond the file's"),
        (|r| r.tensors[1].offset = 224, "the tensors `a` and `b` overlap"),
        (|r| r.data[4..8].copy_from_slice(&f32::NAN.to_le_bytes()), "tensor `a`: number 1 is NaN"),
        (|r| r.data[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes()), "tensor `a`: number 2 is inf"),
        (
            |r| r.data[290..292].copy_from_slice(&[0, 0x7c]),
            "tensor `b`: the scale or min of number 32 is inf",
        ),
    ];
    for (change, expected) in cases {
        let found = error(&Raw::whole().with(change));
        assert!(found.contains(expected) && found.contains("m.gguf"), "{expected}\nnot in: {found}");
    }
    let whole = Raw::whole().with(|_| ());
    assert!(error(&[]).contains("the header is cut off or damaged: 4 bytes should follow byte 0"));
    assert!(error(&whole[..whole.len() - 1]).contains("beyond the file's"));
}

fn import(path: &Path) -> crate::base::Result<()> {
    Gguf.read(&Files::at(path)?).map(drop)
}

/// Every variant is read or refused, whatever it says.
#[test]
fn damaged_models_are_read_or_refused() {
    let mut refused = 0;
    for config in [&small()[0], &small()[1], &small()[4]] {
        let (_dir, path, _) = saved(config, BlockType::Q8_0);
        let all = damaged(&fs::read(&path).unwrap());
        for (_, bytes) in &all {
            let (_dir, path) = written(bytes);
            refused += usize::from(import(&path).is_err());
        }
    }
    assert!(refused > 100, "{refused} of the variants were noticed");
}

/// A model whose keys or tensors are changed.
fn changed(config: &Config, change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<Declared>)) -> String {
    let (_dir, path, _) = saved(config, BlockType::F32);
    let file = File::open(&path).unwrap();
    let mut metadata = file.metadata.clone();
    let declared = |t: &Tensor| Declared { name: t.name.clone(), shape: t.shape.clone() };
    let mut tensors: Vec<_> = file.tensors.iter().map(declared).collect();
    change(&mut metadata, &mut tensors);
    let other = path.with_file_name("other.gguf");
    let mut zeros = |i: usize| {
        let tensor: &Declared = &tensors[i];
        Ok((BlockType::F32, vec![0; 4 * tensor.shape.iter().product::<usize>()]))
    };
    write(&other, &metadata, &tensors, &mut zeros).unwrap();
    import(&other).expect_err("a damaged model was read").to_string()
}

#[test]
fn what_is_wrong_with_a_model_is_said() {
    let set = |key: &'static str, value: Value| {
        changed(&small()[1], |keys, _| {
            keys.retain(|(k, _)| k != key);
            keys.push((key.to_string(), value));
        })
    };
    let cases = [
        (
            "general.architecture",
            Value::from("mamba"),
            "`general.architecture` is \"mamba\": expected `gpt2`, `llama`",
        ),
        ("general.architecture", Value::from(3u32), "`general.architecture` is 3: expected"),
        ("general.architecture", Value::from("qwen3"), "`qwen3.embedding_length` is missing"),
        ("llama.block_count", Value::from("two"), "`llama.block_count` is \"two\": expected a whole number"),
        ("llama.block_count", Value::from(-2i32), "`llama.block_count` is -2: expected a whole number"),
        (
            "llama.block_count",
            Value::from(9_000_000u32),
            "`llama.block_count` is 9000000: the file has 21 tensors",
        ),
        (
            "llama.block_count",
            Value::from(3u64),
            "no tensor `blk.2.attn_norm.weight`, which is part of the model",
        ),
        (
            "llama.block_count",
            Value::from(1u8),
            "tensor `blk.1.attn_norm.weight` of shape [64] is no part of the model",
        ),
        (
            "llama.attention.head_count",
            Value::from(0u32),
            "`llama.attention.head_count` is 0: expected at least 1",
        ),
        (
            "llama.attention.head_count_kv",
            Value::from(3u32),
            "`llama.attention.head_count_kv` is 3, which does not divide",
        ),
        (
            "llama.attention.value_length",
            Value::from(7u32),
            "`llama.attention.value_length` is 7: what can be computed is 32",
        ),
        (
            "llama.rope.dimension_count",
            Value::from(16u32),
            "`llama.rope.dimension_count` is 16: what can be computed is 32",
        ),
        ("llama.attention.layer_norm_rms_epsilon", Value::from(f32::NAN), "is NaN: expected a number"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::from(0f32),
            "`llama.attention.layer_norm_epsilon` must be above 0",
        ),
        (
            "llama.feed_forward_length",
            Value::from(100u32),
            "tensor `blk.0.ffn_gate.weight` has shape [256, 64], expected [100, 64]",
        ),
        ("llama.vocab_size", Value::from(7u32), "`llama.vocab_size` is 7: `token_embd.weight` has 1000 rows"),
        ("llama.expert_count", Value::from(8u32), "`llama.expert_count` is 8: what can be computed is 0"),
        ("llama.rope.scaling.type", Value::from("longrope"), "`llama.rope.scaling.type` is \"longrope\""),
        (
            "llama.rope.scaling.factor",
            Value::from(2f32),
            "`llama.rope.scaling.factor` is 2: linear scaling is not computed",
        ),
        (
            "llama.attention.sliding_window",
            Value::from(4u32),
            "`llama.attention.sliding_window` is 4: no such key is known",
        ),
        ("split.count", Value::from(2u16), "the file is one of 2 parts of a model"),
        (
            "tokenizer.ggml.model",
            Value::from("rwkv"),
            "`tokenizer.ggml.model` is `rwkv`, which is not supported",
        ),
        ("tokenizer.ggml.model", Value::from("gpt2"), "has no key `tokenizer.ggml.tokens`"),
        (
            "tokenizer.ggml.model",
            Value::from(vec![1u8]),
            "`tokenizer.ggml.model` is [1] 1 values: expected a text",
        ),
    ];
    for (key, value, expected) in cases {
        let found = set(key, value);
        assert!(found.contains(expected), "{expected}\nnot in: {found}");
    }
    let yarn = &small()[3];
    let found =
        changed(yarn, |keys, _| keys.push(("qwen3.rope.scaling.yarn_log_multiplier".into(), 0.1f32.into())));
    assert!(
        found.contains("`qwen3.rope.scaling.yarn_log_multiplier` is 0.1: YaRN is computed without it"),
        "{found}"
    );
    let found = changed(&small()[1], |_, tensors| {
        tensors.push(Declared { name: "rope_freqs.weight".into(), shape: vec![16] })
    });
    assert!(found.contains("`rope_freqs.weight`: scaled frequencies"), "{found}");
    let found = changed(&small()[1], |_, tensors| tensors[0].name = "embd".into());
    assert!(found.contains("no tensor `token_embd.weight`"), "{found}");
    let found = changed(&small()[1], |keys, tensors| {
        tensors.clear();
        keys.push(("tokenizer.ggml.tokens".into(), vec!["a".to_string()].into()));
    });
    assert!(found.contains("holds a vocabulary, but no tensors: it is no model"), "{found}");
    let own = |change: fn(&mut String)| {
        changed(&small()[4], |keys, _| {
            let (_, value) = keys.iter_mut().find(|(key, _)| key == "tinylm.config").unwrap();
            let mut text = value.as_str().unwrap().to_string();
            change(&mut text);
            *value = text.into();
        })
    };
    assert!(own(|text| text.truncate(9)).contains("`tinylm.config` is no JSON"));
    assert!(own(|text| *text = text.replace("d_ff", "f")).contains("`d_ff` is missing"));
    let found = own(|text| *text = text.replace("\"n_layer\":1", "\"n_layer\":9999999"));
    assert!(
        found.contains("`tinylm.config` says `n_layer` is 9999999, more than there are tensors"),
        "{found}"
    );
}

#[test]
fn what_llama_cpp_does_not_compute_is_refused_with_the_reason() {
    for preset in &crate::model::PRESETS {
        let architecture = Architecture::of(&preset.config);
        let reason = Gguf.refuses(&preset.config, &Default::default());
        assert_eq!(reason.is_some(), architecture == Architecture::Tinylm, "{}", preset.name);
        assert!(reason.is_none_or(|why| !why.ends_with("this architecture")), "{}", preset.name);
    }
    let why = |config: Config| why_not_llama_cpp(&config).unwrap();
    let base = llama(9, 8, 1, 2, 4);
    assert_eq!(
        why(Config { placement: crate::model::Placement::Post, ..base.clone() }),
        "norms after each sublayer (`placement: post`)"
    );
    assert_eq!(
        why(Config { residual_mix: true, ..base.clone() }),
        "embeddings mixed into each block (`residual_mix`)"
    );
    assert_eq!(
        why(Config { qk_norm: true, attn_bias: true, ..base }),
        "biases with norms of queries and keys"
    );
}
