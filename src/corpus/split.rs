//! Splits a text at natural boundaries: headings, paragraphs, lines, sentences, words.

use std::ops::Range;

/// The sections of a Markdown text, each starting at a heading of `level` or higher (1 is the highest).
/// Headings in fenced code are none; a heading without text below it stays with the section that
/// follows. The ranges cover the text.
pub fn sections(text: &str, level: usize) -> Vec<Range<usize>> {
    let mut cuts = vec![0];
    let (mut at, mut fenced, mut body) = (0, false, false);
    for line in text.split_inclusive('\n') {
        fenced ^= line.trim_start().starts_with("```");
        let heading = !fenced && is_heading(line, level);
        if heading && body {
            cuts.push(at);
            body = false;
        }
        body |= !heading && !line.trim().is_empty();
        at += line.len();
    }
    cuts.push(text.len());
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn is_heading(line: &str, level: usize) -> bool {
    let hashes = line.bytes().take_while(|b| *b == b'#').count();
    (1..=level).contains(&hashes) && line[hashes..].starts_with([' ', '\t', '\n', '\r'])
}

/// Cuts `text` into few parts of at most `most` characters, of about equal length: in front of Markdown
/// headings if it can, else between paragraphs, lines, sentences, words, and only then anywhere. The
/// ranges cover the text.
///
/// # Panics
/// When `most` is 0.
pub fn parts(text: &str, most: usize) -> Vec<Range<usize>> {
    assert!(most > 0, "a part holds at least one character");
    let mut out = Vec::new();
    let mut start = 0;
    let mut left = text.chars().count();
    while left > most {
        let aim = left.div_ceil(left.div_ceil(most));
        let cut = best_cut(&text[start..], aim, most);
        out.push(start..start + cut.at);
        start += cut.at;
        left -= cut.chars;
    }
    out.push(start..text.len());
    out
}

struct Cut {
    /// The byte in front of which to cut, and how many characters lie before it.
    at: usize,
    chars: usize,
}

/// How good a place to cut is; smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Heading,
    Paragraph,
    Line,
    Sentence,
    Word,
    Anywhere,
}

/// The best place at most `most` and at least half of `aim` characters into `text`: the best rank,
/// then the nearest to `aim`.
fn best_cut(text: &str, aim: usize, most: usize) -> Cut {
    let mut before = Before::default();
    let mut best: Option<((Rank, usize), Cut)> = None;
    for (chars, (at, c)) in text.char_indices().enumerate().take(most + 1) {
        let rank = before.rank(c).or((chars == aim).then_some(Rank::Anywhere));
        before.push(c);
        let Some(rank) = rank.filter(|_| chars >= (aim / 2).max(1)) else { continue };
        let score = (rank, chars.abs_diff(aim));
        if best.as_ref().is_none_or(|(least, _)| score < *least) {
            best = Some((score, Cut { at, chars }));
        }
    }
    best.map_or(Cut { at: text.len(), chars: text.chars().count() }, |(_, cut)| cut)
}

/// The context before a place.
#[derive(Default)]
struct Before {
    /// Line breaks since the last visible character.
    breaks: usize,
    blank: bool,
    sentence: bool,
    /// The last line with something visible starts with `#`.
    heading: bool,
    last: Option<char>,
}

impl Before {
    /// The rank of a cut before `c`; `None` inside a word or a run of blanks.
    fn rank(&self, c: char) -> Option<Rank> {
        let full_width_stop = matches!(self.last, Some('。' | '！' | '？'));
        match (c.is_whitespace(), self.blank) {
            (true, _) => None,
            // No cut after a heading: it belongs to what follows.
            (false, true) if self.heading && self.breaks > 0 => Some(Rank::Word),
            (false, true) if c == '#' && self.breaks > 0 => Some(Rank::Heading),
            (false, true) if self.breaks > 1 => Some(Rank::Paragraph),
            (false, true) if self.breaks == 1 => Some(Rank::Line),
            (false, true) if self.sentence => Some(Rank::Sentence),
            (false, true) => Some(Rank::Word),
            (false, false) => full_width_stop.then_some(Rank::Sentence),
        }
    }

    fn push(&mut self, c: char) {
        if c.is_whitespace() {
            let second_half = c == '\n' && self.last == Some('\r');
            self.breaks += usize::from(matches!(c, '\n' | '\r') && !second_half);
        } else {
            if self.breaks > 0 || self.last.is_none() {
                self.heading = c == '#';
            }
            let closing = matches!(c, '"' | '\'' | '”' | '’' | ')' | '»');
            self.sentence = matches!(c, '.' | '!' | '?' | '…') || (closing && self.sentence);
            self.breaks = 0;
        }
        self.blank = c.is_whitespace();
        self.last = Some(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str, most: usize) -> Vec<&str> {
        parts(text, most).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn paragraphs_come_before_lines_before_sentences_before_words() {
        assert_eq!(cut("aaa aaa\n\nbbb.\nbbb ccc", 16), ["aaa aaa\n\n", "bbb.\nbbb ccc"]);
        assert_eq!(cut("aaaa. aaa\nbbb bbb", 14), ["aaaa. aaa\n", "bbb bbb"]);
        assert_eq!(cut("One two. Three four", 12), ["One two. ", "Three four"]);
        assert_eq!(cut("one two", 5), ["one ", "two"]);
        assert_eq!(cut("aaa\n\n## B\n\nbbb bbb bb", 16), ["aaa\n\n", "## B\n\nbbb bbb bb"]);
        assert_eq!(cut("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(cut("你好。世界。", 4), ["你好。", "世界。"]);
        assert_eq!(cut("a\r\n\r\nb\r\rc", 7), ["a\r\n\r\n", "b\r\rc"]);
    }

    #[test]
    fn sections_start_at_headings_that_have_text() {
        let text = "intro\n# Book\n\n## One\ntext\n```\n# code\n```\n## Two\nmore\n### Deep\nx\n";
        let all: Vec<&str> = sections(text, 2).into_iter().map(|r| &text[r]).collect();
        assert_eq!(
            all,
            ["intro\n", "# Book\n\n## One\ntext\n```\n# code\n```\n", "## Two\nmore\n### Deep\nx\n"]
        );
        assert_eq!(sections("", 2), [0..0]);
    }

    proptest! {
        #[test]
        fn parts_cover_the_text_and_keep_the_limit(text in "[a-c. \\n\\ré。]{0,200}", most in 1usize..40) {
            let parts = cut(&text, most);
            prop_assert_eq!(parts.concat(), text.clone());
            prop_assert!(parts.iter().all(|p| p.chars().count() <= most));
            prop_assert!(text.is_empty() || parts.iter().all(|p| !p.is_empty()));
        }
    }
}
