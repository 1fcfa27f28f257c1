//! Requests and answers of the Task API.

use std::path::PathBuf;

use containerd_shim_protos::api as wire_api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::types::task as wire;

use task::{ExecId, Exit, ProcessName, Status};

use super::{any, options, pid, timestamp};
use crate::request::{Create, Deleted, Exec, ProcessInfo, ProcessState, RootfsMount, Stdio};
use crate::runtime::UpdateRequest;
use crate::{Code, ShimError};

/// Longest container id: a file name with room for a suffix.
const ID_BYTES_MAX: usize = 240;

pub(crate) fn create(request: wire_api::CreateTaskRequest) -> Result<Create, ShimError> {
    check_id(&request.id)?;
    let bundle = PathBuf::from(&request.bundle);
    if !bundle.is_absolute() {
        return Err(invalid(format!(
            "bundle {:?} is no absolute path",
            request.bundle
        )));
    }
    if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
        let message = format!(
            "restore from checkpoint {:?} is not implemented",
            request.checkpoint
        );
        return Err(ShimError::new(Code::Unimplemented, message));
    }
    Ok(Create {
        id: request.id,
        bundle,
        rootfs: request.rootfs.into_iter().map(mount_from_wire).collect(),
        stdio: Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        options: options::parse(request.options.as_ref())?.options,
    })
}

pub(crate) fn exec(request: wire_api::ExecProcessRequest) -> Result<Exec, ShimError> {
    let id = ExecId::new(&request.exec_id)?;
    let spec = json_of(request.spec.as_ref(), "Process")?;
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(spec)
        .map_err(|e| invalid(format!("process of exec {}: {e}", request.exec_id)))?;
    // The request decides, as in Go's shim.
    process.insert("terminal".to_owned(), request.terminal.into());
    let process_json = serde_json::to_vec(&process)
        .map_err(|e| invalid(format!("process of exec {}: {e}", request.exec_id)))?;
    Ok(Exec {
        id,
        stdio: Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        process_json,
    })
}

/// Who changes annotations alone sends no limits.
pub(crate) fn update(request: wire_api::UpdateTaskRequest) -> Result<UpdateRequest, ShimError> {
    let resources = request.resources.as_ref();
    let resources_json = if resources.is_none() && !request.annotations.is_empty() {
        b"{}".to_vec()
    } else {
        json_of(resources, "LinuxResources")?.to_vec()
    };
    Ok(UpdateRequest {
        resources_json,
        annotations: request.annotations.into_iter().collect(),
    })
}

/// The process a request is for; without an exec id it is init.
pub(crate) fn process_name(exec_id: &str) -> Result<ProcessName, ShimError> {
    if exec_id.is_empty() {
        return Ok(ProcessName::Init);
    }
    Ok(ProcessName::Exec(ExecId::new(exec_id)?))
}

/// What a shim says of a process, the other way round than [`state`].
pub(crate) fn status_of(state: &wire_api::StateResponse) -> Result<bundle::Status, ShimError> {
    match state.status.enum_value() {
        Ok(wire::Status::CREATED) => Ok(bundle::Status::Created),
        Ok(wire::Status::RUNNING | wire::Status::PAUSING) => Ok(bundle::Status::Running),
        Ok(wire::Status::PAUSED) => Ok(bundle::Status::Paused),
        Ok(wire::Status::STOPPED) => Ok(bundle::Status::Stopped),
        Ok(wire::Status::UNKNOWN) | Err(_) => {
            let message = format!("the shim says status {:?}", state.status);
            Err(ShimError::new(Code::Internal, message))
        }
    }
}

pub(crate) fn state(state: ProcessState) -> wire_api::StateResponse {
    let status = match state.status {
        Status::Created => wire::Status::CREATED,
        Status::Running => wire::Status::RUNNING,
        Status::Pausing => wire::Status::PAUSING,
        Status::Paused => wire::Status::PAUSED,
        Status::Stopped => wire::Status::STOPPED,
    };
    wire_api::StateResponse {
        id: state.id,
        bundle: state.bundle.to_string_lossy().into_owned(),
        pid: pid(state.pid),
        status: status.into(),
        stdin: state.stdio.stdin,
        stdout: state.stdio.stdout,
        stderr: state.stdio.stderr,
        terminal: state.stdio.terminal,
        exit_status: state.exit.map_or(0, |e| e.code),
        exited_at: exited_at(state.exit),
        ..Default::default()
    }
}

pub(crate) fn delete_response(deleted: Deleted) -> wire_api::DeleteResponse {
    wire_api::DeleteResponse {
        pid: pid(deleted.pid),
        exit_status: deleted.exit.map_or(0, |e| e.code),
        exited_at: exited_at(deleted.exit),
        ..Default::default()
    }
}

pub(crate) fn wait_response(exit: Exit) -> wire_api::WaitResponse {
    wire_api::WaitResponse {
        exit_status: exit.code,
        exited_at: timestamp(exit.at),
        ..Default::default()
    }
}

pub(crate) fn pids_response(processes: Vec<ProcessInfo>) -> wire_api::PidsResponse {
    let details = |exec_id| ProcessDetails {
        exec_id,
        ..Default::default()
    };
    let processes = processes.into_iter().map(|process| wire::ProcessInfo {
        pid: pid(process.pid),
        info: match process.exec_id {
            Some(id) => any(
                &details(id.to_string()),
                "containerd.runc.v1.ProcessDetails",
            ),
            None => MessageField::none(),
        },
        ..Default::default()
    });
    wire_api::PidsResponse {
        processes: processes.collect(),
        ..Default::default()
    }
}

pub(crate) fn pid_to_wire(process: i32) -> u32 {
    pid(process)
}

pub(super) fn mount_to_wire(mount: RootfsMount) -> Mount {
    Mount {
        type_: mount.fstype,
        source: mount.source,
        target: mount.target,
        options: mount.options,
        ..Default::default()
    }
}

fn mount_from_wire(mount: Mount) -> RootfsMount {
    RootfsMount {
        fstype: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

fn exited_at(
    exit: Option<Exit>,
) -> MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp> {
    exit.map_or_else(MessageField::none, |e| timestamp(e.at))
}

/// The JSON of an OCI type in an `Any`, e.g.
/// `types.containerd.io/opencontainers/runtime-spec/1/Process`.
fn json_of<'a>(any: Option<&'a Any>, wanted: &str) -> Result<&'a [u8], ShimError> {
    let any = any.ok_or_else(|| invalid(format!("the request carries no {wanted}")))?;
    if any.type_url.rsplit('/').next() != Some(wanted) {
        return Err(invalid(format!(
            "type {:?} is no OCI {wanted}",
            any.type_url
        )));
    }
    Ok(&any.value)
}

/// Ids become file names. containerd has its own rules; here they are what cannot be one.
pub(super) fn check_id(id: &str) -> Result<(), ShimError> {
    let bad = |c: char| c == '/' || c.is_control();
    if id.is_empty() || id == "." || id == ".." || id.contains(bad) {
        return Err(invalid(format!("container id {id:?} is no file name")));
    }
    if id.len() > ID_BYTES_MAX {
        return Err(invalid(format!(
            "container id {id:?} is longer than {ID_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn invalid(message: String) -> ShimError {
    ShimError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_escape_the_bundle_is_refused() {
        let check = |id: &str, bundle: &str, expected: &str| {
            let request = wire_api::CreateTaskRequest {
                id: id.to_owned(),
                bundle: bundle.to_owned(),
                ..Default::default()
            };
            assert_eq!(create(request).unwrap_err().message, expected);
        };
        check("", "/b", "container id \"\" is no file name");
        check("..", "/b", "container id \"..\" is no file name");
        check("a/b", "/b", "container id \"a/b\" is no file name");
        check("a", "b", "bundle \"b\" is no absolute path");
    }

    #[test]
    fn the_exec_request_decides_about_the_terminal() {
        let request = wire_api::ExecProcessRequest {
            exec_id: "e".to_owned(),
            terminal: true,
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: br#"{"args":["sh"],"cwd":"/"}"#.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let process = exec(request.clone()).unwrap().process_json;
        assert_eq!(process, br#"{"args":["sh"],"cwd":"/","terminal":true}"#);
        let wrong = wire_api::ExecProcessRequest {
            spec: MessageField::some(Any {
                type_url: "x/Spec".to_owned(),
                ..Default::default()
            }),
            ..request
        };
        assert_eq!(
            exec(wrong).unwrap_err().message,
            "type \"x/Spec\" is no OCI Process"
        );
    }
}
