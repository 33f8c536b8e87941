//! `--format json`: each event a line on stdout; the last is the summary.

use std::io::Write;

use super::Reporter;
use crate::event::Event;

pub struct JsonLines;

impl Reporter for JsonLines {
    fn report(&mut self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // A reader that went away (`| head`) is no failure of the run.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
}
