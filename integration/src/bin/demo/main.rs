//! The main job, shown: real containers of a Debian image by a stock containerd, with runlxc and beside it runc; a rich
//! one with its own init, services and view of its limits; limits on what they write, by snapshotter-quota; then the
//! same image in a virtual machine of its own, by runv, and one as a disk of a store, by snapshotter-remote.
//!
//! `demo` leaves nothing behind. `demo --keep` leaves containerd running and says how to play with
//! it; `demo --stop` ends what was kept.

#![expect(clippy::print_stdout, reason = "this program is its output")]

use std::time::Instant;

use anyhow::{Context, Result, bail};
use integration::{
    config::Config,
    containerd::Containerd,
    images::Image,
    runtime::{Home, Runtime},
    snapshotter::{Setup, Snapshotter},
    sweep::sweep_abandoned,
    versions::Version,
};

mod containers;
mod disks;
mod limits;
mod machine;
mod rich;

use disks::Disks;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(Keep::No),
        ["--keep"] => show(Keep::Yes),
        ["--stop"] => stop(),
        _ => bail!("usage: demo [--keep | --stop]"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

/// Says what it ended.
fn stop() -> Result<()> {
    let swept = sweep_abandoned()?;
    let names: Vec<_> = swept.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [] => println!("nothing was running"),
        names => println!(
            "ended {}, with their containers, mounts and files",
            names.join(" and ")
        ),
    }
    Ok(())
}

fn show(keep: Keep) -> Result<()> {
    Runtime::Runlxc
        .binaries()
        .context("run `make build` first")?;
    let installed = Version::available()?
        .into_iter()
        .next()
        .context("no containerd")?;
    println!(
        "stock containerd {}, its own root; image: Debian from packages",
        installed.version
    );
    // The back end is the first that works here, as on any host.
    let snapshotter = Snapshotter::start(Setup {
        is_activated: true,
        ..Setup::quota("")?
    })?;
    // There whoever ends an abandoned demo finds it.
    let home = Home::make_in(&snapshotter.work(), 0)?;
    let disks = Disks::start()?;
    let config = Config {
        proxies: vec![snapshotter.proxy(), disks.snapshotter.proxy()],
        environment: vec![home.variable()],
        ..Config::with_images(&[Image::Debian, Image::DebianSystemd])
    };
    let containerd = Containerd::start(&installed, &config)?;
    containers::show(&containerd)?;
    rich::show(&containerd)?;
    limits::show(&containerd, &snapshotter)?;
    machine::show(&containerd, &home)?;
    disks.show(&containerd)?;
    match keep {
        Keep::No => {
            drop(home);
            containerd.finish()?;
            snapshotter.finish()?;
            disks.finish()?;
            println!(
                "\nnothing is left: processes, mounts, cgroups, sockets and files were counted"
            );
        }
        Keep::Yes => {
            keep_running(&containerd, &snapshotter);
            // Dropping them would end them; of the disks' daemon containerd goes on asking.
            std::mem::forget((containerd, snapshotter, home, disks.without_store()?));
        }
    }
    Ok(())
}

/// Runs one step and prints a line of what came out.
fn step(ran: &str, action: impl FnOnce() -> Result<String>) -> Result<()> {
    let started = Instant::now();
    let came_out = action().with_context(|| ran.to_owned())?;
    let took = started.elapsed().as_secs_f64() * 1000.0;
    println!("{ran:<58} {came_out:<26} {took:>6.0} ms");
    Ok(())
}

/// The heads of what [`step`] prints.
fn heads() {
    println!("{:<58} {:<26} {:>9}", "what ran", "what came out", "took");
}

fn keep_running(containerd: &Containerd, snapshotter: &Snapshotter) {
    let ctr = format!(
        "{} -a {} -n {}",
        containerd.installed.ctr.display(),
        containerd.address().display(),
        containerd.namespace
    );
    let image = Image::Debian.reference();
    let name = Runtime::Runlxc.name();
    println!("\ncontainerd runs on. To play with it:\n");
    println!("  {ctr} run --rm -t --runtime {name} {image} play bash");
    println!("  {ctr} run -d --runtime {name} {image} service sleep 1000");
    println!("  {ctr} task exec -t --exec-id shell service bash");
    println!("  {ctr} task rm -f service && {ctr} container rm service");
    println!("\nIn a virtual machine of its own:\n");
    let runv = Runtime::Runv.name();
    println!("  {ctr} run --rm -t --runtime {runv} {image} vm bash");
    println!("\nWith a limit on what it writes, shown and changed:\n");
    println!(
        "  {ctr} run -d --snapshotter quota --snapshotter-label {}=536870912 --runtime {name} {image} web sleep 1000",
        limits::SIZE
    );
    let ours = limits::command_line(snapshotter);
    println!("  {ctr} task exec --exec-id df web df -h /");
    println!("  {ours} ls");
    println!(
        "  {ctr} snapshots --snapshotter quota label web {}=1073741824",
        limits::SIZE
    );
    println!("  {ctr} task rm -f web && {ctr} container rm web");
    println!(
        "\nIt ends, with all its containers, at `make demo-stop` and at the next demo or test."
    );
}
