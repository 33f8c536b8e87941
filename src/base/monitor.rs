//! How long work talks to whoever started it: progress out, figures out, a wish to stop in.
//!
//! The domain is handed a [`Monitor`] and never learns whether a bar, a log or nobody listens.

use super::{Error, Result};

/// One report of a long step. `done` of `total` in `unit`; `note` is what changes beside it (a loss).
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub phase: String,
    pub done: u64,
    /// `None` while it is not known.
    pub total: Option<u64>,
    /// `steps`, `docs`, `B`: plural, as shown behind the number.
    pub unit: &'static str,
    pub note: String,
}

/// The listener. Calls are cheap for the caller: it is the listener that drops what comes too often.
pub trait Monitor: Send + Sync {
    fn progress(&self, progress: Progress);

    /// A figure of this run that must not be part of an artifact's bytes: tokens per second, peak
    /// memory, seconds.
    fn measure(&self, name: &str, value: f64, unit: &str);

    /// Whether somebody asked to stop. Ask at least every tenth of a second of work.
    fn cancelled(&self) -> bool;

    /// `Err` when somebody asked to stop, for use with `?`.
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

/// Nobody listens and nobody stops it: for tests and for use as a library.
pub struct Quiet;

impl Monitor for Quiet {
    fn progress(&self, _: Progress) {}
    fn measure(&self, _: &str, _: f64, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}
