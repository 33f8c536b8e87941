//! `kind: command`: any program as a stage, with declared inputs and outputs and a cleared
//! environment, so that users bring their own Python or shell step.
//!
//! The key holds the command line, the declared environment and the inputs' digests. What it can't
//! hold is the program itself: a script belongs among the inputs, and a new version of an installed
//! program is what `--force` is for.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
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
    let mut process = Process::new(program(&words[0], params));
    // Whatever it was found as, it sees the name that the pipeline gave it.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut process, &words[0]);
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

/// The program's own path, as the PATH that it will have leads to it. Handed a bare name and a PATH, the
/// standard library copies this whole process to look the name up in; a path is started without a copy.
#[cfg(unix)]
fn program(name: &str, params: &Params) -> PathBuf {
    let path = params.env.get("PATH").map_or(ENVIRONMENT[0].1, String::as_str);
    let on_path = || {
        // What a relative folder is relative to is the system's to say.
        let folders = path.split(':').take_while(|folder| folder.starts_with('/'));
        folders.map(|folder| Path::new(folder).join(name)).find(|file| fs::is_executable(file))
    };
    let bare = !name.is_empty() && !name.contains('/');
    bare.then(on_path).flatten().unwrap_or_else(|| name.into())
}

#[cfg(not(unix))]
fn program(name: &str, _: &Params) -> PathBuf {
    name.into()
}

/// Logs what the program says until it ends; returns the last lines.
fn follow(child: &mut Child, ctx: &Context) -> Result<VecDeque<String>> {
    let mut output = Output::of(child);
    let mut tail = VecDeque::new();
    loop {
        let lines = match output.next(Duration::from_millis(50))? {
            Heard::Lines(lines) => lines,
            // A program that closed its output early or holds it open still has to be watched.
            Heard::Nothing if matches!(child.try_wait(), Ok(Some(_))) => break,
            Heard::Nothing => Vec::new(),
            Heard::End => break,
        };
        for line in lines {
            tracing::info!("{line}");
            tail.push_back(line);
            if tail.len() > SHOWN {
                tail.pop_front();
            }
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
    Ok(tail)
}

#[derive(Debug, PartialEq)]
enum Heard {
    /// There was something; not always a whole line.
    Lines(Vec<String>),
    /// Not in the time that was to be waited.
    Nothing,
    /// Both streams are closed.
    End,
}

/// What a program says on stdout and stderr. Waits for both at once on the stage's own thread: starting
/// two more and waking up from each took as long as a short program runs.
#[cfg(unix)]
struct Output(Vec<Pipe>);

#[cfg(unix)]
struct Pipe {
    file: std::fs::File,
    /// The beginning of a line that has no end yet.
    line: Vec<u8>,
}

#[cfg(unix)]
impl Output {
    fn of(child: &mut Child) -> Self {
        use std::os::fd::OwnedFd;
        let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        Output(pipes.into_iter().flatten().map(|fd| Pipe { file: fd.into(), line: Vec::new() }).collect())
    }

    fn next(&mut self, patience: Duration) -> Result<Heard> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        if self.0.is_empty() {
            return Ok(Heard::End);
        }
        let mut fds: Vec<PollFd> =
            self.0.iter().map(|pipe| PollFd::new(pipe.file.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Heard::Nothing),
            Ok(_) => {}
            Err(e) => return Err(Error::input(format!("waiting for a program's output: {e}"))),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let (mut ready, mut lines) = (ready.into_iter(), Vec::new());
        self.0.retain_mut(|pipe| !ready.next().unwrap_or(false) || pipe.read(&mut lines));
        Ok(Heard::Lines(lines))
    }
}

#[cfg(unix)]
impl Pipe {
    /// Adds the lines that are there; `false` at the end.
    fn read(&mut self, lines: &mut Vec<String>) -> bool {
        let mut buffer = [0; 1 << 13];
        let n = match self.file.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return true,
            Err(_) => 0,
        };
        for part in buffer[..n].split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                lines.push(line_text(&std::mem::take(&mut self.line)));
            }
        }
        if n == 0 && !self.line.is_empty() {
            lines.push(line_text(&std::mem::take(&mut self.line)));
        }
        n > 0
    }
}

/// Where pipes cannot be waited for together, each has a thread.
#[cfg(not(unix))]
struct Output(std::sync::mpsc::Receiver<String>);

#[cfg(not(unix))]
impl Output {
    fn of(child: &mut Child) -> Self {
        let (sender, lines) = std::sync::mpsc::channel();
        child.stdout.take().map(|out| reader(out, sender.clone()));
        child.stderr.take().map(|err| reader(err, sender));
        Output(lines)
    }

    fn next(&mut self, patience: Duration) -> Result<Heard> {
        use std::sync::mpsc::RecvTimeoutError;
        Ok(match self.0.recv_timeout(patience) {
            Ok(line) => Heard::Lines(vec![line]),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        })
    }
}

#[cfg(not(unix))]
fn reader(stream: impl Read + Send + 'static, lines: std::sync::mpsc::Sender<String>) {
    use std::io::BufRead;
    std::thread::spawn(move || {
        let mut stream = std::io::BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if lines.send(line_text(&line)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

fn line_text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end().to_string()
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// All that a program says; lines of one stream are in their order.
    fn said(script: &str) -> Vec<String> {
        let mut process = Process::new("sh");
        let process = process.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        let (mut output, mut all) = (Output::of(&mut child), Vec::new());
        loop {
            match output.next(Duration::from_secs(10)).unwrap() {
                Heard::Lines(lines) => all.extend(lines),
                Heard::Nothing => {}
                Heard::End => break,
            }
        }
        child.wait().unwrap();
        all
    }

    #[test]
    fn lines_come_whole_from_both_streams() {
        assert_eq!(said("echo one; echo; printf 'no end'"), ["one", "", "no end"]);
        let mut both = said("echo err >&2; exec 2>&-; echo out");
        both.sort();
        assert_eq!(both, ["err", "out"]);
        // Longer than what is read at one time, and in two pieces.
        let long = said("head -c 20000 /dev/zero | tr '\\0' x; sleep 0.05; echo y; echo z");
        assert_eq!((long[0].len(), &long[0][20000..], long[1].as_str()), (20001, "y", "z"));
        assert_eq!(said(":"), [""; 0]);
    }

    #[test]
    fn a_program_is_found_as_its_path_says() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let of = |path: String| Params { command: Vec::new(), env: BTreeMap::from([("PATH".into(), path)]) };
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for folder in [&first, &second] {
            fs::write(&folder.join("tool"), b"#!/bin/sh\n").unwrap();
        }
        let params = of(format!("{}:{}", first.display(), second.display()));
        assert_eq!(program("tool", &params), Path::new("tool"), "nobody may run either");
        let may_run = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(second.join("tool"), may_run).unwrap();
        assert_eq!(program("tool", &params), second.join("tool"));
        assert_eq!(program("./tool", &params), Path::new("./tool"));
        assert_eq!(program("tool", &of(format!(".:{}", second.display()))), Path::new("tool"));
    }

    #[test]
    fn silence_is_not_the_end() {
        let mut process = Process::new("sleep");
        let mut child = process.arg("10").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = Output::of(&mut child);
        assert_eq!(output.next(Duration::from_millis(1)).unwrap(), Heard::Nothing);
        child.kill().unwrap();
        child.wait().unwrap();
        while output.next(Duration::from_secs(10)).unwrap() != Heard::End {}
    }
}
