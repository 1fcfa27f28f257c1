//! Output goes where the log address says, all of it: judged without ctr in between.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use integration::{check::check, images::Image, runtime::Runtime};

use crate::RUNTIME;

/// containerd's protocol for loggers: output on 3, errors on 4, ready when 5 is closed.
/// Stock's shim ends a logger by SIGTERM although the container's output is not read to its end.
const LOGGER: &str = "#!/bin/sh
trap '' TERM
exec 5>&-
cat <&4 >\"$2/stderr\" &
cat <&3 >\"$2/stdout\"
wait
echo \"$CONTAINER_NAMESPACE $CONTAINER_ID\" >\"$2/done\"
";

#[test]
fn a_log_file_has_everything_that_short_programs_print() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for number in 0..20 {
            let log = bench.containerd.work().join(format!("log-{number}"));
            let address = format!("file://{}", log.display());
            let container = bench
                .container(&format!("log-{number}"))
                .flags(&["--log-uri", &address]);
            let task = container.detach(&["sh", "-c", "echo out; echo err >&2; echo more"])?;
            ensure!(task.remove()? == 0, "it failed");
            let logged = fs::read_to_string(&log).context("the log file")?;
            let mut lines: Vec<&str> = logged.lines().collect();
            lines.sort_unstable();
            // Stock's shims lose what about one short program in thirty says on its standard error.
            let is_lossy = RUNTIME == Runtime::Runc && lines == ["more", "out"];
            ensure!(
                lines == ["err", "more", "out"] || is_lossy,
                "run {number} logged {logged:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_log_file_has_every_byte_of_a_megabyte() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let log = bench
            .containerd
            .work()
            .join(format!("megabyte-{:?}", bench.image));
        let address = format!("file://{}", log.display());
        let container = bench.container("megabyte").flags(&["--log-uri", &address]);
        let task = container.detach(&["head", "-c", "1048576", "/dev/zero"])?;
        ensure!(task.remove()? == 0, "it failed");
        let length_bytes = fs::metadata(&log)?.len();
        ensure!(length_bytes == 1 << 20, "{length_bytes} bytes were logged");
        Ok(())
    });
}

#[test]
fn a_logger_gets_both_streams_and_is_waited_for() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let directory = bench.containerd.work().join("logger");
        fs::create_dir(&directory)?;
        let address = logger(&directory)?;
        let container = bench.container("logger").flags(&["--log-uri", &address]);
        let task = container.detach(&["sh", "-c", "echo out; echo err >&2"])?;
        ensure!(task.remove()? == 0, "it failed");
        let written = |name: &str| {
            integration::wait::until(
                &format!("the logger has written {name}"),
                integration::wait::SOON,
                integration::wait::Sources::none().directory(&directory)?,
                || {
                    Ok(fs::read_to_string(directory.join(name))
                        .ok()
                        .filter(|text| text.ends_with('\n')))
                },
            )
        };
        ensure!(written("stdout")? == "out\n");
        ensure!(written("stderr")? == "err\n");
        let done = written("done")?;
        ensure!(
            done.trim() == format!("{} {}", bench.containerd.namespace, task.id),
            "{done:?}"
        );
        Ok(())
    });
}

/// Writes the logger; its address comes back.
fn logger(directory: &Path) -> Result<String> {
    let program = directory.join("logger");
    fs::write(&program, LOGGER)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    Ok(format!(
        "binary://{}?into={}",
        program.display(),
        directory.display()
    ))
}
