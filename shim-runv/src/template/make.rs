//! Makes a template: boots a machine without a container, stops it when its agent has answered, and keeps
//! its memory and the state of its devices where nobody can change them any more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use mux::{Endpoint, Link};
use network::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{Key, Places};
use crate::qemu::{Arguments, Files, Memory, Monitor, Qemu, Wires, not_up};
use crate::{Error, Result};

/// The epoch of the link to a template's agent; those of its copies are later ones.
pub(crate) const EPOCH: u16 = 1;

/// From QEMU's start to the agent's word.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// The saving of what is not memory.
const SAVE_LIMIT: Duration = Duration::from_secs(30);

/// The most that the state of devices has, in bytes; less than one was seen.
pub(crate) const STATE_BYTES_MAX: u64 = 16 << 20;

/// This thread's network namespace: the maker's own.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What copies are made of: both sealed, so that none of them can change it for the others.
#[derive(Debug)]
pub(crate) struct Made {
    /// The memory.
    pub(crate) memory: File,
    /// The state of the devices.
    pub(crate) state: File,
}

/// Makes one. The calling thread has a network namespace of its own, where taps are nobody else's.
///
/// # Errors
/// [`Error::NotUp`] for a machine that does not come up, or what QEMU says against being saved.
pub(crate) fn make(arguments: &Arguments, places: &Places, key: &Key) -> Result<Made> {
    let (log, console) = (places.qemu_log(key), places.console(key));
    let arguments = Arguments {
        memory: Memory::Template,
        console: console.clone(),
        ..arguments.clone()
    };
    let memory = memory_file(arguments.memory_mib << 20)?;
    let (state, its_state) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
    let shared = memory
        .try_clone()
        .map_err(Error::io("duplicate a descriptor"))?;
    let files = Files {
        memory: Some(shared.into()),
        volumes: None,
    };
    let wires = wires(arguments.links)?;
    let (qemu, port, monitor) = Qemu::start(&arguments, wires, files, (&log, None))?;
    let reader = port.try_clone().map_err(Error::io("duplicate a socket"))?;
    let link = Link::start(Endpoint::host(EPOCH), reader, port);
    let link = link.map_err(Error::io("start a thread"))?;
    if let Err(error) = link.await_peer(UP_LIMIT) {
        qemu.kill();
        return Err(not_up(&error.to_string(), "", &log, &console));
    }
    let monitor = Monitor::new(monitor)?;
    monitor.save(its_state)?;
    let state = read_all(state, Instant::now() + SAVE_LIMIT)?;
    monitor.is_saved()?;
    // Whoever can write the memory still, keeps it from being sealed.
    qemu.kill();
    drop(link);
    seal(&memory)?;
    Ok(Made {
        memory,
        state: sealed(&state)?,
    })
}

fn memory_file(bytes: u64) -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("runv-template", flags);
    let file = File::from(file.map_err(Error::io("make a file in memory"))?);
    let what = format!("make a file in memory of {bytes} bytes");
    file.set_len(bytes).map_err(Error::io(what))?;
    Ok(file)
}

fn seal(file: &File) -> Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals).map_err(Error::io("seal a file in memory"))
}

/// A sealed file of these bytes.
pub(crate) fn sealed(bytes: &[u8]) -> Result<File> {
    let mut file = memory_file(0)?;
    file.write_all(bytes)
        .map_err(Error::io("write a file in memory"))?;
    seal(&file)?;
    Ok(file)
}

/// Taps that lead nowhere.
fn wires(links: usize) -> Result<Wires> {
    let tap = |number| {
        let name = format!("runv{number}");
        sys::open_tap(&name).map_err(Error::io(format!("make tap {name}")))
    };
    Ok(Wires {
        namespace: Namespace::open(Path::new(NAMESPACE))?.descriptor()?,
        taps: (0..links).map(tap).collect::<Result<_>>()?,
    })
}

/// Reads a pipe to its end.
fn read_all(pipe: OwnedFd, until: Instant) -> Result<Vec<u8>> {
    let mut pipe = File::from(pipe);
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, left).map_err(Error::io("wait for QEMU"))? == 0 {
            return Err(Error::Timeout {
                what: "the saving of a template",
                limit: SAVE_LIMIT,
            });
        }
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(bytes) => all.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read the state of a template")(error)),
        }
        if all.len() as u64 > STATE_BYTES_MAX {
            let why = format!("the state of a template has more than {STATE_BYTES_MAX} bytes");
            return Err(Error::Monitor(why));
        }
    }
}
