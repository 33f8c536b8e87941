//! The feed-forward part: `down(activation(up(x)))`, or gated `down(activation(gate(x)) * up(x))`.

use super::Pass;
use crate::kernel::activation::{self, Mlp};
use crate::kernel::matmul::View;
use crate::kernel::{Buffer, linear};
use crate::model::Config;
use crate::model::layout::BlockLayout;
use crate::model::ordered::Turns;

/// Between rows of the hidden layer. Were it a multiple of 4 KiB, the rows of a tile would map to the same
/// few sets of the first-level cache.
pub fn stride(config: &Config) -> usize {
    let width = config.hidden_width();
    width + if width.is_multiple_of(1024) { 16 } else { 0 }
}

/// Kept for [`backward`]: the hidden layer before its activation, `[N, F]` or gated `[N, 2F]`, rows
/// [`stride`] apart.
pub struct Activations {
    hidden: Buffer,
}

impl Activations {
    pub fn new(config: &Config, rows: usize) -> Self {
        Activations { hidden: Buffer::new(rows * stride(config)) }
    }
}

fn mlp(config: &Config) -> Mlp {
    Mlp { activation: config.activation, gated: config.gated, width: config.d_ff }
}

/// `x: [N, C]` becomes the layer's output. `wide` is a scratch of rows [`stride`] apart.
pub fn forward(pass: &Pass, block: &BlockLayout, kept: &mut Activations, x: &mut [f32], wide: &mut [f32]) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, stride) = (config.d_model, stride(config));
    let (hidden, wide) = (&mut kept.hidden[..n * stride], &mut wide[..n * stride]);
    linear::forward(pass.team, pass.linear(&block.up), View::new(x, c), hidden, stride);
    activation::forward(pass.team, mlp(config), hidden, stride, wide, stride);
    linear::forward(pass.team, pass.linear(&block.down), View::new(wide, stride), x, c);
}

/// `dx: [N, C]`, dL/d(output), becomes dL/d(input). `input` writes the layer's input, `[N, C]`, once more.
pub fn backward(
    pass: &Pass,
    block: &BlockLayout,
    kept: &mut Activations,
    dx: &mut [f32],
    wide: &mut [f32],
    input: impl FnOnce(&mut [f32]),
    turns: &mut Turns,
) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, stride) = (config.d_model, stride(config));
    let (hidden, dhidden) = (&mut kept.hidden[..n * stride], &mut wide[..n * stride]);
    linear::input(pass.team, pass.linear(&block.down), View::new(dx, c), dhidden, stride);
    activation::backward(pass.team, mlp(config), hidden, dhidden, stride);
    pass.linear_backward(&block.down, View::new(hidden, stride), View::new(dx, c), turns);
    input(dx);
    pass.linear_backward(&block.up, View::new(dx, c), View::new(dhidden, stride), turns);
    linear::input(pass.team, pass.linear(&block.up), View::new(dhidden, stride), dx, c);
}
