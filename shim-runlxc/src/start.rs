//! From a waiting init to a running program.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bundle::{Status, names};
use launch::control::ToStub;
use launch::hooks::{self, Stage};

use crate::channel::Channel;
use crate::container::{Container, KILL_LIMIT, START_LIMIT};
use crate::listener::Starting;
use crate::{Error, Result, connect, wait};

impl Container {
    /// Limits the container's network, runs the prestart hook of a rich container, lets init run
    /// startContainer hooks and become the program; then runs poststart hooks, and waits until the
    /// program is ready where that is asked for.
    ///
    /// # Errors
    /// [`Error::State`] unless the container is created; [`Error::Inside`] with the reason why the
    /// program does not run; a failed prestart or poststart hook, after which init has been killed
    /// (runtime-spec runtime.md, Lifecycle).
    pub fn start(&self) -> Result<()> {
        let only = self.only_start()?;
        match self.status()? {
            Status::Created => {}
            Status::Stopped => {
                return Err(Error::State(
                    "cannot start a container that has stopped".into(),
                ));
            }
            Status::Running => return Err(already_running()),
            other => {
                return Err(Error::State(format!(
                    "cannot start a container in the {} state",
                    other.as_str()
                )));
            }
        }
        if let Err(error) = self
            .limit_traffic_at_start(only.as_ref())
            .and_then(|()| self.prestart())
        {
            self.end_init()?;
            return Err(error);
        }
        let awaited = match self.begin_to_await() {
            Ok(awaited) => awaited,
            Err(error) => {
                self.end_init()?;
                return Err(error);
            }
        };
        let limit = Duration::from_secs(self.journal.start_limit_s);
        let what = "the start of the container's program";
        let channel = Channel::over(self.connect()?, what, limit)?;
        let starting = Starting::of(self, Status::Created, self.pid());
        let answer = channel
            .send(&ToStub::Start)
            .and_then(|()| starting.await_program(&channel));
        match answer {
            Ok(true) => {}
            Ok(false) => {
                self.end_init()?;
                return Err(Error::Vanished {
                    what: "the container's init",
                    hint: ": it did not start".into(),
                });
            }
            // Another `start` was first: its success closed the socket we were waiting on.
            Err(Error::Launch(launch::Error::Socket { source, .. }))
                if matches!(
                    source.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                ) =>
            {
                return Err(already_running());
            }
            Err(error) => {
                self.end_init()?;
                return Err(error);
            }
        }
        self.forget_start_socket()?;
        self.poststart()?;
        match awaited.map_or(Ok(()), |awaited| self.await_ready(awaited)) {
            Err(error) => {
                self.end_init()?;
                Err(error)
            }
            ready => ready,
        }
    }

    /// Makes sure that an init which did not start is seen as stopped by whoever asks next.
    fn end_init(&self) -> Result<()> {
        let Some(init) = self.journal.init else {
            return Ok(());
        };
        init.kill()?;
        wait::until_ended(init, KILL_LIMIT)
    }

    fn connect(&self) -> Result<OwnedFd> {
        let socket = self.dir.start_socket();
        match connect::below(self.dir.path(), names::START_SOCKET, START_LIMIT) {
            Ok(socket) => Ok(socket),
            Err(e) if e.kind() == ErrorKind::TimedOut => Err(Error::Timeout {
                what: "the connection to the container's init",
                limit: START_LIMIT,
            }),
            // Nobody listens, init lives: a `start` was killed after init had become the program.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                self.forget_start_socket()?;
                Err(already_running())
            }
            Err(e) => Err(Error::on("connect to", &socket)(e)),
        }
    }

    /// Its absence is what tells a running container from a created one.
    fn forget_start_socket(&self) -> Result<()> {
        let socket = self.dir.start_socket();
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::on("remove", &socket)(e)),
            _ => Ok(()),
        }
    }

    fn poststart(&self) -> Result<()> {
        if self.journal.hooks_poststart.is_empty() {
            return Ok(());
        }
        let state = self.state_json(Status::Running);
        let done = hooks::run_all(&self.journal.hooks_poststart, &state, Stage::Poststart);
        if done.is_err() {
            self.end_init()?;
        }
        Ok(done?)
    }
}

fn already_running() -> Error {
    Error::State("cannot start an already running container".into())
}
