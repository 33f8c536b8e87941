//! Conversations in plain text: turns such as `<user>: Hello <eos>` and `<assistant>: Hi. <eos>`.
//!
//! A tag opens a turn at the start of a line or behind `<eos>` (the colon may be missing there), and
//! anywhere when a colon follows it. A turn reaches to `<eos>` or to the next tag, over line breaks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{Roles, Turn};
use crate::base::Result;
use crate::corpus::input::{Bad, InputFile, Record, Window, too_long};
use crate::corpus::json::Next;

/// Where one conversation ends and the next begins. `<|endoftext|>` on a line of its own and `<bos>` at
/// the start of one always end a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextBoundary {
    /// At a blank line with `<user>` or `<system>` behind it.
    #[default]
    BlankLine,
    /// At `<user>` or `<system>` behind an answer: every question and its answer is a conversation.
    Pair,
}

/// The conversations of a file as blocks of lines, not yet taken apart.
pub struct Blocks {
    window: Window,
    boundary: TextBoundary,
    limit: u64,
    row: u64,
}

impl Blocks {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &InputFile, boundary: TextBoundary, limit: u64) -> Result<Self> {
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        Ok(Blocks { window, boundary, limit, row: 0 })
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn next(&mut self) -> Next {
        let mut block: Option<Record> = None;
        let mut blank = false;
        while let Some(length) = self.window.line_length(self.limit)? {
            let line = self.window.bytes()[..length].trim_ascii();
            let end_of_text = line == b"<|endoftext|>";
            if block.as_ref().is_some_and(|b| end_of_text || self.cuts(line, blank, &b.bytes)) {
                break;
            }
            blank = line.is_empty();
            let (start, blank_here) = (self.window.offset(), blank || end_of_text);
            let bytes = self.window.take(length);
            self.window.skip(1.min(self.window.bytes().len()));
            self.row += 1;
            if blank_here && block.is_none() {
                continue;
            }
            let row = self.row;
            let block = block.get_or_insert_with(|| Record { start, end: start, row, bytes: Vec::new() });
            block.bytes.extend_from_slice(&bytes);
            block.bytes.push(b'\n');
            if !blank {
                block.end = start + bytes.len() as u64;
            }
            if block.bytes.len() as u64 > self.limit + 1 {
                let way_out = "put a blank line between conversations, set `text_boundary: pair`, \
                               or raise `max_row_bytes`";
                return Ok(Some(Err(too_long("conversation", block.start, self.limit, way_out))));
            }
        }
        Ok(block.map(Ok))
    }

    fn cuts(&self, line: &[u8], blank: bool, block: &[u8]) -> bool {
        let opens = [b"<user>".as_slice(), b"<system>"].iter().any(|tag| line.starts_with(tag));
        let answered = || block.windows(11).any(|w| w == b"<assistant>");
        line.starts_with(b"<bos>")
            || match self.boundary {
                TextBoundary::BlankLine => blank && opens,
                TextBoundary::Pair => opens && answered(),
            }
    }
}

enum Tag<'a> {
    Role(&'a str),
    Eos,
    Bos,
}

/// The turns of a block that starts at byte `start` of its file.
///
/// # Errors
/// Text that belongs to no turn.
pub fn turns(text: &str, start: u64, roles: &Roles) -> Result<Vec<Turn>, Bad> {
    let mut turns: Vec<Turn> = Vec::new();
    let mut open: Option<Turn> = None;
    let mut from = 0;
    let mut search = 0;
    while let Some(at) = text[search..].find('<').map(|i| search + i) {
        let line_start = text[..at].rfind('\n').map_or(0, |i| i + 1).max(from);
        let first = text[line_start..at].trim().is_empty() && (line_start != from || open.is_none());
        let Some((tag, length)) = tag(&text[at..], first, roles) else {
            search = at + 1;
            continue;
        };
        close(&mut turns, open.take(), &text[from..at], start + from as u64)?;
        if let Tag::Role(role) = tag {
            open = Some(Turn { role: role.to_string(), content: String::new(), at: start + at as u64 });
        }
        from = at + length;
        search = from;
    }
    close(&mut turns, open, &text[from..], start + from as u64)?;
    Ok(turns)
}

fn close(turns: &mut Vec<Turn>, open: Option<Turn>, content: &str, at: u64) -> Result<(), Bad> {
    let text = content.trim();
    match open {
        Some(turn) => turns.push(Turn { content: text.to_string(), ..turn }),
        None if text.is_empty() => {}
        None => {
            let at = at + (content.len() - content.trim_start().len()) as u64;
            let shown: String = text.chars().take(30).collect();
            return Err(Bad::new("text_outside_turn", at, format!("{shown:?} belongs to no turn"))
                .help("a turn starts with `<user>:`, `<assistant>:` or `<system>:` and ends with `<eos>`"));
        }
    }
    Ok(())
}

/// The tag that `text` starts with and its length with the colon. `first`: only blanks before it.
fn tag<'a>(text: &'a str, first: bool, roles: &Roles) -> Option<(Tag<'a>, usize)> {
    let end = text.bytes().take(24).position(|b| b == b'>')?;
    let name = &text[1..end];
    let known = roles.find(name).is_some();
    let colon = text[end + 1..].starts_with(':');
    let wordy = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    match name {
        "eos" => Some((Tag::Eos, end + 1)),
        "bos" => Some((Tag::Bos, end + 1)),
        // An unknown name with a colon in the place of a role is a role misspelt, not text.
        _ if (known && (first || colon)) || (first && colon && wordy) => {
            Some((Tag::Role(name), end + 1 + usize::from(colon)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fs;
    use proptest::prelude::*;

    fn roles() -> Roles {
        Roles::default()
    }

    fn read(text: &str) -> Vec<(String, String)> {
        turns(text, 0, &roles()).unwrap().into_iter().map(|t| (t.role, t.content)).collect()
    }

    fn blocks(text: &str, boundary: TextBoundary) -> Vec<(u64, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, text.as_bytes()).unwrap();
        let mut blocks = Blocks::open(&InputFile::new(&path).unwrap(), boundary, 1000).unwrap();
        let mut out = Vec::new();
        while let Some(next) = blocks.next().unwrap() {
            let record = next.unwrap();
            let cut = text[record.start as usize..record.end as usize].trim().to_string();
            assert_eq!(cut.lines().count(), String::from_utf8(record.bytes).unwrap().trim().lines().count());
            out.push((record.row, cut));
        }
        out
    }

    #[test]
    fn turns_reach_to_eos_or_the_next_tag() {
        let say = |role: &str, text: &str| (role.to_string(), text.to_string());
        let expected = [say("user", "Hi\n\nthere <b>x</b>"), say("assistant", "a <user> is: b")];
        assert_eq!(read("<user>: Hi\n\nthere <b>x</b>\n<assistant>: a <user> is: b <eos>\n"), expected);
        let line = [say("user", "Hi"), say("assistant", "Yes")];
        assert_eq!(read("<bos><user>: Hi <eos> <assistant> Yes <eos>"), line);
        assert_eq!(read("<user>: Hi <assistant>: Yes <eos>"), line);
        assert_eq!(read("<usr>: Hi"), [say("usr", "Hi")], "left for the check of roles to refuse");
    }

    #[test]
    fn text_outside_of_turns_is_located() {
        let bad = turns("<user>: Hi <eos>\nstray", 100, &roles()).unwrap_err();
        assert_eq!(bad.at, Some(117), "{bad:?}");
    }

    #[test]
    fn conversations_end_where_they_are_said_to() {
        let text = "<user>: 1 <eos>\n<assistant>: 2 <eos>\n\n<assistant>: 3\n\n\n<user>: 4\n<assistant>: 5\n\
                    <user>: 6\n<|endoftext|>\n<user>: 7\n<bos><user>: 8";
        let rows = |boundary| blocks(text, boundary).into_iter().map(|(row, _)| row).collect::<Vec<_>>();
        assert_eq!(rows(TextBoundary::BlankLine), [1, 7, 11, 12]);
        assert_eq!(rows(TextBoundary::Pair), [1, 7, 9, 11, 12]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(<user>|<assistant>|:|<eos>|<|é|>|\n| |a){0,30}") {
            let _ = turns(&text, 0, &roles());
        }

        #[test]
        fn what_is_written_reads_back(turns in proptest::collection::vec("[a-zé]([a-z <\n]{0,10}[a-z])?", 1..6)) {
            let roles = ["user", "assistant"];
            let text: String = turns.iter().enumerate()
                .map(|(i, t)| format!("<{}>: {t} <eos>\n", roles[i % 2])).collect();
            let back: Vec<String> = read(&text).into_iter().map(|(_, content)| content).collect();
            prop_assert_eq!(back, turns);
        }
    }
}
