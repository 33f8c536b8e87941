//! The output of a program: lines of stdout and stderr, cut where they are too long, without terminal
//! escape sequences.

use std::io::Read;
use std::process::Child;
use std::time::Duration;

use crate::base::text::visible;
use crate::base::{Error, Result};

/// A longer line is cut into pieces of so many bytes, so that a program that never ends its line takes
/// no more memory than one that does.
const LINE: usize = 1 << 16;

#[derive(Debug, PartialEq)]
pub enum Heard {
    /// Something was read; not always a whole line.
    Lines(Vec<String>),
    /// Nothing before the timeout.
    Nothing,
    /// Both streams are closed.
    End,
}

/// A line that is not ended yet.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// The last line was ended by a carriage return, to which a line break may belong.
    returned: bool,
}

impl Line {
    /// Adds bytes, and to `lines` those that are complete. A carriage return, with which progress bars go
    /// back to the line's beginning, ends a line too.
    fn add(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        for part in bytes.split_inclusive(|b| matches!(b, b'\n' | b'\r')) {
            if std::mem::take(&mut self.returned) && part == b"\n" {
                continue;
            }
            self.bytes.extend_from_slice(part);
            match part.last() {
                Some(b'\n') => self.end(lines),
                Some(b'\r') if self.bytes.len() == 1 => self.bytes.clear(),
                Some(b'\r') => {
                    self.end(lines);
                    self.returned = true;
                }
                _ if self.bytes.len() >= LINE => self.end(lines),
                _ => {}
            }
        }
    }

    fn end(&mut self, lines: &mut Vec<String>) {
        let text = String::from_utf8_lossy(&self.bytes);
        lines.push(visible(text.trim_end()).into_owned());
        self.bytes.clear();
    }

    fn finish(&mut self, lines: &mut Vec<String>) {
        if !self.bytes.is_empty() {
            self.end(lines);
        }
    }
}

/// Waits for both streams with `poll` on the stage's own thread: two further threads took as long as a
/// short program runs.
#[cfg(unix)]
pub struct Output(Vec<Pipe>);

#[cfg(unix)]
struct Pipe {
    file: std::fs::File,
    line: Line,
}

#[cfg(unix)]
impl Output {
    pub fn of(child: &mut Child) -> Self {
        use std::os::fd::OwnedFd;
        let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let pipe = |fd: OwnedFd| Pipe { file: fd.into(), line: Line::default() };
        Output(pipes.into_iter().flatten().map(pipe).collect())
    }

    /// # Errors
    /// When the system cannot wait.
    pub fn next(&mut self, patience: Duration) -> Result<Heard> {
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

    /// Flushes lines without an end.
    pub fn rest(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        self.0.iter_mut().for_each(|pipe| pipe.line.finish(&mut lines));
        lines
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
        self.line.add(&buffer[..n], lines);
        if n == 0 {
            self.line.finish(lines);
        }
        n > 0
    }
}

/// Without `poll`, each pipe has a thread.
#[cfg(not(unix))]
pub struct Output(std::sync::mpsc::Receiver<Vec<String>>);

#[cfg(not(unix))]
impl Output {
    pub fn of(child: &mut Child) -> Self {
        // A bounded channel: the program waits for the reader.
        let (sender, lines) = std::sync::mpsc::sync_channel(8);
        child.stdout.take().map(|out| reader(out, sender.clone()));
        child.stderr.take().map(|err| reader(err, sender));
        Output(lines)
    }

    /// # Errors
    /// None here.
    pub fn next(&mut self, patience: Duration) -> Result<Heard> {
        use std::sync::mpsc::RecvTimeoutError;
        Ok(match self.0.recv_timeout(patience) {
            Ok(lines) => Heard::Lines(lines),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        })
    }

    /// Nothing: the threads keep it.
    pub fn rest(&mut self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(not(unix))]
fn reader(mut stream: impl Read + Send + 'static, sender: std::sync::mpsc::SyncSender<Vec<String>>) {
    std::thread::spawn(move || {
        let (mut line, mut buffer) = (Line::default(), [0; 1 << 13]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let mut lines = Vec::new();
            line.add(&buffer[..n], &mut lines);
            if sender.send(lines).is_err() {
                return;
            }
        }
        let mut lines = Vec::new();
        line.finish(&mut lines);
        let _ = sender.send(lines);
    });
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// All that a program says; lines of one stream are in their order.
    fn said(script: &str) -> Vec<String> {
        let mut process = Command::new("sh");
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
        assert!(child.wait().unwrap().success());
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
    fn a_line_without_end_is_cut_and_nothing_of_it_is_lost() {
        let lines = said("head -c 200000 /dev/zero | tr '\\0' x");
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() < LINE + (1 << 13)));
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), 200_000);
    }

    #[test]
    fn progress_bars_and_escape_sequences_are_lines_of_text() {
        let lines = said(r"printf '10%%\r20%%\r\nred: \033[31mx\r\n\r\nend'");
        assert_eq!(lines, ["10%", "20%", "red: \\x1b[31mx", "", "end"]);
    }

    #[test]
    fn silence_is_not_the_end() {
        let mut process = Command::new("sleep");
        let mut child = process.arg("10").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = Output::of(&mut child);
        assert_eq!(output.next(Duration::from_millis(1)).unwrap(), Heard::Nothing);
        child.kill().unwrap();
        child.wait().unwrap();
        while output.next(Duration::from_secs(10)).unwrap() != Heard::End {}
    }
}
