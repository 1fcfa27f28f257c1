//! A rich container: its image's own systemd and services, its limits in `free`, hooks around its program.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    ctr::{Ctr, Task},
    images::Image,
    lxcfs::Lxcfs,
    runtime::Runtime,
    wait::{SOON, Sources, until},
};
use nix::sys::signal::Signal;

const SHOP: &str = "shop";

const MEBIBYTES: u64 = 256;

/// What it is asked for, but for the mode's prefix.
const ANNOTATIONS: [&str; 6] = [
    "org.pouch.view=lxcfs",
    "org.pouch.rich.mode=systemd",
    "org.pouch.rich.user=daemon",
    "org.pouch.rich.services=cron,rsyslog",
    "org.pouch.rich.prestart=sh:echo prestart: pid 1 is $(cat /proc/1/comm), root is $(id -un) >>/log/hooks",
    "org.pouch.rich.poststop=sh:echo poststop: the program left $(cat /var/tmp/note) >>/log/hooks",
];

/// The application.
const PROGRAM: &str =
    "trap 'exit 5' TERM; echo a note >/var/tmp/note; while :; do sleep 1 & wait; done";

/// Runs it and prints what is seen in it.
pub(crate) fn show(containerd: &Containerd) -> Result<()> {
    let lxcfs = Lxcfs::start(&containerd.work().join("lxcfs"))?;
    let log = containerd.work().join("log");
    fs::create_dir(&log)?;
    let options = lxcfs.options();
    let options = options.to_str().context("it is UTF-8")?;
    let limit = (MEBIBYTES << 20).to_string();
    let flags = ["--runtime-config-path", options, "--memory-limit", &limit];
    let mut shop = Ctr::of(containerd)
        .container(SHOP, Image::DebianSystemd, Runtime::Runlxc)
        .flags(&flags)
        .bound(&log, "/log");
    println!("\nA rich container, a machine of its own for the application, without privileges:\n");
    println!("  ctr run -d --memory-limit {limit} ... IMAGE {SHOP} sh -c '...'");
    for annotation in ANNOTATIONS {
        println!("      --annotation '{annotation}'");
        shop = shop.flags(&["--annotation", annotation]);
    }
    let shop = shop.detach(&["sh", "-c", PROGRAM])?;
    inside(&shop)?;
    let asked = |script| shop.output(script);
    println!(
        "\nin it: ps\n{}",
        asked("ps -eo pid,ppid,user:9,args --forest | grep -v 'ps -eo'")?
    );
    let free = asked("free --mebi")?;
    ensure!(
        free.contains(&format!(" {MEBIBYTES} ")),
        "not its limit: {free}"
    );
    println!("in it: free --mebi (the limit, not the host's memory)\n{free}");
    shop.kill(Signal::SIGTERM)?;
    let code = shop.remove()?;
    ensure!(code == 5, "expected the program's exit code 5, got {code}");
    println!("ctr task kill shop; ctr task rm shop: exit code {code}, the program's own\n");
    let hooks = fs::read_to_string(log.join("hooks"))?;
    println!("what its hooks have said:\n{hooks}");
    let expected = "prestart: pid 1 is runlxc-init, root is root\n\
                    poststop: the program left a note\n";
    ensure!(hooks == expected, "expected {expected:?}");
    lxcfs.stop()
}

/// Waits until the services and the program run.
fn inside(shop: &Task<'_>) -> Result<()> {
    until("the program runs", SOON, Sources::none(), || {
        let script = "test -s /var/tmp/note && systemctl is-active cron rsyslog";
        let asked = shop.exec(&["sh", "-c", script])?;
        Ok((asked.code() == 0).then_some(()))
    })
}
