//! Extended attributes that a disk can show, and their form in EROFS (erofs_fs.h, "Name indexes").

use crate::{
    attributes::Xattrs,
    error::{Error, Result},
    path::Path,
    tree::Leaf,
};

/// An attribute's name in two parts: a number for its namespace, and the rest.
pub(crate) type Split<'a> = (u8, &'a [u8]);

/// Longest name (Linux' XATTR_NAME_MAX).
const NAME_BYTES_MAX: usize = 255;
/// Longest value that EROFS' 16-bit length can tell. Linux' own limit is one byte more.
const VALUE_BYTES_MAX: usize = 65535;
/// What EROFS' 16-bit count of words leaves for all attributes of a file.
const ALL_BYTES_MAX: usize = 12 + 4 * 65534;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whom attributes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner<'a> {
    Directory,
    Leaf(&'a Leaf),
}

/// The namespace of a name; nothing for one that Linux keeps no attributes in.
pub(crate) fn split(name: &[u8]) -> Option<Split<'_>> {
    match name {
        ACCESS => return Some((2, b"")),
        DEFAULT => return Some((3, b"")),
        _ => {}
    }
    let namespaces: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    let mut found = namespaces
        .into_iter()
        .filter_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)));
    found.next().filter(|(_, rest)| !rest.is_empty())
}

/// Bytes of an entry in EROFS: a header of 4, name, value, filled up to 4.
pub(crate) fn entry_bytes(rest: &[u8], value: &[u8]) -> usize {
    (4 + rest.len() + value.len()).next_multiple_of(4)
}

/// Leaves out what Linux keeps nowhere (`com.apple.quarantine`), as tools that unpack do, and
/// refuses what it or EROFS cannot hold.
pub(crate) fn check(path: &Path, owner: Owner<'_>, xattrs: &mut Xattrs) -> Result<()> {
    xattrs.retain(|name, _| split(name).is_some());
    let mut all_bytes = 12;
    for (name, value) in xattrs {
        check_one(path, owner, name, value)?;
        let (_, rest) = split(name).expect("the others were left out");
        all_bytes += entry_bytes(rest, value);
    }
    if all_bytes > ALL_BYTES_MAX {
        let why = "extended attributes of more than 256 KiB";
        return Err(unsupported(path, why));
    }
    Ok(())
}

fn check_one(path: &Path, owner: Owner<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    let refused = |why| Err(crate::layer::refused(path, why));
    let is_linked = matches!(owner, Owner::Leaf(Leaf::Symlink(_)));
    let is_plain = matches!(owner, Owner::Directory | Owner::Leaf(Leaf::File(_)));
    if name.len() > NAME_BYTES_MAX {
        return refused("an extended attribute with a name of more than 255 bytes");
    }
    if name.contains(&0) {
        return refused("an extended attribute with a NUL byte in its name");
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(unsupported(path, "an extended attribute of 64 KiB or more"));
    }
    // xattr(7): user attributes are for files and directories alone.
    if name.starts_with(b"user.") && !is_plain {
        return refused("a user attribute of what is no file or directory");
    }
    // They steer overlayfs, which is mounted on top of the disk.
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Err(unsupported(
            path,
            "an extended attribute of overlayfs itself",
        ));
    }
    if name == ACCESS || name == DEFAULT {
        // acl(5): a version, then entries of 8 bytes.
        if value.get(..4) != Some(&[2, 0, 0, 0]) || !(value.len() - 4).is_multiple_of(8) {
            return refused("an access control list that Linux cannot read");
        }
        if is_linked || name == DEFAULT && owner != Owner::Directory {
            return refused("an access control list of what can have none");
        }
    }
    Ok(())
}

pub(crate) fn unsupported(path: &Path, why: &'static str) -> Error {
    Error::Unsupported {
        path: path.to_string(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fall_into_namespaces_or_are_left_out() {
        let check = |name: &str, expected| assert_eq!(split(name.as_bytes()), expected, "{name}");
        check("user.mime", Some((1, &b"mime"[..])));
        check("system.posix_acl_access", Some((2, b"")));
        check("system.posix_acl_default", Some((3, b"")));
        check("trusted.x", Some((4, b"x")));
        check("security.capability", Some((6, b"capability")));
        check("user.", None);
        check("system.nfs4_acl", None);
        check("com.apple.quarantine", None);
    }

    fn checked(owner: Owner<'_>, name: &str, value: &[u8]) -> Result<usize, String> {
        let path = Path::parse(b"x").unwrap();
        let mut xattrs = Xattrs::from([(name.as_bytes().into(), value.into())]);
        check(&path, owner, &mut xattrs)
            .map(|()| xattrs.len())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_is_refused_and_what_is_nowhere_is_left_out() {
        let fifo = Owner::Leaf(&Leaf::Fifo);
        let acl = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255];
        assert_eq!(checked(Owner::Directory, "com.apple.x", b"1"), Ok(0));
        assert_eq!(checked(Owner::Directory, "user.a", b""), Ok(1));
        assert_eq!(checked(Owner::Directory, "user.a", &[0; 65535]), Ok(1));
        assert_eq!(
            checked(Owner::Directory, "system.posix_acl_default", &acl),
            Ok(1)
        );
        assert_eq!(checked(fifo, "system.posix_acl_access", &acl), Ok(1));
        for (owner, name, value) in [
            (Owner::Directory, "user.a", &[0; 65536][..]),
            (Owner::Directory, "trusted.overlay.opaque", b"y"),
            (Owner::Directory, "system.posix_acl_access", &acl[..11]),
            (fifo, "system.posix_acl_default", &acl),
            (fifo, "user.a", b"1"),
        ] {
            checked(owner, name, value).unwrap_err();
        }
    }
}
