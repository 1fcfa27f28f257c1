//! `probe`: which back ends work on the file system of a root.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;

use super::{
    arguments::{Output, Probe},
    print::{self, Align},
};
use crate::{
    Result,
    admin::sentences,
    backend::{self, Kind, Options},
    config::Config,
};

/// Of `image` alone.
const OWN_DATA: &str =
    "its own data counts: up to 27 % of a limit of 300 MiB, 10 % of 1 GiB, 3 % of 10 GiB";

#[derive(Debug, Serialize)]
struct Row {
    back_end: &'static str,
    works: bool,
    /// What it can do, or why it does not work.
    notes: Vec<String>,
}

/// `probe`; fails when none of what was asked for works.
pub(super) fn probe(config: &Config, probe: &Probe) -> Result<ExitCode> {
    let root = probe.root.as_deref().unwrap_or(&config.root);
    let _made = Made::new(root)?;
    let kinds = match probe.backend {
        Some(kind) => vec![kind],
        None => Kind::ALL.to_vec(),
    };
    let options = config.backend.options()?;
    let rows: Vec<_> = kinds
        .into_iter()
        .map(|kind| row(kind, root, &options))
        .collect();
    match probe.printed.output {
        Output::Json => print::json(&rows)?,
        Output::Table => print::out(&table(&rows))?,
    }
    let is_any = rows.iter().any(|row| row.works);
    Ok(if is_any {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Directories made for the trial, which go with it: whoever only asks must find nothing new afterwards.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

impl Made {
    fn new(root: &Path) -> Result<Self> {
        let missing = root
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let this = Self(missing.map(Path::to_owned).collect());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.map_err(snapshot_core::Error::io("make", root))?;
        Ok(this)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Somebody has put something into it meanwhile.
            let _used = fs::remove_dir(path);
        }
    }
}

fn row(kind: Kind, root: &Path, options: &Options) -> Row {
    match backend::probe(kind, root, options) {
        Ok(abilities) => Row {
            back_end: kind.name(),
            works: true,
            notes: {
                let mut notes = sentences(abilities);
                if kind == Kind::Image {
                    notes.push(OWN_DATA.to_owned());
                }
                notes
            },
        },
        Err(error) => Row {
            back_end: kind.name(),
            works: false,
            notes: vec![error.in_one_line()],
        },
    }
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let works = if row.works { "yes" } else { "no" };
            [
                row.back_end.to_owned(),
                works.to_owned(),
                row.notes.join("; "),
            ]
        })
        .collect();
    let heads = [
        ("BACKEND", Align::Left),
        ("WORKS", Align::Left),
        ("NOTES", Align::Left),
    ];
    print::table(heads, &cells)
}
