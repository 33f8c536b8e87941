//! Averages of the weights over the last steps, which are often better than the last weights.

use crate::kernel::average::average;
use crate::kernel::{Buffer, Team};

/// An exponential moving average of the weights.
pub struct Average {
    decay: f64,
    steps: u64,
    weights: Buffer,
}

impl Average {
    /// `decay`: what is left of a step's share after each further step.
    pub fn new(decay: f64, weights: &[f32]) -> Self {
        Average { decay, steps: 0, weights: weights.iter().copied().collect() }
    }

    /// Adds the weights of a further step. Early steps count more, so that the weights of the beginning are
    /// soon forgotten.
    pub fn add(&mut self, team: &Team, weights: &[f32]) {
        self.steps += 1;
        let t = self.steps as f64;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        average(team, (1.0 - decay) as f32, &mut self.weights, weights);
    }

    /// What it keeps from step to step: how many steps it has seen, and the average.
    pub fn state(&mut self) -> (&mut u64, &mut [f32]) {
        (&mut self.steps, &mut self.weights)
    }

    /// Changes `weights` for the average, and back when called again.
    pub fn swap(&mut self, weights: &mut [f32]) {
        self.weights.swap_with_slice(weights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_weights_and_forgets_the_beginning() {
        let team = Team::new(2);
        let mut average = Average::new(0.5, &[8.0, -1.0]);
        let mut expected = 8.0f64;
        for step in 1..=30 {
            let weight = step as f32;
            average.add(&team, &[weight, 3.0]);
            let decay = f64::min(0.5, (1.0 + f64::from(weight)) / (10.0 + f64::from(weight)));
            expected = decay * expected + (1.0 - decay) * f64::from(weight);
        }
        let mut weights: Buffer = [0.0, 0.0].into_iter().collect();
        average.swap(&mut weights);
        assert!((f64::from(weights[0]) - expected).abs() < 1e-4, "{} is not {expected}", weights[0]);
        assert!((weights[1] - 3.0).abs() < 1e-5);
    }
}
