//! Gates: conditions on figures of a report, `bits_per_byte: "<= 2.2"`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::base::suggest;

#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    comparison: Comparison,
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Gate {
    /// Parses `<= 2.2`.
    ///
    /// # Errors
    /// When it is not a comparison with a number.
    pub fn parse(text: &str) -> Result<Self, String> {
        use Comparison::*;
        let text = text.trim();
        let (comparison, rest) = [("<=", LessOrEqual), (">=", GreaterOrEqual), ("<", Less), (">", Greater)]
            .into_iter()
            .find_map(|(sign, c)| Some((c, text.strip_prefix(sign)?)))
            .ok_or_else(|| format!("`{text}` is not a gate: write `<= 2.2`, with one of <, <=, >, >="))?;
        let bound = rest.trim().parse().ok().filter(|bound: &f64| bound.is_finite());
        let bound = bound.ok_or_else(|| format!("`{}` is not a finite number", rest.trim()))?;
        Ok(Gate { comparison, bound })
    }

    fn passes(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Less => value < self.bound,
            Comparison::LessOrEqual => value <= self.bound,
            Comparison::Greater => value > self.bound,
            Comparison::GreaterOrEqual => value >= self.bound,
        }
    }
}

/// What a figure of a report is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Documents,
    Chats,
    Cloze,
    Pairs,
    Choices,
    Exam,
}

const OF_THE_MODEL: [&str; 5] = ["parameters", "model_bytes", "vocab_size", "context", "stride"];
const OF_TEXTS: [&str; 9] = [
    "texts",
    "tokens",
    "bytes",
    "loss",
    "perplexity",
    "bits_per_byte",
    "bytes_per_token",
    "top1_accuracy",
    "top5_accuracy",
];
const OF_COMPLETIONS: [&str; 2] = ["completion_accuracy", "completions"];

/// Tasks: what they are measured on, their name in a report, their figures, and under which name the report
/// has the same figures of each group.
const OF_TASKS: [(Needs, &str, &[&str], &str); 4] = [
    (Needs::Cloze, "cloze", &["items", "accuracy"], "by_category"),
    (Needs::Pairs, "pairs", &["items", "accuracy"], "by_paradigm"),
    (Needs::Choices, "choices", &["items", "accuracy", "accuracy_per_byte"], "by_category"),
    (Needs::Exam, "exam", &["questions", "passed", "pass_rate"], "by_category"),
];

/// What the figure called `metric` is measured on.
///
/// # Errors
/// When no report has such a figure: with the most similar name, or all names.
pub fn needs(metric: &str) -> Result<Needs, String> {
    if let Some((needs, ..)) = OF_TASKS.iter().find(|task| is_of_group(metric, task)) {
        return Ok(*needs);
    }
    let known = figures();
    if let Some((needs, _)) = known.iter().find(|(_, name)| name == metric) {
        return Ok(*needs);
    }
    let names = || known.iter().map(|(_, name)| name.as_str());
    Err(match suggest::closest(metric, names()) {
        Some(near) => format!("no report has a figure `{metric}`; did you mean `{near}`?"),
        None => format!("no report has a figure `{metric}`; there are {}", suggest::list(names())),
    })
}

/// Whether `metric` is a figure of one group: `exam.by_category.sums.pass_rate`.
fn is_of_group(metric: &str, (_, task, figures, groups): &(Needs, &str, &[&str], &str)) -> bool {
    let inside = metric.strip_prefix(task).and_then(|rest| rest.strip_prefix('.')?.strip_prefix(groups));
    let group_and_figure = inside.and_then(|rest| rest.strip_prefix('.')?.rsplit_once('.'));
    group_and_figure.is_some_and(|(_, figure)| figures.contains(&figure))
}

/// The names of all figures but those of groups.
fn figures() -> Vec<(Needs, String)> {
    let plain = |needs: Needs, names: &[&str]| -> Vec<_> {
        names.iter().map(|name| (needs, name.to_string())).collect()
    };
    let inside = |needs: Needs, of: &str, names: &[&str]| -> Vec<_> {
        names.iter().map(|name| (needs, format!("{of}.{name}"))).collect()
    };
    let mut all = plain(Needs::Nothing, &OF_THE_MODEL);
    all.extend(plain(Needs::Documents, &OF_TEXTS));
    all.extend(plain(Needs::Documents, &OF_COMPLETIONS));
    all.extend(inside(Needs::Chats, "chats", &OF_TEXTS));
    for (needs, task, names, _) in OF_TASKS {
        all.extend(inside(needs, task, names));
    }
    all
}

/// The value that `path` leads to, through names that may hold points themselves.
fn find<'a>(report: &'a Value, path: &str) -> Option<&'a Value> {
    let inside = |(at, _): (usize, &str)| find(report.get(&path[..at])?, &path[at + 1..]);
    report.get(path).or_else(|| path.match_indices('.').find_map(inside))
}

/// A line for each gate that `report` does not pass. `chats.perplexity` looks inside `chats`.
pub fn missed(gates: &BTreeMap<String, String>, report: &Value) -> Vec<String> {
    let one = |(metric, condition): (&String, &String)| {
        let value = find(report, metric);
        let gate = match Gate::parse(condition) {
            Ok(gate) => gate,
            Err(why) => return Some(format!("{metric}: {why}")),
        };
        let missed = match value {
            None => "is not in the report".to_string(),
            Some(value) => match value.as_f64() {
                Some(number) if gate.passes(number) => return None,
                Some(number) => format!("is {number:.4}"),
                None => format!("is {value}, not a number"),
            },
        };
        Some(format!("{metric} {missed}, the gate is {condition}"))
    };
    gates.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_no_report_has_are_known_before_one_is_made() {
        assert_eq!(needs("vocab_size"), Ok(Needs::Nothing));
        assert_eq!(needs("completion_accuracy"), Ok(Needs::Documents));
        assert_eq!(needs("chats.perplexity"), Ok(Needs::Chats));
        assert_eq!(needs("exam.pass_rate"), Ok(Needs::Exam));
        assert_eq!(needs("exam.by_category.v1.2 sums.passed"), Ok(Needs::Exam));
        assert_eq!(needs("pairs.by_paradigm.wh_island.accuracy"), Ok(Needs::Pairs));
        assert!(needs("exam.by_category.sums.nope").is_err() && needs("pairs.by_category.a.items").is_err());
        for figure in crate::eval::items::FIGURES {
            assert!(needs(figure.name).is_ok(), "{}", figure.name);
        }
        assert!(needs("perplexty").unwrap_err().contains("did you mean `perplexity`"));
    }

    #[test]
    fn gates_compare_and_name_what_missed() {
        let report = serde_json::json!({
            "bits_per_byte": 2.0, "chats": {"perplexity": 9.0}, "exam": {"by_category": {"v1.2": {"passed": 3}}}
        });
        let gates = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        assert!(
            missed(&gates(&[("bits_per_byte", "<= 2.0"), ("chats.perplexity", "< 10")]), &report).is_empty()
        );
        assert!(missed(&gates(&[("exam.by_category.v1.2.passed", ">= 3")]), &report).is_empty());
        let lines = missed(&gates(&[("bits_per_byte", "< 2"), ("nope", "> 1")]), &report);
        assert_eq!(
            lines,
            ["bits_per_byte is 2.0000, the gate is < 2", "nope is not in the report, the gate is > 1"]
        );
        for condition in ["2.2", "<= two", "<= nan", "> -inf", ">= 1e999"] {
            assert!(Gate::parse(condition).is_err(), "{condition}");
        }
        let report = serde_json::json!({"ok": true, "loss": null, "name": "7"});
        let lines = missed(&gates(&[("ok", "> 0"), ("loss", "< 1"), ("name", "> 1")]), &report);
        assert_eq!(lines[0], "loss is null, not a number, the gate is < 1");
        assert!(
            lines[1].starts_with("name is \"7\", not") && lines[2].starts_with("ok is true, not"),
            "{lines:?}"
        );
    }
}
