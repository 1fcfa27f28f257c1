//! What `delete` needs after kill -9 of everything: where a container's machine is, in its state
//! directory, written before the machine is started.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bundle::names;
use cgroups::{Cgroup, CgroupPaths};
use launch::plan::Hook;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::links::Journalled;
use crate::{Error, Result};

/// Version of the file.
const VERSION: u32 = 1;

/// The folder of a sandbox's links to the directories of containers in its machine.
const MEMBERS: &str = "members";

/// A container, and the machine if it is its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Journal {
    version: u32,
    /// Where QEMU runs, and nothing else; none for a container in another's machine.
    pub(crate) cgroup: Option<CgroupPaths>,
    /// Whether that cgroup is the machine's: until it is made, others may be in it, who must not be killed.
    /// One that does not say so is of a version that did not tell.
    #[serde(default = "is_own")]
    pub(crate) is_cgroup_own: bool,
    /// Links of a network namespace that stays, tied to the machine.
    #[serde(default)]
    pub(crate) links: Option<Journalled>,
    /// Hooks to run once it is gone.
    pub(crate) hooks_poststop: Vec<Hook>,
    /// The OCI state for them.
    pub(crate) state_stopped: String,
}

fn is_own() -> bool {
    true
}

/// A container's own directory. Dropped, it stays.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Its place below a root.
    pub(crate) fn at(root: &Path, id: &str) -> Self {
        Self(root.join(id))
    }

    /// Makes it.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::on("create", root))?;
        let this = Self::at(root, id);
        match fs::create_dir(&this.0) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::Exists(id.to_owned()))
            }
            other => other.map_err(Error::on("create", &this.0)).map(|()| this),
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The file for what the guest writes to its console.
    pub(crate) fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The file for what QEMU writes to its standard error.
    pub(crate) fn qemu_log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// Writes the journal, whole or not at all.
    pub(crate) fn write(&self, journal: &Journal) -> Result<()> {
        let path = self.0.join(names::JOURNAL);
        let text = serde_json::to_vec(journal).map_err(|error| Error::Journal {
            path: path.clone(),
            why: error.to_string(),
        })?;
        let temporary = self.0.join(".state.json");
        fs::write(&temporary, text).map_err(Error::on("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::on("write", &path))
    }

    /// Reads the journal; none when nothing was begun.
    pub(crate) fn read(&self) -> Result<Option<Journal>> {
        let path = self.0.join(names::JOURNAL);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::on("read", &path))?,
        };
        let wrong = |why: String| Error::Journal {
            path: path.clone(),
            why,
        };
        let journal: Journal =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        match journal.version {
            VERSION => Ok(Some(journal)),
            other => Err(wrong(format!(
                "version {other}, and this program has {VERSION}"
            ))),
        }
    }

    /// Ends the machine and removes all that was made for it. Idempotent. Gives the journal it went by.
    pub(crate) fn undo(&self) -> Result<Option<Journal>> {
        let journal = self.read()?;
        if let Some(journal) = &journal {
            journal.undo()?;
        }
        self.remove()?;
        Ok(journal)
    }

    /// The same for a sandbox that has died with its shim, and then for the containers in its machine that were
    /// [linked](Self::link). Gives all journals, those of the containers first.
    ///
    /// # Errors
    /// The first one: the other containers are undone all the same, and the sandbox's directory stays.
    pub(crate) fn undo_pod(&self) -> Result<Vec<Journal>> {
        let own = self.read()?;
        if let Some(own) = &own {
            own.undo()?;
        }
        let undone: Vec<_> = self.members()?.iter().map(Self::undo).collect();
        let undone: Result<Vec<_>> = undone.into_iter().collect();
        let mut journals: Vec<_> = undone?.into_iter().flatten().collect();
        self.remove()?;
        journals.extend(own);
        Ok(journals)
    }

    /// Remembers a container in the machine of this sandbox, of which nobody else will tell that it is to be undone.
    pub(crate) fn link(&self, member: &Self) -> Result<()> {
        let folder = self.0.join(MEMBERS);
        fs::create_dir_all(&folder).map_err(Error::on("create", &folder))?;
        let link = folder.join(member.0.file_name().unwrap_or_default());
        symlink(&member.0, &link).map_err(Error::on("create", &link))
    }

    /// Forgets it; nothing when it was not remembered.
    pub(crate) fn unlink(&self, member: &Self) -> Result<()> {
        let name = member.0.file_name().unwrap_or_default();
        let link = self.0.join(MEMBERS).join(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::on("remove", &link)(error))
            }
            _ => Ok(()),
        }
    }

    fn members(&self) -> Result<Vec<Self>> {
        let folder = self.0.join(MEMBERS);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::on("read", &folder))?,
        };
        let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry?.path()).map(Self);
        let targets: std::io::Result<_> = entries.map(target).collect();
        targets.map_err(Error::on("read", &folder))
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::on("remove", &self.0)(error));
            }
            _ => {}
        }
        if let Some(root) = self.0.parent() {
            // Not empty, or gone already: both are as they should be.
            let _in_use = fs::remove_dir(root);
        }
        Ok(())
    }
}

impl Journal {
    /// Of a container that is to be made.
    pub(crate) fn new(
        cgroup: Option<CgroupPaths>,
        hooks_poststop: Vec<Hook>,
        state_stopped: String,
    ) -> Self {
        Self {
            version: VERSION,
            cgroup,
            is_cgroup_own: false,
            links: None,
            hooks_poststop,
            state_stopped,
        }
    }

    /// Ends the machine and what ties it to the host.
    fn undo(&self) -> Result<()> {
        if let Some(paths) = &self.cgroup {
            let cgroup = Cgroup::from_paths(paths.clone());
            if self.is_cgroup_own && cgroup.exists() {
                cgroup.kill_all(Signal::SIGKILL as i32)?;
            }
            // It may have been made just before the journal was to say so.
            if self.is_cgroup_own || cgroup.procs()?.is_empty() {
                cgroup.delete()?;
            }
        }
        match &self.links {
            Some(links) => links.undo(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cgroups::Hierarchies;
    use sys::Spawn;

    use super::*;

    #[test]
    fn who_was_in_the_cgroup_before_survives_a_refused_create() {
        let hierarchies = Hierarchies::at_host().unwrap();
        let name = format!("/pouch-runv-journal-{}", std::process::id());
        let paths = CgroupPaths::new(&hierarchies, &name).unwrap();
        let cgroup = Cgroup::create_at(paths.clone()).unwrap();
        let mut other = Spawn::new(Path::new("/bin/sleep"))
            .args(["1000"])
            .spawn()
            .unwrap();
        cgroup.attach(other.pid()).unwrap();
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&root.path().join("namespace"), "c").unwrap();
        let mut journal = Journal::new(Some(paths.clone()), Vec::new(), String::new());
        dir.write(&journal).unwrap();
        assert!(Cgroup::create_at(paths).is_err());
        dir.undo().unwrap();
        assert!(!dir.path().exists());
        assert!(other.try_wait().unwrap().is_none());

        // One that is its own is ended and removed.
        fs::create_dir_all(dir.path()).unwrap();
        journal.is_cgroup_own = true;
        dir.write(&journal).unwrap();
        dir.undo().unwrap();
        other.wait().unwrap();
        assert!(!cgroup.exists());
    }

    #[test]
    fn what_is_in_a_dead_sandbox_is_undone_with_it() {
        let tmp = tempfile::tempdir().unwrap();
        let [root, other_root] = ["root", "other"].map(|it| tmp.path().join(it).join("k8s.io"));
        let make = |root: &Path, id: &str| {
            let dir = StateDir::create(root, id).unwrap();
            let journal = Journal::new(None, Vec::new(), id.to_owned());
            dir.write(&journal).unwrap();
            fs::write(dir.path().join("root.erofs"), "").unwrap();
            dir
        };
        let sandbox = make(&root, "sandbox");
        let (one, other) = (make(&root, "one"), make(&other_root, "other"));
        let [removed, stranger] = ["removed", "stranger"].map(|id| make(&root, id));
        for member in [&one, &other, &removed] {
            sandbox.link(member).unwrap();
        }
        sandbox.unlink(&removed).unwrap();
        sandbox.unlink(&removed).unwrap();
        // Its directory was made, and nothing more.
        let begun = StateDir::create(&root, "begun").unwrap();
        sandbox.link(&begun).unwrap();
        let undone = sandbox.undo_pod().unwrap();
        let mut undone: Vec<_> = undone.into_iter().map(|it| it.state_stopped).collect();
        assert_eq!(undone.pop().as_deref(), Some("sandbox"));
        undone.sort();
        assert_eq!(undone, ["one", "other"]);
        for gone in [&sandbox, &one, &other, &begun] {
            assert!(!gone.path().exists());
        }
        assert!(!other_root.exists());
        assert!(removed.path().exists() && stranger.path().exists());
        assert!(sandbox.undo_pod().unwrap().is_empty());
    }

    #[test]
    fn journals_of_before_have_their_cgroup() {
        let journal = Journal::new(None, Vec::new(), String::new());
        let mut value = serde_json::to_value(journal).unwrap();
        value.as_object_mut().unwrap().remove("is_cgroup_own");
        let journal: Journal = serde_json::from_value(value).unwrap();
        assert!(journal.is_cgroup_own);
    }
}
