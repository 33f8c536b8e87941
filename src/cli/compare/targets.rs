//! The rows of the table: what is named on the command line, variants of a matrix, groups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::base::{Error, Result, suggest};
use crate::target;

/// A row of the table and the targets whose mean it is.
#[derive(Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub members: Vec<String>,
}

/// Reads `[NAME=]TARGET[,TARGET…]`. Where a stage has a matrix, all its variants are meant: rows of their own,
/// or those that have the same value of the variable `group_by` together.
///
/// # Errors
/// Several targets without a name, pipelines and stages that are not there, a variable that a target lacks.
pub fn read(texts: &[String], group_by: Option<&str>) -> Result<Vec<Named>> {
    let given = texts.iter().map(|text| expanded(text)).collect::<Result<Vec<_>>>()?;
    let alone = given.iter().filter(|(name, _)| name.is_none()).flat_map(|(_, members)| members);
    let one_stage = alone.map(|text| stage_of(text)).collect::<BTreeSet<_>>().len() == 1;
    let (mut rows, mut groups): (Vec<Named>, BTreeMap<String, usize>) = (Vec::new(), BTreeMap::new());
    for (name, members) in given {
        match (name, group_by) {
            (Some(name), _) => rows.push(Named { name: name.to_string(), members }),
            (None, None) => {
                rows.extend(
                    members.into_iter().map(|text| Named { name: text.clone(), members: vec![text] }),
                );
            }
            (None, Some(variable)) => {
                for text in members {
                    let name = group_of(&text, variable, one_stage)?;
                    let row = *groups.entry(name.clone()).or_insert(rows.len());
                    if row == rows.len() {
                        rows.push(Named { name, members: Vec::new() });
                    }
                    rows[row].members.push(text);
                }
            }
        }
    }
    Ok(rows)
}

/// A row's name, if it has one, and its targets.
fn expanded(text: &str) -> Result<(Option<&str>, Vec<String>)> {
    let (name, list) = name_of(text);
    let targets = pieces(list);
    if name.is_none() && targets.len() > 1 {
        return Err(Error::usage(format!("`{text}` is several targets without a name"))
            .help("name their group: NAME=TARGET,TARGET; or separate targets by blanks"));
    }
    let all: Vec<Vec<String>> = targets.into_iter().map(target::variants).collect::<Result<_>>()?;
    Ok((name, all.concat()))
}

/// The name before `=`, if it is one and not a part of a path or a stage's name, and what is behind it.
fn name_of(text: &str) -> (Option<&str>, &str) {
    let is_name = |name: &str| !name.is_empty() && !name.contains([':', '/', '\\', '@', ',']);
    match text.split_once('=') {
        Some((name, list)) if is_name(name) && !Path::new(text).exists() => (Some(name), list),
        _ => (None, text),
    }
}

/// The targets between commas. A variant's name has commas, too: what follows one with `@` and is `axis=value`
/// belongs to it.
fn pieces(list: &str) -> Vec<&str> {
    if Path::new(list).exists() {
        return vec![list];
    }
    let (mut found, mut start): (Vec<&str>, usize) = (Vec::new(), 0);
    for (comma, _) in list.match_indices(',') {
        let next = list[comma + 1..].split(',').next().unwrap_or_default();
        let is_axis = next.contains('=') && !next.contains(':') && !Path::new(next).exists();
        if !(is_axis && list[start..comma].contains('@')) {
            found.push(&list[start..comma]);
            start = comma + 1;
        }
    }
    found.push(&list[start..]);
    found
}

/// The name of a variant's group: with its stage's, where there are several.
fn group_of(text: &str, variable: &str, one_stage: bool) -> Result<String> {
    let value = value_of(text, variable)?;
    Ok(match one_stage {
        true => format!("{variable}={value}"),
        false => format!("{}@{variable}={value}", stage_of(text)),
    })
}

/// A target without the values of a matrix.
fn stage_of(text: &str) -> &str {
    text.split('@').next().unwrap_or(text)
}

/// The value of a matrix's variable in a variant's name.
fn value_of<'t>(text: &'t str, variable: &str) -> Result<&'t str> {
    let axes =
        || text.split_once('@').map_or("", |(_, axes)| axes).split(',').filter_map(|a| a.split_once('='));
    axes().find(|(axis, _)| *axis == variable).map(|(_, value)| value).ok_or_else(|| {
        let error = Error::usage(format!("--group-by: `{text}` has no variable `{variable}` of a matrix"));
        let names: Vec<&str> = axes().map(|(axis, _)| axis).collect();
        match names.is_empty() {
            true => error.help("name a stage that has a matrix, or group it by hand: NAME=TARGET,TARGET"),
            false => error
                .suggest(suggest::closest(variable, names.iter().copied()))
                .help(format!("its variables are {}", suggest::list(names.iter().copied()))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str], group_by: Option<&str>) -> Result<Vec<(String, Vec<String>)>> {
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        Ok(read(&texts, group_by)?.into_iter().map(|row| (row.name, row.members)).collect())
    }

    fn row(name: &str, members: &[&str]) -> (String, Vec<String>) {
        (name.into(), members.iter().map(|m| m.to_string()).collect())
    }

    /// A pipeline whose stage `eval` has a matrix.
    fn pipeline() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let stage = |name: &str, matrix: &str| {
            format!(
                "  {name}: {{ kind: command, outputs: {{ report: report }}, params: {{ command: [x{matrix}] }}"
            )
        };
        let text = format!(
            "stages:\n{}, matrix: {{ recipe: [small, wide], seed: [1, 2] }} }}\n{} }}\n",
            stage("eval", ", '${matrix.recipe}', 's${matrix.seed}'"),
            stage("single", "")
        );
        let file = dir.path().join("p.yaml");
        crate::base::fs::write(&file, text.as_bytes()).unwrap();
        let path = file.to_str().unwrap().to_string();
        (dir, path)
    }

    #[test]
    fn a_matrix_is_all_its_variants_and_groups_are_by_value() {
        let (_dir, p) = pipeline();
        let eval = format!("{p}:eval");
        let variants: Vec<String> = ["small,seed=1", "small,seed=2", "wide,seed=1", "wide,seed=2"]
            .iter()
            .map(|v| format!("{eval}@recipe={v}"))
            .collect();
        let all: Vec<&str> = variants.iter().map(String::as_str).collect();
        let alone: Vec<_> = all.iter().map(|text| row(text, &[text])).collect();
        assert_eq!(rows(&[&eval], None).unwrap(), alone);
        let by_recipe = [row("recipe=small", &all[..2]), row("recipe=wide", &all[2..])];
        assert_eq!(rows(&[&eval], Some("recipe")).unwrap(), by_recipe);
        let by_seed = [row("seed=1", &[all[0], all[2]]), row("seed=2", &[all[1], all[3]])];
        assert_eq!(rows(&[&eval], Some("seed")).unwrap(), by_seed);
        assert_eq!(rows(&[&format!("all={eval}")], None).unwrap(), [row("all", &all)]);
        // With its port, and one by one.
        let ports: Vec<String> = all[..2].iter().map(|text| format!("{text}.report")).collect();
        let list = format!("two={}", ports.join(","));
        assert_eq!(rows(&[&list], None).unwrap(), [row("two", &[&ports[0], &ports[1]])]);
        let with_port = rows(&[&format!("{eval}.report")], None).unwrap();
        assert_eq!(with_port[3].0, format!("{}.report", all[3]));
        let single = format!("{p}:single");
        let first = rows(&[&single, "two=a,b"], None).unwrap();
        assert_eq!(first, [row(&single, &[&single]), row("two", &["a", "b"])]);

        let error = |texts: &[&str], by| rows(texts, by).unwrap_err().to_string();
        let typo = error(&[&eval], Some("recipes"));
        assert!(typo.contains("did you mean `recipe`") && typo.contains("`recipe`, `seed`"), "{typo}");
        assert!(error(&[&single], Some("recipe")).contains("name a stage that has a matrix"));
        assert!(error(&[&format!("{p}:evil")], None).contains("has no stage `evil`"));
    }

    #[test]
    fn several_targets_need_a_name_and_paths_keep_their_signs() {
        let error = rows(&["a,b"], None).unwrap_err().to_string();
        assert!(error.contains("`a,b` is several targets without a name"), "{error}");
        assert_eq!(rows(&["x/y=1"], None).unwrap(), [row("x/y=1", &["x/y=1"])], "no name has a slash");
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("lr=1,2");
        crate::base::fs::create_dir(&folder).unwrap();
        let path = folder.to_str().unwrap();
        assert_eq!(rows(&[path], None).unwrap(), [row(path, &[path])]);
        assert_eq!(rows(&[&format!("n={path}")], None).unwrap(), [row("n", &[path])]);
    }
}
