//! Ids are what containerd allows, of any length and with any character.

use anyhow::ensure;
use integration::{check::check, images::Image};

use crate::RUNTIME;

/// Every character an id may have, in 76: as many as it may have.
const LONGEST: &str =
    "abcdefghijklmnopqrstuvwxyz.ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789-z.Y_9-longe";

#[test]
fn ids_of_one_character_and_of_76_live_a_whole_life() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        ensure!(LONGEST.len() == 76, "it has {} characters", LONGEST.len());
        for id in ["a", LONGEST] {
            let container = bench.ctr().container(id, bench.image, RUNTIME);
            let task = container.detach(&["sleep", "600"])?;
            task.exec_with(&["--exec-id", id], &["sh", "-c", "exit 4"])?
                .with_code(4)?;
            task.pause()?;
            task.resume()?;
            let code = task.kill_and_remove()?;
            ensure!(code == 137, "{id}: expected 137, got {code}");
        }
        Ok(())
    });
}

#[test]
fn ids_that_are_none_are_refused_before_anything_is_made() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let too_long = format!("{LONGEST}x");
        for id in ["..", "a/b", "a..b", "-a", &too_long] {
            let container = bench.ctr().container(id, bench.image, RUNTIME);
            let refused = container.run(&["true"])?;
            ensure!(refused.code() != 0, "{id:?} is an id: {refused}");
        }
        let task = bench.container("exec-ids").detach(&["sleep", "600"])?;
        for id in ["..", "a/b", &too_long] {
            let refused = task.exec_with(&["--exec-id", id], &["true"])?;
            ensure!(refused.code() != 0, "{id:?} is an exec's id: {refused}");
        }
        task.kill_and_remove()?;
        Ok(())
    });
}
