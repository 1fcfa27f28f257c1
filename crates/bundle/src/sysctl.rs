//! `linux.sysctl`: only what belongs to a namespace of the container may be set.
//!
//! `/proc/sys` is not namespaced as a whole: a key outside this list would change the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::namespaces::Namespaces;
use crate::plan::NamespaceKind;
use crate::{Error, Result};

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Checks the keys and brings them into dotted form, sorted.
///
/// # Errors
/// [`Error::Invalid`] with the key and the namespace it lacks, or the field that says otherwise.
pub(crate) fn checked(
    spec: &BTreeMap<&String, &String>,
    namespaces: &Namespaces,
    domainname: Option<&str>,
) -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for (key, value) in spec {
        let dotted = dotted(key);
        if let Some(why) = refusal(&dotted, namespaces) {
            return Err(Error::invalid(format!("linux.sysctl.{key}"), why));
        }
        if dotted == "kernel.domainname" && domainname.is_some_and(|name| name != value.as_str()) {
            let why = "conflicts with the field domainname";
            return Err(Error::invalid(format!("linux.sysctl.{key}"), why));
        }
        out.push((dotted, (*value).clone()));
    }
    Ok(out)
}

/// sysctl(8): a name whose first separator is a slash has dots and slashes exchanged, e.g.
/// `net/ipv4/conf/eno2.100.rp_filter` is `net.ipv4.conf.eno2/100.rp_filter`.
fn dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'/' => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

fn refusal(key: &str, namespaces: &Namespaces) -> Option<String> {
    // No empty part, whichever way a reader splits the name: so no way to spell `..`.
    if key.split(['.', '/']).any(str::is_empty) {
        return Some("is no name of a kernel parameter".to_owned());
    }
    if IPC.contains(&key) || key.starts_with("fs.mqueue.") {
        return lacks(namespaces, NamespaceKind::Ipc);
    }
    if key.starts_with("net.") {
        let is_host = namespaces
            .path_of(NamespaceKind::Network)
            .is_some_and(|p| is_own_netns(p));
        return lacks(namespaces, NamespaceKind::Network)
            .or_else(|| is_host.then(|| "the network namespace to join is the host's".to_owned()));
    }
    if key.starts_with("user.") {
        return lacks(namespaces, NamespaceKind::User);
    }
    match key {
        "kernel.domainname" => lacks(namespaces, NamespaceKind::Uts),
        "kernel.hostname" => Some("conflicts with the field hostname".to_owned()),
        _ => Some("belongs to no namespace, setting it would change the host".to_owned()),
    }
}

fn lacks(namespaces: &Namespaces, kind: NamespaceKind) -> Option<String> {
    let why = || format!("needs a {} namespace other than the host's", kind.as_str());
    (!namespaces.has(kind)).then(why)
}

/// A path that cannot be read is not ours: joining it will tell why.
fn is_own_netns(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    identity(path).is_some_and(|theirs| identity(Path::new("/proc/self/ns/net")) == Some(theirs))
}
