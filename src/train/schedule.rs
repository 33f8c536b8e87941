//! The learning rate: a linear warm-up, then half a cosine down to a floor (Loshchilov and Hutter, 2017).

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub peak: f64,
    pub floor: f64,
    pub warmup: u64,
}

impl Schedule {
    /// At `step` from 1 to `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let span = steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / span as f64).min(1.0);
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_to_the_peak_and_falls_to_the_floor() {
        let schedule = Schedule { peak: 1.0, floor: 0.1, warmup: 10 };
        assert_eq!(schedule.rate(1, 110), 0.1);
        assert_eq!(schedule.rate(10, 110), 1.0);
        assert!((schedule.rate(60, 110) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(110, 110) - 0.1).abs() < 1e-12);
        assert_eq!(Schedule { warmup: 0, ..schedule }.rate(0, 0), 1.0);
    }
}
