//! Colour, for a terminal where `NO_COLOR` is not set; and aligned tables.

use std::fmt::Display;
use std::io::IsTerminal;

/// Whether the stream is a terminal decides about colours.
#[derive(Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    pub fn stdout() -> Self {
        Style { colour: std::io::stdout().is_terminal() && allowed() }
    }

    /// No colours, for tests of texts.
    #[cfg(test)]
    pub fn plain() -> Self {
        Style { colour: false }
    }

    #[cfg(test)]
    pub fn coloured() -> Self {
        Style { colour: true }
    }

    pub fn stderr() -> Self {
        Style { colour: std::io::stderr().is_terminal() && allowed() }
    }

    /// Where there are no colours, what they say must be written.
    pub fn is_coloured(self) -> bool {
        self.colour
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    pub fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }
    pub fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }
    pub fn red(self, text: impl Display) -> String {
        self.paint("31", text)
    }
    pub fn green(self, text: impl Display) -> String {
        self.paint("32", text)
    }
    pub fn yellow(self, text: impl Display) -> String {
        self.paint("33", text)
    }
    pub fn cyan(self, text: impl Display) -> String {
        self.paint("36", text)
    }

    /// A cell of a heat map, `width` characters that are as full as `share` of 1: a background of one of 256
    /// colours, or where there are no colours a character.
    pub fn shade(self, share: f64, width: usize) -> String {
        if self.colour {
            let at = (share * (RAMP.len() - 1) as f64).round() as usize;
            return format!("\x1b[48;5;{}m{}\x1b[0m", RAMP[at.min(RAMP.len() - 1)], " ".repeat(width));
        }
        let least = [(0.75, "█"), (0.5, "▓"), (0.25, "▒"), (0.05, "░")];
        let full = least.iter().find(|(least, _)| share >= *least);
        full.map_or("·", |(_, shade)| shade).repeat(width)
    }
}

/// From dark blue over green to yellow, in the 6 × 6 × 6 cube of colours: to be told apart on light and dark.
const RAMP: [u8; 12] = [17, 18, 24, 25, 31, 37, 36, 72, 78, 114, 185, 227];

fn allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Rows as aligned columns, two spaces apart; `paint` colours a padded cell.
pub fn table(rows: &[Vec<String>], paint: impl Fn(usize, usize, String) -> String) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (r, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let pad = if c + 1 == row.len() { 0 } else { widths[c] - cell.chars().count() + 2 };
            line += &paint(r, c, cell.clone());
            line += &" ".repeat(pad);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up_by_characters() {
        let rows = vec![vec!["é".to_string(), "x".into()], vec!["abc".into(), "y".into()]];
        assert_eq!(super::table(&rows, |_, _, cell| cell), "é    x\nabc  y\n");
    }
}
