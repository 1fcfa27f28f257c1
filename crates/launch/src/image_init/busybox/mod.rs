//! An image's own `/sbin/init` as pid 1, where that is BusyBox's and the image has an inittab.
//!
//! ```text
//!   inittab, bound over the image's      what it runs, all of it the stub
//!   first        sysinit                 listening     the container has started
//!   last         respawn                 busybox-job   the program; after it, QUIT to pid 1
//!   QUIT         shutdown, first         stop          TERM to the program, waits for its end
//!                the image's             /etc/init.d/rcK
//!                restart                 last          the last program of pid 1
//! ```
//! QUIT is its signal to run what is for the end, end all others, and execute another init. Those to
//! halt or to turn off would have it ask the kernel for that, which a container may not, and stay.

mod inittab;

use nix::sys::signal::Signal;
use sys::process::kill_number;
use sys::{ExitStatus, Pid};

use crate::error::{Result, host};
use crate::image_init::{CONTAINER, OWN, Program, SEARCH_PATH, SignalsAtFirst, refusal};
use crate::init::{End, Furnished};
use crate::plan::ImageInit;

use super::application::refuse_elsewhere;
use super::files::{copy_stub, cover as bind_over, write};
use super::sbin::text_of;
use super::{component, rc, shutdown, style, sysv};

/// What has it end all in order.
pub(super) const STOP: i32 = Signal::SIGQUIT as i32;

/// Makes what it finds in the container beside the image; gives how it is started.
pub(super) fn furnish(wanted: &ImageInit, furnished: &Furnished) -> Result<Program> {
    let text = text_of(inittab::PATH)?;
    for name in &wanted.services {
        rc::Script::find(name)?;
    }
    copy_stub(&furnished.proc)?;
    let components = component::prepare(&wanted.components)?;
    let own = format!("{OWN}/inittab");
    let inittab = inittab::of(&text, &wanted.services, &components);
    write(&own, inittab.as_bytes(), 0o644)?;
    bind_over(&own, inittab::PATH.as_ref())?;
    Ok(Program {
        args: vec![style::PATH.to_owned()],
        env: vec![SEARCH_PATH.to_owned(), format!("container={CONTAINER}")],
        signals: SignalsAtFirst::Open,
        check: None,
    })
}

/// Runs the program of the container, as [`sysv::job`].
///
/// # Errors
/// As there, and what keeps it from telling pid 1.
pub fn job() -> Result<End> {
    sysv::job_ended_by(|| {
        kill_number(Pid::from_raw(1), STOP).map_err(host(|| "tell pid 1 to end all".to_owned()))
    })
}

/// The last program of pid 1.
///
/// # Errors
/// Where this process is not pid 1, or not the copy in [`OWN`].
pub fn last() -> Result<End> {
    refuse_elsewhere()?;
    if std::process::id() != 1 {
        return Err(refusal("only pid 1 of a container executes this"));
    }
    Ok(End::Program(ExitStatus::Exited(shutdown::run())))
}
