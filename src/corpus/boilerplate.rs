//! What publishers wrap around a text: Project Gutenberg's licence, credits and end lines, and the
//! front matter of Markdown. Found as ranges of the raw text, so that provenance stays exact.
//!
//! Only what carries an unmistakable marker is recognised; page headers and tables of contents stay.

use std::ops::Range;

/// The ranges of `text` between Project Gutenberg's start and end markers, without the credits behind
/// the one and the farewell before the other; the whole text when it has no marker. Several books in
/// one text give several ranges.
pub fn without_gutenberg(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut open = Some(0);
    let mut any = false;
    let mut lines = lines(text).peekable();
    while let Some((at, line)) = lines.next() {
        if is_marker(line, "START") {
            let mut end = at + line.len();
            // The title in the marker may take a second line or a third.
            let mut closed = line.trim_end().ends_with("***") || !line.trim_start().starts_with("***");
            for _ in 0..4 {
                let Some((at, more)) = lines.next_if(|_| !closed) else { break };
                end = at + more.len();
                closed = more.trim_end().ends_with("***");
            }
            (open, any) = (Some(end), true);
        } else if is_marker(line, "END") {
            any = true;
            found.extend(open.take().map(|start| start..at));
        }
    }
    if !any {
        return vec![0..text.len()];
    }
    found.extend(open.map(|start| start..text.len()));
    found.into_iter().map(|range| without_credits(text, range)).collect()
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive(['\n', '\r']).map(move |line| {
        at += line.len();
        (at - line.len(), line)
    })
}

/// `*** START OF THE PROJECT GUTENBERG EBOOK …`, or the end of the small print of before 2003.
fn is_marker(line: &str, which: &str) -> bool {
    let line = line.trim_start();
    if !line.starts_with('*') {
        return false;
    }
    let upper = line.to_uppercase();
    let small_print = upper.starts_with("*END") && upper.contains("THE SMALL PRINT");
    if small_print {
        return which == "START";
    }
    upper.starts_with("***") && upper.contains("PROJECT GUTENBERG") && {
        let rest = upper.trim_start_matches(['*', ' ']);
        rest.starts_with(&format!("{which} OF"))
    }
}

/// Who made the file, as a paragraph of its own right behind the start marker.
const CREDITS: [&str; 7] = [
    "Produced by",
    "E-text prepared by",
    "Etext prepared by",
    "Transcribed from",
    "This eBook was produced by",
    "This etext was p",
    "[Transcriber",
];
const FAREWELLS: [&str; 4] = [
    "End of Project Gutenberg",
    "End of the Project Gutenberg",
    "End of The Project Gutenberg",
    "End of this Project Gutenberg",
];

fn without_credits(text: &str, mut range: Range<usize>) -> Range<usize> {
    let starts = |text: &str, with: &[&str]| with.iter().any(|prefix| text.starts_with(prefix));
    loop {
        let body = &text[range.clone()];
        let lead = body.len() - body.trim_start().len();
        let paragraph = body[lead..].find("\n\n").or_else(|| body[lead..].find("\n\r\n"));
        match paragraph {
            Some(end) if starts(&body[lead..], &CREDITS) => range.start += lead + end,
            _ => break,
        }
    }
    let body = text[range.clone()].trim_end();
    let last = body.rfind(['\n', '\r']).map_or(0, |i| i + 1);
    if starts(&body[last..], &FAREWELLS) {
        range.end = range.start + last;
    }
    range
}

/// The length of the YAML (`---`) or TOML (`+++`) front matter that Markdown starts with, or 0.
pub fn front_matter(text: &str) -> usize {
    let mut lines = lines(text);
    let fence = match lines.next().map(|(_, line)| line.trim_end()) {
        Some(fence @ ("---" | "+++")) => fence,
        _ => return 0,
    };
    lines.find(|(_, line)| line.trim_end() == fence).map_or(0, |(at, line)| at + line.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Vec<&str> {
        without_gutenberg(text).into_iter().map(|r| text[r].trim()).collect()
    }

    #[test]
    fn the_licence_goes_and_the_book_stays() {
        let book = "The Project Gutenberg eBook of X\n\nLicence.\n\n*** START OF THE PROJECT GUTENBERG EBOOK\nX, OR Y ***\n\n\
                    Produced by A\nand B\n\nChapter 1\n\n* * *\n\nText.\n\nEnd of the Project Gutenberg EBook of X\n\
                    *** END OF THIS PROJECT GUTENBERG EBOOK X ***\nDonate.\n";
        assert_eq!(kept(book), ["Chapter 1\n\n* * *\n\nText."]);
        assert_eq!(kept(&book.replace('\n', "\r\n")), ["Chapter 1\r\n\r\n* * *\r\n\r\nText."]);
        assert_eq!(kept(&format!("{book}{book}")).len(), 2, "two books in one file");
    }

    #[test]
    fn a_text_without_markers_is_whole() {
        let text = "*** A story of START OF nothing\n***\nProduced by nobody\n\nText";
        assert_eq!(without_gutenberg(text), [0..text.len()]);
    }

    #[test]
    fn front_matter_is_measured() {
        let text = "---\ntitle: A\n---\n# A\n";
        assert_eq!(&text[front_matter(text)..], "# A\n");
        assert_eq!(front_matter("---\nno end"), 0);
        assert_eq!(front_matter("# A\n---\n"), 0);
    }
}
