//! net_cls and net_prio of version 1: marks on packets.

use std::path::Path;

use crate::resources::Network;
use crate::{Result, file};

/// What is asked of net_cls, by its name in config.json.
pub(crate) fn asked_class(network: &Network) -> Option<&'static str> {
    network
        .class_id
        .filter(|class| *class != 0)
        .map(|_| "linux.resources.network.classID")
}

/// What is asked of net_prio, by its name in config.json.
pub(crate) fn asked_priorities(network: &Network) -> Option<&'static str> {
    (!network.priorities.is_empty()).then_some("linux.resources.network.priorities")
}

/// Writes the class.
pub(crate) fn apply_class(dir: &Path, network: &Network) -> Result<()> {
    match network.class_id.filter(|class| *class != 0) {
        Some(class) => file::write_number(dir, "net_cls.classid", class),
        None => Ok(()),
    }
}

/// Writes the priorities, a line an interface.
pub(crate) fn apply_priorities(dir: &Path, network: &Network) -> Result<()> {
    network.priorities.iter().try_for_each(|one| {
        file::write(
            dir,
            "net_prio.ifpriomap",
            &format!("{} {}", one.name, one.priority),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};
    use crate::resources::InterfacePriority;

    #[test]
    fn class_and_priorities_are_written() {
        let dir = directory(&[("net_cls.classid", ""), ("net_prio.ifpriomap", "")]);
        let priority = |name: &str, priority| InterfacePriority {
            name: name.to_owned(),
            priority,
        };
        let network = Network {
            class_id: Some(0x0010_0001),
            priorities: vec![priority("lo", 1), priority("eth0", 2)],
        };
        apply_class(dir.path(), &network).unwrap();
        apply_priorities(dir.path(), &network).unwrap();
        assert_eq!(written(dir.path(), "net_cls.classid"), ["1048577"]);
        assert_eq!(
            written(dir.path(), "net_prio.ifpriomap"),
            ["lo 1", "eth0 2"]
        );
        let unset = Network {
            class_id: Some(0),
            priorities: Vec::new(),
        };
        assert_eq!(
            (asked_class(&unset), asked_priorities(&unset)),
            (None, None)
        );
    }
}
