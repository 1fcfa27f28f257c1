//! Whether containerd, asked for our name, asks this daemon: it may have a name and another's socket.

use std::path::Path;

use proto::quota::{Finding, Severity, StatusRequest, StatusResponse, quota_client::QuotaClient};
use tonic::Code;

use super::doctor::finding;
use crate::{
    Result,
    containerd::{Containerd, Registration, endpoint},
};

/// This daemon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    /// Directory of its snapshots.
    pub(super) root: &'a Path,
    /// Its socket.
    pub(super) address: &'a Path,
}

/// Who answers at a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Us,
    Other { root: String, pid: u32 },
    NoneOfOurs,
    Nobody(String),
}

/// Whether containerd answers, knows us, and asks us.
pub(super) async fn findings(containerd: Option<&Containerd>, own: Own<'_>) -> Vec<Finding> {
    let Some(containerd) = containerd else {
        return vec![finding(
            Severity::Warning,
            "containerd's socket is not known, so `set` does not change its labels".to_owned(),
            "name it as `containerd` in the configuration",
        )];
    };
    let found = match registration(containerd, own).await {
        Ok(finding) => finding,
        Err(error) => finding(Severity::Error, error.in_one_line(), ""),
    };
    vec![found]
}

async fn registration(containerd: &Containerd, own: Own<'_>) -> Result<Finding> {
    let socket = containerd.socket().display();
    let name = containerd.snapshotter();
    let address = match containerd.registration().await? {
        Registration::Missing => {
            return Ok(finding(
                Severity::Error,
                format!("containerd at {socket} does not know this snapshotter"),
                "put what `snapshotter-quota config containerd` prints into its configuration, \
                 and restart it",
            ));
        }
        Registration::BuiltIn => {
            return Ok(finding(
                Severity::Error,
                format!("containerd at {socket} has a snapshotter of its own named {name:?}"),
                "choose another `name` in the configuration, and put what `snapshotter-quota \
                 config containerd` prints into containerd's",
            ));
        }
        Registration::Proxy(address) => address,
    };
    let at = address.display();
    let who = match ask(&address, own).await? {
        Found::Us => {
            let what = format!("containerd at {socket} has this snapshotter");
            return Ok(finding(Severity::Ok, what, ""));
        }
        Found::Other { root, pid } => {
            format!("is another daemon's (process {pid}, snapshots below {root})")
        }
        Found::NoneOfOurs => "is that of another program".to_owned(),
        Found::Nobody(why) => format!("answers nobody ({why})"),
    };
    Ok(finding(
        Severity::Error,
        format!("containerd at {socket} asks for {name:?} at the socket {at}, which {who}"),
        &format!(
            "set `address = {:?}` under [proxy_plugins.{name}] in containerd's configuration, or \
             `address = {at:?}` in this daemon's, and restart the one that was changed",
            own.address.display().to_string(),
            at = at.to_string(),
        ),
    ))
}

async fn ask(address: &Path, own: Own<'_>) -> Result<Found> {
    let channel = match endpoint(address)?.connect().await {
        Ok(channel) => channel,
        Err(error) => return Ok(Found::Nobody(snapshot_core::one_line(&error))),
    };
    let answer = QuotaClient::new(channel).status(StatusRequest {}).await;
    Ok(match answer {
        Ok(answer) => told(answer.into_inner(), own.root, std::process::id()),
        Err(status) if status.code() == Code::Unimplemented => Found::NoneOfOurs,
        Err(status) => Found::Nobody(status.message().to_owned()),
    })
}

/// A pid alone may be another one's in another namespace, a root alone that of a copy.
fn told(status: StatusResponse, root: &Path, pid: u32) -> Found {
    match status.pid == pid && Path::new(&status.root) == root {
        true => Found::Us,
        false => Found::Other {
            root: status.root,
            pid: status.pid,
        },
    }
}
