//! What of config.json is for the guest: a pure function from one JSON to another, and what of the
//! host goes with it. What a guest cannot have is refused by its name.

use serde_json::{Map, Value, json};

use crate::pod::Place;
use crate::sharing::Sharing;
use crate::volumes::{self, Volumes};
use crate::{Error, Result};

/// What the guest is told of a container.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Its config.json.
    pub(crate) config: Vec<u8>,
    /// What of the host it mounts.
    pub(crate) volumes: Volumes,
}

/// Makes the guest's of the host's config.json.
///
/// # Errors
/// [`Error::Unsupported`] with the field, or what a file says.
pub(crate) fn for_guest(
    id: &str,
    config: &Value,
    place: Place<'_>,
    sharing: Sharing,
) -> Result<Guest> {
    let mut config = config.clone();
    let root = object(&mut config, "config.json")?;
    root.insert(
        "root".to_owned(),
        json!({"path": "rootfs", "readonly": root.get("root").and_then(|root| root.get("readonly")).cloned().unwrap_or(Value::Bool(false))}),
    );
    if let Some(linux) = root.get_mut("linux") {
        of_linux(object(linux, "linux")?, place)?;
    }
    if let Some(process) = root.get_mut("process") {
        let process = object(process, "process")?;
        // Labels of the host's security modules mean nothing to another kernel.
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
    }
    if let Some(hooks) = root.get_mut("hooks") {
        of_hooks(object(hooks, "hooks")?)?;
    }
    let volumes = match root.get_mut("mounts") {
        Some(Value::Array(mounts)) => volumes::of(id, mounts, place, sharing)?,
        _ => Volumes::default(),
    };
    let config = serde_json::to_vec(&config).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(Guest { config, volumes })
}

fn object<'a>(value: &'a mut Value, field: &str) -> Result<&'a mut Map<String, Value>> {
    let message = format!("{field} is no object");
    value.as_object_mut().ok_or(Error::Usage(message))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn of_linux(linux: &mut Map<String, Value>, place: Place<'_>) -> Result<()> {
    for field in ["cgroupsPath", "mountLabel"] {
        linux.remove(field);
    }
    let refused = [
        ("devices", "a guest has no devices of the host"),
        ("uidMappings", "user namespaces in a guest are not made"),
        ("gidMappings", "user namespaces in a guest are not made"),
        ("intelRdt", "a guest has no such resource"),
        ("netDevices", "links of the host are not moved into a guest"),
        ("timeOffsets", "time namespaces in a guest are not made"),
    ];
    for (field, why) in refused {
        if linux.get(field).is_some_and(|value| !is_empty(value)) {
            return Err(Error::unsupported(format!("linux.{field}"), why));
        }
    }
    if let Some(Value::Object(sysctl)) = linux.get_mut("sysctl") {
        let of_network = sysctl.keys().find(|name| is_of_network(name));
        if let (Place::Member { .. }, Some(name)) = (place, of_network) {
            let why = "the network is the pod's, and its sandbox's config.json sets it up";
            return Err(Error::unsupported(format!("linux.sysctl: {name}"), why));
        }
        sysctl.retain(|name, _| !is_of_network(name));
    }
    let Some(Value::Array(namespaces)) = linux.get_mut("namespaces") else {
        return Ok(());
    };
    // The guest's network is the container's.
    namespaces.retain(|namespace| namespace["type"] != "network");
    for namespace in namespaces {
        let kind = namespace["type"].as_str().unwrap_or_default();
        let what = || format!("linux.namespaces: {kind}");
        if matches!(kind, "user" | "time") {
            return Err(Error::unsupported(what(), "it is not made in a guest"));
        }
        let path = namespace["path"].as_str().unwrap_or_default();
        if path.is_empty() {
            continue;
        }
        match place.joined(path) {
            Some(path) => namespace["path"] = Value::String(path),
            None => {
                let why = "a namespace of the host cannot be joined from a virtual machine";
                return Err(Error::unsupported(what(), why));
            }
        }
    }
    Ok(())
}

/// Whether a kernel parameter, by its name in dots or slashes, belongs to the network namespace.
pub(crate) fn is_of_network(sysctl: &str) -> bool {
    sysctl.starts_with("net.") || sysctl.starts_with("net/")
}

/// Those of the host's side are run by the shim.
fn of_hooks(hooks: &mut Map<String, Value>) -> Result<()> {
    if hooks.get("createContainer").is_some_and(|it| !is_empty(it)) {
        let why = "the host's programs do not run in a virtual machine";
        return Err(Error::unsupported("hooks.createContainer", why));
    }
    hooks.retain(|stage, _| stage == "startContainer");
    Ok(())
}

#[cfg(test)]
mod tests {
    use guest::call::SHARED_MEMORY;

    use super::*;

    const COPIES: Sharing = Sharing::Copies("there is none");

    fn guest(config: &Value) -> Value {
        serde_json::from_slice(&for_guest("c", config, Place::Alone, COPIES).unwrap().config)
            .unwrap()
    }

    #[test]
    fn what_is_the_hosts_stays_there() {
        let config = json!({
            "ociVersion": "1.1.0",
            "root": {"path": "/run/bundle/rootfs", "readonly": true},
            "process": {"args": ["sh"], "apparmorProfile": "x", "selinuxLabel": "y"},
            "hooks": {"prestart": [{"path": "/x"}], "startContainer": [{"path": "/in"}]},
            "linux": {
                "cgroupsPath": "/x/c",
                "sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/conf": "1", "kernel.msgmax": "1"},
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
                "devices": []
            },
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}]
        });
        let expected = json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"args": ["sh"]},
            "hooks": {"startContainer": [{"path": "/in"}]},
            "linux": {
                "sysctl": {"kernel.msgmax": "1"},
                "namespaces": [{"type": "pid"}, {"type": "mount"}],
                "devices": []
            },
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}]
        });
        assert_eq!(guest(&config), expected);
    }

    #[test]
    fn files_go_along_as_copies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let config = json!({"mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": path, "options": ["rbind", "ro"]}
        ]});
        let made = for_guest("c", &config, Place::Alone, COPIES).unwrap();
        assert_eq!(made.volumes.files.len(), 1);
        assert_eq!(made.volumes.files[0].contents, b"127.0.0.1 localhost\n");
        let source = guest(&config)["mounts"][0]["source"].clone();
        assert_eq!(source, "/run/containers/c/files/0");
    }

    #[test]
    fn a_pods_container_joins_what_its_sandbox_has() {
        let directory = tempfile::tempdir().unwrap();
        let config = json!({
            "linux": {"namespaces": [{"type": "ipc", "path": "/proc/42/ns/ipc"}, {"type": "mount"}]},
            "mounts": [{
                "destination": "/dev/shm", "type": "bind", "source": directory.path(),
                "options": ["rbind", "ro"]
            }]
        });
        let place = Place::Member { id: "s", pid: 42 };
        let made = for_guest("c", &config, place, COPIES).unwrap();
        let made: Value = serde_json::from_slice(&made.config).unwrap();
        let namespaces = &made["linux"]["namespaces"];
        assert_eq!(namespaces[0]["path"], "/run/containers/s/ns/ipc");
        assert_eq!(made["mounts"][0]["source"], SHARED_MEMORY);
        let alone = for_guest("c", &config, Place::Alone, COPIES).unwrap_err();
        assert!(alone.to_string().contains("cannot be joined"), "{alone}");
        let config = json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}});
        assert!(for_guest("s", &config, Place::Sandbox, COPIES).is_ok());
        let error = for_guest("c", &config, place, COPIES)
            .unwrap_err()
            .to_string();
        let expected = "linux.sysctl: net.ipv4.ip_forward is not supported";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused_by_name() {
        let check = |config: Value, expected: &str| {
            let error = for_guest("c", &config, Place::Alone, COPIES)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        let namespace = |kind: &str, path: &str| json!({"linux": {"namespaces": [{"type": kind, "path": path}]}});
        check(
            namespace("ipc", "/proc/1/ns/ipc"),
            "linux.namespaces: ipc is not supported",
        );
        check(
            namespace("user", ""),
            "linux.namespaces: user is not supported",
        );
        check(
            json!({"linux": {"devices": [{"path": "/dev/x"}]}}),
            "linux.devices is not supported",
        );
        check(
            json!({"hooks": {"createContainer": [{"path": "/x"}]}}),
            "hooks.createContainer",
        );
        let mount = |kind: &str, source: &str| json!({"mounts": [{"destination": "/data", "type": kind, "source": source}]});
        check(
            mount("bind", "/proc"),
            "mount at /data is not supported: /proc can be written, and there is none",
        );
        check(
            mount("nfs", "host:/x"),
            "mount at /data is not supported: a guest does not mount",
        );
    }
}
