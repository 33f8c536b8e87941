//! "Did you mean": the closest of the known names, when one is close enough.

/// The candidate nearest to `found` by Jaro-Winkler and edit distance, or `None`.
pub fn closest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let lower = found.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&lower, &name.to_lowercase()), name))
        .filter(|(score, name)| *score > 0.82 || strsim::damerau_levenshtein(&lower, name) <= 1)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, name)| name.to_string())
}

/// `a, b, c` in backquotes, for "expected one of".
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_strangers_are_not() {
        let known = ["steps", "batch_size", "learning_rate"];
        assert_eq!(closest("step", known).as_deref(), Some("steps"));
        assert_eq!(closest("batchsize", known).as_deref(), Some("batch_size"));
        assert_eq!(closest("zebra", known), None);
    }
}
