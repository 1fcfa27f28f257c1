//! The same images, unpacked by stock containerd into overlayfs.

use anyhow::{Context, Result, ensure};
use integration::{
    check::check,
    config::Config,
    containerd::Containerd,
    ctr::Ctr,
    images::{Content, Description, Image, Layer, write_archive},
    listing::Listing,
    runtime::Runtime,
    versions::Version,
};

use super::{
    converted::{Converted, image_of},
    kernel,
    mounted::with_erofs,
};

/// What containerd has unpacked.
fn unpacked(ctr: Ctr<'_>, reference: &str) -> Result<Listing> {
    let point = tempfile::tempdir()?;
    let target = point.path().to_str().context("a path in UTF-8")?;
    let mounted = ctr.call(&["images", "mount", reference, target])?;
    mounted.success()?;
    let listing = Listing::of(point.path());
    let unmounted = ctr.call(&["images", "unmount", "--rm", target])?;
    unmounted.success()?;
    Ok(listing?.as_unpacked())
}

fn converted(converted: &Converted) -> Result<Listing> {
    let (metadata, blobs) = converted.devices()?;
    Ok(with_erofs(&metadata, &blobs, Listing::of)?.as_unpacked())
}

#[test]
fn images_look_as_unpacked_by_stock_containerd() {
    let images = [Image::Busybox, Image::Debian, Image::Layers];
    check(Runtime::Runc, &images, |bench| {
        let expected = unpacked(bench.ctr(), &bench.image.reference())?;
        let count = expected.entries.len();
        ensure!(count > 100, "only {count} entries");
        let seen = converted(&Converted::image(bench.image)?)?;
        let lines = expected.differences(&seen);
        ensure!(lines.is_empty(), "{}", lines.join("\n"));
        Ok(())
    });
}

/// Layers of which stock is known to make something else.
fn odd_layers() -> Vec<Layer> {
    let (mut lower, mut upper) = (Layer::default(), Layer::default());
    lower.directory("removed");
    lower.file("removed/old", "old\n");
    upper.whiteout("removed");
    upper.directory("removed");
    upper.file("removed/new", "new\n");
    // A user more may read what is made in it.
    let list = kernel::access_control_list();
    let directory = lower.directory("handing-on");
    directory
        .xattrs
        .insert("system.posix_acl_default".to_owned(), list);
    lower.file("handing-on/file", "file\n");
    let capable = lower.add("capable", 0o755, Content::File(b"capable\n".to_vec()));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capable
        .xattrs
        .insert("security.capability".to_owned(), capability.to_vec());
    lower.add("linked", 0o755, Content::HardLink("capable".to_owned()));
    vec![lower, upper]
}

/// The layer hides all that is below it, and stock does not know.
fn opaque_root() -> Vec<Layer> {
    let (mut lower, mut upper) = (Layer::default(), Layer::default());
    lower.file("hidden", "lower\n");
    upper.file(".wh..wh..opq", "");
    upper.file("shown", "upper\n");
    vec![lower, upper]
}

/// Checks that stock and disk differ in these paths and in no other.
fn check_odd(name: &str, layers: &[Layer], expected: &[&str]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("image.tar");
    let reference = format!("pouch.test/{name}:1");
    let description = Description {
        reference: &reference,
        layers,
        command: "sh",
    };
    write_archive(&description, &archive)?;
    let seen = converted(&image_of(&archive)?)?;
    for installed in Version::available()? {
        let containerd = Containerd::start(&installed, &Config::with_images(&[]))?;
        let ctr = Ctr::of(&containerd);
        ctr.import(&archive)?;
        let lines = unpacked(ctr, &reference)?.differences(&seen);
        let paths = lines.iter().filter_map(|line| line.split(' ').nth(1));
        let mut paths: Vec<&str> = paths.collect();
        paths.dedup();
        ensure!(
            paths == expected,
            "{}:\n{}",
            installed.version,
            lines.join("\n")
        );
        containerd.finish()?;
    }
    Ok(())
}

#[test]
fn stock_differs_in_what_it_is_known_to_get_wrong() {
    let expected = ["/capable", "/handing-on/file", "/linked", "/removed/old"];
    check_odd("odd", &odd_layers(), &expected).unwrap();
    check_odd("opaque", &opaque_root(), &["/hidden"]).unwrap();
}
