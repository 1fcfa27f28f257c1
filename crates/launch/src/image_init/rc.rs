//! The links of a runlevel (`/etc/rc2.d/S01cron`): those of the image without what is not for a
//! container, with the services that are asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, host};
use crate::services::SCRIPTS;

use super::accounts::read_regular;
use super::files::{bind, cover, link, make_directory, write};
use super::{OWN, refusal};

/// What insserv knows of the order of scripts. Where it is, scripts run in parallel, and none that it
/// does not name; without it they run in the order of their links.
const DEPENDENCIES: &str = "/etc/init.d/.depend.start";

/// Where a service starts among others if no link of the image tells.
const START: u8 = 20;

/// What is left out of the boot: devices, file systems, clock and names, which are the host's
/// affair or made already.
const NOT_AT_BOOT: [&str; 26] = [
    "brightness",
    "checkfs.sh",
    "checkroot-bootclean.sh",
    "checkroot.sh",
    "console-screen.sh",
    "console-setup.sh",
    "cryptdisks",
    "cryptdisks-early",
    "eudev",
    "hostname.sh",
    "hwclock.sh",
    "hwclockfirst.sh",
    "keyboard-setup.sh",
    "kmod",
    "lvm2",
    "module-init-tools",
    "mount-configfs",
    "mountall-bootclean.sh",
    "mountall.sh",
    "mountdevsubfs.sh",
    "mountkernfs.sh",
    "mountnfs-bootclean.sh",
    "mountnfs.sh",
    "mtab.sh",
    "plymouth-log",
    "udev",
];

/// What is left out of the end: it would turn off a machine, and kill the program's parent.
const NOT_AT_END: [&str; 10] = [
    "halt",
    "hwclock.sh",
    "killall",
    "killprocs",
    "plymouth",
    "reboot",
    "sendsigs",
    "umountfs",
    "umountnfs.sh",
    "umountroot",
];

/// What a directory of links is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Boot,
    Running,
    End,
}

/// A script that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    name: String,
    start: u8,
}

/// A link in a directory, or a script that lies there itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    name: String,
    /// None: no link.
    target: Option<PathBuf>,
}

/// `S20cron`: start or kill, when, and which script.
fn parse(name: &str) -> Option<(char, u8, &str)> {
    let kind = name.chars().next().filter(|kind| "SK".contains(*kind))?;
    let number = name.get(1..3)?.parse().ok()?;
    Some((kind, number, name.get(3..)?))
}

impl Script {
    /// Finds a script by its name.
    pub(super) fn find(name: &str) -> Result<Self> {
        let path = Path::new(SCRIPTS).join(name);
        let refuse = |why: &str| {
            let why = format!("org.pouch.rich.services: {} {why}", path.display());
            Err(refusal(why))
        };
        match fs::metadata(&path) {
            Ok(about) if !about.is_file() => return refuse("of the image is no file"),
            Ok(about) if about.permissions().mode() & 0o111 == 0 => {
                return refuse("of the image is not executable");
            }
            Ok(_) => {}
            Err(_) => return refuse("is not in the image"),
        }
        let mut starts = ('2'..='5').flat_map(|level| names_in(&directory(level)));
        let start = starts.find_map(|link| match parse(&link) {
            Some(('S', number, script)) if script == name => Some(number),
            _ => None,
        });
        Ok(Self {
            name: name.to_owned(),
            start: start.unwrap_or(START),
        })
    }
}

/// Puts ours in the place of the image's, where they differ in more than the absence of them.
pub(super) fn arrange(level: char, scripts: &[Script]) -> Result<()> {
    let running = directory(level);
    if !scripts.is_empty() && !Path::new(&running).is_dir() {
        let why = format!("org.pouch.rich.services: the image has no directory {running}");
        return Err(refusal(why));
    }
    for (level, purpose) in [
        ('S', Purpose::Boot),
        (level, Purpose::Running),
        ('0', Purpose::End),
        ('6', Purpose::End),
    ] {
        let path = directory(level);
        if Path::new(&path).is_dir() {
            replace(&path, purpose, scripts)?;
        }
    }
    if !scripts.is_empty() && Path::new(DEPENDENCIES).is_file() {
        let empty = format!("{OWN}/depend.start");
        write(&empty, b"", 0o644)?;
        cover(&empty, DEPENDENCIES.as_ref())?;
    }
    Ok(())
}

fn directory(level: char) -> String {
    format!("/etc/rc{level}.d")
}

fn names_in(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

fn replace(path: &str, purpose: Purpose, scripts: &[Script]) -> Result<()> {
    let found = names_in(path).into_iter().map(|name| Link {
        target: fs::read_link(Path::new(path).join(&name)).ok(),
        name,
    });
    let found: Vec<_> = found.collect();
    let wanted = arranged(purpose, &found, scripts);
    if wanted == found {
        return Ok(());
    }
    let own = format!("{OWN}{path}");
    make_directory(&own)?;
    for Link { name, target } in &wanted {
        let place = format!("{own}/{name}");
        match target {
            Some(target) => link(target, &place)?,
            None => {
                let script = format!("{path}/{name}");
                let content = read_regular(&script).map_err(host(|| format!("read {script}")))?;
                write(&place, &content.unwrap_or_default(), 0o755)?;
            }
        }
    }
    bind(&own, Path::new(path))
}

/// The links that a container has, of those of its image.
fn arranged(purpose: Purpose, found: &[Link], scripts: &[Script]) -> Vec<Link> {
    let left_out: &[&str] = match purpose {
        Purpose::Boot => &NOT_AT_BOOT,
        Purpose::Running => &[],
        Purpose::End => &NOT_AT_END,
    };
    let is_asked_for = |name: &str| scripts.iter().any(|script| script.name == name);
    let mut all = found.to_vec();
    all.retain(|link| match parse(&link.name) {
        Some(('K', _, script)) if purpose == Purpose::Running => !is_asked_for(script),
        Some((_, _, script)) => !left_out.contains(&script),
        None => false,
    });
    let kind = match purpose {
        Purpose::Boot => return all,
        Purpose::Running => 'S',
        Purpose::End => 'K',
    };
    for wanted in scripts {
        let is_of_it = |link: &Link| matches!(parse(&link.name), Some((of, _, script)) if of == kind && script == wanted.name);
        if !all.iter().any(is_of_it) {
            let number = match kind {
                'S' => wanted.start,
                // What starts first is stopped last.
                _ => 99 - wanted.start.min(98),
            };
            all.push(Link {
                name: format!("{kind}{number:02}{}", wanted.name),
                target: Some(Path::new(SCRIPTS).join(&wanted.name)),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(purpose: Purpose, found: &[&str], services: &[(&str, u8)]) -> Vec<String> {
        let found = found.iter().map(|name| Link {
            name: (*name).to_owned(),
            target: Some(PathBuf::from("../init.d/x")),
        });
        let scripts = services.iter().map(|&(name, start)| Script {
            name: name.to_owned(),
            start,
        });
        let (found, scripts): (Vec<_>, Vec<_>) = (found.collect(), scripts.collect());
        let all = arranged(purpose, &found, &scripts);
        all.into_iter().map(|link| link.name).collect()
    }

    #[test]
    fn what_is_not_for_a_container_is_left_out() {
        let boot = ["S01hostname.sh", "S02mountkernfs.sh", "S03procps", "README"];
        assert_eq!(names(Purpose::Boot, &boot, &[("cron", 1)]), ["S03procps"]);
        let end = ["K01cron", "K03sendsigs", "K09umountroot", "K10halt"];
        assert_eq!(names(Purpose::End, &end, &[]), ["K01cron"]);
        let running = ["S01cron", "S02halt"];
        assert_eq!(names(Purpose::Running, &running, &[]), running);
    }

    #[test]
    fn services_that_are_asked_for_start_and_stop() {
        let asked = [("cron", 1), ("ssh", 20)];
        let running = names(Purpose::Running, &["S01cron", "K80ssh", "K01atd"], &asked);
        assert_eq!(running, ["S01cron", "K01atd", "S20ssh"]);
        let end = names(Purpose::End, &["K01cron"], &asked);
        assert_eq!(end, ["K01cron", "K79ssh"]);
    }

    #[test]
    fn names_of_links_say_when() {
        assert_eq!(parse("S05cron"), Some(('S', 5, "cron")));
        for name in [
            "README",
            "S5cron",
            "",
            "S",
            "K",
            "X01a",
            "Sxya",
            "S\u{fc}1a",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
