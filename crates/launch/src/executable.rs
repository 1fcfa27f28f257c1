//! Finds the program as the process would find it, and replaces the process by it.
//!
//! Follows Go's exec.LookPath with runc's texts, which people and scripts look for. Must run inside
//! the container with the user's rights, after every descriptor of the host is closed.

use std::convert::Infallible;
use std::ffi::CString;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, stat};
use nix::unistd::{Gid, execve, getegid, geteuid, getgroups};

use crate::environment;
use crate::error::{Error, Result, errno_words};

/// A program that was found, with all that execve(2) takes.
#[derive(Debug)]
pub(crate) struct Executable {
    path: String,
    args: Vec<String>,
    environment: Vec<String>,
}

impl Executable {
    /// Looks the first argument up in the PATH of `environment`, as the process is now.
    pub(crate) fn find(args: &[String], environment: Vec<String>) -> Result<Self> {
        let name = args.first().map_or("", String::as_str);
        let path = if name.contains('/') {
            check(name).map_err(|(why, errno)| refusal(name, why, errno))?;
            name.to_owned()
        } else {
            in_search_path(name, environment::value(&environment, "PATH").unwrap_or(""))?
        };
        Ok(Self {
            path,
            args: args.to_vec(),
            environment,
        })
    }

    /// Becomes the program; returns only when the kernel refuses.
    pub(crate) fn execute(&self) -> Error {
        match self.replace_process() {
            Ok(never) => match never {},
            Err(errno) => Error::Executable {
                text: format!("exec {}: {}", self.path, errno_words(errno)),
                errno: errno as i32,
            },
        }
    }

    fn replace_process(&self) -> nix::Result<Infallible> {
        let path = c_string(&self.path)?;
        let args = self
            .args
            .iter()
            .map(|arg| c_string(arg))
            .collect::<nix::Result<Vec<_>>>()?;
        let environment = self
            .environment
            .iter()
            .map(|entry| c_string(entry))
            .collect::<nix::Result<Vec<_>>>()?;
        execve(&path, &args, &environment)
    }

    /// The environment the program gets.
    pub(crate) fn environment(&self) -> &[String] {
        &self.environment
    }
}

fn c_string(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_nul| Errno::EINVAL)
}

fn refusal(name: &str, why: impl Into<String>, errno: Errno) -> Error {
    Error::Executable {
        text: format!("exec: \"{name}\": {}", why.into()),
        errno: errno as i32,
    }
}

fn in_search_path(name: &str, search: &str) -> Result<String> {
    let not_found = || refusal(name, "executable file not found in $PATH", Errno::ENOENT);
    if matches!(name, "" | "." | "..") || search.is_empty() {
        return Err(not_found());
    }
    for directory in search.split(':') {
        // Go joins and cleans the two, which makes "" and "." relative alike.
        let path = if directory.ends_with('/') {
            format!("{directory}{name}")
        } else {
            format!(
                "{}/{name}",
                if directory.is_empty() { "." } else { directory }
            )
        };
        if check(&path).is_ok() {
            if Path::new(&path).is_absolute() {
                return Ok(path);
            }
            let why = "cannot run executable found relative to current directory";
            return Err(refusal(name, why, Errno::EACCES));
        }
    }
    Err(not_found())
}

/// Whether a path is a program to this process; if not, why in Go's words.
fn check(path: &str) -> std::result::Result<(), (String, Errno)> {
    let about =
        stat(path).map_err(|errno| (format!("stat {path}: {}", errno_words(errno)), errno))?;
    let mode = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
    if mode == SFlag::S_IFDIR {
        return Err((errno_words(Errno::EISDIR), Errno::EISDIR));
    }
    let c_path = c_string(path).map_err(|errno| (errno_words(errno), errno))?;
    let answer = match sys::may_execute(&c_path) {
        Ok(()) => return Ok(()),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    };
    match answer {
        // Before 5.8, or filtered.
        Errno::ENOSYS | Errno::EPERM if mode_lets_us_execute(&about) => Ok(()),
        Errno::ENOSYS | Errno::EPERM => Err((errno_words(Errno::EACCES), Errno::EACCES)),
        errno => Err((errno_words(errno), errno)),
    }
}

/// The kernel's rule without its access lists: execve(2) has the last word.
fn mode_lets_us_execute(about: &FileStat) -> bool {
    const CAP_DAC_OVERRIDE: u64 = 1 << 1;
    let override_mode =
        sys::process::capget().is_ok_and(|own| own.effective & CAP_DAC_OVERRIDE != 0);
    let in_group = || {
        let group = Gid::from_raw(about.st_gid);
        getegid() == group || getgroups().is_ok_and(|groups| groups.contains(&group))
    };
    let who_may = if override_mode {
        0o111
    } else if geteuid().as_raw() == about.st_uid {
        0o100
    } else if in_group() {
        0o010
    } else {
        0o001
    };
    about.st_mode & who_may != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn find(name: &str, search: &str) -> std::result::Result<String, String> {
        let environment = vec![format!("PATH={search}"), "PATHX=/no".to_owned()];
        Executable::find(&[name.to_owned()], environment)
            .map(|found| found.path)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn programs_are_found_and_refused_as_runc_does() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("{}/{name}", dir.path().display());
        for (name, mode) in [("run", 0o755), ("plain", 0o644)] {
            std::fs::write(at(name), "#!/bin/true\n").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(at("folder")).unwrap();
        let search = format!("/no/such:{}:/usr/bin:/bin", dir.path().display());
        let error = |name: &str, why: &str| Err(format!("exec: \"{name}\": {why}"));
        let not_found = "executable file not found in $PATH";

        assert_eq!(find("run", &search), Ok(at("run")));
        assert_eq!(
            find("run", &format!("{}/", dir.path().display())),
            Ok(at("run"))
        );
        assert_eq!(find(&at("run"), ""), Ok(at("run")));
        assert_eq!(find("run", ""), error("run", not_found));
        assert_eq!(find("", &search), error("", not_found));
        assert_eq!(find("absent", &search), error("absent", not_found));
        assert_eq!(find("plain", &search), error("plain", not_found));
        assert_eq!(find("folder", &search), error("folder", not_found));
        assert_eq!(
            find(&at("plain"), ""),
            error(&at("plain"), "permission denied")
        );
        assert_eq!(
            find(&at("folder"), ""),
            error(&at("folder"), "is a directory")
        );
        let absent = format!("stat {}: no such file or directory", at("absent"));
        assert_eq!(find(&at("absent"), ""), error(&at("absent"), &absent));
        let below = format!("stat {}: not a directory", at("run/x"));
        assert_eq!(find(&at("run/x"), ""), error(&at("run/x"), &below));
    }

    #[test]
    fn a_program_that_the_kernel_refuses_is_named_with_its_errno() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, "#!/mmnnttbb foo bar\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let error = Executable::find(std::slice::from_ref(&path), Vec::new())
            .unwrap()
            .execute();
        assert_eq!(
            error.to_string(),
            format!("exec {path}: no such file or directory")
        );
        assert_eq!(error.failure().errno, nix::libc::ENOENT);
    }
}
