//! `parse`: what a text of PouchContainer's `--disk-quota` means here.

use serde::Serialize;

use super::{
    arguments::{Output, Parse},
    print::{self, Align},
};
use crate::{
    Result,
    limit::{ContainerPath, MAX_SIZE, PathRules, Place},
};

#[derive(Debug, Serialize)]
struct Row {
    /// Empty for a rule that is for each place.
    paths: Vec<String>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Parsed {
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    rules: Vec<Row>,
}

/// `parse`
pub(super) fn parse(parse: &Parse) -> Result<()> {
    let parsed = parsed(&parse.rules);
    match parse.printed.output {
        Output::Json => print::json(&parsed),
        Output::Table => print::out(&table(&parsed)),
    }
}

fn parsed(rules: &PathRules) -> Parsed {
    let row = |rule: &crate::limit::PathRule| Row {
        paths: match &rule.place {
            Place::Each => Vec::new(),
            Place::Together(paths) => paths
                .iter()
                .map(ContainerPath::as_str)
                .map(str::to_owned)
                .collect(),
        },
        bytes: rule.size.bytes().get(),
    };
    Parsed {
        label: rules.root_size().map(|size| format!("{MAX_SIZE}={size}")),
        rules: rules.rules().map(row).collect(),
    }
}

fn table(parsed: &Parsed) -> String {
    let rows: Vec<_> = parsed
        .rules
        .iter()
        .map(|row| {
            let what = match row.paths.as_slice() {
                [] => "the snapshot and every volume, each",
                [path] if path == "/" => "the snapshot",
                [_] => "the volume mounted there",
                _ => "these together",
            };
            let paths = match row.paths.is_empty() {
                true => ".*".to_owned(),
                false => row.paths.join(" "),
            };
            [paths, row.bytes.to_string(), what.to_owned()]
        })
        .collect();
    let heads = [
        ("PATHS", Align::Left),
        ("BYTES", Align::Right),
        ("FOR", Align::Left),
    ];
    let mut text = print::table(heads, &rows);
    if let Some(label) = &parsed.label {
        text.push_str(&format!("\nlabel of the snapshot: {label}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_explained_with_the_label_that_does_the_same() {
        let shown = |text: &str| table(&parsed(&text.parse().unwrap()));
        assert_eq!(
            shown("/=10g&/data=20g"),
            "PATHS        BYTES  FOR\n\
             /      10737418240  the snapshot\n\
             /data  21474836480  the volume mounted there\n\
             \n\
             label of the snapshot: containerd.io/snapshot/max-size=10737418240\n"
        );
        assert_eq!(
            shown("/a&/b=1k"),
            "PATHS  BYTES  FOR\n/a /b   1024  these together\n"
        );
    }
}
