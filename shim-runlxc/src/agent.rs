//! Execs on a kernel without setns(2): pid 1, which stayed for that, forks them (`launch/src/agent.rs`).
//!
//! Pid 1 is the container's: nothing that it or its children say is believed. Who the new process is
//! the kernel tells: a child of pid 1 that holds the other end of our socket.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use bundle::{Status, names};
use launch::control::{self, Limit, ToStub};
use launch::plan::{ExecPlan, Toggle};
use nix::sys::stat::fstat;
use sys::Pid;

use crate::channel::Channel;
use crate::container::{Container, EXEC_LIMIT};
use crate::create::{Parent, Stdio};
use crate::exec::{JOINING, Prepared, Request, await_ready, vanished};
use crate::joined::Joined;
use crate::listener::Starting;
use crate::process::{ProcessId, children_of, parent_of};
use crate::{Error, Result, connect};

/// Whether pid 1 has to stay, because this kernel cannot enter namespaces (setns(2), Linux 3.0), or
/// cannot give its status to `parent` (subreapers, Linux 3.4).
pub(crate) fn is_needed(parent: Parent) -> Toggle {
    let status_is_lost = parent == Parent::Us && sys::set_subreaper().is_err();
    if status_is_lost || !sys::process::has_setns() {
        Toggle::On
    } else {
        Toggle::Off
    }
}

/// Has pid 1 bring a process into the container, up to the last step before its program.
pub(crate) fn join(
    container: &Container,
    request: &Request<'_>,
    init: ProcessId,
) -> Result<Prepared> {
    if request.process.preserve_fds > 0 {
        return Err(Error::unsupported(
            "an exec with further descriptors",
            "on a kernel without setns(2), which Linux has from 3.0",
        ));
    }
    let connection = connect(container)?;
    let (channel, theirs) = Channel::pair(JOINING, EXEC_LIMIT)?;
    let socket = fstat(&theirs).map_err(|e| Error::io("stat a socket")(e.into()))?;
    let mut fds = vec![theirs.as_fd()];
    if let Stdio::Streams(streams) = request.stdio {
        fds.extend(streams);
    }
    let limit = Limit::Until(Instant::now() + EXEC_LIMIT);
    control::send_within(&connection, &ToStub::Join, &fds, limit)?;
    drop(theirs);
    channel.send(&ToStub::Exec(Box::new(ExecPlan {
        namespaces: Vec::new(),
        root: None,
        process: request.process.clone(),
    })))?;
    let said = channel.hello(JOINING)?.ok_or_else(|| vanished(""))?;
    let process = match find(init, socket.st_ino, said) {
        Ok(process) => process,
        // It may have ended already: then it has told why.
        Err(error) => return await_ready(&channel, request.stdio).and(Err(error)),
    };
    // From here on it ends if anything fails.
    let child = Joined::child_of_pid_one(process, connection.into());
    // Was it init's child that was found?
    init.signal(0)?;
    let terminal = await_ready(&channel, request.stdio)?;
    Ok(Prepared {
        starting: Starting::of(container, Status::Running, child.pid().as_raw()),
        child,
        terminal,
        channel,
    })
}

fn connect(container: &Container) -> Result<UnixStream> {
    let path = container.dir.path();
    match connect::below(path, names::AGENT_SOCKET, EXEC_LIMIT).and_then(nonblocking) {
        Ok(connection) => Ok(connection),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::unsupported(
            "exec in this container",
            "this kernel has no setns(2), which Linux has from 3.0, and pid 1 of the container is not \
             runlxc-init",
        )),
        Err(e) if e.kind() == ErrorKind::TimedOut => Err(Error::Timeout {
            what: JOINING,
            limit: EXEC_LIMIT,
        }),
        Err(e) => Err(Error::on("connect to", &path.join(names::AGENT_SOCKET))(e)),
    }
}

fn nonblocking(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The child of `init` that holds the socket of this number. Before Linux 2.6.36 what came with its
/// first word is its number inside, not here.
fn find(init: ProcessId, socket: u64, said: Pid) -> Result<ProcessId> {
    let is_it =
        |pid: i32| -> Result<bool> { Ok(parent_of(pid)? == Some(init.pid) && holds(pid, socket)) };
    if is_it(said.as_raw())? {
        return ProcessId::of(said.as_raw());
    }
    for pid in children_of(init.pid)? {
        if is_it(pid)? {
            return ProcessId::of(pid);
        }
    }
    Err(vanished(
        ": it is not to be found among the children of pid 1",
    ))
}

/// Whether a process, which may end meanwhile, has that socket open.
fn holds(pid: i32, socket: u64) -> bool {
    let Ok(listed) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let name = format!("socket:[{socket}]");
    listed
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link == Path::new(&name))
}

#[cfg(test)]
mod tests {
    use sys::Spawn;

    use super::*;

    #[test]
    fn a_child_is_found_by_the_socket_it_holds_whatever_number_it_tells() {
        let (ours, theirs) = sys::socketpair_stream_cloexec().unwrap();
        let socket = fstat(&theirs).unwrap().st_ino;
        let own = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        let sleep = || Spawn::new("/bin/sleep".as_ref()).args(["1000"]);
        let without = sleep().spawn().unwrap();
        let child = sleep().fd(9, theirs.as_fd()).spawn().unwrap();
        let expected = ProcessId::of(child.pid().as_raw()).unwrap();
        for said in [child.pid(), without.pid(), Pid::from_raw(1), Pid::this()] {
            assert_eq!(find(own, socket, said).unwrap(), expected);
        }
        // A process that holds it and is nobody's child of that parent.
        let parent = ProcessId::of(without.pid().as_raw()).unwrap();
        assert!(find(parent, socket, child.pid()).is_err());
        let other = fstat(&ours).unwrap().st_ino;
        assert!(find(own, other, child.pid()).is_err());
    }
}
