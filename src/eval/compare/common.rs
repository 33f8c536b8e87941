//! The items that all members have.

use std::collections::{BTreeMap, HashMap};

use super::resampling::Sums;
use super::{Entry, Member, TaskItems};
use crate::eval::items::{Figure, Item, Task};

/// The items of a task that all members have, in the order of the first member's.
pub struct Common<'a> {
    task: Task,
    /// One list for each item: what each member did with it, entry by entry.
    items: Vec<Vec<&'a Item>>,
    left_out: BTreeMap<String, usize>,
}

/// An item's id, and how many items before it have the same: a text may be there twice.
type Key<'a> = (&'a str, usize);

impl<'a> Common<'a> {
    /// `None` where no member has items of the task.
    ///
    /// # Errors
    /// Why nothing can be compared: some members have none, or there is none that all have.
    pub fn of(entries: &'a [Entry], task: Task) -> Result<Option<Self>, String> {
        let members: Vec<&Member> = entries.iter().flat_map(|entry| &entry.members).collect();
        let keyed: Vec<_> = members.iter().map(|member| keyed(member, task)).collect();
        if keyed.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        if let Some(none) = keyed.iter().position(Vec::is_empty) {
            return Err(format!("`{}` has no items of the task `{}`", members[none].name, task.name()));
        }
        let maps: Vec<HashMap<Key, &Item>> = keyed.iter().map(|k| k.iter().copied().collect()).collect();
        let of_all = |key: &Key| maps.iter().map(|map| map.get(key).copied()).collect::<Option<Vec<_>>>();
        let items: Vec<Vec<&Item>> = keyed[0].iter().filter_map(|(key, _)| of_all(key)).collect();
        if items.is_empty() {
            return Err(format!("no item of the task `{}` is in all reports", task.name()));
        }
        let lost = |k: &Vec<(Key, &Item)>| k.len() - items.len();
        let left_out = members.iter().zip(&keyed).map(|(member, k)| (member.name.clone(), lost(k)));
        let left_out = left_out.filter(|(_, lost)| *lost > 0).collect();
        Ok(Some(Common { task, items, left_out }))
    }

    pub fn counts(&self) -> TaskItems {
        TaskItems { task: self.task, items: self.items.len(), left_out: self.left_out.clone() }
    }

    /// What a figure is computed from.
    ///
    /// # Errors
    /// Why the figure can't be compared.
    pub fn sums(&self, entries: &[Entry], figure: &Figure) -> Result<Sums, String> {
        let denominator = |item: &Vec<&Item>| {
            let first = (figure.denominator)(item[0]);
            item.iter().all(|other| (figure.denominator)(other) == first).then_some(first)
        };
        let denominators: Option<Vec<f64>> = self.items.iter().map(denominator).collect();
        let Some(denominators) = denominators.filter(|_| !is_per_token(figure) || one_vocabulary(entries))
        else {
            return Err(match is_per_token(figure) {
                true => "the tokenizers differ, and it is a figure per token: compare bits per byte".into(),
                false => "the models were scored on different bytes of the same items".into(),
            });
        };
        if denominators.iter().sum::<f64>() <= 0.0 {
            return Err("nothing of the items was scored".into());
        }
        let numerators = self.items.iter().flatten().map(|item| (figure.numerator)(item)).collect();
        let counts = entries.iter().map(|entry| entry.members.len()).collect();
        Ok(Sums::new(numerators, denominators, counts))
    }
}

fn keyed(member: &Member, task: Task) -> Vec<(Key<'_>, &Item)> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let own = member.items.iter().filter(|item| item.task == task);
    own.map(|item| {
        let before = seen.entry(&item.id).or_insert(0);
        *before += 1;
        ((item.id.as_str(), *before - 1), item)
    })
    .collect()
}

/// Whether the figure's denominator counts tokens.
fn is_per_token(figure: &Figure) -> bool {
    let token = Item { tokens: 1, ..Item::scored(figure.task, "", "", 0.0) };
    let none = Item { tokens: 0, ..token.clone() };
    (figure.denominator)(&token) != (figure.denominator)(&none)
}

/// Whether no two reports say that their tokenizers have different numbers of tokens.
fn one_vocabulary(entries: &[Entry]) -> bool {
    let sizes = entries.iter().flat_map(|entry| &entry.members).filter_map(|m| m.settings.vocab_size);
    sizes.collect::<std::collections::HashSet<_>>().len() <= 1
}
