//! io of version 2: weights, rates, and what was transferred.

use std::path::Path;

use super::pressure;
use crate::convert::io_weight;
use crate::resources::{BlockIo, ThrottleDevice};
use crate::stats::{IoEntry, IoV2};
use crate::{Result, file};

/// Writes what is set.
pub(crate) fn apply(dir: &Path, io: &BlockIo) -> Result<()> {
    apply_weights(dir, io)?;
    throttle(dir, "rbps", &io.throttle_read_bps)?;
    throttle(dir, "wbps", &io.throttle_write_bps)?;
    throttle(dir, "riops", &io.throttle_read_iops)?;
    throttle(dir, "wiops", &io.throttle_write_iops)
}

/// BFQ takes version 1's weights as they are; io.weight (iocost) takes 1..=10000.
fn apply_weights(dir: &Path, io: &BlockIo) -> Result<()> {
    let bfq = file::exists(dir, "io.bfq.weight");
    match io.weight.filter(|weight| *weight != 0) {
        Some(weight) if bfq => file::write_number(dir, "io.bfq.weight", weight)?,
        Some(weight) => {
            let weight = io_weight(weight).expect("zero was filtered out");
            file::write_number(dir, "io.weight", weight)?;
        }
        None => {}
    }
    for device in &io.weight_device {
        let Some(weight) = device.weight.filter(|weight| *weight != 0) else {
            continue;
        };
        let device = (device.major, device.minor);
        let (name, weight) = if bfq {
            ("io.bfq.weight", u64::from(weight))
        } else {
            (
                "io.weight",
                io_weight(weight).expect("zero was filtered out"),
            )
        };
        file::write(dir, name, &format!("{}:{} {weight}", device.0, device.1))?;
    }
    Ok(())
}

fn throttle(dir: &Path, key: &str, devices: &[ThrottleDevice]) -> Result<()> {
    devices.iter().try_for_each(|device| {
        let ThrottleDevice { major, minor, rate } = device;
        // 0 is "no limit" in version 1 and a range error here.
        let rate = if *rate == 0 {
            "max".to_owned()
        } else {
            rate.to_string()
        };
        file::write(dir, "io.max", &format!("{major}:{minor} {key}={rate}"))
    })
}

/// io.stat and io.pressure.
pub(crate) fn read(dir: &Path) -> Result<IoV2> {
    let text = file::read_if_there(dir, "io.stat")?.unwrap_or_default();
    let psi = pressure::read(dir, "io.pressure")?;
    Ok(IoV2 {
        usage: text.lines().filter_map(entry).collect(),
        psi,
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`; a device without numbers has none.
fn entry(line: &str) -> Option<IoEntry> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let mut entry = IoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoEntry::default()
    };
    for word in rest.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            continue;
        };
        let Some(value) = file::number(value) else {
            continue;
        };
        match key {
            "rbytes" => entry.read_bytes = value,
            "wbytes" => entry.write_bytes = value,
            "rios" => entry.read_ios = value,
            "wios" => entry.write_ios = value,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};
    use crate::resources::WeightDevice;

    #[test]
    fn weights_go_to_the_scheduler_there_is() {
        let device = WeightDevice {
            major: 8,
            minor: 0,
            weight: Some(300),
            leaf_weight: None,
        };
        let io = BlockIo {
            weight: Some(500),
            weight_device: vec![device],
            ..BlockIo::default()
        };
        for (name, expected) in [
            ("io.bfq.weight", ["500", "8:0 300"]),
            ("io.weight", ["4950", "8:0 2930"]),
        ] {
            let dir = directory(&[(name, "")]);
            apply(dir.path(), &io).unwrap();
            assert_eq!(written(dir.path(), name), expected);
        }
        assert!(
            apply(directory(&[]).path(), &io)
                .unwrap_err()
                .is_not_found()
        );
    }

    #[test]
    fn rates_are_keys_of_io_max() {
        let dir = directory(&[("io.max", "")]);
        let rate = |rate| {
            vec![ThrottleDevice {
                major: 8,
                minor: 16,
                rate,
            }]
        };
        let io = BlockIo {
            throttle_read_bps: rate(1),
            throttle_write_bps: rate(2),
            throttle_read_iops: rate(3),
            throttle_write_iops: rate(0),
            ..BlockIo::default()
        };
        apply(dir.path(), &io).unwrap();
        let expected = [
            "8:16 rbps=1",
            "8:16 wbps=2",
            "8:16 riops=3",
            "8:16 wiops=max",
        ];
        assert_eq!(written(dir.path(), "io.max"), expected);
    }

    #[test]
    fn transfers_are_read_by_device() {
        let text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n7:0 \n7:1\n";
        let io = read(directory(&[("io.stat", text)]).path()).unwrap();
        let first = IoEntry {
            major: 8,
            minor: 0,
            read_bytes: 1,
            write_bytes: 2,
            read_ios: 3,
            write_ios: 4,
        };
        let second = IoEntry {
            major: 7,
            ..IoEntry::default()
        };
        assert_eq!(io.usage, [first, second]);
    }
}
