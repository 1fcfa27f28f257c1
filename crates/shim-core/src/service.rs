//! The Task API: takes requests off the wire, asks the container's actor, puts answers on it.
//! Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::{Task, create_task};
use task::{ProcessName, Scope};
use ttrpc::asynchronous::{Service as WireService, TtrpcContext};

use crate::command::{Command, ContainerCommand, HOOKS, Reply, ask};
use crate::convert::api::{self as convert, pid_to_wire, process_name};
use crate::convert::{checkpoint, metrics};
use crate::runtime::Runtime;
use crate::shim::Shim;
use crate::status::to_wire;
use crate::{Code, ShimError};

/// Answers that need no more than the actor's own knowledge.
const QUICK: Duration = Duration::from_secs(10);
/// Calls that the kernel may take its time for.
const SLOW: Duration = Duration::from_secs(60);
/// Memory is written to a disk; the rest of [`HOOKS`] is for the answer.
const CHECKPOINT: Duration = Duration::from_secs(290);

/// The task service of one shim.
#[derive(Debug)]
pub(crate) struct Service<R: Runtime> {
    shim: Arc<Shim<R>>,
}

/// The service under both of its names: the messages of version 2 and 3 are the same.
pub(crate) fn services<R: Runtime>(
    shim: Arc<Shim<R>>,
) -> std::collections::HashMap<String, WireService> {
    let service = Arc::new(Service { shim });
    let version_2 = create_task(service.clone()).into_values();
    let mut services = create_task(service);
    services.extend(version_2.map(|s| ("containerd.task.v2.Task".to_owned(), s)));
    services
}

impl<R: Runtime> Service<R> {
    async fn ask<T>(
        &self,
        id: &str,
        limit: Duration,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> ttrpc::Result<T> {
        let mailbox = self.shim.find(id).map_err(to_wire)?;
        ask(&mailbox, Some(limit), command).await.map_err(to_wire)
    }
}

#[async_trait]
impl<R: Runtime> Task for Service<R> {
    async fn create(
        &self,
        _context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        tracing::debug!(id = request.id, bundle = request.bundle, "create");
        let create = convert::create(request).map_err(to_wire)?;
        let pid = self.shim.create(create, HOOKS).await.map_err(to_wire)?;
        Ok(api::CreateTaskResponse {
            pid: pid_to_wire(pid),
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        tracing::debug!(id = request.id, exec = request.exec_id, "start");
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        let limit = if process == ProcessName::Init {
            HOOKS
        } else {
            SLOW
        };
        let pid = self
            .ask(&request.id, limit, |reply| Command::Start {
                process,
                reply,
            })
            .await?;
        Ok(api::StartResponse {
            pid: pid_to_wire(pid),
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        let state = self
            .ask(&request.id, QUICK, |reply| Command::State {
                process,
                reply,
            })
            .await?;
        Ok(convert::state(state))
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        tracing::debug!(id = request.id, exec = request.exec_id, "exec");
        let id = request.id.clone();
        let exec = convert::exec(request).map_err(to_wire)?;
        self.ask(&id, QUICK, |reply| Command::Exec { exec, reply })
            .await?;
        Ok(Empty::new())
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        tracing::debug!(id = request.id, exec = request.exec_id, "delete");
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        let deleted = self
            .ask(&request.id, SLOW, |reply| Command::Delete {
                process,
                reply,
            })
            .await?;
        Ok(convert::delete_response(deleted))
    }

    async fn kill(
        &self,
        _context: &TtrpcContext,
        request: api::KillRequest,
    ) -> ttrpc::Result<Empty> {
        let (id, exec, signal) = (&request.id, &request.exec_id, request.signal);
        tracing::debug!(id, exec, signal, all = request.all, "kill");
        let signal = i32::try_from(signal).map_err(|_too_big| {
            let message = format!("signal {signal} is no signal");
            to_wire(ShimError::new(Code::InvalidArgument, message))
        })?;
        let scope = if request.all {
            Scope::All
        } else {
            Scope::Process
        };
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        self.ask(&request.id, QUICK, |reply| Command::Kill {
            process,
            signal,
            scope,
            reply,
        })
        .await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        let mailbox = self.shim.find(&request.id).map_err(to_wire)?;
        let wait = ask(&mailbox, None, |reply| Command::Wait { process, reply });
        Ok(convert::wait_response(wait.await.map_err(to_wire)?))
    }

    async fn pause(
        &self,
        _context: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<Empty> {
        self.ask(&request.id, SLOW, |reply| Command::Pause { reply })
            .await?;
        Ok(Empty::new())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<Empty> {
        self.ask(&request.id, SLOW, |reply| Command::Resume { reply })
            .await?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        tracing::debug!(id, path = request.path, "checkpoint");
        let request = checkpoint::request(request, CHECKPOINT).map_err(to_wire)?;
        let checkpoint =
            |reply| Command::Container(ContainerCommand::Checkpoint { request, reply });
        self.ask(&id, HOOKS, checkpoint).await?;
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _context: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        let request = convert::update(request).map_err(to_wire)?;
        let update = |reply| Command::Container(ContainerCommand::Update { request, reply });
        self.ask(&id, SLOW, update).await?;
        Ok(Empty::new())
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let pids = self
            .ask(&request.id, QUICK, |reply| {
                Command::Container(ContainerCommand::Pids { reply })
            })
            .await?;
        Ok(convert::pids_response(pids))
    }

    async fn stats(
        &self,
        _context: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = self
            .ask(&request.id, QUICK, |reply| {
                Command::Container(ContainerCommand::Stats { reply })
            })
            .await?;
        Ok(metrics::stats_response(&stats))
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let (rows, columns) = (cells(request.height), cells(request.width));
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        let resize = |reply| Command::Resize {
            process,
            rows,
            columns,
            reply,
        };
        self.ask(&request.id, QUICK, resize).await?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let process = process_name(&request.exec_id).map_err(to_wire)?;
        self.ask(&request.id, QUICK, |reply| Command::CloseStdin {
            process,
            reply,
        })
        .await?;
        Ok(Empty::new())
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        // A shim without the container still is a shim.
        let task = self
            .ask(&request.id, QUICK, |reply| Command::State {
                process: ProcessName::Init,
                reply,
            })
            .await;
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.map_or(0, |state| pid_to_wire(state.pid)),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _context: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        tracing::debug!(id = request.id, now = request.now, "shutdown");
        self.shim.shut_down_if_idle();
        Ok(Empty::new())
    }
}
