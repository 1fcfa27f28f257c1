//! The part of containerd a shim talks to: the verbs it runs, the socket it sends events to, and
//! the client it is called by.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as wire;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Nothing here takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A containerd of one test: a folder, an events socket, bundles.
pub(crate) struct Containerd {
    pub(crate) dir: tempfile::TempDir,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    server: Option<Server>,
}

/// An event as a line: topic, id, and what matters of the rest.
pub(crate) type Event = String;

/// What a verb answered.
pub(crate) struct Answer {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

/// A client of one shim.
pub(crate) struct Shim {
    pub(crate) tasks: TaskClient,
    pub(crate) client: Client,
    pub(crate) process: sys::Child,
}

struct EventsService(mpsc::UnboundedSender<Event>);

#[async_trait]
impl Events for EventsService {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        assert_eq!(envelope.namespace, "ns");
        let event = line(&envelope.topic, &envelope.event.value);
        // A test that has ended hears nothing more.
        let _deaf = self.0.send(event);
        Ok(Empty::new())
    }
}

fn line(topic: &str, event: &[u8]) -> Event {
    let rest = match topic {
        "/tasks/exit" => {
            let exit = wire::TaskExit::parse_from_bytes(event).unwrap();
            format!("{} {}", exit.id, exit.exit_status)
        }
        "/tasks/exec-added" => {
            wire::TaskExecAdded::parse_from_bytes(event)
                .unwrap()
                .exec_id
        }
        "/tasks/exec-started" => {
            wire::TaskExecStarted::parse_from_bytes(event)
                .unwrap()
                .exec_id
        }
        "/tasks/delete" => {
            let delete = wire::TaskDelete::parse_from_bytes(event).unwrap();
            format!("{} {}", delete.container_id, delete.exit_status)
        }
        // All others begin with the container's id.
        _ => wire::TaskOOM::parse_from_bytes(event).unwrap().container_id,
    };
    format!("{} {rest}", topic.trim_start_matches("/tasks/"))
}

impl Containerd {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let mut containerd = Self {
            dir,
            events,
            sender,
            server: None,
        };
        containerd.listen().await;
        containerd
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock.ttrpc")
    }

    /// Takes events again.
    pub(crate) async fn listen(&mut self) {
        // What a killed containerd leaves.
        let _none = std::fs::remove_file(self.socket());
        let address = format!("unix://{}", self.socket().display());
        let service = Arc::new(EventsService(self.sender.clone()));
        let mut server = Server::new()
            .bind(&address)
            .unwrap()
            .register_service(create_events(service));
        server.start().await.unwrap();
        self.server = Some(server);
    }

    /// Goes away, with all connections.
    pub(crate) async fn vanish(&mut self) {
        self.server.take().unwrap().shutdown().await.unwrap();
    }

    pub(crate) async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event comes").unwrap()
    }

    /// The next events, in order.
    pub(crate) async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.event().await, *expected);
        }
    }

    /// What a running process does not say.
    pub(crate) fn no_event(&mut self) {
        assert!(self.events.try_recv().is_err());
    }

    /// A bundle with a log fifo, as containerd makes it.
    pub(crate) fn bundle(&self, id: &str, args: &[&str], annotations: &[(&str, &str)]) -> PathBuf {
        let bundle = self.dir.path().join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        let annotations: HashMap<_, _> = annotations.iter().copied().collect();
        let config = serde_json::json!({ "process": { "args": args }, "annotations": annotations });
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        mkfifo(&bundle.join("log"));
        bundle
    }

    /// The shim's program: this one under a shim's name.
    pub(crate) fn program(&self) -> PathBuf {
        let program = self.dir.path().join("containerd-shim-fake-v2");
        if !program.exists() {
            symlink(std::env::current_exe().unwrap(), &program).unwrap();
        }
        program
    }

    /// Runs a verb of the shim in a bundle.
    pub(crate) fn verb(&self, bundle: &Path, id: &str, verb: &str, call: Call<'_>) -> Answer {
        let address = self.dir.path().join("c.sock");
        let program = self.program();
        let mut args = vec!["-namespace", "ns", "-address", address.to_str().unwrap()];
        args.extend(["-publish-binary", "/bin/false", "-id", id]);
        args.extend(call.flags);
        args.push(verb);
        let mut environment = vec![
            ("TTRPC_ADDRESS".into(), self.socket().into_os_string()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ];
        if let Some(version) = call.max_shim_version {
            environment.push(("MAX_SHIM_VERSION".into(), version.into()));
        }
        run(&program, &args, environment, bundle, call.stdin)
    }

    /// Starts a shim as containerd 1.6 does and connects to it.
    pub(crate) async fn start(&self, bundle: &Path, id: &str) -> Shim {
        let answer = self.verb(bundle, id, "start", Call::default());
        assert_eq!((answer.stderr.as_str(), answer.code), ("", 0));
        Shim::connect(bundle, &String::from_utf8(answer.stdout).unwrap()).await
    }
}

/// How a verb is called beyond what every containerd does.
#[derive(Default)]
pub(crate) struct Call<'a> {
    pub(crate) stdin: &'a [u8],
    pub(crate) max_shim_version: Option<&'a str>,
    pub(crate) flags: Vec<&'a str>,
}

/// Runs the program of a shim. Its streams are files, so that the daemon it leaves cannot hold us.
pub(crate) fn run(
    program: &Path,
    args: &[&str],
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    directory: &Path,
    stdin: &[u8],
) -> Answer {
    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    };
    let (input, stdout, stderr) = (file(stdin), file(b""), file(b""));
    let copy = |file: &File| -> OwnedFd { file.as_fd().try_clone_to_owned().unwrap() };
    let mut child = sys::Spawn::new(program)
        .args(args)
        .env_clear_set(environment)
        .cwd(directory)
        .stdin(copy(&input))
        .stdout(copy(&stdout))
        .stderr(copy(&stderr))
        .spawn()
        .unwrap();
    let code = child
        .wait_timeout(PATIENCE)
        .unwrap()
        .expect("the verb ends")
        .code();
    let read = |mut file: File| {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Answer {
        stdout: read(stdout),
        stderr: String::from_utf8(read(stderr)).unwrap(),
        code,
    }
}

impl Shim {
    pub(crate) async fn connect(bundle: &Path, address: &str) -> Self {
        let path = address.strip_prefix("unix://").unwrap();
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let client = Client::new(Socket::new(stream));
        let pid = std::fs::read_to_string(bundle.join("shim.pid")).unwrap();
        let process = sys::Child::adopt(sys::Pid::from_raw(pid.parse().unwrap()));
        Self {
            tasks: TaskClient::new(client.clone()),
            client,
            process,
        }
    }

    pub(crate) async fn create(&self, bundle: &Path, id: &str) -> ttrpc::Result<i32> {
        self.create_with(bundle, id, |_| {}).await
    }

    pub(crate) async fn create_with(
        &self,
        bundle: &Path,
        id: &str,
        change: impl FnOnce(&mut api::CreateTaskRequest),
    ) -> ttrpc::Result<i32> {
        let mut request = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_str().unwrap().to_owned(),
            ..Default::default()
        };
        change(&mut request);
        let response = self.tasks.create(context(), &request).await?;
        Ok(i32::try_from(response.pid).unwrap())
    }

    pub(crate) async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<i32> {
        let request = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let response = self.tasks.start(context(), &request).await?;
        Ok(i32::try_from(response.pid).unwrap())
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> ttrpc::Result<()> {
        let process = serde_json::json!({ "args": args }).to_string().into_bytes();
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: process,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.tasks.exec(context(), &request).await.map(drop)
    }

    pub(crate) async fn state(&self, id: &str, exec: &str) -> ttrpc::Result<api::StateResponse> {
        let request = api::StateRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks.state(context(), &request).await
    }

    /// The status as containerd names it.
    pub(crate) async fn status(&self, id: &str) -> String {
        let state = self.state(id, "").await.unwrap();
        format!("{:?}", state.status.enum_value().unwrap())
    }

    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = api::KillRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.tasks.kill(context(), &request).await.map(drop)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks
            .wait(context(), &request)
            .await
            .map(|response| response.exit_status)
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.tasks
            .delete(context(), &request)
            .await
            .map(|response| response.exit_status)
    }

    pub(crate) async fn pids(&self, id: &str) -> Vec<u32> {
        let request = api::PidsRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let response = self.tasks.pids(context(), &request).await.unwrap();
        response
            .processes
            .iter()
            .map(|process| process.pid)
            .collect()
    }

    pub(crate) async fn shut_down(&self, id: &str) {
        let request = api::ShutdownRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        // The shim may go before its answer has arrived, as Go's does.
        let _gone = self.tasks.shutdown(context(), &request).await;
    }

    /// Kills what runs, deletes it, and sees the shim end.
    pub(crate) async fn end(self, ids: &[&str]) {
        for id in ids {
            // It may have ended.
            let _ended = self.kill(id, "", 9).await;
            self.wait(id, "").await.unwrap();
            self.delete(id, "").await.unwrap();
        }
        self.shut_down("any").await;
        self.ended(0).await;
    }

    /// How many threads it has right now.
    pub(crate) fn threads(&self) -> usize {
        let path = format!("/proc/{}/task", self.process.pid());
        std::fs::read_dir(path).unwrap().count()
    }

    /// Sees its threads become so many.
    pub(crate) async fn settles_at_threads(&self, count: usize) {
        let settled = async {
            while self.threads() != count {
                // It exists or not; an answer is the next event there is.
                let _answered = self.state("any", "").await;
            }
        };
        let settled = tokio::time::timeout(PATIENCE, settled).await;
        settled.unwrap_or_else(|_elapsed| panic!("it has {} threads", self.threads()));
    }

    /// Sees the shim end with this code.
    pub(crate) async fn ended(mut self, code: i32) {
        // Beside this thread, which takes its last events.
        let ended = tokio::task::spawn_blocking(move || self.process.wait_timeout(PATIENCE));
        let status = ended.await.unwrap().unwrap();
        assert_eq!(status.expect("the shim ends").code(), code);
    }
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(PATIENCE)
}

pub(crate) fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// The message of an error a shim answered with.
pub(crate) fn message<T>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        Err(other) => panic!("no answer: {other}"),
        Ok(_) => panic!("it was done"),
    }
}
