//! A lower bound of how many different outputs a template has, without drawing any.
//!
//! Counts draws: a choice is the sum of its options, a sequence the product of its pieces, a slot counts at
//! its first use only. Where that depends on which option was drawn, the slot counts as used already, so
//! that the figure is a lower bound. It assumes that different draws give different texts, which mostly
//! holds for lists without duplicates. Conversations are counted over their first [`MAX_EXCHANGES`]
//! exchanges.

use std::collections::{BTreeMap, BTreeSet};

use super::domain::{Chat, Document, Domain, Part, Step, Texts};
use super::modify::{Modifier, Operand};
use super::text::{Binding, Piece, TemplateText, Use};

/// The most exchanges of a conversation that are counted.
pub const MAX_EXCHANGES: usize = 4;

/// Bounds the work, which grows exponentially; a count that is cut short is still a lower bound.
const BUDGET: u32 = 200_000;

/// A lower bound of the number of different documents. Saturates at `u128::MAX`.
pub fn document(domain: &Domain, document: &Document) -> u128 {
    let mut counter = Counter::new(domain);
    document.parts().map(|part| counter.part(part)).fold(1, u128::saturating_mul)
}

/// A lower bound of the number of different conversations of at most `max_turns` exchanges.
pub fn conversation(domain: &Domain, chat: &Chat, max_turns: usize) -> u128 {
    let mut counter = Counter::new(domain);
    let system = chat.system.as_ref().map_or(1, |part| counter.part(part));
    let steps: Vec<&Step> = chat.steps.iter().collect();
    system.saturating_mul(counter.steps(&steps, &mut Vec::new(), max_turns.min(MAX_EXCHANGES)))
}

struct Counter<'d> {
    domain: &'d Domain,
    /// What has been counted for each binding so far.
    bound: Bound,
    /// Texts and steps that may still be visited. When none is left, each counts as 1.
    budget: u32,
}

type Bound = BTreeMap<Binding, u128>;

impl<'d> Counter<'d> {
    fn new(domain: &'d Domain) -> Self {
        Counter { domain, bound: Bound::new(), budget: BUDGET }
    }

    /// The sum over branches with the same bindings; afterwards every binding of any branch counts as bound.
    fn branches<T>(
        &mut self,
        branches: impl Iterator<Item = T>,
        count: impl Fn(&mut Self, T) -> u128,
    ) -> u128 {
        self.each(branches, count).into_iter().fold(0, u128::saturating_add)
    }

    fn each<T>(
        &mut self,
        branches: impl Iterator<Item = T>,
        count: impl Fn(&mut Self, T) -> u128,
    ) -> Vec<u128> {
        let start = self.bound.clone();
        let mut union = start.clone();
        let mut counts = Vec::new();
        for branch in branches {
            self.bound = start.clone();
            counts.push(count(self, branch));
            for (binding, n) in &self.bound {
                let most = union.entry(*binding).or_insert(*n);
                *most = (*most).max(*n);
            }
        }
        self.bound = union;
        counts
    }

    /// Steps in order; a step's `then` comes before the next step.
    fn steps(&mut self, steps: &[&'d Step], used: &mut Vec<usize>, room: usize) -> u128 {
        let Some((step, rest)) = steps.split_first() else { return 1 };
        if room == 0 || !self.afford() {
            return 1;
        }
        let open: Vec<usize> =
            drawable(&step.weights).map(|i| step.exchanges[i]).filter(|e| !used.contains(e)).collect();
        if open.is_empty() {
            return self.steps(rest, used, room);
        }
        let start = self.bound.clone();
        let mut total = 0u128;
        if step.chance < 1.0 {
            total = self.steps(rest, used, room);
        }
        for exchange in open {
            self.bound = start.clone();
            let mut next: Vec<&Step> = self.domain.exchanges[exchange].then.iter().collect();
            next.extend(rest);
            used.push(exchange);
            let ways = self.exchange(exchange);
            total = total.saturating_add(ways.saturating_mul(self.steps(&next, used, room - 1)));
            used.pop();
        }
        total
    }

    fn exchange(&mut self, exchange: usize) -> u128 {
        let exchange = &self.domain.exchanges[exchange];
        self.branches(drawable(&exchange.weights), |counter, i| {
            let pair = &exchange.pairs[i];
            counter.texts(&pair.user).saturating_mul(counter.texts(&pair.assistant))
        })
    }

    fn part(&mut self, part: &Part) -> u128 {
        let texts = &part.texts;
        let (least, most) = part.count;
        let ways = if (least, most) == (1, 1) {
            self.texts(texts)
        } else {
            let each: Vec<u128> = drawable(&texts.weights).map(|i| self.text(&texts.texts[i])).collect();
            let sets = subsets(&each);
            let orders =
                |k: usize| if part.shuffle { (1..=k as u128).fold(1, u128::saturating_mul) } else { 1 };
            (least..=most).map(|k| sets[k].saturating_mul(orders(k))).fold(0, u128::saturating_add)
        };
        ways.saturating_add(u128::from(part.chance < 1.0))
    }

    fn texts(&mut self, texts: &Texts) -> u128 {
        self.branches(drawable(&texts.weights), |counter, i| counter.text(&texts.texts[i]))
    }

    fn afford(&mut self) -> bool {
        self.budget = self.budget.saturating_sub(1);
        self.budget > 0
    }

    fn text(&mut self, text: &TemplateText) -> u128 {
        if !self.afford() {
            return 1;
        }
        text.iter().map(|piece| self.piece(piece)).fold(1, u128::saturating_mul)
    }

    fn piece(&mut self, piece: &Piece) -> u128 {
        match piece {
            Piece::Literal(_) => 1,
            Piece::Choice { options, chance } => self
                .branches(options.iter(), |counter, option| counter.text(option))
                .saturating_add(u128::from(*chance < 1.0)),
            Piece::Use(slot) => self.slot(slot),
        }
    }

    fn slot(&mut self, slot: &Use) -> u128 {
        if let Some(Modifier::Reckon(..)) = slot.modifiers.first() {
            return self.sum(slot);
        }
        let Binding { slot: index, number } = slot.binding;
        let taken =
            self.bound.keys().filter(|b| b.slot == index && **b != slot.binding && number > 0).count();
        let ways = match slot.attribute {
            Some(attribute) => {
                self.different_attributes(index, attribute).saturating_sub(taken as u128).max(1)
            }
            None => self.values(index, taken),
        };
        if number == 0 {
            return ways;
        }
        let before = self.bound.insert(slot.binding, ways).unwrap_or(1);
        if before > ways {
            self.bound.insert(slot.binding, before);
        }
        (ways / before).max(1)
    }

    /// A sum without its terms may be the same for many terms: it counts as 1.
    fn sum(&mut self, slot: &Use) -> u128 {
        let operands = slot.modifiers.iter().filter_map(|m| match m {
            Modifier::Reckon(_, Operand::Slot(binding)) => Some(*binding),
            _ => None,
        });
        for binding in operands.chain([slot.binding]).filter(|b| b.number > 0) {
            self.bound.entry(binding).or_insert(1);
        }
        1
    }

    /// Draws of a value while `taken` others are excluded: the ones with most draws, for a lower bound.
    fn values(&mut self, slot: usize, taken: usize) -> u128 {
        let slot = &self.domain.slots[slot];
        let mut each = self.each(drawable(&slot.weights), |counter, i| counter.text(&slot.entries[i].value));
        each.sort_unstable();
        each.truncate(each.len().saturating_sub(taken));
        each.into_iter().fold(0, u128::saturating_add).max(1)
    }

    /// Attributes are often the same for many values: different texts are counted, not values.
    fn different_attributes(&self, slot: usize, attribute: usize) -> u128 {
        let slot = &self.domain.slots[slot];
        let texts: BTreeSet<String> = drawable(&slot.weights)
            .map(|i| format!("{:?}", slot.entries[i].attributes[attribute].texts))
            .collect();
        texts.len() as u128
    }
}

fn drawable(weights: &[f64]) -> impl Iterator<Item = usize> {
    weights.iter().enumerate().filter(|(_, w)| **w > 0.0).map(|(i, _)| i)
}

/// `sets[k]`: the sum over all sets of `k` of the items of the product of their counts (the
/// elementary symmetric polynomials).
fn subsets(counts: &[u128]) -> Vec<u128> {
    let mut sets = vec![0u128; counts.len() + 1];
    sets[0] = 1;
    for (i, count) in counts.iter().enumerate() {
        for k in (1..=i + 1).rev() {
            sets[k] = sets[k].saturating_add(sets[k - 1].saturating_mul(*count));
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::Rng;
    use crate::synth::draw::Draw;
    use crate::synth::load::load;

    const SLOTS: &str = "
slots:
  animal: [{value: cat, sound: meows}, {value: dog, sound: barks}, {value: owl, sound: hoots}]
  color: [red, blue]
  thing: ['{color} ball', box]
  n: {from: 1, to: 4}
";

    /// Counted, and found by drawing until nothing new can be expected.
    fn both(text: &str) -> (u128, usize) {
        let yaml = format!("{SLOTS}documents:\n  - name: t\n    text: {text}\n");
        let domain = load("t.yaml", &yaml).unwrap();
        let found: BTreeSet<String> =
            (0..6000).map(|i| Draw::new(&domain, Rng::new(i, "count")).document().unwrap().1).collect();
        (document(&domain, &domain.documents[0].body), found.len())
    }

    #[test]
    fn a_count_is_exact_where_paths_do_not_differ() {
        for text in [
            "'{animal} and {animal.2}'",
            "'{animal} {animal.sound} {animal}'",
            "'{animal.sound} is what the {animal} does'",
            "'{thing}, [a|b|c], [?yes]'",
            "'{any:color} {any:color}'",
            "'{n} and {n.2} make {n|plus:n.2}'",
            "[['one {color}', 'two {color}'], {text: ' maybe', chance: 0.5}]",
            "[x, {some: [a, b, c, d], count: [1, 3], shuffle: true}]",
            "[x, {some: ['a{any:color}', b, c], count: 2}]",
        ] {
            let (counted, found) = both(text);
            assert_eq!(counted, found as u128, "{text}");
        }
    }

    #[test]
    fn a_count_is_never_more_than_there_are() {
        for text in
            ["'[{animal}|{color}] and {animal}'", "'[?{color}] {color} {thing}'", "'{n|plus:1} {n|plus:n.2}'"]
        {
            let (counted, found) = both(text);
            assert!(counted <= found as u128 && counted > 0, "{text}: {counted} of {found}");
        }
    }
}
