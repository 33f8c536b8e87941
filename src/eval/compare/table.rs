//! A comparison as a Parquet table: one row for each figure and entry.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt64Array};

use super::{Compared, Comparison, Difference, Row};
use crate::base::{Error, Result};
use crate::corpus::parquet_io::{unwritable, writer};

/// Writes the table. Of the baseline's rows the columns of differences are null, and so is what could not be
/// computed.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, comparison: &Comparison) -> Result<()> {
    let rows: Vec<TableRow> = comparison.figures.iter().flat_map(rows_of).collect();
    let batch = RecordBatch::try_from_iter(columns(&comparison.baseline, &rows))
        .map_err(|e| Error::bug(format!("the table of the comparison: {e}")))?;
    let mut writer = writer(path, batch.schema(), Vec::new())?;
    writer.write(&batch).and_then(|()| writer.close().map(drop)).map_err(|e| unwritable(path, &e))
}

struct TableRow<'a> {
    figure: &'a Compared,
    row: &'a Row,
    difference: Option<&'a Difference>,
}

fn rows_of(figure: &Compared) -> impl Iterator<Item = TableRow<'_>> {
    figure.rows.iter().map(move |row| {
        let difference = figure.differences.iter().find(|difference| difference.name == row.name);
        TableRow { figure, row, difference }
    })
}

fn columns<'a>(baseline: &str, rows: &'a [TableRow<'a>]) -> Vec<(&'static str, ArrayRef)> {
    let text = |of: &dyn Fn(&'a TableRow<'a>) -> &'a str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(of)))
    };
    let count = |of: fn(&TableRow) -> usize| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| of(row) as u64)))
    };
    let truth = |of: fn(&TableRow) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(of(row)))))
    };
    let number = |of: fn(&TableRow) -> Option<f64>| -> ArrayRef {
        Arc::new(Float64Array::from_iter(rows.iter().map(of)))
    };
    vec![
        ("figure", text(&|r| r.figure.figure)),
        ("task", text(&|r| r.figure.task.name())),
        ("items", count(|r| r.figure.items)),
        ("less_is_better", truth(|r| r.figure.less_is_better)),
        ("name", text(&|r| &r.row.name)),
        ("members", count(|r| r.row.members.len())),
        ("value", number(|r| Some(r.row.value))),
        ("low", number(|r| r.row.interval.map(|i| i[0]))),
        ("high", number(|r| r.row.interval.map(|i| i[1]))),
        ("best", truth(|r| r.row.best)),
        ("baseline", Arc::new(StringArray::from_iter_values(rows.iter().map(|_| baseline)))),
        ("difference", number(|r| r.difference.map(|d| d.value))),
        ("difference_low", number(|r| r.difference?.interval.map(|i| i[0]))),
        ("difference_high", number(|r| r.difference?.interval.map(|i| i[1]))),
        ("p", number(|r| r.difference.map(|d| d.p))),
        ("p_holm", number(|r| r.difference.map(|d| d.p_holm))),
        ("p_members", number(|r| r.difference?.p_members)),
    ]
}
