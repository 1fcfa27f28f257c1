//! Processes we must reap, and who reaps each of them; must not start any.
//!
//! One table for the whole process says for every child whose wait takes its status:
//!
//! ```text
//!            Spawn::spawn, Child::adopt                watch(child)
//!   (none) ---------------------------> Owned(Child) ---------------> Watched
//!                                        |      |                        |
//!                  wait, try_wait, drop  |      | release                | reap
//!                                        v      v                        v
//!                                     (reaped) (none)                 (reaped)
//! ```
//! [`reap`] never waits for an owned child, so a blocking wait cannot lose its status; a zombie
//! in no row of the table is an orphan that the kernel gave to us, and [`reap`] drops it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::{process, raw};

/// How long a dropped child may take to die of SIGKILL before [`reap`] is left to find it.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// Longest pause between two looks at a child where the kernel has no pidfd (before 5.3).
const LOOK_AGAIN_MS_MAX: u64 = 20;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By exit(3) with this code, 0 to 255.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl ExitStatus {
    /// What [`reap`] says of a watched process whose status another process took: as containerd
    /// does for a status nobody knows.
    pub const LOST: Self = Self::Exited(255);

    /// The status as a shell gives it: the code, or 128 and the number of the signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    fn from_wait(status: libc::c_int) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// A process that we reap: dropped, it is killed and reaped, unless it was released or watched.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// The number of its row in the table.
    number: u64,
    /// Set once the status has been taken.
    status: Option<ExitStatus>,
    /// Of an adopted process: pid numbers are reused while it is not our child yet.
    pidfd: Option<OwnedFd>,
    /// What drop does.
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Kills and reaps it.
    Kill,
    /// Takes it out of the table.
    Leave,
    /// Nothing: it is watched.
    Watch,
}

/// Who takes the status of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Owned,
    Watched,
}

/// What the table knows of a child.
#[derive(Debug)]
struct Row {
    /// Tells it from an earlier child of the same pid.
    number: u64,
    role: Role,
    /// Of a watched process that was adopted and has not been seen as our child yet.
    pidfd: Option<OwnedFd>,
}

/// The table of children by pid.
#[derive(Debug)]
pub(crate) struct Table {
    rows: BTreeMap<i32, Row>,
    next_number: u64,
    /// Ends that [`reap`] is to tell though no child of ours has ended.
    announced: Vec<(Pid, ExitStatus)>,
    /// A search for orphans stopped at the zombie of an owned child: go on when that is reaped.
    search_cut_off: bool,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    rows: BTreeMap::new(),
    next_number: 0,
    announced: Vec::new(),
    search_cut_off: false,
});

/// The table; held over a fork, so that nobody sees a child that is not in it.
pub(crate) fn table() -> MutexGuard<'static, Table> {
    // No code panics between two writes that belong together.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// Enters a child as owned.
    pub(crate) fn enter(&mut self, pid: Pid) -> Child {
        let number = self.next_number;
        self.next_number += 1;
        let row = Row {
            number,
            role: Role::Owned,
            pidfd: None,
        };
        self.rows.insert(pid.as_raw(), row);
        Child {
            pid,
            number,
            status: None,
            pidfd: None,
            end: End::Kill,
        }
    }

    /// The row of a child, unless its pid already belongs to a later one.
    fn row_of(&mut self, child: &Child) -> Option<&mut Row> {
        let row = self.rows.get_mut(&child.pid.as_raw())?;
        (row.number == child.number).then_some(row)
    }

    /// Takes out a child whose status has been taken or whom nobody is to wait for.
    fn leave(&mut self, child: &Child) {
        if self.row_of(child).is_some() {
            self.rows.remove(&child.pid.as_raw());
        }
    }

    /// Takes the status of a watched child; none when it still runs.
    fn take_watched(&mut self, pid: i32) -> Option<ExitStatus> {
        let row = self.rows.get_mut(&pid)?;
        if row.role == Role::Owned {
            return None;
        }
        // Asked before waiting: what ends in between is found the next time.
        let exists = exists(Pid::from_raw(pid), row.pidfd.as_ref());
        match wait_for(pid, libc::WNOHANG) {
            Ok(Some(status)) => Some(status),
            Ok(None) => {
                // Ours by now, so the number stays its own until we reap it.
                row.pidfd = None;
                None
            }
            Err(error) => (no_child(&error) && !exists).then_some(ExitStatus::LOST),
        }
    }

    /// Reaps zombies that are in no row.
    fn drop_orphans(&mut self) {
        self.search_cut_off = false;
        while let Some(pid) = first_zombie() {
            if self.rows.contains_key(&pid) {
                // The kernel shows the first zombie only; others may stand behind it.
                self.search_cut_off = true;
                return;
            }
            if !matches!(wait_for(pid, libc::WNOHANG), Ok(Some(_))) {
                return;
            }
        }
    }
}

impl Child {
    /// Takes charge of a process that is our child or is about to be re-parented to us.
    ///
    /// Until then waiting for it just takes longer. If another process reaps it first, waiting
    /// ends with ECHILD. Once it is ours it must have been adopted: an orphan that has ended is
    /// dropped by the next [`reap`].
    #[must_use]
    pub fn adopt(pid: Pid) -> Self {
        let pidfd = process::pidfd_open(pid).ok();
        let mut child = table().enter(pid);
        child.pidfd = pidfd;
        child
    }

    /// Its number in our pid namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// ECHILD when its status is lost: another process reaped it, or SIGCHLD is ignored.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        if self.pidfd.is_none() && self.status.is_none() {
            match wait_for(self.pid.as_raw(), 0) {
                Ok(Some(status)) => return Ok(self.ended(status)),
                Err(error) if !no_child(&error) => return Err(error),
                Ok(None) | Err(_) => {}
            }
        }
        loop {
            if let Some(status) = self.wait_timeout(Duration::from_secs(3600))? {
                return Ok(status);
            }
        }
    }

    /// Waits until it has ended, but not longer than `limit`; none when it still runs.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait_timeout(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now().checked_add(limit);
        let mut pause_ms = 1;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.map_or(Duration::MAX, |at| at.duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            pause_ms = self.pause(left, pause_ms)?;
        }
    }

    /// Waits for the end of the process where the kernel can tell it (5.3), else a little while;
    /// gives how long the next little while is, in milliseconds.
    fn pause(&self, left: Duration, pause_ms: u64) -> io::Result<u64> {
        let opened;
        let pidfd = match &self.pidfd {
            Some(pidfd) => Some(pidfd),
            None => {
                opened = process::pidfd_open(self.pid).ok();
                opened.as_ref()
            }
        };
        if let Some(pidfd) = pidfd
            && !ended_by(pidfd, Duration::ZERO)?
        {
            ended_by(pidfd, left)?;
            return Ok(1);
        }
        // No pidfd; or it has ended and its parent has yet to leave it to us.
        nothing_for(left.min(Duration::from_millis(pause_ms)))?;
        Ok((pause_ms * 2).min(LOOK_AGAIN_MS_MAX))
    }

    /// Takes its status if it has ended; none when it still runs.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.status {
            return Ok(Some(status));
        }
        // Asked before waiting: if it ends in between, it is still ours to find next time.
        let exists = exists(self.pid, self.pidfd.as_ref());
        match wait_for(self.pid.as_raw(), libc::WNOHANG) {
            Ok(Some(status)) => Ok(Some(self.ended(status))),
            Ok(None) => Ok(None),
            Err(error) if no_child(&error) && exists => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// ESRCH when it has ended and was reaped.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        self.kill_number(signal as i32)
    }

    /// Sends a signal by number: real-time ones have no name.
    ///
    /// # Errors
    /// ESRCH when it has ended and was reaped.
    pub fn kill_number(&self, signal: i32) -> io::Result<()> {
        if self.status.is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        send(self.pid, self.pidfd.as_ref(), signal)
    }

    /// Lets it run on; whoever inherits it reaps it.
    pub fn release(mut self) {
        self.end = End::Leave;
    }

    /// Notes that the status has been taken: the pid may belong to another process from now on.
    fn ended(&mut self, status: ExitStatus) -> ExitStatus {
        self.status = Some(status);
        let mut table = table();
        table.leave(self);
        if table.search_cut_off {
            table.drop_orphans();
        }
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.end == End::Kill && self.status.is_none() {
            // It may have ended by itself, and a status that cannot be had is not missed here.
            let _gone = self.kill(Signal::SIGKILL);
            let _lost = self.wait_timeout(DROP_WAIT);
        }
        if self.status.is_none() && self.end != End::Watch {
            table().leave(self);
        }
    }
}

/// Leaves a child to [`reap`], which tells its end unless its status has been taken here already.
///
/// If it has ended already, SIGCHLD is raised again, so that a reaper driven by it looks.
pub fn watch(mut child: Child) -> Pid {
    let pid = child.pid;
    if child.status.is_some() {
        return pid;
    }
    child.end = End::Watch;
    let pidfd = child.pidfd.take();
    let look = pidfd.is_some() || is_zombie(pid);
    if let Some(row) = table().row_of(&child) {
        row.role = Role::Watched;
        row.pidfd = pidfd;
    }
    if look {
        // Raising a signal that is always valid, for ourselves, cannot fail.
        let _sent = process::kill_number(Pid::this(), libc::SIGCHLD);
    }
    pid
}

/// Has [`reap`] tell the end of a process that is none of ours to wait for, such as one in a virtual
/// machine; SIGCHLD is raised, so that a reaper driven by it looks.
///
/// `pid` is what the process is known by: above the kernel's highest number, or that of a process which
/// stands for it and is never [`watch`]ed.
pub fn announce(pid: Pid, status: ExitStatus) {
    table().announced.push((pid, status));
    // Raising a signal that is always valid, for ourselves, cannot fail.
    let _sent = process::kill_number(Pid::this(), libc::SIGCHLD);
}

/// Takes the status of every watched child that has ended, and drops orphans that have: every
/// child counts as one that is not [`Spawn`](crate::Spawn)ed or adopted.
///
/// Never blocks and never touches an owned child. To be called after each SIGCHLD; for an adopted
/// process that was lost to another reaper no signal comes, so also now and then until it is ours.
pub fn reap() -> Vec<(Pid, ExitStatus)> {
    let mut table = table();
    let pids: Vec<_> = table.rows.keys().copied().collect();
    let mut ended = std::mem::take(&mut table.announced);
    for pid in pids {
        if let Some(status) = table.take_watched(pid) {
            table.rows.remove(&pid);
            ended.push((Pid::from_raw(pid), status));
        }
    }
    table.drop_orphans();
    ended
}

/// Whether a process, running or zombie, exists.
fn exists(pid: Pid, pidfd: Option<&OwnedFd>) -> bool {
    match send(pid, pidfd, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(libc::EPERM),
    }
}

fn send(pid: Pid, pidfd: Option<&OwnedFd>, signal: i32) -> io::Result<()> {
    match pidfd {
        Some(pidfd) => signal_by(pidfd, signal),
        None => process::kill_number(pid, signal),
    }
}

fn no_child(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECHILD)
}

/// waitpid(2) for one process, whatever signal it announces its end by; none with WNOHANG and
/// nothing to take.
///
/// Not nix's: that fails, with the status gone, for a process killed by a real-time signal.
fn wait_for(pid: i32, flags: libc::c_int) -> io::Result<Option<ExitStatus>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid int that the kernel fills.
        let result = unsafe { libc::waitpid(pid, &raw mut status, flags | libc::__WALL) };
        match raw::value(result.into()) {
            Ok(0) => return Ok(None),
            Ok(_pid) => return Ok(Some(ExitStatus::from_wait(status))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The pid of a child that is a zombie, which stays one.
fn first_zombie() -> Option<i32> {
    peek(libc::P_ALL, 0)
}

fn is_zombie(pid: Pid) -> bool {
    peek(libc::P_PID, pid.as_raw().unsigned_abs()).is_some()
}

fn peek(which: libc::idtype_t, id: libc::id_t) -> Option<i32> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid siginfo_t that the kernel fills.
    let result = unsafe { libc::waitid(which, id, info.as_mut_ptr(), flags) };
    // SAFETY: all zero bytes, as it was made, are a valid siginfo_t.
    let info = unsafe { info.assume_init() };
    // SAFETY: for a child's end the kernel fills the fields of SIGCHLD; else they are zero.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid != 0).then_some(pid)
}

/// pidfd_send_signal(2), kernel 5.1.
fn signal_by(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_raw_fd();
    // SAFETY: no siginfo is passed; the other arguments are numbers.
    raw::unit(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) })
}

/// Whether the process has ended within that time.
fn ended_by(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout(limit)) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn nothing_for(time: Duration) -> io::Result<()> {
    match poll(&mut [], timeout(time)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Milliseconds, rounded up so that a wait for less than one does not spin.
fn timeout(limit: Duration) -> PollTimeout {
    let millis = limit.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Spawn, pipe_cloexec};

    /// Held by tests that call [`reap`]: it takes the watched children of all of them.
    static REAPER: Mutex<()> = Mutex::new(());

    fn reaper() -> MutexGuard<'static, ()> {
        crate::set_subreaper().unwrap();
        REAPER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shell(script: &str) -> Child {
        let sh = std::path::Path::new("/bin/sh");
        Spawn::new(sh).args(["-c", script]).spawn().unwrap()
    }

    #[test]
    fn what_is_announced_is_told_once() {
        let _guard = reaper();
        let pid = Pid::from_raw(0x40_0001);
        announce(pid, ExitStatus::Exited(7));
        let told = |ended: Vec<(Pid, ExitStatus)>| ended.into_iter().find(|(who, _)| *who == pid);
        assert_eq!(told(reap()), Some((pid, ExitStatus::Exited(7))));
        assert_eq!(told(reap()), None);
    }

    fn gone(pid: Pid) -> bool {
        process::kill_number(pid, 0).is_err()
    }

    /// A shell that starts a process, says its pid and lives until it is let go.
    struct Parent {
        shell: Child,
        orphan: Pid,
        hold: Option<OwnedFd>,
    }

    impl Parent {
        fn of(script: &str, last: &str) -> Self {
            let (stdin, hold) = pipe_cloexec().unwrap();
            let (told, stdout) = pipe_cloexec().unwrap();
            // The background process must not keep our pipes open: its descriptors are replaced.
            let script = format!("({script}) </dev/null >/dev/null & echo $!; read x; {last}");
            let shell = Spawn::new(std::path::Path::new("/bin/sh"))
                .args(["-c", &script])
                .stdin(stdin)
                .stdout(stdout)
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(File::from(told))
                .read_line(&mut line)
                .unwrap();
            Self {
                shell,
                orphan: Pid::from_raw(line.trim().parse().unwrap()),
                hold: Some(hold),
            }
        }

        /// Ends the shell, so that its process is ours.
        fn end(&mut self) {
            drop(self.hold.take());
            self.shell.wait().unwrap();
        }
    }

    #[test]
    fn status_tells_code_or_signal() {
        let check = |script: &str, expected: ExitStatus, code: i32| {
            let status = shell(script).wait().unwrap();
            assert_eq!((status, status.code()), (expected, code), "{script}");
        };
        check("exit 0", ExitStatus::Exited(0), 0);
        check("exit 255", ExitStatus::Exited(255), 255);
        check("kill -KILL $$", ExitStatus::Signaled(9), 137);
        check("kill -TERM $$", ExitStatus::Signaled(15), 143);
        // nix's own wait cannot say this one.
        check("kill -35 $$", ExitStatus::Signaled(35), 163);
    }

    #[test]
    fn wait_with_a_limit_gives_up_and_can_be_repeated() {
        let (stdin, hold) = pipe_cloexec().unwrap();
        let mut child = Spawn::new(std::path::Path::new("/bin/cat"))
            .stdin(stdin)
            .spawn()
            .unwrap();
        assert_eq!(child.wait_timeout(Duration::from_millis(5)).unwrap(), None);
        assert_eq!(child.try_wait().unwrap(), None);
        drop(hold);
        let ended = Some(ExitStatus::Exited(0));
        assert_eq!(child.wait_timeout(Duration::MAX).unwrap(), ended);
        assert_eq!(child.try_wait().unwrap(), ended);
        assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0));
        let late = child.kill(Signal::SIGKILL).unwrap_err();
        assert_eq!(late.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn dropped_child_is_killed_and_reaped_and_released_one_runs_on() {
        let pid = shell("exec sleep 1000").pid();
        assert!(gone(pid));
        let child = shell("exec sleep 1000");
        let pid = child.pid();
        child.release();
        assert!(!gone(pid));
        let again = Child::adopt(pid);
        drop(again);
        assert!(gone(pid));
    }

    #[test]
    fn reaper_takes_watched_children_and_never_an_owned_one() {
        let _alone = reaper();
        let done = AtomicBool::new(false);
        let (watched, reaped) = std::thread::scope(|scope| {
            let reaping = scope.spawn(|| {
                let mut ended = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    ended.extend(reap());
                    std::thread::yield_now();
                }
                ended
            });
            let mut watched = Vec::new();
            for code in 0..60 {
                let child = shell(&format!("exit {code}"));
                if code % 2 == 0 {
                    watched.push((watch(child), ExitStatus::Exited(code)));
                } else {
                    let status = { child }.wait().unwrap();
                    assert_eq!(status, ExitStatus::Exited(code));
                }
            }
            while watched.iter().any(|(pid, _)| !gone(*pid)) {
                std::thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
            (watched, reaping.join().unwrap())
        });
        let mut reaped: Vec<_> = reaped.into_iter().chain(reap()).collect();
        reaped.sort_by_key(|(pid, _)| watched.iter().position(|(known, _)| known == pid));
        assert_eq!(reaped, watched);
    }

    #[test]
    fn orphans_are_dropped_even_behind_the_zombie_of_an_owned_child() {
        let _alone = reaper();
        let mut owned = shell("exit 3");
        let mut parent = Parent::of("exit 4", "exit");
        let orphan = parent.orphan;
        let pidfd = process::pidfd_open(owned.pid());
        if let Ok(pidfd) = &pidfd {
            assert!(ended_by(pidfd, Duration::from_secs(60)).unwrap());
        }
        parent.end();
        assert_eq!(reap(), []);
        assert_eq!(owned.wait().unwrap(), ExitStatus::Exited(3));
        // The shell may have reaped it itself; if not, it was ours and is gone now too.
        while !gone(orphan) {
            assert_eq!(reap(), []);
        }
    }

    #[test]
    fn process_can_be_adopted_before_it_is_ours() {
        let _alone = reaper();
        let mut parent = Parent::of("exec sleep 1000", "exit");
        let mut child = Child::adopt(parent.orphan);
        assert_eq!(child.try_wait().unwrap(), None);
        assert_eq!(child.wait_timeout(Duration::from_millis(5)).unwrap(), None);
        parent.end();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill(Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Signaled(15));
    }

    #[test]
    fn status_taken_by_another_reaper_is_lost_and_said_so() {
        let _alone = reaper();
        let mut parent = Parent::of("exec sleep 1000", "wait");
        let mut owned = Child::adopt(parent.orphan);
        let watched = watch(Child::adopt(parent.orphan));
        owned.kill(Signal::SIGKILL).unwrap();
        parent.end();
        let lost = owned.wait().unwrap_err();
        assert_eq!(lost.raw_os_error(), Some(libc::ECHILD));
        assert_eq!(reap(), [(watched, ExitStatus::LOST)]);
        assert_eq!(reap(), []);
    }

    #[test]
    fn kernel_2_6_32_is_enough() {
        let _alone = reaper();
        crate::old_kernel::in_thread(|| {
            let mut child = shell("exec sleep 1000");
            assert_eq!(child.wait_timeout(Duration::from_millis(5)).unwrap(), None);
            child.kill(Signal::SIGTERM).unwrap();
            let limit = Duration::from_secs(60);
            let ended = Some(ExitStatus::Signaled(15));
            assert_eq!(child.wait_timeout(limit).unwrap(), ended);

            let mut parent = Parent::of("exec sleep 1000", "exit");
            let mut adopted = Child::adopt(parent.orphan);
            assert!(adopted.pidfd.is_none());
            assert_eq!(adopted.try_wait().unwrap(), None);
            parent.end();
            adopted.kill(Signal::SIGTERM).unwrap();
            assert_eq!(adopted.wait_timeout(limit).unwrap(), ended);
            drop(shell("exec sleep 1000"));
        });
    }
}
