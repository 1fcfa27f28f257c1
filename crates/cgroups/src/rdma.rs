//! rdma, whose files are the same in both versions.

use std::collections::BTreeMap;
use std::path::Path;

use crate::resources::RdmaLimit;
use crate::stats::{Rdma, RdmaEntry};
use crate::{Result, file};

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(limits: &BTreeMap<String, RdmaLimit>) -> Option<&'static str> {
    (!limits.is_empty()).then_some("linux.resources.rdma")
}

/// Writes the limits, a line a device.
pub(crate) fn apply(dir: &Path, limits: &BTreeMap<String, RdmaLimit>) -> Result<()> {
    for (device, limit) in limits {
        let mut line = device.clone();
        let values = [
            ("hca_handle", limit.hca_handles),
            ("hca_object", limit.hca_objects),
        ];
        for (key, value) in values {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        file::write(dir, "rdma.max", &line)?;
    }
    Ok(())
}

/// What is used and what is allowed.
pub(crate) fn read(dir: &Path) -> Result<Rdma> {
    Ok(Rdma {
        current: entries(dir, "rdma.current")?,
        limit: entries(dir, "rdma.max")?,
    })
}

fn entries(dir: &Path, name: &str) -> Result<Vec<RdmaEntry>> {
    let text = file::read_if_there(dir, name)?.unwrap_or_default();
    Ok(text.lines().filter_map(entry).collect())
}

/// `mlx4_0 hca_handle=2 hca_object=max`.
fn entry(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split_whitespace();
    let mut entry = RdmaEntry {
        device: words.next()?.to_owned(),
        ..RdmaEntry::default()
    };
    for word in words {
        let (key, value) = word.split_once('=')?;
        let value = if value == "max" {
            u32::MAX
        } else {
            value.parse().ok()?
        };
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn limits_are_a_line_a_device() {
        let dir = directory(&[("rdma.max", "")]);
        let both = RdmaLimit {
            hca_handles: Some(3),
            hca_objects: Some(4),
        };
        let one = RdmaLimit {
            hca_handles: None,
            hca_objects: Some(5),
        };
        let limits = BTreeMap::from([("mlx4_0".to_owned(), both), ("mlx5_1".to_owned(), one)]);
        apply(dir.path(), &limits).unwrap();
        let expected = ["mlx4_0 hca_handle=3 hca_object=4", "mlx5_1 hca_object=5"];
        assert_eq!(written(dir.path(), "rdma.max"), expected);
    }

    #[test]
    fn numbers_are_read() {
        let dir = directory(&[("rdma.max", "mlx4_0 hca_handle=2 hca_object=max\n")]);
        let rdma = read(dir.path()).unwrap();
        let expected = RdmaEntry {
            device: "mlx4_0".to_owned(),
            hca_handles: 2,
            hca_objects: u32::MAX,
        };
        assert_eq!((rdma.current.len(), rdma.limit), (0, vec![expected]));
    }
}
