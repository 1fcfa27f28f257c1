//! Gives a container that runs the lxcfs that is there now.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc;

use launch::view::Renewal;
use mounts::mountinfo;
use nix::errno::Errno;
use sys::mount_api::{OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, open_tree};

use super::bind::{FLAGS, View};
use super::source::{ANSWER_LIMIT, CPUS, FSTYPE, Mounted, TARGETS};
use crate::process::{Liveness, ProcessId};
use crate::{Error, Result, bounded};

/// What a view was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it is of the lxcfs that is there now.
    Right,
    /// So many mounts were of one that is gone, and were replaced.
    Renewed(usize),
}

/// Replaces what is left in a container of an lxcfs that is gone, and what is missing. Nobody in the container has to do
/// anything for it: it may be paused.
///
/// # Errors
/// [`Error::Unsupported`] without an lxcfs or before kernel 5.2, [`Error::NotRunning`]. It can be
/// tried again.
pub(crate) fn renew(init: ProcessId, view: &View) -> Result<Outcome> {
    let mounted = Mounted::at(&view.root)?;
    let table = match mountinfo::of_process(init.pid) {
        Ok(table) => table,
        Err(_) if init.liveness()? != Liveness::Alive => return Err(Error::NotRunning),
        Err(error) => return Err(Error::io("read the container's mountinfo")(error)),
    };
    let (fresh, dead): (Vec<_>, Vec<_>) = table
        .iter()
        .filter(|entry| entry.fstype == FSTYPE)
        .partition(|entry| entry.device == mounted.device);
    let is_mounted = |path: &String| table.iter().any(|entry| entry.mount_point == *path);
    // One who was killed between the mount and its masks has left none.
    let is_masked = view.masked.is_empty() || view.masked.iter().any(is_mounted);
    let is_wrong = |target: &&str| {
        let is_shown = view.targets.iter().any(|shown| shown == target);
        let is_fresh = fresh.iter().any(|entry| entry.mount_point == **target);
        is_shown && !(is_fresh && (is_masked || *target != CPUS))
    };
    let targets: Vec<_> = TARGETS.into_iter().filter(is_wrong).collect();
    if targets.is_empty() {
        return Ok(Outcome::Right);
    }
    let path = format!("/proc/{}/ns/mnt", init.pid);
    let namespace = File::open(&path).map_err(Error::on("open", Path::new(&path)))?;
    // Was the number init's until now?
    init.signal(0)?;
    let renewal = Renewal {
        namespace: namespace.into(),
        dead: dead.iter().map(|entry| entry.device).collect(),
        masked: if targets.contains(&CPUS) {
            &view.masked
        } else {
            &[]
        },
        targets,
        flags: FLAGS,
        mount_label: view.mount_label.as_deref(),
    };
    let attached = within(&renewal, |target| copy(&mounted.source(target)));
    attached.map(Outcome::Renewed).map_err(explain)
}

/// Carries it out on a thread that leaves the mount namespace of its process and ends, while this
/// one makes the copies that it asks for.
fn within(
    renewal: &Renewal<'_>,
    copy: impl Fn(&'static str) -> io::Result<OwnedFd>,
) -> Result<usize> {
    let (ask, asked) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    let gone = || io::Error::other("nobody makes copies");
    std::thread::scope(|scope| {
        let renewing = scope.spawn(move || {
            launch::view::renew(renewal, |target| {
                ask.send(target).map_err(|_gone| gone())?;
                answers.recv().map_err(|_gone| gone())?
            })
        });
        // Until the thread, and with it the other end, is gone.
        for target in asked {
            if answer.send(copy(target)).is_err() {
                break;
            }
        }
        let panicked = |_panic| Error::io("renew a view")(io::Error::other("a panic"));
        Ok(renewing.join().map_err(panicked)??)
    })
}

fn explain(error: Error) -> Error {
    let Error::Launch(launch::Error::Host { source, .. }) = &error else {
        return error;
    };
    if source.raw_os_error() == Some(Errno::ENOSYS as i32) {
        let why = "open_tree(2) came with Linux 5.2: the container must be started again";
        return Error::unsupported("another lxcfs in a running container", why);
    }
    error
}

/// A mount of its own of what is at a path, attached nowhere yet.
fn copy(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let copied = bounded::within(ANSWER_LIMIT, "an answer of lxcfs", move || {
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        open_tree(File::open("/")?, &name, flags)
    });
    copied.map_err(|silence| io::Error::new(io::ErrorKind::TimedOut, silence.chain()))?
}
