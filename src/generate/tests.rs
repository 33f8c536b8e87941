//! Decoding strategies against each other and against their definitions.

use super::choose::{argmax, candidates, log_probabilities};
use super::*;
use crate::model::{Config, Gpt};
use crate::tokenizer::Tokenizer;

/// A small untrained model with a real tokenizer.
fn model() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(std::path::Path::new(path)).unwrap();
    let config = Config {
        vocab_size: tokenizer.vocab_size() + 20,
        d_model: 16,
        n_layer: 2,
        n_head: 2,
        d_ff: 32,
        seq_len: 16,
        dropout: 0.0,
    };
    Model { gpt: Gpt::fresh(&config, 3), tokenizer }
}

fn ids(model: &Model, options: &Options) -> Vec<u32> {
    let mut session = Session::new(model, 2);
    session.feed(&prompt_ids(model, "The cat").unwrap()).unwrap();
    generate(&mut session, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn with(strategy: Strategy) -> Options {
    Options { strategy, max_new_tokens: 12, ..Options::default() }
}

#[test]
fn greedy_is_one_beam_and_is_top_1() {
    let model = model();
    let greedy = ids(&model, &with(Strategy::Greedy));
    assert!(!greedy.is_empty());
    // Up to where the cache is full: there the two forget at the same token.
    assert_eq!(greedy, ids(&model, &Options { num_beams: 1, ..with(Strategy::Beam) }));
    assert_eq!(greedy, ids(&model, &Options { top_k: 1, ..with(Strategy::Sample) }));
}

/// Against every pair of tokens: within the likeliest first ones, the pair with the best mean wins.
#[test]
fn a_beam_finds_the_best_of_all_pairs() {
    let model = model();
    let options = Options { num_beams: 16, max_new_tokens: 2, ..with(Strategy::Beam) };
    let chooser = Chooser::new(&model, &options);
    let prompt = prompt_ids(&model, "The cat").unwrap();
    let expected = |said: &[u32]| {
        let mut session = Session::new(&model, 1);
        session.feed(&[&prompt, said].concat()).unwrap();
        log_probabilities(&chooser.scores(&session.text))
    };
    let first = expected(&[]);
    let mut likely: Vec<u32> = (0..first.len() as u32).filter(|id| !chooser.ends(*id)).collect();
    likely.sort_by(|a, b| first[*b as usize].total_cmp(&first[*a as usize]));
    let mut best = (f64::NEG_INFINITY, Vec::new());
    for a in likely.into_iter().take(16) {
        for (b, second) in expected(&[a]).iter().enumerate() {
            let mean = (first[a as usize] + second) / 2.0;
            if mean > best.0 {
                let b = Some(b as u32).filter(|b| !chooser.ends(*b));
                best = (mean, [a].into_iter().chain(b).collect());
            }
        }
    }
    assert_eq!(ids(&model, &options), best.1);
    // Greedy's pair is not it, or the beam would have had nothing to find.
    assert_ne!(ids(&model, &Options { max_new_tokens: 2, ..with(Strategy::Greedy) }), best.1);
}

#[test]
fn the_same_seed_says_the_same_and_another_does_not() {
    let model = model();
    let sample = |seed| {
        ids(&model, &Options { seed, temperature: 1.5, top_k: 0, top_p: 1.0, ..with(Strategy::Sample) })
    };
    assert_eq!(sample(1), sample(1));
    assert_ne!(sample(1), sample(2));
}

#[test]
fn a_full_cache_forgets_the_older_half_and_goes_on() {
    let model = model();
    let long = ids(&model, &Options { max_new_tokens: 60, ..with(Strategy::Greedy) });
    assert_eq!(long.len(), 60);
    let mut session = Session::new(&model, 2);
    session.feed(&[9; 50]).unwrap();
    assert_eq!(session.text.logits.len(), model.gpt.config.vocab_size);
    assert!(session.feed(&[u32::MAX]).is_err());
}

#[test]
fn what_frames_a_text_and_what_the_tokenizer_lacks_is_never_chosen() {
    let model = model();
    let mut session = Session::new(&model, 2);
    session.feed(&[9]).unwrap();
    session.text.logits = vec![0.0; model.gpt.config.vocab_size];
    for special in [Special::Pad, Special::Unk, Special::Bos] {
        session.text.logits[model.tokenizer.require(special).unwrap() as usize] = 50.0;
    }
    let known = model.tokenizer.vocab_size();
    session.text.logits[known..].fill(90.0);
    session.text.logits[42] = 1.0;
    assert_eq!(Chooser::new(&model, &Options::default()).likeliest(&session.text), 42);
}

#[test]
fn a_penalty_pushes_down_what_was_said() {
    let model = model();
    let mut session = Session::new(&model, 2);
    session.feed(&[9, 10]).unwrap();
    session.text.logits = vec![0.0; model.gpt.config.vocab_size];
    (session.text.logits[9], session.text.logits[10], session.text.logits[11]) = (2.0, -2.0, 1.5);
    let scores = Chooser::new(&model, &Options { repetition_penalty: 2.0, ..Options::default() })
        .scores(&session.text);
    assert_eq!((scores[9], scores[10], scores[11]), (1.0, -4.0, 1.5));
}

#[test]
fn top_k_top_p_and_temperature_leave_what_they_should() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let scores: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
    let left = |top_k, top_p| -> Vec<u32> {
        let options = Options { top_k, top_p, temperature: 1.0, ..Options::default() };
        candidates(&scores, &options).into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(left(0, 1.0), [0, 1, 2, 3]);
    assert_eq!(left(2, 1.0), [0, 1]);
    assert_eq!(left(0, 0.5), [0]);
    assert_eq!(left(0, 0.7), [0, 1]);
    // Of the two that top-k leaves, the first has two thirds.
    assert_eq!(left(2, 0.6), [0]);
    let cold = candidates(&scores, &Options { temperature: 0.5, top_k: 0, top_p: 1.0, ..Options::default() });
    assert!((cold[0].1 / cold[1].1 - 4.0).abs() < 1e-5);
    assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    assert!((log_probabilities(&scores)[0] - 0.5f64.ln()).abs() < 1e-6);
}

#[test]
fn values_that_make_no_sense_are_refused_by_flag() {
    let message = |options: Options| options.check().unwrap_err().to_string();
    assert!(message(Options { temperature: 0.0, ..Options::default() }).contains("--temperature 0"));
    assert!(message(Options { top_p: 1.5, ..Options::default() }).contains("--top-p 1.5"));
    assert!(message(Options { num_beams: 0, ..Options::default() }).contains("--num-beams 0"));
    assert!(
        message(Options { repetition_penalty: -1.0, ..Options::default() })
            .contains("--repetition-penalty -1")
    );
    assert!(Options::default().check().is_ok());
}
