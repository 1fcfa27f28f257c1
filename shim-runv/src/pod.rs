//! Which machine a container runs in: its own, or that of its pod. Containers of CRI say it by annotations;
//! the machine lives as long as its sandbox, and takes the disks of those that join it while it runs.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use guest::call::namespaces_path;
use network::Identity;
use serde_json::{Value, json};

use crate::image::Name;
use crate::journal::StateDir;
use crate::machine::Machine;
use crate::qemu::SCSI;
use crate::sharing::Sharing;
use crate::stage::Staged;
use crate::volumes::Shared;
use crate::{Error, Result};

/// The annotations of containerd's CRI.
pub(crate) const TYPE: &str = "io.kubernetes.cri.container-type";
pub(crate) const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// Namespaces of a sandbox that its containers may join, by their names in proc(5). That of the network
/// is the machine's own.
const JOINABLE: [&str; 3] = ["ipc", "pid", "uts"];

/// Logical units that a SCSI adapter of virtio's has, from 1: 0 is that of the adapter's own answers.
const UNITS_MAX: u16 = 16383;

/// What a container is in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is in none.
    Alone,
    /// The one that lives as long as the pod.
    Sandbox,
    /// One that joins this sandbox.
    Member(String),
}

impl Kind {
    /// What the annotations say.
    ///
    /// # Errors
    /// [`Error::Usage`] with the one that makes no sense.
    pub(crate) fn of(config: &Value) -> Result<Self> {
        let annotation = |name: &str| config["annotations"][name].as_str();
        match (annotation(TYPE), annotation(SANDBOX)) {
            (None, _) => Ok(Self::Alone),
            (Some("sandbox"), _) => Ok(Self::Sandbox),
            (Some("container"), Some(id)) => Ok(Self::Member(id.to_owned())),
            (Some("container"), None) => Err(Error::Usage(format!(
                "annotations.{TYPE} is container, and annotations.{SANDBOX} is missing"
            ))),
            (Some(other), _) => Err(Error::Usage(format!(
                "annotations.{TYPE} is {other:?}, and neither sandbox nor container"
            ))),
        }
    }
}

/// Where a container is, as far as its config.json is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// In a machine of its own.
    Alone,
    /// In a pod's machine, as its sandbox.
    Sandbox,
    /// In a pod's machine, with that sandbox.
    Member {
        /// Its id.
        id: &'a str,
        /// The pid by which the host knows it.
        pid: i32,
    },
}

impl Place<'_> {
    /// The path in the guest of a namespace that has that path on the host.
    pub(crate) fn joined(&self, path: &str) -> Option<String> {
        let Self::Member { id, pid } = self else {
            return None;
        };
        let name = path.strip_prefix(&format!("/proc/{pid}/ns/"))?;
        JOINABLE
            .contains(&name)
            .then(|| format!("{}/{name}", namespaces_path(id)))
    }
}

/// A machine and whose it is.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The container that it ends with.
    pub(crate) id: String,
    /// The state directory of that.
    pub(crate) dir: StateDir,
    /// The machine.
    pub(crate) machine: Machine,
    /// Its network namespace on the host.
    pub(crate) network: Identity,
    /// Its guest image.
    pub(crate) guest: Name,
    /// Files that its containers are given; none where containerd does that.
    pub(crate) files: Option<PathBuf>,
    /// Given last.
    units: AtomicU16,
}

impl Sandbox {
    /// Of this container.
    pub(crate) fn new(
        (id, dir): (String, StateDir),
        machine: Machine,
        network: Identity,
        guest: Name,
    ) -> Self {
        Self {
            id,
            dir,
            machine,
            network,
            guest,
            files: None,
            units: AtomicU16::new(0),
        }
    }

    /// Where a container that joins it is.
    pub(crate) fn member(&self) -> Place<'_> {
        Place::Member {
            id: &self.id,
            pid: self.machine.pid,
        }
    }

    /// Gives the machine a disk, read-only.
    ///
    /// # Errors
    /// What QEMU says against it; the machine is as it was then.
    pub(crate) fn plug(self: &Arc<Self>, path: &Path) -> Result<Plugged> {
        let unit = self.next_unit();
        let name = format!("disk{unit}");
        let opened = File::open(path).map_err(Error::on("open", path))?;
        // It has no file of the host but those that it is given.
        let file = format!("/dev/fdset/{unit}");
        let file = json!({"driver": "file", "filename": file, "locking": "off"});
        let disk = json!({"driver": "raw", "node-name": name, "read-only": true, "file": file});
        let device = json!({
            "driver": "scsi-hd", "id": name, "bus": format!("{SCSI}.0"), "drive": name,
            "scsi-id": 0, "lun": unit
        });
        let monitor = &self.machine.monitor;
        monitor.add_file(unit, opened.as_fd())?;
        let plugged = monitor.execute("blockdev-add", &disk).and_then(|_| {
            let plugged = monitor.execute("device_add", &device);
            plugged.inspect_err(|_| {
                // The first error is the one to tell.
                let _left = monitor.execute("blockdev-del", &json!({"node-name": name}));
            })
        });
        if let Err(error) = plugged {
            let _left = monitor.execute("remove-fd", &json!({"fdset-id": unit}));
            return Err(error);
        }
        Ok(Plugged {
            sandbox: Arc::clone(self),
            unit,
        })
    }

    /// One that the guest has not seen for as long as possible, so that it never takes a new disk for an
    /// old one.
    fn next_unit(&self) -> u16 {
        let next = |unit| Some(unit % UNITS_MAX + 1);
        let order = Ordering::Relaxed;
        let before = self.units.fetch_update(order, order, next);
        before.unwrap_or_default() % UNITS_MAX + 1
    }

    /// Shares a volume with the machine.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub(crate) fn share(&self, volume: &Shared) -> Result<Staged> {
        let none = || Error::unsupported("sharing", "this machine shares no volumes");
        self.machine.share.as_ref().ok_or_else(none)?.add(volume)
    }

    /// How its containers see volumes.
    pub(crate) fn sharing(&self) -> Sharing {
        match &self.machine.share {
            Some(_) => Sharing::Live,
            None => Sharing::OF_PODS,
        }
    }

    fn unplug(&self, unit: u16) -> Result<()> {
        let name = format!("disk{unit}");
        let monitor = &self.machine.monitor;
        monitor.remove_device(&name)?;
        monitor.execute("blockdev-del", &json!({"node-name": name}))?;
        monitor
            .execute("remove-fd", &json!({"fdset-id": unit}))
            .map(drop)
    }
}

/// A disk in a machine. Dropped, it is taken out.
#[derive(Debug)]
pub(crate) struct Plugged {
    sandbox: Arc<Sandbox>,
    /// Its logical unit.
    pub(crate) unit: u16,
}

impl Drop for Plugged {
    fn drop(&mut self) {
        match self.sandbox.unplug(self.unit) {
            // A machine that is gone has no disks.
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => {
                let error = error.chain();
                tracing::warn!(
                    sandbox = self.sandbox.id,
                    unit = self.unit,
                    error,
                    "a disk stays"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_what_a_container_is() {
        let check = |annotations: Value, expected: std::result::Result<Kind, &str>| {
            let found = Kind::of(&json!({"annotations": annotations}));
            assert_eq!(
                found.map_err(|error| error.to_string()),
                expected.map_err(str::to_owned)
            );
        };
        check(json!({}), Ok(Kind::Alone));
        check(json!({SANDBOX: "s"}), Ok(Kind::Alone));
        check(json!({TYPE: "sandbox", SANDBOX: "s"}), Ok(Kind::Sandbox));
        let member = Kind::Member("s".into());
        check(json!({TYPE: "container", SANDBOX: "s"}), Ok(member));
        let lacking = "annotations.io.kubernetes.cri.container-type is container, and \
                       annotations.io.kubernetes.cri.sandbox-id is missing";
        check(json!({TYPE: "container"}), Err(lacking));
        let other = "annotations.io.kubernetes.cri.container-type is \"other\", and neither \
                     sandbox nor container";
        check(json!({TYPE: "other"}), Err(other));
    }

    #[test]
    fn only_the_sandboxs_namespaces_are_joined() {
        let member = Place::Member { id: "s", pid: 42 };
        let joined = member.joined("/proc/42/ns/ipc");
        assert_eq!(joined.as_deref(), Some("/run/containers/s/ns/ipc"));
        for path in [
            "/proc/43/ns/ipc",
            "/proc/42/ns/mnt",
            "/proc/42/ns/ipc/..",
            "/run/ns",
        ] {
            assert_eq!(member.joined(path), None);
        }
        assert_eq!(Place::Sandbox.joined("/proc/42/ns/ipc"), None);
    }
}
