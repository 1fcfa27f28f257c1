//! Terminals: size, echo, resizing, the exit code of what ran on them.

use anyhow::ensure;
use integration::{check::check, images::Image, terminal::Size, wait::SOON};

use crate::RUNTIME;

/// The client gives a terminal its size some time after the start, so programs here wait for it.
const SIZE: Size = Size {
    rows: 37,
    columns: 111,
};

/// How often a terminal is resized within the usual limit.
const TRIES: u32 = 15;

#[test]
fn a_terminal_has_its_size_echoes_and_passes_the_exit_code() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let script = "until stty size 2>/dev/null | grep -x '37 111'; do sleep 0.02; done; \
                      read line; echo \"<$line>\"; exit 3";
        let mut terminal = bench
            .container("tty")
            .terminal(SIZE, &["sh", "-c", script])?;
        terminal.expect("37 111", SOON)?;
        terminal.type_text("typed\n")?;
        terminal.expect("typed", SOON)?;
        terminal.expect("<typed>", SOON)?;
        let (code, shown) = terminal.finish(SOON)?;
        ensure!(code == 3, "expected 3, got {code}: {shown:?}");
        Ok(())
    });
}

#[test]
fn an_exec_has_a_terminal_of_its_own_that_can_be_resized() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let task = bench.container("exec-tty").detach(&["sleep", "600"])?;
        let script = "for size in '37 111' '21 63'; do \
                      until stty size 2>/dev/null | grep -x \"$size\"; do sleep 0.02; done; done; \
                      tty; exit 4";
        let mut terminal = task.exec_in_terminal(SIZE, &["sh", "-c", script])?;
        terminal.expect("37 111", SOON)?;
        // ctr listens for the signal only after it has passed the first size on, so one that comes
        // in between is lost, with any runtime: the size is changed again then.
        let resized = |columns| Size { rows: 21, columns };
        let mut is_seen = false;
        for _ in 0..TRIES {
            terminal.resize(resized(64))?;
            terminal.resize(resized(63))?;
            is_seen = terminal.expect("21 63", SOON / TRIES).is_ok();
            if is_seen {
                break;
            }
        }
        ensure!(is_seen, "the exec never saw its terminal's new size");
        terminal.expect("/dev/pts/", SOON)?;
        let (code, shown) = terminal.finish(SOON)?;
        ensure!(code == 4, "expected 4, got {code}: {shown:?}");
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn control_c_interrupts_the_foreground_process() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let task = bench.container("interrupt").detach(&["sleep", "600"])?;
        let script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 1; done";
        let mut terminal = task.exec_in_terminal(SIZE, &["sh", "-c", script])?;
        terminal.expect("ready", SOON)?;
        terminal.type_text("\x03")?;
        terminal.expect("interrupted", SOON)?;
        let (code, shown) = terminal.finish(SOON)?;
        ensure!(code == 5, "expected 5, got {code}: {shown:?}");
        task.kill_and_remove()?;
        Ok(())
    });
}
