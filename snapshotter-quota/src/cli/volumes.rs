//! `volumes`: PouchContainer's rules for what is mounted into a container besides its root.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    arguments::{Output, Volumes},
    print::{self, Align},
};
use crate::{
    Result,
    backend::{LimitedVolume, Volume, limit_volumes, volume_projects},
};

#[derive(Debug, Serialize)]
struct Row {
    path: String,
    directory: String,
    limit_bytes: u64,
    project: u32,
}

impl From<LimitedVolume> for Row {
    fn from(limited: LimitedVolume) -> Self {
        Self {
            path: limited.volume.path.as_str().to_owned(),
            directory: limited.volume.directory.display().to_string(),
            limit_bytes: limited.size.bytes().get(),
            project: limited.project,
        }
    }
}

/// `volumes`
pub(super) fn volumes(asked: &Volumes) -> Result<()> {
    let limited = limit_volumes(&asked.rules, &asked.volumes, volume_projects())?;
    let rows: Vec<_> = limited.into_iter().map(Row::from).collect();
    match asked.printed.output {
        Output::Json => print::json(&rows),
        Output::Table => print::out(&table(&rows)),
    }
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.path.clone(),
                row.directory.clone(),
                print::bytes(row.limit_bytes),
                row.project.to_string(),
            ]
        })
        .collect();
    let heads = [
        ("PATH", Align::Left),
        ("DIRECTORY", Align::Left),
        ("LIMIT", Align::Right),
        ("PROJECT", Align::Right),
    ];
    print::table(heads, &cells)
}

/// `PATH=DIRECTORY`, as in `/data=/srv/web/data`.
pub(super) fn volume(text: &str) -> Result<Volume, String> {
    let (path, directory) = text
        .split_once('=')
        .ok_or("a volume is PATH=DIRECTORY, as in /data=/srv/web/data")?;
    let directory = PathBuf::from(directory);
    if !directory.is_absolute() {
        return Err(format!("{} is no absolute path", directory.display()));
    }
    Ok(Volume {
        path: path.parse().map_err(|why| format!("{why}"))?,
        directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_a_path_and_a_directory() {
        let read = volume("/data=/srv/a=b").unwrap();
        assert_eq!(read.path.as_str(), "/data");
        assert_eq!(read.directory, PathBuf::from("/srv/a=b"));
        for wrong in ["/data", "/data=srv", "data=/srv", "/a/../b=/srv", "=/srv"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }
}
