//! What two machines must have in common to go on from one template.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::qemu::Arguments;
use crate::{Error, Result};

/// Bytes of the digest that are a key.
const KEY_BYTES: usize = 8;

/// A digest of it, in hexadecimal digits. The host's processor and kernel are not in it: no template lives
/// longer than they do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// That of a machine.
    ///
    /// # Errors
    /// When a file it is made of cannot be looked at.
    pub(crate) fn of(arguments: &Arguments, program: &Path) -> Result<Self> {
        let own = Arguments {
            // It is measured, never twice the same.
            tsc_khz: None,
            console: "/".into(),
            ..arguments.clone()
        };
        let mut text = format!("{} {} {}", crate::VERSION, crate::REVISION, guest::VERSION);
        for word in own.render() {
            text.push('\n');
            text.push_str(&word);
        }
        let image = &arguments.image;
        for path in [program, &image.kernel, &image.initramfs] {
            text.push_str(&identity(path)?);
        }
        let digest = Sha256::digest(text.as_bytes());
        let digits = digest[..KEY_BYTES].iter().map(|byte| format!("{byte:02x}"));
        Ok(Self(digits.collect()))
    }

    /// The one that is written so.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_digit = |letter: char| matches!(letter, '0'..='9' | 'a'..='f');
        (text.len() == KEY_BYTES * 2 && text.chars().all(is_digit)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Another file, or another content, has another one.
fn identity(path: &Path) -> Result<String> {
    let metadata = std::fs::metadata(path).map_err(Error::on("stat", path))?;
    Ok(format!(
        "\n{} {} {} {} {}.{} {}.{}",
        path.display(),
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;
    use crate::qemu::{Accelerator, Memory, Volumes};

    #[test]
    fn a_key_is_anothers_when_anything_that_matters_is() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let program = at("qemu");
        let machine = Arguments {
            image: Image {
                name: crate::image::Name::default(),
                kernel: at("kernel"),
                initramfs: at("initramfs"),
            },
            accelerator: Accelerator::Tcg,
            memory_mib: 512,
            memory: Memory::Empty,
            processors: 1,
            tsc_khz: Some(1),
            links: 0,
            volumes: Volumes::None,
            console: "/console".into(),
        };
        let of = |machine: &Arguments| Key::of(machine, &program).unwrap();
        let first = of(&machine);
        assert_eq!(Key::parse(&first.to_string()), Some(first.clone()));
        let same = Arguments {
            tsc_khz: Some(2),
            console: "/other".into(),
            ..machine.clone()
        };
        assert_eq!(of(&same), first);
        for other in [
            Arguments {
                memory_mib: 1024,
                ..machine.clone()
            },
            Arguments {
                links: 1,
                ..machine.clone()
            },
            Arguments {
                accelerator: Accelerator::Kvm,
                ..machine.clone()
            },
        ] {
            assert_ne!(of(&other), first);
        }
        std::fs::write(&machine.image.initramfs, "another").unwrap();
        assert_ne!(of(&machine), first);
        for odd in [
            "",
            "0123456789abcde",
            "0123456789abcdeg",
            "../../../../etc/",
        ] {
            assert_eq!(Key::parse(odd), None);
        }
    }
}
