//! Disks out of a store: images in by the command, the same disks out, as the kernel and fsck.erofs see
//! them.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    images::Image,
    listing::Listing,
    process::{Running, command},
    runtime::built,
    wait::SOON,
};

use super::{converted::Converted, expected, kernel::fsck, mounted::with_erofs};

/// What the command writes.
pub(super) fn store(words: &[&str], directory: &Path) -> Result<String> {
    let mut command = command(built("snapshotter-remote")?);
    command.arg("store").args(words).arg("--dir").arg(directory);
    let finished = Running::start(&mut command)?.finish(SOON * 60)?;
    Ok(finished.success()?.stdout())
}

/// An image that is added and exported is the disk that `disk` writes of its layers.
fn check(image: Image) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let archive = image.archive()?;
    let archive = archive.to_str().context("a path that is text")?;
    let added = store(&["add", archive], directory.path())?;
    let chain_id = added.split(' ').next().unwrap_or_default();
    let exported = directory.path().join("exported");
    let file = exported.to_str().context("a path that is text")?;
    store(&["export", chain_id, file], directory.path())?;
    let converted = Converted::image(image)?;
    let expected = expected::listing(&converted)?;
    let written = fs::read(converted.flat()?)?;
    ensure!(fs::read(&exported)? == written, "it has other bytes");
    let seen = with_erofs(&exported, &[], Listing::of)?;
    let lines = expected.differences(&seen);
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    fsck(&exported, &[])?;
    let verified = store(&["verify"], directory.path())?;
    ensure!(verified.ends_with(": 0 damaged or missing\n"), "{verified}");
    Ok(())
}

#[test]
fn images_come_out_of_the_store_as_they_went_in() {
    for image in [Image::Busybox, Image::Layers, Image::Debian] {
        check(image).with_context(|| image.key()).unwrap();
    }
}
