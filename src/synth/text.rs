//! The language inside a template's texts: `{slots}`, `[one|of|these]`, `[?maybe]`, `{slot|modifier}`.
//!
//! [`parse`] turns a text into pieces with slots by index, so every name is checked here, before anything
//! is drawn. The format is described in [`super`]. Drawing is `render`'s work.

use std::collections::HashMap;

use super::modify::Modifier;
use crate::base::suggest;

/// What a text may refer to: the slots of its domain.
#[derive(Debug, Default)]
pub struct Names {
    pub slots: Vec<SlotNames>,
    by_name: HashMap<String, usize>,
}

impl Names {
    pub fn push(&mut self, slot: SlotNames) {
        self.by_name.insert(slot.name.clone(), self.slots.len());
        self.slots.push(slot);
    }
}

/// The signature of a slot: enough to check a text that uses it.
#[derive(Debug, Clone)]
pub struct SlotNames {
    pub name: String,
    pub attributes: Vec<String>,
    /// Entries with a positive weight.
    pub entries: usize,
    /// Every value is a whole number, so that it can be used in sums.
    pub numeric: bool,
}

pub type TemplateText = Vec<Piece>;

#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Literal(String),
    /// With probability `chance` one of the options, each as likely as the others; else nothing.
    Choice {
        options: Vec<TemplateText>,
        chance: f64,
    },
    Use(Use),
}

/// A slot in braces.
#[derive(Debug, Clone, PartialEq)]
pub struct Use {
    pub binding: Binding,
    /// Index into the slot's attributes; `None` is its value.
    pub attribute: Option<usize>,
    pub modifiers: Vec<Modifier>,
    /// Written with a capital letter.
    pub capital: bool,
}

/// Which draw of a slot is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// Index into the domain's slots.
    pub slot: usize,
    /// From 1: bindings with different numbers have different values. 0: drawn anew at each use.
    pub number: u32,
}

/// What is wrong with a text, and where in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Flaw {
    /// In characters, from 0.
    pub at: usize,
    pub width: usize,
    pub message: String,
    pub help: Option<String>,
}

impl Flaw {
    fn new(at: usize, width: usize, message: impl Into<String>) -> Self {
        Flaw { at, width: width.max(1), message: message.into(), help: None }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The most nested choices.
const MAX_DEPTH: usize = 16;

/// Reads a text.
///
/// # Errors
/// Unbalanced brackets, unknown slots, attributes and modifiers, empty choices, bad escapes.
pub fn parse(text: &str, names: &Names) -> Result<TemplateText, Flaw> {
    let mut parser = Parser { chars: text.chars().collect(), at: 0, names };
    let pieces = parser.pieces(0)?;
    match parser.peek() {
        None => Ok(pieces),
        Some(c) => Err(Flaw::new(parser.at, 1, format!("`{c}` closes nothing"))
            .help(format!("for the character itself write `\\{c}`"))),
    }
}

struct Parser<'a> {
    chars: Vec<char>,
    at: usize,
    names: &'a Names,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    /// Up to the end, or to the bracket or (inside a choice) bar that ends these pieces.
    fn pieces(&mut self, depth: usize) -> Result<TemplateText, Flaw> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        while let Some(c) = self.peek() {
            match c {
                ']' | '}' => break,
                '|' if depth > 0 => break,
                '\\' => literal.push(self.escape()?),
                '{' | '[' => {
                    flush(&mut literal, &mut pieces);
                    pieces.push(if c == '{' { self.slot()? } else { self.choice(depth + 1)? });
                }
                c => {
                    literal.push(c);
                    self.at += 1;
                }
            }
        }
        flush(&mut literal, &mut pieces);
        Ok(pieces)
    }

    fn escape(&mut self) -> Result<char, Flaw> {
        let start = self.at;
        self.at += 2;
        match self.chars.get(start + 1) {
            Some(c) if "{}[]|\\?".contains(*c) => Ok(*c),
            _ => Err(Flaw::new(start, 2, "this backslash escapes nothing")
                .help("escapes are \\{ \\} \\[ \\] \\| \\? and \\\\")),
        }
    }

    fn choice(&mut self, depth: usize) -> Result<Piece, Flaw> {
        let start = self.at;
        if depth > MAX_DEPTH {
            return Err(Flaw::new(start, 1, format!("choices nested deeper than {MAX_DEPTH}")));
        }
        self.at += 1;
        let chance = if self.peek() == Some('?') { self.chance()? } else { 1.0 };
        let mut options = Vec::new();
        loop {
            options.push(self.pieces(depth)?);
            match self.peek() {
                Some('|') => self.at += 1,
                Some(']') => break,
                _ => {
                    return Err(Flaw::new(start, 1, "this `[` is never closed")
                        .help("close it with `]`, or write `\\[` for the character itself"));
                }
            }
        }
        self.at += 1;
        if options.len() == 1 && (chance == 1.0 || options[0].is_empty()) {
            let width = self.at - start;
            return Err(Flaw::new(start, width, "there is nothing to choose here")
                .help("write [this|that], or [?maybe this]; for the character itself `\\[`"));
        }
        Ok(Piece::Choice { options, chance })
    }

    /// `?` is an even chance, `?30%` one of three in ten.
    fn chance(&mut self) -> Result<f64, Flaw> {
        self.at += 1;
        let rest = &self.chars[self.at..];
        let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 || rest.get(digits) != Some(&'%') {
            return Ok(0.5);
        }
        let percent: String = rest[..digits].iter().collect();
        let at = self.at;
        self.at += digits + 1;
        match percent.parse::<u8>() {
            Ok(p @ 1..=99) => Ok(f64::from(p) / 100.0),
            _ => Err(Flaw::new(at, digits + 1, format!("a chance of {percent}% leaves nothing to chance"))
                .help("from 1% to 99%")),
        }
    }

    fn slot(&mut self) -> Result<Piece, Flaw> {
        let start = self.at;
        let inside = self.chars[start + 1..].iter().take_while(|c| !"{}[]".contains(**c)).count();
        if self.chars.get(start + 1 + inside) != Some(&'}') {
            return Err(Flaw::new(start, 1, "this `{` is never closed")
                .help("close it with `}`, or write `\\{` for the character itself"));
        }
        self.at = start + inside + 2;
        let inner: String = self.chars[start + 1..start + 1 + inside].iter().collect();
        self.slot_use(&inner, start + 1).map(Piece::Use)
    }

    fn slot_use(&self, inner: &str, at: usize) -> Result<Use, Flaw> {
        let mut parts = inner.split('|');
        let head = parts.next().unwrap_or("");
        let (binding, attribute, capital) = self.reference(head, at)?;
        let mut found = Use { binding, attribute, modifiers: Vec::new(), capital };
        let mut at = at + head.chars().count() + 1;
        for part in parts {
            let modifier = self.modifier(part, at)?;
            self.check_reckoning(&found, &modifier, part, at)?;
            found.modifiers.push(modifier);
            at += part.chars().count() + 1;
        }
        Ok(found)
    }

    /// `animal`, `animal.2`, `animal.sound`, `animal.2.sound`, `any:animal`.
    fn reference(&self, head: &str, at: usize) -> Result<(Binding, Option<usize>, bool), Flaw> {
        let (fresh, path) = match head.strip_prefix("any:") {
            Some(path) => (true, path),
            None => (false, head),
        };
        let width = head.chars().count();
        let mut parts = path.split('.').peekable();
        let (name, mut capital) = plain_name(parts.next().unwrap_or(""));
        let slot = self.names.by_name.get(&name).copied().ok_or_else(|| {
            let what = if name.is_empty() {
                "no slot is named here".into()
            } else {
                format!("unknown slot `{name}`")
            };
            unknown(Flaw::new(at, width, what), &name, self.names.slots.iter().map(|s| s.name.as_str()))
        })?;
        let known = &self.names.slots[slot];
        let mut number = u32::from(!fresh);
        if let Some(digits) = parts.next_if(|p| p.starts_with(|c: char| c.is_ascii_digit())) {
            number = self.number(digits, fresh, known, Flaw::new(at, width, ""))?;
        }
        let attribute = match parts.next() {
            None => None,
            Some(raw) => {
                let (attribute, upper) = plain_name(raw);
                capital |= upper;
                Some(known.attributes.iter().position(|a| *a == attribute).ok_or_else(|| {
                    let what = format!("the slot `{name}` has no attribute `{attribute}`");
                    unknown(
                        Flaw::new(at, width, what),
                        &attribute,
                        known.attributes.iter().map(String::as_str),
                    )
                })?)
            }
        };
        match parts.next() {
            None => Ok((Binding { slot, number }, attribute, capital)),
            Some(more) => Err(Flaw::new(at, width, format!("`.{more}` is one dot too many"))
                .help("the longest form is {slot.2.attribute}")),
        }
    }

    fn number(&self, digits: &str, fresh: bool, slot: &SlotNames, flaw: Flaw) -> Result<u32, Flaw> {
        let say = |message: String| Flaw { message, ..flaw.clone() };
        if fresh {
            return Err(say("`any:` is drawn anew at each use, so it has no number".into()));
        }
        let number = digits.parse::<u32>().ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| say(format!("`{digits}` is not a number from 1")))?;
        if number as usize > slot.entries {
            let what = format!(
                "{number} different values are wanted, but the slot `{}` has {}",
                slot.name, slot.entries
            );
            return Err(say(what).help("give it more values, or use a smaller number"));
        }
        Ok(number)
    }

    fn modifier(&self, part: &str, at: usize) -> Result<Modifier, Flaw> {
        let (name, argument) = match part.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (part, None),
        };
        let width = part.chars().count();
        if let Some(modifier) = Modifier::plain(name) {
            return match argument {
                None => Ok(modifier),
                Some(_) => {
                    Err(Flaw::new(at, width, format!("the modifier `{name}` takes nothing after a colon")))
                }
            };
        }
        if !Modifier::RECKONING.contains(&name) {
            let all = Modifier::names();
            return Err(unknown(Flaw::new(at, width, format!("unknown modifier `{name}`")), name, all));
        }
        let argument = argument.ok_or_else(|| {
            Flaw::new(at, width, format!("the modifier `{name}` wants a number or a slot of numbers"))
                .help(format!("for example {{n|{name}:2}} or {{n|{name}:m}}"))
        })?;
        if let Ok(n) = argument.parse::<i32>() {
            return Ok(Modifier::reckoning_number(name, i64::from(n)));
        }
        let at = at + name.chars().count() + 1;
        let (binding, attribute, _) = self.reference(argument, at)?;
        let slot = &self.names.slots[binding.slot];
        if attribute.is_some() || !slot.numeric {
            return Err(not_numeric(&slot.name, Flaw::new(at, argument.chars().count(), "")));
        }
        Ok(Modifier::reckoning_slot(name, binding))
    }

    /// Sums are of numbers: of a numeric slot's value, before it is made into something else.
    fn check_reckoning(&self, found: &Use, modifier: &Modifier, part: &str, at: usize) -> Result<(), Flaw> {
        if !modifier.reckons() {
            return Ok(());
        }
        let slot = &self.names.slots[found.binding.slot];
        if found.attribute.is_some() || !slot.numeric || found.modifiers.iter().any(|m| !m.reckons()) {
            return Err(not_numeric(&slot.name, Flaw::new(at, part.chars().count(), "")));
        }
        Ok(())
    }
}

fn not_numeric(slot: &str, flaw: Flaw) -> Flaw {
    Flaw { message: format!("one cannot reckon with `{slot}` here"), ..flaw }
        .help("plus, minus and times stand first, and work on slots whose values are all whole numbers")
}

fn flush(literal: &mut String, pieces: &mut TemplateText) {
    if !literal.is_empty() {
        pieces.push(Piece::Literal(std::mem::take(literal)));
    }
}

/// The name in small letters, and whether it was written with a capital.
fn plain_name(raw: &str) -> (String, bool) {
    let capital = raw.starts_with(|c: char| c.is_ascii_uppercase());
    let mut name = raw.to_string();
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    (name, capital)
}

fn unknown<'a>(flaw: Flaw, found: &str, known: impl IntoIterator<Item = &'a str>) -> Flaw {
    let known: Vec<&str> = known.into_iter().collect();
    match suggest::closest(found, known.iter().copied()) {
        Some(name) => flaw.help(format!("did you mean `{name}`?")),
        None if known.is_empty() => flaw.help("there are none"),
        None if known.len() > 20 => flaw,
        None => flaw.help(format!("there are: {}", suggest::list(known))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Names {
        let slot = |name: &str, attributes: &[&str], numeric| SlotNames {
            name: name.into(),
            attributes: attributes.iter().map(|a| a.to_string()).collect(),
            entries: 3,
            numeric,
        };
        let mut names = Names::default();
        for slot in
            [slot("animal", &["sound", "home"], false), slot("n", &[], true), slot("color", &[], false)]
        {
            names.push(slot);
        }
        names
    }

    fn message(text: &str) -> (usize, String) {
        let flaw = parse(text, &names()).unwrap_err();
        (flaw.at, format!("{} ({})", flaw.message, flaw.help.unwrap_or_default()))
    }

    #[test]
    fn a_text_is_literals_slots_and_choices() {
        let text = parse("A {animal.2.Sound|upper} [?30%or|and {any:color}] \\{x\\} a|b", &names()).unwrap();
        let slot = |slot, number, attribute, modifiers: &[Modifier], capital| {
            Piece::Use(Use {
                binding: Binding { slot, number },
                attribute,
                modifiers: modifiers.to_vec(),
                capital,
            })
        };
        let literal = |s: &str| Piece::Literal(s.into());
        assert_eq!(
            text,
            [
                literal("A "),
                slot(0, 2, Some(0), &[Modifier::Upper], true),
                literal(" "),
                Piece::Choice {
                    options: vec![vec![literal("or")], vec![literal("and "), slot(2, 0, None, &[], false)]],
                    chance: 0.3
                },
                literal(" {x} a|b"),
            ]
        );
    }

    #[test]
    fn a_flaw_says_where_and_what_to_do() {
        for (text, at, says) in [
            ("a {anmal} b", 3, "unknown slot `anmal` (did you mean `animal`?)"),
            ("{animal.sond}", 1, "has no attribute `sond` (did you mean `sound`?)"),
            ("{animal|captalize}", 8, "unknown modifier `captalize` (did you mean `capitalize`?)"),
            ("{animal.4}", 1, "4 different values are wanted, but the slot `animal` has 3"),
            ("{animal.0}", 1, "not a number from 1"),
            ("{animal.2.sound.x}", 1, "one dot too many"),
            ("{any:animal.2}", 1, "drawn anew"),
            ("{animal|plus:2}", 8, "cannot reckon with `animal`"),
            ("{n|plus}", 3, "wants a number"),
            ("{n|plus:color}", 8, "cannot reckon with `color`"),
            ("{n|a:3}", 3, "takes nothing after a colon"),
            ("ab {animal", 3, "this `{` is never closed"),
            ("ab [x|y", 3, "this `[` is never closed"),
            ("ab ]", 3, "`]` closes nothing"),
            ("ab }", 3, "`}` closes nothing"),
            ("[x]", 0, "nothing to choose"),
            ("[?]", 0, "nothing to choose"),
            ("[?100%x]", 2, "leaves nothing to chance"),
            ("a \\n", 2, "escapes nothing"),
            ("{}", 1, "no slot is named here"),
        ] {
            let (found, message) = message(text);
            assert!(found == at && message.contains(says), "{text}: at {found}: {message}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(message(&"[a|".repeat(10_000)).1.contains("nested deeper"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_at_a_place(text in "([{}\\[\\]|?%.:\\\\ a-c2é]|animal|any:|plus|sound){0,20}") {
            if let Err(flaw) = parse(&text, &names()) {
                prop_assert!(flaw.at < text.chars().count().max(1), "{flaw:?}");
                prop_assert!(flaw.width > 0 && !flaw.message.is_empty());
            }
        }

        #[test]
        fn an_escaped_text_is_itself(text in ".{0,30}") {
            let escaped: String = text.chars().flat_map(|c| {
                "{}[]|\\".contains(c).then_some('\\').into_iter().chain([c])
            }).collect();
            let expected = if text.is_empty() { vec![] } else { vec![Piece::Literal(text)] };
            prop_assert_eq!(parse(&escaped, &Names::default()).unwrap(), expected);
        }
    }
}
