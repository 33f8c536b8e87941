//! Boilerplate around a text: Project Gutenberg's licence, credits and end lines, and the front matter of
//! Markdown. Found as ranges of the raw text, so that provenance stays exact.
//!
//! Only what carries an unmistakable marker is recognised; page headers and tables of contents stay.

use std::ops::Range;

use saphyr_parser::Event;

/// The ranges of `text` between Project Gutenberg's start and end markers, without the credits after the
/// start and the end line before the end; the whole text when it has no marker. Several books in one text
/// give several ranges.
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

/// The credits of the file's makers, a paragraph of its own right after the start marker.
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

/// The length of the front matter that Markdown starts with, or 0: a mapping in YAML between lines of
/// `---`, or a table in TOML between lines of `+++`. Anything else between two such lines is text after a
/// thematic break.
pub fn front_matter(text: &str) -> usize {
    let mut lines = lines(text);
    let Some((_, first)) = lines.next() else { return 0 };
    let is_data = match first.trim_end() {
        "---" => is_yaml_mapping,
        "+++" => is_toml_table,
        _ => return 0,
    };
    let Some((at, last)) = lines.find(|(_, line)| line.trim_end() == first.trim_end()) else { return 0 };
    let inner = text[first.len()..at].replace("\r\n", "\n").replace('\r', "\n");
    if is_data(&inner) { at + last.len() } else { 0 }
}

/// Whether `text` is one YAML document, and that a mapping that is not empty.
fn is_yaml_mapping(text: &str) -> bool {
    let Ok(events) = saphyr_parser::Parser::new_from_str(text).collect::<Result<Vec<_>, _>>() else {
        return false;
    };
    let documents = events.iter().filter(|(event, _)| matches!(event, Event::DocumentStart(_))).count();
    let root = events.iter().position(|(event, _)| matches!(event, Event::DocumentStart(_)));
    let behind = |n: usize| root.and_then(|at| events.get(at + n)).map(|(event, _)| event);
    let mapping = matches!(behind(1), Some(Event::MappingStart(..)));
    documents == 1 && mapping && !matches!(behind(2), Some(Event::MappingEnd))
}

fn is_toml_table(text: &str) -> bool {
    toml::de::DeTable::parse(text).is_ok_and(|table| !table.get_ref().is_empty())
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
    fn front_matter_is_a_mapping() {
        let kept = |text: &'static str| text[front_matter(text)..].trim();
        for (fence, data) in
            [("---", "title: A\ntags: [b]\ndate: 2024-05-01"), ("+++", "title = \"A\"\n[extra]\ntags = [1]")]
        {
            let text = format!("{fence}\n{data}\n{fence}\n# A\n");
            for line_break in ["\n", "\r\n", "\r"] {
                let text = text.replace('\n', line_break);
                assert_eq!(text[front_matter(&text)..].trim(), "# A", "{text:?}");
            }
        }
        for text in [
            "---\n\nA story may begin under a rule.\n\nAnd this.\n\n---\n\nAfter the rule.",
            "---\n- one\n- two\n---\nrest",
            "---\nHe said: no: never.\n---\nrest",
            "---\n# only a comment\n---\nrest",
            "---\n---\nrest",
            "---\nno: end",
            "+++\nsums are fun\n+++\nrest",
            "+++\n+++\nrest",
            "+++\ntitle: yaml\n+++\nrest",
            "# A\n---\na: b\n---",
        ] {
            assert_eq!(kept(text), text);
        }
    }
}
