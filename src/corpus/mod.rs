//! Documents and conversations: reading them from what users have, cleaning, deduplication, and the
//! Parquet files that the other rooms read.

pub mod conversation;
pub mod document;
pub mod parquet_io;
