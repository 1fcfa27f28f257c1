//! A directory tree as an EROFS disk: told as a tar to the crate that makes disks of layers, so that there
//! is one writer and one judge of names and attributes.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use tar::{Builder, EntryType, Header};

use crate::{Error, Result};

/// Extended attributes that a container sees; those of the snapshotter's file system are its own.
const XATTRS: [&[u8]; 2] = [b"security.capability", b"user."];

/// Longest list of names of attributes, and longest value: what the kernel has (XATTR_LIST_MAX).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Writes the disk of the tree at `root` into `out`; `key` gives the disk its UUID.
pub(crate) fn pack(root: &Path, key: Digest, out: File) -> Result<()> {
    let blob = tempfile::tempfile().map_err(Error::io("make a temporary file"))?;
    let (reads, writes) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
    let layer = std::thread::scope(|scope| {
        let teller = scope.spawn(|| tell(root, File::from(writes)));
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

fn tell(root: &Path, out: File) -> Result<()> {
    let mut teller = Teller {
        tar: Builder::new(io::BufWriter::with_capacity(64 << 10, out)),
        names: HashMap::new(),
    };
    let metadata = fs::symlink_metadata(root).map_err(Error::on("stat", root))?;
    teller.entry(root, Path::new("./"), &metadata)?;
    teller.below(root, Path::new(""))?;
    let mut out = teller.tar.into_inner().map_err(Error::io("write a tar"))?;
    out.flush().map_err(Error::io("write a tar"))
}

struct Teller<W: Write> {
    tar: Builder<W>,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Teller<W> {
    fn below(&mut self, directory: &Path, named: &Path) -> Result<()> {
        let failed = || Error::on("list", directory);
        let entries = fs::read_dir(directory).map_err(failed())?;
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed())?;
        names.sort();
        for name in names {
            let (path, named) = (directory.join(&name), named.join(&name));
            if name.as_bytes().starts_with(b".wh.") {
                let path = path.display();
                return Err(Error::Usage(format!("{path} has the name of a whiteout")));
            }
            let metadata = fs::symlink_metadata(&path).map_err(Error::on("stat", &path))?;
            // It would be nobody's in another kernel.
            if metadata.file_type().is_socket() {
                continue;
            }
            self.entry(&path, &named, &metadata)?;
            if metadata.is_dir() {
                self.below(&path, &named)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, named: &Path, metadata: &Metadata) -> Result<()> {
        let failed = || Error::on("pack", path);
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.names.get(&inode) {
                header.set_entry_type(EntryType::Link);
                let told = self.tar.append_link(&mut header, named, first);
                return told.map_err(failed());
            }
            self.names.insert(inode, named.to_owned());
        }
        let xattrs = xattrs(path).map_err(Error::on("read attributes of", path))?;
        let records = xattrs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(failed())?;
        let kind = metadata.file_type();
        let told = if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar.append_data(&mut header, named, io::empty())
        } else if kind.is_file() {
            header.set_size(metadata.len());
            let file = File::open(path).map_err(Error::on("open", path))?;
            // As long as it was said to be, whatever becomes of it meanwhile.
            let whole = file.chain(io::repeat(0)).take(metadata.len());
            self.tar.append_data(&mut header, named, whole)
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(path).map_err(Error::on("read link", path))?;
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

/// Names as PAX records have them, and values.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let bytes = match rustix::fs::llistxattr(path, &mut names[..]) {
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
        let bytes = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(bytes);
        let name = String::from_utf8_lossy(name);
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn packed(root: &Path) -> Vec<u8> {
        let mut out = tempfile::tempfile().unwrap();
        pack(root, Digest([7; 32]), out.try_clone().unwrap()).unwrap();
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
        let out = tempfile::tempfile().unwrap();
        let error = pack(directory.path(), Digest([7; 32]), out).unwrap_err();
        assert!(error.to_string().contains("name of a whiteout"), "{error}");
    }
}
