//! How a stub moves into the cgroups of its container by itself.
//!
//! A process that somebody else moves costs a lock against all forks of the machine and so, after a
//! quiet time, a grace period of RCU. One with a single thread that moves itself by writing `0` to a
//! `tasks` file of version 1 needs no such lock today (cgroup_procs_write_start() of the kernel);
//! before, it costs what being moved costs.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use crate::control::{self, FromStub, Received, ToStub};
use crate::error::{Error, Result, host};

/// Receives the message with the plan; before it, does what [`ToStub::Enter`] asks for. None when
/// the host side went away.
///
/// # Errors
/// A cgroup that cannot be entered, or what [`control::recv`] fails with.
pub(crate) fn await_plan(control: impl AsFd) -> Result<Option<Received<ToStub>>> {
    let received = control::recv(&control)?;
    let Some(Received {
        message: ToStub::Enter(paths),
        fds,
        ..
    }) = received
    else {
        return Ok(received);
    };
    if paths.len() != fds.len() {
        return Err(Error::Unexpected("with other descriptors than paths"));
    }
    for (path, tasks) in paths.iter().zip(fds) {
        let entered = File::from(tasks).write_all(b"0");
        entered.map_err(host(|| format!("write 0 to {path}")))?;
    }
    control::send(&control, &FromStub::Entered, &[])?;
    control::recv(&control)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use nix::errno::Errno;

    use super::*;

    fn await_after(
        paths: &[&str],
        fds: &[OwnedFd],
    ) -> (UnixStream, Result<Option<Received<ToStub>>>) {
        let (host, stub) = UnixStream::pair().unwrap();
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control::send(&host, &ToStub::Enter(paths), &fds).unwrap();
        control::send(&host, &ToStub::Start, &[]).unwrap();
        let plan = await_plan(&stub);
        (host, plan)
    }

    #[test]
    fn zero_is_written_to_each_file_before_the_plan_is_waited_for() {
        let (mut first, first_writer) = UnixStream::pair().unwrap();
        let (mut second, second_writer) = UnixStream::pair().unwrap();
        let fds = [first_writer.into(), second_writer.into()];
        let (host, plan) = await_after(&["/a/tasks", "/b/tasks"], &fds);
        assert_eq!(plan.unwrap().unwrap().message, ToStub::Start);
        drop(fds);
        for end in [&mut first, &mut second] {
            let mut text = String::new();
            end.read_to_string(&mut text).unwrap();
            assert_eq!(text, "0");
        }
        let answer: Received<FromStub> = control::recv(&host).unwrap().unwrap();
        assert_eq!(answer.message, FromStub::Entered);
    }

    #[test]
    fn plan_may_come_without_it() {
        let (host, stub) = UnixStream::pair().unwrap();
        control::send(&host, &ToStub::Start, &[]).unwrap();
        assert_eq!(await_plan(&stub).unwrap().unwrap().message, ToStub::Start);
        drop(host);
        assert!(await_plan(&stub).unwrap().is_none());
    }

    #[test]
    fn cgroup_that_refuses_is_named() {
        let closed = File::open("/dev/null").unwrap();
        let (_host, plan) = await_after(&["/sys/fs/cgroup/pids/x/tasks"], &[closed.into()]);
        let failure = plan.unwrap_err().failure();
        assert_eq!(failure.errno, Errno::EBADF as i32);
        assert_eq!(failure.step, "write 0 to /sys/fs/cgroup/pids/x/tasks");
        let (_host, plan) = await_after(&["/a", "/b"], &[]);
        assert!(matches!(plan, Err(Error::Unexpected(_))));
    }
}
