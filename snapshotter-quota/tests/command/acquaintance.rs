//! What `doctor` says of a containerd that asks somebody else.

use std::{
    collections::BTreeMap,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
};

use proto::introspection::{
    Plugin, PluginsRequest, PluginsResponse,
    introspection_server::{Introspection, IntrospectionServer},
};
use tokio::{net::UnixListener, runtime::Builder, sync::oneshot};
use tonic::{
    Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream, transport::Server,
};

use crate::{WARN, process::Daemon};

/// What a containerd has registered.
#[derive(Clone, Default)]
struct Registered(Arc<Mutex<Vec<Plugin>>>);

#[tonic::async_trait]
impl Introspection for Registered {
    async fn plugins(
        &self,
        request: Request<PluginsRequest>,
    ) -> Result<Response<PluginsResponse>, Status> {
        let filters = request.into_inner().filters;
        assert_eq!(filters, ["type==io.containerd.snapshotter.v1"]);
        let plugins = self.0.lock().unwrap().clone();
        Ok(Response::new(PluginsResponse { plugins }))
    }
}

/// A containerd of which only that can be asked.
struct Containerd {
    folder: tempfile::TempDir,
    registered: Registered,
    /// Ends it, and has ended.
    end: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some((end, server)) = self.end.take() {
            drop(end);
            // A server that panicked has failed the test already.
            let _ended = server.join();
        }
    }
}

impl Containerd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registered = Registered::default();
        let service = IntrospectionServer::new(registered.clone());
        let socket = folder.path().join("c.sock");
        let (listens, is_listening) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let server = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = UnixListener::bind(socket).unwrap();
                listens.send(()).unwrap();
                let (sender, connections) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    while let Ok((connection, _)) = listener.accept().await {
                        let given = sender.send(Ok::<_, std::io::Error>(connection));
                        if given.await.is_err() {
                            return;
                        }
                    }
                });
                let incoming = ReceiverStream::new(connections);
                let served = Server::builder().serve_with_incoming(service, incoming);
                tokio::select! {
                    served = served => served.unwrap(),
                    _ = ended => {}
                }
            });
        });
        is_listening.recv().unwrap();
        Self {
            folder,
            registered,
            end: Some((end, server)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn register(&self, id: &str, address: Option<&Path>) {
        let exports = address.map(|path| ("address".to_owned(), path.display().to_string()));
        let plugin = Plugin {
            r#type: "io.containerd.snapshotter.v1".to_owned(),
            id: id.to_owned(),
            exports: exports.into_iter().collect::<BTreeMap<_, _>>(),
        };
        *self.registered.0.lock().unwrap() = vec![plugin];
    }
}

#[test]
fn doctor_says_whom_containerd_asks_instead() {
    let containerd = Containerd::start();
    let socket = containerd.path("c.sock");
    let config = format!("containerd = {socket:?}\n{WARN}");
    let (ours, other) = (Daemon::start(&config), Daemon::start(WARN));
    let own = ours.directory().join("d.sock");
    let check = |expected: &[&str]| {
        let told = ours.run(&["doctor"]);
        let is_ill = !expected[0].contains("has this snapshotter");
        assert_eq!(told.code, i32::from(is_ill), "{told:?}");
        let mut lines = told.stdout.lines();
        let line = lines.find(|line| line.contains("containerd at")).unwrap();
        for words in expected {
            assert!(line.contains(words), "{line}");
        }
    };
    check(&["does not know this snapshotter", "config containerd"]);
    containerd.register("quota", None);
    check(&["a snapshotter of its own named \"quota\"", "another `name`"]);

    let link = containerd.path("link.sock");
    symlink(&own, &link).unwrap();
    for same in [&own, &link] {
        containerd.register("quota", Some(same));
        check(&["has this snapshotter"]);
    }

    let advice = format!("set `address = {own:?}` under [proxy_plugins.quota]");
    let others = other.directory().join("d.sock");
    containerd.register("quota", Some(&others));
    let process = format!("process {}", other.pid());
    let below = format!("snapshots below {}", other.root().display());
    let at = format!("at the socket {}", others.display());
    check(&[&at, "another daemon's", &process, &below, &advice]);

    containerd.register("quota", Some(&socket));
    check(&["that of another program", &advice]);
    let nowhere = containerd.path("nobody.sock");
    containerd.register("quota", Some(&nowhere));
    check(&["answers nobody", "No such file", &advice]);
}
