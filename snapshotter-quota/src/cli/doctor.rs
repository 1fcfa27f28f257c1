//! `doctor`: asks the daemon, or, while it does not run, makes its store anew.

use std::process::ExitCode;

use proto::quota::{DoctorRequest, Severity, StatusRequest};
use serde::Serialize;

use super::{
    arguments::{Doctor, Output},
    client::Client,
    print::{self, Align},
};
use crate::{Error, Result, config::Config};

#[derive(Debug, Serialize)]
struct Row {
    severity: &'static str,
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

/// `doctor`; fails when there is something that somebody must act on.
pub(super) fn doctor(config: &Config, doctor: &Doctor) -> Result<ExitCode> {
    if doctor.rebuild {
        return rebuild(config, doctor);
    }
    let client = Client::new(&config.address)?;
    let status = client.call(|mut daemon| async move { daemon.status(StatusRequest {}).await })?;
    let answer = client.call(|mut daemon| async move { daemon.doctor(DoctorRequest {}).await })?;
    let mut rows = vec![Row {
        severity: "ok",
        what: format!(
            "snapshotter-quota {} serves {} snapshots of {}",
            status.version, status.snapshots, status.root
        ),
        advice: String::new(),
    }];
    rows.extend(answer.findings.into_iter().map(|finding| Row {
        severity: match Severity::try_from(finding.severity).unwrap_or_default() {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        },
        what: finding.what,
        advice: finding.advice,
    }));
    let is_ill = rows.iter().any(|row| row.severity == "error");
    match doctor.printed.output {
        Output::Json => print::json(&rows)?,
        Output::Table => print::out(&table(rows))?,
    }
    Ok(if is_ill {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn table(rows: Vec<Row>) -> String {
    let cells: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let what = match row.advice.is_empty() {
                true => row.what,
                false => format!("{}: {}", row.what, row.advice),
            };
            [row.severity.to_owned(), what]
        })
        .collect();
    let heads = [("SEVERITY", Align::Left), ("WHAT", Align::Left)];
    print::table(heads, &cells)
}

fn rebuild(config: &Config, doctor: &Doctor) -> Result<ExitCode> {
    let root = doctor.root.as_deref().unwrap_or(&config.root);
    if !root.join("snapshots").is_dir() {
        return Err(Error::Answered(format!(
            "{} has no directory `snapshots`, so it is the root of no snapshotter; name the right \
             one by --root (with the back end pool it is ROOT/pool)",
            root.display()
        )));
    }
    let rebuilt = snapshot_core::rebuild(root)?;
    let mut text = format!("{} snapshots are there again\n", rebuilt.restored);
    for (id, why) in &rebuilt.set_aside {
        text.push_str(&format!(
            "snapshot {id} is set aside as {}: {why}\n",
            root.join(format!("snapshots/lost-{id}")).display()
        ));
    }
    if let Some(old) = &rebuilt.old_store {
        text.push_str(&format!("the old store is kept as {}\n", old.display()));
    }
    print::out(&text)?;
    Ok(if rebuilt.set_aside.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
