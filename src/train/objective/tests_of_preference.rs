//! The loss of preferences against PyTorch, its gradient against finite differences, and what the reference is
//! kept as.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::base::Quiet;
use crate::base::fs;
use crate::kernel::Team;
use crate::model::{CONFIG_FILE, Config, WEIGHTS_FILE, gpt2};
use crate::tokenizer::chat::Rendered;
use crate::train::Places;
use crate::train::data::{Pairs, RenderedPair};

/// A prompt, which ends with the opening of the answer, and its answers.
fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> RenderedPair {
    let side = |answer: &[u32]| {
        let (start, ids) = (prompt.len(), [prompt, answer].concat());
        let target = (0..ids.len()).map(|i| i >= start).collect();
        Rendered {
            target,
            turns: vec![1..start - 1, start - 1..ids.len()],
            openings: vec![1, 1],
            begin: 1,
            head: 1,
            ids,
        }
    };
    RenderedPair { chosen: side(chosen), rejected: side(rejected), prompt: 1 }
}

fn some_pairs(n: u32) -> Pairs {
    let some = |i: u32, n: u32| -> Vec<u32> { (0..n).map(|k| 7 + (i * 5 + k * 3 + k * k) % 6).collect() };
    let pairs = (0..n).map(|i| {
        let prompt = [&[2, 4][..], &some(i, i % 4), &[5]].concat();
        pair(&prompt, &some(i + 1, 1 + i % 5), &some(i + 2, 2 + i % 3))
    });
    Pairs::new(pairs, 12, 0)
}

fn model(dropout: f64, seed: u64) -> Transformer {
    let mut transformer = Transformer::fresh(&Config { d_ff: 16, dropout, ..gpt2(13, 8, 2, 2, 12) }, seed);
    // Larger weights than fresh ones, so that every part of the model matters.
    transformer.weights.iter_mut().for_each(|w| *w *= 3.0);
    transformer
}

fn executor(transformer: &Transformer, threads: usize) -> Executor {
    Executor::training(&transformer.config, Team::new(threads))
}

fn nats(transformer: &Transformer, pairs: &Pairs) -> Vec<PairNats> {
    pair_nats(&mut executor(transformer, 2), transformer, pairs, &Quiet).unwrap()
}

fn batch(pairs: &Pairs) -> Batch {
    let mut batch = Batch::default();
    batch.fill(pairs, 0..pairs.rows());
    batch
}

const DPO: Dpo = Dpo { beta: 0.5, label_smoothing: 0.2, nll_weight: 0.3 };

#[test]
fn the_derivatives_of_a_pairs_loss_are_its_slopes() {
    let all = [
        ([3.0, 5.0], [4.0, 4.5]),
        ([90.0, 5.0], [4.0, 60.0]),
        ([1.0, 2000.0], [2.0, 3.0]),
        ([2.0, 2.0], [2.0, 2.0]),
    ];
    for (nats, reference) in all {
        let (_, slopes) = DPO.loss(nats, reference, 7);
        for side in 0..2 {
            let at = |change: f64| {
                let mut nats = nats;
                nats[side] += change;
                DPO.loss(nats, reference, 7).0
            };
            let measured = (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((measured - slopes[side]).abs() < 1e-7, "{nats:?}, {side}: {}, {measured}", slopes[side]);
        }
    }
    // Where nothing was learned yet, of equal answers: ln 2, and half of β pulls at each.
    let plain = Dpo { beta: 0.1, label_smoothing: 0.0, nll_weight: 0.0 };
    let (loss, slopes) = plain.loss([7.0, 9.0], [7.0, 9.0], 3);
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-15 && slopes == [0.05, -0.05], "{loss}, {slopes:?}");
}

/// Also with dropout: the loss that comes with the gradient is that under the same key.
#[test]
fn the_gradient_of_preferences_is_the_slope() {
    let pairs = some_pairs(9);
    let reference = nats(&model(0.0, 5), &pairs);
    for dropout in [0.0, 0.2] {
        let mut transformer = model(dropout, 2);
        let mut objective = Preference::new(DPO, reference.clone(), Vec::new());
        let (mut executor, batch) = (executor(&transformer, 1), batch(&pairs));
        let mut slope = vec![0.0; transformer.weights.len()];
        let mut unused = slope.clone();
        objective.gradient(&mut executor, &transformer, &batch, 7, &mut slope);
        for i in (0..slope.len()).step_by(37) {
            let (h, at) = (1e-2, transformer.weights[i]);
            let mut loss_at = |weight: f32| {
                transformer.weights[i] = weight;
                objective.gradient(&mut executor, &transformer, &batch, 7, &mut unused).nats
            };
            let (above, below) = (loss_at(at + h), loss_at(at - h));
            loss_at(at);
            let (measured, found) = ((above - below) / f64::from(2.0 * h), f64::from(slope[i]));
            assert!(
                (measured - found).abs() < 1e-2 + 2e-2 * found.abs(),
                "{dropout}, {i}: {found}, measured {measured}"
            );
        }
    }
}

#[test]
fn the_bytes_of_preferences_do_not_depend_on_threads() {
    let pairs = some_pairs(60);
    let learn = |threads: usize| {
        let transformer = model(0.1, 2);
        let reference =
            pair_nats(&mut executor(&transformer, threads), &transformer, &pairs, &Quiet).unwrap();
        let mut objective = Preference::new(DPO, reference.clone(), reference.clone());
        let mut gradient = vec![0.0; transformer.weights.len()];
        let mut executor = executor(&transformer, threads);
        let loss = objective.gradient(&mut executor, &transformer, &batch(&pairs), 3, &mut gradient);
        let validation = objective.loss(&mut executor, &transformer, &batch(&pairs));
        (gradient, loss, validation, reference)
    };
    let one = learn(1);
    assert!(one.0.iter().any(|x| *x != 0.0));
    for threads in [2, 3] {
        assert!(learn(threads) == one, "{threads} threads");
    }
}

/// Before training all rewards are equal: every pair is a tie. Afterwards the chosen answers win.
#[test]
fn it_learns_what_is_preferred_and_reports_it() {
    let pairs = some_pairs(12);
    let mut transformer = model(0.0, 2);
    let reference = nats(&transformer, &pairs);
    let plain = Dpo { beta: 0.1, label_smoothing: 0.0, nll_weight: 0.0 };
    let mut objective = Preference::new(plain, reference.clone(), reference);
    let (mut executor, batch) = (executor(&transformer, 2), batch(&pairs));
    let before = objective.loss(&mut executor, &transformer, &batch);
    assert!((before.mean() - std::f64::consts::LN_2).abs() < 1e-12 && before.targets == 12);
    assert_eq!(objective.report(), [("accuracy", 0.5), ("margin", 0.0)]);
    assert_eq!(objective.report(), [], "nothing was validated since");
    for _ in 0..60 {
        let mut gradient = vec![0.0; transformer.weights.len()];
        objective.gradient(&mut executor, &transformer, &batch, 0, &mut gradient);
        transformer.weights.iter_mut().zip(gradient).for_each(|(weight, slope)| *weight -= 0.05 * slope);
    }
    let after = objective.loss(&mut executor, &transformer, &batch).mean();
    let report = objective.report();
    assert!(after < 0.5 && report[0].1 > 0.95 && report[1].1 > 0.5, "{after}, {report:?}");
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// `tests/fixtures/make_preference_fixtures.py`: the log-probabilities of the answers, the loss and the gradient.
#[test]
fn preferences_agree_with_pytorch() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let expected: Value =
        serde_json::from_slice(&fs::read(&fixtures.join("preference/expected.json")).unwrap()).unwrap();
    let folder = fixtures.join("model/gpt2");
    let load = || Transformer::load(&folder.join(CONFIG_FILE), &folder.join(WEIGHTS_FILE)).unwrap();
    let (policy, mut reference) = (load(), load());
    reference.weights.iter_mut().for_each(|w| *w *= 0.9);
    let ids = |value: &Value| numbers::<Vec<u32>>(value);
    let rendered = expected["pairs"].as_array().unwrap().iter();
    let pairs = rendered.map(|p| pair(&ids(&p["prompt"]), &ids(&p["chosen"]), &ids(&p["rejected"])));
    let pairs = Pairs::new(pairs, 12, 0);

    let near = |what: &str, found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-4 * expected.abs(), "{what}: {found}, not {expected}");
    };
    let reference_nats = nats(&reference, &pairs);
    for (what, found) in [("nats", &nats(&policy, &pairs)), ("reference_nats", &reference_nats)] {
        for (side, expected) in numbers::<[Vec<f64>; 2]>(&expected[what]).iter().enumerate() {
            found.iter().zip(expected).for_each(|(found, expected)| near(what, found[side], *expected));
        }
    }
    let number = |name: &str| numbers::<f64>(&expected[name]);
    let dpo = Dpo {
        beta: number("beta"),
        label_smoothing: number("label_smoothing"),
        nll_weight: number("nll_weight"),
    };
    let mut objective = Preference::new(dpo, reference_nats, Vec::new());
    let mut gradient = vec![0.0; policy.weights.len()];
    let loss = objective.gradient(&mut executor(&policy, 2), &policy, &batch(&pairs), 0, &mut gradient);
    near("loss", loss.mean(), numbers::<Vec<f64>>(&expected["losses"]).iter().sum::<f64>() / 3.0);

    // Under the names of its file.
    let mut slopes = load();
    slopes.weights.copy_from_slice(&gradient);
    let bytes = slopes.to_safetensors().unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, expected) in expected["gradients"].as_object().unwrap() {
        let data = tensors.tensor(name).unwrap();
        let found = data.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()) / 3.0);
        let expected: Vec<f32> = numbers(expected);
        let size = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (found, expected)) in found.zip(expected).enumerate() {
            assert!((found - expected).abs() < 1e-4 * size, "{name}, {i}: {found}, not {expected}");
        }
    }
}

#[test]
fn the_reference_is_kept_for_its_model_and_pairs_alone() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = || fs::children(folder.path()).unwrap();
    let places = |state| Places { output: scratch.path(), scratch: scratch.path(), state };
    let kept = |transformer: &Transformer, pairs: &Pairs| {
        let places = places(Some(folder.path()));
        kept_pair_nats(places, &mut executor(transformer, 2), transformer, pairs, &Quiet).unwrap()
    };
    let (first, pairs) = (model(0.1, 2), some_pairs(30));
    let expected = nats(&first, &pairs);
    assert_eq!(kept(&first, &pairs), expected);
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    let whole = fs::read(file).unwrap();
    assert_eq!(whole.len(), 64 + 16 * 30);

    // A byte that is not what was written, and a file that is too short, are noticed and put right.
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    for damaged in [&damaged[..], &whole[..100], &[]] {
        std::fs::write(file, damaged).unwrap();
        assert_eq!(kept(&first, &pairs), expected);
        assert!(fs::read(file).unwrap() == whole);
    }
    // What is there is not computed again.
    let other = super::reference::rewritten(&whole, |nats| nats[0][0] = 1.5);
    std::fs::write(file, other).unwrap();
    assert_eq!(kept(&first, &pairs)[0][0], 1.5);
    assert_ne!(kept(&model(0.1, 3), &pairs), expected);
    assert_eq!(kept(&first, &some_pairs(29)).len(), 29);
    assert_eq!(files().len(), 3);

    // As long as there are states that a longer training begins with, they stay.
    let state = folder.path().join("step-7");
    std::fs::create_dir(&state).unwrap();
    remove_kept_pair_nats(folder.path());
    assert_eq!(files().len(), 4);
    std::fs::remove_dir(&state).unwrap();
    remove_kept_pair_nats(folder.path());
    assert_eq!(files().len(), 0);

    // Without a folder of states, or with one that can't be written, the numbers are the same.
    let gone = folder.path().join("gone");
    for state in [None, Some(&gone)] {
        let places = places(state.map(std::path::PathBuf::as_path));
        assert_eq!(
            kept_pair_nats(places, &mut executor(&first, 1), &first, &pairs, &Quiet).unwrap(),
            expected
        );
    }
}
