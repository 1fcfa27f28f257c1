//! Events as containerd's exchange wants them: a topic and a message in an envelope.

use std::time::SystemTime;

use containerd_shim_protos::events::task as wire;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::topics;

use super::{any, pid, timestamp};
use crate::request::Event;

/// One event of one container, ready to be sent.
pub(crate) fn forward_request(
    namespace: &str,
    container_id: &str,
    event: Event,
    at: SystemTime,
) -> ForwardRequest {
    let (topic, event) = message(container_id.to_owned(), event);
    ForwardRequest {
        envelope: MessageField::some(Envelope {
            timestamp: timestamp(at),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The topic of a request made here, for the log.
pub(crate) fn topic(request: &ForwardRequest) -> &str {
    request.envelope.as_ref().map_or("", |e| e.topic.as_str())
}

fn message(container_id: String, event: Event) -> (&'static str, MessageField<Any>) {
    match event {
        Event::Create {
            bundle,
            rootfs,
            stdio,
            pid: init,
        } => {
            let message = wire::TaskCreate {
                container_id,
                bundle: bundle.to_string_lossy().into_owned(),
                rootfs: rootfs.into_iter().map(super::api::mount_to_wire).collect(),
                io: MessageField::some(wire::TaskIO {
                    stdin: stdio.stdin,
                    stdout: stdio.stdout,
                    stderr: stdio.stderr,
                    terminal: stdio.terminal,
                    ..Default::default()
                }),
                pid: pid(init),
                ..Default::default()
            };
            (
                topics::TASK_CREATE_EVENT_TOPIC,
                any(&message, "containerd.events.TaskCreate"),
            )
        }
        Event::Start { pid: init } => {
            let message = wire::TaskStart {
                container_id,
                pid: pid(init),
                ..Default::default()
            };
            (
                topics::TASK_START_EVENT_TOPIC,
                any(&message, "containerd.events.TaskStart"),
            )
        }
        Event::Exit {
            id,
            pid: process,
            exit,
        } => {
            let message = wire::TaskExit {
                container_id,
                id,
                pid: pid(process),
                exit_status: exit.code,
                exited_at: timestamp(exit.at),
                ..Default::default()
            };
            (
                topics::TASK_EXIT_EVENT_TOPIC,
                any(&message, "containerd.events.TaskExit"),
            )
        }
        Event::Delete { pid: init, exit } => {
            let message = wire::TaskDelete {
                container_id,
                pid: pid(init),
                exit_status: exit.code,
                exited_at: timestamp(exit.at),
                ..Default::default()
            };
            (
                topics::TASK_DELETE_EVENT_TOPIC,
                any(&message, "containerd.events.TaskDelete"),
            )
        }
        other => short_message(container_id, other),
    }
}

/// Those that say little more than which container.
fn short_message(container_id: String, event: Event) -> (&'static str, MessageField<Any>) {
    match event {
        Event::ExecAdded { exec_id } => {
            let exec_id = exec_id.to_string();
            let message = wire::TaskExecAdded {
                container_id,
                exec_id,
                ..Default::default()
            };
            (
                topics::TASK_EXEC_ADDED_EVENT_TOPIC,
                any(&message, "containerd.events.TaskExecAdded"),
            )
        }
        Event::ExecStarted {
            exec_id,
            pid: process,
        } => {
            let message = wire::TaskExecStarted {
                container_id,
                exec_id: exec_id.to_string(),
                pid: pid(process),
                ..Default::default()
            };
            let topic = topics::TASK_EXEC_STARTED_EVENT_TOPIC;
            (topic, any(&message, "containerd.events.TaskExecStarted"))
        }
        Event::Paused => {
            let message = wire::TaskPaused {
                container_id,
                ..Default::default()
            };
            (
                topics::TASK_PAUSED_EVENT_TOPIC,
                any(&message, "containerd.events.TaskPaused"),
            )
        }
        Event::Resumed => {
            let message = wire::TaskResumed {
                container_id,
                ..Default::default()
            };
            (
                topics::TASK_RESUMED_EVENT_TOPIC,
                any(&message, "containerd.events.TaskResumed"),
            )
        }
        Event::Checkpointed { path } => {
            let message = wire::TaskCheckpointed {
                container_id,
                checkpoint: path,
                ..Default::default()
            };
            let topic = topics::TASK_CHECKPOINTED_EVENT_TOPIC;
            (topic, any(&message, "containerd.events.TaskCheckpointed"))
        }
        _ => {
            let message = wire::TaskOOM {
                container_id,
                ..Default::default()
            };
            (
                topics::TASK_OOM_EVENT_TOPIC,
                any(&message, "containerd.events.TaskOOM"),
            )
        }
    }
}
