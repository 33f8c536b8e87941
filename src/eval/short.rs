//! What many short texts cost a model: they are scored side by side, those of like lengths in one batch.

use super::Reach;
use super::windows::windows;
use crate::base::{Error, Monitor, Result};
use crate::model::{Executor, IGNORE, Model, Sequences, round_of};

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
        true => Err(Error::input("the model's logits are NaN")
            .help("its weights are damaged, or its training diverged: train it anew")),
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
