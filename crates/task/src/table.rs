//! A container's processes: its init, its execs by id, and who waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::accept;
use crate::{Action, Effect, Event, ExecId, Exit, Kind, Notice, Refusal, Role, State, Status};

/// Exit code of what never ran, as containerd's `UnknownExitStatus`.
const CODE_UNKNOWN: u32 = 255;
/// Exit code of what a deletion killed: 128 + SIGKILL.
const CODE_KILLED: u32 = 137;

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessName {
    /// The first one.
    Init,
    /// A further one.
    Exec(ExecId),
}

/// A client that waits for an end; the owner of the task knows which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Whom a signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The one process.
    Process,
    /// All processes of the container.
    All,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a process's program.
    Start(ProcessName),
    /// Add an exec.
    Exec(ExecId),
    /// Send a signal.
    Kill {
        /// To this one.
        process: ProcessName,
        /// By number.
        signal: i32,
        /// Or to all.
        scope: Scope,
    },
    /// Freeze the container.
    Pause,
    /// Thaw the container.
    Resume,
    /// Tell a process's terminal a size.
    Resize(ProcessName),
    /// Close a process's standard input.
    CloseIo(ProcessName),
    /// Change the container's limits.
    Update,
    /// Dump the container.
    Checkpoint,
    /// Remove a process; with init, everything.
    Delete(ProcessName),
    /// Tell when a process ends.
    Wait {
        /// This one.
        process: ProcessName,
        /// To this client.
        waiter: WaiterId,
    },
    /// Tell a process's state.
    State(ProcessName),
    /// List the container's processes.
    Pids,
    /// Tell what the container uses.
    Stats,
}

/// Work whose outcome decides what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Ends with [`Notice::Started`] or [`Notice::StartFailed`].
    Start(ProcessName),
    /// Ends with [`Notice::Paused`] or [`Notice::PauseFailed`].
    Pause,
    /// Ends with [`Notice::Resumed`] or [`Notice::ResumeFailed`].
    Resume,
    /// Ends with [`Notice::Deleted`] or [`Notice::DeleteFailed`].
    Delete(ProcessName),
}

/// What is to be done about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Do it and answer; nothing here depends on the outcome.
    Do,
    /// Do it, answer, and report the outcome by [`Task::notice`].
    Begin(Operation),
    /// The exec is in the table: publish this and answer.
    Added(Event),
    /// Answer with this.
    State(Report),
    /// Answer with this.
    Exited(Exit),
    /// Answer when [`Effect::Answer`] comes.
    Waiting,
}

/// A process as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Host pid; 0 of an exec that has not been started.
    pub pid: i32,
    /// Its state.
    pub status: Status,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// The processes of one container.
#[derive(Debug, Clone)]
pub struct Task {
    init: Process,
    execs: BTreeMap<ExecId, Process>,
}

#[derive(Debug, Clone)]
struct Process {
    state: State,
    /// 0 until known.
    pid: i32,
    /// An end that came while the start was under way.
    early: Option<Exit>,
    waiters: BTreeSet<WaiterId>,
}

impl Task {
    /// A container whose init was made and waits for its start. Publish the event first.
    pub fn new(pid: i32) -> (Self, Event) {
        let task = Self {
            init: Process::new(pid),
            execs: BTreeMap::new(),
        };
        (task, Event::Created { pid })
    }

    /// Host pid of init, also when it has ended.
    pub fn pid(&self) -> i32 {
        self.init.pid
    }

    /// Whether init was deleted.
    pub fn is_deleted(&self) -> bool {
        self.init.state == State::Deleted
    }

    /// The exec that runs under a host pid.
    pub fn exec_with_pid(&self, pid: i32) -> Option<&ExecId> {
        let running = |process: &Process| process.state == State::Running && process.pid == pid;
        self.execs
            .iter()
            .find_map(|(id, process)| running(process).then_some(id))
    }

    /// All execs that were added and not deleted.
    pub fn execs(&self) -> impl Iterator<Item = &ExecId> {
        self.execs.keys()
    }

    /// Decides about a request and notes what it begins.
    ///
    /// # Errors
    /// The task is as before.
    pub fn request(&mut self, request: &Request) -> Result<Accepted, Refusal> {
        match request {
            Request::Start(name) => self.start(name),
            Request::Exec(id) => self.add(id),
            Request::Kill { process, .. } => self.ask(process, Action::Kill),
            Request::Pause => self.begin(&ProcessName::Init, Action::Pause, Operation::Pause),
            Request::Resume => self.begin(&ProcessName::Init, Action::Resume, Operation::Resume),
            Request::Resize(name) => self.ask(name, Action::Resize),
            Request::CloseIo(name) => self.ask(name, Action::CloseIo),
            Request::Update => self.ask(&ProcessName::Init, Action::Update),
            Request::Checkpoint => self.ask(&ProcessName::Init, Action::Checkpoint),
            Request::Delete(name) => {
                self.begin(name, Action::Delete, Operation::Delete(name.clone()))
            }
            Request::Wait { process, waiter } => self.wait(process, *waiter),
            Request::State(name) => self.state(name),
            Request::Pids => self.ask(&ProcessName::Init, Action::Pids),
            Request::Stats => self.ask(&ProcessName::Init, Action::Stats),
        }
    }

    /// Takes note of an outcome; says what follows. An outcome that nothing waits for is ignored.
    pub fn notice(&mut self, notice: Notice) -> Vec<Effect> {
        let mut effects = Vec::new();
        match notice {
            Notice::Started { process, pid } => self.started(process, pid, &mut effects),
            Notice::StartFailed { process, at } => self.start_failed(&process, at, &mut effects),
            Notice::Paused => {
                self.frozen(
                    State::Pausing,
                    State::Paused,
                    Some(Event::Paused),
                    &mut effects,
                );
            }
            Notice::PauseFailed => {
                self.frozen(State::Pausing, State::Running, None, &mut effects);
            }
            Notice::Resumed => {
                self.frozen(
                    State::Resuming,
                    State::Running,
                    Some(Event::Resumed),
                    &mut effects,
                );
            }
            Notice::ResumeFailed => {
                self.frozen(State::Resuming, State::Paused, None, &mut effects);
            }
            Notice::Deleted { process, at } => self.deleted(&process, at, &mut effects),
            Notice::DeleteFailed { process } => self.delete_failed(&process),
            Notice::Exited { pid, exit } => self.exited(pid, exit, &mut effects),
            Notice::RestOverdue => self.tell_init_exit(&mut effects),
        }
        effects
    }

    /// A client waits no longer.
    pub fn forget(&mut self, waiter: WaiterId) {
        self.init.waiters.remove(&waiter);
        for process in self.execs.values_mut() {
            process.waiters.remove(&waiter);
        }
    }

    fn process(&mut self, name: &ProcessName) -> Result<(Role, &mut Process), Refusal> {
        if self.is_deleted() {
            return Ok((Role::Init, &mut self.init));
        }
        match name {
            ProcessName::Init => Ok((Role::Init, &mut self.init)),
            ProcessName::Exec(id) => match self.execs.get_mut(id) {
                Some(process) => Ok((Role::Exec, process)),
                None => Err(Refusal::new(
                    Kind::NotFound,
                    format!("process does not exist {id}"),
                )),
            },
        }
    }

    fn ask(&mut self, name: &ProcessName, action: Action) -> Result<Accepted, Refusal> {
        let (role, process) = self.process(name)?;
        accept(role, process.state, action)?;
        Ok(Accepted::Do)
    }

    fn begin(
        &mut self,
        name: &ProcessName,
        action: Action,
        operation: Operation,
    ) -> Result<Accepted, Refusal> {
        let (role, process) = self.process(name)?;
        process.state = accept(role, process.state, action)?;
        Ok(Accepted::Begin(operation))
    }

    fn start(&mut self, name: &ProcessName) -> Result<Accepted, Refusal> {
        if matches!(name, ProcessName::Exec(_)) {
            self.process(name)?;
            accept(Role::Init, self.init.state, Action::Exec)?;
        }
        self.begin(name, Action::Start, Operation::Start(name.clone()))
    }

    fn add(&mut self, id: &ExecId) -> Result<Accepted, Refusal> {
        accept(Role::Init, self.init.state, Action::Exec)?;
        if self.execs.contains_key(id) {
            return Err(Refusal::new(Kind::AlreadyExists, format!("id {id}")));
        }
        self.execs.insert(id.clone(), Process::new(0));
        Ok(Accepted::Added(Event::ExecAdded { id: id.clone() }))
    }

    fn wait(&mut self, name: &ProcessName, waiter: WaiterId) -> Result<Accepted, Refusal> {
        let (role, process) = self.process(name)?;
        accept(role, process.state, Action::Wait)?;
        if let Some(exit) = process.state.exit() {
            return Ok(Accepted::Exited(exit));
        }
        process.waiters.insert(waiter);
        Ok(Accepted::Waiting)
    }

    fn state(&mut self, name: &ProcessName) -> Result<Accepted, Refusal> {
        let container = self.init.state.status();
        let (role, process) = self.process(name)?;
        accept(role, process.state, Action::State)?;
        let status = match (process.state.status(), container) {
            // What is frozen with its container is as its container.
            (Status::Running, Status::Pausing | Status::Paused) => container,
            (own, _) => own,
        };
        Ok(Accepted::State(Report {
            pid: process.pid,
            status,
            exit: process.state.exit(),
        }))
    }

    fn started(&mut self, name: ProcessName, pid: i32, effects: &mut Vec<Effect>) {
        let Some(process) = self.starting(&name) else {
            return;
        };
        process.state = State::Running;
        process.pid = pid;
        let early = process.early.take();
        effects.push(Effect::Publish(match name {
            ProcessName::Init => Event::Started { pid },
            ProcessName::Exec(id) => Event::ExecStarted { id, pid },
        }));
        if let Some(exit) = early {
            self.exited(pid, exit, effects);
        }
    }

    fn start_failed(&mut self, name: &ProcessName, at: SystemTime, effects: &mut Vec<Effect>) {
        let Some(process) = self.starting(name) else {
            return;
        };
        if *name == ProcessName::Init {
            process.state = State::Created;
            if let Some(exit) = process.early.take() {
                self.init_exited(exit, effects);
            }
            return;
        }
        // It was never told to have started, so its end is no event; but clients may wait.
        let code = CODE_UNKNOWN;
        process.stop(Exit { code, at }, effects);
        self.tell_init_exit_unless_execs_run(effects);
    }

    fn starting(&mut self, name: &ProcessName) -> Option<&mut Process> {
        let (_, process) = self.process(name).ok()?;
        (process.state == State::Starting).then_some(process)
    }

    fn frozen(&mut self, from: State, to: State, event: Option<Event>, effects: &mut Vec<Effect>) {
        if self.init.state != from {
            // Init has ended meanwhile.
            return;
        }
        self.init.state = to;
        effects.extend(event.map(Effect::Publish));
    }

    fn exited(&mut self, pid: i32, exit: Exit, effects: &mut Vec<Effect>) {
        if pid == self.init.pid && self.init.is_alive() {
            self.init_exited(exit, effects);
            return;
        }
        let Some(id) = self.exec_with_pid(pid).cloned() else {
            return;
        };
        self.exec_exited(&id, exit, effects);
        self.tell_init_exit_unless_execs_run(effects);
    }

    fn exec_exited(&mut self, id: &ExecId, exit: Exit, effects: &mut Vec<Effect>) {
        let Some(process) = self.execs.get_mut(id) else {
            return;
        };
        effects.push(Effect::Publish(Event::Exited {
            process: ProcessName::Exec(id.clone()),
            pid: process.pid,
            exit,
        }));
        process.stop(exit, effects);
    }

    fn init_exited(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        match self.init.state {
            State::Starting => self.init.early = Some(exit),
            State::Deleting(None) => {
                self.publish_init_exit(exit, effects);
                self.init.state = State::Deleting(Some(exit));
            }
            _ => {
                self.init.state = State::Stopping(exit);
                effects.push(Effect::StopRest);
                self.tell_init_exit_unless_execs_run(effects);
            }
        }
    }

    fn tell_init_exit_unless_execs_run(&mut self, effects: &mut Vec<Effect>) {
        let active = |process: &Process| matches!(process.state, State::Starting | State::Running);
        if !self.execs.values().any(active) {
            self.tell_init_exit(effects);
        }
    }

    fn tell_init_exit(&mut self, effects: &mut Vec<Effect>) {
        if let State::Stopping(exit) = self.init.state {
            self.publish_init_exit(exit, effects);
            self.init.state = State::Stopped(exit);
        }
    }

    fn publish_init_exit(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        effects.push(Effect::Publish(Event::Exited {
            process: ProcessName::Init,
            pid: self.init.pid,
            exit,
        }));
        self.init.stop(exit, effects);
    }

    fn deleted(&mut self, name: &ProcessName, at: SystemTime, effects: &mut Vec<Effect>) {
        let Ok((_, process)) = self.process(name) else {
            return;
        };
        let State::Deleting(exit) = process.state else {
            return;
        };
        match name {
            ProcessName::Exec(id) => {
                if let Some(mut process) = self.execs.remove(id) {
                    process.answer(
                        exit.unwrap_or(Exit {
                            code: CODE_UNKNOWN,
                            at,
                        }),
                        effects,
                    );
                }
            }
            ProcessName::Init => self.all_deleted(exit, at, effects),
        }
    }

    fn all_deleted(&mut self, exit: Option<Exit>, at: SystemTime, effects: &mut Vec<Effect>) {
        let killed = Exit {
            code: CODE_KILLED,
            at,
        };
        for (id, mut process) in std::mem::take(&mut self.execs) {
            if process.state == State::Running {
                effects.push(Effect::Publish(Event::Exited {
                    process: ProcessName::Exec(id),
                    pid: process.pid,
                    exit: killed,
                }));
            }
            process.answer(killed, effects);
        }
        let exit = exit.unwrap_or_else(|| {
            // Deleted before its start: the deletion killed it and its end was not told yet.
            self.publish_init_exit(killed, effects);
            killed
        });
        let pid = self.init.pid;
        effects.push(Effect::Publish(Event::Deleted { pid, exit }));
        self.init.state = State::Deleted;
    }

    fn delete_failed(&mut self, name: &ProcessName) {
        let Ok((_, process)) = self.process(name) else {
            return;
        };
        if let State::Deleting(exit) = process.state {
            process.state = exit.map_or(State::Created, State::Stopped);
        }
    }
}

impl Process {
    fn new(pid: i32) -> Self {
        Self {
            state: State::Created,
            pid,
            early: None,
            waiters: BTreeSet::new(),
        }
    }

    /// Whether its end is still to come.
    fn is_alive(&self) -> bool {
        use State::{Deleted, Deleting, Stopped, Stopping};
        !matches!(
            self.state,
            Stopping(_) | Stopped(_) | Deleting(Some(_)) | Deleted
        )
    }

    fn stop(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        self.state = State::Stopped(exit);
        self.answer(exit, effects);
    }

    fn answer(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        let waiters = std::mem::take(&mut self.waiters);
        effects.extend(
            waiters
                .into_iter()
                .map(|waiter| Effect::Answer { waiter, exit }),
        );
    }
}
