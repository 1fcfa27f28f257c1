//! The answers of `-info` and `delete` on stdout.

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use task::Exit;

use super::{encode, options, pid, timestamp};
use crate::{Features, Identity, Options, ShimError};

/// How containerd names runtime-spec's features document.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The options on the stdin of `-info`: an `Any`, or nothing.
pub(crate) fn parse_options(stdin: &[u8]) -> Result<(Options, Option<Any>), ShimError> {
    if stdin.is_empty() {
        return Ok((Options::default(), None));
    }
    let any = Any::parse_from_bytes(stdin).map_err(|e| {
        ShimError::new(
            crate::Code::InvalidArgument,
            format!("runtime options on stdin: {e}"),
        )
    })?;
    Ok((options::parse(Some(&any))?.options, Some(any)))
}

/// `containerd.types.RuntimeInfo`.
pub(crate) fn runtime_info(
    identity: Identity,
    features: Features,
    options: Option<Any>,
) -> Vec<u8> {
    encode(&RuntimeInfo {
        name: identity.name.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: identity.version.to_owned(),
            revision: identity.revision.to_owned(),
            ..Default::default()
        }),
        options: options.into(),
        features: MessageField::some(Any {
            type_url: FEATURES.to_owned(),
            value: features.json.into_bytes(),
            ..Default::default()
        }),
        annotations: features.annotations.into_iter().collect(),
        ..Default::default()
    })
}

/// `DeleteResponse`.
pub(crate) fn delete_response(process: i32, exit: Exit) -> Vec<u8> {
    encode(&DeleteResponse {
        pid: pid(process),
        exit_status: exit.code,
        exited_at: timestamp(exit.at),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_carries_the_features_document_as_json() {
        let identity = Identity {
            name: "io.x.v2",
            version: "1",
            revision: "r",
        };
        let features = Features {
            json: r#"{"ociVersionMin":"1.0.0"}"#.to_owned(),
            annotations: vec![("k".to_owned(), "v".to_owned())],
        };
        let bytes = runtime_info(identity, features, None);
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(
            (info.name.as_str(), info.version.version.as_str()),
            ("io.x.v2", "1")
        );
        assert_eq!(info.features.type_url, FEATURES);
        assert_eq!(info.features.value, br#"{"ociVersionMin":"1.0.0"}"#);
        assert_eq!(info.annotations["k"], "v");
    }
}
