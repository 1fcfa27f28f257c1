//! A network namespace by its file; work is done inside by a thread that joins it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, gettid};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The file of the namespace a thread is in (proc(5); thread-self since 3.17).
const OWN: &str = "/proc/thread-self/ns/net";

/// Those of the host, whatever the caller was started in.
const HOSTS: [&str; 2] = ["/proc/self/ns/net", "/proc/1/ns/net"];

/// Tells namespaces apart, for as long as one of them is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Of the namespace whose file that is; none when there is no such file.
    ///
    /// # Errors
    /// What else keeps it from being looked at.
    pub fn at(path: &Path) -> Result<Option<Self>> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other
                .map(|metadata| Some(Self::of(&metadata)))
                .map_err(Error::io(format!("stat {}", path.display()))),
        }
    }
}

/// A namespace, kept in being.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    named: String,
    identity: Identity,
}

impl Namespace {
    /// That of a process.
    ///
    /// # Errors
    /// What keeps it from being opened.
    pub fn of_process(pid: i32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The one whose file that is.
    ///
    /// # Errors
    /// What keeps it from being opened.
    pub fn open(path: &Path) -> Result<Self> {
        let named = path.display().to_string();
        let failed = || Error::io(format!("open network namespace {named}"));
        let file = File::open(path).map_err(failed())?;
        let identity = Identity::of(&file.metadata().map_err(failed())?);
        Ok(Self {
            file,
            named,
            identity,
        })
    }

    /// Tells it apart from others.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it is the caller's own, or that of the host's pid 1.
    #[must_use]
    pub fn is_hosts(&self) -> bool {
        let known = HOSTS.map(|path| Identity::at(Path::new(path)));
        // One that cannot be looked at is not known to be the same.
        known
            .iter()
            .any(|it| matches!(it, Ok(Some(known)) if *known == self.identity))
    }

    /// A descriptor of it, to be joined by another process.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        let file = self.file.try_clone();
        file.map(OwnedFd::from)
            .map_err(Error::io("duplicate a descriptor"))
    }

    /// Does something in it, on a thread of its own.
    ///
    /// # Errors
    /// What keeps the thread from joining it, or what the work says.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let join = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(Error::io(format!("join network namespace {}", self.named)))
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("network".to_owned());
            let worker = thread
                .spawn_scoped(scope, || join().and_then(|()| work()))
                .map_err(Error::io("start a thread"))?;
            // A panic goes on where somebody sees it.
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// A namespace with a thread in it, so that others find it by a number in /proc, as they do that of a
/// process. Dropped, the thread ends.
#[derive(Debug)]
pub struct HeldNamespace {
    namespace: Namespace,
    thread_id: Pid,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HeldNamespace {
    /// A new one, with nothing in it but a loopback device that is down.
    ///
    /// # Errors
    /// When the kernel makes none.
    pub fn create() -> Result<Self> {
        let make =
            || unshare(CloneFlags::CLONE_NEWNET).map_err(Error::io("make a network namespace"));
        Self::hold(make)
    }

    /// That one.
    ///
    /// # Errors
    /// When it cannot be joined.
    pub fn join(namespace: &Namespace) -> Result<Self> {
        let descriptor = namespace.descriptor()?;
        let what = format!("join network namespace {}", namespace.named);
        Self::hold(move || setns(&descriptor, CloneFlags::CLONE_NEWNET).map_err(Error::io(what)))
    }

    fn hold(enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (end, ended) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new().name("network".to_owned());
        let thread = thread
            .spawn(move || {
                let entered = enter().and_then(|()| Namespace::open(Path::new(OWN)));
                // Who asked waits for it; and ends this by dropping the other side.
                let _told = tell.send(entered.map(|namespace| (namespace, gettid())));
                let _dropped = ended.recv();
            })
            .map_err(Error::io("start a thread"))?;
        let entered = told.recv().map_err(|gone| {
            Error::io("wait for a thread in the namespace")(io::Error::other(gone))
        })?;
        let (namespace, thread_id) = entered?;
        Ok(Self {
            namespace,
            thread_id,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The number of the thread: `/proc/NUMBER/ns/net` is the namespace while this lives.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.thread_id.as_raw()
    }
}

impl Drop for HeldNamespace {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It waits for nothing else.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_found_by_its_thread_and_is_not_the_hosts() {
        let held = HeldNamespace::create().unwrap();
        let path = format!("/proc/{}/ns/net", held.thread_id());
        let found = Identity::at(Path::new(&path)).unwrap();
        assert_eq!(found, Some(held.namespace().identity()));
        assert!(!held.namespace().is_hosts());
        let inside = held
            .namespace()
            .run(|| Identity::at(Path::new(OWN)))
            .unwrap();
        assert_eq!(inside, found);
        let again = HeldNamespace::join(held.namespace()).unwrap();
        assert_eq!(again.namespace().identity(), held.namespace().identity());
        assert!(Namespace::open(Path::new(OWN)).unwrap().is_hosts());
        assert_eq!(Identity::at(Path::new("/proc/none")).unwrap(), None);
    }
}
