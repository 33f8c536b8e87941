//! Starts a command, listens to it, and sees to it that nothing of it runs afterwards.

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

/// What a program finds when nothing else is declared. HOME and TMPDIR are the scratch folder.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
    ("TZ", "UTC"),
];

/// Lines of output that an error shows, and how much of each.
const SHOWN: usize = 20;
const SHOWN_CHARS: usize = 500;

/// Held to read while a program is being copied, and to write while a process starts: for a moment it has
/// all files open that this one has, and what is open to be written to can't be run ("text file busy").
static STARTING: RwLock<()> = RwLock::new(());

/// [`fs::copy_plain`] of a program that a command may run.
///
/// # Errors
/// As [`fs::copy_plain`].
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let _nothing_starts = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    fs::copy_plain(from, to, true)
}

/// Runs a command in the stage's scratch folder until nothing of it runs any more.
///
/// # Errors
/// When it cannot be started, fails, or is to be stopped.
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

/// A command at work, with all that it started. Dropped before its end, nothing of it runs on.
struct Running {
    child: Child,
    output: Output,
    /// The last lines.
    tail: VecDeque<String>,
    /// Nothing of it can be alive.
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

    /// Logs what the program says until its own process ends.
    fn follow(&mut self, ctx: &Context) -> Result<std::process::ExitStatus> {
        // A program that closed its output is mostly about to end: look again soon, then ever later.
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

    /// What can be heard at once, without waiting for whoever holds the output open.
    fn drain(&mut self) {
        // Some programs never stop talking.
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

    /// Asks the command to end, then ends it.
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
    // Whatever it was found as, it sees the name that the pipeline gave it.
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

/// The program's own path, as the PATH that it will have leads to it. Handed a bare name and a PATH, the
/// standard library copies this whole process to look the name up in; a path is started without a copy.
#[cfg(unix)]
fn program(name: &str, env: &Environment) -> PathBuf {
    let path = env.get("PATH").map_or(ENVIRONMENT[0].1, String::as_str);
    let on_path = || {
        // What a relative folder is relative to is the system's to say.
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
