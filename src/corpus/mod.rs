//! Documents and conversations: reading them from users' files, cleaning, deduplication, and the Parquet
//! files that the other modules read.

pub mod conversation;
pub mod document;
pub mod held_out;
pub mod parquet_io;
pub mod preference;
pub mod table;

pub mod binary;
pub mod boilerplate;
pub mod chat;
pub mod clean;
pub mod csv;
pub mod decode;
pub mod decontaminate;
pub mod duplicates;
pub mod ingest;
pub mod input;
pub mod json;
pub mod minhash;
pub mod read;
pub mod signs;
pub mod split;
pub mod transcode;
