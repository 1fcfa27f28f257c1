//! A runtime whose containers are plain processes of the host: real pids, pipes and exits, nothing
//! isolated. Annotations of config.json make a container behave badly.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Deserialize;
use shim_core::{
    Code, Container, CreateRequest, Created, DeleteRequest, ExecRequest, Features, Identity,
    Options, ProcessIo, Runtime, SandboxRequest, ShimError, SignalTarget, Started, Stats,
    UpdateRequest,
};

/// Waits for a line, then becomes the program: an init that `start` lets go.
const GATE: &str = r#"read go <&3 || exit 101; exec 3<&-; exec "$@""#;

#[derive(Debug)]
pub(crate) struct FakeRuntime;

/// The part of config.json that matters here.
#[derive(Debug, Deserialize)]
struct Config {
    process: Process,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Debug, Deserialize)]
struct Process {
    args: Vec<String>,
}

/// Where a container misbehaves. A gate is a fifo in the bundle: reading it blocks until a test
/// opens it for writing.
#[derive(Debug, Clone, Default, Deserialize)]
struct Annotations {
    /// `create` blocks on this gate.
    #[serde(rename = "fake.create-gate")]
    create_gate: Option<String>,
    /// `start` blocks on this gate before it lets init go.
    #[serde(rename = "fake.start-gate")]
    start_gate: Option<String>,
    /// `pause` blocks on this gate.
    #[serde(rename = "fake.pause-gate")]
    pause_gate: Option<String>,
    /// `update` blocks on this gate.
    #[serde(rename = "fake.update-gate")]
    update_gate: Option<String>,
    /// `delete` blocks on this gate.
    #[serde(rename = "fake.delete-gate")]
    delete_gate: Option<String>,
    /// `create` makes a terminal that nobody asked for.
    #[serde(rename = "fake.odd-terminal")]
    odd_terminal: Option<String>,
    /// `start` and `exec` return after the process has ended.
    #[serde(rename = "fake.late")]
    late: Option<String>,
    /// `create` fails after it has made the process.
    #[serde(rename = "fake.create-fails")]
    create_fails: Option<String>,
}

#[derive(Debug)]
pub(crate) struct FakeContainer {
    bundle: PathBuf,
    annotations: Annotations,
    init: i32,
    init_io: InitIo,
    oom: Option<File>,
}

#[derive(Debug)]
struct InitIo {
    /// A line lets init go.
    go: Mutex<Option<File>>,
    /// Ends with init.
    life: Mutex<File>,
}

impl Runtime for FakeRuntime {
    type Container = FakeContainer;

    fn identity(&self) -> Identity {
        Identity {
            name: "io.containerd.fake.v2",
            version: "1.2.3",
            revision: "abc",
        }
    }

    fn create(&self, request: CreateRequest) -> Result<(FakeContainer, Created), ShimError> {
        let text = std::fs::read(request.bundle.join("config.json")).map_err(internal)?;
        let config: Config = serde_json::from_slice(&text).map_err(internal)?;
        pass(&request.bundle, config.annotations.create_gate.as_deref())?;
        let (go_read, go) = sys::pipe_cloexec().map_err(internal)?;
        let (life, life_write) = sys::pipe_cloexec().map_err(internal)?;
        let mut args = vec!["-c".to_owned(), GATE.to_owned(), "sh".to_owned()];
        args.extend(config.process.args);
        let spawn = sys::Spawn::new(Path::new("/bin/sh"))
            .args(args)
            .fd(3, go_read);
        let (child, mut terminal) = spawn_with(spawn.fd(4, life_write), request.io)?;
        if config.annotations.odd_terminal.is_some() {
            let odd = sys::pty::Pty::open(Path::new("/dev/ptmx")).map_err(internal)?;
            terminal = Some(odd.master);
        }
        if config.annotations.create_fails.is_some() {
            // Dropping the child kills it.
            return Err(ShimError::new(Code::Internal, "create fails as asked"));
        }
        // Dropping the child kills it.
        note_pid(&request.bundle, child.pid().as_raw())?;
        let pid = sys::watch(child).as_raw();
        let container = FakeContainer {
            oom: open_oom(&request.bundle),
            bundle: request.bundle,
            annotations: config.annotations,
            init: pid,
            init_io: InitIo {
                go: Mutex::new(Some(File::from(go))),
                life: Mutex::new(File::from(life)),
            },
        };
        Ok((container, Created { pid, terminal }))
    }

    /// One that waits, and misbehaves as the pod's annotations say.
    fn sandbox(&self, request: &SandboxRequest) -> Result<(), ShimError> {
        let args = ["/bin/sleep", "100000"];
        let annotations = &request.pod.annotations;
        let config = serde_json::json!({"process": {"args": args}, "annotations": annotations});
        std::fs::write(request.bundle.join("config.json"), config.to_string()).map_err(internal)
    }

    fn delete_from_disk(&self, request: DeleteRequest<'_>) -> Result<(), ShimError> {
        kill_all(pids(request.bundle));
        Ok(())
    }

    fn features(&self, _options: &Options) -> Result<Features, ShimError> {
        let json = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0"}"#.to_owned();
        Ok(Features {
            json,
            annotations: Vec::new(),
        })
    }
}

impl Container for FakeContainer {
    fn start(&self) -> Result<(), ShimError> {
        pass(&self.bundle, self.annotations.start_gate.as_deref())?;
        let go = self.init_io.go.lock().unwrap().take();
        go.expect("started once")
            .write_all(b"\n")
            .map_err(|_pipe| ShimError::new(Code::FailedPrecondition, "init is gone"))?;
        if self.annotations.late.is_some() {
            read_to_end(&mut self.init_io.life.lock().unwrap())?;
        }
        Ok(())
    }

    fn exec(&self, request: ExecRequest) -> Result<Started, ShimError> {
        let process: Process = serde_json::from_slice(&request.process_json).map_err(internal)?;
        let (program, args) = process.args.split_first().expect("an exec has arguments");
        let (life, life_write) = sys::pipe_cloexec().map_err(internal)?;
        let spawn = sys::Spawn::new(Path::new(program))
            .args(args)
            .fd(4, life_write);
        let (child, terminal) = spawn_with(spawn, request.io)?;
        note_pid(&self.bundle, child.pid().as_raw())?;
        let pid = sys::watch(child).as_raw();
        if self.annotations.late.is_some() {
            read_to_end(&mut File::from(life))?;
        }
        Ok(Started { pid, terminal })
    }

    fn signal(&self, target: SignalTarget, signal: i32) -> Result<(), ShimError> {
        let pid = match target {
            SignalTarget::Init | SignalTarget::All => self.init,
            SignalTarget::Exec { pid, .. } => pid,
        };
        let sent = sys::process::kill_number(sys::Pid::from_raw(pid), signal);
        sent.map_err(|_gone| ShimError::new(Code::NotFound, "process already finished"))
    }

    fn pause(&self) -> Result<(), ShimError> {
        pass(&self.bundle, self.annotations.pause_gate.as_deref())?;
        self.signal(SignalTarget::Init, 19)
    }

    fn resume(&self) -> Result<(), ShimError> {
        self.signal(SignalTarget::Init, 18)
    }

    fn update(&self, request: &UpdateRequest) -> Result<(), ShimError> {
        pass(&self.bundle, self.annotations.update_gate.as_deref())?;
        std::fs::write(
            self.bundle.join("annotations"),
            format!("{:?}", request.annotations),
        )
        .map_err(internal)?;
        std::fs::write(self.bundle.join("resources"), &request.resources_json).map_err(internal)
    }

    fn pids(&self) -> Result<Vec<i32>, ShimError> {
        Ok(pids(&self.bundle)
            .into_iter()
            .filter(|pid| is_alive(*pid))
            .collect())
    }

    fn stats(&self) -> Result<Stats, ShimError> {
        Ok(Stats::V1(Box::default()))
    }

    fn oom_descriptor(&self) -> Result<Option<OwnedFd>, ShimError> {
        self.oom
            .as_ref()
            .map(File::try_clone)
            .transpose()
            .map_err(internal)
            .map(|f| f.map(Into::into))
    }

    fn take_oom(&self) -> Result<u64, ShimError> {
        let Some(mut oom) = self.oom.as_ref() else {
            return Ok(0);
        };
        // Each byte is a kill.
        let mut kills = [0; 64];
        Ok(oom.read(&mut kills).unwrap_or(0) as u64)
    }

    fn init_exited(&self) -> Result<(), ShimError> {
        kill_all(pids(&self.bundle));
        Ok(())
    }

    fn delete(&self) -> Result<(), ShimError> {
        pass(&self.bundle, self.annotations.delete_gate.as_deref())?;
        let mut all = pids(&self.bundle);
        if !self.bundle.exists() {
            all.push(self.init);
        }
        kill_all(all);
        Ok(())
    }
}

fn spawn_with(
    spawn: sys::Spawn<'_>,
    io: ProcessIo,
) -> Result<(sys::Child, Option<OwnedFd>), ShimError> {
    let (spawn, terminal) = match io {
        ProcessIo::Streams {
            stdin,
            stdout,
            stderr,
        } => (spawn.stdin(stdin).stdout(stdout).stderr(stderr), None),
        ProcessIo::Terminal => {
            let pty = sys::pty::Pty::open(Path::new("/dev/ptmx")).map_err(internal)?;
            let end = || pty.slave.try_clone().map_err(internal);
            (
                spawn.stdin(end()?).stdout(end()?).stderr(end()?),
                Some(pty.master),
            )
        }
    };
    let child = spawn
        .spawn()
        .map_err(|e| ShimError::new(Code::Internal, format!("exec: {e}")))?;
    Ok((child, terminal))
}

/// Blocks until somebody opens the gate.
fn pass(bundle: &Path, gate: Option<&str>) -> Result<(), ShimError> {
    gate.map_or(Ok(()), |gate| {
        File::open(bundle.join(gate)).map(drop).map_err(internal)
    })
}

fn read_to_end(life: &mut File) -> Result<(), ShimError> {
    life.read_to_end(&mut Vec::new())
        .map(drop)
        .map_err(internal)
}

/// OOM kills are bytes in a fifo, when the bundle has one.
fn open_oom(bundle: &Path) -> Option<File> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut options = std::fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(bundle.join("oom"))
        .ok()
}

fn note_pid(bundle: &Path, pid: i32) -> Result<(), ShimError> {
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .create(true)
        .append(true)
        .open(bundle.join("fake.pids"));
    file.and_then(|mut file| writeln!(file, "{pid}"))
        .map_err(internal)
}

/// All that a bundle's container has ever had.
pub(crate) fn pids(bundle: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(bundle.join("fake.pids")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills what is left and sees it dead.
fn kill_all(pids: Vec<i32>) {
    let alive: Vec<_> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    for pid in &alive {
        // It may have ended in between.
        let _ended = sys::process::kill_number(sys::Pid::from_raw(*pid), 9);
    }
    while alive.iter().any(|pid| is_alive(*pid)) {
        std::thread::yield_now();
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn internal(error: impl std::fmt::Display) -> ShimError {
    ShimError::new(Code::Internal, error.to_string())
}
