//! One QEMU and the agent in it, from the start of the process to its end.
//!
//! ```text
//!   journal ─> cgroup ─> QEMU ── socket pair ── virtio-serial port ── agent
//!                          │                        └─ says Hello, is prepared: up
//!                          └─ ends: the socket does too, and with it every process that was in there
//! ```
//! When the shim is killed its end of the socket closes, and the agent turns the machine off.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cgroups::Cgroup;
use guest::call::Process;
use mux::{Endpoint, Link};
use nix::sys::signal::Signal;
use sys::{Child, CloneFlags, ExitStatus, Pid, Spawn};

use crate::agent::{Agent, News};
use crate::journal::StateDir;
use crate::oom::OomKills;
use crate::qemu::{
    AGENT_FD, Arguments, LINK_FD, MEMORY_FD, MONITOR_FD, Monitor, Slots, VOLUMES_FD,
};
use crate::sharing::Share;
use crate::streams::Streams;
use crate::{Error, Result};

/// QEMU's program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Where it is looked for beside the PATH.
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

/// From QEMU's start to the agent's word. A guest takes a second and a half without hardware support on
/// a machine that does nothing else.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// The first answer of an agent that has said Hello.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);

/// The end of a killed QEMU.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What QEMU may write to its console's file and to its log, in bytes each. They are in the host's memory,
/// and a guest whose agent is up says nothing there, so one that comes so far means no good: QEMU is killed.
const WRITTEN_BYTES_MAX: u64 = 1 << 20;

/// How much of a log an error repeats, in bytes.
const TAIL_BYTES: usize = 1000;

/// The highest number that the kernel gives a process (PID_MAX_LIMIT): above it are the numbers of
/// processes in guests, which are none of the host.
const HOST_PID_MAX: i32 = 4 << 20;

/// Told for processes whose machine ended under them, as for a status nobody knows.
const LOST: ExitStatus = ExitStatus::LOST;

/// The number of a process in a guest.
pub(crate) fn next_pid() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(HOST_PID_MAX + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// QEMU's program on this host.
///
/// # Errors
/// [`Error::NoQemu`].
pub(crate) fn find_qemu() -> Result<PathBuf> {
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&search_path).chain(FOLDERS.map(PathBuf::from));
    let mut places = folders.map(|folder| folder.join(PROGRAM));
    places
        .find(|path| path.is_absolute() && path.is_file())
        .ok_or(Error::NoQemu)
}

/// A process in the guest as the host knows it.
#[derive(Debug)]
struct Known {
    pid: i32,
    streams: Arc<Streams>,
    is_running: bool,
}

/// The processes of a guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes(Arc<Mutex<BTreeMap<Process, Known>>>);

impl Processes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Process, Known>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is about to be made: its end may be told before its start was. Those of which nothing is to
    /// come any more are forgotten.
    pub(crate) fn add(&self, process: Process, pid: i32, streams: Arc<Streams>) {
        let known = Known {
            pid,
            streams,
            is_running: true,
        };
        let mut processes = self.lock();
        processes.retain(|_, known| known.is_running || !known.streams.are_over());
        processes.insert(process, known);
    }

    /// One that did not come to be.
    pub(crate) fn remove(&self, process: &Process) {
        self.lock().remove(process);
    }

    /// Pids of those of a container that run.
    pub(crate) fn pids(&self, container: &str) -> Vec<i32> {
        let processes = self.lock();
        let of = processes.iter().filter(|(it, _)| it.container == container);
        let running = of.filter(|(_, known)| known.is_running);
        running.map(|(_, known)| known.pid).collect()
    }

    /// Those of a container are nobody's any more.
    pub(crate) fn forget(&self, container: &str) {
        self.lock().retain(|it, _| it.container != container);
    }

    /// Nobody takes the output of a container's processes any more.
    pub(crate) fn stop_reading(&self, container: &str) {
        let processes = self.lock();
        let of = processes.iter().filter(|(it, _)| it.container == container);
        of.for_each(|(_, known)| known.streams.stop_reading());
    }

    /// The process of that pid.
    pub(crate) fn find(&self, pid: i32) -> Option<Process> {
        let processes = self.lock();
        let mut found = processes.iter().filter(|(_, known)| known.pid == pid);
        found.next().map(|(process, _)| process.clone())
    }

    fn end(&self, which: impl Fn(&Process) -> bool, status: ExitStatus) {
        for (_, known) in self.lock().iter_mut().filter(|(process, _)| which(process)) {
            if std::mem::replace(&mut known.is_running, false) {
                known.streams.process_ended();
                sys::announce(Pid::from_raw(known.pid), status);
            }
        }
    }
}

fn kill(qemu: &Mutex<Child>) {
    let mut qemu = qemu.lock().unwrap_or_else(PoisonError::into_inner);
    // It may have ended by itself; then it is only waited for.
    let _gone = qemu.kill(Signal::SIGKILL);
    if !matches!(qemu.wait_timeout(END_LIMIT), Ok(Some(_))) {
        tracing::warn!(pid = qemu.pid().as_raw(), "a killed QEMU does not end");
    }
}

/// The process. Dropped, it is killed.
#[derive(Debug)]
struct Qemu(Arc<Mutex<Child>>);

impl Drop for Qemu {
    fn drop(&mut self) {
        kill(&self.0);
    }
}

/// What of the host a machine is connected to.
#[derive(Debug)]
pub(crate) struct Wires {
    /// The network namespace that QEMU lives in: that of its links, so that who looks for it by QEMU's
    /// pid finds it.
    pub(crate) namespace: OwnedFd,
    /// The other ends of its links.
    pub(crate) taps: Vec<OwnedFd>,
}

/// A machine that is up. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) agent: Agent,
    pub(crate) processes: Processes,
    pub(crate) oom_kills: OomKills,
    /// QEMU's pid.
    pub(crate) pid: i32,
    /// What of the host it sees.
    pub(crate) share: Option<Share>,
    monitor: Option<Monitor>,
    qemu: Qemu,
}

impl Machine {
    /// Starts one in a cgroup, and waits until its agent answers.
    ///
    /// # Errors
    /// [`Error::NotUp`] with the tail of its console; nothing is left then.
    pub(crate) fn start(
        arguments: &Arguments,
        wires: Wires,
        cgroup: &Cgroup,
        dir: &StateDir,
    ) -> Result<Self> {
        let program = find_qemu()?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("make a socket pair"))?;
        let log = dir.qemu_log();
        let log = File::create(&log).map_err(Error::on("create", &log))?;
        let mut qemu = Spawn::new(&program)
            .args(arguments.render())
            .fd(AGENT_FD, OwnedFd::from(theirs))
            .stderr(OwnedFd::from(log))
            .join_namespaces(vec![(wires.namespace, CloneFlags::CLONE_NEWNET)])
            .new_session();
        let monitor = match arguments.slots {
            Slots::None => None,
            Slots::Disks => {
                let pair = UnixStream::pair().map_err(Error::io("make a socket pair"))?;
                qemu = qemu.fd(MONITOR_FD, OwnedFd::from(pair.1));
                Some(pair.0)
            }
        };
        let mut share = None;
        if arguments.needs_shared_memory() {
            let (started, ends) = Share::start(arguments.memory_mib, cgroup, dir)?;
            qemu = qemu.fd(MEMORY_FD, ends.memory).fd(VOLUMES_FD, ends.socket);
            share = Some(started);
        }
        for (number, tap) in (LINK_FD..).zip(wires.taps) {
            qemu = qemu.fd(number, tap);
        }
        let qemu = qemu.spawn().map_err(Error::on("start", &program))?;
        let pid = qemu.pid();
        let qemu = Qemu(Arc::new(Mutex::new(qemu)));
        cgroup.attach(pid)?;
        share.iter().try_for_each(|it| it.guard(&qemu.0))?;
        sys::process::limit_file_size_of(pid, WRITTEN_BYTES_MAX)
            .map_err(Error::io("limit what QEMU may write"))?;
        let reader = ours.try_clone().map_err(Error::io("duplicate a socket"))?;
        // Any number but that of another link of this guest, of which there is none.
        let endpoint = Endpoint::host(1);
        let link = Link::start(endpoint, reader, ours).map_err(Error::io("start a thread"))?;
        if let Err(error) = link.await_peer(UP_LIMIT) {
            kill(&qemu.0);
            return Err(not_up(&error.to_string(), share.as_ref(), dir));
        }
        let processes = Processes::default();
        let oom_kills = OomKills::default();
        let (known, child) = (processes.clone(), Arc::clone(&qemu.0));
        let kills = oom_kills.clone();
        let told = move |news: News<'_>| match news {
            News::Ended(process, code) => {
                let status = ExitStatus::Exited(code.into());
                known.end(|it| it == process, status);
            }
            News::OutOfMemory(container) => kills.add(container),
            News::Gone => {
                // It may be there still, without anybody to talk to.
                kill(&child);
                known.end(|_| true, LOST);
            }
        };
        share.iter().try_for_each(|it| it.is_up(cgroup))?;
        let monitor = monitor.map(Monitor::new).transpose()?;
        let machine = Self {
            share,
            monitor,
            agent: Agent::new(link, told)?,
            processes,
            oom_kills,
            pid: pid.as_raw(),
            qemu,
        };
        machine.agent.prepare(PREPARE_LIMIT)?;
        Ok(machine)
    }

    /// By which it takes what it did not begin with.
    ///
    /// # Errors
    /// [`Error::Monitor`] for a machine without.
    pub(crate) fn monitor(&self) -> Result<&Monitor> {
        let none = || Error::Monitor("this machine has none".to_owned());
        self.monitor.as_ref().ok_or_else(none)
    }

    /// Ends it, whatever runs in it.
    pub(crate) fn end(&self) {
        kill(&self.qemu.0);
        self.agent.join();
        if let Some(share) = &self.share {
            share.end();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// The error of a machine that did not come up, with what it and QEMU said last.
fn not_up(why: &str, share: Option<&Share>, dir: &StateDir) -> Error {
    let virtiofsd = share.map(Share::said).unwrap_or_default();
    let mut why = why.to_owned();
    for (who, said) in [
        ("QEMU", tail(&dir.qemu_log()).as_str()),
        ("virtiofsd", virtiofsd.as_str()),
    ] {
        if !said.is_empty() {
            why = format!("{why}: {who} said: {said}");
        }
    }
    let console = match tail(&dir.console()).as_str() {
        "" => String::new(),
        text => format!("; its console: {text}"),
    };
    Error::NotUp { why, console }
}

/// The end of a file as one line, without what a terminal would not show.
fn tail(path: &Path) -> String {
    // What is not there has nothing to say.
    let bytes = std::fs::read(path).unwrap_or_default();
    one_line(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..])
}

/// What somebody else says as one line, without what a terminal would not show.
pub(crate) fn one_line(said: &[u8]) -> String {
    lines(said).join(" | ")
}

/// Lines of what somebody else says, without what would do something to a terminal, and without empty ones.
pub(crate) fn lines(said: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(|line| {
        let shown = line.chars().filter(|letter| !letter.is_control());
        shown.collect::<String>()
    });
    lines.filter(|line| !line.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use shim_core::ProcessIo;

    use super::*;
    use crate::streams;

    #[test]
    fn the_end_of_a_console_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        assert_eq!(tail(&path), "");
        std::fs::write(&path, "\x1b[0mone\r\n\r\ntwo\n").unwrap();
        assert_eq!(tail(&path), "[0mone | two");
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert_eq!(tail(&path).len(), TAIL_BYTES);
    }

    #[test]
    fn pids_of_guests_are_none_of_the_host() {
        let (first, second) = (next_pid(), next_pid());
        assert!(first > HOST_PID_MAX && second > first);
    }

    fn linked() -> (Agent, Link) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = |endpoint, socket: UnixStream| {
            Link::start(endpoint, socket.try_clone().unwrap(), socket).unwrap()
        };
        let link = start(Endpoint::host(1), ours);
        let guest = start(Endpoint::guest(), theirs);
        link.await_peer(Duration::from_secs(20)).unwrap();
        (Agent::new(link, |_| {}).unwrap(), guest)
    }

    #[test]
    fn any_number_of_execs_leave_no_streams() {
        let (agent, guest) = linked();
        let _messages = guest.accept().unwrap();
        let processes = Processes::default();
        // A link has 1024 streams.
        for number in 0..1000 {
            let [stdin, stdout, stderr] = [(); 3].map(|()| sys::pipe_cloexec().unwrap());
            let io = ProcessIo::Streams {
                stdin: stdin.0,
                stdout: stdout.1,
                stderr: stderr.1,
            };
            let (streams, _) = streams::open(io, &agent).unwrap();
            let process = Process {
                container: "c".to_owned(),
                exec: Some(number.to_string()),
            };
            processes.add(process.clone(), next_pid(), Arc::new(streams));
            drop([(); 3].map(|()| guest.accept().unwrap()));
            processes.end(|it| *it == process, ExitStatus::Exited(0));
            for output in [stdout.0, stderr.0] {
                File::from(output).read_to_end(&mut Vec::new()).unwrap();
            }
        }
        // Threads of the last ones may be about to end.
        assert!(processes.lock().len() < 100);
        processes.stop_reading("c");
        agent.join();
    }
}
