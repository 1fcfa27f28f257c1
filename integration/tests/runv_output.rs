//! What processes in virtual machines write, judged at log files: none of it is lost, also for who deletes a process as
//! soon as it has ended.

use std::{env, fs, ops::Range};

use anyhow::{Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::Task,
    images::Image,
    runtime::Runtime,
    versions::Version,
    wait::SOON,
};

/// So many short programs; POUCH_RUNV_EXECS changes that.
const EXECS: u64 = 200;

/// So many of them at once, so that their ends and their output meet.
const AT_ONCE: u64 = 8;

/// What they print beside a word to their errors: nothing, what a pipe holds, and more than streams and pipes do.
const BYTES: [u64; 5] = [0, 1, 4096, 65_536, 300_000];

#[test]
fn nothing_is_lost_of_what_short_programs_print() {
    check(Runtime::Runv, &[Image::Busybox], |bench| {
        let task = bench.container("prints").detach(&["sleep", "100000"])?;
        // Which containerd it is makes no difference.
        if bench.version() == Version::V2_4 {
            let execs = match env::var("POUCH_RUNV_EXECS") {
                Ok(text) => text.parse()?,
                Err(_) => EXECS,
            };
            for first in (0..execs).step_by(AT_ONCE.try_into()?) {
                print_at_once(bench, &task, first..execs.min(first + AT_ONCE))?;
            }
        } else {
            print_at_once(bench, &task, 0..AT_ONCE)?;
        }
        task.kill_and_remove().map(drop)
    });
}

/// `ctr` deletes each as soon as it is told that it has ended.
fn print_at_once(bench: &Bench<'_>, task: &Task<'_>, numbers: Range<u64>) -> Result<()> {
    let mut running = Vec::new();
    for number in numbers {
        let bytes = BYTES[usize::try_from(number)? % BYTES.len()];
        let log = bench.containerd.work().join(format!("printed-{number}"));
        let script = format!("head -c {bytes} /dev/zero; echo err >&2; exit 7");
        let exec = task.start_logged_exec(&log, &["sh", "-c", &script])?;
        running.push((number, exec, log, bytes + 4));
    }
    for (number, exec, log, expected) in running {
        exec.finish(SOON)?.with_code(7)?;
        let bytes = fs::metadata(&log)?.len();
        ensure!(bytes == expected, "{number}: {bytes} bytes of {expected}");
        fs::remove_file(&log)?;
    }
    Ok(())
}
