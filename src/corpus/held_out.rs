//! Which texts are held out from training: one rule, by content, for everything that trains on texts or
//! measures with them.
//!
//! A text is held out when a point in 0..1, derived from the digest of its id, is below the validation
//! fraction, so that its split does not depend on other texts. With few texts a split may be empty; then
//! one text is moved: see [`Rule::new`]. Documents and conversations are split each by themselves.
//!
//! The rules are saved with what a training makes ([`HeldOut`]), so that evaluation uses the same ones and
//! never scores a text that was trained on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::{Digest, Error, Result, fs};

/// The file of [`HeldOut`] in an artifact of token shards or a model.
pub const FILE_NAME: &str = "held_out.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Validation,
}

impl Split {
    pub fn as_str(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

/// The rule of one collection of texts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The share of texts held out.
    pub validation_fraction: f64,
    /// The id of the text that is held out because the fraction alone would hold out none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_held_out: Option<String>,
    /// The id of the text that is trained on because the fraction alone would hold out all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also_trained_on: Option<String>,
}

impl Rule {
    /// The rule for a collection of texts. With a fraction above 0, two different texts are enough for
    /// both sides to have one; there is always one to train on.
    pub fn new(validation_fraction: f64, texts: &Extremes) -> Self {
        let mut rule = Rule { validation_fraction, ..Rule::default() };
        if let Some((low, high)) = &texts.0 {
            let two = low != high && validation_fraction > 0.0;
            rule.also_held_out = (two && low.0 >= validation_fraction).then(|| low.1.clone());
            rule.also_trained_on = (high.0 < validation_fraction).then(|| high.1.clone());
        }
        rule
    }

    pub fn split(&self, id: &str) -> Split {
        let held_out = match Some(id) {
            id if id == self.also_trained_on.as_deref() => false,
            id if id == self.also_held_out.as_deref() => true,
            _ => point(id) < self.validation_fraction,
        };
        if held_out { Split::Validation } else { Split::Train }
    }
}

/// The texts of a collection with the lowest and the highest point.
#[derive(Debug, Clone, Default)]
pub struct Extremes(Option<((f64, String), (f64, String))>);

impl Extremes {
    pub fn add(&mut self, id: &str) {
        let new = (point(id), id.to_string());
        match &mut self.0 {
            None => self.0 = Some((new.clone(), new)),
            Some((low, _)) if new < *low => *low = new,
            Some((_, high)) if new > *high => *high = new,
            Some(_) => {}
        }
    }
}

impl<'a> FromIterator<&'a str> for Extremes {
    fn from_iter<I: IntoIterator<Item = &'a str>>(ids: I) -> Self {
        let mut extremes = Extremes::default();
        ids.into_iter().for_each(|id| extremes.add(id));
        extremes
    }
}

/// Uniform in `[0, 1)`, by the id alone.
fn point(id: &str) -> f64 {
    let digest = Digest::of(format!("split\0{id}").as_bytes());
    let bits = u64::from_be_bytes(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"));
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The rules of all trainings of a model, the latest last. No rule: no training used texts of that sort.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeldOut {
    pub documents: Vec<Rule>,
    pub conversations: Vec<Rule>,
}

impl HeldOut {
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn load(path: &Path) -> Result<Self> {
        serde_json::from_slice(&fs::read(path)?)
            .map_err(|e| Error::input(format!("`{}` does not say what was held out: {e}", path.display())))
    }

    /// Writes [`FILE_NAME`] into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::write_json(&folder.join(FILE_NAME), self)
    }
}

/// Held out by every one of `rules`: no training has seen the text.
pub fn is_unseen(rules: &[Rule], id: &str) -> bool {
    rules.iter().all(|rule| rule.split(id) == Split::Validation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("text {i}")).collect()
    }

    fn held_out(rule: &Rule, ids: &[String]) -> usize {
        ids.iter().filter(|id| rule.split(id) == Split::Validation).count()
    }

    fn rule(fraction: f64, ids: &[String]) -> Rule {
        Rule::new(fraction, &ids.iter().map(String::as_str).collect())
    }

    proptest! {
        #[test]
        fn two_texts_are_enough_for_both_sides(n in 0usize..12, fraction in prop_oneof![Just(0.0), 0.0..1.0f64, Just(0.999)]) {
            let ids = ids(n);
            let found = held_out(&rule(fraction, &ids), &ids);
            let least = usize::from(n > 1 && fraction > 0.0);
            prop_assert!((least..=n.saturating_sub(1)).contains(&found), "{found} of {n} at {fraction}");
        }
    }

    #[test]
    fn a_text_stays_where_it_is_when_others_come() {
        let all = ids(2_000);
        let (few, many) = (rule(0.1, &all[..1_000]), rule(0.1, &all));
        assert!(all[..1_000].iter().all(|id| few.split(id) == many.split(id)));
        assert!((160..240).contains(&held_out(&many, &all)));
        assert_eq!((few.also_held_out, few.also_trained_on), (None, None));
    }

    #[test]
    fn equal_texts_are_one() {
        let same = vec!["a".to_string(), "a".to_string()];
        assert_eq!(held_out(&rule(0.5, &same), &same), 0, "its copy would be trained on");
    }

    #[test]
    fn what_two_trainings_held_out_is_what_neither_saw() {
        let ids = ids(400);
        let rules = [rule(0.5, &ids), rule(0.2, &ids)];
        assert!(ids.iter().all(|id| is_unseen(&rules, id) == (rules[1].split(id) == Split::Validation)));
        assert!(is_unseen(&[], &ids[0]));
        let folder = tempfile::tempdir().unwrap();
        let written = HeldOut { documents: vec![], conversations: rules.to_vec() };
        written.save(folder.path()).unwrap();
        assert_eq!(HeldOut::load(&folder.path().join(FILE_NAME)).unwrap(), written);
    }
}
