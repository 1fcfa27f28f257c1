//! The host's part while the stub sets a container up: hooks, trees of mounts that the stub cannot
//! make, and the listener of its filter. Must not answer once image code runs: the stub has not left the host's tree until Ready.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::{NamespaceKind, Plan};
use launch::control::{FromStub, ToStub};
use launch::plan::{PlannedMount, Toggle};
use network::Namespace;

use crate::channel::Channel;
use crate::create::{self, Stdio};
use crate::listener::Listener;
use crate::{Error, Result, mount_namespace};

/// What is waited for once a stub has its plan.
pub(crate) const WHAT: &str = "the stub's word that the container is set up";

/// A container whose stub has its plan.
pub(crate) struct Furnishing<'a> {
    pub(crate) plan: &'a Plan,
    /// The stub's pid.
    pub(crate) init: i32,
    pub(crate) stdio: Stdio<'a>,
    /// How long the stub's own work may take.
    pub(crate) limit: Duration,
}

/// Whether the host has hooks, or links to move, that the stub is to wait for.
pub(crate) fn host_hooks(plan: &Plan) -> Toggle {
    match create::has_host_hooks(plan) || !plan.net_devices.is_empty() {
        true => Toggle::On,
        false => Toggle::Off,
    }
}

/// Whether the network namespace is new, so that its `lo` is down.
pub(crate) fn loopback(plan: &Plan) -> Toggle {
    let mut namespaces = plan.namespaces.iter();
    match namespaces.any(|it| it.kind == NamespaceKind::Network && it.path.is_none()) {
        true => Toggle::On,
        false => Toggle::Off,
    }
}

impl Furnishing<'_> {
    /// Does what the stub asks for until it is ready; gives the master of its terminal.
    ///
    /// # Errors
    /// What the stub, a hook or a mount failed with, [`Error::Timeout`], or [`Error::Vanished`].
    pub(crate) fn serve(&self, channel: &mut Channel) -> Result<Option<OwnedFd>> {
        let mut hooks = host_hooks(self.plan);
        loop {
            let Some(mut word) = channel.receive()? else {
                return Err(vanished(""));
            };
            match word.message {
                FromStub::Ready => {
                    return match (self.stdio, word.fds.pop()) {
                        (Stdio::Terminal, None) => Err(vanished(": it sent no terminal")),
                        (_, terminal) => Ok(terminal),
                    };
                }
                FromStub::Tree(number) => {
                    let tree = self.tree(number)?;
                    channel.send_with(&ToStub::Tree, &[tree.as_fd()])?;
                }
                FromStub::Listener => {
                    self.pass_on(word.fds.pop())?;
                    channel.send(&ToStub::GoOn)?;
                }
                FromStub::Furnished if hooks == Toggle::On => {
                    hooks = Toggle::Off;
                    self.move_links()?;
                    create::host_hooks(self.plan, self.init)?;
                    channel.wait_for(WHAT, self.limit);
                    channel.send(&ToStub::GoOn)?;
                }
                _ => return Err(vanished(": it said what nobody expects")),
            }
        }
    }

    /// Gives the container the links of the host that it is to have.
    fn move_links(&self) -> Result<()> {
        if self.plan.net_devices.is_empty() {
            return Ok(());
        }
        let failed = |source| Error::NetDevices { source };
        let own = Namespace::open(Path::new("/proc/self/ns/net")).map_err(failed)?;
        let theirs = Namespace::of_process(self.init).map_err(failed)?;
        if theirs.is_hosts() {
            let why = "the network namespace that the container joins is the host's";
            return Err(Error::unsupported("linux.netDevices", why));
        }
        network::hand_over(&self.plan.net_devices, (&own, &theirs)).map_err(failed)
    }

    fn pass_on(&self, fd: Option<OwnedFd>) -> Result<()> {
        match (Listener::of(self.plan, self.init), fd) {
            (Some(listener), Some(fd)) => listener.pass_on(&fd, self.init),
            _ => Err(vanished(": it sent a listener that nobody asked for")),
        }
    }

    /// The tree of a mount, made by us in the stub's mount namespace: what was mounted there before
    /// is part of it.
    fn tree(&self, number: u32) -> Result<OwnedFd> {
        let planned = usize::try_from(number)
            .ok()
            .and_then(|number| self.plan.init.mounts.get(number));
        let Some(PlannedMount::Plain(mount)) = planned else {
            return Err(vanished(": it asked for a mount that is not planned"));
        };
        let path = PathBuf::from(format!("/proc/{}/ns/mnt", self.init));
        let namespace = File::open(&path).map_err(Error::on("open", &path))?;
        let owners = mounts::owners_of(mount).map_err(launch::Error::from)?;
        mount_namespace::within(&namespace, || {
            let tree = mounts::tree_of(mount, owners.as_ref());
            Ok(tree.map_err(launch::Error::from)?)
        })
    }
}

fn vanished(hint: &str) -> Error {
    Error::Vanished {
        what: "the container's init, while it was set up,",
        hint: hint.to_owned(),
    }
}
