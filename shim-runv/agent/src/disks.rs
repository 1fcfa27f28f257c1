//! Which block device a disk of the machine is; it may just have been plugged in, and is waited for.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::call::Disk;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::error::{Error, Result};

/// Where the kernel lists logical units, as `HOST:CHANNEL:TARGET:UNIT`.
const UNITS: &str = "/sys/class/scsi_device";

/// Where it makes their nodes (devtmpfs).
const NODES: &str = "/dev";

/// The group of events that come from the kernel itself.
const KERNEL_GROUP: u32 = 1;

/// From a disk's plugging in to its node.
const LIMIT: Duration = Duration::from_secs(20);

/// The node of a disk.
///
/// # Errors
/// [`Error::NotFound`] for a disk that is not there, or does not come in time.
pub(crate) fn device(disk: Disk) -> Result<PathBuf> {
    let Disk(unit) = disk;
    // Before it is looked for, so that it cannot come in between.
    let events = events()?;
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(name) = by_unit(Path::new(UNITS), unit)? {
            let node = Path::new(NODES).join(name);
            // The node is there before the disk can be opened; the event comes after that.
            match File::open(&node) {
                Ok(_) => return Ok(node),
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(Error::on("open", &node)(error)),
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Ok(0) => {
                let what = format!("disk of logical unit {unit}, within {LIMIT:?},");
                return Err(Error::NotFound(what));
            }
            Ok(_) => drain(&events)?,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for a disk")(errno)),
        }
    }
}

/// The kernel's words about devices that come and go (netlink(7), NETLINK_KOBJECT_UEVENT).
fn events() -> Result<OwnedFd> {
    let failed = || Error::io("listen to the kernel's events");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(failed())?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).map_err(failed())?;
    Ok(socket)
}

/// Takes what was said; what it was is looked for in other places.
fn drain(events: &OwnedFd) -> Result<()> {
    loop {
        match recv(events.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
            // Some were lost: then there was one.
            Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(Error::io("hear the kernel's events")(errno)),
        }
    }
}

/// Whether a disk that is on its way says this.
fn is_early(error: &io::Error) -> bool {
    let early = [Errno::ENOENT, Errno::ENXIO, Errno::ENODEV];
    early
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// The block device of a logical unit; none when the kernel has not looked at it yet.
fn by_unit(units: &Path, unit: u16) -> Result<Option<PathBuf>> {
    let entries = match fs::read_dir(units) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::on("list", units))?,
    };
    let suffix = format!(":0:0:{unit}");
    for entry in entries {
        let entry = entry.map_err(Error::on("list", units))?;
        if !entry.file_name().to_string_lossy().ends_with(&suffix) {
            continue;
        }
        // Not there until it is known to be a disk.
        let blocks = fs::read_dir(entry.path().join("device/block"));
        if let Some(Ok(block)) = blocks.ok().and_then(|mut blocks| blocks.next()) {
            return Ok(Some(block.file_name().into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_their_units() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for path in ["u/0:0:0:1/device", "u/0:0:0:11/device/block/sda"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        let unit = |unit| by_unit(&at("u"), unit).unwrap();
        assert_eq!(
            (unit(11), unit(1), unit(2)),
            (Some("sda".into()), None, None)
        );
        assert_eq!(by_unit(&at("none"), 1).unwrap(), None);
    }
}
