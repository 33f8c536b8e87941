//! Draws one document or one conversation from a domain.
//!
//! A [`Draw`] is for one item and keeps the value of each slot, so that `{animal}` is the same animal
//! throughout and `{animal.2}` another. Files, reports and duplicates are not its concern.

use super::domain::{Domain, Part, Step, Template, Texts};
use super::explore::{Listener, Trail};
use super::modify::{self, Modifier, Operand};
use super::text::{Binding, Piece, TemplateText, Use};
use crate::base::{Error, Result, Rng};
use crate::corpus::conversation::{Message, Role};

/// Limits of the pieces of one item and the bytes of one text: far above what templates need; without them
/// nested values could grow exponentially.
const MAX_PIECES: usize = 200_000;
const MAX_BYTES: usize = 1 << 20;

/// The state of one item while it is drawn.
pub struct Draw<'d> {
    domain: &'d Domain,
    choices: Choices<'d>,
    bound: Vec<Bound>,
    pieces: usize,
    /// How many values of slots this text lies in: 0 for the text of the item.
    depth: usize,
}

/// Who decides what is drawn.
enum Choices<'d> {
    Random(Rng),
    /// One text of all that there are, told to a listener as it grows.
    Given(&'d mut Trail, &'d mut Listener),
}

impl Choices<'_> {
    fn weighted(&mut self, weights: &[f64]) -> Option<usize> {
        match self {
            Choices::Random(rng) => rng.weighted(weights),
            Choices::Given(trail, _) => trail.take((0..weights.len()).filter(|i| weights[*i] > 0.0)),
        }
    }

    /// One of `0..n`, which is not empty.
    fn index(&mut self, n: usize) -> usize {
        match self {
            Choices::Random(rng) => rng.index(n),
            Choices::Given(trail, _) => trail.take(0..n).unwrap_or(0),
        }
    }

    fn happens(&mut self, chance: f64) -> bool {
        match self {
            _ if chance >= 1.0 => true,
            Choices::Random(rng) => rng.uniform() < chance,
            Choices::Given(trail, _) => trail.take(usize::from(chance <= 0.0)..2) == Some(0),
        }
    }
}

/// The value drawn for a slot.
struct Bound {
    binding: Binding,
    entry: usize,
    value: String,
    /// Drawn attributes, once used.
    attributes: Vec<(usize, String)>,
}

impl<'d> Draw<'d> {
    pub fn new(domain: &'d Domain, rng: Rng) -> Self {
        Draw { domain, choices: Choices::Random(rng), bound: Vec::new(), pieces: 0, depth: 0 }
    }

    /// The text that `trail` leads to, as far as `listener` wants to hear it.
    pub fn along(domain: &'d Domain, trail: &'d mut Trail, listener: &'d mut Listener) -> Self {
        Draw { domain, choices: Choices::Given(trail, listener), bound: Vec::new(), pieces: 0, depth: 0 }
    }

    /// One of `0..n`, from the item's own random numbers, once it is drawn.
    pub fn pick(&mut self, n: usize) -> usize {
        self.choices.index(n)
    }

    /// A document, and the index of its template.
    ///
    /// # Errors
    /// When a slot has no further different value, or a sum does not fit in 64 bits.
    pub fn document(&mut self) -> Result<(usize, String)> {
        let (index, template) = self.template(&self.domain.documents)?;
        let mut paragraphs = Vec::new();
        for paragraph in &template.body.paragraphs {
            let mut text = String::new();
            for part in paragraph {
                self.part(part, &mut text)?;
            }
            self.tell_break(&text)?;
            if !text.trim().is_empty() {
                paragraphs.push(text);
            }
        }
        Ok((index, tidy(&paragraphs.join("\n\n"))))
    }

    /// The messages of a conversation of at most `max_turns` exchanges, and the index of its
    /// template.
    ///
    /// # Errors
    /// As [`Draw::document`].
    pub fn conversation(&mut self, max_turns: usize) -> Result<(usize, Vec<Message>)> {
        let (index, template) = self.template(&self.domain.conversations)?;
        let mut messages = Vec::new();
        if let Some(part) = &template.body.system {
            let mut text = String::new();
            self.part(part, &mut text)?;
            let content = tidy(&text);
            if !content.is_empty() {
                messages.push(Message::new(Role::System, content));
            }
        }
        let mut used = Vec::new();
        for step in &template.body.steps {
            let mut next = Some(step);
            while let Some(exchange) = next.and_then(|s| self.exchange_of(s, &used)) {
                if used.len() == max_turns {
                    return Ok((index, messages));
                }
                used.push(exchange);
                self.exchange(exchange, &mut messages)?;
                next = self.domain.exchanges[exchange].then.as_ref();
            }
        }
        Ok((index, messages))
    }

    fn template<T>(&mut self, templates: &'d [Template<T>]) -> Result<(usize, &'d Template<T>)> {
        let weights: Vec<f64> = templates.iter().map(|t| t.weight).collect();
        let index = self.choices.weighted(&weights).ok_or_else(|| nothing("templates"))?;
        Ok((index, &templates[index]))
    }

    /// With the step's probability one of its exchanges that this conversation does not have yet.
    fn exchange_of(&mut self, step: &Step, used: &[usize]) -> Option<usize> {
        if !self.choices.happens(step.chance) {
            return None;
        }
        let left = step.exchanges.iter().zip(&step.weights);
        let weights: Vec<f64> = left.map(|(e, w)| if used.contains(e) { 0.0 } else { *w }).collect();
        self.choices.weighted(&weights).map(|i| step.exchanges[i])
    }

    fn exchange(&mut self, exchange: usize, messages: &mut Vec<Message>) -> Result<()> {
        let exchange = &self.domain.exchanges[exchange];
        let pair = self.choices.weighted(&exchange.weights).ok_or_else(|| nothing("exchanges"))?;
        let pair = &exchange.pairs[pair];
        for (role, texts) in [(Role::User, &pair.user), (Role::Assistant, &pair.assistant)] {
            let mut text = String::new();
            self.one(texts, &mut text)?;
            messages.push(Message::new(role, tidy(&text)));
        }
        Ok(())
    }

    /// Tells a listener how far the text of the paragraph has grown.
    ///
    /// # Errors
    /// When the listener has heard enough.
    fn tell(&mut self, paragraph: &str) -> Result<()> {
        match &mut self.choices {
            Choices::Given(_, listener) if self.depth == 0 => listener.hear(paragraph),
            _ => Ok(()),
        }
    }

    /// Tells a listener that a paragraph is complete.
    fn tell_break(&mut self, paragraph: &str) -> Result<()> {
        match &mut self.choices {
            Choices::Given(_, listener) => listener.paragraph(paragraph),
            Choices::Random(_) => Ok(()),
        }
    }

    fn part(&mut self, part: &Part, out: &mut String) -> Result<()> {
        if !self.choices.happens(part.chance) {
            return Ok(());
        }
        let (least, most) = part.count;
        let count = least + self.choices.index(most - least + 1);
        let mut weights = part.texts.weights.clone();
        let mut picked = Vec::new();
        for _ in 0..count {
            let index = self.choices.weighted(&weights).ok_or_else(|| nothing("texts"))?;
            weights[index] = 0.0;
            picked.push(index);
        }
        if !part.shuffle {
            picked.sort_unstable();
        }
        for index in picked {
            if !out.is_empty() {
                out.push(' ');
            }
            self.text(&part.texts.texts[index], out)?;
        }
        Ok(())
    }

    fn one(&mut self, texts: &Texts, out: &mut String) -> Result<()> {
        let index = self.choices.weighted(&texts.weights).ok_or_else(|| nothing("texts"))?;
        self.text(&texts.texts[index], out)
    }

    fn text(&mut self, text: &TemplateText, out: &mut String) -> Result<()> {
        self.pieces += text.len();
        if self.pieces > MAX_PIECES || out.len() > MAX_BYTES {
            return Err(Error::input(format!(
                "one item takes more than {MAX_PIECES} pieces, or a text of it more than {MAX_BYTES} bytes"
            ))
            .help("look for slots whose values use other slots several times"));
        }
        for piece in text {
            match piece {
                Piece::Literal(literal) => out.push_str(literal),
                Piece::Choice { options, chance } => {
                    if self.choices.happens(*chance) {
                        let option = self.choices.index(options.len());
                        self.text(&options[option], out)?;
                    }
                }
                Piece::Use(slot) => {
                    self.depth += 1;
                    let value = self.slot(slot)?;
                    self.depth -= 1;
                    out.push_str(&value);
                }
            }
            self.tell(out)?;
        }
        Ok(())
    }

    fn slot(&mut self, slot: &Use) -> Result<String> {
        let mut value = self.value(slot.binding, slot.attribute)?;
        for modifier in &slot.modifiers {
            value = match modifier {
                Modifier::Reckon(operation, operand) => {
                    let second = match operand {
                        Operand::Number(n) => *n,
                        Operand::Slot(binding) => whole(&self.value(*binding, None)?)?,
                    };
                    modify::reckon(*operation, whole(&value)?, second)?.to_string()
                }
                words => words.apply(&value),
            };
        }
        Ok(if slot.capital { modify::capitalize(&value) } else { value })
    }

    fn value(&mut self, binding: Binding, attribute: Option<usize>) -> Result<String> {
        if binding.number == 0 {
            let (entry, value) = self.choose(binding.slot, &[])?;
            return attribute.map_or(Ok(value), |a| self.attribute(binding.slot, entry, a));
        }
        let index = match self.bound.iter().position(|b| b.binding == binding) {
            Some(index) => index,
            None => self.bind(binding)?,
        };
        let Some(attribute) = attribute else { return Ok(self.bound[index].value.clone()) };
        if let Some((_, text)) = self.bound[index].attributes.iter().find(|(a, _)| *a == attribute) {
            return Ok(text.clone());
        }
        let text = self.attribute(binding.slot, self.bound[index].entry, attribute)?;
        self.bound[index].attributes.push((attribute, text.clone()));
        Ok(text)
    }

    fn attribute(&mut self, slot: usize, entry: usize, attribute: usize) -> Result<String> {
        let domain = self.domain;
        let mut text = String::new();
        self.one(&domain.slots[slot].entries[entry].attributes[attribute], &mut text)?;
        Ok(text)
    }

    /// Draws a value that differs from those that the slot's other numbers have.
    fn bind(&mut self, binding: Binding) -> Result<usize> {
        let others = self.bound.iter().filter(|b| b.binding.slot == binding.slot);
        let rivals: Vec<(usize, String)> = others.map(|b| (b.entry, b.value.clone())).collect();
        let (entry, value) = self.choose(binding.slot, &rivals)?;
        self.bound.push(Bound { binding, entry, value, attributes: Vec::new() });
        Ok(self.bound.len() - 1)
    }

    /// An entry of a slot and its value, other than those of `rivals`. Entries with equal text are the same
    /// value.
    fn choose(&mut self, slot: usize, rivals: &[(usize, String)]) -> Result<(usize, String)> {
        let slot = &self.domain.slots[slot];
        let mut weights = slot.weights.clone();
        rivals.iter().for_each(|(entry, _)| weights[*entry] = 0.0);
        loop {
            let entry = self.choices.weighted(&weights).ok_or_else(|| {
                let what =
                    format!("the slot `{}` has no further value that differs from the others", slot.name);
                Error::input(what)
                    .at(slot.span.place())
                    .help("some of its values come out the same: give it more")
            })?;
            let mut value = String::new();
            self.text(&slot.entries[entry].value, &mut value)?;
            if rivals.iter().all(|(_, other)| *other != value) {
                return Ok((entry, value));
            }
            weights[entry] = 0.0;
        }
    }
}

fn whole(value: &str) -> Result<i64> {
    value.parse().map_err(|_| Error::bug(format!("`{value}` of a numeric slot is not a whole number")))
}

fn nothing(what: &str) -> Error {
    Error::bug(format!("none of these {what} has a positive weight, which loading should have refused"))
}

/// Runs of spaces become one, and none stands beside a line break or at the ends: what optional
/// parts that were left out leave behind.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c == '\n' {
            out.truncate(out.trim_end_matches(' ').len());
        }
        if c != ' ' || !out.ends_with([' ', '\n']) {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::tidy;

    #[test]
    fn spaces_left_behind_go() {
        assert_eq!(tidy("  a   b \n\n  c "), "a b\n\nc");
    }
}
