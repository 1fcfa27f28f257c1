//! Other kernels: a disk in one piece on any, blobs as devices of their own from 5.16 on.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    guest::{Guest, Series},
    images::Image,
};

use super::{converted::Converted, expected, kernel, random, tars};

/// A disk with something of everything: many layers, random ones, sparse files.
fn converted() -> Result<Converted> {
    let mut converted = Converted::image(Image::Layers)?;
    for layer in random::layers(1, 3) {
        converted.add(&layer[..])?;
    }
    converted.add(&kernel::acls()[..])?;
    converted.add(&tars::everything()?[..])?;
    Ok(converted)
}

/// Mounts the first file, with a loop device for each further one, lists what is there, ends the mount
/// and prints what is not as expected. All that is there would take a minute on the serial port.
const SCRIPT: &str = "set -e; image=$1; shift; options=ro; \
    for blob; do options=$options,device=$(losetup -r -f --show $blob); done; \
    mkdir -p /tmp/disk; mount -t erofs -o loop,$options $image /tmp/disk; \
    list-tree /tmp/disk > /tmp/seen; umount /tmp/disk; diff /payload/expected /tmp/seen";

/// The words that run [`SCRIPT`] with these files.
fn look(files: &[PathBuf]) -> Result<String> {
    let mut words = format!("sh -c '{SCRIPT}' sh");
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        words.push_str(&format!(" /payload/{}", name.to_string_lossy()));
    }
    Ok(words)
}

/// One boot; each of these disks, a list of files, must look as the tree.
fn check(series: Series, converted: &Converted, disks: &[Vec<PathBuf>]) -> Result<()> {
    let looks: Vec<String> = disks
        .iter()
        .map(|files| look(files))
        .collect::<Result<_>>()?;
    let directory = tempfile::tempdir()?;
    let expected = directory.path().join("expected");
    std::fs::write(&expected, expected::listing(converted)?.to_string())?;
    let mut payload: Vec<PathBuf> = disks.concat();
    payload.extend([env!("CARGO_BIN_EXE_list-tree").into(), expected]);
    let guest = Guest {
        series,
        program: ["sh", "-c", &looks.join(" && ")]
            .map(str::to_owned)
            .to_vec(),
        payload,
        limit: Duration::from_secs(600),
    };
    let outcome = guest.run(|_| {})?;
    let is_same = outcome.code == 0 && outcome.output.is_empty();
    ensure!(is_same, "{series:?}: {}", outcome.output);
    Ok(())
}

/// Neither devices nor chunks, and no addresses in one piece beside a device table (6.4).
#[test]
fn a_disk_in_one_piece_is_read_by_kernel_5_10() {
    let converted = converted().unwrap();
    let flat = vec![converted.flat().unwrap()];
    check(Series::V5_10, &converted, &[flat]).unwrap();
}

fn check_both_forms(series: Series) {
    let converted = converted().unwrap();
    let flat = vec![converted.flat().unwrap()];
    let (metadata, blobs) = converted.devices().unwrap();
    let devices = [vec![metadata], blobs].concat();
    check(series, &converted, &[flat, devices]).unwrap();
}

#[test]
fn both_forms_are_read_by_kernel_6_1() {
    check_both_forms(Series::V6_1);
}

#[test]
fn both_forms_are_read_by_kernel_6_12() {
    check_both_forms(Series::V6_12);
}

/// With other readings of fields that were reserved (6.15).
#[test]
fn both_forms_are_read_by_kernel_7_2() {
    check_both_forms(Series::V7_2);
}
