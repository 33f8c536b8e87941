//! Conversations in plain text: turns such as `<user>: Hello <eos>` and `<assistant>: Hi. <eos>`.
//!
//! A tag opens a turn at the start of a line or after `<eos>` (without a colon too), and anywhere when a
//! colon follows it. A turn reaches to `<eos>` or to the next tag, over line breaks. Files are cut into
//! conversations by the names of roles that turns are cut by. A line ends with LF, CR LF or CR.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{At, Roles, Turn};
use crate::base::Result;
use crate::corpus::conversation::Role;
use crate::corpus::decode::{Encoding, decode};
use crate::corpus::input::{BadRecord, InputFile, Next, Record, Window, too_long};

/// Where one conversation ends and the next begins. `<|endoftext|>` on a line of its own and `<bos>` at
/// the start of one always end a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextBoundary {
    /// At a blank line with a message of the user or the system behind it.
    #[default]
    BlankLine,
    /// At a message of the user or the system behind an answer: every question and its answer is a
    /// conversation.
    Pair,
}

/// The conversations of a file as blocks of lines, not yet parsed.
///
/// Blank lines between them are skipped. So are lines that start with `#` after a blank line or at the
/// start of the file, when a conversation follows, or when the file ends and the last turn was closed by
/// `<eos>`: they are comments. Any other such line is content, as a heading within an answer is.
pub struct Blocks {
    window: Window,
    roles: Roles,
    boundary: TextBoundary,
    encoding: Encoding,
    limit: u64,
    row: u64,
    /// The line that opened the next conversation.
    pending: Option<Line>,
    skipped: Skipped,
}

/// Lines that belong to no conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    pub comment_lines: u64,
    pub blank_lines: u64,
}

/// A line with its end.
struct Line {
    start: u64,
    row: u64,
    bytes: Vec<u8>,
}

/// Lines that belong together.
#[derive(Default)]
struct Block {
    start: u64,
    row: u64,
    bytes: Vec<u8>,
    answered: bool,
}

impl Block {
    fn push(&mut self, line: &Line) {
        if self.bytes.is_empty() {
            (self.start, self.row) = (line.start, line.row);
        }
        self.bytes.extend_from_slice(&line.bytes);
    }

    fn append(&mut self, other: &Block) {
        if self.bytes.is_empty() {
            (self.start, self.row) = (other.start, other.row);
        }
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Whether `<eos>` closed its last turn.
    fn is_closed(&self) -> bool {
        self.bytes.trim_ascii_end().ends_with(b"<eos>")
    }

    fn into_record(self) -> Record {
        let bytes = self.bytes.trim_ascii_end().to_vec();
        Record { start: self.start, end: self.start + bytes.len() as u64, row: self.row, bytes }
    }
}

/// Blank lines and possible comments, which the next line decides about.
#[derive(Default)]
struct Gap {
    lines: Block,
    found: Skipped,
}

impl Blocks {
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(
        file: &InputFile,
        roles: &Roles,
        boundary: TextBoundary,
        encoding: Encoding,
        limit: u64,
    ) -> Result<Self> {
        let mut window = Window::open(file)?;
        window.skip_byte_order_mark()?;
        let (roles, skipped) = (roles.clone(), Skipped::default());
        Ok(Blocks { window, roles, boundary, encoding, limit, row: 0, pending: None, skipped })
    }

    /// The lines that were skipped so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn next(&mut self) -> Next {
        let mut block: Option<Block> = None;
        let mut gap = Gap::default();
        while let Some(line) = self.line()? {
            let text = line.bytes.trim_ascii();
            if text == b"<|endoftext|>" {
                self.settle(&mut gap, block.as_mut());
                match block {
                    Some(block) => return Ok(Some(Ok(block.into_record()))),
                    None => continue,
                }
            }
            if text.is_empty() {
                gap.found.blank_lines += 1;
                match block.is_none() && gap.found.comment_lines == 0 {
                    true => self.skip(&mut gap),
                    false => gap.lines.push(&line),
                }
            } else if text.starts_with(b"#") && self.may_be_comment(&gap, block.as_ref()) {
                gap.found.comment_lines += 1;
                gap.lines.push(&line);
            } else if block.as_ref().is_some_and(|block| self.cuts(&line, &gap, block)) {
                self.skip(&mut gap);
                self.pending = Some(line);
                break;
            } else {
                self.extend(&mut block, &mut gap, &line);
            }
            if let Some(bad) = self.beyond_limit(&gap, block.as_ref()) {
                return Ok(Some(Err(bad)));
            }
        }
        self.settle(&mut gap, block.as_mut());
        Ok(block.map(|block| Ok(block.into_record())))
    }

    fn may_be_comment(&self, gap: &Gap, block: Option<&Block>) -> bool {
        !gap.lines.bytes.is_empty() || block.is_none_or(Block::is_closed)
    }

    /// Adds `line` to the block, and the gap before it where that is content.
    fn extend(&mut self, block: &mut Option<Block>, gap: &mut Gap, line: &Line) {
        let content = self.decoded(line);
        let tagged =
            content.trim_start().starts_with('<') && tag(content.trim_start(), true, &self.roles).is_some();
        if block.is_some() || (gap.found.comment_lines > 0 && !tagged) {
            block.get_or_insert_default().append(&gap.lines);
            *gap = Gap::default();
        }
        self.skip(gap);
        let block = block.get_or_insert_default();
        block.push(line);
        block.answered |= self.answers(&content);
    }

    /// At the end of a conversation: lines after its last turn are part of it or skipped.
    fn settle(&mut self, gap: &mut Gap, block: Option<&mut Block>) {
        match block {
            Some(block) if gap.found.comment_lines > 0 && !block.is_closed() => {
                block.append(&gap.lines);
                *gap = Gap::default();
            }
            _ => self.skip(gap),
        }
    }

    fn skip(&mut self, gap: &mut Gap) {
        self.skipped.comment_lines += gap.found.comment_lines;
        self.skipped.blank_lines += gap.found.blank_lines;
        *gap = Gap::default();
    }

    fn beyond_limit(&self, gap: &Gap, block: Option<&Block>) -> Option<BadRecord> {
        let length = block.map_or(0, |block| block.bytes.len()) + gap.lines.bytes.len();
        if length as u64 <= self.limit {
            return None;
        }
        let start = block.map_or(gap.lines.start, |block| block.start);
        let way_out = "put a blank line between conversations, set `text_boundary: pair`, or raise \
                       `max_row_bytes`";
        Some(too_long("conversation", start, self.limit, way_out))
    }

    /// Whether `line` opens the next conversation after `block` and `gap`.
    fn cuts(&self, line: &Line, gap: &Gap, block: &Block) -> bool {
        let text = self.decoded(line);
        let text = text.trim_start();
        if !text.starts_with('<') {
            return false;
        }
        let opens = match tag(text, true, &self.roles) {
            Some((Tag::Bos, _)) => return true,
            Some((Tag::Role(name), _)) => self.roles.find(name).is_some_and(|role| role != Role::Assistant),
            _ => false,
        };
        opens
            && match self.boundary {
                TextBoundary::BlankLine => gap.found.blank_lines > 0,
                TextBoundary::Pair => block.answered,
            }
    }

    /// Whether an answer starts in this line.
    fn answers(&self, line: &str) -> bool {
        line.match_indices('<').any(|(at, _)| {
            let first = line[..at].trim().is_empty() || line[..at].trim_end().ends_with("<eos>");
            let found = tag(&line[at..], first, &self.roles);
            matches!(found, Some((Tag::Role(name), _)) if self.roles.find(name) == Some(Role::Assistant))
        })
    }

    /// The text of a line, for its tags alone: invalid bytes are reported when turns are parsed.
    fn decoded(&self, line: &Line) -> String {
        decode(line.bytes.clone(), self.encoding, true).map_or_else(|_| String::new(), |decoded| decoded.text)
    }

    fn line(&mut self) -> Result<Option<Line>> {
        if let Some(line) = self.pending.take() {
            return Ok(Some(line));
        }
        let start = self.window.offset();
        let length = self.line_length()?;
        if length == 0 {
            return Ok(None);
        }
        self.row += 1;
        Ok(Some(Line { start, row: self.row, bytes: self.window.take(length) }))
    }

    /// The length of the next line with its end, or of as much of it as is beyond the limit; 0 at the end.
    fn line_length(&mut self) -> Result<usize> {
        let mut from = 0;
        loop {
            let bytes = self.window.bytes();
            let end = bytes[from..].iter().position(|b| matches!(b, b'\n' | b'\r')).map(|i| from + i);
            match end.map(|end| (end, bytes[end], bytes.get(end + 1))) {
                Some((end, b'\r', Some(b'\n'))) => return Ok(end + 2),
                Some((end, b'\n', _) | (end, _, Some(_))) => return Ok(end + 1),
                _ if bytes.len() as u64 > self.limit => return Ok(bytes.len()),
                Some((end, _, None)) => from = end, // a CR that may have a LF behind it
                None => from = bytes.len(),
            }
            if !self.window.more()? {
                return Ok(self.window.bytes().len());
            }
        }
    }
}

enum Tag<'a> {
    Role(&'a str),
    Eos,
    Bos,
}

/// The turns of a block.
///
/// # Errors
/// Text that belongs to no turn, at a byte of `text`.
pub fn turns(text: &str, roles: &Roles) -> Result<Vec<Turn<'static>>, BadRecord> {
    let mut turns = Vec::new();
    let mut open: Option<Turn> = None;
    let mut from = 0;
    let mut search = 0;
    while let Some(at) = text[search..].find('<').map(|i| search + i) {
        let line_start = text[..at].rfind(['\n', '\r']).map_or(0, |i| i + 1).max(from);
        let first = text[line_start..at].trim().is_empty() && (line_start != from || open.is_none());
        let Some((tag, length)) = tag(&text[at..], first, roles) else {
            search = at + 1;
            continue;
        };
        close(&mut turns, open.take(), &text[from..at], from)?;
        if let Tag::Role(role) = tag {
            open = Some(Turn { role: role.into(), content: String::new(), weight: 1, at: At::Byte(at) });
        }
        from = at + length;
        search = from;
    }
    close(&mut turns, open, &text[from..], from)?;
    Ok(turns)
}

fn close(
    turns: &mut Vec<Turn<'static>>,
    open: Option<Turn<'static>>,
    content: &str,
    at: usize,
) -> Result<(), BadRecord> {
    let text = content.trim();
    match open {
        Some(turn) => turns.push(Turn { content: text.to_string(), ..turn }),
        None if text.is_empty() => {}
        None => {
            let at = (at + content.len() - content.trim_start().len()) as u64;
            let shown: String = text.chars().take(30).collect();
            let bad = BadRecord::new("text_outside_turn", at, format!("{shown:?} belongs to no turn"))
                .help("a turn starts with `<user>:`, `<assistant>:` or `<system>:` and ends with `<eos>`");
            return Err(match text.starts_with('#') {
                true => bad.help("a comment stands behind a blank line and before a conversation"),
                false => bad,
            });
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
        turns(text, &roles()).unwrap().into_iter().map(|t| (t.role, t.content)).collect()
    }

    fn blocks(text: &str, boundary: TextBoundary) -> (Vec<(u64, String)>, Skipped) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, text.as_bytes()).unwrap();
        let file = InputFile::new(&path).unwrap();
        let mut blocks = Blocks::open(&file, &roles(), boundary, Encoding::Utf8, 1000).unwrap();
        let (mut out, mut outside, mut end) = (Vec::new(), String::new(), 0);
        while let Some(next) = blocks.next().unwrap() {
            let record = next.unwrap();
            let cut = &text[record.start as usize..record.end as usize];
            assert_eq!(cut.as_bytes(), record.bytes);
            outside.push_str(&text[end..record.start as usize]);
            end = record.end as usize;
            out.push((record.row, cut.to_string()));
        }
        outside.push_str(&text[end..]);
        for line in outside.split(['\n', '\r']).map(str::trim) {
            let nothing = line.is_empty() || line.starts_with('#') || line == "<|endoftext|>";
            assert!(nothing, "left out was {line:?} of {text:?}");
        }
        (out, blocks.skipped())
    }

    fn rows_of(text: &str, boundary: TextBoundary) -> Vec<u64> {
        blocks(text, boundary).0.into_iter().map(|(row, _)| row).collect()
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
        let bad = turns("<user>: Hi <eos>\nstray", &roles()).unwrap_err();
        assert_eq!(bad.at, Some(17), "{bad:?}");
    }

    #[test]
    fn conversations_end_where_they_are_said_to() {
        let text = "<user>: 1 <eos>\n<assistant>: 2 <eos>\n\n<assistant>: 3\n\n\n<user>: 4\n<assistant>: 5\n\
                    <user>: 6\n<|endoftext|>\n<user>: 7\n<bos><user>: 8";
        let rows = |boundary| rows_of(text, boundary);
        assert_eq!(rows(TextBoundary::BlankLine), [1, 7, 11, 12]);
        assert_eq!(rows(TextBoundary::Pair), [1, 7, 9, 11, 12]);
    }

    #[test]
    fn names_of_roles_cut_without_regard_to_case_at_any_line_end() {
        let text = "<Human>: 1 <eos>\n<BOT>: 2 <eos>\n\n<prompter> 3 <eos>\n<Gpt>: 4 <eos>\n\n\
                    <SYSTEM>: 5 <eos>\n<customer>: 6\n<agent>: 7\n";
        for end in ["\n", "\r\n", "\r"] {
            let text = text.replace('\n', end);
            assert_eq!(rows_of(&text, TextBoundary::BlankLine), [1, 4, 7], "{end:?}");
            let pairs = text.replace(&format!("{end}{end}"), end);
            assert_eq!(rows_of(&pairs, TextBoundary::Pair), [1, 3, 5], "{end:?}");
        }
        let cr = turns("<user>: a\r<assistant>\rb", &roles()).unwrap();
        assert_eq!((cr.len(), cr[1].content.as_str()), (2, "b"));
    }

    #[test]
    fn comments_stand_between_conversations_and_headings_within_answers() {
        let text = "# greetings\n# more\n\n<user>: a <eos>\n<bot>: b\n\n# Heading\n\nc <eos>\n\n# partings\n\
                    <user>: d <eos>\n<bot>: e <eos>\n# the end\n\n";
        let (all, skipped) = blocks(text, TextBoundary::BlankLine);
        assert_eq!(skipped, Skipped { comment_lines: 4, blank_lines: 3 });
        assert_eq!(all.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [4, 12]);
        assert!(all[0].1.contains("b\n\n# Heading\n\nc"), "{all:?}");
        let open = "<user>: a <eos>\n<bot>: b\n\n# Heading\n";
        let (all, skipped) = blocks(open, TextBoundary::BlankLine);
        assert!(all[0].1.ends_with("# Heading") && skipped == Skipped::default(), "{all:?}");
        let (all, skipped) = blocks("# only\n\n# this\n", TextBoundary::BlankLine);
        assert!(all.is_empty() && skipped.comment_lines == 2);
        let stray = blocks("# note\nstray\n", TextBoundary::BlankLine).0;
        assert_eq!(stray[0].1, "# note\nstray", "left for the turns to refuse");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(<user>|<assistant>|:|<eos>|<|é|>|\n|\r|#| |a){0,30}") {
            let _ = turns(&text, &roles());
            for boundary in [TextBoundary::BlankLine, TextBoundary::Pair] {
                let (_, skipped) = blocks(&text, boundary);
                prop_assert!(skipped.comment_lines <= text.matches('#').count() as u64);
            }
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
