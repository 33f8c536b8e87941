//! Sequences through the model and back: what is kept of each layer, and the layers' calls in order.
//!
//! ```text
//! x = wte[ids] + wpe[positions]
//! each block:  x = x + attention(layer_norm(x));  x = x + feed_forward(layer_norm(x))
//! loss = cross_entropy(layer_norm(x) · wteᵀ)
//! ```
//!
//! A batch goes through in pieces of [`piece_tokens`], each forward and at once back, so that what a
//! layer keeps is still near when it is needed again. All memory is made with the [`Pass`] and none in a
//! step. Kept of each block, per token: its input, queries, keys and values, what attention gave, the
//! residual stream in its middle, and the feed-forward part before GELU: 10 numbers for each of `C`
//! where `F = 4C`. What is cheap is made again: norms and GELU.

use super::Config;
use super::gpt::{Block, Gpt, Pair};
use crate::kernel::attention::{self, Back, Rows, Shape};
use crate::kernel::embedding::{self, Ids};
use crate::kernel::linear;
use crate::kernel::loss::{CHUNK, Head, IGNORE};
use crate::kernel::matmul::View;
use crate::kernel::norm;
use crate::kernel::{Buffer, Dropout, Team, dropout, gelu};

/// Tokens of a piece. Follows from the model alone: sums over tokens go piece by piece, so it is part of
/// what makes the bytes. Large enough that gradients, which are read and written once a piece, are a
/// small part of the traffic; small enough that activations stay in cache.
pub fn piece_tokens(config: &Config) -> usize {
    (4 * config.d_model).clamp(512, 4096)
}

/// Between rows of the feed-forward part. Were it a multiple of 4 KiB, the rows of a tile would fall on the
/// same few places of the first cache.
fn wide_stride(config: &Config) -> usize {
    config.d_ff + if config.d_ff.is_multiple_of(1024) { 16 } else { 0 }
}

/// Sequences of one length, end to end.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// `B*T` ids, each below the vocabulary's size.
    pub ids: &'a [u32],
    /// For each id the one that should follow; [`IGNORE`] where nothing is to be learned.
    pub targets: &'a [u32],
    /// `T`, at most the model's.
    pub length: usize,
}

/// What a block keeps for its way back.
struct Kept {
    /// `[N, C]`
    x: Buffer,
    /// `[N, 2]`
    ln_1: Buffer,
    /// `[N, 3C]`
    qkv: Buffer,
    /// `[N, C]`
    attended: Buffer,
    /// `[N*H, 2]`
    moments: Buffer,
    /// `[N, C]`
    middle: Buffer,
    ln_2: Buffer,
    /// `[N, F]`, rows [`wide_stride`] apart
    hidden: Buffer,
}

impl Kept {
    fn new(config: &Config, n: usize) -> Self {
        let c = config.d_model;
        Kept {
            x: Buffer::new(n * c),
            ln_1: Buffer::new(2 * n),
            qkv: Buffer::new(3 * n * c),
            attended: Buffer::new(n * c),
            moments: Buffer::new(2 * n * config.n_head),
            middle: Buffer::new(n * c),
            ln_2: Buffer::new(2 * n),
            hidden: Buffer::new(n * wide_stride(config)),
        }
    }
}

/// The memory of a way through the model, and who walks it.
pub struct Pass {
    team: Team,
    config: Config,
    /// Tokens that there is room for.
    room: usize,
    /// One a block; a single one, used by all, where nothing goes back.
    kept: Vec<Kept>,
    /// The residual stream, and on the way back its gradient, `[N, C]`.
    x: Buffer,
    /// What the last block gave, and its norm's moments.
    last: Buffer,
    ln_f: Buffer,
    a: Buffer,
    b: Buffer,
    /// `[N, F]`, rows as in [`Kept::hidden`], or `[N, 3C]`
    wide: Buffer,
    logits: Buffer,
}

/// Where numbers are dropped, by block.
#[derive(Clone, Copy)]
struct Sites {
    p: f64,
    key: u64,
}

impl Sites {
    const NONE: Sites = Sites { p: 0.0, key: 0 };

    /// The embedding is site 0; block i has 3i + 1 (attention weights), + 2 and + 3 (what it adds).
    fn at(self, site: usize) -> Dropout {
        super::dropout_at(self.p, self.key, site)
    }
}

impl Pass {
    /// For training, with room for a piece of sequences of the model's full length.
    pub fn training(config: &Config, team: Team) -> Self {
        let room = (piece_tokens(config) / config.seq_len).max(1) * config.seq_len;
        Self::new(config, team, room, config.n_layer)
    }

    /// For losses and logits only.
    pub fn forward_only(config: &Config, team: Team) -> Self {
        let room = (piece_tokens(config) / config.seq_len).max(1) * config.seq_len;
        Self::new(config, team, room, 1)
    }

    fn new(config: &Config, team: Team, room: usize, kept: usize) -> Self {
        let c = config.d_model;
        Pass {
            team,
            config: config.clone(),
            room,
            kept: (0..kept).map(|_| Kept::new(config, room)).collect(),
            x: Buffer::new(room * c),
            last: Buffer::new(room * c),
            ln_f: Buffer::new(2 * room),
            a: Buffer::new(room * c),
            b: Buffer::new(room * c),
            wide: Buffer::new(room * wide_stride(config).max(3 * c)),
            logits: Buffer::new(room.min(CHUNK) * config.vocab_size),
        }
    }

    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Adds to `gradient`, laid out like the weights, that of the sum of cross-entropies; gives the sum
    /// in nats. `key` decides what dropout drops.
    ///
    /// # Panics
    /// When the pass was not made for training, or the sequences don't fit the model.
    pub fn gradient(&mut self, gpt: &Gpt, all: Sequences, key: u64, gradient: &mut [f32]) -> f64 {
        assert_eq!(self.kept.len(), gpt.config.n_layer, "a pass for training");
        let sites = Sites { p: gpt.config.dropout, key };
        let mut nats = 0.0;
        for (first, piece) in self.pieces(all) {
            self.forward(gpt, piece, first, sites);
            nats += self.loss_and_back(gpt, piece, gradient);
            self.backward(gpt, piece, first, sites, gradient);
        }
        nats
    }

    /// The sum of cross-entropies in nats, without dropout.
    ///
    /// # Panics
    /// When the sequences don't fit the model.
    pub fn loss(&mut self, gpt: &Gpt, all: Sequences) -> f64 {
        let mut nats = 0.0;
        for (first, piece) in self.pieces(all) {
            self.forward(gpt, piece, first, Sites::NONE);
            let targets = self.gather(piece.targets);
            let c = self.config.d_model;
            let mut head = Head { tokens: &gpt.weights[gpt.layout.wte.clone()], c, logits: &mut self.logits };
            nats += head.loss(&self.team, &self.a[..targets.len() * c], &targets, None);
        }
        nats
    }

    /// Calls `f` with each row of logits, `[V]`, of the positions whose target counts, in order, and with
    /// the target.
    ///
    /// # Panics
    /// As [`Pass::loss`].
    pub fn each_logits(&mut self, gpt: &Gpt, all: Sequences, f: &mut dyn FnMut(&[f32], u32)) {
        let (c, v) = (gpt.config.d_model, gpt.config.vocab_size);
        for (first, piece) in self.pieces(all) {
            self.forward(gpt, piece, first, Sites::NONE);
            let targets = self.gather(piece.targets);
            let tokens = &gpt.weights[gpt.layout.wte.clone()];
            for (i, targets) in targets.chunks(CHUNK).enumerate() {
                let x = &self.a[i * CHUNK * c..][..targets.len() * c];
                let logits = &mut self.logits[..targets.len() * v];
                crate::kernel::loss::logits(&self.team, tokens, c, x, logits);
                logits.chunks_exact(v).zip(targets).for_each(|(row, target)| f(row, *target));
            }
        }
    }

    /// With each piece, the number of its first sequence.
    fn pieces<'a>(&self, all: Sequences<'a>) -> impl Iterator<Item = (usize, Sequences<'a>)> + use<'a> {
        let Sequences { ids, targets, length } = all;
        assert!(length <= self.config.seq_len && length > 0, "{length} of {} positions", self.config.seq_len);
        assert_eq!(ids.len(), targets.len(), "a target for each id");
        let sequences = (piece_tokens(&self.config) / length).max(1).min(self.room / length);
        let pieces = ids.chunks(sequences * length).zip(targets.chunks(sequences * length));
        pieces.enumerate().map(move |(i, (ids, targets))| (i * sequences, Sequences { ids, targets, length }))
    }

    fn shape(&self, n: usize, length: usize, first: usize) -> Shape {
        let (heads, c) = (self.config.n_head, self.config.d_model);
        Shape { batch: n / length, queries: length, start: 0, heads, width: c / heads, first }
    }

    /// Up to the last norm, which goes into `b`.
    fn forward(&mut self, gpt: &Gpt, piece: Sequences, first: usize, sites: Sites) {
        let (w, c, f) = (&gpt.weights[..], gpt.config.d_model, wide_stride(&gpt.config));
        let n = piece.ids.len();
        let shape = self.shape(n, piece.length, first);
        let (team, row) = (&self.team, first * piece.length);
        let x = &mut self.x[..n * c];
        let (a, wide) = (&mut self.a[..n * c], &mut self.wide[..n * f]);
        let ids = Ids { ids: piece.ids, length: piece.length, start: 0 };
        embedding::forward(team, ids, &w[gpt.layout.wte.clone()], &w[gpt.layout.wpe.clone()], c, x);
        if sites.p > 0.0 {
            dropout::in_place(team, sites.at(0), c, row, x);
        }
        for (i, block) in gpt.layout.blocks.iter().enumerate() {
            let k = i.min(self.kept.len() - 1);
            let kept = &mut self.kept[k];
            let qkv = &mut kept.qkv[..3 * n * c];
            let attended = &mut kept.attended[..n * c];
            copy(team, c, x, &mut kept.x[..n * c]);
            norm::forward(team, block.ln_1.norm(w), x, a, &mut kept.ln_1[..2 * n]);
            linear::forward(team, block.c_attn.linear(w), View::new(a, c), qkv, 3 * c);
            let rows =
                [0, 1, 2].map(|i| Rows { data: &qkv[i * c..], sequence: piece.length * 3 * c, row: 3 * c });
            let moments = &mut kept.moments[..2 * n * shape.heads];
            attention::forward(team, shape, rows, sites.at(3 * i + 1), attended, moments);
            linear::forward(team, block.attn_proj.linear(w), View::new(attended, c), a, c);
            dropout::apply(team, sites.at(3 * i + 2), c, row, a, x, true);
            copy(team, c, x, &mut kept.middle[..n * c]);
            norm::forward(team, block.ln_2.norm(w), x, a, &mut kept.ln_2[..2 * n]);
            linear::forward(team, block.c_fc.linear(w), View::new(a, c), &mut kept.hidden[..n * f], f);
            gelu::forward(team, &kept.hidden[..n * f], wide);
            linear::forward(team, block.mlp_proj.linear(w), View::new(wide, f), a, c);
            dropout::apply(team, sites.at(3 * i + 3), c, row, a, x, true);
        }
        copy(team, c, x, &mut self.last[..n * c]);
        norm::forward(team, gpt.layout.ln_f.norm(w), x, &mut self.b[..n * c], &mut self.ln_f[..2 * n]);
    }

    /// The rows of `b` that count go into `a`, end to end; gives their targets. Where all do, the two change
    /// places.
    fn gather(&mut self, targets: &[u32]) -> Vec<u32> {
        if targets.iter().all(|t| *t != IGNORE) {
            std::mem::swap(&mut self.a, &mut self.b);
            return targets.to_vec();
        }
        let c = self.config.d_model;
        let counted = targets.iter().enumerate().filter(|(_, t)| **t != IGNORE);
        let mut found = Vec::with_capacity(targets.len());
        for (i, target) in counted {
            let to = found.len() * c;
            self.a[to..to + c].copy_from_slice(&self.b[i * c..(i + 1) * c]);
            found.push(*target);
        }
        found
    }

    /// The loss of the piece, and into `b` the gradient of the last norm's output.
    fn loss_and_back(&mut self, gpt: &Gpt, piece: Sequences, gradient: &mut [f32]) -> f64 {
        let (c, n) = (self.config.d_model, piece.ids.len());
        let targets = self.gather(piece.targets);
        let counted = targets.len();
        let mut head = Head { tokens: &gpt.weights[gpt.layout.wte.clone()], c, logits: &mut self.logits };
        let (x, dtokens) = (&self.a[..counted * c], &mut gradient[gpt.layout.wte.clone()]);
        if counted == n {
            return head.loss(&self.team, x, &targets, Some((dtokens, &mut self.b[..n * c])));
        }
        // The wide scratch takes the gradient of the rows that count; from there it goes to its rows.
        let dx = &mut self.wide[..counted * c];
        let nats = head.loss(&self.team, x, &targets, Some((dtokens, dx)));
        let b = &mut self.b[..n * c];
        let mut rows = self.wide[..counted * c].chunks_exact(c);
        for (row, target) in b.chunks_exact_mut(c).zip(piece.targets) {
            if *target == IGNORE {
                row.fill(0.0);
            } else {
                row.copy_from_slice(rows.next().expect("a row for each target that counts"));
            }
        }
        nats
    }

    /// From the gradient in `b` down to the embeddings.
    fn backward(&mut self, gpt: &Gpt, piece: Sequences, first: usize, sites: Sites, gradient: &mut [f32]) {
        let (w, c, f) = (&gpt.weights[..], gpt.config.d_model, wide_stride(&gpt.config));
        let n = piece.ids.len();
        let shape = self.shape(n, piece.length, first);
        let (team, row) = (&self.team, first * piece.length);
        let (dx, last) = (&mut self.x[..n * c], &self.last[..n * c]);
        let (a, b) = (&mut self.a[..n * c], &mut self.b[..n * c]);
        dx.fill(0.0);
        norm_back(team, &gpt.layout.ln_f, w, last, &self.ln_f[..2 * n], b, dx, gradient);
        for (i, block) in gpt.layout.blocks.iter().enumerate().rev() {
            let kept = &mut self.kept[i];
            let Block { ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj } = block;
            // The feed-forward part.
            dropout::apply(team, sites.at(3 * i + 3), c, row, dx, a, false);
            let (hidden, dhidden) = (&mut kept.hidden[..n * f], &mut self.wide[..n * f]);
            linear::input(team, mlp_proj.linear(w), View::new(a, c), dhidden, f);
            gelu::backward(team, hidden, dhidden);
            linear_back(team, mlp_proj, n, View::new(hidden, f), View::new(a, c), gradient);
            let (middle, moments) = (&kept.middle[..n * c], &kept.ln_2[..2 * n]);
            norm::again(team, ln_2.norm(w), middle, moments, a);
            linear_back(team, c_fc, n, View::new(a, c), View::new(dhidden, f), gradient);
            linear::input(team, c_fc.linear(w), View::new(dhidden, f), a, c);
            norm_back(team, ln_2, w, middle, moments, a, dx, gradient);
            // Attention.
            dropout::apply(team, sites.at(3 * i + 2), c, row, dx, a, false);
            let (attended, dqkv) = (&kept.attended[..n * c], &mut self.wide[..3 * n * c]);
            linear_back(team, attn_proj, n, View::new(attended, c), View::new(a, c), gradient);
            linear::input(team, attn_proj.linear(w), View::new(a, c), b, c);
            let back = Back { out: attended, moments: &kept.moments[..2 * n * shape.heads], dout: b };
            attention::backward(team, shape, &kept.qkv[..3 * n * c], back, sites.at(3 * i + 1), dqkv);
            let (x, moments) = (&kept.x[..n * c], &kept.ln_1[..2 * n]);
            norm::again(team, ln_1.norm(w), x, moments, a);
            linear_back(team, c_attn, n, View::new(a, c), View::new(dqkv, 3 * c), gradient);
            linear::input(team, c_attn.linear(w), View::new(dqkv, 3 * c), a, c);
            norm_back(team, ln_1, w, x, moments, a, dx, gradient);
        }
        if sites.p > 0.0 {
            dropout::in_place(team, sites.at(0), c, row, dx);
        }
        let (wte, rest) = gradient.split_at_mut(gpt.layout.wte.end);
        let ids = Ids { ids: piece.ids, length: piece.length, start: 0 };
        embedding::backward(team, ids, dx, c, wte, &mut rest[..gpt.layout.wpe.len()]);
    }
}

/// By all of the team: `to` is `from`.
fn copy(team: &Team, c: usize, from: &[f32], to: &mut [f32]) {
    dropout::apply(team, Dropout::NONE, c, 0, from, to, false);
}

fn linear_back(team: &Team, pair: &Pair, rows: usize, x: View, dy: View, gradient: &mut [f32]) {
    let (dweight, dbias) = pair.of_mut(gradient);
    linear::weights(team, rows, x, dy, dweight, dbias);
}

#[allow(clippy::too_many_arguments)]
fn norm_back(
    team: &Team,
    pair: &Pair,
    w: &[f32],
    x: &[f32],
    moments: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    gradient: &mut [f32],
) {
    norm::backward(team, pair.of(w).0, x, moments, dy, dx, pair.of_mut(gradient));
}
