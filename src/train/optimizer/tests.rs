//! Updates against their definitions, in f64.

use super::*;
use crate::model::{Config, gpt2};

fn config(dropout: f64) -> Config {
    Config { d_ff: 16, dropout, ..gpt2(13, 8, 2, 2, 8) }
}

fn options(algorithm: Algorithm) -> Options {
    Options { weight_decay: 0.1, momentum: 0.9, clip: 0.0, ..Options::new(algorithm, 0.01) }
}

/// The update against its definition, in f64, over a matrix that decays and a bias that doesn't.
#[test]
fn the_optimizer_is_adamw_with_clipping() {
    let transformer = Transformer::fresh(&config(0.0), 2);
    let mut weights = transformer.weights.to_vec();
    let options = Options { clip: 0.5, ..options(Algorithm::AdamW) };
    let mut optimizer = Optimizer::new(&transformer, &options);
    let team = Team::new(2);
    let bias = transformer.layout.blocks[0].up.bias.clone().unwrap().start;
    let mut plain: Vec<[f64; 3]> = [5, bias].map(|i| [f64::from(weights[i]), 0.0, 0.0]).to_vec();
    for step in 1..=3 {
        let slope = |i: usize| ((i % 13) as f64 - 6.0) * 0.1 * f64::from(step);
        optimizer.gradient.iter_mut().enumerate().for_each(|(i, g)| *g = slope(i) as f32);
        let norm = optimizer.norm(&team, 4);
        let expected = (0..weights.len()).map(|i| (slope(i) / 4.0).powi(2)).sum::<f64>().sqrt();
        assert!((norm - expected).abs() < 1e-5 * expected, "{norm}, not {expected}");
        optimizer.update(&team, &mut weights, 0.01, 4, norm);
        assert!(optimizer.gradient.iter().all(|g| *g == 0.0));
        for ([w, m, v], i) in plain.iter_mut().zip([5, bias]) {
            let g = slope(i) / 4.0 * 0.5 / expected;
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.95 * *v + 0.05 * g * g;
            let (m, v) = (*m / (1.0 - 0.9f64.powi(step)), *v / (1.0 - 0.95f64.powi(step)));
            let decay = if i == 5 { 0.01 * 0.1 * *w } else { 0.0 };
            *w -= decay + 0.01 * m / (v.sqrt() + 1e-8);
            let difference = f64::from(weights[i]) - *w;
            assert!(difference.abs() < 1e-6, "weight {i} at step {step}: {difference}");
        }
    }
}

/// Weights of a model before and after `steps` updates with a gradient that follows from the place, which
/// it gives with the layout.
fn updated(options: &Options, steps: usize) -> (Transformer, Vec<f32>, impl Fn(usize) -> f64) {
    let transformer = Transformer::fresh(&config(0.0), 2);
    let mut weights = transformer.weights.to_vec();
    let mut optimizer = Optimizer::new(&transformer, options);
    let gradient = |i: usize| ((i % 13) as f64 - 6.5) * 0.1;
    for _ in 0..steps {
        optimizer.gradient.iter_mut().enumerate().for_each(|(i, g)| *g = (4.0 * gradient(i)) as f32);
        optimizer.update(&Team::new(2), &mut weights, 0.005, 4, 1.0);
        assert!(optimizer.gradient.iter().all(|g| *g == 0.0));
    }
    (transformer, weights, gradient)
}

#[test]
fn sgd_goes_down_the_mean_gradient() {
    let plain = Options { momentum: 0.0, weight_decay: 0.0, ..options(Algorithm::Sgd) };
    let with_momentum = Options { decay: Decay::All, ..options(Algorithm::Sgd) };
    for options in [plain, with_momentum] {
        let (before, after, gradient) = updated(&options, 3);
        for (i, after) in after.iter().enumerate() {
            let (mut w, mut v) = (f64::from(before.weights[i]), 0.0);
            for _ in 0..3 {
                v = options.momentum * v + gradient(i);
                w = (1.0 - 0.005 * options.weight_decay) * w - 0.005 * v;
            }
            assert!((w - f64::from(*after)).abs() < 1e-6, "weight {i}: {after}, not {w}");
        }
    }
}

/// At half of the peak each group moves by half of its own rate: AdamW's first step is the rate, whatever
/// the gradient.
#[test]
fn groups_have_rates_of_their_own() {
    for algorithm in [Algorithm::AdamW, Algorithm::Muon] {
        let own = Options {
            embedding_learning_rate: 0.04,
            vector_learning_rate: 0.002,
            weight_decay: 0.0,
            muon_weight_decay: 0.0,
            ..options(algorithm)
        };
        let (before, after, _) = updated(&own, 1);
        let moved = |i: usize| f64::from((after[i] - before.weights[i]).abs());
        for p in before.parameters() {
            let expected = match p.role {
                Role::Embedding | Role::Position | Role::Head => 0.02,
                Role::Vector | Role::Scalar => 0.001,
                Role::Matrix if algorithm == Algorithm::AdamW => 0.005,
                Role::Matrix => {
                    // The columns' norms are those of an orthogonal matrix, times Muon's rate and scale.
                    let norm = p.range.clone().map(|i| moved(i).powi(2)).sum::<f64>().sqrt();
                    let scaled = |c: &Range<usize>| {
                        let (rows, columns) = (p.shape[0] as f64, c.len() as f64);
                        rows.min(columns) * (columns / rows).max(1.0)
                    };
                    let most = 0.01 * p.columns.iter().map(scaled).sum::<f64>().sqrt() * 1.3;
                    assert!(norm > 0.0 && norm < most, "{}: {norm} of {most}", p.name);
                    continue;
                }
            };
            for i in p.range.clone() {
                assert!((moved(i) - expected).abs() < 1e-5, "{algorithm:?}, {}: {}", p.name, moved(i));
            }
        }
    }
}

#[test]
fn neighbours_that_are_treated_alike_are_one_group() {
    let transformer = Transformer::fresh(&config(0.0), 2);
    let all: Vec<&Parameter> = transformer.parameters().iter().collect();
    let same = Options { weight_decay: 0.0, ..options(Algorithm::AdamW) };
    assert_eq!(groups(&all, &same).len(), 1);
    let decays = groups(&all, &options(Algorithm::AdamW));
    assert!(decays.len() > 2 && decays.windows(2).all(|w| w[0].range.end == w[1].range.start));
    let everywhere = Options { decay: Decay::All, ..options(Algorithm::AdamW) };
    assert_eq!(groups(&all, &everywhere).len(), 1);
}
