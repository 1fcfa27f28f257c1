//! A directory tree as an EROFS disk: told as a tar to the crate that makes disks of layers, so that there
//! is one writer and one judge of names and attributes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use tar::{Builder, EntryType, Header};

use crate::held::Held;
use crate::{Error, Result};

/// Extended attributes that a container sees; those of the snapshotter's file system are its own.
const XATTRS: [&[u8]; 2] = [b"security.capability", b"user."];

/// Longest list of names of attributes, and longest value: what the kernel has (XATTR_LIST_MAX).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Directories within each other: more than fits into a path of PATH_MAX with names worth reading. Each is
/// held open on the way.
const DEPTH_MAX: usize = 256;

/// What an entry is charged beside its contents, in bytes.
const ENTRY_BYTES: u64 = 4 << 10;

/// Writes the disk of the tree at `root` into `out`; `key` gives the disk its UUID. The tree may change
/// meanwhile, but nothing outside is read: links in it are copied, never followed.
///
/// # Errors
/// [`Error::Unsupported`] for a tree of more than `bytes_max`, each entry counted with 4 KiB; what cannot be
/// read, or cannot be on such a disk.
pub(crate) fn pack(root: &Path, key: Digest, out: File, bytes_max: u64) -> Result<()> {
    let blob = tempfile::tempfile().map_err(Error::io("make a temporary file"))?;
    let (reads, writes) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
    let layer = std::thread::scope(|scope| {
        let teller = scope.spawn(|| tell(root, File::from(writes), bytes_max));
        let layer = Layer::read(File::from(reads), &blob, &Limits::GENEROUS);
        match (teller.join(), layer) {
            // A reader that gave up breaks the pipe; its reason is the one to tell.
            (_, Err(error)) => Err(Error::from(error)),
            (Ok(Err(error)), Ok(_)) => Err(error),
            (Ok(Ok(())), Ok(layer)) => Ok(layer),
            (Err(_), Ok(_)) => Err(Error::Usage("the tree could not be read".to_owned())),
        }
    })?;
    let mut tree = Tree::new();
    tree.apply(&layer, key)?;
    let image = Image::of(&tree, key, Form::Flat)?;
    image.write_with_blobs(out, |_| {
        let mut blob = blob.try_clone()?;
        blob.seek(SeekFrom::Start(0))?;
        Ok(blob)
    })?;
    Ok(())
}

fn tell(root: &Path, out: File, bytes_max: u64) -> Result<()> {
    let mut teller = Teller {
        root,
        tar: Builder::new(io::BufWriter::with_capacity(64 << 10, out)),
        names: HashMap::new(),
        bytes_max,
        bytes_left: bytes_max,
    };
    let held = Held::at(root).map_err(Error::on("open", root))?;
    teller.entry(&held, Path::new("./"))?;
    teller.below(&held, Path::new(""), DEPTH_MAX)?;
    let mut out = teller.tar.into_inner().map_err(Error::io("write a tar"))?;
    out.flush().map_err(Error::io("write a tar"))
}

struct Teller<'a, W: Write> {
    /// Only to be told in errors.
    root: &'a Path,
    tar: Builder<W>,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), PathBuf>,
    bytes_max: u64,
    bytes_left: u64,
}

impl<W: Write> Teller<'_, W> {
    fn below(&mut self, directory: &Held, named: &Path, depth_left: usize) -> Result<()> {
        let path = self.root.join(named);
        let Some(depth_left) = depth_left.checked_sub(1) else {
            let why = format!("has more than {DEPTH_MAX} directories within each other");
            return Err(Error::Usage(format!("{} {why}", self.root.display())));
        };
        for name in directory.names().map_err(Error::on("list", &path))? {
            let (path, named) = (path.join(&name), named.join(&name));
            if name.as_bytes().starts_with(b".wh.") {
                let path = path.display();
                return Err(Error::Usage(format!("{path} has the name of a whiteout")));
            }
            let held = directory.child(&name).map_err(Error::on("open", &path))?;
            // It would be nobody's in another kernel.
            if held.metadata.file_type().is_socket() {
                continue;
            }
            self.entry(&held, &named)?;
            if held.metadata.is_dir() {
                self.below(&held, &named, depth_left)?;
            }
        }
        Ok(())
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or_else(|| {
            let mib = self.bytes_max >> 20;
            let why = format!(
                "it is larger than {mib} MiB, the most that is copied into a guest (4 KiB are counted for each entry)"
            );
            Error::unsupported(format!("directory {}", self.root.display()), why)
        })?;
        Ok(())
    }

    fn entry(&mut self, held: &Held, named: &Path) -> Result<()> {
        let path = &self.root.join(named);
        let metadata = &held.metadata;
        let kind = metadata.file_type();
        let bytes = if kind.is_file() { metadata.len() } else { 0 };
        self.charge(ENTRY_BYTES)?;
        self.charge(bytes)?;
        let failed = || Error::on("pack", path);
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(bytes);
        if metadata.nlink() > 1 && !kind.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.names.get(&inode) {
                header.set_size(0);
                header.set_entry_type(EntryType::Link);
                let told = self.tar.append_link(&mut header, named, first);
                return told.map_err(failed());
            }
            self.names.insert(inode, named.to_owned());
        }
        let attributes = xattrs(&held.path());
        let attributes = attributes.map_err(Error::on("read attributes of", path))?;
        let values = attributes.iter().map(|(_, value)| value.len() as u64);
        self.charge(values.sum())?;
        let records = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(failed())?;
        let told = if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar.append_data(&mut header, named, io::empty())
        } else if kind.is_file() {
            let file = held.open().map_err(Error::on("open", path))?;
            // As long as it was said to be, whatever becomes of it meanwhile.
            let whole = file.chain(io::repeat(0)).take(bytes);
            self.tar.append_data(&mut header, named, whole)
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = held.target().map_err(Error::on("read link", path))?;
            self.tar.append_link(&mut header, named, target)
        } else {
            self.special(&mut header, named, metadata)
        };
        told.map_err(failed())
    }

    fn special(
        &mut self,
        header: &mut Header,
        named: &Path,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let kind = metadata.file_type();
        header.set_entry_type(if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            EntryType::Fifo
        });
        let number = |it: u64| u32::try_from(it).map_err(io::Error::other);
        let device = metadata.rdev();
        header.set_device_major(number(nix::sys::stat::major(device))?)?;
        header.set_device_minor(number(nix::sys::stat::minor(device))?)?;
        self.tar.append_data(header, named, io::empty())
    }
}

/// Names as PAX records have them, and values, of what a path leads to.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let bytes = match rustix::fs::listxattr(path, &mut names[..]) {
        Ok(bytes) => bytes,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in names[..bytes].split(|&byte| byte == 0) {
        if !XATTRS.iter().any(|wanted| name.starts_with(wanted)) {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES_MAX];
        let bytes = rustix::fs::getxattr(path, name, &mut value[..])?;
        value.truncate(bytes);
        let name = String::from_utf8_lossy(name);
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn packed(root: &Path) -> Vec<u8> {
        let mut out = tempfile::tempfile().unwrap();
        let key = Digest([7; 32]);
        pack(root, key, out.try_clone().unwrap(), u64::MAX).unwrap();
        out.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        Read::read_to_end(&mut out, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_tree_becomes_the_same_disk_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::write(at("usr/bin/program"), "a program".repeat(1000)).unwrap();
        let executable = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(at("usr/bin/program"), executable).unwrap();
        fs::hard_link(at("usr/bin/program"), at("usr/bin/another")).unwrap();
        symlink("usr/bin", at("bin")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let first = packed(directory.path());
        // EROFS_SUPER_MAGIC_V1, little-endian.
        assert_eq!(first[1024..1028], [0xe2, 0xe1, 0xf5, 0xe0]);
        assert_eq!(first.len() % 4096, 0);
        assert!(packed(directory.path()) == first);
        fs::write(at(".wh.x"), "").unwrap();
        let error = refused(directory.path(), u64::MAX);
        assert!(error.contains("name of a whiteout"), "{error}");
    }

    fn refused(root: &Path, bytes_max: u64) -> String {
        let out = tempfile::tempfile().unwrap();
        let error = pack(root, Digest([7; 32]), out, bytes_max).unwrap_err();
        error.to_string()
    }

    #[test]
    fn links_of_a_tree_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("tree")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/secret"), "a secret of the host").unwrap();
        symlink(at("outside"), at("tree/directory")).unwrap();
        symlink(at("outside/secret"), at("tree/file")).unwrap();
        symlink(at("tree"), at("link to the tree")).unwrap();
        let disk = packed(&at("link to the tree"));
        let secret = b"a secret of the host";
        assert!(!disk.windows(secret.len()).any(|bytes| bytes == secret));
        assert!(disk.windows(7).any(|bytes| bytes == b"outside"));
    }

    #[test]
    fn a_tree_has_a_size_and_a_depth() {
        let directory = tempfile::tempdir().unwrap();
        let sparse = File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        // The root and the file.
        let enough = (1 << 20) + 2 * ENTRY_BYTES;
        let mut out = tempfile::tempfile().unwrap();
        pack(
            directory.path(),
            Digest([7; 32]),
            out.try_clone().unwrap(),
            enough,
        )
        .unwrap();
        assert!(out.seek(SeekFrom::End(0)).unwrap() > 0);
        let error = refused(directory.path(), enough - 1);
        assert!(error.contains("larger than 1 MiB"), "{error}");
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH_MAX).collect();
        fs::create_dir_all(directory.path().join(deep)).unwrap();
        let error = refused(directory.path(), u64::MAX);
        assert!(error.contains("256 directories within"), "{error}");
    }
}
