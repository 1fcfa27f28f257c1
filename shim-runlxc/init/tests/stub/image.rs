//! Root file systems and plans for tests.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use launch::plan::{
    InitPlan, Labels, PidOne, PlannedMount, Process, Root, RootEntry, Scheduling, SeccompFilter,
    Toggle,
};
use mounts::{Mount, MountOptions};
use tempfile::TempDir;

const APPLETS: &str = "sh cat ls stat id env pwd echo mount grep cut tr readlink sleep true false \
    touch mkdir rm ln tty stty hostname head wc ps kill umount chmod sort ulimit sed find";

/// A root file system of one busybox.
#[derive(Debug)]
pub(crate) struct Image {
    dir: TempDir,
}

impl Image {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Mapped roots of user namespaces must pass.
        set_mode(dir.path(), 0o755);
        let image = Self { dir };
        for folder in ["bin", "etc", "proc", "dev", "sys", "tmp", "root"] {
            std::fs::create_dir_all(image.path(folder)).unwrap();
        }
        copy_busybox(&image.path("bin/busybox"));
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", image.path("bin").join(applet)).unwrap();
        }
        image.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/u:/bin/sh\n",
        );
        image
    }

    /// The host's path of a path in the image.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(inside)
    }

    /// A place on the host that the container must not see.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, inside: &str, text: &str) {
        std::fs::write(self.path(inside), text).unwrap();
    }

    /// A plan with the usual mounts whose program is a shell script.
    pub(crate) fn plan(&self, script: &str) -> InitPlan {
        InitPlan {
            root: Root {
                path: self
                    .path("")
                    .to_str()
                    .unwrap()
                    .trim_end_matches('/')
                    .to_owned(),
                readonly: Toggle::Off,
                propagation: 0,
                entry: RootEntry::Pivot,
            },
            mounts: vec![
                mount("proc", "proc", "/proc", &[]),
                mount(
                    "tmpfs",
                    "tmpfs",
                    "/dev",
                    &["nosuid", "strictatime", "mode=755"],
                ),
                mount(
                    "devpts",
                    "devpts",
                    "/dev/pts",
                    &[
                        "nosuid",
                        "noexec",
                        "newinstance",
                        "ptmxmode=0666",
                        "mode=0620",
                        "gid=5",
                    ],
                ),
                mount(
                    "sysfs",
                    "sysfs",
                    "/sys",
                    &["nosuid", "noexec", "nodev", "ro"],
                ),
            ],
            devices: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            sysctl: Vec::new(),
            hostname: None,
            domainname: None,
            cgroup_namespace: Toggle::Off,
            mount_label: None,
            create_container_hooks: Vec::new(),
            start_container_hooks: Vec::new(),
            state_creating: "{\"status\":\"creating\",\"pid\":4711}".to_owned(),
            state_created: "{\"status\":\"created\",\"pid\":4711}".to_owned(),
            pid_one: PidOne::Program,
            process: process(&["/bin/sh", "-c", script]),
        }
    }
}

/// Held for writing while a program is written, for reading while one is started: a child that has
/// yet to execute would hold the file open for writing, and nobody could execute it (ETXTBSY).
pub(crate) static PROGRAMS: RwLock<()> = RwLock::new(());

pub(crate) fn copy_busybox(to: &Path) {
    let _writing = PROGRAMS.write().unwrap();
    std::fs::copy("/bin/busybox", to).unwrap();
}

/// A process of root with everything else left alone.
pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["PATH=/bin:/usr/bin".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        umask: None,
        capabilities: None,
        no_new_privs: Toggle::Off,
        rlimits: Vec::new(),
        oom_score_adj: None,
        seccomp: None,
        terminal: None,
        preserve_fds: 0,
        new_keyring: Toggle::On,
        labels: Labels::default(),
        scheduling: Scheduling::default(),
    }
}

pub(crate) fn mount(fstype: &str, source: &str, target: &str, words: &[&str]) -> PlannedMount {
    PlannedMount::Plain(plain_mount(fstype, source, target, words))
}

pub(crate) fn plain_mount(fstype: &str, source: &str, target: &str, words: &[&str]) -> Mount {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        options: MountOptions::parse(&words).unwrap(),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// SECCOMP_RET_KILL_PROCESS.
pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;

/// A filter that answers one system call in its own way and lets all others pass.
pub(crate) fn filter(call: i64, action: u32) -> SeccompFilter {
    const LOAD: u64 = 0x20;
    const JUMP_IF_EQUAL: u64 = 0x15;
    const RETURN: u64 = 0x06;
    const ALLOW: u64 = 0x7fff_0000;
    let call = u64::try_from(call).unwrap();
    SeccompFilter {
        program: vec![
            LOAD,
            JUMP_IF_EQUAL | 1 << 24 | call << 32,
            RETURN | u64::from(action) << 32,
            RETURN | ALLOW << 32,
        ],
        flags: 0,
    }
}
