//! What many short texts cost a model: they are scored side by side, those of like lengths in one batch.

use super::Reach;
use super::windows::windows;
use crate::base::{Monitor, Result};
use crate::model::{Executor, IGNORE, Model, Sequences, nan, round_of};

/// Token ids of a text, of which those from `first` on are scored, given all before them.
#[derive(Debug, Clone, PartialEq)]
pub struct Short {
    pub ids: Vec<u32>,
    /// At least 1: nothing predicts the first id.
    pub first: usize,
}

impl Short {
    /// How many tokens are scored.
    pub fn scored(&self) -> u64 {
        self.ids.len().saturating_sub(self.first) as u64
    }
}

/// Ids that a model reads, what each is to predict, and the number of their text.
struct Sequence<'a> {
    read: &'a [u32],
    targets: Vec<u32>,
    text: usize,
}

/// For each text the sum of `-ln p` over its scored tokens: the same bits whatever is scored beside it. A text
/// longer than the context is scored in windows.
///
/// # Errors
/// Cancellation, or logits that are NaN.
pub fn nats(
    model: &Model,
    executor: &mut Executor,
    texts: &[Short],
    reach: Reach,
    monitor: &dyn Monitor,
) -> Result<Vec<f64>> {
    let mut sequences: Vec<Sequence> = texts.iter().enumerate().flat_map(|text| cut(text, reach)).collect();
    // Like lengths together, so that little is padding; windows of one text stay in their order.
    sequences.sort_by_key(|sequence| sequence.read.len());
    let mut sums = vec![0.0; texts.len()];
    let mut rest = sequences.as_slice();
    while !rest.is_empty() {
        monitor.check()?;
        let some = batch(rest);
        rest = &rest[some.len()..];
        for (sequence, nats) in some.iter().zip(score(model, executor, some)) {
            sums[sequence.text] += nats;
        }
    }
    match sums.iter().any(|sum| sum.is_nan()) {
        true => Err(nan("logits")),
        false => Ok(sums),
    }
}

/// The windows of a text in which something is scored.
fn cut((text, short): (usize, &Short), reach: Reach) -> impl Iterator<Item = Sequence<'_>> {
    let all = windows(short.ids.len(), reach.context, reach.stride);
    let used = all.filter(|window| window.scored.end > short.first);
    used.map(move |window| {
        let targets = window.targets(&short.ids, |i| i >= short.first);
        Sequence { read: &short.ids[window.read], targets, text }
    })
}

/// The first sequences of `all`, which are sorted by length: as many as keep the executor busy.
fn batch<'a, 'b>(all: &'a [Sequence<'b>]) -> &'a [Sequence<'b>] {
    let tokens = round_of(1);
    let fits =
        |(count, sequence): &(usize, &Sequence)| *count == 0 || (count + 1) * sequence.read.len() <= tokens;
    let count = all.iter().enumerate().take_while(fits).count();
    &all[..count]
}

/// Of each sequence the nats of its targets. Shorter ones are filled up behind their end, which no token before
/// it sees.
fn score(model: &Model, executor: &mut Executor, some: &[Sequence]) -> Vec<f64> {
    let length = some.last().map_or(0, |longest| longest.read.len());
    let (mut ids, mut targets) = (vec![0; some.len() * length], vec![IGNORE; some.len() * length]);
    for (i, sequence) in some.iter().enumerate() {
        let own = i * length..i * length + sequence.read.len();
        ids[own.clone()].copy_from_slice(sequence.read);
        targets[own].copy_from_slice(&sequence.targets);
    }
    executor.sequence_nats(&model.transformer, Sequences::new(&ids, &targets, length), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::kernel::Team;
    use crate::model::{Transformer, gpt2, modern};
    use crate::tokenizer::Tokenizer;

    /// Texts of 2 to 40 ids, of which the first few are context.
    fn texts() -> Vec<Short> {
        let ids = |i: usize| (0..2 + i * 7 % 39).map(|j| ((i * 31 + j * 17) % 400) as u32).collect();
        (0..150).map(|i| Short { ids: ids(i), first: 1 + i % 3 }).collect()
    }

    /// Models with learned positions and with rotary ones, of 16 positions.
    fn models() -> [Model; 2] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
        [gpt2(400, 16, 2, 2, 16), modern(400, 16, 2, 2, 32, 16)].map(|config| Model {
            transformer: Transformer::fresh(&config, 3),
            tokenizer: Tokenizer::load(std::path::Path::new(path)).unwrap(),
        })
    }

    fn bits(model: &Model, texts: &[Short], threads: usize) -> Vec<u64> {
        let mut executor = Executor::forward_only(&model.transformer.config, Team::new(threads));
        let reach = Reach { context: 16, stride: 8 };
        let found = nats(model, &mut executor, texts, reach, &Quiet).unwrap();
        found.into_iter().map(f64::to_bits).collect()
    }

    #[test]
    fn a_text_costs_the_same_bits_alone_and_in_any_batch() {
        let all = texts();
        for model in models() {
            let together = bits(&model, &all, 2);
            let alone: Vec<u64> =
                all.iter().flat_map(|text| bits(&model, std::slice::from_ref(text), 1)).collect();
            assert!(together == alone, "{:?}", model.transformer.config.position);
            let reversed: Vec<Short> = all.iter().rev().cloned().collect();
            assert!(bits(&model, &reversed, 1).into_iter().rev().eq(together));
        }
    }

    /// Against the predictions of each window by itself.
    #[test]
    fn what_is_scored_is_what_the_model_predicts() {
        let [model, _] = models();
        let mut executor = Executor::forward_only(&model.transformer.config, Team::new(1));
        for (text, found) in texts().iter().zip(bits(&model, &texts(), 2)) {
            let mut expected = 0.0;
            for window in windows(text.ids.len(), 16, 8) {
                let targets = window.targets(&text.ids, |i| i >= text.first);
                let all = Sequences::new(&text.ids[window.read.clone()], &targets, window.read.len());
                expected += executor.predictions(&model.transformer, all).iter().map(|p| p.nats).sum::<f64>();
            }
            let found = f64::from_bits(found);
            assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found}, not {expected}: {text:?}");
        }
        let none = Short { ids: vec![1], first: 1 };
        assert_eq!((none.scored(), bits(&model, &[none], 1)), (0, vec![0.0f64.to_bits()]));
    }

    #[test]
    fn a_broken_model_is_an_error() {
        let [mut model, _] = models();
        model.transformer.weights.fill(f32::NAN);
        let mut executor = Executor::forward_only(&model.transformer.config, Team::new(1));
        let reach = Reach { context: 16, stride: 8 };
        let error = nats(&model, &mut executor, &texts()[..2], reach, &Quiet).unwrap_err();
        assert!(error.to_string().contains("NaN") && error.to_string().contains("train it anew"));
    }
}
