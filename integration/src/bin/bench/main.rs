//! Ours and the stock part beside each other, in one run: medians, p99, ratios, goals; draws a plot.
//!
//! `bench [--plot FILE] [--only containers|snapshots|machines]`: runlxc beside runc, snapshotter-quota beside
//! containerd's overlayfs, runv beside runc and a bare QEMU. The plot has the containers.

#![expect(clippy::print_stdout, reason = "this program is its output")]

mod bare;
mod containers;
mod crowd;
mod event_latency;
mod machines;
mod scene;
mod snapshots;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use integration::{
    figures::{Measure, plot, table},
    runtime::Runtime,
    versions::Version,
};

const USAGE: &str = "usage: bench [--plot FILE] [--only containers|snapshots|machines]";

/// What is asked for.
#[derive(Debug, Default)]
struct Request {
    plot: Option<PathBuf>,
    only: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Containers,
    Snapshots,
    Machines,
}

impl Request {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut request = Self::default();
        for pair in words.chunks(2) {
            match pair {
                ["--plot", file] => request.plot = Some(PathBuf::from(file)),
                ["--only", "containers"] => request.only = Some(Part::Containers),
                ["--only", "snapshots"] => request.only = Some(Part::Snapshots),
                ["--only", "machines"] => request.only = Some(Part::Machines),
                _ => bail!(USAGE),
            }
        }
        Ok(request)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words == [event_latency::IN_GUEST] {
        return event_latency::measure_here();
    }
    let request = Request::parse(&words)?;
    println!("load of the last minute: {}", load()?);
    let versions = Version::available()?;
    if request.wants(Part::Containers) {
        let mut all = Vec::new();
        for installed in &versions {
            let mut measures = containers::measure(installed)?;
            let title = format!("containerd {}", installed.version);
            println!("\n{title}\n{}", table(containers::NAMES, &measures));
            for measure in &mut measures {
                measure.name = format!("{} · {}", installed.version, measure.name);
            }
            all.extend(measures);
        }
        if let Some(file) = &request.plot {
            draw(file, &all)?;
        }
    }
    if request.wants(Part::Snapshots) {
        for installed in &versions {
            let (title, measures) = snapshots::measure(installed)?;
            println!("\n{title}\n{}", table(snapshots::NAMES, &measures));
        }
        let (title, measures) = event_latency::measure()?;
        println!("\n{title}\n{}", table(snapshots::NAMES, &measures));
    }
    if request.wants(Part::Machines) {
        let newest = versions.last().context("there is a containerd")?;
        let (beside_runc, beside_qemu) = machines::measure(newest)?;
        let title = machines::title(newest)?;
        println!("\n{title}\n{}", table(machines::BESIDE_RUNC, &beside_runc));
        println!("{}", table(machines::BESIDE_QEMU, &beside_qemu));
    }
    println!("load of the last minute: {}", load()?);
    Ok(())
}

fn draw(file: &PathBuf, measures: &[Measure]) -> Result<()> {
    let title = "runlxc beside stock runc, same containerd, same run (bar: median, line: p99)";
    fs::write(file, plot(containers::NAMES, measures, title))
        .with_context(|| format!("writing {}", file.display()))
}

/// Figures of a busy machine say little.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next();
    Ok(first.context("a load")?.to_owned())
}

fn count(name: &str, otherwise: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name}={text} is no count")),
        Err(_) => Ok(otherwise),
    }
}

/// Those of a runtime.
fn samples(measure: &mut Measure, runtime: Runtime) -> &mut Vec<f64> {
    match runtime {
        Runtime::Runc => &mut measure.stock,
        Runtime::Runlxc | Runtime::Runv => &mut measure.ours,
    }
}

fn milliseconds(started: Instant) -> f64 {
    in_milliseconds(started.elapsed())
}

fn in_milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
