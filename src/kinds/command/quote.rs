//! `${inputs.…}` and `${outputs.…}` in a command, and the quoting of paths in shell scripts.

use std::path::Path;

use crate::base::Result;

/// A piece of a word of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'t> {
    Text(&'t str),
    Reference { namespace: &'t str, name: &'t str },
}

const NAMESPACES: [&str; 2] = ["inputs", "outputs"];

/// `text` cut into references and what is between them.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut from, mut at) = (0, 0);
    while let Some(start) = text[at..].find("${").map(|i| at + i) {
        at = start + 2;
        let Some(inner) = text[at..].split_once('}').map(|(inner, _)| inner) else { break };
        let Some((namespace, name)) = inner.split_once('.') else { continue };
        if NAMESPACES.contains(&namespace) {
            pieces.push(Piece::Text(&text[from..start]));
            pieces.push(Piece::Reference { namespace, name });
            at += inner.len() + 1;
            from = at;
        }
    }
    pieces.push(Piece::Text(&text[from..]));
    pieces
}

/// `text` with each reference replaced by `look_up`; in a `script` each is quoted for its context.
pub fn expand(text: &str, script: bool, look_up: impl Fn(&str, &str) -> Result<String>) -> Result<String> {
    let (mut out, mut shell) = (String::new(), Shell::default());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => {
                shell.read(text);
                out.push_str(text);
            }
            Piece::Reference { namespace, name } => {
                let path = look_up(namespace, name)?;
                out.push_str(&if script { shell.quoted(&path) } else { path });
                shell.within_word();
            }
        }
    }
    Ok(out)
}

/// The index of a shell script in a command: the word after `-c`, as in `sh -c` and `bash -euc`.
pub fn script(words: &[String]) -> Option<usize> {
    const SHELLS: [&str; 7] = ["sh", "bash", "dash", "zsh", "ksh", "mksh", "ash"];
    let is_shell = |word: &String| {
        let name = Path::new(word).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| SHELLS.contains(&name))
    };
    let shell = words.iter().position(is_shell)?;
    let mut at = shell + 1;
    while let Some(word) = words.get(at).filter(|word| word.starts_with(['-', '+'])) {
        let letters = word.strip_prefix('-').filter(|letters| !letters.starts_with('-'));
        // `-o pipefail` takes a further word.
        at += if word.ends_with('o') && !word.starts_with("--") { 2 } else { 1 };
        if letters.is_some_and(|letters| letters.contains('c')) {
            return (at < words.len()).then_some(at);
        }
    }
    None
}

/// The quoting context within a POSIX shell script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Reference,
    Single,
    Double,
    /// Within `$( … )`.
    Command,
    /// Within parentheses that are not `$(`.
    Group,
    Backticks,
    Comment,
}

/// Tracks the quoting context of a script.
#[derive(Default)]
struct Shell {
    /// The innermost last; plain when empty.
    open: Vec<In>,
    /// The last character was a backslash that escapes the next one.
    escaped: bool,
    /// The last character, to tell `$(` and the beginning of a word.
    last: Option<char>,
}

impl Shell {
    fn state(&self) -> In {
        self.open.last().copied().unwrap_or(In::Reference)
    }

    fn read(&mut self, text: &str) {
        for c in text.chars() {
            match std::mem::take(&mut self.escaped) {
                true => {}
                false => self.step(c),
            }
            self.last = Some(c);
        }
    }

    /// After a reference, which no beginning of a word follows.
    fn within_word(&mut self) {
        self.escaped = false;
        self.last = Some('x');
    }

    fn step(&mut self, c: char) {
        let state = self.state();
        match (state, c) {
            (In::Single, '\'') => drop(self.open.pop()),
            (In::Single, _) => {}
            (In::Comment, '\n') => drop(self.open.pop()),
            (In::Comment, _) => {}
            (_, '\\') => self.escaped = true,
            (In::Double, '"') => drop(self.open.pop()),
            (_, '(') if self.last == Some('$') => self.open.push(In::Command),
            (_, '`') if self.open.contains(&In::Backticks) => {
                while self.open.pop().is_some_and(|state| state != In::Backticks) {}
            }
            (_, '`') => self.open.push(In::Backticks),
            (In::Double, _) => {}
            (_, '\'') => self.open.push(In::Single),
            (_, '"') => self.open.push(In::Double),
            (_, '(') => self.open.push(In::Group),
            (In::Command | In::Group, ')') => drop(self.open.pop()),
            (_, '#') if self.last.is_none_or(|c| c.is_whitespace() || ";&|(".contains(c)) => {
                self.open.push(In::Comment);
            }
            _ => {}
        }
    }

    fn quoted(&self, path: &str) -> String {
        let safe = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
        if path.chars().all(safe) && !path.is_empty() {
            return path.to_string();
        }
        match self.state() {
            In::Single => path.replace('\'', r"'\''"),
            In::Double => {
                let special = |c: char| matches!(c, '"' | '$' | '`' | '\\');
                path.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
            }
            _ => format!("'{}'", path.replace('\'', r"'\''")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str, path: &str) -> String {
        expand(text, true, |_, _| Ok(path.to_string())).unwrap()
    }

    #[test]
    fn a_reference_is_replaced_once_and_only_where_it_is_one() {
        let both = |namespace: &str, name: &str| Ok(format!("<{namespace} {name} ${{inputs.b}}>"));
        let text = "a ${inputs.a}b${outputs.c} ${HOME} ${x.y} ${ ${inputs.unclosed";
        assert_eq!(
            expand(text, false, both).unwrap(),
            "a <inputs a ${inputs.b}>b<outputs c ${inputs.b}> ${HOME} ${x.y} ${ ${inputs.unclosed"
        );
        assert_eq!(expanded("${inputs.a}", "inputs/a/x.txt"), "inputs/a/x.txt");
    }

    /// What a shell makes of every kind of place.
    #[cfg(unix)]
    #[test]
    fn a_path_is_one_word_wherever_it_stands() {
        let path = "in/a b'c\"d$HOME`id`\\;e\nf*";
        let scripts = [
            "printf %s ${inputs.a}",
            "printf %s \"${inputs.a}\"",
            "printf %s '${inputs.a}'",
            "printf %s \"$(printf %s ${inputs.a})\"",
            "printf %s \"$(printf %s \"${inputs.a}\")\"",
            "x=`true` # it's \" nothing\n(true); printf %s ${inputs.a}",
            "echo \\' >/dev/null; printf %s ''${inputs.a}\"\"",
            "case x in x) printf %s ${inputs.a};; esac",
        ];
        for script in scripts {
            let text = expanded(script, path);
            let output = std::process::Command::new("sh").args(["-c", &text]).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, path, "{text}");
        }
    }

    #[test]
    fn the_script_of_a_shell_is_found() {
        let at = |words: &[&str]| script(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
        assert_eq!(at(&["sh", "-c", "x"]), Some(2));
        assert_eq!(at(&["/bin/bash", "-euo", "pipefail", "-c", "x", "y"]), Some(4));
        assert_eq!(at(&["env", "A=1", "bash", "-euxc", "x"]), Some(4));
        assert_eq!(at(&["bash", "-o", "pipefail", "-ec", "x"]), Some(4));
        assert_eq!(at(&["sh", "file.sh", "-c", "x"]), None);
        assert_eq!(at(&["python3", "-c", "x"]), None);
        assert_eq!(at(&["sh", "-c"]), None);
    }
}
