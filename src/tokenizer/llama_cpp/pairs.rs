//! What `gpt2` and `llama` vocabularies have in common: adjacent symbols are joined pair by pair, the best
//! pair first, the leftmost of equals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token, or no neighbour.
pub const NONE: u32 = u32::MAX;

/// A part of the text that is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    /// In bytes of the text.
    pub start: u32,
    pub end: u32,
    /// Its token, or [`NONE`].
    pub id: u32,
    previous: u32,
    next: u32,
}

/// The token of two joined symbols.
#[derive(Debug, Clone, Copy)]
pub struct Join {
    /// Pairs with lower values are joined first.
    pub order: u32,
    pub id: u32,
}

/// Two neighbours that can be joined, as they were when they were found.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    order: u32,
    left: u32,
    right: u32,
    /// The end of the left symbol and of the right one: when one has changed, so has its end.
    ends: (u32, u32),
    id: u32,
}

/// Symbols of a text, with the buffers for joining them.
#[derive(Debug, Default)]
pub struct Pairs {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Pairs {
    /// Begins another text.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub fn push(&mut self, len: usize, id: u32) {
        let at = self.symbols.len() as u32;
        let (start, previous) = match self.symbols.last_mut() {
            None => (0, NONE),
            Some(last) => {
                last.next = at;
                (last.end, at - 1)
            }
        };
        self.symbols.push(Symbol { start, end: start + len as u32, id, previous, next: NONE });
    }

    /// Joins as long as `join` finds pairs; calls `each` with what is left.
    pub fn join(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<Join>, mut each: impl FnMut(&Symbol)) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &join);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            if !self.is_current(&best) {
                continue;
            }
            let (before, after) = self.replace(&best);
            self.consider(before, best.left, &join);
            self.consider(best.left, after, &join);
        }
        let mut at = 0;
        while let Some(symbol) = self.symbols.get(at as usize) {
            each(symbol);
            at = symbol.next;
        }
    }

    fn consider(&mut self, left: u32, right: u32, join: &impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        if left == NONE || right == NONE {
            return;
        }
        let (a, b) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some(Join { order, id }) = join(a, b) {
            self.queue.push(Reverse(Candidate { order, left, right, ends: (a.end, b.end), id }));
        }
    }

    fn is_current(&self, pair: &Candidate) -> bool {
        let (left, right) = (&self.symbols[pair.left as usize], &self.symbols[pair.right as usize]);
        left.next == pair.right && (left.end, right.end) == pair.ends
    }

    /// Puts the joined symbol in the place of the left one; its neighbours.
    fn replace(&mut self, pair: &Candidate) -> (u32, u32) {
        let right = self.symbols[pair.right as usize];
        // Nothing is left of it: it is in no current pair.
        self.symbols[pair.right as usize].end = right.start;
        if right.next != NONE {
            self.symbols[right.next as usize].previous = pair.left;
        }
        let left = &mut self.symbols[pair.left as usize];
        (left.end, left.next, left.id) = (right.end, right.next, pair.id);
        (left.previous, left.next)
    }
}
