//! Requests that share a batch, a prefix and the steps of long prompts against what each is alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sampler::log_softmax;
use super::tests::{model, with};
use super::tests_of_search::{alone, letters, prompts};
use super::*;
use crate::base::{Error, Rng};
use crate::model::{Config, Transformer, gpt2};

/// What happened to a request.
#[derive(Default)]
struct Told {
    cached: usize,
    /// By sample: text and tokens of its pieces, and its continuation.
    samples: BTreeMap<usize, (String, Vec<Token>, Option<Continuation>)>,
    error: Option<Error>,
}

/// A scheduler and what it told.
struct Service {
    scheduler: Scheduler,
    told: BTreeMap<RequestId, Told>,
}

impl Service {
    fn new(model: &Arc<Model>, limits: Limits) -> Self {
        Service { scheduler: Scheduler::new(model.clone(), 2, limits), told: BTreeMap::new() }
    }

    fn submit(&mut self, prompt: &[u32], options: &Options, samples: usize) -> RequestId {
        let request = Request { prompt: prompt.to_vec(), options: options.clone(), samples };
        let id = self.scheduler.submit(request).unwrap();
        assert!(self.told.insert(id, Told::default()).is_none());
        id
    }

    fn step(&mut self) {
        for event in self.scheduler.step() {
            match event {
                Event::Started { id, cached_tokens, .. } => {
                    self.told.get_mut(&id).unwrap().cached = cached_tokens
                }
                Event::Piece { id, sample, text, tokens } => {
                    let told = self.told.get_mut(&id).unwrap().samples.entry(sample).or_default();
                    assert!(told.2.is_none(), "a piece behind the end");
                    told.0 += &text;
                    told.1.extend(tokens);
                }
                Event::Finished { id, sample, continuation } => {
                    let told = self.told.get_mut(&id).unwrap().samples.entry(sample).or_default();
                    assert!(told.2.replace(continuation).is_none(), "two ends");
                }
                Event::Failed { id, error } => self.told.get_mut(&id).unwrap().error = Some(error),
            }
        }
    }

    fn run(&mut self) {
        while !self.scheduler.is_idle() {
            self.step();
        }
    }

    /// Submits alone, and gives how many tokens were cached, with the only continuation.
    fn ask(&mut self, prompt: &[u32], options: &Options) -> (usize, Continuation) {
        let id = self.submit(prompt, options, 1);
        self.run();
        let told = &self.told[&id];
        (told.cached, told.samples[&0].2.clone().unwrap())
    }
}

fn limits(width: usize, step_tokens: usize, prefix_bytes: u64) -> Limits {
    Limits { width, step_tokens, prefix_bytes }
}

/// Requests of every kind, of a model that holds 16 tokens.
fn requests(model: &Model, n: usize) -> Vec<(Vec<u32>, Options, usize)> {
    let strategies = [Strategy::Greedy, Strategy::Sample, Strategy::Beam];
    let mut rng = Rng::new(7, "requests");
    let mut request = |(i, mut prompt): (usize, Vec<u32>)| {
        if rng.below(2) == 0 {
            // Many prompts begin alike.
            prompt.splice(0..0, [9, 9, 8, 9, 8]);
        }
        let strategy = strategies[rng.index(3)];
        let options = Options {
            max_new_tokens: rng.index(20),
            num_beams: 1 + rng.index(3),
            seed: i as u64,
            top_logprobs: rng.index(4),
            stop: if rng.below(2) == 0 { vec!["ab".to_string(), "e t".to_string()] } else { Vec::new() },
            repetition_penalty: [1.0, 1.2][rng.index(2)],
            frequency_penalty: [0.0, 0.7][rng.index(2)],
            ..with(strategy)
        };
        (prompt, options, if strategy == Strategy::Sample { 1 + rng.index(4) } else { 1 })
    };
    prompts(model, n).into_iter().enumerate().map(&mut request).collect()
}

/// Requests that come at any step, some of which are cancelled; wide and narrow batches, long and short pieces of
/// prompts, with and without kept sequences.
#[test]
fn a_request_gives_the_bits_that_it_gives_alone() {
    for model in [model(), letters()].map(Arc::new) {
        let requests = requests(&model, 60);
        let one = |(prompt, options, samples): &(Vec<u32>, Options, usize)| -> Vec<Continuation> {
            (0..*samples).map(|sample| alone(&model, prompt, options, 0, sample)).collect()
        };
        let expected: Vec<Vec<Continuation>> = requests.iter().map(one).collect();
        let (mut reused, mut cancelled) = (0, 0);
        for limits in
            [limits(7, 3, 1 << 20), limits(1, 100, 1 << 20), limits(32, 16, 20_000), limits(5, 1, 0)]
        {
            let (mut service, mut rng) =
                (Service::new(&model, limits), Rng::new(limits.width as u64, "steps"));
            let (mut ids, mut gone) = (Vec::new(), Vec::new());
            while ids.len() < requests.len() || !service.scheduler.is_idle() {
                if let Some((prompt, options, samples)) = requests.get(ids.len())
                    && rng.below(2) == 0
                {
                    ids.push(service.submit(prompt, options, *samples));
                }
                if rng.below(9) == 0 && !ids.is_empty() {
                    gone.push(ids[rng.index(ids.len())]);
                    service.scheduler.cancel(gone[gone.len() - 1]);
                }
                service.step();
                assert!(service.scheduler.kept_bytes() <= limits.prefix_bytes);
            }
            for (i, id) in ids.iter().enumerate() {
                let told = &service.told[id];
                reused += usize::from(told.cached > 0);
                assert!(told.error.is_none());
                for (sample, (text, tokens, whole)) in &told.samples {
                    let own = &expected[i][*sample];
                    let Some(whole) = whole else {
                        assert!(gone.contains(id) && own.text.starts_with(text), "request {i}");
                        assert_eq!(*tokens, own.tokens_from(0)[..tokens.len()]);
                        continue;
                    };
                    assert_eq!(whole, own, "request {i} with {limits:?}");
                    assert_eq!((text, tokens), (&own.text, &own.tokens_from(0)));
                }
                let ended = told.samples.values().filter(|sample| sample.2.is_some()).count();
                assert!(gone.contains(id) || ended == requests[i].2, "request {i} has {ended} ends");
                cancelled += usize::from(ended < requests[i].2);
            }
        }
        assert!(reused > 30 && cancelled > 5, "{reused} reused, {cancelled} cancelled");
    }
}

#[test]
fn a_turn_whose_history_was_read_reads_what_is_new() {
    let model = Arc::new(roomy(model()));
    let options = Options { max_new_tokens: 5, ..with(Strategy::Greedy) };
    let mut service = Service::new(&model, limits(8, 256, 1 << 20));
    let mut prompt = prompt_ids(&model, "The cat").unwrap();
    let (cached, said) = service.ask(&prompt, &options);
    assert_eq!((cached, said.tokens.len()), (0, 5), "{said:?}");
    // All but the last token of the answer was read.
    prompt.extend(&said.tokens);
    let history = prompt.len() - 1;
    prompt.extend(prompt_ids(&model, "and the dog").unwrap());
    assert_eq!(service.ask(&prompt, &options), (history, alone(&model, &prompt, &options, 0, 0)));
    // The same once more: its last token has to be read.
    assert_eq!(service.ask(&prompt, &options), (prompt.len() - 1, alone(&model, &prompt, &options, 0, 0)));
    // Another end of the same beginning, and what was there before it.
    let other = [&prompt[..history], &[7, 8]].concat();
    assert_eq!(service.ask(&other, &options).0, history);
    assert_eq!(service.ask(&prompt, &options).0, prompt.len() - 1);
    // Beams and several samples leave their prompt.
    let beams = Options { max_new_tokens: 3, ..with(Strategy::Beam) };
    let ids = [5, 6, 7, 8];
    assert_eq!(service.ask(&ids, &beams).0, 0);
    assert_eq!(service.ask(&ids, &beams).0, 3);
}

/// The same model for sequences of 64 tokens.
fn roomy(small: Model) -> Model {
    let config = Config { d_ff: 32, dropout: 0.0, ..gpt2(small.transformer.config.vocab_size, 16, 2, 2, 64) };
    Model { transformer: Transformer::fresh(&config, 3), ..small }
}

#[test]
fn what_had_to_drop_tokens_is_not_reused() {
    let model = Arc::new(model());
    let options = Options { max_new_tokens: 12, ..with(Strategy::Greedy) };
    let mut service = Service::new(&model, limits(8, 256, 1 << 20));
    let prompt: Vec<u32> = (30..42).collect();
    let (_, said) = service.ask(&prompt, &options);
    assert_eq!(said.tokens.len(), 12, "beyond the 16 that the model holds");
    assert_eq!(service.scheduler.kept_bytes(), 0);
    assert_eq!(service.ask(&prompt, &options), (0, said));
}

/// Room for two and a half sequences: of three the one goes that was not used for the longest time.
#[test]
fn kept_sequences_stay_within_their_memory_and_the_least_recently_used_goes_first() {
    let model = Arc::new(roomy(model()));
    let options = Options { max_new_tokens: 1, ..with(Strategy::Greedy) };
    let ids = |first: u32| -> Vec<u32> { (first..first + 20).collect() };
    let mut service = Service::new(&model, limits(8, 256, 1 << 30));
    service.ask(&ids(30), &options);
    let each = service.scheduler.kept_bytes();
    let config = &model.transformer.config;
    // Tokens and values; keys have room for 64.
    assert_eq!(each as usize, 20 * 4 + (20 + 64) * 4 * config.n_layer * config.kv_width());
    let mut service = Service::new(&model, limits(8, 256, each * 5 / 2));
    for (first, cached) in [(30, 0), (60, 0), (30, 19), (90, 0), (30, 19), (60, 0), (90, 0)] {
        assert_eq!(service.ask(&ids(first), &options).0, cached, "{first}");
        assert!(service.scheduler.kept_bytes() <= each * 5 / 2);
    }
}

/// A prompt of 40 tokens is read in pieces of 8, meanwhile others are told a token a step, and a prompt that came
/// later is read before it.
#[test]
fn nobody_waits_for_the_long_prompt_of_another() {
    let model = Arc::new(roomy(model()));
    let options = Options { max_new_tokens: 20, logit_bias: [(40, 100.0)].into(), ..with(Strategy::Greedy) };
    let mut service = Service::new(&model, limits(8, 8, 0));
    let first = service.submit(&[9], &options, 1);
    service.step();
    let long = service.submit(&[11; 40], &options, 1);
    let short = service.submit(&[12; 6], &options, 1);
    let tokens =
        |service: &Service, id: RequestId| service.told[&id].samples.get(&0).map_or(0, |told| told.1.len());
    let mut begun = BTreeMap::new();
    for step in 1..12 {
        service.step();
        assert_eq!(tokens(&service, first), step + 1);
        for id in [short, long] {
            if tokens(&service, id) > 0 {
                begun.entry(id).or_insert(step);
            }
        }
    }
    assert_eq!((begun[&short], begun[&long]), (2, 6));
}

/// Learned positions from the tenth on are NaN.
#[test]
fn a_request_whose_logits_are_nan_fails_alone() {
    let mut broken = roomy(model());
    let (positions, c) = (broken.transformer.layout.positions.clone().unwrap(), 16);
    broken.transformer.weights[positions][10 * c..].fill(f32::NAN);
    let model = Arc::new(broken);
    let options = Options { max_new_tokens: 4, logit_bias: [(40, 100.0)].into(), ..with(Strategy::Greedy) };
    let mut service = Service::new(&model, limits(8, 8, 1 << 20));
    let ids: Vec<RequestId> = [3, 20, 8, 6].map(|n| service.submit(&vec![9; n], &options, 1)).into();
    service.run();
    let failed = |id: &RequestId| service.told[id].error.as_ref().map(ToString::to_string);
    // The third would be read beyond the ninth position.
    for (id, fails) in ids.iter().zip([false, true, true, false]) {
        assert_eq!(failed(id).is_some_and(|text| text.contains("NaN")), fails, "{id:?}");
        assert_eq!(service.told[id].samples.get(&0).is_some_and(|told| told.2.is_some()), !fails);
    }
    assert_eq!(service.ask(&[9; 7], &options).0, 6, "what others read is reused");
}

#[test]
fn what_cannot_be_continued_is_refused_before_anything_is_computed() {
    let model = Arc::new(model());
    let mut scheduler = Scheduler::new(model.clone(), 1, Limits::default());
    let known = model.tokenizer.vocab_size() as u32;
    let mut refused = |prompt: &[u32], options: Options, samples: usize| {
        let error = scheduler.submit(Request { prompt: prompt.to_vec(), options, samples }).unwrap_err();
        assert!(scheduler.is_idle());
        error.to_string()
    };
    let biased = |id: u32, bias: f64| Options { logit_bias: [(id, bias)].into(), ..Options::default() };
    let pad = model.tokenizer.require(Special::Pad).unwrap();
    for (found, expected) in [
        (refused(&[], Options::default(), 1), "the prompt has no tokens"),
        (refused(&[u32::MAX], Options::default(), 1), "token 4294967295 is beyond the model's"),
        (refused(&[9], Options::default(), 0), "`samples` is 0"),
        (refused(&[9], biased(known, 1.0), 1), "`logit_bias` is for token"),
        (
            refused(&[9], biased(9, 100.5), 1),
            "`logit_bias` is 100.5 for token 9: expected a number from -100 to 100",
        ),
        (refused(&[9], biased(9, f64::NAN), 1), "`logit_bias` is NaN for token 9"),
        (refused(&[9], biased(pad, 100.0), 1), "`logit_bias` leaves no token"),
        (
            refused(&[9], Options { presence_penalty: 2.5, ..Options::default() }, 1),
            "`presence_penalty` is 2.5",
        ),
        (
            refused(&[9], Options { frequency_penalty: f64::NAN, ..Options::default() }, 1),
            "`frequency_penalty` is NaN",
        ),
        (
            refused(&[9], Options { top_logprobs: 21, ..Options::default() }, 1),
            "`top_logprobs` is 21: expected 0 to 20",
        ),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    let none = Options { logit_bias: (0..known).map(|id| (id, -100.0)).collect(), ..Options::default() };
    assert!(refused(&[9], none, 1).contains("`logit_bias` leaves no token that may be chosen"));
}

#[test]
fn biases_and_penalties_change_logits_as_openai_defines_them() {
    let model = model();
    let mut session = Session::new(&model, 1);
    session.feed(&[9, 10, 11, 10, 12, 10]).unwrap();
    // The new text is 11, 10, 12, 10.
    session.sequence.prompt = 2;
    let size = model.transformer.config.vocab_size;
    session.sequence.logits = (0..size).map(|id| id as f32 / 64.0).collect();
    let logits = |options: &Options| -> BTreeMap<u32, f64> {
        Sampler::new(&model, options).best(&session.sequence, size).into_iter().collect()
    };
    let plain = logits(&Options::default());
    let changed = |options: Options| -> BTreeMap<u32, f64> {
        let found = logits(&options);
        let difference =
            |(id, logit): (&u32, &f64)| (*id, found.get(id).map_or(f64::NEG_INFINITY, |found| found - logit));
        plain.iter().map(difference).filter(|(_, difference)| *difference != 0.0).collect()
    };
    let close = |found: BTreeMap<u32, f64>, expected: &[(u32, f64)]| {
        let near = found.iter().zip(expected).all(|(f, e)| *f.0 == e.0 && (f.1 - e.1).abs() < 1e-12);
        assert!(found.len() == expected.len() && near, "{found:?}, expected {expected:?}");
    };
    let none = Options::default;
    close(changed(Options { presence_penalty: 0.5, ..none() }), &[(10, -0.5), (11, -0.5), (12, -0.5)]);
    close(changed(Options { frequency_penalty: 0.5, ..none() }), &[(10, -1.0), (11, -0.5), (12, -0.5)]);
    close(
        changed(Options { presence_penalty: -1.0, frequency_penalty: 0.25, ..none() }),
        &[(10, 0.5), (11, 0.75), (12, 0.75)],
    );
    close(
        changed(Options { logit_bias: [(9, 3.0), (12, -99.0)].into(), ..none() }),
        &[(9, 3.0), (12, -99.0)],
    );
    let banned = changed(Options { logit_bias: [(9, -100.0)].into(), ..none() });
    assert_eq!(banned, [(9, f64::NEG_INFINITY)].into());
}

/// Whatever a strategy would say, it does not say what is banned, and says nothing but what is forced.
#[test]
fn a_bias_of_100_forces_and_one_of_minus_100_bans() {
    let mut model = model();
    // Logits that are much further apart than a bias.
    model.transformer.weights.iter_mut().for_each(|weight| *weight *= 400.0);
    let model = Arc::new(model);
    let mut service = Service::new(&model, Limits::default());
    for strategy in [Strategy::Greedy, Strategy::Sample, Strategy::Beam] {
        let options = Options { max_new_tokens: 6, ..with(strategy) };
        let forced = Options { logit_bias: [(50, 100.0), (60, 100.0)].into(), ..options.clone() };
        let (_, said) = service.ask(&[9, 10], &forced);
        assert!(said.tokens.len() == 6 && said.tokens.iter().all(|id| [50, 60].contains(id)), "{said:?}");
        // One after the other, what it says first is banned.
        let mut banned = BTreeMap::new();
        for _ in 0..5 {
            let options = Options { logit_bias: banned.clone(), repetition_penalty: 1.1, ..options.clone() };
            let (_, said) = service.ask(&[9, 10], &options);
            assert!(said.tokens.iter().all(|id| !banned.contains_key(id)), "{strategy:?}: {said:?}");
            banned.extend(said.tokens.first().map(|id| (*id, -100.0)));
        }
    }
    // The end of a text is a token like others.
    let end = model.tokenizer.special(Special::Eos).unwrap();
    let options = Options { logit_bias: [(end, 100.0)].into(), ..with(Strategy::Sample) };
    let (_, said) = service.ask(&[9, 10], &options);
    assert_eq!((said.tokens.len(), said.finish), (0, Finish::End));
}

#[test]
fn the_most_probable_ids_have_the_log_softmax_of_the_logits() {
    let model = Arc::new(roomy(model()));
    let mut service = Service::new(&model, Limits::default());
    let prompt = [9, 10, 11];
    let options = Options { top_logprobs: 20, max_new_tokens: 8, temperature: 5.0, ..with(Strategy::Sample) };
    let (_, said) = service.ask(&prompt, &options);
    let (_, plain) = service.ask(&prompt, &Options { top_logprobs: 0, ..options });
    assert_eq!((&plain.tokens, &plain.logprobs), (&said.tokens, &said.logprobs));
    assert!(plain.tops.iter().all(Vec::is_empty) && plain.tops.len() == plain.tokens.len());
    let mut session = Session::new(&*model, 1);
    session.feed(&prompt).unwrap();
    for token in said.tokens_from(0) {
        let logits: Vec<f64> = session.sequence.logits.iter().map(|l| f64::from(*l)).collect();
        let logprobs = log_softmax(&logits);
        let mut ids: Vec<u32> = (0..model.tokenizer.vocab_size() as u32).collect();
        ids.sort_by(|a, b| logprobs[*b as usize].total_cmp(&logprobs[*a as usize]).then(a.cmp(b)));
        assert!(token.top.iter().map(|(id, _)| *id).eq(ids[..20].iter().copied()));
        for (id, logprob) in token.top {
            assert!((logprobs[id as usize] - logprob).abs() < 1e-5);
            assert!(id != token.id || logprob == token.logprob);
        }
        session.feed(&[token.id]).unwrap();
    }
}

/// Turns, with and without stop strings, until the model has long ceased to see the first, against the tokens of
/// the whole conversation read by a session.
#[test]
fn a_conversation_is_the_tokens_of_its_turns() {
    let model = Arc::new(model());
    let mut conversation = Conversation::new(model.clone(), Some("Be brief."), 1);
    let mut session = Session::new(&*model, 1);
    let say = |role, text: &str| Message::new(role, text);
    use crate::corpus::conversation::Role;
    let mut forgotten = 0;
    for (i, text) in ["Hi", "Where is the cat?", "Hi", "and the dog", "x"].into_iter().enumerate() {
        let whole = Options { seed: i as u64, max_new_tokens: 9, ..with(Strategy::Sample) };
        let ids = match i {
            0 => chat::prompt(&model.tokenizer, &[say(Role::System, "Be brief."), say(Role::User, text)]),
            _ => chat::further(&model.tokenizer, &[say(Role::User, text)]),
        };
        session.feed(ids.as_ref().unwrap()).unwrap();
        let before = session.sequence.clone();
        let said = stream(&mut session, ids.as_ref().unwrap(), &whole, &mut |_| ControlFlow::Continue(()));
        let said = said.unwrap();
        // Every other answer is cut by a stop string from its middle.
        let stop: Vec<String> =
            said.text.chars().nth(4).filter(|_| i % 2 == 1).map(String::from).into_iter().collect();
        let mut pieces = String::new();
        let turn = conversation.turn(text, &Options { stop: stop.clone(), ..whole }, &mut |piece| {
            pieces += piece;
            ControlFlow::Continue(())
        });
        let turn = turn.unwrap();
        assert_eq!((turn.text.as_str(), turn.finish == Finish::Stop), (pieces.as_str(), !stop.is_empty()));
        if turn.finish == Finish::Stop {
            session.sequence = before;
            session.feed(&model.tokenizer.encode(&turn.text).unwrap()).unwrap();
        }
        session.feed(&[chat::end(&model.tokenizer).unwrap()]).unwrap();
        forgotten += turn.forgotten;
        let own = &conversation.session.sequence;
        assert_eq!(
            (&own.tokens, &own.logits, own.dropped),
            (&session.sequence.tokens, &session.sequence.logits, forgotten)
        );
        assert_eq!(own.dropped, session.sequence.dropped);
    }
    assert!(forgotten > 30, "{forgotten}");
    let first = conversation.tokens();
    conversation.reset();
    assert!(conversation.tokens() == 0 && first > 0);
}

/// A server hands them from thread to thread.
#[test]
fn what_owns_its_model_goes_from_thread_to_thread() {
    fn sent<T: Send + 'static>() {}
    sent::<Scheduler>();
    sent::<Conversation<Arc<Model>>>();
    sent::<Session<Arc<Model>>>();
}
