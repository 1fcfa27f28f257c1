//! What of the host a machine shares while it runs: whether it does at all, and what that takes. Another
//! process maps its memory then.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bundle::annotations::RUNV_VOLUMES;
use cgroups::Cgroup;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde_json::Value;
use sys::Child;

use crate::journal::StateDir;
use crate::stage::{Stage, Staged};
use crate::virtiofsd::{Daemon, Virtiofsd};
use crate::volumes::{self, Shared};
use crate::{Error, Result};

/// From the end of QEMU's sockets to its own.
const END_GRACE: Duration = Duration::from_secs(1);

/// What [`RUNV_VOLUMES`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The host's, as they are.
    Shared,
    /// Copies.
    Copied,
    /// What there is.
    Nothing,
}

impl Asked {
    /// By the annotations of config.json.
    ///
    /// # Errors
    /// [`Error::Usage`] for another word.
    pub(crate) fn of(config: &Value) -> Result<Self> {
        match config["annotations"][RUNV_VOLUMES].as_str() {
            None => Ok(Self::Nothing),
            Some("shared") => Ok(Self::Shared),
            Some("copied") => Ok(Self::Copied),
            Some(other) => Err(Error::Usage(format!(
                "annotations.{RUNV_VOLUMES} is {other:?}, and neither shared nor copied"
            ))),
        }
    }
}

/// How a container sees volumes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// As they are: what changes on one side is seen on the other.
    Live,
    /// As copies; why not live.
    Copies(&'static str),
}

impl Sharing {
    /// What pods have that ask for nothing else.
    pub(crate) const OF_PODS: Self =
        Self::Copies("its pod is without the annotation org.pouch.runv.volumes=shared");

    /// Of a container with a machine of its own, which is made when its volumes are known. Looking for a
    /// virtiofsd runs it, which none waits for that has no use for it.
    ///
    /// # Errors
    /// [`Error::NoVirtiofsd`] when it is asked for and there is none, [`Error::NoMountSetattr`] when the kernel
    /// is too old for it.
    pub(crate) fn alone(asked: Asked, config: &Value) -> Result<Self> {
        if asked == Asked::Copied {
            let why = "the annotation org.pouch.runv.volumes asks for copies";
            return Ok(Self::Copies(why));
        }
        if asked == Asked::Nothing && !volumes::are_wanted(config) {
            return Ok(Self::Copies("it binds nothing of the host's"));
        }
        match Virtiofsd::find() {
            Ok(_) => Ok(Self::Live),
            Err(none) if asked == Asked::Shared => Err(none),
            Err(Error::NoMountSetattr) => Ok(Self::Copies("this kernel is older than 5.12")),
            Err(_) => Ok(Self::Copies("this host has no virtiofsd")),
        }
    }

    /// Of a pod's containers, whose machine is made before their volumes are known.
    ///
    /// # Errors
    /// As [`Self::alone`].
    pub(crate) fn pod(asked: Asked) -> Result<Self> {
        match asked {
            Asked::Shared => Virtiofsd::find().map(|_| Self::Live),
            Asked::Nothing | Asked::Copied => Ok(Self::OF_PODS),
        }
    }

    /// Of a container that joins a pod which shares so.
    ///
    /// # Errors
    /// [`Error::Usage`] when it asks for something else.
    pub(crate) fn member(self, asked: Asked) -> Result<Self> {
        let other = match (asked, self) {
            (Asked::Shared, Self::Copies(_)) => "shared, and those of its pod are copied",
            (Asked::Copied, Self::Live) => "copied, and those of its pod are shared",
            _ => return Ok(self),
        };
        Err(Error::Usage(format!(
            "annotations.{RUNV_VOLUMES} is {other}"
        )))
    }
}

/// Volumes of one machine and who serves them. Dropped, nobody does.
#[derive(Debug)]
pub(crate) struct Share {
    stage: Arc<Stage>,
    daemon: Daemon,
}

/// What QEMU gets of it.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The guest's memory.
    pub(crate) memory: OwnedFd,
    /// The daemon's socket.
    pub(crate) socket: OwnedFd,
}

impl Share {
    /// Starts to serve nothing yet.
    pub(crate) fn start(memory_mib: u64, cgroup: &Cgroup, dir: &StateDir) -> Result<(Self, Ends)> {
        let program = Virtiofsd::find()?;
        let stage = Stage::make(&program.path)?;
        let (daemon, socket) = Daemon::start(&program, &stage, cgroup, dir)?;
        let stage = Arc::new(stage);
        let memory = memory(memory_mib << 20)?;
        let socket = socket.into();
        Ok((Self { stage, daemon }, Ends { memory, socket }))
    }

    /// Ends a machine whose volumes nobody serves any more: its processes would wait for ever.
    pub(crate) fn guard(&self, qemu: &Arc<Mutex<Child>>) -> Result<()> {
        let qemu = Arc::clone(qemu);
        self.daemon.follow(move |said| {
            let mut qemu = qemu.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(qemu.wait_timeout(END_GRACE), Ok(None)) {
                let pid = qemu.pid().as_raw();
                tracing::error!(
                    pid,
                    said,
                    "virtiofsd has ended under a virtual machine, which is killed"
                );
                // It may have ended by itself in between.
                let _gone = qemu.kill(nix::sys::signal::Signal::SIGKILL);
            }
        })
    }

    /// Shares a volume.
    pub(crate) fn add(&self, volume: &Shared) -> Result<Staged> {
        self.stage.add(volume)
    }

    /// What the daemon said last.
    pub(crate) fn said(&self) -> String {
        self.daemon.said()
    }

    /// Ends it; the machine has ended.
    pub(crate) fn end(&self) {
        self.daemon.end();
    }
}

/// Memory that two processes map, and neither can make larger or smaller under the other.
fn memory(bytes: u64) -> Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let memory = File::from(memory);
        memory.set_len(bytes)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&memory, seals)?;
        Ok(memory.into())
    };
    make().map_err(Error::io(format!("make {bytes} bytes of memory to share")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_annotation_has_two_words() {
        let asked = |value: Value| Asked::of(&json!({"annotations": {RUNV_VOLUMES: value}}));
        assert_eq!(asked(json!("shared")).unwrap(), Asked::Shared);
        assert_eq!(asked(json!("copied")).unwrap(), Asked::Copied);
        assert_eq!(Asked::of(&json!({})).unwrap(), Asked::Nothing);
        let error = asked(json!("live")).unwrap_err().to_string();
        let expected =
            "annotations.org.pouch.runv.volumes is \"live\", and neither shared nor copied";
        assert_eq!(error, expected);
    }

    #[test]
    fn who_binds_nothing_does_not_look_for_a_virtiofsd() {
        let mount = |target: &str| json!({"type": "bind", "source": "/x", "destination": target});
        let config =
            json!({"mounts": [mount("/etc/hosts"), {"type": "proc", "destination": "/proc"}]});
        let sharing = Sharing::alone(Asked::Nothing, &config).unwrap();
        assert_eq!(sharing, Sharing::Copies("it binds nothing of the host's"));
        assert!(volumes::are_wanted(
            &json!({"mounts": [mount("/etc/hosts"), mount("/data")]})
        ));
        let by_option = json!({"source": "/x", "destination": "/data", "options": ["rbind", "ro"]});
        assert!(volumes::are_wanted(&json!({"mounts": [by_option]})));
        assert!(!volumes::are_wanted(&json!({})));
    }

    #[test]
    fn who_asks_for_copies_has_them_whatever_it_binds() {
        let mounts = [json!({"type": "bind", "source": "/x", "destination": "/data"})];
        let sharing = Sharing::alone(Asked::Copied, &json!({"mounts": mounts})).unwrap();
        assert!(matches!(sharing, Sharing::Copies(why) if why.contains("asks for copies")));
    }

    #[test]
    fn a_container_has_what_its_pod_has_or_is_refused() {
        let check = |pod: Sharing, asked, expected: Option<&str>| {
            let error = pod.member(asked).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), expected);
        };
        check(Sharing::Live, Asked::Nothing, None);
        check(Sharing::Live, Asked::Shared, None);
        check(Sharing::OF_PODS, Asked::Nothing, None);
        check(Sharing::OF_PODS, Asked::Copied, None);
        let is = |other| format!("annotations.org.pouch.runv.volumes is {other}");
        let copied = is("copied, and those of its pod are shared");
        check(Sharing::Live, Asked::Copied, Some(&copied));
        let shared = is("shared, and those of its pod are copied");
        check(Sharing::OF_PODS, Asked::Shared, Some(&shared));
    }

    #[test]
    fn pods_have_live_volumes_when_they_ask_for_them() {
        for asked in [Asked::Nothing, Asked::Copied] {
            assert!(matches!(Sharing::pod(asked), Ok(Sharing::Copies(_))));
        }
    }
}
