//! Gates: conditions on figures of a report, `bits_per_byte: "<= 2.2"`.

use std::collections::BTreeMap;

use serde_json::Value;

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
    /// `<= 2.2`; what is wrong with it otherwise.
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
