//! Shared by kinds that train or take low-rank adapters (LoRA).

use crate::base::{Result, units};
use crate::model::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Lora, Target, Transformer};
use crate::stage::{Artifact, Issue};

/// The type of artifacts that hold an adapter.
pub const ADAPTER: &str = "adapter";

/// Low-rank adapters (LoRA; Hu et al., 2021) that are trained instead of the weights.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adapters {
    /// Columns of A and rows of B in `y = x·W + b + alpha/rank · dropout(x)·A·B`.
    pub rank: usize,
    /// What an adapter computes is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// The share of an adapter's inputs that is dropped.
    pub dropout: f64,
    /// The matrices of each block that get an adapter. Default: all that the architecture has.
    pub targets: Option<Vec<Target>>,
    /// Whether the output `model` is there, the weights with the adapters merged into them.
    pub merge: bool,
}

impl Default for Adapters {
    fn default() -> Self {
        Adapters { rank: 8, alpha: 16.0, dropout: 0.05, targets: None, merge: true }
    }
}

impl Adapters {
    /// Those of a model that has `all` the given targets.
    fn lora(&self, all: Vec<Target>) -> Lora {
        let mut targets = self.targets.clone().unwrap_or(all);
        targets.sort_unstable();
        Lora { rank: self.rank, alpha: self.alpha, dropout: self.dropout, targets }
    }

    /// What is out of range, whatever the model is.
    pub fn validate(&self) -> Option<Issue> {
        let invalid = self.lora(Target::ALL.to_vec()).validate().err()?;
        Some(Issue::param(&format!("lora.{}", invalid.param), invalid.why))
    }

    /// The model with new adapters; says how many of its parameters are trained.
    ///
    /// # Errors
    /// When the model lacks a target.
    pub fn begin(&self, transformer: Transformer, seed: u64) -> Result<Transformer> {
        let lora = self.lora(Target::of(&transformer.config));
        let model = transformer.with_adapters(&lora, seed)?;
        let (all, trained) = (model.weights.len(), model.trained().len());
        tracing::info!(
            "{} parameters, {} of them trained: {:.2} %",
            units::count(all as u64),
            units::count(trained as u64),
            100.0 * trained as f64 / all as f64
        );
        Ok(model)
    }
}

/// The model with the adapter of an artifact merged into its weights: so computing costs nothing more, and
/// nothing more is to be known of it.
///
/// # Errors
/// When the artifact is no adapter, or one of another model.
pub fn merged(transformer: Transformer, adapter: &Artifact) -> Result<Transformer> {
    let file = |name: &str| adapter.file(name);
    let (config, weights) = (file(ADAPTER_CONFIG_FILE)?, file(ADAPTER_WEIGHTS_FILE)?);
    let adapted = transformer.with_adapter_files(config, weights);
    Ok(adapted.map_err(|e| e.context(format!("the adapter `{}`", adapter.label)))?.merged())
}
