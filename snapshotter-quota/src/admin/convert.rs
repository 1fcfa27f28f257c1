//! Between our values and those of `pouch.quota.v1`.

use std::time::{Duration, SystemTime};

use proto::quota as wire;
use snapshot_core::{Kind, Snapshot, Timestamp, Usage};
use tonic::{Code, Status};

use crate::{
    backend::{Abilities, Backend, Counting, Full, Resize, Support},
    events::{Event, What},
    limit::{Limit, Mode},
};

pub(super) fn kind(kind: Kind) -> wire::Kind {
    match kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    }
}

/// A snapshot with what is known of it by name; the rest is the caller's.
pub(super) fn snapshot(snapshot: &Snapshot) -> wire::Snapshot {
    let info = &snapshot.info;
    wire::Snapshot {
        key: info.name.to_string(),
        id: snapshot.id.0,
        kind: kind(info.kind).into(),
        parent: info
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        created: timestamp(info.created),
        ..wire::Snapshot::default()
    }
}

pub(super) fn usage(usage: Usage) -> wire::Usage {
    wire::Usage {
        bytes: usage.bytes,
        // A snapshot has two directories at least: where inodes are counted, it is never 0.
        inodes: Some(usage.inodes).filter(|inodes| *inodes > 0),
    }
}

pub(super) fn limit(limit: &Limit) -> wire::Limit {
    wire::Limit {
        mode: match limit.mode {
            Mode::Hard => wire::Mode::Hard,
            Mode::Account => wire::Mode::Account,
            Mode::Off => wire::Mode::Off,
        }
        .into(),
        bytes: limit.bytes.map(|size| size.bytes().get()),
        soft_bytes: limit.soft_bytes.map(|size| size.bytes().get()),
        inodes: limit.inodes.map(|inodes| inodes.count().get()),
        warn: limit.warn.percentages().map(u32::from).collect(),
        group: limit
            .group
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

/// A limit in a few words.
pub(super) fn limit_text(limit: &wire::Limit) -> String {
    let mode = wire::Mode::try_from(limit.mode).unwrap_or_default();
    let parts = [
        limit.bytes.map(|count| format!("{count} bytes")),
        limit
            .soft_bytes
            .map(|count| format!("{count} bytes softly")),
        limit.inodes.map(|count| format!("{count} inodes")),
        (mode == wire::Mode::Account).then(|| "only counted".to_owned()),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if mode == wire::Mode::Off || parts.is_empty() {
        return "none".to_owned();
    }
    parts.join(", ")
}

pub(super) fn event(event: &Event) -> wire::Event {
    wire::Event {
        time: Some(event.time.into()),
        what: match event.what {
            What::Full => wire::What::Full,
            What::Near => wire::What::Near,
            What::Below => wire::What::Below,
            What::Set => wire::What::Set,
            What::Lifted => wire::What::Lifted,
            What::LimitedAgain => wire::What::LimitedAgain,
            What::Escaped => wire::What::Escaped,
            What::Lost => wire::What::Lost,
        }
        .into(),
        key: event
            .key
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        usage: event.usage.map(usage),
        limit: event.limit.as_ref().map(limit),
        text: event.text.clone(),
    }
}

fn timestamp(time: Timestamp) -> Option<prost_types::Timestamp> {
    let nanoseconds = u64::try_from(time.0).ok()?;
    Some((SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)).into())
}

pub(super) fn back_end(backend: &dyn Backend) -> wire::BackEnd {
    wire::BackEnd {
        name: backend.kind().to_string(),
        abilities: sentences(backend.abilities()),
    }
}

/// What a back end can do, for people.
pub(crate) fn sentences(abilities: Abilities) -> Vec<String> {
    let can = |support: Support, what: &str| match support {
        Support::Yes => what.to_owned(),
        Support::No => format!("no {what}"),
    };
    vec![
        match abilities.resize {
            Resize::Both => "limits grow and shrink while in use",
            Resize::AboveUsage => "limits grow and shrink while in use, not below the usage",
            Resize::Grow => "limits grow while in use, and never shrink",
            Resize::Fixed => "limits cannot be changed",
        }
        .to_owned(),
        match abilities.full {
            Full::QuotaExceeded => "a full snapshot answers EDQUOT",
            Full::NoSpace => "a full snapshot answers ENOSPC",
            Full::Never => "nothing is limited",
        }
        .to_owned(),
        can(abilities.inodes, "limits on inodes"),
        can(abilities.soft, "soft limits"),
        can(abilities.groups, "limits shared by groups"),
        match abilities.df {
            Support::Yes => "df shows the limit",
            Support::No => "df shows the host's disk",
        }
        .to_owned(),
        match abilities.counting {
            Counting::Exact => "usage is known exactly",
            Counting::Delayed => "usage is known with up to 30 s of delay",
            Counting::Walk => "usage is found by walking",
        }
        .to_owned(),
    ]
}

/// The gRPC code of a failure.
pub(super) fn status(error: &crate::Error) -> Status {
    let code = match error {
        crate::Error::Core(error) => return snapshot_core::status(error),
        crate::Error::Refused(_) => Code::InvalidArgument,
        crate::Error::NoSuch(_) => Code::NotFound,
        crate::Error::Answered(_) => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Status::new(code, error.in_one_line())
}
