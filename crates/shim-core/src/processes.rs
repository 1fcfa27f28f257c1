//! What the shim holds of a container's processes beside their place in the life cycle: streams,
//! pids, and what execs will run.

use std::collections::HashMap;

use task::{ExecId, ProcessName, Scope};

use crate::process_io::Io;
use crate::request::{Exec, ProcessInfo, Stdio};
use crate::runtime::SignalTarget;

/// Init and the execs of one container.
#[derive(Debug)]
pub(crate) struct Processes {
    init_pid: i32,
    init_stdio: Stdio,
    init_io: Option<Io>,
    execs: HashMap<ExecId, ExecProcess>,
}

#[derive(Debug)]
struct ExecProcess {
    exec: Exec,
    /// 0 until it was started.
    pid: i32,
    io: Option<Io>,
}

impl Processes {
    pub(crate) fn new(pid: i32, stdio: Stdio, io: Io) -> Self {
        Self {
            init_pid: pid,
            init_stdio: stdio,
            init_io: Some(io),
            execs: HashMap::new(),
        }
    }

    /// An exec that was added and not started.
    pub(crate) fn add(&mut self, exec: Exec) {
        let id = exec.id.clone();
        self.execs.insert(
            id,
            ExecProcess {
                exec,
                pid: 0,
                io: Some(Io::new()),
            },
        );
    }

    /// An exec that was deleted.
    pub(crate) fn remove(&mut self, id: &ExecId) {
        self.execs.remove(id);
    }

    /// What an exec will run.
    pub(crate) fn exec(&self, id: &ExecId) -> Option<Exec> {
        self.execs.get(id).map(|process| process.exec.clone())
    }

    /// An exec runs under this pid; its streams, unless it was deleted meanwhile.
    pub(crate) fn started(&mut self, id: &ExecId, pid: i32) -> Option<&mut Io> {
        let process = self.execs.get_mut(id)?;
        process.pid = pid;
        process.io.as_mut()
    }

    /// A process has ended: the time for draining its streams runs.
    pub(crate) fn ended(&mut self, pid: i32) {
        let io = if pid == self.init_pid {
            self.init_io.as_mut()
        } else {
            self.execs
                .values_mut()
                .find(|exec| exec.pid == pid)
                .and_then(|exec| exec.io.as_mut())
        };
        if let Some(io) = io {
            io.process_ended();
        }
    }

    /// The streams a client means.
    pub(crate) fn io(&mut self, process: &ProcessName) -> Option<&mut Io> {
        match process {
            ProcessName::Init => self.init_io.as_mut(),
            ProcessName::Exec(id) => self.execs.get_mut(id)?.io.as_mut(),
        }
    }

    /// The streams that go with a process; with init, all.
    pub(crate) fn take_ios(&mut self, process: &ProcessName) -> Vec<Io> {
        match process {
            ProcessName::Init => {
                let execs = self.execs.values_mut().filter_map(|exec| exec.io.take());
                self.init_io.take().into_iter().chain(execs).collect()
            }
            ProcessName::Exec(id) => {
                let exec = self.execs.get_mut(id);
                exec.and_then(|exec| exec.io.take()).into_iter().collect()
            }
        }
    }

    /// As the client named them.
    pub(crate) fn stdio(&self, process: &ProcessName) -> Stdio {
        match process {
            ProcessName::Init => self.init_stdio.clone(),
            ProcessName::Exec(id) => self
                .execs
                .get(id)
                .map(|process| process.exec.stdio.clone())
                .unwrap_or_default(),
        }
    }

    /// Whom a signal is for, in the runtime's words.
    pub(crate) fn target(&self, process: ProcessName, scope: Scope) -> SignalTarget {
        match (process, scope) {
            (ProcessName::Init, Scope::All) => SignalTarget::All,
            (ProcessName::Init, Scope::Process) => SignalTarget::Init,
            (ProcessName::Exec(id), _) => {
                let pid = self.execs.get(&id).map_or(0, |exec| exec.pid);
                SignalTarget::Exec {
                    id: id.to_string(),
                    pid,
                }
            }
        }
    }

    /// Init and the execs that were started, as last known; init first.
    pub(crate) fn infos(&self) -> Vec<ProcessInfo> {
        let init = ProcessInfo {
            pid: self.init_pid,
            exec_id: None,
        };
        let started = self.execs.iter().filter(|(_, exec)| exec.pid != 0);
        let execs = started.map(|(id, exec)| ProcessInfo {
            pid: exec.pid,
            exec_id: Some(id.clone()),
        });
        std::iter::once(init).chain(execs).collect()
    }
}
