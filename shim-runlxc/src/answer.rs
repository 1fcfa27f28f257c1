//! A program that is run for what it says, within a limit of time and bytes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::read;
use sys::{ExitStatus, Spawn};

use crate::{Error, Result, wait};

/// Longest answer that is kept; what comes after it is read and dropped.
const BYTES_MAX: usize = 16 << 20;

/// What it said, and how it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Standard output and standard error, in the order in which they came.
    pub(crate) text: String,
    /// Its end.
    pub(crate) status: ExitStatus,
}

/// Runs it to its end.
///
/// # Errors
/// When it cannot be started; [`Error::Timeout`] after `limit`, and it is killed.
pub(crate) fn ask(spawn: Spawn<'_>, what: &'static str, limit: Duration) -> Result<Answer> {
    let asked = Asked { what, limit };
    let deadline = Instant::now() + limit;
    let (ours, theirs) = sys::pipe_cloexec().map_err(asked.failed())?;
    let spawn = spawn.stdout(theirs.as_fd()).stderr(theirs.as_fd());
    let mut child = spawn.spawn().map_err(asked.failed())?;
    drop(theirs);
    let mut said = Vec::new();
    asked.read(&ours, deadline, |more| {
        let room = BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(&more[..more.len().min(room)]);
        Enough::No
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = child.wait_timeout(left).map_err(asked.failed())?;
    Ok(Answer {
        text: String::from_utf8_lossy(&said).into_owned(),
        status: ended.ok_or(asked.timeout())?,
    })
}

/// Runs it for the first line of its standard output, at most so many bytes of it, and ends it
/// then: neither the length of the answer is left to the program, nor what else it starts.
///
/// # Errors
/// As [`ask`].
pub(crate) fn first_line(
    spawn: Spawn<'_>,
    what: &'static str,
    limit: Duration,
    bytes_max: usize,
) -> Result<String> {
    let asked = Asked { what, limit };
    let deadline = Instant::now() + limit;
    let (ours, theirs) = sys::pipe_cloexec().map_err(asked.failed())?;
    let child = spawn.stdout(theirs.as_fd()).spawn();
    let child = child.map_err(asked.failed())?;
    drop(theirs);
    let mut said = Vec::new();
    asked.read(&ours, deadline, |more| {
        let room = bytes_max.saturating_sub(said.len());
        said.extend_from_slice(&more[..more.len().min(room)]);
        if said.contains(&b'\n') || said.len() == bytes_max {
            Enough::Yes
        } else {
            Enough::No
        }
    })?;
    // It has said all that counts: a drop ends it.
    drop(child);
    let said = String::from_utf8_lossy(&said);
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// What is asked, for errors.
struct Asked {
    what: &'static str,
    limit: Duration,
}

/// Whether the rest of an answer is waited for.
#[derive(PartialEq, Eq)]
enum Enough {
    Yes,
    No,
}

impl Asked {
    fn failed(&self) -> impl FnOnce(std::io::Error) -> Error + use<> {
        Error::io(format!("run {}", self.what))
    }

    fn timeout(&self) -> Error {
        Error::Timeout {
            what: self.what,
            limit: self.limit,
        }
    }

    /// Reads until there is enough or nobody has the other end.
    fn read(
        &self,
        pipe: &OwnedFd,
        deadline: Instant,
        mut take: impl FnMut(&[u8]) -> Enough,
    ) -> Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timeout());
            }
            if !wait::readable(pipe.as_fd(), left)? {
                continue;
            }
            match read(pipe, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    if take(&buffer[..count]) == Enough::Yes {
                        return Ok(());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.failed()(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Answer> {
        let spawn = Spawn::new("/bin/sh".as_ref()).args(["-c", script]);
        ask(spawn, "sh", limit)
    }

    #[test]
    fn both_streams_and_the_end_are_told() {
        let answer = shell("echo out; echo err >&2; exit 3", Duration::from_secs(20)).unwrap();
        assert_eq!(answer.text, "out\nerr\n");
        assert_eq!(answer.status, ExitStatus::Exited(3));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let started = Instant::now();
        let error = shell("exec sleep 1000", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(500));
    }
}
