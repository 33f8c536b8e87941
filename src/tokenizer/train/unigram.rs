//! The unigram language model: start from many substrings, prune those that lower the likelihood of the
//! words least (Kudo, 2018, <https://arxiv.org/abs/1804.10959>; the steps and constants are those of
//! SentencePiece's `unigram_model_trainer.cc`).
//!
//! Not the trainer of the `tokenizers` library: its sums depend on the number of threads and on the order
//! of hash maps, and it cannot be cancelled. Here words are summed in fixed chunks in a fixed order.
//! Characters are never dropped, so every word over the alphabet has a segmentation.

use std::collections::HashMap;

// Not the C library's: its last bits differ between systems.
use libm::{exp, log, log1p};
use rayon::prelude::*;

use super::Word;
use crate::base::{Monitor, Result};

/// What to train.
pub struct Plan {
    /// The alphabet: each becomes a piece, whatever its probability.
    pub alphabet: Vec<char>,
    /// The final number of pieces, the alphabet included.
    pub pieces: usize,
    /// The longest piece, in characters.
    pub max_length: usize,
}

/// A piece and its log probability.
pub type Piece = (String, f64);

/// The number of initial substrings.
const SEEDS: usize = 1_000_000;
/// The share of pieces that a pruning keeps.
const SHRINK: f64 = 0.75;
/// Rounds of expectation and maximization between two prunings.
const ROUNDS: usize = 2;
/// Expected less often than this, a piece is dropped.
const RARE: f64 = 0.5;
/// Words are summed in this many chunks, whatever the number of threads.
const CHUNKS: usize = 16;

/// A word as a lattice: every piece that fits somewhere in it.
struct Lattice {
    /// In characters.
    len: usize,
    count: f64,
    edges: Vec<Edge>,
}

/// A piece from character `start` to `end`. Edges are in the order of `end`, then `start`.
#[derive(Clone, Copy)]
struct Edge {
    start: u32,
    end: u32,
    piece: u32,
}

struct UnigramModel {
    pieces: Vec<Piece>,
    /// The first pieces are single characters and stay.
    letters: usize,
    lattices: Vec<Lattice>,
}

/// The pieces learned from `words`, the most probable first.
///
/// # Errors
/// On cancellation.
pub fn train(words: &[Word], plan: &Plan, monitor: &dyn Monitor) -> Result<Vec<Piece>> {
    let words = segments(words, &plan.alphabet);
    let mut model = UnigramModel::new(&words, plan, monitor)?;
    let start = model.pieces.len();
    let goal = (plan.pieces * 11 / 10).max(plan.alphabet.len());
    loop {
        for _ in 0..ROUNDS {
            let expected = model.expected(monitor)?;
            model.maximize(&expected);
        }
        let dropped = start.saturating_sub(model.pieces.len()) as u64;
        monitor.step("prune", dropped, Some(start.saturating_sub(goal) as u64), "pieces")?;
        if model.pieces.len() <= goal {
            return Ok(model.finish(plan.pieces));
        }
        model.prune(goal, monitor)?;
    }
}

/// Words cut at characters outside the alphabet, equal ones together, in order.
fn segments(words: &[Word], alphabet: &[char]) -> Vec<(Vec<char>, u64)> {
    let known: std::collections::BTreeSet<char> = alphabet.iter().copied().collect();
    let mut all = std::collections::BTreeMap::new();
    for word in words {
        let chars: Vec<char> = word.text.chars().collect();
        for segment in chars.split(|c| !known.contains(c)).filter(|s| !s.is_empty()) {
            *all.entry(segment.to_vec()).or_insert(0) += word.count;
        }
    }
    all.into_iter().collect()
}

impl UnigramModel {
    fn new(words: &[(Vec<char>, u64)], plan: &Plan, monitor: &dyn Monitor) -> Result<Self> {
        let mut letters: HashMap<char, u64> = plan.alphabet.iter().map(|c| (*c, 1)).collect();
        for (word, count) in words {
            for c in word {
                *letters.entry(*c).or_default() += count;
            }
        }
        let mut pieces: Vec<Piece> =
            plan.alphabet.iter().map(|c| (c.to_string(), letters[c] as f64)).collect();
        pieces.extend(seeds(words, plan.max_length, monitor)?);
        let total: f64 = pieces.iter().map(|p| p.1).sum();
        for piece in &mut pieces {
            piece.1 = log(piece.1 / total);
        }
        let ids = ids_of(&pieces);
        let lattices = words
            .par_iter()
            .map(|(word, count)| Lattice::of(word, *count as f64, &ids, plan.max_length))
            .collect();
        Ok(UnigramModel { pieces, letters: plan.alphabet.len(), lattices })
    }

    fn chunk(&self) -> usize {
        self.lattices.len().div_ceil(CHUNKS).max(1)
    }

    /// How often each piece is expected to occur, over all segmentations of all words.
    fn expected(&self, monitor: &dyn Monitor) -> Result<Vec<f64>> {
        let sums = self.sum(|lattice, sums| lattice.add_expected(&self.pieces, sums), monitor);
        monitor.check()?;
        Ok(sums)
    }

    /// How often each piece occurs in the best segmentations.
    fn best(&self, monitor: &dyn Monitor) -> Result<Vec<f64>> {
        let add = |lattice: &Lattice, sums: &mut [f64]| {
            for piece in lattice.best(&self.pieces, None) {
                sums[piece as usize] += lattice.count;
            }
        };
        let sums = self.sum(add, monitor);
        monitor.check()?;
        Ok(sums)
    }

    fn sum(&self, add: impl Fn(&Lattice, &mut [f64]) + Sync, monitor: &dyn Monitor) -> Vec<f64> {
        let chunks: Vec<Vec<f64>> = self
            .lattices
            .par_chunks(self.chunk())
            .map(|chunk| {
                let mut sums = vec![0.0; self.pieces.len()];
                for lattice in chunk {
                    if monitor.cancelled() {
                        break;
                    }
                    add(lattice, &mut sums);
                }
                sums
            })
            .collect();
        let mut total = vec![0.0; self.pieces.len()];
        for chunk in chunks {
            total.iter_mut().zip(chunk).for_each(|(sum, part)| *sum += part);
        }
        total
    }

    /// Probabilities from expected counts; pieces with too low counts are dropped. The digamma makes it the
    /// variational estimate of a Dirichlet process, which favours fewer pieces (Liang and Klein, 2007).
    fn maximize(&mut self, expected: &[f64]) {
        let kept = |id: usize| id < self.letters || expected[id] >= RARE;
        let total: f64 = (0..self.pieces.len()).filter(|id| kept(*id)).map(|id| expected[id].max(RARE)).sum();
        let keep: Vec<bool> = (0..self.pieces.len()).map(kept).collect();
        for (piece, count) in self.pieces.iter_mut().zip(expected) {
            piece.1 = digamma(count.max(RARE)) - digamma(total);
        }
        self.keep(&keep);
    }

    /// Drops the pieces with the smallest loss of likelihood, down to `goal` at most.
    fn prune(&mut self, goal: usize, monitor: &dyn Monitor) -> Result<()> {
        let counts = self.best(monitor)?;
        let sum: f64 = counts.iter().sum();
        let ids = ids_of(&self.pieces);
        let mut losses: Vec<(f64, usize)> = (self.letters..self.pieces.len())
            .into_par_iter()
            .filter(|id| counts[*id] > 0.0)
            .map(|id| (self.loss(id, &ids, &counts, sum), id))
            .collect();
        monitor.check()?;
        losses.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let size = goal.max((self.pieces.len() as f64 * SHRINK) as usize);
        let mut keep = vec![false; self.pieces.len()];
        keep[..self.letters].fill(true);
        for (_, id) in losses.into_iter().take(size.saturating_sub(self.letters)) {
            keep[id] = true;
        }
        self.keep(&keep);
        Ok(())
    }

    /// By how much the log likelihood falls when a piece is replaced by its best segmentation into others.
    fn loss(&self, id: usize, ids: &HashMap<&str, u32>, counts: &[f64], sum: f64) -> f64 {
        let letters: Vec<char> = self.pieces[id].0.chars().collect();
        let lattice = Lattice::of(&letters, 1.0, ids, letters.len());
        let others = lattice.best(&self.pieces, Some(id as u32));
        let count = counts[id];
        let new_sum = log(sum + count * (others.len() as f64 - 1.0));
        let spelled: f64 = others.iter().map(|other| log(counts[*other as usize] + count) - new_sum).sum();
        count * (log(count) - log(sum) - spelled)
    }

    /// Keeps only some pieces, and renumbers them everywhere.
    fn keep(&mut self, keep: &[bool]) {
        let mut next = 0;
        let new: Vec<Option<u32>> = keep
            .iter()
            .map(|kept| {
                kept.then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        self.lattices.par_iter_mut().for_each(|lattice| {
            lattice.edges.retain_mut(|edge| match new[edge.piece as usize] {
                Some(id) => {
                    edge.piece = id;
                    true
                }
                None => false,
            });
        });
        let mut flags = keep.iter();
        self.pieces.retain(|_| *flags.next().expect("one flag for each piece"));
    }

    /// The `size` most probable pieces, the alphabet among them in any case.
    fn finish(mut self, size: usize) -> Vec<Piece> {
        // More digits do not change segmentations.
        for piece in &mut self.pieces {
            piece.1 = (piece.1 * 1e6).round() / 1e6;
        }
        let order = |a: &Piece, b: &Piece| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut others = self.pieces.split_off(self.letters);
        others.sort_by(order);
        others.truncate(size.saturating_sub(self.letters));
        self.pieces.extend(others);
        self.pieces.sort_by(order);
        self.pieces
    }
}

fn ids_of(pieces: &[Piece]) -> HashMap<&str, u32> {
    pieces.iter().map(|p| p.0.as_str()).zip(0..).collect()
}

impl Lattice {
    fn of(word: &[char], count: f64, ids: &HashMap<&str, u32>, max_length: usize) -> Self {
        let text: String = word.iter().collect();
        let mut at: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        at.push(text.len());
        let mut edges = Vec::new();
        for end in 1..=word.len() {
            for start in end.saturating_sub(max_length)..end {
                if let Some(piece) = ids.get(&text[at[start]..at[end]]) {
                    edges.push(Edge { start: start as u32, end: end as u32, piece: *piece });
                }
            }
        }
        Lattice { len: word.len(), count, edges }
    }

    /// Adds the expected count of each piece, by the forward-backward algorithm.
    fn add_expected(&self, pieces: &[Piece], sums: &mut [f64]) {
        let mut forward = vec![f64::NEG_INFINITY; self.len + 1];
        let mut backward = vec![f64::NEG_INFINITY; self.len + 1];
        forward[0] = 0.0;
        backward[self.len] = 0.0;
        let score = |edge: &Edge| pieces[edge.piece as usize].1;
        for edge in &self.edges {
            let here = forward[edge.start as usize] + score(edge);
            let end = &mut forward[edge.end as usize];
            *end = log_add(*end, here);
        }
        // In reverse order of ends, so that everything after an edge's end is already summed.
        for edge in self.edges.iter().rev() {
            let behind = backward[edge.end as usize] + score(edge);
            let start = &mut backward[edge.start as usize];
            *start = log_add(*start, behind);
        }
        let whole = forward[self.len];
        for edge in &self.edges {
            let through = forward[edge.start as usize] + score(edge) + backward[edge.end as usize];
            sums[edge.piece as usize] += self.count * exp(through - whole);
        }
    }

    /// The pieces of the most probable segmentation, last first, without using `banned` (Viterbi).
    fn best(&self, pieces: &[Piece], banned: Option<u32>) -> Vec<u32> {
        let mut best: Vec<(f64, Option<Edge>)> = vec![(f64::NEG_INFINITY, None); self.len + 1];
        best[0].0 = 0.0;
        for edge in self.edges.iter().filter(|e| Some(e.piece) != banned) {
            let score = best[edge.start as usize].0 + pieces[edge.piece as usize].1;
            if score > best[edge.end as usize].0 {
                best[edge.end as usize] = (score, Some(*edge));
            }
        }
        let mut path = Vec::new();
        let mut at = self.len;
        while let Some(edge) = best[at].1 {
            path.push(edge.piece);
            at = edge.start as usize;
        }
        path
    }
}

/// Substrings of two characters and more that occur at least twice, with frequency times length: the
/// nodes of the suffix tree, found by sorting the suffixes.
fn seeds(words: &[(Vec<char>, u64)], max_length: usize, monitor: &dyn Monitor) -> Result<Vec<Piece>> {
    let mut suffixes: Vec<(u32, u32)> = Vec::new();
    for (word, i) in words.iter().zip(0..) {
        suffixes.extend((0..word.0.len() as u32).map(|start| (i, start)));
    }
    let text = |s: (u32, u32)| {
        let word = &words[s.0 as usize].0;
        &word[s.1 as usize..word.len().min(s.1 as usize + max_length)]
    };
    monitor.step("suffixes", 0, Some(suffixes.len() as u64), "suffixes")?;
    suffixes.par_sort_unstable_by(|a, b| text(*a).cmp(text(*b)).then(a.cmp(b)));
    monitor.check()?;
    let mut found: Vec<Piece> = Vec::new();
    let mut add = |piece: &[char], times: u64| {
        if piece.len() > 1 && times > 1 {
            found.push((piece.iter().collect(), (times * piece.len() as u64) as f64));
        }
    };
    // Open inner nodes, each inside the one before: (length, how often).
    let mut open: Vec<(usize, u64)> = Vec::new();
    let mut before = 0;
    for (i, suffix) in suffixes.iter().enumerate() {
        let this = text(*suffix);
        let mut times = words[suffix.0 as usize].1;
        let next = suffixes.get(i + 1).map_or(0, |next| common(this, text(*next)));
        if this.len() > next.max(before) {
            add(this, times);
        }
        while let Some(node) = open.pop_if(|node| node.0 > next) {
            times += node.1;
            add(&this[..node.0], times);
        }
        match open.last_mut().filter(|node| node.0 == next) {
            Some(node) => node.1 += times,
            None if next > 0 => open.push((next, times)),
            None => {}
        }
        before = next;
    }
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    found.truncate(SEEDS);
    Ok(found)
}

fn common(a: &[char], b: &[char]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + log1p(exp(low - high)) }
}

/// The derivative of the logarithm of the gamma function, for positive `x`
/// (Bernardo, 1976, algorithm AS 103: recurrence up to 7, then the asymptotic series).
fn digamma(mut x: f64) -> f64 {
    let mut result = 0.0;
    while x < 7.0 {
        result -= 1.0 / x;
        x += 1.0;
    }
    let y = x - 0.5;
    let inverse = 1.0 / (y * y);
    result
        + log(y)
        + inverse
            * (1.0 / 24.0 - inverse * (7.0 / 960.0 - inverse * (31.0 / 8064.0 - inverse * 127.0 / 30720.0)))
}
