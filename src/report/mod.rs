//! Reporters of a run: console, JSON lines, the run's folder. All read one stream of events. Only this
//! module and `cli` print.

mod console;
mod folder;
mod jsonl;
pub mod runs;
pub mod stdout;
pub mod style;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::base::{Error, Result};
use crate::event::Event;

pub use console::Console;
pub use folder::RunFolder;
pub use jsonl::JsonLines;

/// A reporter: gets every event, in order.
pub trait Reporter: Send {
    fn report(&mut self, event: &Event);

    /// No further event is waiting: flush what is buffered.
    fn flush(&mut self) {}

    /// The write error that stopped it, if there was one.
    fn error(&self) -> Option<Error> {
        None
    }
}

/// Feeds every reporter until the stream ends.
///
/// # Errors
/// The first write error of a reporter; the others got all events.
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
