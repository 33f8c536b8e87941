//! Decoding: what a model expects after what it has read, with the keys and values of that cached.
//!
//! The same blocks as in training, on as many rows as there are new tokens: a prompt goes through at once,
//! several texts side by side. A row's numbers do not depend on what is computed along with it, so a cache
//! gives the bits that the whole text would give.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::executor::blocks_forward;
use super::layer::attention::Span;
use super::layer::{DropoutSites, Pass, norm};
use super::layout::{BlockLayout, Layout, LinearLayout};
use super::workspace::Workspace;
use super::{Config, Transformer};
use crate::base::{Error, Result};
use crate::kernel::attention::cached::KeysValues;
use crate::kernel::matmul::{PackedMatrix, Panels, Start, THIN, View};
use crate::kernel::weight::Weight;
use crate::kernel::{Dtype, Team, loss};

/// Keys and values of the positions already seen, by block.
#[derive(Clone, Default)]
pub struct Cache {
    blocks: Vec<KeysValues>,
    len: usize,
    /// Keys of a position, K·D.
    width: usize,
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
        self.blocks.iter_mut().for_each(|block| block.truncate(len, self.width));
        self.len = len;
    }

    /// A copy of the first `len` positions, or of all where there are fewer, with room for all that the model
    /// holds.
    pub fn prefix(&self, len: usize, config: &Config) -> Self {
        let len = len.min(self.len);
        let mut copy = Cache::default();
        for (block, new) in self.blocks.iter().zip(copy.extend(config, len)) {
            new.copy_from(block, len, self.width);
        }
        copy
    }

    /// Gives back the memory of positions that it doesn't hold.
    pub fn shrink(&mut self) {
        self.blocks.iter_mut().for_each(KeysValues::shrink);
    }

    /// Makes room for all positions that the model holds, as a new cache has.
    pub fn reserve(&mut self, config: &Config) {
        self.blocks.iter_mut().for_each(|block| block.reserve(config.seq_len, self.width));
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(KeysValues::bytes).sum()
    }

    /// Counts `new` positions, for which the blocks that it gives take keys and values. There is room for all
    /// positions, so that nothing moves while it grows.
    fn extend(&mut self, config: &Config, new: usize) -> std::slice::IterMut<'_, KeysValues> {
        self.width = config.kv_width();
        self.blocks.resize_with(config.n_layer, || KeysValues::with_room(config.seq_len, config.kv_width()));
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
            Weight::F32(weight) | Weight::Packed { all: weight, .. } => {
                Head::F32(Panels::of_columns(team, weight, c))
            }
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

/// Weights as products of several single ids read them, beside the model's own: of small models, whose products
/// would take longer to pack them each time.
pub struct PackedWeights {
    /// By where the weights begin among the model's.
    linears: BTreeMap<usize, PackedMatrix>,
    head: PackedMatrix,
}

/// The most parameters of a model that is packed: 64 MiB.
const PACKED: usize = 16 << 20;

impl PackedWeights {
    fn new(model: &Transformer, team: &Team) -> Self {
        let (c, layout) = (model.config.d_model, &model.layout);
        let all = layout.blocks.iter().flat_map(linears);
        let linear = |linear: &LinearLayout| {
            let weight = &model.weights[linear.weight.clone()];
            let packed =
                PackedMatrix::new(team, View::new(weight, linear.out), weight.len() / linear.out, linear.out);
            (linear.weight.start, packed)
        };
        let head = View::new(&model.weights[layout.head.clone()], c).t();
        PackedWeights {
            linears: all.map(linear).collect(),
            head: PackedMatrix::new(team, head, c, layout.head.len() / c),
        }
    }

    /// A linear layer's.
    pub fn of(&self, layout: &LinearLayout) -> &PackedMatrix {
        &self.linears[&layout.weight.start]
    }
}

fn linears(block: &BlockLayout) -> [&LinearLayout; 4] {
    [&block.qkv, &block.attn_proj, &block.up, &block.down]
}

/// Reads texts on; keeps its memory, which grows to the longest that it is given. `M` borrows or owns the model.
pub struct Decoder<M> {
    model: M,
    team: Team,
    /// Made when texts are first read on by single ids.
    head: Option<Head>,
    /// Made when several texts are first read on by single ids, of a small model in f32.
    packed: Option<PackedWeights>,
    workspace: Workspace,
    /// `[B, V]`, of the texts that were read last.
    logits: Vec<f32>,
}

impl<M: Deref<Target = Transformer>> Decoder<M> {
    /// Products are those of [`Transformer::products`].
    pub fn new(model: M, team: Team) -> Self {
        let (team, workspace) = (team.in_dtype(model.products()), Workspace::empty(&model.config));
        Decoder { model, team, head: None, packed: None, workspace, logits: Vec::new() }
    }

    /// What it was made of.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// `[B, V]`, what follows each of the texts that were read last.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The threads that it reads with.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Reads on in each text; gives [`Decoder::logits`], the logits `[B, V]` of what follows each.
    ///
    /// # Errors
    /// When a cache has no room for its ids, or an id is beyond the vocabulary.
    ///
    /// # Panics
    /// When a text has nothing new.
    pub fn read(&mut self, texts: &mut [Reading]) -> Result<&[f32]> {
        let Decoder { model, team, head, packed, workspace, logits } = self;
        let model: &Transformer = model;
        let single = texts.iter().all(|text| text.ids.len() == 1);
        if packed.is_none() && single && texts.len() > THIN && packs(model.weights.len(), model.dtype()) {
            *packed = (!model.is_quantized()).then(|| PackedWeights::new(model, team));
        }
        let packed = packed.as_ref();
        let config = &model.config;
        validate(config, texts)?;
        let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
        workspace.prepare(config, ids.len(), false);
        let mut spans = spans(texts);
        let mut caches: Vec<_> =
            texts.iter_mut().map(|text| text.cache.extend(config, text.ids.len())).collect();
        let pass = Pass { packed, ..pass_of(team, model, ids.len()) };
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
        logits.resize(count * config.vocab_size, 0.0);
        match packed {
            // Its layout pays where it is used for every token, not for the few logits of prompts.
            _ if single && count <= THIN => {
                head.get_or_insert_with(|| Head::new(model, team)).logits(team, model, x, logits);
            }
            Some(packed) if count > THIN => {
                packed.head.product(team, count, View::new(x, c), Start::Zero, logits, config.vocab_size);
                model.output().finish(team, logits);
            }
            _ => loss::logits(team, model.output(), x, logits),
        }
        Ok(logits)
    }
}

/// Bytes of memory that a [`Decoder`] takes at most beside a model of this shape that is not quantized, without
/// texts.
pub fn decoder_memory(config: &Config, dtype: Dtype) -> u64 {
    let layout = Layout::new(config);
    let head = layout.head.len() as u64 * if dtype == Dtype::F32 { 4 } else { 2 };
    let bytes = |weights: usize, columns: usize| PackedMatrix::bytes(weights / columns, columns);
    let all = layout.blocks.iter().flat_map(linears).map(|linear| bytes(linear.weight.len(), linear.out));
    let packed = all.sum::<u64>() + bytes(layout.head.len(), config.vocab_size);
    head + if packs(layout.len, dtype) { packed } else { 0 }
}

/// Whether weights are packed, where they are not quantized.
fn packs(parameters: usize, dtype: Dtype) -> bool {
    dtype == Dtype::F32 && parameters <= PACKED
}

fn pass_of<'p>(team: &'p Team, model: &'p Transformer, rows: usize) -> Pass<'p> {
    let dropout = DropoutSites::NONE;
    Pass {
        team,
        model,
        rows,
        first_row: 0,
        first_sequence: 0,
        dropout,
        keep: false,
        packed: None,
        watch: None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gpt2;

    #[test]
    fn the_memory_that_is_told_is_that_which_is_taken() {
        let config = gpt2(50, 16, 2, 2, 8);
        for dtype in Dtype::ALL {
            let model = Transformer::fresh(&config, 1).in_dtype(dtype);
            let mut decoder = Decoder::new(&model, Team::new(1));
            for count in [1, THIN + 1] {
                let mut caches = vec![Cache::default(); count];
                let mut texts: Vec<_> = caches.iter_mut().map(|cache| Reading { cache, ids: &[3] }).collect();
                decoder.read(&mut texts).unwrap();
            }
            let head = match decoder.head.as_ref().unwrap() {
                Head::F32(panels) => panels.memory(),
                Head::Bf16(panels) => panels.memory(),
                Head::Quantized => unreachable!("it is not quantized"),
            };
            let packed = decoder.packed.as_ref().map_or(0, |packed| {
                packed.linears.values().chain([&packed.head]).map(PackedMatrix::memory).sum()
            });
            assert_eq!(packed > 0, dtype == Dtype::F32);
            assert_eq!(decoder_memory(&config, dtype), head + packed, "{dtype:?}");
        }
    }
}
