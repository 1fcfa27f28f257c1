//! devices of version 1: the least that must be written to get the list asked for.

use std::path::Path;

use crate::devices::DeviceList;
use crate::resources::{DeviceRule, Verdict};
use crate::{Result, file};

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(rules: &[DeviceRule]) -> Option<&'static str> {
    (!rules.is_empty()).then_some("linux.resources.devices")
}

/// Makes the cgroup's list that of the rules.
pub(crate) fn apply(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let text = file::read(dir, "devices.list")?;
    let now =
        DeviceList::parse(&text).ok_or_else(|| file::malformed(dir, "devices.list", &text))?;
    for (verdict, line) in now.transition(&DeviceList::from_rules(rules)?, rules) {
        let name = match verdict {
            Verdict::Allow => "devices.allow",
            Verdict::Deny => "devices.deny",
        };
        file::write(dir, name, &line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::rule;
    use crate::file::tests::{directory, written};

    #[test]
    fn rules_reach_the_two_files() {
        let dir = directory(&[
            ("devices.list", "a *:* rwm\n"),
            ("devices.allow", ""),
            ("devices.deny", ""),
        ]);
        let rules = ["-a *:* rwm", "+c 1:3 rwm", "+b *:* m"].map(rule);
        apply(dir.path(), &rules).unwrap();
        assert_eq!(written(dir.path(), "devices.deny"), ["a"]);
        assert_eq!(
            written(dir.path(), "devices.allow"),
            ["c 1:3 rwm", "b *:* m"]
        );
    }
}
