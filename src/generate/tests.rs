//! Decoding strategies against each other and against their definitions.

use std::collections::BTreeMap;

use super::sampler::{candidates, log_softmax};
use super::*;
use crate::model::{Config, Transformer, gpt2};
use crate::tokenizer::Tokenizer;

/// A small untrained model with a real tokenizer.
pub fn model() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = Tokenizer::load(std::path::Path::new(path)).unwrap();
    let config = Config { d_ff: 32, dropout: 0.0, ..gpt2(tokenizer.vocab_size() + 20, 16, 2, 2, 16) };
    Model { transformer: Transformer::fresh(&config, 3), tokenizer }
}

fn ids(model: &Model, options: &Options) -> Vec<u32> {
    let mut session = Session::new(model, 2);
    let prompt = prompt_ids(model, "The cat").unwrap();
    session.feed(&prompt).unwrap();
    stream(&mut session, &prompt, options, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

pub fn with(strategy: Strategy) -> Options {
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
    assert_eq!(session.sequence.logits.len(), model.transformer.config.vocab_size);
    assert!(session.feed(&[u32::MAX]).is_err());
}

#[test]
fn what_frames_a_text_and_what_the_tokenizer_lacks_is_never_chosen() {
    let model = model();
    let mut session = Session::new(&model, 2);
    session.feed(&[9]).unwrap();
    session.sequence.logits = vec![0.0; model.transformer.config.vocab_size];
    for special in [Special::Pad, Special::Unk, Special::Bos] {
        session.sequence.logits[model.tokenizer.require(special).unwrap() as usize] = 50.0;
    }
    let known = model.tokenizer.vocab_size();
    session.sequence.logits[known..].fill(90.0);
    session.sequence.logits[42] = 1.0;
    assert_eq!(Sampler::new(&model, &Options::default()).greedy(&session.sequence), 42);
}

#[test]
fn a_penalty_pushes_down_what_was_said() {
    let model = model();
    let mut session = Session::new(&model, 2);
    session.feed(&[9, 10]).unwrap();
    session.sequence.logits = vec![0.0; model.transformer.config.vocab_size];
    (session.sequence.logits[9], session.sequence.logits[10], session.sequence.logits[11]) = (2.0, -2.0, 1.5);
    let sampler = Sampler::new(&model, &Options { repetition_penalty: 2.0, ..Options::default() });
    let best = sampler.best(&session.sequence, usize::MAX);
    assert_eq!(best[..2], [(11, 1.5), (9, 1.0)]);
    assert_eq!(best.last(), Some(&(10, -4.0)));
}

#[test]
fn top_k_top_p_and_temperature_leave_what_they_should() {
    let scores: Vec<f64> = [0.5f64, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
    let best = |k: usize| (0..).zip(scores[..k].iter().copied()).collect::<Vec<(u32, f64)>>();
    let left = |k, top_p| -> Vec<u32> {
        let options = Options { top_p, temperature: 1.0, ..Options::default() };
        candidates(best(k), &options).into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(left(4, 1.0), [0, 1, 2, 3]);
    assert_eq!(left(2, 1.0), [0, 1]);
    assert_eq!(left(4, 0.5), [0]);
    assert_eq!(left(4, 0.7), [0, 1]);
    // Of the two that top-k leaves, the first has two thirds.
    assert_eq!(left(2, 0.6), [0]);
    let min_p = |min_p| {
        let options = Options { min_p, top_p: 1.0, temperature: 1.0, ..Options::default() };
        candidates(best(4), &options).len()
    };
    assert_eq!([0.0, 0.2, 0.3, 0.6, 1.0].map(min_p), [4, 4, 2, 1, 1]);
    let cold = candidates(best(4), &Options { temperature: 0.5, top_p: 1.0, ..Options::default() });
    assert!((cold[0].1 / cold[1].1 - 4.0).abs() < 1e-5);
    assert!((log_softmax(&scores)[0] - 0.5f64.ln()).abs() < 1e-6);
}

/// Against sorting all logits after biases, penalties and bans; many are equal.
#[test]
fn the_best_are_the_first_of_all_sorted() {
    let model = model();
    let mut session = Session::new(&model, 1);
    session.feed(&[9, 10, 11, 10, 12, 10, 40]).unwrap();
    session.sequence.prompt = 2;
    let size = model.transformer.config.vocab_size;
    session.sequence.logits = (0..size).map(|i| (i * 7919 % 31) as f32 - 15.0).collect();
    let known = model.tokenizer.vocab_size();
    let bias = [(9, -100.0), (20, 2.0), (21, -3.0), (22, -100.0)];
    for (logit_bias, penalty, presence_penalty) in [
        (&bias[..0], 1.0, 0.0),
        (&bias[..1], 1.0, 0.0),
        (&bias, 1.0, 0.0),
        (&bias, 1.5, 0.5),
        (&bias[..0], 1.5, -0.5),
    ] {
        let logit_bias: BTreeMap<u32, f64> = logit_bias.iter().copied().collect();
        let options = Options {
            logit_bias: logit_bias.clone(),
            repetition_penalty: penalty,
            presence_penalty,
            ..Options::default()
        };
        let sampler = Sampler::new(&model, &options);
        let logit = |id: u32| -> Option<f64> {
            let special = [Special::Pad, Special::Unk, Special::Bos];
            let banned = special.iter().any(|s| model.tokenizer.special(*s) == Some(id));
            let bias = logit_bias.get(&id).copied().unwrap_or(0.0);
            let mut logit = f64::from(session.sequence.logits[id as usize]) + bias;
            if session.sequence.tokens.contains(&id) {
                logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
            if session.sequence.tokens[2..].contains(&id) {
                logit -= presence_penalty;
            }
            Some(logit).filter(|_| !banned && bias != -100.0)
        };
        let mut all: Vec<(u32, f64)> = (0..known as u32).filter_map(|id| Some((id, logit(id)?))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for k in [1, 2, 7, 40, known - 1, known, usize::MAX] {
            let found = sampler.best(&session.sequence, k);
            assert_eq!(found, all[..k.min(all.len())], "{k} by {options:?}");
            assert_eq!(sampler.greedy(&session.sequence), all[0].0);
        }
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let model = model();
    let message = |options: Options| {
        let mut session = Session::new(&model, 1);
        session.feed(&[9]).unwrap();
        stream(&mut session, &[9], &options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    for odd in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
        let text = message(Options { temperature: odd, ..Options::default() });
        assert!(text.contains(&format!("`temperature` is {odd}: expected a number above 0")), "{text}");
        let text = message(Options { repetition_penalty: odd, ..Options::default() });
        assert!(text.contains(&format!("`repetition_penalty` is {odd}")), "{text}");
    }
    for odd in [0.0, 1.5, f64::NAN] {
        assert!(message(Options { top_p: odd, ..Options::default() }).contains(&format!("`top_p` is {odd}")));
    }
    for odd in [-0.1, 1.5, f64::NAN] {
        assert!(message(Options { min_p: odd, ..Options::default() }).contains(&format!("`min_p` is {odd}")));
    }
    let text = message(Options { length_penalty: f64::INFINITY, ..Options::default() });
    assert!(text.contains("`length_penalty` is inf: expected a number"), "{text}");
    let text = message(Options { stop: vec!["a".into(), String::new()], ..Options::default() });
    assert!(text.contains("`stop` is empty"), "{text}");
    assert!(message(Options { num_beams: 0, ..Options::default() }).contains("`num_beams` is 0"));
    assert!(Options::default().validate().is_ok());
}

/// The edges of what is allowed behave like the limits that they are near to.
#[test]
fn the_smallest_and_the_largest_numbers_behave_like_their_limits() {
    let model = model();
    let greedy = ids(&model, &with(Strategy::Greedy));
    for temperature in [f64::from_bits(1), 1e-300, 1e-45, 1e-38, 1e-9] {
        let cold = Options { temperature, top_k: 0, top_p: 1.0, ..with(Strategy::Sample) };
        assert_eq!(ids(&model, &cold), greedy, "{temperature:e}");
    }
    for temperature in [1e12, 1e39, 1e300, f64::MAX] {
        let best = vec![(12, 7.0), (25, 7.0), (38, 7.0), (11, 6.0)];
        let hot = candidates(best, &Options { temperature, top_p: 1.0, ..Options::default() });
        assert_eq!(hot.len(), 4);
        assert!(hot.iter().all(|(_, p)| (p / hot[0].1 - 1.0).abs() < 1e-9), "{temperature:e}: {hot:?}");
    }
    for strategy in [Strategy::Greedy, Strategy::Sample, Strategy::Beam] {
        for temperature in [1e-45, 1.0, 1e300] {
            for repetition_penalty in [f64::from_bits(1), 1e-300, 1e-45, 1e39, 1e300, f64::MAX] {
                let options = Options { temperature, repetition_penalty, num_beams: 3, ..with(strategy) };
                let said = ids(&model, &options);
                let known = model.tokenizer.vocab_size() as u32;
                assert!(said.len() <= 12 && said.iter().all(|id| *id < known), "{options:?}: {said:?}");
            }
        }
    }
}

/// Pushed down without end, nothing is said twice; pushed up without end, nothing new is said.
#[test]
fn a_penalty_without_end_decides_alone() {
    let model = model();
    let mut session = Session::new(&model, 1);
    session.feed(&[9, 10, 11]).unwrap();
    session.sequence.logits = vec![-1.0; model.transformer.config.vocab_size];
    (session.sequence.logits[9], session.sequence.logits[10], session.sequence.logits[12]) = (0.0, 3.0, 1.0);
    let chosen = |repetition_penalty: f64| {
        let options = Options { repetition_penalty, ..Options::default() };
        let sampler = Sampler::new(&model, &options);
        let best = sampler.best(&session.sequence, options.top_k);
        assert!(best.iter().all(|(_, logit)| !logit.is_nan()), "{repetition_penalty:e}");
        (sampler.greedy(&session.sequence), candidates(best, &options).len())
    };
    for penalty in [1e39, 1e300, f64::MAX] {
        assert_eq!(chosen(penalty).0, 12, "{penalty:e}");
    }
    for penalty in [f64::from_bits(1), 1e-300, 1e-45] {
        assert_eq!(chosen(penalty), (10, 1), "{penalty:e}");
    }
}

#[test]
fn a_model_of_nan_is_told() {
    let mut model = model();
    model.transformer.weights.fill(f32::NAN);
    let error = Session::new(&model, 1).feed(&[9]).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
}

#[test]
fn what_is_cut_to_fit_is_counted() {
    let model = model();
    let mut session = Session::new(&model, 1);
    assert_eq!(session.feed(&[9; 16]).unwrap(), 0);
    assert_eq!(session.feed(&[9; 3]).unwrap(), 11, "of 19 the newest 8 are kept");
    assert_eq!(session.feed(&[9; 8]).unwrap(), 0);
    assert_eq!((session.feed(&[9]).unwrap(), session.sequence.dropped), (9, 20));
    assert_eq!(
        cut_to_fit(&model, 300, 292),
        "the prompt has 300 tokens, the model holds 16: the first 292 are cut"
    );
}

/// However an accent or a line break is typed, the model reads what it learned.
#[test]
fn prompts_are_cleaned_as_what_was_learned_from() {
    use crate::corpus::conversation::{Message, Role};
    let model = model();
    let (nfc, nfd) = ("Où est le thé ?\n", "\u{FEFF}Ou\u{300} est le the\u{301} ?\r\n");
    assert_eq!(prompt_ids(&model, nfd).unwrap(), prompt_ids(&model, nfc).unwrap());
    assert_ne!(ids_of(&model, nfd).unwrap(), ids_of(&model, nfc).unwrap());
    let talk = |text: &str| [Role::System, Role::User].map(|role| Message::new(role, text));
    for asked in [chat::prompt, chat::further] {
        let ids = |text: &str| asked(&model.tokenizer, &talk(text)).unwrap();
        assert_eq!(ids(nfd), ids(nfc));
    }
    let options = with(Strategy::Greedy);
    assert_eq!(text(&model, nfd, &options, 1).unwrap(), text(&model, nfc, &options, 1).unwrap());
    assert_eq!(
        answer(&model, &talk(nfd), &options, 1).unwrap(),
        answer(&model, &talk(nfc), &options, 1).unwrap()
    );
}
