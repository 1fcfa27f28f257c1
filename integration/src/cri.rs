//! A small CRI client over containerd's socket: pods, containers, exec, logs, stats.
//!
//! Blocking for its callers; each call has a limit. It speaks runtime.v1, which 1.6 to 2.x serve.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PullImageRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopContainerRequest, StopPodSandboxRequest, UpdateContainerResourcesRequest,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::Channel;

use crate::grpc::Connection;

/// The limit of one call; containerd's own for a pod is longer, ours need not be.
const CALL: Duration = Duration::from_secs(60);

/// A connection to one containerd.
pub struct Cri {
    connection: Connection,
    client: RuntimeServiceClient<Channel>,
}

impl fmt::Debug for Cri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cri").finish_non_exhaustive()
    }
}

/// Which network namespace a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// Its own, set up by CNI.
    Own,
    /// The node's.
    Node,
}

/// A pod that is to be run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name and uid.
    pub name: String,
    /// The handler in containerd's configuration, empty for the default.
    pub handler: String,
    /// Its network.
    pub network: PodNetwork,
    /// Where its containers' logs go.
    pub log_directory: PathBuf,
    /// `cgroup_parent`, empty for containerd's default.
    pub cgroup_parent: String,
    /// Annotations, as in the pod's manifest.
    pub annotations: Vec<(String, String)>,
}

/// A container that is to be made in a pod.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// An image containerd has.
    pub image: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment.
    pub envs: Vec<(String, String)>,
    /// Memory limit in bytes, 0 for none.
    pub memory_bytes: i64,
    /// A terminal.
    pub tty: bool,
    /// User id to run as.
    pub user: Option<i64>,
    /// Volumes: a path of the host, one in the container, and who may write.
    pub volumes: Vec<(PathBuf, String, Access)>,
}

/// What a container may do to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it too.
    Write,
}

/// What a program run in a container left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Pod {
    fn config(&self) -> PodSandboxConfig {
        let network = match self.network {
            PodNetwork::Own => NamespaceMode::Pod,
            PodNetwork::Node => NamespaceMode::Node,
        };
        let namespaces = NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("{}-uid", self.name),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            // A pod in the node's network has the node's host name.
            hostname: if self.network == PodNetwork::Own {
                self.name.clone()
            } else {
                String::new()
            },
            log_directory: self.log_directory.display().to_string(),
            annotations: self.annotations.iter().cloned().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }
}

impl Container {
    /// The file below the pod's log directory.
    #[must_use]
    pub fn log_path(&self) -> String {
        format!("{}.log", self.name)
    }

    fn config(&self, pod: &Pod) -> ContainerConfig {
        let namespaces = pod.config().linux.and_then(|linux| linux.security_context);
        let namespaces = namespaces.and_then(|security| security.namespace_options);
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: self.name.clone(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                ..ImageSpec::default()
            }),
            command: self.command.clone(),
            envs: self
                .envs
                .iter()
                .map(|(key, value)| k8s_cri::v1::KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
            mounts: self
                .volumes
                .iter()
                .map(|(host, container, access)| Mount {
                    host_path: host.display().to_string(),
                    container_path: container.clone(),
                    readonly: *access == Access::Read,
                    ..Mount::default()
                })
                .collect(),
            log_path: self.log_path(),
            tty: self.tty,
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    memory_limit_in_bytes: self.memory_bytes,
                    ..LinuxContainerResources::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces,
                    run_as_user: self.user.map(|value| k8s_cri::v1::Int64Value { value }),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            annotations: HashMap::new(),
            ..ContainerConfig::default()
        }
    }
}

impl Cri {
    /// Connects to containerd's socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let connection = Connection::open(socket)?;
        let client = RuntimeServiceClient::new(connection.channel());
        Ok(Self { connection, client })
    }

    /// The configuration that the plug-in took, defaults and all.
    pub fn configuration(&self) -> Result<serde_json::Value> {
        let mut client = self.client.clone();
        let request = StatusRequest { verbose: true };
        let info = self.call("Status", client.status(request))?.info;
        let config = info.get("config").context("no configuration is told")?;
        Ok(serde_json::from_str(config)?)
    }

    /// Pulls an image from its registry.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let mut client = ImageServiceClient::new(self.connection.channel());
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image: reference.to_owned(),
                ..ImageSpec::default()
            }),
            ..PullImageRequest::default()
        };
        self.call("PullImage", client.pull_image(request)).map(drop)
    }

    /// Runs a pod's sandbox; its id comes back.
    pub fn run_pod(&self, pod: &Pod) -> Result<String> {
        let mut client = self.client.clone();
        let request = RunPodSandboxRequest {
            config: Some(pod.config()),
            runtime_handler: pod.handler.clone(),
        };
        Ok(self
            .call("RunPodSandbox", client.run_pod_sandbox(request))?
            .pod_sandbox_id)
    }

    /// The pod's address, empty in the node's network.
    pub fn pod_address(&self, id: &str) -> Result<String> {
        let mut client = self.client.clone();
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let status = self
            .call("PodSandboxStatus", client.pod_sandbox_status(request))?
            .status;
        Ok(status
            .and_then(|status| status.network)
            .map(|network| network.ip)
            .unwrap_or_default())
    }

    /// Makes a container in a pod; its id comes back.
    pub fn create(&self, pod: &Pod, pod_id: &str, container: &Container) -> Result<String> {
        let mut client = self.client.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(container.config(pod)),
            sandbox_config: Some(pod.config()),
        };
        Ok(self
            .call("CreateContainer", client.create_container(request))?
            .container_id)
    }

    /// Starts a container.
    pub fn start(&self, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.call("StartContainer", client.start_container(request))
            .map(drop)
    }

    /// Runs a program in a container and waits for it.
    pub fn exec(&self, id: &str, program: &[&str]) -> Result<ExecResult> {
        let mut client = self.client.clone();
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: program.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.call("ExecSync", client.exec_sync(request))?;
        Ok(ExecResult {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// State, exit code and the rest.
    pub fn status(&self, id: &str) -> Result<ContainerStatus> {
        let mut client = self.client.clone();
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.call("ContainerStatus", client.container_status(request))?;
        answer
            .status
            .context("ContainerStatus answered without a status")
    }

    /// The host's number of a container's init.
    pub fn pid(&self, id: &str) -> Result<i64> {
        let mut client = self.client.clone();
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.call("ContainerStatus", client.container_status(request))?;
        let info = answer.info.get("info").context("no info is told")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        info["pid"].as_i64().context("info without a pid")
    }

    /// True once the container has exited.
    pub fn has_exited(&self, id: &str) -> Result<bool> {
        Ok(self.status(id)?.state() == ContainerState::ContainerExited)
    }

    /// CPU, memory and the writable layer.
    pub fn stats(&self, id: &str) -> Result<ContainerStats> {
        let mut client = self.client.clone();
        let request = ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let answer = self.call("ContainerStats", client.container_stats(request))?;
        answer
            .stats
            .context("ContainerStats answered without stats")
    }

    /// Changes the limits of a container: memory in bytes, and processor time in microseconds of each 100 ms.
    pub fn update(&self, id: &str, memory_bytes: i64, quota_us: i64) -> Result<()> {
        let limits = LinuxContainerResources {
            memory_limit_in_bytes: memory_bytes,
            cpu_quota: quota_us,
            cpu_period: 100_000,
            ..LinuxContainerResources::default()
        };
        self.update_only(id, limits)
    }

    /// Changes a container's share of the processors.
    pub fn update_shares(&self, id: &str, shares: i64) -> Result<()> {
        let limits = LinuxContainerResources {
            cpu_shares: shares,
            ..LinuxContainerResources::default()
        };
        self.update_only(id, limits)
    }

    fn update_only(&self, id: &str, limits: LinuxContainerResources) -> Result<()> {
        let mut client = self.client.clone();
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..UpdateContainerResourcesRequest::default()
        };
        self.call(
            "UpdateContainerResources",
            client.update_container_resources(request),
        )
        .map(drop)
    }

    /// Stops a container: its stop signal, then SIGKILL after `grace_s` seconds.
    pub fn stop(&self, id: &str, grace_s: i64) -> Result<()> {
        let mut client = self.client.clone();
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace_s,
        };
        self.call("StopContainer", client.stop_container(request))
            .map(drop)
    }

    /// Removes a container, killing it if needed.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.call("RemoveContainer", client.remove_container(request))
            .map(drop)
    }

    /// Stops and removes a pod with all its containers.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.call("StopPodSandbox", client.stop_pod_sandbox(request))?;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.call("RemovePodSandbox", client.remove_pod_sandbox(request))
            .map(drop)
    }

    fn call<T>(
        &self,
        name: &str,
        future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        self.connection
            .call(CALL, future)
            .with_context(|| format!("{name} failed"))
    }
}
