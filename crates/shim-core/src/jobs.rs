//! The calls to a container that may take time, as futures an actor lets run beside it. Each ends
//! by its deadline; what succeeds later is undone where it can be. Decides nothing.

use std::path::PathBuf;
use std::sync::Arc;

use bundle::ExitRecord;
use stdio::{Identity, Streams};
use task::{ExecId, Notice};
use tokio::time::Instant;

use crate::blocking::{Kind, beside};
use crate::command::Reply;
use crate::exits::{Exited, Expectation};
use crate::process_io::{self, Io};
use crate::request::{Deleted, Exec, ProcessInfo};
use crate::runtime::{
    CheckpointRequest, Container, ExecRequest, Options, SignalTarget, Started, Stats, UpdateRequest,
};
use crate::shim::World;
use crate::{Code, ShimError, rootfs};

/// SIGKILL
const KILL: i32 = 9;

/// What a job leaves for its actor.
#[derive(Debug)]
pub(crate) enum Done {
    /// Nothing: the client was answered.
    Answered,
    Started {
        reply: Reply<i32>,
        result: Result<(), ShimError>,
    },
    ExecStarted {
        id: ExecId,
        reply: Reply<i32>,
        result: Result<StartedExec, ShimError>,
    },
    /// What the life cycle is told after a success, and after a failure.
    Settled {
        reply: Reply<()>,
        result: Result<(), ShimError>,
        notices: (Notice, Notice),
    },
    Checkpointed {
        path: String,
        reply: Reply<()>,
        result: Result<(), ShimError>,
    },
    /// How many OOM kills were seen.
    Oom(Result<u64, ShimError>),
    /// Init's end is on disk, and so many OOM kills came before it.
    Recorded { exited: Exited, oom: u64 },
    ExecDeleted {
        id: ExecId,
        reply: Reply<Deleted>,
        deleted: Deleted,
    },
    Deleted {
        reply: Reply<Deleted>,
        result: Result<Deleted, ShimError>,
    },
}

/// An exec that runs, whose streams are open and whose exit is kept.
#[derive(Debug)]
pub(crate) struct StartedExec {
    pub(crate) started: Started,
    pub(crate) streams: Streams,
    pub(crate) expectation: Expectation,
}

/// What a deletion takes away.
#[derive(Debug)]
pub(crate) struct Deletion {
    pub(crate) bundle: PathBuf,
    pub(crate) one_at_a_time: Arc<tokio::sync::Mutex<()>>,
    pub(crate) ios: Vec<Io>,
    pub(crate) deleted: Deleted,
}

/// Answers a client with the outcome of a call that changes no state.
pub(crate) async fn answer<T>(
    reply: Reply<T>,
    call: impl Future<Output = Result<T, ShimError>>,
) -> Done {
    // The client's own deadline ends its wait; the call itself may go on.
    reply.send(call.await);
    Done::Answered
}

pub(crate) fn start<C: Container>(
    container: &Arc<C>,
    world: &World,
    reply: Reply<i32>,
) -> impl Future<Output = Done> + Send + use<C> {
    let (call, undo) = (Arc::clone(container), Arc::clone(container));
    let (blocking, exits) = (world.blocking.clone(), world.exits.clone());
    async move {
        let start = blocking.run(Kind::Client, "start", move || call.start());
        // Its program runs by now, though the client was told that it does not.
        let undo = move |()| kill_unwanted(&undo, SignalTarget::Init);
        let result = limited("start", reply.deadline(), start, undo).await;
        exits.reap();
        Done::Started { reply, result }
    }
}

pub(crate) fn exec<C: Container>(
    container: &Arc<C>,
    world: &World,
    (exec, options): (Exec, Options),
    reply: Reply<i32>,
) -> impl Future<Output = Done> + Send + use<C> {
    let (call, undo) = (Arc::clone(container), Arc::clone(container));
    let (world, id) = (world.clone(), exec.id.clone());
    async move {
        let expectation = world.exits.expect();
        let namespace = Arc::clone(&world.namespace);
        let start = world.blocking.run(Kind::Client, "exec", move || {
            let identity = Identity {
                id: exec.id.as_str(),
                namespace: &namespace,
            };
            let (streams, io) = process_io::open(&exec.stdio, identity, &options)?;
            let id = exec.id.to_string();
            let request = ExecRequest {
                id,
                process_json: exec.process_json,
                io,
            };
            Ok((call.exec(request)?, streams))
        });
        let name = id.to_string();
        let undo = move |(started, _streams): (Started, Streams)| {
            kill_unwanted(
                &undo,
                SignalTarget::Exec {
                    id: name,
                    pid: started.pid,
                },
            );
        };
        let result = limited("exec", reply.deadline(), start, undo).await;
        world.exits.reap();
        let result = result.map(|(started, streams)| StartedExec {
            started,
            streams,
            expectation,
        });
        Done::ExecStarted { id, reply, result }
    }
}

pub(crate) fn pause<C: Container>(
    container: &Arc<C>,
    world: &World,
    reply: Reply<()>,
) -> impl Future<Output = Done> + Send + use<C> {
    let (call, undo) = (Arc::clone(container), Arc::clone(container));
    let blocking = world.blocking.clone();
    async move {
        let pause = blocking.run(Kind::Client, "pause", move || call.pause());
        let undo = move |()| {
            begin("undo pause", move || undo.resume());
        };
        let result = limited("pause", reply.deadline(), pause, undo).await;
        let notices = (Notice::Paused, Notice::PauseFailed);
        Done::Settled {
            reply,
            result,
            notices,
        }
    }
}

pub(crate) fn resume<C: Container>(
    container: &Arc<C>,
    world: &World,
    reply: Reply<()>,
) -> impl Future<Output = Done> + Send + use<C> {
    let call = Arc::clone(container);
    let blocking = world.blocking.clone();
    async move {
        let resume = blocking.run(Kind::Client, "resume", move || call.resume());
        // Nobody wants it frozen again.
        let result = limited("resume", reply.deadline(), resume, |()| {}).await;
        let notices = (Notice::Resumed, Notice::ResumeFailed);
        Done::Settled {
            reply,
            result,
            notices,
        }
    }
}

pub(crate) fn checkpoint<C: Container>(
    container: &Arc<C>,
    world: &World,
    request: CheckpointRequest,
    reply: Reply<()>,
) -> impl Future<Output = Done> + Send + use<C> {
    let call = Arc::clone(container);
    let blocking = world.blocking.clone();
    async move {
        let path = request.images.to_string_lossy().into_owned();
        let checkpoint = move || call.checkpoint(&request);
        let checkpoint = blocking.run(Kind::Client, "checkpoint", checkpoint);
        let result = checkpoint.await;
        Done::Checkpointed {
            path,
            reply,
            result,
        }
    }
}

/// Gets through at once, whatever else hangs.
pub(crate) fn kill<C: Container>(
    container: &Arc<C>,
    world: &World,
    target: SignalTarget,
    signal: i32,
) -> impl Future<Output = Result<(), ShimError>> + Send + use<C> {
    let container = Arc::clone(container);
    let signal = move || container.signal(target, signal);
    world.blocking.run(Kind::Urgent, "kill", signal)
}

pub(crate) fn update<C: Container>(
    container: &Arc<C>,
    world: &World,
    request: UpdateRequest,
) -> impl Future<Output = Result<(), ShimError>> + Send + use<C> {
    let container = Arc::clone(container);
    let update = move || container.update(&request);
    world.blocking.run(Kind::Client, "update", update)
}

pub(crate) fn stats<C: Container>(
    container: &Arc<C>,
    world: &World,
) -> impl Future<Output = Result<Stats, ShimError>> + Send + use<C> {
    let container = Arc::clone(container);
    world
        .blocking
        .run(Kind::Client, "stats", move || container.stats())
}

/// The container's pids; the last known init when there are none: containerd 2.x deletes a shim
/// that answers none, and with it the exit status of a stopped task.
pub(crate) fn pids<C: Container>(
    container: &Arc<C>,
    world: &World,
    known: Vec<ProcessInfo>,
) -> impl Future<Output = Result<Vec<ProcessInfo>, ShimError>> + Send + use<C> {
    let container = Arc::clone(container);
    let pids = world
        .blocking
        .run(Kind::Client, "pids", move || container.pids());
    async move {
        let pids = match pids.await {
            Ok(pids) if !pids.is_empty() => pids,
            Ok(_) => return Ok(known.into_iter().take(1).collect()),
            Err(error) => {
                tracing::debug!(%error, "pids are answered with the last known init");
                return Ok(known.into_iter().take(1).collect());
            }
        };
        let exec_of = |pid| {
            known
                .iter()
                .find(|k| k.pid == pid)
                .and_then(|k| k.exec_id.clone())
        };
        let infos = pids.into_iter().map(|pid| ProcessInfo {
            pid,
            exec_id: exec_of(pid),
        });
        Ok(infos.collect())
    }
}

pub(crate) fn oom<C: Container>(
    container: &Arc<C>,
    world: &World,
) -> impl Future<Output = Done> + Send + use<C> {
    let container = Arc::clone(container);
    let oom = world
        .blocking
        .run(Kind::Own, "oom", move || container.take_oom());
    async move { Done::Oom(oom.await) }
}

/// Init has ended: what else runs is killed.
pub(crate) fn stop_rest<C: Container>(
    container: &Arc<C>,
    world: &World,
) -> impl Future<Output = Done> + Send + use<C> {
    let container = Arc::clone(container);
    let stop = move || container.init_exited();
    let stop = world.blocking.run(Kind::Own, "init exited", stop);
    async move {
        if let Err(error) = stop.await {
            tracing::warn!(%error, "processes outlived their container's init");
        }
        Done::Answered
    }
}

/// Writes init's end down before anybody is told.
pub(crate) fn record<C: Container>(
    container: &Arc<C>,
    world: &World,
    bundle: PathBuf,
    exited: Exited,
) -> impl Future<Output = Done> + Send + use<C> {
    let container = Arc::clone(container);
    let record = ExitRecord {
        pid: exited.pid,
        code: exited.exit.code,
        exited_at_ns: crate::time::nanoseconds(exited.exit.at),
    };
    let recorded = world.blocking.run(Kind::Own, "record exit", move || {
        // A cgroup that is gone has told all it knew.
        let oom = container.take_oom().unwrap_or(0);
        let written = record.write(&bundle);
        Ok((
            oom,
            written.map_err(|e| ShimError::caused(Code::Internal, &e)),
        ))
    });
    async move {
        let (oom, written) = recorded.await.unwrap_or_else(|e| (0, Err(e)));
        if let Err(error) = written {
            tracing::error!(%error, "an exit status will not outlive the shim");
        }
        Done::Recorded { exited, oom }
    }
}

pub(crate) async fn delete_exec(
    id: ExecId,
    ios: Vec<Io>,
    deleted: Deleted,
    reply: Reply<Deleted>,
) -> Done {
    finish(ios).await;
    Done::ExecDeleted { id, reply, deleted }
}

pub(crate) fn delete<C: Container>(
    container: &Arc<C>,
    world: &World,
    deletion: Deletion,
    reply: Reply<Deleted>,
) -> impl Future<Output = Done> + Send + use<C> {
    let container = Arc::clone(container);
    let blocking = world.blocking.clone();
    async move {
        let Deletion {
            bundle,
            one_at_a_time,
            ios,
            deleted,
        } = deletion;
        // A container that never ran has written nothing, and its init still holds the streams.
        let drain_first = deleted.exit.is_some();
        let mut ios = Some(ios);
        if drain_first {
            finish(ios.take().unwrap_or_default()).await;
        }
        // An earlier deletion that hangs would hold up this one as well.
        let Ok(only) = one_at_a_time.try_lock_owned() else {
            finish(ios.unwrap_or_default()).await;
            let result = Err(ShimError::new(
                Code::Unavailable,
                "delete: an earlier deletion of this container hangs",
            ));
            return Done::Deleted { reply, result };
        };
        let delete = blocking.run(Kind::Own, "delete", move || {
            let _only = only;
            container.delete()?;
            rootfs::unmount(&bundle)
        });
        // What was deleted late is not missed.
        let result = limited("delete", reply.deadline(), delete, |()| {}).await;
        finish(ios.unwrap_or_default()).await;
        Done::Deleted {
            reply,
            result: result.map(|()| deleted),
        }
    }
}

async fn finish(ios: Vec<Io>) {
    let mut finishing = tokio::task::JoinSet::new();
    for io in ios {
        finishing.spawn(io.finish());
    }
    finishing.join_all().await;
}

/// Kills an exec that nobody wants any more; its exit is reaped and not claimed.
pub(crate) fn kill_unwanted_exec<C: Container>(container: &Arc<C>, id: String, pid: i32) {
    kill_unwanted(container, SignalTarget::Exec { id, pid });
}

fn kill_unwanted<C: Container>(container: &Arc<C>, target: SignalTarget) {
    let container = Arc::clone(container);
    begin("kill unwanted", move || {
        match container.signal(target, KILL) {
            Err(error) if error.kind != Code::NotFound => Err(error),
            _ => Ok(()),
        }
    });
}

/// Begins a call that undoes what nobody wants any more. Nobody waits for it; a failure is told to
/// the log.
fn begin(name: &'static str, call: impl FnOnce() -> Result<(), ShimError> + Send + 'static) {
    let call = move || {
        if let Err(error) = call() {
            tracing::warn!(%error, name, "what nobody wants was not undone");
        }
    };
    if let Err(error) = beside(name, call) {
        tracing::warn!(%error, "what nobody wants was not undone");
    }
}

/// Waits for a call until the deadline; a success that comes later is undone.
async fn limited<T: Send + 'static>(
    name: &str,
    deadline: Option<Instant>,
    call: impl Future<Output = Result<T, ShimError>> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> Result<T, ShimError> {
    let mut call = Box::pin(call);
    let Some(deadline) = deadline else {
        return call.await;
    };
    if let Ok(result) = tokio::time::timeout_at(deadline, &mut call).await {
        return result;
    }
    tokio::spawn(async move {
        if let Ok(late) = call.await {
            undo(late);
        }
    });
    Err(ShimError::new(
        Code::DeadlineExceeded,
        format!("{name} took too long"),
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_succeeds_too_late_is_undone() {
        let (finish, finished) = oneshot::channel();
        let (undone, mut undo) = oneshot::channel();
        let call = async {
            finished
                .await
                .map_err(|_gone| ShimError::new(Code::Internal, "gone"))
        };
        let deadline = Some(Instant::now() + Duration::from_secs(5));
        let result = limited("call", deadline, call, |late: u32| {
            undone.send(late).expect("awaited");
        })
        .await;
        assert_eq!(result.unwrap_err().kind, Code::DeadlineExceeded);
        assert!(undo.try_recv().is_err());
        finish.send(7).unwrap();
        assert_eq!(undo.await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_late_needs_no_undoing() {
        let call = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Err::<(), _>(ShimError::new(Code::Internal, "no"))
        };
        let deadline = Some(Instant::now() + Duration::from_secs(5));
        let undo = |()| panic!("nothing was done");
        let result = limited("call", deadline, call, undo).await;
        assert_eq!(result.unwrap_err().message, "call took too long");
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
}
