//! The learning rate: a linear warm-up, then one of several ways down to a floor.

use serde::{Deserialize, Serialize};

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
            ScheduleKind::Wsd => {
                floor + (peak - floor) * left(step, steps, (self.decay_fraction * steps as f64).max(1.0))
            }
        }
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
