//! How a hook in a container goes: its end, or that of its time, and what it says until then. Its
//! output is read to the end and kept in part, so that no hook hangs or fills the host by talking.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::read;
use sys::ExitStatus;

use crate::joined::Joined;
use crate::wait::{self, Came};
use crate::{Error, Result};

/// How much of the end of its output is kept.
const KEPT_BYTES_MAX: usize = 4096;

/// How many lines of that go to the log.
const LOGGED_LINES_MAX: usize = 40;

/// How much of its last line its failure repeats, in characters.
const LAST_LINE_MAX: usize = 200;

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// So.
    Exit(ExitStatus),
    /// In time, but its status is not ours to know.
    Unknown,
    /// It has not.
    Timeout,
}

/// The output of a hook, both streams as one.
#[derive(Debug, Default)]
pub(crate) struct Said {
    kept: Vec<u8>,
    dropped_bytes: u64,
}

/// Reads what comes out of the pipe until `child` has ended, or for `limit`. Without a child the end
/// is that of the pipe.
///
/// # Errors
/// When the kernel refuses to wait or to read.
pub(crate) fn follow(
    pipe: &OwnedFd,
    mut child: Option<&mut Joined>,
    limit: Duration,
) -> Result<(End, Said)> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|errno| Error::io("make a pipe non-blocking")(errno.into()))?;
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut said = Said::default();
    while !left().is_zero() {
        let came = match child.as_deref_mut() {
            Some(child) => wait::word_or_end(pipe.as_fd(), child, left())?,
            None if wait::readable(pipe.as_fd(), left())? => Came::Word,
            None => Came::Nothing,
        };
        let source = said.fill(pipe)?;
        match (came, child.as_deref_mut()) {
            (Came::End(status), _) => return Ok((End::Exit(status), said)),
            (_, None) if source == Source::Ended => return Ok((End::Unknown, said)),
            (_, Some(child)) => {
                // Who was left behind may go on talking, and the hook itself may have stopped.
                let patience = match source {
                    Source::Ended => left(),
                    Source::Open => Duration::ZERO,
                };
                let ended = child.wait_timeout(patience);
                if let Some(status) = ended.map_err(Error::io("wait for a hook"))? {
                    said.fill(pipe)?;
                    return Ok((End::Exit(status), said));
                }
            }
            _ => {}
        }
    }
    Ok((End::Timeout, said))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Open,
    Ended,
}

impl Said {
    /// Reads what is there, and not for ever where somebody goes on.
    fn fill(&mut self, pipe: &OwnedFd) -> Result<Source> {
        let mut buffer = [0; 1 << 14];
        for _ in 0..64 {
            match read(pipe, &mut buffer) {
                Ok(0) => return Ok(Source::Ended),
                Ok(count) => self.push(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::io("read what a hook says")(errno.into())),
            }
        }
        Ok(Source::Open)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let excess = self.kept.len().saturating_sub(KEPT_BYTES_MAX);
        self.kept.drain(..excess);
        self.dropped_bytes += excess as u64;
    }

    /// Its last lines, for the log.
    pub(crate) fn log(&self, container: &str, hook: &str) {
        let lines: Vec<_> = self.lines().collect();
        let skipped = lines.len().saturating_sub(LOGGED_LINES_MAX);
        if self.dropped_bytes > 0 || skipped > 0 {
            let bytes = self.dropped_bytes;
            tracing::info!(
                container,
                hook,
                bytes,
                lines = skipped,
                "not all that it said follows"
            );
        }
        for line in &lines[skipped..] {
            tracing::info!(container, hook, line, "it says");
        }
    }

    /// The end of a message about its failure: its last line, quoted, or nothing.
    pub(crate) fn last_words(&self) -> String {
        let Some(line) = self.lines().last() else {
            return String::new();
        };
        let count = line.chars().count();
        let line: String = line
            .chars()
            .skip(count.saturating_sub(LAST_LINE_MAX))
            .collect();
        format!(", it said {line:?}")
    }

    fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.kept
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .map(|line| String::from_utf8_lossy(line).trim_end().to_owned())
            .filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use sys::Spawn;

    use super::*;

    fn run(script: &str, limit: Duration) -> (End, Said) {
        let (ours, theirs) = sys::pipe_cloexec().unwrap();
        let spawn = Spawn::new("/bin/sh".as_ref()).args(["-c", script]);
        let spawn = spawn
            .stdout(theirs.as_fd())
            .stderr(theirs.as_fd())
            .new_session();
        let mut child = Joined::Ours(spawn.spawn().unwrap());
        drop(theirs);
        let followed = follow(&ours, Some(&mut child), limit).unwrap();
        let group = nix::sys::signal::killpg(child.pid(), sys::Signal::SIGKILL);
        assert!(group.is_ok() || group == Err(Errno::ESRCH));
        followed
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_end_is_told_with_the_last_words() {
        let (end, said) = run("echo one; printf 'two\\r\\n\\n' >&2; exit 3", LONG);
        assert_eq!(end, End::Exit(ExitStatus::Exited(3)));
        assert_eq!(said.last_words(), ", it said \"two\"");
        let (end, said) = run("exec >&- 2>&-; exit 0", LONG);
        assert_eq!(end, End::Exit(ExitStatus::Exited(0)));
        assert_eq!(said.last_words(), "");
    }

    #[test]
    fn a_flood_is_read_and_its_end_kept() {
        let (end, said) = run("yes | head -c 30000000; echo last", LONG);
        assert_eq!(end, End::Exit(ExitStatus::Exited(0)));
        assert_eq!(said.last_words(), ", it said \"last\"");
        assert_eq!(said.dropped_bytes + said.kept.len() as u64, 30_000_005);
    }

    #[test]
    fn nobody_is_waited_for_beyond_the_limit_whoever_talks() {
        let limit = Duration::from_millis(300);
        for script in ["sleep 1000", "exec yes", "exec >&- 2>&-; sleep 1000"] {
            assert_eq!(run(script, limit).0, End::Timeout, "{script}");
        }
        let (end, _) = run("yes & exit 4", LONG);
        assert_eq!(end, End::Exit(ExitStatus::Exited(4)), "and yes goes on");
    }

    #[test]
    fn without_a_child_the_end_is_that_of_the_pipe() {
        let (ours, theirs) = sys::pipe_cloexec().unwrap();
        nix::unistd::write(&theirs, b"a\xffb").unwrap();
        drop(theirs);
        let (end, said) = follow(&ours, None, LONG).unwrap();
        assert_eq!(end, End::Unknown);
        assert_eq!(said.last_words(), ", it said \"a\u{fffd}b\"");
        let (ours, _theirs) = sys::pipe_cloexec().unwrap();
        let followed = follow(&ours, None, Duration::from_millis(1)).unwrap();
        assert_eq!(followed.0, End::Timeout);
    }

    #[test]
    fn last_words_are_one_short_line() {
        let mut said = Said::default();
        said.push(format!("x\u{1b}[2J{}\n", "y".repeat(1000)).as_bytes());
        assert_eq!(
            said.last_words(),
            format!(", it said \"{}\"", "y".repeat(200))
        );
        said.push(b"\x1b\"\n");
        assert_eq!(said.last_words(), ", it said \"\\u{1b}\\\"\"");
    }
}
