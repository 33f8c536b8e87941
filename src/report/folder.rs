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
    folder: PathBuf,
}

impl RunFolder {
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        Ok(RunFolder { events: fs::create(&folder.join("events.jsonl"))?, folder: folder.to_path_buf() })
    }
}

impl Reporter for RunFolder {
    fn report(&mut self, event: &Event) {
        let Ok(mut line) = serde_json::to_string(event) else { return };
        line.push('\n');
        // A full disk must not stop a run whose artifacts may still fit; they have errors of their own.
        let _ = self.events.write_all(line.as_bytes());
        if let Event::Summary(summary) = event {
            let text = serde_json::to_vec_pretty(summary).unwrap_or_default();
            let _ = fs::write_atomic(&self.folder.join("summary.json"), &text);
        }
    }
}
