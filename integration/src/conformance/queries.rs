//! The cases about what is asked and told: Update, List with filters, Stat meanwhile.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use prost_types::Timestamp;
use proto::snapshots::{Info, Kind};
use tonic::Code;

use super::{
    client::{Labels, refused},
    stage::{ROOT_LABEL, Stage, kept},
};

/// A snapshot as it must be told.
struct Expected {
    name: String,
    kind: Kind,
    parent: String,
}

/// Two committed snapshots, one on the other; on both and on none an active one and a view.
fn base(stage: &Stage<'_>, prefix: &str) -> Result<Vec<Expected>> {
    let name = |name: &str| stage.name(&format!("{prefix}{name}"));
    let expected = |own: &str, kind, parent: &str| Expected {
        name: name(own),
        kind,
        parent: if parent.is_empty() {
            String::new()
        } else {
            name(parent)
        },
    };
    stage.prepare(&name("c1-a"), "")?;
    stage.commit(&name("c1"), &name("c1-a"))?;
    stage.prepare(&name("c2-a"), &name("c1"))?;
    stage.commit(&name("c2"), &name("c2-a"))?;
    stage.prepare(&name("a1"), &name("c2"))?;
    stage.prepare(&name("a2"), "")?;
    stage.view(&name("v1"), &name("c2"))?;
    stage.view(&name("v2"), "")?;
    Ok(vec![
        expected("c1", Kind::Committed, ""),
        expected("c2", Kind::Committed, "c1"),
        expected("a1", Kind::Active, "c2"),
        expected("a2", Kind::Active, ""),
        expected("v1", Kind::View, "c2"),
        expected("v2", Kind::View, ""),
    ])
}

impl Expected {
    /// Demands what no update may change.
    fn check(&self, info: &Info) -> Result<()> {
        let Self { name, kind, parent } = self;
        ensure!(
            info.name == *name,
            "name {:?}, expected {name:?}",
            info.name
        );
        ensure!(
            info.kind() == *kind,
            "kind {}, expected {}",
            info.kind().as_str_name(),
            kind.as_str_name()
        );
        ensure!(
            info.parent == *parent,
            "parent {:?}, expected {parent:?}",
            info.parent
        );
        Ok(())
    }
}

/// Time since 1970, to the nanosecond.
fn moment(time: Option<Timestamp>) -> Result<Duration> {
    let time = time.context("a time is missing")?;
    let seconds = u64::try_from(time.seconds).context("a time before 1970")?;
    Ok(Duration::new(seconds, u32::try_from(time.nanos)?))
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let own = pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()));
    own.collect()
}

/// Those labels, and the one that keeps garbage collection away.
fn kept_with(pairs: &[(&str, &str)]) -> Labels {
    let mut all = kept();
    all.extend(labels(pairs));
    all
}

fn expect_labels(info: &Info, expected: &Labels) -> Result<()> {
    ensure!(
        info.labels == *expected,
        "labels {:?}, expected {expected:?}",
        info.labels
    );
    Ok(())
}

/// Update: labels change, all or those the mask names; nothing else does.
pub(super) fn update(stage: &Stage<'_>) -> Result<()> {
    let begun = now()?;
    let all = base(stage, "")?;
    let made = now()?;
    for expected in &all {
        let info = stage.snapshots.stat(&expected.name)?;
        let created = moment(info.created_at)?;
        expected
            .check(&info)
            .and_then(|()| {
                ensure!(
                    begun <= created && created <= made,
                    "created at {created:?}, expected between {begun:?} and {made:?}"
                );
                ensure!(
                    info.updated_at == info.created_at,
                    "updated at {:?} before any update, expected {:?}",
                    info.updated_at,
                    info.created_at
                );
                update_one(stage, expected, info)
            })
            .with_context(|| expected.name.clone())?;
    }
    Ok(())
}

fn update_one(stage: &Stage<'_>, expected: &Expected, mut info: Info) -> Result<()> {
    let created = info.created_at;
    let wanted = kept_with(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
    "doesnotexist".clone_into(&mut info.parent);
    info.labels = wanted.clone();
    let begun = now()?;
    let mut info = stage
        .snapshots
        .update(info, &[])
        .context("Update without a mask")?;
    let ended = now()?;
    expected.check(&info)?;
    ensure!(
        info.created_at == created,
        "created at {:?} after an update, expected {created:?}",
        info.created_at
    );
    let updated = moment(info.updated_at)?;
    ensure!(
        begun <= updated && updated <= ended,
        "updated at {updated:?}, expected between {begun:?} and {ended:?}"
    );
    expect_labels(&info, &wanted)?;

    info.labels = labels(&[("l1", "updated"), ("l4", "v4")]);
    let mut info = stage
        .snapshots
        .update(info, &["labels.l1", "labels.l2"])
        .context("Update of two labels")?;
    expect_labels(&info, &kept_with(&[("l1", "updated"), ("l3", "v3")]))?;

    let wanted = kept_with(&[("l4", "v4")]);
    info.labels = wanted.clone();
    let mut info = stage
        .snapshots
        .update(info, &["labels"])
        .context("Update of all labels")?;
    expect_labels(&info, &wanted)?;

    "doesnotexist".clone_into(&mut info.parent);
    let status = refused(
        "Update of the parent",
        stage.snapshots.update(info, &["parent"]),
    )?;
    ensure!(
        status.code() == Code::InvalidArgument,
        "Update of the parent is refused with {:?}, expected InvalidArgument",
        status.code()
    );
    Ok(())
}

/// The snapshots the filters are asked about: name, label `l` (or none).
fn walked(stage: &Stage<'_>, root: &str) -> Result<()> {
    let with = |label: Option<&str>| -> Labels {
        let own = label.map(|value| ("l".to_owned(), value.to_owned()));
        let root = Some((ROOT_LABEL.to_owned(), root.to_owned()));
        root.into_iter().chain(own).collect()
    };
    let prepare = |key: &str, parent: &str, label| {
        stage.snapshots.prepare(key, parent, with(label)).map(drop)
    };
    let name = |name: &str| stage.name(name);
    prepare(&name("a-np"), "", None)?;
    prepare(&name("p-tmp"), "", None)?;
    stage
        .snapshots
        .commit(&name("p"), &name("p-tmp"), with(None))?;
    prepare(&name("a"), &name("p"), None)?;
    stage.snapshots.view(&name("v"), &name("p"), with(None))?;
    prepare(&name("p-wl-tmp"), "", None)?;
    stage
        .snapshots
        .commit(&name("p-wl"), &name("p-wl-tmp"), with(Some("1")))?;
    prepare(&name("a-wl"), &name("p-wl"), Some("2"))?;
    stage
        .snapshots
        .view(&name("v-wl"), &name("p-wl"), with(Some("3")))?;
    prepare(&name("a-np-wl"), "", Some("2"))?;
    Ok(())
}

/// Walk: filters of every kind, one of several, several at once.
pub(super) fn walk(stage: &Stage<'_>) -> Result<()> {
    let root = stage.name("check-walk");
    walked(stage, &root)?;
    let kept = format!("labels.\"{ROOT_LABEL}\"=={root}");
    let [p, both, labelled] = ["p", "a-np-wl", "a-wl"].map(|name| stage.name(name));
    let all = "a-np p a v p-wl a-wl v-wl a-np-wl";
    let questions = [
        (all, vec![kept.clone()]),
        ("a-np a a-wl a-np-wl", vec![format!("kind==active,{kept}")]),
        ("v v-wl", vec![format!("kind==view,{kept}")]),
        ("p p-wl", vec![format!("kind==committed,{kept}")]),
        (
            "p a-np-wl",
            vec![format!("name=={p}"), format!("name=={both}")],
        ),
        ("a-wl", vec![format!("name=={labelled},labels.l")]),
        ("a v", vec![format!("parent=={p}")]),
        ("a v a-wl v-wl", vec![format!("parent!=\"\",{kept}")]),
        ("p-wl a-wl v-wl a-np-wl", vec!["labels.l".to_owned()]),
        ("a-wl a-np-wl", vec!["labels.l==2".to_owned()]),
    ];
    for (expected, filters) in questions {
        let expected: BTreeSet<String> = expected.split(' ').map(|name| stage.name(name)).collect();
        let listed = stage
            .snapshots
            .list(&filters)
            .with_context(|| format!("List of {filters:?}"))?;
        let names: Vec<&String> = listed
            .iter()
            .map(|info| &info.name)
            .filter(|name| stage.owns(name))
            .collect();
        let found: BTreeSet<String> = names.iter().map(|&name| name.clone()).collect();
        ensure!(
            found == expected && names.len() == found.len(),
            "List of {filters:?} finds {names:?}, expected {expected:?}"
        );
    }
    Ok(())
}

/// StatInWalk: a snapshot can be looked at while a list is open, and is the one that was listed.
pub(super) fn stat_in_walk(stage: &Stage<'_>) -> Result<()> {
    let all = base(stage, "stats-in-walk-")?;
    let stat = |name: &str| {
        let asked = stage.snapshots.stat(name);
        asked.with_context(|| format!("Stat of {name} while a list is open"))
    };
    let mut listing = stage.snapshots.open_list(&[]).context("List")?;
    // Before anything of it was read.
    stat(&all[0].name)?;
    let mut listed = BTreeSet::new();
    while let Some(part) = stage.snapshots.next_of(&mut listing).context("List")? {
        for info in part.into_iter().filter(|info| stage.owns(&info.name)) {
            let alone = stat(&info.name)?;
            ensure!(info == alone, "List says {info:?}, Stat says {alone:?}");
            listed.insert(info.name);
        }
    }
    for expected in &all {
        ensure!(
            listed.contains(&expected.name),
            "{} is not listed",
            expected.name
        );
    }
    Ok(())
}
