//! The passages of a text: what is cut out of a long document where words of it are shared.

use std::ops::Range;

/// A paragraph of more bytes is taken by its sentences.
const LONG: usize = 1000;

/// The paragraphs of `text`, which blank lines part, and the sentences of long ones. The ranges cover the
/// text: white space belongs to what stands before it.
pub fn passages(text: &str) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    for paragraph in paragraphs(text) {
        match paragraph.len() > LONG {
            true => all.extend(sentences(text, paragraph)),
            false => all.push(paragraph),
        }
    }
    all
}

fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let (mut start, mut at, mut blank) = (0, 0, false);
    let mut all = Vec::new();
    for line in text.split_inclusive('\n') {
        let empty = line.trim().is_empty();
        if blank && !empty && at > start {
            all.push(start..at);
            start = at;
        }
        blank = empty;
        at += line.len();
    }
    all.push(start..text.len());
    all
}

/// A sentence ends behind a full stop, question or exclamation mark, what closes behind it, and white space.
fn sentences(text: &str, paragraph: Range<usize>) -> Vec<Range<usize>> {
    let mut start = paragraph.start;
    let (mut ended, mut space) = (false, false);
    let mut all = Vec::new();
    for (at, c) in text[paragraph.clone()].char_indices().map(|(i, c)| (i + paragraph.start, c)) {
        if space && !c.is_whitespace() {
            all.push(start..at);
            (start, ended, space) = (at, false, false);
        }
        match c {
            '.' | '!' | '?' | '…' | '。' | '！' | '？' => ended = true,
            '"' | '\'' | '”' | '’' | '»' | ')' | ']' | '_' | '*' => {}
            c if c.is_whitespace() => space = ended,
            _ => ended = false,
        }
    }
    all.push(start..paragraph.end);
    all
}

/// A text without the passages that hold some of `shared`.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// What is left, without white space at its end; `None` where no word is.
    pub rest: Option<String>,
    /// How many passages were cut out.
    pub removed: usize,
}

/// Whether some of `shared` lies in `passage`.
pub fn touches(passage: &Range<usize>, shared: &[Range<usize>]) -> bool {
    shared.iter().any(|range| range.start < passage.end && passage.start < range.end)
}

/// Cuts `shared`, stretches of `text`, out of it.
pub fn cut(text: &str, shared: &[Range<usize>]) -> Cut {
    let all = passages(text);
    let (removed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|passage| touches(passage, shared));
    let mut rest: String = kept.into_iter().map(|range| &text[range]).collect();
    rest.truncate(rest.trim_end().len());
    let rest = rest.contains(char::is_alphanumeric).then_some(rest);
    Cut { rest, removed: removed.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Vec<&str> {
        passages(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn paragraphs_and_the_sentences_of_long_ones() {
        assert_eq!(shown("One. Two.\nThree.\n\n\nFour."), ["One. Two.\nThree.\n\n\n", "Four."]);
        let long = format!("“It was 3.5 m.” He said so… {} End!", "a ".repeat(600));
        let parts = shown(&long);
        assert_eq!((parts[0], parts[1].starts_with("He said so… ")), ("“It was 3.5 m.” ", true));
        assert_eq!(parts.len(), 3);
    }

    #[test]
    fn what_is_shared_is_cut_out_with_its_passage() {
        let text = "A title\n\nThe first one.\n\nThe second.\n\nThe last.";
        let at = |part: &str| text.find(part).map(|at| at..at + part.len()).unwrap();
        let left = |shared: &[Range<usize>]| cut(text, shared).rest;
        assert_eq!(left(&[at("second")]).unwrap(), "A title\n\nThe first one.\n\nThe last.");
        assert_eq!(left(&[at("one.\n\nThe second"), at("last")]).unwrap(), "A title");
        assert_eq!(left(&[0..text.len()]), None);
    }

    proptest! {
        #[test]
        fn passages_cover_the_text(text in "([a.?!” \n]|é){0,60}", copies in 1usize..40) {
            let text = text.repeat(copies);
            prop_assert_eq!(shown(&text).concat(), text);
        }
    }
}
