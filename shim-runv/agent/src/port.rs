//! The virtio-serial port to the shim, found by its name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

use crate::error::{Error, Result};

/// Where the kernel lists the ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// The host tells a port and its name by messages that the driver takes when it comes to them.
const APPEAR_LIMIT: Duration = Duration::from_secs(20);

/// How often it is looked for until then, in milliseconds: sysfs tells nobody of a new name.
const LOOK_EVERY_MS: u8 = 2;

/// Opens the port of that name, for reading and writing.
pub(crate) fn open(name: &str) -> Result<File> {
    let deadline = Instant::now() + APPEAR_LIMIT;
    let device = loop {
        match find(Path::new(PORTS), name) {
            Err(Error::NotFound(_)) if Instant::now() < deadline => {
                poll(&mut [], PollTimeout::from(LOOK_EVERY_MS)).map_err(Error::io("poll"))?;
            }
            found => break found?,
        }
    };
    let path = Path::new("/dev").join(device);
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(Error::on("open", &path))
}

fn find(ports: &Path, name: &str) -> Result<PathBuf> {
    let missing = || Error::NotFound(format!("virtio-serial port {name}"));
    let entries = match fs::read_dir(ports) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
        other => other.map_err(Error::on("list", ports))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::on("list", ports))?;
        let path = entry.path().join("name");
        // A port without a name has an empty file.
        if fs::read_to_string(path).is_ok_and(|text| text.trim_end() == name) {
            return Ok(entry.file_name().into());
        }
    }
    Err(missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name_alone() {
        let directory = std::env::temp_dir().join(format!("ports-{}", std::process::id()));
        for (port, name) in [("vport0p1", "other\n"), ("vport0p2", "wanted\n")] {
            fs::create_dir_all(directory.join(port)).unwrap();
            fs::write(directory.join(port).join("name"), name).unwrap();
        }
        assert_eq!(find(&directory, "wanted").unwrap(), Path::new("vport0p2"));
        assert!(matches!(find(&directory, "want"), Err(Error::NotFound(_))));
        fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(find(&directory, "want"), Err(Error::NotFound(_))));
    }
}
