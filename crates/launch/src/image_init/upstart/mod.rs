//! An image's own `/sbin/init` as pid 1, where that is upstart's.
//!
//! ```text
//!   jobs, in a copy of /etc/init that is bound over the image's      what they run
//!   pouch-listening     on startup                       listening   the container has started
//!   pouch-boot          on startup                       tells what a machine's boot would (file systems,
//!                                                        network), /etc/init.d/rcS, telinit 2
//!                       the image's                      of the level; rc: scripts of the level
//!   pouch-application   when rc has ended                application the program; after it, telinit 0
//!   pouch-power         PWR from `kill`                  stops the program, telinit 0
//!                       level 0 or 6: first the program  stops, then rc: scripts of that level
//!   pouch-end           when rc has ended                upstart-end asks pid 1 to execute itself anew
//!   init, as the stub   pid 1                            the last program of pid 1
//! ```
//! upstart executes itself anew by the path that it was started with, which is a link of ours to the image's:
//! at the end it leads to the stub. Its programs find it by an abstract socket, and so whatever upstart
//! there is in their network namespace: no other may be there.

mod jobs;

use std::fs::{self, rename};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use nix::sys::signal::Signal;
use sys::Pid;
use sys::process::kill_number;

use crate::error::{Result, host};
use crate::init::{End, Furnished};
use crate::plan::ImageInit;

use super::accounts::{read_bounded, read_regular};
use super::application::refuse_elsewhere;
use super::files::{bind, copy_stub, cover, link, make_directory, write};
use super::{CONTAINER, OWN, Program, SEARCH_PATH, SignalsAtFirst, component, rc, refusal, sysv};

use self::jobs::{Job, Service};

/// Where upstart has its jobs (init(5)).
const JOBS: &str = "/etc/init";

/// Where upstart takes requests: an abstract name, of a network namespace (init/paths.h).
const REQUESTS: &[u8] = b"/com/ubuntu/upstart";

/// What asks upstart for something. Images made for containers have put it away under the second name, and
/// something that does nothing in its place.
const INITCTL: &str = "/sbin/initctl";
const DIVERTED: &str = "/sbin/initctl.distrib";

/// No image has more of jobs.
const BYTES_MAX: usize = 4 << 20;

/// By what pid 1 is started, and executed anew.
fn started_as() -> String {
    format!("{OWN}/sbin/init")
}

/// Makes what it finds in the container beside the image; gives how it is started.
pub(super) fn furnish(init: &Path, wanted: &ImageInit, furnished: &Furnished) -> Result<Program> {
    refuse_another()?;
    let found = found()?;
    check_levels(&found)?;
    let services = wanted.services.iter().map(|name| service(name, &found));
    let services: Vec<_> = services.collect::<Result<_>>()?;
    copy_stub(&furnished.proc)?;
    let components = component::prepare(&wanted.components)?;
    let inittab = read_regular(sysv::INITTAB).ok().flatten();
    let inittab = inittab.as_deref().map(String::from_utf8_lossy);
    let level = jobs::level(inittab.as_deref(), &found);
    let own = format!("{OWN}{JOBS}");
    make_directory(&own)?;
    let asked = (level, initctl()?);
    for job in jobs::of(found, asked, &services, &components) {
        write(&format!("{own}/{}", job.file), &job.text, 0o644)?;
    }
    bind(&own, JOBS.as_ref())?;
    let scripts = services.into_iter().filter_map(|it| match it {
        Service::Script(script) => Some(script),
        Service::Job(_) => None,
    });
    rc::arrange(level, &scripts.collect::<Vec<_>>())?;
    make_directory(&format!("{OWN}/sbin"))?;
    link(init, &started_as())?;
    Ok(Program {
        args: vec![started_as()],
        env: vec![SEARCH_PATH.to_owned(), format!("container={CONTAINER}")],
        signals: SignalsAtFirst::Open,
        check: Some(refuse_another),
    })
}

/// What runs the scripts of a level has to tell their end, and of which.
fn check_levels(found: &[Job]) -> Result<()> {
    let path = format!("{JOBS}/{}", jobs::OF_LEVELS);
    let why = match found.iter().find(|job| job.file == jobs::OF_LEVELS) {
        Some(job) if job.exports_level() => return Ok(()),
        Some(_) => format!("{path} of the image does not export RUNLEVEL"),
        None => format!("the image has no file {path}"),
    };
    let why = format!("mode sbin-init: {why}, by which the program knows when to start");
    Err(refusal(why))
}

/// The image's own initctl, which is put back where it was put away.
fn initctl() -> Result<&'static str> {
    let is_file = |path: &str| fs::symlink_metadata(path).is_ok_and(|about| about.is_file());
    if !is_file(DIVERTED) {
        return Ok(INITCTL);
    }
    // A link leads to something that others use.
    if is_file(INITCTL) {
        cover(DIVERTED, INITCTL.as_ref())?;
    }
    Ok(DIVERTED)
}

/// Refuses a network namespace with an upstart in it: `telinit 0` of this container would be its end.
fn refuse_another() -> Result<()> {
    let step = || "look for another upstart".to_owned();
    let address = SocketAddr::from_abstract_name(REQUESTS).map_err(host(step))?;
    if UnixStream::connect_addr(&address).is_err() {
        return Ok(());
    }
    Err(refusal(format!(
        "mode sbin-init: an upstart of another container or of the host listens at @{} in this network namespace, \
         and one alone can: give the container one of its own, or mode dumb-init",
        String::from_utf8_lossy(REQUESTS)
    )))
}

/// The image's jobs; what is no regular file is none.
fn found() -> Result<Vec<Job>> {
    let listed = fs::read_dir(JOBS).map_err(host(|| format!("list {JOBS}")))?;
    let mut found = Vec::new();
    let mut left = BYTES_MAX;
    for entry in listed {
        let entry = entry.map_err(host(|| format!("list {JOBS}")))?;
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        if jobs::name_of(&file).is_none() {
            continue;
        }
        let path = format!("{JOBS}/{file}");
        let content = read_bounded(&path, left as u64 + 1)
            .map_err(host(|| format!("read {path} of the image")))?;
        let Some(text) = content else {
            continue;
        };
        left = left.checked_sub(file.len() + text.len()).ok_or_else(|| {
            let why =
                format!("mode sbin-init: the jobs in {JOBS} have more than {BYTES_MAX} bytes");
            refusal(why)
        })?;
        found.push(Job { file, text });
    }
    Ok(found)
}

/// A job of upstart's, else a script.
fn service(name: &str, found: &[Job]) -> Result<Service> {
    let Some(job) = found.iter().find(|job| job.name() == Some(name)) else {
        return rc::Script::find(name).map(Service::Script);
    };
    if job.is_template() {
        let why = format!(
            "org.pouch.rich.services: {JOBS}/{} of the image has instances, which somebody must name",
            job.file
        );
        return Err(refusal(why));
    }
    Ok(Service::Job(name.to_owned()))
}

/// Has pid 1 execute its last program.
///
/// # Errors
/// What keeps it from telling pid 1.
pub fn end() -> Result<End> {
    refuse_elsewhere()?;
    sysv::note_end()?;
    let last = format!("{OWN}/sbin/last");
    link(format!("{OWN}/init"), &last)?;
    let own = started_as();
    rename(&last, &own).map_err(host(|| format!("rename {last} to {own}")))?;
    kill_number(Pid::from_raw(1), Signal::SIGTERM as i32)
        .map_err(host(|| "ask pid 1 to execute itself anew".to_owned()))?;
    Ok(End::Forked)
}
