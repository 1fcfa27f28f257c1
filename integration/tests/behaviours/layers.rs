//! Images of every shape.

use anyhow::ensure;
use integration::{
    check::check,
    images::{Image, expected_of_layers},
};

use crate::RUNTIME;

#[test]
fn thirty_layers_with_whiteouts_links_and_devices_look_as_they_should() {
    check(RUNTIME, &[Image::Layers], |bench| {
        let (script, expected) = expected_of_layers();
        let seen = bench.container("layers").output(&script)?;
        ensure!(seen == expected, "expected\n{expected}\ngot\n{seen}");
        Ok(())
    });
}

#[test]
fn half_a_gigabyte_in_small_files_is_all_there() {
    check(RUNTIME, &[Image::Large], |bench| {
        let seen = bench
            .container("large")
            .output("find /large -type f | wc -l")?;
        ensure!(seen.trim() == "40000", "there are {seen} files");
        Ok(())
    });
}

#[test]
fn an_archive_is_imported_run_and_removed() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let ctr = bench.ctr();
        let id = "imported";
        let reference = Image::Busybox.reference();
        ctr.import(&Image::Busybox.archive()?)?;
        let listed = ctr.call(&["images", "ls", "-q"])?.success()?.stdout();
        ensure!(
            listed.lines().any(|line| line == reference),
            "listed are {listed:?}"
        );
        let container = ctr.container(id, Image::Busybox, bench.runtime);
        ensure!(
            container.output("echo here")? == "here\n",
            "it does not run"
        );
        Ok(())
    });
}
