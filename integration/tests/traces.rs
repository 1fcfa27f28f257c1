//! The whole machine is as it was after instances have come and gone. It runs alone.

use anyhow::Result;
use integration::{
    census::Census, check::Bench, config::Config, containerd::Containerd, images::Image,
    runtime::Runtime, versions::Version, wait::SOON,
};

#[test]
fn a_life_leaves_no_trace_on_the_machine() {
    for runtime in Runtime::ALL {
        let left = left_by(runtime).unwrap();
        assert!(left.is_empty(), "{runtime} left on the machine:\n{left}");
    }
}

fn left_by(runtime: Runtime) -> Result<Census> {
    runtime.binaries()?;
    let before = Census::of_machine()?;
    for installed in Version::available()? {
        let containerd = Containerd::start(&installed, &Config::with_images(&[Image::Busybox]))?;
        let bench = Bench {
            containerd: &containerd,
            runtime,
            image: Image::Busybox,
        };
        bench.container("run").shell("exit 3")?.with_code(3)?;
        let task = bench.container("task").detach(&["sleep", "600"])?;
        task.exec(&["true"])?.success()?;
        task.kill_and_remove()?;
        containerd.finish()?;
    }
    Census::settle(&before, SOON, Census::of_machine)
}
