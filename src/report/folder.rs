//! `artifacts/runs/ID/`: `events.jsonl` as it happens, `summary.json` at the end. The stages' logs are
//! written there too, by the stages themselves. `events.jsonl` is locked for as long as the process writes
//! to it, and the kernel releases the lock however the process ends: see [`super::runs`].

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Reporter;
use crate::base::{Error, Result, fs};
use crate::event::Event;

/// Every event of the run, one a line, as it happens.
pub const EVENTS: &str = "events.jsonl";
/// What the run gave, at its end.
pub const SUMMARY: &str = "summary.json";

pub struct RunFolder {
    events: File,
    /// Lines of `events` not yet written.
    lines: Vec<u8>,
    folder: PathBuf,
    /// The first write error, which is reported once.
    failed: bool,
}

impl RunFolder {
    /// Creates the run's folder; `None` when another run has it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(folder: &Path) -> Result<Option<Self>> {
        if !fs::create_new_dir(folder)? {
            return Ok(None);
        }
        let events = fs::create(&folder.join(EVENTS))?;
        // Where the file system has no locks, readers go by the time of the last event.
        let _ = events.lock();
        Ok(Some(RunFolder { events, lines: Vec::new(), folder: folder.to_path_buf(), failed: false }))
    }

    /// A full disk is reported but does not stop a run whose artifacts may still fit.
    fn warn(&mut self, written: Result<()>) {
        if let Err(e) = written
            && !std::mem::replace(&mut self.failed, true)
        {
            let _ = writeln!(std::io::stderr(), "warning: the record of this run is not whole: {e}");
        }
    }
}

impl Reporter for RunFolder {
    fn report(&mut self, event: &Event) {
        if serde_json::to_writer(&mut self.lines, event).is_ok() {
            self.lines.push(b'\n');
        }
        if let Event::Summary(summary) = event {
            // Not by a temporary and a rename: nothing would remove the temporary of a killed run.
            let path = self.folder.join(SUMMARY);
            let written = fs::write_json(&path, summary);
            self.warn(written.inspect_err(|_| drop(fs::remove(&path))));
        }
    }

    fn flush(&mut self) {
        let path = self.folder.join(EVENTS);
        let written = self.events.write_all(&self.lines).map_err(|e| Error::io("write", &path, &e));
        self.lines.clear();
        self.warn(written);
    }
}
