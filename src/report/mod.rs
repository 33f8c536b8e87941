//! Whoever tells the user what happens: console, JSON lines, the run's folder. All read the one stream
//! of events; with `cli`, the only room that prints.

mod console;
mod folder;
mod jsonl;
pub mod stdout;
pub mod style;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::base::{Error, Result};
use crate::event::Event;

pub use console::Console;
pub use folder::RunFolder;
pub use jsonl::JsonLines;

/// Somebody who is told everything, in order.
pub trait Reporter: Send {
    fn report(&mut self, event: &Event);

    /// Nothing more has happened so far: what was held back should be seen now.
    fn flush(&mut self) {}

    /// What kept it from telling the user, if something did.
    fn error(&self) -> Option<Error> {
        None
    }
}

/// Feeds every reporter until the stream ends.
///
/// # Errors
/// The first thing that kept one from telling the user; the others were told all the same.
pub async fn feed(mut events: UnboundedReceiver<Event>, mut reporters: Vec<Box<dyn Reporter>>) -> Result<()> {
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, 1024).await > 0 {
        for event in batch.drain(..) {
            reporters.iter_mut().for_each(|r| r.report(&event));
        }
        reporters.iter_mut().for_each(|r| r.flush());
    }
    match reporters.iter().find_map(|r| r.error()) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}
