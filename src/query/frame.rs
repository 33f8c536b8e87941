//! What a query gives: rows, as a table for a terminal, as JSON lines or as CSV.

use std::io::Write;

use polars::prelude::{Column, DataFrame};
use serde_json::Value;

use super::cell;
use crate::base::table::Table;
use crate::base::{Error, Result, units};

/// The rows that a query selected.
pub struct Frame {
    rows: DataFrame,
    cut: bool,
}

/// The most characters of a cell on a terminal, however wide that is.
const CELL: usize = 200;

impl Frame {
    pub(super) fn new(rows: DataFrame, cut: bool) -> Self {
        Frame { rows, cut }
    }

    pub fn height(&self) -> usize {
        self.rows.height()
    }

    /// Whether the query selects more rows than the limit.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    pub fn columns(&self) -> Vec<String> {
        self.rows.get_column_names().iter().map(|name| name.to_string()).collect()
    }

    /// The frame itself, for use from Rust.
    pub fn into_polars(self) -> DataFrame {
        self.rows
    }

    /// One value as JSON.
    pub fn value(&self, row: usize, column: &str) -> Option<Value> {
        let value = self.rows.column(column).ok()?.get(row).ok()?;
        Some(cell::json(&value))
    }

    /// An aligned table of at most `width` characters, and how many rows there are.
    pub fn table(&self, width: usize) -> String {
        let name = |column: &Column| {
            let mark = if column.dtype().is_primitive_numeric() { ">" } else { "" };
            format!("{mark}{}", column.name())
        };
        let mut table = Table::new(self.rows.columns().iter().map(name));
        for row in 0..self.height() {
            let cells = self.cells(row, |value| cell::text(value, CELL));
            table.push(cells.unwrap_or_else(|e| vec![e.to_string()]));
        }
        let more = if self.cut { ", and more" } else { "" };
        let rows = if self.height() == 1 { "row" } else { "rows" };
        format!("{}\n{} {rows}{more}\n", table.render(width), units::count(self.height() as u64))
    }

    /// One JSON object a line, its keys in the order of the columns.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write_json_lines(&self, out: &mut dyn Write) -> Result<()> {
        let keys: Vec<String> = self.columns().into_iter().map(|c| Value::String(c).to_string()).collect();
        for row in 0..self.height() {
            let values = self.cells(row, |value| cell::json(value).to_string())?;
            let pairs: Vec<String> = keys.iter().zip(values).map(|(k, v)| format!("{k}:{v}")).collect();
            writeln!(out, "{{{}}}", pairs.join(",")).map_err(unwritable)?;
        }
        Ok(())
    }

    /// CSV with a header; lists and structs as JSON, null as nothing.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write_csv(&self, out: &mut dyn Write) -> Result<()> {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(self.columns()).map_err(unwritable)?;
        for row in 0..self.height() {
            let plain = |value: &polars::prelude::AnyValue| match cell::json(value) {
                Value::Null => String::new(),
                Value::String(text) => text,
                other => other.to_string(),
            };
            writer.write_record(self.cells(row, plain)?).map_err(unwritable)?;
        }
        writer.flush().map_err(unwritable)
    }

    fn cells(&self, row: usize, show: impl Fn(&polars::prelude::AnyValue) -> String) -> Result<Vec<String>> {
        let value = |column: &Column| match column.get(row) {
            Ok(value) => Ok(show(&value)),
            Err(e) => Err(Error::bug(format!("row {row} of `{}` cannot be shown: {e}", column.name()))),
        };
        self.rows.columns().iter().map(value).collect()
    }
}

fn unwritable(error: impl std::fmt::Display) -> Error {
    Error::input(format!("cannot write the rows: {error}"))
}
