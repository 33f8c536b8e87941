//! JSON lines, such as the metrics of a training.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Options, Page, Row};
use crate::base::table::Table;
use crate::base::{Result, fs, units};
use crate::corpus::json;
use crate::query;

#[derive(Debug, Clone, Serialize)]
pub struct Lines {
    pub rows: u64,
    /// In the order in which they first appear.
    pub columns: Vec<Field>,
    /// A sparkline of every column whose name ends in `loss`.
    pub curves: Vec<Curve>,
    pub first: Vec<Row>,
    /// The last rows that are not among the first.
    pub last: Vec<Row>,
}

/// A key of the objects.
#[derive(Debug, Clone, Serialize)]
pub struct Field {
    pub name: String,
    /// `number`, `string`, …; several joined by ` or `.
    pub types: String,
    /// Rows in which it is present and not null.
    pub count: u64,
    /// Of the numbers.
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub last: Option<f64>,
}

/// A sparkline of a column's numbers over the rows.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    pub name: String,
    pub first: f64,
    pub last: f64,
    pub sparkline: String,
}

/// Whether the first line is a whole object and another line follows.
pub(super) fn is_json_lines(path: &Path) -> Result<bool> {
    let mut lines = BufReader::new(fs::open(path)?).split(b'\n').map_while(|line| line.ok());
    let first = lines.find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let first = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&first);
    let another = lines.any(|line| !line.trim_ascii().is_empty());
    Ok(another && serde_json::from_slice::<Row>(first).is_ok())
}

/// # Errors
/// With the line that is not a JSON object, or has a key twice.
pub(super) fn read(path: &Path, options: &Options) -> Result<Lines> {
    let mut lines =
        Lines { rows: 0, columns: Vec::new(), curves: Vec::new(), first: Vec::new(), last: Vec::new() };
    let mut losses: Vec<(String, Vec<f64>)> = Vec::new();
    query::each_line(path, |text, _, start| {
        let row = json::object(text, start, &|_| true)?.fields;
        lines.take(&row, &mut losses);
        lines.keep(row, options.rows);
        Ok(())
    })?;
    let curve = |(name, values): (String, Vec<f64>)| {
        let (first, last) = (*values.first()?, *values.last()?);
        Some(Curve { name, first, last, sparkline: sparkline(&values, 50) })
    };
    lines.curves = losses.into_iter().filter_map(curve).collect();
    Ok(lines)
}

impl Lines {
    fn take(&mut self, row: &Row, losses: &mut Vec<(String, Vec<f64>)>) {
        self.rows += 1;
        for (name, value) in row {
            let i = self.columns.iter().position(|field| field.name == *name).unwrap_or_else(|| {
                self.columns.push(Field::new(name));
                self.columns.len() - 1
            });
            self.columns[i].take(value);
            if let (true, Some(number)) = (name.ends_with("loss"), value.as_f64()) {
                match losses.iter_mut().find(|(known, _)| known == name) {
                    Some((_, values)) => values.push(number),
                    None => losses.push((name.clone(), vec![number])),
                }
            }
        }
    }

    fn keep(&mut self, row: Row, rows: usize) {
        if self.first.len() < rows {
            self.first.push(row);
        } else if rows > 0 {
            if self.last.len() == rows {
                self.last.remove(0);
            }
            self.last.push(row);
        }
    }

    pub(super) fn summary(&self) -> String {
        format!("{} rows of JSON lines", units::count(self.rows))
    }

    pub(super) fn render(&self, page: &mut Page) {
        let mut table = Table::new(["column", "type", ">rows", ">min", ">max", ">last"]);
        for field in &self.columns {
            let figure = |n: Option<f64>| n.map(figure).unwrap_or_default();
            table.push([
                field.name.clone(),
                field.types.clone(),
                units::count(field.count),
                figure(field.min),
                figure(field.max),
                figure(field.last),
            ]);
        }
        page.table(&table);
        if !self.curves.is_empty() {
            page.out.push('\n');
        }
        for curve in &self.curves {
            page.line(format!(
                "{:<15} {} {} {}",
                curve.name,
                figure(curve.first),
                curve.sparkline,
                figure(curve.last)
            ));
        }
        page.rows("row", 1, &self.first);
        page.rows("row", self.rows + 1 - self.last.len() as u64, &self.last);
    }
}

impl Field {
    fn new(name: &str) -> Self {
        Field { name: name.to_string(), types: String::new(), count: 0, min: None, max: None, last: None }
    }

    fn take(&mut self, value: &Value) {
        let ty = match value {
            Value::Null => return,
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.count += 1;
        if !self.types.split(" or ").any(|known| known == ty) {
            self.types += if self.types.is_empty() { "" } else { " or " };
            self.types += ty;
        }
        if let Some(number) = value.as_f64() {
            self.min = Some(self.min.map_or(number, |least| least.min(number)));
            self.max = Some(self.max.map_or(number, |most| most.max(number)));
            self.last = Some(number);
        }
    }
}

/// Five significant digits; whole numbers whole.
fn figure(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return format!("{number}");
    }
    let magnitude = number.abs().log10().floor();
    if (-4.0..6.0).contains(&magnitude) {
        return format!("{number:.*}", (4.0 - magnitude).max(0.0) as usize);
    }
    format!("{number:.4e}")
}

/// `values` in at most `width` blocks whose height is the mean of those that fall into one.
fn sparkline(values: &[f64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let width = width.min(values.len());
    let mean = |i: usize| {
        let part = &values[i * values.len() / width..(i + 1) * values.len() / width];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..width).map(mean).collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let most = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let block = |value: &f64| {
        let height = if most > least { (value - least) / (most - least) } else { 0.0 };
        BLOCKS[(height * 7.0).round() as usize]
    };
    means.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_falls_with_its_values() {
        let values: Vec<f64> = (0..800).rev().map(f64::from).collect();
        assert_eq!(sparkline(&values, 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[1.0, 1.0], 8), "▁▁");
        assert_eq!(sparkline(&[], 8), "");
    }

    #[test]
    fn figures_keep_five_digits() {
        assert_eq!(
            ["1.23456789", "600", "0.00012345678", "1e-9", "123456.7"].map(|t| figure(t.parse().unwrap())),
            ["1.2346", "600", "0.00012346", "1.0000e-9", "123457"]
        );
    }
}
