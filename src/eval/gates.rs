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
        let bound: f64 = rest.trim().parse().map_err(|_| format!("`{}` is not a number", rest.trim()))?;
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
        let value = metric.split('.').try_fold(report, |v, part| v.get(part)).and_then(Value::as_f64);
        match (Gate::parse(condition), value) {
            (Ok(gate), Some(value)) if gate.passes(value) => None,
            (Ok(_), Some(value)) => Some(format!("{metric} is {value:.4}, the gate is {condition}")),
            (Ok(_), None) => Some(format!("{metric} is not in the report, the gate is {condition}")),
            (Err(why), _) => Some(format!("{metric}: {why}")),
        }
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
        assert!(Gate::parse("2.2").is_err() && Gate::parse("<= two").is_err());
    }
}
