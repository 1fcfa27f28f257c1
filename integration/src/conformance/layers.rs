//! The cases about what is in a layer: each is built on snapshots and flat, and both must be the same.

use anyhow::{Context, Result};

use super::{
    DirectoryRename,
    stage::Stage,
    tree::{
        Change, apply, directory, file, link, owned, remove_all, rename as renamed, same, stamp,
    },
};

/// Builds the layers one on the other, and looks at each through a view.
fn check(stage: &Stage<'_>, prefix: &str, layers: &[Vec<Change>]) -> Result<()> {
    let flat = stage.directory(&format!("{prefix}-flat"))?;
    let mut parent = String::new();
    for (number, changes) in layers.iter().enumerate() {
        let name = format!("{prefix}-{number}");
        let layer = stage
            .layer(&name, &parent, changes)
            .with_context(|| format!("making layer {number}"))?;
        apply(&flat, changes)?;
        let view = format!("{name}-view");
        let key = stage.path(&view);
        let mounts = stage
            .view(&key, &layer)
            .with_context(|| format!("View of layer {number}"))?;
        let mounted = stage.mount(&mounts, &view)?;
        same(&flat, mounted.point()).with_context(|| format!("looking at layer {number}"))?;
        mounted.unmount()?;
        stage.snapshots.remove(&key)?;
        parent = layer;
    }
    Ok(())
}

/// LayerFileupdate: a file that changes and keeps its size. The Go suite waits for the next second
/// four times, for a better chance that both versions are of one and the same second; here they are
/// stamped with the same nanosecond.
pub(super) fn file_update(stage: &Stage<'_>) -> Result<()> {
    let lower = vec![
        directory("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1", 0o644),
        stamp("etc/hosts"),
        file("etc/profile", "PATH=/usr/bin", 0o644),
        stamp("etc/profile"),
    ];
    let upper = vec![
        file("etc/hosts", "mydomain 10.0.0.2", 0o644),
        stamp("etc/hosts"),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        stamp("etc/profile"),
        directory("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
    ];
    check(stage, "layer", &[lower, upper])
}

/// RemoveDirectoryInLowerLayer: a directory in the place of a removed one shows nothing of it.
pub(super) fn replaced_directory(stage: &Stage<'_>) -> Result<()> {
    let layers = [
        vec![directory("lib", 0o700), file("lib/hidden", "", 0o644)],
        vec![
            remove_all("lib"),
            directory("lib", 0o700),
            file("lib/not-hidden", "", 0o644),
        ],
        vec![file("lib/newfile", "", 0o644)],
    ];
    check(stage, "layer", &layers)
}

/// Chown: owners of directories and files of a lower layer.
pub(super) fn chown(stage: &Stage<'_>) -> Result<()> {
    let lower = vec![
        directory("opt", 0o700),
        directory("opt/a", 0o700),
        directory("opt/a/b", 0o700),
        file("opt/a/b/file.txt", "hello", 0o644),
    ];
    let upper = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"].map(|path| owned(path, 1));
    check(stage, "layer", &[lower, upper.to_vec()])
}

/// DirectoryPermissionOnCommit: owners of directories that are kept, removed and made again.
pub(super) fn directory_permission(stage: &Stage<'_>) -> Result<()> {
    let mut first: Vec<_> = ["dir1", "dir2", "dir3", "dir4", "dir5"]
        .map(|path| directory(path, 0o700))
        .to_vec();
    first.extend(["dir4/f1", "dir5/f1"].map(|path| file(path, "...", 0o644)));
    first.extend(["dir1", "dir2", "dir3", "dir5", "dir5/f1"].map(|path| owned(path, 1)));
    let layers = [
        first,
        vec![
            owned("dir2", 0),
            remove_all("dir3"),
            owned("dir4", 1),
            owned("dir4/f1", 1),
        ],
        vec![
            directory("dir3", 0o700),
            owned("dir3", 1),
            remove_all("dir5"),
            directory("dir5", 0o700),
            owned("dir5", 1),
        ],
    ];
    check(stage, "layer", &layers)
}

/// DeletedFilesInChildSnapshot: what a layer removes is gone in it and in those above.
pub(super) fn deleted_files(stage: &Stage<'_>) -> Result<()> {
    let layers = [
        vec![
            file("foo", "foo\n", 0o777),
            file("foobar", "foobar\n", 0o777),
        ],
        vec![remove_all("foobar")],
        vec![],
    ];
    check(stage, "layer", &layers)
}

/// MoveFileFromLowerLayer: by copy and removal, and by hard link and removal.
pub(super) fn moved_file(stage: &Stage<'_>) -> Result<()> {
    let layers = [
        vec![
            directory("dir1", 0o700),
            file("dir1/f1", "Hello", 0o644),
            directory("dir2", 0o700),
            file("dir2/f2", "...", 0o644),
        ],
        vec![
            directory("dir3", 0o700),
            file("dir3/f1", "Hello", 0o644),
            remove_all("dir1"),
            link("dir2/f2", "dir3/f2"),
            remove_all("dir2/f2"),
        ],
    ];
    check(stage, "layer", &layers)
}

/// Rename: of files, over files, and of a directory where that is demanded.
pub(super) fn rename(stage: &Stage<'_>) -> Result<()> {
    let lower = vec![
        directory("dir1", 0o700),
        directory("somefiles", 0o700),
        file("somefiles/f1", "was here first!", 0o644),
        file("somefiles/f2", "nothing interesting", 0o644),
    ];
    let mut upper = match stage.target.directory_rename {
        DirectoryRename::Demanded => vec![renamed("dir1", "dir2")],
        DirectoryRename::LeftOut => Vec::new(),
    };
    upper.extend([
        file("somefiles/f1-overwrite", "new content 1", 0o644),
        renamed("somefiles/f1-overwrite", "somefiles/f1"),
        renamed("somefiles/f2", "somefiles/f3"),
    ]);
    check(stage, "layer", &[lower, upper])
}

/// 128LayersMount: as many layers as containerd mounts, whose options are longer than a page.
pub(super) fn many_layers(stage: &Stage<'_>) -> Result<()> {
    let lowest = vec![
        file("bottom", "way at the bottom\n", 0o777),
        file("overwriteme", "FIRST!\n", 0o777),
        directory("addhere", 0o755),
        directory("onlyme", 0o755),
        file("onlyme/bottom", "bye!\n", 0o777),
    ];
    let others = (1..=127).map(|number| {
        vec![
            file("overwriteme", &format!("{number} WAS HERE!\n"), 0o777),
            file(&format!("addhere/file-{number}"), "same\n", 0o755),
            remove_all("onlyme"),
            directory("onlyme", 0o755),
            file(&format!("onlyme/file-{number}"), "only me!\n", 0o777),
        ]
    });
    let flat = stage.directory("flat")?;
    let mut parent = String::new();
    for (number, changes) in std::iter::once(lowest).chain(others).enumerate() {
        let prepared = format!("prepare-layer-{number}");
        let (key, mounted) = stage
            .prepare_mounted(&prepared, &parent)
            .with_context(|| format!("layer {number}"))?;
        same(&flat, mounted.point()).with_context(|| format!("layer {number} before changes"))?;
        apply(&flat, &changes)?;
        apply(mounted.point(), &changes).with_context(|| format!("layer {number}"))?;
        same(&flat, mounted.point()).with_context(|| format!("layer {number} after changes"))?;
        mounted.unmount()?;
        parent = stage.path(&format!("committed-{number}"));
        stage
            .commit(&parent, &key)
            .with_context(|| format!("Commit of layer {number}"))?;
    }
    let view = stage.path("fullview");
    let mounts = stage.view(&view, &parent)?;
    let mounted = stage.mount(&mounts, "fullview")?;
    same(&flat, mounted.point()).context("the view of all layers")?;
    mounted.unmount()
}
