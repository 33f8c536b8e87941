//! MinHash signatures and their index by locality-sensitive hashing: texts whose sets of word n-grams
//! overlap are found without comparing every pair.
//!
//! Broder, 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman
//! and Ullman, "Mining of Massive Datasets", chapter 3; of each minimum only the lowest 8 bits are
//! kept for the estimate (Li and König, 2010, "b-Bit Minwise Hashing"), which makes a signature 4 times
//! smaller at hardly more variance.
//!
//! It measures resemblance (Jaccard), not containment: a tale inside a long book is no near-duplicate
//! of the book.

use std::collections::HashMap;

use crate::base::Rng;

/// Hashes texts. Two hashers of the same shape give the same signatures, always.
pub struct MinHasher {
    /// Of each permutation: an odd factor and a summand (multiply-shift, Dietzfelbinger 1997).
    permutations: Vec<(u64, u64)>,
    shingle_words: usize,
    bands: usize,
}

/// What is kept of a text: a byte per permutation and a key per band.
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
        // Not the pipeline's seed: which documents are duplicates does not depend on it.
        let mut rng = Rng::new(0, "minhash");
        let permutations = (0..permutations).map(|_| (rng.next_u64() | 1, rng.next_u64())).collect();
        MinHasher { permutations, shingle_words, bands }
    }

    /// `None` for a text without a word.
    pub fn signature(&self, text: &str) -> Option<Signature> {
        let words = word_hashes(text);
        if words.is_empty() {
            return None;
        }
        let mut minima = vec![u32::MAX; self.permutations.len()];
        for shingle in words.windows(self.shingle_words.min(words.len())) {
            let x = shingle.iter().fold(0, |hash, word| mix(hash ^ word));
            for (minimum, (factor, summand)) in minima.iter_mut().zip(&self.permutations) {
                let hash = (factor.wrapping_mul(x).wrapping_add(*summand) >> 32) as u32;
                *minimum = hash.min(*minimum);
            }
        }
        let rows = minima.len() / self.bands;
        let key = |(band, rows): (usize, &[u32])| {
            rows.iter().fold(mix(band as u64 + 1), |hash, minimum| mix(hash ^ u64::from(*minimum)))
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
    /// How often two bytes agree by chance.
    const CHANCE: f64 = 1.0 / 256.0;
    let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
    ((equal as f64 / a.len() as f64 - CHANCE) / (1.0 - CHANCE)).max(0.0)
}

/// A hash of each word: a run of letters and digits, in lower case.
fn word_hashes(text: &str) -> Vec<u64> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let lower = word.chars().flat_map(char::to_lowercase);
            mix(lower.fold(0xCBF2_9CE4_8422_2325, |hash: u64, c| {
                (hash ^ u64::from(c)).wrapping_mul(0x0100_0000_01B3) // FNV-1a
            }))
        })
        .collect()
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of `x` changes every other.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Signatures by band: who shares a band with a text is worth comparing to it.
///
/// Of each text it keeps `permutations` bytes, 4 bytes a band, and an entry of 17 to 34 bytes in the
/// map for each band that it is first in: 0.5 to 0.75 KiB with 128 permutations in 16 bands.
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
        (0..n).map(|_| format!("w{}", rng.below(100_000))).collect()
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
}
