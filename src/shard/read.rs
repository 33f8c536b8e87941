//! Reads the tokens of shards into memory: row groups are decoded in parallel, a few pages at a time, from
//! Parquet into the integers of a [`TokenStream`]. Beside the stream, memory holds one row group per
//! thread.
//!
//! Not through Arrow, which reads everything else: it builds list offsets token by token, which takes
//! several times as long as decoding the ids.

use std::collections::HashSet;
use std::fs::File;

use arrow::array::StringArray;
use parquet::arrow::ProjectionMask;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::Int32Type;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use rayon::prelude::*;

use super::{Rows, ShardFile, Shards, TokenStream, Tokens};
use crate::base::{Error, Result, fs};
use crate::corpus::held_out::Split;
use crate::corpus::parquet_io::{self, unreadable};

/// Tokens decoded in one go, about; they stay in the processor's cache until they are in the stream.
const BATCH_TOKENS: usize = 32 << 10;

/// A row group of a file.
struct Group<'a> {
    file: &'a ShardFile,
    index: usize,
    /// Whether it is the last of its file.
    last: bool,
}

impl Shards {
    /// Every document of a split, in shard order, into memory: 2 bytes a token (4 where the
    /// vocabulary is larger than 65,536). Row groups are read in parallel on the current rayon pool.
    ///
    /// # Errors
    /// When a file is damaged or holds an id outside the vocabulary.
    pub fn read(&self, split: Split) -> Result<TokenStream> {
        let files: Vec<&ShardFile> = self.files.iter().filter(|f| f.split == split).collect();
        let mut groups = Vec::new();
        for file in &files {
            groups.extend(groups_of(file)?);
        }
        let sum = |of: fn(&ShardFile) -> u64| files.iter().map(|file| of(file) as usize).sum();
        let mut stream =
            TokenStream::with_room(self.vocab_size, sum(|f| f.footer.tokens), sum(|f| f.footer.documents));
        let mut at = (0, 0);
        for wave in groups.chunks(rayon::current_num_threads()) {
            let read: Vec<Result<TokenStream>> = wave.par_iter().map(|g| g.read(self.vocab_size)).collect();
            for (group, read) in wave.iter().zip(read) {
                stream.append(&read?);
                if group.last {
                    at = group.file.expect_all(at, &stream)?;
                }
            }
        }
        Ok(stream)
    }
}

impl Shards {
    /// The ids of all texts of some splits.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn ids(&self, splits: &[Split]) -> Result<HashSet<String>> {
        let mut ids = HashSet::new();
        for file in self.files.iter().filter(|f| splits.contains(&f.split)) {
            let path = &file.path;
            let builder = super::reader(path)?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), ["id"]);
            for batch in builder.with_projection(mask).build().map_err(|e| unreadable(path, &e))? {
                let batch = batch.map_err(|e| unreadable(path, &e))?;
                let column: StringArray = parquet_io::column(&batch, "id", path)?;
                ids.extend(column.iter().flatten().map(str::to_string));
            }
        }
        Ok(ids)
    }
}

impl ShardFile {
    /// The file holds what its footer says: since `before`, so many tokens and documents came. Gives
    /// how many there are now.
    fn expect_all(&self, before: (usize, usize), stream: &TokenStream) -> Result<(usize, usize)> {
        let now = (stream.len(), stream.ends.len());
        let read = ((now.0 - before.0) as u64, (now.1 - before.1) as u64);
        if read == (self.footer.tokens, self.footer.documents) {
            return Ok(now);
        }
        Err(Error::input(format!(
            "`{}` is damaged: its footer says {} tokens in {} documents, it holds {} in {}",
            self.path.display(),
            self.footer.tokens,
            self.footer.documents,
            read.0,
            read.1
        )))
    }
}

fn groups_of(file: &ShardFile) -> Result<Vec<Group<'_>>> {
    let reader = file.reader()?;
    parquet_io::expect_whole(&file.path, reader.metadata(), fs::size(&file.path)?)?;
    let count = reader.metadata().num_row_groups();
    Ok((0..count).map(|index| Group { file, index, last: index + 1 == count }).collect())
}

impl ShardFile {
    /// Opened for each row group: clones of an open file share its read position.
    fn reader(&self) -> Result<SerializedFileReader<File>> {
        SerializedFileReader::new(fs::open(&self.path)?).map_err(|e| unreadable(&self.path, &e))
    }
}

impl Group<'_> {
    fn read(&self, vocab_size: usize) -> Result<TokenStream> {
        parquet_io::guarded(&self.file.path, || self.decode(vocab_size))
    }

    fn decode(&self, vocab_size: usize) -> Result<TokenStream> {
        let path = &self.file.path;
        let reader = self.file.reader()?;
        let (column, chunk) = tokens_column(reader.metadata(), self.index)
            .ok_or_else(|| unreadable(path, &"its `tokens` are not lists of plain ids"))?;
        let rows = reader.metadata().row_group(self.index).num_rows() as usize;
        let tokens = chunk.num_values() as usize;
        let mut stream = TokenStream::with_room(vocab_size, tokens, rows);
        let group = reader.get_row_group(self.index).map_err(|e| unreadable(path, &e))?;
        let pages = group.get_column_reader(column).map_err(|e| unreadable(path, &e))?;
        let ColumnReader::Int32ColumnReader(pages) = pages else {
            return Err(unreadable(path, &"its `tokens` are not integers of 32 bits"));
        };
        let documents = (BATCH_TOKENS * rows / tokens.max(1)).max(1);
        let largest = decode_pages(pages, documents, &mut stream).map_err(|e| unreadable(path, &e))?;
        if largest as usize >= vocab_size { Err(self.outside(vocab_size)) } else { Ok(stream) }
    }
}

/// The column of ids in a row group, whose lists and items must not be null.
fn tokens_column(metadata: &ParquetMetaData, group: usize) -> Option<(usize, &ColumnChunkMetaData)> {
    let columns = metadata.row_group(group).columns().iter().enumerate();
    let mut named = columns.filter(|(_, c)| c.column_path().parts().first().is_some_and(|p| p == "tokens"));
    named
        .next()
        .filter(|(_, c)| (c.column_descr().max_def_level(), c.column_descr().max_rep_level()) == (1, 1))
}

/// Adds all documents of a column to `stream`, `documents` at a time; gives the largest id.
///
/// Parquet keeps lists as their items, each with two numbers: the repetition level is 0 for the first
/// of a list, the definition level 0 for a list without items.
fn decode_pages(
    mut pages: ColumnReaderImpl<Int32Type>,
    documents: usize,
    stream: &mut TokenStream,
) -> parquet::errors::Result<u32> {
    let (mut filled, mut repeated, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let mut largest = 0;
    loop {
        filled.clear();
        repeated.clear();
        ids.clear();
        let (records, ..) =
            pages.read_records(documents, Some(&mut filled), Some(&mut repeated), &mut ids)?;
        if records == 0 {
            return Ok(largest);
        }
        let mut end = stream.len();
        for (i, (filled, repeated)) in filled.iter().zip(&repeated).enumerate() {
            if *repeated == 0 && i > 0 {
                stream.ends.push(end);
            }
            end += *filled as usize;
        }
        stream.ends.push(end);
        match &mut stream.tokens {
            Tokens::Narrow(all) => all.extend(ids.iter().map(|id| *id as u16)),
            Tokens::Wide(all) => all.extend(ids.iter().map(|id| *id as u32)),
        }
        largest = ids.iter().map(|id| *id as u32).fold(largest, u32::max);
    }
}

impl Group<'_> {
    /// Names the first document with an id outside the vocabulary.
    fn outside(&self, vocab_size: usize) -> Error {
        let path = &self.file.path;
        let bad = |tokens: Vec<u32>| tokens.into_iter().find(|id| *id as usize >= vocab_size);
        let find = || -> Result<Option<(String, u32)>> {
            for row in Rows::open(path)? {
                let (document, tokens) = row?;
                if let Some(id) = bad(tokens) {
                    return Ok(Some((document, id)));
                }
            }
            Ok(None)
        };
        match find() {
            Ok(Some((document, id))) => Error::input(format!(
                "`{}`: document {document} has the token id {id}, but the vocabulary has {vocab_size} tokens",
                path.display(),
            )),
            Ok(None) => Error::bug(format!("`{}` holds an id in no document", path.display())),
            Err(error) => error,
        }
    }
}
