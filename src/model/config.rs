//! The architecture of a model: its sizes, and which parts it is made of.

use serde::{Deserialize, Serialize};

use crate::base::{Error, Invalid, Result};
pub use crate::kernel::activation::Activation;

/// How a token learns where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// A learned vector for each position, added to the embedding (GPT-2).
    Learned,
    /// Sines and cosines of falling frequency, added to the embedding (Vaswani et al., 2017).
    Sinusoidal,
    /// Queries and keys are rotated by their position, halves of a head paired (RoPE; Su et al., 2021).
    Rotary,
    /// Nothing: causal attention alone tells (Haviv et al., 2022).
    None,
}

/// YaRN: rotary frequencies scaled for sequences longer than those of pretraining (Peng et al., 2023).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// How many times longer sequences become.
    pub factor: f64,
    /// The longest sequence of pretraining, in tokens.
    pub original_seq_len: usize,
    /// Frequencies that turn more often than this over `original_seq_len` stay as they are.
    #[serde(default = "Yarn::beta_fast")]
    pub beta_fast: f64,
    /// Frequencies that turn less often than this are divided by `factor`.
    #[serde(default = "Yarn::beta_slow")]
    pub beta_slow: f64,
    /// Multiplies rotated queries and keys. Default: `0.1 ln(factor) + 1`.
    #[serde(default)]
    pub attention_factor: Option<f64>,
}

impl Yarn {
    fn beta_fast() -> f64 {
        32.0
    }

    fn beta_slow() -> f64 {
        1.0
    }

    /// What rotated queries and keys are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        self.attention_factor.unwrap_or(0.1 * libm::log(self.factor) + 1.0)
    }
}

/// What rows are normalized by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Mean and standard deviation (Ba, Kiros and Hinton, 2016).
    LayerNorm,
    /// The root of the mean square (Zhang and Sennrich, 2019).
    RmsNorm,
}

/// Where a sublayer's norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// `x + f(norm(x))`
    Pre,
    /// `norm(x + f(x))`
    Post,
}

/// How a model's weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Normal with a standard deviation of 0.02, and of `0.02 / sqrt(2 n_layer)` for the projections that
    /// add to the residual stream (GPT-2).
    Gpt2,
    /// Normal with a standard deviation of 0.02, whatever the depth.
    Normal,
    /// Linear layers uniform within `± sqrt(6 / (in + out))` (Glorot and Bengio, 2010), embeddings normal.
    Xavier,
    /// Linear layers uniform within `± sqrt(3 / in)`, embeddings normal; the projections that add to the
    /// residual stream are 0, so that each block begins as the identity.
    ZeroOutput,
}

/// The architecture of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Rows of the token embedding; ids are below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks of attention and feed-forward part.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Heads of keys and values; divides `n_head`: as many is multi-head, fewer grouped-query, one
    /// multi-query attention.
    pub n_kv_head: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the hidden layer of the feed-forward part.
    pub d_ff: usize,
    /// The longest sequence, in tokens.
    pub seq_len: usize,
    /// The share of activations dropped while training: of the embedding, of attention weights, and of
    /// what each sublayer adds.
    pub dropout: f64,
    pub position: Position,
    /// Base of the rotary frequencies: the i-th of `D/2` is `rope_base^(-2i/D)`.
    pub rope_base: f64,
    pub rope_scaling: Option<Yarn>,
    pub norm: Norm,
    /// Whether norms have a learned weight, and
    pub norm_weight: bool,
    /// a learned bias.
    pub norm_bias: bool,
    /// Added to the variance or mean square.
    pub norm_eps: f64,
    pub placement: Placement,
    /// Whether each head's queries and keys are normalized (RMSNorm, before rotation; its weight as
    /// `norm_weight` says).
    pub qk_norm: bool,
    /// Whether the embedding is normalized before the first block.
    pub embed_norm: bool,
    /// Whether token embeddings are multiplied by `sqrt(d_model)`.
    pub embed_scale: bool,
    /// Whether each block begins with `x = a x + b x0`, x0 being the embedding, a and b learned.
    pub residual_mix: bool,
    pub activation: Activation,
    /// Whether the hidden layer is `activation(x W) * (x V)` (GLU; Shazeer, 2020).
    pub gated: bool,
    /// Whether linear layers of attention have a bias.
    pub attn_bias: bool,
    /// Whether linear layers of the feed-forward part have a bias.
    pub mlp_bias: bool,
    /// Whether the output projection has a bias.
    pub head_bias: bool,
    /// Whether the output projection is the token embedding.
    pub tied: bool,
    /// Logits become `cap tanh(logit / cap)` (Gemma 2, 2024).
    pub logit_cap: Option<f64>,
    pub init: Init,
}

impl Config {
    /// How many parameters there are. A tied output projection is counted once.
    pub fn parameters(&self) -> usize {
        super::Layout::new(self).len
    }

    /// Width of all queries.
    pub fn q_width(&self) -> usize {
        self.n_head * self.d_head
    }

    /// Width of all keys, and of all values.
    pub fn kv_width(&self) -> usize {
        self.n_kv_head * self.d_head
    }

    /// Width of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Width of what the first linear layer of the feed-forward part gives.
    pub fn hidden_width(&self) -> usize {
        if self.gated { 2 * self.d_ff } else { self.d_ff }
    }

    /// The field that is out of range, and why.
    ///
    /// # Errors
    /// When one is.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_sizes()?;
        let check = |name, ok: bool, why: String| if ok { Ok(()) } else { Err(Invalid::new(name, why)) };
        check(
            "dropout",
            (0.0..1.0).contains(&self.dropout),
            format!("must be at least 0 and below 1, found {}", self.dropout),
        )?;
        check(
            "norm_eps",
            self.norm_eps > 0.0 && self.norm_eps < 1.0,
            format!("must be above 0 and below 1, found {}", self.norm_eps),
        )?;
        check("norm_bias", self.norm_weight || !self.norm_bias, "needs `norm_weight: true`".into())?;
        if let Some(cap) = self.logit_cap {
            check("logit_cap", cap >= 1.0 && cap.is_finite(), format!("must be at least 1, found {cap}"))?;
        }
        self.validate_positions()
    }

    fn validate_sizes(&self) -> Result<(), Invalid> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_kv_head", self.n_kv_head),
            ("d_head", self.d_head),
            ("d_ff", self.d_ff),
            ("seq_len", self.seq_len),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(Invalid::new(*name, "must be at least 1"));
        }
        // Before anything is multiplied.
        if let Some((name, n)) = positive.iter().find(|(_, n)| *n > 1 << 24) {
            return Err(Invalid::new(*name, format!("is {n}, beyond what this trains")));
        }
        // Each layer has parameters of its own to be named.
        if self.n_layer > 1 << 12 {
            return Err(Invalid::new("n_layer", format!("is {}, beyond what this trains", self.n_layer)));
        }
        if !self.n_head.is_multiple_of(self.n_kv_head) {
            let why = format!("is {}, which does not divide the {} heads", self.n_kv_head, self.n_head);
            return Err(Invalid::new("n_kv_head", why));
        }
        let sizes = [self.vocab_size, self.d_model, self.n_layer, self.q_width(), self.d_ff, self.seq_len];
        let bound = sizes.iter().fold(1.0, |m: f64, n| m.max(*n as f64)).powi(2) * 8.0 * self.n_layer as f64;
        if bound > 2e9 && self.parameters() > 2_000_000_000 {
            let why = format!("gives {} parameters, beyond what this trains", self.parameters());
            return Err(Invalid::new("d_model", why));
        }
        Ok(())
    }

    fn validate_positions(&self) -> Result<(), Invalid> {
        if self.position != Position::Rotary {
            return match self.rope_scaling {
                Some(_) => Err(Invalid::new("rope_scaling", "needs `position: rotary`")),
                None => Ok(()),
            };
        }
        if !self.d_head.is_multiple_of(2) {
            return Err(Invalid::new(
                "d_head",
                format!("must be even for rotary positions, found {}", self.d_head),
            ));
        }
        if !(self.rope_base > 1.0 && self.rope_base.is_finite()) {
            return Err(Invalid::new("rope_base", format!("must be above 1, found {}", self.rope_base)));
        }
        let Some(yarn) = self.rope_scaling else { return Ok(()) };
        let positive = [yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.attention_factor()];
        if positive.iter().any(|x| !(*x > 0.0 && x.is_finite())) || yarn.factor < 1.0 {
            return Err(Invalid::new(
                "rope_scaling",
                "needs a `factor` of at least 1, and the others above 0",
            ));
        }
        if yarn.original_seq_len == 0 || yarn.beta_fast <= yarn.beta_slow {
            let why = "needs an `original_seq_len` of at least 1, and `beta_fast` above `beta_slow`";
            return Err(Invalid::new("rope_scaling", why));
        }
        Ok(())
    }

    /// # Errors
    /// An id that there is no embedding for.
    pub fn validate_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                Err(Error::input(format!("token {id} is beyond the model's {} tokens", self.vocab_size)))
            }
            None => Ok(()),
        }
    }
}
