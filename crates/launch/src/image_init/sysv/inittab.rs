//! The inittab(5) that sysvinit reads instead of the image's: the same but for terminals and
//! power, and with the jobs of the container's program. Pure.

use std::fmt::Write as _;

use super::super::OWN;
use super::super::component::Component;
use super::super::inittab::Entry;
use crate::plan::When;

/// Where it is.
pub(in crate::image_init) const PATH: &str = "/etc/inittab";

/// Levels in which a machine works; `/etc/rc2.d` is Debian's.
const LEVELS: std::ops::RangeInclusive<char> = '2'..='5';
const LEVEL: char = '2';

/// Actions that are ours: which level comes first, and what ends the container.
const LEFT_OUT: [&str; 7] = [
    "initdefault",
    "ctrlaltdel",
    "kbrequest",
    "powerwait",
    "powerfail",
    "powerokwait",
    "powerfailnow",
];

/// Ours, beside components.
const OWN_ENTRIES: usize = 8;

/// An inittab, and the level that it leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inittab {
    pub(super) text: String,
    pub(super) level: char,
}

/// There are no terminals but the program's.
fn is_about_a_terminal(entry: &Entry<'_>) -> bool {
    let word = entry.process.split_ascii_whitespace().next();
    word.is_some_and(|word| word.contains("getty"))
        || entry.action == "respawn" && entry.process.contains("/sulogin")
}

/// The first level that an inittab names, if a machine works in it.
pub(in crate::image_init) fn default_level(inittab: &str) -> Option<char> {
    let mut entries = inittab.lines().filter_map(Entry::parse);
    let entry = entries.find(|entry| entry.action == "initdefault")?;
    working_level(entry.levels)
}

/// The first of these levels, if a machine works in it.
pub(in crate::image_init) fn working_level(levels: &str) -> Option<char> {
    let first = levels.chars().next();
    first.filter(|level| LEVELS.contains(level))
}

/// Makes ours of an image's.
///
/// Entries are started in their order, and one with `wait` holds up those behind it: the program
/// comes after all that the level starts, and in level 0 it is stopped before anything else is.
pub(super) fn of(image: &str, components: &[Component]) -> Inittab {
    let entries: Vec<_> = image.lines().filter_map(Entry::parse).collect();
    let level = default_level(image).unwrap_or(LEVEL);
    let kept = entries
        .iter()
        .filter(|entry| !LEFT_OUT.contains(&entry.action) && !is_about_a_terminal(entry));
    let ids = own_ids(&entries, components.len());
    let mut text = format!("{}:{level}:initdefault:\n", ids[0]);
    let _written = writeln!(text, "{}::sysinit:+{OWN}/init listening", ids[7]);
    for (id, rest) in ids[1..]
        .iter()
        .zip(["powerfail:", "powerokwait:", "powerfailnow:"])
    {
        let _written = writeln!(text, "{id}::{rest}+{OWN}/init power-off");
    }
    let _written = writeln!(text, "{}:06:wait:+{OWN}/init stop", ids[4]);
    let (before, after): (Vec<_>, Vec<_>) = components
        .iter()
        .zip(&ids[OWN_ENTRIES..])
        .partition(|(component, _)| component.when == When::Before);
    let jobs = |text: &mut String, components: &[(&Component, &String)]| {
        for (component, id) in components {
            let name = &component.name;
            let _written = writeln!(text, "{id}:2345:respawn:+{OWN}/init component {name}");
        }
    };
    jobs(&mut text, &before);
    for Entry {
        id,
        levels,
        action,
        process,
    } in kept
    {
        let _written = writeln!(text, "{id}:{levels}:{action}:{process}");
    }
    let _written = writeln!(text, "{}:0123456:respawn:+{OWN}/init job", ids[5]);
    jobs(&mut text, &after);
    let _written = writeln!(text, "{}:06:wait:+{OWN}/init end", ids[6]);
    Inittab { text, level }
}

/// Ids of ours that the image has not: of two with the same one, sysvinit drops the second.
fn own_ids(entries: &[Entry<'_>], more: usize) -> Vec<String> {
    let is_free = |id: &String| entries.iter().all(|entry| entry.id != id);
    let all = (0..1000).map(|number| format!("r{number:03}"));
    all.filter(is_free).take(OWN_ENTRIES + more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Debian's has, and more.
    const DEBIAN: &str = "# /etc/inittab
id:3:initdefault:
si::sysinit:/etc/init.d/rcS
~~:S:wait:/sbin/sulogin --force
l0:0:wait:/etc/init.d/rc 0
l3:3:wait:/etc/init.d/rc 3
l6:6:wait:/etc/init.d/rc 6
ca:12345:ctrlaltdel:/sbin/shutdown -t1 -a -r now
pf::powerwait:/etc/init.d/powerfail start
1:2345:respawn:/sbin/getty --noclear 38400 tty1
z6:6:respawn:/sbin/sulogin --force
r001:2345:respawn:/usr/sbin/own-daemon -x a:b
nonsense
";

    #[test]
    fn the_program_comes_last_and_is_stopped_first() {
        let expected = "r000:3:initdefault:
r008::sysinit:+/run/runlxc/init listening
r002::powerfail:+/run/runlxc/init power-off
r003::powerokwait:+/run/runlxc/init power-off
r004::powerfailnow:+/run/runlxc/init power-off
r005:06:wait:+/run/runlxc/init stop
si::sysinit:/etc/init.d/rcS
~~:S:wait:/sbin/sulogin --force
l0:0:wait:/etc/init.d/rc 0
l3:3:wait:/etc/init.d/rc 3
l6:6:wait:/etc/init.d/rc 6
r001:2345:respawn:/usr/sbin/own-daemon -x a:b
r006:0123456:respawn:+/run/runlxc/init job
r007:06:wait:+/run/runlxc/init end
";
        let inittab = of(DEBIAN, &[]);
        assert_eq!(inittab.text, expected);
        assert_eq!(inittab.level, '3');
    }

    #[test]
    fn components_are_on_either_side_of_the_program() {
        let component = |name: &str, when| Component {
            name: name.to_owned(),
            when,
            is_notifying: false,
        };
        let all = [component("b", When::After), component("a", When::Before)];
        let text = of("l3:3:wait:/etc/init.d/rc 3\n", &all).text;
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("respawn:+/run/runlxc/init component a\n") < at("/etc/init.d/rc 3"));
        assert!(at("respawn:+/run/runlxc/init component b\n") > at("init job"));
        let ids: std::collections::BTreeSet<_> = text.lines().map(|line| &line[..4]).collect();
        assert_eq!(ids.len(), text.lines().count(), "{text}");
    }

    #[test]
    fn a_level_that_ends_the_machine_or_none_becomes_2() {
        for text in [
            "",
            "id:0:initdefault:\n",
            "id::initdefault:\n",
            "id:S:initdefault:",
        ] {
            assert_eq!(of(text, &[]).level, '2', "{text:?}");
        }
    }
}
