//! The socket that clients connect to: made with mode 0600, never taken from a living process,
//! never left to a dead one. Nothing here knows what is served.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt,
            listen, socket, sockopt,
        },
        stat::{Mode, fchmod},
    },
};

use crate::{Error, Result};

/// Longest path of a socket: `sun_path` of unix(7) less the NUL, less what the temporary name adds.
pub const PATH_BYTES_MAX: usize = 107 - TEMPORARY.len();

/// What the name of a socket that is not in place yet ends with. One name for all, so that what a
/// killed process left is found by the next; the lock keeps two from using it at once.
const TEMPORARY: &str = ".new";

/// How long another process may take to make its socket in the same directory.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// How long a socket may outlive the process that listened on it: what that had forked holds it
/// until it executes its program, or dies with its parent.
const STALE_LIMIT: Duration = Duration::from_secs(5);

/// A socket that is listened on. One made here is removed when this is dropped; one that the
/// service manager passed stays.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Makes the socket `path`, mode 0600 from its first moment. A socket without a process is
    /// replaced by rename(2), so that the path is never missing.
    ///
    /// # Errors
    /// [`Error::Precondition`] when a living process serves it (its pid is in the message) or when
    /// something that is no socket is there; [`Error::Invalid`] for a path that cannot be one.
    pub fn bind(path: &Path) -> Result<Self> {
        let directory = checked_directory(path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(Error::io("make the directory of the socket", directory))?;
        let _lock = lock(directory)?;
        refuse_unless_stale(path)?;

        let mut name = path.as_os_str().to_owned();
        name.push(TEMPORARY);
        let temporary = PathBuf::from(name);
        let socket = listening(&temporary)?;
        let metadata = fs::symlink_metadata(&temporary)
            .map_err(Error::io("look at the new socket", &temporary))?;
        if let Err(error) = fs::rename(&temporary, path) {
            // The error that is reported tells more than a failure to remove.
            let _gone = fs::remove_file(&temporary);
            return Err(Error::io("put in place the socket", path)(error));
        }
        Ok(Self {
            socket,
            made: Some(Made {
                path: path.to_owned(),
                device: metadata.dev(),
                inode: metadata.ino(),
            }),
        })
    }

    /// Takes over a socket that is listened on already.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the descriptor is no listening unix stream socket.
    pub fn inherited(descriptor: OwnedFd) -> Result<Self> {
        let is_listening = getsockopt(&descriptor, sockopt::AcceptConn).unwrap_or(false);
        let is_stream = getsockopt(&descriptor, sockopt::SockType) == Ok(SockType::Stream);
        let socket = UnixListener::from(descriptor);
        // Fails for a socket of another family.
        if !is_listening || !is_stream || socket.local_addr().is_err() {
            return Err(Error::Invalid(format!(
                "descriptor {} that the service manager passed is no listening unix stream socket; \
                 use ListenStream= with a path",
                socket.as_raw_fd()
            )));
        }
        Ok(Self { socket, made: None })
    }

    /// Where clients find it; `None` for an inherited socket without a path.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match &self.made {
            Some(made) => Some(made.path.clone()),
            None => Some(self.socket.local_addr().ok()?.as_pathname()?.to_owned()),
        }
    }

    /// That it is the socket at `address`, by whatever name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is another one: clients look at the configured address.
    pub(super) fn expect_at(&self, address: &Path) -> Result<()> {
        let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let path = self.path();
        let is_same = path.as_deref().is_some_and(|path| {
            path == address || matches!((file(path), file(address)), (Ok(a), Ok(b)) if a == b)
        });
        if is_same {
            return Ok(());
        }
        let passed = path.map_or_else(|| "without a path".to_owned(), |p| p.display().to_string());
        Err(Error::Invalid(format!(
            "the service manager passed the socket {passed}, but the address is {}; give \
             ListenStream= of the socket unit and the address of the configuration the same path",
            address.display()
        )))
    }

    /// A second descriptor of it, for the accept loop.
    ///
    /// # Errors
    /// When the table of descriptors is full.
    pub(super) fn share(&self) -> io::Result<UnixListener> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(made) = &self.made else {
            return;
        };
        // Under the lock nobody puts another socket there between looking and removing. Without
        // it the file stays: the next daemon sees that nobody listens.
        let Some(Ok(_lock)) = made.path.parent().map(lock) else {
            return;
        };
        if let Ok(found) = fs::symlink_metadata(&made.path)
            && (found.dev(), found.ino()) == (made.device, made.inode)
        {
            let _gone = fs::remove_file(&made.path);
        }
    }
}

fn checked_directory(path: &Path) -> Result<&Path> {
    let shown = path.display();
    let Some(directory) = path
        .parent()
        .filter(|_| path.is_absolute() && path.file_name().is_some())
    else {
        return Err(Error::Invalid(format!(
            "the address {shown} is no absolute path of a socket"
        )));
    };
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the address {shown} has {length} bytes, at most {PATH_BYTES_MAX} fit; \
             choose a shorter directory"
        )));
    }
    Ok(directory)
}

/// Waits for other starts in the same directory; theirs take microseconds.
fn lock(directory: &Path) -> Result<Flock<File>> {
    let file =
        File::open(directory).map_err(Error::io("open the directory of the socket", directory))?;
    let lock = sys::lock_within(file, FlockArg::LockExclusive, LOCK_LIMIT)
        .map_err(Error::io("lock", directory))?;
    lock.ok_or_else(|| {
        Error::Unavailable(format!(
            "another process has held the lock of {} for {} seconds",
            directory.display(),
            LOCK_LIMIT.as_secs()
        ))
    })
}

fn refuse_unless_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("look at the socket", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::Precondition(format!(
                "{} exists and is no socket; it is not replaced",
                path.display()
            )));
        }
        Ok(_) => {}
    }
    let probe = new_socket(path)?;
    let address = UnixAddr::new(path).map_err(|e| Error::io("name the socket", path)(e.into()))?;
    let owner = match connect(probe.as_raw_fd(), &address) {
        // What listen(2) noted of the process that called it.
        Ok(()) => {
            let credentials = getsockopt(&probe, sockopt::PeerCredentials);
            let pid = credentials.ok().map(|credentials| credentials.pid());
            let is_dead = |pid| !Path::new(&format!("/proc/{pid}")).exists();
            if pid.is_some_and(is_dead) && hangs_up(&probe, path)? {
                return Ok(());
            }
            pid
        }
        // Listened on, with a full backlog.
        Err(Errno::EAGAIN) => None,
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Error::io("connect to the socket", path)(errno.into())),
    };
    Err(Error::Precondition(format!(
        "{} is served by {}; end it first, or choose another address",
        path.display(),
        owner.map_or_else(|| "a process that does not answer".to_owned(), described)
    )))
}

/// Whether the last that holds a socket without a process lets go of it, soon.
fn hangs_up(probe: &OwnedFd, path: &Path) -> Result<bool> {
    // Nothing is asked for: a hang-up is always told.
    let mut fds = [PollFd::new(probe.as_fd(), PollFlags::empty())];
    let limit = PollTimeout::try_from(STALE_LIMIT).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut fds, limit) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for the socket", path)(errno.into())),
        }
    }
}

fn described(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

fn new_socket(path: &Path) -> Result<OwnedFd> {
    socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .map_err(|e| Error::io("make a socket for", path)(e.into()))
}

fn listening(path: &Path) -> Result<UnixListener> {
    let failed = |action| move |errno: Errno| Error::io(action, path)(errno.into());
    let socket = new_socket(path)?;
    // bind(2) gives the file the mode of the socket's own inode (unix_bind in net/unix/af_unix.c),
    // so that nobody else can connect at any time.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("set the mode of"))?;
    let address = UnixAddr::new(path).map_err(failed("name the socket"))?;
    match fs::remove_file(path) {
        // A process died here before its rename.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", path)(error)),
    }
    bind(socket.as_raw_fd(), &address).map_err(failed("bind the socket"))?;
    listen(&socket, Backlog::MAXCONN).map_err(failed("listen on the socket"))?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use sys::{ExitStatus, Spawn};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn socket_is_for_its_owner_alone_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/s.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(listener.path().as_deref(), Some(path.as_path()));
        UnixStream::connect(&path).unwrap();
        drop(listener);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn socket_of_a_living_process_is_refused_by_its_pid() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _living = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error:?}");
        let pid = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        UnixStream::connect(&path).expect("the living one still listens");
    }

    #[test]
    fn socket_whose_backlog_is_full_counts_as_living() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let socket = new_socket(&path).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&socket, Backlog::new(1).unwrap()).unwrap();
        let mut clients = Vec::new();
        loop {
            let client = new_socket(&path).unwrap();
            match connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()) {
                Ok(()) => clients.push(client),
                Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
            }
        }
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error:?}");
    }

    #[test]
    fn socket_of_a_dead_process_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        // std removes no file when the listener goes, as a killed process does not.
        drop(UnixListener::bind(&path).unwrap());
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
    }

    /// Two processes run this test again: one listens, starts the other and dies; the other holds
    /// the socket until somebody connects.
    #[test]
    fn socket_that_outlives_its_process_a_moment_is_replaced() {
        const NAME: &str = "daemon::socket::tests::\
                            socket_that_outlives_its_process_a_moment_is_replaced";
        /// In the first process the path, in the second nothing.
        const PATH: &str = "SOCKET_TEST_PATH";
        let again = |path: &Path| {
            let mut env: Vec<_> = std::env::vars_os().collect();
            env.retain(|(name, _)| name != PATH);
            env.push((PATH.into(), path.into()));
            let this = Spawn::new(Path::new("/proc/self/exe"));
            this.args([NAME, "--exact"]).env_clear_set(env)
        };
        match std::env::var_os(PATH).map(PathBuf::from) {
            Some(path) if path.as_os_str().is_empty() => {
                let listener = io::stdin().as_fd().try_clone_to_owned().unwrap();
                drop(UnixListener::from(listener).accept().unwrap());
                return;
            }
            Some(path) => {
                let listener = OwnedFd::from(UnixListener::bind(path).unwrap());
                let holder = again(Path::new("")).stdin(listener.as_fd()).spawn();
                return holder.unwrap().release();
            }
            None => {}
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let mut child = again(&path).spawn().unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0));
        let _listener = Listener::bind(&path).unwrap();
    }

    #[test]
    fn what_took_the_place_of_the_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn of_many_starts_at_once_exactly_one_serves() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || Listener::bind(&path))
            })
            .collect();
        let served: Vec<_> = starts
            .into_iter()
            .filter_map(|start| start.join().unwrap().ok())
            .collect();
        assert_eq!(served.len(), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn paths_that_cannot_be_sockets_are_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "kept").unwrap();
        let long = directory.path().join("x".repeat(PATH_BYTES_MAX));
        let check = |path: &Path, expected: &str| {
            let error = Listener::bind(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&file, "is no socket");
        check(Path::new("relative.sock"), "no absolute path");
        check(Path::new("/"), "no absolute path");
        check(&long, "at most");
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }

    #[test]
    fn inherited_descriptors_are_taken_only_when_they_listen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let passed = UnixListener::bind(&path).unwrap();
        let listener = Listener::inherited(passed.into()).unwrap();
        assert_eq!(listener.path().as_deref(), Some(path.as_path()));
        listener.expect_at(&path).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        listener.expect_at(&link.join("s.sock")).unwrap();
        let refused = listener.expect_at(&link.join("other")).unwrap_err();
        assert!(refused.to_string().contains("ListenStream="), "{refused}");
        drop(listener);
        assert!(path.exists(), "the service manager owns it");

        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        for wrong in [OwnedFd::from(tcp), OwnedFd::from(pipe)] {
            let error = Listener::inherited(wrong).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        }
    }
}
