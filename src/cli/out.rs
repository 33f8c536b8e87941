//! Output of commands: results to stdout, the rest to stderr. A broken pipe is no panic.

use std::io::{self, Write};

use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::base::Result;
use crate::base::text::visible;
use crate::report::stdout::{self, Reader};
use crate::report::style::Style;

/// Prints `text`; ends the process with success when the reader of a pipe is gone (`| head`).
///
/// # Errors
/// When stdout is closed or full.
pub fn out(text: &str) -> Result<()> {
    match stdout::print(text)? {
        Reader::There => Ok(()),
        Reader::Gone => std::process::exit(0),
    }
}

/// [`out`] as a line.
///
/// # Errors
/// As [`out`].
pub fn line(text: &str) -> Result<()> {
    out(&format!("{text}\n"))
}

/// Prints `text` on a line of stderr; errors are ignored.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Runs `work` with what it logs on stderr: notes as they are, warnings as such.
pub fn logged<T>(work: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(tracing_subscriber::registry().with(Stderr), work)
}

/// [`logged`], also of what other threads log.
pub fn logged_by_all<T>(work: impl FnOnce() -> T) -> T {
    // An error means that there is a subscriber already, which gets it then.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Stderr));
    work()
}

/// Prints the messages of our own events.
struct Stderr;

impl<S: tracing::Subscriber> Layer<S> for Stderr {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let (level, mut message) = (*event.metadata().level(), Message(String::new()));
        event.record(&mut message);
        match level {
            Level::WARN | Level::ERROR => warn(&message.0),
            Level::INFO if event.metadata().target().starts_with("tinylm") => say(&visible(&message.0)),
            _ => {}
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Prints a warning on stderr.
pub fn warn(what: &str) {
    say(&format!("{}: {}", Style::stderr().yellow("warning"), visible(what)));
}

/// [`out`] as a writer of UTF-8.
pub struct Out;

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        out(&String::from_utf8_lossy(bytes)).map_err(|e| io::Error::other(e.message().to_string()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
