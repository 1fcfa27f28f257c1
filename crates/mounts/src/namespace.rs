//! Mount namespaces for tests: whatever a test mounts ends with a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sys::{CloneFlags, ExitStatus, Spawn};

use crate::flags as ms;

/// Set in the process that runs a test for another; in the innermost, to where its mount is.
const INSIDE: &str = "MOUNTS_TEST_INSIDE";

/// Runs `test` in a mount namespace of its own, in a process of its own.
///
/// The type of the closure says which test it is in; that one is run again inside.
pub(crate) fn run<F: FnOnce()>(test: F) {
    match std::env::var_os(INSIDE) {
        Some(_) => test(),
        None => again(test_name::<F>(), "1", Vec::new()),
    }
}

/// As [`run`], where every system call after 2.6.32 answers ENOSYS.
pub(crate) fn run_on_2_6_32<F: FnOnce()>(test: F) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let name = test_name::<F>();
    let thread = std::thread::spawn(move || {
        forget_calls_after_2_6_32();
        again(name, "1", Vec::new());
    });
    thread.join().unwrap();
}

/// As [`run`], in a new user namespace with the same ids, with a tmpfs that was mounted outside of
/// it with `words` and is locked therefore.
pub(crate) fn run_with_locked<F: FnOnce(&Path)>(words: &[&str], test: F) {
    match std::env::var(INSIDE).as_deref() {
        Err(_) => again(test_name::<F>(), "1", Vec::new()),
        Ok("1") => {
            let scratch = Scratch::new();
            let at = scratch.directory("locked");
            crate::apply_host(&mount("none", "tmpfs", "", words), &at).unwrap();
            let same = "0 0 4294967295\n";
            let users = sys::user_namespace(same, same).unwrap();
            let users = vec![(users, CloneFlags::CLONE_NEWUSER)];
            again(test_name::<F>(), at.to_str().unwrap(), users);
        }
        Ok(at) => test(Path::new(at)),
    }
}

/// `module::tests::name` of the closure's test.
fn test_name<F>() -> &'static str {
    let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    name.split_once("::").unwrap().1
}

fn again(name: &str, inside: &str, namespaces: Vec<(OwnedFd, CloneFlags)>) {
    let mut output = tempfile::tempfile().unwrap();
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    env.retain(|(key, _)| key != INSIDE);
    env.push((INSIDE.into(), inside.into()));
    let mut child = Spawn::new(Path::new("/proc/self/exe"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env_clear_set(env)
        .join_namespaces(namespaces)
        .unshare(CloneFlags::CLONE_NEWNS)
        .stdout(output.as_fd())
        .stderr(output.as_fd())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    output.rewind().unwrap();
    let text = std::io::read_to_string(output).unwrap();
    assert_eq!(status, ExitStatus::Exited(0), "{name}\n{text}");
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
}

/// For this thread and all it starts.
fn forget_calls_after_2_6_32() {
    /// perf_event_open, the last one on x86-64.
    const LAST_CALL: u64 = 298;
    const LOAD_NUMBER: u64 = 0x20;
    const JUMP_IF_GREATER: u64 = 0x25;
    const RETURN: u64 = 0x06;
    let filter = [
        LOAD_NUMBER,
        JUMP_IF_GREATER | 1 << 24 | LAST_CALL << 32,
        RETURN | (0x0005_0000 | 38) << 32,
        RETURN | 0x7fff_0000 << 32,
    ];
    sys::process::no_new_privs().unwrap();
    sys::process::load_seccomp(&filter, 0).unwrap();
}

/// A tmpfs to work in, private, on a folder that goes away.
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        crate::kernel::change(Path::new("/"), ms::PRIVATE | ms::REC).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let call = crate::kernel::Call {
            source: Some("scratch"),
            fstype: Some("tmpfs"),
            flags: 0,
            data: "mode=755",
        };
        crate::kernel::mount(call, folder.path()).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, below: &str) -> std::path::PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn directory(&self, below: &str) -> std::path::PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn file(&self, below: &str, text: &str) -> std::path::PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn link(&self, below: &str, to: impl AsRef<Path>) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        crate::unmount_tree(self.folder.path()).unwrap();
    }
}

/// What mountinfo says of the topmost mount at a path.
pub(crate) fn mount_at(path: &Path) -> crate::mountinfo::Entry {
    let mut mounts = crate::mountinfo::below(path).unwrap();
    mounts.retain(|mount| mount.path() == path);
    mounts.pop().unwrap()
}

/// Whether the mount at a path has a flag, by its word.
pub(crate) fn has(path: &Path, word: &str) -> bool {
    mount_at(path).options.split(',').any(|known| known == word)
}

/// A mount with these options.
pub(crate) fn mount(
    source: impl AsRef<Path>,
    fstype: &str,
    target: &str,
    words: &[&str],
) -> crate::Mount {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    crate::Mount {
        source: source.as_ref().to_str().unwrap().to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        options: crate::MountOptions::parse(&words).unwrap(),
    }
}

/// Keeps a file open, and so its mount busy.
pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}
