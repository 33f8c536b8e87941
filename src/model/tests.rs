//! The model against its plain twin, against itself with a cache, and against files that
//! are wrong.

use std::path::PathBuf;

use candle_core::Device;

use super::reference::Reference;
use super::*;
use crate::base::{Rng, fs};
use crate::kernel::{Dtype, Isa, Team};

fn tiny() -> Config {
    Config { d_ff: 16, dropout: 0.0, ..gpt2(11, 8, 2, 2, 6) }
}

/// Odd sizes, so that no vector, panel or step comes out even, and several pieces in a batch.
pub(super) fn odd() -> Config {
    Config { d_ff: 101, dropout: 0.2, ..gpt2(77, 54, 2, 3, 150) }
}

/// Architectures that between them have every part, in odd sizes.
pub(super) fn architectures() -> Vec<(&'static str, Config)> {
    let llama = Config { d_ff: 37, dropout: 0.2, ..llama(77, 54, 2, 3, 150) };
    let post = Config { d_ff: 101, dropout: 0.2, ..post_norm(77, 54, 2, 3, 150) };
    vec![
        ("GPT-2", odd()),
        ("exact GELU, an output of its own, biases in one half", {
            Config { activation: Activation::Gelu, tied: false, attn_bias: false, ..odd() }
        }),
        ("post-norm, sinusoidal, scaled, head with a bias", {
            Config { embed_scale: true, head_bias: true, ..post.clone() }
        }),
        ("post-norm of RMSNorm, tied head with a bias", {
            Config { norm: Norm::RmsNorm, norm_bias: false, tied: true, head_bias: true, ..post }
        }),
        ("rotary, multi-query, SwiGLU", Config { n_kv_head: 1, ..llama.clone() }),
        ("YaRN, grouped queries, GeGLU, biases", {
            let rope_scaling = Some(Yarn {
                factor: 4.0,
                original_seq_len: 40,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
            });
            Config {
                n_head: 4,
                n_kv_head: 2,
                d_head: 14,
                rope_scaling,
                activation: Activation::GeluTanh,
                attn_bias: true,
                mlp_bias: true,
                ..llama.clone()
            }
        }),
        ("QK-norm, heads wider than the model", {
            Config { n_head: 4, n_kv_head: 2, d_head: 34, qk_norm: true, ..llama.clone() }
        }),
        ("no weights of norms, mix, cap, squared ReLU, a norm of the embedding", {
            Config {
                norm_weight: false,
                qk_norm: true,
                embed_norm: true,
                residual_mix: true,
                activation: Activation::Relu2,
                gated: false,
                logit_cap: Some(5.0),
                ..llama.clone()
            }
        }),
        ("no positions, LayerNorm without bias, a norm of the embedding, SiLU", {
            Config {
                position: Position::None,
                norm_bias: false,
                embed_norm: true,
                residual_mix: true,
                activation: Activation::Silu,
                ..odd()
            }
        }),
    ]
}

/// A micro-batch has two chunks of rows, and each of them three blocks of the vocabulary.
fn long() -> Config {
    Config { vocab_size: 801, seq_len: 350, n_layer: 1, ..odd() }
}

/// Fresh weights, GPT-2's larger than a fresh model's, so that every part matters but no softmax is nearly
/// one-hot, which f32 computes badly.
pub(super) fn model(config: &Config, seed: u64) -> Transformer {
    let mut gpt = Transformer::fresh(config, seed);
    let mut rng = Rng::new(seed, "more");
    let scale = if config.init == Init::Gpt2 { 4.0 } else { 1.0 };
    gpt.weights.iter_mut().for_each(|w| *w = *w * scale + (rng.normal() * 0.05) as f32);
    gpt
}

/// `n` sequences, a fifth of whose targets don't count.
pub(super) fn batch(config: &Config, n: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut rng = Rng::new(seed, "batch");
    let mut id = || rng.index(config.vocab_size) as u32;
    let ids: Vec<u32> = (0..n * config.seq_len).map(|_| id()).collect();
    let targets = (0..ids.len()).map(|i| if i % 5 == 3 { IGNORE } else { id() }).collect();
    (ids, targets)
}

/// Factors of both signs, some of them 0.
fn weights(n: usize) -> Vec<f32> {
    (0..n).map(|i| [1.0, 0.5, 0.0, 2.5, -0.3][i % 5]).collect()
}

/// A teacher's, for `n` rows.
struct SoftTargets {
    k: usize,
    ids: Vec<u32>,
    probabilities: Vec<f32>,
}

impl SoftTargets {
    fn new(config: &Config, n: usize, k: usize) -> Self {
        let mut rng = Rng::new(k as u64, "teacher");
        let (mut ids, mut probabilities) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let mut all: Vec<u32> = (0..config.vocab_size as u32).collect();
            rng.shuffle(&mut all);
            ids.extend_from_slice(&all[..k]);
            let sizes: Vec<f64> = (0..=k).map(|_| (2.0 * rng.normal()).exp()).collect();
            let sum: f64 = sizes.iter().sum();
            probabilities.extend(sizes[1..].iter().map(|x| (x / sum) as f32));
        }
        SoftTargets { k, ids, probabilities }
    }

    fn soft(&self, temperature: f32, share: f32) -> Soft<'_> {
        Soft { k: self.k, ids: &self.ids, probabilities: &self.probabilities, temperature, share }
    }
}

pub(super) fn logits(gpt: &Transformer, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut pass = Executor::forward_only(&gpt.config, Team::new(2).in_dtype(gpt.products()));
    let mut rows = Vec::new();
    let every = vec![0; ids.len()];
    let all = Sequences::new(ids, &every, ids.len());
    pass.each_logits(gpt, all, |_, logits, _| {
        rows.extend(logits.chunks(gpt.config.vocab_size).map(<[f32]>::to_vec));
    });
    rows
}

/// The max difference, as a share of the max of the values.
pub(super) fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| x.is_finite()), "not a number, which no maximum shows");
    let size = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    worst / size.max(1e-12)
}

/// Dropout, targets that don't count, several pieces and odd sizes all at once, tensor by tensor.
#[test]
fn loss_and_gradients_are_those_of_the_plain_twin() {
    let others = [("one", Config { dropout: 0.0, ..odd() }), ("tiny", tiny()), ("long", long())];
    let all = architectures().into_iter().map(|(name, config)| (name, config, 5));
    let others = others.into_iter().map(|(name, config)| (name, config, 3));
    for (name, config, n) in all.chain(others) {
        let gpt = model(&config, 3);
        let (ids, targets) = batch(&config, n, 4);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut pass = Executor::training(&config, Team::new(2));
        let mut plain = Reference::new(&gpt, &Device::Cpu).unwrap();
        let (weights, soft) = (weights(ids.len()), SoftTargets::new(&config, ids.len(), 9));
        let blended = Sequences { weights: Some(&weights), soft: Some(soft.soft(2.0, 0.7)), ..all };
        for (what, all, smoothing, tolerance) in [
            ("plain", all, 0.0, 1e-4),
            ("smoothed", all, 0.1, 1e-4),
            // Of both signs, so that rounding is a larger part of what is left.
            ("weights and soft targets", blended, 0.1, 2e-4),
        ] {
            let mut gradient = vec![0.0; gpt.weights.len()];
            let loss = pass.gradient(&gpt, all, 99, smoothing, &mut gradient);
            plain = plain.with_smoothing(f64::from(smoothing));
            let (expected, gradients) = plain.gradient(&gpt, all, Some(99)).unwrap();
            let off = (loss - expected).abs();
            assert!(off < 1e-5 * expected.abs().max(10.0), "{name}, {what}: {loss}, plainly {expected}");
            for p in gpt.parameters() {
                let difference = gap(&gradient[p.range.clone()], &gradients[p.range.clone()]);
                assert!(difference < tolerance, "{name}, {what}: {}: {difference} of its max", p.name);
            }
        }
        let plain = plain.with_smoothing(0.0);
        let without = plain.loss(&gpt, all, None).unwrap().to_scalar::<f32>().unwrap();
        let found = pass.loss(&gpt, all);
        assert!((found - f64::from(without)).abs() < 1e-5 * found, "{found}, plainly {without}");
        let without = plain.loss(&gpt, blended, None).unwrap().to_scalar::<f32>().unwrap();
        let found = pass.loss(&gpt, blended);
        assert!(
            (found - f64::from(without)).abs() < 1e-5 * found.abs().max(10.0),
            "{found}, plainly {without}"
        );
    }
}

/// What is dropped under a key is the same as in the gradient, and each sequence has its own sum.
#[test]
fn nats_of_sequences_are_those_that_the_gradient_sums() {
    for (name, config) in architectures() {
        let gpt = model(&config, 3);
        // More than a round of micro-batches; one sequence of which nothing counts.
        let (ids, mut targets) = batch(&config, 18, 4);
        targets[..config.seq_len].fill(IGNORE);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let mut pass = Executor::training(&config, Team::new(2));
        let nats = pass.sequence_nats(&gpt, all, Some(99));
        assert_eq!((nats.len(), nats[0]), (18, 0.0));
        assert_ne!(nats, pass.sequence_nats(&gpt, all, Some(98)), "{name}");
        // Factors that keep sequences apart.
        let factor = |i: usize| [0.0, 1.0, -1.5, 3.0][i / config.seq_len % 4];
        let weights: Vec<f32> = (0..ids.len()).map(factor).collect();
        let mut gradient = vec![0.0; gpt.weights.len()];
        let weighted = Sequences { weights: Some(&weights), ..all };
        let sum = pass.gradient(&gpt, weighted, 99, 0.0, &mut gradient);
        let expected: f64 =
            nats.iter().zip(weights.iter().step_by(config.seq_len)).map(|(x, w)| x * f64::from(*w)).sum();
        assert!((sum - expected).abs() < 1e-9 * expected.abs().max(1.0), "{name}: {sum}, not {expected}");
        let plain: f64 = pass.sequence_nats(&gpt, all, None).iter().sum();
        let loss = pass.loss(&gpt, all);
        assert!((plain - loss).abs() < 1e-9 * loss, "{name}: {plain}, not {loss}");
    }
}

#[test]
fn the_likeliest_ids_are_those_of_the_mean_distribution() {
    let (one, other) = (odd(), Config { n_layer: 1, ..odd() });
    let (one, other) = (model(&one, 3), model(&other, 4));
    let (ids, _) = batch(&one.config, 3, 4);
    // Rows count whatever their targets are.
    let (nothing, length, k) = (vec![IGNORE; ids.len()], one.config.seq_len, 7);
    let all = Sequences::new(&ids, &nothing, length);
    let distribution = |logits: &[f32]| {
        let exps: Vec<f64> = logits.iter().map(|x| (f64::from(*x) / 2.0).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
    };
    let rows = |gpt: &Transformer| -> Vec<Vec<f64>> {
        ids.chunks(length).flat_map(|ids| logits(gpt, ids)).map(|row| distribution(&row)).collect()
    };
    let (first, second) = (rows(&one), rows(&other));
    for several in [false, true] {
        let (mut named, mut p) = (vec![0; ids.len() * k], vec![0.0; ids.len() * k]);
        let (mut pass, mut beside) = (
            Executor::training(&one.config, Team::new(2)),
            Executor::forward_only(&other.config, Team::new(2)),
        );
        if several {
            let teachers = &mut [(&mut pass, &one), (&mut beside, &other)];
            mean_top_k(teachers, all, 2.0, k, &mut named, &mut p);
        } else {
            mean_top_k(&mut [(&mut pass, &one)], all, 2.0, k, &mut named, &mut p);
        }
        for (i, (named, p)) in named.chunks(k).zip(p.chunks(k)).enumerate() {
            let mean = |id: usize| if several { (first[i][id] + second[i][id]) / 2.0 } else { first[i][id] };
            assert!(p.windows(2).all(|pair| pair[0] >= pair[1]), "row {i}: {p:?}");
            for (id, p) in named.iter().zip(p) {
                let expected = mean(*id as usize);
                assert!(
                    (f64::from(*p) - expected).abs() < 1e-5 * expected,
                    "row {i}, id {id}: {p}, not {expected}"
                );
            }
            let least = f64::from(p[k - 1]) * (1.0 + 1e-5);
            let others = (0..one.config.vocab_size).filter(|id| !named.contains(&(*id as u32)));
            assert!(others.into_iter().all(|id| mean(id) <= least), "row {i} lacks a likelier id");
        }
    }
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_instructions() {
    // Fewer pieces than threads, several of them, and more than a round of them.
    let (all, best) = (Isa::available(), vec![Isa::best()]);
    let sizes = [(odd(), 1, &all), (odd(), 6, &all), (odd(), 18, &best), (long(), 5, &all)];
    let others = architectures().into_iter().map(|(_, config)| (config, 4, &all));
    for (config, n, isas) in sizes.into_iter().chain(others) {
        let gpt = model(&config, 5);
        let (ids, mut targets) = batch(&config, n, 6);
        if n == 5 {
            // Nothing of the third piece counts, and of the fourth so little that it is one chunk.
            targets[700..1200].fill(IGNORE);
        }
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let (weights, soft) = (weights(ids.len()), SoftTargets::new(&config, ids.len(), 5));
        let blended = Sequences { weights: Some(&weights), soft: Some(soft.soft(1.5, 0.5)), ..all };
        let run = |threads: usize, isa: Isa| {
            let mut gradient = vec![0.0; gpt.weights.len()];
            let mut pass = Executor::training(&config, Team::with(threads, isa));
            let first = (pass.gradient(&gpt, all, 7, 0.0, &mut gradient), pass.loss(&gpt, all));
            // From the last norm on all architectures are alike.
            let others = (n != 4).then(|| {
                let losses = (pass.gradient(&gpt, blended, 8, 0.0, &mut gradient), pass.loss(&gpt, blended));
                let (mut ids, mut probabilities) = (vec![0; 5 * ids.len()], vec![0.0; 5 * ids.len()]);
                mean_top_k(&mut [(&mut pass, &gpt)], all, 1.5, 5, &mut ids, &mut probabilities);
                (losses, ids, probabilities, pass.sequence_nats(&gpt, all, Some(7)))
            });
            (first, others, gradient)
        };
        let first = run(1, Isa::best());
        for isa in isas {
            for threads in [1, 2, 3, 8] {
                assert!(run(threads, *isa) == first, "{n} pieces, {threads} threads of {}", isa.name());
            }
        }
    }
}

/// Not a hang, though others wait for the piece that failed; and the memory is good for the next batch.
#[test]
fn a_panic_in_one_piece_ends_the_batch() {
    let config = odd();
    let gpt = model(&config, 5);
    let (ids, targets) = batch(&config, 6, 6);
    let wrong: Vec<u32> =
        targets.iter().enumerate().map(|(i, t)| if i == 310 { 10_000 } else { *t }).collect();
    let mut pass = Executor::training(&config, Team::new(3));
    let mut gradient = |targets: &[u32]| {
        let all = Sequences::new(&ids, targets, config.seq_len);
        let mut gradient = vec![0.0; gpt.weights.len()];
        pass.gradient(&gpt, all, 7, 0.0, &mut gradient);
        gradient
    };
    let first = gradient(&targets);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gradient(&wrong)));
    assert!(caught.is_err());
    assert!(gradient(&targets) == first);
}

#[test]
fn parameters_are_counted_as_they_are() {
    for preset in &PRESETS {
        let layout = Layout::new(&preset.config);
        let sum: usize = layout.parameters.iter().map(|p| p.range.len()).sum();
        assert_eq!(sum, preset.config.parameters(), "{}", preset.name);
        assert_eq!(sum, layout.len);
    }
}

#[test]
fn what_comes_later_changes_nothing_before_it() {
    let gpt = Transformer::fresh(&tiny(), 3);
    let (a, b) = (logits(&gpt, &[1, 2, 3, 4, 5]), logits(&gpt, &[1, 2, 3, 9, 10]));
    assert_eq!(a[..3], b[..3]);
    assert_ne!(a[3], b[3]);
}

/// To the bit: a row's numbers do not depend on what goes along with it, nor on whether weights of bf16
/// are read as such.
#[test]
fn a_cache_gives_what_the_whole_gives_and_texts_don_t_mix() {
    let all = architectures().into_iter().map(|(_, config)| config).chain([tiny()]);
    let kinds = all.flat_map(|c| Dtype::ALL.map(|dtype| (c.clone(), dtype)));
    for (config, dtype) in kinds {
        let gpt = model(&config, 4).in_dtype(dtype);
        let n = config.seq_len;
        let (ids, _) = batch(&config, 2, 8);
        let (ids, other) = ids.split_at(n);
        let whole = logits(&gpt, ids);
        for step in [1, n / 3, n] {
            let (mut cache, mut beside) = (Cache::default(), Cache::default());
            let mut decoder = Decoder::new(&gpt, Team::new(2));
            for start in (0..n).step_by(step) {
                let end = (start + step).min(n);
                let mut texts = [
                    Reading { cache: &mut cache, ids: &ids[start..end] },
                    Reading { cache: &mut beside, ids: &other[start..end] },
                ];
                let next = decoder.read(&mut texts).unwrap();
                assert_eq!(next[..config.vocab_size], whole[end - 1], "at {end}");
            }
            let full = decoder.read(&mut [Reading { cache: &mut cache, ids: &[1] }]);
            assert!(full.is_err(), "there are {n} positions");
            // Read anew from the middle: by the cache itself, and by a copy of its beginning.
            let mut copy = cache.prefix(n / 2, &config);
            cache.truncate(n / 2);
            copy.shrink();
            copy.reserve(&config);
            for mut cache in [cache, copy] {
                let next = decoder.read(&mut [Reading { cache: &mut cache, ids: &ids[n / 2..] }]).unwrap();
                assert_eq!(next, &whole[n - 1][..]);
            }
        }
        let strange = [config.vocab_size as u32];
        let reading = Reading { cache: &mut Cache::default(), ids: &strange };
        let refused = Decoder::new(&gpt, Team::new(1)).read(&mut [reading]).unwrap_err();
        assert!(refused.to_string().contains("is beyond the model's"), "{refused}");
    }
}

#[test]
fn a_model_in_bf16_is_nearly_the_model() {
    let (gpt, ids) = (model(&odd(), 4), [1, 2, 3, 4, 5]);
    let (plain, rounded) = (logits(&gpt, &ids), logits(&model(&odd(), 4).in_dtype(Dtype::Bf16), &ids));
    let far = plain.iter().flatten().zip(rounded.iter().flatten()).map(|(a, b)| (a - b).abs());
    let (far, size) = (far.fold(0f32, f32::max), plain.iter().flatten().fold(0f32, |m, x| m.max(x.abs())));
    // 8 bits of precision: 2^-9 a weight, some of it adding up over the layers.
    assert!(far > 0.0 && far < 0.02 * size, "{far} of {size}");
}

#[test]
fn dropout_follows_its_key() {
    let gpt = model(&odd(), 1);
    let (ids, targets) = batch(&gpt.config, 1, 1);
    let all = Sequences::new(&ids, &targets, gpt.config.seq_len);
    let mut pass = Executor::training(&gpt.config, Team::new(1));
    let mut loss = |key| pass.gradient(&gpt, all, key, 0.0, &mut vec![0.0; gpt.weights.len()]);
    assert_eq!(loss(1), loss(1));
    assert_ne!(loss(1), loss(2));
}

/// A tiny model's two files.
fn saved() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (config, weights) = (dir.path().join(CONFIG_FILE), dir.path().join(WEIGHTS_FILE));
    let gpt = Transformer::fresh(&tiny(), 5);
    fs::write(&config, gpt.config.to_json(Some(2), Some(3)).unwrap().to_string().as_bytes()).unwrap();
    fs::write(&weights, &gpt.to_safetensors().unwrap()).unwrap();
    (dir, config, weights)
}

#[test]
fn a_saved_model_reads_back_and_saves_to_the_same_bytes() {
    let (_dir, config, weights) = saved();
    let gpt = Transformer::load(&config, &weights).unwrap();
    assert_eq!(gpt.config, tiny());
    assert_eq!(gpt.to_safetensors().unwrap(), fs::read(&weights).unwrap());
    assert_eq!(Transformer::fresh(&tiny(), 5).to_safetensors().unwrap(), fs::read(&weights).unwrap());
    assert_ne!(Transformer::fresh(&tiny(), 6).to_safetensors().unwrap(), fs::read(&weights).unwrap());
}

#[test]
fn wrong_files_are_refused_with_the_tensor_or_field_at_fault() {
    let (_dir, config, weights) = saved();
    let message =
        |config: &PathBuf, weights: &PathBuf| Transformer::load(config, weights).err().unwrap().to_string();
    let text = String::from_utf8(fs::read(&config).unwrap()).unwrap();
    fs::write(&config, text.replace("\"n_embd\":8", "\"n_embd\":16").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("tensor `transformer.wte.weight` has shape [11, 8]"));
    fs::write(&config, text.replace("\"n_layer\":2", "\"n_layer\":3").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("has no tensor `transformer.h.2.ln_1.weight`"));
    fs::write(&config, text.replace("\"gpt2\"", "\"llama\"").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("`num_attention_heads` is missing: expected a whole number"));
    fs::write(&config, text.replace("\"n_head\":2", "\"n_head\":3").as_bytes()).unwrap();
    assert!(message(&config, &weights).contains("these heads do not divide `n_embd` 8"));
    fs::write(&config, text.as_bytes()).unwrap();
    let bytes = fs::read(&weights).unwrap();
    let mut other = bytes.clone();
    let at = bytes.windows(3).position(|w| w == b"F32").unwrap();
    other[at..at + 3].copy_from_slice(b"I32");
    fs::write(&weights, &other).unwrap();
    assert!(message(&config, &weights).contains("is I32, expected F32, F16 or BF16"));
    fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    assert!(message(&config, &weights).contains("is not a whole safetensors file"));
}

#[test]
fn a_model_with_more_rows_says_the_same_of_what_it_knew() {
    let gpt = Transformer::fresh(&tiny(), 8);
    let rows: Vec<Option<usize>> = (0..14).map(|i| (i < 11).then_some(i)).collect();
    let wider = gpt.with_rows(&rows, 1);
    let (old, new) = (logits(&gpt, &[1, 2, 3]), logits(&wider, &[1, 2, 3]));
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(new.len(), 14);
        assert_eq!(old[..], new[..11]);
    }
}
