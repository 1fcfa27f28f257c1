//! What is not as it should be, while the daemon runs.

use proto::quota::{Finding, Severity};

use super::Parts;
use crate::backend::Kind;

/// Below this share of a file system, in percent, it is worth saying.
const FREE_PERCENT_MIN: u64 = 5;

pub(super) fn finding(severity: Severity, what: String, advice: &str) -> Finding {
    Finding {
        severity: severity.into(),
        what,
        advice: advice.to_owned(),
    }
}

/// What this daemon sees by itself. Blocks.
pub(super) fn findings(parts: &Parts) -> Vec<Finding> {
    let mut findings = vec![back_end(parts)];
    findings.extend(room(parts));
    findings.extend(left_over(parts));
    let audited = parts.auditor.all();
    findings.extend(audited.escapes.into_iter().map(|(key, how)| {
        finding(
            Severity::Error,
            format!("{key} was taken out of its account: {how}"),
            "it was put back; run the container in a user namespace, or with what \
             `snapshotter-quota config seccomp` prints",
        )
    }));
    findings.extend(audited.lost.into_iter().map(|(key, how)| {
        finding(
            Severity::Error,
            format!("the disk image of {key} lost writes: {how}"),
            "the host's disk was full or is failing: make room on it, remove the snapshot and make \
             it again",
        )
    }));
    findings.extend(audited.strays.into_iter().map(|stray| {
        finding(
            Severity::Warning,
            format!(
                "{} belongs to no snapshot and uses {} bytes and {} inodes",
                stray.what, stray.usage.bytes, stray.usage.inodes
            ),
            "deleted files that a process keeps open, or files that were taken out of a snapshot; \
             it is given back when nothing uses it",
        )
    }));
    findings.extend(
        audited
            .errors
            .into_iter()
            .map(|error| finding(Severity::Error, error.in_one_line(), "")),
    );
    findings
}

fn back_end(parts: &Parts) -> Finding {
    let kind = parts.driver.backends().chosen().kind();
    match kind {
        Kind::None => finding(
            Severity::Warning,
            "the back end is none: no limit holds".to_owned(),
            "see `snapshotter-quota probe`",
        ),
        _ => finding(Severity::Ok, format!("the back end is {kind}"), ""),
    }
}

fn room(parts: &Parts) -> Option<Finding> {
    let root = &parts.root;
    let room = match nix::sys::statvfs::statvfs(root) {
        Ok(room) => room,
        Err(errno) => {
            let what = format!("{} cannot be looked at: {errno}", root.display());
            return Some(finding(Severity::Error, what, ""));
        }
    };
    let percent = |free: u64, all: u64| (free * 100).checked_div(all).unwrap_or(100);
    let blocks = percent(room.blocks_available(), room.blocks());
    let inodes = percent(room.files_available(), room.files());
    let (what, share) = if blocks <= inodes {
        ("bytes", blocks)
    } else {
        ("inodes", inodes)
    };
    (share < FREE_PERCENT_MIN).then(|| {
        finding(
            Severity::Warning,
            format!("{share}% of the {what} of {} are free", root.display()),
            "snapshots fail to be written before they reach their limits",
        )
    })
}

fn left_over(parts: &Parts) -> Option<Finding> {
    let (count, why) = parts.snapshots.left_over()?;
    Some(finding(
        Severity::Warning,
        format!("{count} directories of removed snapshots are left; the first: {why}"),
        "they are tried again when containerd collects garbage, and at the daemon's next start",
    ))
}
