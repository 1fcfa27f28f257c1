//! flock(2) with a limit of time.

use std::fs::File;
use std::io;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Locks an open file, and waits `limit` for whoever has it; none when he still has it then.
/// `how` is [`FlockArg::LockShared`] or [`FlockArg::LockExclusive`].
///
/// flock(2) has no limit of its own: a thread waits, and one that is too late gives back at once what
/// it gets, or ends with the process. It is started only when somebody has the lock.
///
/// # Errors
/// flock(2), and clone(2) for the thread.
pub fn lock_within(file: File, how: FlockArg, limit: Duration) -> io::Result<Option<Flock<File>>> {
    let at_once = match how {
        FlockArg::LockShared => FlockArg::LockSharedNonblock,
        _ => FlockArg::LockExclusiveNonblock,
    };
    let file = match Flock::lock(file, at_once) {
        Ok(lock) => return Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) if limit.is_zero() => return Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno.into()),
    };
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("wait for lock".to_owned())
        // Nobody is there any more after the limit.
        .spawn(move || drop(sender.send(wait(file, how))))?;
    match receiver.recv_timeout(limit) {
        Ok(locked) => Ok(Some(locked?)),
        Err(_elapsed) => Ok(None),
    }
}

fn wait(mut file: File, how: FlockArg) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(file, how) {
            Err((same, Errno::EINTR)) => file = same,
            locked => return locked.map_err(|(_, errno)| errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    /// Until somebody waits for the lock of this file, as proc(5) lists it.
    fn wait_for_waiter(path: &Path) {
        let inode = format!(":{} ", std::fs::metadata(path).unwrap().ino());
        let start = Instant::now();
        let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
        while !std::fs::read_to_string("/proc/locks")
            .unwrap()
            .lines()
            .any(waits)
        {
            assert!(start.elapsed().as_secs() < 60, "nobody waits");
            thread::yield_now();
        }
    }

    #[test]
    fn who_has_it_is_waited_for_with_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (patient, exclusive) = (Duration::from_secs(60), FlockArg::LockExclusive);
        let shared = || lock_within(open(), FlockArg::LockShared, patient).unwrap();
        let (one, other) = (shared().unwrap(), shared().unwrap());
        let alone = |limit| lock_within(open(), exclusive, limit).unwrap();
        assert!(alone(Duration::ZERO).is_none());
        assert!(alone(Duration::from_millis(1)).is_none());
        let waiting = thread::spawn({
            let file = open();
            move || lock_within(file, exclusive, patient).unwrap().is_some()
        });
        wait_for_waiter(file.path());
        drop((one, other));
        assert!(waiting.join().unwrap());
        // The one that gave up may have it for a moment.
        let held = alone(patient).unwrap();
        assert!(
            lock_within(open(), FlockArg::LockShared, Duration::ZERO)
                .unwrap()
                .is_none()
        );
        drop(held);
    }
}
