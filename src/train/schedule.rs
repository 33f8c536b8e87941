//! The learning rate: a linear warm-up, then one of several ways down to a floor.

use serde::{Deserialize, Serialize};

use crate::base::Digest;
use crate::base::digest::Hasher;

/// How the learning rate falls behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine, down to the floor (Loshchilov and Hutter, 2017).
    #[default]
    Cosine,
    /// A line, down to the floor.
    Linear,
    /// Not at all.
    Constant,
    /// "Warm-up, stable, decay": not at all, then a line in the last steps, down to the floor (Hu et al.,
    /// 2024).
    Wsd,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub peak: f64,
    pub floor: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// What the warm-up begins with, as a share of the peak.
    pub warmup_start: f64,
    /// The share of all steps in which [`ScheduleKind::Wsd`] falls.
    pub decay_fraction: f64,
}

impl Schedule {
    /// At `step` from 1 to `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        let Schedule { peak, floor, warmup, .. } = *self;
        if step < warmup {
            let start = peak * self.warmup_start;
            return start + (peak - start) * step as f64 / warmup as f64;
        }
        let behind = steps.saturating_sub(warmup).max(1);
        match self.kind {
            ScheduleKind::Cosine => {
                let done = ((step - warmup) as f64 / behind as f64).min(1.0);
                floor + (peak - floor) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))
            }
            ScheduleKind::Linear => floor + (peak - floor) * left(step, steps, behind as f64),
            ScheduleKind::Constant => peak,
            ScheduleKind::Wsd => floor + (peak - floor) * left(step, steps, self.decay_steps(steps)),
        }
    }

    /// Over which [`ScheduleKind::Wsd`] falls.
    fn decay_steps(&self, steps: u64) -> f64 {
        (self.decay_fraction * steps as f64).max(1.0)
    }

    /// The last of `steps` up to which a longer training has the same rates, if the schedule has such a
    /// part: all of [`ScheduleKind::Constant`], what comes before the decay of [`ScheduleKind::Wsd`].
    pub fn shared(&self, steps: u64) -> Option<u64> {
        let stays = |step: &u64| *step < self.warmup || left(*step, steps, self.decay_steps(steps)) >= 1.0;
        match self.kind {
            ScheduleKind::Constant => Some(steps),
            ScheduleKind::Wsd => (1..=steps).rev().find(stays),
            ScheduleKind::Cosine | ScheduleKind::Linear => None,
        }
    }

    /// Of the rates of the steps from 1 to `until`: trainings with the same digest had the same rates.
    pub fn digest(&self, until: u64, steps: u64) -> Digest {
        let mut hasher = Hasher::new();
        (1..=until).for_each(|step| hasher.update(&self.rate(step, steps).to_le_bytes()));
        hasher.finish()
    }
}

/// What is left of a line that falls over the last `span` of `steps`. The last step is the last above 0:
/// at a rate of 0 it would be wasted.
fn left(step: u64, steps: u64, span: f64) -> f64 {
    ((steps + 1).saturating_sub(step) as f64 / span).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: Schedule = Schedule {
        kind: ScheduleKind::Cosine,
        peak: 1.0,
        floor: 0.1,
        warmup: 10,
        warmup_start: 0.0,
        decay_fraction: 0.5,
    };

    #[test]
    fn a_cosine_rises_to_the_peak_and_falls_to_the_floor() {
        assert_eq!(COSINE.rate(1, 110), 0.1);
        assert_eq!(COSINE.rate(10, 110), 1.0);
        assert!((COSINE.rate(60, 110) - 0.55).abs() < 1e-12);
        assert!((COSINE.rate(110, 110) - 0.1).abs() < 1e-12);
        assert_eq!(Schedule { warmup: 0, ..COSINE }.rate(0, 0), 1.0);
    }

    #[test]
    fn longer_trainings_share_what_comes_before_the_decay() {
        let schedule = |kind| Schedule { kind, ..COSINE };
        assert_eq!(schedule(ScheduleKind::Constant).shared(40), Some(40));
        assert_eq!(schedule(ScheduleKind::Cosine).shared(40), None);
        assert_eq!(schedule(ScheduleKind::Linear).shared(40), None);
        let wsd = schedule(ScheduleKind::Wsd);
        for (steps, shared) in [(40, 21), (41, 21), (12, 9), (1, 1)] {
            assert_eq!(wsd.shared(steps), Some(shared), "{steps} steps");
            assert_eq!(wsd.digest(shared, steps), wsd.digest(shared, 2 * steps + 20));
        }
        assert_ne!(wsd.digest(22, 40), wsd.digest(22, 80));
        // The warm-up is that of any length.
        let cosine = schedule(ScheduleKind::Cosine);
        assert_eq!(cosine.digest(10, 40), cosine.digest(10, 80));
        assert_ne!(cosine.digest(11, 40), cosine.digest(11, 80));
    }

    #[test]
    fn the_others_fall_when_they_should() {
        let rates = |kind, floor| {
            let schedule = Schedule { kind, floor, warmup_start: 0.5, warmup: 4, ..COSINE };
            [2, 4, 5, 8, 9, 10, 12].map(|step| schedule.rate(step, 12))
        };
        assert_eq!(rates(ScheduleKind::Constant, 0.0), [0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(ScheduleKind::Linear, 0.0), [0.75, 1.0, 1.0, 0.625, 0.5, 0.375, 0.125]);
        assert_eq!(rates(ScheduleKind::Linear, 0.5)[4], 0.75);
        // Half of the twelve steps fall: those from the seventh on.
        assert_eq!(rates(ScheduleKind::Wsd, 0.0), [0.75, 1.0, 1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 1.0 / 6.0]);
        // A floor above the peak is risen to.
        assert_eq!(rates(ScheduleKind::Wsd, 2.0)[6], 2.0 - 1.0 / 6.0);
    }
}
