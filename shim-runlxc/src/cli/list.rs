//! `state` and `list`: what is known about containers, in runc's forms.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use bundle::Status;
use serde::Serialize;
use shim_core::rfc3339;

use super::arguments::{Id, List, ListFormat, ROOT};
use crate::container::Container;
use crate::id::ContainerId;
use crate::{Error, Result};

/// A container as `state` and `list` show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    oci_version: &'static str,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Row {
    fn of(container: &Container, owner: String) -> Result<Self> {
        let (journal, status) = (container.journal(), container.status()?);
        Ok(Self {
            oci_version: bundle::state::OCI_VERSION,
            id: journal.id.clone(),
            pid: if status == Status::Stopped {
                0
            } else {
                container.pid()
            },
            status: status.as_str(),
            bundle: journal.bundle.display().to_string(),
            rootfs: journal.rootfs.display().to_string(),
            created: rfc3339(journal.created_ns),
            annotations: journal.annotations.clone(),
            owner,
        })
    }
}

/// `runlxc state ID`
pub(crate) fn state(root: &Path, id: &Id) -> Result<ExitCode> {
    let container = Container::open(root, &ContainerId::parse(&id.container_id)?)?;
    let row = Row::of(&container, String::new())?;
    let mut text =
        serde_json::to_string_pretty(&row).map_err(|e| Error::io("print the state")(e.into()))?;
    text.push('\n');
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `runlxc list`
pub(crate) fn list(root: &Path, list: &List) -> Result<ExitCode> {
    let rows = rows(root)?;
    let text = if list.quiet {
        rows.iter()
            .fold(String::new(), |text, row| text + &row.id + "\n")
    } else {
        match list.format {
            ListFormat::Table => table(&rows),
            ListFormat::Json => {
                let json = serde_json::to_string(&rows)
                    .map_err(|e| Error::io("print the list")(e.into()))?;
                json + "\n"
            }
        }
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Those that can be read, by id; a container that goes away meanwhile is no failure.
fn rows(root: &Path) -> Result<Vec<Row>> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        // The usual one is made by the first container.
        Err(e) if e.kind() == ErrorKind::NotFound && root == Path::new(ROOT) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::on("read", root)(e)),
    };
    let mut rows = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::on("read", root))?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| ContainerId::parse(name).ok())
        else {
            continue;
        };
        let Some(metadata) = entry.metadata().ok().filter(std::fs::Metadata::is_dir) else {
            continue;
        };
        match Container::open(root, &id)
            .and_then(|container| Row::of(&container, user_name(metadata.uid())))
        {
            Ok(row) => rows.push(row),
            Err(Error::NotFound) => {}
            Err(error) => tracing::warn!(container = %id, error = %error.chain(), "cannot be read"),
        }
    }
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(rows)
}

/// From /etc/passwd alone: a static program has no name service.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

/// Columns as of Go's tabwriter with a least width of 12 and 3 blanks between.
fn table(rows: &[Row]) -> String {
    let mut lines = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.id.clone(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.clone(),
            row.created.clone(),
            row.owner.clone(),
        ]
    }));
    let mut widths = [0; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (cell.chars().count() + 3).max(12).max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let (last, others) = line.split_last().expect("a line has six cells");
        for (cell, width) in others.iter().zip(widths) {
            write!(text, "{cell:<width$}").expect("writing to a String does not fail");
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_runcs() {
        let row = Row {
            oci_version: "1.3.0",
            id: "c1".into(),
            pid: 42,
            status: "running",
            bundle: "/some/where".into(),
            rootfs: "/some/where/rootfs".into(),
            created: "2026-11-24T15:12:00Z".into(),
            annotations: BTreeMap::new(),
            owner: "root".into(),
        };
        assert_eq!(
            table(&[row]),
            "ID          PID         STATUS      BUNDLE        CREATED                OWNER\n\
             c1          42          running     /some/where   2026-11-24T15:12:00Z   root\n"
        );
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(4_000_000_000), "#4000000000");
    }
}
