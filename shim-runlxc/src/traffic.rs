//! How fast a container's network may be: limited when it starts and by `update`, lifted with the
//! container where the network outlives it. How, `network` knows.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

use bundle::traffic::{Rate, is_in_pod};
use bundle::{Traffic, names};
use network::{Identity, Limit, Limits, Namespace};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::journal::Journal;
use crate::process::Liveness;
use crate::state_dir::StateDir;
use crate::update::OTHER_LIMIT;
use crate::{Error, Result};

/// A network that may outlive the container, and has limits of ours.
#[derive(Debug, Serialize, Deserialize)]
struct Limited {
    path: PathBuf,
    identity: Identity,
}

impl Container {
    /// Gives the container's network the limits that its annotations ask for, if they do. An update, which
    /// would change the same links, waits: for who has locked the container to start it, else for this.
    pub(crate) fn limit_traffic_at_start(&self, only: Option<&Flock<File>>) -> Result<()> {
        // Who asks for none has nothing that an update changes but what it asks for itself.
        if only.is_none() && Traffic::of(&self.journal.annotations)?.is_none() {
            return Ok(());
        }
        let _turn = match only {
            Some(_) => None,
            None => self.dir.lock_within(OTHER_LIMIT)?,
        };
        // An update may have come before the start.
        let asked = Traffic::of(&Journal::read(&self.dir)?.annotations)?;
        let limited = |rate: &Rate| *rate != Rate::Unlimited;
        self.limit_traffic(Traffic {
            ingress: asked.ingress.filter(limited),
            egress: asked.egress.filter(limited),
        })
    }

    /// Changes the limits of the container's network.
    ///
    /// # Errors
    /// [`Error::Traffic`] with the annotation.
    pub(crate) fn limit_traffic(&self, traffic: Traffic) -> Result<()> {
        if traffic.is_none() {
            return Ok(());
        }
        let failed = |source| Error::Traffic {
            field: traffic.field(),
            source,
        };
        let init = self.init()?;
        let namespace = Namespace::of_process(init.pid).map_err(failed)?;
        if init.liveness()? != Liveness::Alive {
            return Err(Error::NotRunning);
        }
        if namespace.is_hosts() {
            let why = "the container's network is the host's";
            return Err(Error::unsupported(traffic.field(), why));
        }
        self.note_limits(&namespace)?;
        let limit = |rate| match rate {
            Rate::Unlimited => Limit::Lifted,
            Rate::BytesPerSecond(bytes) => Limit::BytesPerSecond(bytes),
        };
        let limits = Limits {
            ingress: traffic.ingress.map(limit),
            egress: traffic.egress.map(limit),
        };
        namespace.run(|| network::limit(limits)).map_err(failed)?;
        tracing::info!(container = %self.journal.id, ?traffic, "network limits");
        Ok(())
    }

    /// Before anything is changed, for `delete`.
    fn note_limits(&self, namespace: &Namespace) -> Result<()> {
        let Some(path) = &self.journal.network else {
            return Ok(());
        };
        // That of a pod ends with its sandbox.
        if is_in_pod(&self.journal.annotations) {
            return Ok(());
        }
        let note = Limited {
            path: path.clone(),
            identity: namespace.identity(),
        };
        let path = self.dir.path().join(names::TRAFFIC);
        let text = serde_json::to_vec(&note).map_err(|e| Error::on("write", &path)(e.into()))?;
        let temporary = path.with_extension("new");
        StateDir::write(&temporary, &text)?;
        std::fs::rename(&temporary, &path).map_err(Error::on("rename to", &path))
    }
}

/// Lifts the limits of a network that is still there behind its container.
///
/// # Errors
/// What the kernel says.
pub(crate) fn lift(dir: &StateDir) -> Result<()> {
    let path = dir.path().join(names::TRAFFIC);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        text => text.map_err(Error::on("read", &path))?,
    };
    let limited: Limited =
        serde_json::from_slice(&text).map_err(|e| Error::on("read", &path)(e.into()))?;
    let failed = |source| Error::Traffic {
        field: format!("network namespace {}", limited.path.display()),
        source,
    };
    if Identity::at(&limited.path).map_err(failed)? != Some(limited.identity) {
        return Ok(());
    }
    let namespace = match Namespace::open(&limited.path) {
        Ok(namespace) if namespace.identity() == limited.identity => namespace,
        // Gone, or made anew, this very moment.
        Ok(_) => return Ok(()),
        Err(_) if !limited.path.exists() => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    namespace.run(network::lift).map_err(failed)
}
