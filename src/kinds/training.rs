//! The params that `pretrain` and `finetune` share, written once: a macro, since serde can't flatten a
//! struct and refuse unknown keys at one time.

use crate::stage::Issue;

/// Defines a params struct with the shared fields, the given own fields, and defaults for all.
macro_rules! training_params {
    (
        $(#[$doc:meta])* $name:ident;
        defaults { steps: $steps:expr, learning_rate: $rate:expr, warmup_steps: $warmup:expr }
        own { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Updates of the weights.
            pub steps: u64,
            /// Rows (sequences of `seq_len` tokens) of a forward and backward pass.
            pub batch_size: usize,
            /// Batches whose gradients are added up before an update.
            pub accumulate: usize,
            /// The highest learning rate, reached after `warmup_steps`.
            pub learning_rate: f64,
            /// What the cosine falls to. Default: a tenth of `learning_rate`.
            pub min_learning_rate: Option<f64>,
            /// Steps over which the learning rate rises from 0.
            pub warmup_steps: u64,
            /// Decoupled decay of the matrices (AdamW).
            pub weight_decay: f64,
            /// AdamW's first moment.
            pub beta1: f64,
            /// AdamW's second moment.
            pub beta2: f64,
            /// The gradient's norm is scaled down to this. 0 leaves it as it is.
            pub clip: f64,
            /// The share of activations dropped. Default: the model's.
            pub dropout: Option<f64>,
            /// Steps between validations. 0: only at the end.
            pub eval_every: u64,
            /// Rows of a validation at most.
            pub eval_rows: usize,
            /// Validations without improvement before training stops. 0: never.
            pub patience: u32,
            /// Steps between samples. 0: only at the end.
            pub sample_every: u64,
            /// What matrix products are made of. Sums, weights and all else stay f32; what is learned
            /// differs in its bits.
            pub dtype: crate::kernel::Dtype,
            /// What the samples begin with.
            pub prompts: Vec<String>,
            /// The weights that are kept: of the `best` validation, or the `last`.
            pub keep: crate::train::Keep,
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    $($field: $default,)*
                    steps: $steps,
                    batch_size: 16,
                    accumulate: 1,
                    learning_rate: $rate,
                    min_learning_rate: None,
                    warmup_steps: $warmup,
                    weight_decay: 0.1,
                    beta1: 0.9,
                    beta2: 0.95,
                    clip: 1.0,
                    dropout: None,
                    eval_every: 100,
                    eval_rows: 64,
                    patience: 0,
                    sample_every: 0,
                    dtype: crate::kernel::Dtype::F32,
                    prompts: Vec::new(),
                    keep: crate::train::Keep::Best,
                }
            }
        }

        impl $name {
            fn options(&self, seed: u64) -> crate::train::Options {
                crate::train::Options {
                    steps: self.steps,
                    batch_size: self.batch_size,
                    accumulate: self.accumulate,
                    schedule: crate::train::Schedule {
                        peak: self.learning_rate,
                        floor: self.min_learning_rate.unwrap_or(self.learning_rate / 10.0),
                        warmup: self.warmup_steps,
                    },
                    weight_decay: self.weight_decay,
                    beta1: self.beta1,
                    beta2: self.beta2,
                    clip: self.clip,
                    eval_every: self.eval_every,
                    eval_rows: self.eval_rows,
                    patience: self.patience,
                    sample_every: self.sample_every,
                    prompts: self.prompts.clone(),
                    keep: self.keep,
                    dtype: self.dtype,
                    seed,
                }
            }

            fn ranges(&self) -> Vec<crate::stage::Issue> {
                crate::kinds::training::ranges(&self.options(0), self.dropout)
            }
        }
    };
}

pub(super) use training_params;

/// What is out of range.
pub fn ranges(options: &crate::train::Options, dropout: Option<f64>) -> Vec<Issue> {
    let mut issues = Vec::new();
    let mut wrong = |name: &str, is_wrong: bool, found: String, expected: &str| {
        if is_wrong {
            issues.push(Issue::param(name, format!("expected {expected}, found {found}")));
        }
    };
    let o = options;
    wrong("steps", o.steps == 0, o.steps.to_string(), "1 or more");
    wrong("batch_size", o.batch_size == 0, o.batch_size.to_string(), "1 or more");
    wrong("accumulate", o.accumulate == 0, o.accumulate.to_string(), "1 or more");
    let rate = o.schedule.peak;
    wrong("learning_rate", !(rate > 0.0 && rate <= 1.0), rate.to_string(), "a number above 0, at most 1");
    let floor = o.schedule.floor;
    wrong("min_learning_rate", !(floor >= 0.0 && floor <= rate), floor.to_string(), "0 to `learning_rate`");
    wrong("weight_decay", !(0.0..1.0).contains(&o.weight_decay), o.weight_decay.to_string(), "0 to 1");
    wrong("beta1", !(0.0..1.0).contains(&o.beta1), o.beta1.to_string(), "0 to below 1");
    wrong("beta2", !(0.0..1.0).contains(&o.beta2), o.beta2.to_string(), "0 to below 1");
    wrong("clip", !(o.clip >= 0.0 && o.clip.is_finite()), o.clip.to_string(), "0 or more");
    wrong("eval_rows", o.eval_rows == 0, o.eval_rows.to_string(), "1 or more");
    if let Some(p) = dropout {
        wrong("dropout", !(0.0..1.0).contains(&p), p.to_string(), "0 to below 1");
    }
    issues
}
