//! A comparison as text: a table of figures, one of differences, and what they mean.

use crate::eval::compare::{Compared, Comparison, Difference, Row};
use crate::report::style::{self, Style};

/// The tables, as wide as a terminal's `width` where one column at least fits.
pub fn table(comparison: &Comparison, style: Style, width: usize) -> String {
    let mut out = figures(comparison, style, width);
    if comparison.figures.iter().any(|figure| !figure.differences.is_empty()) {
        out += &format!("\n{}\n", style.bold(format!("differences from `{}`", comparison.baseline)));
        out += &differences(comparison, style);
    }
    out.push('\n');
    for note in notes(comparison, style) {
        out += &style.dim(note);
        out.push('\n');
    }
    out
}

/// A column of cells under its name.
type Column = Vec<String>;

fn figures(comparison: &Comparison, style: Style, width: usize) -> String {
    let names: Column = ["", ""].map(String::from).into_iter().chain(names(comparison)).collect();
    let columns: Vec<Column> = comparison.figures.iter().map(|figure| column(figure, style)).collect();
    let best = |figure: &Compared, row: usize| row >= HEADER && figure.rows[row - HEADER].best;
    let mut out = String::new();
    for part in parts(&names, &columns, width) {
        let shown = &columns[part.clone()];
        let rows: Vec<Vec<String>> = (0..names.len())
            .map(|row| std::iter::once(&names).chain(shown).map(|column| column[row].clone()).collect())
            .collect();
        let paint = |row: usize, column: usize, cell: String| match column.checked_sub(1) {
            Some(at) if best(&comparison.figures[part.start + at], row) => style.bold(cell),
            _ if row == 0 => style.bold(cell),
            _ if row < HEADER => style.dim(cell),
            _ => cell,
        };
        out += if out.is_empty() { "" } else { "\n" };
        out += &style::table(&rows, paint);
    }
    out
}

/// Rows above those of entries: the figure, and how many items.
const HEADER: usize = 2;

fn names(comparison: &Comparison) -> Vec<String> {
    let rows = comparison.figures.first().map(|figure| figure.rows.as_slice()).unwrap_or_default();
    rows.iter().map(label).collect()
}

/// A row's name, with how many members it has, if several.
fn label(row: &Row) -> String {
    match row.members.len() {
        1 => row.name.clone(),
        n => format!("{} (mean of {n})", row.name),
    }
}

fn column(figure: &Compared, style: Style) -> Column {
    let better = if figure.less_is_better { "↓" } else { "↑" };
    let head = [format!("{} {better}", figure.figure), format!("{} {}", figure.items, figure.task.name())];
    let cell = |row: &Row| {
        let mark = if row.best && !style.is_coloured() { " *" } else { "" };
        format!("{}{mark}", with_interval(&format!("{:.4}", row.value), row.interval, |x| format!("{x:.4}")))
    };
    head.into_iter().chain(figure.rows.iter().map(cell)).collect()
}

fn with_interval(value: &str, interval: Option<[f64; 2]>, show: impl Fn(f64) -> String) -> String {
    match interval {
        Some([low, high]) => format!("{value} [{}, {}]", show(low), show(high)),
        None => value.to_string(),
    }
}

/// Which columns stand side by side: as many as fit.
fn parts(names: &Column, columns: &[Column], width: usize) -> Vec<std::ops::Range<usize>> {
    let widest = |column: &Column| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let (mut parts, mut start, mut used) = (Vec::new(), 0, widest(names));
    for (i, column) in columns.iter().enumerate() {
        let own = 2 + widest(column);
        if i > start && used + own > width {
            parts.push(start..i);
            (start, used) = (i, widest(names));
        }
        used += own;
    }
    parts.push(start..columns.len());
    parts
}

/// One row for each figure and entry other than the baseline.
fn differences(comparison: &Comparison, style: Style) -> String {
    let (corrected, members) = (is_corrected(comparison), has_members(comparison));
    let pick = |cells: [String; 6]| -> Vec<String> {
        let shown = [true, true, true, true, corrected, members];
        cells.into_iter().zip(shown).filter(|(_, shown)| *shown).map(|(cell, _)| cell).collect()
    };
    let head = ["figure", "", "difference", "p", "p (Holm)", "p (members)"];
    let mut rows = vec![pick(head.map(String::from))];
    for figure in &comparison.figures {
        for (i, difference) in figure.differences.iter().enumerate() {
            let name = if i == 0 { figure.figure } else { "" };
            rows.push(pick(cells(name, difference)));
        }
    }
    style::table(&rows, |row, _, cell| if row == 0 { style.dim(cell) } else { cell })
}

fn cells(figure: &str, difference: &Difference) -> [String; 6] {
    let signed = |x: f64| format!("{x:+.4}");
    [
        figure.to_string(),
        difference.name.clone(),
        with_interval(&signed(difference.value), difference.interval, signed),
        format!("{:.4}", difference.p),
        format!("{:.4}", difference.p_holm),
        difference.p_members.map_or(String::new(), |p| format!("{p:.4}")),
    ]
}

/// Whether several entries are compared with the baseline.
fn is_corrected(comparison: &Comparison) -> bool {
    comparison.figures.iter().any(|figure| figure.differences.len() > 1)
}

fn has_members(comparison: &Comparison) -> bool {
    comparison.figures.iter().flat_map(|figure| &figure.differences).any(|d| d.p_members.is_some())
}

/// What the numbers mean, and what was left out.
fn notes(comparison: &Comparison, style: Style) -> Vec<String> {
    let rows = comparison.figures.first().map(|figure| figure.rows.as_slice()).unwrap_or_default();
    let groups = rows.iter().any(|row| row.members.len() > 1);
    let mark = if style.is_coloured() { "bold" } else { "*" };
    let resamples = comparison.resamples;
    let of = if groups { "items and members of a row" } else { "items" };
    let mut notes = vec![format!(
        "[low, high]: 95 % bootstrap interval over {resamples} resamples of {of}, the same items for all"
    )];
    if rows.len() > 1 {
        notes.push(format!("{mark}: the best figure found, by chance or not: the differences say"));
        notes.push(format!(
            "p: paired randomization test over the items, {} permutations: these models on items like these",
            comparison.permutations
        ));
    }
    if is_corrected(comparison) {
        notes.push(
            "p (Holm): corrected for how many are compared, figure by figure; not for how many figures"
                .into(),
        );
    }
    if groups {
        notes.push("few members say little of how others would differ: such intervals are too narrow".into());
    }
    if has_members(comparison) {
        notes
            .push("p (members): exact permutation test over the members: of 3 against 3 at least 0.1".into());
    }
    notes.extend(left_out(comparison));
    notes.extend(comparison.notes.iter().cloned());
    notes
}

fn left_out(comparison: &Comparison) -> Vec<String> {
    let mut lines = Vec::new();
    for task in comparison.tasks.iter().filter(|task| !task.left_out.is_empty()) {
        let lost: Vec<String> = task.left_out.iter().map(|(name, n)| format!("{n} of `{name}`")).collect();
        let name = task.task.name();
        lines.push(format!("{name}: left out, as not all have them: {}", lost.join(", ")));
    }
    let mut whys: Vec<(&str, Vec<&str>)> = Vec::new();
    for (figure, why) in &comparison.not_compared {
        match whys.iter_mut().find(|(known, _)| known == why) {
            Some((_, figures)) => figures.push(figure),
            None => whys.push((why, vec![figure])),
        }
    }
    lines.extend(whys.iter().map(|(why, figures)| format!("not compared: {}: {why}", figures.join(", "))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::compare::{Entry, Member, Options, Settings, compare};
    use crate::eval::items::{Item, Task};

    fn member(name: &str, bias: f64, tokens: u64, documents: usize) -> Member {
        let document = |i: usize| {
            let item = Item::scored(Task::Documents, "", i.to_string(), 0.0);
            Item { tokens, bytes: 40, nats: bias + (i % 5) as f64, top1: 3, top5: 6, ..item }
        };
        let items = (0..documents).map(document).collect();
        Member { name: name.into(), items, settings: Settings::default() }
    }

    fn shown(entries: &[Entry], style: Style, width: usize) -> String {
        table(&compare(entries, &Options::default()).unwrap(), style, width)
    }

    fn entry(name: &str, members: Vec<Member>) -> Entry {
        Entry { name: name.into(), members }
    }

    fn seeds(name: &str, bias: f64, tokens: u64) -> Entry {
        let seed = |s: usize| member(&format!("{name}-{s}"), bias + s as f64 / 4.0, tokens, 20);
        entry(name, (0..3).map(seed).collect())
    }

    #[test]
    fn the_table_of_groups_says_all() {
        let entries = [
            seeds("small", 30.0, 10),
            seeds("wide", 28.0, 12),
            entry("old", vec![member("old", 31.0, 10, 22)]),
        ];
        insta::assert_snapshot!(shown(&entries, Style::plain(), 100), @"
                           bits_per_byte ↓
                           20 documents
        small (mean of 3)  1.1632 [1.1409, 1.1872]
        wide (mean of 3)   1.0910 [1.0676, 1.1139] *
        old                1.1902 [1.1686, 1.2119]

        differences from `small`
        figure               difference                  p       p (Holm)  p (members)
        bits_per_byte  wide  -0.0721 [-0.0842, -0.0601]  0.0001  0.0002    0.1000
                       old   +0.0271 [+0.0180, +0.0361]  0.0001  0.0002

        [low, high]: 95 % bootstrap interval over 2000 resamples of items and members of a row, the same items for all
        *: the best figure found, by chance or not: the differences say
        p: paired randomization test over the items, 9999 permutations: these models on items like these
        p (Holm): corrected for how many are compared, figure by figure; not for how many figures
        few members say little of how others would differ: such intervals are too narrow
        p (members): exact permutation test over the members: of 3 against 3 at least 0.1
        documents: left out, as not all have them: 2 of `old`
        not compared: loss, top1_accuracy, top5_accuracy: the tokenizers differ, and it is a figure per token: compare bits per byte
        ");
    }

    #[test]
    fn the_best_is_bold_on_a_terminal_and_columns_that_do_not_fit_stand_below() {
        let entries =
            [entry("a", vec![member("a", 30.0, 10, 9)]), entry("b", vec![member("b", 29.0, 10, 9)])];
        let coloured = shown(&entries, Style::coloured(), 200);
        let row = coloured.lines().nth(3).unwrap();
        assert!(row.starts_with("b") && row.contains("\x1b[1m") && !row.contains('*'), "{row}");
        let plain = shown(&entries, Style::plain(), 60);
        assert!(plain.lines().nth(3).unwrap().ends_with(" *"), "{plain}");
        assert_eq!(plain.lines().filter(|line| line.contains("documents")).count(), 2, "{plain}");
    }
}
