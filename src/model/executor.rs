//! Batches through the model, forward and backward: micro-batches on all threads, gradients in a fixed order.
//!
//! A batch is computed in micro-batches of some [`MICRO_BATCH`] tokens, each forward and at once backward, so
//! that the activations are still in the caches when they are needed again. Threads take whole micro-batches,
//! each with a workspace of its own, and hardly ever wait for each other: were they to share every product,
//! all would wait whenever one is taken off its core. Only what micro-batches add to the gradient they add in
//! their order, see [`super::ordered`], so the bytes are the same for any number of threads. Where micro-batches
//! are fewer than threads, several threads share one.

use std::ops::Range;
use std::sync::Mutex;

use super::layer::attention::Span;
use super::layer::head::{self, gather, scatter};
use super::layer::{DropoutSites, Pass, Watch, embed, norm};
use super::ordered::{self, OrderedGradient, Turns, lock};
use super::workspace::{Scratch, Workspace};
use super::{Config, Prediction, Transformer, block};
use crate::kernel::embedding::{self, Ids};
use crate::kernel::loss::{self, CHUNK, IGNORE, Soft, Targets};
use crate::kernel::matmul::View;
use crate::kernel::{Buffer, Dtype, Team};

/// Tokens of a micro-batch, or more where one sequence is longer. Small, so that there are micro-batches for all
/// threads; large enough that gradients, which are read and written once a micro-batch, are a small part of
/// the traffic. It is part of what makes the bytes: losses are summed by micro-batch.
const MICRO_BATCH: usize = 256;

/// The same in `bf16_tile`: where products take a third of the time, that traffic and packed weights weigh more
/// (measured with AMX: `small` 2.4 instead of 2.0 times as fast as f32).
const MICRO_BATCH_OF_TILES: usize = 512;

/// Micro-batches that are computed before their gradients of embeddings are added up. Part of the bytes, too.
const ROUND: usize = 16;

/// Sequences of a micro-batch.
pub(super) fn sequences_of(team: &Team, length: usize) -> usize {
    let tokens = if team.dtype == Dtype::Bf16Tile { MICRO_BATCH_OF_TILES } else { MICRO_BATCH };
    (tokens / length).max(1)
}

/// How many sequences keep as many threads busy as there can be.
pub fn round_of(length: usize) -> usize {
    ROUND * (MICRO_BATCH / length).max(1)
}

/// Sequences of one length, end to end, and what is to be learned from them.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// `B*T` ids, each below the vocabulary's size.
    pub ids: &'a [u32],
    /// For each id the one that should follow; [`IGNORE`] where it is not part of the loss.
    pub targets: &'a [u32],
    /// `T`, at most the model's.
    pub length: usize,
    /// For each id the factor of its loss, and so of that loss's gradient: of any sign.
    pub weights: Option<&'a [f32]>,
    /// For each id what a teacher gives, which is part of the loss where the target is.
    pub soft: Option<Soft<'a>>,
}

impl<'a> Sequences<'a> {
    /// Where the loss is the cross-entropy with the targets.
    pub fn new(ids: &'a [u32], targets: &'a [u32], length: usize) -> Self {
        Sequences { ids, targets, length, weights: None, soft: None }
    }

    /// Some of the rows, which are whole sequences.
    fn part(self, rows: Range<usize>) -> Self {
        Sequences {
            ids: &self.ids[rows.clone()],
            targets: &self.targets[rows.clone()],
            length: self.length,
            weights: self.weights.map(|weights| &weights[rows.clone()]),
            soft: self.soft.map(|soft| soft.part(rows)),
        }
    }
}

/// Computes losses and gradients of one model architecture, in memory that it keeps.
pub struct Executor {
    pub(super) team: Team,
    /// The team's threads, divided among the workspaces.
    pub(super) teams: Vec<Team>,
    pub(super) workspaces: Vec<Mutex<Workspace>>,
    config: Config,
    /// Whether backward passes follow.
    backward: bool,
    /// The gradients at the embeddings of a round, `[N, C]`.
    embeddings: Buffer,
    /// Rows of logits over the whole vocabulary, where they are needed as such.
    pub(super) logits: Buffer,
}

impl Executor {
    /// For training.
    pub fn training(config: &Config, team: Team) -> Self {
        Self::new(config, team, true)
    }

    /// For losses and logits only.
    pub fn forward_only(config: &Config, team: Team) -> Self {
        Self::new(config, team, false)
    }

    fn new(config: &Config, team: Team, backward: bool) -> Self {
        let (embeddings, logits) = (Buffer::new(0), Buffer::new(0));
        let (teams, workspaces) = (Vec::new(), Vec::new());
        Executor { team, teams, workspaces, config: config.clone(), backward, embeddings, logits }
    }

    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Adds to `gradient`, laid out like [`Transformer::trained`], that of the summed loss, which it gives in nats. `key`
    /// decides what dropout drops. The loss is the cross-entropy with the targets, of which the share
    /// `smoothing` is spread over all ids (Szegedy et al., 2016).
    ///
    /// # Panics
    /// When the executor was not made for training, the sequences don't fit the model, or the model is quantized.
    pub fn gradient(
        &mut self,
        model: &Transformer,
        all: Sequences,
        key: u64,
        smoothing: f32,
        gradient: &mut [f32],
    ) -> f64 {
        assert!(self.backward, "an executor for training");
        assert!(!model.is_quantized(), "a model to be trained must be `dequantized`");
        self.check(all);
        let dropout = DropoutSites::of(model, key);
        let (c, length) = (model.config.d_model, all.length);
        let some = sequences_of(&self.team, length);
        let trains_embeddings = model.layout.is_trained(&model.layout.tokens);
        let mut nats = 0.0;
        for (first, round) in split(all, ROUND * some) {
            let len = if trains_embeddings { round.ids.len() * c } else { 0 };
            if self.embeddings.len() < len {
                self.embeddings = Buffer::new(len);
            }
            let mut embeddings = std::mem::replace(&mut self.embeddings, Buffer::new(0));
            let mut own = embeddings[..len].chunks_mut(some * length * c).map(Mutex::new);
            let parts: Vec<_> = split(round, some).map(|part| (part, own.next())).collect();
            let ordered = OrderedGradient::new(&model.layout, c, gradient, parts.len());
            let count = self.prepare(parts.len(), length);
            nats += ordered::side_by_side(
                &self.team,
                &self.teams,
                &mut self.workspaces[..count],
                parts.len(),
                |workspace, micro_batch| {
                    let ((skip, part), embeddings) = &parts[micro_batch.index];
                    let pass = pass_of(micro_batch.team, model, *part, first + skip, dropout, true);
                    let mut turns = ordered.turns(micro_batch);
                    forward(&pass, workspace, *part);
                    let nats = loss_and_backward(&pass, workspace, *part, smoothing, &mut turns);
                    backward(&pass, workspace, length, &mut turns);
                    if let Some(embeddings) = embeddings {
                        lock(embeddings).copy_from_slice(&workspace.scratch.x[..part.ids.len() * c]);
                    }
                    nats
                },
            );
            drop(parts);
            if trains_embeddings {
                self.add_embeddings(model, round, &embeddings[..len], gradient);
            }
            self.embeddings = embeddings;
        }
        nats
    }

    /// Adds to `gradient` that of token and position embeddings, from the gradients of the rows that were
    /// looked up, in their order.
    fn add_embeddings(&self, model: &Transformer, round: Sequences, dx: &[f32], gradient: &mut [f32]) {
        let layout = &model.layout;
        let (tokens, rest) = gradient.split_at_mut(layout.tokens.end);
        // Tokens come first in the layout, positions next.
        let positions = layout.positions.as_ref().map(|positions| &mut rest[..positions.len()]);
        let ids = Ids { ids: round.ids, length: round.length, start: 0 };
        embedding::backward(&self.team, ids, dx, model.embed_scale(), self.config.d_model, tokens, positions);
    }

    /// The sum of losses in nats, without dropout.
    ///
    /// # Panics
    /// When the sequences don't fit the model.
    pub fn loss(&mut self, model: &Transformer, all: Sequences) -> f64 {
        self.check(all);
        let c = model.config.d_model;
        let parts: Vec<_> = split(all, sequences_of(&self.team, all.length)).collect();
        let count = self.prepare(parts.len(), all.length);
        let workspaces = &mut self.workspaces[..count];
        ordered::side_by_side(&self.team, &self.teams, workspaces, parts.len(), |workspace, micro_batch| {
            let (first, part) = parts[micro_batch.index];
            let pass = pass_of(micro_batch.team, model, part, first, DropoutSites::NONE, false);
            forward(&pass, workspace, part);
            let Workspace { scratch, logits, .. } = workspace;
            let counted = Counted::of(scratch, c, part.targets);
            head::loss(&pass, 0.0, logits, counted.rows(scratch, c), counted.targets(part))
        })
    }

    /// For each sequence the sum of `-ln p(target)` over its targets that count. With a `key`, what
    /// [`Executor::gradient`] drops under that key is dropped here, too.
    ///
    /// # Panics
    /// As [`Executor::loss`].
    pub fn sequence_nats(&mut self, model: &Transformer, all: Sequences, key: Option<u64>) -> Vec<f64> {
        self.check(all);
        let dropout = key.map_or(DropoutSites::NONE, |key| DropoutSites::of(model, key));
        let (c, length) = (model.config.d_model, all.length);
        let some = sequences_of(&self.team, length);
        let mut sums = vec![0.0; all.ids.len().div_ceil(length)];
        let parts: Vec<_> = split(all, some).zip(sums.chunks_mut(some).map(Mutex::new)).collect();
        let count = self.prepare(parts.len(), length);
        let workspaces = &mut self.workspaces[..count];
        ordered::side_by_side(&self.team, &self.teams, workspaces, parts.len(), |workspace, micro_batch| {
            let ((first, part), sums) = &parts[micro_batch.index];
            let pass = pass_of(micro_batch.team, model, *part, *first, dropout, false);
            forward(&pass, workspace, *part);
            let Workspace { scratch, logits, .. } = workspace;
            let counted = Counted::of(scratch, c, part.targets);
            let (x, sequence) = (counted.rows(scratch, c), |i: usize| counted.rows[i] / length);
            head::add_nats(&pass, logits, x, &counted.ids, sequence, &mut lock(sums));
            0.0
        });
        drop(parts);
        sums
    }

    /// How well each target that counts is predicted, in order.
    ///
    /// # Panics
    /// As [`Executor::loss`].
    pub fn predictions(&mut self, model: &Transformer, all: Sequences) -> Vec<Prediction> {
        let mut found = Vec::new();
        self.each_logits(model, all, |team, logits, targets| {
            found.extend(loss::predictions(team, logits, model.config.vocab_size, targets));
        });
        found
    }

    /// Calls `f` with the logits, some rows `[V]` at a time, of the positions whose target counts, in order,
    /// and with their targets.
    pub(super) fn each_logits(
        &mut self,
        model: &Transformer,
        all: Sequences,
        mut f: impl FnMut(&Team, &mut [f32], &[u32]),
    ) {
        self.check(all);
        let (c, v) = (model.config.d_model, model.config.vocab_size);
        self.prepare(1, all.length);
        self.reserve_logits(CHUNK * v);
        let Executor { team, workspaces, logits: rows, .. } = self;
        let mut workspace = lock(&workspaces[0]);
        for (first, part) in split(all, sequences_of(team, all.length)) {
            let pass = pass_of(team, model, part, first, DropoutSites::NONE, false);
            forward(&pass, &mut workspace, part);
            let counted = Counted::of(&mut workspace.scratch, c, part.targets);
            let x = counted.rows(&workspace.scratch, c);
            for (x, targets) in x.chunks(CHUNK * c).zip(counted.ids.chunks(CHUNK)) {
                let logits = &mut rows[..targets.len() * v];
                loss::logits(team, model.output(), x, logits);
                f(team, logits, targets);
            }
        }
    }

    /// Calls `watch` with the rows that each linear layer and the output projection reads, `[N, in]`, micro-batch
    /// by micro-batch in their order, and with the place of its weights in [`Transformer::weights`].
    ///
    /// # Panics
    /// As [`Executor::loss`].
    pub fn inputs(&mut self, model: &Transformer, all: Sequences, watch: &Watch) {
        self.check(all);
        self.prepare(1, all.length);
        let Executor { team, workspaces, .. } = self;
        let mut workspace = lock(&workspaces[0]);
        for (first, part) in split(all, sequences_of(team, all.length)) {
            let pass = pass_of(team, model, part, first, DropoutSites::NONE, false);
            forward(&Pass { watch: Some(watch), ..pass }, &mut workspace, part);
            let (rows, c) = (part.ids.len(), model.config.d_model);
            watch(team, &model.layout.head, rows, View::new(&workspace.scratch.a[..rows * c], c));
        }
    }

    pub(super) fn check(&self, all: Sequences) {
        let Sequences { ids, targets, length, weights, soft } = all;
        assert!(length <= self.config.seq_len && length > 0, "{length} of {} positions", self.config.seq_len);
        assert_eq!(ids.len(), targets.len(), "a target for each id");
        assert!(weights.is_none_or(|weights| weights.len() == ids.len()), "a weight for each id");
        let fits = |soft: Soft| [soft.ids.len(), soft.probabilities.len()] == [ids.len() * soft.k; 2];
        assert!(soft.is_none_or(fits), "k soft targets for each id");
    }

    /// Grows the buffer to so many logits.
    pub(super) fn reserve_logits(&mut self, len: usize) {
        if self.logits.len() < len {
            self.logits = Buffer::new(len);
        }
    }

    /// Makes workspaces for so many micro-batches of sequences of this length, and their shares of the team;
    /// gives how many.
    pub(super) fn prepare(&mut self, micro_batches: usize, length: usize) -> usize {
        let threads = self.team.threads();
        let count = threads.min(micro_batches).max(1);
        while self.workspaces.len() < count {
            self.workspaces.push(Mutex::new(Workspace::empty(&self.config)));
        }
        let rows = sequences_of(&self.team, length) * length;
        for workspace in &self.workspaces[..count] {
            lock(workspace).prepare(&self.config, rows, self.backward);
        }
        if count > 1 && self.teams.len() != count {
            let (isa, dtype) = (self.team.isa, self.team.dtype);
            let share = |i: usize| threads / count + usize::from(i < threads % count);
            self.teams = (0..count).map(|i| Team::with(share(i), isa).in_dtype(dtype)).collect();
        }
        count
    }
}

/// Some sequences at a time; with each, the number of its first.
pub(super) fn split<'a>(
    all: Sequences<'a>,
    sequences: usize,
) -> impl Iterator<Item = (usize, Sequences<'a>)> + use<'a> {
    let (rows, some) = (all.ids.len(), sequences * all.length);
    (0..rows).step_by(some).map(move |first| (first / all.length, all.part(first..(first + some).min(rows))))
}

pub(super) fn pass_of<'a>(
    team: &'a Team,
    model: &'a Transformer,
    part: Sequences,
    first_sequence: usize,
    dropout: DropoutSites,
    keep: bool,
) -> Pass<'a> {
    let (rows, first_row) = (part.ids.len(), first_sequence * part.length);
    Pass { team, model, rows, first_row, first_sequence, dropout, keep, packed: None, watch: None }
}

/// Up to the last norm, whose output goes into `scratch.a`.
pub(super) fn forward(pass: &Pass, workspace: &mut Workspace, part: Sequences) {
    let mut spans = [Span { rows: 0..pass.rows, length: part.length, start: 0, cache: None }];
    blocks_forward(pass, workspace, part.ids, &mut spans, |_, _| {});
    let n = pass.rows * pass.config().d_model;
    let scratch = &mut workspace.scratch;
    pass.copy(&scratch.x[..n], &mut scratch.last[..n]);
    let stats = &mut scratch.stats[..2 * pass.rows];
    norm::forward(pass, &pass.model.layout.norm, &scratch.x[..n], &mut scratch.a[..n], stats);
}

/// The embedding and all blocks: what comes out is in `scratch.x`. `before` is called before each block, for
/// spans that change from block to block.
pub(super) fn blocks_forward<'s>(
    pass: &Pass,
    workspace: &mut Workspace,
    ids: &[u32],
    spans: &mut [Span<'s>],
    mut before: impl FnMut(usize, &mut [Span<'s>]),
) {
    let n = pass.rows * pass.config().d_model;
    let Workspace { kept, embed, scratch, .. } = workspace;
    embed::forward(pass, ids, spans, embed, &mut scratch.x[..n]);
    if pass.config().residual_mix {
        pass.copy(&scratch.x[..n], &mut scratch.x0[..n]);
    }
    for i in 0..pass.config().n_layer {
        before(i, spans);
        let kept = &mut kept[if pass.keep { i } else { 0 }];
        block::forward(pass, i, kept, scratch, spans);
    }
}

/// Rows whose target counts.
struct Counted {
    /// Their targets.
    ids: Vec<u32>,
    /// Which rows they are.
    rows: Vec<usize>,
    /// Whether those are all of them.
    all: bool,
}

impl Counted {
    /// Of the rows in `scratch.a`: if some don't count, the others are copied to the beginning of `scratch.b`.
    fn of(scratch: &mut Scratch, c: usize, targets: &[u32]) -> Self {
        let rows: Vec<usize> = (0..targets.len()).filter(|i| targets[*i] != IGNORE).collect();
        if rows.len() == targets.len() {
            return Counted { ids: targets.to_vec(), rows, all: true };
        }
        gather(&scratch.a, c, &rows, &mut scratch.b);
        Counted { ids: rows.iter().map(|i| targets[*i]).collect(), rows, all: false }
    }

    /// Where they lie, `[N, C]`.
    fn rows<'a>(&self, scratch: &'a Scratch, c: usize) -> &'a [f32] {
        let all = if self.all { &scratch.a } else { &scratch.b };
        &all[..self.ids.len() * c]
    }

    /// With the weights and soft targets of all rows.
    fn targets<'a>(&'a self, part: Sequences<'a>) -> Targets<'a> {
        Targets { ids: &self.ids, rows: &self.rows, weights: part.weights, soft: part.soft }
    }
}

/// The loss, and into `scratch.b` the gradient of the last norm's output.
fn loss_and_backward(
    pass: &Pass,
    workspace: &mut Workspace,
    part: Sequences,
    smoothing: f32,
    turns: &mut Turns,
) -> f64 {
    let (c, n) = (pass.config().d_model, pass.rows);
    let Workspace { scratch, logits, .. } = workspace;
    let counted = Counted::of(scratch, c, part.targets);
    let len = counted.ids.len() * c;
    let Scratch { a, b, wide, .. } = scratch;
    let (x, dx) = if counted.all { (&a[..len], &mut b[..len]) } else { (&b[..len], &mut wide[..len]) };
    let nats = head::loss_and_backward(pass, smoothing, logits, x, counted.targets(part), dx, turns);
    if !counted.all {
        scatter(&wide[..len], c, &counted.rows, &mut b[..n * c]);
    }
    nats
}

/// From the gradient in `scratch.b` down to the lowest parameter that is trained: to the embeddings, whose gradient
/// is then in `scratch.x`, or to the first block.
fn backward(pass: &Pass, workspace: &mut Workspace, length: usize, turns: &mut Turns) {
    let n = pass.rows * pass.config().d_model;
    let to_embeddings = turns.is_trained(&pass.model.layout.tokens);
    let Workspace { kept, embed, scratch, .. } = workspace;
    scratch.x[..n].fill(0.0);
    let Scratch { x, last, stats, b, .. } = scratch;
    let (last, stats) = (&last[..n], &stats[..2 * pass.rows]);
    norm::backward(pass, &pass.model.layout.norm, last, stats, &b[..n], &mut x[..n], turns);
    if pass.config().residual_mix {
        scratch.dx0[..n].fill(0.0);
    }
    for i in (0..pass.config().n_layer).rev() {
        let below = i > 0 || to_embeddings;
        block::backward(pass, i, length, &mut kept[i], scratch, below, turns);
    }
    if !to_embeddings {
        return;
    }
    if pass.config().residual_mix {
        pass.add(&scratch.dx0[..n], &mut scratch.x[..n]);
    }
    embed::backward(pass, embed, &mut scratch.x[..n], &mut scratch.b, turns);
}
