//! virtiofsd, the daemon that serves a machine's volumes: where it is, how it is asked for, its process. It
//! confines itself: namespaces of its own with the stage as root, a filter of system calls, few capabilities.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cgroups::Cgroup;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::fs::CWD;
use sys::mount_api::{MountAttr, mount_setattr};
use sys::{Child, CloneFlags, ExitStatus, Pid, Spawn};

use crate::journal::StateDir;
use crate::stage::{self, Stage};
use crate::{Error, Result};

/// Where it is looked for: that of its own project, then QEMU's, which came with it up to 7.2.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];

/// What it may take to print its help.
const HELP_LIMIT: Duration = Duration::from_secs(10);

/// The most that is read of that, in bytes: less than a pipe takes.
const HELP_BYTES_MAX: u64 = 60 << 10;

/// The end of a killed one.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How much is kept of what it says, in bytes.
const SAID_BYTES_MAX: usize = 1000;

/// Files that it may have open, where it may have as many.
const FILES_MAX: u64 = 1_000_000;

/// Descriptor number of the socket that it listens at.
const LISTENER_FD: i32 = 3;

/// Its rights beside those that files of all users take: no devices, no capabilities of files.
const RIGHTS: &str = "-mknod:-setfcap";

/// Which words it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// Those of the project of that name.
    Own,
    /// Those of QEMU's.
    Qemu,
}

/// The program on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Virtiofsd {
    /// Its path.
    pub(crate) path: PathBuf,
    words: Words,
}

impl Virtiofsd {
    /// The first one that runs, on a kernel that can give it a volume.
    ///
    /// # Errors
    /// [`Error::NoMountSetattr`], [`Error::NoVirtiofsd`].
    pub(crate) fn find() -> Result<Self> {
        // Nothing to change, which is refused by none that has the call.
        let probe = mount_setattr(CWD, c"", 0, &MountAttr::default());
        if probe.is_err_and(|error| error.raw_os_error() == Some(Errno::ENOSYS as i32)) {
            return Err(Error::NoMountSetattr);
        }
        Self::find_in(&PLACES.map(PathBuf::from)).ok_or(Error::NoVirtiofsd)
    }

    fn find_in(places: &[PathBuf]) -> Option<Self> {
        places.iter().find_map(|path| {
            let words = match help(path)? {
                help if help.contains("--shared-dir") => Words::Own,
                help if help.contains("source=PATH") => Words::Qemu,
                _other => return None,
            };
            let path = path.clone();
            Some(Self { path, words })
        })
    }

    fn arguments(&self, place: &Path, files_max: u64) -> Vec<String> {
        let place = place.display();
        let (fd, files) = (
            format!("--fd={LISTENER_FD}"),
            format!("--rlimit-nofile={files_max}"),
        );
        let mut words = vec![fd, files];
        words.extend(match self.words {
            Words::Own => vec![
                format!("--shared-dir={place}"),
                "--sandbox=namespace".to_owned(),
                "--seccomp=kill".to_owned(),
                "--cache=auto".to_owned(),
                "--inode-file-handles=never".to_owned(),
                "--announce-submounts".to_owned(),
                "--log-level=error".to_owned(),
                format!("--modcaps={RIGHTS}"),
            ],
            Words::Qemu => {
                let options = [
                    &format!("source={place}"),
                    "sandbox=namespace",
                    "cache=auto",
                    "announce_submounts",
                    "log_level=err",
                    &format!("modcaps={RIGHTS}"),
                ];
                let options = options
                    .iter()
                    .flat_map(|it| ["-o".to_owned(), (*it).to_owned()]);
                std::iter::once("-f".to_owned()).chain(options).collect()
            }
        });
        words
    }
}

/// What a program says of itself; none when it does not run, or not to its end.
fn help(path: &Path) -> Option<String> {
    if !path.is_file() {
        return None;
    }
    let (reader, writer) = sys::pipe_cloexec().ok()?;
    let errors = writer.try_clone().ok()?;
    let spawn = Spawn::new(path).args(["--help"]);
    let mut child = spawn.stdout(writer).stderr(errors).spawn().ok()?;
    // Dropped before it has ended, it is killed.
    child.wait_timeout(HELP_LIMIT).ok()??;
    let mut text = Vec::new();
    let mut bounded = File::from(reader).take(HELP_BYTES_MAX);
    bounded.read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// One that runs. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Mutex<Child>,
    pid: Pid,
    /// Of its standard error, with the end of all its processes as its end.
    says: Mutex<Option<File>>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Daemon {
    /// Starts it in a cgroup to serve a stage; gives the socket at which it serves QEMU.
    pub(crate) fn start(
        program: &Virtiofsd,
        stage: &Stage,
        cgroup: &Cgroup,
        dir: &StateDir,
    ) -> Result<(Self, UnixStream)> {
        let (listener, socket) = connection(dir.path())?;
        let (says, errors) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
        // The soft limit of a shim may be containerd's.
        let files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let (_, files) = files.map_err(Error::io("read RLIMIT_NOFILE"))?;
        let arguments = program.arguments(&stage::place(), files.min(FILES_MAX));
        let child = Spawn::new(&program.path)
            .args(arguments)
            .env_clear_set(Vec::new())
            .fd(LISTENER_FD, OwnedFd::from(listener))
            .stderr(errors)
            .enter_cgroups(cgroup.open_entrances()?)
            .join_namespaces(vec![(stage.namespace()?, CloneFlags::CLONE_NEWNS)])
            .cwd(Path::new("/"))
            .new_session()
            .spawn()
            .map_err(Error::on("start", &program.path))?;
        let daemon = Self {
            pid: child.pid(),
            child: Mutex::new(child),
            says: Mutex::new(Some(File::from(says))),
            said: Arc::default(),
        };
        Ok((daemon, socket))
    }

    /// Calls when all of it has ended, however it came to that, with what it said last.
    pub(crate) fn follow(&self, ended: impl FnOnce(&str) + Send + 'static) -> Result<()> {
        let says = self
            .says
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let said = Arc::clone(&self.said);
        let listen = move || {
            if let Some(says) = says {
                listen(says, &said);
            }
            ended(&text(&said));
        };
        let thread = std::thread::Builder::new().name("virtiofsd".to_owned());
        // It ends with what it listens to.
        let thread = thread.stack_size(256 << 10).spawn(listen);
        thread.map(drop).map_err(Error::io("start a thread"))
    }

    /// What it said last.
    pub(crate) fn said(&self) -> String {
        text(&self.said)
    }

    /// Ends it.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself; then it is only waited for.
        let _gone = child.kill(Signal::SIGKILL);
        let ended = child.wait_timeout(END_LIMIT).ok().flatten();
        if ended.is_none() {
            tracing::warn!(pid = self.pid.as_raw(), "a killed virtiofsd does not end");
        }
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Two ends of one connection, of which the daemon takes the second from the socket it listens at: one
/// whose other end is gone when its shim is.
fn connection(folder: &Path) -> Result<(UnixListener, UnixStream)> {
    let held = File::open(folder).map_err(Error::on("open", folder))?;
    // A socket's path is short, and that of a container may be long.
    let short = format!("/proc/self/fd/{}/volumes.sock", held.as_fd().as_raw_fd());
    let short = Path::new(&short);
    let listener = UnixListener::bind(short).map_err(Error::on("bind volumes.sock in", folder))?;
    let socket = UnixStream::connect(short);
    let removed = fs::remove_file(short);
    let socket = socket.map_err(Error::on("connect to volumes.sock in", folder))?;
    removed.map_err(Error::on("remove volumes.sock in", folder))?;
    Ok((listener, socket))
}

/// Keeps the last of it.
fn listen(mut says: File, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        match says.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&buffer[..bytes]);
                let old = said.len().saturating_sub(SAID_BYTES_MAX);
                said.drain(..old);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_end) => return,
        }
    }
}

fn text(said: &Mutex<Vec<u8>>) -> String {
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    crate::qemu::one_line(&said)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_that_runs_is_taken_and_its_words_are_known() {
        let temporary = tempfile::tempdir().unwrap();
        let program = |name: &str, text: &str| {
            let path = temporary.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let places = [
            temporary.path().join("none"),
            program("broken", "no program"),
            program("other", "#!/bin/sh\necho usage: other\n"),
            program(
                "qemu",
                "#!/bin/sh\necho '-o source=PATH  shared directory tree'\n",
            ),
            program("own", "#!/bin/sh\necho '--shared-dir <DIR>' >&2\n"),
        ];
        let found = Virtiofsd::find_in(&places).unwrap();
        assert_eq!((&found.path, found.words), (&places[3], Words::Qemu));
        let line = found.arguments(Path::new("/p"), 20).join(" ");
        let expected = "--fd=3 --rlimit-nofile=20 -f -o source=/p -o sandbox=namespace -o cache=auto \
                        -o announce_submounts -o log_level=err -o modcaps=-mknod:-setfcap";
        assert_eq!(line, expected);
        let found = Virtiofsd::find_in(&places[4..]).unwrap();
        assert_eq!(found.words, Words::Own);
        let line = found.arguments(Path::new("/p"), 20).join(" ");
        let expected = "--fd=3 --rlimit-nofile=20 --shared-dir=/p --sandbox=namespace --seccomp=kill \
                        --cache=auto --inode-file-handles=never --announce-submounts --log-level=error \
                        --modcaps=-mknod:-setfcap";
        assert_eq!(line, expected);
        assert_eq!(Virtiofsd::find_in(&places[..3]), None);
    }
}
