//! The main process of the program's job: parent of the program, which it gets from the keeper, and
//! writer of its status. After it the init is told to end all in order.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use sys::ExitStatus;
use sys::pty::set_controlling;

use crate::control::{self, Received};
use crate::error::{Error, Result, host};
use crate::init::End;
use crate::plan::{Process, Restart, Rewrite};
use crate::process;
use crate::procfs::Proc;
use crate::reaper::{self, Beside, Outcome, Passage, Reaper, Side};
use crate::restarts::{self, Restarts, Signals};

use super::keeper::Kept;
use super::{OWN, keeper, refusal};

/// Of a program that was not seen to end: whoever kills its parent kills it, too.
const KILLED: i32 = 137;

/// Of a program that could not be started.
const FAILED: i32 = 255;

/// What has the program's parent kill it: nothing can be passed on that kills the parent itself.
pub(super) const END_AT_ONCE: Rewrite = Rewrite {
    from: 64,
    to: Some(Signal::SIGKILL as i32),
};

/// Where the status is for the last pid 1.
pub(super) fn status_path() -> String {
    format!("{OWN}/status")
}

/// Runs the program of a container, as a job of its init.
///
/// # Errors
/// Whatever keeps the program from running. Nothing is done where this process is not the copy in
/// [`OWN`].
pub fn run() -> Result<End> {
    refuse_elsewhere()?;
    let mut status = Status::create()?;
    status.write(FAILED)?;
    let application = Application::receive()?;
    if application.restart != Restart::Never
        && let Some(end) = again_and_again(application.restart, &mut status)?
    {
        return Ok(end);
    }
    match start(application)? {
        Started::Parent(reaper, plan) => {
            status.write(KILLED)?;
            let ended = stay(reaper, &plan);
            status.write(ended.as_ref().map_or(FAILED, |ended| ended.code()))?;
            Ok(End::Program(ended?))
        }
        Started::Child(child) => match *child {
            Some(child) => child.become_program(),
            None => Ok(End::Abandoned),
        },
    }
}

/// Forks the parent of the program as often as it is to be started; gives how this process ends, unless
/// it is that parent.
fn again_and_again(policy: Restart, status: &mut Status) -> Result<Option<End>> {
    let mut restarts = Restarts::new(policy, Signals::First)?;
    loop {
        match restarts.fork()? {
            restarts::Side::First => {}
            restarts::Side::Forked(_) => return Ok(None),
            restarts::Side::Stopped => return Ok(Some(End::Abandoned)),
        }
        if let Some(code) = restarts.wait(|code| status.write(code))? {
            return Ok(Some(End::Program(ExitStatus::Exited(code))));
        }
    }
}

/// Refuses to be anything but the copy in [`OWN`]: on a host, pid 1 would be the host's.
pub(super) fn refuse_elsewhere() -> Result<()> {
    let own = std::env::current_exe().unwrap_or_default();
    if own == Path::new(OWN).join("init") {
        return Ok(());
    }
    Err(refusal("only a job of a container's init runs this"))
}

enum Started {
    Parent(Reaper, Box<Process>),
    /// None: its parent is gone.
    Child(Box<Option<Application>>),
}

fn start(application: Application) -> Result<Started> {
    match reaper::fork()? {
        Side::Parent(reaper) => Ok(Started::Parent(reaper, Box::new(application.plan))),
        Side::Child(gate) => Ok(Started::Child(Box::new(match gate.wait() {
            Passage::Open => Some(application),
            Passage::Closed => None,
        }))),
    }
}

fn stay(reaper: Reaper, plan: &Process) -> Result<ExitStatus> {
    match reaper
        .settle(plan, &Proc::open()?, Beside::default())?
        .run(&[END_AT_ONCE])?
    {
        Outcome::Ended(status) => Ok(status),
        // Only an agent has processes join, and there is none.
        Outcome::Joins(_) => Err(Error::Unexpected("in a job of the image's init")),
    }
}

/// What the keeper gave.
struct Application {
    plan: Process,
    restart: Restart,
    fds: Vec<OwnedFd>,
}

impl Application {
    fn receive() -> Result<Self> {
        // Its plan is given once: whoever asks again has no program to run.
        let socket = keeper::say(keeper::Word::Application, &[])?;
        match control::recv(&socket)? {
            Some(Received {
                message: Kept { process, restart },
                fds,
                ..
            }) => Ok(Self {
                plan: process,
                restart,
                fds,
            }),
            None => Err(Error::Unexpected("instead of a program")),
        }
    }

    /// Returns only on failure, which is told on the program's own standard error.
    fn become_program(self) -> Result<End> {
        wear(&self.fds)?;
        let prepared = process::prepare(&self.plan)?;
        // Plans with a listener are refused for these containers.
        prepared.commit()?;
        Err(prepared.execute())
    }
}

/// Makes them the standard streams: three, or one terminal.
fn wear(fds: &[OwnedFd]) -> Result<()> {
    let (stdin, stdout, stderr) = match fds {
        [terminal] => {
            set_controlling(terminal)
                .map_err(host(|| "set the controlling terminal".to_owned()))?;
            (terminal, terminal, terminal)
        }
        [stdin, stdout, stderr] => (stdin, stdout, stderr),
        _ => return Err(refusal("the program's standard streams did not come")),
    };
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(host(|| "take over the standard streams".to_owned()))
}

/// The file with the status: three digits, overwritten as a whole.
struct Status(File);

impl Status {
    fn create() -> Result<Self> {
        let path = status_path();
        let file = File::create(&path).map_err(host(|| format!("create {path}")))?;
        Ok(Self(file))
    }

    fn write(&mut self, code: i32) -> Result<()> {
        let text = format!("{:03}\n", code & 0xff);
        self.0
            .rewind()
            .and_then(|()| self.0.write_all(text.as_bytes()))
            .map_err(host(|| format!("write {}", status_path())))
    }
}
