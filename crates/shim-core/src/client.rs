//! A container's shim from an operator's side: the calls of the Task API that a program beside containerd needs. It
//! blocks, so it is not for threads of an async runtime.

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use bundle::{Status, names};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use crate::{Code, ShimError, WindowSize, convert, socket, status};

/// What a shim may take for what it does at once, and for taking the connection.
const QUICK: Duration = Duration::from_secs(20);

/// What it may take for starting or deleting a process: longer than it gives itself.
const SLOW: Duration = Duration::from_secs(90);

/// What an exec is in a request's `Any`.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// One container's tasks. Each has a connection of its own.
pub struct Client {
    runtime: Runtime,
    tasks: TaskClient,
    container: String,
    /// Of who began to listen, in our pid namespace: 0 for one that is outside it.
    pid: Option<i32>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container, .. } = self;
        f.debug_struct("Client")
            .field("container", container)
            .finish_non_exhaustive()
    }
}

/// A program to add to a container.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The exec's id.
    pub exec: &'a str,
    /// The OCI process as JSON; whether it has a terminal, [`Program::wants_terminal`] says.
    pub process_json: &'a [u8],
    /// It reads and writes a terminal.
    pub wants_terminal: bool,
    /// Fifo of its input.
    pub stdin: &'a Path,
    /// Fifo of its output.
    pub stdout: &'a Path,
    /// Fifo of its errors; none with a terminal.
    pub stderr: Option<&'a Path>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What it does.
    pub status: Status,
    /// Its init on the host.
    pub pid: u32,
}

impl Client {
    /// Connects to the shim that serves the container of that bundle.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when nobody serves it, and nothing else; [`Code::DeadlineExceeded`] when somebody does who
    /// does not take the connection.
    pub fn connect(bundle: &Path, container: &str) -> Result<Self, ShimError> {
        let recorded = bundle.join(names::ADDRESS);
        let failed = |what: &str, path: &Path, error: &io::Error| {
            let what = format!("{what} {}: {error}", path.display());
            let (kind, message) = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
                    Code::Unavailable,
                    format!("no shim serves container {container}: {what}"),
                ),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => (
                    Code::DeadlineExceeded,
                    format!("the shim of container {container} takes no connection: {what}"),
                ),
                _ => (
                    Code::Internal,
                    format!("find the shim of container {container}: {what}"),
                ),
            };
            ShimError::new(kind, message)
        };
        let address = std::fs::read_to_string(&recorded)
            .map_err(|error| failed("read", &recorded, &error))?;
        let no_socket = io::Error::other("it names no socket");
        let path =
            socket::path_of(address.trim()).ok_or_else(|| failed("read", &recorded, &no_socket))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ShimError::failed("start a runtime", &error))?;
        let connected = runtime
            .block_on(async { tokio::time::timeout(QUICK, UnixStream::connect(path)).await });
        let stream = connected
            .unwrap_or_else(|_elapsed| Err(ErrorKind::TimedOut.into()))
            .map_err(|error| failed("connect to", path, &error))?;
        let pid = stream.peer_cred().ok().and_then(|it| it.pid());
        let tasks = {
            // It starts tasks of the runtime.
            let _entered = runtime.enter();
            TaskClient::new(ttrpc::asynchronous::Client::new(Socket::new(stream)))
        };
        Ok(Self {
            runtime,
            tasks,
            container: container.to_owned(),
            pid,
        })
    }

    /// Whether the shim is outside of our pid namespace, so that our pid is nobody's or another's there.
    #[must_use]
    pub fn is_outside_our_pids(&self) -> bool {
        self.pid == Some(0)
    }

    /// Waits for the answer to a request, so long at most.
    fn ask<T, F>(
        &self,
        limit: Option<Duration>,
        request: impl FnOnce(Context) -> F,
    ) -> Result<T, ShimError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let Some(limit) = limit else {
            let answer = self.runtime.block_on(request(Context::default()));
            return answer.map_err(|error| status::from_wire(&error));
        };
        // That ttrpc itself gives up later: it does not say by a code why it did.
        let answer = request(ttrpc::context::with_duration(limit * 2));
        let answer = async { tokio::time::timeout(limit, answer).await };
        match self.runtime.block_on(answer) {
            Ok(answer) => answer.map_err(|error| status::from_wire(&error)),
            Err(_elapsed) => {
                let who = &self.container;
                let message = format!("the shim of container {who} does not answer in {limit:?}");
                Err(ShimError::new(Code::DeadlineExceeded, message))
            }
        }
    }

    /// Where the container is in its life.
    ///
    /// # Errors
    /// What the shim says, as for every call here, and [`Code::DeadlineExceeded`] when it says nothing.
    pub fn state(&self) -> Result<State, ShimError> {
        let request = api::StateRequest {
            id: self.container.clone(),
            ..Default::default()
        };
        let state = self.ask(Some(QUICK), |it| self.tasks.state(it, &request))?;
        Ok(State {
            status: convert::api::status_of(&state)?,
            pid: state.pid,
        })
    }

    /// Adds a program; it is not started yet, and is to be deleted.
    ///
    /// # Errors
    /// What the shim says.
    pub fn exec(&self, program: &Program<'_>) -> Result<(), ShimError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let request = api::ExecProcessRequest {
            id: self.container.clone(),
            exec_id: program.exec.to_owned(),
            terminal: program.wants_terminal,
            stdin: text(program.stdin),
            stdout: text(program.stdout),
            stderr: program.stderr.map(text).unwrap_or_default(),
            spec: MessageField::some(Any {
                type_url: PROCESS.to_owned(),
                value: program.process_json.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.ask(Some(QUICK), |it| self.tasks.exec(it, &request))
            .map(drop)
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the shim says: [`Code::NotFound`] or [`Code::InvalidArgument`] for a program that cannot be run.
    pub fn start(&self, exec: &str) -> Result<(), ShimError> {
        let request = api::StartRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.ask(Some(SLOW), |it| self.tasks.start(it, &request))
            .map(drop)
    }

    /// Waits for its end, so long at most; gives its exit code.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the shim ends before, [`Code::DeadlineExceeded`] when the time does.
    pub fn wait(&self, exec: &str, limit: Option<Duration>) -> Result<u32, ShimError> {
        let request = api::WaitRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let ended = self.ask(limit, |it| self.tasks.wait(it, &request))?;
        Ok(ended.exit_status)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`Code::NotFound`] when it has ended.
    pub fn kill(&self, exec: &str, signal: u32) -> Result<(), ShimError> {
        let request = api::KillRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.ask(Some(QUICK), |it| self.tasks.kill(it, &request))
            .map(drop)
    }

    /// Tells its terminal the size.
    ///
    /// # Errors
    /// What the shim says.
    pub fn resize(&self, exec: &str, size: WindowSize) -> Result<(), ShimError> {
        let request = api::ResizePtyRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            width: size.columns.into(),
            height: size.rows.into(),
            ..Default::default()
        };
        self.ask(Some(QUICK), |it| self.tasks.resize_pty(it, &request))
            .map(drop)
    }

    /// Ends its input, behind what is in the fifo.
    ///
    /// # Errors
    /// What the shim says.
    pub fn close_stdin(&self, exec: &str) -> Result<(), ShimError> {
        let request = api::CloseIORequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.ask(Some(QUICK), |it| self.tasks.close_io(it, &request))
            .map(drop)
    }

    /// Removes one that was not started or has ended.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] while it runs.
    pub fn delete(&self, exec: &str) -> Result<(), ShimError> {
        let request = api::DeleteRequest {
            id: self.container.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.ask(Some(SLOW), |it| self.tasks.delete(it, &request))
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::Backlog;

    use super::*;

    #[test]
    fn who_is_not_served_is_told_from_who_gets_no_answer() {
        let bundle = tempfile::tempdir().unwrap();
        let check = |kind: Code, expected: &str| {
            let error = Client::connect(bundle.path(), "c").unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            let message = error.message;
            assert!(message.contains("container c"), "{message}");
            assert!(message.contains(expected), "{message}");
        };
        let address = bundle.path().join(names::ADDRESS);
        check(Code::Unavailable, "read ");
        std::fs::write(&address, "vsock://3").unwrap();
        check(Code::Internal, "it names no socket");
        let path = bundle.path().join("dead");
        std::fs::write(&address, socket::address(&path)).unwrap();
        check(Code::Unavailable, "connect to ");
        drop(UnixListener::bind(&path).unwrap());
        check(Code::Unavailable, "connect to ");
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::connect(bundle.path(), "c").unwrap();
        assert!(!client.is_outside_our_pids());
        let limit = Duration::from_millis(100);
        let error = client.wait("e", Some(limit)).unwrap_err();
        assert_eq!(error.kind, Code::DeadlineExceeded, "{error}");
        // One more has room to wait.
        nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        check(Code::DeadlineExceeded, "takes no connection");
        drop(listener);
        let error = client.state().unwrap_err();
        assert_eq!(error.kind, Code::Unavailable, "{error}");
    }
}
