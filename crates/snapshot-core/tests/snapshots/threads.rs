//! Requests that wait for somebody else hold none of the threads that may block.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use proto::snapshots::{self as wire, snapshots_server::Snapshots as _};
use snapshot_core::{Limits, Service, Snapshots, Threads};
use tokio::runtime::Builder;
use tonic::{Code, Request, codegen::tokio_stream::StreamExt as _};

use crate::{
    driver::{Step, TestDriver},
    root::{self, key, labels},
};

/// Threads that may block, of which the step that a test holds takes one.
const THREADS: usize = 4;

/// Requests of which each would take one.
const WAITING: usize = 2 * THREADS;

struct Host {
    _folder: tempfile::TempDir,
    driver: Arc<TestDriver>,
    snapshots: Arc<Snapshots>,
    service: Service,
}

impl Host {
    fn new() -> Arc<Self> {
        Self::with(root::threads(THREADS))
    }

    fn with(threads: Threads) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let driver = TestDriver::new();
        let opened = Snapshots::open(&folder.path().join("root"), Arc::clone(&driver) as _);
        let snapshots = Arc::new(opened.unwrap());
        for name in ["a", "b"] {
            snapshots.prepare(&key(name), None, labels(&[])).unwrap();
        }
        Arc::new(Self {
            _folder: folder,
            driver,
            service: Service::new(Arc::clone(&snapshots), threads),
            snapshots,
        })
    }

    /// Lets all that was asked go as far as it can, and asks for something else.
    async fn serves_others(self: &Arc<Self>) {
        for _ in 0..WAITING {
            tokio::task::yield_now().await;
        }
        assert_eq!(in_time(Arc::clone(self).mounts("b")).await, Code::Ok);
    }

    async fn wait_for(&self, step: Step) {
        while !self.driver.waits_in(step) {
            tokio::task::yield_now().await;
        }
    }

    async fn stat(&self, name: &str) -> Code {
        let request = wire::StatSnapshotRequest {
            key: name.to_owned(),
            ..wire::StatSnapshotRequest::default()
        };
        let answer = self.service.stat(Request::new(request)).await;
        answer.err().map_or(Code::Ok, |status| status.code())
    }

    async fn mounts(self: Arc<Self>, name: &str) -> Code {
        let request = wire::MountsRequest {
            key: name.to_owned(),
            ..wire::MountsRequest::default()
        };
        let answer = self.service.mounts(Request::new(request)).await;
        answer.err().map_or(Code::Ok, |status| status.code())
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future).await.expect("answered")
}

/// Runs it. A test that fails leaves no thread waiting.
fn run(host: &Host, test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test)));
    host.driver.let_go(Step::Commit);
    host.driver.let_go(Step::Mounts);
    host.driver.let_go(Step::Release);
    runtime.shutdown_background();
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

#[test]
fn requests_that_wait_for_a_name_hold_no_thread() {
    let host = Host::new();
    run(&host, async {
        host.driver.hold(Step::Commit);
        let service = host.service.clone();
        let commit = tokio::spawn(async move {
            let request = wire::CommitSnapshotRequest {
                name: "layer".to_owned(),
                key: "a".to_owned(),
                ..wire::CommitSnapshotRequest::default()
            };
            service.commit(Request::new(request)).await
        });
        in_time(host.wait_for(Step::Commit)).await;
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| tokio::spawn(Arc::clone(&host).mounts("a")))
            .collect();
        host.serves_others().await;
        host.driver.let_go(Step::Commit);
        in_time(commit).await.unwrap().unwrap();
        for one in waiting {
            assert_eq!(in_time(one).await.unwrap(), Code::NotFound);
        }
    });
}

#[test]
fn lists_that_nobody_reads_hold_no_thread_and_are_read_to_their_end_later() {
    let host = Host::new();
    // Two fill a message.
    let large: Vec<_> = (0..250)
        .map(|number| (format!("label{number}"), "v".repeat(4000)))
        .collect();
    for number in 0..12 {
        let (key, labels) = (key(&number.to_string()), large.iter().cloned());
        host.snapshots
            .prepare(&key, None, labels.collect())
            .unwrap();
    }
    run(&host, async {
        let mut lists = Vec::new();
        for _ in 0..WAITING {
            let request = Request::new(wire::ListSnapshotsRequest::default());
            lists.push(host.service.list(request).await.unwrap().into_inner());
        }
        host.serves_others().await;
        for list in lists {
            let messages: Vec<_> = in_time(list.collect()).await;
            let listed = messages
                .into_iter()
                .flat_map(|message| message.unwrap().info);
            assert_eq!(listed.count(), 14);
        }
    });
}

#[test]
fn a_call_that_hangs_is_answered_and_holds_up_nobody_for_long() {
    let wait = Duration::from_millis(20);
    let limits = Limits {
        wait,
        run: 3 * wait,
    };
    let host = Host::with(Threads::new(1, limits));
    run(&host, async {
        host.driver.hold(Step::Mounts);
        let hung = tokio::spawn(Arc::clone(&host).mounts("a"));
        in_time(host.wait_for(Step::Mounts)).await;
        let same = tokio::spawn(Arc::clone(&host).mounts("a"));
        assert_eq!(in_time(hung).await.unwrap(), Code::DeadlineExceeded);
        assert_eq!(in_time(same).await.unwrap(), Code::Unavailable);
        // The only thread is given to others, though the call still has one.
        in_time(async { while host.stat("b").await != Code::Ok {} }).await;
        host.driver.let_go(Step::Mounts);
        in_time(async { while Arc::clone(&host).mounts("a").await != Code::Ok {} }).await;
    });
}

#[test]
fn a_list_that_is_read_slowly_ends_in_time() {
    let short = Duration::from_millis(20);
    let limits = Limits {
        wait: short,
        run: short,
    };
    let host = Host::with(Threads::new(THREADS, limits));
    for number in 0..500 {
        let key = key(&number.to_string());
        host.snapshots.prepare(&key, None, labels(&[])).unwrap();
    }
    run(&host, async {
        let request = Request::new(wire::ListSnapshotsRequest::default());
        let list = host.service.list(request).await.unwrap().into_inner();
        // More than fits into the channel; the other timer runs out first.
        tokio::time::timeout(2 * short, std::future::pending::<()>())
            .await
            .unwrap_err();
        let messages: Vec<_> = in_time(list.collect()).await;
        let end = messages.last().unwrap().as_ref().unwrap_err();
        assert_eq!(end.code(), Code::DeadlineExceeded);
    });
}

#[test]
fn cleanups_hold_no_thread_of_others_and_few_of_their_own() {
    let host = Host::with(root::threads(1));
    run(&host, async {
        host.driver.hold(Step::Release);
        host.snapshots.remove(&key("a")).unwrap();
        let cleanups: Vec<_> = (0..WAITING)
            .map(|_| {
                let service = host.service.clone();
                let request = Request::new(wire::CleanupRequest::default());
                tokio::spawn(async move { service.cleanup(request).await })
            })
            .collect();
        host.serves_others().await;
        // Those who leave make no room for others.
        for cleanup in &cleanups {
            cleanup.abort();
        }
        let service = host.service.clone();
        let request = Request::new(wire::CleanupRequest::default());
        let last = tokio::spawn(async move { service.cleanup(request).await });
        host.serves_others().await;
        host.driver.let_go(Step::Release);
        in_time(last).await.unwrap().unwrap();
    });
}
