//! Applies the merges of a byte-pair encoding to a word: of all pairs of adjacent tokens the one with the
//! lowest rank is merged, the leftmost of equals, until none is left (Sennrich, Haddow and Birch, 2016,
//! <https://arxiv.org/abs/1508.07909>).
//!
//! The ids are those of the `tokenizers` library (tests compare them), at several times its speed: the
//! merges are in one flat hash table, and words are not copied. Deliberately not supported are options that
//! our own tokenizers do not use (prefixes and suffixes of words, unknown tokens without byte fallback):
//! [`Bpe::of`] is then `None`, and the library encodes. Dropout of merges is not done.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::FixedState;

use super::byte_symbol;
use super::cut::{Cut, SPACE};
use super::known::{BpeJson, Merge};

/// Up to so many tokens, a scan of all pairs for each merge is faster than a priority queue.
const SHORT: usize = 64;

/// The limit of ids, so that tables by id take little memory.
const MOST_IDS: u32 = 1 << 24;

/// No merge, or no neighbour.
const NONE: u32 = u32::MAX;

/// The token of a merge, and its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Learned {
    rank: u32,
    id: u32,
}

const NO_MERGE: Learned = Learned { rank: NONE, id: 0 };

/// The merges by their pair: open addressing with linear probing, at most half full.
struct Merges {
    slots: Vec<(u64, Learned)>,
    /// The right shift of the hash's product that gives a slot.
    shift: u32,
}

impl Merges {
    fn new(merges: HashMap<u64, Learned, FixedState>) -> Self {
        let size = (merges.len() * 2).next_power_of_two().max(2);
        let mut table = Merges { slots: vec![(u64::MAX, NO_MERGE); size], shift: 64 - size.trailing_zeros() };
        for (pair, merge) in merges {
            let slot = table.slot(pair);
            table.slots[slot] = (pair, merge);
        }
        table
    }

    /// The slot of a pair, or the empty one where it would be inserted.
    #[inline]
    fn slot(&self, pair: u64) -> usize {
        // Fibonacci hashing: the high bits of a product depend on all bits of the pair.
        let mut slot = (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.slots[slot].0 != pair && self.slots[slot].0 != u64::MAX {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> Learned {
        self.slots[self.slot(pair(left, right))].1
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The initial tokens of a word.
enum Start {
    /// The id of each byte.
    Bytes(Box<[u32; 256]>),
    /// The id of each character that has one, else those of its bytes.
    Characters { known: HashMap<char, u32, FixedState>, bytes: Box<[u32; 256]> },
}

/// A byte-pair encoding that this module supports.
pub struct Bpe {
    start: Start,
    merges: Merges,
    /// By id, whether a word can be encoded to it.
    reachable: Vec<bool>,
}

impl Bpe {
    /// A model whose words are cut by `cut`; `None` when it has unsupported options or is invalid, which the
    /// library then reports.
    pub fn of(model: &BpeJson, cut: Cut) -> Option<Bpe> {
        let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        let plain = model.kind == "BPE"
            && empty(&model.continuing_subword_prefix)
            && empty(&model.end_of_word_suffix)
            && model.ignore_merges != Some(true);
        let id = |token: &str| model.vocab.get(token).copied().filter(|id| *id < MOST_IDS);
        let start = match cut {
            Cut::Bytes => Start::Bytes(all_bytes(|byte| id(byte_symbol(byte).encode_utf8(&mut [0; 4])))?),
            Cut::Pieces => Start::Characters {
                bytes: all_bytes(|byte| id(&format!("<0x{byte:02X}>")))
                    .filter(|_| model.byte_fallback == Some(true))?,
                known: model
                    .vocab
                    .keys()
                    .filter_map(|token| Some((only_char(&token.0)?, id(&token.0)?)))
                    // The model never sees a space.
                    .filter(|(c, _)| *c != ' ')
                    .map(|(c, id)| (if c == SPACE { ' ' } else { c }, id))
                    .collect(),
            },
        };
        let mut merges = HashMap::default();
        for (rank, Merge(left, right)) in model.merges.iter().enumerate() {
            let made = Learned { rank: u32::try_from(rank).ok()?, id: id(&[&**left, right].concat())? };
            // Of duplicate pairs, the library keeps the last.
            merges.insert(pair(id(left)?, id(right)?), made);
        }
        plain.then(|| Bpe { reachable: reachable(&start, &merges), merges: Merges::new(merges), start })
    }

    /// Whether some text is encoded to `id`.
    pub fn can_give(&self, id: u32) -> bool {
        self.reachable.get(id as usize).is_some_and(|can| *can)
    }

    /// The ids of a word of the text, which replace those in `ids`.
    pub fn encode(&self, word: &str, ids: &mut Vec<u32>, work: &mut Work) {
        ids.clear();
        match &self.start {
            Start::Bytes(bytes) => ids.extend(word.bytes().map(|byte| bytes[byte as usize])),
            Start::Characters { known, bytes } => {
                for c in word.chars() {
                    // The model does not distinguish U+2581 in the text from a space.
                    match known.get(if c == SPACE { &' ' } else { &c }) {
                        Some(id) => ids.push(*id),
                        None => ids.extend(spelled(c).bytes().map(|byte| bytes[byte as usize])),
                    }
                }
            }
        }
        if ids.len() <= SHORT { self.merge_short(ids, work) } else { self.merge_long(ids, work) }
    }

    /// Scans all pairs for each merge.
    fn merge_short(&self, ids: &mut Vec<u32>, work: &mut Work) {
        let pairs = &mut work.pairs;
        pairs.clear();
        pairs.extend(ids.windows(2).map(|w| self.merges.get(w[0], w[1])));
        loop {
            let mut best = NO_MERGE;
            let mut at = 0;
            for (i, merge) in pairs.iter().enumerate() {
                if merge.rank < best.rank {
                    (best, at) = (*merge, i);
                }
            }
            if best.rank == NONE {
                return;
            }
            ids[at] = best.id;
            ids.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = self.merges.get(ids[at - 1], ids[at]);
            }
            if at < pairs.len() {
                pairs[at] = self.merges.get(ids[at], ids[at + 1]);
            }
        }
    }

    /// With a priority queue of pairs and a doubly linked list of tokens.
    fn merge_long(&self, ids: &mut Vec<u32>, work: &mut Work) {
        let Work { queue, before, behind, .. } = work;
        let count = ids.len() as u32;
        queue.clear();
        before.clear();
        before.extend((0..count).map(|i| i.wrapping_sub(1)));
        behind.clear();
        behind.extend((1..count).chain([NONE]));
        let wait = |ids: &[u32], left: u32, right: u32, queue: &mut Queue| {
            let merge = self.merges.get(ids[left as usize], ids[right as usize]);
            if merge.rank != NONE {
                queue.push(Reverse((merge.rank, left)));
            }
        };
        for right in 1..count {
            wait(ids, right - 1, right, queue);
        }
        while let Some(Reverse((rank, left))) = queue.pop() {
            let right = behind[left as usize];
            // Tokens merged since are `NONE`, which is in no pair.
            if right == NONE || ids[left as usize] == NONE {
                continue;
            }
            let merge = self.merges.get(ids[left as usize], ids[right as usize]);
            if merge.rank != rank {
                continue;
            }
            ids[left as usize] = merge.id;
            ids[right as usize] = NONE;
            let next = behind[right as usize];
            behind[left as usize] = next;
            if next != NONE {
                before[next as usize] = left;
                wait(ids, left, next, queue);
            }
            let previous = before[left as usize];
            if previous != NONE {
                wait(ids, previous, left, queue);
            }
        }
        ids.retain(|id| *id != NONE);
    }
}

type Queue = BinaryHeap<Reverse<(u32, u32)>>;

/// Buffers for encoding a word, reused for the next.
#[derive(Default)]
pub struct Work {
    pairs: Vec<Learned>,
    queue: Queue,
    before: Vec<u32>,
    behind: Vec<u32>,
}

fn all_bytes(id: impl Fn(u8) -> Option<u32>) -> Option<Box<[u32; 256]>> {
    let mut ids = Box::new([0; 256]);
    for byte in 0..=255 {
        ids[byte as usize] = id(byte)?;
    }
    Some(ids)
}

fn only_char(token: &str) -> Option<char> {
    let mut chars = token.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// A character in the vocabulary's spelling.
fn spelled(c: char) -> String {
    if c == ' ' { SPACE.to_string() } else { c.to_string() }
}

fn reachable(start: &Start, merges: &HashMap<u64, Learned, FixedState>) -> Vec<bool> {
    let first: Vec<u32> = match start {
        Start::Bytes(bytes) => bytes.to_vec(),
        Start::Characters { known, bytes } => known.values().copied().chain(bytes.iter().copied()).collect(),
    };
    let all = || first.iter().copied().chain(merges.values().map(|merge| merge.id));
    let mut reachable = vec![false; all().max().map_or(0, |id| id as usize + 1)];
    all().for_each(|id| reachable[id as usize] = true);
    reachable
}
