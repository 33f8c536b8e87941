//! A page of the rows of a table: Parquet or JSON lines.

use std::path::Path;

use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use polars::prelude::{DataFrame, DataType};
use serde::Serialize;
use serde_json::Value;

use super::parquet::{damaged, is_tokens};
use super::{Row, sign};
use crate::base::{Error, Result, fs};
use crate::corpus::json;
use crate::query::{self, cell};

/// Some of the rows of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rows {
    /// Rows of the whole table.
    pub total: u64,
    /// How many rows come before the first of these.
    pub offset: u64,
    pub columns: Vec<RowColumn>,
    /// A value for each column.
    pub rows: Vec<Vec<Value>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowColumn {
    pub name: String,
    /// As Arrow names it; `None` of JSON lines, which declare none.
    pub data_type: Option<String>,
    /// Whether its values are lists of unsigned integers, as token ids are stored.
    pub is_ids: bool,
}

/// At most `count` rows of the table at `path`, from row `offset` on, which counts from 0. None where the table
/// is shorter.
///
/// # Errors
/// When it is neither Parquet nor JSON lines, or damaged: of JSON lines, only those that are given are read
/// closely.
pub fn rows(path: &Path, offset: u64, count: usize) -> Result<Rows> {
    match sign(path)?.starts_with(b"PAR1") {
        true => of_parquet(path, offset, count),
        false => of_lines(path, offset, count),
    }
}

fn of_parquet(path: &Path, offset: u64, count: usize) -> Result<Rows> {
    let footer = ArrowReaderMetadata::load(&fs::open(path)?, ArrowReaderOptions::default())
        .map_err(|e| damaged(&e))?;
    let total = footer.metadata().file_metadata().num_rows().max(0) as u64;
    let read = || -> Result<DataFrame> {
        let part = query::scan_parquet(path)?.slice(offset.min(total) as i64, count as u32);
        query::collect(part).map_err(|e| damaged(&e))
    };
    let frame = query::guarded(read).map_err(|said| damaged(&said))??;
    let columns: Vec<RowColumn> =
        frame.columns().iter().map(|c| column(c.name(), c.dtype(), &footer)).collect();
    let value =
        |column: &polars::prelude::Column, row| column.get(row).map_or(Value::Null, |v| cell::json(&v));
    let row = |row| frame.columns().iter().map(|column| value(column, row)).collect();
    let rows = query::guarded(|| (0..frame.height()).map(row).collect()).map_err(|said| damaged(&said))?;
    Ok(Rows { total, offset, columns, rows })
}

fn column(name: &str, dtype: &DataType, footer: &ArrowReaderMetadata) -> RowColumn {
    let declared = footer.schema().field_with_name(name).ok();
    let data_type = declared.map(|field| field.data_type().to_string());
    RowColumn { name: name.to_string(), data_type, is_ids: is_tokens(dtype) }
}

fn of_lines(path: &Path, offset: u64, count: usize) -> Result<Rows> {
    let (mut total, mut page) = (0, Vec::new());
    query::each_line(path, |text, _, start| {
        if total >= offset && page.len() < count {
            page.push(json::object(text, start, &|_| true)?.fields);
        }
        total += 1;
        Ok(())
    })?;
    let names = names(&page);
    let row = |mut row: Row| names.iter().map(|name| row.remove(name).unwrap_or(Value::Null)).collect();
    let rows = page.into_iter().map(row).collect();
    let column = |name: &String| RowColumn { name: name.clone(), data_type: None, is_ids: false };
    if total == 0 {
        return Err(Error::input("this table is empty"));
    }
    Ok(Rows { total, offset, columns: names.iter().map(column).collect(), rows })
}

/// The keys of objects, in the order in which they first appear.
fn names(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if !names.contains(key) {
            names.push(key.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray};
    use arrow::datatypes::UInt16Type;
    use serde_json::json;

    use super::*;
    use crate::corpus::parquet_io;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        file
    }

    fn table() -> tempfile::NamedTempFile {
        let ids = |i: u16| Some((0..i).map(Some).collect::<Vec<_>>());
        let tokens = ListArray::from_iter_primitive::<UInt16Type, _, _>((0..5).map(ids));
        let texts = StringArray::from_iter_values((0..5).map(|i| format!("<b>{i}</b>")));
        let columns: [(&str, ArrayRef); 2] = [("tokens", Arc::new(tokens)), ("text", Arc::new(texts))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = parquet_io::writer(file.path(), batch.schema(), Vec::new()).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    }

    #[test]
    fn a_page_of_parquet_names_its_lists_of_ids() {
        let table = table();
        let page = rows(table.path(), 2, 2).unwrap();
        assert_eq!((page.total, page.rows.len()), (5, 2));
        assert_eq!(page.rows[0], [json!([0, 1]), json!("<b>2</b>")]);
        assert_eq!(page.columns.iter().map(|c| c.is_ids).collect::<Vec<_>>(), [true, false]);
        assert_eq!(rows(table.path(), 4, 10).unwrap().rows.len(), 1);
        assert_eq!(rows(table.path(), u64::MAX, 10).unwrap().rows.len(), 0);
        let whole = fs::read(table.path()).unwrap();
        let cut = file(&whole[..whole.len() - 9]);
        assert!(rows(cut.path(), 0, 1).unwrap_err().message().contains("cut off or damaged"));
    }

    #[test]
    fn a_page_of_json_lines_has_the_keys_of_all_its_rows() {
        let lines = file(b"{\"a\":1}\n\n{\"b\":[2],\"a\":null}\n{\"a\":3}\nbroken\n");
        let page = rows(lines.path(), 1, 2).unwrap();
        assert_eq!(page.total, 4);
        assert_eq!(page.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(page.rows, [[json!([2]), Value::Null], [Value::Null, json!(3)]]);
        let error = rows(lines.path(), 3, 1).unwrap_err();
        assert_eq!(error.place().unwrap().line, 5, "{error}");
    }
}
