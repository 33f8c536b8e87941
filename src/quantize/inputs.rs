//! What linear layers read of calibration text, as far as GPTQ asks: `XᵀX` of the rows X.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::calibration::Windows;
use crate::base::{Monitor, Result};
use crate::kernel::matmul::{Start, matmul};
use crate::kernel::{Buffer, Team};
use crate::model::{Executor, Role, Sequences, Transformer, round_of};

/// Bytes of matrices that are kept at a time: of what doesn't fit, the texts are read once more.
const ROOM: usize = 256 << 20;

/// The mean of `x xᵀ` over rows x, `[k, k]`.
#[derive(Debug, Clone)]
pub struct Gram {
    pub k: usize,
    pub mean: Vec<f64>,
}

/// Calibration text, and what the layers of a model read of it.
pub struct Inputs<'a> {
    model: &'a Transformer,
    windows: Windows,
    executor: Executor,
    /// By where the weights lie in the model.
    kept: BTreeMap<usize, Gram>,
}

impl<'a> Inputs<'a> {
    pub fn new(model: &'a Transformer, windows: Windows, team: Team) -> Self {
        let executor = Executor::forward_only(&model.config, team);
        Inputs { model, windows, executor, kept: BTreeMap::new() }
    }

    /// Of the inputs of the layer whose weights lie there; `None` when no layer multiplies with them, as with an
    /// embedding that is no output projection.
    ///
    /// # Errors
    /// Cancellation.
    pub fn gram(&mut self, weights: &Range<usize>, monitor: &dyn Monitor) -> Result<Option<&Gram>> {
        if !self.kept.contains_key(&weights.start) && self.layers().any(|(start, _)| start == weights.start) {
            self.kept = self.read_from(weights.start, monitor)?;
        }
        Ok(self.kept.get(&weights.start))
    }

    /// The layers in the order of their weights: where these begin, and how many numbers a row has.
    fn layers(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let (model, head) = (self.model, self.model.layout.head.clone());
        model.parameters().iter().filter_map(move |p| match p.role {
            Role::Matrix => Some((p.range.start, p.shape[0])),
            _ => (p.range == head).then(|| (p.range.start, p.shape[1])),
        })
    }

    /// The matrices of as many layers as there is room for, from the one whose weights begin at `first`.
    fn read_from(&mut self, first: usize, monitor: &dyn Monitor) -> Result<BTreeMap<usize, Gram>> {
        let (mut found, mut bytes) = (BTreeMap::new(), 0);
        for (start, k) in self.layers().skip_while(|(start, _)| *start != first) {
            bytes += 8 * k * k;
            if bytes > ROOM && !found.is_empty() {
                break;
            }
            found.insert(start, Gram { k, mean: vec![0.0; k * k] });
        }
        let sums = Mutex::new((found, Buffer::new(0)));
        let Windows { ref ids, length } = self.windows;
        let (all, some) = (ids.len(), round_of(length) * length);
        for (i, ids) in ids.chunks(some).enumerate() {
            monitor.step("calibrating", (i * some) as u64, Some(all as u64), "tokens")?;
            let rows = Sequences::new(ids, ids, length);
            self.executor.inputs(self.model, rows, &|team, weights, rows, x| {
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                let (found, scratch) = &mut *sums;
                let Some(Gram { k, mean }) = found.get_mut(&weights.start) else { return };
                let (k, share) = (*k, 1.0 / all as f64);
                if scratch.len() < k * k {
                    *scratch = Buffer::new(k * k);
                }
                matmul(team, (k, k, rows), x.t(), x, Start::Zero, scratch, k);
                // A micro-batch's sum is of few rows: f32 is enough for it.
                mean.iter_mut().zip(&scratch[..k * k]).for_each(|(sum, x)| *sum += share * f64::from(*x));
            });
        }
        Ok(sums.into_inner().unwrap_or_else(PoisonError::into_inner).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;
    use crate::kernel::Isa;
    use crate::model::{gpt2, modern};

    fn windows(vocab_size: u32, length: usize) -> Windows {
        Windows { ids: (0..40 * length as u32).map(|i| i * i % vocab_size).collect(), length }
    }

    /// Of each layer of a model, in the order of its weights.
    fn grams(model: &Transformer, team: Team) -> Vec<Gram> {
        let mut inputs = Inputs::new(model, windows(model.config.vocab_size as u32, 16), team);
        let layers: Vec<_> = inputs.layers().collect();
        let range =
            |start: usize| model.parameters().iter().find(|p| p.range.start == start).unwrap().range.clone();
        layers
            .iter()
            .map(|(start, _)| inputs.gram(&range(*start), &Quiet).unwrap().unwrap().clone())
            .collect()
    }

    #[test]
    fn sums_are_the_same_everywhere() {
        let model = Transformer::fresh(&modern(70, 32, 2, 2, 64, 16), 1);
        let bits = |grams: &[Gram]| -> Vec<u64> {
            grams.iter().flat_map(|g| &g.mean).map(|x| x.to_bits()).collect()
        };
        let expected = bits(&grams(&model, Team::new(1)));
        assert!(expected.len() > 4 * 32 * 32 * 2);
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(
                    bits(&grams(&model, Team::with(threads, isa))) == expected,
                    "{} {threads}",
                    isa.name()
                );
            }
        }
    }

    /// What is seen of the output projection gives the loss, and of every other layer the rows that it reads.
    #[test]
    fn what_is_seen_is_what_layers_read() {
        let model = Transformer::fresh(&gpt2(50, 32, 2, 2, 16), 1);
        let Windows { ids, length } = windows(50, 16);
        let (team, c) = (Team::new(2), model.config.d_model);
        let mut executor = Executor::forward_only(&model.config, team);
        let all = Sequences::new(&ids, &ids, length);
        let loss = executor.loss(&model, all);
        let seen = Mutex::new((Vec::new(), BTreeMap::<usize, usize>::new()));
        executor.inputs(&model, all, &|_, weights, rows, x| {
            let (head, counts) = &mut *seen.lock().unwrap();
            if *weights == model.layout.head {
                (0..rows).for_each(|i| head.extend_from_slice(&x.row(i)[..c]));
            }
            *counts.entry(weights.start).or_default() += rows;
        });
        let (head, counts) = seen.into_inner().unwrap();
        let weights = &model.weights[model.layout.head.clone()];
        let nats = |(x, id): (&[f32], &u32)| {
            let dot = |w: &[f32]| w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let logits: Vec<f64> = weights.chunks(c).map(dot).collect();
            logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[*id as usize]
        };
        let found: f64 = head.chunks(c).zip(&ids).map(nats).sum();
        assert!((found - loss).abs() < 1e-3 * loss, "{found} {loss}");
        let matrices = model.parameters().iter().filter(|p| p.role == Role::Matrix).count();
        assert_eq!((counts.len(), matrices), (matrices + 1, 8));
        assert!(counts.values().all(|rows| *rows == ids.len()));
    }
}
