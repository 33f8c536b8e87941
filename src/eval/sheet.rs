//! A sample sheet: prompts, and how a model continues them, to be read by people.
//!
//! Prompts are a list in YAML, as TinyStories has them (Eldan and Li, 2023), JSON lines with `prompt` or `text`,
//! or the lines of a text file.

use std::fmt::Write as _;

use super::rows::{self, Form, Row};
use crate::base::error::Fault;
use crate::base::yaml::{self, Limits, Value};
use crate::base::{Error, Monitor, Result, fs};
use crate::corpus::input::InputFile;

const FORM: Form = Form {
    what: "prompts",
    id: &["id"],
    group: &["category"],
    by_group: false,
    fields: &["prompt", "text"],
    unused: &[],
    strict: false,
    tables: false,
};

/// The prompts in `files`.
///
/// # Errors
/// A file that is none of the forms; an entry that is no text, with its place.
pub fn prompts(files: &[InputFile], monitor: &dyn Monitor) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let before = all.len();
        match file.ending().as_str() {
            "yaml" | "yml" => all.extend(of_list(file)?),
            "txt" | "text" => all.extend(of_lines(file)?),
            _ => rows::read(std::slice::from_ref(file), &FORM, monitor, of_row, |some| {
                all.extend(some.into_iter().map(|entry| entry.content));
                Ok(())
            })?,
        }
        if all.len() == before {
            let error = Error::input(format!("`{}` has no prompts", file.name));
            return Err(error.help("write one a line (`.txt`), or a list (`.yaml`)"));
        }
    }
    Ok(all)
}

fn of_list(file: &InputFile) -> Result<Vec<String>> {
    let list = yaml::parse(&file.name, &fs::read_text(&file.path)?, Limits::default());
    let list = list.map_err(|e| e.blame(Fault::Input))?;
    let Value::Seq(entries) = &list.value else {
        let error = list.error(format!("expected a list of prompts, found {}", list.describe()));
        return Err(error.blame(Fault::Input).help("write one entry a prompt: `- Once upon a time`"));
    };
    let one = |entry: &yaml::Node| match entry.as_str().filter(|text| !text.trim().is_empty()) {
        Some(text) => Ok(text.to_string()),
        None => {
            let error = entry.error(format!("expected the text of a prompt, found {}", entry.describe()));
            Err(error.blame(Fault::Input).help("write it in quotes, or as a block (`- |-`)"))
        }
    };
    entries.iter().map(one).collect()
}

fn of_lines(file: &InputFile) -> Result<Vec<String>> {
    let text = fs::read_text(&file.path)?;
    let lines = text.trim_start_matches('\u{FEFF}').lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_string).collect())
}

fn of_row(row: &Row) -> Result<String> {
    row.needed_text(&["prompt", "text"]).map(str::to_string)
}

/// The sheet as Markdown; `how` says how the samples were made.
pub fn markdown<'a>(how: &str, samples: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut page = format!("# Samples\n\n{how}\n");
    for (number, (prompt, text)) in (1..).zip(samples) {
        let quoted = prompt.trim_end().lines().map(|line| format!("> {line}").trim_end().to_string());
        let quoted = quoted.collect::<Vec<_>>().join("\n");
        // Writing into a String cannot fail.
        let _ = write!(page, "\n## {number}\n\n{quoted}\n\n{}\n", text.trim());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Quiet;

    fn read(name: &str, text: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text.as_bytes()).unwrap();
        prompts(&[InputFile::new(&path)?], &Quiet)
    }

    #[test]
    fn prompts_are_a_list_rows_or_lines() {
        let expected = ["Once upon a time\n\nthere was", "Lily \"said"];
        let yaml = "---\n- |-\n  Once upon a time\n\n  there was\n- Lily \"said\n";
        assert_eq!(read("p.yaml", yaml).unwrap(), expected);
        let rows = "{\"prompt\": \"Once upon a time\\n\\nthere was\"}\n{\"text\": \"Lily \\\"said\"}\n";
        assert_eq!(read("p.jsonl", rows).unwrap(), expected);
        assert_eq!(read("p.txt", "\u{FEFF}One day\r\n\n  Lily \n").unwrap(), ["One day", "Lily"]);
        let table = [
            ("p.yaml", "a: 1\n", "p.yaml:1:1", "expected a list of prompts, found a map"),
            ("p.yaml", "- a\n- 7\n", "p.yaml:2:3", "found the number 7"),
            ("p.yaml", "[]\n", "", "`p.yaml` has no prompts"),
            ("p.txt", "\n", "", "`p.txt` has no prompts"),
            ("p.jsonl", "{\"prompts\": \"a\"}\n", "p.jsonl:1:1", "did you mean `prompts`"),
            ("p.md", "a", "", "the name `p.md` does not tell how prompts are read"),
        ];
        for (name, text, place, message) in table {
            let error = read(name, text).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_sheet_quotes_the_prompt_and_shows_the_text() {
        let samples = [("One\n\nday", " she ran.\n"), ("Hi", "Hello!")];
        assert_eq!(
            markdown("Greedy.", samples.into_iter()),
            "# Samples\n\nGreedy.\n\n## 1\n\n> One\n>\n> day\n\nshe ran.\n\n## 2\n\n> Hi\n\nHello!\n"
        );
    }
}
