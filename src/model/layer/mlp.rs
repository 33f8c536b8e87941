//! The feed-forward part: `down(activation(up(x)))`, or gated `down(activation(gate(x)) * up(x))`.

use super::{Pass, adapter};
use crate::kernel::Buffer;
use crate::kernel::activation::{self, Mlp};
use crate::kernel::matmul::View;
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
    up_adapters: adapter::Hidden,
    down_adapters: adapter::Hidden,
}

impl Activations {
    pub fn new(config: &Config, rows: usize) -> Self {
        Activations {
            hidden: Buffer::new(rows * stride(config)),
            up_adapters: adapter::Hidden::new(),
            down_adapters: adapter::Hidden::new(),
        }
    }
}

fn mlp(pass: &Pass) -> Mlp {
    let config = pass.config();
    // As the rows that blocks are multiplied with are rounded: so that llama.cpp writes the same text.
    let as_ggml = pass.model.is_quantized();
    Mlp { activation: config.activation, gated: config.gated, width: config.d_ff, as_ggml }
}

/// `x: [N, C]` becomes the layer's output. `wide` is a scratch of rows [`stride`] apart.
pub fn forward(
    pass: &Pass,
    block: &BlockLayout,
    kept: &mut Activations,
    x: &mut [f32],
    wide: &mut [f32],
    adapters: &mut adapter::Scratch,
) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, stride) = (config.d_model, stride(config));
    let (hidden, wide) = (&mut kept.hidden[..n * stride], &mut wide[..n * stride]);
    pass.linear_forward(&block.up, View::new(x, c), &mut kept.up_adapters, adapters, hidden, stride);
    activation::forward(pass.team, mlp(pass), hidden, stride, wide, stride);
    pass.linear_forward(&block.down, View::new(wide, stride), &mut kept.down_adapters, adapters, x, c);
}

/// `dx: [N, C]`, dL/d(output), becomes dL/d(input), if that is needed for what is `below`. `input` writes the
/// layer's input, `[N, C]`, once more.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    pass: &Pass,
    block: &BlockLayout,
    kept: &mut Activations,
    dx: &mut [f32],
    wide: &mut [f32],
    adapters: &mut adapter::Scratch,
    input: impl FnOnce(&mut [f32]),
    below: bool,
    turns: &mut Turns,
) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, stride) = (config.d_model, stride(config));
    let (hidden, dhidden) = (&mut kept.hidden[..n * stride], &mut wide[..n * stride]);
    let (of_up, of_down) = (&kept.up_adapters, &kept.down_adapters);
    pass.begin_linear_backward(&block.down, View::new(dx, c), adapters);
    if !below && !turns.trains(&block.up) {
        activation::forward(pass.team, mlp(pass), hidden, stride, dhidden, stride);
        let (x, dy) = (View::new(dhidden, stride), View::new(dx, c));
        return pass.linear_backward(&block.down, x, dy, of_down, adapters, turns);
    }
    pass.linear_input(&block.down, View::new(dx, c), dhidden, stride, adapters);
    activation::backward(pass.team, mlp(pass), hidden, dhidden, stride);
    let x = View::new(hidden, stride);
    pass.linear_backward(&block.down, x, View::new(dx, c), of_down, adapters, turns);
    input(dx);
    let dy = View::new(dhidden, stride);
    pass.begin_linear_backward(&block.up, dy, adapters);
    pass.linear_backward(&block.up, View::new(dx, c), dy, of_up, adapters, turns);
    if below {
        pass.linear_input(&block.up, dy, dx, c, adapters);
    }
}
