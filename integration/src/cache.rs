//! Things that take long to make and are the same every time: built once per machine, kept outside `target`.
//!
//! An entry is complete or absent: it is built beside its place and renamed. Whoever comes while
//! it is being built waits. Nothing in an entry may be changed after that.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Environment variable that names another cache directory.
pub const CACHE: &str = "POUCH_CACHE";

/// The cache directory, made if needed.
pub fn directory() -> Result<PathBuf> {
    let path = std::env::var_os(CACHE)
        .map_or_else(|| PathBuf::from("/var/cache/pouch-plugins"), PathBuf::from);
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// The path of entry `name`, built by `build` into the empty directory it is given if it is not there.
pub fn entry(name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = directory()?;
    let place = directory.join(name);
    if place.exists() {
        return Ok(place);
    }
    let lock_path = directory.join(format!(".{name}.lock"));
    let lock =
        File::create(&lock_path).with_context(|| format!("making {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("locking {}", lock_path.display()))?;
    if place.exists() {
        return Ok(place);
    }
    let building = directory.join(format!(".{name}.building"));
    if building.exists() {
        // Its builder was killed: it would hold the lock otherwise.
        fs::remove_dir_all(&building)
            .with_context(|| format!("removing {}", building.display()))?;
    }
    fs::create_dir(&building).with_context(|| format!("making {}", building.display()))?;
    build(&building).with_context(|| format!("making cache entry {name}"))?;
    fs::rename(&building, &place).with_context(|| format!("renaming to {}", place.display()))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_built_once_and_a_failed_build_leaves_none() {
        let name = format!("test-entry-{}", std::process::id());
        assert!(entry(&name, |_| anyhow::bail!("no")).is_err());
        assert!(!directory().unwrap().join(&name).exists());
        let path = entry(&name, |dir| Ok(fs::write(dir.join("file"), "text")?)).unwrap();
        assert_eq!(entry(&name, |_| panic!("built twice")).unwrap(), path);
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "text");
        fs::remove_dir_all(&path).unwrap();
        fs::remove_file(directory().unwrap().join(format!(".{name}.lock"))).unwrap();
    }
}
