//! Ends commands when this process is killed: a second process, the guard, sees its standard input close
//! and ends what still runs.
//!
//! The guard is this program again, started with [`ARGUMENT`] before the first command of a run. Every
//! command is announced to it before and after it starts, so that it can find a command at any moment: by
//! its process group, or by the scratch folder in its environment.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::group::{self, Signal};

/// The argument that `main` recognizes; no subcommand begins like this.
const ARGUMENT: &str = "__end-commands";

/// How long the guard leaves commands to end by themselves.
const PATIENCE: Duration = Duration::from_millis(500);

/// The interval of its checks.
const PAUSE: Duration = Duration::from_millis(20);

/// The running commands that were announced to the guard.
#[derive(Default)]
struct Running {
    scratches: BTreeSet<PathBuf>,
    groups: BTreeSet<i32>,
    guard: Option<Child>,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

fn running() -> MutexGuard<'static, Option<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command announced to the guard, until it is dropped.
pub struct Guarded {
    scratch: PathBuf,
    group: Option<i32>,
}

impl Guarded {
    /// Announces a command that is about to start in `scratch`.
    pub fn announce(scratch: &Path) -> Self {
        let mut running = running();
        let running = running.get_or_insert_with(Running::start);
        running.scratches.insert(scratch.to_path_buf());
        running.tell(&Message::Scratch(scratch));
        Guarded { scratch: scratch.to_path_buf(), group: None }
    }

    /// It started, as the leader of a process group.
    pub fn started(&mut self, group: i32) {
        self.group = Some(group);
        if let Some(running) = running().as_mut() {
            running.groups.insert(group);
            running.tell(&Message::Group(group));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut running = running();
        let Some(running) = running.as_mut() else { return };
        if let Some(group) = self.group {
            running.groups.remove(&group);
            running.tell(&Message::GroupOver(group));
        }
        running.scratches.remove(&self.scratch);
        running.tell(&Message::ScratchOver(&self.scratch));
    }
}

/// Ends everything that commands of this process still run, at once.
pub fn end_all() {
    let (groups, scratches) = match running().as_ref() {
        Some(running) => (running.groups.clone(), running.scratches.clone()),
        None => return,
    };
    signal_all(&groups, &scratches, Signal::SIGKILL);
}

/// Whether `id` is a process that this one started itself: a command, or the guard.
pub fn is_known(id: i32) -> bool {
    let is_guard = |guard: &Child| guard.id() as i32 == id;
    running().as_ref().is_some_and(|r| r.groups.contains(&id) || r.guard.as_ref().is_some_and(is_guard))
}

impl Running {
    fn start() -> Self {
        group::adopt_orphans();
        let guard = start_guard().inspect_err(|e| {
            tracing::warn!("commands will not be ended should this process be killed: {e}");
        });
        Running { guard: guard.ok(), ..Running::default() }
    }

    fn tell(&mut self, message: &Message) {
        // Without a guard, commands are still ended by this process.
        let told = self.guard.as_mut().and_then(|guard| guard.stdin.as_mut());
        if told.is_some_and(|pipe| pipe.write_all(&message.bytes()).is_err()) {
            let ended = self.guard.take();
            drop(ended.map(|mut guard| guard.wait()));
        }
    }
}

fn start_guard() -> std::io::Result<Child> {
    let mut process = Command::new(std::env::current_exe()?);
    // With a process name of its own, so that ending every `tinylm` by name spares it.
    std::os::unix::process::CommandExt::arg0(&mut process, group::GUARD_NAME);
    process.arg(ARGUMENT).env_clear().current_dir("/");
    process.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A signal to the group of this process must not end the guard.
    std::os::unix::process::CommandExt::process_group(&mut process, 0);
    process.spawn()
}

/// Messages to the guard; each ends with a zero byte, which no path contains.
enum Message<'a> {
    Scratch(&'a Path),
    ScratchOver(&'a Path),
    Group(i32),
    GroupOver(i32),
}

impl Message<'_> {
    fn bytes(&self) -> Vec<u8> {
        let path = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        let (letter, mut rest) = match self {
            Message::Scratch(at) => (b's', path(at)),
            Message::ScratchOver(at) => (b'S', path(at)),
            Message::Group(id) => (b'g', id.to_string().into_bytes()),
            Message::GroupOver(id) => (b'G', id.to_string().into_bytes()),
        };
        rest.insert(0, letter);
        rest.push(0);
        rest
    }
}

impl Running {
    /// Parses [`Message::bytes`], in the guard.
    fn hear(&mut self, message: &[u8]) {
        use std::os::unix::ffi::OsStrExt;
        let Some((letter, rest)) = message.split_first() else { return };
        let path = || PathBuf::from(std::ffi::OsStr::from_bytes(rest));
        let group = || std::str::from_utf8(rest).ok().and_then(|id| id.parse::<i32>().ok());
        match letter {
            b's' => drop(self.scratches.insert(path())),
            b'S' => drop(self.scratches.remove(&path())),
            b'g' => drop(group().map(|id| self.groups.insert(id))),
            b'G' => drop(group().map(|id| self.groups.remove(&id))),
            _ => {}
        }
    }
}

/// Whether this process was started to be a guard.
pub fn is_guard() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// The guard: waits for its starter to end, ends what that left running.
pub fn main() -> ExitCode {
    group::become_guard();
    let mut running = Running::default();
    let (mut input, mut buffer, mut message) = (std::io::stdin().lock(), [0; 1 << 16], Vec::new());
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in &buffer[..n] {
            match byte {
                0 => running.hear(&std::mem::take(&mut message)),
                byte => message.push(*byte),
            }
        }
        // Messages wait in the pipe meanwhile: waking up for each would take time from commands.
        std::thread::sleep(PAUSE);
    }
    if !running.scratches.is_empty() {
        let (groups, scratches) = (&running.groups, &running.scratches);
        signal_all(groups, scratches, Signal::SIGTERM);
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE && groups.iter().any(|id| group::is_alive(*id)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        signal_all(groups, scratches, Signal::SIGKILL);
    }
    ExitCode::SUCCESS
}

fn signal_all(groups: &BTreeSet<i32>, scratches: &BTreeSet<PathBuf>, signal: Signal) {
    groups.iter().for_each(|id| group::signal(*id, signal));
    let scratches: Vec<&Path> = scratches.iter().map(PathBuf::as_path).collect();
    group::signal_strays(&scratches, signal);
}
