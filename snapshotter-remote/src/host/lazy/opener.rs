//! Files of a FUSE connection are opened by a process of their own: who looks up a name waits for an answer, and cannot be killed while it
//! waits, so the daemon that answers must not be who asks.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use sys::Spawn;

/// The word of the command for such a process, which nobody else needs.
pub(crate) const WORD: &str = "open-served";

/// What it has: the mount, and whom it sends files to.
const MOUNT: i32 = 3;
const SOCKET: i32 = 4;

/// How long it may take: an answer to it needs nothing that has to be fetched.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens these files of a mount, in this order.
///
/// # Errors
/// What keeps one from being opened.
pub(in crate::host) fn open(mount: &OwnedFd, names: &[String]) -> io::Result<Vec<File>> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    // The program that this process is, also when another has been installed since.
    let mut child = Spawn::new(Path::new("/proc/self/exe"))
        .args([WORD].into_iter().chain(names.iter().map(String::as_str)))
        .cwd(Path::new("/"))
        .fd(MOUNT, mount.as_fd())
        .fd(SOCKET, theirs.as_fd())
        .spawn()?;
    drop(theirs);
    let files = names.iter().map(|_| receive(&ours)).collect();
    // One that hangs ends when it is answered, or when the connection does.
    drop(child.wait_timeout(PATIENCE));
    child.release();
    files
}

fn receive(socket: &UnixStream) -> io::Result<File> {
    let mut errno = [0; 4];
    let (length, mut fds, _) = sys::recv_with_fds(socket, &mut errno)?;
    match (length, fds.pop()) {
        (4, Some(file)) => Ok(file.into()),
        (4, None) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What that process does.
///
/// # Errors
/// What keeps it from sending a file, or saying why there is none.
pub(crate) fn send(names: &[String]) -> io::Result<()> {
    let mount = sys::take_inherited_fd(MOUNT)?;
    let mut socket = UnixStream::from(sys::take_inherited_fd(SOCKET)?);
    for name in names {
        match File::open(format!("/proc/self/fd/{}/{name}", mount.as_raw_fd())) {
            Ok(file) => {
                // Who closes a file asks as well (FUSE_FLUSH), until the answer was that there is no such thing: once, before the daemon
                // has any.
                drop(file.try_clone()?);
                sys::send_with_fds(&socket, &[0; 4], &[file.as_fd()])?;
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or_default();
                socket.write_all(&errno.to_ne_bytes())?;
            }
        }
    }
    Ok(())
}
