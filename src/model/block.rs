//! A block: two sublayers, each with a norm and a residual connection. The only place that says how they are
//! put together, for training, prompts and single tokens alike.
//!
//! ```text
//! x = a x + b x0                                     (residual_mix)
//! x = x + dropout(attention(norm(x)))                (pre)    x = norm(x + dropout(attention(x)))   (post)
//! x = x + dropout(mlp(norm(x)))                               x = norm(x + dropout(mlp(x)))
//! ```

use super::Config;
use super::config::Placement;
use super::layer::attention::{self, Span};
use super::layer::{Pass, mlp, norm};
use super::layout::{BlockLayout, NormLayout};
use super::ordered::Turns;
use super::workspace::Scratch;
use crate::kernel::{Buffer, residual};

/// What a block keeps for its backward pass. What is cheap to compute again is not kept: norms, encoded queries
/// and keys, activations of the feed-forward part.
pub struct Activations {
    /// The residual stream before the mix, `[N, C]`.
    mixed: Buffer,
    attn: attention::Activations,
    attn_residual: Residual,
    mlp: mlp::Activations,
    mlp_residual: Residual,
}

/// Around a sublayer.
struct Residual {
    /// What enters: the residual stream, `[N, C]`.
    input: Buffer,
    /// Post-norm: the sum that is normalized, `[N, C]`.
    sum: Buffer,
    /// Of the norm, `[N, 2]`.
    stats: Buffer,
}

impl Residual {
    fn new(config: &Config, rows: usize) -> Self {
        let c = config.d_model;
        let sums = if config.placement == Placement::Post { rows * c } else { 0 };
        Residual { input: Buffer::new(rows * c), sum: Buffer::new(sums), stats: Buffer::new(2 * rows) }
    }
}

impl Activations {
    pub fn new(config: &Config, rows: usize) -> Self {
        let mixed = if config.residual_mix { rows * config.d_model } else { 0 };
        Activations {
            mixed: Buffer::new(mixed),
            attn: attention::Activations::new(config, rows),
            attn_residual: Residual::new(config, rows),
            mlp: mlp::Activations::new(config, rows),
            mlp_residual: Residual::new(config, rows),
        }
    }
}

/// Block `i` of the model on the residual stream in `scratch.x`.
pub fn forward(pass: &Pass, i: usize, kept: &mut Activations, scratch: &mut Scratch, spans: &mut [Span]) {
    let block = &pass.model.layout.blocks[i];
    let n = pass.rows * pass.config().d_model;
    let Scratch { x, x0, a, qk, wide, adapters, .. } = scratch;
    let (x, a) = (&mut x[..n], &mut a[..n]);
    if let Some(mix) = pass.model.mix(block) {
        if pass.keep {
            pass.copy(x, &mut kept.mixed[..n]);
        }
        residual::mix(pass.team, mix, x, &x0[..n]);
    }
    let Activations { attn, attn_residual, mlp, mlp_residual, .. } = kept;
    sublayer(pass, &block.attn_norm, 3 * i + 2, attn_residual, x, a, |a| {
        attention::forward(pass, block, 3 * i + 1, attn, a, qk, adapters, spans)
    });
    sublayer(pass, &block.mlp_norm, 3 * i + 3, mlp_residual, x, a, |a| {
        mlp::forward(pass, block, mlp, a, wide, adapters)
    });
}

/// The attention weights of block `i` in a pass that is kept, `[B·H, T, T]`, of sequences of this `length`.
pub fn attention_weights(
    pass: &Pass,
    i: usize,
    kept: &Activations,
    length: usize,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let block = &pass.model.layout.blocks[i];
    attention::weights(pass, block, &kept.attn, length, &mut scratch.qk, out);
}

/// Block `i` backwards: the gradient of the residual stream behind it, in `scratch.x`, becomes that before it, if
/// it is needed for what is `below`. With a mix that is trained, the gradient of x0 is accumulated in
/// `scratch.dx0`.
pub fn backward(
    pass: &Pass,
    i: usize,
    length: usize,
    kept: &mut Activations,
    scratch: &mut Scratch,
    below: bool,
    turns: &mut Turns,
) {
    let block = &pass.model.layout.blocks[i];
    let n = pass.rows * pass.config().d_model;
    let Scratch { x: dx, x0, dx0, a, b, qk, wide, adapters, .. } = scratch;
    let (dx, a) = (&mut dx[..n], &mut a[..n]);
    let Activations { attn, attn_residual, mlp, mlp_residual, mixed } = kept;
    let below_mlp = below || turns.trains(&block.qkv) || turns.trains(&block.attn_proj);
    sublayer_backward(
        pass,
        &block.mlp_norm,
        3 * i + 3,
        mlp_residual,
        dx,
        a,
        b,
        below_mlp,
        turns,
        |da, _, input, turns| mlp::backward(pass, block, mlp, da, wide, adapters, input, below_mlp, turns),
    );
    if !below_mlp {
        return;
    }
    sublayer_backward(
        pass,
        &block.attn_norm,
        3 * i + 2,
        attn_residual,
        dx,
        a,
        b,
        below,
        turns,
        |da, b, input, turns| {
            let scratch = attention::Scratch { qk, dout: b, dqkv: wide, adapters };
            attention::backward(pass, block, 3 * i + 1, attn, length, da, scratch, input, below, turns)
        },
    );
    if !below {
        return;
    }
    mix_backward(pass, block, &mixed[..n.min(mixed.len())], x0, dx, dx0, turns);
}

fn sublayer(
    pass: &Pass,
    layout: &NormLayout,
    site: usize,
    kept: &mut Residual,
    x: &mut [f32],
    a: &mut [f32],
    layer: impl FnOnce(&mut [f32]),
) {
    let (n, stats) = (x.len(), &mut kept.stats[..2 * pass.rows]);
    if pass.keep {
        pass.copy(x, &mut kept.input[..n]);
    }
    match pass.config().placement {
        Placement::Pre => {
            norm::forward(pass, layout, x, a, stats);
            layer(a);
            pass.add_dropped(site, a, x);
        }
        Placement::Post => {
            pass.copy(x, a);
            layer(a);
            pass.add_dropped(site, a, x);
            let sum = &mut kept.sum[..n];
            pass.copy(x, sum);
            norm::forward(pass, layout, sum, x, stats);
        }
    }
}

/// `backward` turns dL/d(the layer's output) into dL/d(its input), in place, if that is needed for what is
/// `below`; it is given a scratch and what writes the layer's input once more.
#[allow(clippy::too_many_arguments)]
fn sublayer_backward(
    pass: &Pass,
    layout: &NormLayout,
    site: usize,
    kept: &Residual,
    dx: &mut [f32],
    a: &mut [f32],
    b: &mut [f32],
    below: bool,
    turns: &mut Turns,
    backward: impl FnOnce(&mut [f32], &mut [f32], &dyn Fn(&mut [f32]), &mut Turns),
) {
    let (n, stats) = (dx.len(), &kept.stats[..2 * pass.rows]);
    let input = &kept.input[..n];
    match pass.config().placement {
        Placement::Pre => {
            pass.dropped(site, dx, a);
            backward(a, b, &|a| norm::recompute(pass, layout, input, stats, a), turns);
            if below {
                norm::backward(pass, layout, input, stats, a, dx, turns);
            }
        }
        Placement::Post => {
            a.fill(0.0);
            norm::backward(pass, layout, &kept.sum[..n], stats, dx, a, turns);
            pass.copy(a, dx);
            pass.dropped(site, dx, a);
            backward(a, b, &|a| pass.copy(input, a), turns);
            if below {
                pass.add(a, dx);
            }
        }
    }
}

fn mix_backward(
    pass: &Pass,
    block: &BlockLayout,
    mixed: &[f32],
    x0: &[f32],
    dx: &mut [f32],
    dx0: &mut [f32],
    turns: &mut Turns,
) {
    let (Some(mix), Some(range)) = (pass.model.mix(block), &block.mix) else { return };
    let n = dx.len();
    if !turns.is_trained(range) {
        // The embedding is frozen, too, and needs no gradient.
        return residual::mix(pass.team, [mix[0], 0.0], dx, &x0[..n]);
    }
    let gradient = residual::mix_backward(pass.team, mix, mixed, &x0[..n], dx, &mut dx0[..n]);
    turns.add([Some(range)], |[to]| {
        let to = to.expect("a block with a mix has its weights");
        to.iter_mut().zip(gradient).for_each(|(to, from)| *to += from);
    });
}
