//! A container's priority, by stock containerd, in the files of its cgroup.

use anyhow::{Result, ensure};
use integration::{
    cgroup::{CPU_SHARES, IDLE, expect},
    check::{Bench, check},
    images::Image,
    process::{Running, command},
    runtime::{Runtime, built},
    wait::SOON,
};

/// What `runlxc state` says of a container.
fn state(bench: &Bench<'_>, id: &str) -> Result<String> {
    let mut state = command(built("runlxc")?);
    let root = format!("/run/containerd/runlxc/{}", bench.containerd.namespace);
    state.args(["--root", &root, "state", id]);
    let said = Running::start(&mut state)?.finish(SOON)?.success()?;
    Ok(said.stdout())
}

#[test]
fn a_word_becomes_weights_unless_the_weight_is_given() {
    check(Runtime::Runlxc, &[Image::Busybox], |bench| {
        for (word, shares, value, v1, v2) in [
            ("online-high", "0", CPU_SHARES, "4096", "400"),
            ("offline", "0", CPU_SHARES, "128", "12"),
            ("best-effort", "0", IDLE, "1", "1"),
            ("offline", "512", CPU_SHARES, "512", "59"),
        ] {
            let annotation = format!("org.pouch.priority={word}");
            let flags = ["--annotation", &annotation, "--cpu-shares", shares];
            let name = format!("{word}-{shares}");
            let container = bench.container(&name).flags(&flags);
            let task = container.detach(&["sleep", "600"])?;
            expect(task.pid()?, value, v1, v2)?;
            task.kill_and_remove()?;
        }
        // What Alibaba's kernels alone have is told, here as refused; a number that means nothing is an
        // error, and what nobody knows passes.
        let words = [
            "--annotation",
            "customization.memory_priority=3",
            "--annotation",
            "__memory_wmark_ratio=95",
            "--annotation",
            "customization.intel_rdt_group=batch",
            "--annotation",
            "customization.net_cgroup_rate=1",
        ];
        let task = bench
            .container("colocated")
            .flags(&words)
            .detach(&["sleep", "600"])?;
        let told = state(bench, &task.id)?;
        for part in [
            "memory.priority=3 refused (this kernel has no such file)",
            "memory.wmark_ratio=95 refused (this kernel has no such file)",
            "customization.net_cgroup_rate refused (no file for it is known)",
            "resctrl=batch refused (there is no such class below /sys/fs/resctrl)",
        ] {
            ensure!(told.contains(part), "{part}: {told}");
        }
        task.kill_and_remove()?;
        let wrong = ["--annotation", "customization.memory_priority=13"];
        let refused = bench.container("word").flags(&wrong).shell("true")?;
        let why = "is no number from 0 to 12";
        ensure!(
            refused.code() != 0 && refused.stderr().contains(why),
            "{refused}"
        );
        let wrong = ["--annotation", "org.pouch.priority=low"];
        let refused = bench.container("wrong").flags(&wrong).shell("true")?;
        let why = "\"low\" is no priority";
        // Its log has it with quotes of its own.
        let said = refused.stderr().replace("\\\"", "\"");
        ensure!(refused.code() != 0 && said.contains(why), "{refused}");
        Ok(())
    });
}
