//! CRI's `PodSandboxConfig`, by the tags of its fields (cri-api, runtime/v1/api.proto): the options of a sandbox. What is
//! not for a runtime, and what newer versions add, is passed over, as protobuf has it.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::rt::WireType;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Result as WireResult};
use containerd_shim_protos::sandbox_api as wire;

use super::api::check_id;
use crate::pod::{NamespaceMode, Pod, PodResources, SandboxRequest};
use crate::{Code, ShimError};

/// The name of the message.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// A sandbox to make.
///
/// # Errors
/// [`Code::InvalidArgument`] with what is wrong; a root file system is refused, a sandbox has none.
pub(crate) fn request(
    namespace: &str,
    request: wire::CreateSandboxRequest,
) -> Result<SandboxRequest, ShimError> {
    check_id(&request.sandbox_id)?;
    let bundle = PathBuf::from(&request.bundle_path);
    if !bundle.is_absolute() {
        let text = &request.bundle_path;
        return Err(invalid(format!("bundle {text:?} is no absolute path")));
    }
    if !request.rootfs.is_empty() {
        let message = "a sandbox has no root file system, and the request has mounts for one";
        return Err(invalid(message.to_owned()));
    }
    let mut pod = config(request.options.as_ref())?;
    pod.annotations.extend(request.annotations);
    Ok(SandboxRequest {
        namespace: namespace.to_owned(),
        id: request.sandbox_id,
        bundle,
        network: Some(request.netns_path)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        pod,
    })
}

fn config(any: Option<&Any>) -> Result<Pod, ShimError> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(Pod::default());
    };
    if any.type_url.rsplit('/').next() != Some(CONFIG) {
        let url = &any.type_url;
        return Err(invalid(format!(
            "options of a sandbox of type {url:?} are unknown; {CONFIG} is known"
        )));
    }
    let mut pod = Pod::default();
    fields(&any.value, |tag, stream| {
        match tag {
            18 => pod.hostname = stream.read_string()?,
            34 => dns(&stream.read_bytes()?, &mut pod)?,
            58 => pod.annotations.extend([entry(&stream.read_bytes()?)?]),
            66 => linux(&stream.read_bytes()?, &mut pod)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
    .map_err(|error| invalid(format!("{CONFIG}: {error}")))?;
    Ok(pod)
}

fn dns(message: &[u8], pod: &mut Pod) -> WireResult<()> {
    fields(message, |tag, stream| {
        match tag {
            10 => pod.dns.servers.push(stream.read_string()?),
            18 => pod.dns.searches.push(stream.read_string()?),
            26 => pod.dns.options.push(stream.read_string()?),
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn linux(message: &[u8], pod: &mut Pod) -> WireResult<()> {
    fields(message, |tag, stream| {
        match tag {
            10 => pod.cgroup_parent = stream.read_string()?,
            18 => security(&stream.read_bytes()?, pod)?,
            26 => pod.sysctls.extend([entry(&stream.read_bytes()?)?]),
            42 => resources(&stream.read_bytes()?, &mut pod.resources)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn security(message: &[u8], pod: &mut Pod) -> WireResult<()> {
    fields(message, |tag, stream| {
        match tag {
            10 => namespaces(&stream.read_bytes()?, pod)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn namespaces(message: &[u8], pod: &mut Pod) -> WireResult<()> {
    fields(message, |tag, stream| {
        match tag {
            8 => pod.network = mode(stream.read_int32()?)?,
            16 => pod.pid = mode(stream.read_int32()?)?,
            24 => pod.ipc = mode(stream.read_int32()?)?,
            42 => {
                let mut of_users = NamespaceMode::Pod;
                fields(&stream.read_bytes()?, |tag, stream| {
                    if tag == 8 {
                        of_users = mode(stream.read_int32()?)?;
                    }
                    Ok(tag == 8)
                })?;
                pod.has_user_namespace = of_users == NamespaceMode::Pod;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn resources(message: &[u8], resources: &mut PodResources) -> WireResult<()> {
    fields(message, |tag, stream| {
        match tag {
            8 => resources.cpu_period = stream.read_int64()?,
            16 => resources.cpu_quota = stream.read_int64()?,
            24 => resources.cpu_shares = stream.read_int64()?,
            32 => resources.memory_bytes = stream.read_int64()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn mode(number: i32) -> WireResult<NamespaceMode> {
    match number {
        0 => Ok(NamespaceMode::Pod),
        1 => Ok(NamespaceMode::Container),
        2 => Ok(NamespaceMode::Node),
        3 => Ok(NamespaceMode::Target),
        _ => Err(std::io::Error::other(format!("namespace mode {number} is unknown")).into()),
    }
}

/// A key and its value.
fn entry(message: &[u8]) -> WireResult<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    fields(message, |tag, stream| {
        match tag {
            10 => key = stream.read_string()?,
            18 => value = stream.read_string()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

/// Reads a message field by field: its number and wire type in one, as they are on the wire. What `take` does not
/// know is skipped.
fn fields(
    message: &[u8],
    mut take: impl FnMut(u32, &mut CodedInputStream<'_>) -> WireResult<bool>,
) -> WireResult<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        if take(tag, &mut stream)? {
            continue;
        }
        let kind = WireType::new(tag & 7)
            .ok_or_else(|| std::io::Error::other(format!("tag {tag} has no wire type")))?;
        stream.skip_field(kind)?;
    }
    Ok(())
}

fn invalid(message: String) -> ShimError {
    ShimError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::types::mount::Mount;

    use super::*;

    /// A field with so many bytes: all that these tests need are shorter than 128.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        field.extend(bytes);
        field
    }

    fn asked(value: Vec<u8>) -> wire::CreateSandboxRequest {
        wire::CreateSandboxRequest {
            sandbox_id: "s".to_owned(),
            bundle_path: "/b".to_owned(),
            netns_path: "/run/netns/x".to_owned(),
            options: MessageField::some(Any {
                type_url: CONFIG.to_owned(),
                value,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_read_and_what_is_unknown_is_passed_over() {
        let pair = [field(1, b"k"), field(2, b"v")].concat();
        let of_users = field(5, &[8, 2]);
        let namespaces = [&[16, 1][..], &of_users].concat();
        let linux = [
            field(1, b"/pods"),
            field(2, &field(1, &namespaces)),
            field(3, &pair),
            field(5, &[8, 100, 32, 64]),
        ];
        let dns = [field(1, b"10.0.0.1"), field(3, b"ndots:5")];
        let config = [
            field(1, &field(1, b"name")),
            field(2, b"host"),
            field(4, &dns.concat()),
            field(7, &pair),
            field(8, &linux.concat()),
            vec![120, 1],
        ];
        let made = request("k8s.io", asked(config.concat())).unwrap();
        let pairs = || [("k".to_owned(), "v".to_owned())].into();
        let pod = Pod {
            hostname: "host".to_owned(),
            dns: crate::pod::Dns {
                servers: vec!["10.0.0.1".to_owned()],
                searches: Vec::new(),
                options: vec!["ndots:5".to_owned()],
            },
            annotations: pairs(),
            cgroup_parent: "/pods".to_owned(),
            sysctls: pairs(),
            pid: NamespaceMode::Container,
            resources: PodResources {
                cpu_period: 100,
                memory_bytes: 64,
                ..PodResources::default()
            },
            ..Pod::default()
        };
        assert_eq!(made.pod, pod);
        assert_eq!(made.network, Some("/run/netns/x".into()));
        let users = field(8, &field(2, &field(1, &field(5, &[]))));
        let made = request("k8s.io", asked(users)).unwrap();
        assert!(made.pod.has_user_namespace);
    }

    #[test]
    fn what_is_no_sandbox_is_refused_by_its_name() {
        let check = |asked: wire::CreateSandboxRequest, expected: &str| {
            let error = request("k8s.io", asked).unwrap_err();
            assert_eq!(error.kind, Code::InvalidArgument);
            assert!(error.message.contains(expected), "{}", error.message);
        };
        check(asked(vec![18, 5, b'x']), CONFIG);
        let odd = field(8, &field(2, &field(1, &[8, 9])));
        check(asked(odd), "namespace mode 9 is unknown");
        let mut other = asked(Vec::new());
        other.options.mut_or_insert_default().type_url = "x/Spec".to_owned();
        check(other, "options of a sandbox of type \"x/Spec\" are unknown");
        let mut other = asked(Vec::new());
        other.bundle_path = "b".to_owned();
        check(other, "bundle \"b\" is no absolute path");
        let mut other = asked(Vec::new());
        other.rootfs.push(Mount::default());
        check(other, "no root file system");
        let mut other = asked(Vec::new());
        other.sandbox_id = "../s".to_owned();
        check(other, "is no file name");
    }
}
