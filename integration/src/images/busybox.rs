//! The busybox image: one static binary, all its applets as hard links, two users.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::layer::{Content, Layer};
use crate::{
    process::{command, output_of},
    versions::system_program,
    wait::SOON,
};

/// Directories of the image. There is no `/proc`, `/sys` or `/dev`, as in the well-known one.
const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/app", 0o755),
    ("root", 0o700),
    ("sbin", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n";

pub(super) fn layer() -> Result<Layer> {
    let program = system_program("busybox")?;
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    ensure!(
        !contains(&bytes, b"/ld-linux"),
        "{} is not static: install busybox-static",
        program.display()
    );
    let mut layer = Layer::default();
    for (path, mode) in DIRECTORIES {
        layer.add(path, *mode, Content::Directory);
    }
    layer.add("bin/busybox", 0o755, Content::File(bytes));
    let applets = output_of(command(&program).arg("--list-full"), SOON)?;
    for applet in applets.lines().map(|line| line.trim_start_matches('/')) {
        // The list names busybox itself, and a link would overwrite what it links to.
        let is_itself = Path::new(applet)
            .file_name()
            .is_some_and(|name| name == "busybox");
        if !is_itself && applet.contains('/') {
            layer.add(applet, 0o755, Content::HardLink("bin/busybox".to_owned()));
        }
    }
    layer.file("etc/passwd", PASSWD);
    layer.file("etc/group", "root:x:0:\nextra:x:44:app\napp:x:1000:\n");
    layer.file("etc/os-release", "ID=busybox\n");
    Ok(layer)
}

/// What its init reads and runs, over that: as small distributions have it.
pub(super) fn inittab() -> Layer {
    let mut layer = Layer::default();
    layer.file("etc/inittab", INITTAB);
    layer.add("etc/init.d", 0o755, Content::Directory);
    for (name, text) in [("rcS", RCS), ("rcK", RCK)] {
        let content = Content::File(text.as_bytes().to_vec());
        layer.add(&format!("etc/init.d/{name}"), 0o755, content);
    }
    layer
}

const INITTAB: &str = "::sysinit:/bin/mount -t proc proc /proc
::sysinit:/etc/init.d/rcS
tty1::askfirst:-/bin/sh
::respawn:/sbin/getty -L ttyS0 115200 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/etc/init.d/rcK
::shutdown:/bin/umount -a -r
";

const RCS: &str = "#!/bin/sh\necho booted >>/run/boot\n";

const RCK: &str = "#!/bin/sh\n[ ! -d /seen ] || echo rcK >>/seen/order\n";

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
