//! Programs of the host, looked for where a shell would and where packages put them.

use std::fs::Metadata;
use std::path::PathBuf;

/// Looked at when PATH does not have it: a service's PATH can be short.
const FOLDERS: [&str; 5] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin", "/sbin"];

/// The absolute path of a program of this name, and what is known about the file.
pub(crate) fn find(name: &str) -> Option<(PathBuf, Metadata)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(FOLDERS.iter().map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find_map(|program| {
            let file = program.metadata().ok().filter(Metadata::is_file)?;
            Some((program, file))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_every_host_is_found_and_a_folder_is_none() {
        let (program, file) = find("sh").unwrap();
        assert!(program.is_absolute() && file.is_file());
        assert!(find("no-such-program").is_none());
        assert!(find("").is_none());
    }
}
