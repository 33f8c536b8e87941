//! The one list of stage kinds. Help, schema, reference and completions come from it; a new kind is a
//! file beside this one and a line below.

pub mod command;
pub mod shard;
pub mod train_tokenizer;

mod texts;

use crate::stage::{Kinds, Stage, erase};

/// Every kind, in the order of their names.
pub fn all() -> Vec<Box<dyn Stage>> {
    vec![erase::<command::Command>(), erase::<shard::Shard>(), erase::<train_tokenizer::TrainTokenizer>()]
}

/// [`all`] as the engine takes them.
pub fn kinds() -> Kinds {
    Kinds::new(all())
}
