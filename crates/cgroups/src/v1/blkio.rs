//! blkio of version 1: weights for the scheduler there is, rates, and what was transferred.

use std::path::Path;

use crate::resources::{BlockIo, ThrottleDevice};
use crate::stats::{BlkioEntry, BlkioV1};
use crate::{Result, file};

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(io: &BlockIo) -> Option<&'static str> {
    let set = |value: Option<u16>| value.is_some_and(|value| value != 0);
    [
        (set(io.weight), "linux.resources.blockIO.weight"),
        (set(io.leaf_weight), "linux.resources.blockIO.leafWeight"),
        (
            !io.weight_device.is_empty(),
            "linux.resources.blockIO.weightDevice",
        ),
        (
            !io.throttle_read_bps.is_empty(),
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            !io.throttle_write_bps.is_empty(),
            "linux.resources.blockIO.throttleWriteBpsDevice",
        ),
        (
            !io.throttle_read_iops.is_empty(),
            "linux.resources.blockIO.throttleReadIOPSDevice",
        ),
        (
            !io.throttle_write_iops.is_empty(),
            "linux.resources.blockIO.throttleWriteIOPSDevice",
        ),
    ]
    .into_iter()
    .find_map(|(asked, field)| asked.then_some(field))
}

/// Writes what is set. Weights go to BFQ's files where CFQ's are gone (Linux 5.0).
pub(crate) fn apply(dir: &Path, io: &BlockIo) -> Result<()> {
    apply_weights(dir, io)?;
    throttle(dir, "blkio.throttle.read_bps_device", &io.throttle_read_bps)?;
    throttle(
        dir,
        "blkio.throttle.write_bps_device",
        &io.throttle_write_bps,
    )?;
    throttle(
        dir,
        "blkio.throttle.read_iops_device",
        &io.throttle_read_iops,
    )?;
    throttle(
        dir,
        "blkio.throttle.write_iops_device",
        &io.throttle_write_iops,
    )
}

fn apply_weights(dir: &Path, io: &BlockIo) -> Result<()> {
    let set = |value: Option<u16>| value.filter(|value| *value != 0);
    let (weight_file, device_file) = if file::exists(dir, "blkio.weight") {
        ("blkio.weight", "blkio.weight_device")
    } else {
        ("blkio.bfq.weight", "blkio.bfq.weight_device")
    };
    if let Some(weight) = set(io.weight) {
        file::write_number(dir, weight_file, weight)?;
    }
    if let Some(weight) = set(io.leaf_weight) {
        file::write_number(dir, "blkio.leaf_weight", weight)?;
    }
    for device in &io.weight_device {
        let line = |weight: u16| format!("{}:{} {weight}", device.major, device.minor);
        if let Some(weight) = set(device.weight) {
            file::write(dir, device_file, &line(weight))?;
        }
        if let Some(weight) = set(device.leaf_weight) {
            file::write(dir, "blkio.leaf_weight_device", &line(weight))?;
        }
    }
    Ok(())
}

fn throttle(dir: &Path, name: &str, devices: &[ThrottleDevice]) -> Result<()> {
    devices.iter().try_for_each(|device| {
        let ThrottleDevice { major, minor, rate } = device;
        file::write(dir, name, &format!("{major}:{minor} {rate}"))
    })
}

/// What was transferred: from BFQ, else CFQ, else the throttling layer, which alone counts what
/// no scheduler saw.
pub(crate) fn read(dir: &Path) -> Result<BlkioV1> {
    for prefix in ["blkio.bfq", "blkio"] {
        let read = |suffix: &str| entries(dir, &format!("{prefix}.{suffix}"));
        let io_serviced = read("io_serviced_recursive")?;
        if !io_serviced.is_empty() {
            return Ok(BlkioV1 {
                io_serviced,
                io_service_bytes: read("io_service_bytes_recursive")?,
                io_queued: read("io_queued_recursive")?,
                io_service_time: read("io_service_time_recursive")?,
                io_wait_time: read("io_wait_time_recursive")?,
                io_merged: read("io_merged_recursive")?,
                io_time: read("time_recursive")?,
                sectors: read("sectors_recursive")?,
            });
        }
    }
    // `_recursive` of the throttling layer is from Linux 4.17.
    for suffix in ["_recursive", ""] {
        let io_serviced = entries(dir, &format!("blkio.throttle.io_serviced{suffix}"))?;
        if !io_serviced.is_empty() {
            let name = format!("blkio.throttle.io_service_bytes{suffix}");
            let io_service_bytes = entries(dir, &name)?;
            return Ok(BlkioV1 {
                io_serviced,
                io_service_bytes,
                ..BlkioV1::default()
            });
        }
    }
    Ok(BlkioV1::default())
}

/// Lines of `8:0 Read 12` or `8:0 12`; the sum over all devices has no numbers and is skipped.
fn entries(dir: &Path, name: &str) -> Result<Vec<BlkioEntry>> {
    let text = file::read_if_there(dir, name)?.unwrap_or_default();
    Ok(text.lines().filter_map(entry).collect())
}

fn entry(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (second, third) = (words.next()?, words.next());
    let (op, value) = third.map_or(("", second), |value| (second, value));
    Some(BlkioEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: file::number(value)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};
    use crate::resources::WeightDevice;

    fn weights() -> BlockIo {
        let device = |minor, weight| WeightDevice {
            major: 8,
            minor,
            weight: Some(weight),
            leaf_weight: Some(0),
        };
        BlockIo {
            weight: Some(500),
            weight_device: vec![device(0, 300), device(16, 0)],
            ..BlockIo::default()
        }
    }

    #[test]
    fn weights_go_to_the_scheduler_there_is() {
        for prefix in ["blkio", "blkio.bfq"] {
            let files = [
                format!("{prefix}.weight"),
                format!("{prefix}.weight_device"),
            ];
            let dir = directory(&[(&files[0], ""), (&files[1], "")]);
            apply(dir.path(), &weights()).unwrap();
            assert_eq!(written(dir.path(), &files[0]), ["500"]);
            assert_eq!(written(dir.path(), &files[1]), ["8:0 300"]);
        }
    }

    #[test]
    fn host_without_a_weighing_scheduler_names_the_file() {
        let error = apply(directory(&[]).path(), &weights()).unwrap_err();
        assert!(
            error.to_string().contains("\"500\"") && error.is_not_found(),
            "{error}"
        );
        let leaf = BlockIo {
            leaf_weight: Some(100),
            ..BlockIo::default()
        };
        let error = apply(directory(&[("blkio.weight", "")]).path(), &leaf).unwrap_err();
        assert!(error.to_string().contains("blkio.leaf_weight"), "{error}");
    }

    #[test]
    fn rates_are_a_line_each() {
        let name = "blkio.throttle.read_iops_device";
        let dir = directory(&[(name, "")]);
        let device = |minor, rate| ThrottleDevice {
            major: 8,
            minor,
            rate,
        };
        let io = BlockIo {
            throttle_read_iops: vec![device(0, 600), device(16, 0)],
            ..BlockIo::default()
        };
        apply(dir.path(), &io).unwrap();
        assert_eq!(written(dir.path(), name), ["8:0 600", "8:16 0"]);
    }

    #[test]
    fn transfers_come_from_the_best_source() {
        let line = |op: &str, value| BlkioEntry {
            major: 8,
            minor: 0,
            op: op.to_owned(),
            value,
        };
        let dir = directory(&[
            ("blkio.throttle.io_serviced", "8:0 Read 1\nTotal 1\n"),
            (
                "blkio.throttle.io_serviced_recursive",
                "8:0 Read 2\n8:0 Total 2\nTotal 2\n",
            ),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Write 3\nTotal 3\n",
            ),
            ("blkio.bfq.io_serviced_recursive", "Total 0\n"),
        ]);
        let read_now = || read(dir.path()).unwrap();
        assert_eq!(read_now().io_serviced, [line("Read", 2), line("Total", 2)]);
        assert_eq!(read_now().io_service_bytes, [line("Write", 3)]);
        std::fs::write(
            dir.path().join("blkio.bfq.io_serviced_recursive"),
            "8:0 Sync 4\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("blkio.bfq.sectors_recursive"), "8:0 5\n").unwrap();
        assert_eq!(read_now().io_serviced, [line("Sync", 4)]);
        assert_eq!(read_now().sectors, [line("", 5)]);
        assert_eq!(read(directory(&[]).path()).unwrap(), BlkioV1::default());
    }
}
