//! Batches, streams and beams against what each is alone, and draws against their distribution.

use super::sampler::log_softmax;
use super::search::Search;
use super::tests::{model, with};
use super::*;
use crate::base::{Quiet, Rng};
use crate::model::{Config, Transformer, gpt2};
use crate::tokenizer::Tokenizer;
use serde_json::json;

/// A model of four letters and the special tokens, with weights that make some of them much likelier.
pub fn letters() -> Model {
    let tokens = Special::ALL.map(Special::as_str).into_iter().chain(["a", "b", "c", "d"]);
    let vocab: serde_json::Map<_, _> = tokens.zip(0..).map(|(t, id)| (t.to_string(), json!(id))).collect();
    let value = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"}, "truncation": null, "padding": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}});
    let tokenizer = Tokenizer::parse("letters.json", value.to_string().into_bytes()).unwrap();
    let config = Config { d_ff: 32, dropout: 0.0, ..gpt2(tokenizer.vocab_size(), 16, 2, 2, 16) };
    let mut transformer = Transformer::fresh(&config, 5);
    transformer.weights.iter_mut().for_each(|weight| *weight *= 6.0);
    Model { transformer, tokenizer }
}

/// Prompts of 1 to 20 tokens: the model holds 16.
pub fn prompts(model: &Model, n: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(1, "prompts");
    let known = model.tokenizer.vocab_size() as u64;
    (0..n).map(|i| (0..1 + i * 7 % 20).map(|_| rng.below(known) as u32).collect()).collect()
}

/// A text with a search and a session of its own.
pub fn alone(model: &Model, ids: &[u32], options: &Options, prompt: usize, sample: usize) -> Continuation {
    let mut session = Session::new(model, 1);
    session.feed(ids).unwrap();
    let (sampler, rng) = (Sampler::new(model, options), batch::stream_of(options, prompt, sample));
    let mut search = Search::new(model, session.sequence.clone(), ids, options, rng);
    while !search.is_over() {
        search.step(&sampler);
        session.reader.read_all(search.sequences()).unwrap();
    }
    search.finish().0
}

fn streamed(model: &Model, ids: &[u32], options: &Options) -> (Continuation, Vec<String>) {
    let (mut session, mut pieces) = (Session::new(model, 2), Vec::new());
    session.feed(ids).unwrap();
    let result = stream(&mut session, ids, options, &mut |piece| {
        pieces.push(piece.to_string());
        ControlFlow::Continue(())
    });
    (result.unwrap(), pieces)
}

/// More prompts than a batch has, shorter and longer than the model holds; texts that end and such that do not;
/// sequences that overflow.
#[test]
fn a_batch_gives_the_bits_of_one_after_the_other_for_any_threads() {
    for model in [model(), letters()] {
        let prompts = prompts(&model, 70);
        for strategy in [Strategy::Greedy, Strategy::Sample, Strategy::Beam] {
            let stop = vec!["ab".to_string(), "e t".to_string()];
            let options = Options { max_new_tokens: 18, num_beams: 3, stop, seed: 4, ..with(strategy) };
            let one = |(i, ids): (usize, &Vec<u32>)| alone(&model, ids, &options, i, 0);
            let expected: Vec<Continuation> = prompts.iter().enumerate().map(one).collect();
            for threads in [1, 3] {
                let found = continue_all(&model, &prompts, &options, threads, &Quiet).unwrap();
                assert!(found == expected, "{strategy:?} by {threads} threads");
            }
            let (first, pieces) = streamed(&model, &prompts[0], &options);
            assert_eq!((&first, &first.text), (&expected[0], &pieces.concat()));
        }
    }
}

#[test]
fn each_sample_has_a_stream_of_its_own_and_comes_in_order() {
    let model = model();
    let prompts = prompts(&model, 3);
    let options = Options { temperature: 2.0, top_k: 0, top_p: 1.0, ..with(Strategy::Sample) };
    let mut found = Vec::new();
    continue_each(&model, &prompts, 20, &options, 2, &Quiet, &mut |prompt, sample, result| {
        assert_eq!(result, alone(&model, &prompts[prompt], &options, prompt, sample));
        found.push((prompt, sample, result.tokens));
        Ok(())
    })
    .unwrap();
    assert!(found.iter().map(|(p, s, _)| (*p, *s)).eq((0..3).flat_map(|p| (0..20).map(move |s| (p, s)))));
    let mut texts: Vec<_> = found.into_iter().map(|(_, _, tokens)| tokens).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 60);
}

#[test]
fn answers_are_those_of_one_conversation_alone() {
    use crate::corpus::conversation::Role;
    let model = model();
    let talks: Vec<Vec<Message>> = ["Hi", "Where is the cat, and where the dog?"]
        .map(|text| vec![Message::new(Role::User, text)])
        .into();
    let options = with(Strategy::Greedy);
    let expected: Vec<String> = talks.iter().map(|talk| answer(&model, talk, &options, 1).unwrap()).collect();
    assert_eq!(answers(&model, &talks, &options, 2, &Quiet).unwrap(), expected);
}

#[test]
fn what_cannot_be_continued_is_told() {
    struct Cancelled;
    impl Monitor for Cancelled {
        fn progress(&self, _: crate::base::Progress) {}
        fn measure(&self, _: &str, _: f64, _: &str) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let (model, options) = (model(), with(Strategy::Greedy));
    let error = continue_all(&model, &[vec![9], vec![]], &options, 1, &Quiet).unwrap_err();
    assert!(error.to_string().contains("prompt 2 has no tokens"), "{error}");
    assert!(continue_all(&model, &[vec![9]], &options, 1, &Cancelled).unwrap_err().is_cancelled());
    assert!(continue_all(&model, &[vec![9], vec![u32::MAX]], &options, 1, &Quiet).is_err());
    assert!(continue_all(&model, &[], &options, 1, &Quiet).unwrap().is_empty());
    let none = Options { max_new_tokens: 0, ..options };
    let nothing = continue_all(&model, &[vec![9]], &none, 1, &Quiet).unwrap().remove(0);
    assert_eq!((nothing.text.as_str(), nothing.tokens.len(), nothing.finish), ("", 0, Finish::Length));
}

/// Every stop string of three characters that the text has, most of which lie over the bounds of tokens.
#[test]
fn a_text_ends_where_its_stop_string_begins() {
    let model = model();
    let ids = prompt_ids(&model, "The cat").unwrap();
    let options = Options { max_new_tokens: 30, ..with(Strategy::Greedy) };
    let (whole, _) = streamed(&model, &ids, &options);
    let chars: Vec<char> = whole.text.chars().collect();
    let mut across = 0;
    for window in chars.windows(3) {
        let stop: String = window.iter().collect();
        let at = whole.text.find(&stop).unwrap();
        let options = Options { stop: vec![stop.clone()], ..options.clone() };
        let (result, pieces) = streamed(&model, &ids, &options);
        assert_eq!((result.text.as_str(), result.finish), (&whole.text[..at], Finish::Stop), "{stop:?}");
        assert_eq!(pieces.concat(), result.text);
        assert_eq!(result.tokens, whole.tokens[..result.tokens.len()]);
        assert_eq!(result.tokens.len(), result.logprobs.len());
        across += usize::from(
            !whole.tokens.iter().any(|id| model.tokenizer.decode(&[*id]).unwrap().contains(&stop)),
        );
    }
    assert!(across > 5, "{across} of {} lie over bounds of tokens", chars.len());
    let beyond = Options { stop: vec![whole.text.clone() + "!"], ..options };
    assert_eq!(streamed(&model, &ids, &beyond).0, whole, "what is held back comes out at the end");
}

#[test]
fn log_probabilities_are_of_the_model_whatever_is_done_to_them() {
    let model = model();
    let ids = prompt_ids(&model, "The cat").unwrap();
    for strategy in [Strategy::Greedy, Strategy::Sample, Strategy::Beam] {
        let options = Options {
            temperature: 3.0,
            top_k: 9,
            min_p: 0.1,
            repetition_penalty: 1.3,
            max_new_tokens: 6,
            ..with(strategy)
        };
        let (result, _) = streamed(&model, &ids, &options);
        assert!(!result.tokens.is_empty());
        let mut session = Session::new(&model, 1);
        session.feed(&ids).unwrap();
        for (id, logprob) in result.tokens.iter().zip(&result.logprobs) {
            let logits: Vec<f64> = session.sequence.logits.iter().map(|l| f64::from(*l)).collect();
            assert!((log_softmax(&logits)[*id as usize] - logprob).abs() < 1e-5, "{strategy:?}");
            session.feed(&[*id]).unwrap();
        }
    }
}

/// The best text of up to `left` further tokens behind `said`, whose log-probabilities sum to `score`, by
/// trying all; end tokens are part of it.
fn best_of_all(
    model: &Model,
    sampler: &Sampler,
    said: &[u32],
    score: f64,
    left: usize,
    compared: &dyn Fn(f64, usize) -> f64,
) -> (f64, Vec<u32>) {
    if left == 0 {
        return (compared(score, said.len()), said.to_vec());
    }
    let mut session = Session::new(model, 1);
    session.feed(&[&[2], said].concat()).unwrap();
    let all = sampler.most_probable(&session.sequence, usize::MAX);
    let further = all.into_iter().map(|(id, logprob)| match sampler.is_end(id) {
        true => (compared(score + logprob, said.len() + 1), said.to_vec()),
        false => best_of_all(model, sampler, &[said, &[id]].concat(), score + logprob, left - 1, compared),
    });
    further.reduce(|a, b| if b.0 > a.0 { b } else { a }).unwrap()
}

/// With 64 beams all texts of four letters and up to four tokens are followed.
#[test]
fn beams_enough_for_all_texts_find_the_best_of_all() {
    let model = letters();
    let (mut ended, mut unlike_greedy) = (0, 0);
    for max_new_tokens in 1..=4 {
        for length_penalty in [-1.0, 0.0, 0.5, 1.0, 2.0] {
            let options = Options { num_beams: 64, length_penalty, max_new_tokens, ..with(Strategy::Beam) };
            let compared = |score: f64, tokens: usize| score / (tokens as f64).powf(length_penalty);
            let sampler = Sampler::new(&model, &options);
            let (_, best) = best_of_all(&model, &sampler, &[], 0.0, max_new_tokens, &compared);
            let found = alone(&model, &[2], &options, 0, 0);
            assert_eq!(found.tokens, best, "{max_new_tokens} tokens, length penalty {length_penalty}");
            ended += usize::from(found.finish == Finish::End);
            let greedy = alone(&model, &[2], &Options { strategy: Strategy::Greedy, ..options }, 0, 0);
            unlike_greedy += usize::from(greedy.tokens != best);
        }
    }
    assert!(ended > 0 && ended < 20 && unlike_greedy > 0, "{ended} ended, {unlike_greedy} unlike greedy");
}

#[test]
fn a_greater_length_penalty_gives_no_shorter_texts() {
    let model = letters();
    let lengths = [-2.0, 0.0, 1.0, 3.0].map(|length_penalty| {
        let options = Options { length_penalty, ..with(Strategy::Beam) };
        alone(&model, &[2], &options, 0, 0).tokens.len()
    });
    assert!(lengths.is_sorted() && lengths[0] < lengths[3], "{lengths:?}");
}

/// Pearson's statistic of 20,000 draws, against its value that chance exceeds once in a thousand times.
#[test]
fn draws_follow_the_distribution_that_the_options_leave() {
    const EXCEEDED: [f64; 6] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52];
    let model = letters();
    let p = [0.4, 0.3, 0.2, 0.07, 0.03];
    let plain = Options { temperature: 1.0, top_k: 0, top_p: 1.0, ..with(Strategy::Sample) };
    // Ids that may be drawn: an end token and the letters.
    let ids: Vec<usize> = (model.tokenizer.vocab_size() - 5..model.tokenizer.vocab_size()).collect();
    let mut session = Session::new(&model, 1);
    session.feed(&[ids[0] as u32, ids[1] as u32]).unwrap();
    session.sequence.logits.fill(f32::NEG_INFINITY);
    ids.iter().zip(p).for_each(|(id, p)| session.sequence.logits[*id] = (p as f32).ln());
    for (options, weights) in [
        (plain.clone(), p),
        (Options { temperature: 0.5, ..plain.clone() }, p.map(|p| p * p)),
        (Options { temperature: 2.0, ..plain.clone() }, p.map(f64::sqrt)),
        (Options { top_k: 2, ..plain.clone() }, [0.4, 0.3, 0.0, 0.0, 0.0]),
        (Options { top_p: 0.75, ..plain.clone() }, [0.4, 0.3, 0.2, 0.0, 0.0]),
        (Options { min_p: 0.45, ..plain.clone() }, [0.4, 0.3, 0.2, 0.0, 0.0]),
        (Options { min_p: 0.45, temperature: 0.5, ..plain.clone() }, [0.16, 0.09, 0.0, 0.0, 0.0]),
        (Options { top_k: 4, top_p: 0.75, min_p: 0.7, ..plain.clone() }, [0.4, 0.3, 0.0, 0.0, 0.0]),
        (Options { repetition_penalty: 2.0, ..plain.clone() }, [0.4, 0.09, 0.2, 0.07, 0.03]),
    ] {
        let (sampler, mut rng) = (Sampler::new(&model, &options), Rng::new(3, "draws"));
        let (mut counts, n) = ([0u32; 5], 20_000);
        for _ in 0..n {
            let id = sampler.sample(&session.sequence, &mut rng) as usize;
            counts[ids.iter().position(|own| *own == id).unwrap()] += 1;
        }
        let total: f64 = weights.iter().sum();
        let expected = weights.map(|weight| weight / total * f64::from(n));
        let pairs = counts.iter().zip(expected).filter(|(count, expected)| **count > 0 || *expected > 0.0);
        let terms: Vec<f64> =
            pairs.map(|(count, expected)| (f64::from(*count) - expected).powi(2) / expected).collect();
        let statistic: f64 = terms.iter().sum();
        assert!(statistic < EXCEEDED[terms.len() - 1], "{statistic} of {counts:?} for {options:?}");
    }
}

/// The first tokens of many samples, each from a stream of its own.
#[test]
fn samples_follow_the_distribution_of_the_model() {
    let model = letters();
    let options =
        Options { temperature: 1.0, top_k: 0, top_p: 1.0, max_new_tokens: 1, ..with(Strategy::Sample) };
    let (mut counts, n) = (std::collections::BTreeMap::<Option<u32>, u32>::new(), 5000);
    continue_each(&model, &[vec![2]], n, &options, 2, &Quiet, &mut |_, _, result| {
        *counts.entry(result.tokens.first().copied()).or_default() += 1;
        Ok(())
    })
    .unwrap();
    let mut session = Session::new(&model, 1);
    session.feed(&[2]).unwrap();
    let sampler = Sampler::new(&model, &options);
    let mut expected = std::collections::BTreeMap::<Option<u32>, f64>::new();
    for (id, logprob) in sampler.most_probable(&session.sequence, usize::MAX) {
        *expected.entry(Some(id).filter(|id| !sampler.is_end(*id))).or_default() += logprob.exp();
    }
    let total: f64 = expected.values().sum();
    let term = |(id, p): (&Option<u32>, &f64)| {
        let expected = p / total * n as f64;
        (f64::from(counts.get(id).copied().unwrap_or(0)) - expected).powi(2) / expected
    };
    let statistic: f64 = expected.iter().map(term).sum();
    assert!(expected.len() == 5 && statistic < 18.47, "{statistic}: {counts:?} {expected:?}");
}
