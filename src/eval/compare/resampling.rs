//! Figures of all entries over resamples of items and members.

use rayon::prelude::*;

use crate::base::rng;
use crate::eval::bootstrap::{RESAMPLES, draw};

/// What one figure is computed from: each is the mean over an entry's members of Σ numerator / Σ denominator.
pub struct Sums {
    /// Of each item and member: the members of item 0 in the order of the entries, then those of item 1.
    numerators: Vec<f64>,
    /// Of each item: the same for all members.
    denominators: Vec<f64>,
    /// How many members each entry has.
    members: Vec<usize>,
}

impl Sums {
    pub fn new(numerators: Vec<f64>, denominators: Vec<f64>, members: Vec<usize>) -> Self {
        Sums { numerators, denominators, members }
    }

    pub fn items(&self) -> usize {
        self.denominators.len()
    }

    fn width(&self) -> usize {
        self.members.iter().sum()
    }

    /// Of each entry the members' figures and their mean.
    pub fn figures(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let members = self.split(&self.of_members(0..self.items()));
        let means = members.iter().map(|figures| mean(figures.iter().copied())).collect();
        (members, means)
    }

    /// Each member's figure over the items drawn, summed in their order.
    fn of_members(&self, drawn: impl Iterator<Item = usize>) -> Vec<f64> {
        let width = self.width();
        let (mut sums, mut denominator) = (vec![0.0; width], 0.0);
        for item in drawn {
            let own = &self.numerators[item * width..][..width];
            sums.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
            denominator += self.denominators[item];
        }
        sums.iter_mut().for_each(|sum| *sum /= denominator);
        sums
    }

    /// Values of all members, entry by entry.
    fn split(&self, all: &[f64]) -> Vec<Vec<f64>> {
        let mut all = all.iter().copied();
        self.members.iter().map(|count| all.by_ref().take(*count).collect()).collect()
    }

    /// The figure of each entry in each resample: of items, the same for all, and of each entry's members.
    pub fn resamples(&self, seed: u64) -> Vec<Vec<f64>> {
        let one = |r| {
            let drawn = (0..self.items()).map(|j| draw(seed, r, j, self.items()));
            let members = self.split(&self.of_members(drawn));
            members
                .iter()
                .enumerate()
                .map(|(entry, own)| drawn_mean(own, members_seed(seed, entry), r))
                .collect()
        };
        (0..RESAMPLES).into_par_iter().map(one).collect()
    }

    /// Each item's numerator of some entries less the baseline's, means over members.
    pub fn differences(&self, entries: &[usize], baseline: usize) -> Vec<Vec<f64>> {
        let of_item = |values: &[f64]| -> Vec<f64> {
            self.split(values).into_iter().map(|own| mean(own.into_iter())).collect()
        };
        let means: Vec<Vec<f64>> = self.numerators.chunks_exact(self.width()).map(of_item).collect();
        entries.iter().map(|&e| means.iter().map(|item| item[e] - item[baseline]).collect()).collect()
    }
}

fn members_seed(seed: u64, entry: usize) -> u64 {
    rng::at(seed.wrapping_add(1 + entry as u64), 0)
}

/// The mean over as many members as there are, drawn with replacement.
fn drawn_mean(members: &[f64], seed: u64, r: usize) -> f64 {
    mean((0..members.len()).map(|l| members[draw(seed, r, l, members.len())]))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
