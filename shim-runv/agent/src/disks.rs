//! Which block device a disk of the machine is; one that was just plugged in is waited for.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::call::Disk;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::{Error, Result};

/// Where the kernel lists block devices.
const BLOCKS: &str = "/sys/block";

/// Where it lists logical units, as `HOST:CHANNEL:TARGET:UNIT`.
const UNITS: &str = "/sys/class/scsi_device";

/// Where it makes their nodes (devtmpfs).
const NODES: &str = "/dev";

/// From a disk's plugging in to its node.
const LIMIT: Duration = Duration::from_secs(20);

/// The node of a disk.
///
/// # Errors
/// [`Error::NotFound`] for a disk that is not there, or does not come in time.
pub(crate) fn device(disk: &Disk) -> Result<PathBuf> {
    match disk {
        Disk::Serial(serial) => {
            let found = by_serial(Path::new(BLOCKS), serial)?;
            let found = found
                .ok_or_else(|| Error::NotFound(format!("disk with serial number {serial}")))?;
            Ok(Path::new(NODES).join(found))
        }
        Disk::Unit(unit) => awaited(*unit),
    }
}

fn awaited(unit: u16) -> Result<PathBuf> {
    let failed = || Error::io(format!("watch {NODES}"));
    let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
    let watch = Inotify::init(flags).map_err(failed())?;
    // Before it is looked for, so that it cannot come in between.
    watch
        .add_watch(NODES, AddWatchFlags::IN_CREATE)
        .map_err(failed())?;
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(name) = by_unit(Path::new(UNITS), unit)? {
            let node = Path::new(NODES).join(name);
            if node.exists() {
                return Ok(node);
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Ok(0) => {
                let what = format!("disk of logical unit {unit}, within {LIMIT:?},");
                return Err(Error::NotFound(what));
            }
            Ok(_) => drop(watch.read_events().map_err(failed())?),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed()(errno)),
        }
    }
}

fn by_serial(blocks: &Path, serial: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(blocks).map_err(Error::on("list", blocks))?;
    for entry in entries {
        let entry = entry.map_err(Error::on("list", blocks))?;
        let path = entry.path().join("serial");
        if fs::read_to_string(path).is_ok_and(|text| text.trim_end() == serial) {
            return Ok(Some(entry.file_name().into()));
        }
    }
    Ok(None)
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
    fn disks_are_found_by_serial_number_and_by_unit() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for path in [
            "b/vda",
            "b/vdb",
            "u/0:0:0:1/device",
            "u/0:0:0:11/device/block/sda",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("b/vdb/serial"), "root\n").unwrap();
        let serial = |serial| by_serial(&at("b"), serial).unwrap();
        assert_eq!(serial("root"), Some("vdb".into()));
        assert_eq!(serial("roo"), None);
        let unit = |unit| by_unit(&at("u"), unit).unwrap();
        assert_eq!(
            (unit(11), unit(1), unit(2)),
            (Some("sda".into()), None, None)
        );
        assert_eq!(by_unit(&at("none"), 1).unwrap(), None);
    }
}
