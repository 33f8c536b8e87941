//! Tables for a terminal: columns aligned, long cells cut to its width.
//!
//! Widths are counted in characters, which is too little for scripts whose characters take two cells.

/// Cells under a header. Cells are shortened by [`shorten`] when the table is too wide.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<String>,
    /// Whether a column is of numbers, which stand at the right.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: usize = 2;
/// A column is never cut below this.
const NARROWEST: usize = 8;

impl Table {
    /// Columns by name; a name that begins with `>` is of a column of numbers.
    pub fn new<S: AsRef<str>>(columns: impl IntoIterator<Item = S>) -> Self {
        let mut table = Table::default();
        for column in columns {
            let name = column.as_ref();
            let number = name.strip_prefix('>');
            table.header.push(number.unwrap_or(name).to_string());
            table.right.push(number.is_some());
        }
        table
    }

    /// Adds a row; cells that are missing are empty.
    pub fn push<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, each ended by a line break, none wider than `width` characters unless there are
    /// very many columns.
    pub fn render(&self, width: usize) -> String {
        let widths = self.widths(width);
        let mut out = String::new();
        line(&mut out, self.header.iter().map(String::as_str), &widths, &self.right);
        let rule: Vec<String> = widths.iter().map(|w| "─".repeat(*w)).collect();
        line(&mut out, rule.iter().map(String::as_str), &widths, &self.right);
        for row in &self.rows {
            line(&mut out, row.iter().map(String::as_str), &widths, &self.right);
        }
        out
    }

    /// Narrows the widest columns until all fit.
    fn widths(&self, width: usize) -> Vec<usize> {
        let widest = |i: usize| {
            let cells = self.rows.iter().map(|row| row[i].chars().count());
            cells.chain([self.header[i].chars().count()]).max().unwrap_or(0)
        };
        let natural: Vec<usize> = (0..self.header.len()).map(widest).collect();
        let room = width.saturating_sub(GAP * natural.len().saturating_sub(1));
        let mut cap = natural.iter().copied().max().unwrap_or(0);
        while cap > NARROWEST && natural.iter().map(|w| (*w).min(cap)).sum::<usize>() > room {
            cap -= 1;
        }
        natural.into_iter().map(|w| w.min(cap)).collect()
    }
}

fn line<'a>(out: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize], right: &[bool]) {
    let mut text = String::new();
    for (i, cell) in cells.enumerate() {
        let cell = shorten(cell, widths[i]);
        let pad = " ".repeat(widths[i] - cell.chars().count());
        text.push_str(if i > 0 { "  " } else { "" });
        text.push_str(&if right[i] { pad + &cell } else { cell + &pad });
    }
    out.push_str(text.trim_end());
    out.push('\n');
}

/// At most `max` characters on one line: line breaks show as `⏎`, other control characters as `·`,
/// and what is cut off as `…`.
pub fn shorten(text: &str, max: usize) -> String {
    let visible = |c: char| match c {
        '\n' => '⏎',
        '\t' => ' ',
        c if c.is_control() => '·',
        c => c,
    };
    let mut chars = text.chars().map(visible);
    let mut out: String = chars.by_ref().take(max).collect();
    if chars.next().is_some() {
        out.pop();
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_widest_gives_way() {
        let mut table = Table::new(["name", ">bytes", "text"]);
        table.push(["a.txt", "12", "one\ntwo"]);
        table.push(["longer.txt", "1,234", &"word ".repeat(20)]);
        let shown = table.render(40);
        assert_eq!(
            shown,
            "name        bytes  text\n\
             ──────────  ─────  ─────────────────────\n\
             a.txt          12  one⏎two\n\
             longer.txt  1,234  word word word word …\n"
        );
        assert!(shown.lines().all(|l| l.chars().count() <= 40));
        assert!(table.render(10_000).lines().all(|l| !l.ends_with(' ')));
    }

    #[test]
    fn a_text_is_cut_to_characters_not_bytes() {
        assert_eq!(shorten("ééééé", 3), "éé…");
        assert_eq!(shorten("ééé", 3), "ééé");
        assert_eq!(shorten("a\r\nb", 9), "a·⏎b");
        assert_eq!(shorten("ab", 0), "…");
    }
}
