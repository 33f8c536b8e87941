//! `--format json`: each event a line on stdout; the last is the summary.

use super::{Reporter, stdout};
use crate::base::Error;
use crate::event::Event;

#[derive(Default)]
pub struct JsonLines {
    error: Option<Error>,
}

impl Reporter for JsonLines {
    fn report(&mut self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // A closed pipe (`| head`) is no failure of the run.
            if let Err(e) = stdout::print(&format!("{line}\n")) {
                self.error.get_or_insert(e);
            }
        }
    }

    fn error(&self) -> Option<Error> {
        self.error.clone()
    }
}
