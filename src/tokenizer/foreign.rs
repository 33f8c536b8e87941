//! Conversations in the chat template of another program's model, as token ids.
//!
//! The template writes one text, which is encoded as `transformers` does it: special tokens that the template
//! writes become their ids, and the text between two of them is encoded as a whole. Contents are data: the
//! template is given each of them between two marks, which are taken out of the text again and tell where no
//! special token is looked for. A content that comes out otherwise between marks (a template may branch on what
//! is said, or take a part of it) is given without them; then it must not spell a special token.
//!
//! Where a conversation is to be cut, at an answer's beginning and end, the ids of the whole are kept when those
//! of the part before the cut are their beginning, as they are with the usual pre-tokenizers; else both sides
//! are encoded by themselves, so that what is asked is what was learned. The end of a prompt is such a cut only
//! where its answer is encoded behind it: a prompt itself has the ids that `transformers` gives.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::Tokenizer;
use super::chat::Rendered;
use super::template::ChatTemplate;
use crate::base::{Error, Result};
use crate::corpus::conversation::{Message, Role};

/// Around the number of a message, before its content and after it: `‹0|content‹0›`. Unicode has made them
/// noncharacters, which are not for interchange.
const FIRST: char = '\u{FDD0}';
const NUMBERED: char = '\u{FDD1}';
const LAST: char = '\u{FDD2}';

/// The special tokens of a tokenizer as text.
pub struct Spellings {
    find: AhoCorasick,
    ids: Vec<u32>,
}

impl Spellings {
    /// # Errors
    /// When there are too many.
    pub fn new(tokens: impl Iterator<Item = (String, u32)>) -> Result<Self> {
        let (spellings, ids): (Vec<_>, Vec<_>) = tokens.filter(|(token, _)| !token.is_empty()).unzip();
        let find = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&spellings);
        let find =
            find.map_err(|e| Error::input("the special tokens cannot be looked for in text").cause(e))?;
        Ok(Spellings { find, ids })
    }

    pub fn are_in(&self, text: &str) -> bool {
        self.find.is_match(text)
    }

    /// Where they are in a part of a text.
    fn within(&self, text: &str, part: Range<usize>) -> impl Iterator<Item = Token> {
        let found = self.find.find_iter(&text[part.clone()]);
        found.map(move |m| (part.start + m.start()..part.start + m.end(), self.ids[m.pattern()]))
    }
}

/// A special token in a text.
type Token = (Range<usize>, u32);

/// A conversation as the template writes it.
struct Written {
    text: String,
    /// Where the content of each message is first, without white space around it; `None` where it is empty or
    /// not known.
    contents: Vec<Option<Range<usize>>>,
    /// What the template wrote itself.
    tokens: Vec<Token>,
}

/// A text without marks, and where contents are in it: the number of the message and its range.
type Unmarked = (String, Vec<(usize, Range<usize>)>);

impl Written {
    fn new(
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        messages: &[Message],
        answer: bool,
    ) -> Result<Self> {
        let text = template.render(messages, answer)?;
        let wanted: Vec<bool> = messages.iter().map(|m| can_be_marked(&m.content)).collect();
        let render = |which: &[bool]| marked(template, messages, which, answer).ok();
        let same = |unmarked: &Unmarked| unmarked.0 == text;
        let all = render(&wanted);
        let spellings = tokenizer.spellings()?;
        if let Some((_, parts)) = all.as_ref().filter(|all| same(all)) {
            return Ok(Self::of(spellings, text, messages.len(), parts));
        }
        let alone = |i: usize| {
            let only: Vec<bool> = (0..wanted.len()).map(|j| j == i).collect();
            wanted[i] && render(&only).as_ref().is_some_and(same)
        };
        let some: Vec<bool> = (0..wanted.len()).map(alone).collect();
        let (some, (_, parts)) = match render(&some).filter(same) {
            Some(unmarked) => (some, unmarked),
            None => (vec![false; wanted.len()], Default::default()),
        };
        for (message, _) in messages.iter().zip(&some).filter(|(_, marked)| !**marked) {
            if spellings.are_in(&message.content) {
                return Err(forges(&message.content));
            }
        }
        let written = Self::of(spellings, text, messages.len(), &parts);
        // A template might make a special token of what spells none.
        let inert = |(message, marked): (&Message, &bool)| match *marked || message.content.trim().is_empty()
        {
            true => message.clone(),
            false => Message { content: "x".into(), ..message.clone() },
        };
        let inert: Vec<Message> = messages.iter().zip(&some).map(inert).collect();
        let expected = match marked(template, &inert, &some, answer) {
            Ok((text, parts)) => Self::of(spellings, text, messages.len(), &parts).ids(),
            Err(_) => Vec::new(),
        };
        match expected == written.ids() {
            true => Ok(written),
            false => {
                Err(Error::input("what is said changes the special tokens that the chat template writes")
                    .help("it is taken for a forgery: leave it out of the conversation"))
            }
        }
    }

    /// The special tokens that the template wrote.
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|(_, id)| *id).collect()
    }

    fn of(spellings: &Spellings, text: String, messages: usize, parts: &[(usize, Range<usize>)]) -> Self {
        let mut contents = vec![None; messages];
        let (mut tokens, mut at) = (Vec::new(), 0);
        for (i, part) in parts {
            contents[*i].get_or_insert(part.clone());
            tokens.extend(spellings.within(&text, at..part.start));
            at = part.end;
        }
        tokens.extend(spellings.within(&text, at..text.len()));
        Written { text, contents, tokens }
    }
}

fn can_be_marked(content: &str) -> bool {
    !content.trim().is_empty() && !content.contains([FIRST, NUMBERED, LAST])
}

fn forges(content: &str) -> Error {
    let start: String = content.trim().chars().take(60).collect();
    Error::input(format!(
        "the message beginning {start:?} spells a special token, and the chat template changes it"
    ))
    .help("it could not be told from a token that the template writes: leave it out")
}

/// The text with marks around the contents of `which`, taken out again.
fn marked(template: &ChatTemplate, messages: &[Message], which: &[bool], answer: bool) -> Result<Unmarked> {
    let mark = |(i, (message, marked)): (usize, (&Message, &bool))| {
        let content = &message.content;
        if !marked {
            return content.clone();
        }
        // White space stays outside, where a template may trim it; no special token is made of it.
        let core = content.trim();
        let start = content.len() - content.trim_start().len();
        let (before, after) = (&content[..start], &content[start + core.len()..]);
        format!("{before}{FIRST}{i}{NUMBERED}{core}{LAST}{i}{NUMBERED}{after}")
    };
    let contents: Vec<String> = messages.iter().zip(which).enumerate().map(mark).collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    unmarked(&template.render_with(messages, &contents, answer)?)
        .ok_or_else(|| Error::input("the chat template takes a part of a message"))
}

/// `None` where marks are not in pairs.
fn unmarked(text: &str) -> Option<Unmarked> {
    let (mut out, mut parts) = (String::with_capacity(text.len()), Vec::new());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(FIRST) {
        out.push_str(before);
        let (number, after) = after.split_once(NUMBERED)?;
        let (content, after) = after.split_once(&format!("{LAST}{number}{NUMBERED}"))?;
        let start = out.len();
        out.push_str(content);
        parts.push((number.parse().ok()?, start..out.len()));
        rest = after;
    }
    out.push_str(rest);
    (!out.contains([FIRST, NUMBERED, LAST])).then_some((out, parts))
}

/// The ids of a conversation so far, and of the opening of an answer: those of `apply_chat_template(messages,
/// add_generation_prompt=True)`.
///
/// # Errors
/// When the template refuses the conversation, or a content could be taken for a special token.
pub fn prompt(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>> {
    let written = Written::new(tokenizer, template, messages, true)?;
    Ok(Pieces::new(tokenizer, &written).encode(&[])?.0)
}

/// [`prompt`] without what stands before the end of the last answer, which is not among `messages`.
///
/// # Errors
/// As [`prompt`].
pub fn further(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>> {
    let earlier = [Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")];
    let all = [&earlier[..], messages].concat();
    let written = Written::new(tokenizer, template, &all, true)?;
    let turns = Turns::of(tokenizer, template, &written, &all);
    let end = turns.all[1].answer.as_ref().map_or(0, |answer| answer.end);
    let (ids, at) = Pieces::new(tokenizer, &written).encode(&[Border { at: end, cuts: true }])?;
    Ok(ids[at[0]..].to_vec())
}

/// A whole conversation, for training. An answer's targets begin where the prompt of it ends.
///
/// # Errors
/// As [`prompt`].
pub fn render(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message]) -> Result<Rendered> {
    let written = Written::new(tokenizer, template, messages, false)?;
    let Turns { begin, head, all } = Turns::of(tokenizer, template, &written, messages);
    let places = all.iter().flat_map(|turn| [turn.range.start, turn.range.end, turn.opening]);
    let mut borders: Vec<Border> = places.chain([begin, head]).map(|at| Border { at, cuts: false }).collect();
    for turn in &all {
        let Some(answer) = &turn.answer else { continue };
        borders.extend([
            Border { at: answer.start, cuts: turn.is_asked },
            Border { at: answer.end, cuts: true },
        ]);
    }
    borders.sort_unstable_by_key(|border| (border.at, !border.cuts));
    borders.dedup_by_key(|border| border.at);
    let (ids, at) = Pieces::new(tokenizer, &written).encode(&borders)?;
    let place = |at: usize| borders.binary_search_by_key(&at, |border| border.at).expect("a border");
    let id_at = |border: usize| at[place(border)];
    let mut target = vec![false; ids.len()];
    for (turn, message) in all.iter().zip(messages) {
        if let Some(answer) = turn.answer.as_ref().filter(|_| message.is_learned()) {
            target[id_at(answer.start)..id_at(answer.end)].fill(true);
        }
    }
    let turns: Vec<_> = all.iter().map(|turn| id_at(turn.range.start)..id_at(turn.range.end)).collect();
    let openings = all.iter().zip(&turns).map(|(turn, range)| id_at(turn.opening) - range.start).collect();
    Ok(Rendered { ids, target, turns, openings, begin: id_at(begin), head: id_at(head) })
}

/// The token that ends an answer, if the template writes one.
pub fn end(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Option<u32>> {
    let all = [Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")];
    let written = Written::new(tokenizer, template, &all, false)?;
    let Some(said) = &written.contents[1] else { return Ok(None) };
    Ok(written.tokens.iter().find(|(place, _)| place.start >= said.end).map(|(_, id)| *id))
}

/// Where a message is in the text.
#[derive(Debug)]
struct Turn {
    range: Range<usize>,
    /// Where its opening ends.
    opening: usize,
    /// What is generated of it: from the end of the prompt, or from the content where the template writes the
    /// prompt otherwise, to the token that ends it.
    answer: Option<Range<usize>>,
    /// Whether it follows its prompt.
    is_asked: bool,
}

/// Where all messages are.
struct Turns {
    /// Where `<bos>` ends.
    begin: usize,
    /// Where the system message ends, one that the template adds by itself as well.
    head: usize,
    all: Vec<Turn>,
}

impl Turns {
    fn of(tokenizer: &Tokenizer, template: &ChatTemplate, written: &Written, messages: &[Message]) -> Turns {
        let look = Look { tokenizer, template, written, messages };
        let begin = look.begin();
        let mut head = look.head(begin);
        let mut all = Vec::with_capacity(messages.len());
        let mut start = head;
        for (i, message) in messages.iter().enumerate() {
            let turn = look.turn(i, start);
            start = turn.range.end;
            if message.role == Role::System && i == 0 {
                head = start;
            }
            all.push(turn);
        }
        if let Some(last) = all.last_mut() {
            last.range.end = written.text.len();
        }
        Turns { begin, head, all }
    }
}

/// Looks for turns.
struct Look<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    written: &'a Written,
    messages: &'a [Message],
}

impl Look<'_> {
    fn begin(&self) -> usize {
        let bos = self.tokenizer.special(super::Special::Bos);
        let first = self.written.tokens.first().filter(|(place, id)| place.start == 0 && Some(*id) == bos);
        first.map_or(0, |(place, _)| place.end)
    }

    /// The end of what comes before the first message: `begin`, or the end of a turn that the template adds.
    fn head(&self, begin: usize) -> usize {
        let first = self.content_from(begin).unwrap_or(begin);
        let ended = self.written.tokens.iter().rev().find(|(place, id)| {
            place.start >= begin && place.end <= first && self.tokenizer.turn_ends().contains(id)
        });
        ended.map_or(begin, |(place, _)| self.after(place.end))
    }

    /// Where the next content begins.
    fn content_from(&self, at: usize) -> Option<usize> {
        self.written.contents.iter().flatten().map(|content| content.start).filter(|start| *start >= at).min()
    }

    /// The token that ends a turn, of those between two places.
    fn ended(&self, from: usize, to: usize) -> Option<&Token> {
        self.written.tokens.iter().find(|(place, id)| {
            place.start >= from && place.end <= to && self.tokenizer.turn_ends().contains(id)
        })
    }

    /// Behind white space, where a special token or nothing follows it.
    fn after(&self, at: usize) -> usize {
        let rest = &self.written.text[at..];
        let end = self.written.text.len() - rest.trim_start().len();
        let follows = end == self.written.text.len() || self.written.tokens.iter().any(|t| t.0.start == end);
        if follows { end } else { at }
    }

    /// The end of the prompt of answer `i`.
    fn asked(&self, i: usize) -> Option<usize> {
        let answer = self.messages.get(i).is_some_and(|m| m.role == Role::Assistant);
        if !answer || i == 0 {
            return None;
        }
        let prompt = self.template.render(&self.messages[..i], true).ok()?;
        self.written.text.starts_with(&prompt).then_some(prompt.len())
    }

    /// The turn of message `i`, which begins at `start`.
    fn turn(&self, i: usize, start: usize) -> Turn {
        let len = self.written.text.len();
        let answer = self.messages[i].role == Role::Assistant;
        let said = self.written.contents[i].clone().filter(|said| said.start >= start);
        let asked = self.asked(i).filter(|asked| *asked >= start);
        let opening = match (asked, &said) {
            (Some(asked), _) => asked,
            (None, Some(said)) => self.content_from(start).unwrap_or(said.start).min(said.start),
            (None, None) => start,
        };
        let from = said.as_ref().map_or(opening, |said| said.end);
        let limit = self.content_from(from.max(opening)).unwrap_or(len);
        let ended = self.ended(from, limit).map(|(place, _)| place.end);
        // A system message that stands in the turn of another message is part of that.
        if self.messages[i].role == Role::System && ended.is_none() && i + 1 < self.messages.len() {
            return Turn { range: start..start, opening: start, answer: None, is_asked: false };
        }
        let end = ended.unwrap_or(from);
        let next = match ended {
            Some(ended) => self.after(ended),
            None => self.asked(i + 1).filter(|asked| *asked >= end).unwrap_or(end),
        };
        let answer = answer.then(|| opening..end.max(opening));
        Turn { range: start..next, opening, answer, is_asked: asked.is_some() }
    }
}

/// Encodes a text in pieces.
struct Pieces<'a> {
    tokenizer: &'a Tokenizer,
    written: &'a Written,
    ids: Vec<u32>,
    /// By border, how many ids come before it.
    at: Vec<usize>,
}

/// A place in a text.
#[derive(Debug, Clone, Copy)]
struct Border {
    at: usize,
    /// Whether no token may lie across it.
    cuts: bool,
}

/// What stands before a text.
#[derive(Clone, Copy)]
pub enum Before {
    Nothing,
    Token(u32),
    Text,
}

impl<'a> Pieces<'a> {
    fn new(tokenizer: &'a Tokenizer, written: &'a Written) -> Self {
        Pieces { tokenizer, written, ids: Vec::new(), at: Vec::new() }
    }

    /// The ids of the text, and how many come before each of `borders`, which ascend.
    fn encode(mut self, borders: &[Border]) -> Result<(Vec<u32>, Vec<usize>)> {
        let (mut borders, mut from) = (borders, 0);
        let mut before = Before::Nothing;
        for (place, id) in &self.written.tokens {
            let inside = borders.partition_point(|border| border.at < place.start);
            self.text(from..place.start, &borders[..inside], before, Some(*id))?;
            borders = &borders[inside..];
            while borders.first().is_some_and(|border| border.at <= place.start) {
                self.at.push(self.ids.len());
                borders = &borders[1..];
            }
            self.ids.push(*id);
            (from, before) = (place.end, Before::Token(*id));
        }
        self.text(from..self.written.text.len(), borders, before, None)?;
        Ok((self.ids, self.at))
    }

    /// Appends a text without special tokens.
    fn text(
        &mut self,
        range: Range<usize>,
        borders: &[Border],
        mut before: Before,
        next: Option<u32>,
    ) -> Result<()> {
        let (text, tokenizer) = (&self.written.text, self.tokenizer);
        let encode = |before, range: Range<usize>, next| tokenizer.encode_between(before, &text[range], next);
        // Where `whole` begins, where it was cut last, and how many of its ids are written.
        let (mut from, mut last, mut taken) = (range.start, range.start, 0);
        let mut whole = encode(before, range.clone(), next)?;
        for Border { at, cuts } in borders.iter().copied() {
            let head = encode(before, from..at, if at < range.end { None } else { next })?;
            let same = whole.iter().zip(&head).take_while(|(a, b)| a == b).count().max(taken);
            if !cuts {
                self.at.push(self.ids.len() + same - taken);
                continue;
            }
            if same == head.len() {
                self.ids.extend(&whole[taken..same]);
                taken = same;
            } else {
                let before_last = if last > from { Before::Text } else { before };
                self.ids.extend(encode(before_last, last..at, None)?);
                (from, before, taken) = (at, Before::Text, 0);
                whole = encode(before, from..range.end, next)?;
            }
            last = at;
            self.at.push(self.ids.len());
        }
        self.ids.extend(&whole[taken..]);
        Ok(())
    }
}
