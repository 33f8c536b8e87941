//! Causal self-attention: queries, keys and values of one product, queries and keys normalized and rotated
//! where the architecture says so, heads mixed by an output projection.

use std::ops::Range;

use super::{Pass, adapter};
use crate::kernel::Buffer;
use crate::kernel::attention::cached::{self, KeysValues, Text};
use crate::kernel::attention::{self, Back, Rows, Shape};
use crate::kernel::matmul::View;
use crate::kernel::rotary::{self, Heads, QkGradients, QkNorm};
use crate::model::Config;
use crate::model::config::Position;
use crate::model::layout::BlockLayout;
use crate::model::ordered::Turns;

/// Rows that see the same keys: all sequences of a micro-batch, each of which sees itself, or what is new of a
/// text whose earlier keys and values are cached.
pub struct Span<'a> {
    pub rows: Range<usize>,
    /// Rows of each sequence.
    pub length: usize,
    /// Position of each sequence's first row.
    pub start: usize,
    pub cache: Option<&'a mut KeysValues>,
}

/// Kept for [`backward`].
pub struct Activations {
    /// Queries, keys and values as the product gave them, `[N, (H + 2K)·D]`.
    qkv: Buffer,
    /// What the heads gave, `[N, H·D]`.
    attended: Buffer,
    /// Row max and inverse sum of the attention weights, `[N·H, 2]`.
    stats: Buffer,
    qkv_adapters: adapter::Hidden,
    proj_adapters: adapter::Hidden,
}

impl Activations {
    pub fn new(config: &Config, rows: usize) -> Self {
        Activations {
            qkv: Buffer::new(rows * config.qkv_width()),
            attended: Buffer::new(rows * config.q_width()),
            stats: Buffer::new(2 * rows * config.n_head),
            qkv_adapters: adapter::Hidden::new(),
            proj_adapters: adapter::Hidden::new(),
        }
    }
}

/// Whether attention reads other queries and keys than the product gives.
pub fn is_encoded(config: &Config) -> bool {
    config.qk_norm || config.position == Position::Rotary
}

fn heads<'a>(pass: &Pass<'a>, block: &BlockLayout) -> Heads<'a> {
    let (config, model) = (pass.config(), pass.model);
    let of = |range: &Option<Range<usize>>| range.clone().map(|range| &model.weights[range]);
    let (q, k) = (of(&block.q_norm.weight), of(&block.k_norm.weight));
    Heads {
        q: config.n_head,
        k: config.n_kv_head,
        width: config.d_head,
        norm: config.qk_norm.then_some(QkNorm { eps: config.norm_eps as f32, q, k }),
        rope: model.rope.as_ref(),
    }
}

fn shape(pass: &Pass, span: &Span) -> Shape {
    let config = pass.config();
    Shape {
        batch: span.rows.len() / span.length,
        queries: span.length,
        start: span.start,
        heads: config.n_head,
        kv_heads: config.n_kv_head,
        width: config.d_head,
        first: pass.first_sequence,
    }
}

/// `x: [N, C]` becomes the layer's output. `qk: [N, (H + K)·D]` is a scratch for encoded queries and keys.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    pass: &Pass,
    block: &BlockLayout,
    site: usize,
    kept: &mut Activations,
    x: &mut [f32],
    qk: &mut [f32],
    adapters: &mut adapter::Scratch,
    spans: &mut [Span],
) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, q_width, qkv_width) = (config.d_model, config.q_width(), config.qkv_width());
    let qkv = &mut kept.qkv[..n * qkv_width];
    pass.linear_forward(&block.qkv, View::new(x, c), &mut kept.qkv_adapters, adapters, qkv, qkv_width);
    encode(pass, block, |i| position(spans, i), qkv, qk);
    let mut texts = Vec::new();
    for span in spans {
        let shape = shape(pass, span);
        let [q, k, v] = queries_keys_values(config, &span.rows, span.length, qkv, qk);
        if let Some(cache) = &mut span.cache {
            texts.push(Text { shape, q, kv: [k, v], cache });
            continue;
        }
        let of_heads = 2 * config.n_head;
        let out = &mut kept.attended[span.rows.start * q_width..span.rows.end * q_width];
        let stats = &mut kept.stats[span.rows.start * of_heads..span.rows.end * of_heads];
        attention::forward(pass.team, shape, q, k, v, pass.dropout.at(site), out, stats);
    }
    // Either all texts have a cache or none.
    cached::forward(pass.team, &mut texts, &mut kept.attended[..n * q_width]);
    let attended = View::new(&kept.attended[..n * q_width], q_width);
    pass.linear_forward(&block.attn_proj, attended, &mut kept.proj_adapters, adapters, x, c);
}

/// Of row `i` of the pass.
fn position(spans: &[Span], i: usize) -> usize {
    let span = &spans[spans.partition_point(|span| span.rows.end <= i)];
    span.start + (i - span.rows.start) % span.length
}

/// Writes queries and keys, encoded, to `qk: [N, (H + K)·D]`, if the architecture encodes them.
fn encode(
    pass: &Pass,
    block: &BlockLayout,
    position: impl Fn(usize) -> usize + Sync,
    qkv: &[f32],
    qk: &mut [f32],
) {
    let config = pass.config();
    if is_encoded(config) {
        let (width, all) = (config.q_width() + config.kv_width(), config.qkv_width());
        let qk = &mut qk[..qkv.len() / all * width];
        rotary::forward(pass.team, heads(pass, block), position, qkv, all, qk, width);
    }
}

/// Where queries, keys and values of some rows lie, which are sequences of this `length`: in `qkv`, or encoded in
/// `qk`.
fn queries_keys_values<'a>(
    config: &Config,
    rows: &Range<usize>,
    length: usize,
    qkv: &'a [f32],
    qk: &'a [f32],
) -> [Rows<'a>; 3] {
    let (q, kv, all) = (config.q_width(), config.kv_width(), config.qkv_width());
    let of = |data: &'a [f32], column: usize, row: usize| Rows {
        data: &data[rows.start * row + column..rows.end * row],
        sequence: length * row,
        row,
    };
    let v = of(qkv, q + kv, all);
    if is_encoded(config) {
        [of(qk, 0, q + kv), of(qk, q, q + kv), v]
    } else {
        [of(qkv, 0, all), of(qkv, q, all), v]
    }
}

/// The weights of a pass that is kept, `[B·H, T, T]`: a row for each query, 0 for keys that are ahead of it. `length`
/// is that of its sequences; `qk` is a scratch as of [`forward`].
pub fn weights(
    pass: &Pass,
    block: &BlockLayout,
    kept: &Activations,
    length: usize,
    qk: &mut [f32],
    out: &mut [f32],
) {
    let qkv = &kept.qkv[..pass.rows * pass.config().qkv_width()];
    encode(pass, block, |i| i % length, qkv, qk);
    let [q, k, _] = queries_keys_values(pass.config(), &(0..pass.rows), length, qkv, qk);
    let span = Span { rows: 0..pass.rows, length, start: 0, cache: None };
    attention::probabilities(pass.team, shape(pass, &span), q, k, out);
}

/// Scratch of [`backward`].
pub struct Scratch<'a> {
    pub qk: &'a mut [f32],
    /// `[N, H·D]`
    pub dout: &'a mut [f32],
    /// `[N, (H + 2K)·D]`
    pub dqkv: &'a mut [f32],
    pub adapters: &'a mut adapter::Scratch,
}

/// `dx: [N, C]`, dL/d(output), becomes dL/d(input), if that is needed for what is `below`. `input` writes the
/// layer's input, `[N, C]`, once more.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    pass: &Pass,
    block: &BlockLayout,
    site: usize,
    kept: &Activations,
    length: usize,
    dx: &mut [f32],
    scratch: Scratch,
    input: impl FnOnce(&mut [f32]),
    below: bool,
    turns: &mut Turns,
) {
    let (config, n) = (pass.config(), pass.rows);
    let (c, q_width, width) = (config.d_model, config.q_width(), config.qkv_width());
    let Scratch { qk, dout, dqkv, adapters } = scratch;
    let (dout, dqkv) = (&mut dout[..n * q_width], &mut dqkv[..n * width]);
    let (qkv, attended) = (&kept.qkv[..n * width], &kept.attended[..n * q_width]);
    let (proj, of_proj, dy) = (&block.attn_proj, &kept.proj_adapters, View::new(dx, c));
    pass.begin_linear_backward(proj, dy, adapters);
    pass.linear_backward(proj, View::new(attended, q_width), dy, of_proj, adapters, turns);
    if !below && !turns.trains(&block.qkv) {
        return;
    }
    pass.linear_input(proj, dy, dout, q_width, adapters);
    encode(pass, block, |i| i % length, qkv, qk);
    let [q, k, v] = queries_keys_values(config, &(0..n), length, qkv, qk);
    let span = Span { rows: 0..n, length, start: 0, cache: None };
    let back = Back { out: attended, stats: &kept.stats[..2 * n * config.n_head], dout };
    attention::backward(pass.team, shape(pass, &span), q, k, v, back, pass.dropout.at(site), dqkv);
    if is_encoded(config) {
        let heads = heads(pass, block);
        let mut encode = |q: Option<&mut [f32]>, k: Option<&mut [f32]>| {
            rotary::backward(pass.team, heads, length, qkv, width, dqkv, width, QkGradients { q, k });
        };
        let [q, k] =
            [&block.q_norm, &block.k_norm].map(|n| n.weight.as_ref().filter(|range| turns.is_trained(range)));
        if q.is_none() && k.is_none() { encode(None, None) } else { turns.add([q, k], |[q, k]| encode(q, k)) }
    }
    input(dx);
    let (of_qkv, dy) = (&kept.qkv_adapters, View::new(dqkv, width));
    pass.begin_linear_backward(&block.qkv, dy, adapters);
    pass.linear_backward(&block.qkv, View::new(dx, c), dy, of_qkv, adapters, turns);
    if below {
        pass.linear_input(&block.qkv, dy, dx, c, adapters);
    }
}
