//! Added tokens that are not special, such as `<think>`: matched in the text before it is cut into words.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::base::{Error, Result};

/// Matches them, leftmost-longest.
pub struct InText {
    find: AhoCorasick,
    /// By pattern; `None` for a special token. The library matches these as well and leaves them text, with
    /// the tokens that they overlap.
    ids: Vec<Option<u32>>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

impl InText {
    /// From spelling, id and whether it is special, of all added tokens that are matched without
    /// normalization. `None` when all of them are special.
    ///
    /// # Errors
    /// When there are too many.
    pub fn of<'a>(added: impl Iterator<Item = (&'a str, u32, bool)>) -> Result<Option<InText>> {
        let (mut spellings, mut ids) = (Vec::new(), Vec::new());
        for (spelling, id, special) in added.filter(|(spelling, ..)| !spelling.is_empty()) {
            spellings.push(spelling);
            ids.push((!special).then_some(id));
        }
        if ids.iter().all(Option::is_none) {
            return Ok(None);
        }
        let find = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(spellings);
        let find =
            find.map_err(|e| Error::input("the added tokens cannot be looked for in text").cause(e))?;
        Ok(Some(InText { find, ids }))
    }

    /// The tokens in a text, and the text between them.
    pub fn segments<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut start = 0;
        for found in self.find.find_iter(text) {
            let Some(id) = self.ids[found.pattern().as_usize()] else { continue };
            if start < found.start() {
                segments.push(Segment::Text(&text[start..found.start()]));
            }
            segments.push(Segment::Token(id));
            start = found.end();
        }
        if start < text.len() {
            segments.push(Segment::Text(&text[start..]));
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_the_leftmost_is_found_and_special_tokens_are_passed_over() {
        let tokens =
            [("<think>", 7, false), ("<think", 8, false), ("</think>", 9, false), ("<eos>", 3, true)];
        let in_text = InText::of(tokens.into_iter()).unwrap().unwrap();
        assert_eq!(
            in_text.segments("a<think>b<think <eos></think>"),
            [
                Segment::Text("a"),
                Segment::Token(7),
                Segment::Text("b"),
                Segment::Token(8),
                Segment::Text(" <eos>"),
                Segment::Token(9)
            ]
        );
        assert_eq!(in_text.segments(""), []);
        assert!(InText::of([("<eos>", 3, true)].into_iter()).unwrap().is_none());
    }
}
