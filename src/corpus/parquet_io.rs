//! What every Parquet file of ours has in common: zstd, bounded row groups, errors that name the file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{ColumnChunkMetaData, KeyValue, ParquetMetaData};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

use super::input::InputFile;
use crate::base::{Error, Result, fs};

/// A row group is closed at this much payload: small enough to stream, large enough to compress.
pub const ROW_GROUP_BYTES: usize = 4 << 20;

/// A writer with our properties; `metadata` goes into the file's footer.
///
/// # Errors
/// When the file cannot be created.
pub fn writer(
    path: &Path,
    schema: Arc<Schema>,
    metadata: Vec<(String, String)>,
) -> Result<ArrowWriter<File>> {
    writer_with(path, schema, metadata, |properties| properties)
}

/// [`writer`] with further properties, such as the encoding of a column.
///
/// # Errors
/// As [`writer`].
pub fn writer_with(
    path: &Path,
    schema: Arc<Schema>,
    metadata: Vec<(String, String)>,
    further: impl FnOnce(WriterPropertiesBuilder) -> WriterPropertiesBuilder,
) -> Result<ArrowWriter<File>> {
    let level = ZstdLevel::try_new(3).map_err(|e| Error::bug(format!("zstd level: {e}")))?;
    let pairs = metadata.into_iter().map(|(k, v)| KeyValue::new(k, v)).collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_key_value_metadata(Some(pairs));
    let properties = further(properties).build();
    ArrowWriter::try_new(fs::create(path)?, schema, Some(properties)).map_err(|e| unwritable(path, &e))
}

pub fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::input(format!("cannot read `{}` as Parquet: {error}", path.display()))
}

/// Runs `read`, which calls the Parquet library on a user's file: on some damaged files it panics, which
/// becomes an error about the file.
///
/// # Errors
/// What `read` returns, or that the file is damaged.
pub fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(unreadable(path, &format!("it is damaged ({text})")))
    })
}

/// Opens a user's file, after checking that it is complete and has no duplicate columns.
///
/// # Errors
/// When it is not.
pub fn open(file: &InputFile) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let name = Path::new(&file.name);
    let opened = fs::open(&file.path)?;
    let builder =
        guarded(name, || ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|e| unreadable(name, &e)))?;
    expect_whole(name, builder.metadata(), fs::size(&file.path)?)?;
    expect_unique_names(&file.name, builder.schema().fields())?;
    Ok(builder)
}

/// Checks that every column chunk lies within the file, which the library assumes.
///
/// # Errors
/// When one does not.
pub fn expect_whole(path: &Path, metadata: &ParquetMetaData, size: u64) -> Result<()> {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    for chunk in chunks {
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let inside = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        if inside.and_then(|(start, length)| start.checked_add(length)).is_none_or(|end| end > size) {
            let column = chunk.column_path();
            return Err(unreadable(
                path,
                &format!("it is damaged (column {column} lies outside of the file)"),
            ));
        }
    }
    Ok(())
}

/// Checks that no two columns, or fields of a struct, have the same name, which would be ambiguous.
///
/// # Errors
/// The first duplicate in the file called `name`.
pub fn expect_unique_names(name: &str, fields: &Fields) -> Result<()> {
    for (i, field) in fields.iter().enumerate() {
        if fields[..i].iter().any(|other| other.name() == field.name()) {
            let message = format!("`{name}` has two columns called `{}`", field.name());
            return Err(Error::input(message).help(
                "rename one of them where the file is written: which of the two is meant cannot be told",
            ));
        }
        let mut inner = field.data_type();
        while let DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) = inner
        {
            inner = item.data_type();
        }
        if let DataType::Struct(fields) = inner {
            expect_unique_names(name, fields)?;
        }
    }
    Ok(())
}

/// In how many rows the column `name` is not null, by the file's statistics; all rows, where there are none
/// or the column is nested.
pub fn filled_rows(metadata: &ParquetMetaData, name: &str) -> u64 {
    let groups = metadata.row_groups().iter();
    groups
        .map(|group| {
            let own = |chunk: &&ColumnChunkMetaData| chunk.column_path().parts() == [name];
            let chunk = group.columns().iter().find(own);
            let nulls = chunk.and_then(|chunk| chunk.statistics()?.null_count_opt()).unwrap_or(0);
            (group.num_rows() as u64).saturating_sub(nulls)
        })
        .sum()
}

/// The bytes of all values of a column of text, from the file's statistics: `None` when there are none.
/// `column` is the last part of its path.
pub fn text_bytes(metadata: &ParquetMetaData, column: &str) -> Option<u64> {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    chunks
        .filter(|chunk| chunk.column_path().parts().last().is_some_and(|part| part == column))
        .map(|chunk| u64::try_from(chunk.unencoded_byte_array_data_bytes()?).ok())
        .sum()
}

pub fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::input(format!("cannot write `{}`: {error}", path.display()))
}

/// The column `name` as the array type that the caller expects.
///
/// # Errors
/// When it is missing or of another type.
pub fn column<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str, path: &Path) -> Result<A> {
    batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>().cloned()).ok_or_else(|| {
        Error::input(format!("`{}`: the column `{name}` is missing or of another type", path.display()))
    })
}

/// Checks that every column of `wanted`, with its type, is in `found`.
///
/// # Errors
/// The first that is not, and the columns of the file.
pub fn expect_columns(path: &Path, found: &Schema, wanted: &Schema, what: &str) -> Result<()> {
    for field in wanted.fields() {
        if found.field_with_name(field.name()).is_ok_and(|f| f.data_type().equals_datatype(field.data_type()))
        {
            continue;
        }
        let has: Vec<String> =
            found.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
        return Err(Error::input(format!(
            "`{}` does not hold {what}: it has no column `{}` of type {}",
            path.display(),
            field.name(),
            field.data_type()
        ))
        .help(format!("its columns are {}", has.join(", "))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_library_is_the_files_fault() {
        let path = Path::new("a.parquet");
        assert_eq!(guarded(path, || Ok(1)).unwrap(), 1);
        let error = guarded(path, || -> Result<()> { panic!("page {}", 3) }).unwrap_err().to_string();
        assert!(error.contains("`a.parquet`") && error.contains("it is damaged (page 3)"), "{error}");
    }
}
