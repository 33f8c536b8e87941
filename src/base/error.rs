//! One error type for the whole program: what is wrong, where, the value found, and help.
//!
//! Deliberately not an enum with a variant per failure, since no caller matches on them. Callers only need
//! the [`Fault`], which decides the exit code.

use std::fmt;
use std::path::Path;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The command line or the pipeline is wrong; nothing ran. Exit code 2.
    Usage,
    /// A stage or an input failed. Exit code 1.
    Input,
    /// The run was cancelled. Exit code 1.
    Cancelled,
    /// A bug in this program. Exit code 101.
    Bug,
}

/// Where in a file: line and column count from 1, the column in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// The line itself, without its line break.
    pub excerpt: String,
    /// How many characters to underline; at least 1.
    pub width: usize,
}

/// A message that names the thing, with an optional place, causes and help.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    fault: Fault,
    message: String,
    place: Option<Place>,
    causes: Vec<String>,
    help: Vec<String>,
    /// Further errors found in the same pass, each complete in itself.
    others: Vec<Error>,
}

impl Error {
    fn new(fault: Fault, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            fault,
            message: message.into(),
            place: None,
            causes: Vec::new(),
            help: Vec::new(),
            others: Vec::new(),
        }))
    }

    /// The command line or a pipeline is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Fault::Usage, message)
    }

    /// A stage or its input failed.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Fault::Input, message)
    }

    /// A bug: an invariant of this program does not hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Fault::Bug, message)
            .help("this is a bug in tinylm: please report it with the command that led here")
    }

    pub fn cancelled() -> Self {
        Self::new(Fault::Cancelled, "stopped on request")
    }

    /// An operation on a file that the operating system refused.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::input(format!("cannot {doing} `{}`: {error}", path.display()))
    }

    /// Several errors as one; `None` when there are none.
    pub fn join(errors: Vec<Error>) -> Option<Error> {
        let mut all = errors.into_iter();
        let mut first = all.next()?;
        for other in all {
            first.0.others.push(other);
        }
        Some(first)
    }

    pub fn at(mut self, place: Place) -> Self {
        self.0.place.get_or_insert(place);
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help.push(help.into());
        self
    }

    /// Adds "did you mean" when there is something close to mean.
    pub fn suggest(self, suggestion: Option<String>) -> Self {
        match suggestion {
            Some(name) => self.help(format!("did you mean `{name}`?")),
            None => self,
        }
    }

    /// Adds the message of an inner layer as a cause.
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.0.causes.push(cause.to_string());
        self
    }

    /// Replaces the message; the old one becomes the first cause. Place and help stay.
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let old = std::mem::replace(&mut self.0.message, message.into());
        self.0.causes.insert(0, old);
        self
    }

    /// The same error with another fault.
    pub fn blame(mut self, fault: Fault) -> Self {
        self.0.fault = fault;
        self
    }

    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    pub fn is_cancelled(&self) -> bool {
        self.fault() == Fault::Cancelled
    }

    /// The message alone, without place, causes or help.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn place(&self) -> Option<&Place> {
        self.0.place.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{}", inner.message)?;
        if let Some(place) = &inner.place {
            write!(f, "\n{place}")?;
        }
        for cause in &inner.causes {
            write!(f, "\n  because: {}", cause.replace('\n', "\n  "))?;
        }
        for help in &inner.help {
            write!(f, "\n  help: {}", help.replace('\n', "\n        "))?;
        }
        for other in &inner.others {
            write!(f, "\n\nerror: {other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let margin = self.line.to_string().len();
        write!(f, "{:margin$}--> {}:{}:{}", "", self.file, self.line, self.column)?;
        if self.excerpt.is_empty() {
            return Ok(());
        }
        let (excerpt, column) = shorten(&self.excerpt, self.column);
        let room = excerpt.chars().count().saturating_sub(column - 1).max(1);
        writeln!(f, "\n{:margin$} |", "")?;
        writeln!(f, "{} | {excerpt}", self.line)?;
        write!(f, "{:margin$} | {:pad$}{}", "", "", "^".repeat(self.width.clamp(1, room)), pad = column - 1)
    }
}

/// A window of a very long line around `column`, and the column within it; tabs become spaces so
/// that the underline stands where it should, control characters become visible dots.
fn shorten(line: &str, column: usize) -> (String, usize) {
    const WINDOW: usize = 120;
    let clean = |c: char| {
        if c == '\t' {
            ' '
        } else if c.is_control() {
            '·'
        } else {
            c
        }
    };
    let column = column.max(1);
    let count = line.chars().count();
    if count <= WINDOW {
        return (line.chars().map(clean).collect(), column);
    }
    let start = (column - 1).saturating_sub(WINDOW / 2);
    let mut text: String = line.chars().skip(start).take(WINDOW).map(clean).collect();
    if start + WINDOW < count {
        text.push('…');
    }
    if start == 0 {
        return (text, column);
    }
    (format!("…{text}"), column - start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_underlines_what_is_wrong() {
        let place =
            Place { file: "p.yaml".into(), line: 12, column: 3, excerpt: "  step: 600".into(), width: 4 };
        let error = Error::usage("unknown param `step`").at(place).suggest(Some("steps".into()));
        assert_eq!(
            error.to_string(),
            "unknown param `step`\n  --> p.yaml:12:3\n   |\n12 |   step: 600\n   |   ^^^^\n  help: did you mean `steps`?"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_column() {
        let line = "x".repeat(1000);
        let (text, column) = shorten(&line, 500);
        assert!(text.chars().count() <= 122 && column < 70, "{column} in {text}");
        assert_eq!(shorten("a\tb", 3), ("a b".to_string(), 3));
    }

    #[test]
    fn many_mistakes_are_one_error() {
        let all = Error::join(vec![Error::usage("one"), Error::usage("two")]).unwrap();
        assert_eq!(all.to_string(), "one\n\nerror: two");
        assert!(Error::join(Vec::new()).is_none());
    }
}
