//! A snapshot and an event as the commands show them.

use proto::quota::{self as wire, Kind, Mode, What};
use serde::Serialize;

use super::print::{self, Align, bytes, percent};

/// A snapshot in JSON: exact numbers, nothing left out but what is not there.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotRow {
    pub(super) key: String,
    id: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent: String,
    back_end: String,
    /// Missing for what cannot be written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soft_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_inodes: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warn_percent: Vec<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lifted_until: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
}

impl From<wire::Snapshot> for SnapshotRow {
    fn from(snapshot: wire::Snapshot) -> Self {
        let mode = snapshot.limit.as_ref().map(|limit| mode(limit.mode));
        let limit = snapshot.limit.unwrap_or_default();
        Self {
            kind: match Kind::try_from(snapshot.kind).unwrap_or_default() {
                Kind::Unknown => "unknown",
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            },
            key: snapshot.key,
            id: snapshot.id,
            parent: snapshot.parent,
            back_end: snapshot.back_end,
            mode,
            used_bytes: snapshot.usage.map(|usage| usage.bytes),
            limit_bytes: limit.bytes,
            soft_limit_bytes: limit.soft_bytes,
            used_inodes: snapshot.usage.and_then(|usage| usage.inodes),
            limit_inodes: limit.inodes,
            warn_percent: limit.warn,
            group: limit.group,
            lifted_until: snapshot.lifted_until.and_then(time),
            warnings: snapshot.warnings,
            created: snapshot.created.and_then(time),
        }
    }
}

const HEADS: [(&str, Align); 9] = [
    ("KEY", Align::Left),
    ("USED", Align::Right),
    ("LIMIT", Align::Right),
    ("USE%", Align::Right),
    ("INODES", Align::Right),
    ("ILIMIT", Align::Right),
    ("MODE", Align::Left),
    ("BACKEND", Align::Left),
    ("NOTES", Align::Left),
];

/// A table of snapshots, and what has to be said about some of them below it.
pub(super) fn table(rows: &[SnapshotRow]) -> String {
    let cells: Vec<_> = rows.iter().map(SnapshotRow::cells).collect();
    let mut text = print::table(HEADS, &cells);
    for row in rows {
        for warning in &row.warnings {
            text.push_str(&format!("{}: {warning}\n", row.key));
        }
    }
    text
}

impl SnapshotRow {
    /// How full it is, in percent, by bytes or inodes, whichever is fuller.
    pub(super) fn share(&self) -> u64 {
        let share = |used: Option<u64>, limit: Option<u64>| Some(percent(used?, limit?));
        let shares = [
            share(self.used_bytes, self.limit_bytes),
            share(self.used_inodes, self.limit_inodes),
        ];
        shares.into_iter().flatten().max().unwrap_or(0)
    }

    /// What it holds, for those without a limit.
    pub(super) fn used(&self) -> u64 {
        self.used_bytes.unwrap_or(0)
    }

    fn cells(&self) -> [String; 9] {
        let dash = || "-".to_owned();
        let number = |number: Option<u64>| number.map_or_else(dash, |number| number.to_string());
        let size = |size: Option<u64>| size.map_or_else(dash, bytes);
        let is_limited = self.limit_bytes.or(self.limit_inodes).is_some();
        let mut notes = Vec::new();
        if let Some(until) = &self.lifted_until {
            notes.push(format!("lifted until {until}"));
        }
        if !self.group.is_empty() {
            notes.push(format!("group {}", self.group));
        }
        [
            self.key.clone(),
            size(self.used_bytes),
            size(self.limit_bytes),
            if is_limited && self.used_bytes.is_some() {
                format!("{}%", self.share())
            } else {
                dash()
            },
            number(self.used_inodes),
            number(self.limit_inodes),
            self.mode.map_or_else(dash, str::to_owned),
            self.back_end.clone(),
            notes.join(", "),
        ]
    }
}

/// An event in JSON.
#[derive(Debug, Serialize)]
pub(super) struct EventRow {
    time: String,
    what: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_inodes: Option<u64>,
    text: String,
}

impl From<wire::Event> for EventRow {
    fn from(event: wire::Event) -> Self {
        let limit = event.limit.unwrap_or_default();
        Self {
            time: event.time.and_then(time).unwrap_or_default(),
            what: match What::try_from(event.what).unwrap_or_default() {
                What::Unknown => "unknown",
                What::Full => "full",
                What::Near => "near",
                What::Below => "below",
                What::Set => "set",
                What::Lifted => "lifted",
                What::LimitedAgain => "limited-again",
                What::Escaped => "escaped",
                What::Lost => "lost",
            },
            key: event.key,
            used_bytes: event.usage.map(|usage| usage.bytes),
            limit_bytes: limit.bytes,
            used_inodes: event.usage.and_then(|usage| usage.inodes),
            limit_inodes: limit.inodes,
            text: event.text,
        }
    }
}

impl EventRow {
    /// One line.
    pub(super) fn line(&self) -> String {
        format!(
            "{}  {:<13}  {}  {}\n",
            self.time, self.what, self.key, self.text
        )
    }
}

fn mode(mode: i32) -> &'static str {
    match Mode::try_from(mode).unwrap_or_default() {
        Mode::Off => "off",
        Mode::Account => "account",
        Mode::Hard => "hard",
    }
}

fn time(time: prost_types::Timestamp) -> Option<String> {
    let time = std::time::SystemTime::try_from(time).ok()?;
    Some(print::time(time))
}
