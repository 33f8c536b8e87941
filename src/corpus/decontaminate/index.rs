//! Which items of evaluation sets share words with a text: n-grams found by their hash, then compared word by
//! word, so that there are no false positives.
//!
//! The memory is that of the evaluation sets: each word of them, and 24 bytes for each n-gram. The texts that
//! are looked at are not kept.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::FixedState;

use super::words::each_word;

/// Shorter texts of items are compared as a whole only: one or two words occur in any text.
pub const SHORTEST: usize = 3;

/// The longest n-gram.
pub const LONGEST: usize = 63;

/// How much of an item must be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// What is asked. Where it has fewer words than an n-gram, all of them must occur one after the other.
    Question,
    /// What is answered. Where it has fewer words than an n-gram, it isn't compared: a right answer such as
    /// "yes" or "a cat" occurs in any text.
    Answer,
}

/// Number of a word of the evaluation sets.
type Word = u32;

/// Of words that no evaluation set has.
const UNKNOWN: Word = Word::MAX;

/// Words of an item.
#[derive(Debug, Clone, Copy)]
struct Gram {
    item: u32,
    /// Where they begin in [`Index::words`].
    at: u32,
    length: u32,
}

/// The n-grams of evaluation sets.
#[derive(Default)]
pub struct Index {
    ngram: usize,
    vocabulary: HashMap<Box<str>, Word, FixedState>,
    /// The words of all texts of all items, one text behind the other.
    words: Vec<Word>,
    /// By their hash.
    grams: Vec<(u64, Gram)>,
    /// Hash -> its range in `grams`.
    by_hash: HashMap<u64, Range<u32>, FixedState>,
    /// Of each word, the lengths of the n-grams that begin with it: bit `n` for length `n`.
    lengths: Vec<u64>,
    /// Texts of fewer than [`SHORTEST`] words -> their items.
    whole: HashMap<Vec<Word>, Vec<u32>>,
}

/// Where a text shares words with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The number of the item.
    pub item: u32,
    /// Bytes of the text, in order, apart from each other: from the first to the last of the shared words.
    pub ranges: Vec<Range<usize>>,
}

impl Index {
    /// An index of n-grams of `ngram` words, from [`SHORTEST`] to [`LONGEST`].
    pub fn new(ngram: usize) -> Self {
        Index { ngram, ..Index::default() }
    }

    /// Adds a text of the item numbered `item`. Gives whether it is compared.
    pub fn add(&mut self, item: u32, text: &str, sort: Sort) -> bool {
        let start = self.words.len();
        each_word(text, |word, _| {
            let next = self.vocabulary.len() as Word;
            let number = match self.vocabulary.get(word) {
                Some(number) => *number,
                None => *self.vocabulary.entry(word.into()).or_insert(next),
            };
            self.words.push(number);
        });
        let count = self.words.len() - start;
        if count == 0 || (count < self.ngram && sort == Sort::Answer) {
            self.words.truncate(start);
            return false;
        }
        if count < SHORTEST {
            self.whole.entry(self.words.split_off(start)).or_default().push(item);
            return true;
        }
        let length = count.min(self.ngram);
        let gram = |at: usize| Gram { item, at: at as u32, length: length as u32 };
        self.grams.extend((start..=start + count - length).map(|at| (0, gram(at))));
        true
    }

    /// Makes the index ready, after the last [`Index::add`]. Gives how many different n-grams there are.
    pub fn finish(&mut self) -> u64 {
        let hashes = Hashes::of(&self.words);
        self.lengths = vec![0; self.vocabulary.len()];
        for (hash, gram) in &mut self.grams {
            let at = gram.at as usize;
            *hash = hashes.range(at, gram.length as usize);
            self.lengths[self.words[at] as usize] |= 1 << gram.length;
        }
        self.grams.sort_unstable_by_key(|(hash, gram)| (*hash, gram.item, gram.at));
        let mut start = 0;
        for same in self.grams.chunk_by(|a, b| a.0 == b.0) {
            let end = start + same.len() as u32;
            self.by_hash.insert(same[0].0, start..end);
            start = end;
        }
        self.by_hash.len() as u64
    }

    /// The items that share words with `text`, in the order of their numbers.
    pub fn find(&self, text: &str) -> Vec<Overlap> {
        let (mut words, mut places) = (Vec::new(), Vec::new());
        each_word(text, |word, range| {
            words.push(self.vocabulary.get(word).copied().unwrap_or(UNKNOWN));
            places.push(range);
        });
        let mut found = self.shared(&words);
        if words.len() < SHORTEST {
            found.extend(self.whole.get(&words).into_iter().flatten().map(|item| (*item, 0..words.len())));
        }
        found.sort_unstable_by_key(|(item, range)| (*item, range.start));
        let bytes = |range: Range<usize>| places[range.start].start..places[range.end - 1].end;
        let by_item = found.chunk_by(|a, b| a.0 == b.0);
        by_item
            .map(|same| {
                let ranges = joined(same.iter().map(|(_, range)| range.clone()));
                Overlap { item: same[0].0, ranges: ranges.into_iter().map(bytes).collect() }
            })
            .collect()
    }

    /// The item and the words of each n-gram in `words`.
    fn shared(&self, words: &[Word]) -> Vec<(u32, Range<usize>)> {
        let hashes = Hashes::of(words);
        let mut found = Vec::new();
        let mut known = 0; // words from here on that the evaluation sets have
        for at in (0..words.len()).rev() {
            known = if words[at] == UNKNOWN { 0 } else { known + 1 };
            if known < SHORTEST {
                continue;
            }
            let lengths = bits(self.lengths[words[at] as usize]).take_while(|length| *length <= known);
            for range in lengths.map(|length| at..at + length) {
                let same = self.grams_of(hashes.range(at, range.len()), &words[range.clone()]);
                found.extend(same.map(|gram| (gram.item, range.clone())));
            }
        }
        found
    }

    /// The n-grams that are `words`, which have the hash `hash`.
    fn grams_of<'a>(&'a self, hash: u64, words: &'a [Word]) -> impl Iterator<Item = &'a Gram> {
        let range = self.by_hash.get(&hash).map_or(0..0, |r| r.start as usize..r.end as usize);
        let all = self.grams[range].iter().map(|(_, gram)| gram);
        all.filter(|gram| self.words[gram.at as usize..][..gram.length as usize] == *words)
    }
}

/// The numbers of the bits that are set, from the lowest.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(lowest)
    })
}

/// Ranges in the order of their starts, with those that touch or overlap as one.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// Hashes of all stretches of a sequence of words: differences of prefix sums of a polynomial modulo 2^64
/// (Karp and Rabin 1987).
struct Hashes {
    prefix: Vec<u64>,
    powers: [u64; LONGEST + 1],
}

impl Hashes {
    /// Odd, so that its powers never become 0.
    const BASE: u64 = 0x9E37_79B9_7F4A_7C15;

    fn of(words: &[Word]) -> Self {
        let mut prefix = Vec::with_capacity(words.len() + 1);
        let mut sum = 0u64;
        prefix.push(sum);
        for word in words {
            sum = sum.wrapping_mul(Self::BASE).wrapping_add(u64::from(*word) + 1);
            prefix.push(sum);
        }
        let mut powers = [1u64; LONGEST + 1];
        for i in 1..powers.len() {
            powers[i] = powers[i - 1].wrapping_mul(Self::BASE);
        }
        Hashes { prefix, powers }
    }

    fn range(&self, at: usize, length: usize) -> u64 {
        self.prefix[at + length].wrapping_sub(self.prefix[at].wrapping_mul(self.powers[length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::corpus::decontaminate::words::words;

    fn index(ngram: usize, texts: &[(&str, Sort)]) -> Index {
        let mut index = Index::new(ngram);
        for (item, (text, sort)) in texts.iter().enumerate() {
            index.add(item as u32, text, *sort);
        }
        index.finish();
        index
    }

    fn shared<'a>(index: &Index, text: &'a str) -> Vec<(u32, Vec<&'a str>)> {
        let texts = |o: Overlap| (o.item, o.ranges.into_iter().map(|r| &text[r]).collect());
        index.find(text).into_iter().map(texts).collect()
    }

    #[test]
    fn n_grams_short_questions_and_the_shortest_ones() {
        use Sort::{Answer, Question};
        let index = index(
            5,
            &[
                ("The cat sat on the old mat today.", Question),
                ("What is 7 plus 5?", Question),
                ("What is seven?", Question),
                ("Hello!", Question),
                ("the old mat", Answer),
                ("a long answer of five words", Answer),
            ],
        );
        let text = "A dog: “the CAT sat, on the old mat” — what is 7 plus 5, hello";
        assert_eq!(
            shared(&index, text),
            [(0, vec!["the CAT sat, on the old mat"]), (1, vec!["what is 7 plus 5"])]
        );
        assert_eq!(shared(&index, "what is… seven: 7 plus 5"), [(2, vec!["what is… seven"])]);
        assert_eq!(shared(&index, "hello"), [(3, vec!["hello"])]);
        assert_eq!(shared(&index, "hello there"), []);
        assert_eq!(shared(&index, "the old mat"), []);
        assert_eq!(shared(&index, "long answer of five words, it is").len(), 1);
        assert_eq!(shared(&index, "long answer of four words, it is"), []);
    }

    #[test]
    fn stretches_apart_are_named_apart() {
        let index = index(3, &[("a b c d x y z", Sort::Question)]);
        assert_eq!(shared(&index, "b c d and a b c, but x y z"), [(0, vec!["b c d", "a b c", "x y z"])]);
    }

    /// The items of which some stretch of words of the right length occurs in the text, by trying all.
    fn by_hand(ngram: usize, items: &[String], text: &str) -> Vec<u32> {
        let text = words(text);
        let occurs = |part: &[String]| text.windows(part.len()).any(|window| window == part);
        let overlaps = |item: &String| {
            let item = words(item);
            match item.len() {
                0 => false,
                n if n < SHORTEST => item == text,
                n => item.windows(ngram.min(n)).any(occurs),
            }
        };
        (0..items.len() as u32).filter(|i| overlaps(&items[*i as usize])).collect()
    }

    proptest! {
        #[test]
        fn all_that_is_shared_is_found_and_nothing_else(
            items in proptest::collection::vec("([abc] ){0,9}", 1..6),
            text in "([abcd] ){0,30}",
            ngram in 3usize..7,
        ) {
            let all: Vec<(&str, Sort)> = items.iter().map(|text| (text.as_str(), Sort::Question)).collect();
            let found: Vec<u32> = index(ngram, &all).find(&text).into_iter().map(|o| o.item).collect();
            prop_assert_eq!(found, by_hand(ngram, &items, &text));
        }
    }
}
