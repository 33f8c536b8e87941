//! A cache of the ids of words: most words of a text occur many times.
//!
//! A direct-mapped table: a word replaces the one in its slot, so it never exceeds a few MiB. A cached word
//! has the ids that encoding gives, so ids do not depend on the cache's state.

use std::ops::Range;

/// The longest word that is cached, in bytes.
const WORD: usize = 31;
/// The most ids of a word that is cached.
const IDS: usize = 7;
/// Slots at first, and at most (2 MiB).
const FEWEST: usize = 1 << 9;
const MOST: usize = 1 << 15;

/// A word of up to [`WORD`] bytes, filled up with zeros; the last byte is its length.
type Key = [u64; 4];

/// For each length, the bits of a key that belong to the word.
const MASKS: [Key; WORD + 1] = masks();

const fn masks() -> [Key; WORD + 1] {
    let mut masks = [[0; 4]; WORD + 1];
    let mut len = 0;
    while len <= WORD {
        let mut byte = 0;
        while byte < len {
            masks[len][byte / 8] |= 0xFF << (8 * (byte % 8));
            byte += 1;
        }
        len += 1;
    }
    masks
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))] // one line of the processor's cache
struct Slot {
    key: Key,
    ids: [u32; IDS],
    len: u32,
}

/// See the module.
pub struct WordCache {
    slots: Vec<Slot>,
    /// Misses since the table was last resized.
    missed: usize,
}

/// The slot for a word that was not found.
pub struct Place(Option<Key>);

impl Default for WordCache {
    fn default() -> Self {
        WordCache { slots: vec![Slot::default(); FEWEST], missed: 0 }
    }
}

impl WordCache {
    /// Adds the ids of the word at `word` in `text` to `ids`, if it is cached.
    ///
    /// # Errors
    /// On a miss: the slot for [`WordCache::put`].
    #[inline]
    pub fn get(&self, text: &[u8], word: Range<usize>, ids: &mut Vec<u32>) -> Result<(), Place> {
        let Some(key) = key(text, word) else { return Err(Place(None)) };
        let slot = &self.slots[self.slot(&key)];
        if slot.key != key {
            return Err(Place(Some(key)));
        }
        // A copy of fixed size, then truncated, is faster than one of variable size.
        let end = ids.len() + slot.len as usize;
        ids.extend_from_slice(&slot.ids);
        ids.truncate(end);
        Ok(())
    }

    /// Caches the ids of a word, if they are few.
    pub fn put(&mut self, place: Place, ids: &[u32]) {
        let Some(key) = place.0.filter(|_| ids.len() <= IDS) else { return };
        self.missed += 1;
        if self.missed > self.slots.len() && self.slots.len() < MOST {
            *self = WordCache { slots: vec![Slot::default(); self.slots.len() * 4], missed: 0 };
        }
        let slot = self.slot(&key);
        let slot = &mut self.slots[slot];
        (slot.key, slot.len) = (key, ids.len() as u32);
        slot.ids[..ids.len()].copy_from_slice(ids);
    }

    #[inline]
    fn slot(&self, key: &Key) -> usize {
        // Both halves of a product of 128 bits depend on all bits of both factors.
        let product = u128::from(key[0] ^ key[2].rotate_left(23) ^ 0x9E37_79B9_7F4A_7C15)
            * u128::from(key[1] ^ key[3] ^ 0xD1B5_4A32_D192_ED03);
        (product as u64 ^ (product >> 64) as u64) as usize & (self.slots.len() - 1)
    }
}

#[inline]
fn key(text: &[u8], word: Range<usize>) -> Option<Key> {
    let mask = MASKS.get(word.len())?;
    let mut bytes = [0; 32];
    match text.get(word.start..word.start + 32) {
        // A copy of fixed size; bytes after the word are masked off.
        Some(more) => bytes.copy_from_slice(more),
        None => bytes[..word.len()].copy_from_slice(&text[word.clone()]),
    }
    let long = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes")) & mask[i];
    Some([long(0), long(1), long(2), long(3) | (word.len() as u64) << 56])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(cache: &WordCache, text: &str, word: Range<usize>) -> Option<Vec<u32>> {
        let mut ids = vec![9];
        cache.get(text.as_bytes(), word, &mut ids).ok()?;
        assert_eq!(ids.remove(0), 9, "added behind what there was");
        Some(ids)
    }

    fn put(cache: &mut WordCache, word: &str, ids: &[u32]) {
        let place = cache.get(word.as_bytes(), 0..word.len(), &mut Vec::new());
        if let Err(place) = place {
            cache.put(place, ids);
        }
    }

    #[test]
    fn a_word_is_found_wherever_it_stands() {
        let mut cache = WordCache::default();
        put(&mut cache, "ab", &[1, 2]);
        put(&mut cache, "ab\0", &[3]);
        put(&mut cache, &"x".repeat(31), &[4; 7]);
        put(&mut cache, &"y".repeat(32), &[5]);
        put(&mut cache, "many", &[6; 8]);
        let text = format!("ab{}ab", "x".repeat(31));
        assert_eq!(get(&cache, &text, 0..2), Some(vec![1, 2]));
        assert_eq!(get(&cache, &text, 33..35), Some(vec![1, 2]));
        assert_eq!(get(&cache, &text, 2..33), Some(vec![4; 7]));
        assert_eq!(get(&cache, &text, 1..3), None);
        assert_eq!(get(&cache, "ab\0", 0..3), Some(vec![3]));
        assert_eq!(get(&cache, &"y".repeat(32), 0..32), None, "too long");
        assert_eq!(get(&cache, "many", 0..4), None, "too many ids");
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_put(words in proptest::collection::vec("[ab\0é]{1,33}", 1..3000)) {
            let mut cache = WordCache::default();
            let ids = |word: &str| word.bytes().take(7).map(u32::from).collect::<Vec<_>>();
            for word in &words {
                put(&mut cache, word, &ids(word));
                if let Some(found) = get(&cache, word, 0..word.len()) {
                    prop_assert_eq!(found, ids(word));
                }
            }
            prop_assert!(cache.slots.len() <= MOST);
        }
    }
}
