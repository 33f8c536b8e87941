//! `artifacts/runs/ID/`: `events.jsonl` as it happens, `summary.json` at the end. The stages' logs are
//! written there too, by the stages themselves.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Reporter;
use crate::base::{Result, fs};
use crate::event::Event;

pub struct RunFolder {
    events: File,
    /// Lines of `events` not yet written.
    lines: Vec<u8>,
    folder: PathBuf,
}

impl RunFolder {
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        Ok(RunFolder {
            events: fs::create(&folder.join("events.jsonl"))?,
            lines: Vec::new(),
            folder: folder.to_path_buf(),
        })
    }
}

impl Reporter for RunFolder {
    fn report(&mut self, event: &Event) {
        if serde_json::to_writer(&mut self.lines, event).is_ok() {
            self.lines.push(b'\n');
        }
        if let Event::Summary(summary) = event {
            let text = serde_json::to_vec_pretty(summary).unwrap_or_default();
            let _ = fs::write_atomic(&self.folder.join("summary.json"), &text);
        }
    }

    fn flush(&mut self) {
        // A full disk must not stop a run whose artifacts may still fit; they have errors of their own.
        let _ = self.events.write_all(&self.lines);
        self.lines.clear();
    }
}
