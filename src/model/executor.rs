//! Sequences through the model and back: what is kept of each layer, and the layers' calls in order.
//!
//! ```text
//! x = wte[ids] + wpe[positions]
//! each block:  x = x + attention(layer_norm(x));  x = x + feed_forward(layer_norm(x))
//! loss = cross_entropy(layer_norm(x) · wteᵀ)
//! ```
//!
//! A batch goes through in pieces of some [`PIECE`] tokens, each forward and at once back, so that what a
//! layer keeps is still near when it is needed again. Threads take whole pieces, each with memory of its
//! own, and hardly ever meet: were they to share every product, all would wait whenever one is taken off
//! its core. Only what pieces add to the gradient they add in their order, see [`Sum`], so the bytes are
//! the same for any number of threads. Where pieces are fewer than threads, several share one; a thread that
//! has to wait, or has no piece left, helps with somebody else's.
//!
//! All memory is made once. Kept of each block, per token: its input, queries, keys and values, what
//! attention gave, the residual stream in its middle, and the feed-forward part before GELU: 10 numbers for
//! each of `C` where `F = 4C`. What is cheap is made again: norms and GELU.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Config;
use super::layout::{BlockLayout, LinearLayout, NormLayout, Parameter};
use super::transformer::Transformer;
use crate::kernel::attention::{self, Back, Rows, Shape};
use crate::kernel::embedding::{self, Ids};
use crate::kernel::linear;
use crate::kernel::loss::{self, CHUNK, Head, IGNORE, Logits, Prediction};
use crate::kernel::matmul::View;
use crate::kernel::norm;
use crate::kernel::{Buffer, Dropout, Team, dropout, gelu};

/// Tokens of a piece, or more where one sequence is longer. Small, so that there are pieces for all threads;
/// large enough that gradients, which are read and written once a piece, are a small part of the traffic.
/// It is part of what makes the bytes: losses are summed piece by piece.
const PIECE: usize = 256;

/// Pieces that go through before what they say of embeddings is added up. Part of the bytes, too.
const ROUND: usize = 16;

/// Sequences of a piece.
fn piece_of(length: usize) -> usize {
    (PIECE / length).max(1)
}

/// How many sequences keep as many threads busy as there can be.
pub fn round_of(length: usize) -> usize {
    ROUND * piece_of(length)
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

/// Ways through the model, and who walks them.
pub struct Executor {
    team: Team,
    /// The team's threads, divided among the walks.
    crews: Vec<Team>,
    walks: Vec<Mutex<Walk>>,
    config: Config,
    /// Blocks that are kept: all of them, or one where nothing goes back.
    keeps: usize,
    /// The gradients at the embeddings of a round, `[N, C]`.
    slopes: Buffer,
    /// Whole rows of logits, where they are needed as such.
    rows: Buffer,
}

/// The memory of one way.
struct Walk {
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
    logits: Logits,
}

/// A gradient to which pieces add in their order: all add to the same places one after the other, and the
/// n-th addition of a piece waits for the n-th of the piece before. To the tokens' gradient a piece adds
/// each of its chunks of rows, which together are one addition.
struct Sum<'a> {
    /// A tensor each, by where it begins; of the tokens a block each.
    places: Vec<(usize, Mutex<&'a mut [f32]>)>,
    /// Additions of each piece.
    done: Vec<AtomicUsize>,
    failed: AtomicBool,
}

impl<'a> Sum<'a> {
    fn new(gpt: &Transformer, gradient: &'a mut [f32], pieces: usize) -> Self {
        let (mut places, mut rest) = (Vec::new(), gradient);
        for Parameter { range, .. } in &gpt.layout.parameters {
            let (own, behind) = rest.split_at_mut(range.len());
            rest = behind;
            let len = if *range == gpt.layout.tokens { loss::BLOCK * gpt.config.d_model } else { own.len() };
            let starts = range.clone().step_by(len);
            places.extend(starts.zip(own.chunks_mut(len).map(Mutex::new)));
        }
        Sum {
            places,
            done: (0..pieces).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicBool::new(false),
        }
    }

    fn turn<'b>(&'b self, way: &'b Way<'b>) -> Turn<'b, 'a> {
        Turn { sum: self, way, next: 0 }
    }
}

/// A piece's turns.
struct Turn<'b, 'a> {
    sum: &'b Sum<'a>,
    way: &'b Way<'b>,
    next: usize,
}

impl<'b, 'a> Turn<'b, 'a> {
    /// Returns when the next addition, or the one so many behind it, is this piece's.
    ///
    /// # Panics
    /// When another piece did, which would never be done.
    fn wait(&self, behind: usize) {
        let Some(before) = self.way.piece.checked_sub(1) else { return };
        let failed = || self.sum.failed.load(Ordering::Relaxed);
        let come = || self.sum.done[before].load(Ordering::Acquire) > self.next + behind;
        // Mostly it has come, or will at once.
        let mut spins = 0;
        while !come() {
            assert!(!failed(), "another piece of the batch panicked");
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                self.way.all.help(before, || come() || failed());
            }
        }
    }

    fn place(&self, start: usize) -> MutexGuard<'b, &'a mut [f32]> {
        let i = self.sum.places.binary_search_by_key(&start, |p| p.0).expect("where a tensor begins");
        // Its turn has come, so nobody holds it.
        self.sum.places[i].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&mut self) {
        self.next += 1;
        self.sum.done[self.way.piece].store(self.next, Ordering::Release);
    }

    /// Adds to a weight and its bias.
    fn add(
        &mut self,
        weight: &Option<std::ops::Range<usize>>,
        bias: &Option<std::ops::Range<usize>>,
        add: impl FnOnce(&mut [f32], &mut [f32]),
    ) {
        self.wait(0);
        add(&mut self.place(weight.as_ref().unwrap().start), &mut self.place(bias.as_ref().unwrap().start));
        self.done();
    }
}

impl Drop for Turn<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.sum.failed.store(true, Ordering::Relaxed);
        }
    }
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

impl Executor {
    /// For training.
    pub fn training(config: &Config, team: Team) -> Self {
        Self::new(config, team, config.n_layer)
    }

    /// For losses and logits only.
    pub fn forward_only(config: &Config, team: Team) -> Self {
        Self::new(config, team, 1)
    }

    fn new(config: &Config, team: Team, keeps: usize) -> Self {
        let (crews, walks, config) = (Vec::new(), Vec::new(), config.clone());
        Executor { team, crews, walks, config, keeps, slopes: Buffer::new(0), rows: Buffer::new(0) }
    }

    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Adds to `gradient`, laid out like the weights, that of the sum of cross-entropies; gives the sum
    /// in nats. `key` decides what dropout drops.
    ///
    /// # Panics
    /// When the pass was not made for training, or the sequences don't fit the model.
    pub fn gradient(&mut self, gpt: &Transformer, all: Sequences, key: u64, gradient: &mut [f32]) -> f64 {
        assert_eq!(self.keeps, gpt.config.n_layer, "a pass for training");
        self.check(all);
        let sites = Sites { p: gpt.config.dropout, key };
        let (c, length) = (gpt.config.d_model, all.length);
        let mut nats = 0.0;
        for (first, round) in cut(all, round_of(length)) {
            let n = round.ids.len();
            if self.slopes.len() < n * c {
                self.slopes = Buffer::new(n * c);
            }
            let mut slopes = std::mem::replace(&mut self.slopes, Buffer::new(0));
            let own = slopes[..n * c].chunks_mut(piece_of(length) * length * c).map(Mutex::new);
            let pieces: Vec<_> = cut(round, piece_of(length)).zip(own).collect();
            let sum = Sum::new(gpt, gradient, pieces.len());
            nats += self.side_by_side(pieces.len(), |walk, way| {
                let ((skip, piece), slopes) = &pieces[way.piece];
                let (team, mut turn) = (way.team, sum.turn(way));
                walk.forward(team, gpt, *piece, first + skip, sites);
                let nats = walk.loss_and_back(team, gpt, *piece, &mut turn);
                walk.backward(team, gpt, *piece, first + skip, sites, &mut turn);
                let mut slopes = slopes.lock().unwrap_or_else(PoisonError::into_inner);
                slopes.copy_from_slice(&walk.x[..piece.ids.len() * c]);
                nats
            });
            drop(pieces);
            let (wte, rest) = gradient.split_at_mut(gpt.layout.tokens.end);
            let ids = Ids { ids: round.ids, length, start: 0 };
            let wpe = &mut rest[..gpt.layout.positions.clone().unwrap().len()];
            embedding::backward(&self.team, ids, &slopes[..n * c], 1.0, c, wte, Some(wpe));
            self.slopes = slopes;
        }
        nats
    }

    /// The sum of cross-entropies in nats, without dropout.
    ///
    /// # Panics
    /// When the sequences don't fit the model.
    pub fn loss(&mut self, gpt: &Transformer, all: Sequences) -> f64 {
        self.check(all);
        let c = gpt.config.d_model;
        let pieces: Vec<_> = cut(all, piece_of(all.length)).collect();
        self.side_by_side(pieces.len(), |walk, way| {
            let ((first, piece), team) = (pieces[way.piece], way.team);
            walk.forward(team, gpt, piece, first, Sites::NONE);
            let targets = walk.gather(c, piece.targets);
            let mut head = head_of(gpt, &mut walk.logits);
            let rows = walk.a.chunks(CHUNK * c).zip(targets.chunks(CHUNK));
            rows.map(|(x, targets)| head.loss(team, &x[..targets.len() * c], targets, false)).sum()
        })
    }

    /// How well each target that counts is predicted, in order.
    ///
    /// # Panics
    /// As [`Executor::loss`].
    pub fn predictions(&mut self, gpt: &Transformer, all: Sequences) -> Vec<Prediction> {
        let mut found = Vec::new();
        self.each_logits(gpt, all, |team, logits, targets| {
            found.extend(loss::predictions(team, logits, gpt.config.vocab_size, targets));
        });
        found
    }

    /// Calls `f` with the logits, some rows `[V]` at a time, of the positions whose target counts, in order,
    /// and with their targets.
    pub(super) fn each_logits(
        &mut self,
        gpt: &Transformer,
        all: Sequences,
        mut f: impl FnMut(&Team, &mut [f32], &[u32]),
    ) {
        self.check(all);
        self.make_walks(1);
        let (c, v) = (gpt.config.d_model, gpt.config.vocab_size);
        if self.rows.len() < CHUNK * v {
            self.rows = Buffer::new(CHUNK * v);
        }
        let Executor { team, walks, rows, .. } = self;
        let walk = walks[0].get_mut().unwrap_or_else(PoisonError::into_inner);
        for (first, piece) in cut(all, piece_of(all.length)) {
            walk.forward(team, gpt, piece, first, Sites::NONE);
            let targets = walk.gather(c, piece.targets);
            let output = output_of(gpt);
            for (x, targets) in walk.a.chunks(CHUNK * c).zip(targets.chunks(CHUNK)) {
                let logits = &mut rows[..targets.len() * v];
                loss::logits(team, output, &x[..targets.len() * c], logits);
                f(team, logits, targets);
            }
        }
    }

    fn check(&self, all: Sequences) {
        let Sequences { ids, targets, length } = all;
        assert!(length <= self.config.seq_len && length > 0, "{length} of {} positions", self.config.seq_len);
        assert_eq!(ids.len(), targets.len(), "a target for each id");
    }

    fn make_walks(&mut self, count: usize) {
        while self.walks.len() < count {
            self.walks.push(Mutex::new(Walk::new(&self.config, self.keeps)));
        }
    }

    /// The sum of what `walk` gives for each piece, in their order. Pieces begin in their order.
    fn side_by_side(&mut self, pieces: usize, walk: impl Fn(&mut Walk, &Way) -> f64 + Sync) -> f64 {
        let threads = self.team.threads();
        let count = threads.min(pieces);
        self.make_walks(count);
        if count == 1 {
            let own = self.walks[0].get_mut().unwrap_or_else(PoisonError::into_inner);
            let alone = Crews { teams: &[], walkers: &[] };
            let way = |piece| Way { piece, team: &self.team, all: alone };
            return (0..pieces).map(|piece| walk(own, &way(piece))).sum();
        }
        if self.crews.len() != count {
            let (isa, dtype) = (self.team.isa, self.team.dtype);
            let share = |i: usize| threads / count + usize::from(i < threads % count);
            self.crews = (0..count).map(|i| Team::with(share(i), isa).in_dtype(dtype)).collect();
        }
        let walkers: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(NOBODY)).collect();
        let (next, nats) = (AtomicUsize::new(0), Mutex::new(vec![0.0; pieces]));
        let (walks, all) = (&self.walks, Crews { teams: &self.crews, walkers: &walkers });
        self.team.each(count, |i| {
            let mut own = walks[i].lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                walkers[piece].store(i, Ordering::Release);
                let found = walk(&mut own, &Way { piece, team: &all.teams[i], all });
                nats.lock().unwrap_or_else(PoisonError::into_inner)[piece] = found;
            }
            (0..pieces).for_each(|piece| all.help(piece, || false));
        });
        nats.into_inner().unwrap_or_else(PoisonError::into_inner).iter().sum()
    }
}

/// How often a piece looks for its turn before it helps with the piece before: some 10 µs.
const SPINS: usize = 1000;

/// What nobody walks, not yet or not any more.
const NOBODY: usize = usize::MAX;

/// Who walks what.
#[derive(Clone, Copy)]
struct Crews<'a> {
    teams: &'a [Team],
    /// Which of them walks each piece, or [`NOBODY`].
    walkers: &'a [AtomicUsize],
}

impl Crews<'_> {
    /// Helps those who walk a piece until they are done with it, or `enough` says so.
    fn help(&self, piece: usize, enough: impl Fn() -> bool) {
        let walker = || self.walkers[piece].load(Ordering::Acquire);
        if let Some(team) = self.teams.get(walker()) {
            team.visit(|| enough() || walker() == NOBODY);
        }
    }
}

/// A piece on its way.
struct Way<'a> {
    piece: usize,
    /// Those who walk it.
    team: &'a Team,
    all: Crews<'a>,
}

/// Also when it ends in a panic.
impl Drop for Way<'_> {
    fn drop(&mut self) {
        if let Some(walker) = self.all.walkers.get(self.piece) {
            walker.store(NOBODY, Ordering::Release);
        }
    }
}

/// Some sequences at a time; with each, the number of its first.
fn cut<'a>(all: Sequences<'a>, sequences: usize) -> impl Iterator<Item = (usize, Sequences<'a>)> + use<'a> {
    let Sequences { ids, targets, length } = all;
    let some = ids.chunks(sequences * length).zip(targets.chunks(sequences * length));
    some.enumerate().map(move |(i, (ids, targets))| (i * sequences, Sequences { ids, targets, length }))
}

impl Walk {
    fn new(config: &Config, keeps: usize) -> Self {
        let c = config.d_model;
        // No piece is longer, whatever the length of its sequences.
        let room = config.seq_len.max(PIECE);
        Walk {
            kept: (0..keeps).map(|_| Kept::new(config, room)).collect(),
            x: Buffer::new(room * c),
            last: Buffer::new(room * c),
            ln_f: Buffer::new(2 * room),
            a: Buffer::new(room * c),
            b: Buffer::new(room * c),
            wide: Buffer::new(room * wide_stride(config).max(3 * c)),
            logits: Logits::new(room, config.vocab_size, keeps == config.n_layer),
        }
    }

    /// Up to the last norm, which goes into `b`.
    fn forward(&mut self, team: &Team, gpt: &Transformer, piece: Sequences, first: usize, sites: Sites) {
        let (w, c, f) = (&gpt.weights[..], gpt.config.d_model, wide_stride(&gpt.config));
        let n = piece.ids.len();
        let shape = shape(&gpt.config, n, piece.length, first);
        let row = first * piece.length;
        let x = &mut self.x[..n * c];
        let (a, wide) = (&mut self.a[..n * c], &mut self.wide[..n * f]);
        let ids = Ids { ids: piece.ids, length: piece.length, start: 0 };
        embedding::forward(
            team,
            ids,
            &w[gpt.layout.tokens.clone()],
            1.0,
            Some(&w[gpt.layout.positions.clone().unwrap()]),
            c,
            x,
        );
        if sites.p > 0.0 {
            dropout::in_place(team, sites.at(0), c, row, x);
        }
        for (i, block) in gpt.layout.blocks.iter().enumerate() {
            let k = i.min(self.kept.len() - 1);
            let kept = &mut self.kept[k];
            let qkv = &mut kept.qkv[..3 * n * c];
            let attended = &mut kept.attended[..n * c];
            copy(team, c, x, &mut kept.x[..n * c]);
            norm::forward(team, block.attn_norm.norm(w), x, a, &mut kept.ln_1[..2 * n]);
            linear::forward(team, block.qkv.linear(w), View::new(a, c), qkv, 3 * c);
            let rows =
                [0, 1, 2].map(|i| Rows { data: &qkv[i * c..], sequence: piece.length * 3 * c, row: 3 * c });
            let moments = &mut kept.moments[..2 * n * shape.heads];
            let [q, k, v] = rows;
            attention::forward(team, shape, q, k, v, sites.at(3 * i + 1), attended, moments);
            linear::forward(team, block.attn_proj.linear(w), View::new(attended, c), a, c);
            dropout::apply(team, sites.at(3 * i + 2), c, row, a, x, true);
            copy(team, c, x, &mut kept.middle[..n * c]);
            norm::forward(team, block.mlp_norm.norm(w), x, a, &mut kept.ln_2[..2 * n]);
            linear::forward(team, block.up.linear(w), View::new(a, c), &mut kept.hidden[..n * f], f);
            gelu::forward(team, &kept.hidden[..n * f], wide);
            linear::forward(team, block.down.linear(w), View::new(wide, f), a, c);
            dropout::apply(team, sites.at(3 * i + 3), c, row, a, x, true);
        }
        copy(team, c, x, &mut self.last[..n * c]);
        norm::forward(team, gpt.layout.norm.norm(w), x, &mut self.b[..n * c], &mut self.ln_f[..2 * n]);
    }

    /// The rows of `b` that count go into `a`, end to end; gives their targets. Where all do, the two change
    /// places.
    fn gather(&mut self, c: usize, targets: &[u32]) -> Vec<u32> {
        if targets.iter().all(|t| *t != IGNORE) {
            std::mem::swap(&mut self.a, &mut self.b);
            return targets.to_vec();
        }
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
    fn loss_and_back(&mut self, team: &Team, gpt: &Transformer, piece: Sequences, turn: &mut Turn) -> f64 {
        let (c, v, n) = (gpt.config.d_model, gpt.config.vocab_size, piece.ids.len());
        let targets = self.gather(c, piece.targets);
        let counted = targets.len();
        let mut head = head_of(gpt, &mut self.logits);
        // Where not all rows count, the wide scratch takes the gradient of those that do.
        let dx = if counted == n { &mut self.b[..n * c] } else { &mut self.wide[..counted * c] };
        let x = &self.a[..counted * c];
        let mut nats = 0.0;
        let mut left = counted;
        let chunks = x.chunks(CHUNK * c).zip(dx.chunks_mut(CHUNK * c)).zip(targets.chunks(CHUNK));
        for ((x, dx), targets) in chunks {
            left -= targets.len();
            nats += head.loss(team, x, targets, true);
            for (block, ids) in loss::blocks(v).enumerate() {
                head.gradient(team, targets, ids.clone());
                head.input(team, ids.clone(), dx);
                // The turns come with the last rows.
                turn.wait(if left == 0 { 0 } else { block });
                head.weights(team, ids.clone(), x, &mut turn.place(gpt.layout.tokens.start + ids.start * c));
                if left == 0 {
                    turn.done();
                }
            }
        }
        if counted == 0 {
            loss::blocks(v).for_each(|_| {
                turn.wait(0);
                turn.done();
            });
        }
        if counted < n {
            let b = &mut self.b[..n * c];
            let mut rows = self.wide[..counted * c].chunks_exact(c);
            for (row, target) in b.chunks_exact_mut(c).zip(piece.targets) {
                if *target == IGNORE {
                    row.fill(0.0);
                } else {
                    row.copy_from_slice(rows.next().expect("a row for each target that counts"));
                }
            }
        }
        nats
    }

    /// From the gradient in `b` down to that of the embeddings, in `x`.
    fn backward(
        &mut self,
        team: &Team,
        gpt: &Transformer,
        piece: Sequences,
        first: usize,
        sites: Sites,
        turn: &mut Turn,
    ) {
        let (w, c, f) = (&gpt.weights[..], gpt.config.d_model, wide_stride(&gpt.config));
        let n = piece.ids.len();
        let shape = shape(&gpt.config, n, piece.length, first);
        let row = first * piece.length;
        let (dx, last) = (&mut self.x[..n * c], &self.last[..n * c]);
        let (a, b) = (&mut self.a[..n * c], &mut self.b[..n * c]);
        dx.fill(0.0);
        norm_back(team, &gpt.layout.norm, w, last, &self.ln_f[..2 * n], b, dx, turn);
        for (i, block) in gpt.layout.blocks.iter().enumerate().rev() {
            let kept = &mut self.kept[i];
            let BlockLayout {
                attn_norm: ln_1,
                qkv: c_attn,
                attn_proj,
                mlp_norm: ln_2,
                up: c_fc,
                down: mlp_proj,
                ..
            } = block;
            // The feed-forward part.
            dropout::apply(team, sites.at(3 * i + 3), c, row, dx, a, false);
            let (hidden, dhidden) = (&mut kept.hidden[..n * f], &mut self.wide[..n * f]);
            linear::input(team, mlp_proj.linear(w), View::new(a, c), dhidden, f);
            gelu::backward(team, hidden, dhidden);
            linear_back(team, mlp_proj, n, View::new(hidden, f), View::new(a, c), turn);
            let (middle, moments) = (&kept.middle[..n * c], &kept.ln_2[..2 * n]);
            norm::again(team, ln_2.norm(w), middle, moments, a);
            linear_back(team, c_fc, n, View::new(a, c), View::new(dhidden, f), turn);
            linear::input(team, c_fc.linear(w), View::new(dhidden, f), a, c);
            norm_back(team, ln_2, w, middle, moments, a, dx, turn);
            // Attention.
            dropout::apply(team, sites.at(3 * i + 2), c, row, dx, a, false);
            let (attended, dqkv) = (&kept.attended[..n * c], &mut self.wide[..3 * n * c]);
            linear_back(team, attn_proj, n, View::new(attended, c), View::new(a, c), turn);
            linear::input(team, attn_proj.linear(w), View::new(a, c), b, c);
            let back = Back { out: attended, stats: &kept.moments[..2 * n * shape.heads], dout: b };
            let qkv = &kept.qkv[..3 * n * c];
            let [q, k, v] =
                [0, 1, 2].map(|i| Rows { data: &qkv[i * c..], sequence: piece.length * 3 * c, row: 3 * c });
            attention::backward(team, shape, q, k, v, back, sites.at(3 * i + 1), dqkv);
            let (x, moments) = (&kept.x[..n * c], &kept.ln_1[..2 * n]);
            norm::again(team, ln_1.norm(w), x, moments, a);
            linear_back(team, c_attn, n, View::new(a, c), View::new(dqkv, 3 * c), turn);
            linear::input(team, c_attn.linear(w), View::new(dqkv, 3 * c), a, c);
            norm_back(team, ln_1, w, x, moments, a, dx, turn);
        }
        if sites.p > 0.0 {
            dropout::in_place(team, sites.at(0), c, row, dx);
        }
    }
}

fn shape(config: &Config, n: usize, length: usize, first: usize) -> Shape {
    let (heads, c) = (config.n_head, config.d_model);
    Shape { batch: n / length, queries: length, start: 0, heads, kv_heads: heads, width: c / heads, first }
}

pub(super) fn output_of(gpt: &Transformer) -> loss::Output<'_> {
    let weight = &gpt.weights[gpt.layout.tokens.clone()];
    loss::Output { weight, bias: None, c: gpt.config.d_model, cap: None }
}

fn head_of<'a>(gpt: &'a Transformer, logits: &'a mut Logits) -> Head<'a> {
    let loss::Output { weight, bias, c, cap } = output_of(gpt);
    Head { weight, bias, c, cap, smoothing: 0.0, logits }
}

/// By all of the team: `to` is `from`.
fn copy(team: &Team, c: usize, from: &[f32], to: &mut [f32]) {
    dropout::apply(team, Dropout::NONE, c, 0, from, to, false);
}

fn linear_back(team: &Team, pair: &LinearLayout, rows: usize, x: View, dy: View, turn: &mut Turn) {
    turn.add(&Some(pair.weight.clone()), &pair.bias, |dweight, dbias| {
        linear::weights(team, rows, x, dy, dweight, dbias)
    });
}

#[allow(clippy::too_many_arguments)]
fn norm_back(
    team: &Team,
    pair: &NormLayout,
    w: &[f32],
    x: &[f32],
    moments: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    turn: &mut Turn,
) {
    turn.add(&pair.weight, &pair.bias, |dweight, dbias| {
        norm::backward(team, pair.norm(w).weight, x, moments, dy, dx, (dweight, dbias))
    });
}
