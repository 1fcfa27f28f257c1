//! Starts the process that makes a template and holds it: this program again, on its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use sys::{CloneFlags, Spawn, TimeStampCounter};

use super::call::is_held;
use super::holder::WORD;
use super::place::Retry;
use super::{Key, Places};
use crate::home::{Home, VARIABLE};
use crate::image::{Image, Name};
use crate::qemu::{self, Accelerator, Arguments, Facts, LINKS_MAX, Memory, Volumes};
use crate::size::{self, Size};
use crate::{Error, Result};

/// This program, whatever became of its name.
const SELF: &str = "/proc/self/exe";

/// Descriptor number of what a maker tells its end to, if somebody waits for it.
pub(crate) const TOLD_FD: i32 = 3;

/// What a maker says that has made it; else it says why not.
pub(crate) const MADE: &str = "made";

/// What somebody who makes a template chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Guest image.
    pub guest: Name,
    /// Memory in MiB: one of the size classes.
    pub memory_mib: u64,
    /// Processors.
    pub processors: u32,
    /// Links.
    pub links: usize,
}

impl Kind {
    /// That of a machine; none for one that has no size class.
    pub(crate) fn of(arguments: &Arguments) -> Option<Self> {
        let this = Self {
            guest: arguments.image.name.clone(),
            memory_mib: arguments.memory_mib,
            processors: arguments.processors,
            links: arguments.links,
        };
        this.check().ok().map(|()| this)
    }

    /// # Errors
    /// [`Error::Usage`] with the value that no machine has.
    pub(crate) fn check(&self) -> Result<()> {
        let Self {
            memory_mib,
            processors,
            links,
            ..
        } = *self;
        if !size::is_class(memory_mib) {
            let why = "is no size of templates: they have 256, 512, 1024, 2048 or 4096 MiB";
            return Err(Error::Usage(format!("memory {memory_mib} {why}")));
        }
        let host = size::host_processors();
        if processors == 0 || processors > host {
            let why = format!("processors {processors}: this host has {host}");
            return Err(Error::Usage(why));
        }
        if links > LINKS_MAX {
            let why = format!("links {links}: a virtual machine has at most {LINKS_MAX}");
            return Err(Error::Usage(why));
        }
        Ok(())
    }

    /// The machine of this kind, on this host.
    pub(crate) fn arguments(
        &self,
        home: &Home,
        clock: Option<TimeStampCounter>,
    ) -> Result<Arguments> {
        let size = Size {
            memory_mib: self.memory_mib,
            processors: self.processors,
        };
        Ok(machine(
            Image::find(home, &self.guest)?,
            size,
            self.links,
            clock,
        ))
    }

    fn words(&self, retry: Retry) -> [String; 6] {
        let retry = match retry {
            Retry::Later => "later",
            Retry::Now => "now",
        };
        [
            WORD.to_owned(),
            self.guest.to_string(),
            self.memory_mib.to_string(),
            self.processors.to_string(),
            self.links.to_string(),
            retry.to_owned(),
        ]
    }

    /// What `words` says.
    pub(crate) fn parse(words: &[String]) -> Option<(Self, Retry)> {
        let [guest, memory_mib, processors, links, retry] = words else {
            return None;
        };
        let this = Self {
            guest: guest.parse().ok()?,
            memory_mib: memory_mib.parse().ok()?,
            processors: processors.parse().ok()?,
            links: links.parse().ok()?,
        };
        let retry = match retry.as_str() {
            "later" => Retry::Later,
            "now" => Retry::Now,
            _ => return None,
        };
        this.check().ok().map(|()| (this, retry))
    }
}

/// A machine of this host that boots; what it writes to its console goes nowhere yet.
pub(crate) fn machine(
    image: Image,
    size: Size,
    links: usize,
    clock: Option<TimeStampCounter>,
) -> Arguments {
    let accelerator: Accelerator = Facts::read(Path::new("/")).accelerator();
    Arguments {
        image,
        accelerator,
        memory_mib: size.memory_mib,
        memory: Memory::Empty,
        processors: size.processors,
        tsc_khz: clock.and_then(TimeStampCounter::khz),
        links,
        volumes: Volumes::None,
        console: PathBuf::from("/dev/null"),
    }
}

/// Has the template made of which a machine was just booted, unless somebody does already, and does not
/// wait. Nothing of it is this process's: it lives on when this one ends.
pub(crate) fn make_later(places: &Places, home: &Home, (key, kind): (&Key, &Kind)) -> Result<()> {
    match places.may_make(key) {
        true => spawn(home, kind, Retry::Later, None),
        false => Ok(()),
    }
}

/// Has it made, and waits. One that is there stays.
///
/// # Errors
/// Why it is not made.
pub fn make(home: &Home, kind: &Kind) -> Result<Key> {
    kind.check()?;
    let arguments = kind.arguments(home, None)?;
    let key = Key::of(&arguments, &qemu::find()?)?;
    let (told, tell) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
    spawn(home, kind, Retry::Now, Some(tell))?;
    let mut said = String::new();
    // It says something at its end at the latest.
    let read = File::from(told).read_to_string(&mut said);
    read.map_err(Error::io("listen to who makes a template"))?;
    let places = Places::of(home);
    match said.trim() {
        MADE => Ok(key),
        "" if is_held(&places, &key) => Ok(key),
        "" => Err(Error::Usage(format!(
            "template {key} is being made by another"
        ))),
        why => Err(Error::Usage(why.to_owned())),
    }
}

fn spawn(home: &Home, kind: &Kind, retry: Retry, tell: Option<OwnedFd>) -> Result<()> {
    // Whoever it was that needed a template first is nobody to the others.
    let program = qemu::find()?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let path = (OsString::from("PATH"), folder.into());
    let home = (OsString::from(VARIABLE), home.path().into());
    let mut spawn = Spawn::new(Path::new(SELF))
        .args(kind.words(retry))
        .env_clear_set(vec![path, home])
        .cwd(Path::new("/"))
        // For its taps.
        .unshare(CloneFlags::CLONE_NEWNET)
        .new_session();
    if let Some(tell) = tell {
        spawn = spawn.fd(TOLD_FD, tell);
    }
    let child = spawn.spawn();
    child
        .map_err(Error::io("start who makes a template"))?
        .release();
    Ok(())
}
