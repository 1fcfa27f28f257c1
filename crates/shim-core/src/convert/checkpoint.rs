//! A checkpoint: its path, and options of either of containerd's two messages.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::oci::CheckpointOptions;

use crate::runtime::CheckpointRequest;
use crate::{Code, ShimError};

/// What runc's shim is sent.
const RUNC: &str = "containerd.runc.v1.CheckpointOptions";
/// What containerd's clients send to a runtime that is not called `io.containerd.runc.*`; the same
/// fields, but for the two paths, which have changed places.
const LINUX: &str = "containerd.linux.runc.CheckpointOptions";

/// Checks a request; `limit` is how long it may take.
///
/// The path of images among the options is for containerd, which has made it `path` by now.
pub(crate) fn request(
    request: CheckpointTaskRequest,
    limit: Duration,
) -> Result<CheckpointRequest, ShimError> {
    let images = PathBuf::from(&request.path);
    if !images.is_absolute() {
        return Err(invalid(format!(
            "checkpoint {images:?} is no absolute path"
        )));
    }
    let any = request.options.unwrap_or_default();
    let kind = any.type_url.rsplit('/').next().unwrap_or_default();
    if !matches!(kind, "" | RUNC | LINUX) {
        return Err(invalid(format!("options of type {kind:?} are unknown")));
    }
    let options = CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|e| invalid(format!("options of type {kind:?}: {e}")))?;
    let work = if kind == LINUX {
        options.image_path
    } else {
        options.work_path
    };
    Ok(CheckpointRequest {
        images,
        work: (!work.is_empty()).then(|| PathBuf::from(work)),
        exit: options.exit,
        open_tcp: options.open_tcp,
        external_unix_sockets: options.external_unix_sockets,
        terminal: options.terminal,
        file_locks: options.file_locks,
        empty_namespaces: options.empty_namespaces,
        cgroups_mode: options.cgroups_mode,
        limit,
    })
}

fn invalid(message: String) -> ShimError {
    ShimError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    use super::*;

    fn asked(kind: &str, value: &[u8], path: &str) -> Result<CheckpointRequest, String> {
        let options = Any {
            type_url: kind.to_owned(),
            value: value.to_vec(),
            ..Default::default()
        };
        let wire = CheckpointTaskRequest {
            path: path.to_owned(),
            options: MessageField::some(options),
            ..Default::default()
        };
        request(wire, Duration::from_secs(1)).map_err(|e| e.message)
    }

    #[test]
    fn both_messages_are_read_and_others_refused() {
        // exit, terminal, cgroups_mode, and the fields 8 and 9.
        let value = [
            8, 1, 32, 1, 58, 4, b's', b'o', b'f', b't', 66, 1, b'a', 74, 1, b'b',
        ];
        for (kind, work) in [
            (RUNC.to_owned(), "b"),
            (format!("types.containerd.io/{LINUX}"), "a"),
        ] {
            let request = asked(&kind, &value, "/x").unwrap();
            assert_eq!(request.work, Some(PathBuf::from(work)), "{kind}");
            assert!(request.exit && request.terminal && !request.open_tcp);
            assert_eq!(request.cgroups_mode, "soft");
        }
        let plain = asked("", &[], "/x").unwrap();
        assert_eq!((plain.exit, plain.work), (false, None));
        assert!(
            asked("x.Options", &[], "/x")
                .unwrap_err()
                .contains("x.Options")
        );
        assert!(asked(RUNC, &[0xff], "/x").is_err());
        assert!(
            asked(RUNC, &[], "x")
                .unwrap_err()
                .contains("no absolute path")
        );
    }
}
