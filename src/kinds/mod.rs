//! The one list of stage kinds. Help, schema, reference and completions come from it; a new kind is a
//! file beside this one and a line below.

pub mod command;
pub mod decontaminate;
pub mod distill;
pub mod eval;
pub mod export;
pub mod finetune;
pub mod import;
pub mod ingest;
pub mod ingest_chat;
pub mod prefer;
pub mod pretrain;
pub mod quantize;
pub mod shard;
pub mod synthesize;
pub mod teach;
pub mod train_tokenizer;

pub mod adapters;
mod architecture;
mod facts;
mod streams;
mod teachers;
mod texts;
mod tokenizers;
mod training;
mod training_params;

use crate::stage::{Kinds, Stage, erase};

/// Every kind, in the order of their names.
pub fn all() -> Vec<Box<dyn Stage>> {
    vec![
        erase::<command::Command>(),
        erase::<decontaminate::Decontaminate>(),
        erase::<distill::Distill>(),
        erase::<eval::Eval>(),
        erase::<export::Export>(),
        erase::<finetune::Finetune>(),
        erase::<import::Import>(),
        erase::<ingest::Ingest>(),
        erase::<ingest_chat::IngestChat>(),
        erase::<prefer::Prefer>(),
        erase::<pretrain::Pretrain>(),
        erase::<quantize::Quantize>(),
        erase::<shard::Shard>(),
        erase::<synthesize::Synthesize>(),
        erase::<teach::Teach>(),
        erase::<train_tokenizer::TrainTokenizer>(),
    ]
}

/// [`all`] for the engine.
pub fn kinds() -> Kinds {
    Kinds::new(all())
}
