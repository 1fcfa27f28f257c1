//! `update`: limits of a container that is there, from a file or from options. Devices stay as
//! they are, as with runc.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use bundle::Status;
use serde_json::{Map, Value, json};

use super::arguments::{Limits, Update};
use super::lifecycle::open;
use crate::{Error, Result, resctrl};

/// Longest file of limits that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// `runlxc update ID`
pub(crate) fn update(root: &Path, arguments: &Update) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    if container.status()? == Status::Stopped {
        return Err(Error::NotRunning);
    }
    let text = match &arguments.resources {
        Some(path) => read(path)?,
        None => from_options(&arguments.limits).to_string().into_bytes(),
    };
    let schemata = schemata(&arguments.limits)?;
    if !schemata.is_empty() {
        resctrl::check_changeable(container.journal())?;
    }
    container.update(&text, &arguments.annotations.iter().cloned().collect())?;
    resctrl::change(container.journal(), &schemata)?;
    Ok(ExitCode::SUCCESS)
}

/// The whole file, or standard input for `-`.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(BYTES_MAX + 1)
            .read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut text))
    };
    let count = read.map_err(Error::on("read", path))?;
    if count as u64 > BYTES_MAX {
        return Err(Error::Usage(format!(
            "{} has more than {BYTES_MAX} bytes",
            path.display()
        )));
    }
    Ok(text)
}

/// What a class of resctrl is to have.
fn schemata(limits: &Limits) -> Result<Vec<String>> {
    let (l3, memory) = (&limits.l3_cache_schema, &limits.mem_bw_schema);
    Ok(bundle::intel_rdt::shared(l3.as_ref(), memory.as_ref())?)
}

/// The options as the JSON of a file: one parser for both ways.
fn from_options(limits: &Limits) -> Value {
    json!({
        "cpu": set([
            ("shares", limits.cpu_share.map(Value::from)),
            ("quota", limits.cpu_quota.map(Value::from)),
            ("period", limits.cpu_period.map(Value::from)),
            ("burst", limits.cpu_burst.map(Value::from)),
            ("realtimeRuntime", limits.cpu_rt_runtime.map(Value::from)),
            ("realtimePeriod", limits.cpu_rt_period.map(Value::from)),
            ("cpus", limits.cpuset_cpus.clone().map(Value::from)),
            ("mems", limits.cpuset_mems.clone().map(Value::from)),
            ("idle", limits.cpu_idle.map(Value::from)),
        ]),
        "memory": set([
            ("limit", limits.memory.map(Value::from)),
            ("reservation", limits.memory_reservation.map(Value::from)),
            ("swap", limits.memory_swap.map(Value::from)),
            ("kernel", limits.kernel_memory.map(Value::from)),
            ("kernelTCP", limits.kernel_memory_tcp.map(Value::from)),
        ]),
        "blockIO": set([("weight", limits.blkio_weight.map(Value::from))]),
        "pids": set([("limit", limits.pids_limit.map(Value::from))]),
    })
    .as_object()
    .into_iter()
    .flatten()
    // An empty object is no wish, and `pids` without a limit would be a limit of 0.
    .filter(|(_, group)| group.as_object().is_some_and(|group| !group.is_empty()))
    .map(|(name, group)| (name.clone(), group.clone()))
    .collect()
}

/// Those that were given.
fn set<const N: usize>(values: [(&str, Option<Value>); N]) -> Value {
    let given = values
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::{Arguments, Command};

    fn limits(line: &str) -> Limits {
        let words = ["runlxc", "update", "c"].into_iter();
        let words = words.chain(line.split_whitespace());
        let Some(Command::Update(update)) = Arguments::try_parse_from(words).unwrap().command
        else {
            panic!("{line} is no update")
        };
        update.limits
    }

    #[test]
    fn options_are_the_fields_of_linux_resources() {
        let check = |line, expected: Value| {
            assert_eq!(from_options(&limits(line)), expected, "{line}");
        };
        check("", json!({}));
        check("--memory 64m", json!({"memory": {"limit": 64 << 20}}));
        check(
            "--memory -1 --memory-swap=-1 --memory-reservation 1k",
            json!({"memory": {"limit": -1, "swap": -1, "reservation": 1024}}),
        );
        check("--pids-limit -1", json!({"pids": {"limit": -1}}));
        check("--pids-limit 0", json!({"pids": {"limit": 0}}));
        check(
            "--blkio-weight 500 --cpu-idle 1",
            json!({"blockIO": {"weight": 500}, "cpu": {"idle": 1}}),
        );
        check(
            "--cpu-period 100000 --cpu-quota -1 --cpu-burst 5 --cpu-share 512 --cpuset-cpus 0-1 \
             --cpuset-mems 0 --cpu-rt-period 7 --cpu-rt-runtime 6",
            json!({"cpu": {
                "period": 100_000, "quota": -1, "burst": 5, "shares": 512, "cpus": "0-1",
                "mems": "0", "realtimePeriod": 7, "realtimeRuntime": 6,
            }}),
        );
    }

    #[test]
    fn schemata_are_no_fields_of_linux_resources() {
        let given = limits("--l3-cache-schema L3:0=f --mem-bw-schema MB:0=50");
        assert_eq!(from_options(&given), json!({}));
        assert_eq!(schemata(&given).unwrap(), ["L3:0=f", "MB:0=50"]);
        let none = schemata(&limits("--l3-cache-schema=")).unwrap();
        assert!(none.is_empty());
        schemata(&limits("--mem-bw-schema=L3:0=f")).unwrap_err();
    }
}
