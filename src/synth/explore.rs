//! All that templates can say after the beginning of a text: every way of drawing that gives this beginning,
//! tried one after the other, as far as the next word.
//!
//! A way of drawing is the list of its choices, a [`Trail`]. The text is drawn anew for each, told to a
//! [`Listener`] while it grows, and given up at the first letter that differs: of the ways that differ later,
//! one is enough. So the work is in proportion to the ways that agree with the beginning, times the choices
//! at each place.

use std::collections::BTreeSet;

use super::domain::Domain;
use super::draw::Draw;
use crate::base::{Error, Result};

/// Choices, in the order in which they are made.
#[derive(Debug, Default)]
pub struct Trail {
    forks: Vec<Fork>,
    at: usize,
}

#[derive(Debug)]
struct Fork {
    options: Vec<usize>,
    taken: usize,
}

impl Trail {
    /// The choice that is next on the trail; the first of `options` where it is new. `None` where there are
    /// none.
    pub fn take(&mut self, options: impl Iterator<Item = usize>) -> Option<usize> {
        if self.at == self.forks.len() {
            let options: Vec<usize> = options.collect();
            if options.is_empty() {
                return None;
            }
            self.forks.push(Fork { options, taken: 0 });
        }
        let fork = &self.forks[self.at];
        self.at += 1;
        Some(fork.options[fork.taken])
    }

    /// Goes back to the last choice that was made and has a further option, and takes it. `false` where
    /// there is none.
    fn next(&mut self) -> bool {
        self.forks.truncate(self.at);
        self.at = 0;
        while let Some(last) = self.forks.last_mut() {
            last.taken += 1;
            if last.taken < last.options.len() {
                return true;
            }
            self.forks.pop();
        }
        false
    }
}

/// A word, and how many line breaks stand before it.
type Word = (String, usize);

/// What a listener has heard at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    /// The text does not begin as it should.
    Other,
    /// It does, and this word comes next.
    Next(String),
    /// It does, and it ends there, or goes on within the last word.
    NoWord,
}

/// Compares a text that grows with a beginning.
#[derive(Debug)]
pub struct Listener {
    beginning: Vec<Word>,
    /// Words of the beginning that were heard.
    at: usize,
    /// What was heard of the word that is being said, and the line breaks before it.
    word: String,
    breaks: usize,
    /// Bytes of the paragraph that were heard.
    heard: usize,
    verdict: Option<Heard>,
}

/// What parts words once a text is drawn and its spaces are put in order.
fn parts_words(c: char) -> bool {
    c == ' ' || c == '\n'
}

impl Listener {
    fn new(beginning: &str) -> Self {
        Listener {
            beginning: words(beginning),
            at: 0,
            word: String::new(),
            breaks: 0,
            heard: 0,
            verdict: None,
        }
    }

    /// Hears what a paragraph has now beyond what it had before.
    ///
    /// # Errors
    /// [`Error::cancelled`] once no more need be said.
    pub fn hear(&mut self, paragraph: &str) -> Result<()> {
        for c in paragraph[self.heard..].chars() {
            if !parts_words(c) {
                self.word.push(c);
                continue;
            }
            self.end_of_word();
            self.breaks += usize::from(c == '\n');
        }
        self.heard = paragraph.len();
        if !self.word.is_empty() && !self.may_go_on() {
            self.verdict.get_or_insert(Heard::Other);
        }
        if self.verdict.is_some() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Hears that a paragraph is complete; one without a word is none.
    ///
    /// # Errors
    /// As [`Listener::hear`].
    pub fn paragraph(&mut self, paragraph: &str) -> Result<()> {
        self.hear(paragraph)?;
        self.end_of_word();
        self.heard = 0;
        self.breaks += if paragraph.trim().is_empty() { 0 } else { 2 };
        if self.verdict.is_some() { Err(Error::cancelled()) } else { Ok(()) }
    }

    fn may_go_on(&self) -> bool {
        match self.beginning.get(self.at) {
            Some((word, breaks)) => {
                *breaks == self.breaks && (word.starts_with(&self.word) || self.is_last_with_more())
            }
            None => true,
        }
    }

    /// Whether the word that is being said begins with the last one of the beginning.
    fn is_last_with_more(&self) -> bool {
        self.at + 1 == self.beginning.len() && self.word.starts_with(&self.beginning[self.at].0)
    }

    fn end_of_word(&mut self) {
        if self.word.is_empty() || self.verdict.is_some() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        let breaks = std::mem::take(&mut self.breaks);
        let Some((wanted, wanted_breaks)) = self.beginning.get(self.at) else {
            self.verdict = Some(Heard::Next(word));
            return;
        };
        let more = word.strip_prefix(wanted.as_str()).filter(|_| breaks == *wanted_breaks);
        self.verdict = match more {
            None => Some(Heard::Other),
            Some("") => None,
            Some(_) if self.at + 1 < self.beginning.len() => Some(Heard::Other),
            Some(more) if more.contains(char::is_alphanumeric) => Some(Heard::NoWord),
            Some(_) => None, // a comma: the next word comes all the same
        };
        self.at += 1;
    }

    /// What was heard when nothing more was said.
    fn end(mut self) -> Heard {
        self.end_of_word();
        let whole = self.at == self.beginning.len();
        self.verdict.unwrap_or(if whole { Heard::NoWord } else { Heard::Other })
    }
}

/// The words of a text.
fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let (mut word, mut breaks) = (String::new(), 0);
    for c in text.chars().chain([' ']) {
        if !parts_words(c) {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            words.push((std::mem::take(&mut word), std::mem::take(&mut breaks)));
        }
        breaks += usize::from(c == '\n');
    }
    words
}

/// The byte where each word of a text begins.
pub fn word_starts(text: &str) -> Vec<usize> {
    let mut before = ' ';
    let starts = text.char_indices().filter(|(_, c)| {
        let first = parts_words(before) && !parts_words(*c);
        before = *c;
        first
    });
    starts.map(|(at, _)| at).collect()
}

/// What comes next in the documents of domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuations {
    /// One of these words, as they stand in the texts, signs around them included; and nothing else.
    Words(BTreeSet<String>),
    /// The text may also end there, or go on within its last word.
    NotOnlyWords,
    /// There are too many ways to try.
    TooMany,
}

/// What every document of `domains` that begins with `beginning` says next. Tries at most `most` ways of
/// drawing.
pub fn next_words(domains: &[&Domain], beginning: &str, most: usize) -> Continuations {
    let mut found = BTreeSet::new();
    let mut tried = 0;
    for domain in domains {
        let mut trail = Trail::default();
        loop {
            tried += 1;
            if tried > most {
                return Continuations::TooMany;
            }
            match said(domain, &mut trail, beginning) {
                Heard::Next(word) => drop(found.insert(word)),
                Heard::NoWord => return Continuations::NotOnlyWords,
                Heard::Other => {}
            }
            if !trail.next() {
                break;
            }
        }
    }
    Continuations::Words(found)
}

/// What the text along `trail` says after `beginning`.
fn said(domain: &Domain, trail: &mut Trail, beginning: &str) -> Heard {
    let mut listener = Listener::new(beginning);
    let drawn = Draw::along(domain, trail, &mut listener).document();
    match (drawn, listener.verdict.is_some()) {
        // A way that leads to no text, because a slot has no further value.
        (Err(_), false) => Heard::Other,
        _ => listener.end(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::synth::load;
    use proptest::prelude::*;

    /// Nested choices, values that use slots, bindings, modifiers, sums, attributes, optional and shuffled
    /// parts, paragraphs: every construct, with few enough texts that drawing meets all of them.
    const TEMPLATES: &str = "
slots:
  color: [red, blue]
  toy: ['{color} ball', kite]
  person: [{value: Tom, he: he}, {value: Anna, he: she}]
  n: {from: 1, to: 3}
documents:
  - name: toy
    text:
      - '{person} has {toy|a}[, and {person.2} has none| now].'
      - {one: ['[?Today ]{person.he} plays.', {text: '{Person.he} sleeps.', weight: 2}], chance: 0.5}
  - name: sum
    paragraphs:
      - [{some: ['{N} and {n.2} make {n|plus:n.2}.', 'It is a sum.', 'Tom has [it|a [big|small] one].'], count: [1, 2], shuffle: true}]
      - 'The [?very ]end.'
";

    fn draw(domain: &Domain, seed: u64) -> String {
        Draw::new(domain, Rng::new(seed, "text")).document().unwrap().1
    }

    fn accepted(domain: &Domain, beginning: &str) -> Option<BTreeSet<String>> {
        match next_words(&[domain], beginning, 100_000) {
            Continuations::Words(words) => Some(words),
            Continuations::NotOnlyWords => None,
            Continuations::TooMany => panic!("so few texts"),
        }
    }

    /// `text` up to each word but the first, and that word.
    fn cuts(text: &str) -> Vec<(&str, &str)> {
        let starts = word_starts(text);
        let word = |at: usize| text[at..].split(parts_words).next().unwrap();
        starts.iter().skip(1).map(|at| (text[..*at].trim_end(), word(*at))).collect()
    }

    #[test]
    fn exactly_what_some_text_says_next_is_accepted() {
        let domain = load("t.yaml", TEMPLATES).unwrap();
        let texts: BTreeSet<String> = (0..30_000).map(|seed| draw(&domain, seed)).collect();
        let beginnings: BTreeSet<&str> =
            texts.iter().flat_map(|text| cuts(text)).map(|(beginning, _)| beginning).collect();
        let goes_on = |beginning: &str, text: &String| {
            let more = text.strip_prefix(beginning)?;
            let end = more.split(parts_words).next().unwrap_or("");
            let signs = !end.contains(char::is_alphanumeric);
            Some((signs, more[end.len()..].trim().split(parts_words).next().unwrap_or("").to_string()))
        };
        let mut checked = 0;
        for beginning in &beginnings {
            let all: Vec<(bool, String)> = texts.iter().filter_map(|text| goes_on(beginning, text)).collect();
            let only_words = all.iter().all(|(signs, word)| *signs && !word.is_empty());
            let words: BTreeSet<String> = all.into_iter().map(|(_, word)| word).collect();
            assert_eq!(accepted(&domain, beginning), only_words.then_some(words), "{beginning:?}");
            checked += usize::from(only_words);
        }
        assert!(checked > 200, "{checked} of {}", beginnings.len());
    }

    #[test]
    fn the_choices_that_were_made_decide_what_is_accepted() {
        let domain = load("t.yaml", TEMPLATES).unwrap();
        for (beginning, words) in [
            ("Tom has", vec!["a", "it."]),
            ("Tom has a", vec!["big", "blue", "kite", "kite,", "red", "small"]),
            ("Anna has a red", vec!["ball", "ball,"]),
            ("Anna has a kite", vec!["and", "now."]),
            ("Anna has a kite, and", vec!["Tom"]),
            ("1 and 3 make", vec!["4."]),
            ("1 and 3 make 4.\n\nThe", vec!["end.", "very"]),
        ] {
            let words = words.into_iter().map(str::to_string).collect();
            assert_eq!(accepted(&domain, beginning), Some(words), "{beginning}");
        }
        assert_eq!(accepted(&domain, "Tom has a kite now."), None, "it may end there");
        assert_eq!(next_words(&[&domain], "Tom has", 3), Continuations::TooMany);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_word_that_a_text_says_is_accepted(seed: u64, place in any::<proptest::sample::Index>()) {
            let name = ["english", "indonesian", "medical"][place.index(3)];
            let path = format!("{}/data/templates/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let domain = load(&path, &crate::base::fs::read_text(path.as_ref()).unwrap()).unwrap();
            let text = draw(&domain, seed);
            let cuts = cuts(&text);
            prop_assume!(!cuts.is_empty());
            let (beginning, next) = cuts[place.index(cuts.len())];
            if let Continuations::Words(words) = next_words(&[&domain], beginning, 5_000) {
                prop_assert!(words.contains(next), "{beginning} | {next} | {words:?}");
            }
        }
    }
}
