//! SQL over Parquet and JSON lines, through polars; and values of a frame as text and as JSON.
//!
//! Reads files that the caller gives as named tables; artifacts and where their files lie are not known
//! here. Nothing is written.

pub mod cell;
mod frame;
mod guard;
mod lines;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arrow::datatypes::{DataType as ArrowType, Field, Fields};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use polars::prelude::{
    DataFrame, Engine, HiveOptions, LazyFileListReader, LazyFrame, LazyJsonLineReader, PolarsError,
    PolarsResult, ScanArgsParquet, ScanSources, UnionArgs, concat,
};
use polars::sql::SQLContext;

pub use frame::Frame;
pub(crate) use guard::guarded;
pub(crate) use lines::each_line;

use crate::base::table::shorten;
use crate::base::{Error, Result, fs, suggest};
use crate::corpus::binary::described;
use crate::corpus::parquet_io::expect_unique_names;

/// A table: files of one schema, whose rows follow each other, and its name in SQL.
#[derive(Debug, Clone)]
pub struct Source {
    /// See [`table_name`].
    pub name: String,
    /// All Parquet or all JSON lines, found from their content: names need no extension.
    pub files: Vec<PathBuf>,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    JsonLines,
}

impl Format {
    /// The format, from the first bytes.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or is neither.
    pub fn of(path: &Path) -> Result<Self> {
        let mut head = Vec::new();
        let reader = fs::open(path)?.take(4096).read_to_end(&mut head);
        reader.map_err(|e| Error::io("read", path, &e))?;
        let shown = path.display();
        let body = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&head);
        match body.trim_ascii_start() {
            [] if head.is_empty() => {
                Err(Error::input(format!("`{shown}` is empty: there is nothing to query")))
            }
            bytes if bytes.starts_with(b"PAR1") => Ok(Format::Parquet),
            [b'{', ..] => Ok(Format::JsonLines),
            _ => {
                let kind = described(&head).map(|kind| format!(": it begins as {kind} does"));
                let message =
                    format!("`{shown}` is neither Parquet nor JSON lines{}", kind.unwrap_or_default());
                Err(Error::input(message)
                    .help("a table is a Parquet file, or a file in UTF-8 with one JSON object a line"))
            }
        }
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// `text` as a name that SQL takes without quotes: `train-00000.parquet` gives `train_00000`.
pub fn table_name(text: &str) -> String {
    let stem = text.rsplit(['/', '\\']).next().unwrap_or(text);
    let stem = stem.split('.').find(|part| !part.is_empty()).unwrap_or(stem);
    let name: String =
        stem.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() { format!("t_{name}") } else { name }
}

/// Further names of a table that is the only one.
const ONLY: [&str; 2] = ["self", "t"];

/// The longest SQL: its length bounds its depth, and [`STACK`] is large enough for that.
const LONGEST: usize = 16 << 10;
/// Bytes of stack, since polars visits expressions recursively. Only touched pages take memory.
const STACK: usize = 1 << 30;
/// Statements of polars' dialect that change tables in memory.
const CHANGES: [&str; 4] = ["create", "delete", "drop", "truncate"];

/// The rows that `sql` selects from `sources`, at most `limit` of them.
///
/// A single source is also known as `self` and as `t`. The dialect is polars':
/// <https://docs.pola.rs/api/python/stable/reference/sql/>.
///
/// # Errors
/// Files that are neither Parquet nor JSON lines or are damaged; SQL that cannot be parsed, or names
/// tables and columns that are not there.
pub fn query(sources: &[Source], sql: &str, limit: Option<usize>) -> Result<Frame> {
    if sql.len() > LONGEST {
        return Err(Error::usage(format!(
            "the query is {} bytes long, at most {LONGEST} are taken",
            sql.len()
        )));
    }
    let first = sql.split_whitespace().next().unwrap_or_default().to_lowercase();
    if CHANGES.contains(&first.as_str()) {
        return Err(Error::usage(format!("`{first}` would change a table: queries only read")));
    }
    thread::scope(|scope| {
        let deep = thread::Builder::new().stack_size(STACK);
        let running = deep.spawn_scoped(scope, || guarded(|| run(sources, sql, limit)));
        let running = running.map_err(|e| Error::input(format!("no thread to query in: {e}")))?;
        running.join().unwrap_or_else(|_| Err("its thread ended".to_string())).unwrap_or_else(|said| {
            Err(Error::input(format!("polars gave up at this query: {}", shorten(sql, 500)))
                .cause(said)
                .help("a damaged file is the usual cause: `tinylm inspect` tells more"))
        })
    })
}

fn run(sources: &[Source], sql: &str, limit: Option<usize>) -> Result<Frame> {
    let mut context = SQLContext::new();
    let mut tables = Vec::new();
    for source in sources {
        if tables.iter().any(|t: &TableColumns| t.name == source.name) {
            return Err(Error::usage(format!("two tables are called `{}`", source.name)));
        }
        let mut rows = scan(source)?;
        let schema = rows.collect_schema().map_err(|e| unreadable(source, &e))?;
        let columns = schema.iter_names().map(|n| n.to_string()).collect();
        for also in ONLY.iter().filter(|_| sources.len() == 1) {
            context.register(also, rows.clone());
        }
        context.register(&source.name, rows);
        tables.push(TableColumns { name: source.name.clone(), columns });
    }
    let selected = context.execute(sql).map_err(|e| wrong(sql, &e, &tables))?;
    // One more than the limit, to find out whether there are more.
    let rows = match limit {
        Some(limit) => selected.limit(limit.saturating_add(1).min(u32::MAX as usize) as u32),
        None => selected,
    };
    let all = collect(rows).map_err(|e| wrong(sql, &e, &tables))?;
    Ok(match limit {
        Some(limit) if all.height() > limit => Frame::new(all.head(Some(limit)), true),
        _ => Frame::new(all, false),
    })
}

/// A table, for messages.
struct TableColumns {
    name: String,
    columns: Vec<String>,
}

pub(crate) fn collect(rows: LazyFrame) -> PolarsResult<DataFrame> {
    // The streaming engine holds a part of the rows at a time.
    Ok(rows.collect_with_engine(Engine::Streaming)?.unwrap_single())
}

/// The rows of all files of `source`; integer columns of different widths become the widest.
fn scan(source: &Source) -> Result<LazyFrame> {
    let first = source.files.first();
    let first = first.ok_or_else(|| Error::usage(format!("the table `{}` has no files", source.name)))?;
    let format = Format::of(first)?;
    let mut parts = Vec::new();
    for path in &source.files {
        if Format::of(path)? != format {
            return Err(Error::input(format!(
                "the table `{}` mixes Parquet and JSON lines: `{}` and `{}`",
                source.name,
                first.display(),
                path.display()
            )));
        }
        parts.push(match format {
            Format::Parquet => scan_parquet(path)?,
            Format::JsonLines => scan_json_lines(path)?,
        });
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let together = UnionArgs { to_supertypes: true, ..Default::default() };
    concat(parts, together).map_err(|e| unreadable(source, &e))
}

/// An open file rather than a path: in a path, polars would expand `*` and `[`.
fn opened(path: &Path) -> Result<ScanSources> {
    Ok(ScanSources::Files(Arc::new([fs::open(path)?])))
}

/// The rows of one Parquet file.
///
/// # Errors
/// When it cannot be opened or is not Parquet, has a column twice or one of a type that polars lacks.
pub(crate) fn scan_parquet(path: &Path) -> Result<LazyFrame> {
    let footer = ArrowReaderMetadata::load(&fs::open(path)?, ArrowReaderOptions::default());
    let footer = footer.map_err(|e| unreadable_parquet(path, &e))?;
    expect_unique_names(&path.display().to_string(), footer.schema().fields())?;
    if let Some((column, ty)) = unsupported(footer.schema().fields()) {
        let message =
            format!("the column `{column}` of `{}` holds {ty}, which queries cannot read", path.display());
        return Err(Error::input(message).help(
            "write it as another type (Float16 as Float32, intervals and long decimals as text), or leave it out",
        ));
    }
    // Nor are columns taken from the path (`year=2024/…`).
    let hive_options = HiveOptions::new_disabled();
    let options = ScanArgsParquet { glob: false, hive_options, ..Default::default() };
    LazyFrame::scan_parquet_sources(opened(path)?, options).map_err(|e| not_a_table(path, &e))
}

/// The first column of a type that polars lacks: it would refuse the whole file.
pub(crate) fn unsupported(fields: &Fields) -> Option<(String, String)> {
    let within = |field: &Field| match field.data_type() {
        ty @ (ArrowType::Float16 | ArrowType::Interval(_) | ArrowType::Decimal256(..)) => {
            Some(ty.to_string())
        }
        ArrowType::List(item) | ArrowType::LargeList(item) | ArrowType::FixedSizeList(item, _) => {
            unsupported(&Fields::from(vec![item.clone()])).map(|(_, ty)| ty)
        }
        ArrowType::Map(entries, _) => unsupported(&Fields::from(vec![entries.clone()])).map(|(_, ty)| ty),
        ArrowType::Struct(fields) => unsupported(fields).map(|(_, ty)| ty),
        _ => None,
    };
    fields.iter().find_map(|field| Some((field.name().clone(), within(field)?)))
}

fn scan_json_lines(path: &Path) -> Result<LazyFrame> {
    lines::check(path)?;
    // The schema is inferred from all lines: a column may first appear in line 101.
    let reader = LazyJsonLineReader::new_with_sources(without_mark(path)?).with_infer_schema_length(None);
    reader.finish().map_err(|e| not_a_table(path, &e))
}

/// The file without its byte order mark, which polars would refuse.
fn without_mark(path: &Path) -> Result<ScanSources> {
    let mut file = fs::open(path)?;
    let mut bytes = Vec::new();
    let head = (&mut file).take(3).read_to_end(&mut bytes);
    head.map_err(|e| Error::io("read", path, &e))?;
    if bytes != BYTE_ORDER_MARK {
        return opened(path);
    }
    bytes.clear();
    file.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, &e))?;
    Ok(ScanSources::Buffers(Arc::new([bytes.into()])))
}

fn not_a_table(path: &Path, error: &PolarsError) -> Error {
    Error::input(format!("cannot read `{}` as a table", path.display())).cause(root(error))
}

fn unreadable_parquet(path: &Path, error: &ParquetError) -> Error {
    Error::input(format!("cannot read `{}` as a table", path.display())).cause(error)
}

fn unreadable(source: &Source, error: &PolarsError) -> Error {
    Error::input(format!("cannot read the table `{}`", source.name)).cause(root(error))
}

/// The message of a polars error, without its context and query plan.
fn root(error: &PolarsError) -> String {
    match error {
        PolarsError::Context { error, .. } | PolarsError::ExprContext { error, .. } => root(error),
        other => {
            let text = other.to_string();
            text.split("\n\n").next().unwrap_or_default().trim().to_string()
        }
    }
}

/// SQL that does not work on these tables.
fn wrong(sql: &str, error: &PolarsError, tables: &[TableColumns]) -> Error {
    let said = root(error);
    let missing = said.split(['"', '\'']).nth(1).unwrap_or_default();
    let message = Error::usage(format!("this query does not work: {}", shorten(sql, 500)));
    if said.contains("duplicate output name") {
        return message.cause(format!("two columns of the result are called `{missing}`")).help(
            "name them, as in `AVG(LENGTH(text)) AS mean_length`: a function keeps the name of its column",
        );
    }
    let names = || tables.iter().map(|t| t.name.as_str());
    if said.contains("relation '") {
        let message = message.cause(format!("there is no table `{missing}`"));
        return message
            .suggest(suggest::closest(missing, names()))
            .help(format!("the tables are {}", suggest::list(names())));
    }
    if said.contains("unable to find column") || said.contains("not found:") {
        let columns = || tables.iter().flat_map(|t| t.columns.iter().map(String::as_str));
        let message = message.cause(format!("there is no column `{missing}`"));
        let message = message.suggest(suggest::closest(missing, columns()));
        return tables.iter().fold(message, |message, table| {
            let columns = suggest::list(table.columns.iter().map(String::as_str));
            message.help(format!("the columns of `{}` are {columns}", table.name))
        });
    }
    message.cause(said)
}

#[cfg(test)]
mod tests;
