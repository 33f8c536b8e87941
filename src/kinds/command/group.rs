//! Process groups, and the processes that left theirs: finding, signalling and reaping them.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use nix::sys::signal::Signal;

/// How long processes have to end by themselves once their command has ended: those of `>( … )` in a shell
/// end a moment later.
const GRACE: Duration = Duration::from_millis(200);

/// Between TERM and KILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes this process a child subreaper: orphaned descendants become its children rather than init's, so
/// that they can be found.
pub fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // SAFETY: it only sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    }
}

/// The guard's process name; at most 15 letters.
pub const GUARD_NAME: &str = "command-guard";

/// From now on only KILL ends this process, and it has the guard's process name.
pub fn become_guard() {
    use nix::sys::signal::{SigHandler, signal};
    #[cfg(target_os = "linux")]
    if let Ok(name) = std::ffi::CString::new(GUARD_NAME) {
        // SAFETY: the name ends with a zero byte and lives until the call returns.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        }
    }
    for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(which, SigHandler::SigIgn) };
    }
}

pub fn is_alive(group: i32) -> bool {
    killpg(Pid::from_raw(group), None) != Err(nix::errno::Errno::ESRCH)
}

pub fn signal(group: i32, signal: Signal) {
    let _ = killpg(Pid::from_raw(group), signal);
}

/// Reaps orphans, which else would stay as zombies.
fn reap(which: Pid) {
    while let Ok(status) = waitpid(which, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// Processes that a command left, once its own has ended and was reaped.
pub struct LeftBehind<'a> {
    pub group: i32,
    /// The command's scratch folder, which its processes have in their environment.
    pub scratch: &'a Path,
}

impl LeftBehind<'_> {
    /// Ends all of them; gives those that had to be ended, as `name (pid)`. `meanwhile` is called while
    /// waiting.
    pub fn end(&self, mut meanwhile: impl FnMut()) -> Vec<String> {
        let mut wait = |patience: Duration| {
            let begun = Instant::now();
            while self.is_there() && begun.elapsed() < patience {
                meanwhile();
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        if !self.is_there() {
            return Vec::new();
        }
        wait(GRACE);
        let ended = self.all();
        let names = ended.iter().map(|id| format!("{} (process {id})", proc::name(*id))).collect();
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if self.is_there() {
                self.signal(signal);
                wait(PATIENCE);
            }
        }
        // Orphans, which nothing else reaps; for another process' child `waitpid` gives an error.
        ended.iter().for_each(|id| reap(Pid::from_raw(*id)));
        names
    }

    /// At once, without logging.
    pub fn signal(&self, with: Signal) {
        signal(self.group, with);
        signal_strays(&[self.scratch], with);
    }

    fn is_there(&self) -> bool {
        reap(Pid::from_raw(-self.group));
        is_alive(self.group) || !self.strays().is_empty()
    }

    /// Processes that left the group. As orphans they are descendants of this process.
    fn strays(&self) -> Vec<i32> {
        let unknown = |id: &i32| !super::guard::is_known(*id) && !proc::is_zombie(*id);
        match proc::children().iter().any(unknown) {
            true => proc::marked(&[self.scratch]),
            false => Vec::new(),
        }
    }

    fn all(&self) -> Vec<i32> {
        let in_group = |id: &i32| proc::group_of(*id) == Some(self.group) && !proc::is_zombie(*id);
        let mut all: Vec<i32> = proc::all().into_iter().filter(in_group).collect();
        all.extend(self.strays());
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Signals every process that has one of `scratches` in its environment or works in it.
pub fn signal_strays(scratches: &[&Path], signal: Signal) {
    for id in proc::marked(scratches) {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

/// Processes in `/proc`; none where there is no `/proc`.
mod proc {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    pub fn all() -> Vec<i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// The children of this process, adopted ones among them.
    pub fn children() -> Vec<i32> {
        let own = std::process::id();
        let listed = fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
        listed.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
    }

    /// State and process group.
    fn stat(id: i32) -> Option<(String, i32)> {
        let text = fs::read(format!("/proc/{id}/stat")).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // The name before it may hold spaces and parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.to_string();
        Some((state, fields.nth(1)?.parse().ok()?))
    }

    pub fn is_zombie(id: i32) -> bool {
        stat(id).is_none_or(|(state, _)| state == "Z" || state == "X")
    }

    pub fn group_of(id: i32) -> Option<i32> {
        stat(id).map(|(_, group)| group)
    }

    pub fn name(id: i32) -> String {
        let name = fs::read(format!("/proc/{id}/comm")).unwrap_or_default();
        crate::base::text::visible(String::from_utf8_lossy(&name).trim_end()).into_owned()
    }

    /// Those with one of `paths` in their environment, or that work in one.
    pub fn marked(paths: &[&Path]) -> Vec<i32> {
        let own = std::process::id() as i32;
        // The system names folders without links.
        let folders: Vec<_> = paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
        let is_marked = |id: &i32| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            let folder = fs::read_link(format!("/proc/{id}/cwd")).unwrap_or_default();
            let holds = |name: &[u8]| environment.windows(name.len().max(1)).any(|part| part == name);
            folders.iter().any(|path| folder.starts_with(path))
                || paths.iter().any(|path| holds(path.as_os_str().as_bytes()))
        };
        all().into_iter().filter(|id| *id != own && is_marked(id)).collect()
    }
}
