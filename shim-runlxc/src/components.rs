//! Operators' components: directories of the host with a manifest, bound read-only into rich containers,
//! and a command that each starts there. Which there are is the operator's to say, never an image's.
//!
//! ```text
//!   ROOT/NAME/component.toml, and whatever else    the container
//!   ROOT/NAME ---------------------bind, read-only--> /run/pouch/NAME
//!   start = "/run/pouch/NAME/agent" ----------------> a service, or a job of the image's init
//! ```

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bundle::Plan;
use bundle::rich::{MODE, components, services};
use launch::plan::{PidOne, PlannedMount, Ready, Service, ServiceKind, When};
use mounts::flags::{BIND, NODEV, NOSUID, PRIVATE, RDONLY};
use mounts::{Mount, MountOptions};
use serde::Deserialize;

use crate::{Error, Result, host_scripts};

/// Where they lie on the host.
pub const ROOT: &str = "/etc/runlxc/components";

/// Where they are in a container.
const TARGET: &str = "/run/pouch";

/// In the directory of each.
const MANIFEST: &str = "component.toml";

/// Nobody's manifest is longer.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// As the operator has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// Absolute path of the directory with one for each.
    pub root: PathBuf,
    /// Those that every rich container has.
    pub always: Vec<String>,
    /// Absolute path of the directory with scripts that hooks may name.
    pub hooks_root: PathBuf,
}

impl Default for Components {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
            always: Vec::new(),
            hooks_root: PathBuf::from(host_scripts::ROOT),
        }
    }
}

/// What is started.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// A command as annotations have it.
    start: String,
    /// By the image's name; none: root of the container.
    user: Option<String>,
    #[serde(default)]
    when: Moment,
    /// As annotations have it for a service.
    ready: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Moment {
    #[default]
    Before,
    After,
}

/// Whether this is the mount of a component.
pub(crate) fn is_mount(planned: &PlannedMount) -> bool {
    match planned {
        PlannedMount::Plain(mount) => Path::new(&mount.target).starts_with(TARGET),
        PlannedMount::Cgroup { .. } => false,
    }
}

/// Adds the components of a rich container to its plan.
///
/// # Errors
/// [`Error::Component`] with its name for one that is not there, may be written by others, or has a
/// manifest that means nothing in this mode.
pub(crate) fn add(plan: &mut Plan, operator: &Components) -> Result<()> {
    if !plan.annotations.contains_key(MODE) || plan.init.pid_one == PidOne::Program {
        return Ok(());
    }
    let mut names: Vec<String> = Vec::new();
    let asked = components::names(&plan.annotations)?;
    for name in operator.always.iter().cloned().chain(asked) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let found = names.iter().map(|name| {
        let failed = |why: String| Error::Component {
            name: name.clone(),
            why,
        };
        let root = &operator.root;
        let is_trusted = match root.metadata() {
            Ok(found) => trusted(&found, root),
            Err(error) => Err(format!("{}: {error}", root.display())),
        };
        is_trusted.map_err(failed)?;
        let directory = root.join(name);
        let manifest = read(&directory).map_err(failed)?;
        let service = service(name, manifest, &plan.init.pid_one).map_err(failed)?;
        let mount = bind(&directory, format!("{TARGET}/{name}")).map_err(failed)?;
        Ok((service, mount))
    });
    let (found, mounts): (Vec<_>, Vec<_>) = found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    plan.init.mounts.extend(mounts);
    start(plan, found);
    Ok(())
}

/// The components before the image's services or after them; each side in the order of its names.
fn start(plan: &mut Plan, found: Vec<Service>) {
    if found.is_empty() {
        return;
    }
    let none = services::beside(&plan.init.process);
    match &mut plan.init.pid_one {
        PidOne::Stub { services, .. } => {
            let own = services.get_or_insert_with(|| Box::new(none));
            let (mut all, after): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|it| it.when == When::Before);
            all.append(&mut own.list);
            all.extend(after);
            own.list = all;
        }
        PidOne::Systemd(wanted) | PidOne::SbinInit(wanted) => wanted.components = found,
        PidOne::Program => {}
    }
}

fn read(directory: &Path) -> std::result::Result<Manifest, String> {
    let path = directory.join(MANIFEST);
    let on = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path}: {error}")
    };
    trusted(&directory.metadata().map_err(on(directory))?, directory)?;
    let file = File::open(&path).map_err(on(&path))?;
    trusted(&file.metadata().map_err(on(&path))?, &path)?;
    let mut text = String::new();
    let mut limited = file.take(MANIFEST_BYTES_MAX + 1);
    limited.read_to_string(&mut text).map_err(on(&path))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(format!(
            "{}: longer than {MANIFEST_BYTES_MAX} bytes",
            path.display()
        ));
    }
    toml::from_str(&text).map_err(|error| {
        let line = error.message().lines().next().unwrap_or_default();
        format!("{}: {line}", path.display())
    })
}

/// What is run as root is written by root alone.
pub(crate) fn trusted(found: &std::fs::Metadata, path: &Path) -> std::result::Result<(), String> {
    let others_write = found.mode() & 0o022 != 0;
    if found.uid() == 0 && !others_write {
        return Ok(());
    }
    let path = path.display();
    Err(format!(
        "{path} must belong to root, and nobody else may write it"
    ))
}

fn service(
    name: &str,
    manifest: Manifest,
    pid_one: &PidOne,
) -> std::result::Result<Service, String> {
    let words = |error: bundle::Error| error.to_string();
    let args = services::command("start", &manifest.start).map_err(words)?;
    let ready = match &manifest.ready {
        Some(text) => services::readiness("ready", text).map_err(words)?,
        None => Ready::Started,
    };
    let is_known = match pid_one {
        PidOne::Stub { .. } => true,
        PidOne::Systemd(_) => matches!(ready, Ready::Started | Ready::Notified),
        PidOne::SbinInit(_) | PidOne::Program => ready == Ready::Started,
    };
    if !is_known {
        let text = manifest.ready.unwrap_or_default();
        return Err(format!("ready {text:?} is not for this container's mode"));
    }
    let when = match manifest.when {
        Moment::Before => When::Before,
        Moment::After if ready != Ready::Started => {
            return Err("nobody waits for what is ready after the program".to_owned());
        }
        Moment::After => When::After,
    };
    Ok(Service {
        name: name.to_owned(),
        kind: ServiceKind::Command { args, ready },
        user: manifest.user,
        when,
    })
}

/// Read-only, without suid programs and devices; its programs may run.
pub(crate) fn bind(source: &Path, target: String) -> std::result::Result<PlannedMount, String> {
    let source = source
        .to_str()
        .ok_or_else(|| format!("{} is not UTF-8", source.display()))?;
    Ok(PlannedMount::Plain(Mount {
        source: source.to_owned(),
        target,
        fstype: "bind".to_owned(),
        options: MountOptions {
            flags_set: BIND | RDONLY | NOSUID | NODEV,
            propagation: vec![PRIVATE],
            ..MountOptions::none()
        },
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn manifest(text: &str, pid_one: &PidOne) -> std::result::Result<Service, String> {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(MANIFEST), text).unwrap();
        service("agent", read(root.path())?, pid_one)
    }

    fn stub() -> PidOne {
        PidOne::stub()
    }

    #[test]
    fn a_manifest_says_what_runs_as_whom_and_when() {
        let text = "start = \"/run/pouch/agent/bin -x\"\nuser = \"daemon\"\nready = \"port:80\"\n";
        let found = manifest(text, &stub()).unwrap();
        let args = ["/run/pouch/agent/bin", "-x"].map(str::to_owned).to_vec();
        let ready = Ready::Port(80);
        let expected = Service {
            name: "agent".to_owned(),
            kind: ServiceKind::Command { args, ready },
            user: Some("daemon".to_owned()),
            when: When::Before,
        };
        assert_eq!(found, expected);
        let last = manifest("start = \"sh:exec x\"\nwhen = \"after\"\n", &stub());
        assert_eq!(last.unwrap().when, When::After);
    }

    #[test]
    fn a_manifest_that_means_nothing_is_refused() {
        let sysv = PidOne::SbinInit(launch::plan::ImageInit {
            id: String::new(),
            user: None,
            services: Vec::new(),
            components: Vec::new(),
            notify_socket: None,
            restart: launch::plan::Restart::Never,
            stop_signal: None,
        });
        for (text, pid_one, why) in [
            ("", &stub(), "missing field `start`"),
            (
                "start = \"/a\"\nstop = 1\n",
                &stub(),
                "unknown field `stop`",
            ),
            (
                "start = \"a\"\n",
                &stub(),
                "start: \"a\" is neither an absolute path",
            ),
            (
                "start = \"/a\"\nready = \"x\"\n",
                &stub(),
                "ready: \"x\" is none of file:/PATH",
            ),
            (
                "start = \"/a\"\nready = \"notify\"\n",
                &sysv,
                "ready \"notify\" is not for this container's mode",
            ),
            (
                "start = \"/a\"\nwhen = \"after\"\nready = \"notify\"\n",
                &stub(),
                "nobody waits for what is ready after the program",
            ),
        ] {
            let error = manifest(text, pid_one).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_others_may_write_is_not_run() {
        let root = tempfile::tempdir().unwrap();
        let error = read(&root.path().join("none")).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
        let path = root.path().join(MANIFEST);
        fs::write(&path, "start = \"/a\"\n").unwrap();
        read(root.path()).unwrap();
        for path in [path.as_path(), root.path()] {
            let before = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(0o775)).unwrap();
            let error = read(root.path()).unwrap_err();
            assert!(error.contains("nobody else may write it"), "{error}");
            fs::set_permissions(path, before).unwrap();
        }
    }
}
