//! The verb `start`: makes sure a shim serves the container's group and says where. The socket is
//! bound here and inherited by the shim, so nobody waits for it to appear. Prints nothing itself:
//! containerd reads standard error and the answer as one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bundle::names;
use serde::Deserialize;

use crate::convert::bootstrap::Bootstrap;
use crate::flags::Flags;
use crate::handover::Strand;
use crate::socket::{self, Claim};
use crate::{Code, ShimError};

/// Containers with the same value share a shim. In the order in which Go's shim looks.
const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// No bootstrap message is longer (Go's bound).
const STDIN_BYTES_MAX: u64 = 10 << 20;

/// A config.json is read for its annotations only.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What `start` acts on, beside its flags.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// argv\[0\], which the shim keeps.
    pub(crate) name: OsString,
    /// The bundle.
    pub(crate) directory: PathBuf,
    /// `MAX_SHIM_VERSION`.
    pub(crate) max_shim_version: Option<String>,
}

/// The answer, and how to tell the shim that it was given.
#[derive(Debug)]
pub(crate) struct Started {
    /// For stdout.
    pub(crate) answer: Vec<u8>,
    /// None when the group's shim was there already.
    pub(crate) strand: Option<Strand>,
    /// Where the shim serves.
    pub(crate) socket: PathBuf,
}

/// Starts a shim, or finds the group's.
pub(crate) fn start(
    flags: &Flags,
    stdin: &mut dyn Read,
    surroundings: &Surroundings,
) -> Result<Started, ShimError> {
    let mut input = Vec::new();
    stdin
        .take(STDIN_BYTES_MAX + 1)
        .read_to_end(&mut input)
        .map_err(|e| ShimError::failed("read stdin", &e))?;
    if u64::try_from(input.len()).unwrap_or(u64::MAX) > STDIN_BYTES_MAX {
        return Err(ShimError::new(
            Code::InvalidArgument,
            format!("stdin has more than {STDIN_BYTES_MAX} bytes"),
        ));
    }
    let max = surroundings.max_shim_version.as_deref();
    let bootstrap = Bootstrap::parse(&input, &flags.id, &flags.namespace, max);

    let bundle = &surroundings.directory;
    let group = group(bundle, &flags.id)?;
    let dir = bootstrap.socket_dir.as_deref().unwrap_or(socket::DIR);
    let containerd = bootstrap.address.as_deref().unwrap_or(&flags.address);
    let path = socket::path(Path::new(dir), containerd, &flags.namespace, &group);
    let address = socket::address(&path);
    write(bundle, names::ADDRESS, &address)?;

    let claim = socket::claim(&path)
        .map_err(|e| ShimError::failed(&format!("claim socket {}", path.display()), &e))?;
    let strand = claim.map(|claim| spawn(flags, &bootstrap, surroundings, (claim, &path)));
    let strand = strand.transpose().inspect_err(|_| {
        // The first error is the one to tell; a left socket would be found stale.
        let _left = socket::remove_if_dead(&path);
    })?;
    Ok(Started {
        answer: bootstrap.reply.encode(&address)?,
        strand,
        socket: path,
    })
}

/// The id whose shim serves this container: its pod's, or its own.
fn group(bundle: &Path, id: &str) -> Result<String, ShimError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    let path = bundle.join(names::CONFIG);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        // A sandbox without containers has none.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(e) => return Err(ShimError::failed(&format!("open {}", path.display()), &e)),
    };
    let reader = io::BufReader::new(file.take(CONFIG_BYTES_MAX));
    let config: Config = serde_json::from_reader(reader)
        .map_err(|e| ShimError::failed(&format!("read {}", path.display()), &e))?;
    let annotations = config.annotations.unwrap_or_default();
    let group = GROUP_ANNOTATIONS
        .iter()
        .find_map(|name| annotations.get(*name));
    Ok(group.map_or(id, String::as_str).to_owned())
}

/// The socket that the shim of a bundle should have.
pub(crate) fn expected_socket(flags: &Flags, bundle: &Path) -> Result<PathBuf, ShimError> {
    let group = group(bundle, &flags.id)?;
    Ok(socket::path(
        Path::new(socket::DIR),
        &flags.address,
        &flags.namespace,
        &group,
    ))
}

/// Starts the process that serves, on its own before it does anything, and gives it its socket.
fn spawn(
    flags: &Flags,
    bootstrap: &Bootstrap,
    surroundings: &Surroundings,
    (claim, path): (Claim, &Path),
) -> Result<Strand, ShimError> {
    let (strand, theirs) =
        Strand::new().map_err(|e| ShimError::failed("make a socket pair", &e))?;
    let path_text = path.to_string_lossy();
    let mut arguments = vec!["-namespace", &flags.namespace, "-id", &flags.id];
    arguments.extend(["-address", &flags.address, "-socket", &path_text]);
    if let Some(address) = &bootstrap.ttrpc_address {
        arguments.extend(["-ttrpc-address", address]);
    }
    if flags.debug || bootstrap.debug {
        arguments.push("-debug");
    }
    let program = program().map_err(|e| ShimError::failed("find this program", &e))?;
    let shim = sys::Spawn::new(&program)
        .argv0(&surroundings.name)
        .args(arguments)
        .cwd(&surroundings.directory)
        .stdin(theirs)
        .new_session()
        .spawn()
        .map_err(|e| ShimError::failed(&format!("start {}", program.display()), &e))?;
    // From here on an early return kills it.
    claim
        .bind()
        .and_then(|listener| strand.give(&listener))
        .map_err(|e| ShimError::failed(&format!("bind {}", path.display()), &e))?;
    let pid = shim.pid().as_raw();
    write(&surroundings.directory, names::SHIM_PID, &pid.to_string())?;
    if let Some(cgroup) = &bootstrap.shim_cgroup {
        join_cgroup(cgroup, pid)?;
    }
    adjust_oom_score(pid);
    shim.release();
    Ok(strand)
}

/// This program's file; the kernel's link when the file was replaced since.
fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() {
        path
    } else {
        PathBuf::from("/proc/self/exe")
    })
}

/// Moves the shim into a cgroup that somebody else made and keeps.
fn join_cgroup(cgroup: &str, pid: i32) -> Result<(), ShimError> {
    let refused = |error: cgroups::Error| ShimError::caused(Code::InvalidArgument, &error);
    let hierarchies = cgroups::Hierarchies::at_host().map_err(refused)?;
    let paths = cgroups::CgroupPaths::new(&hierarchies, cgroup).map_err(refused)?;
    let mut joined = false;
    for dir in paths
        .dirs
        .iter()
        .map(|dir| &dir.path)
        .filter(|dir| dir.is_dir())
    {
        std::fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(|e| {
            ShimError::failed(&format!("move the shim to cgroup {}", dir.display()), &e)
        })?;
        joined = true;
    }
    if joined {
        return Ok(());
    }
    Err(ShimError::new(
        Code::InvalidArgument,
        format!("runtime option ShimCgroup: cgroup {cgroup} does not exist"),
    ))
}

/// The shim shall go before containerd does: one more than its score, as Go's shim. A worse score
/// than wished for is no reason to refuse a container, so nothing is told.
fn adjust_oom_score(pid: i32) {
    let path = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    let Ok(text) = std::fs::read_to_string(path(nix::unistd::getppid().as_raw())) else {
        return;
    };
    let Ok(score) = text.trim().parse::<i32>() else {
        return;
    };
    let _refused = std::fs::write(path(pid), (score + 1).min(1000).to_string());
}

/// Writes a small file of the bundle whole or not at all.
fn write(bundle: &Path, name: &str, text: &str) -> Result<(), ShimError> {
    let temporary = bundle.join(format!(".{name}.new"));
    let path = bundle.join(name);
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(|e| ShimError::failed(&format!("write {}", path.display()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_containers_have_one_group() {
        let check = |config: &str, expected: &str| {
            let bundle = tempfile::tempdir().unwrap();
            std::fs::write(bundle.path().join(names::CONFIG), config).unwrap();
            assert_eq!(group(bundle.path(), "own").unwrap(), expected);
        };
        check("{}", "own");
        check(r#"{"annotations":null}"#, "own");
        check(r#"{"annotations":{"x":"y"},"hostname":"h"}"#, "own");
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
            "pod",
        );
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
            "g",
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(group(empty.path(), "own").unwrap(), "own");
    }
}
