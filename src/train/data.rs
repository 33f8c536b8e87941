//! Rows of tokens to learn from, and the order in which they come.

use crate::base::Rng;
use crate::model::IGNORE;
use crate::shard::TokenStream;

/// `T` ids and, for each, the id that should follow; [`IGNORE`] where nothing is to be learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// Ids that are not padding.
    pub tokens: usize,
}

/// Rows of one length, by index.
pub trait Data: Sync {
    fn rows(&self) -> usize;
    /// # Panics
    /// When `i` is not below [`Data::rows`].
    fn row(&self, i: usize) -> Row;
}

/// A stream of documents cut into windows: each row's targets are its ids one further.
pub struct Windows<'a> {
    stream: &'a TokenStream,
    seq_len: usize,
}

impl<'a> Windows<'a> {
    pub fn new(stream: &'a TokenStream, seq_len: usize) -> Self {
        Windows { stream, seq_len }
    }
}

impl Data for Windows<'_> {
    fn rows(&self) -> usize {
        self.stream.len().saturating_sub(1) / self.seq_len
    }

    fn row(&self, i: usize) -> Row {
        let mut ids = Vec::with_capacity(self.seq_len + 1);
        self.stream.window(i * self.seq_len, self.seq_len + 1, &mut ids);
        let targets = ids[1..].to_vec();
        ids.truncate(self.seq_len);
        Row { tokens: ids.len(), ids, targets }
    }
}

/// Rows that were packed beforehand.
pub struct Packed {
    rows: Vec<Row>,
}

impl Packed {
    /// `rows`: ids with whether each is a target, at most `seq_len + 1` long; shorter ones are padded.
    pub fn new(rows: Vec<(Vec<u32>, Vec<bool>)>, seq_len: usize, pad: u32) -> Self {
        let row = |(ids, learn): (Vec<u32>, Vec<bool>)| {
            let mut targets: Vec<u32> = ids[1..]
                .iter()
                .zip(&learn[1..])
                .map(|(id, learn)| if *learn { *id } else { IGNORE })
                .collect();
            let tokens = targets.len();
            let mut ids = ids[..tokens].to_vec();
            ids.resize(seq_len, pad);
            targets.resize(seq_len, IGNORE);
            Row { ids, targets, tokens }
        };
        Packed { rows: rows.into_iter().filter(|(ids, _)| ids.len() > 1).map(row).collect() }
    }
}

impl Data for Packed {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, i: usize) -> Row {
        self.rows[i].clone()
    }
}

/// Every row once an epoch, each epoch in an order of its own.
pub struct Order {
    rows: usize,
    seed: u64,
    epoch: u64,
    left: Vec<usize>,
}

impl Order {
    pub fn new(rows: usize, seed: u64) -> Self {
        Order { rows, seed, epoch: 0, left: Vec::new() }
    }

    /// # Panics
    /// When there are no rows.
    pub fn next(&mut self) -> usize {
        if self.left.is_empty() {
            self.left = (0..self.rows).collect();
            Rng::new(self.seed, &format!("epoch/{}", self.epoch)).shuffle(&mut self.left);
            self.epoch += 1;
        }
        self.left.pop().expect("an epoch has rows")
    }
}
