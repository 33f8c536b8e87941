//! The result of validating options and configurations: a value that is out of range or contradicts others.

use std::fmt;

use super::Error;

/// A param with a value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Its name, with a dot or an index into nested ones: `near_duplicates.threshold`.
    pub param: String,
    /// What follows the name in the message: `must be at least 1, found 0`.
    pub why: String,
    pub help: Option<String>,
}

impl Invalid {
    pub fn new(param: impl Into<String>, why: impl Into<String>) -> Self {
        Invalid { param: param.into(), why: why.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.param, self.why)
    }
}

impl Error {
    /// A param that cannot be used.
    pub fn invalid(invalid: Invalid) -> Self {
        let error = Error::usage(invalid.to_string());
        invalid.help.into_iter().fold(error, Error::help)
    }
}
