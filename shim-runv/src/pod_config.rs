//! Pods without a sandbox container (containerd's sandbox service): the config.json of a sandbox, made from what CRI asks
//! for, and the files that containerd mounts into containers of other pods only. Pure but for [`write()`].
//!
//! ```text
//!   BUNDLE/config.json                      the sandbox: an empty root, and the agent, waiting
//!   BUNDLE/pod/{hostname,hosts,resolv.conf} bound into each container that binds nothing there itself
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use bundle::names;
use serde_json::{Map, Value, json};
use shim_core::pod::{Dns, PodResources};
use shim_core::{NamespaceMode, Pod, SandboxRequest};

use crate::pod::{SANDBOX, TYPE};
use crate::{Error, Result};

/// The folder of files in the bundle.
const FOLDER: &str = "pod";

/// Where containers have those files.
const FILES: [(&str, &str); 3] = [
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// Memory that a pod's containers share.
const SHARED_MEMORY: &str = "/dev/shm";

/// Writes config.json and the files.
///
/// # Errors
/// What a pod cannot have, by name; what writing says.
pub(crate) fn write(request: &SandboxRequest) -> Result<()> {
    let config = config(request)?;
    let text = serde_json::to_vec(&config).map_err(|error| Error::Usage(error.to_string()))?;
    let folder = request.bundle.join(FOLDER);
    fs::create_dir(&folder).map_err(Error::on("create", &folder))?;
    let of_host = |path: &str| match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::on("read", Path::new(path))(error)),
    };
    let pod = &request.pod;
    let resolver = match resolver(&pod.dns) {
        Some(text) => text,
        None => of_host("/etc/resolv.conf")?,
    };
    let texts = [
        format!("{}\n", pod.hostname),
        of_host("/etc/hosts")?,
        resolver,
    ];
    for ((name, _), text) in FILES.into_iter().zip(texts) {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::on("write", &path))?;
    }
    // Last: with it, the bundle is one.
    let path = request.bundle.join(names::CONFIG);
    fs::write(&path, text).map_err(Error::on("write", &path))
}

/// The files of the pod whose sandbox has this bundle; none where containerd has its own.
pub(crate) fn files(bundle: &Path) -> Option<PathBuf> {
    Some(bundle.join(FOLDER)).filter(|folder| folder.is_dir())
}

/// Text of a resolv.conf; none when nothing was asked for.
fn resolver(dns: &Dns) -> Option<String> {
    if *dns == Dns::default() {
        return None;
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Some(text)
}

fn config(request: &SandboxRequest) -> Result<Value> {
    let pod = &request.pod;
    if pod.has_user_namespace {
        let why = "user namespaces in a guest are not made";
        return Err(Error::unsupported("a pod's user namespace", why));
    }
    let mounts = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", &["nosuid", "mode=755", "size=64k"][..]),
    ];
    let mounts = mounts.map(|(at, kind, options)| json!({"destination": at, "type": kind, "source": kind, "options": options}));
    let mut config = json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            // The agent, as which its init begins.
            "args": ["/proc/self/exe", guest::PAUSE],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
        },
        "annotations": annotations(&request.id, pod),
        "mounts": mounts,
        "linux": {"namespaces": namespaces(request), "sysctl": pod.sysctls},
    });
    if !pod.hostname.is_empty() {
        config["hostname"] = json!(pod.hostname);
    }
    if !pod.cgroup_parent.is_empty() {
        let path = Path::new(&pod.cgroup_parent).join(&request.id);
        config["linux"]["cgroupsPath"] = json!(path);
    }
    Ok(config)
}

/// Those of the host are left out, and refused with all others that ask for them.
fn namespaces(request: &SandboxRequest) -> Vec<Value> {
    let pod = &request.pod;
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "uts"})];
    for (kind, mode) in [("pid", pod.pid), ("ipc", pod.ipc)] {
        if mode != NamespaceMode::Node {
            namespaces.push(json!({"type": kind}));
        }
    }
    if let (Some(path), false) = (&request.network, pod.network == NamespaceMode::Node) {
        namespaces.push(json!({"type": "network", "path": path}));
    }
    namespaces
}

/// As containerd writes them for a sandbox that is a container, and those that are ours.
fn annotations(id: &str, pod: &Pod) -> Map<String, Value> {
    let ours = pod
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(bundle::annotations::PREFIX));
    let mut annotations: Map<_, _> = ours
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let PodResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_bytes,
    } = pod.resources;
    let limits = [
        ("cpu-period", cpu_period),
        ("cpu-quota", cpu_quota),
        ("cpu-shares", cpu_shares),
        ("memory", memory_bytes),
    ];
    for (name, limit) in limits {
        let key = format!("io.kubernetes.cri.sandbox-{name}");
        annotations.insert(key, json!(limit.to_string()));
    }
    annotations.insert(TYPE.to_owned(), json!("sandbox"));
    annotations.insert(SANDBOX.to_owned(), json!(id));
    annotations
}

/// Gives a container of such a pod what containerd gives those of other pods: the pod's files, and its memory.
pub(crate) fn complete(config: &mut Value, folder: &Path) {
    // As containerd: who may not write its root may not write these.
    let access = match config["root"]["readonly"] == true {
        true => "ro",
        false => "rw",
    };
    let Some(mounts) = config.get_mut("mounts").and_then(Value::as_array_mut) else {
        return;
    };
    for (name, target) in FILES {
        if mounts.iter().all(|mount| mount["destination"] != target) {
            mounts.push(json!({
                "destination": target, "type": "bind", "source": folder.join(name), "options": ["rbind", access]
            }));
        }
    }
    let own =
        |mount: &&mut Value| mount["destination"] == SHARED_MEMORY && mount["type"] == "tmpfs";
    if let Some(memory) = mounts.iter_mut().find(own) {
        memory["type"] = json!("bind");
        memory["source"] = json!(SHARED_MEMORY);
        memory["options"] = json!(["rbind", "rw"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SandboxRequest {
        let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        let mut annotations: std::collections::BTreeMap<_, _> =
            pair("org.pouch.runv.guest", "5.10");
        annotations.insert("other".to_owned(), "x".to_owned());
        SandboxRequest {
            namespace: "k8s.io".to_owned(),
            id: "s".to_owned(),
            bundle: "/b".into(),
            network: Some("/run/netns/x".into()),
            pod: Pod {
                hostname: "shop".to_owned(),
                annotations,
                cgroup_parent: "/pods".to_owned(),
                sysctls: pair("net.ipv4.ip_forward", "1"),
                resources: PodResources {
                    memory_bytes: 64,
                    ..PodResources::default()
                },
                ..Pod::default()
            },
        }
    }

    #[test]
    fn a_sandbox_is_a_container_that_waits() {
        let expected = json!({
            "ociVersion": "1.1.0",
            "hostname": "shop",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "args": ["/proc/self/exe", "pause"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                "noNewPrivileges": true
            },
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": "s",
                "io.kubernetes.cri.sandbox-cpu-period": "0",
                "io.kubernetes.cri.sandbox-cpu-quota": "0",
                "io.kubernetes.cri.sandbox-cpu-shares": "0",
                "io.kubernetes.cri.sandbox-memory": "64",
                "org.pouch.runv.guest": "5.10"
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]}
            ],
            "linux": {
                "namespaces": [
                    {"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"},
                    {"type": "network", "path": "/run/netns/x"}
                ],
                "sysctl": {"net.ipv4.ip_forward": "1"},
                "cgroupsPath": "/pods/s"
            }
        });
        assert_eq!(config(&request()).unwrap(), expected);
    }

    #[test]
    fn what_is_the_hosts_is_left_out_to_be_refused() {
        let mut asked = request();
        (asked.pod.network, asked.pod.ipc) = (NamespaceMode::Node, NamespaceMode::Node);
        let made = config(&asked).unwrap();
        let kinds = made["linux"]["namespaces"].as_array().unwrap().iter();
        let kinds: Vec<_> = kinds.map(|it| it["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["mount", "uts", "pid"]);
        asked.pod.has_user_namespace = true;
        let error = config(&asked).unwrap_err().to_string();
        assert!(error.contains("user namespace"), "{error}");
    }

    #[test]
    fn containers_get_the_pods_files_and_memory_where_they_have_none_of_their_own() {
        let mut config = json!({"mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]}
        ]});
        complete(&mut config, Path::new("/b/pod"));
        let file = |name: &str| {
            json!({
                "destination": format!("/etc/{name}"), "type": "bind", "source": format!("/b/pod/{name}"),
                "options": ["rbind", "rw"]
            })
        };
        let expected = json!({"mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rw"]},
            file("hostname"), file("resolv.conf")
        ]});
        assert_eq!(config, expected);
        let mut config = json!({"root": {"readonly": true}, "mounts": []});
        complete(&mut config, Path::new("/b/pod"));
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 3);
        assert!(
            mounts
                .iter()
                .all(|it| it["options"] == json!(["rbind", "ro"]))
        );
        let own = json!({"mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/x"}]});
        let mut config = own.clone();
        complete(&mut config, Path::new("/b/pod"));
        assert_eq!(config["mounts"][0], own["mounts"][0]);
    }

    #[test]
    fn a_resolver_is_the_pods_or_the_hosts() {
        assert_eq!(resolver(&Dns::default()), None);
        let dns = Dns {
            servers: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
            searches: vec!["a.b".to_owned(), "b".to_owned()],
            options: vec!["ndots:5".to_owned()],
        };
        let expected = "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        assert_eq!(resolver(&dns).as_deref(), Some(expected));
    }

    #[test]
    fn a_bundle_is_written_whole() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(files(bundle.path()), None);
        let mut asked = request();
        asked.bundle = bundle.path().to_owned();
        asked.pod.dns.servers = vec!["10.0.0.1".to_owned()];
        write(&asked).unwrap();
        let folder = files(bundle.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read("hostname"), "shop\n");
        assert_eq!(read("resolv.conf"), "nameserver 10.0.0.1\n");
        assert!(bundle::Bundle::load(bundle.path()).is_ok());
    }
}
