//! A Parquet file: its footer, the statistics of its columns, its first rows.

use std::collections::BTreeMap;
use std::path::Path;

use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::ParquetMetaData;
use polars::prelude::{DataFrame, DataType, Expr, LazyFrame, PolarsError};
use serde::Serialize;
use serde_json::Value;

use super::{Decode, Options, Page, Row, plain};
use crate::base::table::{Table, shorten};
use crate::base::{Error, Result, fs, units};
use crate::corpus::parquet_io::expect_unique_names;
use crate::query::{self, cell};

#[derive(Debug, Clone, Serialize)]
pub struct Parquet {
    pub rows: u64,
    /// The rows of each row group, in order.
    pub row_groups: Vec<u64>,
    /// Every compression that occurs: `ZSTD`.
    pub compression: Vec<String>,
    pub uncompressed_bytes: u64,
    pub created_by: Option<String>,
    /// Keys and values of the footer, without the encoded Arrow schema.
    pub metadata: BTreeMap<String, String>,
    pub columns: Vec<Column>,
    /// Why the file has neither statistics nor rows here: a column of a type that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unshown: Option<String>,
    pub head: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Column {
    pub name: String,
    /// As Arrow names it.
    pub data_type: String,
    pub compressed_bytes: u64,
    pub uncompressed_bytes: u64,
    /// Absent when [`Options::statistics`] is off.
    #[serde(flatten)]
    pub statistics: Option<Statistics>,
}

/// Statistics of the values of a column.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Statistics {
    pub nulls: u64,
    /// Of the values, or of the items of lists of numbers; long texts are shortened.
    pub min: Option<Value>,
    pub max: Option<Value>,
    /// Of texts in bytes, of lists in items.
    pub mean_length: Option<f64>,
    pub max_length: Option<u64>,
}

/// # Errors
/// When the footer or a page is damaged.
pub(super) fn read(path: &Path, options: &Options) -> Result<Parquet> {
    let footer = ArrowReaderMetadata::load(&fs::open(path)?, ArrowReaderOptions::default())
        .map_err(|e| damaged(&e))?;
    expect_unique_names(&path.display().to_string(), footer.schema().fields())?;
    let metadata = footer.metadata();
    let unshown = query::unsupported(footer.schema().fields())
        .map(|(name, ty)| format!("`{name}` holds {ty}, which is not read: no values are shown"));
    let brief = Options { rows: 0, statistics: false, config: None, decode: None };
    let options = if unshown.is_some() { &brief } else { options };
    let mut columns: Vec<Column> = footer
        .schema()
        .fields()
        .iter()
        .map(|field| column(field.name(), field.data_type().to_string(), metadata))
        .collect();
    let (found, head) = query::guarded(|| values(path, options)).map_err(|said| damaged(&said))??;
    for (column, statistics) in columns.iter_mut().zip(found) {
        column.statistics = Some(statistics);
    }
    let groups = metadata.row_groups();
    Ok(Parquet {
        rows: metadata.file_metadata().num_rows() as u64,
        row_groups: groups.iter().map(|group| group.num_rows() as u64).collect(),
        compression: compression(metadata),
        uncompressed_bytes: columns.iter().map(|column| column.uncompressed_bytes).sum(),
        created_by: metadata.file_metadata().created_by().map(str::to_string),
        metadata: pairs(metadata),
        columns,
        unshown,
        head: (0..head.height()).map(|i| row(&head, i, options.decode)).collect(),
    })
}

pub(super) fn damaged(error: &dyn std::fmt::Display) -> Error {
    let said = error.to_string();
    Error::input("this Parquet file is cut off or damaged")
        .cause(said.split("\n\n").next().unwrap_or_default())
}

/// What must be read beside the footer: the statistics of the columns, and the first rows.
fn values(path: &Path, options: &Options) -> Result<(Vec<Statistics>, DataFrame)> {
    let found = match options.statistics {
        true => statistics(query::scan_parquet(path)?).map_err(|e| damaged(&e))?,
        false => Vec::new(),
    };
    let head = match options.rows {
        0 => DataFrame::default(),
        n => query::collect(query::scan_parquet(path)?.limit(n as u32)).map_err(|e| damaged(&e))?,
    };
    Ok((found, head))
}

/// A column of the schema may be several of the file: the fields of a struct.
fn column(name: &str, data_type: String, metadata: &ParquetMetaData) -> Column {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let own = chunks.filter(|chunk| chunk.column_path().parts().first().is_some_and(|part| part == name));
    let (compressed_bytes, uncompressed_bytes) = own.fold((0, 0), |(c, u), chunk| {
        (c + chunk.compressed_size() as u64, u + chunk.uncompressed_size() as u64)
    });
    Column { name: name.to_string(), data_type, compressed_bytes, uncompressed_bytes, statistics: None }
}

fn compression(metadata: &ParquetMetaData) -> Vec<String> {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let mut found: Vec<String> = chunks.map(|chunk| chunk.compression_codec().to_string()).collect();
    found.sort();
    found.dedup();
    found
}

fn pairs(metadata: &ParquetMetaData) -> BTreeMap<String, String> {
    let pairs = metadata.file_metadata().key_value_metadata().into_iter().flatten();
    let own = pairs.filter(|pair| pair.key != "ARROW:schema");
    own.map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default())).collect()
}

/// One pass over the file for all columns; in the order of the schema.
fn statistics(mut rows: LazyFrame) -> Result<Vec<Statistics>, PolarsError> {
    let schema = rows.collect_schema()?;
    let mut wanted = Vec::new();
    for (i, (name, dtype)) in schema.iter().enumerate() {
        let column = Expr::Column(name.clone());
        wanted.push(column.clone().null_count().alias(format!("{i} nulls")));
        let numbers = dtype.inner_dtype().is_some_and(DataType::is_primitive_numeric);
        let (values, length) = match dtype {
            DataType::String => {
                (Some((column.clone().min(), column.clone().max())), Some(column.str().len_bytes()))
            }
            DataType::List(_) if numbers => {
                let (least, most) = (column.clone().list().min(), column.clone().list().max());
                (Some((least.min(), most.max())), Some(column.list().len()))
            }
            DataType::List(_) => (None, Some(column.list().len())),
            plain if plain.is_primitive_numeric() || plain.is_temporal() || plain.is_bool() => {
                (Some((column.clone().min(), column.max())), None)
            }
            _ => (None, None),
        };
        if let Some((min, max)) = values {
            wanted.extend([min.alias(format!("{i} min")), max.alias(format!("{i} max"))]);
        }
        if let Some(length) = length {
            wanted.push(length.clone().mean().alias(format!("{i} mean")));
            wanted.push(length.max().alias(format!("{i} longest")));
        }
    }
    let found = query::collect(rows.select(wanted))?;
    Ok((0..schema.len()).map(|i| of_column(&found, i)).collect())
}

fn of_column(found: &DataFrame, i: usize) -> Statistics {
    let value = |what: &str| {
        let value = found.column(&format!("{i} {what}")).ok()?.get(0).ok()?;
        Some(cell::json(&value)).filter(|value| !value.is_null())
    };
    let short = |value: Value| match value {
        Value::String(text) => Value::String(shorten(&text, 100)),
        other => other,
    };
    Statistics {
        nulls: value("nulls").and_then(|v| v.as_u64()).unwrap_or(0),
        min: value("min").map(short),
        max: value("max").map(short),
        mean_length: value("mean").and_then(|v| v.as_f64()),
        max_length: value("longest").and_then(|v| v.as_u64()),
    }
}

fn row(head: &DataFrame, i: usize, decoder: Option<&Decode>) -> Row {
    let mut row = Row::new();
    // Of a teacher's logits, ids are alternatives, not a text.
    let alternatives = head.column("log_probs").is_ok();
    let decode = |decode: &Decode, ids: &[u32]| match alternatives {
        true => ids.iter().map(|id| decode(&[*id])).collect::<Option<Vec<_>>>().map(|all| all.join(" | ")),
        false => decode(ids),
    };
    for column in head.columns() {
        let value = column.get(i).map_or(Value::Null, |value| cell::json(&value));
        let text =
            decoder.filter(|_| is_tokens(column.dtype())).and_then(|decoder| decode(decoder, &ids(&value)?));
        row.insert(column.name().to_string(), value);
        if let Some(text) = text {
            row.insert(format!("{} decoded", column.name()), Value::String(text));
        }
    }
    row
}

pub(super) fn is_tokens(dtype: &DataType) -> bool {
    dtype.inner_dtype().is_some_and(DataType::is_unsigned_integer)
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

impl Parquet {
    pub(super) fn summary(&self) -> String {
        let mut text = format!("Parquet of {} rows, {} columns", units::count(self.rows), self.columns.len());
        if !self.compression.is_empty() {
            text += &format!(", {}", self.compression.join(" and "));
        }
        text
    }

    pub(super) fn render(&self, page: &mut Page) {
        let (least, most) = (self.row_groups.iter().min(), self.row_groups.iter().max());
        let groups = match (least, most) {
            (Some(least), Some(most)) if least < most => {
                format!(
                    "{} of {} to {} rows",
                    self.row_groups.len(),
                    units::count(*least),
                    units::count(*most)
                )
            }
            (Some(rows), _) => format!("{} of {} rows", self.row_groups.len(), units::count(*rows)),
            _ => "none".to_string(),
        };
        page.field("row groups", Some(groups));
        page.field("uncompressed", Some(units::bytes(self.uncompressed_bytes)));
        page.field("created by", self.created_by.as_ref());
        page.field("not shown", self.unshown.as_ref());
        page.pairs(&self.metadata);
        page.table(&self.columns_table());
        page.rows("row", 0, &self.head);
    }

    fn columns_table(&self) -> Table {
        let mut table =
            Table::new(["column", "type", ">size", ">nulls", "min", "max", ">mean length", ">max length"]);
        for column in &self.columns {
            let mut cells =
                vec![column.name.clone(), column.data_type.clone(), units::bytes(column.compressed_bytes)];
            if let Some(found) = &column.statistics {
                let value = |value: &Option<Value>| value.as_ref().map(plain).unwrap_or_default();
                cells.push(units::count(found.nulls));
                cells.extend([value(&found.min), value(&found.max)]);
                cells.push(found.mean_length.map(|n| format!("{n:.1}")).unwrap_or_default());
                cells.push(found.max_length.map(units::count).unwrap_or_default());
            }
            table.push(cells);
        }
        table
    }
}
