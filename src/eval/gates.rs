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
}

const OF_THE_MODEL: [&str; 3] = ["parameters", "model_bytes", "vocab_size"];
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

/// What the figure called `metric` is measured on.
///
/// # Errors
/// When no report has such a figure: with the most similar name, or all names.
pub fn needs(metric: &str) -> Result<Needs, String> {
    let of_chats: Vec<String> = OF_TEXTS.iter().map(|name| format!("chats.{name}")).collect();
    let of_documents = OF_TEXTS.iter().chain(&OF_COMPLETIONS);
    let all =
        OF_THE_MODEL.iter().chain(of_documents.clone()).copied().chain(of_chats.iter().map(String::as_str));
    match metric {
        _ if OF_THE_MODEL.contains(&metric) => Ok(Needs::Nothing),
        _ if of_documents.clone().any(|name| *name == metric) => Ok(Needs::Documents),
        _ if of_chats.iter().any(|name| name == metric) => Ok(Needs::Chats),
        _ => Err(match suggest::closest(metric, all.clone()) {
            Some(near) => format!("no report has a figure `{metric}`; did you mean `{near}`?"),
            None => format!("no report has a figure `{metric}`; there are {}", suggest::list(all)),
        }),
    }
}

/// A line for each gate that `report` does not pass. `chats.perplexity` looks inside `chats`.
pub fn missed(gates: &BTreeMap<String, String>, report: &Value) -> Vec<String> {
    let one = |(metric, condition): (&String, &String)| {
        let value = metric.split('.').try_fold(report, |v, part| v.get(part));
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
        assert!(needs("perplexty").unwrap_err().contains("did you mean `perplexity`"));
    }

    #[test]
    fn gates_compare_and_name_what_missed() {
        let report = serde_json::json!({"bits_per_byte": 2.0, "chats": {"perplexity": 9.0}});
        let gates = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        assert!(
            missed(&gates(&[("bits_per_byte", "<= 2.0"), ("chats.perplexity", "< 10")]), &report).is_empty()
        );
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
