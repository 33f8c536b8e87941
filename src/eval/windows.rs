//! Texts that are longer than a model's context, in windows that overlap.

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

/// Windows of `context` ids that begin `stride` ids apart, 1 to `context`; each id but the first is scored once,
/// those behind the first window with at least `context - stride` ids before the one that predicts them.
pub fn windows(len: usize, context: usize, stride: usize) -> impl Iterator<Item = Window> {
    let (mut start, mut next) = (0, 1);
    std::iter::from_fn(move || {
        if next >= len {
            return None;
        }
        let end = (start + context).min(len - 1);
        let window = Window { read: start..end, scored: next..end + 1 };
        (next, start) = (end + 1, start + stride);
        Some(window)
    })
}

/// How far apart windows begin where nothing else is asked for: half of them, rounded up.
pub fn stride(context: usize) -> usize {
    context.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_but_the_first_is_scored_once_with_enough_before_it() {
        for (len, context) in [(0, 4), (1, 4), (2, 4), (5, 4), (6, 4), (97, 8), (40, 1), (10, 3), (23, 5)] {
            for stride in [1, stride(context), context] {
                let all: Vec<Window> = windows(len, context, stride).collect();
                let scored: Vec<usize> = all.iter().flat_map(|w| w.scored.clone()).collect();
                assert_eq!(scored, (1..len).collect::<Vec<_>>(), "{len} {context} {stride}");
                for (i, w) in all.iter().enumerate() {
                    assert!(w.read.len() <= context && w.read.end == w.scored.end - 1);
                    assert_eq!(w.read.start, i * stride);
                    assert!(i == 0 || w.scored.start - w.read.start > context - stride, "{w:?}");
                }
            }
        }
    }
}
