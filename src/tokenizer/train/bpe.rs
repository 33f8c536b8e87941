//! Byte-pair encoding: the most frequent pair of neighbouring tokens becomes a token, again and again
//! (Sennrich, Haddow and Birch, 2016, <https://arxiv.org/abs/1508.07909>).
//!
//! Why not the trainer of the `tokenizers` library: it cannot be stopped, gives the pieces of
//! WordPiece ids in the order of a hash map, and would let text that spells a special token merge
//! into it. The result is otherwise the same (a test compares them): among pairs of equal count the
//! one with the smaller ids comes first. Nothing here depends on the order of a map.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use super::Word;
use crate::base::{Monitor, Result};

/// What to train.
pub struct Plan<'a> {
    /// The tokens that there are from the start, in the order of their ids: special tokens, bytes,
    /// characters. A character in the inside of a word is looked up behind `prefix`.
    pub alphabet: Vec<String>,
    /// What marks a token inside a word: `##` for WordPiece, else empty.
    pub prefix: &'a str,
    /// No merge makes one of these.
    pub reserved: &'a BTreeSet<String>,
    pub vocab_size: usize,
    /// A pair that occurs less often is not merged.
    pub min_frequency: u64,
    /// Of a token, in characters without the prefix.
    pub max_length: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Trained {
    /// By id.
    pub tokens: Vec<String>,
    /// In the order in which they were learned, which is the order in which they apply.
    pub merges: Vec<(String, String)>,
}

type Pair = (u32, u32);

struct Trainer<'a> {
    plan: &'a Plan<'a>,
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    /// Each distinct word as token ids, and how often it occurs.
    words: Vec<(Vec<u32>, i64)>,
    counts: HashMap<Pair, i64>,
    /// Where a pair occurs, or once did.
    places: HashMap<Pair, Vec<u32>>,
    /// Pairs by count; entries may be out of date, which is seen when they come up.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

/// Learns merges from `words`, until the vocabulary is full or no pair is frequent enough.
///
/// # Errors
/// When somebody asked to stop.
pub fn train(words: &[Word], plan: &Plan, monitor: &dyn Monitor) -> Result<Trained> {
    let mut trainer = Trainer::new(words, plan);
    trainer.count_pairs();
    let mut merges = Vec::new();
    while trainer.tokens.len() < plan.vocab_size {
        monitor.step("merges", trainer.tokens.len() as u64, Some(plan.vocab_size as u64), "tokens")?;
        let Some(pair) = trainer.next_pair() else { break };
        merges.push(trainer.spelling(pair));
        trainer.merge(pair);
    }
    Ok(Trained { tokens: trainer.tokens, merges })
}

impl<'a> Trainer<'a> {
    fn new(words: &[Word], plan: &'a Plan<'a>) -> Self {
        let tokens = plan.alphabet.clone();
        let ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let mut trainer = Trainer {
            plan,
            tokens,
            ids,
            words: Vec::new(),
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for word in words {
            trainer.add_word(word);
        }
        trainer
    }

    /// A character that is not in the alphabet cuts a word in two; a word that is looked up whole
    /// (with a prefix) is then unknown and teaches nothing.
    fn add_word(&mut self, word: &Word) {
        let mut pieces = vec![Vec::new()];
        for (i, c) in word.text.chars().enumerate() {
            let symbol = if i == 0 { c.to_string() } else { format!("{}{c}", self.plan.prefix) };
            match self.ids.get(&symbol) {
                Some(id) => pieces.last_mut().expect("never empty").push(*id),
                None if self.plan.prefix.is_empty() => pieces.push(Vec::new()),
                None => return,
            }
        }
        let long = pieces.into_iter().filter(|piece| piece.len() > 1);
        self.words.extend(long.map(|piece| (piece, word.count as i64)));
    }

    fn count_pairs(&mut self) {
        for (i, (word, count)) in self.words.iter().enumerate() {
            for pair in word.windows(2).map(|w| (w[0], w[1])) {
                *self.counts.entry(pair).or_default() += count;
                note(self.places.entry(pair).or_default(), i as u32);
            }
        }
        self.queue = self.counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();
    }

    /// The most frequent pair that may be merged.
    fn next_pair(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now != count {
                if now > 0 {
                    self.queue.push((now, Reverse(pair)));
                }
                continue;
            }
            if count < self.plan.min_frequency.max(1) as i64 {
                return None;
            }
            let token = self.token(pair);
            let letters = token.strip_prefix(self.plan.prefix).unwrap_or(&token).chars().count();
            if letters <= self.plan.max_length && !self.plan.reserved.contains(&token) {
                return Some(pair);
            }
            self.counts.remove(&pair);
        }
        None
    }

    fn spelling(&self, pair: Pair) -> (String, String) {
        (self.tokens[pair.0 as usize].clone(), self.tokens[pair.1 as usize].clone())
    }

    /// The token that a pair makes.
    fn token(&self, pair: Pair) -> String {
        let (left, right) = (&self.tokens[pair.0 as usize], &self.tokens[pair.1 as usize]);
        left.clone() + right.strip_prefix(self.plan.prefix).unwrap_or(right)
    }

    /// Replaces `pair` by its token wherever it occurs.
    fn merge(&mut self, pair: Pair) {
        let token = self.token(pair);
        // Two ways of merging may spell the same token; it then keeps its id.
        let new = *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            self.tokens.len() as u32 - 1
        });
        let mut changed = BTreeSet::new();
        for place in self.places.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut self.words[place as usize];
            let merged = merged(word, pair, new);
            if merged.len() == word.len() {
                continue;
            }
            for old in word.windows(2) {
                *self.counts.entry((old[0], old[1])).or_default() -= *count;
            }
            for next in merged.windows(2).map(|w| (w[0], w[1])) {
                *self.counts.entry(next).or_default() += *count;
                if next.0 == new || next.1 == new {
                    note(self.places.entry(next).or_default(), place);
                    changed.insert(next);
                }
            }
            *word = merged;
        }
        self.counts.remove(&pair);
        for next in changed {
            self.queue.push((self.counts[&next], Reverse(next)));
        }
    }
}

/// `place` at the end of `places`, once.
fn note(places: &mut Vec<u32>, place: u32) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}

/// `word` with `pair` replaced by `new`, from left to right.
fn merged(word: &[u32], pair: Pair, new: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut i = 0;
    while i < word.len() {
        if i + 1 < word.len() && (word[i], word[i + 1]) == pair {
            out.push(new);
            i += 2;
        } else {
            out.push(word[i]);
            i += 1;
        }
    }
    out
}
