//! Between containerd's messages and our values; the only file that knows both.

use prost_types::Timestamp as WireTimestamp;
use proto::{snapshots as wire, types};

use crate::{
    CommitRequest, Error, Field, Info, Key, Kind, LABELS_MAX, Labels, Mount, Result, Timestamp,
    Usage, snapshots::Creation,
};

/// Paths in a field mask: all labels that a snapshot may have, old and new.
const FIELDS_MAX: usize = 2 * LABELS_MAX;

/// What Update asks for.
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) fields: Vec<Field>,
    pub(crate) to: Labels,
}

pub(crate) fn creation(key: String, parent: String, labels: Labels) -> Result<Creation> {
    Ok(Creation {
        key: Key::new(key)?,
        parent: optional(parent)?,
        labels,
    })
}

pub(crate) fn commit(request: wire::CommitSnapshotRequest) -> Result<CommitRequest> {
    Ok(CommitRequest {
        name: Key::new(request.name)?,
        key: Key::new(request.key)?,
        parent: optional(request.parent)?,
        labels: request.labels,
    })
}

/// Of an Info only the labels can change; the rest is not looked at, as with containerd.
pub(crate) fn change(request: wire::UpdateSnapshotRequest) -> Result<Change> {
    let missing = || Error::Invalid("an update without the info of a snapshot".to_owned());
    let info = request.info.ok_or_else(missing)?;
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.len() > FIELDS_MAX {
        return Err(Error::Invalid(format!(
            "{} fields are to be updated, at most {FIELDS_MAX} are taken",
            paths.len()
        )));
    }
    let fields = paths.iter().map(|path| Field::parse(path));
    Ok(Change {
        key: Key::new(info.name)?,
        fields: fields.collect::<Result<_>>()?,
        to: info.labels,
    })
}

/// proto3 has an empty text for what is not there.
fn optional(name: String) -> Result<Option<Key>> {
    if name.is_empty() {
        return Ok(None);
    }
    Key::new(name).map(Some)
}

pub(crate) fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let mounts = mounts.into_iter();
    let wire = mounts.map(|mount| types::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: String::new(),
        options: mount.options,
    });
    wire.collect()
}

pub(crate) fn info(info: Info) -> wire::Info {
    let kind = match info.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: info.name.to_string(),
        parent: info
            .parent
            .map_or_else(String::new, |parent| parent.to_string()),
        kind: kind.into(),
        created_at: Some(timestamp(info.created)),
        updated_at: Some(timestamp(info.updated)),
        labels: info.labels,
    }
}

fn timestamp(timestamp: Timestamp) -> WireTimestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = timestamp.0.rem_euclid(SECOND);
    WireTimestamp {
        seconds: timestamp.0.div_euclid(SECOND),
        nanos: i32::try_from(nanos).expect("less than a second"),
    }
}

pub(crate) fn usage(usage: Usage) -> wire::UsageResponse {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    wire::UsageResponse {
        size: signed(usage.bytes),
        inodes: signed(usage.inodes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_keep_their_nanoseconds() {
        let check = |nanoseconds, expected: (i64, i32)| {
            let wire = timestamp(Timestamp(nanoseconds));
            assert_eq!((wire.seconds, wire.nanos), expected);
        };
        check(0, (0, 0));
        check(1_700_000_000_123_456_789, (1_700_000_000, 123_456_789));
        check(-1, (-1, 999_999_999));
    }

    #[test]
    fn sizes_beyond_what_the_message_holds_are_the_largest() {
        let held = Usage {
            bytes: u64::MAX,
            inodes: 7,
        };
        let wire = usage(held);
        assert_eq!((wire.size, wire.inodes), (i64::MAX, 7));
    }

    #[test]
    fn what_is_missing_from_a_request_is_named() {
        let refusal = |outcome: Result<()>| outcome.unwrap_err().to_string();
        let no_key = creation(String::new(), String::new(), Labels::new());
        assert_eq!(refusal(no_key.map(drop)), "the key of a snapshot is empty");
        let update = change(wire::UpdateSnapshotRequest::default());
        assert!(refusal(update.map(drop)).starts_with("an update without"));
        let orphan = creation("a".to_owned(), String::new(), Labels::new()).unwrap();
        assert_eq!(orphan.parent, None);
    }
}
