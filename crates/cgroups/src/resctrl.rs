//! Classes of resctrl (Documentation/filesystems/resctrl.rst): how much of caches and memory bandwidth
//! threads may have, in directories like a cgroup's.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::priority::Applied;
use crate::remove::rmdir;
use crate::{Error, Result, file};

/// Where a kernel that has resctrl shows it.
pub const RESCTRL: &str = "/sys/fs/resctrl";

/// `closID` of the class that everything is in which is in no other one: the root itself.
const DEFAULT_CLASS: &str = "/";

const SCHEMATA: &str = "schemata";
const TASKS: &str = "tasks";
const MONITORS: &str = "mon_groups";

/// Why the last command was refused: a file of the root.
const STATUS: &str = "info/last_cmd_status";

/// What a container asks for (config-linux.md, IntelRdt).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// `closID`; none: a class of the container's own, called as it is.
    pub class: Option<String>,
    /// `l3CacheSchema` and `memBwSchema`: what a class that is there must have already.
    pub shared: Vec<String>,
    /// `schemata`: lines that are written after those.
    pub schemata: Vec<String>,
    /// Whether the container is to be measured for itself.
    pub is_monitored: bool,
}

/// The class of a container, and what of it goes with the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    root: PathBuf,
    directory: PathBuf,
    /// It was not there, and nobody else is to use it.
    is_own: bool,
    monitor: Option<PathBuf>,
}

impl Class {
    /// Which one the container `id` is to have below `root`; nothing is made.
    ///
    /// # Errors
    /// [`Error::NoClass`] for one that is not there and of which nothing is said; [`Error::OtherClass`]
    /// for one that is there and has something else; [`Error::Make`] for monitoring, or a class of its
    /// own, that is there.
    pub fn of(root: &Path, id: &str, wanted: &Wanted) -> Result<Self> {
        let name = wanted.class.as_deref();
        let directory = match name {
            Some(DEFAULT_CLASS) => root.to_owned(),
            name => root.join(name.unwrap_or(id)),
        };
        let is_there = directory.is_dir();
        let says_nothing = wanted.shared.is_empty() && wanted.schemata.is_empty();
        if name.is_some() && says_nothing && !is_there {
            return Err(Error::NoClass { path: directory });
        }
        if name.is_none() && is_there && !says_nothing {
            // Another container's of the same id, or an operator's: it would have other parts now.
            return Err(Error::Make {
                path: directory,
                source: ErrorKind::AlreadyExists.into(),
            });
        }
        if name.is_some() && is_there {
            let has = match wanted.shared.is_empty() {
                true => String::new(),
                false => file::read(&directory, SCHEMATA)?,
            };
            let mut asked = wanted.shared.iter();
            if let Some(asked) = asked.find(|asked| !is_in(asked, &has)) {
                return Err(Error::OtherClass {
                    path: directory,
                    asked: asked.clone(),
                    has: has.split_whitespace().collect::<Vec<_>>().join(" "),
                });
            }
        }
        let monitor = directory.join(MONITORS).join(id);
        let monitor = wanted.is_monitored.then_some(monitor);
        if let Some(path) = monitor.as_ref().filter(|path| path.exists()) {
            return Err(Error::Make {
                path: path.clone(),
                source: ErrorKind::AlreadyExists.into(),
            });
        }
        Ok(Self {
            root: root.to_owned(),
            directory,
            is_own: name.is_none() && !is_there,
            monitor,
        })
    }

    /// Makes what is not there of it, and writes what is asked for.
    ///
    /// # Errors
    /// [`Error::Resctrl`]; a class that was made for it is gone then.
    pub fn make(&self, wanted: &Wanted) -> Result<()> {
        let made = self.make_directory(&self.directory)?;
        let lines = wanted.shared.iter().chain(&wanted.schemata);
        let written = self.write(lines).and_then(|()| {
            let monitor = self.monitor.as_deref();
            monitor.map_or(Ok(()), |monitor| self.make_directory(monitor).map(drop))
        });
        if written.is_err() && made {
            // Its refusal counts more than what becomes of an empty class.
            let _left = fs::remove_dir(&self.directory);
        }
        written
    }

    /// Puts threads, and what they start from then on, into it.
    ///
    /// # Errors
    /// [`Error::Resctrl`].
    pub fn assign(&self, threads: &[i32]) -> Result<()> {
        for directory in [Some(&self.directory), self.monitor.as_ref()] {
            let Some(directory) = directory else { continue };
            put(directory, threads).map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Writes lines of its schemata.
    ///
    /// # Errors
    /// [`Error::Resctrl`].
    pub fn write<'a>(&self, lines: impl IntoIterator<Item = &'a String>) -> Result<()> {
        // One by one, or what the kernel refuses would not be known.
        for line in lines {
            let written = file::write(&self.directory, SCHEMATA, line);
            written.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Removes what of it is the container's alone; what is not there is success.
    ///
    /// # Errors
    /// [`Error::Remove`].
    pub fn remove(&self) -> Result<()> {
        let own = self.is_own.then_some(&self.directory);
        let mut all = [self.monitor.as_ref(), own].into_iter().flatten();
        all.try_for_each(|path| rmdir(path))
    }

    /// False: it was there.
    fn make_directory(&self, path: &Path) -> Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(self.explain(Error::Make {
                path: path.to_owned(),
                source,
            })),
        }
    }

    /// With the kernel's own words, where it has some.
    fn explain(&self, error: Error) -> Error {
        let status = fs::read_to_string(self.root.join(STATUS)).unwrap_or_default();
        let status = match status.trim() {
            "" | "ok" => String::new(),
            words => format!(" ({words})"),
        };
        Error::Resctrl {
            status,
            source: Box::new(error),
        }
    }
}

/// Puts threads into a class of resctrl that the operator has made. None: there is no such class. The
/// first refusal is told.
#[must_use]
pub fn classify(resctrl: &Path, class: &str, threads: &[i32]) -> Option<Applied> {
    let told = |refused| Applied {
        file: "resctrl".to_owned(),
        value: class.to_owned(),
        refused,
    };
    match put(&resctrl.join(class), threads) {
        Ok(()) => Some(told(None)),
        Err(error) if error.is_not_found() => None,
        Err(Error::Write { source, .. }) => Some(told(Some(source.to_string()))),
        Err(error) => Some(told(Some(error.to_string()))),
    }
}

fn put(directory: &Path, threads: &[i32]) -> Result<()> {
    // A write takes one; lists are of Linux 6.7.
    let mut threads = threads.iter();
    threads.try_for_each(|id| file::write_number(directory, TASKS, id))
}

/// Whether a class has all that a line asks for, as `L3:0=7f0;1=1f`.
fn is_in(asked: &str, schemata: &str) -> bool {
    let has: Vec<_> = schemata.lines().flat_map(parts).collect();
    asked
        .lines()
        .flat_map(parts)
        .all(|part| has.contains(&part))
}

/// Resource, domain and value; numbers without leading zeros.
fn parts(line: &str) -> impl Iterator<Item = (&str, &str, String)> {
    let (resource, domains) = line.split_once(':').unwrap_or((line, ""));
    let domains = domains.split(';').map(str::trim);
    domains
        .filter(|domain| !domain.is_empty())
        .map(move |domain| {
            let (number, value) = domain.split_once('=').unwrap_or((domain, ""));
            let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
            (resource.trim(), number.trim(), value)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::written;

    /// A class as the kernel has it.
    fn class(path: &Path, schemata: &str) {
        fs::create_dir_all(path.join(MONITORS)).unwrap();
        fs::write(path.join(SCHEMATA), schemata).unwrap();
        fs::write(path.join(TASKS), "").unwrap();
    }

    fn wanted(class: Option<&str>, shared: &[&str]) -> Wanted {
        Wanted {
            class: class.map(str::to_owned),
            shared: shared.iter().map(|&line| line.to_owned()).collect(),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_class_is_the_operators_to_make() {
        let resctrl = tempfile::tempdir().unwrap();
        assert_eq!(classify(resctrl.path(), "pouch-offline", &[7]), None);
        let offline = resctrl.path().join("pouch-offline");
        class(&offline, "");
        let applied = classify(resctrl.path(), "pouch-offline", &[7, 9]).unwrap();
        assert_eq!(applied.to_string(), "resctrl=pouch-offline");
        assert_eq!(written(&offline, TASKS), ["7", "9"]);
    }

    #[test]
    fn a_class_that_is_there_must_have_what_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let gold = root.path().join("gold");
        let missing = Class::of(root.path(), "c", &wanted(Some("gold"), &[])).unwrap_err();
        assert!(matches!(missing, Error::NoClass { path } if path == gold));
        let new = Class::of(root.path(), "c", &wanted(Some("gold"), &["MB:0=20"])).unwrap();
        assert!(!new.is_own, "it stays for others");
        class(&gold, "    MB:0= 20;1= 70\n    L3:0=07F0;1=001f\n");
        for (lines, fits) in [
            (&[][..], true),
            (&["L3:0=7f0;1=1f", "MB:0=20;1=70"], true),
            (&["L3:1=1f;"], true),
            (&["L3:0=7f;1=1f"], false),
            (&["MB:2=20"], false),
            (&["L2:0=7f0"], false),
        ] {
            let found = Class::of(root.path(), "c", &wanted(Some("gold"), lines));
            assert_eq!(found.is_ok(), fits, "{lines:?}");
        }
        let other = Class::of(root.path(), "c", &wanted(Some("gold"), &["MB:0=30"]));
        let expected = format!(
            "the class of resctrl {} has not MB:0=30, but MB:0= 20;1= 70 L3:0=07F0;1=001f",
            gold.display()
        );
        assert_eq!(other.unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_is_the_containers_alone_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        class(root.path(), "");
        let own = wanted(None, &[]);
        let made = Class::of(root.path(), "c", &own).unwrap();
        made.make(&own).unwrap();
        assert!(root.path().join("c").is_dir());
        for _again in 0..2 {
            made.remove().unwrap();
            assert!(!root.path().join("c").exists());
        }
        // Somebody else's with the container's name, and the one of all, are left.
        class(&root.path().join("d"), "");
        let monitored = Wanted {
            class: Some(DEFAULT_CLASS.to_owned()),
            is_monitored: true,
            ..Wanted::default()
        };
        let found = Class::of(root.path(), "d", &own).unwrap();
        found.make(&own).unwrap();
        found.assign(&[3, 4]).unwrap();
        found.remove().unwrap();
        assert_eq!(written(&root.path().join("d"), TASKS), ["3", "4"]);
        let of_all = Class::of(root.path(), "c", &monitored).unwrap();
        of_all.make(&monitored).unwrap();
        let monitor = root.path().join("mon_groups/c");
        assert!(monitor.is_dir());
        let again = Class::of(root.path(), "c", &monitored).unwrap_err();
        assert!(matches!(again, Error::Make { path, .. } if path == monitor));
        of_all.remove().unwrap();
        assert!(!monitor.exists() && root.path().exists());
    }

    #[test]
    fn what_the_kernel_refuses_is_told_in_its_words_and_leaves_no_class() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("info")).unwrap();
        fs::write(root.path().join(STATUS), "mask f out of range\n").unwrap();
        let wanted = wanted(Some("gold"), &["L3:0=f"]);
        let gold = Class::of(root.path(), "c", &wanted).unwrap();
        // Here a new directory has no files.
        let error = gold.make(&wanted).unwrap_err().to_string();
        assert_eq!(error, "class of resctrl (mask f out of range)");
        assert!(!root.path().join("gold").exists());
    }
}
