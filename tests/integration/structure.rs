//! The map in `src/lib.rs` is true: no module imports one that stands below it, the domain and the
//! engine do not import each other, and only what faces the user prints.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module's name and the section of the map that it stands in.
struct Module {
    name: String,
    section: String,
}

/// A place in the source where one module names another.
#[derive(Debug, PartialEq)]
struct Import {
    line: usize,
    from: String,
    to: String,
}

#[test]
fn no_import_points_down_the_map() {
    let map = map();
    let rank = |name: &str| map.iter().position(|module| module.name == name);
    let mut wrong = Vec::new();
    for (file, import) in imports() {
        let Import { line, from, to } = &import;
        match (rank(from), rank(to)) {
            (Some(importer), Some(imported)) if imported > importer => {
                wrong.push(format!("{file}:{line}: `{from}` imports `{to}`, which stands below it"));
            }
            (Some(_), Some(_)) => {}
            _ => wrong.push(format!("{file}:{line}: `{from}` imports `{to}`: one of them is not in the map")),
        }
    }
    assert!(wrong.is_empty(), "against the order in src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn domain_and_engine_do_not_import_each_other() {
    let map = map();
    let section = |name: &str| map.iter().find(|m| m.name == name).map_or("", |m| m.section.as_str());
    let halves = BTreeSet::from(["domain", "engine"]);
    let wrong: Vec<String> = imports()
        .into_iter()
        .filter(|(_, import)| BTreeSet::from([section(&import.from), section(&import.to)]) == halves)
        .map(|(file, Import { line, from, to })| {
            let (of, other) = (section(&from), section(&to));
            format!("{file}:{line}: `{from}` ({of}) imports `{to}` ({other})")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_report_and_cli_print() {
    let printing = [
        "println!",
        "print!",
        "eprintln!",
        "eprint!",
        "dbg!",
        "io::stdout",
        "io::stderr",
        "stdout()",
        "stderr()",
    ];
    let mut wrong = Vec::new();
    for path in sources() {
        let module = module_of(&path);
        if ["report", "cli", "main"].contains(&module.as_str()) {
            continue;
        }
        for (line, text) in code(&fs::read_to_string(source_root().join(&path)).unwrap()) {
            if let Some(found) = printing.iter().find(|name| names(text, name)) {
                wrong.push(format!("src/{}:{line}: `{module}` prints with `{found}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "only `report` and `cli` print:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_server_knows_http() {
    let mut wrong = Vec::new();
    for path in sources().into_iter().filter(|path| module_of(path) != "web") {
        for (line, text) in code(&fs::read_to_string(source_root().join(&path)).unwrap()) {
            if let Some(found) =
                ["axum::", "hyper::", "hyper_util::", "tower::"].iter().find(|n| names(text, n))
            {
                wrong.push(format!("src/{}:{line} uses `{found}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "only `web` answers requests:\n{}", wrong.join("\n"));
}

/// The modules as the text of the map and the `pub mod` lines agree on them.
fn map() -> Vec<Module> {
    let text = fs::read_to_string(source_root().join("lib.rs")).unwrap();
    let inside = text.lines().skip_while(|l| *l != "//! ```text").skip(1).take_while(|l| *l != "//! ```");
    let mut section = String::new();
    let mut map = Vec::new();
    for line in inside {
        let line = line.trim_start_matches("//!").trim();
        match line.strip_prefix("-- ") {
            Some(title) => section = title.chars().take_while(|c| c.is_alphanumeric()).collect(),
            None => {
                let name = line.split_whitespace().next().expect("a module's name").to_string();
                map.push(Module { name, section: section.clone() });
            }
        }
    }
    let declared: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let listed: Vec<&str> = map.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(listed, declared, "the map of src/lib.rs and its `pub mod` lines differ");
    assert!(["domain", "engine"].iter().all(|s| map.iter().any(|m| m.section == *s)), "sections are missing");
    map
}

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file that is not a test's, relative to `src`, in a fixed order.
fn sources() -> Vec<PathBuf> {
    fn below(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                below(&path, all);
            } else if name.ends_with(".rs") && !name.starts_with("tests") {
                all.push(path.strip_prefix(source_root()).unwrap().to_path_buf());
            }
        }
    }
    let mut all = Vec::new();
    below(&source_root(), &mut all);
    all.sort();
    all
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

/// Every import of one top-level module by another, with its file.
fn imports() -> Vec<(String, Import)> {
    let mut all = Vec::new();
    for path in sources() {
        let (file, module) = (format!("src/{}", path.display()), module_of(&path));
        let text = fs::read_to_string(source_root().join(&path)).unwrap();
        let found = if module == "lib" || module == "main" { Vec::new() } else { imports_in(&module, &text) };
        all.extend(found.into_iter().map(|import| (file.clone(), import)));
    }
    assert!(all.len() > 100, "only {} imports found: this test does not see them", all.len());
    all
}

fn imports_in(module: &str, text: &str) -> Vec<Import> {
    let mut found = Vec::new();
    for (line, text) in code(text) {
        for (at, _) in text.match_indices("crate::").filter(|(at, _)| begins_word(text, *at)) {
            let rest = &text[at + "crate::".len()..];
            assert!(!rest.starts_with('{'), "{module}, line {line}: write one `use crate::…` a module");
            let to: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if to != module {
                found.push(Import { line, from: module.to_string(), to });
            }
        }
    }
    found
}

/// The lines of a file, numbered, without comments and without what is only compiled for tests.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            // The item ends at the first line that is no deeper and closes or terminates it.
            let depth = indent(line);
            let ends = |l: &str| indent(l) <= depth && (l.ends_with('}') || l.ends_with(';'));
            lines.by_ref().find(|(l, _)| ends(l));
        } else if !line.trim_start().starts_with("//") {
            out.push((number, line.split(" // ").next().unwrap_or(line)));
        }
    }
    out
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Whether `name` stands in `text` and is not the end of a longer one.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| begins_word(text, at))
}

fn begins_word(text: &str, at: usize) -> bool {
    !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

#[test]
fn imports_are_found_and_tests_and_comments_are_not() {
    let text = "use crate::alpha::A;\n// crate::comment\n#[cfg(test)]\nuse crate::test_only::B;\n\
                fn f() { crate::beta::g(crate::own::h) } // see crate::remark\n\
                #[cfg(test)]\nmod tests {\n    use crate::test_only::C;\n}\npub use crate::gamma;\n";
    let found: Vec<_> = imports_in("own", text).into_iter().map(|i| (i.line, i.to)).collect();
    let expected = [(1, "alpha"), (5, "beta"), (10, "gamma")];
    assert_eq!(found, expected.map(|(line, name)| (line, name.to_string())));
}
