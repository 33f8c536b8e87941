//! Texts that are longer than a model's context, in windows that overlap by half.

use std::ops::Range;

use crate::model::IGNORE;

/// A window of a text's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What the model reads: each id predicts the one behind it.
    pub read: Range<usize>,
    /// The ids that it predicts and no window before did.
    pub scored: Range<usize>,
}

impl Window {
    /// What each id that is read is to predict; [`IGNORE`] where another window or nobody scores it.
    pub fn targets(&self, ids: &[u32], counts: impl Fn(usize) -> bool) -> Vec<u32> {
        let predicted = self.read.start + 1..=self.read.end;
        predicted.map(|i| if i >= self.scored.start && counts(i) { ids[i] } else { IGNORE }).collect()
    }
}

/// Windows of `seq_len` ids at a stride of half a window; each id but the first is scored once, those behind the
/// first window with at least half a window before them.
pub fn windows(len: usize, seq_len: usize) -> impl Iterator<Item = Window> {
    let (mut start, mut next) = (0, 1);
    std::iter::from_fn(move || {
        if next >= len {
            return None;
        }
        let end = (start + seq_len).min(len - 1);
        let window = Window { read: start..end, scored: next..end + 1 };
        (next, start) = (end + 1, end.saturating_sub(stride(seq_len)));
        Some(window)
    })
}

/// How far apart windows begin.
pub fn stride(seq_len: usize) -> usize {
    seq_len / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_but_the_first_is_scored_once_with_half_a_window_before_it() {
        for (len, seq_len) in [(0, 4), (1, 4), (2, 4), (5, 4), (6, 4), (97, 8), (40, 1), (10, 3)] {
            let all: Vec<Window> = windows(len, seq_len).collect();
            let scored: Vec<usize> = all.iter().flat_map(|w| w.scored.clone()).collect();
            assert_eq!(scored, (1..len).collect::<Vec<_>>(), "{len} {seq_len}");
            for w in &all {
                assert!(w.read.len() <= seq_len && w.read.end == w.scored.end - 1);
                assert!(w.read.start == 0 || w.scored.start - w.read.start > seq_len / 2, "{w:?}");
            }
        }
    }
}
