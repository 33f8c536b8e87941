//! Starts a command, reads its output, and makes sure that no process of it runs afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use super::output::{Heard, Output};
use crate::base::text::{shortened, visible};
use crate::base::{Error, Result, fs};
use crate::stage::Context;

type Environment = BTreeMap<String, String>;

/// The default environment. HOME and TMPDIR are the scratch folder.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
    ("TZ", "UTC"),
];

/// Lines of output that an error shows, and how much of each.
const SHOWN: usize = 20;
const SHOWN_CHARS: usize = 500;

/// Read-locked while an executable is copied, write-locked while a process starts: a forked child briefly
/// has all open files, and a file that is open for writing cannot be executed ("text file busy").
static STARTING: RwLock<()> = RwLock::new(());

/// [`fs::copy_plain`] of a program that a command may run.
///
/// # Errors
/// As [`fs::copy_plain`].
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let _nothing_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    fs::copy_plain(from, to, true)
}

/// Runs a command in the stage's scratch folder until all its processes have ended.
///
/// # Errors
/// When it cannot be started, fails, or on cancellation.
pub fn run(words: &[String], env: &Environment, ctx: &Context) -> Result<()> {
    let shown = visible(&words.join(" ")).into_owned();
    tracing::debug!("running: {shown}");
    let mut running = Running::start(words, env, ctx)?;
    let status = running.follow(ctx)?;
    running.end_what_is_left();
    if status.success() {
        return Ok(());
    }
    let error = Error::input(format!("`{shown}` failed: {status}"));
    let tail = Vec::from(std::mem::take(&mut running.tail));
    Err(if tail.is_empty() { error } else { error.cause(tail.join("\n")) })
}

/// A running command with its processes, which are ended when it is dropped.
struct Running {
    child: Child,
    output: Output,
    /// The last lines.
    tail: VecDeque<String>,
    /// All its processes have ended.
    over: bool,
    scratch: PathBuf,
    #[cfg(unix)]
    _guarded: super::guard::Guarded,
}

impl Running {
    fn start(words: &[String], env: &Environment, ctx: &Context) -> Result<Self> {
        let scratch = fs::absolute(&ctx.scratch)?;
        let mut process = process(words, env, &scratch);
        let starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        #[cfg(unix)]
        let mut guarded = super::guard::Guarded::announce(&scratch);
        let mut child = process.spawn().map_err(|e| cannot_start(words, &e))?;
        drop(starting);
        #[cfg(unix)]
        guarded.started(child.id() as i32);
        let output = Output::of(&mut child);
        Ok(Running {
            child,
            output,
            tail: VecDeque::new(),
            over: false,
            scratch,
            #[cfg(unix)]
            _guarded: guarded,
        })
    }

    /// Logs the program's output until its own process ends.
    fn follow(&mut self, ctx: &Context) -> Result<std::process::ExitStatus> {
        // A program that closed its output is mostly about to end: poll soon, then with growing delays.
        let mut pause = Duration::from_micros(20);
        loop {
            let heard = self.output.next(Duration::from_millis(50))?;
            let ended = heard == Heard::End;
            self.say(heard);
            // Its output may be closed before it ends, and be held open by others long after.
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(e) => return Err(Error::input(format!("waiting for a command: {e}"))),
            }
            if ctx.monitor.cancelled() {
                self.stop();
                return Err(Error::cancelled());
            }
            if ended {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
            }
        }
    }

    fn say(&mut self, heard: Heard) {
        let Heard::Lines(lines) = heard else { return };
        for line in lines {
            tracing::info!("{line}");
            let short = line.len() <= SHOWN_CHARS;
            self.tail.push_back(if short { line } else { shortened(&line, SHOWN_CHARS).into_owned() });
            if self.tail.len() > SHOWN {
                self.tail.pop_front();
            }
        }
    }

    /// Reads what is available, without waiting for processes that hold the output open.
    fn drain(&mut self) {
        // Bounded, since some programs never stop printing.
        for _ in 0..64 {
            match self.output.next(Duration::ZERO) {
                Ok(heard @ Heard::Lines(_)) => self.say(heard),
                _ => return,
            }
        }
    }

    fn end_what_is_left(&mut self) {
        let left = self.end_left_behind();
        self.drain();
        let rest = self.output.rest();
        self.say(Heard::Lines(rest));
        if !left.is_empty() {
            let what = left.join(", ");
            tracing::warn!(
                "the command ended and left running: {what}; ended too, before the outputs are read"
            );
        }
    }

    #[cfg(unix)]
    fn end_left_behind(&mut self) -> Vec<String> {
        let (group, scratch) = (self.child.id() as i32, self.scratch.clone());
        let left = super::group::LeftBehind { group, scratch: &scratch }.end(|| self.drain());
        self.over = true;
        left
    }

    #[cfg(not(unix))]
    fn end_left_behind(&mut self) -> Vec<String> {
        self.over = true;
        Vec::new()
    }

    /// Sends TERM to the command, then KILL.
    fn stop(&mut self) {
        #[cfg(unix)]
        {
            use super::group::{LeftBehind, Signal};
            let (group, scratch) = (self.child.id() as i32, self.scratch.clone());
            let all = LeftBehind { group, scratch: &scratch };
            all.signal(Signal::SIGTERM);
            for _ in 0..200 {
                if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                    break;
                }
                self.drain();
                std::thread::sleep(Duration::from_millis(10));
            }
            all.signal(Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.end_left_behind();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.stop();
        }
    }
}

fn process(words: &[String], env: &Environment, scratch: &Path) -> Process {
    let mut process = Process::new(program(&words[0], env));
    // Its argv[0] is the name in the pipeline, however it was found.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut process, &words[0]);
    process
        .args(&words[1..])
        .env_clear()
        .envs(ENVIRONMENT)
        .env("HOME", scratch)
        .env("TMPDIR", scratch)
        .envs(env)
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that stopping it stops what it started.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut process, 0);
    process
}

fn cannot_start(words: &[String], error: &std::io::Error) -> Error {
    let name = visible(&words[0]).into_owned();
    if error.kind() == std::io::ErrorKind::ArgumentListTooLong {
        let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
        let most = words.iter().map(String::len).max().unwrap_or(0);
        return Error::input(format!(
            "cannot start `{name}`: its arguments are too long: {bytes} bytes, the longest of {most}"
        ))
        .help("hand them over in a file: make it an input");
    }
    Error::input(format!("cannot start `{name}`: {error}"))
        .help("give an absolute path, or set PATH under `env:`; the environment is cleared")
}

/// The program's path, looked up in the PATH that it will have. With a bare name and a PATH, the standard
/// library forks this whole process for the lookup; a path is started with `posix_spawn`.
#[cfg(unix)]
fn program(name: &str, env: &Environment) -> PathBuf {
    let path = env.get("PATH").map_or(ENVIRONMENT[0].1, String::as_str);
    let on_path = || {
        // Relative folders are left to the system.
        let folders = path.split(':').take_while(|folder| folder.starts_with('/'));
        folders.map(|folder| Path::new(folder).join(name)).find(|file| fs::is_executable(file))
    };
    let bare = !name.is_empty() && !name.contains('/');
    bare.then(on_path).flatten().unwrap_or_else(|| name.into())
}

#[cfg(not(unix))]
fn program(name: &str, _: &Environment) -> PathBuf {
    name.into()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_its_path_says() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let of = |path: String| Environment::from([("PATH".into(), path)]);
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        for folder in [&first, &second] {
            fs::write(&folder.join("tool"), b"#!/bin/sh\n").unwrap();
        }
        let env = of(format!("{}:{}", first.display(), second.display()));
        assert_eq!(program("tool", &env), Path::new("tool"), "nobody may run either");
        let may_run = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(second.join("tool"), may_run).unwrap();
        assert_eq!(program("tool", &env), second.join("tool"));
        assert_eq!(program("./tool", &env), Path::new("./tool"));
        assert_eq!(program("tool", &of(format!(".:{}", second.display()))), Path::new("tool"));
    }
}
