//! Exit codes arrive as they were.

use anyhow::ensure;
use integration::{check::check, images::Image};

use crate::RUNTIME;

#[test]
fn the_exit_code_of_run_is_that_of_the_process() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        for code in [0, 1, 3, 127, 255] {
            let container = bench.container(&format!("code-{code}"));
            container.shell(&format!("exit {code}"))?.with_code(code)?;
        }
        Ok(())
    });
}

#[test]
fn the_exit_code_of_exec_is_that_of_the_process() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let task = bench.container("exec").detach(&["sleep", "600"])?;
        for code in [0, 1, 3, 127, 255] {
            task.exec(&["sh", "-c", &format!("exit {code}")])?
                .with_code(code)?;
        }
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn a_program_that_is_not_there_is_named_and_leaves_nothing() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let refused = bench.container("absent").run(&["/no/such/program"])?;
        ensure!(refused.code() != 0, "it ran: {refused}");
        ensure!(
            refused.stderr().contains("/no/such/program"),
            "it is not named: {refused}"
        );

        let task = bench.container("present").detach(&["sleep", "600"])?;
        let refused = task.exec(&["/no/such/program"])?;
        ensure!(refused.code() != 0, "it ran: {refused}");
        ensure!(
            refused.stderr().contains("/no/such/program"),
            "it is not named: {refused}"
        );
        // The container is none the worse.
        task.exec(&["true"])?.success()?;
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn a_task_that_ends_by_itself_keeps_its_code_until_it_is_removed() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("self").detach(&["sh", "-c", "exit 42"])?;
        let code = task.remove()?;
        ensure!(code == 42, "expected 42, got {code}");
        Ok(())
    });
}

#[test]
fn a_process_killed_by_a_signal_of_its_own_shows_it_in_its_code() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let task = bench.container("own").detach(&["sleep", "600"])?;
        for (signal, code) in [("KILL", 137), ("TERM", 143), ("ABRT", 134)] {
            task.exec(&["sh", "-c", &format!("kill -{signal} $$")])?
                .with_code(code)?;
        }
        task.kill_and_remove()?;
        Ok(())
    });
}
