//! The params that training kinds share, written once: a macro, since serde can't flatten a struct and refuse
//! unknown keys at one time.

use crate::stage::{Issue, ValueVersion};
use crate::train::{Algorithm, Length, Options, Schedule, ScheduleKind, optimizer};

/// Defines a params struct with the shared fields, the given own fields, and defaults for all.
macro_rules! training_params {
    (
        $(#[$doc:meta])* $name:ident;
        defaults {
            steps: $steps:expr, learning_rate: $rate:expr, warmup_steps: $warmup:expr
            $(, $other:ident: $value:expr)*
        }
        own { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            #[doc = concat!("Updates of the weights. Default: ", stringify!($steps), ", unless `epochs` is given.")]
            pub steps: Option<u64>,
            /// Times over the training data, instead of `steps`.
            pub epochs: Option<u64>,
            /// Rows of a forward and backward pass: sequences of `seq_len` tokens, or pairs of answers.
            pub batch_size: usize,
            /// Batches whose gradients are added up before an update.
            pub accumulate: usize,
            /// What makes an update of a gradient: `adamw`; `muon`, which is Muon for hidden matrices and
            /// AdamW for all else; or `sgd`.
            pub optimizer: crate::train::Algorithm,
            /// The highest learning rate, reached after `warmup_steps`.
            pub learning_rate: f64,
            /// The same of the matrices that Muon updates. Default: 0.02.
            pub muon_learning_rate: Option<f64>,
            /// The same of token embeddings, learned positions, and an output projection of its own.
            /// Default: `learning_rate`.
            pub embedding_learning_rate: Option<f64>,
            /// The same of norms, biases and scalars. Default: `learning_rate`.
            pub vector_learning_rate: Option<f64>,
            /// How the learning rate falls behind the warm-up: by half a `cosine`, by a `linear` line, not at
            /// all (`constant`), or first `constant` and then by a line (`wsd`: warm-up, stable, decay).
            pub schedule: crate::train::ScheduleKind,
            /// The share of all steps in which `wsd` falls. Default: 0.5.
            pub decay_fraction: Option<f64>,
            /// What the learning rate falls to. Default: a tenth of `learning_rate` with `cosine`, else 0.
            pub min_learning_rate: Option<f64>,
            /// Steps over which the learning rate rises.
            pub warmup_steps: u64,
            /// What it rises from, as a share of `learning_rate`.
            pub warmup_start: f64,
            /// Decoupled decay: the share of a weight, times the learning rate, that a step takes away;
            /// `null`: 0.1 with `adamw`, else 0.
            pub weight_decay: Option<f64>,
            /// The same of the matrices that Muon updates. Default: 0.05.
            pub muon_weight_decay: Option<f64>,
            /// What decays: `matrices`, embeddings among them, or `all`.
            pub decay: crate::train::Decay,
            /// How much of the last update stays in the next: of Muon (default 0.95) and SGD (default 0).
            pub momentum: Option<f64>,
            /// AdamW's decay of the mean of gradients. Default: 0.9.
            pub beta1: Option<f64>,
            /// AdamW's decay of the mean of their squares. Default: 0.95.
            pub beta2: Option<f64>,
            /// AdamW's addition to the divisor. Default: 1e-8.
            pub eps: Option<f64>,
            /// The gradient's norm is scaled down to this. 0 leaves it as it is.
            pub clip: f64,
            /// The share of activations dropped; `null`: the model's.
            pub dropout: Option<f64>,
            /// The share of a target's probability that all tokens divide among themselves; of pairs of answers,
            /// the share whose labels are taken to be wrong. The training loss contains it, the validation loss
            /// does not.
            pub label_smoothing: f64,
            /// The decay of an exponential moving average of the weights, such as 0.999, which is then what is
            /// validated, sampled from and saved. 0: no average.
            pub average: f64,
            /// Steps between validations. 0: only at the end.
            pub eval_every: u64,
            /// Rows of a validation at most.
            pub eval_rows: usize,
            /// Validations without improvement before training stops. 0: never.
            pub patience: u32,
            /// Steps between samples. 0: only at the end.
            pub sample_every: u64,
            /// What matrix products are made of: `f32`, or `bf16` or `bf16_tile` for CPUs that are faster with
            /// them. Sums, weights and all else stay f32; what is learned differs in its bits.
            pub dtype: crate::kernel::Dtype,
            /// What the samples begin with.
            pub prompts: Vec<String>,
            /// The weights that are kept: of the `best` validation, or the `last`.
            pub keep: crate::train::Keep,
            /// Steps whose weights become outputs of their own beside the model at the end: `[250, 500]` gives
            /// `step-250` and `step-500`. With `average`, their average.
            pub keep_checkpoints: Vec<u64>,
            /// Steps between states, from which a training that was stopped goes on. 0: see `save_minutes`.
            /// What is learned does not depend on it.
            pub save_every: u64,
            /// Minutes between states. 0: see `save_every`. With both 0 a state is saved only when the training
            /// is asked to stop.
            pub save_minutes: f64,
        }

        impl Default for $name {
            fn default() -> Self {
                #[allow(unused_mut)] // where a kind has no other defaults
                let mut params = $name {
                    $($field: $default,)*
                    steps: None,
                    epochs: None,
                    batch_size: 16,
                    accumulate: 1,
                    optimizer: crate::train::Algorithm::AdamW,
                    learning_rate: $rate,
                    muon_learning_rate: None,
                    embedding_learning_rate: None,
                    vector_learning_rate: None,
                    schedule: crate::train::ScheduleKind::Cosine,
                    decay_fraction: None,
                    min_learning_rate: None,
                    warmup_steps: $warmup,
                    warmup_start: 0.0,
                    weight_decay: None,
                    muon_weight_decay: None,
                    decay: crate::train::Decay::Matrices,
                    momentum: None,
                    beta1: None,
                    beta2: None,
                    eps: None,
                    clip: 1.0,
                    dropout: None,
                    label_smoothing: 0.0,
                    average: 0.0,
                    eval_every: 100,
                    eval_rows: 64,
                    patience: 0,
                    sample_every: 0,
                    dtype: crate::kernel::Dtype::F32,
                    prompts: Vec::new(),
                    keep: crate::train::Keep::Best,
                    keep_checkpoints: Vec::new(),
                    save_every: 0,
                    save_minutes: 1.0,
                };
                $(params.$other = $value;)*
                params
            }
        }

        impl $name {
            /// What of the shared params is given.
            fn given(&self) -> crate::kinds::training_params::Given {
                crate::kinds::training_params::Given::of(self)
            }

            fn options(&self, seed: u64) -> crate::train::Options {
                let given = self.given();
                crate::train::Options {
                    length: given.length($steps),
                    batch_size: self.batch_size,
                    accumulate: self.accumulate,
                    schedule: given.schedule(),
                    optimizer: given.optimizer(),
                    average: (self.average != 0.0).then_some(self.average),
                    eval_every: self.eval_every,
                    eval_rows: self.eval_rows,
                    patience: self.patience,
                    sample_every: self.sample_every,
                    prompts: self.prompts.clone(),
                    keep: self.keep,
                    keep_steps: self.keep_checkpoints.clone(),
                    save_every: self.save_every,
                    save_minutes: self.save_minutes,
                    dtype: self.dtype,
                    seed,
                }
            }

            /// What the shared params get wrong.
            fn validate_training(&self) -> Vec<crate::stage::Issue> {
                self.given().validate(&self.options(0))
            }
        }
    };
}

pub(super) use training_params;

/// The shared params that change no byte.
pub(super) const NOT_IN_KEY: &[&str] = &["save_every", "save_minutes"];

/// The arithmetic of `bf16_tile`: 2, since the products of attention are in it.
pub(super) const BF16_TILE: &[ValueVersion] =
    &[ValueVersion { param: "dtype", value: "bf16_tile", version: 2 }];

/// The shared params that change nothing of what happens up to a step, but for the learning rates, which states
/// have by themselves. Not `learning_rate`: the rates of parameter groups are relative to it.
pub(super) const NOT_IN_STATE: &[&str] = &[
    "steps",
    "epochs",
    "schedule",
    "decay_fraction",
    "min_learning_rate",
    "warmup_steps",
    "warmup_start",
    "keep_checkpoints",
    "save_every",
    "save_minutes",
];

/// The recipe as it was given, defaults that depend on other params not yet filled in.
#[derive(serde::Deserialize)]
pub(super) struct Given {
    pub steps: Option<u64>,
    pub epochs: Option<u64>,
    pub optimizer: Algorithm,
    pub learning_rate: f64,
    pub muon_learning_rate: Option<f64>,
    pub embedding_learning_rate: Option<f64>,
    pub vector_learning_rate: Option<f64>,
    pub schedule: ScheduleKind,
    pub decay_fraction: Option<f64>,
    pub min_learning_rate: Option<f64>,
    pub warmup_steps: u64,
    pub warmup_start: f64,
    pub weight_decay: Option<f64>,
    pub muon_weight_decay: Option<f64>,
    pub decay: crate::train::Decay,
    pub momentum: Option<f64>,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub eps: Option<f64>,
    pub clip: f64,
    pub dropout: Option<f64>,
    pub label_smoothing: f64,
}

impl Given {
    /// Those of a kind's params that it shares with the others.
    ///
    /// # Panics
    /// When `params` lacks one of them.
    pub fn of(params: &impl serde::Serialize) -> Self {
        let given = serde_json::to_value(params).and_then(serde_json::from_value);
        given.expect("params of a training kind have all that the kinds share")
    }

    pub fn length(&self, default: u64) -> Length {
        match (self.steps, self.epochs) {
            (None, Some(epochs)) => Length::Epochs(epochs),
            (steps, _) => Length::Steps(steps.unwrap_or(default)),
        }
    }

    pub fn schedule(&self) -> Schedule {
        let floor = if self.schedule == ScheduleKind::Cosine { self.learning_rate / 10.0 } else { 0.0 };
        Schedule {
            kind: self.schedule,
            peak: self.learning_rate,
            floor: self.min_learning_rate.unwrap_or(floor),
            warmup: self.warmup_steps,
            warmup_start: self.warmup_start,
            decay_fraction: self.decay_fraction.unwrap_or(0.5),
        }
    }

    pub fn optimizer(&self) -> optimizer::Options {
        let default = optimizer::Options::new(self.optimizer, self.learning_rate);
        optimizer::Options {
            embedding_learning_rate: self.embedding_learning_rate.unwrap_or(default.embedding_learning_rate),
            vector_learning_rate: self.vector_learning_rate.unwrap_or(default.vector_learning_rate),
            muon_learning_rate: self.muon_learning_rate.unwrap_or(default.muon_learning_rate),
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            muon_weight_decay: self.muon_weight_decay.unwrap_or(default.muon_weight_decay),
            decay: self.decay,
            momentum: self.momentum.unwrap_or(default.momentum),
            beta1: self.beta1.unwrap_or(default.beta1),
            beta2: self.beta2.unwrap_or(default.beta2),
            eps: self.eps.unwrap_or(default.eps),
            clip: self.clip,
            ..default
        }
    }

    /// What is out of range, and what would change nothing.
    pub fn validate(&self, options: &Options) -> Vec<Issue> {
        let mut issues = self.without_effect();
        if self.steps.is_some() && self.epochs.is_some() {
            let what = "`steps` and `epochs` both say how long to train";
            issues.push(Issue::param("epochs", what).help("leave one of them away"));
        }
        let at_least_one = [
            ("steps", self.steps.unwrap_or(1)),
            ("epochs", self.epochs.unwrap_or(1)),
            ("batch_size", options.batch_size as u64),
            ("accumulate", options.accumulate as u64),
            ("eval_rows", options.eval_rows as u64),
        ];
        for (name, _) in at_least_one.iter().filter(|(_, n)| *n == 0) {
            issues.push(Issue::param(name, "expected 1 or more, found 0"));
        }
        issues.extend(checkpoints(options));
        issues.extend(self.ranges(options).into_iter().filter(|range| !range.holds()).map(Range::issue));
        issues
    }

    fn ranges(&self, options: &Options) -> Vec<Range> {
        let (o, s) = (&options.optimizer, &options.schedule);
        let rate = |name, found| Range { name, found, allowed: Allowed::Above0To1 };
        let share = |name, found| Range { name, found, allowed: Allowed::Below1 };
        vec![
            rate("learning_rate", o.learning_rate),
            rate("muon_learning_rate", o.muon_learning_rate),
            rate("embedding_learning_rate", o.embedding_learning_rate),
            rate("vector_learning_rate", o.vector_learning_rate),
            Range { name: "min_learning_rate", found: s.floor, allowed: Allowed::From0To1 },
            rate("decay_fraction", s.decay_fraction),
            Range { name: "warmup_start", found: s.warmup_start, allowed: Allowed::From0To1 },
            share("weight_decay", o.weight_decay),
            share("muon_weight_decay", o.muon_weight_decay),
            share("momentum", o.momentum),
            share("beta1", o.beta1),
            share("beta2", o.beta2),
            rate("eps", o.eps),
            Range { name: "clip", found: o.clip, allowed: Allowed::Finite },
            share("dropout", self.dropout.unwrap_or(0.0)),
            share("label_smoothing", self.label_smoothing),
            share("average", options.average.unwrap_or(0.0)),
            Range { name: "save_minutes", found: options.save_minutes, allowed: Allowed::Finite },
        ]
    }

    /// Params that are given and mean nothing beside the others.
    fn without_effect(&self) -> Vec<Issue> {
        use Algorithm::{AdamW, Muon, Sgd};
        let of_optimizer: [(&str, bool, &[Algorithm]); 6] = [
            ("muon_learning_rate", self.muon_learning_rate.is_some(), &[Muon]),
            ("muon_weight_decay", self.muon_weight_decay.is_some(), &[Muon]),
            ("momentum", self.momentum.is_some(), &[Muon, Sgd]),
            ("beta1", self.beta1.is_some(), &[AdamW, Muon]),
            ("beta2", self.beta2.is_some(), &[AdamW, Muon]),
            ("eps", self.eps.is_some(), &[AdamW, Muon]),
        ];
        let of_schedule: [(&str, bool, &[ScheduleKind]); 2] = [
            ("decay_fraction", self.decay_fraction.is_some(), &[ScheduleKind::Wsd]),
            (
                "min_learning_rate",
                self.min_learning_rate.is_some(),
                &[ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Wsd],
            ),
        ];
        let optimizers = of_optimizer
            .into_iter()
            .filter(|(_, is_given, of)| *is_given && !of.contains(&self.optimizer))
            .map(|(name, _, of)| without_effect(name, "optimizer", of));
        let schedules = of_schedule
            .into_iter()
            .filter(|(_, is_given, of)| *is_given && !of.contains(&self.schedule))
            .map(|(name, _, of)| without_effect(name, "schedule", of));
        optimizers.chain(schedules).collect()
    }
}

/// What is wrong with the steps to be kept. Those of epochs are known when the data is.
fn checkpoints(options: &Options) -> Option<Issue> {
    let steps = &options.keep_steps;
    let last = if let Length::Steps(last) = options.length { last } else { u64::MAX };
    let issue = |what: String| Issue::param("keep_checkpoints", what);
    if let Some(pair) = steps.windows(2).find(|pair| pair[0] >= pair[1]) {
        let what = format!("expected ascending steps, each once, found {} before {}", pair[0], pair[1]);
        return Some(issue(what));
    }
    if let Some(step) = steps.iter().find(|step| !(1..=last).contains(*step)) {
        let range = if last == u64::MAX { "1 or more".to_string() } else { format!("1 to {last}") };
        return Some(issue(format!("expected steps of {range}, found {step}")));
    }
    let may_stop = options.patience > 0 && !steps.is_empty();
    may_stop.then(|| {
        let what = format!("with `patience: {}` the training may stop before one of them", options.patience);
        issue(what).help("leave `patience` or `keep_checkpoints` away")
    })
}

fn without_effect(name: &str, of: &str, values: &[impl serde::Serialize]) -> Issue {
    let values: Vec<String> = values
        .iter()
        .filter_map(|value| Some(format!("`{of}: {}`", serde_json::to_value(value).ok()?.as_str()?)))
        .collect();
    let what = format!("it changes nothing here: it belongs to {}", values.join(", "));
    Issue::param(name, what).help(format!("leave it away, or set `{of}`"))
}

/// What a number may be.
#[derive(Clone, Copy)]
enum Allowed {
    Above0To1,
    From0To1,
    /// From 0 on.
    Below1,
    /// From 0 on.
    Finite,
}

struct Range {
    name: &'static str,
    found: f64,
    allowed: Allowed,
}

impl Range {
    fn holds(&self) -> bool {
        let x = self.found;
        match self.allowed {
            Allowed::Above0To1 => x > 0.0 && x <= 1.0,
            Allowed::From0To1 => (0.0..=1.0).contains(&x),
            Allowed::Below1 => (0.0..1.0).contains(&x),
            Allowed::Finite => x >= 0.0 && x.is_finite(),
        }
    }

    fn issue(self) -> Issue {
        let expected = match self.allowed {
            Allowed::Above0To1 => "a number above 0, at most 1",
            Allowed::From0To1 => "0 to 1",
            Allowed::Below1 => "0 to below 1",
            Allowed::Finite => "0 or more",
        };
        Issue::param(self.name, format!("expected {expected}, found {}", self.found))
    }
}
