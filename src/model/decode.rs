//! Decoding: what a model expects after what it has read, with the keys and values of that cached.
//!
//! The same blocks as in training, on as many rows as there are new tokens: a prompt goes through at once,
//! several texts side by side. A row's numbers do not depend on what is computed along with it, so a cache
//! gives the bits that the whole text would give.

use std::ops::Deref;

use super::executor::blocks_forward;
use super::layer::attention::Span;
use super::layer::{DropoutSites, Pass, norm};
use super::workspace::Workspace;
use super::{Config, Transformer};
use crate::base::{Error, Result};
use crate::kernel::attention::Rows;
use crate::kernel::matmul::{Panels, THIN};
use crate::kernel::weight::Weight;
use crate::kernel::{Team, loss};

/// Keys, encoded, and values of one block, `[T, K·D]` each.
#[derive(Clone, Default)]
pub struct KeysValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KeysValues {
    /// Appends rows of new keys and values; gives where all lie.
    pub(super) fn push(&mut self, rows: usize, width: usize, [k, v]: [Rows; 2]) -> [Rows<'_>; 2] {
        for (all, new) in [(&mut self.keys, k), (&mut self.values, v)] {
            (0..rows).for_each(|i| all.extend_from_slice(&new.data[i * new.row..][..width]));
        }
        [&self.keys, &self.values].map(|data| Rows { data, sequence: 0, row: width })
    }
}

/// Keys and values of the positions already seen, by block.
#[derive(Clone, Default)]
pub struct Cache {
    blocks: Vec<KeysValues>,
    len: usize,
}

impl Cache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions but the first `len`; keeps the memory. What is read on then gives the bits that it
    /// would give had the others never been read.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        for block in &mut self.blocks {
            let width = block.keys.len() / self.len;
            block.keys.truncate(len * width);
            block.values.truncate(len * width);
        }
        self.len = len;
    }

    /// A copy of the first `len` positions, or of all where there are fewer, with room for all that the model
    /// holds.
    pub fn prefix(&self, len: usize, config: &Config) -> Self {
        let len = len.min(self.len);
        let numbers = len * config.kv_width();
        let mut copy = Cache::default();
        for (block, new) in self.blocks.iter().zip(copy.extend(config, len)) {
            new.keys.extend_from_slice(&block.keys[..numbers]);
            new.values.extend_from_slice(&block.values[..numbers]);
        }
        copy
    }

    /// Gives back the memory of positions that it doesn't hold.
    pub fn shrink(&mut self) {
        self.blocks
            .iter_mut()
            .flat_map(|block| [&mut block.keys, &mut block.values])
            .for_each(Vec::shrink_to_fit);
    }

    /// Makes room for all positions that the model holds, as a new cache has.
    pub fn reserve(&mut self, config: &Config) {
        let room = config.seq_len * config.kv_width();
        for numbers in self.blocks.iter_mut().flat_map(|block| [&mut block.keys, &mut block.values]) {
            numbers.reserve_exact(room - numbers.len());
        }
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> u64 {
        let numbers = |block: &KeysValues| block.keys.capacity() + block.values.capacity();
        self.blocks.iter().map(|block| 4 * numbers(block) as u64).sum()
    }

    /// Counts `new` positions, for which the blocks that it gives take keys and values. There is room for all
    /// positions, so that nothing moves while it grows.
    fn extend(&mut self, config: &Config, new: usize) -> std::slice::IterMut<'_, KeysValues> {
        let room = config.seq_len * config.kv_width();
        self.blocks.resize_with(config.n_layer, || KeysValues {
            keys: Vec::with_capacity(room),
            values: Vec::with_capacity(room),
        });
        self.len += new;
        self.blocks.iter_mut()
    }
}

/// A text that is read on: what was kept of it, and what is new.
pub struct Reading<'a> {
    pub cache: &'a mut Cache,
    pub ids: &'a [u32],
}

/// The output projection, laid out for few rows.
enum Head {
    F32(Panels<f32>),
    Bf16(Panels<u16>),
    /// The model's own is.
    Quantized,
}

impl Head {
    fn new(model: &Transformer, team: &Team) -> Self {
        let c = model.config.d_model;
        match model.weight(&model.layout.head) {
            Weight::F32(weight) => Head::F32(Panels::of_columns(team, weight, c)),
            Weight::Bf16 { bits, .. } => Head::Bf16(Panels::of_columns(team, bits, c)),
            Weight::Quantized(_) => Head::Quantized,
        }
    }

    fn logits(&self, team: &Team, model: &Transformer, x: &[f32], logits: &mut [f32]) {
        match self {
            Head::F32(panels) => panels.product(team, x, logits),
            Head::Bf16(panels) => panels.product(team, x, logits),
            Head::Quantized => return loss::logits(team, model.output(), x, logits),
        }
        model.output().finish(team, logits);
    }
}

/// Reads texts on; keeps its memory, which grows to the longest that it is given. `M` borrows or owns the model.
pub struct Decoder<M> {
    model: M,
    team: Team,
    /// Made when texts are first read on by single ids.
    head: Option<Head>,
    workspace: Workspace,
}

impl<M: Deref<Target = Transformer>> Decoder<M> {
    /// Products are those of [`Transformer::products`].
    pub fn new(model: M, team: Team) -> Self {
        let (team, workspace) = (team.in_dtype(model.products()), Workspace::empty(&model.config));
        Decoder { model, team, head: None, workspace }
    }

    /// What it was made of.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The threads that it reads with.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Reads on in each text; gives the logits `[B, V]` of what follows each.
    ///
    /// # Errors
    /// When a cache has no room for its ids, or an id is beyond the vocabulary.
    ///
    /// # Panics
    /// When a text has nothing new.
    pub fn read(&mut self, texts: &mut [Reading]) -> Result<Vec<f32>> {
        let Decoder { model, team, head, workspace } = self;
        let model: &Transformer = model;
        let config = &model.config;
        validate(config, texts)?;
        let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
        workspace.prepare(config, ids.len(), false);
        let mut spans = spans(texts);
        let mut caches: Vec<_> =
            texts.iter_mut().map(|text| text.cache.extend(config, text.ids.len())).collect();
        let pass = pass_of(team, model, ids.len());
        blocks_forward(&pass, workspace, &ids, &mut spans, |_, spans| {
            spans.iter_mut().zip(&mut caches).for_each(|(span, blocks)| span.cache = blocks.next());
        });
        // Only what follows the last id of each text is asked for.
        let (c, count, scratch) = (config.d_model, spans.len(), &mut workspace.scratch);
        for (i, span) in spans.iter().enumerate() {
            scratch.x.copy_within((span.rows.end - 1) * c..span.rows.end * c, i * c);
        }
        let (x, stats) = (&mut scratch.a[..count * c], &mut scratch.stats[..2 * count]);
        norm::forward(&pass_of(team, model, count), &model.layout.norm, &scratch.x[..count * c], x, stats);
        let mut logits = vec![0.0; count * config.vocab_size];
        if ids.len() == count && count <= THIN {
            head.get_or_insert_with(|| Head::new(model, team)).logits(team, model, x, &mut logits);
        } else {
            loss::logits(team, model.output(), x, &mut logits);
        }
        Ok(logits)
    }
}

fn pass_of<'p>(team: &'p Team, model: &'p Transformer, rows: usize) -> Pass<'p> {
    let dropout = DropoutSites::NONE;
    Pass { team, model, rows, first_row: 0, first_sequence: 0, dropout, keep: false, watch: None }
}

/// What is new of each text, one behind the other.
fn spans<'s>(texts: &[Reading]) -> Vec<Span<'s>> {
    let ends = texts.iter().scan(0, |end, text| {
        *end += text.ids.len();
        Some((*end, text))
    });
    let span = |(end, text): (usize, &Reading)| {
        let length = text.ids.len();
        Span { rows: end - length..end, length, start: text.cache.len, cache: None }
    };
    ends.map(span).collect()
}

fn validate(config: &Config, texts: &[Reading]) -> Result<()> {
    for text in texts {
        assert!(!text.ids.is_empty(), "a text with nothing new");
        let end = text.cache.len + text.ids.len();
        if end > config.seq_len {
            return Err(Error::input(format!("{end} positions in a model of {}", config.seq_len)));
        }
        config.validate_ids(text.ids)?;
    }
    Ok(())
}
