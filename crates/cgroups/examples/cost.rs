//! What a container costs this host in cgroups: microseconds of each step, median and worst of
//! some rounds. As root; leaves nothing behind.
//!
//! `cargo run --release -p cgroups --example cost [PAUSE_MS]`: a pause between rounds shows what
//! a container pays that starts alone on a quiet host.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program for people, not for callers"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cgroups::resources::{Access, DeviceKind, DeviceRule, Verdict};
use cgroups::{Cgroup, Hierarchies, Kind, Resources, Result};
use sys::{Child, Signal, Spawn};

const ROUNDS: usize = 20;

/// Durations by the name of the step, in the order of steps.
#[derive(Default)]
struct Costs(BTreeMap<&'static str, Vec<Duration>>);

impl Costs {
    fn time<T>(&mut self, step: &'static str, run: impl FnOnce() -> Result<T>) -> T {
        let start = Instant::now();
        let result = run();
        self.0.entry(step).or_default().push(start.elapsed());
        result.unwrap()
    }
}

fn main() {
    let pause = std::env::args()
        .nth(1)
        .map_or(0, |argument| argument.parse().unwrap());
    let mut costs = Costs::default();
    for round in 0..ROUNDS {
        wait(Duration::from_millis(pause));
        one(
            &mut costs,
            &format!("/cgroups-cost-{}-{round}", std::process::id()),
        );
    }
    println!("{:34} {:>9} {:>9}", "step", "median us", "worst us");
    for (step, mut durations) in costs.0 {
        durations.sort();
        let (median, worst) = (
            durations[durations.len() / 2],
            durations[durations.len() - 1],
        );
        println!(
            "{step:34} {:>9} {:>9}",
            median.as_micros(),
            worst.as_micros()
        );
    }
}

fn one(costs: &mut Costs, path: &str) {
    let mut first = sleeper();
    let mut second = sleeper();
    let host = costs.time("1 detect hierarchies", Hierarchies::at_host);
    let cgroup = costs.time("2 create", || Cgroup::create(&host, path));
    costs.time("3 apply the default limits", || {
        cgroup.apply(&default_limits())
    });
    costs.time("3b enter by itself", || {
        enter(cgroup.open_tasks()?.iter().map(|(path, _)| path))
    });
    // Version 2 has no such file, and whoever stays would be killed with the others.
    let own = host
        .iter()
        .filter(|hierarchy| hierarchy.kind != Kind::Unified);
    enter(own.map(|hierarchy| hierarchy.own.join("tasks"))).unwrap();
    costs.time("4 attach the first", || cgroup.attach(first.pid()));
    costs.time("5 attach the second", || cgroup.attach(second.pid()));
    costs.time("6 numbers", || cgroup.stats());
    costs.time("7 freeze", || cgroup.freeze());
    costs.time("8 thaw", || cgroup.thaw());
    costs.time("9 kill", || cgroup.kill_all(Signal::SIGKILL as i32));
    first.wait().unwrap();
    second.wait().unwrap();
    costs.time("9b delete", || cgroup.delete());
}

/// Moves this process, which has one thread.
fn enter(tasks: impl Iterator<Item = impl AsRef<Path>>) -> Result<()> {
    for path in tasks {
        std::fs::write(path, "0").unwrap();
    }
    Ok(())
}

fn sleeper() -> Child {
    Spawn::new(Path::new("/bin/sleep"))
        .args(["100"])
        .spawn()
        .unwrap()
}

/// What containerd asks for an ordinary container: shares and the usual devices.
fn default_limits() -> Resources {
    let rule = |verdict, kind, major, minor, access| DeviceRule {
        verdict,
        kind,
        major,
        minor,
        access,
    };
    let mut devices = vec![
        rule(Verdict::Deny, DeviceKind::All, None, None, Access::ALL),
        rule(Verdict::Allow, DeviceKind::Char, None, None, Access::MKNOD),
        rule(Verdict::Allow, DeviceKind::Block, None, None, Access::MKNOD),
        rule(
            Verdict::Allow,
            DeviceKind::Char,
            Some(136),
            None,
            Access::ALL,
        ),
    ];
    let numbers = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
        (10, 200),
    ];
    devices.extend(numbers.map(|(major, minor)| {
        rule(
            Verdict::Allow,
            DeviceKind::Char,
            Some(major),
            Some(minor),
            Access::ALL,
        )
    }));
    let mut resources = Resources {
        devices,
        ..Resources::default()
    };
    resources.cpu.shares = Some(1024);
    resources
}

fn wait(pause: Duration) {
    let mut sleeper = Spawn::new(Path::new("/bin/sleep"))
        .args([format!("{}", pause.as_secs_f64())])
        .spawn()
        .unwrap();
    sleeper.wait().unwrap();
}
