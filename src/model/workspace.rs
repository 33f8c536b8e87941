//! The memory of one micro-batch on its way through the model, made once and used again.

use super::Config;
use super::block::Activations;
use super::layer::{adapter, attention, embed, mlp};
use crate::kernel::Buffer;
use crate::kernel::loss::Logits;

/// Activations and scratch for up to so many rows.
pub struct Workspace {
    rows: usize,
    /// Of each block, or of one that all share where no backward pass follows.
    pub kept: Vec<Activations>,
    pub embed: embed::Activations,
    pub scratch: Scratch,
    pub logits: Logits,
}

/// What holds nothing longer than a layer, but the residual stream.
pub struct Scratch {
    /// The residual stream, and in the backward pass its gradient, `[N, C]`.
    pub x: Buffer,
    /// With a residual mix: what entered the first block, `[N, C]`, and
    pub x0: Buffer,
    /// its gradient.
    pub dx0: Buffer,
    /// What the last block gave, `[N, C]`, and
    pub last: Buffer,
    /// the stats of its norm, `[N, 2]`.
    pub stats: Buffer,
    /// `[N, C]`
    pub a: Buffer,
    /// `[N, max(C, H·D)]`
    pub b: Buffer,
    /// Encoded queries and keys, `[N, (H + K)·D]`.
    pub qk: Buffer,
    /// The hidden layer behind its activation, or gradients of queries, keys and values, or `[N, C]`.
    pub wide: Buffer,
    pub adapters: adapter::Scratch,
}

impl Workspace {
    /// Nothing yet.
    pub fn empty(config: &Config) -> Self {
        Self::new(config, 0, 0, false)
    }

    /// For `rows` rows, keeping the activations of `kept` blocks; `backward` says whether a backward pass
    /// follows.
    fn new(config: &Config, rows: usize, kept: usize, backward: bool) -> Self {
        let c = config.d_model;
        let of = |has: bool, width: usize| Buffer::new(if has { rows * width } else { 0 });
        let wide = mlp::stride(config).max(config.qkv_width()).max(c);
        Workspace {
            rows,
            kept: (0..kept).map(|_| Activations::new(config, rows)).collect(),
            embed: embed::Activations::new(config, rows),
            scratch: Scratch {
                x: of(true, c),
                x0: of(config.residual_mix, c),
                dx0: of(config.residual_mix && backward, c),
                last: of(true, c),
                stats: of(true, 2),
                a: of(true, c),
                b: of(true, c.max(config.q_width())),
                qk: of(attention::is_encoded(config), config.q_width() + config.kv_width()),
                wide: of(true, wide),
                adapters: adapter::Scratch::new(),
            },
            logits: Logits::new(rows, config.vocab_size, backward),
        }
    }

    /// Makes it anew where there is no room for `rows` rows; `backward` must be the same at every call.
    pub fn prepare(&mut self, config: &Config, rows: usize, backward: bool) {
        if self.rows < rows {
            // The old memory first, so that both are never there at once.
            *self = Self::empty(config);
            *self = Self::new(config, rows, if backward { config.n_layer } else { 1 }, backward);
        }
    }
}
