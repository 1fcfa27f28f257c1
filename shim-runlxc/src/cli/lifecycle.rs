//! `create`, `start`, `run`, `kill`, `delete`, `pause`, `resume` and `remount-lxcfs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bundle::Bundle;
use launch::plan::{RootEntry, Toggle};

use super::arguments::{Create, Delete, Id, Kill, Run};
use super::{console, foreground, signal};
use crate::components::Components;
use crate::container::Container;
use crate::create::{self, Created, Parent, Stdio};
use crate::delete::{self, Running};
use crate::host::Host;
use crate::id::ContainerId;
use crate::journal::Phase;
use crate::lxcfs::{self, Lxcfs};
use crate::scope::CgroupManager;
use crate::{Error, Result};

/// How long a `start` waits for a `create` that is at work.
const CREATE_WAIT: Duration = Duration::from_secs(10);

/// The three of this process, to be lent to a container's.
pub(crate) struct OwnStreams(io::Stdin, io::Stdout, io::Stderr);

impl OwnStreams {
    pub(crate) fn get() -> Self {
        Self(io::stdin(), io::stdout(), io::stderr())
    }

    pub(crate) fn lend(&self) -> Stdio<'_> {
        let fds: [BorrowedFd<'_>; 3] = [self.0.as_fd(), self.1.as_fd(), self.2.as_fd()];
        Stdio::Streams(fds)
    }
}

/// What the operator lets containers have, or do without.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the view of their limits comes from.
    pub(crate) lxcfs: Lxcfs,
    /// What of the operator's rich ones may have.
    pub(crate) components: Components,
    /// Whether they may run without what the kernel lacks of no_new_privs and filters.
    pub(crate) hardening_optional: Toggle,
    /// Who makes their cgroups.
    pub(crate) cgroup_manager: CgroupManager,
}

/// Whether we stay with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Until it ends.
    Foreground,
    /// No longer than it takes to start it.
    Detach,
}

/// Whether anybody takes the terminal: the console socket if and only if we do not stay.
pub(crate) fn check_terminal(terminal: Toggle, stay: Stay, socket: Option<&Path>) -> Result<()> {
    match (terminal, stay, socket) {
        (Toggle::On, Stay::Detach, None) => Err(Error::Usage(
            "cannot allocate tty if runlxc will detach without setting console socket".into(),
        )),
        (Toggle::On, Stay::Foreground, Some(_)) | (Toggle::Off, _, Some(_)) => Err(Error::Usage(
            "cannot use console socket if runlxc will not detach or allocate tty".into(),
        )),
        _ => Ok(()),
    }
}

/// `runlxc create ID`
pub(crate) fn create(root: &Path, arguments: &Create, settings: Settings) -> Result<ExitCode> {
    let made = make((root, settings), arguments, Stay::Detach, Parent::Above)?;
    tell(arguments.listeners(), made)?;
    Ok(ExitCode::SUCCESS)
}

/// Who waits for news of a new container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listeners<'a> {
    /// Gets the master of its terminal.
    pub(crate) console_socket: Option<&'a Path>,
    /// Gets a pidfd of init.
    pub(crate) pidfd_socket: Option<&'a Path>,
    /// Gets init's pid.
    pub(crate) pid_file: Option<&'a Path>,
}

impl Create {
    fn listeners(&self) -> Listeners<'_> {
        Listeners {
            console_socket: self.console_socket.as_deref(),
            pidfd_socket: self.pidfd_socket.as_deref(),
            pid_file: self.pid_file.as_deref(),
        }
    }
}

fn make(
    (root, settings): (&Path, Settings),
    arguments: &Create,
    stay: Stay,
    parent: Parent,
) -> Result<Created> {
    let id = ContainerId::parse(&arguments.container_id)?;
    let bundle = Bundle::load(&arguments.bundle)?;
    let process = bundle.spec().process().as_ref();
    let terminal = process
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    let terminal = if terminal { Toggle::On } else { Toggle::Off };
    check_terminal(terminal, stay, arguments.console_socket.as_deref())?;
    let listen_fds = listen_fds();
    let streams = OwnStreams::get();
    create::create(
        &Host::detect()?,
        &create::Request {
            root,
            id: &id,
            bundle: &bundle,
            stdio: match terminal {
                Toggle::On => Stdio::Terminal,
                Toggle::Off => streams.lend(),
            },
            inherited_fds: listen_fds.saturating_add(arguments.preserve_fds),
            more_env: match listen_fds {
                0 => Vec::new(),
                n => vec![format!("LISTEN_FDS={n}"), "LISTEN_PID=1".to_owned()],
            },
            new_keyring: if arguments.no_new_keyring {
                Toggle::Off
            } else {
                Toggle::On
            },
            root_entry: if arguments.no_pivot {
                RootEntry::MoveChroot
            } else {
                RootEntry::Pivot
            },
            parent,
            lxcfs: settings.lxcfs,
            components: settings.components,
            hardening_optional: settings.hardening_optional,
            cgroup_manager: settings.cgroup_manager,
        },
    )
}

/// How many sockets systemd passed to this process (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u32>().ok())
    };
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => 0,
    }
}

/// Hands out pid and terminal of a container whose init waits; undoes it all when that fails.
pub(crate) fn tell(listeners: Listeners<'_>, made: Created) -> Result<Container> {
    let told = made
        .terminal
        .as_ref()
        .zip(listeners.console_socket)
        .map_or(Ok(()), |(terminal, socket)| console::send(socket, terminal))
        .and_then(|()| match listeners.pidfd_socket {
            Some(socket) => console::send_pidfd(socket, made.container.init()?),
            None => Ok(()),
        })
        .and_then(|()| match listeners.pid_file {
            Some(file) => console::write_pid(file, made.container.pid()),
            None => Ok(()),
        });
    if let Err(error) = told {
        drop(made.init);
        made.container.delete()?;
        return Err(error);
    }
    Ok(made.container)
}

/// `runlxc start ID`
///
/// While the container is made it waits for that, within a limit: there are callers that give `create`
/// a moment and do not wait for its end.
pub(crate) fn start(root: &Path, id: &Id) -> Result<ExitCode> {
    let mut container = open(root, &id.container_id)?;
    if container.journal().phase == Phase::Creating {
        // Whoever creates it holds this lock from before the journal's first word to after the last.
        let made = container.dir.lock_within(CREATE_WAIT);
        // It may be undone and gone by now; that counts more than a lock that cannot be taken.
        container = open(root, &id.container_id)?;
        drop(made?);
    }
    container.start()?;
    Ok(ExitCode::SUCCESS)
}

/// `runlxc run ID`
pub(crate) fn run(root: &Path, arguments: &Run, settings: Settings) -> Result<ExitCode> {
    if arguments.detach {
        let made = make(
            (root, settings),
            &arguments.create,
            Stay::Detach,
            Parent::Above,
        )?;
        let container = tell(arguments.create.listeners(), made)?;
        return match container.start() {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                container.delete()?;
                Err(error)
            }
        };
    }
    if let Err(error) = sys::set_subreaper() {
        // Before Linux 3.4: pid 1 of the container tells its end instead.
        tracing::debug!(%error, "orphans of the container will not be reaped here");
    }
    let mut made = make(
        (root, settings),
        &arguments.create,
        Stay::Foreground,
        Parent::Us,
    )?;
    let init = made.init.take().ok_or(Error::NotRunning)?;
    let terminal = made.terminal.take();
    let container = tell(arguments.create.listeners(), made)?;
    let ended = foreground::attach(terminal).and_then(|foreground| {
        container.start()?;
        foreground.wait(init)
    });
    if ended.is_err() || !arguments.keep {
        container.delete()?;
    }
    ended
}

/// `runlxc kill ID [SIGNAL]`
pub(crate) fn kill(root: &Path, arguments: &Kill) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    let number = signal::parse(&arguments.signal)?;
    if arguments.all {
        container.kill_all(number)?;
    } else {
        container.kill(number)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `runlxc delete ID`
pub(crate) fn delete(root: &Path, arguments: &Delete) -> Result<ExitCode> {
    let id = ContainerId::parse(&arguments.container_id)?;
    let running = if arguments.force {
        Running::Kill
    } else {
        Running::Refuse
    };
    delete::delete(root, &id, running)?;
    Ok(ExitCode::SUCCESS)
}

/// `runlxc pause ID`
pub(crate) fn pause(root: &Path, id: &Id) -> Result<ExitCode> {
    open(root, &id.container_id)?.pause()?;
    Ok(ExitCode::SUCCESS)
}

/// `runlxc resume ID`
pub(crate) fn resume(root: &Path, id: &Id) -> Result<ExitCode> {
    open(root, &id.container_id)?.resume()?;
    Ok(ExitCode::SUCCESS)
}

/// `runlxc remount-lxcfs ID`
pub(crate) fn remount_lxcfs(root: &Path, id: &Id) -> Result<ExitCode> {
    let container = open(root, &id.container_id)?;
    let Some(view) = &container.journal().view else {
        return Err(Error::State(
            "the container was made without lxcfs (org.pouch.view)".into(),
        ));
    };
    lxcfs::renew(container.init()?, view)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn open(root: &Path, id: &str) -> Result<Container> {
    Container::open(root, &ContainerId::parse(id)?)
}
