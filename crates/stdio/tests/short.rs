//! Real processes that end at once: nothing of what they wrote is lost.

#![cfg(test)]

mod scene;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use scene::{Scene, client_reads, drain, null, open, pipes, uri, within};
use stdio::{Drained, Ends, Mode, Owner};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

const PROCESSES: usize = 2000;
const AT_ONCE: usize = 8;

#[tokio::test]
async fn nothing_is_lost_of_two_thousand_short_processes() {
    let scene = Arc::new(Scene::new());
    let mut running = JoinSet::new();
    for number in 0..PROCESSES {
        if running.len() == AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(within(run(Arc::clone(&scene), number)));
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// Every second process has a client from the start; the others are read when all is over, before
/// their streams are closed.
async fn run(scene: Arc<Scene>, number: usize) {
    let fifo = |stream| scene.fifo(&format!("{number}-{stream}"));
    let (out, err) = (fifo("out"), fifo("err"));
    let uris = [&null(), &uri(&out), &uri(&err)];
    let (streams, ends) = open(uris, Mode::Pipes(Owner::default())).unwrap();
    let client = number.is_multiple_of(2).then(|| client_reads(&out));
    let child = spawn(number, ends);
    let copier = streams.copy(None).unwrap();
    wait(child).await;
    assert_eq!(drain(&copier).await, Drained::All);
    // These may not have opened a thing when all is closed.
    let late = client_reads(&err);
    let client = client.unwrap_or_else(|| client_reads(&out));
    assert_eq!(
        copier.opened(Instant::now() + scene::LIMIT).await,
        Drained::All
    );
    copier.close(std::time::Duration::ZERO).await;
    assert_eq!(
        late.await.unwrap(),
        format!("error {number}\n").into_bytes()
    );
    assert_eq!(
        client.await.unwrap(),
        format!("output {number}\n").into_bytes()
    );
}

fn spawn(number: usize, ends: Ends) -> sys::Child {
    let [stdin, stdout, stderr] = pipes(ends);
    sys::Spawn::new(Path::new("/bin/sh"))
        .args([
            "-c",
            "echo output $0; echo error $0 >&2",
            &number.to_string(),
        ])
        .stdin(stdin.as_fd())
        .stdout(stdout.as_fd())
        .stderr(stderr.as_fd())
        .spawn()
        .unwrap()
}

async fn wait(mut child: sys::Child) {
    let status = spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), 0);
}
