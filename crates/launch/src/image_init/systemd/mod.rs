//! An image's own systemd as pid 1.
//!
//! Nothing is written but to tmpfs: the program's unit and links to others to
//! `/run/systemd/system`, and what is bound over files of the image to [`OWN`].

mod files;
mod image;

use std::fmt::Write as _;

use sys::Pid;
use sys::process::kill_number;

use crate::error::{Result, host};
use crate::init::{End, Furnished};
use crate::plan::{ImageInit, InitPlan};

use super::application::refuse_elsewhere;
use super::component;
use super::{CONTAINER, OWN, Program, SEARCH_PATH, SignalsAtFirst, refusal};

/// What systemd runs as its last program; then it is the stub.
pub const SHUTDOWN: &str = "systemd-shutdown";

/// systemd(1): halts.
pub(super) const SIGRTMIN_3: i32 = 34 + 3;

/// The unit that is the program.
const UNIT: &str = "pouch-application.service";

/// Makes what it finds in the container beside the image; gives how it is started.
pub(super) fn furnish(
    plan: &InitPlan,
    wanted: &ImageInit,
    furnished: &Furnished,
) -> Result<Program> {
    let image = image::Image::find(&wanted.services)?;
    let uuid = uuid_of(&furnished.from_host.machine_id, &wanted.id);
    let files = files::Files {
        uuid: &uuid,
        os_release: &furnished.from_host.os_release,
        image: &image,
        rlimits: &plan.process.rlimits,
        components: component::prepare(&wanted.components)?,
    };
    files.make(&furnished.proc)?;
    let socket = wanted.notify_socket.iter();
    let socket = socket.map(|name| format!("NOTIFY_SOCKET={name}"));
    Ok(Program {
        args: vec![image.systemd, "--unit=multi-user.target".to_owned()],
        env: [
            SEARCH_PATH.to_owned(),
            format!("container={CONTAINER}"),
            format!("container_uuid={uuid}"),
        ]
        .into_iter()
        .chain(socket)
        .collect(),
        // A signal to stop may come before it listens.
        signals: SignalsAtFirst::Blocked,
        check: None,
    })
}

/// Asks systemd to end all in order: what the program's unit does when the program has ended, or its
/// parent was killed.
///
/// # Errors
/// Where this process is not the copy in [`OWN`], and what keeps it from telling pid 1.
pub fn halt() -> Result<End> {
    refuse_elsewhere()?;
    kill_number(Pid::from_raw(1), SIGRTMIN_3).map_err(host(|| "tell pid 1 to halt".to_owned()))?;
    Ok(End::Forked)
}

/// The same for the same container on the same host: FNV-1a of 128 bits, as 32 digits.
fn uuid_of(machine_id: &str, id: &str) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = machine_id.bytes().chain([0]).chain(id.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    });
    // RFC 9562: version 8, variant 10.
    let hash = hash & !(0xf << 76) | 0x8 << 76;
    let hash = hash & !(0x3 << 62) | 0x2 << 62;
    let mut digits = String::new();
    let _written = write!(digits, "{hash:032x}");
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_that_of_the_container_on_its_host() {
        let one = uuid_of("a", "b");
        assert_eq!(one.len(), 32);
        assert_eq!(&one[12..13], "8");
        assert_eq!(one, uuid_of("a", "b"));
        assert_ne!(uuid_of("a", "b"), uuid_of("b", "a"));
        assert_ne!(uuid_of("ab", ""), uuid_of("a", "b"));
    }
}
