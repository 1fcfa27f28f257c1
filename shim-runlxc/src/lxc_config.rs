//! The text of an LXC configuration, in the words of any LXC from 1.0 to 7.
//!
//! Pure: what goes in is closed, what comes out is text, arguments and the names of the cgroups
//! that LXC will make. It asks LXC for namespaces and id maps and nothing else; there is no
//! `lxc.rootfs`, because the stub builds the root file system.

use std::fmt::{self, Write as _};
use std::path::Path;

use bundle::{IdMap, Namespace, NamespaceKind};

use crate::{Error, Result};

/// Version of an LXC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 to 7 are known.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Version {
    /// The first two numbers of `lxc-start --version`, e.g. of `5.0.2` or `3.0.0.beta1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split('.').map(|part| {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self {
            major: numbers.next()??,
            minor: numbers.next()??,
        })
    }

    /// `lxc.uts.name` and its like instead of `lxc.utsname`.
    fn has_dotted_keys(self) -> bool {
        self >= Self { major: 2, minor: 1 }
    }

    /// `lxc.namespace.clone`.
    fn has_namespace_clone(self) -> bool {
        self >= Self { major: 3, minor: 0 }
    }

    /// `lxc.monitor.signal.pdeath`; before it the stub clears its own parent-death signal.
    fn has_pdeath(self) -> bool {
        self >= Self { major: 4, minor: 0 }
    }

    /// Whether this LXC starts containers on a host whose version 1 hierarchies it cannot see
    /// (5.0: `cgfsng.c` returns early without hierarchies).
    #[must_use]
    pub fn can_do_without_cgroups(self) -> bool {
        self >= Self { major: 5, minor: 0 }
    }

    /// `lxc.cgroup.dir.container` and its like.
    fn has_cgroup_dirs(self) -> bool {
        self >= Self { major: 5, minor: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// LXC's name of the container, unique on the host: LXC names cgroups and an abstract socket by
/// it. FNV-1a of the state directory's path.
#[must_use]
pub fn name_of(dir: &Path) -> String {
    let bytes = dir.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("runlxc-{hash:016x}")
}

/// What a container wants of LXC.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// LXC's name of the container; unique on the host, plain ASCII.
    pub name: &'a str,
    /// Absolute path of `runlxc-init`, where it is bound over itself; none when it is run by a
    /// descriptor.
    pub stub: Option<&'a Path>,
    /// Namespaces to make, or joined already by the process that becomes `lxc-start`.
    pub namespaces: &'a [Namespace],
    /// User ids of a new user namespace.
    pub uid_maps: &'a [IdMap],
    /// Group ids of a new user namespace.
    pub gid_maps: &'a [IdMap],
    /// Whether it sees cgroups at all.
    pub cgroups: Cgroups,
}

/// What LXC does with cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// It makes its own in every hierarchy, for itself and for the container.
    Seen,
    /// None: it finds no hierarchy and leaves processes where they are.
    Hidden,
}

/// What LXC is to be told, and what it will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The configuration file.
    pub text: String,
    /// Further arguments of `lxc-start`.
    pub arguments: Vec<String>,
    /// Cgroups LXC makes in every hierarchy, as paths from the hierarchy's root; ours to remove.
    pub cgroups: Vec<String>,
}

/// Writes the configuration for LXC `version`.
///
/// # Errors
/// [`Error::Unsupported`] for a combination of namespaces this LXC cannot make.
pub fn render(version: Version, request: &Request<'_>) -> Result<Rendered> {
    let wanted = Wanted::of(request.namespaces);
    let mut out = Rendered {
        text: String::new(),
        arguments: Vec::new(),
        cgroups: Vec::new(),
    };
    keys(version, &mut out.text);
    namespaces(version, &wanted, &mut out)?;
    if request.cgroups == Cgroups::Seen {
        cgroups(version, request.name, &mut out);
    }
    let id_key = if version.has_dotted_keys() {
        "lxc.idmap"
    } else {
        "lxc.id_map"
    };
    for (letter, maps) in [('u', request.uid_maps), ('g', request.gid_maps)] {
        for map in maps {
            line(
                &mut out.text,
                id_key,
                &format!("{letter} {} {} {}", map.container_id, map.host_id, map.size),
            );
        }
    }
    if let Some(stub) = request.stub {
        let stub = fstab_word(stub)?;
        line(
            &mut out.text,
            "lxc.mount.entry",
            &format!("{stub} {stub} none bind,ro 0 0"),
        );
    }
    if wanted.has(NamespaceKind::Pid) {
        line(
            &mut out.text,
            "lxc.mount.entry",
            "proc /proc proc nosuid,nodev,noexec 0 0",
        );
    }
    Ok(out)
}

/// Keys that are always the same.
fn keys(version: Version, text: &mut String) {
    let dotted = version.has_dotted_keys();
    let mut key = |new: &str, old: &str, value: &str| {
        line(text, if dotted { new } else { old }, value);
    };
    key("lxc.autodev", "lxc.autodev", "0");
    key("lxc.tty.max", "lxc.tty", "0");
    key("lxc.pty.max", "lxc.pts", "0");
    key("lxc.console.path", "lxc.console", "none");
    key("lxc.apparmor.profile", "lxc.aa_profile", "unchanged");
    if version.has_pdeath() {
        line(text, "lxc.monitor.signal.pdeath", "0");
    }
}

/// Whether the container joins a user namespace.
pub(crate) fn joins_users(list: &[Namespace]) -> bool {
    let mut list = list.iter();
    list.any(|it| it.kind == NamespaceKind::User && it.path.is_some())
}

/// Whether a user namespace that is joined is to own a new namespace of this kind. Pid 1 is born in
/// that of pids and in that of clocks, and enters that of cgroups later than the others.
pub(crate) fn is_owned(kind: NamespaceKind) -> bool {
    matches!(
        kind,
        NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::Network | NamespaceKind::Mount
    )
}

/// Which namespaces LXC makes, and which its caller has joined by path.
struct Wanted {
    new: Vec<NamespaceKind>,
    joined: Vec<NamespaceKind>,
}

impl Wanted {
    fn of(list: &[Namespace]) -> Self {
        let joins_users = joins_users(list);
        let mut wanted = Self {
            new: Vec::new(),
            joined: Vec::new(),
        };
        for namespace in list {
            let kind = namespace.kind;
            match (kind, &namespace.path) {
                // Below: LXC makes one in any case.
                (NamespaceKind::Mount, _) => {}
                // The stub makes it, once it is in its cgroup, or joins it.
                (NamespaceKind::Cgroup, _) => {}
                // The stub joins it: lxc-start cannot start a container from inside.
                (NamespaceKind::User, Some(_)) => {}
                // The stub makes them there.
                (kind, None) if joins_users && is_owned(kind) => {}
                // Whoever starts lxc-start makes it, on any LXC and with all offsets.
                (NamespaceKind::Time, None) => {}
                (_, Some(_)) => wanted.joined.push(kind),
                (_, None) => wanted.new.push(kind),
            }
        }
        // Of the stub's own, until it knows better: lxc-start mounts things there.
        wanted.new.push(NamespaceKind::Mount);
        wanted
    }

    fn has(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind) || self.joined.contains(&kind)
    }
}

fn namespaces(version: Version, wanted: &Wanted, out: &mut Rendered) -> Result<()> {
    let network = if wanted.new.contains(&NamespaceKind::Network) {
        "empty"
    } else {
        "none"
    };
    let network_key = if version.has_dotted_keys() {
        "lxc.net.0.type"
    } else {
        "lxc.network.type"
    };
    line(&mut out.text, network_key, network);
    if version.has_namespace_clone() {
        let mut words: Vec<_> = wanted.new.iter().map(|kind| kind.proc_name()).collect();
        words.sort_unstable();
        line(&mut out.text, "lxc.namespace.clone", &words.join(" "));
        return Ok(());
    }
    // Before 3.0 LXC always makes mount, pid, ipc and uts namespaces, unless it is to share one.
    if !wanted.new.contains(&NamespaceKind::Pid) {
        return Err(Error::unsupported(
            "linux.namespaces: pid",
            format!("LXC {version} always makes a pid namespace; 3.0 can choose"),
        ));
    }
    for (kind, option) in [
        (NamespaceKind::Ipc, "--share-ipc"),
        (NamespaceKind::Uts, "--share-uts"),
    ] {
        if wanted.joined.contains(&kind) {
            return Err(Error::unsupported(
                format!("linux.namespaces: {} by path", kind.as_str()),
                format!("LXC {version} makes a new one; 3.0 can choose"),
            ));
        }
        if !wanted.new.contains(&kind) {
            out.arguments.extend([option.to_owned(), "1".to_owned()]);
        }
    }
    Ok(())
}

fn cgroups(version: Version, name: &str, out: &mut Rendered) {
    if version.has_cgroup_dirs() {
        for (key, suffix) in [
            ("container", ""),
            ("monitor", ".m"),
            ("monitor.pivot", ".p"),
        ] {
            let path = format!("{name}{suffix}");
            line(&mut out.text, &format!("lxc.cgroup.dir.{key}"), &path);
            out.cgroups.push(format!("/{path}"));
        }
    } else if version.has_dotted_keys() {
        line(&mut out.text, "lxc.cgroup.dir", name);
        out.cgroups.push(format!("/{name}"));
    } else {
        out.cgroups.push(format!("/lxc/{name}"));
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    writeln!(text, "{key} = {value}").expect("writing to a String does not fail");
}

/// A path as a word of fstab(5): getmntent(3) decodes the octal escapes.
fn fstab_word(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('\n'))
        .ok_or_else(|| {
            Error::unsupported(
                format!("runlxc-init at {}", path.display()),
                "its path is no plain text",
            )
        })?;
    let mut word = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' => word.push_str("\\040"),
            '\t' => word.push_str("\\011"),
            '\\' => word.push_str("\\134"),
            '#' => word.push_str("\\043"),
            other => word.push(other),
        }
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn new(kinds: &[NamespaceKind]) -> Vec<Namespace> {
        kinds
            .iter()
            .map(|&kind| Namespace { kind, path: None })
            .collect()
    }

    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};

    const USUAL: [NamespaceKind; 6] = [Pid, Network, Ipc, Uts, Mount, Cgroup];

    fn rendered(lxc: &str, namespaces: &[Namespace], maps: &[IdMap]) -> Result<Rendered> {
        let request = Request {
            name: "runlxc-0123",
            stub: Some(Path::new("/usr/local/bin/runlxc-init")),
            namespaces,
            uid_maps: maps,
            gid_maps: maps,
            cgroups: Cgroups::Seen,
        };
        render(version(lxc), &request)
    }

    fn check(lxc: &str, namespaces: &[Namespace], maps: &[IdMap], expected: &str) {
        assert_eq!(rendered(lxc, namespaces, maps).unwrap().text, expected);
    }

    #[test]
    fn versions_are_two_numbers() {
        assert_eq!(version("5.0.2\n"), Version { major: 5, minor: 0 });
        assert_eq!(version("3.0.0.beta1"), Version { major: 3, minor: 0 });
        assert_eq!(version("4.0~git"), Version { major: 4, minor: 0 });
        assert_eq!(Version::parse("lxc"), None);
        assert_eq!(Version::parse("5"), None);
    }

    #[test]
    fn lxc_5_is_asked_for_namespaces_and_told_its_cgroups() {
        check(
            "5.0.2",
            &new(&USUAL),
            &[],
            "lxc.autodev = 0\n\
             lxc.tty.max = 0\n\
             lxc.pty.max = 0\n\
             lxc.console.path = none\n\
             lxc.apparmor.profile = unchanged\n\
             lxc.monitor.signal.pdeath = 0\n\
             lxc.net.0.type = empty\n\
             lxc.namespace.clone = ipc mnt net pid uts\n\
             lxc.cgroup.dir.container = runlxc-0123\n\
             lxc.cgroup.dir.monitor = runlxc-0123.m\n\
             lxc.cgroup.dir.monitor.pivot = runlxc-0123.p\n\
             lxc.mount.entry = /usr/local/bin/runlxc-init /usr/local/bin/runlxc-init none bind,ro 0 0\n\
             lxc.mount.entry = proc /proc proc nosuid,nodev,noexec 0 0\n",
        );
    }

    #[test]
    fn an_lxc_that_sees_no_cgroups_is_not_told_of_any() {
        let namespaces = new(&[Mount]);
        let request = Request {
            name: "x",
            stub: Some(Path::new("/x")),
            namespaces: &namespaces,
            uid_maps: &[],
            gid_maps: &[],
            cgroups: Cgroups::Hidden,
        };
        let rendered = render(version("5.0.2"), &request).unwrap();
        assert!(!rendered.text.contains("cgroup"), "{}", rendered.text);
        assert_eq!(rendered.cgroups, Vec::<String>::new());
    }

    #[test]
    fn names_are_stable_and_short() {
        assert_eq!(name_of(Path::new("")), "runlxc-cbf29ce484222325");
        assert_eq!(name_of(Path::new("a")), "runlxc-af63dc4c8601ec8c");
    }

    #[test]
    fn user_namespaces_come_with_their_maps() {
        let maps = [IdMap {
            container_id: 0,
            host_id: 100_000,
            size: 65_536,
        }];
        check(
            "4.0.12",
            &new(&[User, Mount]),
            &maps,
            "lxc.autodev = 0\n\
             lxc.tty.max = 0\n\
             lxc.pty.max = 0\n\
             lxc.console.path = none\n\
             lxc.apparmor.profile = unchanged\n\
             lxc.monitor.signal.pdeath = 0\n\
             lxc.net.0.type = none\n\
             lxc.namespace.clone = mnt user\n\
             lxc.cgroup.dir = runlxc-0123\n\
             lxc.idmap = u 0 100000 65536\n\
             lxc.idmap = g 0 100000 65536\n\
             lxc.mount.entry = /usr/local/bin/runlxc-init /usr/local/bin/runlxc-init none bind,ro 0 0\n",
        );
    }

    #[test]
    fn lxc_before_2_1_has_other_words() {
        let rendered = rendered("1.0.6", &new(&[Pid, Network, Ipc, Mount]), &[]).unwrap();
        assert_eq!(
            rendered.text,
            "lxc.autodev = 0\n\
             lxc.tty = 0\n\
             lxc.pts = 0\n\
             lxc.console = none\n\
             lxc.aa_profile = unchanged\n\
             lxc.network.type = empty\n\
             lxc.mount.entry = /usr/local/bin/runlxc-init /usr/local/bin/runlxc-init none bind,ro 0 0\n\
             lxc.mount.entry = proc /proc proc nosuid,nodev,noexec 0 0\n",
        );
        assert_eq!(rendered.arguments, ["--share-uts", "1"]);
        assert_eq!(rendered.cgroups, ["/lxc/runlxc-0123"]);
    }

    #[test]
    fn joined_namespaces_are_not_made_again() {
        let mut namespaces = new(&[Mount, Uts]);
        for kind in [Pid, Network] {
            namespaces.push(Namespace {
                kind,
                path: Some("/proc/7/ns/x".into()),
            });
        }
        let text = rendered("5.0.2", &namespaces, &[]).unwrap().text;
        assert!(text.contains("lxc.namespace.clone = mnt uts\n"), "{text}");
        assert!(text.contains("lxc.net.0.type = none\n"), "{text}");
        assert!(
            text.contains("proc /proc proc"),
            "LXC needs a /proc of the joined pid namespace"
        );
    }

    #[test]
    fn what_the_stub_joins_or_makes_there_is_no_affair_of_lxc() {
        let joined = |kinds: &[NamespaceKind], list: &[NamespaceKind]| {
            let path = |kind: &NamespaceKind| Namespace {
                kind: *kind,
                path: Some("/x".into()),
            };
            let namespaces = [kinds.iter().map(path).collect(), new(list)].concat();
            let text = rendered("5.0.2", &namespaces, &[]).unwrap().text;
            let line = text.lines().find(|line| line.starts_with("lxc.namespace"));
            line.unwrap().to_owned()
        };
        let check = |made: String, expected: &str| {
            assert_eq!(made, format!("lxc.namespace.clone = {expected}"));
        };
        check(joined(&[Mount, Cgroup], &[Pid, Uts]), "mnt pid uts");
        check(joined(&[], &[Pid]), "mnt pid");
        check(
            joined(&[User], &[Pid, Uts, Ipc, Network, Mount, Cgroup]),
            "mnt pid",
        );
    }

    #[test]
    fn what_lxc_cannot_do_is_refused_by_name() {
        let by_path = |kind| {
            let mut list = new(&[Mount]);
            list.retain(|n| n.kind != kind);
            list.push(Namespace {
                kind,
                path: Some("/x".into()),
            });
            list
        };
        for (lxc, list) in [("2.0.0", new(&[Mount])), ("2.1.0", by_path(Ipc))] {
            assert!(rendered(lxc, &list, &[]).is_err(), "{lxc} {list:?}");
        }
    }

    #[test]
    fn a_time_namespace_is_no_affair_of_lxc() {
        for lxc in ["2.1.0", "5.0.2"] {
            let with = rendered(lxc, &new(&[Mount, Pid, Time]), &[]).unwrap();
            assert_eq!(with, rendered(lxc, &new(&[Mount, Pid]), &[]).unwrap());
        }
    }

    #[test]
    fn odd_paths_survive_fstab() {
        assert_eq!(
            fstab_word(Path::new("/a b/c\\d#")).unwrap(),
            "/a\\040b/c\\134d\\043"
        );
        assert!(fstab_word(Path::new("/a\nb")).is_err());
    }
}
