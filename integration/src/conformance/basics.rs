//! The cases about the life of snapshots: what may follow what, and what must be refused.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use proto::snapshots::{Info, Kind};
use tonic::Status;

use super::{
    Snapshots,
    client::refused,
    stage::{Stage, kept},
    tree::{Change, apply, directory, file, remove_all, same},
};

/// Demands kind and parent of a snapshot, and that it is called what it was asked for by.
fn expect(stage: &Stage<'_>, name: &str, kind: Kind, parent: &str) -> Result<Info> {
    let info = stage
        .snapshots
        .stat(name)
        .with_context(|| format!("Stat of {name}"))?;
    ensure!(info.name == name, "Stat of {name} is of {:?}", info.name);
    ensure!(
        info.kind() == kind,
        "{name} is of kind {}, expected {}",
        info.kind().as_str_name(),
        kind.as_str_name()
    );
    ensure!(
        info.parent == parent,
        "the parent of {name} is {:?}, expected {parent:?}",
        info.parent
    );
    Ok(info)
}

fn first_changes() -> Vec<Change> {
    vec![
        file("foo", "foo\n", 0o777),
        directory("a", 0o755),
        directory("a/b", 0o755),
        directory("a/b/c", 0o755),
    ]
}

fn second_changes() -> Vec<Change> {
    vec![
        file("bar", "bar\n", 0o777),
        file("foo", "bar\n", 0o777),
        remove_all("a/b"),
    ]
}

/// Basic: two layers and a view, and each is what it should be.
pub(super) fn basic(stage: &Stage<'_>) -> Result<()> {
    let flat = stage.directory("flat")?;
    let (preparing, mounted) = stage.prepare_mounted("preparing", "")?;
    apply(mounted.point(), &first_changes())?;
    apply(&flat, &first_changes())?;
    mounted.unmount()?;
    let committed = stage.path("committed");
    stage.commit(&committed, &preparing)?;
    let first = expect(stage, &committed, Kind::Committed, "")?;
    refused(
        "Stat of a key after its Commit",
        stage.snapshots.stat(&preparing),
    )?;

    let (next, mounted) = stage.prepare_mounted("nextlayer", &committed)?;
    same(&flat, mounted.point())?;
    apply(mounted.point(), &second_changes())?;
    apply(&flat, &second_changes())?;
    mounted.unmount()?;
    expect(stage, &next, Kind::Active, &committed)?;
    let next_committed = stage.path("committed-next");
    stage.commit(&next_committed, &next)?;
    let second = expect(stage, &next_committed, Kind::Committed, &committed)?;
    refused(
        "Stat of a key after its Commit",
        stage.snapshots.stat(&next),
    )?;

    let listed = stage.snapshots.list(&[]).context("List")?;
    for info in [&first, &second] {
        let found = listed.iter().find(|listed| listed.name == info.name);
        ensure!(
            found == Some(info),
            "List says {found:?} where Stat says {info:?}"
        );
    }

    let view = stage.path("nextnextlayer");
    let mounts = stage.view(&view, &next_committed)?;
    let mounted = stage.mount(&mounts, "nextnextlayer")?;
    same(&flat, mounted.point())?;
    mounted.unmount()?;
    stage.snapshots.remove(&view)?;

    let status = refused(
        "Remove of a snapshot with a child",
        stage.snapshots.remove(&committed),
    )?;
    ensure!(
        status.message().contains("remove"),
        "the refusal does not say what it refuses to remove: {:?}",
        status.message()
    );
    stage.snapshots.remove(&next_committed)?;
    stage.snapshots.remove(&committed)?;
    Ok(())
}

/// StatActive: what was prepared is active.
pub(super) fn stat_active(stage: &Stage<'_>) -> Result<()> {
    let (key, mounted) = stage.prepare_mounted("preparing", "")?;
    mounted.unmount()?;
    expect(stage, &key, Kind::Active, "").map(drop)
}

/// StatComitted: what was committed is committed.
pub(super) fn stat_committed(stage: &Stage<'_>) -> Result<()> {
    let name = stage.layer("committed", "", &[])?;
    expect(stage, &name, Kind::Committed, "").map(drop)
}

/// TransitivityTest: a parent is the snapshot below, not the lowest one.
pub(super) fn transitivity(stage: &Stage<'_>) -> Result<()> {
    let lower = stage.layer("snapA", "", &[file("foo", "foo\n", 0o777)])?;
    let upper = stage.layer("snapB", &lower, &[file("foo", "foo bar\n", 0o777)])?;
    let parent = |name: &str| Ok::<_, Status>(stage.snapshots.stat(name)?.parent);
    let found = [parent(&lower)?, parent(&upper)?, parent(&parent(&upper)?)?];
    let expected = [String::new(), lower, String::new()];
    ensure!(
        found == expected,
        "the parents of the lower, the upper and the one below the upper are {found:?}, expected {expected:?}"
    );
    Ok(())
}

/// PreareViewFailingtest: a key in use is refused to all comers.
pub(super) fn keys_in_use(stage: &Stage<'_>) -> Result<()> {
    let parent = stage.layer("snapA", "", &[])?;
    let [mixed, active, view] = ["newlayer", "prepLayer", "viewLayer"].map(|key| stage.path(key));
    stage.prepare(&mixed, &parent)?;
    refused(
        "View with the key of a Prepare",
        stage.view(&mixed, &parent),
    )?;
    stage.prepare(&active, &parent)?;
    refused(
        "Prepare with the key of a Prepare",
        stage.prepare(&active, &parent),
    )?;
    stage.view(&view, &parent)?;
    refused("View with the key of a View", stage.view(&view, &parent)).map(drop)
}

/// Remove: keys and names are free again, and a snapshot whose last child went can go.
pub(super) fn remove(stage: &Stage<'_>) -> Result<()> {
    let [active, committed, reused] =
        ["committed-a", "committed-1", "reuse-1"].map(|name| stage.name(name));
    stage.prepare(&active, "")?;
    stage.commit(&committed, &active)?;
    stage.prepare(&reused, &committed)?;
    stage.snapshots.remove(&reused)?;
    stage
        .view(&reused, &committed)
        .context("View with a removed key")?;
    stage.snapshots.remove(&reused)?;
    stage
        .prepare(&reused, "")
        .context("Prepare with a removed key")?;
    stage.snapshots.remove(&committed)?;
    stage
        .commit(&committed, &reused)
        .context("Commit to a removed name")
}

/// RemoveIntermediateSnapshot: not while it has a child.
pub(super) fn remove_intermediate(stage: &Stage<'_>) -> Result<()> {
    let base = stage.layer("committed-base", "", &[])?;
    let [key, middle, top] =
        ["intermediate", "committed-inter", "toplayer"].map(|name| stage.path(name));
    stage.prepare(&key, &base)?;
    stage.commit(&middle, &key)?;
    stage.prepare(&top, &middle)?;
    refused(
        "Remove of a snapshot with a child",
        stage.snapshots.remove(&middle),
    )?;
    for name in [&top, &middle, &base] {
        stage
            .snapshots
            .remove(name)
            .with_context(|| format!("Remove of {name}, which has no child any more"))?;
    }
    Ok(())
}

/// ViewReadonly: nothing can be written to a view.
pub(super) fn view_is_read_only(stage: &Stage<'_>) -> Result<()> {
    let [preparing, committed, view] =
        ["preparing", "committed", "view"].map(|key| stage.path(key));
    stage.prepare(&preparing, "")?;
    stage.commit(&committed, &preparing)?;
    let mounts = stage.view(&view, &committed)?;
    let mounted = stage.mount(&mounts, "view-mount")?;
    // Options are words; only a write proves it.
    let written = fs::write(mounted.point().join("testfile"), "testcontent");
    mounted.unmount()?;
    ensure!(written.is_err(), "a file could be written to a view");
    stage.snapshots.remove(&view)?;
    stage.snapshots.remove(&committed)?;
    Ok(())
}

/// CloseTwice: a client that goes, and goes again, leaves the snapshotter as it was. Close does
/// nothing for a snapshotter behind a socket but to end the connection.
pub(super) fn close_twice(stage: &Stage<'_>) -> Result<()> {
    for round in 0..2 {
        let name = stage.name(&format!("closeTwice-{round}"));
        let prepare = format!("{name}-prepare");
        let client = Snapshots::connect(stage.target)?;
        client.prepare(&prepare, "", kept())?;
        client.commit(&name, &prepare, kept())?;
        client.remove(&name)?;
    }
    stage
        .snapshots
        .list(&[])
        .context("List after others went")?;
    Ok(())
}

/// RootPermission: the root of a snapshot is 0755, whatever the umask of the snapshotter.
pub(super) fn root_permission(stage: &Stage<'_>) -> Result<()> {
    let (_, mounted) = stage.prepare_mounted("preparing", "")?;
    let mode = fs::metadata(mounted.point())?.permissions().mode() & 0o777;
    mounted.unmount()?;
    ensure!(mode == 0o755, "the root has mode {mode:o}, expected 755");
    Ok(())
}
