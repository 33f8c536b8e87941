//! Byte-pair encoding: the most frequent pair of adjacent tokens becomes a token, repeatedly (Sennrich,
//! Haddow and Birch, 2016, <https://arxiv.org/abs/1508.07909>).
//!
//! Not the trainer of the `tokenizers` library: it cannot be cancelled, numbers the pieces of WordPiece in
//! the order of a hash map, and would let text that spells a special token merge into it. The result is
//! otherwise the same (a test compares them): among pairs of equal count the one with the smaller ids comes
//! first. Nothing here depends on the order of a map.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use foldhash::fast::FixedState;

use super::Word;
use crate::base::{Monitor, Result};

/// What to train.
pub struct Plan<'a> {
    /// The initial tokens, in the order of their ids: special tokens, bytes, characters. A character inside a
    /// word is looked up with `prefix`.
    pub alphabet: Vec<String>,
    /// What marks a token inside a word: `##` for WordPiece, else empty.
    pub prefix: &'a str,
    /// Tokens that no merge may make.
    pub reserved: &'a BTreeSet<String>,
    pub vocab_size: usize,
    /// A pair that occurs less often is not merged.
    pub min_frequency: u64,
    /// The longest token, in characters without the prefix.
    pub max_length: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Trained {
    /// By id.
    pub tokens: Vec<String>,
    /// In the order in which they were learned, which is the order in which they apply.
    pub merges: Vec<(String, String)>,
}

/// Two token ids side by side.
type Pair = (u32, u32);

/// How often a pair occurs, and the words that it occurs in or occurred in.
#[derive(Default)]
struct Stat {
    count: i64,
    words: Vec<u32>,
}

/// A distinct word: its tokens lie at `start` in [`Trainer::symbols`].
struct Span {
    start: usize,
    len: u32,
    /// How often it occurs.
    count: i64,
}

struct Trainer<'a> {
    plan: &'a Plan<'a>,
    tokens: Vec<String>,
    ids: HashMap<String, u32, FixedState>,
    /// The tokens of all words in one buffer; a merge shortens a word in place.
    symbols: Vec<u32>,
    words: Vec<Span>,
    /// The index in `stats` of each pair.
    pairs: HashMap<Pair, u32, FixedState>,
    stats: Vec<Stat>,
    /// Pairs by count; outdated entries are recognized when they are popped.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

/// Learns merges from `words`, until the vocabulary is full or no pair is frequent enough.
///
/// # Errors
/// On cancellation.
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
        let ids = tokens.iter().cloned().zip(0..).collect();
        let mut trainer = Trainer {
            plan,
            tokens,
            ids,
            symbols: Vec::new(),
            words: Vec::new(),
            pairs: HashMap::default(),
            stats: Vec::new(),
            queue: BinaryHeap::new(),
        };
        let (first, inside) = (trainer.letters(""), trainer.letters(plan.prefix));
        for word in words {
            trainer.add_word(word, &first, &inside);
        }
        trainer
    }

    /// The ids of single characters with `prefix`.
    fn letters(&self, prefix: &str) -> HashMap<char, u32, FixedState> {
        let letter = |(token, id): (&String, u32)| {
            let mut chars = token.strip_prefix(prefix)?.chars();
            Some((chars.next().filter(|_| chars.next().is_none())?, id))
        };
        self.tokens.iter().zip(0..).filter_map(letter).collect()
    }

    /// A character that is not in the alphabet cuts a word in two; a word that is looked up whole (with a
    /// prefix) is then unknown and is not used.
    fn add_word(
        &mut self,
        word: &Word,
        first: &HashMap<char, u32, FixedState>,
        inside: &HashMap<char, u32, FixedState>,
    ) {
        let from = (self.symbols.len(), self.words.len());
        let mut start = from.0;
        for (i, c) in word.text.chars().enumerate() {
            match (if i == 0 { first } else { inside }).get(&c) {
                Some(id) => self.symbols.push(*id),
                None if self.plan.prefix.is_empty() => start = self.end_piece(start, word.count),
                None => {
                    self.symbols.truncate(from.0);
                    return self.words.truncate(from.1);
                }
            }
        }
        self.end_piece(start, word.count);
    }

    /// Makes the symbols since `start` a word, if it has pairs. Gives the start of the next.
    fn end_piece(&mut self, start: usize, count: u64) -> usize {
        let len = self.symbols.len() - start;
        if len > 1 {
            self.words.push(Span { start, len: len as u32, count: count as i64 });
        } else {
            self.symbols.truncate(start);
        }
        self.symbols.len()
    }

    fn count_pairs(&mut self) {
        for i in 0..self.words.len() {
            let Span { start, len, count } = self.words[i];
            for at in start..start + len as usize - 1 {
                let pair = (self.symbols[at], self.symbols[at + 1]);
                self.stat(pair).add(count, i as u32);
            }
        }
        let all = self.pairs.iter();
        self.queue = all.map(|(pair, stat)| (self.stats[*stat as usize].count, Reverse(*pair))).collect();
    }

    fn stat(&mut self, pair: Pair) -> &mut Stat {
        let next = self.stats.len() as u32;
        let at = *self.pairs.entry(pair).or_insert(next);
        if at == next {
            self.stats.push(Stat::default());
        }
        &mut self.stats[at as usize]
    }

    /// The most frequent pair that may be merged.
    fn next_pair(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.stat(pair).count;
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
            self.stat(pair).count = 0;
        }
        None
    }

    fn spelling(&self, pair: Pair) -> (String, String) {
        (self.tokens[pair.0 as usize].clone(), self.tokens[pair.1 as usize].clone())
    }

    /// The token of a merged pair.
    fn token(&self, pair: Pair) -> String {
        let (left, right) = (&self.tokens[pair.0 as usize], &self.tokens[pair.1 as usize]);
        left.clone() + right.strip_prefix(self.plan.prefix).unwrap_or(right)
    }

    /// Replaces `pair` by its token wherever it occurs.
    fn merge(&mut self, pair: Pair) {
        let token = self.token(pair);
        // Two pairs may give the same token; it keeps its id.
        let new = *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            self.tokens.len() as u32 - 1
        });
        let mut changed = Vec::new();
        for word in std::mem::take(&mut self.stat(pair).words) {
            self.merge_in(word, pair, new, &mut changed);
        }
        self.stat(pair).count = 0;
        changed.sort_unstable();
        changed.dedup();
        for next in changed {
            let count = self.stat(next).count;
            if count > 0 {
                self.queue.push((count, Reverse(next)));
            }
        }
    }

    /// Replaces `pair` by `new` in one word, from left to right, and updates the counts of pairs.
    fn merge_in(&mut self, word: u32, pair: Pair, new: u32, changed: &mut Vec<Pair>) {
        let Span { start, len, count } = self.words[word as usize];
        let end = start + len as usize;
        let (mut from, mut to) = (start, start);
        while from < end {
            if from + 1 == end || (self.symbols[from], self.symbols[from + 1]) != pair {
                self.symbols[to] = self.symbols[from];
                (from, to) = (from + 1, to + 1);
                continue;
            }
            if to > start {
                let before = self.symbols[to - 1];
                self.stat((before, pair.0)).count -= count;
                self.stat((before, new)).add(count, word);
                changed.push((before, new));
            }
            if from + 2 < end {
                let behind = self.symbols[from + 2];
                self.stat((pair.1, behind)).count -= count;
                self.stat((new, behind)).add(count, word);
                changed.push((new, behind));
            }
            self.symbols[to] = new;
            (from, to) = (from + 2, to + 1);
        }
        self.words[word as usize].len = (to - start) as u32;
    }
}

impl Stat {
    /// Another occurrence, in a word that occurs `count` times.
    fn add(&mut self, count: i64, word: u32) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}
