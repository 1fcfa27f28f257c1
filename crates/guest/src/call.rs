//! The messages.

use cgroups::Stats;
use network::Network;
use serde::{Deserialize, Serialize};

/// From the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Told again in the reply.
    pub number: u64,
    /// What to do.
    pub call: Call,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's.
        number: u64,
        /// What came of it.
        outcome: Result<Answer, Refusal>,
    },
    /// A process of a container has ended; its output may still be on its way.
    Exited {
        /// Which.
        process: Process,
        /// 0 to 255, or 128 and the number of the signal that ended it.
        code: u8,
        /// How much output there is to wait for.
        written: Written,
    },
    /// The guest's kernel has killed processes of a container for memory; told before their ends.
    OutOfMemory {
        /// The container.
        container: String,
    },
}

/// What the shim asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// First of all: what a guest cannot know. Nothing else is answered before.
    Prepare {
        /// Since 1970, in nanoseconds.
        clock_ns: u64,
        /// For the kernel's random numbers, which begin anew with it.
        entropy: [u8; 32],
    },
    /// Gives the links that the machine has, in the order of [`crate::first_mac`], their hardware
    /// addresses, names, addresses and routes.
    Connect(Box<Connect>),
    /// Makes a container whose init waits for [`Call::Start`].
    Create(Box<Create>),
    /// Lets init run the container's program.
    Start(String),
    /// Runs a further process.
    Exec(Box<Exec>),
    /// Sends a signal, by number.
    Signal {
        /// To whom.
        target: Target,
        /// The signal.
        signal: i32,
    },
    /// Tells a process's terminal its size.
    Resize {
        /// Which.
        process: Process,
        /// The size.
        size: Size,
    },
    /// Freezes all processes of a container.
    Pause(String),
    /// Thaws them.
    Resume(String),
    /// Applies an OCI `linux.resources` object.
    Update {
        /// The container.
        container: String,
        /// The object in JSON.
        resources: Vec<u8>,
    },
    /// What a container has used.
    Stats(String),
    /// Kills what is left of a container and removes it.
    Delete(String),
    /// Ends the machine.
    PowerOff,
}

/// The network of all that runs in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// What is in the network namespace on the host.
    pub network: Network,
    /// Kernel parameters below `net.`, as sysctl(8) names them, and their values.
    pub sysctl: Vec<(String, String)>,
}

/// A container to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Its id.
    pub id: String,
    /// Its config.json, as it is to be taken in the guest.
    pub config: Vec<u8>,
    /// The disk with its root file system.
    pub disk: Disk,
    /// Files that config.json mounts; the N-th has the path [`file_path`] says.
    pub files: Vec<File>,
    /// Directories that config.json binds; the N-th has the path [`directory_path`] says.
    pub directories: Vec<Directory>,
    /// Names of volumes that the host shares and config.json binds, at the paths that [`volume_path`] says.
    pub volumes: Vec<String>,
    /// Where its program reads and writes.
    pub io: Io,
}

/// A directory that a container binds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Directory {
    /// A copy of the host's, read-only.
    Disk(Disk),
    /// An empty one in the guest's memory, that all containers of a pod find under that name; the first
    /// one makes it.
    Memory {
        /// One part of a path.
        name: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// A disk of the machine, plugged into its SCSI adapter: its logical unit. The guest may not have seen it
/// yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk(pub u16);

/// A copy of a file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What is in it.
    pub contents: Vec<u8>,
}

/// A process to add to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container.
    pub container: String,
    /// Its own id.
    pub id: String,
    /// An OCI `process` object in JSON.
    pub process: Vec<u8>,
    /// Where it reads and writes.
    pub io: Io,
}

/// Streams of the mux that a process reads and writes, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Io {
    /// One for each of the three.
    Streams {
        /// From the host.
        stdin: u32,
        /// To the host.
        stdout: u32,
        /// To the host.
        stderr: u32,
    },
    /// One both ways, with a terminal in the guest.
    Terminal(u32),
}

/// What a process, and who has its streams, had written when it ended, in bytes since its start: others may write
/// more, for whom nobody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// To its output; that of a terminal.
    pub stdout: u64,
    /// To its errors.
    pub stderr: u64,
}

impl Written {
    /// No number of bytes: what comes until the stream ends, which it has or is about to.
    pub const TO_THE_END: u64 = u64::MAX;

    /// Both streams end.
    pub const ALL: Self = Self {
        stdout: Self::TO_THE_END,
        stderr: Self::TO_THE_END,
    };
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The container.
    pub container: String,
    /// The exec; none: init.
    pub exec: Option<String>,
}

/// Whom a signal is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// One process.
    One(Process),
    /// All of a container.
    All(String),
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// The agent's [`crate::VERSION`].
    Prepared {
        /// Its number.
        version: u32,
    },
    /// The pid of a process in the guest.
    Pid(u32),
    /// What a container has used.
    Stats(Box<Stats>),
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What a caller would do differently.
    pub kind: RefusalKind,
    /// What was tried and why it failed, in one line.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The request is wrong in itself or does not fit the image.
    Invalid,
    /// There is no such container or process any more.
    NotFound,
    /// The program was not found or is no program.
    Executable,
    /// The guest cannot do this.
    Unsupported,
    /// Everything else.
    Failed,
}

/// Where the N-th file of a container lies in the guest.
#[must_use]
pub fn file_path(container: &str, number: usize) -> String {
    format!("{}/files/{number}", container_path(container))
}

/// The name of the folder in a container's where those directories are.
pub const DIRECTORIES: &str = "directories";

/// Where the N-th directory of a container lies in the guest.
#[must_use]
pub fn directory_path(container: &str, number: usize) -> String {
    format!("{}/{DIRECTORIES}/{number}", container_path(container))
}

/// The tag by which a machine knows what the host shares (virtiofs).
pub const VOLUMES_TAG: &str = "volumes";

/// A volume in its folder.
pub const VOLUME: &str = "volume";

/// Where a guest has what the host shares with it.
pub const VOLUMES: &str = "/run/volumes";

/// The folder of a volume in the guest, which is a mount.
#[must_use]
pub fn volume_folder(name: &str) -> String {
    format!("{VOLUMES}/{name}")
}

/// A volume in the guest.
#[must_use]
pub fn volume_path(name: &str) -> String {
    format!("{}/{VOLUME}", volume_folder(name))
}

/// The folder of a container in the guest: its bundle there.
#[must_use]
pub fn container_path(container: &str) -> String {
    format!("/run/containers/{container}")
}

/// The name of that folder in a container's.
pub const NAMESPACES: &str = "ns";

/// The namespaces of a container's init in the guest, for a container that joins them; a file each, named
/// as in proc(5), `/proc/PID/ns`.
#[must_use]
pub fn namespaces_path(container: &str) -> String {
    format!("{}/{NAMESPACES}", container_path(container))
}

/// Where the guest has memory that containers of a pod share, to be bound on `/dev/shm`.
pub const SHARED_MEMORY: &str = "/dev/shm";
