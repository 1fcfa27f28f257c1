//! A snapshot as text: the value in the store and the sidecar file. Every text has its version, so
//! that a later format can be told from a torn one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Info, Key, Kind, Note, Snapshot, SnapshotId, Timestamp, Usage};

/// What this code writes; it reads no other.
const VERSION: u32 = 1;

/// Field by field what [`Snapshot`] has.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    id: u64,
    name: String,
    kind: KindName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Nanoseconds since 1970, as the next.
    created: i64,
    updated: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<UsageRecord>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindName {
    View,
    Active,
    Committed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageRecord {
    bytes: u64,
    inodes: u64,
}

pub(super) fn to_text(snapshot: &Snapshot) -> Vec<u8> {
    let info = &snapshot.info;
    let record = Record {
        version: VERSION,
        id: snapshot.id.0,
        name: info.name.as_str().to_owned(),
        kind: match info.kind {
            Kind::View => KindName::View,
            Kind::Active => KindName::Active,
            Kind::Committed => KindName::Committed,
        },
        parent: info.parent.as_ref().map(|key| key.as_str().to_owned()),
        created: info.created.0,
        updated: info.updated.0,
        labels: info.labels.clone(),
        note: snapshot.note.0.clone(),
        usage: snapshot.usage.map(|usage| UsageRecord {
            bytes: usage.bytes,
            inodes: usage.inodes,
        }),
    };
    let mut text = serde_json::to_vec(&record).expect("strings and numbers become JSON");
    text.push(b'\n');
    text
}

/// # Errors
/// What is wrong with the text.
pub(super) fn from_text(text: &[u8]) -> Result<Snapshot, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.version != VERSION {
        return Err(format!(
            "it has version {}, this program knows version {VERSION}",
            record.version
        ));
    }
    let key = |name: String| Key::new(name).map_err(|error| error.to_string());
    Ok(Snapshot {
        id: SnapshotId(record.id),
        info: Info {
            name: key(record.name)?,
            parent: record.parent.map(key).transpose()?,
            kind: match record.kind {
                KindName::View => Kind::View,
                KindName::Active => Kind::Active,
                KindName::Committed => Kind::Committed,
            },
            created: Timestamp(record.created),
            updated: Timestamp(record.updated),
            labels: record.labels,
        },
        note: Note(record.note),
        usage: record.usage.map(|usage| Usage {
            bytes: usage.bytes,
            inodes: usage.inodes,
        }),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        pub(crate) fn snapshot()(
            id in any::<u64>(),
            name in "\\PC{1,20}",
            parent in proptest::option::of("\\PC{1,20}"),
            kind in prop_oneof![Just(Kind::View), Just(Kind::Active), Just(Kind::Committed)],
            (created, updated) in any::<(i64, i64)>(),
            labels in proptest::collection::btree_map("\\PC{0,9}", ".{0,9}", 0..4),
            note in "\\PC{0,20}",
            usage in proptest::option::of(any::<(u64, u64)>()),
        ) -> Snapshot {
            Snapshot {
                id: SnapshotId(id),
                info: Info {
                    name: Key::new(name).unwrap(),
                    parent: parent.map(|name| Key::new(name).unwrap()),
                    kind,
                    created: Timestamp(created),
                    updated: Timestamp(updated),
                    labels,
                },
                note: Note(note),
                usage: usage.map(|(bytes, inodes)| Usage { bytes, inodes }),
            }
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_survives_being_written(snapshot in snapshot()) {
            prop_assert_eq!(from_text(&to_text(&snapshot)), Ok(snapshot));
        }

        #[test]
        fn a_torn_text_is_no_snapshot(snapshot in snapshot(), keep in 0.0..1.0) {
            let text = to_text(&snapshot);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a small length"
            )]
            let torn = &text[..((text.len() - 1) as f64 * keep) as usize];
            prop_assert!(from_text(torn).is_err());
        }
    }

    #[test]
    fn texts_of_other_versions_and_with_other_fields_are_refused() {
        let check = |text: &str, expected: &str| {
            let why = from_text(text.as_bytes()).unwrap_err();
            assert!(why.contains(expected), "{why}");
        };
        let head = r#""id":1,"name":"a","kind":"active","created":1,"updated":1"#;
        assert!(from_text(format!(r#"{{"version":1,{head}}}"#).as_bytes()).is_ok());
        check(&format!(r#"{{"version":2,{head}}}"#), "version 2");
        check(
            &format!(r#"{{"version":1,{head},"size":1}}"#),
            "unknown field `size`",
        );
        check(&format!("{{{head}}}"), "missing field `version`");
        check(r#"{"version":1}"#, "missing field");
        check(
            r#"{"version":1,"id":1,"name":"","kind":"view","created":1,"updated":1}"#,
            "empty",
        );
    }
}
