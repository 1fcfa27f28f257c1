//! The socket a shim serves on: its name, whether somebody is behind it, and who may take it
//! away. Changes to the folder are made under its lock, so that two `start`s of one pod agree.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use sha2::{Digest, Sha256};

/// Where containerd's own shims have their sockets.
pub(crate) const DIR: &str = "/run/containerd/s";

/// What comes before the path in an address.
const SCHEME: &str = "unix://";

/// How long others may hold the folder's lock. They look, and make or remove a socket.
const LOCK_MAX: Duration = Duration::from_secs(5);

/// `sun_path` without its final zero.
const PATH_BYTES_MAX: usize = 107;

/// A path nobody serves at, for whoever holds this.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    _lock: Flock<File>,
}

/// The socket of a group of containers: a hash, since namespace and id may be longer than a
/// socket's path. The same as Go's shims use.
pub(crate) fn path(dir: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let hash = Sha256::digest(format!("{containerd}/{namespace}/{group}"));
    let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(name)
}

/// The address of a path.
pub(crate) fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path in an address.
pub(crate) fn path_of(address: &str) -> Option<&Path> {
    address.strip_prefix(SCHEME).map(Path::new)
}

/// Claims `path`, unless a shim serves there: then none.
pub(crate) fn claim(path: &Path) -> io::Result<Option<Claim>> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("longer than {PATH_BYTES_MAX} bytes"),
        ));
    }
    let lock = lock(path)?;
    let alive = is_alive(path)?;
    Ok((!alive).then(|| Claim {
        path: path.to_owned(),
        _lock: lock,
    }))
}

impl Claim {
    /// Binds the path. A socket left by a dead shim is replaced.
    pub(crate) fn bind(self) -> io::Result<UnixListener> {
        remove(&self.path)?;
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }
}

/// Takes the socket of a dead shim away. Nothing there is success.
pub(crate) fn remove_if_dead(path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return Ok(());
    }
    let _lock = lock(path)?;
    if is_alive(path)? {
        Ok(())
    } else {
        remove(path)
    }
}

/// Takes our own socket away: a `start` from now on makes a new shim.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes sockets away whose shims were killed together with everybody who would have cleaned up,
/// not younger than `age_min`. `listed` is the text of /proc/net/unix: only what it does not name is
/// asked, so that no living shim is woken. Returns how many.
pub(crate) fn sweep(dir: &Path, listed: &str, age_min: Duration) -> io::Result<usize> {
    let listed: HashSet<&str> = listed
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(7))
        .collect();
    let _lock = lock(&dir.join("any"))?;
    let mut removed = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // Others may remove it at the same time.
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        let old = age.is_some_and(|age| age >= age_min);
        let known = path.to_str().is_none_or(|path| listed.contains(path));
        let ours = metadata.file_type().is_socket() && is_hash(&entry.file_name());
        if ours && old && !known && !is_alive(&path)? {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether a file has a name as `path` makes them.
fn is_hash(name: &OsStr) -> bool {
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == 64 && name.as_encoded_bytes().iter().all(hex)
}

/// Whether somebody listens. Never waits: a shim too busy to accept is alive.
pub(crate) fn is_alive(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        // ENOTSOCK and the like: a plain file is nobody.
        Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTSOCK | Errno::EPROTOTYPE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The lock of the folder `path` is in, which is made if need be.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    let dir = path.parent().ok_or(Errno::EINVAL)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    wait_for_lock(dir, LOCK_MAX)
}

fn wait_for_lock(dir: &Path, limit: Duration) -> io::Result<Flock<File>> {
    let lock = sys::lock_within(File::open(dir)?, FlockArg::LockExclusive, limit)?;
    lock.ok_or_else(|| {
        let why = format!(
            "another process holds the lock of {} for more than {} s",
            dir.display(),
            limit.as_secs()
        );
        io::Error::new(io::ErrorKind::TimedOut, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gos_shims_and_never_too_long() {
        // printf /run/containerd/containerd.sock/default/x | sha256sum
        let path_of = |namespace: &str, id: &str| {
            path(
                Path::new(DIR),
                "/run/containerd/containerd.sock",
                namespace,
                id,
            )
        };
        assert_eq!(
            path_of("default", "x").to_str().unwrap(),
            "/run/containerd/s/5e250b13f984a15f73216d143af1bf3c64171aa56c781ba9d4040c75b2c1eee2"
        );
        let long = path_of(&"n".repeat(76), &"i".repeat(64));
        assert!(long.as_os_str().len() <= PATH_BYTES_MAX);
        assert_ne!(path_of("a", "b"), path_of("b", "a"));
        assert_eq!(super::path_of(&address(&long)), Some(&*long));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").join("socket");
        let bind = || claim(&path).unwrap().map(|claim| claim.bind().unwrap());
        let listener = bind().expect("nobody was there");
        assert!(bind().is_none());
        remove_if_dead(&path).unwrap();
        assert!(path.exists());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        assert!(bind().is_some());
        remove_if_dead(&path).unwrap();
        assert!(!path.exists());
        remove_if_dead(&path).unwrap();
    }

    #[test]
    fn only_old_sockets_of_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let name = |first: char| first.to_string() + &"0".repeat(63);
        let bind = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
        let _living = bind(&name('a'));
        // A dead one, one that the kernel knows, one that is nobody's of ours.
        drop((bind(&name('b')), bind(&name('c')), bind("other")));
        let listed = format!("0: 2 0 10000 1 1 7 {}/{}", dir.path().display(), name('c'));
        let sweep = |age_min| sweep(dir.path(), &listed, age_min).unwrap();
        assert_eq!(sweep(Duration::from_secs(60)), 0);
        assert_eq!(sweep(Duration::ZERO), 1);
        let files = std::fs::read_dir(dir.path()).unwrap();
        let mut left: Vec<_> = files
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        assert_eq!(left, [name('a'), name('c'), "other".to_owned()]);
    }

    #[test]
    fn a_lock_that_is_not_given_back_is_waited_for_with_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let held = lock(&path).unwrap();
        let wait = |limit| wait_for_lock(dir.path(), limit);
        let error = wait(Duration::from_millis(1)).map(drop).unwrap_err();
        let expected = format!(
            "another process holds the lock of {} for more than 0 s",
            dir.path().display()
        );
        assert_eq!(error.to_string(), expected);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(LOCK_MAX).map(drop));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
        // What came too late was given up.
        lock(&path).unwrap();
    }

    #[test]
    fn a_shim_too_busy_to_accept_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let backlog = nix::sys::socket::Backlog::new(1).unwrap();
        nix::sys::socket::listen(&listener, backlog).unwrap();
        for _ in 0..5 {
            assert!(is_alive(&path).unwrap());
        }
    }
}
