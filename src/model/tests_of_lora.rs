//! Models with adapters against their plain twin, against themselves merged, and what is not computed.

use candle_core::Device;

use super::reference::Reference;
use super::tests::{architectures, batch, gap, logits, model, odd};
use super::*;
use crate::base::Rng;
use crate::kernel::{Dtype, Isa, Team};

fn lora(config: &Config) -> Lora {
    Lora { rank: 5, alpha: 8.0, dropout: 0.1, targets: Target::of(config) }
}

/// With adapters as after some training: no B is 0.
fn adapted(config: &Config, lora: &Lora) -> Transformer {
    let mut gpt = model(config, 3).with_adapters(lora, 9).unwrap();
    let mut rng = Rng::new(1, "trained");
    gpt.trained_mut().iter_mut().for_each(|w| *w += (rng.normal() * 0.05) as f32);
    gpt
}

fn gradient(gpt: &Transformer, all: Sequences, team: Team) -> (f64, Vec<f32>) {
    let mut gradient = vec![0.0; gpt.trained().len()];
    let nats = Executor::training(&gpt.config, team).gradient(gpt, all, 99, 0.0, &mut gradient);
    (nats, gradient)
}

/// Tensor by tensor, of the adapters.
fn agrees_with_the_twin(name: &str, gpt: &Transformer) {
    let (ids, targets) = batch(&gpt.config, 3, 4);
    let all = Sequences::new(&ids, &targets, gpt.config.seq_len);
    let (nats, found) = gradient(gpt, all, Team::new(2));
    let (expected, gradients) =
        Reference::new(gpt, &Device::Cpu).unwrap().gradient(gpt, all, Some(99)).unwrap();
    assert!((nats - expected).abs() < 2e-5 * expected, "{name}: a loss of {nats}, not {expected}");
    let gradients = &gradients[gpt.layout.trained.clone()];
    for p in gpt.trained_parameters() {
        let gap = gap(&found[p.range.clone()], &gradients[p.range.clone()]);
        assert!(gap < 2e-4, "{name}: the gradient of {} is off by {gap}", p.name);
    }
}

#[test]
fn gradients_of_adapters_are_those_of_the_plain_twin() {
    for (name, config) in architectures() {
        agrees_with_the_twin(name, &adapted(&config, &lora(&config)));
    }
}

/// The gradient ends at the lowest adapter, wherever that is.
#[test]
fn any_choice_of_targets_is_computed() {
    let gated = architectures().into_iter().find(|(_, config)| config.gated && config.n_layer > 1).unwrap().1;
    let post = Config { dropout: 0.2, ..post_norm(77, 54, 2, 3, 40) };
    for config in [Config { seq_len: 40, ..odd() }, Config { seq_len: 40, ..gated }, post] {
        let all = Target::of(&config);
        let some = [&[Target::K, Target::V][..], &[Target::Q, Target::V], &[Target::O, Target::Up]];
        let each = all.iter().map(std::slice::from_ref);
        for targets in each.chain(some) {
            let lora = Lora { targets: targets.to_vec(), ..lora(&config) };
            agrees_with_the_twin(&format!("{targets:?} of {}", config.describe()), &adapted(&config, &lora));
        }
    }
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_instructions() {
    for (name, config) in architectures() {
        let gpt = adapted(&config, &lora(&config));
        let (ids, targets) = batch(&config, 4, 6);
        let all = Sequences::new(&ids, &targets, config.seq_len);
        let first = gradient(&gpt, all, Team::with(1, Isa::best()));
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(
                    gradient(&gpt, all, Team::with(threads, isa)) == first,
                    "{name}: {threads} {}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn new_adapters_change_nothing_and_merged_ones_compute_the_same() {
    for (name, config) in architectures() {
        let (ids, _) = batch(&config, 1, 8);
        let base = logits(&model(&config, 3), &ids).concat();
        let new = model(&config, 3).with_adapters(&lora(&config), 9).unwrap();
        assert!(logits(&new, &ids).concat() == base, "{name}: B is 0");
        let gpt = adapted(&config, &lora(&config));
        let unmerged = logits(&gpt, &ids).concat();
        assert!(gap(&unmerged, &base) > 1e-2, "{name}: the adapters do something");
        let merged = gpt.merged();
        assert!(merged.lora.is_none() && merged.trained().len() == config.parameters());
        let off = gap(&logits(&merged, &ids).concat(), &unmerged);
        assert!(off < 1e-4, "{name}: merged, logits are off by {off}");
    }
}

/// A cache gives the bits that the whole text gives, in each dtype.
#[test]
fn adapters_decode_as_they_read() {
    for dtype in Dtype::ALL {
        let config = Config { n_kv_head: 1, seq_len: 24, ..llama(77, 54, 2, 3, 24) };
        let gpt = adapted(&config, &lora(&config)).in_dtype(dtype);
        let (ids, _) = batch(&config, 1, 8);
        let whole = logits(&gpt, &ids);
        let (mut cache, mut decoder) = (Cache::default(), Decoder::new(&gpt, Team::new(2)));
        for (i, expected) in whole.iter().enumerate() {
            let mut texts = [Reading { cache: &mut cache, ids: &ids[i..=i] }];
            assert!(decoder.read(&mut texts).unwrap() == *expected, "at {i} in {dtype:?}");
        }
    }
}

/// The adapters of a target begin alike, whatever the others are, and differ from each other.
#[test]
fn adapters_are_drawn_from_the_seed_and_their_names() {
    let (config, all) = (odd(), lora(&odd()));
    let a = |lora: &Lora, seed: u64, target: Target| {
        let gpt = model(&config, 3).with_adapters(lora, seed).unwrap();
        let adapters = gpt.layout.blocks[1].qkv.adapters.clone().unwrap();
        let at = adapters.targets.iter().position(|t| *t == target).unwrap() * lora.rank;
        let width = lora.rank * adapters.parts.len();
        let rows = gpt.weights[adapters.a.clone()].chunks(width).flat_map(|row| &row[at..at + lora.rank]);
        rows.copied().collect::<Vec<f32>>()
    };
    let values = Lora { targets: vec![Target::V], ..all.clone() };
    assert_eq!(a(&all, 9, Target::V), a(&values, 9, Target::V));
    assert_ne!(a(&all, 9, Target::V), a(&all, 9, Target::K));
    assert_ne!(a(&all, 9, Target::V), a(&all, 8, Target::V));
    let (v, bound) = (a(&all, 9, Target::V), 1.0 / (config.d_model as f32).sqrt());
    let largest = v.iter().fold(0f32, |max, x| max.max(x.abs()));
    assert!(largest <= bound && largest > 0.95 * bound, "uniform within {bound}, found up to {largest}");
}

#[test]
fn targets_that_a_model_lacks_and_odd_fields_are_refused() {
    let refused = |change: &dyn Fn(&mut Lora)| {
        let mut lora = lora(&odd());
        change(&mut lora);
        model(&odd(), 3).with_adapters(&lora, 1).err().unwrap().to_string()
    };
    assert!(refused(&|l| l.targets.push(Target::Gate)).contains("the model has no `gate`, only `q`, `k`"));
    assert!(refused(&|l| l.targets.push(Target::Q)).contains("`q` stands twice"));
    assert!(refused(&|l| l.targets.clear()).contains("nothing would be trained"));
    assert!(refused(&|l| l.rank = 0).contains("`rank`"));
    assert!(refused(&|l| l.alpha = f64::NAN).contains("must be above 0, found NaN"));
    assert!(refused(&|l| l.dropout = 1.0).contains("below 1, found 1"));
}
