//! One QEMU and the agent in it, from the start of the process to its end.
//!
//! ```text
//!   journal ─> cgroup ─> QEMU ── socket pair ── virtio-serial port ── agent
//!                          │                        └─ says Hello, is prepared: up
//!                          └─ ends: the socket does too, and with it every process that was in there
//! ```
//! When the shim is killed its end of the socket closes, and the agent turns the machine off.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cgroups::Cgroup;
use guest::call::{Process, Written};
use mux::{Endpoint, Link};
use sys::{ExitStatus, Pid};

use crate::agent::{Agent, News};
use crate::journal::StateDir;
use crate::oom::OomKills;
use crate::qemu::{Arguments, Files, Memory, Monitor, Qemu, Wires, not_up};
use crate::sharing::Share;
use crate::size::Size;
use crate::streams::Streams;
use crate::template::{self, Template};
use crate::{Error, Result};

/// From QEMU's start to the agent's word. A guest takes a second and a half without hardware support on
/// a machine that does nothing else.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// The same for a machine that goes on: a twentieth of a second on such a machine.
const RESTORED_LIMIT: Duration = Duration::from_secs(10);

/// The first answer of an agent that has said Hello.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);

/// The highest number that the kernel gives a process (PID_MAX_LIMIT): above it are the numbers of
/// processes in guests, which are none of the host.
const HOST_PID_MAX: i32 = 4 << 20;

/// What readers may leave untaken of a process's output before its end is told all the same.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// Told for processes whose machine ended under them, as for a status nobody knows.
const LOST: ExitStatus = ExitStatus::LOST;

/// The number of a process in a guest.
pub(crate) fn next_pid() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(HOST_PID_MAX + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A process in the guest as the host knows it.
#[derive(Debug)]
struct Known {
    pid: i32,
    streams: Arc<Streams>,
    /// Its end was not told yet.
    is_running: bool,
    /// What the guest said of its end.
    ended: Option<ExitStatus>,
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
            ended: None,
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

    /// The guest says that one has ended. The end is told once what it has written is where shim-core takes it: who
    /// then has the process deleted has all of it. What it says after the first time is nothing: a thread may wait for
    /// each process, and no guest is to have more of them.
    fn ended(&self, process: &Process, status: ExitStatus, written: Written) {
        let (pid, streams) = match self.lock().get_mut(process) {
            Some(known) if known.is_running && known.ended.is_none() => {
                known.ended = Some(status);
                (known.pid, Arc::clone(&known.streams))
            }
            _ => return,
        };
        streams.process_ended();
        if streams.have(written, Duration::ZERO) {
            return self.tell_end(|known| known.pid == pid);
        }
        let this = self.clone();
        let wait = move || {
            if !streams.have(written, OUTPUT_LIMIT) {
                tracing::warn!(pid, "output was not taken in time: its process has ended");
            }
            this.tell_end(|known| known.pid == pid);
        };
        let thread = std::thread::Builder::new().name("output".to_owned());
        if let Err(error) = thread.stack_size(256 << 10).spawn(wait) {
            tracing::warn!(pid, %error, "nobody waits for the output of a process that has ended");
            self.tell_end(|known| known.pid == pid);
        }
    }

    /// The guest is gone, and all in it: ends that it did not tell. What had come of their output before is copied first,
    /// as it is for those whose end was told and is held up.
    fn gone(&self) {
        let running = |(it, known): (&Process, &Known)| known.is_running.then(|| it.clone());
        let running: Vec<_> = self.lock().iter().filter_map(running).collect();
        for process in running {
            self.ended(&process, LOST, Written::ALL);
        }
    }

    /// Tells shim-core the ends of those of which nobody was told.
    fn tell_end(&self, which: impl Fn(&Known) -> bool) {
        for known in self.lock().values_mut().filter(|known| which(known)) {
            if std::mem::replace(&mut known.is_running, false) {
                known.streams.process_ended();
                sys::announce(Pid::from_raw(known.pid), known.ended.unwrap_or(LOST));
            }
        }
    }
}

/// A machine that is up. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) agent: Agent,
    pub(crate) processes: Processes,
    pub(crate) oom_kills: OomKills,
    /// QEMU's pid.
    pub(crate) pid: i32,
    /// What its containers have together.
    pub(crate) size: Size,
    /// What of the host it sees.
    pub(crate) share: Option<Share>,
    /// By which it takes what it did not begin with.
    pub(crate) monitor: Monitor,
    qemu: Qemu,
}

impl Machine {
    /// Boots one in a cgroup, and waits until its agent answers.
    ///
    /// # Errors
    /// [`Error::NotUp`] with the tail of its console; nothing is left then.
    pub(crate) fn boot(
        arguments: &Arguments,
        wires: Wires,
        cgroup: &Cgroup,
        dir: &StateDir,
    ) -> Result<Self> {
        let (share, files) = match arguments.needs_shared_memory() {
            true => {
                let (share, ends) = Share::start(arguments.memory_mib, cgroup, dir)?;
                let files = Files {
                    memory: Some(ends.memory),
                    volumes: Some(ends.socket),
                };
                (Some(share), files)
            }
            false => (None, Files::default()),
        };
        let started = Qemu::start(arguments, wires, files, (&dir.qemu_log(), Some(cgroup)))?;
        let (qemu, port, monitor) = started;
        share.iter().try_for_each(|it| it.guard(qemu.child()))?;
        let said = || share.as_ref().map(Share::said).unwrap_or_default();
        let monitor = Monitor::new(monitor);
        let monitor = monitor.map_err(|error| gone((&qemu, &said()), &error.chain(), dir))?;
        let link = meet(port, template::EPOCH, UP_LIMIT);
        let link = link.map_err(|error| gone((&qemu, &said()), &error.to_string(), dir))?;
        Self::with(arguments.size(), qemu, (link, monitor), share)
    }

    /// Has one go on where a template was stopped.
    ///
    /// # Errors
    /// As [`Machine::boot`], and sooner.
    pub(crate) fn restore(
        arguments: &Arguments,
        wires: Wires,
        template: &Template,
        (cgroup, dir): (&Cgroup, &StateDir),
    ) -> Result<Self> {
        let arguments = Arguments {
            memory: Memory::Copy,
            ..arguments.clone()
        };
        let (memory, state) = template.parts()?;
        let files = Files {
            memory: Some(memory),
            volumes: None,
        };
        let started = Qemu::start(&arguments, wires, files, (&dir.qemu_log(), Some(cgroup)))?;
        let (qemu, port, monitor) = started;
        let monitor = Monitor::new(monitor).and_then(|monitor| {
            monitor.go_on(state)?;
            Ok(monitor)
        });
        let monitor = monitor.map_err(|error| gone((&qemu, ""), &error.chain(), dir))?;
        let link = meet(port, template::EPOCH + 1, RESTORED_LIMIT);
        let link = link.map_err(|error| gone((&qemu, ""), &error.to_string(), dir))?;
        Self::with(arguments.size(), qemu, (link, monitor), None)
    }

    fn with(
        size: Size,
        qemu: Qemu,
        (link, monitor): (Link, Monitor),
        share: Option<Share>,
    ) -> Result<Self> {
        let pid = qemu.pid();
        let processes = Processes::default();
        let oom_kills = OomKills::default();
        let (known, handle) = (processes.clone(), qemu.handle());
        let kills = oom_kills.clone();
        let told = move |news: News<'_>| match news {
            News::Ended(process, code, written) => {
                known.ended(process, ExitStatus::Exited(code.into()), written);
            }
            News::OutOfMemory(container) => kills.add(container),
            News::Gone => {
                // It may be there still, without anybody to talk to.
                handle.kill();
                known.gone();
            }
        };
        let machine = Self {
            share,
            monitor,
            agent: Agent::new(link, told)?,
            processes,
            oom_kills,
            pid: pid.as_raw(),
            size,
            qemu,
        };
        machine.agent.prepare(PREPARE_LIMIT)?;
        Ok(machine)
    }

    /// Ends it, whatever runs in it.
    pub(crate) fn end(&self) {
        self.qemu.kill();
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

/// The link to an agent that has answered on it.
fn meet(port: UnixStream, epoch: u16, limit: Duration) -> std::io::Result<Link> {
    let link = Link::start(Endpoint::host(epoch), port.try_clone()?, port)?;
    link.await_peer(limit)?;
    Ok(link)
}

/// The error of one that does not come up, and is killed so that what it says last is there; and what
/// virtiofsd said.
fn gone((qemu, virtiofsd): (&Qemu, &str), why: &str, dir: &StateDir) -> Error {
    qemu.kill();
    not_up(why, virtiofsd, &dir.qemu_log(), &dir.console())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;

    use shim_core::ProcessIo;

    use super::*;
    use crate::streams;

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

    /// An exec with pipes; our ends of its output and errors.
    fn add(processes: &Processes, agent: &Agent, number: u32) -> (Process, [OwnedFd; 2]) {
        let [stdin, stdout, stderr] = [(); 3].map(|()| sys::pipe_cloexec().unwrap());
        let io = ProcessIo::Streams {
            stdin: stdin.0,
            stdout: stdout.1,
            stderr: stderr.1,
        };
        let (streams, _) = streams::open(io, agent).unwrap();
        let process = Process {
            container: "c".to_owned(),
            exec: Some(number.to_string()),
        };
        processes.add(process.clone(), next_pid(), Arc::new(streams));
        (process, [stdout.0, stderr.0])
    }

    #[test]
    fn an_end_is_told_once_what_was_written_is_there() {
        let (agent, guest) = linked();
        let _messages = guest.accept().unwrap();
        let processes = Processes::default();
        let (process, outputs) = add(&processes, &agent, 0);
        let [_stdin, stdout, _stderr] = [(); 3].map(|()| guest.accept().unwrap());
        let streams = Arc::clone(&processes.lock()[&process].streams);
        let written = |stdout| Written { stdout, stderr: 0 };
        assert!(streams.have(written(0), Duration::ZERO));
        assert!(!streams.have(written(4), Duration::ZERO));
        processes.ended(&process, ExitStatus::Exited(7), written(4));
        assert_eq!(processes.pids("c").len(), 1, "its end was told");
        (&stdout).write_all(b"text").unwrap();
        assert!(streams.have(written(4), Duration::from_secs(20)));
        let mut text = [0; 4];
        let [output, _errors] = outputs;
        File::from(output).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"text");
        // A machine that is gone writes nothing more.
        assert!(!streams.have(Written::ALL, Duration::ZERO));
        agent.join();
        assert!(streams.have(Written::ALL, Duration::from_secs(20)));
    }

    #[test]
    fn a_guest_that_tells_an_end_again_and_again_changes_nothing() {
        let (agent, guest) = linked();
        let _messages = guest.accept().unwrap();
        let processes = Processes::default();
        let (process, _outputs) = add(&processes, &agent, 0);
        let [_stdin, stdout, _stderr] = [(); 3].map(|()| guest.accept().unwrap());
        let streams = Arc::clone(&processes.lock()[&process].streams);
        let before = Arc::strong_count(&streams);
        for code in 7..107 {
            // More than it ever writes.
            let written = Written {
                stdout: u64::MAX - 1,
                stderr: 0,
            };
            processes.ended(&process, ExitStatus::Exited(code), written);
        }
        // One who waits has them.
        assert!(Arc::strong_count(&streams) <= before + 1);
        let ended = processes.lock()[&process].ended;
        assert_eq!(ended, Some(ExitStatus::Exited(7)));
        stdout.finish();
        agent.join();
    }

    #[test]
    fn ends_of_a_guest_that_is_gone_are_told_once_what_has_come_is_taken() {
        let (agent, guest) = linked();
        let _messages = guest.accept().unwrap();
        let processes = Processes::default();
        let (told, told_outputs) = add(&processes, &agent, 0);
        let told_streams = [(); 3].map(|()| guest.accept().unwrap());
        let (lost, lost_outputs) = add(&processes, &agent, 1);
        let lost_streams = [(); 3].map(|()| guest.accept().unwrap());
        // More than the pipe of a reader who takes nothing has room for.
        let text = vec![b'x'; 200 << 10];
        for [_, stdout, _] in [&told_streams, &lost_streams] {
            (&mut &*stdout).write_all(&text).unwrap();
        }
        let written = Written {
            stdout: 200 << 10,
            stderr: 0,
        };
        processes.ended(&told, ExitStatus::Exited(7), written);
        processes.gone();
        assert_eq!(processes.pids("c").len(), 2, "an end was told");
        for (process, [stdout, _stderr]) in [(&told, told_outputs), (&lost, lost_outputs)] {
            let mut got = vec![0; text.len()];
            File::from(stdout).read_exact(&mut got).unwrap();
            assert_eq!(got, text, "{process:?}");
        }
        drop(guest);
        agent.join();
        let ended = |process| processes.lock()[process].ended;
        assert_eq!(ended(&told), Some(ExitStatus::Exited(7)));
        assert_eq!(ended(&lost), Some(LOST));
    }

    #[test]
    fn any_number_of_execs_leave_no_streams() {
        let (agent, guest) = linked();
        let _messages = guest.accept().unwrap();
        let processes = Processes::default();
        // A link has 1024 streams.
        for number in 0..1000 {
            let (process, outputs) = add(&processes, &agent, number);
            drop([(); 3].map(|()| guest.accept().unwrap()));
            processes.ended(&process, ExitStatus::Exited(0), Written::ALL);
            for output in outputs {
                File::from(output).read_to_end(&mut Vec::new()).unwrap();
            }
        }
        // Threads of the last ones may be about to end.
        assert!(processes.lock().len() < 100);
        processes.stop_reading("c");
        agent.join();
    }
}
