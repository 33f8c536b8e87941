//! Standard output, which may be closed, full, or a broken pipe.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::{Error, Result};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// To be called before `main` when the process starts without a standard output: later that cannot be
/// detected, because the standard library opens `/dev/null` in its place.
pub fn note_closed() {
    CLOSED.store(true, Ordering::Relaxed);
}

/// The state of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    There,
    /// The reader closed the pipe, as `head` does, which is no failure.
    Gone,
}

/// Prints `text` and flushes.
///
/// # Errors
/// When the disk is full, or there is no standard output.
pub fn print(text: &str) -> Result<Reader> {
    let mut stdout = std::io::stdout().lock();
    let printed = match CLOSED.load(Ordering::Relaxed) {
        true => Err(std::io::Error::other("it is closed")),
        false => stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()),
    };
    match printed {
        Ok(()) => Ok(Reader::There),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(Error::input(format!("cannot write to the standard output: {e}"))),
    }
}
