//! Rows of tokens to learn from, the order in which they come, and batches of them.

mod packing;
mod pairs;

pub use packing::{Packing, pack, shortest_row};
pub use pairs::{Pairs, RenderedPair};

use crate::base::Rng;
use crate::model::{IGNORE, Sequences};
use crate::shard::TokenStream;

/// Rows of one length, by index: ids and, for each, the id that should follow, or [`IGNORE`] where nothing
/// is to be learned.
pub trait Data: Sync {
    fn rows(&self) -> usize;
    /// Ids of a sequence, `T`.
    fn length(&self) -> usize;
    /// Sequences of that length that each row consists of, end to end: 1, unless several are learned from
    /// together, as an answer and a worse one.
    fn sequences(&self) -> usize {
        1
    }
    /// Writes row `i` over `ids` and `targets`, each as long as all its sequences; gives how many ids are not
    /// padding.
    ///
    /// # Panics
    /// When `i` is not below [`Data::rows`].
    fn fill(&self, i: usize, ids: &mut [u32], targets: &mut [u32]) -> usize;
}

/// A stream of documents cut into windows: each row's targets are its ids one further. A stream that is
/// shorter than one row is one row, padded.
pub struct Windows<'a> {
    stream: &'a TokenStream,
    seq_len: usize,
    stride: usize,
    pad: u32,
}

impl<'a> Windows<'a> {
    /// Windows that lie end to end. `pad` fills up a row that is not whole.
    pub fn new(stream: &'a TokenStream, seq_len: usize, pad: u32) -> Self {
        Windows { stream, seq_len, stride: seq_len, pad }
    }

    /// The same windows, one every `stride` tokens: below their length they overlap.
    pub fn every(self, stride: usize) -> Self {
        Windows { stride, ..self }
    }
}

impl Data for Windows<'_> {
    fn rows(&self) -> usize {
        match self.stream.len() {
            0 | 1 => 0,
            tokens if tokens <= self.seq_len => 1,
            tokens => (tokens - 1 - self.seq_len) / self.stride + 1,
        }
    }

    fn length(&self) -> usize {
        self.seq_len
    }

    fn fill(&self, i: usize, ids: &mut [u32], targets: &mut [u32]) -> usize {
        let start = i * self.stride;
        let tokens = self.seq_len.min(self.stream.len() - 1 - start);
        self.stream.window(start, &mut ids[..tokens]);
        self.stream.window(start + 1, &mut targets[..tokens]);
        ids[tokens..].fill(self.pad);
        targets[tokens..].fill(IGNORE);
        tokens
    }
}

/// Rows that were packed beforehand.
pub struct Packed {
    rows: Vec<Sequence>,
    seq_len: usize,
    pad: u32,
}

impl Packed {
    /// `rows`: ids with whether each is a target, at most `seq_len + 1` long; shorter ones are padded.
    pub fn new(mut rows: Vec<Sequence>, seq_len: usize, pad: u32) -> Self {
        rows.retain(|(ids, _)| ids.len() > 1);
        Packed { rows, seq_len, pad }
    }
}

impl Data for Packed {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn length(&self) -> usize {
        self.seq_len
    }

    fn fill(&self, i: usize, ids: &mut [u32], targets: &mut [u32]) -> usize {
        fill_sequence(&self.rows[i], self.pad, ids, targets)
    }
}

/// Ids with whether each is a target.
type Sequence = (Vec<u32>, Vec<bool>);

/// Writes one sequence, padded; gives how many ids are not padding.
fn fill_sequence((row, learn): &Sequence, pad: u32, ids: &mut [u32], targets: &mut [u32]) -> usize {
    let tokens = row.len() - 1;
    ids[..tokens].copy_from_slice(&row[..tokens]);
    ids[tokens..].fill(pad);
    targets[tokens..].fill(IGNORE);
    for (target, (id, learn)) in targets.iter_mut().zip(row[1..].iter().zip(&learn[1..])) {
        *target = if *learn { *id } else { IGNORE };
    }
    tokens
}

/// Rows of one length, end to end, in memory that is used again for the next batch.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// Of a sequence, `T`.
    pub length: usize,
    /// Ids that are not padding.
    pub tokens: u64,
    /// Which rows of the data these are.
    pub rows: Vec<usize>,
}

impl Batch {
    /// The rows of `data` with these numbers.
    pub fn fill(&mut self, data: &dyn Data, rows: impl Iterator<Item = usize>) {
        self.length = data.length();
        self.tokens = 0;
        self.rows.clear();
        self.rows.extend(rows);
        let row = data.sequences() * self.length;
        self.ids.resize(self.rows.len() * row, 0);
        self.targets.resize(self.rows.len() * row, IGNORE);
        let places = self.ids.chunks_exact_mut(row).zip(self.targets.chunks_exact_mut(row));
        for (i, (ids, targets)) in self.rows.iter().zip(places) {
            self.tokens += data.fill(*i, ids, targets) as u64;
        }
    }

    pub fn sequences(&self) -> Sequences<'_> {
        Sequences::new(&self.ids, &self.targets, self.length)
    }

    /// Targets that count.
    pub fn counted(&self) -> u64 {
        self.targets.iter().filter(|t| **t != IGNORE).count() as u64
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

    /// The order after the first `taken` rows.
    pub fn after(rows: usize, seed: u64, taken: u64) -> Self {
        let (epoch, taken) = (taken / rows as u64, taken % rows as u64);
        let mut order = Order { epoch, ..Order::new(rows, seed) };
        for _ in 0..taken {
            order.next();
        }
        order
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_shorter_than_a_row_is_a_padded_row() {
        let mut stream = TokenStream::new(100);
        let row = |stream: &TokenStream, i| {
            let windows = Windows::new(stream, 4, 9);
            let (mut ids, mut targets) = (vec![0; 4], vec![0; 4]);
            let tokens = windows.fill(i, &mut ids, &mut targets);
            (windows.rows(), tokens, ids, targets)
        };
        assert_eq!(Windows::new(&stream, 4, 9).rows(), 0);
        stream.push(&[1, 2, 3]);
        assert_eq!(row(&stream, 0), (1, 2, vec![1, 2, 9, 9], vec![2, 3, IGNORE, IGNORE]));
        stream.push(&[4, 5]);
        assert_eq!(row(&stream, 0), (1, 4, vec![1, 2, 3, 4], vec![2, 3, 4, 5]));
        stream.push(&[6, 7, 8, 9]);
        assert_eq!(row(&stream, 1), (2, 4, vec![5, 6, 7, 8], vec![6, 7, 8, 9]));
    }

    #[test]
    fn an_order_goes_on_from_anywhere() {
        let mut whole = Order::new(5, 7);
        let all: Vec<usize> = (0..30).map(|_| whole.next()).collect();
        for taken in 0..20 {
            let mut rest = Order::after(5, 7, taken);
            let rest: Vec<usize> = (0..10).map(|_| rest.next()).collect();
            assert_eq!(rest, all[taken as usize..][..10], "after {taken}");
        }
    }

    #[test]
    fn windows_overlap_by_their_stride() {
        let mut stream = TokenStream::new(100);
        stream.push(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for (stride, starts) in [(1, vec![1, 2, 3, 4]), (3, vec![1, 4]), (4, vec![1]), (9, vec![1])] {
            let windows = Windows::new(&stream, 4, 0).every(stride);
            let first = |i| {
                let (mut ids, mut targets) = (vec![0; 4], vec![0; 4]);
                assert_eq!((windows.fill(i, &mut ids, &mut targets), ids[0] + 1), (4, targets[0]));
                ids[0]
            };
            assert_eq!((0..windows.rows()).map(first).collect::<Vec<_>>(), starts, "stride {stride}");
        }
    }
}
