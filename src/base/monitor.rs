//! Progress, metrics and cancellation of long computations.
//!
//! Domain code gets a [`Monitor`]; whether progress is shown as a bar, logged or ignored is up to its
//! implementation.

use super::{Error, Result};

/// One progress report: `done` of `total` in `unit`; `note` has further figures (a loss).
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub phase: String,
    pub done: u64,
    /// `None` while it is not known.
    pub total: Option<u64>,
    /// `steps`, `docs`, `B`: plural, as shown after the number.
    pub unit: &'static str,
    pub note: String,
}

/// Receives progress and metrics. Calls are cheap: the implementation drops reports that come too often.
pub trait Monitor: Send + Sync {
    fn progress(&self, progress: Progress);

    /// A figure of this run that must not be part of an artifact's bytes: tokens per second, peak
    /// memory, seconds.
    fn measure(&self, name: &str, value: f64, unit: &str);

    /// Figures after `step` of a training, such as its loss: a point of its curves.
    fn metrics(&self, _step: u64, _figures: &[(&str, f64)]) {}

    /// Whether the computation was cancelled. To be called at least every tenth of a second of work.
    fn cancelled(&self) -> bool;

    /// `Err` on cancellation, for use with `?`.
    ///
    /// # Errors
    /// [`Error::cancelled`].
    fn check(&self) -> Result<()> {
        if self.cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// [`Monitor::check`] and a progress report in one call, for the head of a loop.
    ///
    /// # Errors
    /// [`Error::cancelled`].
    fn step(&self, phase: &str, done: u64, total: Option<u64>, unit: &'static str) -> Result<()> {
        self.check()?;
        self.progress(Progress { phase: phase.into(), done, total, unit, note: String::new() });
        Ok(())
    }
}

/// Ignores reports and never cancels: for tests and for use as a library.
pub struct Quiet;

impl Monitor for Quiet {
    fn progress(&self, _: Progress) {}
    fn measure(&self, _: &str, _: f64, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}
