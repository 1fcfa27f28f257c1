//! The stdin and stdout of `start`, which differ by containerd's version (docs of the bootstrap
//! protocol; containerd 1.6 to 2.4 measured).

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::{encode, options};
use crate::ShimError;

/// Below `LOG_LEVEL_INFO` (0) are the more talkative ones.
const LOG_LEVEL_DEBUG: i32 = -4;

/// What containerd told `start` on stdin.
#[derive(Debug, PartialEq)]
pub(crate) struct Bootstrap {
    /// Which form the reply must have.
    pub(crate) reply: Reply,
    /// containerd's ttrpc address, when stdin names it.
    pub(crate) ttrpc_address: Option<String>,
    /// containerd's gRPC address, when stdin names it.
    pub(crate) address: Option<String>,
    /// Where sockets go, when stdin names it.
    pub(crate) socket_dir: Option<String>,
    /// Wants debug lines.
    pub(crate) debug: bool,
    /// The cgroup the shim shall live in.
    pub(crate) shim_cgroup: Option<String>,
}

/// The form of the reply on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The address alone: containerd 1.6, and everything since takes it too.
    Address,
    /// JSON that says which task service to call: 1.7 to 2.2 (1.7 refuses version 3).
    Json {
        /// 2 or 3.
        version: u32,
    },
    /// `BootstrapResult`: 2.3 and later.
    Result,
}

impl Bootstrap {
    /// Reads stdin. `BootstrapParams` are told from the bare options by carrying the same id and
    /// namespace as the command line, as Go's shim does. `max_shim_version` is the environment's.
    pub(crate) fn parse(
        stdin: &[u8],
        id: &str,
        namespace: &str,
        max_shim_version: Option<&str>,
    ) -> Self {
        match BootstrapParams::parse_from_bytes(stdin) {
            Ok(params) if params.instance_id == id && params.namespace == namespace => {
                Self::from_params(&params)
            }
            _ => Self::from_options(stdin, max_shim_version),
        }
    }

    fn from_params(params: &BootstrapParams) -> Self {
        let extensions = params.extensions.iter().filter_map(|e| e.value.as_ref());
        Self {
            reply: Reply::Result,
            ttrpc_address: filled(&params.containerd_ttrpc_address),
            address: filled(&params.containerd_grpc_address),
            socket_dir: params.socket_dir.as_deref().and_then(filled),
            debug: params.log_level.value() <= LOG_LEVEL_DEBUG,
            shim_cgroup: extensions.filter_map(shim_cgroup).next(),
        }
    }

    fn from_options(stdin: &[u8], max_shim_version: Option<&str>) -> Self {
        let reply = match max_shim_version.and_then(|v| v.parse().ok()) {
            None | Some(0 | 1) => Reply::Address,
            Some(version) => Reply::Json {
                version: std::cmp::min(version, 3),
            },
        };
        Self {
            reply,
            ttrpc_address: None,
            address: None,
            socket_dir: None,
            debug: false,
            shim_cgroup: Any::parse_from_bytes(stdin)
                .ok()
                .as_ref()
                .and_then(shim_cgroup),
        }
    }
}

/// Wrong options are told by Create, which has a status code for it; `start` has only a text.
fn shim_cgroup(options: &Any) -> Option<String> {
    options::parse(Some(options)).ok()?.shim_cgroup
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Reply {
    /// The bytes for stdout.
    pub(crate) fn encode(self, address: &str) -> Result<Vec<u8>, ShimError> {
        Ok(match self {
            Self::Address => address.as_bytes().to_vec(),
            Self::Json { version } => {
                serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" })
                    .to_string()
                    .into_bytes()
            }
            Self::Result => encode(&BootstrapResult {
                version: containerd_shim_protos::TASK_API_VERSION,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::shim::oci;

    use super::*;

    const ADDRESS: &str = "unix:///run/containerd/s/ab";

    fn options() -> Any {
        let options = oci::Options {
            shim_cgroup: "/shims".to_owned(),
            ..Default::default()
        };
        super::super::any(&options, options::RUNC).unwrap()
    }

    fn params(id: &str, namespace: &str) -> Vec<u8> {
        let mut params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: namespace.to_owned(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".to_owned(),
            socket_dir: Some("/run/s".to_owned()),
            ..Default::default()
        };
        params.extensions.push(Extension {
            value: MessageField::some(options()),
            ..Default::default()
        });
        encode(&params)
    }

    #[test]
    fn each_containerd_gets_the_reply_it_understands() {
        let check = |stdin: &[u8], max: Option<&str>, golden: &[u8]| {
            let reply = Bootstrap::parse(stdin, "x", "ns", max).reply;
            assert_eq!(reply.encode(ADDRESS).unwrap(), golden);
        };
        let json = br#"{"address":"unix:///run/containerd/s/ab","protocol":"ttrpc","version":2}"#;
        let result = b"\x08\x03\x12\x1bunix:///run/containerd/s/ab\x1a\x05ttrpc";
        // 1.6: nothing or options, no MAX_SHIM_VERSION.
        check(b"", None, ADDRESS.as_bytes());
        check(&encode(&options()), None, ADDRESS.as_bytes());
        // 1.7 and 2.0 to 2.2.
        check(b"", Some("2"), json);
        check(&encode(&options()), Some("2"), json);
        // 2.3 and later.
        check(&params("x", "ns"), Some("2"), result);
        // Params of somebody else are no params.
        check(&params("y", "ns"), Some("2"), json);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_on_stdin_get_an_answer(stdin: Vec<u8>, version in ".*") {
            let reply = Bootstrap::parse(&stdin, "x", "ns", Some(&version)).reply;
            proptest::prop_assert!(!reply.encode(ADDRESS).unwrap().is_empty());
        }
    }

    #[test]
    fn options_are_found_in_both_forms() {
        for stdin in [encode(&options()), params("x", "ns")] {
            let bootstrap = Bootstrap::parse(&stdin, "x", "ns", None);
            assert_eq!(bootstrap.shim_cgroup.as_deref(), Some("/shims"));
        }
        let bootstrap = Bootstrap::parse(&params("x", "ns"), "x", "ns", None);
        assert_eq!(bootstrap.socket_dir.as_deref(), Some("/run/s"));
        assert_eq!(
            bootstrap.ttrpc_address.as_deref(),
            Some("/run/c.sock.ttrpc")
        );
    }
}
