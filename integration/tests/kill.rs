//! Processes are killed at random moments of a container's life; afterwards all is told right and nothing is left.
//!
//! `POUCH_KILLS` says how often (40), `POUCH_SEED` repeats a run.

#![expect(
    clippy::print_stdout,
    reason = "the seed, and what is counted of the peer, are for the reader"
)]

use std::{
    fmt, fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    census::Kind,
    check::Bench,
    config::Config,
    containerd::{Containerd, SETTLE_LIMIT},
    images::Image,
    random::Random,
    runtime::Runtime,
    settle::settle,
    versions::Version,
    wait::{Deadline, SOON},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const KILLS: u64 = 40;

/// Pid 1 is not the program: a kill of init is one of pid 1. Its hooks are killed as well.
const RICH: [&str; 6] = [
    "--annotation",
    "org.pouch.rich.mode=dumb-init",
    "--annotation",
    "org.pouch.rich.prestart=/bin/true",
    "--annotation",
    "org.pouch.rich.poststop=/bin/true",
];

const VICTIMS: [Victim; 4] = [
    Victim::Containerd,
    Victim::Shim,
    Victim::Maker,
    Victim::Init,
];

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Containerd,
    Shim,
    /// What the shim runs to make the container: lxc-start, or runc.
    Maker,
    Init,
}

/// One kill.
#[derive(Debug, Clone, Copy)]
struct Plan {
    number: u64,
    victim: Victim,
    moment: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            victim,
            moment,
        } = self;
        write!(
            f,
            "kill {number}, of {victim:?} after {} ms",
            moment.as_millis()
        )
    }
}

#[test]
fn after_random_kills_all_is_told_right_and_nothing_is_left() {
    let failures = kills(Runtime::Runlxc, number_from("POUCH_KILLS").unwrap_or(KILLS)).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn after_random_kills_of_rich_containers_nothing_is_left_either() {
    let count = number_from("POUCH_KILLS").unwrap_or(KILLS) / 4;
    let failures = kills_of(Runtime::Runlxc, &RICH, count).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_stock_runc_leaves_after_random_kills_is_counted() {
    let count = number_from("POUCH_KILLS").unwrap_or(KILLS) / 4;
    let failures = kills(Runtime::Runc, count).unwrap();
    println!(
        "stock runc: {} of {count} kills left something or told it wrong",
        failures.len()
    );
    for failure in failures {
        println!("  {failure}");
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn kills(runtime: Runtime, count: u64) -> Result<Vec<String>> {
    kills_of(runtime, &[], count)
}

/// Kills that often, the containerds taking turns, containers that are run with these flags; what
/// went wrong comes back.
fn kills_of(runtime: Runtime, flags: &[&str], count: u64) -> Result<Vec<String>> {
    runtime
        .binaries()
        .context("the runtime under test is missing")?;
    let settle_limit = match runtime {
        // A shim that containerd has forgotten before it asked for a container ends after 60 s.
        Runtime::Runlxc | Runtime::Runv => SETTLE_LIMIT * 5,
        // What it leaves is counted, not waited for.
        Runtime::Runc => SETTLE_LIMIT / 4,
    };
    let seed = number_from("POUCH_SEED").map_or_else(Random::fresh_seed, Ok)?;
    println!("{runtime}: {count} kills, repeated by POUCH_SEED={seed}");
    let mut random = Random::new(seed);
    let mut containerds = Vec::new();
    for installed in Version::available()? {
        let containerd = Containerd::start(&installed, &Config::with_images(&[Image::Busybox]))?;
        let known = containerd.census()?;
        let length_us = calm_length_us(&bench(&containerd, runtime), flags)?;
        containerds.push((containerd, known, length_us));
    }
    let turns = containerds.len();
    let mut failures = Vec::new();
    for number in 0..count {
        let (containerd, known, length_us) = &mut containerds[usize::try_from(number)? % turns];
        let plan = Plan {
            number,
            victim: *random.choose(&VICTIMS),
            moment: Duration::from_micros(random.below(*length_us)),
        };
        let mut report = |what: String| {
            failures.push(format!(
                "containerd {}: {plan}: {what}",
                containerd.installed.version
            ));
        };
        if let Err(error) = kill_once(&bench(containerd, runtime), flags, plan) {
            report(format!("{error:#}\n{}", containerd.log_tail()));
        }
        let mut leaks = containerd.leaks_since(known, settle_limit)?;
        let are_sockets = leaks.things().all(|thing| thing.kind == Kind::Socket);
        if runtime == Runtime::Runlxc && !leaks.is_empty() && are_sockets {
            // containerd asks nobody to clean up behind a shim that died before it was connected
            // to. The next shim takes its socket away, as it is a minute old by now.
            live(
                &bench(containerd, runtime),
                flags,
                &format!("after-{number}"),
            )?;
            leaks = containerd.leaks_since(known, SETTLE_LIMIT)?;
        }
        if !leaks.is_empty() {
            report(format!("left behind:\n{leaks}\n{}", containerd.log_tail()));
            *known = containerd.census()?;
        }
    }
    Ok(failures)
}

fn bench(containerd: &Containerd, runtime: Runtime) -> Bench<'_> {
    Bench {
        containerd,
        runtime,
        image: Image::Busybox,
    }
}

/// How long a life lasts when nobody is killed.
fn calm_length_us(bench: &Bench<'_>, flags: &[&str]) -> Result<u64> {
    let started = Instant::now();
    live(bench, flags, "calm")?;
    Ok(u64::try_from(started.elapsed().as_micros())?)
}

/// The life of a container. Each step may fail when somebody was killed, but none may hang.
fn live(bench: &Bench<'_>, flags: &[&str], id: &str) -> Result<()> {
    let container = bench.ctr().container(id, bench.image, bench.runtime);
    let container = container.flags(flags);
    let task = bench.ctr().task(id);
    let steps: [&dyn Fn() -> Result<()>; 4] = [
        &|| container.detach(&["sleep", "600"]).map(drop),
        &|| task.exec(&["true"]).map(drop),
        &|| task.exec(&["sh", "-c", "exit 3"]).map(drop),
        // What was not killed does not stop.
        &|| {
            task.kill(Signal::SIGKILL)
                .and_then(|()| task.remove())
                .map(drop)
        },
    ];
    for step in steps {
        let started = Instant::now();
        let done = step();
        ensure!(started.elapsed() < SOON, "a step hung: {:?}", done.err());
    }
    Ok(())
}

fn kill_once(bench: &Bench<'_>, flags: &[&str], plan: Plan) -> Result<()> {
    let id = format!("kill-{}", plan.number);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| strike(bench, plan, &id, &is_over));
        let lived = live(bench, flags, &id);
        is_over.store(true, Ordering::Relaxed);
        let struck = killer.join().expect("the killer does not panic");
        struck.and(lived)
    })?;
    settle(bench, &id, &[137])
}

/// Waits for the moment, then for the victim to be there, and kills it. A life may end before.
fn strike(bench: &Bench<'_>, plan: Plan, id: &str, is_over: &AtomicBool) -> Result<()> {
    // What makes the container is there for milliseconds: it is caught when it is seen.
    if plan.victim != Victim::Maker {
        // The moment is random; there is nothing to wait for.
        Deadline::after(plan.moment).poll(&mut [])?;
    }
    if plan.victim == Victim::Containerd {
        return bench.containerd.kill_and_restart();
    }
    let mut shim = None;
    while !is_over.load(Ordering::Relaxed) {
        if shim.is_none() {
            shim = bench.containerd.shim_of(id)?;
        }
        let victim = match (plan.victim, shim) {
            (_, None) => None,
            (Victim::Shim, shim) => shim,
            (_, Some(shim)) => children(shim)
                .into_iter()
                .find(|(_, name)| {
                    let is_maker = name.starts_with("lxc-start") || name.starts_with("runc");
                    is_maker == (plan.victim == Victim::Maker)
                })
                .map(|(pid, _)| pid),
        };
        if let Some(pid) = victim {
            // It may have ended by itself in between.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            return Ok(());
        }
    }
    Ok(())
}

/// The children of a process with their names.
fn children(pid: i32) -> Vec<(i32, String)> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|child| {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            Some((child.parse().ok()?, name.trim().to_owned()))
        })
        .collect()
}
