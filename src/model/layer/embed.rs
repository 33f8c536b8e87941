//! What enters the first block: token embeddings, scaled, with positions, normalized, as the architecture
//! says.

use super::attention::Span;
use super::{Pass, norm};
use crate::kernel::embedding::{self, Ids};
use crate::kernel::{Buffer, dropout};
use crate::model::Config;
use crate::model::ordered::Turns;

/// Kept for [`backward`] where the embedding is normalized: the norm's input and stats.
pub struct Activations {
    input: Buffer,
    stats: Buffer,
}

impl Activations {
    pub fn new(config: &Config, rows: usize) -> Self {
        let rows = if config.embed_norm { rows } else { 0 };
        Activations { input: Buffer::new(rows * config.d_model), stats: Buffer::new(2 * rows) }
    }
}

/// `x: [N, C]` of `N` ids.
pub fn forward(pass: &Pass, ids: &[u32], spans: &[Span], kept: &mut Activations, x: &mut [f32]) {
    let (model, c) = (pass.model, pass.config().d_model);
    let tokens = model.weight(&model.layout.tokens);
    for span in spans {
        let ids = Ids { ids: &ids[span.rows.clone()], length: span.length, start: span.start };
        let x = &mut x[span.rows.start * c..span.rows.end * c];
        embedding::forward(pass.team, ids, tokens, model.embed_scale(), model.positions(), c, x);
    }
    if pass.config().embed_norm {
        let n = pass.rows;
        pass.copy(x, &mut kept.input[..n * c]);
        norm::forward(pass, &model.layout.embed_norm, &kept.input[..n * c], x, &mut kept.stats[..2 * n]);
    }
    if pass.dropout.p > 0.0 {
        dropout::in_place(pass.team, pass.dropout.at(0), c, pass.first_row, x);
    }
}

/// `dx: [N, C]`, the gradient of what enters the first block, becomes that of tokens plus positions.
pub fn backward(pass: &Pass, kept: &Activations, dx: &mut [f32], scratch: &mut [f32], turns: &mut Turns) {
    let (layout, c, n) = (&pass.model.layout, pass.config().d_model, pass.rows);
    if pass.dropout.p > 0.0 {
        dropout::in_place(pass.team, pass.dropout.at(0), c, pass.first_row, dx);
    }
    if pass.config().embed_norm {
        let scratch = &mut scratch[..n * c];
        scratch.fill(0.0);
        let (input, stats) = (&kept.input[..n * c], &kept.stats[..2 * n]);
        norm::backward(pass, &layout.embed_norm, input, stats, dx, scratch, turns);
        pass.copy(scratch, dx);
    }
}
