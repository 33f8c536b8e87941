//! One head as a heat map of characters: a row for each token, a cell for each token that it may attend to, and
//! behind them the token that gets most.

use crate::base::table::shorten;
use crate::model::attention::Map;
use crate::report::style::Style;

/// Characters of a token's text.
const LABEL: usize = 14;

/// At most so wide, cells of two characters where there is room, else of one; where that is not enough, of the last
/// tokens only, which is said. `labels` are of one line each.
pub fn map(map: Map, labels: &[String], width: usize, style: Style) -> String {
    let tokens = map.tokens;
    let digits = (tokens - 1).to_string().len();
    // A row is `12 text  cells  12 text 0.34`.
    let around = digits + 1 + LABEL + 2 + 2 + digits + 1 + LABEL + 5;
    let room = width.saturating_sub(around).max(8);
    let cell = if 2 * tokens <= room { 2 } else { 1 };
    let first = tokens.saturating_sub(room / cell);
    let row = |(i, row): (usize, &[f32])| {
        let seen = &row[first.min(i + 1)..=i];
        let cells: String = seen.iter().map(|w| style.shade(f64::from(*w), cell)).collect();
        let rest = " ".repeat((tokens - first - seen.len()) * cell);
        let (most, weight) = most(row);
        format!(
            "{i:>digits$} {:<LABEL$}  {cells}{rest}  {most:>digits$} {:<LABEL$} {weight:.2}",
            shorten(&labels[i], LABEL),
            shorten(&labels[most], LABEL)
        )
    };
    let lines: Vec<String> = map.rows().enumerate().map(row).collect();
    let heading = heading(first, tokens, cell);
    let above = format!("{}{heading}{}most to", " ".repeat(digits + 1 + LABEL + 2), "  ");
    let left_out = match first {
        0 => String::new(),
        _ => {
            format!("Tokens 0 to {} have no column here: COLUMNS=N for a wider table, or --svg.\n", first - 1)
        }
    };
    format!("{above}\n{}\n{left_out}", lines.join("\n"))
}

/// Numbers of tokens above their columns, every tenth character at most.
fn heading(first: usize, tokens: usize, cell: usize) -> String {
    let mut line = String::new();
    for i in first..tokens {
        let at = (i - first) * cell;
        let number = i.to_string();
        let fits = at + number.len() <= (tokens - first) * cell;
        if fits && at >= line.len() && i.is_multiple_of(10 / cell) {
            line += &" ".repeat(at - line.len());
            line += &number;
        }
    }
    format!("{line:<width$}", width = (tokens - first) * cell)
}

/// The token with the largest weight, the earliest of equals.
fn most(row: &[f32]) -> (usize, f32) {
    let larger = |best: (usize, f32), (i, w): (usize, &f32)| if *w > best.1 { (i, *w) } else { best };
    row.iter().enumerate().fold((0, f32::MIN), larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: [f32; 9] = [1.0, 0.0, 0.0, 0.02, 0.98, 0.0, 0.3, 0.6, 0.1];

    fn labels(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("t{i}")).collect()
    }

    #[test]
    fn rows_are_shaded_and_name_what_they_look_at_most() {
        let map_ = Map { tokens: 3, weights: &WEIGHTS };
        let shown = map(map_, &labels(3), 80, Style::plain());
        let expected = "                  0       most to\n\
                        0 t0              ██      0 t0             1.00\n\
                        1 t1              ··██    1 t1             0.98\n\
                        2 t2              ▒▒▓▓░░  1 t1             0.60\n";
        assert_eq!(shown, expected);
        let coloured = map(map_, &labels(3), 80, Style::coloured());
        assert!(coloured.contains("\x1b[48;5;") && !coloured.contains('█'), "{coloured:?}");
    }

    #[test]
    fn where_there_is_no_room_the_first_columns_are_left_out_and_that_is_said() {
        let tokens = 100;
        let weights: Vec<f32> = (0..tokens * tokens).map(|i| f32::from(u8::from(i % tokens == 0))).collect();
        let shown = map(Map { tokens, weights: &weights }, &labels(tokens), 80, Style::plain());
        assert!(shown.contains("Tokens 0 to 62 have no column here"), "{shown}");
        assert!(shown.lines().take(101).all(|line| line.chars().count() <= 80), "{shown}");
        assert_eq!(shown.lines().count(), 102);
    }
}
