//! Sequences that were read, kept for prompts that begin alike: those read only what is new in them.
//!
//! A cache depends on its tokens alone, so what is computed with a kept one are the bits that would be computed
//! without. Least recently used sequences are forgotten first.

use std::collections::VecDeque;

use super::Sequence;
use crate::model::{Cache, Config};

/// Sequences kept within a bound of memory.
pub struct Prefixes {
    /// The least recently used first.
    kept: VecDeque<Kept>,
    bytes: u64,
    most_bytes: u64,
}

struct Kept {
    tokens: Vec<u32>,
    cache: Cache,
}

impl Kept {
    fn bytes(&self) -> u64 {
        self.cache.bytes() + 4 * self.tokens.capacity() as u64
    }

    /// How many first tokens it has in common with `ids`.
    fn common(&self, ids: &[u32]) -> usize {
        self.tokens.iter().zip(ids).take_while(|(a, b)| a == b).count()
    }
}

impl Prefixes {
    pub fn new(most_bytes: u64) -> Self {
        Prefixes { kept: VecDeque::new(), bytes: 0, most_bytes }
    }

    /// The memory that they take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps what was read of `sequence`, unless it had to drop tokens.
    pub fn keep(&mut self, sequence: Sequence) {
        if self.most_bytes == 0 {
            return;
        }
        let Some((mut tokens, mut cache)) = sequence.into_read() else { return };
        tokens.shrink_to_fit();
        cache.shrink();
        let new = Kept { tokens, cache };
        // One that begins with the tokens of another serves in its place.
        if let Some(i) = self.kept.iter().position(|old| old.tokens.starts_with(&new.tokens)) {
            self.use_again(i);
            return;
        }
        self.kept.retain(|old| !new.tokens.starts_with(&old.tokens));
        self.kept.push_back(new);
        self.bytes = self.kept.iter().map(Kept::bytes).sum();
        while self.bytes > self.most_bytes {
            let oldest = self.kept.pop_front().expect("no sequences take no memory");
            self.bytes -= oldest.bytes();
        }
    }

    /// [`Prefixes::keep`] of a copy.
    pub fn keep_copy(&mut self, sequence: Option<&Sequence>) {
        if self.most_bytes > 0 {
            sequence.cloned().into_iter().for_each(|sequence| self.keep(sequence));
        }
    }

    /// What was read of the longest kept beginning of `ids`: at most all but the last, which has to be read for
    /// the logits behind it.
    pub fn take(&mut self, ids: &[u32], config: &Config) -> Option<Cache> {
        let ids = &ids[..ids.len().saturating_sub(1)];
        let all = self.kept.iter().map(|kept| kept.common(ids)).enumerate();
        let (i, common) = all.max_by_key(|(_, common)| *common).filter(|(_, common)| *common > 0)?;
        if common < self.kept[i].tokens.len() {
            // The rest of it may be of use to others.
            self.use_again(i);
            return self.kept.back().map(|kept| kept.cache.prefix(common, config));
        }
        let mut kept = self.kept.remove(i)?;
        self.bytes -= kept.bytes();
        kept.cache.reserve(config);
        Some(kept.cache)
    }

    /// Makes the `i`th the most recently used.
    fn use_again(&mut self, i: usize) {
        let kept = self.kept.remove(i);
        self.kept.extend(kept);
    }
}
