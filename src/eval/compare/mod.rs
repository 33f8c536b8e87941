//! Models beside each other on the same items: figures with intervals, differences with a paired test.
//!
//! What is compared is an [`Entry`]: a model, or several of one recipe (as from several seeds), its members,
//! whose figure is the mean over them. Only items that all members have count, so that every difference is
//! between the same items; how many are left out is told. A figure is left out where its denominators differ
//! between models, as those a token do between tokenizers.
//!
//! **Intervals** are those of [`bootstrap`](super::bootstrap), of the same resampled items for all, so that
//! what makes an item hard for every model cancels in the differences. Members are drawn anew as well, crossed
//! with the items (Owen, 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1). A handful of
//! members tells little of how much others would differ: their part of the variance comes out too small by
//! (k − 1) / k on average, a third too small of three. Draw `l` of resample `r` of the `k` members of entry
//! `e`, from 0, is that of [`bootstrap::draw`](super::bootstrap::draw) for the seed `rng::at(seed + 1 + e, 0)`.
//!
//! **p** is that of a paired randomization test, see [`randomization`]. Where several are compared with the
//! baseline, each figure's p-values are corrected (Holm, 1979, "A simple sequentially rejective multiple test
//! procedure", Scandinavian Journal of Statistics 6), but not for the number of figures.

mod common;
pub mod randomization;
mod resampling;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;

use super::bootstrap::{RESAMPLES, percentiles};
use super::items::{FIGURES, Figure, Item, Task};
use crate::base::{Error, Result, suggest};
use common::Common;
use randomization::PERMUTATIONS;
use resampling::Sums;
pub use table::write as write_table;

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// The models whose mean counts; one at least.
    pub members: Vec<Member>,
}

/// A model, by what it did with each item.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    pub items: Vec<Item>,
    pub settings: Settings,
}

/// What else of a report says whether figures can be compared; what it doesn't say is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub vocab_size: Option<u64>,
    /// Tokens that a scored token could depend on, itself included.
    pub context: Option<u64>,
    /// Tokens from one window to the next.
    pub stride: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What resamples and permutations derive from.
    pub seed: u64,
    /// The entry that the others are compared with: the first where it is not named.
    pub baseline: Option<String>,
    /// Only these figures; all where there are none.
    pub figures: Vec<String>,
}

/// The result: everything in full precision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub baseline: String,
    pub seed: u64,
    pub resamples: usize,
    pub permutations: usize,
    pub tasks: Vec<TaskItems>,
    pub figures: Vec<Compared>,
    /// Figure -> why it could not be compared.
    pub not_compared: BTreeMap<String, String>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// How many items of a task count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskItems {
    pub task: Task,
    /// Those that all members have.
    pub items: usize,
    /// Member -> how many of its items are left out, as another member lacks them.
    pub left_out: BTreeMap<String, usize>,
}

/// One figure of all entries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    pub figure: &'static str,
    pub task: Task,
    pub items: usize,
    pub less_is_better: bool,
    pub rows: Vec<Row>,
    /// Of the entries other than the baseline, in their order.
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// The mean over the members.
    pub value: f64,
    /// `None` where there is only one item.
    pub interval: Option<[f64; 2]>,
    /// Whether no entry has a better figure; by chance or not, and where several are compared.
    pub best: bool,
    pub members: Vec<MemberFigure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberFigure {
    pub name: String,
    pub value: f64,
}

/// An entry's figure less the baseline's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub name: String,
    pub value: f64,
    pub interval: Option<[f64; 2]>,
    /// Of the paired randomization test over the items: about these very models.
    pub p: f64,
    /// `p` corrected for the number of entries compared (Holm).
    pub p_holm: f64,
    /// Of the exact permutation test over the members, where both have several: about their recipes.
    pub p_members: Option<f64>,
}

/// Compares the entries on the items that all their members have.
///
/// # Errors
/// Entries of one name, a baseline or a figure that is unknown, and when no figure can be compared.
pub fn compare(entries: &[Entry], options: &Options) -> Result<Comparison> {
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let baseline = baseline(&names, options.baseline.as_deref())?;
    let wanted = wanted(&options.figures)?;
    let mut out = Comparison {
        baseline: entries[baseline].name.clone(),
        seed: options.seed,
        resamples: RESAMPLES,
        permutations: PERMUTATIONS,
        tasks: Vec::new(),
        figures: Vec::new(),
        not_compared: BTreeMap::new(),
        notes: notes(entries),
    };
    for task in Task::ALL {
        let figures: Vec<_> = wanted.iter().copied().filter(|figure| figure.task == task).collect();
        if figures.is_empty() {
            continue;
        }
        match Common::of(entries, task) {
            Ok(None) => {}
            Ok(Some(common)) => out.add(entries, &common, &figures, baseline),
            Err(why) => {
                out.not_compared.extend(figures.iter().map(|f| (f.name.to_string(), why.clone())));
            }
        }
    }
    match out.figures.is_empty() {
        true => Err(nothing_in_common(&out, entries)),
        false => Ok(out),
    }
}

impl Comparison {
    fn add(&mut self, entries: &[Entry], common: &Common, figures: &[&'static Figure], baseline: usize) {
        self.tasks.push(common.counts());
        for figure in figures {
            match common.sums(entries, figure) {
                Ok(sums) => self.figures.push(compared(entries, figure, &sums, baseline, self.seed)),
                Err(why) => drop(self.not_compared.insert(figure.name.to_string(), why)),
            }
        }
    }
}

/// Whether entries of these names can be compared with these options: what [`compare`] refuses before it looks at
/// items, for those who have to make them first.
///
/// # Errors
/// Entries of one name, a baseline or a figure that is unknown.
pub fn check(names: &[&str], options: &Options) -> Result<()> {
    baseline(names, options.baseline.as_deref())?;
    wanted(&options.figures).map(drop)
}

/// The index of the baseline.
fn baseline(names: &[&str], named: Option<&str>) -> Result<usize> {
    if let Some(twice) =
        names.iter().enumerate().find_map(|(i, name)| names[..i].contains(name).then_some(name))
    {
        return Err(Error::usage(format!("two rows of the table are called `{twice}`"))
            .help("name them apart: NAME=TARGET"));
    }
    let Some(named) = named else {
        return if names.is_empty() { Err(Error::usage("there is nothing to compare")) } else { Ok(0) };
    };
    names.iter().position(|name| *name == named).ok_or_else(|| {
        Error::usage(format!("no row of the table is called `{named}`"))
            .suggest(suggest::closest(named, names.iter().copied()))
            .help(format!("the rows are {}", suggest::list(names.iter().copied())))
    })
}

fn wanted(names: &[String]) -> Result<Vec<&'static Figure>> {
    let known = || FIGURES.iter().map(|figure| figure.name);
    let one = |name: &String| {
        Figure::named(name).ok_or_else(|| {
            Error::usage(format!("there is no figure `{name}`"))
                .suggest(suggest::closest(name, known()))
                .help(format!("the figures are {}", suggest::list(known())))
        })
    };
    let named = names.iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok(FIGURES.iter().filter(|f| named.is_empty() || named.iter().any(|n| n.name == f.name)).collect())
}

/// What differs between the models' settings, and what few members mean.
fn notes(entries: &[Entry]) -> Vec<String> {
    let mut notes = Vec::new();
    let members = || entries.iter().flat_map(|entry| &entry.members);
    for (what, of) in [
        ("context", (|s: &Settings| s.context) as fn(&Settings) -> Option<u64>),
        ("stride", |s: &Settings| s.stride),
    ] {
        let mut values: Vec<u64> = members().filter_map(|member| of(&member.settings)).collect();
        values.sort_unstable();
        values.dedup();
        if values.len() > 1 {
            let values = values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            notes.push(format!("the models were scored with different settings: {what} {values} tokens"));
        }
    }
    notes
}

fn nothing_in_common(comparison: &Comparison, entries: &[Entry]) -> Error {
    let names = suggest::list(entries.iter().map(|entry| entry.name.as_str()));
    let whys: std::collections::BTreeSet<&str> =
        comparison.not_compared.values().map(String::as_str).collect();
    let why = match whys.is_empty() {
        true => "they have no items".to_string(),
        false => whys.into_iter().collect::<Vec<_>>().join("; "),
    };
    Error::input(format!("no figure of {names} can be compared: {why}"))
        .help("evaluate them on the same texts or questions")
}

fn compared(entries: &[Entry], figure: &'static Figure, sums: &Sums, baseline: usize, seed: u64) -> Compared {
    let (members, values) = sums.figures();
    let measured =
        Measured { entries, figure, items: sums.items(), members, values, resamples: sums.resamples(seed) };
    let others: Vec<usize> = (0..entries.len()).filter(|entry| *entry != baseline).collect();
    let p = randomization::p_values(&sums.differences(&others, baseline), seed);
    let p = p.iter().copied().zip(randomization::holm(&p));
    Compared {
        figure: figure.name,
        task: figure.task,
        items: sums.items(),
        less_is_better: figure.less_is_better,
        rows: (0..entries.len()).map(|entry| measured.row(entry)).collect(),
        differences: others
            .iter()
            .zip(p)
            .map(|(entry, p)| measured.difference(*entry, baseline, p))
            .collect(),
    }
}

/// A figure of all entries.
struct Measured<'a> {
    entries: &'a [Entry],
    figure: &'static Figure,
    items: usize,
    /// Of each entry, those of its members.
    members: Vec<Vec<f64>>,
    values: Vec<f64>,
    /// Of each resample, those of all entries.
    resamples: Vec<Vec<f64>>,
}

impl Measured<'_> {
    fn row(&self, entry: usize) -> Row {
        let value = self.values[entry];
        let better = |other: &f64| if self.figure.less_is_better { *other < value } else { *other > value };
        Row {
            name: self.entries[entry].name.clone(),
            value,
            interval: self.interval(|figures| figures[entry]),
            best: self.entries.len() > 1 && !self.values.iter().any(better),
            members: named(&self.entries[entry], &self.members[entry]),
        }
    }

    fn difference(&self, entry: usize, baseline: usize, (p, p_holm): (f64, f64)) -> Difference {
        Difference {
            name: self.entries[entry].name.clone(),
            value: self.values[entry] - self.values[baseline],
            interval: self.interval(|figures| figures[entry] - figures[baseline]),
            p,
            p_holm,
            p_members: randomization::exact(&self.members[entry], &self.members[baseline]),
        }
    }

    /// Of what `of` makes of a resample's figures; `None` of one item.
    fn interval(&self, of: impl Fn(&[f64]) -> f64) -> Option<[f64; 2]> {
        if self.items < 2 {
            None
        } else {
            percentiles(self.resamples.iter().map(|figures| of(figures)).collect())
        }
    }
}

fn named(entry: &Entry, values: &[f64]) -> Vec<MemberFigure> {
    let pairs = entry.members.iter().zip(values);
    pairs.map(|(member, value)| MemberFigure { name: member.name.clone(), value: *value }).collect()
}

#[cfg(test)]
mod tests;
