//! tinylm: declarative pipelines that build tiny language models.
//!
//! The domain (what a language model needs) and the engine (what a build tool needs) do not import each
//! other; stage kinds join them. In reading order:
//!
//! ```text
//!  base      digest, error with a place, YAML with positions, files, seeded rng, monitor
//!  -- domain: language models; no pipelines, store or command line
//!  corpus    documents and conversations: reading, cleaning, deduplication, their Parquet form
//!  synth     templates -> documents and conversations
//!  tokenizer training, special tokens, chat template
//!  shard     token ids in Parquet: packing, splitting, shuffling, loading; logits over them
//!  kernel    layers forward and backward on a CPU: vectors, threads, matrix products
//!  model     the transformer, its configuration, weights on disk, KV cache
//!  generate  texts of a model: decoding strategies, batches of requests, conversations
//!  train     optimizer, schedule, batches, the loop; pretraining, fine-tuning, distillation
//!  eval      bits per byte, cloze, minimal pairs, choices, exams; how sure they are
//!  quantize  weights as blocks of integers
//!  query     SQL over Parquet and JSON lines
//!  inspect   what is in a file, whatever it is
//!  -- engine: pipelines; no language models
//!  stage     what a stage kind is
//!  spec      YAML to a typed pipeline with positions; overrides
//!  store     digest -> bytes, action key -> artifact
//!  event     everything that exec tells whoever reports
//!  plan      graph, fingerprint -> key, verdict and reason, lockfile
//!  exec      scheduler, cancellation; emits events
//!  -- bridge and faces
//!  kinds     one file a stage kind, and the one list of them
//!  report    console, JSON lines, run folder
//!  target    what a user names: paths, outputs of stages, models
//!  web       a server: chat page, OpenAI's API, attention, runs and artifacts
//!  cli       one file a command
//! ```
//!
//! A module imports only what stands above it, and only `report` and `cli` print
//! (`tests/integration/structure.rs` checks both). A run is four calls: `spec::load` -> `plan::build` ->
//! `exec::run` -> `store::commit`.
//!
//! # Glossary
//!
//! What is ours; all other words are meant as PyTorch, Hugging Face, cargo and Bazel use them.
//!
//! | word | meaning |
//! | --- | --- |
//! | action | one computation: a stage kind with its version, resolved params and the digests of its inputs |
//! | artifact | the files at one output port, listed in a manifest by name, digest and size |
//! | bits per byte | loss in bits over UTF-8 bytes of text: comparable between tokenizers |
//! | digest | BLAKE3 of bytes; files with the same bytes have the same digest and are stored once |
//! | executor | a model's forward and backward passes over micro-batches, with a workspace each |
//! | facts | what is known of an artifact before it exists, such as `vocab_size` |
//! | fingerprint | what determines an action's output bytes, recorded to explain why a stage reruns |
//! | gate | a condition on a finished artifact that fails the run and keeps the artifact |
//! | held out | kept from training by a rule on the digest of the text, so that it can be evaluated on |
//! | key | digest of a fingerprint: where the results of an action are looked up |
//! | kind | the type of a stage (`pretrain`, `shard`): its ports, params and function |
//! | micro-batch | the part of a batch that one worker computes at a time; gradients are summed in its order |
//! | monitor | the listener of a long computation: progress, metrics, log lines, cancellation |
//! | packing | whole conversations side by side in rows of `seq_len` tokens, so that little is padding |
//! | port | a named, typed input or output of a stage |
//! | shard | a Parquet file of token ids, one document a row |
//! | source | a file, glob or URL that a pipeline reads and no stage makes |
//! | stage | one step of a pipeline: a kind, params and connected inputs |
//! | state | what a stage saves of its work as it goes, so that it can be stopped and go on |
//! | trajectory | what determines the steps of a training: a fingerprint without how many they are |
//! | verdict | what the plan decides of a stage: cached, or run, with the reason |
//! | view | the folder `artifacts/PIPELINE/STAGE` that shows the store's files under their names |

pub mod base;

pub mod corpus;
pub mod synth;
pub mod tokenizer;
pub mod shard;
pub mod kernel;
pub mod model;
pub mod generate;
pub mod train;
pub mod eval;
pub mod quantize;
pub mod query;
pub mod inspect;

pub mod stage;
pub mod spec;
pub mod store;
pub mod event;
pub mod plan;
pub mod exec;

pub mod kinds;
pub mod report;
pub mod target;
pub mod web;
pub mod cli;
