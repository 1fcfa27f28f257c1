//! Containers by runlxc, and the same by stock runc: what came out of both is the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    ctr::{Container, Ctr},
    images::Image,
    runtime::Runtime,
    terminal::{Size, Terminal},
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: Size = Size {
    rows: 33,
    columns: 101,
};

/// One line of the table.
struct Step {
    ran: &'static str,
    came_out: String,
    took: Duration,
}

/// Runs all and prints the table.
pub(crate) fn show(containerd: &Containerd) -> Result<()> {
    let mut columns = Vec::new();
    for runtime in [Runtime::Runc, Runtime::Runlxc] {
        // The first container of a boot pays for cold caches: not in the table.
        container(containerd, "warm", runtime)
            .run(&["true"])?
            .success()?;
        columns.push(steps(containerd, runtime)?);
    }
    let (runc, runlxc) = (&columns[0], &columns[1]);
    println!(
        "\n{:<58} {:<26} {:>9} {:>9}",
        "what ran (runlxc)", "what came out", "runlxc", "runc"
    );
    for (ours, theirs) in runlxc.iter().zip(runc) {
        ensure!(
            ours.came_out == theirs.came_out,
            "{}: runlxc gave {:?}, runc {:?}",
            ours.ran,
            ours.came_out,
            theirs.came_out
        );
        let [ours_ms, theirs_ms] = [ours, theirs].map(|step| step.took.as_secs_f64() * 1000.0);
        println!(
            "{:<58} {:<26} {ours_ms:>6.0} ms {theirs_ms:>6.0} ms",
            ours.ran, ours.came_out
        );
    }
    Ok(())
}

fn container<'a>(containerd: &'a Containerd, id: &str, runtime: Runtime) -> Container<'a> {
    Ctr::of(containerd).container(&format!("{id}-{runtime}"), Image::Debian, runtime)
}

fn steps(containerd: &Containerd, runtime: Runtime) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut step = |ran, action: &mut dyn FnMut() -> Result<String>| -> Result<()> {
        let started = Instant::now();
        let came_out = action().with_context(|| format!("{runtime}: {ran}"))?;
        steps.push(Step {
            ran,
            came_out,
            took: started.elapsed(),
        });
        Ok(())
    };
    step(
        "ctr run --rm IMAGE one sh -c 'echo hello; exit 3'",
        &mut || {
            let one = || container(containerd, "one", runtime).shell("echo hello; exit 3");
            let mut ended = one()?;
            // ctr itself loses the output of one short program in a hundred, with any runtime.
            if ended.stdout().is_empty() {
                ended = one()?;
            }
            let said = ended.stdout();
            Ok(format!("{}, exit code {}", said.trim(), ended.code()))
        },
    )?;
    let service = container(containerd, "service", runtime);
    step("ctr run -d IMAGE service sleep 1000", &mut || {
        service.detach(&["sleep", "1000"])?;
        Ok("started".to_owned())
    })?;
    let service = Ctr::of(containerd).task(&format!("service-{runtime}"));
    step(
        "ctr task exec service sh -c 'echo pid 1 is $(cat ...)'",
        &mut || {
            // runc says that a container is started before its program is.
            let is_asked = "until grep -qx sleep /proc/1/comm; do :; done; \
                            echo pid 1 is $(cat /proc/1/comm)";
            Ok(service.output(is_asked)?.trim().to_owned())
        },
    )?;
    step(
        "ctr task exec -t service sh  (typed: stty size; exit 4)",
        &mut || session(service.exec_in_terminal(SIZE, &["sh"])?),
    )?;
    step(
        "ctr run --rm -t IMAGE tty sh (typed: stty size; exit 4)",
        &mut || session(container(containerd, "tty", runtime).terminal(SIZE, &["sh"])?),
    )?;
    step(
        "ctr task kill -s SIGKILL service; ctr task rm service",
        &mut || {
            service.kill(Signal::SIGKILL)?;
            Ok(format!("exit code {}", service.remove()?))
        },
    )?;
    Ok(steps)
}

/// Types into a shell on a terminal. ctr sets the size after the start, so it is asked until it is there.
fn session(mut terminal: Terminal) -> Result<String> {
    let wanted = format!("{} {}", SIZE.rows, SIZE.columns);
    let script =
        format!("until [ \"$(stty size)\" = '{wanted}' ]; do :; done; stty size; exit 4\n");
    terminal.type_text(&script)?;
    let (code, shown) = terminal.finish(LIMIT)?;
    let is_answer = |line: &str| line.ends_with(&wanted) && !line.contains("stty");
    ensure!(
        shown.lines().any(|line| is_answer(line.trim())),
        "no size in {shown:?}"
    );
    Ok(format!("{wanted}, exit code {code}"))
}
