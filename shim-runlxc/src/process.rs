//! A process by pid and start time, so that a number used again is not mistaken for it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// 52 numbers of at most 20 digits, and a name.
const STAT_BYTES_MAX: usize = 2048;

/// One process, for as long as the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Host pid.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

/// What is left of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs, sleeps or is stopped.
    Alive,
    /// It has ended and nobody has waited for it yet.
    Zombie,
    /// It is gone, or its pid belongs to another.
    Gone,
}

impl ProcessId {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when there is none.
    pub fn of(pid: i32) -> Result<Self> {
        match read_stat(pid)? {
            Some(stat) => Ok(Self {
                pid,
                start_time: stat.start_time,
            }),
            None => Err(Error::NotRunning),
        }
    }

    /// Whether it still lives.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn liveness(self) -> Result<Liveness> {
        Ok(match read_stat(self.pid)? {
            Some(stat) if stat.start_time == self.start_time => {
                if ENDED.contains(&stat.state) {
                    Liveness::Zombie
                } else {
                    Liveness::Alive
                }
            }
            _ => Liveness::Gone,
        })
    }

    /// Sends a signal by number (real-time ones too; 0 only asks).
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it has ended.
    pub fn signal(self, signal: i32) -> Result<()> {
        self.hold()?.signal(signal)
    }

    /// A pidfd of it.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it has ended; ENOSYS before Linux 5.3.
    pub(crate) fn pidfd(self) -> Result<OwnedFd> {
        let pidfd = sys::process::pidfd_open(self.as_pid());
        // After the opening: the number may have been another's by then.
        if self.liveness()? != Liveness::Alive {
            return Err(Error::NotRunning);
        }
        pidfd.map_err(Error::io(format!("open a pidfd of pid {}", self.pid)))
    }

    /// Takes hold of it, so that it is this process that gets a signal, and not whoever gets its
    /// number meanwhile.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it has ended.
    fn hold(self) -> Result<Held> {
        // Before the look: when the process is alive then, the number was its own all the time.
        let pidfd = sys::process::pidfd_open(self.as_pid()).ok();
        match self.liveness()? {
            Liveness::Alive => Ok(Held { id: self, pidfd }),
            Liveness::Zombie | Liveness::Gone => Err(Error::NotRunning),
        }
    }

    /// Kills it if it lives; a process that is gone is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(self) -> Result<()> {
        match self.signal(Signal::SIGKILL as i32) {
            Ok(()) | Err(Error::NotRunning) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// As nix has it.
    #[must_use]
    pub fn as_pid(self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

/// A process that was alive when it was looked at.
struct Held {
    id: ProcessId,
    /// None before Linux 5.3: then its number stands for it.
    pidfd: Option<OwnedFd>,
}

impl Held {
    fn signal(&self, signal: i32) -> Result<()> {
        let sent = match &self.pidfd {
            Some(pidfd) => sys::process::pidfd_send_signal(pidfd.as_fd(), signal),
            None => sys::process::kill_number(self.id.as_pid(), signal),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => Err(Error::NotRunning),
            Err(e) => Err(Error::io(format!("signal {signal} to pid {}", self.id.pid))(e)),
        }
    }
}

/// The process whose child it is; none when there is no such process, or it has ended.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn parent_of(pid: i32) -> Result<Option<i32>> {
    let stat = read_stat(pid)?.filter(|stat| !ENDED.contains(&stat.state));
    Ok(stat.map(|stat| stat.parent))
}

/// Every process of our pid namespace at this moment.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn all() -> Result<Vec<i32>> {
    numbers(Path::new("/proc"))
}

/// The names in a directory that are numbers.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn numbers(dir: &Path) -> Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::on("read", dir))? {
        let name = entry.map_err(Error::on("read", dir))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(numbers)
}

/// The processes whose parent that one is.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn children_of(parent: i32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for pid in all()? {
        if parent_of(pid)? == Some(parent) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// States of a process that has ended (proc(5)).
const ENDED: [u8; 3] = [b'Z', b'X', b'x'];

struct Stat {
    state: u8,
    parent: i32,
    start_time: u64,
}

/// None when there is no such process.
fn read_stat(pid: i32) -> Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    // One read, not as many as it takes to find that a file of size 0 has 300 bytes.
    let mut text = [0; STAT_BYTES_MAX];
    let read = File::open(&path).and_then(|mut file| file.read(&mut text));
    match read {
        Ok(count) => match parse_stat(&text[..count]) {
            Some(stat) => Ok(Some(stat)),
            None => Err(Error::Journal {
                path: path.into(),
                why: "not in the form of proc(5)".into(),
            }),
        },
        // ESRCH: it ended between open and read.
        Err(e)
            if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(Errno::ESRCH as i32) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error::io(format!("read {path}"))(e)),
    }
}

/// proc(5): the second field is a name in parentheses that may hold anything.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end_of_name = text.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(text.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        start_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_name() {
        let line = b"42 (a) Z (b)) S 1 42 42 0 -1 4194560 91 0 0 0 1 2 3 4 20 0 1 0 987654 1 2 3\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            (stat.state, stat.parent, stat.start_time),
            (b'S', 1, 987_654)
        );
        assert!(parse_stat(b"42 (a) S 1").is_none());
        assert!(parse_stat(b"").is_none());
    }

    #[test]
    fn we_are_alive_and_another_start_time_is_not_us() {
        let own = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(own.liveness().unwrap(), Liveness::Alive);
        let other = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert_eq!(other.liveness().unwrap(), Liveness::Gone);
        assert!(matches!(other.signal(0), Err(Error::NotRunning)));
        other.kill().unwrap();
        own.pidfd().unwrap();
        assert!(matches!(other.pidfd(), Err(Error::NotRunning)));
    }

    /// A new process of this number, in a pid namespace of the test's own.
    fn spawn_as(pid: i32) -> sys::Child {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let child = sys::Spawn::new("/bin/sleep".as_ref()).args(["60"]);
        let child = child.spawn().unwrap();
        assert_eq!(child.pid().as_raw(), pid);
        child
    }

    #[test]
    fn a_signal_does_not_reach_who_has_the_number_by_then() {
        let name = "process::tests::a_signal_does_not_reach_who_has_the_number_by_then";
        if std::process::id() != 1 {
            return assert!(in_pid_namespace(name));
        }
        const NUMBER: i32 = 4242;
        let mut first = spawn_as(NUMBER);
        let held = ProcessId::of(NUMBER).unwrap().hold().unwrap();
        first.kill(Signal::SIGKILL).unwrap();
        first.wait().unwrap();
        let mut second = spawn_as(NUMBER);
        assert!(matches!(
            held.signal(Signal::SIGKILL as i32),
            Err(Error::NotRunning)
        ));
        assert_eq!(second.try_wait().unwrap(), None);
        let second_id = ProcessId::of(NUMBER).unwrap();
        second_id.signal(Signal::SIGTERM as i32).unwrap();
        assert_eq!(second.wait().unwrap().code(), 128 + Signal::SIGTERM as i32);
    }

    /// Runs the test of this name once more, as pid 1.
    fn in_pid_namespace(name: &str) -> bool {
        let test = std::env::current_exe().unwrap();
        let mut unshare = sys::Spawn::new("/usr/bin/unshare".as_ref())
            .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
            .args([test.as_os_str(), name.as_ref(), "--exact".as_ref()])
            .spawn()
            .unwrap();
        unshare.wait().unwrap().code() == 0
    }
}
