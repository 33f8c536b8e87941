//! tinylm: declarative pipelines that build tiny language models.
//!
//! Two halves that do not know each other, one bridge:
//!
//! ```text
//!  base      digest, error with a place, YAML with positions, files, seeded rng, monitor
//!  -- domain: what a language model needs; knows no pipeline, store or command line
//!  corpus    documents and conversations: reading, cleaning, deduplication, their Parquet form
//!  synth     templates -> documents and conversations
//!  tokenizer training, special tokens, chat template
//!  shard     token ids in Parquet: packing, splitting, shuffling, loading
//!  kernel    layers forward and back on a CPU: vectors, threads, matrix products
//!  model     the transformer, its configuration, weights on disk, KV cache
//!  train     optimizer, schedule, batches, the loop; pretraining and fine-tuning
//!  eval      perplexity, bits per byte, accuracies
//!  generate  decoding strategies over a model
//!  query     SQL over Parquet and JSON lines
//!  inspect   what is in a file, whatever it is
//!  -- engine: what a build tool needs; knows no language model
//!  stage     what a stage kind is
//!  spec      YAML to a typed pipeline with positions; overrides
//!  store     digest -> bytes, action key -> artifact
//!  plan      graph, fingerprint -> key, verdict and reason, lockfile
//!  exec      scheduler, cancellation; emits events
//!  event     everything that exec tells whoever reports
//!  -- bridge and faces
//!  kinds     one file a stage kind, and the one list of them
//!  report    console, JSON lines, run folder
//!  cli       one file a command
//! ```
//!
//! Arrows point up this list, never down; domain and engine never import each other. Only `report`
//! and `cli` print. A run is four hops: `spec::load` -> `plan::build` -> `exec::run` -> `store::commit`.

pub mod base;

pub mod synth;

pub mod corpus;
pub mod tokenizer;

pub mod kernel;
pub mod shard;

pub mod eval;
pub mod generate;
pub mod model;
pub mod train;

pub mod query;

pub mod inspect;

pub mod event;
pub mod exec;
pub mod plan;
pub mod spec;
pub mod stage;
pub mod store;

pub mod kinds;

pub mod cli;
pub mod report;
