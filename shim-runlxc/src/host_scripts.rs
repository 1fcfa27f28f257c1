//! Operators' scripts that hooks of rich containers name: files of the host, bound read-only into the
//! containers that name them, and run there.
//!
//! ```text
//!   org.pouch.rich.prestart = host:NAME ARGUMENTS
//!   ROOT/NAME -----------bind, read-only--> /run/pouch-hooks/NAME
//! ```

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bundle::Plan;
use bundle::rich::hooks::{Command, Hooks, SCRIPTS};
use launch::plan::PlannedMount;

use crate::components::{bind, trusted};
use crate::{Error, Result};

/// Where they lie on the host.
pub const ROOT: &str = "/etc/runlxc/hooks";

/// Adds the scripts that a plan's hooks name to its mounts.
///
/// # Errors
/// [`Error::HostScript`] with its name for one that is not there, is no program, or may be written by others.
pub(crate) fn add(plan: &mut Plan, root: &Path) -> Result<()> {
    let mut names: Vec<&String> = scripts(&plan.rich_hooks).collect();
    names.dedup();
    let mounts = names.into_iter().map(|name| {
        mount(name, root).map_err(|why| Error::HostScript {
            name: name.clone(),
            why,
        })
    });
    let mounts = mounts.collect::<Result<Vec<_>>>()?;
    plan.init.mounts.extend(mounts);
    Ok(())
}

fn scripts(hooks: &Hooks) -> impl Iterator<Item = &String> {
    let both = [&hooks.prestart, &hooks.poststop].into_iter().flatten();
    both.filter_map(|command| command.script.as_ref())
}

/// Whether this is the mount of a script that is not this command's.
pub(crate) fn is_of_another(planned: &PlannedMount, command: &Command) -> bool {
    let PlannedMount::Plain(mount) = planned else {
        return false;
    };
    let own = command.script.as_deref().map(target);
    Path::new(&mount.target).starts_with(SCRIPTS) && Some(&mount.target) != own.as_ref()
}

fn target(name: &str) -> String {
    format!("{SCRIPTS}/{name}")
}

fn mount(name: &str, root: &Path) -> std::result::Result<PlannedMount, String> {
    let path = root.join(name);
    let looked_at = |path: PathBuf| {
        let found = path.metadata();
        let found = found.map_err(|error| format!("{}: {error}", path.display()))?;
        trusted(&found, &path).map(|()| found)
    };
    looked_at(root.to_owned())?;
    let found = looked_at(path.clone())?;
    if !found.is_file() || found.mode() & 0o111 == 0 {
        return Err(format!("{} is no executable file", path.display()));
    }
    bind(&path, target(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_script_is_an_executable_file_that_root_alone_may_write() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.sh");
        let refused = |why: &str| {
            let error = mount("a.sh", root.path()).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused("No such file");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        refused("is no executable file");
        let allow = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(&path, 0o777);
        refused("nobody else may write it");
        allow(&path, 0o755);
        let PlannedMount::Plain(mount) = mount("a.sh", root.path()).unwrap() else {
            panic!("it is a mount");
        };
        assert_eq!(mount.target, "/run/pouch-hooks/a.sh");
        allow(root.path(), 0o777);
        refused("nobody else may write it");
    }

    #[test]
    fn a_hook_needs_no_script_but_its_own() {
        let own = |script: Option<&str>| Command {
            args: vec!["x".to_owned()],
            script: script.map(str::to_owned),
            timeout_s: 1,
            on_failure: bundle::rich::hooks::OnFailure::Fail,
        };
        let planned = bind(Path::new("/a.sh"), target("a.sh")).unwrap();
        assert!(!is_of_another(&planned, &own(Some("a.sh"))));
        assert!(is_of_another(&planned, &own(Some("b.sh"))));
        assert!(is_of_another(&planned, &own(None)));
        let other = bind(Path::new("/a"), "/run/pouch/a".to_owned()).unwrap();
        assert!(!is_of_another(&other, &own(None)));
    }
}
