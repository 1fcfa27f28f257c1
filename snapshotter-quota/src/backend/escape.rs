//! Looks whether somebody in a container took files out of their project, and puts them back.
//!
//! It sees the writable directory itself and some of what lies directly in it: a file deeper down
//! can be found by a walk only, and nobody walks here.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag, fstat},
};
use snapshot_core::{Error, Result};
use sys::project_quota::{Inherit, ProjectAttributes, ProjectId, project_of, set_project};

use super::{Audit, directories};

/// Names in the directory that are looked at: an image has some twenty in its root.
const NAMES_MAX: usize = 64;

/// Looks at a writable directory that should be in a project.
pub(super) fn audit(upper: &Path, project: ProjectId) -> Result<Audit> {
    let open = directories::open(upper)?;
    let mut found: Vec<_> = Escape::of(&open, upper, project)?.into_iter().collect();
    for (path, file) in entries(open, upper)? {
        found.extend(Escape::of(&file, &path, project)?);
    }
    Ok(match found.as_slice() {
        [] => Audit::Sound,
        [escape] => Audit::Escaped(escape.to_string()),
        [first, others @ ..] => Audit::Escaped(format!("{first}; so were {} others", others.len())),
    })
}

/// One that was found.
#[derive(Debug)]
struct Escape {
    path: PathBuf,
    found: ProjectAttributes,
    expected: ProjectId,
}

impl Escape {
    /// Compares, and puts it back.
    fn of(open: &File, path: &Path, project: ProjectId) -> Result<Option<Self>> {
        let about = open.metadata().map_err(Error::io("look at", path))?;
        let expected = ProjectAttributes {
            id: project,
            inherit: if about.is_dir() {
                Inherit::Yes
            } else {
                Inherit::No
            },
        };
        let found = project_of(open).map_err(Error::io("read the project of", path))?;
        if found == expected {
            return Ok(None);
        }
        set_project(open, expected.id, expected.inherit)
            .map_err(Error::io("put into a project", path))?;
        Ok(Some(Self {
            path: path.to_owned(),
            found,
            expected: project,
        }))
    }
}

impl std::fmt::Display for Escape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        if self.found.id == self.expected {
            return write!(
                f,
                "{path} did not hand its project {} on any more",
                self.expected.0
            );
        }
        write!(
            f,
            "{path} was in project {} instead of {}",
            self.found.id.0, self.expected.0
        )
    }
}

/// Files and directories in a directory. Nothing else can be asked for its project before kernel
/// 6.17, and opening a device would do something.
fn entries(directory: File, path: &Path) -> Result<Vec<(PathBuf, File)>> {
    let failed = |errno: Errno| Error::io("list", path)(errno.into());
    let mut directory = Dir::from_fd(directory.into()).map_err(failed)?;
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry.map_err(failed)?;
        let is_asked = matches!(entry.file_type(), Some(Type::File | Type::Directory));
        let name = entry.file_name();
        if is_asked && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() == NAMES_MAX {
            break;
        }
    }
    let opened = names.into_iter().filter_map(|name| {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        // What went away, or became something else, is not asked.
        let open = openat(directory.as_fd(), name.as_c_str(), flags, Mode::empty()).ok()?;
        let kind = SFlag::from_bits_truncate(fstat(&open).ok()?.st_mode) & SFlag::S_IFMT;
        let shown = path.join(name.to_string_lossy().as_ref());
        [SFlag::S_IFREG, SFlag::S_IFDIR]
            .contains(&kind)
            .then(|| (shown, File::from(open)))
    });
    Ok(opened.collect())
}
