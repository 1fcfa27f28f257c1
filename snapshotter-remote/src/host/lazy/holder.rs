//! A process that keeps what readers are answered by while this one is killed or replaced: a group of events and its journal, or a FUSE
//! connection with its own. It is started when somebody may wait, and ended when nobody can.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use snapshot_core::{Error, Result};
use sys::{Child, Spawn};

use crate::host::files;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The number of the first descriptor that it keeps.
const FIRST: i32 = 4;

/// A holder of so many descriptors, running or not.
#[derive(Debug)]
pub(super) struct Holder<const KEPT: usize> {
    directory: PathBuf,
    /// Its end is that of the holder.
    connection: Option<UnixStream>,
    /// How many there were until that one.
    number: u64,
    /// When it was tried to start one.
    tried: Option<Instant>,
    /// If this process has started it.
    child: Option<Child>,
}

/// What is started: it lies beside this program.
pub(in crate::host) fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("fd-holder");
    if path.is_file() {
        return Ok(path);
    }
    let why = format!("there is no {}: install it there", path.display());
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}

impl<const KEPT: usize> Holder<KEPT> {
    /// The one of that directory; nobody is asked yet.
    pub(super) fn at(directory: PathBuf) -> Self {
        Self {
            directory,
            connection: None,
            number: 0,
            tried: None,
            child: None,
        }
    }

    /// What a holder keeps that runs already, from a daemon that was before this one.
    ///
    /// # Errors
    /// For one that does not answer as ours do.
    pub(super) fn take(&mut self) -> Result<Option<[OwnedFd; KEPT]>> {
        let failed = || Error::io("take over what fd-holder keeps at", &self.directory);
        let Some(mut connection) = self.connect().map_err(failed())? else {
            return Ok(None);
        };
        let taken = take(&mut connection).map_err(failed())?;
        if taken.is_some() {
            self.connected(connection);
        }
        Ok(taken)
    }

    /// Sees to it that there is one, with these.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub(super) fn ensure(&mut self, kept: [BorrowedFd<'_>; KEPT]) -> Result<()> {
        if self.connection.is_some() {
            return Ok(());
        }
        self.tried = Some(Instant::now());
        self.start(kept)
            .map_err(Error::io("start fd-holder at", &self.directory))
    }

    fn connected(&mut self, connection: UnixStream) {
        self.connection = Some(connection);
        self.number += 1;
    }

    /// Which it is of all that there were.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether there is none, and for so long none was tried to be started.
    pub(super) fn is_due(&self, pause: Duration) -> bool {
        let is_due = self.tried.is_none_or(|tried| tried.elapsed() >= pause);
        self.connection.is_none() && is_due
    }

    /// What tells of its end.
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// The one of that number has ended. Who saw that late finds another one, which goes on.
    pub(super) fn has_ended(&mut self, number: u64) {
        if self.number != number || self.connection.take().is_none() {
            return;
        }
        if let Some(mut child) = self.child.take() {
            // It closes its sockets when it is about to be gone; a status is not missed. One that is not gone after that is of no use.
            drop(child.wait_timeout(PATIENCE));
        }
    }

    /// Ends it, if it runs: nobody waits for an answer.
    pub(super) fn end(&mut self) {
        if self.connection.take().is_none() {
            return;
        }
        if let Err(error) = self.say_end() {
            tracing::warn!(%error, "fd-holder does not end");
        }
        if let Some(mut child) = self.child.take() {
            drop(child.wait_timeout(PATIENCE));
            child.release();
        }
    }

    fn say_end(&self) -> io::Result<()> {
        let Some(mut connection) = self.connect()? else {
            return Ok(());
        };
        connection.write_all(b"e")?;
        connection.read_exact(&mut [0])?;
        // A name without a listener; the next takes it away, too.
        fs::remove_file(self.directory.join("socket"))
    }

    fn start(&mut self, kept: [BorrowedFd<'_>; KEPT]) -> io::Result<()> {
        files::make_directory(&self.directory).map_err(io::Error::other)?;
        let socket = self.directory.join("socket");
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let directory = File::open(&self.directory)?;
        let listener = UnixListener::bind(path_in(&directory))?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        let program = program()?;
        let mut holder = Spawn::new(&program)
            .args([KEPT.to_string()])
            .cwd(Path::new("/"))
            .new_session()
            .fd(3, listener.as_fd());
        for (number, fd) in (FIRST..).zip(kept) {
            holder = holder.fd(number, fd);
        }
        self.child = Some(holder.spawn()?);
        let gone = || io::Error::other("it has ended");
        let mut connection = self.connect()?.ok_or_else(gone)?;
        take::<KEPT>(&mut connection)?.ok_or_else(gone)?;
        self.connected(connection);
        Ok(())
    }

    /// None when nobody listens.
    fn connect(&self) -> io::Result<Option<UnixStream>> {
        use io::ErrorKind::{ConnectionRefused, NotFound};

        let connected = File::open(&self.directory)
            .and_then(|directory| UnixStream::connect(path_in(&directory)));
        match connected {
            Ok(connection) => {
                connection.set_read_timeout(Some(PATIENCE))?;
                connection.set_write_timeout(Some(PATIENCE))?;
                Ok(Some(connection))
            }
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<const KEPT: usize> Drop for Holder<KEPT> {
    fn drop(&mut self) {
        // It stays: the next daemon needs it.
        if let Some(child) = self.child.take() {
            child.release();
        }
    }
}

/// The socket in that directory, however long its path is.
fn path_in(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/socket", directory.as_raw_fd()).into()
}

/// None when it ended instead of answering.
fn take<const KEPT: usize>(connection: &mut UnixStream) -> io::Result<Option<[OwnedFd; KEPT]>> {
    connection.write_all(b"t")?;
    let mut count = [0];
    let (length, fds, _nobody) = sys::recv_with_fds(&*connection, &mut count)?;
    if length == 0 {
        return Ok(None);
    }
    let fds: Result<[_; KEPT], _> = fds.try_into();
    let fds = fds.map_err(|fds| {
        let why = format!("it keeps {} descriptors instead of {KEPT}", fds.len());
        io::Error::new(io::ErrorKind::InvalidData, why)
    })?;
    Ok(Some(fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_the_end_of_a_holder_late_leaves_the_next_one_alone() {
        let mut holder = Holder::<3>::at(PathBuf::new());
        assert!(holder.is_due(Duration::from_secs(3600)));
        let connection = || UnixStream::pair().unwrap().0;
        holder.connected(connection());
        let first = holder.number();
        holder.has_ended(first);
        assert!(holder.connection().is_none());
        holder.connected(connection());
        holder.has_ended(first);
        assert!(holder.connection().is_some());
        assert!(!holder.is_due(Duration::ZERO));
        holder.has_ended(holder.number());
        holder.tried = Some(Instant::now());
        assert!(holder.is_due(Duration::ZERO) && !holder.is_due(Duration::from_secs(3600)));
    }
}
