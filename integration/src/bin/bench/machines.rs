//! runv and stock runc: what a machine costs beside a process; and beside a bare QEMU that boots the same kernel.
//! Containers of both are run in turn on one containerd. Pods are not: first all of runc on a containerd of their own,
//! then all of runv, so that their figures say something only on a machine with nothing else to do.
//!
//! POUCH_BENCH_MACHINES sets the samples of each latency (default 15), POUCH_BENCH_PODS how many pods idle (default 4).

use std::{collections::BTreeMap, fs, thread::available_parallelism, time::Instant};

use anyhow::{Context, Result, ensure};
use integration::{
    census::processes,
    config::Config,
    containerd::Containerd,
    cri::PodNetwork,
    ctr::{Ctr, Task},
    figures::{Goal, Measure, Names},
    images::Image,
    node::{self, Node},
    runtime::{BOOT, Home, Runtime},
    versions::Installed,
    wait::Deadline,
};

use crate::{bare, count, milliseconds, samples};

/// Beside a process.
pub(crate) const BESIDE_RUNC: Names = Names {
    stock: "runc",
    ours: "runv",
};

/// Beside a machine that does nothing but boot.
pub(crate) const BESIDE_QEMU: Names = Names {
    stock: "QEMU",
    ours: "runv",
};

const RUNTIMES: [Runtime; 2] = [Runtime::Runc, Runtime::Runv];

/// What a program prints in one go, to be timed.
const STREAM_MIB: u32 = 128;

/// For how long idle pods are watched, in seconds.
const IDLE_S: u32 = 10;

/// All measures on one containerd: those beside runc, and those beside QEMU.
pub(crate) fn measure(installed: &Installed) -> Result<(Vec<Measure>, Vec<Measure>)> {
    let runs = count("POUCH_BENCH_MACHINES", 15)?;
    let home = Runtime::Runv.home(0)?.context("runv has a place")?;
    let mut config = Config::with_images(&[Image::Busybox]);
    config.environment.push(home.variable());
    let containerd = Containerd::start(installed, &config)?;
    let bench = Bench {
        containerd: &containerd,
        home: &home,
    };
    let copies = bench.runs(runs)?;
    let boots = bench.boots(runs.div_ceil(3))?;
    let mut beside_runc = vec![copies.clone()];
    beside_runc.extend(bench.services(runs)?);
    containerd.finish()?;
    let pods = count("POUCH_BENCH_PODS", 4)?;
    for runtime in RUNTIMES {
        node::on(installed, runtime, |node| {
            idle(node, (runs, pods), &mut beside_runc)
        })?;
    }
    let copies = Measure {
        name: "ctr run --rm true, of a template".to_owned(),
        stock: boots.stock.clone(),
        goal: Goal::None,
        ..copies
    };
    Ok((beside_runc, vec![boots, copies]))
}

struct Bench<'a> {
    containerd: &'a Containerd,
    home: &'a Home,
}

impl Bench<'_> {
    /// How long a container takes from nothing to nothing.
    fn run(&self, runtime: Runtime, number: u32, flags: &[&str]) -> Result<f64> {
        let id = format!("run-{runtime}-{}-{number}", flags.len());
        let container = Ctr::of(self.containerd).container(&id, Image::Busybox, runtime);
        let container = container.flags(flags);
        let started = Instant::now();
        container.start(&["true"])?.finish(BOOT)?.success()?;
        Ok(milliseconds(started))
    }

    /// The first of each pays for cold caches and for the disk of the image.
    fn runs(&self, runs: u32) -> Result<Measure> {
        let mut measure = Measure::new("ctr run --rm true", "ms", Goal::OursMax(700.0));
        for run in 0..=runs {
            for runtime in RUNTIMES {
                let took = self.run(runtime, run, &[])?;
                if run > 0 {
                    samples(&mut measure, runtime).push(took);
                }
            }
        }
        Ok(measure)
    }

    fn boots(&self, runs: u32) -> Result<Measure> {
        let mut measure = Measure::new("ctr run --rm true, booted", "ms", Goal::None);
        let cold = ["--annotation", "org.pouch.runv.template=never"];
        for run in 0..runs {
            measure.stock.push(bare::boot(self.home)?);
            measure.ours.push(self.run(Runtime::Runv, run, &cold)?);
        }
        Ok(measure)
    }

    /// One service each: execs in turn, then much output in turn.
    fn services(&self, runs: u32) -> Result<Vec<Measure>> {
        let mut latency = Measure::new("ctr task exec true", "ms", Goal::OursMax(80.0));
        let mut stream = Measure::new("output of an exec", "MB/s", Goal::OursMin(80.0));
        let start = |runtime: Runtime| {
            let id = format!("service-{runtime}");
            let container = Ctr::of(self.containerd).container(&id, Image::Busybox, runtime);
            Ok((runtime, container.detach(&["sleep", "100000"])?))
        };
        let tasks: Vec<_> = RUNTIMES.into_iter().map(start).collect::<Result<_>>()?;
        for run in 0..=2 * runs {
            for (runtime, task) in &tasks {
                let started = Instant::now();
                task.exec(&["true"])?.success()?;
                if run > 0 {
                    samples(&mut latency, *runtime).push(milliseconds(started));
                }
            }
        }
        for _ in 0..runs.div_ceil(5) {
            for (runtime, task) in &tasks {
                samples(&mut stream, *runtime).push(self.megabytes_per_second(task)?);
            }
        }
        for (_, task) in &tasks {
            task.kill_and_remove()?;
        }
        Ok(vec![latency, stream])
    }

    /// To a log file, and every byte is there.
    fn megabytes_per_second(&self, task: &Task<'_>) -> Result<f64> {
        let log = self.containerd.work().join("streamed");
        let script = format!("dd if=/dev/zero bs=1M count={STREAM_MIB} 2>/dev/null");
        let started = Instant::now();
        let exec = task.start_logged_exec(&log, &["sh", "-c", &script])?;
        exec.finish(BOOT)?.success()?;
        let seconds = started.elapsed().as_secs_f64();
        let (length, expected) = (fs::metadata(&log)?.len(), u64::from(STREAM_MIB) << 20);
        ensure!(length == expected, "{length} bytes of {expected}");
        fs::remove_file(&log)?;
        Ok(f64::from(STREAM_MIB) * 1.048_576 / seconds)
    }
}

/// Pods come and go, then some stay: what each costs the host.
fn idle(node: &Node<'_>, (runs, pods): (u32, u32), measures: &mut Vec<Measure>) -> Result<()> {
    let mut latency = measure_of(measures, "RunPodSandbox", "ms", 300.0);
    for run in 0..=runs {
        let pod = node.pod(&format!("timed-{run}"), PodNetwork::Own)?;
        let started = Instant::now();
        let id = node.cri.run_pod(&pod)?;
        if run > 0 {
            samples(&mut latency, node.runtime).push(milliseconds(started));
        }
        node.cri.remove_pod(&id)?;
    }
    let mut ids = Vec::new();
    for number in 0..pods {
        let pod = node.pod(&format!("idle-{number}"), PodNetwork::Own)?;
        ids.push(node.cri.run_pod(&pod)?);
    }
    // What a start has left to be done is done.
    wait(IDLE_S)?;
    let mut memory = measure_of(measures, "PSS of an idle pod", "MiB", 50.0);
    let mut time = measure_of(measures, "processor of an idle pod", "% of one", 0.5);
    let before = pod_processes(node)?;
    wait(IDLE_S)?;
    let after = pod_processes(node)?;
    let pods = f64::from(pods);
    let mib: f64 = after.keys().map(|pid| pss_mib(*pid)).sum::<Result<f64>>()?;
    samples(&mut memory, node.runtime).push(mib / pods);
    let used: f64 = after
        .iter()
        .map(|(pid, ticks)| ticks - before.get(pid).unwrap_or(&0.0))
        .sum();
    // A tick is a hundredth of a second (USER_HZ).
    samples(&mut time, node.runtime).push(used / f64::from(IDLE_S) / pods);
    measures.extend([latency, memory, time]);
    ids.iter().try_for_each(|id| node.cri.remove_pod(id))
}

/// The measure of that name that was begun with the other runtime, or a new one.
fn measure_of(measures: &mut Vec<Measure>, name: &str, unit: &'static str, max: f64) -> Measure {
    match measures.iter().position(|it| it.name == name) {
        Some(position) => measures.remove(position),
        None => Measure::new(name, unit, Goal::OursMax(max)),
    }
}

fn wait(seconds: u32) -> Result<()> {
    let limit = std::time::Duration::from_secs(seconds.into());
    Deadline::after(limit).poll(&mut []).map(drop)
}

/// Processes of all pods, with the ticks of a processor that each has used: shims, and what they run.
fn pod_processes(node: &Node<'_>) -> Result<BTreeMap<i32, f64>> {
    let daemon = node.containerd.pid()?;
    let mut all = processes()?;
    all.retain(|_, it| {
        it.pid != daemon
            && node.containerd.tag.is_in(&it.owner)
            && !it.command.contains("hold-template")
    });
    let ticks = |pid: i32| -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // utime and stime, the 14th and 15th; the name may have spaces (proc(5)).
        let (_, rest) = text.rsplit_once(") ").context("a name in parentheses")?;
        let words: Vec<&str> = rest.split(' ').collect();
        Ok(words[11].parse::<f64>()? + words[12].parse::<f64>()?)
    };
    all.into_values()
        .map(|it| Ok((it.pid, ticks(it.pid)?)))
        .collect()
}

fn pss_mib(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = number.context("no Pss")?.parse()?;
    Ok(kib / 1024.0)
}

/// What the figures depend on.
pub(crate) fn title(installed: &Installed) -> Result<String> {
    let processors = available_parallelism()?;
    let version = installed.version;
    Ok(format!(
        "machines, containerd {version}, {processors} processors"
    ))
}
