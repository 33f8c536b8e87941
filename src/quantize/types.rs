//! Which type each matrix of a model is stored in.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::base::{Error, Invalid, Result, suggest};
use crate::kernel::BlockType;

/// A type for all matrices, and others by patterns of names.
pub struct Types {
    ty: BlockType,
    /// The most specific first.
    patterns: Vec<(glob::Pattern, BlockType)>,
}

/// How many characters a pattern names.
fn letters(pattern: &glob::Pattern) -> usize {
    pattern.as_str().chars().filter(|c| !"*?[]!".contains(*c)).count()
}

impl Types {
    /// `tensors` are types by patterns of names as GGUF files have them (`*.attn_v.*`). Of several that match a name
    /// the most specific decides: the one with the most characters other than wildcards.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn new(ty: BlockType, tensors: &BTreeMap<String, BlockType>) -> Result<Self, Invalid> {
        let pattern = |(text, ty): (&String, &BlockType)| match glob::Pattern::new(text) {
            Ok(pattern) => Ok((pattern, *ty)),
            Err(e) => Err(Invalid::new(format!("tensors.{text}"), format!("is no pattern: {}", e.msg))),
        };
        let mut patterns = tensors.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        patterns.sort_by_key(|(pattern, _)| Reverse(letters(pattern)));
        Ok(Types { ty, patterns })
    }

    /// The type of each of the model's matrices.
    ///
    /// # Errors
    /// When a pattern matches none of them, or two that are equally specific disagree.
    pub fn assign(&self, names: &[&str]) -> Result<BTreeMap<String, BlockType>> {
        if let Some((pattern, _)) = self.patterns.iter().find(|(p, _)| !names.iter().any(|n| p.matches(n))) {
            return Err(Error::input(format!("`tensors`: no matrix is called `{pattern}`"))
                .suggest(suggest::closest(pattern.as_str(), names.iter().copied()))
                .help(format!("there are {}", suggest::list(kinds_of(names)))));
        }
        names.iter().map(|name| Ok((name.to_string(), self.of(name)?))).collect()
    }

    fn of(&self, name: &str) -> Result<BlockType> {
        let mut matching = self.patterns.iter().filter(|(pattern, _)| pattern.matches(name));
        let Some((first, ty)) = matching.next() else { return Ok(self.ty) };
        match matching.take_while(|(other, _)| letters(other) == letters(first)).find(|(_, t)| t != ty) {
            None => Ok(*ty),
            Some((other, t)) => {
                let what = format!("says {} by `{first}` and {} by `{other}`", ty.name(), t.name());
                Err(Error::input(format!("`tensors`: `{name}` {what}"))
                    .help("name more of the tensor in the pattern that is to decide"))
            }
        }
    }
}

/// The names, those of blocks once for all blocks.
fn kinds_of<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let first_block = |name: &&str| !name.starts_with("blk.") || name.starts_with("blk.0.");
    names.iter().copied().filter(first_block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = [
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_v.weight",
        "blk.1.attn_v.weight",
        "output.weight",
    ];

    fn assigned(tensors: &[(&str, BlockType)]) -> Result<Vec<&'static str>> {
        let tensors = tensors.iter().map(|(name, ty)| (name.to_string(), *ty)).collect();
        let assigned = Types::new(BlockType::Q4_0, &tensors).unwrap().assign(&NAMES)?;
        Ok(NAMES.iter().map(|name| assigned[*name].name()).collect())
    }

    #[test]
    fn the_most_specific_pattern_decides() {
        let found = assigned(&[
            ("*", BlockType::Q5_0),
            ("*.attn_?.*", BlockType::Q8_0),
            ("*.attn_v.*", BlockType::Q6K),
            ("blk.1.attn_v.weight", BlockType::F16),
        ]);
        assert_eq!(found.unwrap(), ["q5_0", "q8_0", "q6_k", "f16", "q5_0"]);
        assert_eq!(assigned(&[]).unwrap(), ["q4_0"; 5]);
    }

    #[test]
    fn patterns_that_match_nothing_or_disagree_are_refused() {
        let error = assigned(&[("*.atn_v.*", BlockType::F32)]).unwrap_err().to_string();
        assert!(error.contains("no matrix is called `*.atn_v.*`"), "{error}");
        assert!(error.contains("`blk.0.attn_q.weight`") && !error.contains("blk.1"), "{error}");
        let error = assigned(&[("blk.?.attn_v*", BlockType::F32), ("blk.*.attn_v*", BlockType::F16)]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("`blk.0.attn_v.weight` says") && error.contains("by `blk.?.attn_v*`"),
            "{error}"
        );
        let bad = Types::new(BlockType::Q4_0, &BTreeMap::from([("a[".to_string(), BlockType::F32)]));
        assert!(bad.err().unwrap().why.contains("no pattern"));
    }
}
