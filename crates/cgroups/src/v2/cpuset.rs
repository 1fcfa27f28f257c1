//! cpuset of version 2. Empty lists mean the parent's here, so nothing has to be filled.

use std::path::Path;

use crate::resources::Cpu;
use crate::{Result, file};

/// Writes what is set.
pub(crate) fn apply(dir: &Path, cpu: &Cpu) -> Result<()> {
    for (name, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            file::write(dir, name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn lists_are_written_unless_empty() {
        let dir = directory(&[("cpuset.cpus", ""), ("cpuset.mems", "")]);
        let cpu = Cpu {
            cpus: Some("0-1".to_owned()),
            mems: Some(String::new()),
            ..Cpu::default()
        };
        apply(dir.path(), &cpu).unwrap();
        assert_eq!(written(dir.path(), "cpuset.cpus"), ["0-1"]);
        assert!(written(dir.path(), "cpuset.mems").is_empty());
    }
}
