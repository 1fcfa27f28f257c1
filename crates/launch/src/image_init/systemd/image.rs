//! What of systemd an image has: the program, its last program, and units by their names.
//!
//! Looks only, inside the container's root; changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::services::SCRIPTS;

use super::{SHUTDOWN, refusal};

/// Where systemd lies.
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// Where it lies elsewhere, it is at the end of this link.
const INIT: &str = "/sbin/init";

/// Where units of an image lie, in systemd's own order.
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const NULL: &str = "/dev/null";

/// The image's systemd.
#[derive(Debug)]
pub(super) struct Image {
    /// Its path.
    pub(super) systemd: String,
    /// What it executes as the last.
    pub(super) shutdown: PathBuf,
    /// Units that are asked for, and what a link to each points to.
    pub(super) services: Vec<(String, PathBuf)>,
}

impl Image {
    /// Finds these services, and what runs them.
    pub(super) fn find(services: &[String]) -> Result<Self> {
        Self::below(Path::new("/"), services)
    }

    fn below(root: &Path, services: &[String]) -> Result<Self> {
        let systemd = program(root)?;
        let real = fs::canonicalize(within(root, &systemd)).unwrap_or_default();
        let shutdown = real.with_file_name(SHUTDOWN);
        if !shutdown.is_file() {
            let why = format!("mode systemd: the image has no {}", shutdown.display());
            return Err(refusal(why));
        }
        let found = services.iter().map(|name| service(root, name));
        Ok(Self {
            systemd,
            shutdown,
            services: found.collect::<Result<_>>()?,
        })
    }
}

fn program(root: &Path) -> Result<String> {
    let is_file = |path: &&str| within(root, path).is_file();
    if let Some(found) = PROGRAMS.iter().copied().find(|path| is_file(path)) {
        return Ok(found.to_owned());
    }
    let init = fs::canonicalize(within(root, INIT)).unwrap_or_default();
    if init.file_name().is_some_and(|name| name == "systemd") {
        return Ok(INIT.to_owned());
    }
    Err(refusal(format!(
        "mode systemd: the image has none of {}, and {INIT} is no link to a systemd",
        PROGRAMS.join(", ")
    )))
}

fn service(root: &Path, name: &str) -> Result<(String, PathBuf)> {
    let refuse = |why: String| Err(refusal(format!("org.pouch.rich.services: {why}")));
    for directory in UNITS {
        for file in [Some(name.to_owned()), template(name)]
            .into_iter()
            .flatten()
        {
            let path = Path::new(directory).join(file);
            let Ok(about) = fs::symlink_metadata(within(root, &path)) else {
                continue;
            };
            let target = fs::read_link(within(root, &path)).unwrap_or_default();
            if about.is_symlink() && target == Path::new(NULL) {
                return refuse(format!(
                    "{name} is masked in the image by {}",
                    path.display()
                ));
            }
            return Ok((name.to_owned(), path));
        }
    }
    let script = name
        .strip_suffix(".service")
        .map(|name| Path::new(SCRIPTS).join(name));
    match script {
        Some(script) if within(root, &script).is_file() => Ok((name.to_owned(), script)),
        _ => refuse(format!(
            "the image has no {name} in {}, and no script in {SCRIPTS}",
            UNITS.join(", ")
        )),
    }
}

/// `x@.service` for `x@y.service`.
fn template(name: &str) -> Option<String> {
    let (before, after) = name.split_once('@')?;
    let (_, kind) = after.rsplit_once('.')?;
    Some(format!("{before}@.{kind}"))
}

fn within(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(root: &Path, path: &str) {
        let path = within(root, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn find(root: &Path, services: &[&str]) -> std::result::Result<Image, String> {
        let services: Vec<_> = services.iter().map(|&name| name.to_owned()).collect();
        Image::below(root, &services).map_err(|error| error.to_string())
    }

    #[test]
    fn systemd_is_found_or_all_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = &fs::canonicalize(dir.path()).unwrap();
        let places = "mode systemd: the image has none of /usr/lib/systemd/systemd, \
                      /lib/systemd/systemd, and /sbin/init is no link to a systemd";
        assert_eq!(find(root, &[]).unwrap_err(), places);
        file(root, "/opt/systemd");
        file(root, "/sbin/x");
        symlink("../opt/systemd", root.join("sbin/init")).unwrap();
        let without = find(root, &[]).unwrap_err();
        assert!(without.ends_with("/opt/systemd-shutdown"), "{without}");
        file(root, "/opt/systemd-shutdown");
        assert_eq!(find(root, &[]).unwrap().systemd, INIT);
        file(root, "/lib/systemd/systemd");
        file(root, "/lib/systemd/systemd-shutdown");
        let found = find(root, &[]).unwrap();
        assert_eq!(found.systemd, "/lib/systemd/systemd");
        assert_eq!(found.shutdown, root.join("lib/systemd/systemd-shutdown"));
    }

    #[test]
    fn services_are_found_by_name_or_refused_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = &fs::canonicalize(dir.path()).unwrap();
        file(root, "/lib/systemd/systemd");
        file(root, "/lib/systemd/systemd-shutdown");
        file(root, "/lib/systemd/system/cron.service");
        file(root, "/lib/systemd/system/web@.service");
        file(root, "/lib/systemd/system/off.service");
        file(root, "/etc/init.d/old");
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        symlink(NULL, root.join("etc/systemd/system/off.service")).unwrap();
        let services = ["cron.service", "web@1.service", "old.service"];
        let found: Vec<_> = find(root, &services).unwrap().services;
        let found: Vec<_> = found
            .iter()
            .map(|(_, path)| path.to_str().unwrap())
            .collect();
        assert_eq!(
            found,
            [
                "/lib/systemd/system/cron.service",
                "/lib/systemd/system/web@.service",
                "/etc/init.d/old"
            ]
        );
        let masked = find(root, &["off.service"]).unwrap_err();
        assert!(masked.contains("off.service is masked"), "{masked}");
        let unknown = find(root, &["corn.service"]).unwrap_err();
        assert!(
            unknown.contains("the image has no corn.service in"),
            "{unknown}"
        );
    }
}
