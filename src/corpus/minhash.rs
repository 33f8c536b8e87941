//! MinHash signatures and their index by locality-sensitive hashing: texts whose sets of word n-grams
//! overlap are found without comparing every pair.
//!
//! Broder, 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman
//! and Ullman, "Mining of Massive Datasets", chapter 3; of each minimum only the lowest 8 bits are
//! kept for the estimate (Li and König, 2010, "b-Bit Minwise Hashing"), which makes a signature 4 times
//! smaller at hardly more variance.
//!
//! Texts whose digits, operators or emoji differ share no band, so they are never near-duplicates,
//! however long they are: see [`super::signs`].
//!
//! It measures resemblance (Jaccard), not containment: a tale inside a long book is no near-duplicate
//! of the book.

use std::collections::HashMap;

use super::signs::Tokens;
use crate::base::Rng;
use crate::base::rng::mix;

/// Hashes texts. Two hashers of the same shape give the same signatures, always.
pub struct MinHasher {
    /// Of each permutation: the odd factor and the summand of `x -> a x + b` modulo 2^32 (the linear
    /// permutations of Broder, Charikar, Frieze and Mitzenmacher, 1998); 32 bits, which vectorize.
    factors: Vec<u32>,
    summands: Vec<u32>,
    shingle_words: usize,
    bands: usize,
}

/// The signature of a text: a byte per permutation and a key per band.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    low_bytes: Box<[u8]>,
    bands: Box<[u64]>,
}

impl MinHasher {
    /// `permutations` hash functions in `bands` bands over n-grams of `shingle_words` words.
    ///
    /// # Panics
    /// When a number is 0 or `bands` does not divide `permutations`.
    pub fn new(permutations: usize, bands: usize, shingle_words: usize) -> Self {
        assert!(bands > 0 && shingle_words > 0 && permutations > 0 && permutations.is_multiple_of(bands));
        // A constant: which documents are duplicates does not depend on a seed.
        let mut rng = Rng::new(0, "minhash");
        let (factors, summands) =
            (0..permutations).map(|_| (rng.next_u64() as u32 | 1, rng.next_u64() as u32)).unzip();
        MinHasher { factors, summands, shingle_words, bands }
    }

    /// `None` for a text without a word or a meaningful sign.
    pub fn signature(&self, text: &str) -> Option<Signature> {
        let Tokens { hashes: words, signs } = Tokens::of(text);
        if words.is_empty() {
            return None;
        }
        let mut minima = vec![u32::MAX; self.factors.len()];
        for shingle in words.windows(self.shingle_words.min(words.len())) {
            let x = shingle.iter().fold(0, |hash, word| mix(hash ^ word)) as u32;
            let permutations = self.factors.iter().zip(&self.summands);
            for (minimum, (factor, summand)) in minima.iter_mut().zip(permutations) {
                *minimum = factor.wrapping_mul(x).wrapping_add(*summand).min(*minimum);
            }
        }
        let rows = minima.len() / self.bands;
        let key = |(band, rows): (usize, &[u32])| {
            rows.iter().fold(mix(signs ^ (band as u64 + 1)), |hash, minimum| mix(hash ^ u64::from(*minimum)))
        };
        Some(Signature {
            low_bytes: minima.iter().map(|m| *m as u8).collect(),
            bands: minima.chunks_exact(rows).enumerate().map(key).collect(),
        })
    }
}

impl Signature {
    /// The estimated Jaccard similarity of the two sets of n-grams, from 0 to 1. Its standard error is
    /// about `sqrt(s (1 - s) / permutations)`.
    pub fn similarity(&self, other: &Signature) -> f64 {
        estimate(&self.low_bytes, &other.low_bytes)
    }
}

fn estimate(a: &[u8], b: &[u8]) -> f64 {
    /// The probability that two bytes are equal by chance.
    const CHANCE: f64 = 1.0 / 256.0;
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    ((equal as f64 / a.len() as f64 - CHANCE) / (1.0 - CHANCE)).max(0.0)
}

/// Signatures by band: texts that share a band are compared.
///
/// Of each text it keeps `permutations` bytes, 4 bytes a band, and an entry of 17 to 34 bytes in the
/// map for each band that it is first in: measured 0.9 KiB with 128 permutations in 16 bands.
#[derive(Default)]
pub struct LshIndex {
    low_bytes: Vec<u8>,
    /// Band key -> the latest text with it, as its number + 1.
    latest: HashMap<u64, u32>,
    /// By text and band: the text before it with the same key, as its number + 1; 0 ends the chain.
    before: Vec<u32>,
    len: u32,
}

impl LshIndex {
    /// Adds a text; its number is how many there were before.
    pub fn insert(&mut self, signature: &Signature) -> u32 {
        let number = self.len;
        self.len += 1;
        self.low_bytes.extend_from_slice(&signature.low_bytes);
        for key in &signature.bands {
            self.before.push(self.latest.insert(*key, number + 1).unwrap_or(0));
        }
        number
    }

    /// The most similar of the texts that share a band with `signature`, when it reaches `threshold`;
    /// the earliest of equals.
    pub fn nearest(&self, signature: &Signature, threshold: f64) -> Option<(u32, f64)> {
        let bands = signature.bands.len();
        let width = signature.low_bytes.len();
        let mut candidates = Vec::new();
        for (band, key) in signature.bands.iter().enumerate() {
            let mut link = self.latest.get(key).copied().unwrap_or(0);
            while link > 0 {
                candidates.push(link - 1);
                link = self.before[(link - 1) as usize * bands + band];
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut best: Option<(u32, f64)> = None;
        for number in candidates {
            let at = number as usize * width;
            let similarity = estimate(&self.low_bytes[at..at + width], &signature.low_bytes);
            if similarity >= threshold && best.is_none_or(|(_, most)| similarity > most) {
                best = Some((number, similarity));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn words(rng: &mut Rng, n: usize) -> Vec<String> {
        let letter = |n: u64| char::from(b'a' + (n % 26) as u8);
        let word = |n: u64| [n, n / 26, n / 676, n / 17_576].map(letter).iter().collect();
        (0..n).map(|_| word(rng.below(100_000))).collect()
    }

    fn jaccard(a: &[String], b: &[String], n: usize) -> f64 {
        let set = |words: &[String]| words.windows(n).map(<[String]>::to_vec).collect::<HashSet<_>>();
        let (a, b) = (set(a), set(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn the_estimate_is_near_the_truth() {
        let hasher = MinHasher::new(256, 32, 5);
        let mut rng = Rng::new(1, "texts");
        for changed in [0, 3, 10, 30, 100] {
            let a = words(&mut rng, 400);
            let mut b = a.clone();
            for _ in 0..changed {
                let at = rng.index(400);
                b[at] = "other".into();
            }
            let (x, y) = (hasher.signature(&a.join(" ")).unwrap(), hasher.signature(&b.join(" ")).unwrap());
            let truth = jaccard(&a, &b, 5);
            let found = x.similarity(&y);
            assert!((found - truth).abs() < 0.12, "{changed} words changed: {found} for {truth}");
        }
    }

    #[test]
    fn near_texts_are_found_and_far_ones_are_not() {
        let hasher = MinHasher::new(128, 16, 5);
        let mut rng = Rng::new(2, "texts");
        let mut index = LshIndex::default();
        let texts: Vec<Vec<String>> = (0..200).map(|_| words(&mut rng, 300)).collect();
        for text in &texts {
            let signature = hasher.signature(&text.join(" ")).unwrap();
            assert_eq!(index.nearest(&signature, 0.8), None);
            index.insert(&signature);
        }
        for (i, text) in texts.iter().enumerate() {
            let mut near = text.clone();
            near[7] = "changed".into();
            let signature = hasher.signature(&near.join(" ").to_uppercase()).unwrap();
            let (found, similarity) = index.nearest(&signature, 0.8).expect("one word in 300 changed");
            assert_eq!(found, i as u32);
            assert!(similarity > 0.85, "{similarity}");
        }
    }

    #[test]
    fn short_texts_have_signatures_and_blank_ones_have_none() {
        let hasher = MinHasher::new(128, 16, 5);
        assert_eq!(hasher.signature("Yes, sir!"), hasher.signature("yes SIR"));
        assert_eq!(hasher.signature(" … "), None);
    }

    #[test]
    fn one_sign_keeps_long_texts_apart() {
        let hasher = MinHasher::new(128, 16, 5);
        let around = words(&mut Rng::new(3, "texts"), 60).join(" ");
        for pair in [["7 + 2", "7 - 2"], ["8 > 3", "8 < 3"], ["🙂", "🙁"], ["in 1914", "in 1915"]] {
            let mut index = LshIndex::default();
            for part in pair {
                let text = format!("{around} {part} {around}");
                let signature = hasher.signature(&text).unwrap();
                assert_eq!(index.nearest(&signature, 0.1), None, "{part}");
                index.insert(&signature);
                let near = hasher.signature(&format!("{text} anyway")).unwrap();
                assert!(index.nearest(&near, 0.8).is_some(), "{part}");
            }
        }
    }
}
