//! `/proc/self/mountinfo` (proc(5)) as values; must not change any mount.

use std::borrow::Cow;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// More is not read. A table of 100,000 mounts has some 20 MiB.
pub const BYTES_MAX: u64 = 64 << 20;

/// One mount of a mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub id: u32,
    /// Number of the mount it is on.
    pub parent: u32,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Which directory of the file system it shows.
    pub root: String,
    /// Where it is.
    pub mount_point: String,
    /// Its own flags, as `rw,nosuid`.
    pub options: String,
    /// Propagation, as `shared:1`.
    pub propagation: Vec<String>,
    /// Type of the file system.
    pub fstype: String,
    /// Source as told to mount(2).
    pub source: String,
    /// Flags and options of the file system.
    pub super_options: String,
}

/// The mounts in a text of this format, in its order; lines that are none are left out.
#[must_use]
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

/// The mounts of this process's namespace.
///
/// # Errors
/// What reading says; `InvalidData` for a table of more than 64 MiB.
pub fn read() -> io::Result<Vec<Entry>> {
    read_file(Path::new("/proc/self/mountinfo"))
}

/// The mounts that a process has in its root directory.
///
/// # Errors
/// As [`read`].
pub fn of_process(pid: i32) -> io::Result<Vec<Entry>> {
    read_file(&PathBuf::from(format!("/proc/{pid}/mountinfo")))
}

fn read_file(path: &Path) -> io::Result<Vec<Entry>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > BYTES_MAX) {
        let text = "mountinfo is longer than 64 MiB";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// The mounts at `path` and below it, in the kernel's order.
///
/// `path` must be absolute and without symbolic links, as mount points are listed.
///
/// # Errors
/// As [`read`].
pub fn below(path: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = read()?;
    entries.retain(|entry| entry.path().starts_with(path));
    Ok(entries)
}

impl Entry {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.mount_point)
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn entry(line: &str) -> Option<Entry> {
    let (mount, super_block) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let id = mount.next()?.parse().ok()?;
    let parent = mount.next()?.parse().ok()?;
    let (major, minor) = mount.next()?.split_once(':')?;
    let root = unescape(mount.next()?);
    let mount_point = unescape(mount.next()?);
    let options = mount.next()?.to_owned();
    let propagation = mount.map(str::to_owned).collect();
    let mut super_block = super_block.splitn(3, ' ');
    let fstype = unescape(super_block.next()?);
    // An empty source is an empty field (old kernels), so there may be nothing after it.
    let source = unescape(super_block.next()?);
    let super_options = super_block.next().unwrap_or_default().to_owned();
    Some(Entry {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into_owned(),
        mount_point: mount_point.into_owned(),
        options,
        propagation,
        fstype: fstype.into_owned(),
        source: source.into_owned(),
        super_options,
    })
}

/// Undoes the octal escapes of the kernel's mangle(): space, tab, newline, backslash, hash.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return Cow::Borrowed(field);
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The byte that three octal digits stand for.
fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3)?;
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = (b'0'..=b'7').contains(digit).then(|| digit - b'0')?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel writes it: show_mountinfo() and mangle() of fs/proc_namespace.c.
    fn line(entry: &Entry) -> String {
        let escape = |text: &str| {
            let mut escaped = String::new();
            for c in text.chars() {
                match c {
                    ' ' | '\t' | '\n' | '\\' | '#' => {
                        escaped.push_str(&format!("\\{:03o}", u32::from(c)));
                    }
                    c => escaped.push(c),
                }
            }
            escaped
        };
        let optional: String = entry.propagation.iter().map(|p| format!(" {p}")).collect();
        format!(
            "{} {} {}:{} {} {} {}{optional} - {} {} {}",
            entry.id,
            entry.parent,
            entry.device.0,
            entry.device.1,
            escape(&entry.root),
            escape(&entry.mount_point),
            entry.options,
            escape(&entry.fstype),
            escape(&entry.source),
            entry.super_options
        )
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let path = "/[a-zé \t\n\\\\#/0-7-]{0,20}";
        let numbers = (any::<u32>(), any::<u32>(), any::<(u32, u32)>());
        let paths = (path, path, "[a-z.]{1,8}", "[ -~]{0,12}");
        let words = ("[a-z,]{2,9}", "[a-z,=]{2,20}");
        let propagation = prop::collection::vec("(shared|master|propagate_from):[0-9]{1,4}", 0..3);
        (numbers, paths, words, propagation).prop_map(|(numbers, paths, words, propagation)| {
            let ((id, parent, device), (root, mount_point, fstype, source)) = (numbers, paths);
            Entry {
                id,
                parent,
                device,
                root,
                mount_point,
                options: words.0,
                propagation,
                fstype,
                source,
                super_options: words.1,
            }
        })
    }

    proptest! {
        #[test]
        fn every_table_is_read_as_it_was_written(table in prop::collection::vec(entries(), 0..6)) {
            let text: String = table.iter().map(|entry| line(entry) + "\n").collect();
            prop_assert_eq!(parse(&text), table);
        }

        #[test]
        fn no_text_is_too_strange(text in "(?s).{0,200}") {
            let _entries = parse(&text);
        }
    }

    #[test]
    fn lines_of_kernels_old_and_new_are_read() {
        let text = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3  rw,errors=x\n\
            no line of it\n\
            40 25 0:3 net:[4026531840] /run/netns/a rw - nsfs nsfs rw";
        let entries = parse(text);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].mount_point, "/mnt 2");
        assert_eq!(entries[1].source, "");
        assert_eq!(entries[1].propagation, ["master:1", "propagate_from:2"]);
        assert_eq!(entries[2].root, "net:[4026531840]");
    }

    #[test]
    fn own_table_has_a_root_and_ends_at_path_components() {
        let all = read().unwrap();
        assert!(all.iter().any(|entry| entry.mount_point == "/"));
        assert_eq!(below(Path::new("/")).unwrap().len(), all.len());
        assert!(below(Path::new("/pro")).unwrap().is_empty());
        assert!(!below(Path::new("/proc")).unwrap().is_empty());
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(of_process(own).unwrap().len() >= all.len());
        assert!(of_process(-1).is_err());
    }
}
