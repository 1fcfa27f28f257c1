//! A container's priority, by stock containerd, in the files of its cgroup.

use anyhow::ensure;
use integration::{
    cgroup::{CPU_SHARES, IDLE, expect},
    check::check,
    images::Image,
    runtime::Runtime,
};

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
        let wrong = ["--annotation", "org.pouch.priority=low"];
        let refused = bench.container("wrong").flags(&wrong).shell("true")?;
        let why = "\"low\" is no priority";
        // Its log has it with quotes of its own.
        let said = refused.stderr().replace("\\\"", "\"");
        ensure!(refused.code() != 0 && said.contains(why), "{refused}");
        Ok(())
    });
}
