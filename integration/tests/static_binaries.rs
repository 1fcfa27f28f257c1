//! What `make static` builds for old hosts works: the shim and the stub from it run containers.

use std::{path::Path, time::Duration};

use integration::{
    config::Config,
    containerd::Containerd,
    ctr::Ctr,
    images::Image,
    process::{command, output_of},
    runtime::Runtime,
    versions::Version,
    wait::SOON,
};

/// std is built from source where rustup has no musl target, perhaps on a machine that does much else.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

#[test]
fn static_musl_binaries_start_on_2_6_32_and_run_containers() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = workspace.join("target/static");
    let script = workspace.join("packaging/static-build.sh");
    let binaries = ["containerd-shim-runlxc-v2", "runlxc", "runlxc-init"];
    output_of(command(script).arg(&out).args(binaries), BUILD_LIMIT).unwrap();
    for binary in binaries {
        let path = out.join(binary);
        let header = output_of(command("readelf").args(["-hl"]).arg(&path), SOON).unwrap();
        assert!(
            header.contains("EXEC (Executable file)"),
            "{binary} is position independent"
        );
        assert!(
            !header.contains("INTERP"),
            "{binary} wants a dynamic linker"
        );
        let flag = if binary.starts_with("containerd") {
            "-v"
        } else {
            "--version"
        };
        let mut launcher = command(env!("CARGO_BIN_EXE_kernel-profile"));
        output_of(launcher.arg("2.6.32").arg(&path).arg(flag), SOON).unwrap();
    }
    let size = out.join("runlxc-init").metadata().unwrap().len();
    assert!(
        size < 1 << 20,
        "runlxc-init has {size} bytes, 1 MiB is its limit"
    );

    let installed = Version::available().unwrap().remove(0);
    let mut config = Config::with_images(&[Image::Busybox]);
    config.binaries = Some(out);
    let containerd = Containerd::start(&installed, &config).unwrap();
    let ctr = Ctr::of(&containerd);
    let container = ctr.container("musl", Image::Busybox, Runtime::Runlxc);
    let task = container.detach(&["sleep", "100000"]).unwrap();
    task.exec(&["sh", "-c", "exit 6"])
        .unwrap()
        .with_code(6)
        .unwrap();
    assert_eq!(task.kill_and_remove().unwrap(), 137);
    containerd.finish().unwrap();
}
