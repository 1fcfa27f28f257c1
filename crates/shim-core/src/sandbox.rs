//! containerd's sandbox service (2.x, `sandboxer = "shim"`): a pod without a sandbox container. The sandbox is a container
//! all the same, one that its runtime has written the config.json of, so its life is that of every container; this puts
//! the one into words of the other and decides nothing.
//!
//! ```text
//!   CreateSandbox ──> Runtime::sandbox ──> create       StopSandbox ────> kill, wait
//!   StartSandbox ───> start                             ShutdownSandbox ─> the same, delete, and the shim ends
//!   WaitSandbox ────> wait                              SandboxStatus ──> state
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api as wire;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use task::{Exit, ProcessName, Scope, Status};
use ttrpc::asynchronous::{Service as WireService, TtrpcContext};

use crate::command::{Command, ContainerCommand, HOOKS, Reply, ask};
use crate::convert::api::pid_to_wire;
use crate::convert::{metrics, pod, timestamp};
use crate::runtime::Runtime;
use crate::shim::Shim;
use crate::status::to_wire;
use crate::{Code, ShimError};

/// Answers that need no more than what is known.
const QUICK: Duration = Duration::from_secs(10);
/// Removing; as long as that of containers.
const SLOW: Duration = Duration::from_secs(60);
/// A sandbox that is killed is gone in this time, also one that does not hear it and is ended by its runtime.
const STOP: Duration = Duration::from_secs(60);

/// SIGKILL
const KILL: i32 = 9;

/// What CRI calls the two states that it knows.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The sandbox service of one shim.
#[derive(Debug)]
struct Service<R: Runtime> {
    shim: Arc<Shim<R>>,
    /// When the sandbox was started; a shim has one.
    started: Mutex<Option<SystemTime>>,
}

/// The service under its name.
pub(crate) fn services<R: Runtime>(
    shim: Arc<Shim<R>>,
) -> std::collections::HashMap<String, WireService> {
    create_sandbox(Arc::new(Service {
        shim,
        started: Mutex::default(),
    }))
}

impl<R: Runtime> Service<R> {
    async fn ask<T>(
        &self,
        id: &str,
        limit: Option<Duration>,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, ShimError> {
        ask(&self.shim.find(id)?, limit, command).await
    }

    async fn wait(&self, id: &str, limit: Option<Duration>) -> Result<Exit, ShimError> {
        let process = ProcessName::Init;
        self.ask(id, limit, |reply| Command::Wait { process, reply })
            .await
    }

    /// Kills it and waits for its end: the limit is for both, as a kill that is not heard takes its time.
    async fn stop(&self, id: &str, limit: Duration) -> Result<(), ShimError> {
        let deadline = Instant::now() + limit;
        let kill = |reply| Command::Kill {
            process: ProcessName::Init,
            signal: KILL,
            scope: Scope::Process,
            reply,
        };
        match self.ask(id, Some(limit), kill).await {
            // It has ended.
            Err(error) if error.kind == Code::NotFound => {}
            other => other?,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.wait(id, Some(left)).await.map(drop)
    }

    fn started(&self) -> std::sync::MutexGuard<'_, Option<SystemTime>> {
        // No code panics while it holds the lock.
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that is not there any more has ended as it should.
fn unless_gone(result: Result<(), ShimError>) -> ttrpc::Result<()> {
    match result {
        Err(error) if error.kind == Code::NotFound => Ok(()),
        other => other.map_err(to_wire),
    }
}

#[async_trait]
impl<R: Runtime> Sandbox for Service<R> {
    async fn create_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::CreateSandboxRequest,
    ) -> ttrpc::Result<wire::CreateSandboxResponse> {
        tracing::debug!(id = request.sandbox_id, "create sandbox");
        let request = pod::request(self.shim.namespace(), request).map_err(to_wire)?;
        let created = self.shim.create_sandbox(request, HOOKS).await;
        created.map_err(to_wire)?;
        Ok(wire::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::StartSandboxRequest,
    ) -> ttrpc::Result<wire::StartSandboxResponse> {
        tracing::debug!(id = request.sandbox_id, "start sandbox");
        let process = ProcessName::Init;
        let start = |reply| Command::Start { process, reply };
        let pid = self.ask(&request.sandbox_id, Some(HOOKS), start).await;
        let pid = pid.map_err(to_wire)?;
        let now = SystemTime::now();
        *self.started() = Some(now);
        Ok(wire::StartSandboxResponse {
            pid: pid_to_wire(pid),
            created_at: timestamp(now),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _context: &TtrpcContext,
        _request: wire::PlatformRequest,
    ) -> ttrpc::Result<wire::PlatformResponse> {
        let mut response = wire::PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        "linux".clone_into(&mut platform.os);
        // As Go names them.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::StopSandboxRequest,
    ) -> ttrpc::Result<wire::StopSandboxResponse> {
        let (id, seconds) = (&request.sandbox_id, request.timeout_secs);
        tracing::debug!(id, seconds, "stop sandbox");
        let limit = match seconds {
            0 => STOP,
            seconds => Duration::from_secs(seconds.into()),
        };
        unless_gone(self.stop(id, limit).await)?;
        Ok(wire::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::WaitSandboxRequest,
    ) -> ttrpc::Result<wire::WaitSandboxResponse> {
        let exit = self.wait(&request.sandbox_id, None).await;
        let exit = exit.map_err(to_wire)?;
        Ok(wire::WaitSandboxResponse {
            exit_status: exit.code,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _context: &TtrpcContext,
        request: wire::SandboxStatusRequest,
    ) -> ttrpc::Result<wire::SandboxStatusResponse> {
        let id = request.sandbox_id;
        let process = ProcessName::Init;
        let state = |reply| Command::State { process, reply };
        let state = self.ask(&id, Some(QUICK), state).await.map_err(to_wire)?;
        let word = match state.status {
            Status::Running | Status::Pausing | Status::Paused => READY,
            Status::Created | Status::Stopped => NOT_READY,
        };
        let started = *self.started();
        Ok(wire::SandboxStatusResponse {
            sandbox_id: id,
            pid: pid_to_wire(state.pid),
            state: word.to_owned(),
            created_at: started.map_or_else(MessageField::none, timestamp),
            exited_at: state
                .exit
                .map_or_else(MessageField::none, |exit| timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::PingRequest,
    ) -> ttrpc::Result<wire::PingResponse> {
        self.shim.find(&request.sandbox_id).map_err(to_wire)?;
        Ok(wire::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _context: &TtrpcContext,
        request: wire::ShutdownSandboxRequest,
    ) -> ttrpc::Result<wire::ShutdownSandboxResponse> {
        let id = &request.sandbox_id;
        tracing::debug!(id, "shut sandbox down");
        unless_gone(self.stop(id, STOP).await)?;
        let process = ProcessName::Init;
        let delete = |reply| Command::Delete { process, reply };
        let deleted = self.ask(id, Some(SLOW), delete).await;
        unless_gone(deleted.map(drop))?;
        self.shim.shut_down_if_idle();
        Ok(wire::ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _context: &TtrpcContext,
        request: wire::SandboxMetricsRequest,
    ) -> ttrpc::Result<wire::SandboxMetricsResponse> {
        let id = request.sandbox_id;
        let stats = |reply| Command::Container(ContainerCommand::Stats { reply });
        let stats = self.ask(&id, Some(QUICK), stats).await.map_err(to_wire)?;
        let mut response = wire::SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = id;
        metric.timestamp = timestamp(SystemTime::now());
        metric.data = metrics::stats_response(&stats).stats;
        Ok(response)
    }
}
