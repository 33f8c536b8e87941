//! Lines of text files, with their places for messages.

use crate::base::Place;

/// A line without its line break.
pub(super) struct Line<'a> {
    pub text: &'a str,
    file: &'a str,
    /// From 1.
    pub number: usize,
}

impl Line<'_> {
    /// The place of the character at byte `at`.
    pub fn place(&self, at: usize) -> Place {
        place(self.file, self.text, self.number, self.text[..at].chars().count() + 1)
    }
}

/// The lines of a text; the last may have no line break.
pub(super) struct Lines<'a> {
    file: &'a str,
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
}

impl<'a> Lines<'a> {
    pub fn of(file: &'a str, text: &'a str) -> Self {
        Lines { file, lines: text.lines().enumerate() }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let (at, text) = self.lines.next()?;
        Some(Line { text, file: self.file, number: at + 1 })
    }
}

/// The place of a line and column, both from 1, as `serde_json` counts them.
pub(super) fn place_in(file: &str, text: &str, line: usize, column: usize) -> Place {
    let excerpt = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    place(file, excerpt, line.max(1), column.max(1))
}

fn place(file: &str, excerpt: &str, line: usize, column: usize) -> Place {
    Place { file: file.to_string(), line, column, excerpt: excerpt.to_string(), width: 1 }
}
