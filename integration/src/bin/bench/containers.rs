//! runlxc and stock runc in turn on one containerd: latency, memory, descriptors.
//!
//! POUCH_BENCH_RUNS sets the samples of each latency (default 60), POUCH_BENCH_EXECS how many execs
//! the census of descriptors spans (default 2000).

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use integration::{
    census::descriptors,
    config::Config,
    containerd::Containerd,
    ctr::Ctr,
    figures::{Goal, Measure, Names},
    images::Image,
    runtime::Runtime,
    versions::Installed,
    wait::Deadline,
};

use crate::{count, milliseconds, samples};

pub(crate) const NAMES: Names = Names {
    stock: "runc",
    ours: "runlxc",
};

/// All measures on one containerd.
pub(crate) fn measure(installed: &Installed) -> Result<Vec<Measure>> {
    let (runs, execs) = (
        count("POUCH_BENCH_RUNS", 60)?,
        count("POUCH_BENCH_EXECS", 2000)?,
    );
    let containerd = Containerd::start(installed, &Config::with_images(&[Image::Busybox]))?;
    let bench = Bench {
        containerd: &containerd,
    };
    let mut measures = vec![bench.run_latency(runs)?];
    measures.extend(bench.services(runs, execs)?);
    containerd.finish()?;
    Ok(measures)
}

struct Bench<'a> {
    containerd: &'a Containerd,
}

impl Bench<'_> {
    /// One container after the other, the runtimes in turn, so that both meet the same machine.
    fn run_latency(&self, runs: u32) -> Result<Measure> {
        let mut measure = Measure::new("ctr run --rm true", "ms", Goal::RatioMax(0.8));
        for run in 0..=runs {
            for runtime in Runtime::ALL {
                let id = format!("run-{runtime}-{run}");
                let container = Ctr::of(self.containerd).container(&id, Image::Busybox, runtime);
                let started = Instant::now();
                container.run(&["true"])?.success()?;
                // The first pays for cold caches.
                if run > 0 {
                    samples(&mut measure, runtime).push(milliseconds(started));
                }
            }
        }
        Ok(measure)
    }

    /// One service each: execs in turn, then what the shim costs, then many execs.
    fn services(&self, runs: u32, execs: u32) -> Result<Vec<Measure>> {
        let mut latency = Measure::new("ctr task exec true", "ms", Goal::RatioMax(0.6));
        let mut memory = Measure::new("shim RSS", "MiB", Goal::None);
        let mut threads = Measure::new("shim threads", "threads", Goal::None);
        let grown = format!("fds grown over {execs} execs");
        let mut grown = Measure::new(&grown, "fds", Goal::None);
        let tasks: Vec<_> = Runtime::ALL
            .into_iter()
            .map(|runtime| {
                let id = format!("service-{runtime}");
                let ctr = Ctr::of(self.containerd);
                let container = ctr.container(&id, Image::Busybox, runtime);
                Ok((runtime, container.detach(&["sleep", "100000"])?))
            })
            .collect::<Result<_>>()?;
        for run in 0..=runs {
            for (runtime, task) in &tasks {
                let started = Instant::now();
                task.exec(&["true"])?.success()?;
                if run > 0 {
                    samples(&mut latency, *runtime).push(milliseconds(started));
                }
            }
        }
        for (runtime, task) in &tasks {
            let shim = self
                .containerd
                .shim_of(&task.id)?
                .context("the shim runs")?;
            let before = open_descriptors(shim)?;
            for _ in 0..execs {
                task.exec(&["true"])?.success()?;
            }
            samples(&mut grown, *runtime).push(open_descriptors(shim)? - before);
            // Both settle first: Go's runtime gives memory back, ours code.
            settle()?;
            samples(&mut memory, *runtime).push(status_number(shim, "VmRSS")? / 1024.0);
            samples(&mut threads, *runtime).push(status_number(shim, "Threads")?);
            task.kill_and_remove()?;
        }
        Ok(vec![latency, memory, threads, grown])
    }
}

fn open_descriptors(pid: i32) -> Result<f64> {
    let total: usize = descriptors(pid)?.values().sum();
    Ok(f64::from(u32::try_from(total)?))
}

/// Two seconds without a request.
fn settle() -> Result<()> {
    let limit = Duration::from_secs(2);
    Deadline::after(limit).poll(&mut []).map(drop)
}

/// A number in /proc/PID/status, in the unit it has there.
fn status_number(pid: i32, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .with_context(|| format!("no {key} of {pid}"))?
        .parse()
        .context("a number")
}
