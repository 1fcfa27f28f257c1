//! Containers in virtual machines, by stock containerd: one guest at a time, under emulation where the
//! host has nothing better.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    config::Config,
    containerd::{Containerd, SETTLE_LIMIT},
    ctr::Ctr,
    events::Events,
    images::Image,
    runtime::Runtime,
    terminal::Size,
    versions::Version,
    wait::{SOON, Sources, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runv;

/// The release of the host's kernel.
fn host_release() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(text.trim().to_owned())
}

#[test]
fn a_container_runs_on_its_guests_kernel_to_its_own_end() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let release = bench.container("release").output("uname -r")?;
        let release = release.trim();
        ensure!(release.ends_with("-cloud-amd64"), "the kernel is {release}");
        ensure!(release != host_release()?, "it is the host's");
        if bench.version() == Version::V2_4 {
            ends_and_streams(bench)?;
            runs_out_of_memory(bench)?;
        }
        a_life(bench)
    });
}

/// Exit codes, both outputs, input and root.
fn ends_and_streams(bench: &Bench<'_>) -> Result<()> {
    let script = "id -u; hostname; echo written > /etc/new; cat /etc/new; echo oops >&2; exit 7";
    let ended = bench.container("ends").shell(script)?;
    ensure!(ended.stderr().contains("oops"), "{ended}");
    ensure!(ended.stdout().ends_with("written\n"), "{ended}");
    ended.with_code(7)?;
    let missing = bench.container("missing").run(&["/no/such/program"])?;
    ensure!(missing.code() != 0, "{missing}");
    ensure!(missing.stderr().contains("/no/such/program"), "{missing}");
    Ok(())
}

/// Its guest's kernel kills, and containerd tells of it before the end.
fn runs_out_of_memory(bench: &Bench<'_>) -> Result<()> {
    let mut events = Events::follow(bench.containerd)?;
    let limit = (16 << 20).to_string();
    let container = bench.container("oom").flags(&["--memory-limit", &limit]);
    // What tail keeps of a line without an end grows until it is killed; an exec's is told while init runs.
    let script = "mkfifo /tmp/go; read line < /tmp/go; exec tail /dev/zero";
    let task = container.detach(&["sh", "-c", script])?;
    task.exec(&["tail", "/dev/zero"])?.with_code(137)?;
    events.of_container(&task.id, |event| event.topic == "/tasks/oom")?;
    task.exec(&["sh", "-c", "echo > /tmp/go"])?.success()?;
    let code = task.remove()?;
    ensure!(code == 137, "expected 137, got {code}");
    let seen = events.of_container(&task.id, |event| event.topic == "/containers/delete")?;
    let topics: Vec<_> = seen.iter().map(|event| event.topic.as_str()).collect();
    let place = |wanted: &str| topics.iter().position(|&topic| topic == wanted);
    let (told, ended) = (place("/tasks/oom"), place("/tasks/exit"));
    ensure!(told.is_some() && told < ended, "got {topics:?}");
    Ok(())
}

/// In the background: execs, a terminal, signals.
fn a_life(bench: &Bench<'_>) -> Result<()> {
    let script = "trap 'echo bye > /tmp/said; exit 9' TERM; while :; do sleep 1; done";
    let task = bench.container("life").detach(&["sh", "-c", script])?;
    let seen = task.output("echo $((6*7)); ps | grep -c 'trap'")?;
    ensure!(seen.starts_with("42\n"), "{seen:?}");
    // Its console is a file in the host's memory: it says nothing there, and cannot fill it.
    let level = task.output("cat /proc/sys/kernel/printk")?;
    ensure!(level.starts_with("1\t"), "{level:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", task.pid()?))?;
    let of_files = limits
        .lines()
        .find(|line| line.starts_with("Max file size"));
    ensure!(
        of_files.is_some_and(|line| line.matches("1048576").count() == 2),
        "{limits}"
    );
    task.exec(&["sh", "-c", "exit 3"])?.with_code(3)?;
    let missing = task.exec(&["/no/such/program"])?;
    ensure!(missing.code() != 0, "{missing}");
    let size = Size {
        rows: 24,
        columns: 80,
    };
    let script = "tty; until stty size 2>/dev/null | grep '24 80'; do :; done; read line; echo \"<$line>\"; \
                  until stty size | grep '30 100'; do :; done";
    let mut terminal = task.exec_in_terminal(size, &["sh", "-c", script])?;
    terminal.expect("/dev/pts/", SOON)?;
    terminal.expect("24 80", SOON)?;
    terminal.type_text("typed\n")?;
    terminal.expect("<typed>", SOON)?;
    terminal.resize(Size {
        rows: 30,
        columns: 100,
    })?;
    terminal.expect("30 100", SOON)?;
    terminal.finish(SOON)?;
    task.kill(Signal::SIGTERM)?;
    let code = task.remove()?;
    ensure!(code == 9, "expected 9, got {code}");
    Ok(())
}

/// The newest containerd, with runv's own place.
fn one_containerd() -> Result<(Containerd, integration::runtime::Home)> {
    let installed = Version::available()?
        .pop()
        .context("there is a containerd")?;
    let home = RUNTIME.home()?.context("runv has a place")?;
    let mut config = Config::with_images(&[Image::Busybox]);
    config.environment.push(home.variable());
    Ok((Containerd::start(&installed, &config)?, home))
}

#[test]
fn whatever_is_killed_nothing_is_left() {
    let (containerd, _home) = one_containerd().unwrap();
    let outcome = kills(&containerd);
    let log = containerd.log_tail();
    outcome
        .with_context(|| format!("its log ends:\n{log}"))
        .unwrap();
    containerd.finish().unwrap();
}

fn kills(containerd: &Containerd) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let container = |id| ctr.container(id, Image::Busybox, RUNTIME);

    // QEMU: its container has ended, with a status that says so.
    let task = container("kills-qemu").detach(&["sleep", "600"])?;
    kill(Pid::from_raw(task.pid()?), Signal::SIGKILL)?;
    let code = task.remove()?;
    ensure!(code == 255, "expected 255, got {code}");

    // The shim: the guest turns itself off, and containerd's clean-up does the rest.
    let task = container("kills-shim").detach(&["sleep", "600"])?;
    let qemu = task.pid()?;
    let shim = containerd.shim_of("kills-shim")?.context("it has a shim")?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    until("QEMU is gone", SETTLE_LIMIT, Sources::none(), || {
        Ok((!Path::new(&format!("/proc/{qemu}")).exists()).then_some(()))
    })?;
    until("containerd knows", SOON, Sources::none(), || {
        let status = task.status()?;
        Ok(status
            .is_none_or(|status| status.state == "STOPPED")
            .then_some(()))
    })?;
    if task.status()?.is_some() {
        task.delete()?;
    }
    task.remove_container()?;
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_in_one_line_and_leaves_nothing() {
    let (containerd, home) = one_containerd().unwrap();
    let outcome = refusals(&containerd, &home.variable().1);
    let log = containerd.log_tail();
    outcome
        .with_context(|| format!("its log ends:\n{log}"))
        .unwrap();
    containerd.finish().unwrap();
}

fn refusals(containerd: &Containerd, home: &str) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let refused = |id: &str, flags: &[&str], expected: &str| {
        let container = ctr.container(id, Image::Busybox, RUNTIME).flags(flags);
        let ended = container.run(&["true"])?;
        ensure!(ended.code() != 0, "{id} ran: {ended}");
        ensure!(ended.stderr().contains(expected), "{id}: {ended}");
        anyhow::Ok(())
    };
    let directory = format!(
        "type=bind,src={},dst=/data,options=rbind:",
        containerd.work().display()
    );
    let flags = |access: &str| ["--mount".to_owned(), format!("{directory}{access}")];
    let [mount, written] = flags("rw");
    refused("written", &[&mount, &written], "can be written")?;
    fs::write(containerd.work().join("file"), "copied\n")?;
    let [mount, read] = flags("ro");
    let copied = ctr.container("copied", Image::Busybox, RUNTIME);
    let copied = copied.flags(&[&mount, &read]).output("cat /data/file")?;
    ensure!(copied == "copied\n", "{copied:?}");
    let view = ["--annotation", "org.pouch.view=lxcfs"];
    refused("view", &view, "org.pouch.view")?;
    let initramfs = format!("{home}/guest/initramfs");
    fs::write(&initramfs, "no archive")?;
    refused("broken", &[], "the virtual machine did not come up")?;
    fs::remove_file(&initramfs)?;
    refused("none", &[], "runv image build")
}
