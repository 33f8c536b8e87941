//! `kind: command`: any program as a stage, with declared inputs and outputs and a cleared
//! environment, so that users bring their own Python or shell step.
//!
//! The key holds the command line, the declared environment and the inputs' digests. What it can't
//! hold is the program itself: a script belongs among the inputs, and a new version of an installed
//! program is what `--force` is for.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, fs, suggest};
use crate::stage::{Artifact, Connected, Context, FILE, Info, Issue, Kind};

/// Any program, with declared inputs and outputs.
pub struct Command;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The program and its arguments. `${inputs.PORT}` is the path of the input's file, or of its
    /// folder when it has several; `${outputs.PORT}` is the file to write (type `file`) or the
    /// folder to write into (any other type). For a shell: `[sh, -c, "…"]`.
    pub command: Vec<String>,
    /// The environment, beside PATH, HOME, TMPDIR, LANG and TZ, which have fixed values.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// What a program finds when nothing else is declared. HOME and TMPDIR are the scratch folder.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
    ("TZ", "UTC"),
];

/// Lines of output that an error shows.
const SHOWN: usize = 20;

impl Kind for Command {
    type Params = Params;

    fn info() -> Info {
        Info {
            name: "command",
            version: 1,
            summary: "Any program, with declared inputs and outputs and a cleared environment.",
            inputs: Vec::new(),
            outputs: Vec::new(),
            open: true,
            seeded: false,
            parallel: false,
            not_in_key: &[],
        }
    }

    fn check(params: &Params, inputs: &Connected) -> Vec<Issue> {
        if params.command.is_empty() {
            return vec![Issue::param("command", "there is no program to run")];
        }
        let mut issues = Vec::new();
        for (i, word) in params.command.iter().enumerate() {
            for (namespace, name) in references(word) {
                if namespace == "inputs" && !inputs.0.contains_key(&name) {
                    let issue = Issue::param(&format!("command.{i}"), format!("there is no input `{name}`"));
                    issues.push(issue.help(match inputs.0.is_empty() {
                        true => format!("declare it: `inputs: {{ {name}: … }}`"),
                        false => {
                            format!("its inputs are {}", suggest::list(inputs.0.keys().map(String::as_str)))
                        }
                    }));
                }
            }
        }
        issues
    }

    fn run(params: &Params, ctx: &Context) -> Result<()> {
        let inputs = place_inputs(ctx)?;
        let outputs = place_outputs(ctx)?;
        let words: Vec<String> =
            params.command.iter().map(|w| expand(w, &inputs, &outputs)).collect::<Result<_>>()?;
        run(&words, params, ctx)
    }
}

/// `${inputs.a}` and `${outputs.b}` in `text`, as (namespace, name).
fn references(text: &str) -> Vec<(String, String)> {
    text.split("${")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .filter_map(|(inner, _)| inner.split_once('.'))
        .filter(|(namespace, _)| ["inputs", "outputs"].contains(namespace))
        .map(|(namespace, name)| (namespace.to_string(), name.to_string()))
        .collect()
}

fn expand(
    text: &str,
    inputs: &BTreeMap<String, PathBuf>,
    outputs: &BTreeMap<String, PathBuf>,
) -> Result<String> {
    let mut out = text.to_string();
    for (namespace, name) in references(text) {
        let paths = if namespace == "inputs" { inputs } else { outputs };
        let path = paths.get(&name).ok_or_else(|| {
            let known = suggest::list(paths.keys().map(String::as_str));
            Error::input(format!("`${{{namespace}.{name}}}` in the command: there is no such port"))
                .help(format!("its {namespace} are {known}"))
        })?;
        out = out.replace(&format!("${{{namespace}.{name}}}"), &path.to_string_lossy());
    }
    Ok(out)
}

/// Links each input under its own name, since blobs in the store have none that a program would like.
fn place_inputs(ctx: &Context) -> Result<BTreeMap<String, PathBuf>> {
    let mut placed = BTreeMap::new();
    for (port, artifacts) in &ctx.inputs {
        let folder = ctx.scratch.join("inputs").join(port);
        let path = match artifacts.as_slice() {
            [one] => place(one, &folder)?,
            many => {
                for (i, artifact) in many.iter().enumerate() {
                    place(artifact, &folder.join(i.to_string()))?;
                }
                folder
            }
        };
        placed.insert(port.clone(), path);
    }
    Ok(placed)
}

fn place(artifact: &Artifact, folder: &Path) -> Result<PathBuf> {
    for file in &artifact.files {
        fs::symlink(&file.path, &folder.join(&file.name))?;
    }
    Ok(match artifact.files.as_slice() {
        [only] => folder.join(&only.name),
        _ => folder.to_path_buf(),
    })
}

fn place_outputs(ctx: &Context) -> Result<BTreeMap<String, PathBuf>> {
    let path = |(port, folder): (&String, &PathBuf)| {
        let absolute = fs::absolute(folder)?;
        let is_file = ctx.types.get(port).is_some_and(|ty| ty == FILE);
        Ok((port.clone(), if is_file { absolute.join(port) } else { absolute }))
    };
    ctx.outputs.iter().map(path).collect()
}

fn run(words: &[String], params: &Params, ctx: &Context) -> Result<()> {
    let shown = words.join(" ");
    tracing::debug!("running: {shown}");
    let home = fs::absolute(&ctx.scratch)?;
    let mut process = Process::new(&words[0]);
    process
        .args(&words[1..])
        .env_clear()
        .envs(ENVIRONMENT)
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .envs(&params.env)
        .current_dir(&home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that stopping it stops what it started.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut process, 0);
    let mut child = process.spawn().map_err(|e| {
        Error::input(format!("cannot start `{}`: {e}", words[0]))
            .help("give an absolute path, or set PATH under `env:`; the environment is cleared")
    })?;
    let tail = follow(&mut child, ctx)?;
    let status = child.wait().map_err(|e| Error::input(format!("waiting for `{}`: {e}", words[0])))?;
    if status.success() {
        return Ok(());
    }
    let error = Error::input(format!("`{shown}` failed: {status}"));
    Err(if tail.is_empty() { error } else { error.cause(Vec::from(tail).join("\n")) })
}

/// Logs what the program says until it ends; returns the last lines.
fn follow(child: &mut Child, ctx: &Context) -> Result<VecDeque<String>> {
    let (sender, lines) = channel();
    let readers = [
        child.stdout.take().map(|out| reader(out, sender.clone())),
        child.stderr.take().map(|err| reader(err, sender.clone())),
    ];
    drop(sender);
    let mut tail = VecDeque::new();
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                tracing::info!("{line}");
                tail.push_back(line);
                if tail.len() > SHOWN {
                    tail.pop_front();
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            // A program that closed its output early or holds it open still has to be watched.
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if matches!(child.try_wait(), Ok(Some(_))) => {
                break;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
        }
        if ctx.monitor.cancelled() {
            stop(child);
            return Err(Error::cancelled());
        }
    }
    // A program that closed its output is mostly about to end: look again soon, then ever later.
    let mut pause = Duration::from_micros(20);
    while !matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
        if ctx.monitor.cancelled() {
            stop(child);
            return Err(Error::cancelled());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    drop(readers);
    Ok(tail)
}

fn reader(stream: impl Read + Send + 'static, lines: Sender<String>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            if lines.send(text).is_err() {
                return;
            }
        }
    })
}

fn stop(child: &mut Child) {
    #[cfg(unix)]
    {
        use nix::sys::signal::{Signal, killpg};
        let group = nix::unistd::Pid::from_raw(child.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        for _ in 0..40 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
