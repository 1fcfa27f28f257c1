//! What the kernel promises about quota, asked of a real one through `sys`; run in guests.
//!
//! It needs root and a kernel with project quota of ext4 and xfs, which is why it is a program for a
//! guest and no test that any machine could run. One line for each promise; exits with 1 when one
//! was not kept.

#![expect(clippy::print_stdout, reason = "this program is its output")]

mod btrfs;
mod disk;
mod escapes;
mod events;
mod growth;
mod limits;
mod project;
mod states;

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use disk::{Disk, Kind};

type OnDisk = fn(&Disk) -> Result<()>;

/// Each is asked on a fresh ext4 and a fresh xfs that enforce project quota.
const ON_EITHER: &[(&str, OnDisk)] = &[
    (
        "bytes are limited through overlay",
        limits::bytes_are_limited_through_overlay,
    ),
    (
        "inodes are limited through overlay",
        limits::inodes_are_limited_through_overlay,
    ),
    (
        "a limit grows, shrinks and goes while files are open",
        limits::limit_changes_while_files_are_open,
    ),
    (
        "limits are rounded up and never wrap",
        limits::limits_are_rounded_up_and_never_wrap,
    ),
    (
        "a deleted open file is counted",
        limits::deleted_open_file_is_counted,
    ),
    (
        "projects with usage or limits are found in order",
        limits::projects_are_found_in_order,
    ),
    (
        "limits and usage outlive a remount",
        limits::limits_outlive_a_remount,
    ),
    (
        "a bind mount limits as the file system does",
        limits::directory_without_overlay,
    ),
    (
        "events tell what was hit, and where",
        events::events_tell_what_was_hit,
    ),
    (
        "a quota on the upper directory alone breaks copy-up",
        escapes::quota_on_upper_alone_breaks_copy_up,
    ),
    (
        "root can take a file out of its project through overlay",
        escapes::root_takes_a_file_out,
    ),
    (
        "in a user namespace nobody can take a file out of its project",
        escapes::user_namespace_keeps_a_file_in,
    ),
    (
        "a mounted file system grows under its quota",
        growth::mounted_file_system_grows,
    ),
];

type Alone = fn() -> Result<()>;

const ALONE: &[(&str, Alone)] = &[
    (
        "ext4 counts without its mount option, and is off without its feature",
        states::ext4_states,
    ),
    (
        "xfs counts with pqnoenforce, and is off without options",
        states::xfs_states,
    ),
    (
        "btrfs limits by the quota that this kernel has",
        btrfs::btrfs_limits,
    ),
];

/// With a path it only does that check's part.
fn main() -> Result<ExitCode> {
    if let Some(path) = std::env::args_os().nth(1) {
        println!("{}", escapes::take_out(Path::new(&path))?);
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ask_all())
}

fn ask_all() -> ExitCode {
    let mut failed = 0;
    let mut tell = |shown: String, result: Result<()>| match result {
        Ok(()) => println!("ok: {shown}"),
        Err(error) => {
            failed += 1;
            println!("FAILED: {shown}: {error:#}");
        }
    };
    for kind in [Kind::Ext4, Kind::Xfs] {
        for (name, check) in ON_EITHER {
            let result = Disk::enforcing(kind).and_then(|disk| check(&disk));
            tell(format!("{}: {name}", kind.name()), result);
        }
    }
    for (name, check) in ALONE {
        tell((*name).to_owned(), check());
    }
    println!("{failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
