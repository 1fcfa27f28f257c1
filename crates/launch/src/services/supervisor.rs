//! The process that starts services, starts those again that end, and stops them all.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;
use sys::process::kill_number;
use sys::{ExitStatus, Pid};

use crate::control::{self, FromStub, ToStub};
use crate::devices;
use crate::error::{Result, host};
use crate::init::End;
use crate::plan::{Service, ServiceKind, Services, When};
use crate::process;

use super::process::{Life, WAIT_MAX, WAIT_MIN, after_end, ended_early, failed, script, start};
use super::readiness::Watch;

/// How long one may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long one that was killed is waited for: the rights of the program may be too few to kill another
/// user's, and the end of pid 1 takes what is left.
const KILLED_LIMIT: Duration = Duration::from_secs(5);

/// The supervisor, before it does anything.
pub(crate) struct Supervisor {
    services: Box<Services>,
    socket: UnixStream,
}

impl Supervisor {
    pub(super) fn new(services: Box<Services>, socket: UnixStream) -> Self {
        Self { services, socket }
    }

    /// Supervises until it is told to end.
    pub(crate) fn run(self) -> Result<End> {
        match self.serve() {
            Ok(end) => Ok(end),
            Err(error) => {
                let failed = FromStub::Failed(error.failure());
                // Nobody waits for it once all were ready.
                let _unheard = control::send(&self.socket, &failed, &[]);
                Ok(End::Failed)
            }
        }
    }

    fn serve(&self) -> Result<End> {
        let step = || "become the supervisor of services".to_owned();
        SigSet::all().thread_set_mask().map_err(host(step))?;
        setsid().map_err(host(step))?;
        devices::all_streams_to_null()?;
        let environment = process::live_as(&self.services.process)?;
        match control::recv::<ToStub>(&self.socket)? {
            Some(received) if received.message == ToStub::Start => {}
            _ => return Ok(End::Abandoned),
        }
        let signals = SignalFd::with_flags(
            &SigSet::all(),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        );
        let mut running = Running {
            lives: vec![Life::Down; self.services.list.len()],
            watches: self.services.list.iter().map(|_| Watch::None).collect(),
            services: &self.services.list,
            environment,
            signals: signals.map_err(host(step))?,
            is_ending: false,
        };
        let started = running.start_all();
        if started.is_ok() {
            // Who waited for it may have been killed.
            let _unheard = control::send(&self.socket, &FromStub::Ready, &[]);
            running.plan_later_ones();
            running.supervise()?;
        }
        running.stop_all()?;
        started.map(|()| End::Forked)
    }
}

struct Running<'a> {
    services: &'a [Service],
    lives: Vec<Life>,
    /// What is left of them since the services were ready.
    watches: Vec<Watch>,
    environment: Vec<String>,
    signals: SignalFd,
    is_ending: bool,
}

impl Running<'_> {
    fn start_all(&mut self) -> Result<()> {
        let services = self.services.iter().enumerate();
        services
            .filter(|(_, service)| service.when == When::Before)
            .try_for_each(|(index, service)| self.start_until_ready(index, service))
    }

    /// What comes after the program is started as what has ended is.
    fn plan_later_ones(&mut self) {
        let until = Instant::now();
        for (life, service) in self.lives.iter_mut().zip(self.services) {
            if service.when == When::After {
                let wait = WAIT_MIN;
                *life = Life::Waiting { until, wait };
            }
        }
    }

    fn start_until_ready(&mut self, index: usize, service: &Service) -> Result<()> {
        let ready = match &service.kind {
            ServiceKind::Script => Watch::None,
            ServiceKind::Command { ready, .. } => Watch::begin(service, ready)?,
        };
        let life = start(service, &self.environment, ready.environment(), None)?;
        self.lives[index] = life;
        let limit = Duration::from_secs(Services::LIMIT_S.into());
        let deadline = Instant::now() + limit;
        while !ready.is_ready() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(failed(
                    service,
                    format_args!("is not ready after {limit:?}"),
                ));
            };
            let pause = ready.look_every().map_or(left, |every| every.min(left));
            for (pid, status) in self.wait(&ready, Some(pause))? {
                if matches!(life, Life::Up { pid: own, .. } if own == pid) {
                    return Err(ended_early(service, status));
                }
            }
            if self.is_ending {
                return Err(failed(service, "was stopped before it was ready"));
            }
        }
        self.watches[index] = ready.once_ready();
        Ok(())
    }

    /// Starts again what has ended, until all shall end.
    fn supervise(&mut self) -> Result<()> {
        while !self.is_ending {
            let now = Instant::now();
            let services = self.services;
            let all = self.lives.iter_mut().zip(&self.watches).zip(services);
            for ((life, watch), service) in all {
                if let Life::Waiting { until, wait } = *life
                    && until <= now
                {
                    let again = start(service, &self.environment, watch.environment(), Some(wait));
                    // What cannot be started now is tried again, too.
                    *life = again.unwrap_or(Life::Waiting {
                        until: now + wait,
                        wait: (wait * 2).min(WAIT_MAX),
                    });
                }
            }
            let next = self.lives.iter().filter_map(|life| match life {
                Life::Waiting { until, .. } => Some(until.saturating_duration_since(now)),
                _ => None,
            });
            let limit = next.min();
            self.wait(&Watch::None, limit)?;
        }
        Ok(())
    }

    /// The last one first. What goes wrong keeps none from being stopped.
    fn stop_all(&mut self) -> Result<()> {
        for (index, service) in self.services.iter().enumerate().rev() {
            match self.lives[index] {
                Life::Started => {
                    let _failed = script(service, "stop", &self.environment);
                }
                Life::Up { pid, .. } => self.stop(index, pid)?,
                Life::Down | Life::Waiting { .. } => {}
            }
            self.lives[index] = Life::Down;
        }
        Ok(())
    }

    fn stop(&mut self, index: usize, pid: Pid) -> Result<()> {
        let group = Pid::from_raw(-pid.as_raw());
        let mut deadline = Instant::now() + STOP_LIMIT;
        let mut is_killed = false;
        // ESRCH: it has just ended, which is about to be seen.
        let _sent = kill_number(group, Signal::SIGTERM as i32);
        let _sent = kill_number(group, Signal::SIGCONT as i32);
        while matches!(self.lives[index], Life::Up { .. }) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && is_killed {
                return Ok(());
            }
            if left.is_zero() {
                let _sent = kill_number(group, Signal::SIGKILL as i32);
                deadline = Instant::now() + KILLED_LIMIT;
                is_killed = true;
                continue;
            }
            self.wait(&Watch::None, Some(left))?;
        }
        Ok(())
    }

    /// Waits for a signal, for word of a service, or so long; gives who has ended. Takes the word of
    /// those that have been ready.
    fn wait(&mut self, ready: &Watch, limit: Option<Duration>) -> Result<Vec<(Pid, ExitStatus)>> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let watches = self.watches.iter().chain([ready]);
        fds.extend(
            watches
                .filter_map(Watch::descriptor)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        let limit = match limit {
            // Up to the next millisecond: an early wake would be for nothing.
            Some(limit) => {
                PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        poll(&mut fds, limit).map_err(host(|| "wait for services".to_owned()))?;
        for watch in &self.watches {
            // It has been ready before.
            let _again = watch.is_ready();
        }
        let mut ended = Vec::new();
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match i32::try_from(signal.ssi_signo) {
                Ok(number) if number == Signal::SIGCHLD as i32 => ended.extend(sys::reap()),
                Ok(number) if number == Signal::SIGTERM as i32 => self.is_ending = true,
                _ => {}
            }
        }
        let now = Instant::now();
        for &(pid, _) in &ended {
            for life in &mut self.lives {
                *life = after_end(*life, pid, now);
            }
        }
        Ok(ended)
    }
}
