//! Descriptors are given back. The only test of its process, whose descriptors it counts.

#![cfg(test)]

mod scene;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use scene::{Scene, drain, null, open, process, uri, within};
use stdio::{Drained, Mode, Readiness, Uri};
use sys::pty::Pty;

const ROUNDS: usize = 100;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn descriptors_stay_as_many_as_they_were() {
    // The first use of the runtime's threads and of the pid table opens what stays.
    round(Client::Reads).await;
    let before = descriptors();
    for _ in 0..ROUNDS {
        for client in [Client::Reads, Client::Never, Client::Leaves] {
            round(client).await;
        }
        logged().await;
        refused();
    }
    assert_eq!(descriptors(), before);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Reads,
    Leaves,
    Never,
}

async fn round(client: Client) {
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let log = Uri::File(scene.path("log"));
    let mut piped = process([&uri(&input), &uri(&out), &log]);
    let mut reader = (client != Client::Never).then(|| File::open(&out).unwrap());
    piped.stdout.write_all(b"hello\n").unwrap();
    piped.stderr.write_all(b"hello\n").unwrap();
    if client == Client::Leaves {
        reader = None;
    }
    let copier = piped.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    copier.close_stdin();
    within(copier.close(Duration::ZERO)).await;
    drop(reader);

    let out = scene.fifo("terminal");
    let (streams, _ends) = open([&uri(&input), &uri(&out), &null()], Mode::Terminal).unwrap();
    let pty = Pty::open("/dev/ptmx".as_ref()).unwrap();
    let copier = streams.copy(Some(pty.master)).unwrap();
    File::from(pty.slave).write_all(b"hello\n").unwrap();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    match client {
        Client::Reads => within(copier.close(Duration::ZERO)).await,
        // The tasks end when they are next scheduled.
        _ => drop(copier),
    }
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

async fn logged() {
    let logger = Uri::Binary {
        path: "/bin/cat".into(),
        args: [OsString::from("/dev/fd/3")].into(),
        readiness: Readiness::Close,
    };
    // A cat does not know of descriptor 5: it is ready when it has ended, so it must have no input.
    let process = process([&null(), &null(), &logger]);
    within(process.exit().close(scene::LIMIT)).await;
}

fn refused() {
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let missing = uri(scene.path("missing"));
    let uris = [&uri(&input), &uri(&out), &missing];
    open(uris, Mode::Pipes(stdio::Owner::default())).unwrap_err();
}
