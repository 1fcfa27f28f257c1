//! What the mounts of a plan become.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use launch::plan::{CgroupView, LegacyHierarchy, PlannedMount, Toggle};
use nix::mount::MsFlags;
use sys::{Child, CloneFlags, Spawn};

use crate::host::{Container, Extras, output_of, refusal_of};
use crate::image::{Image, mount, plain_mount};

#[test]
fn targets_are_made_and_links_lead_inside_only() {
    let image = Image::new();
    let outside = image.outside("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "from the host\n").unwrap();
    symlink(&outside, image.path("absolute")).unwrap();
    symlink("../../../../../../..", image.path("etc/up")).unwrap();
    let mut plan =
        image.plan("cat /etc/up/made/file /new; stat -c %F /absolute/tmpfs; ls /absolute/");
    let source = outside.to_str().unwrap();
    plan.mounts.extend([
        mount("bind", source, "/etc/up/made", &["bind", "ro"]),
        mount("bind", &format!("{source}/file"), "/new", &["bind"]),
        mount("tmpfs", "tmpfs", "/absolute/tmpfs", &[]),
    ]);
    assert_eq!(
        output_of(plan),
        "from the host\nfrom the host\ndirectory\ntmpfs\n"
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(image.path("made").is_dir());
}

#[test]
fn a_proc_that_is_a_link_or_a_mount_below_it_is_refused() {
    let image = Image::new();
    let mut plan = image.plan("true");
    plan.mounts.push(mount("tmpfs", "tmpfs", "/proc/sys", &[]));
    assert!(refusal_of(plan).0.contains("inside /proc"));

    std::fs::remove_dir(image.path("proc")).unwrap();
    symlink("/tmp", image.path("proc")).unwrap();
    assert!(
        refusal_of(image.plan("true"))
            .0
            .contains("must be mounted on ordinary directory")
    );
}

#[test]
fn a_failed_mount_says_which_and_why() {
    let image = Image::new();
    let mut plan = image.plan("true");
    plan.mounts
        .push(mount("bind", "/no/such", "/mnt", &["bind"]));
    let (text, _) = refusal_of(plan);
    assert!(
        text.starts_with("error mounting \"/no/such\" to rootfs at \"/mnt\": "),
        "{text}"
    );
    assert!(text.ends_with("no such file or directory"), "{text}");
}

#[test]
fn an_image_without_proc_and_sys_needs_none() {
    let image = Image::new();
    for dir in ["proc", "sys"] {
        std::fs::remove_dir(image.path(dir)).unwrap();
    }
    let mut plan = image.plan("echo /proc/* /sys/*");
    plan.mounts
        .retain(|mount| !format!("{mount:?}").contains("\"/sys\""));
    plan.mounts.remove(0);
    plan.masked_paths = vec!["/proc/kcore".to_owned()];
    plan.readonly_paths = vec!["/proc/sys".to_owned(), "/etc".to_owned()];
    assert_eq!(output_of(plan), "/proc/* /sys/*\n");
}

fn cgroup(view: CgroupView, words: &[&str]) -> PlannedMount {
    PlannedMount::Cgroup {
        mount: plain_mount("cgroup", "cgroup", "/sys/fs/cgroup", words),
        view,
    }
}

fn legacy(name: &str, options: &str, links: &[&str]) -> LegacyHierarchy {
    LegacyHierarchy {
        name: name.to_owned(),
        options: options.to_owned(),
        own: format!("/sys/fs/cgroup/{name}"),
        links: links.iter().map(|&link| link.to_owned()).collect(),
    }
}

#[test]
fn version_1_hierarchies_are_shown_in_a_tmpfs() {
    if !Path::new("/sys/fs/cgroup/pids").is_dir() {
        // A host of version 2: nothing to show.
        return;
    }
    let image = Image::new();
    let hierarchies = vec![
        legacy("pids", "pids", &["processes"]),
        legacy("systemd", "none,name=systemd", &[]),
    ];
    for namespace in [Toggle::Off, Toggle::On] {
        let mut plan = image.plan(
            "cd /sys/fs/cgroup; ls; readlink processes; ls pids/cgroup.procs; \
             grep -c /sys/fs/cgroup /proc/mounts; grep /sys/fs/cgroup /proc/mounts | grep -vc 'ro,'; \
             touch x; mkdir pids/x",
        );
        plan.cgroup_namespace = namespace;
        let view = CgroupView::Legacy {
            hierarchies: hierarchies.clone(),
        };
        plan.mounts.push(cgroup(
            view,
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ));
        plan.process.args[2].push_str("; true");
        assert_eq!(
            output_of(plan),
            "pids\nprocesses\nsystemd\npids\npids/cgroup.procs\n3\n0\n\
             touch: x: Read-only file system\nmkdir: can't create directory 'pids/x': Read-only file system\n"
        );
    }
}

#[test]
fn version_2_is_the_containers_own_group() {
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|path| Path::new(path).join("cgroup.controllers").exists());
    let Some(own) = unified else { return };
    let image = Image::new();
    for namespace in [Toggle::Off, Toggle::On] {
        let mut plan = image.plan(
            "ls /sys/fs/cgroup/cgroup.procs; grep -c ' /sys/fs/cgroup cgroup2 ro,' /proc/mounts",
        );
        plan.cgroup_namespace = namespace;
        plan.mounts.push(cgroup(
            CgroupView::Unified {
                own: own.to_owned(),
            },
            &["ro", "nosuid"],
        ));
        assert_eq!(output_of(plan), "/sys/fs/cgroup/cgroup.procs\n1\n");
    }
}

/// A mount namespace that stands for the host's: what it shares, nobody else makes private.
struct OtherHost {
    child: Child,
    _alive_while_open: OwnedFd,
}

impl OtherHost {
    /// One with a shared tmpfs at `path`.
    fn sharing(path: &Path) -> Self {
        let (stdin, alive) = sys::pipe_cloexec().unwrap();
        let (said, says) = sys::pipe_cloexec().unwrap();
        let path = path.display();
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs none {path} && mkdir {path}/made && \
             mount --make-shared {path} && echo up && read until_the_end"
        );
        let child = Spawn::new(Path::new("/bin/busybox"))
            .args(["sh", "-c", &script])
            .unshare(CloneFlags::CLONE_NEWNS)
            .stdin(stdin)
            .stdout(says)
            .spawn()
            .unwrap();
        let mut word = [0; 3];
        std::fs::File::from(said).read_exact(&mut word).unwrap();
        assert_eq!(&word, b"up\n");
        Self {
            child,
            _alive_while_open: alive,
        }
    }

    fn namespace(&self) -> OwnedFd {
        std::fs::File::open(format!("/proc/{}/ns/mnt", self.child.pid()))
            .unwrap()
            .into()
    }

    fn sees(&self, path: &Path) -> bool {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.pid()));
        root.join(path.strip_prefix("/").unwrap()).exists()
    }
}

#[test]
fn with_the_hosts_namespace_mounts_reach_the_host() {
    let image = Image::new();
    let shared = image.outside("shared");
    std::fs::create_dir(&shared).unwrap();
    let other_host = OtherHost::sharing(&shared);
    let script = "mount -t tmpfs none /shared/made && touch /shared/made/here && echo ok";
    for copy_of_hosts in [false, true] {
        let mut plan = image.plan(script);
        plan.root.propagation = (MsFlags::MS_SHARED | MsFlags::MS_REC).bits();
        let source = shared.to_str().unwrap();
        plan.mounts
            .push(mount("bind", source, "/shared", &["rbind", "rshared"]));
        let host = Some(other_host.namespace());
        let hello = Container::hello(Extras {
            host,
            ..Extras::default()
        });
        let fds = if copy_of_hosts {
            vec![other_host.namespace()]
        } else {
            Vec::new()
        };
        let (container, _) = hello.set_up(plan, &fds).unwrap();
        container.start().unwrap();
        assert_eq!(container.finish().0, "ok\n");
        assert_eq!(other_host.sees(&shared.join("made/here")), copy_of_hosts);
    }
}
