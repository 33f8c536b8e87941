//! Output of commands: results to stdout, the rest to stderr. A broken pipe is no panic.

use std::io::{self, Write};

use crate::base::Result;
use crate::report::stdout::{self, Reader};

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
