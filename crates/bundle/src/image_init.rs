//! What an image's own init as pid 1 asks of a bundle: namespaces, and tmpfs for what is not to be
//! written to the image. Pure.

use std::path::Path;

use launch::image_init::OWN;
use launch::plan::{ImageInit, InitPlan, PidOne, PlannedMount};
use mounts::flags::{NODEV, NOEXEC, NOSUID, RDONLY};
use mounts::{Mount, MountOptions};

use crate::namespaces::Namespaces;
use crate::plan::{NamespaceKind, PlanContext};
use crate::rich::ready::Readiness;
use crate::rich::{Mode, Rich, restart};
use crate::{Error, Result};

const RUN: &str = "/run";

/// Kinds of units that may be asked for; a name without one is a service.
const KINDS: [&str; 5] = ["service", "socket", "timer", "path", "target"];

/// systemd's own bound (UNIT_NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// Names from a list with commas: of units under systemd, else of scripts, which may be called what
/// the unit is.
///
/// # Errors
/// With the name that is none.
pub(crate) fn services(field: &str, text: &str, mode: Mode) -> Result<Vec<String>> {
    text.split(',')
        .map(|word| {
            let name = match word.rsplit_once('.') {
                Some((script, "service")) if mode != Mode::Systemd => script.to_owned(),
                Some((_, kind)) if KINDS.contains(&kind) => word.to_owned(),
                _ if mode != Mode::Systemd => word.to_owned(),
                _ => format!("{word}.service"),
            };
            let is_sound = |c: char| c.is_ascii_alphanumeric() || ":_.@\\-".contains(c);
            if word.is_empty()
                || word.starts_with('.')
                || name.len() > NAME_BYTES_MAX
                || !word.chars().all(is_sound)
            {
                let why = format!("{word:?} is no name of a service, as in cron,ssh");
                return Err(Error::invalid(field, why));
            }
            Ok(name)
        })
        .collect()
}

/// Changes a plan to what an image's `/sbin/init` needs.
///
/// # Errors
/// A field that does not go together with it.
pub(crate) fn furnish_sbin(
    rich: &Rich,
    context: &PlanContext,
    (init, namespaces): (&mut InitPlan, &mut Namespaces),
) -> Result<()> {
    check(rich, init, namespaces)?;
    own_tmpfs(rich, &mut init.mounts)?;
    init.pid_one = PidOne::SbinInit(wanted(rich, context));
    Ok(())
}

/// What is asked of the init.
pub(crate) fn wanted(rich: &Rich, context: &PlanContext) -> ImageInit {
    ImageInit {
        id: context.id.clone(),
        user: rich.user.clone(),
        services: rich.services.clone(),
        restart: rich.restart,
        stop_signal: Some(rich.init.stop_signal()),
        components: Vec::new(),
        notify_socket: rich.ready.as_ref().and_then(Readiness::socket_of_init),
    }
}

/// Refuses what does not go together with an init of an image.
///
/// # Errors
/// The field that says so.
pub(crate) fn check(rich: &Rich, init: &InitPlan, namespaces: &Namespaces) -> Result<()> {
    let invalid = |why: &str| {
        Err(Error::invalid(
            &*rich.asked_by,
            format!("mode {} {why}", rich.mode.as_str()),
        ))
    };
    let unsupported = |why: &str| {
        let why = format!("mode {} {why}", rich.mode.as_str());
        Err(Error::unsupported(&*rich.asked_by, why))
    };
    if namespaces.has(NamespaceKind::User) {
        return unsupported("in a user namespace");
    }
    if init.process.preserve_fds > 0 {
        return unsupported("with descriptors from 3 up for the program");
    }
    restart::check_terminal(rich.restart, &init.process)?;
    if !namespaces.makes(NamespaceKind::Pid) {
        return invalid("needs a new pid namespace, and linux.namespaces has none");
    }
    Ok(())
}

/// `/run`, `/run/lock`, `/tmp` where nothing is asked for there, and a place of ours.
pub(crate) fn own_tmpfs(rich: &Rich, mounts: &mut Vec<PlannedMount>) -> Result<()> {
    let is_there = |mounts: &[PlannedMount], path| mounts.iter().any(|other| is_at(other, path));
    let mut at = match mounts.iter().rposition(|planned| is_at(planned, RUN)) {
        Some(index) => {
            check_run(rich, &mounts[index])?;
            index + 1
        }
        None => {
            mounts.insert(0, tmpfs(RUN, NOSUID | NODEV, "mode=755"));
            1
        }
    };
    for (path, flags, data) in [
        ("/run/lock", NOSUID | NODEV | NOEXEC, "mode=1777,size=5m"),
        (OWN, NOSUID | NODEV, "mode=700,size=64m"),
    ] {
        if !is_there(mounts, path) {
            mounts.insert(at, tmpfs(path, flags, data));
            at += 1;
        }
    }
    if !is_there(mounts, "/tmp") {
        mounts.insert(0, tmpfs("/tmp", NOSUID | NODEV, "mode=1777"));
    }
    Ok(())
}

/// Files of ours are written there, and not to a directory of the host.
fn check_run(rich: &Rich, planned: &PlannedMount) -> Result<()> {
    match planned {
        PlannedMount::Plain(mount)
            if mount.fstype == "tmpfs"
                && !mount.is_bind()
                && mount.options.flags_set & RDONLY == 0 =>
        {
            Ok(())
        }
        _ => {
            let mode = rich.mode.as_str();
            let why = format!(
                "mode {mode} needs a writable tmpfs at /run, and mounts has something else"
            );
            Err(Error::invalid(&*rich.asked_by, why))
        }
    }
}

fn tmpfs(target: &str, flags: u64, data: &str) -> PlannedMount {
    PlannedMount::Plain(mount(target, "tmpfs", flags, data))
}

/// A mount without a source.
pub(crate) fn mount(target: &str, fstype: &str, flags: u64, data: &str) -> Mount {
    Mount {
        source: fstype.to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        options: MountOptions {
            flags_set: flags,
            data: data.to_owned(),
            ..MountOptions::none()
        },
    }
}

/// Whether a mount is at this path.
pub(crate) fn is_at(planned: &PlannedMount, path: &str) -> bool {
    Path::new(target(planned)) == Path::new(path)
}

/// Where a mount is.
pub(crate) fn target(planned: &PlannedMount) -> &str {
    let (PlannedMount::Plain(mount) | PlannedMount::Cgroup { mount, .. }) = planned;
    &mount.target
}

#[cfg(test)]
mod tests {
    use launch::image_init::style::Style;

    use super::*;

    #[test]
    fn services_are_names_of_units() {
        let in_mode = |text, mode| services("f", text, mode).map_err(|error| error.to_string());
        let parse = |text| in_mode(text, Mode::Systemd);
        let scripts = in_mode("cron,ssh.service,a.b", Mode::SbinInit);
        assert_eq!(scripts.unwrap(), ["cron", "ssh", "a.b"]);
        assert_eq!(
            parse("cron,web@1,x.socket,a.b").unwrap(),
            ["cron.service", "web@1.service", "x.socket", "a.b.service"]
        );
        for (text, word) in [
            ("", ""),
            ("a,", ""),
            ("a b", "a b"),
            ("../x", "../x"),
            ("ü", "ü"),
        ] {
            let why = format!("f: {word:?} is no name of a service, as in cron,ssh");
            assert_eq!(parse(text).unwrap_err(), why);
        }
    }

    fn targets(mounts: &[PlannedMount]) -> Vec<&str> {
        mounts.iter().map(target).collect()
    }

    #[test]
    fn tmpfs_come_before_what_is_mounted_below_them() {
        let annotations = [(crate::rich::MODE.to_owned(), "systemd".to_owned())];
        let rich = Rich::of(&annotations.into(), &[], || Style::Other);
        let rich = rich.unwrap().unwrap();
        let mut mounts = vec![tmpfs("/proc", 0, ""), tmpfs("/run/secrets", 0, "")];
        own_tmpfs(&rich, &mut mounts).unwrap();
        let all = ["/tmp", "/run", "/run/lock", OWN, "/proc", "/run/secrets"];
        assert_eq!(targets(&mounts), all);
        let mut mounts = vec![tmpfs("/run/", 0, ""), tmpfs("/tmp", 0, "")];
        own_tmpfs(&rich, &mut mounts).unwrap();
        assert_eq!(targets(&mounts), ["/run/", "/run/lock", OWN, "/tmp"]);
        let mut mounts = vec![PlannedMount::Plain(mount(RUN, "ext4", 0, ""))];
        assert!(own_tmpfs(&rich, &mut mounts).is_err());
    }
}
