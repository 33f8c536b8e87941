//! Training: rows of tokens in, a better model out.
//!
//! ```text
//! data         rows, batches, their order; packing of conversations
//! objective    the loss of a batch and its gradient
//! optimizer    from a gradient to better weights
//! schedule     the learning rate of each step
//! averaging, early_stop      which weights are validated, and when none will be better
//! warm_start   another model's weights to begin with
//! metrics      what is written down
//! tensors      named tensors in files
//! state        what is saved to go on from
//! run          the loop
//! ```
//!
//! The bytes that come out do not depend on the number of threads. What is deliberately absent: wall-clock
//! figures in anything that is written (they go to the monitor).

mod averaging;
mod data;
mod early_stop;
mod metrics;
mod objective;
pub mod optimizer;
mod run;
mod schedule;
mod state;
mod tensors;
mod warm_start;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use averaging::Average;
pub use data::{Batch, Data, Order, Packed, Packing, Windows, pack, shortest_row};
pub use metrics::{Metric, Metrics, Sample, json_lines};
pub use objective::{
    Distill, DistillOptions, Likeliest, Loss, NextToken, Objective, Source, Teachers, dropout_key, evaluate,
};
pub use optimizer::{Algorithm, Decay, Optimizer};
pub use run::{load_kept, run};
pub use schedule::{Schedule, ScheduleKind};
pub use state::{Places, remove_used, resumes};
pub use warm_start::{Embedding, WarmStart, warm_start};

use crate::kernel::Dtype;

/// Which weights are kept at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those with the lowest validation loss.
    #[default]
    Best,
    /// Those of the last step.
    Last,
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many updates of the weights.
    Steps(u64),
    /// So many times over the data.
    Epochs(u64),
}

/// How to train.
#[derive(Debug, Clone)]
pub struct Options {
    pub length: Length,
    /// Rows of a forward and backward pass.
    pub batch_size: usize,
    /// Batches whose gradients are added up before an update.
    pub accumulate: usize,
    pub schedule: Schedule,
    pub optimizer: optimizer::Options,
    /// Of an exponential moving average of the weights, which is what is validated, sampled and kept.
    pub average: Option<f64>,
    /// Steps between validations; 0 validates at the end only.
    pub eval_every: u64,
    /// Rows of a validation at most.
    pub eval_rows: usize,
    /// Validations without improvement before it stops; 0 never stops early.
    pub patience: u32,
    /// Steps between samples; 0 writes them at the end only.
    pub sample_every: u64,
    pub prompts: Vec<String>,
    pub keep: Keep,
    /// Steps whose weights are kept beside those at the end, ascending.
    pub keep_steps: Vec<u64>,
    /// Steps between states; 0: see `save_minutes`.
    pub save_every: u64,
    /// Minutes between states; 0: see `save_every`.
    pub save_minutes: f64,
    /// Of matrix products.
    pub dtype: Dtype,
    pub seed: u64,
}

impl Options {
    fn rows_per_step(&self) -> usize {
        self.batch_size * self.accumulate
    }

    /// Updates of the weights, for data of so many rows.
    fn steps(&self, rows: usize) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs.saturating_mul(rows.div_ceil(self.rows_per_step()) as u64),
        }
    }
}

/// What training came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub steps: u64,
    pub tokens: u64,
    /// Mean over the last logged stretch, nats a token.
    pub loss: f64,
    /// Of the weights that were kept; `None` without validation rows.
    pub val_loss: Option<f64>,
    pub stopped_early: bool,
    /// The steps whose weights were to be kept, each with a file for [`load_kept`].
    pub kept: Vec<(u64, PathBuf)>,
}

#[cfg(test)]
mod tests;
