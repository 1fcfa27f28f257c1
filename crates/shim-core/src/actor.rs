//! The owner of one container: answers its commands in turn, lets blocking calls run beside it,
//! and reports their outcome to the life cycle, which decides what is told to whom.
//!
//! ```text
//!   Command ──> task::Task::request ──> a job runs beside ──> Done ──> task::Task::notice
//!   Exited  ──────────────────────────────────────────────────────────────┘   │
//!                                                          events, answers <──┘
//! ```
//! No command waits for a job: while `start` hangs, State, Wait and Kill are answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stdio::Streams;
use task::{Accepted, Effect, Event, ExecId, Exit, Notice, ProcessName, Request, Scope, Task};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command::{Command, ContainerCommand, Last, Reply};
use crate::exits::{Exited, Expectation};
use crate::jobs::{self, Done, StartedExec};
use crate::oom::Oom;
use crate::process_io::Io;
use crate::processes::Processes;
use crate::request::{self, Create, Deleted, Exec, ProcessState};
use crate::runtime::Container;
use crate::shim::World;
use crate::waiters::Waiters;
use crate::{Code, ShimError};

/// How long execs may outlive init before init's end is told all the same.
const REST_MAX: Duration = Duration::from_secs(10);

/// A container that was made, before it has an actor.
#[derive(Debug)]
pub(crate) struct Made<C> {
    create: Create,
    pub(crate) container: Arc<C>,
    pid: i32,
    io: Io,
    oom: Oom,
}

/// Owns a container from its creation to its deletion.
#[derive(Debug)]
pub(crate) struct Actor<C> {
    create: Create,
    container: Arc<C>,
    world: World,
    task: Task,
    commands: mpsc::UnboundedReceiver<Command>,
    exits: mpsc::UnboundedReceiver<Exited>,
    claim: mpsc::UnboundedSender<Exited>,
    jobs: JoinSet<Done>,
    /// Only one deletion at a time, even when an earlier one hangs.
    deletion: Arc<tokio::sync::Mutex<()>>,
    /// Who asked for it again while it goes on, as clients do after a restart of containerd.
    joined: Option<Vec<Reply<Deleted>>>,
    processes: Processes,
    waiters: Waiters,
    /// When to stop waiting for execs after init's end.
    rest_overdue: Option<Instant>,
    oom: Oom,
}

impl<C: Container> Made<C> {
    /// `oom` is what the runtime offers to watch.
    pub(crate) fn new(
        create: Create,
        container: Arc<C>,
        pid: i32,
        oom: Result<Option<OwnedFd>, ShimError>,
    ) -> Self {
        let oom = Oom::watch(oom, &create.id);
        Self {
            create,
            container,
            pid,
            io: Io::new(),
            oom,
        }
    }

    /// Starts copying init's streams.
    pub(crate) fn copy(
        &mut self,
        streams: Streams,
        terminal: Option<OwnedFd>,
    ) -> Result<(), ShimError> {
        self.io.copy(streams, terminal)
    }
}

impl<C: Container> Actor<C> {
    /// Tells that the container was created, and claims init's exit from `expectation`.
    pub(crate) fn new(
        made: Made<C>,
        world: World,
        commands: mpsc::UnboundedReceiver<Command>,
        expectation: &Expectation,
    ) -> Self {
        let (task, created) = Task::new(made.pid);
        let (claim, exits) = mpsc::unbounded_channel();
        let actor = Self {
            container: made.container,
            world,
            task,
            commands,
            exits,
            claim,
            jobs: JoinSet::new(),
            deletion: Arc::default(),
            joined: None,
            processes: Processes::new(made.pid, made.create.stdio.clone(), made.io),
            waiters: Waiters::default(),
            rest_overdue: None,
            oom: made.oom,
            create: made.create,
        };
        actor.publish(created);
        expectation.claim(made.pid, &actor.claim);
        actor
    }

    /// Lives until the container was deleted.
    pub(crate) async fn run(mut self) -> Last {
        loop {
            let rest_overdue = self.rest_overdue;
            tokio::select! {
                // Ends come before commands: who asks for the state after an event knows it.
                biased;
                Some(exited) = self.exits.recv() => self.on_exited(exited),
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => {
                        if let Some(last) = self.on_done(done) {
                            return last;
                        }
                    }
                    // A release build aborts on panic; this is for tests.
                    Err(error) => tracing::error!(id = self.create.id, %error, "a job died"),
                },
                () = self.oom.readable() => self.run_beside(jobs::oom(&self.container, &self.world)),
                () = at(rest_overdue) => {
                    self.rest_overdue = None;
                    self.notice(Notice::RestOverdue);
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    // The shim itself has gone.
                    None => return Last(Vec::new()),
                },
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::State { process, reply } => reply.send(self.state(&process)),
            Command::Start { process, reply } => self.start(process, reply),
            Command::Exec { exec, reply } => reply.send(self.add(exec)),
            Command::Delete { process, reply } => self.delete(process, reply),
            Command::Kill {
                process,
                signal,
                scope,
                reply,
            } => {
                let request = Request::Kill {
                    process: process.clone(),
                    signal,
                    scope,
                };
                if let Some(reply) = self.allowed(&request, reply) {
                    let target = self.processes.target(process, scope);
                    let job = jobs::kill(&self.container, &self.world, target, signal);
                    self.run_beside(jobs::answer(reply, job));
                }
            }
            Command::Wait { process, reply } => self.wait(process, reply),
            Command::Pause { reply } => {
                if let Some(reply) = self.allowed(&Request::Pause, reply) {
                    self.run_beside(jobs::pause(&self.container, &self.world, reply));
                }
            }
            Command::Resume { reply } => {
                if let Some(reply) = self.allowed(&Request::Resume, reply) {
                    self.run_beside(jobs::resume(&self.container, &self.world, reply));
                }
            }
            Command::Resize {
                process,
                rows,
                columns,
                reply,
            } => {
                let size = stdio::WindowSize { rows, columns };
                let request = Request::Resize(process.clone());
                if let Some(reply) = self.allowed(&request, reply) {
                    let resized = self.processes.io(&process);
                    let resized = resized.map_or(Ok(()), |io| io.resize(size));
                    if resized.is_ok() {
                        let target = self.processes.target(process, Scope::Process);
                        self.container.resized(target, size);
                    }
                    reply.send(resized);
                }
            }
            Command::CloseStdin { process, reply } => {
                let request = Request::CloseIo(process.clone());
                if let Some(reply) = self.allowed(&request, reply) {
                    if let Some(io) = self.processes.io(&process) {
                        io.close_stdin();
                    }
                    reply.send(Ok(()));
                }
            }
            Command::Container(command) => self.on_container_command(command),
        }
    }

    fn on_container_command(&mut self, command: ContainerCommand) {
        let (container, world) = (&self.container, &self.world);
        match command {
            ContainerCommand::Update { request, reply } => {
                let job = jobs::update(container, world, request);
                if let Some(reply) = self.allowed(&Request::Update, reply) {
                    self.run_beside(jobs::answer(reply, job));
                }
            }
            ContainerCommand::Stats { reply } => {
                let job = jobs::stats(container, world);
                if let Some(reply) = self.allowed(&Request::Stats, reply) {
                    self.run_beside(jobs::answer(reply, job));
                }
            }
            ContainerCommand::Pids { reply } => {
                let job = jobs::pids(container, world, self.processes.infos());
                if let Some(reply) = self.allowed(&Request::Pids, reply) {
                    self.run_beside(jobs::answer(reply, job));
                }
            }
            ContainerCommand::Checkpoint { request, reply } => {
                let (container, world) = (Arc::clone(container), world.clone());
                if let Some(reply) = self.allowed(&Request::Checkpoint, reply) {
                    self.run_beside(jobs::checkpoint(&container, &world, request, reply));
                }
            }
        }
    }

    /// Its outcome comes back as a [`Done`].
    fn run_beside(&mut self, job: impl Future<Output = Done> + Send + 'static) {
        self.jobs.spawn(job);
    }

    /// Whether the life cycle allows a request that begins nothing it must be told the end of, or
    /// whose job tells it. If not, the client is told.
    fn allowed<T>(&mut self, request: &Request, reply: Reply<T>) -> Option<Reply<T>> {
        match self.task.request(request) {
            Ok(_) => Some(reply),
            Err(refusal) => {
                reply.send(Err(refusal.into()));
                None
            }
        }
    }

    fn state(&mut self, process: &ProcessName) -> Result<ProcessState, ShimError> {
        let report = match self.task.request(&Request::State(process.clone())) {
            Ok(Accepted::State(report)) => report,
            Ok(_) => {
                return Err(ShimError::new(
                    Code::Internal,
                    "state is answered with a report",
                ));
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let id = match process {
            ProcessName::Init => self.create.id.clone(),
            ProcessName::Exec(id) => id.to_string(),
        };
        Ok(ProcessState {
            id,
            bundle: self.create.bundle.clone(),
            pid: report.pid,
            status: report.status,
            stdio: self.processes.stdio(process),
            exit: report.exit,
        })
    }

    fn add(&mut self, exec: Exec) -> Result<(), ShimError> {
        let added = self.task.request(&Request::Exec(exec.id.clone()))?;
        self.processes.add(exec);
        if let Accepted::Added(event) = added {
            self.publish(event);
        }
        Ok(())
    }

    fn start(&mut self, process: ProcessName, reply: Reply<i32>) {
        let Some(reply) = self.allowed(&Request::Start(process.clone()), reply) else {
            return;
        };
        match process {
            ProcessName::Init => {
                self.run_beside(jobs::start(&self.container, &self.world, reply));
            }
            ProcessName::Exec(id) => {
                let Some(exec) = self.processes.exec(&id) else {
                    return reply.send(Err(ShimError::new(Code::NotFound, id.to_string())));
                };
                let options = self.create.options.clone();
                let job = jobs::exec(&self.container, &self.world, (exec, options), reply);
                self.run_beside(job);
            }
        }
    }

    fn wait(&mut self, process: ProcessName, reply: Reply<Exit>) {
        // Clients that have gone leave their place here.
        for waiter in self.waiters.take_gone() {
            self.task.forget(waiter);
        }
        let waiter = self.waiters.next_id();
        match self.task.request(&Request::Wait { process, waiter }) {
            Ok(Accepted::Exited(exit)) => reply.send(Ok(exit)),
            Ok(_) => self.waiters.add(waiter, reply),
            Err(refusal) => reply.send(Err(refusal.into())),
        }
    }

    fn delete(&mut self, process: ProcessName, reply: Reply<Deleted>) {
        if let (ProcessName::Init, Some(joined)) = (&process, &mut self.joined) {
            return joined.push(reply);
        }
        let state = self.task.request(&Request::State(process.clone()));
        let request = Request::Delete(process.clone());
        let Some(reply) = self.allowed(&request, reply) else {
            return;
        };
        let (pid, exit) = match state {
            Ok(Accepted::State(report)) => (report.pid, report.exit),
            _ => (0, None),
        };
        let deleted = Deleted { pid, exit };
        let ios = self.processes.take_ios(&process);
        match process {
            ProcessName::Init => {
                self.joined = Some(Vec::new());
                let deletion = jobs::Deletion {
                    bundle: self.create.bundle.clone(),
                    one_at_a_time: Arc::clone(&self.deletion),
                    ios,
                    deleted,
                };
                self.run_beside(jobs::delete(&self.container, &self.world, deletion, reply));
            }
            ProcessName::Exec(id) => self.run_beside(jobs::delete_exec(id, ios, deleted, reply)),
        }
    }

    fn on_exited(&mut self, exited: Exited) {
        let Exited { pid, exit } = exited;
        if pid == self.task.pid() {
            // What is told must be on disk first, and an OOM comes before the end it caused.
            let bundle = self.create.bundle.clone();
            self.run_beside(jobs::record(&self.container, &self.world, bundle, exited));
            return;
        }
        self.processes.ended(pid);
        self.notice(Notice::Exited { pid, exit });
    }

    /// Takes note of the end of a job; the last one ends the actor.
    fn on_done(&mut self, done: Done) -> Option<Last> {
        match done {
            Done::Answered => {}
            Done::Started { reply, result } => self.on_started(reply, result),
            Done::ExecStarted { id, reply, result } => self.on_exec_started(id, reply, result),
            Done::Settled {
                reply,
                result,
                notices: (success, failure),
            } => {
                self.notice(if result.is_ok() { success } else { failure });
                reply.send(result);
            }
            Done::Checkpointed {
                path,
                reply,
                result,
            } => {
                if result.is_ok() {
                    self.send_event(request::Event::Checkpointed { path });
                }
                reply.send(result);
            }
            Done::Oom(result) => self.on_oom(result),
            Done::Recorded { exited, oom } => {
                if oom > 0 {
                    self.send_event(request::Event::Oom);
                }
                self.processes.ended(exited.pid);
                self.notice(Notice::Exited {
                    pid: exited.pid,
                    exit: exited.exit,
                });
            }
            Done::ExecDeleted { id, reply, deleted } => {
                self.processes.remove(&id);
                let process = ProcessName::Exec(id);
                self.notice(Notice::Deleted {
                    process,
                    at: SystemTime::now(),
                });
                reply.send(Ok(deleted));
            }
            Done::Deleted { reply, result } => return self.on_deleted(reply, result),
        }
        None
    }

    fn on_started(&mut self, reply: Reply<i32>, result: Result<(), ShimError>) {
        let pid = self.task.pid();
        let process = ProcessName::Init;
        self.notice(match &result {
            Ok(()) => Notice::Started { process, pid },
            Err(_) => Notice::StartFailed {
                process,
                at: SystemTime::now(),
            },
        });
        reply.send(result.map(|()| pid));
    }

    fn on_exec_started(
        &mut self,
        id: ExecId,
        reply: Reply<i32>,
        result: Result<StartedExec, ShimError>,
    ) {
        let result = result.and_then(|started| self.adopt_exec(&id, started));
        if result.is_err() {
            let process = ProcessName::Exec(id);
            self.notice(Notice::StartFailed {
                process,
                at: SystemTime::now(),
            });
        }
        reply.send(result);
    }

    /// Copies the streams of an exec that runs, tells of it, and claims its exit.
    fn adopt_exec(&mut self, id: &ExecId, exec: StartedExec) -> Result<i32, ShimError> {
        let StartedExec {
            started,
            streams,
            expectation,
        } = exec;
        let pid = started.pid;
        let io = self.processes.started(id, pid);
        let copied = io.map_or(Ok(()), |io| io.copy(streams, started.terminal));
        if let Err(error) = copied {
            self.kill_exec(id, pid);
            return Err(error);
        }
        let process = ProcessName::Exec(id.clone());
        self.notice(Notice::Started { process, pid });
        if self.task.exec_with_pid(pid) != Some(id) {
            // Everything was deleted while it started.
            self.kill_exec(id, pid);
            return Err(ShimError::new(
                Code::NotFound,
                format!("exec {id} was deleted"),
            ));
        }
        expectation.claim(pid, &self.claim);
        Ok(pid)
    }

    fn kill_exec(&mut self, id: &ExecId, pid: i32) {
        jobs::kill_unwanted_exec(&self.container, id.to_string(), pid);
    }

    fn on_oom(&mut self, result: Result<u64, ShimError>) {
        match result {
            Ok(0) => self.oom.again(),
            Ok(_) => {
                self.oom.again();
                self.send_event(request::Event::Oom);
            }
            Err(error) => {
                tracing::debug!(id = self.create.id, %error, "no more OOM events are expected");
                self.oom = Oom::none();
            }
        }
    }

    fn on_deleted(
        &mut self,
        reply: Reply<Deleted>,
        result: Result<Deleted, ShimError>,
    ) -> Option<Last> {
        let joined = self.joined.take().unwrap_or_default();
        let replies = joined.into_iter().chain([reply]);
        match result {
            Ok(deleted) => {
                let process = ProcessName::Init;
                let exit = self.notice(Notice::Deleted {
                    process,
                    at: SystemTime::now(),
                });
                let exit = deleted.exit.or(exit);
                let deleted = Deleted { exit, ..deleted };
                Some(Last(replies.map(|reply| (reply, deleted)).collect()))
            }
            Err(error) => {
                self.notice(Notice::DeleteFailed {
                    process: ProcessName::Init,
                });
                replies.for_each(|reply| reply.send(Err(error.clone())));
                None
            }
        }
    }

    /// Reports an outcome and does what follows. Returns the exit in a final event, if one came.
    fn notice(&mut self, notice: Notice) -> Option<Exit> {
        let mut last = None;
        for effect in self.task.notice(notice) {
            match effect {
                Effect::Publish(event) => {
                    if let Event::Deleted { exit, .. } = event {
                        last = Some(exit);
                    }
                    self.publish(event);
                }
                Effect::Answer { waiter, exit } => self.waiters.answer(waiter, exit),
                Effect::StopRest => {
                    self.rest_overdue = Some(Instant::now() + REST_MAX);
                    self.run_beside(jobs::stop_rest(&self.container, &self.world));
                }
            }
        }
        last
    }

    fn publish(&self, event: Event) {
        let id = |process: ProcessName| match process {
            ProcessName::Init => self.create.id.clone(),
            ProcessName::Exec(id) => id.to_string(),
        };
        self.send_event(match event {
            Event::Created { pid } => request::Event::Create {
                bundle: self.create.bundle.clone(),
                rootfs: self.create.rootfs.clone(),
                stdio: self.create.stdio.clone(),
                pid,
            },
            Event::Started { pid } => request::Event::Start { pid },
            Event::ExecAdded { id } => request::Event::ExecAdded { exec_id: id },
            Event::ExecStarted { id, pid } => request::Event::ExecStarted { exec_id: id, pid },
            Event::Paused => request::Event::Paused,
            Event::Resumed => request::Event::Resumed,
            Event::Exited { process, pid, exit } => request::Event::Exit {
                id: id(process),
                pid,
                exit,
            },
            Event::Deleted { pid, exit } => request::Event::Delete { pid, exit },
        });
    }

    fn send_event(&self, event: request::Event) {
        self.world.publisher.publish(&self.create.id, event);
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
