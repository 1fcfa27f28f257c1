//! A container's priority, by stock containerd, in the files of its cgroup.

use anyhow::{Result, ensure};
use integration::{
    cgroup::{self, Layout, Value},
    check::check,
    images::Image,
    runtime::Runtime,
};

const SHARES: Value = Value {
    controller: "cpu",
    v1: "cpu.shares",
    v2: "cpu.weight",
};
const IDLE: Value = Value {
    controller: "cpu",
    v1: "cpu.idle",
    v2: "cpu.idle",
};

fn expect(pid: i32, value: Value, v1: &str, v2: &str) -> Result<()> {
    let (text, layout) = cgroup::read(pid, value)?;
    let expected = match layout {
        Layout::V1 => v1,
        Layout::V2 => v2,
    };
    ensure!(
        text == expected,
        "{value:?}: expected {expected:?}, got {text:?}"
    );
    Ok(())
}

#[test]
fn a_word_becomes_weights_unless_the_weight_is_given() {
    check(Runtime::Runlxc, &[Image::Busybox], |bench| {
        for (word, shares, value, v1, v2) in [
            ("online-high", "0", SHARES, "4096", "400"),
            ("offline", "0", SHARES, "128", "12"),
            ("best-effort", "0", IDLE, "1", "1"),
            ("offline", "512", SHARES, "512", "59"),
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
