//! An image's own `/sbin/init` as pid 1, where that is sysvinit's.
//!
//! ```text
//!   inittab, bound over the image's          what it runs, all of it the stub
//!   before all           sysinit             listening   the container has started
//!   PWR from `kill`      powerfail           power-off   asks for level 0
//!   level 0 or 6, first  wait                stop        TERM to the program, waits for its end
//!                        the image's         /etc/init.d/rc 0, without what turns off machines
//!   any level, last      respawn             job         the program; after it, asks for level 0
//!   level 0 or 6, last   wait                end         asks pid 1 to execute itself anew
//!   /sbin/init --init    pid 1               cover       the last program of pid 1
//! ```
//! `/sbin/init` is covered by the stub, because that is what sysvinit executes when it is asked to
//! execute itself anew; for whoever else runs it (as `telinit`) it goes on as the image's, which is
//! bound to a place of ours.

mod control;
mod inittab;

use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::error::{Result, host};
use crate::init::Furnished;
use crate::plan::ImageInit;

use super::component;
use super::files::{copy_stub, cover as bind_over, link, make_directory, write};
use super::sbin::text_of;
use super::{CONTAINER, OWN, Program, SEARCH_PATH, SignalsAtFirst, rc};

pub(super) use control::{STOP_LIMIT, job_ended_by, note_end, stopping};
pub use control::{cover, end, halt, job, listening, stop};
pub(super) use inittab::{PATH as INITTAB, default_level, working_level};

/// Where sysvinit takes requests, since 2.89 and before.
const INITCTL: &str = "/run/initctl";
const INITCTL_OF_OLD: &str = "/dev/initctl";

/// The image's init, out of the way of what covers it. Its last name is what `ps` shows of pid 1.
fn original() -> String {
    format!("{OWN}/sbin/init")
}

/// Makes what it finds in the container beside the image; gives how it is started.
pub(super) fn furnish(init: &Path, wanted: &ImageInit, furnished: &Furnished) -> Result<Program> {
    let text = text_of(inittab::PATH)?;
    let scripts = wanted.services.iter().map(|name| rc::Script::find(name));
    let scripts: Vec<_> = scripts.collect::<Result<_>>()?;
    copy_stub(&furnished.proc)?;
    let components = component::prepare(&wanted.components)?;
    let inittab = inittab::of(&text, &components);
    make_directory(&format!("{OWN}/sbin"))?;
    write(&original(), b"", 0o755)?;
    bind_over(&init.to_string_lossy(), original().as_ref())?;
    bind_over(&format!("{OWN}/init"), init)?;
    let own = format!("{OWN}/inittab");
    write(&own, inittab.text.as_bytes(), 0o644)?;
    bind_over(&own, inittab::PATH.as_ref())?;
    rc::arrange(inittab.level, &scripts)?;
    // A request that comes before init makes it would be lost.
    mkfifo(INITCTL, Mode::from_bits_truncate(0o600))
        .map_err(host(|| format!("make the fifo {INITCTL}")))?;
    link(INITCTL, INITCTL_OF_OLD)?;
    Ok(Program {
        args: vec![original()],
        env: vec![
            SEARCH_PATH.to_owned(),
            format!("container={CONTAINER}"),
            // Policies are the host's affair: with this it loads none.
            "SELINUX_INIT=YES".to_owned(),
        ],
        signals: SignalsAtFirst::Open,
        check: None,
    })
}
