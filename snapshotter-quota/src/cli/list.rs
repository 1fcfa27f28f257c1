//! `ls`, `top` and `get`.

use std::io::IsTerminal;

use proto::quota::{ListRequest, Scope};

use super::{
    arguments::{Get, List, Output, Top},
    client::Client,
    print,
    row::{self, SnapshotRow},
};
use crate::{Error, Result};

/// Clears the screen and goes to its first line (ECMA-48: ED 2, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// `ls`
pub(super) fn list(client: &Client, list: &List) -> Result<()> {
    let scope = if list.all {
        Scope::All
    } else {
        Scope::Writable
    };
    let mut rows = rows(client, list.name.as_deref().unwrap_or_default(), scope)?;
    rows.sort_by(|left, right| order(&left.key).cmp(&order(&right.key)));
    match (&list.name, rows.is_empty()) {
        (Some(name), true) => {
            if list.printed.output == Output::Json {
                show(&rows, Output::Json)?;
            }
            Err(Error::NoSuch(name.clone()))
        }
        _ => show(&rows, list.printed.output),
    }
}

/// `get`
pub(super) fn get(client: &Client, get: &Get) -> Result<()> {
    let rows = rows(client, &get.key, Scope::All)?;
    match (rows.as_slice(), get.printed.output) {
        ([], _) => Err(Error::NoSuch(get.key.clone())),
        ([one], Output::Json) => print::json(one),
        (rows, output) => show(rows, output),
    }
}

/// `top`
pub(super) fn top(client: &Client, top: &Top) -> Result<()> {
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let mut rows = rows(client, "", Scope::Writable)?;
        rows.sort_by_key(|row| std::cmp::Reverse((row.share(), row.used())));
        rows.truncate(top.number);
        let table = row::table(&rows);
        match (top.once, is_terminal) {
            (true, _) => return print::out(&table),
            (false, true) => print::out(&format!("{CLEAR}{table}"))?,
            (false, false) => print::out(&format!("{table}\n"))?,
        }
        client.pause(top.interval);
    }
}

fn rows(client: &Client, name: &str, scope: Scope) -> Result<Vec<SnapshotRow>> {
    let request = ListRequest {
        name: name.to_owned(),
        scope: scope.into(),
    };
    let mut stream = client.call(|mut daemon| async move { daemon.list(request).await })?;
    let mut rows = Vec::new();
    while let Some(snapshot) = client.next(&mut stream)? {
        rows.push(SnapshotRow::from(snapshot));
    }
    Ok(rows)
}

/// Parts of a key that are numbers are compared as numbers, and come before names.
fn order(key: &str) -> Vec<(u64, &str)> {
    let parts = key.split('/');
    parts
        .map(|part| (part.parse().unwrap_or(u64::MAX), part))
        .collect()
}

fn show(rows: &[SnapshotRow], output: Output) -> Result<()> {
    match output {
        Output::Table => print::out(&row::table(rows)),
        Output::Json => print::json(&rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_keys_are_compared_as_numbers() {
        let mut keys = ["b/1/x", "a/10/x", "a/9/x", "a/9/b", "a", "2"];
        keys.sort_by(|left, right| order(left).cmp(&order(right)));
        assert_eq!(keys, ["2", "a", "a/9/b", "a/9/x", "a/10/x", "b/1/x"]);
    }
}
