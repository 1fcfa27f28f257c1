//! What the kernel says of the cgroup a process is in, on hosts with any layout of hierarchies.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// A value by the file it is in: controller and file on v1, file on v2.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    /// The controller.
    pub controller: &'static str,
    /// Its file on v1.
    pub v1: &'static str,
    /// Its file on v2.
    pub v2: &'static str,
}

/// The limit of memory, in bytes.
pub const MEMORY_LIMIT: Value = Value {
    controller: "memory",
    v1: "memory.limit_in_bytes",
    v2: "memory.max",
};

/// The share of CPU time.
pub const CPU_SHARES: Value = Value {
    controller: "cpu",
    v1: "cpu.shares",
    v2: "cpu.weight",
};

/// Whether it takes only what nobody else wants.
pub const IDLE: Value = Value {
    controller: "cpu",
    v1: "cpu.idle",
    v2: "cpu.idle",
};

/// The text of a value of a process's cgroup, and whether it is of v2.
pub fn read(pid: i32, value: Value) -> Result<(String, Layout)> {
    let (directory, layout) = directory(pid, value.controller)?;
    let path = directory.join(match layout {
        Layout::V1 => value.v1,
        Layout::V2 => value.v2,
    });
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok((text.trim().to_owned(), layout))
}

/// That a value of a process's cgroup is this on v1, or that on v2.
pub fn expect(pid: i32, value: Value, v1: &str, v2: &str) -> Result<()> {
    let (text, layout) = read(pid, value)?;
    let expected = match layout {
        Layout::V1 => v1,
        Layout::V2 => v2,
    };
    ensure!(
        text == expected,
        "{value:?}: expected {expected:?}, got {text:?}"
    );
    Ok(())
}

/// Which of its two forms a controller has on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A hierarchy of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The directory of a process's cgroup in the hierarchy of a controller.
pub fn directory(pid: i32, controller: &str) -> Result<(PathBuf, Layout)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .with_context(|| format!("reading the cgroups of {pid}"))?;
    let found = find(&text, controller);
    let (name, path) = found.with_context(|| format!("{pid} is in no cgroup:\n{text}"))?;
    let top = Path::new("/sys/fs/cgroup");
    let below = path.trim_start_matches('/');
    Ok(match name {
        Some(name) => (top.join(name).join(below), Layout::V1),
        None => (top.join(below), Layout::V2),
    })
}

/// The hierarchy's name, none for v2, and the path in it.
fn find<'a>(text: &'a str, controller: &str) -> Option<(Option<&'a str>, &'a str)> {
    let mut lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let of_v1 = lines
        .clone()
        .find(|(names, _)| names.split(',').any(|name| name == controller));
    of_v1.map(|(names, path)| (Some(names), path)).or_else(|| {
        lines
            .find(|(names, _)| names.is_empty())
            .map(|(_, path)| (None, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_found_in_its_own_hierarchy_else_in_the_unified_one() {
        let hybrid = "4:cpu,cpuacct:/a\n3:memory:/b\n0::/c\n";
        for (controller, expected) in [
            ("memory", Some((Some("memory"), "/b"))),
            ("cpu", Some((Some("cpu,cpuacct"), "/a"))),
            ("pids", Some((None, "/c"))),
        ] {
            assert_eq!(find(hybrid, controller), expected, "{controller}");
        }
        assert_eq!(find("1:memory:/b\n", "pids"), None);
    }
}
