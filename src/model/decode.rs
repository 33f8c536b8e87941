//! Reading on: what a model expects after what it has read, with the keys and values of that kept.
//!
//! The same layers as in training, on as many rows as there are new tokens: a prompt goes through at
//! once, several texts side by side. A row's numbers do not depend on what goes along with it, so a cache
//! gives the bits that the whole text would give.

use super::Config;
use super::transformer::Transformer;
use crate::base::{Error, Result};
use crate::kernel::attention::{self, Rows, Shape};
use crate::kernel::embedding::{self, Ids};
use crate::kernel::linear;
use crate::kernel::matmul::{Panels, THIN, View};
use crate::kernel::norm;
use crate::kernel::{Dropout, Team, gelu, loss};

/// Keys and values of the positions already seen, per block `[T, C]`.
#[derive(Clone, Default)]
pub struct Cache {
    blocks: Vec<[Vec<f32>; 2]>,
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

    /// Room for all positions, so that nothing moves while it grows.
    fn prepare(&mut self, config: &Config) {
        let room = config.seq_len * config.d_model;
        self.blocks.resize_with(config.n_layer, || [Vec::with_capacity(room), Vec::with_capacity(room)]);
    }
}

/// A text that is read on: what was kept of it, and what is new.
pub struct Reading<'a> {
    pub cache: &'a mut Cache,
    pub ids: &'a [u32],
}

enum Head {
    F32(Panels<f32>),
    Bf16(Panels<u16>),
}

impl Head {
    fn new(gpt: &Transformer, team: &Team) -> Self {
        let (tokens, c) = (gpt.layout.tokens.clone(), gpt.config.d_model);
        match &gpt.halves {
            Some(halves) => Head::Bf16(Panels::of_columns(team, &halves[tokens], c)),
            None => Head::F32(Panels::of_columns(team, &gpt.weights[tokens], c)),
        }
    }

    fn logits(&self, team: &Team, x: &[f32], logits: &mut [f32]) {
        match self {
            Head::F32(panels) => panels.product(team, x, logits),
            Head::Bf16(panels) => panels.product(team, x, logits),
        }
    }
}

/// The memory of a step, and who takes it. Grows to the longest that it is given.
pub struct Decoder<'a> {
    gpt: &'a Transformer,
    team: Team,
    /// The output projection, laid out for few rows; made when texts are first read on by single ids.
    head: Option<Head>,
    x: Vec<f32>,
    a: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    wide: Vec<f32>,
    moments: Vec<f32>,
}

impl<'a> Decoder<'a> {
    pub fn new(gpt: &'a Transformer, team: Team) -> Self {
        let none = Vec::new;
        Decoder {
            gpt,
            team,
            head: None,
            x: none(),
            a: none(),
            qkv: none(),
            attended: none(),
            hidden: none(),
            wide: none(),
            moments: none(),
        }
    }

    /// Reads on in each text; gives the logits `[B, V]` of what follows each.
    ///
    /// # Errors
    /// When a cache has no room for its ids, or an id is beyond the vocabulary.
    ///
    /// # Panics
    /// When a text has nothing new.
    pub fn read(&mut self, texts: &mut [Reading]) -> Result<Vec<f32>> {
        let gpt = self.gpt;
        let config = &gpt.config;
        check(config, texts)?;
        let (w, c, f) = (&gpt.weights[..], config.d_model, config.d_ff);
        let n = texts.iter().map(|t| t.ids.len()).sum::<usize>();
        self.resize(config, n);
        let Decoder { team, head, x, a, qkv, attended, hidden, wide, moments, .. } = self;
        let mut row = 0;
        for text in &mut *texts {
            text.cache.prepare(config);
            let ids = Ids { ids: text.ids, length: text.ids.len(), start: text.cache.len };
            let x = &mut x[row * c..(row + text.ids.len()) * c];
            embedding::forward(
                team,
                ids,
                &w[gpt.layout.tokens.clone()],
                1.0,
                Some(&w[gpt.layout.positions.clone().unwrap()]),
                c,
                x,
            );
            row += text.ids.len();
        }
        let add = |team: &Team, a: &[f32], x: &mut [f32]| {
            crate::kernel::dropout::apply(team, Dropout::NONE, c, 0, a, x, true)
        };
        for (i, block) in gpt.layout.blocks.iter().enumerate() {
            norm::forward(team, block.attn_norm.norm(w), x, a, moments);
            linear::forward(team, block.qkv.reading(gpt), View::new(a, c), qkv, 3 * c);
            let mut row = 0;
            for text in &mut *texts {
                let rows = row..row + text.ids.len();
                attend(
                    team,
                    config,
                    text,
                    i,
                    &qkv[rows.start * 3 * c..rows.end * 3 * c],
                    &mut attended[rows.start * c..rows.end * c],
                    moments,
                );
                row = rows.end;
            }
            linear::forward(team, block.attn_proj.reading(gpt), View::new(attended, c), a, c);
            add(team, a, x);
            norm::forward(team, block.mlp_norm.norm(w), x, a, moments);
            linear::forward(team, block.up.reading(gpt), View::new(a, c), hidden, f);
            gelu::forward(team, hidden, wide);
            linear::forward(team, block.down.reading(gpt), View::new(wide, f), a, c);
            add(team, a, x);
        }
        // Only what follows the last id of each text is asked for.
        let mut row = 0;
        for (i, text) in texts.iter_mut().enumerate() {
            row += text.ids.len();
            text.cache.len += text.ids.len();
            x.copy_within((row - 1) * c..row * c, i * c);
        }
        let (x, a) = (&x[..texts.len() * c], &mut a[..texts.len() * c]);
        norm::forward(team, gpt.layout.norm.norm(w), x, a, moments);
        let mut logits = vec![0.0; texts.len() * config.vocab_size];
        if n == texts.len() && n <= THIN {
            head.get_or_insert_with(|| Head::new(gpt, team)).logits(team, a, &mut logits);
        } else {
            loss::logits(team, super::executor::output_of(gpt), a, &mut logits);
        }
        Ok(logits)
    }

    fn resize(&mut self, config: &Config, n: usize) {
        let c = config.d_model;
        self.x.resize(n * c, 0.0);
        self.a.resize(n * c, 0.0);
        self.qkv.resize(3 * n * c, 0.0);
        self.attended.resize(n * c, 0.0);
        self.hidden.resize(n * config.d_ff, 0.0);
        self.wide.resize(n * config.d_ff, 0.0);
        self.moments.resize(2 * n * config.n_head, 0.0);
    }
}

fn check(config: &Config, texts: &[Reading]) -> Result<()> {
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

/// Keeps the new keys and values of block `i`, and attends to all of them.
fn attend(
    team: &Team,
    config: &Config,
    text: &mut Reading,
    i: usize,
    qkv: &[f32],
    out: &mut [f32],
    moments: &mut [f32],
) {
    let (c, heads) = (config.d_model, config.n_head);
    let (start, queries) = (text.cache.len, text.ids.len());
    let kept = &mut text.cache.blocks[i];
    for row in qkv.chunks_exact(3 * c) {
        kept[0].extend_from_slice(&row[c..2 * c]);
        kept[1].extend_from_slice(&row[2 * c..]);
    }
    let shape = Shape { batch: 1, queries, start, heads, kv_heads: heads, width: c / heads, first: 0 };
    let q = Rows { data: qkv, sequence: 0, row: 3 * c };
    let [k, v] = [&kept[0], &kept[1]].map(|data| Rows { data, sequence: 0, row: c });
    attention::forward(team, shape, q, k, v, Dropout::NONE, out, moments);
}
