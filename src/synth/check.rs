//! Checks of a whole domain: no slot uses itself, nothing is unused, no text can be empty.

use std::collections::BTreeSet;

use super::domain::{Domain, Slot, Texts, Warning};
use super::modify::{Modifier, Operand};
use super::text::{Piece, TemplateText};
use crate::base::yaml::Span;
use crate::base::{Error, Result};

/// The most slots within values of slots, which bounds the recursion of drawing and counting.
const MAX_DEPTH: usize = 32;

/// The domain with its warnings, when no slot uses itself.
///
/// # Errors
/// Names the cycle of slots, or the slot that is nested too deeply.
pub fn finish(mut domain: Domain) -> Result<Domain> {
    let needs: Vec<BTreeSet<usize>> = domain.slots.iter().map(slots_of_slot).collect();
    if let Some(circle) = circle(&needs) {
        let names: Vec<&str> = circle.iter().map(|i| domain.slots[*i].name.as_str()).collect();
        let first = &domain.slots[circle[0]];
        return Err(Error::usage(format!("the slot `{}` needs itself: {}", first.name, names.join(" -> ")))
            .at(first.span.place())
            .help("a value may use other slots, but no way may lead back"));
    }
    if let Some(deep) = depths(&needs).iter().position(|depth| *depth > MAX_DEPTH) {
        let slot = &domain.slots[deep];
        return Err(Error::usage(format!(
            "the slot `{}` needs slots that need slots, more than {MAX_DEPTH} deep",
            slot.name
        ))
        .at(slot.span.place()));
    }
    let used = used_slots(&domain, &needs);
    let idle = domain.slots.iter().enumerate().filter(|(i, _)| !used.contains(i));
    let warnings: Vec<Warning> =
        idle.map(|(_, s)| Warning::new(&s.span, format!("the slot `{}` is never used", s.name))).collect();
    domain.warnings.extend(warnings);
    Ok(domain)
}

/// Warns of named exchanges that no conversation leads to. `named` are the first of the domain's.
pub fn unused_exchanges<'a>(domain: &mut Domain, named: impl Iterator<Item = (&'a str, &'a Span)>) {
    let mut open: Vec<usize> =
        domain.conversations.iter().flat_map(|c| &c.body.steps).flat_map(|s| s.exchanges.clone()).collect();
    let mut reached = BTreeSet::new();
    while let Some(exchange) = open.pop() {
        if reached.insert(exchange) {
            open.extend(domain.exchanges[exchange].then.iter().flat_map(|s| &s.exchanges));
        }
    }
    for (i, (name, span)) in named.enumerate() {
        if !reached.contains(&i) {
            domain.warnings.push(Warning::new(span, format!("the exchange `{name}` is never used")));
        }
    }
}

/// Whether some draw of this text gives nothing but spaces. Values of slots are never empty, attributes may
/// be.
pub fn may_be_empty(text: &TemplateText) -> bool {
    text.iter().all(|piece| match piece {
        Piece::Literal(literal) => literal.trim().is_empty(),
        Piece::Choice { options, chance } => *chance < 1.0 || options.iter().any(may_be_empty),
        Piece::Use(slot) => slot.attribute.is_some(),
    })
}

fn used_slots(domain: &Domain, needs: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut direct = BTreeSet::new();
    for document in &domain.documents {
        document.body.parts().for_each(|p| slots_of_texts(&p.texts, &mut direct));
    }
    for chat in &domain.conversations {
        chat.body.system.iter().for_each(|p| slots_of_texts(&p.texts, &mut direct));
    }
    for pair in domain.exchanges.iter().flat_map(|e| &e.pairs) {
        slots_of_texts(&pair.user, &mut direct);
        slots_of_texts(&pair.assistant, &mut direct);
    }
    let mut used = BTreeSet::new();
    let mut open: Vec<usize> = direct.into_iter().collect();
    while let Some(slot) = open.pop() {
        if used.insert(slot) {
            open.extend(&needs[slot]);
        }
    }
    used
}

fn slots_of_slot(slot: &Slot) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for entry in &slot.entries {
        slots_of(&entry.value, &mut found);
        entry.attributes.iter().for_each(|a| slots_of_texts(a, &mut found));
    }
    found
}

fn slots_of_texts(texts: &Texts, found: &mut BTreeSet<usize>) {
    texts.texts.iter().for_each(|text| slots_of(text, found));
}

fn slots_of(text: &TemplateText, found: &mut BTreeSet<usize>) {
    for piece in text {
        match piece {
            Piece::Literal(_) => {}
            Piece::Choice { options, .. } => options.iter().for_each(|text| slots_of(text, found)),
            Piece::Use(slot) => {
                found.insert(slot.binding.slot);
                for modifier in &slot.modifiers {
                    if let Modifier::Reckon(_, Operand::Slot(binding)) = modifier {
                        found.insert(binding.slot);
                    }
                }
            }
        }
    }
}

/// The nesting depth of each slot, itself included, without cycles: by relaxation, up to the limit.
fn depths(needs: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut depths = vec![1; needs.len()];
    for _ in 0..=MAX_DEPTH {
        for (slot, below) in needs.iter().enumerate() {
            depths[slot] = below.iter().map(|b| depths[*b] + 1).max().unwrap_or(1).min(MAX_DEPTH + 1);
        }
    }
    depths
}

/// A cycle of slots, its start named at both ends, if there is one; by depth-first search.
fn circle(needs: &[BTreeSet<usize>]) -> Option<Vec<usize>> {
    let mut done = vec![false; needs.len()];
    for start in 0..needs.len() {
        let mut path = vec![start];
        let mut open = vec![needs[start].iter()];
        while let Some(next) = open.last_mut() {
            match next.next() {
                Some(slot) if done[*slot] => {}
                Some(slot) => {
                    path.push(*slot);
                    if let Some(first) = path[..path.len() - 1].iter().position(|s| s == slot) {
                        return Some(path.split_off(first));
                    }
                    open.push(needs[*slot].iter());
                }
                None => {
                    open.pop();
                    path.pop().into_iter().for_each(|slot| done[slot] = true);
                }
            }
        }
    }
    None
}
