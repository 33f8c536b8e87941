//! A project in a temporary folder, and the program run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub struct Project {
    folder: tempfile::TempDir,
}

/// What a command gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Project {
    /// A pipeline `pipelines/p.yaml` with `text`.
    pub fn new(text: &str) -> Self {
        let project = Project { folder: tempfile::tempdir().expect("a temporary folder") };
        project.write("pipelines/p.yaml", text);
        project
    }

    /// A copy of what the repository ships.
    pub fn shipped() -> Self {
        let project = Project { folder: tempfile::tempdir().expect("a temporary folder") };
        for folder in ["pipelines", "stages", "data"] {
            copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &project.path(folder));
        }
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, text).expect("written");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinylm"));
        command.args(args).current_dir(self.folder.path()).env("NO_COLOR", "1").env("COLUMNS", "100");
        command
    }

    pub fn tinylm(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = self.command(args).output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
    }

    /// `run p`, which must succeed; the summary.
    pub fn run(&self, args: &[&str]) -> Value {
        let ran = self.try_run(args);
        assert_eq!(ran.0, 0, "{}", ran.1);
        ran.1
    }

    /// Exit code and summary of `run p`.
    pub fn try_run(&self, args: &[&str]) -> (i32, Value) {
        let ran = self.tinylm(&[&["run", "p", "--format", "json"], args].concat());
        let last = ran.stdout.lines().last().unwrap_or_else(|| panic!("no output; stderr: {}", ran.stderr));
        let summary: Value = serde_json::from_str(last).expect("a JSON line");
        assert_eq!(summary["event"], "summary", "{last}");
        (ran.code, summary)
    }

    /// `plan p` as JSON.
    pub fn plan(&self, args: &[&str]) -> Value {
        let ran = self.tinylm(&[&["plan", "p", "--format", "json"], args].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).expect("JSON")
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

/// `name=status` of every stage of a summary.
pub fn statuses(summary: &Value) -> Vec<String> {
    fields(summary, "status")
}

/// `name=verdict` of every stage of a plan.
pub fn verdicts(plan: &Value) -> Vec<String> {
    fields(plan, "verdict")
}

fn fields(value: &Value, field: &str) -> Vec<String> {
    let stages = value["stages"].as_array().expect("stages");
    stages
        .iter()
        .map(|s| format!("{}={}", s["stage"].as_str().unwrap(), s[field].as_str().unwrap()))
        .collect()
}

/// The stage's entry of a plan or summary.
pub fn stage<'a>(value: &'a Value, name: &str) -> &'a Value {
    let stages = value["stages"].as_array().expect("stages");
    stages.iter().find(|s| s["stage"] == name).unwrap_or_else(|| panic!("no stage {name} in {value}"))
}
