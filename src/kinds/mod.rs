//! The one list of stage kinds. Help, schema, reference and completions come from it; a new kind is a
//! file beside this one and a line below.

use crate::stage::{Stage, erase};

pub mod shard;
pub mod train_tokenizer;

mod texts;

/// Every kind, in the order of their names.
pub fn all() -> Vec<Box<dyn Stage>> {
    vec![
        //
        erase::<shard::Shard>(),
        erase::<train_tokenizer::TrainTokenizer>(),
    ]
}
