//! Runs a command as if the kernel were old: `kernel-profile 2.6.32 runlxc --version`.

use std::ffi::OsString;

use anyhow::{Context, Result};
use integration::profile::Profile;

const USAGE: &str =
    "usage: kernel-profile 2.6.32|rhel6|3.2|3.10|4.4|4.19|5.10 PROGRAM [ARGUMENT...]";

fn main() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let name = words.next().context(USAGE)?;
    let profile: Profile = name.to_string_lossy().parse()?;
    let program = words.next().context(USAGE)?;
    let arguments: Vec<OsString> = words.collect();
    profile.exec(&program, &arguments)
}
