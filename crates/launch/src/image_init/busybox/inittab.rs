//! The inittab that BusyBox's init reads instead of the image's: the same but for terminals, file
//! systems and the power, with the jobs of the container's program. Pure.
//!
//! Its form is that of sysvinit, but the first field is a terminal, the second means nothing, and
//! entries are run by their action, whatever their order between actions.

use std::fmt::Write as _;

use super::super::OWN;
use super::super::component::Component;
use super::super::inittab::Entry;
use crate::plan::When;
use crate::services::SCRIPTS;

/// Where it is.
pub(super) const PATH: &str = "/etc/inittab";

/// Actions of the image that stay.
const KEPT: [&str; 5] = ["sysinit", "wait", "once", "respawn", "shutdown"];

/// Programs that are the host's affair, or have nothing to do in a container.
const LEFT_OUT: [&str; 9] = [
    "fsck", "getty", "hostname", "hwclock", "mount", "sulogin", "swapoff", "swapon", "umount",
];

fn is_kept(entry: &Entry<'_>) -> bool {
    // One that comes again on a terminal is for whoever sits there.
    let is_for_a_terminal = !["", "null"].contains(&entry.id);
    if !KEPT.contains(&entry.action) || entry.action == "respawn" && is_for_a_terminal {
        return false;
    }
    // A login shell begins with a dash.
    let program = entry.process.split_ascii_whitespace().next();
    let program = program.unwrap_or_default().trim_start_matches('-');
    let name = program.rsplit('/').next().unwrap_or_default();
    !LEFT_OUT.contains(&name)
}

/// Makes ours of an image's.
pub(super) fn of(image: &str, services: &[String], components: &[Component]) -> String {
    let mut text = String::new();
    let mut add = |action: &str, process: &str| {
        let _written = writeln!(text, "::{action}:{process}");
    };
    add("sysinit", &format!("{OWN}/init listening"));
    add("restart", &format!("{OWN}/init last"));
    // The program ends before anything else does.
    add("shutdown", &format!("{OWN}/init stop"));
    for name in services.iter().rev() {
        add("shutdown", &format!("{SCRIPTS}/{name} stop"));
    }
    let component = |name: &str| format!("{OWN}/init component {name}");
    for before in components.iter().filter(|it| it.when == When::Before) {
        add("respawn", &component(&before.name));
    }
    for Entry {
        action, process, ..
    } in image.lines().filter_map(Entry::parse).filter(is_kept)
    {
        add(action, process.trim());
    }
    for name in services {
        add("wait", &format!("{SCRIPTS}/{name} start"));
    }
    add("respawn", &format!("{OWN}/init busybox-job"));
    for after in components.iter().filter(|it| it.when == When::After) {
        add("respawn", &component(&after.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As small distributions have it.
    const IMAGE: &str = "# inittab
::sysinit:/bin/mount -t proc proc /proc
null::sysinit:/bin/ln -sf /proc/self/fd /dev/fd
::sysinit:/etc/init.d/rcS
::wait:/sbin/openrc default
tty1::respawn:/sbin/getty 38400 tty1
::respawn:/sbin/getty -L ttyS0 115200 vt100
::respawn:/usr/sbin/own-daemon -x a:b
tty2::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/init.d/rcK
::shutdown:/bin/umount -a -r
::restart:/sbin/init
nonsense
";

    #[test]
    fn the_program_is_stopped_first_and_what_is_not_for_a_container_is_left_out() {
        let services = ["cron", "web"].map(str::to_owned);
        let expected = "::sysinit:/run/runlxc/init listening
::restart:/run/runlxc/init last
::shutdown:/run/runlxc/init stop
::shutdown:/etc/init.d/web stop
::shutdown:/etc/init.d/cron stop
::sysinit:/bin/ln -sf /proc/self/fd /dev/fd
::sysinit:/etc/init.d/rcS
::wait:/sbin/openrc default
::respawn:/usr/sbin/own-daemon -x a:b
::shutdown:/etc/init.d/rcK
::wait:/etc/init.d/cron start
::wait:/etc/init.d/web start
::respawn:/run/runlxc/init busybox-job
";
        assert_eq!(of(IMAGE, &services, &[]), expected);
    }

    #[test]
    fn components_are_on_either_side_of_the_program() {
        let component = |name: &str, when| Component {
            name: name.to_owned(),
            when,
            is_notifying: false,
        };
        let all = [component("b", When::After), component("a", When::Before)];
        let text = of("", &[], &all);
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("component a\n") < at("busybox-job"));
        assert!(at("component b\n") > at("busybox-job"));
    }
}
