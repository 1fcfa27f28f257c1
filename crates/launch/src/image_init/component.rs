//! Operators' components as jobs of an image's init: what each runs is in a file of ours, which the stub
//! reads as the main process of the job, so that no init has arguments to unquote.

use std::ffi::CString;
use std::fs;

use nix::unistd::{Gid, Uid, execv, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, host};
use crate::init::End;
use crate::plan::{Ready, Service, ServiceKind, When};

use super::accounts::{self, Account};
use super::application::refuse_elsewhere;
use super::files::{make_directory, write};
use super::{OWN, refusal};

/// A component of which only its name is told to the init.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) when: When,
    /// Whether it says itself when it is ready.
    pub(super) is_notifying: bool,
}

/// What its process does.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    args: Vec<String>,
    /// User, group, supplementary groups; none: root.
    account: Option<(u32, u32, Vec<u32>)>,
}

fn directory() -> String {
    format!("{OWN}/components")
}

/// Writes what they run, with the image's numbers of their users.
pub(super) fn prepare(services: &[Service]) -> Result<Vec<Component>> {
    if !services.is_empty() {
        make_directory(&directory())?;
    }
    services.iter().map(prepare_one).collect()
}

fn prepare_one(service: &Service) -> Result<Component> {
    let ServiceKind::Command { args, ready } = &service.kind else {
        return Err(refusal("a component is a command"));
    };
    let account = service.user.as_deref().map(|name| {
        let found = accounts::find(&format!("component {}", service.name), name);
        found.map(|it: Account| (it.uid, it.gid, it.additional_gids))
    });
    let job = Job {
        args: args.clone(),
        account: account.transpose()?,
    };
    let bytes = postcard::to_allocvec(&job).map_err(Error::Malformed)?;
    write(&format!("{}/{}", directory(), service.name), &bytes, 0o600)?;
    Ok(Component {
        name: service.name.clone(),
        when: service.when,
        is_notifying: *ready == Ready::Notified,
    })
}

/// Becomes a component; returns only on failure.
///
/// # Errors
/// What keeps it from being that.
pub fn component(name: &str) -> Result<End> {
    refuse_elsewhere()?;
    let path = format!("{}/{name}", directory());
    let bytes = fs::read(&path).map_err(host(|| format!("read {path}")))?;
    let Job { args, account } = postcard::from_bytes(&bytes).map_err(Error::Malformed)?;
    if let Some((uid, gid, groups)) = account {
        let groups: Vec<_> = groups.into_iter().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&groups)
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(host(|| format!("become user {uid}")))?;
    }
    let c_strings = args.iter().map(|word| CString::new(word.as_str()));
    let words = c_strings.collect::<std::result::Result<Vec<_>, _>>();
    let words = words.map_err(|_nul| refusal(format!("component {name}: a NUL character")))?;
    let program = words.first().ok_or_else(|| refusal("no command"))?;
    match execv(program, &words) {
        Ok(never) => match never {},
        Err(errno) => Err(host(|| format!("execute {}", args[0]))(errno)),
    }
}
