//! From the tar of a layer to its changes and its blob; everything in it is a stranger's.

use std::{
    io::{Read, Seek, Write},
    ops::Range,
};

use crate::{
    BLOCK_BYTES,
    attributes::Attributes,
    blob::BlobWriter,
    error::Result,
    layer::{Layer, refused, refused_raw},
    limits::{Count, Limits},
    path::{PATH_BYTES_MAX, Path, WHITEOUT},
    tar::{Archive, Member, MemberKind, SparseMap},
    tree::{DataBlocks, Device, File, Leaf},
    xattr::{self, Owner, unsupported},
};

/// What marks a directory that hides all below it ("Opaque Whiteout").
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS' own files, which old images carry: removals of names that no file can have.
const AUFS: &[u8] = b".wh..wh.";

/// A layer that is being read.
#[derive(Debug)]
struct Reader<R, W> {
    archive: Archive<R>,
    blob: BlobWriter<W>,
    layer: Layer,
    count: Count,
}

impl Layer {
    /// Reads the uncompressed tar of a layer to its end, and writes the contents of its files into
    /// `blob`, which must be empty and at its beginning: what is skipped must read as zeros.
    ///
    /// Each file's contents are contiguous and begin on a block; holes of sparse files take no
    /// writes but room, so that a disk need not know of them. Memory is that of names and
    /// attributes, and one buffer of 1 MiB.
    ///
    /// # Errors
    /// For a layer that cannot be, see [`Error`]; the blob is then worth nothing.
    pub fn read(tar: impl Read, blob: impl Write + Seek, limits: &Limits) -> Result<Self> {
        let mut reader = Reader {
            archive: Archive::new(tar, *limits),
            blob: BlobWriter::new(blob, limits.blob_bytes_max),
            layer: Self::new(),
            count: Count::new(*limits),
        };
        while let Some(member) = reader.archive.next()? {
            reader.count(&member)?;
            reader.take(member)?;
        }
        reader.layer.finish()?;
        reader.layer.blob_blocks = reader.blob.finish()?;
        Ok(reader.layer)
    }
}

impl<R: Read, W: Write + Seek> Reader<R, W> {
    fn count(&mut self, member: &Member) -> Result<()> {
        let other_bytes = match &member.kind {
            MemberKind::Symlink(target) | MemberKind::HardLink(target) => target.len(),
            MemberKind::SparseFile(map) => map.pieces.len() * 8,
            _ => 0,
        };
        self.count.add(&member.path, &member.xattrs, other_bytes)
    }

    fn take(&mut self, member: Member) -> Result<()> {
        let path = Path::parse(&member.path).map_err(|why| refused_raw(&member.path, why))?;
        let Some((parent, name)) = path.split_last() else {
            return self.put(&path, member);
        };
        if parent.parts().any(|part| part.starts_with(WHITEOUT)) {
            return Err(refused(&path, "an entry below a whiteout"));
        }
        if !name.starts_with(WHITEOUT) {
            return self.put(&path, member);
        }
        if name == OPAQUE {
            is_empty(&path, &member.kind)?;
            return self.layer.put_opaque(&parent);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        is_empty(&path, &member.kind)?;
        match &name[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(refused(&path, "a whiteout of nothing")),
            removed => self.layer.put_whiteout(&parent, removed),
        }
    }

    fn put(&mut self, path: &Path, member: Member) -> Result<()> {
        let mut attributes = Attributes {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: member.xattrs,
        };
        let leaf = match member.kind {
            MemberKind::Directory => {
                xattr::check(path, Owner::Directory, &mut attributes.xattrs)?;
                return self.layer.put_directory(path, attributes);
            }
            MemberKind::HardLink(target) => {
                let target = Path::parse(&target).map_err(|why| refused(path, why))?;
                // A link has no attributes of its own.
                drop(attributes);
                return self.layer.put_hard_link(path, &target);
            }
            MemberKind::File { bytes } => self.file(bytes)?,
            MemberKind::SparseFile(map) => self.sparse_file(&map)?,
            MemberKind::Symlink(target) => {
                check_symlink(path, &target)?;
                // Linux knows no permissions of symbolic links.
                attributes.mode = 0o777;
                Leaf::Symlink(target.into())
            }
            MemberKind::CharacterDevice { major, minor } => {
                Leaf::CharacterDevice(character_device(path, major, minor)?)
            }
            MemberKind::BlockDevice { major, minor } => {
                Leaf::BlockDevice(device(path, major, minor)?)
            }
            MemberKind::Fifo => Leaf::Fifo,
        };
        xattr::check(path, Owner::Leaf(&leaf), &mut attributes.xattrs)?;
        self.layer.put_leaf(path, attributes, leaf)
    }

    fn file(&mut self, bytes: u64) -> Result<Leaf> {
        let first_block = self.begin(bytes)?;
        let offset = u64::from(first_block) * BLOCK_BYTES;
        let archive = &mut self.archive;
        self.blob
            .write(offset, |buffer| archive.read_data(buffer))?;
        Ok(Leaf::File(File {
            bytes,
            first_block,
            data: DataBlocks::All,
        }))
    }

    fn sparse_file(&mut self, map: &SparseMap) -> Result<Leaf> {
        let first_block = self.begin(map.bytes)?;
        let start = u64::from(first_block) * BLOCK_BYTES;
        let archive = &mut self.archive;
        for &(offset, length) in &map.pieces {
            let mut left = length;
            self.blob.write(start + offset, |buffer| {
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let most = most.min(buffer.len());
                let count = archive.read_data(&mut buffer[..most])?;
                left -= u64::try_from(count).expect("a length fits 64 bits");
                Ok(count)
            })?;
        }
        Ok(Leaf::File(File {
            bytes: map.bytes,
            first_block,
            data: data_blocks(map),
        }))
    }

    fn begin(&mut self, bytes: u64) -> Result<u32> {
        let begun = self.blob.begin(bytes);
        begun.ok_or_else(|| self.archive.too_long())
    }
}

/// Which blocks of a sparse file have data; pieces that share a block or meet are one range.
fn data_blocks(map: &SparseMap) -> DataBlocks {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let block = |bytes: u64| u32::try_from(bytes).expect("the blob has taken the file");
    for &(offset, length) in &map.pieces {
        let first = block(offset / BLOCK_BYTES);
        let end = block((offset + length).div_ceil(BLOCK_BYTES));
        match ranges.last_mut() {
            Some(last) if last.end >= first => last.end = end,
            _ => ranges.push(first..end),
        }
    }
    let all = 0..block(map.bytes.div_ceil(BLOCK_BYTES));
    if ranges == [all.clone()] || all.is_empty() {
        return DataBlocks::All;
    }
    DataBlocks::Ranges(ranges.into())
}

pub(crate) fn check_symlink(path: &Path, target: &[u8]) -> Result<()> {
    if target.is_empty() {
        return Err(refused(path, "a symbolic link to nothing"));
    }
    if target.len() > PATH_BYTES_MAX {
        return Err(refused(path, "a symbolic link of more than 4095 bytes"));
    }
    if target.contains(&0) {
        return Err(refused(path, "a symbolic link with a NUL byte"));
    }
    Ok(())
}

/// AUFS made its whiteouts hard links of one empty file, and its tars kept them so.
fn is_empty(path: &Path, kind: &MemberKind) -> Result<()> {
    match kind {
        MemberKind::File { bytes: 0 } | MemberKind::HardLink(_) => Ok(()),
        _ => Err(refused(path, "a whiteout that is no empty file")),
    }
}

/// As [`device`], but for one that overlayfs, which is mounted on top, would take for a whiteout.
pub(crate) fn character_device(path: &Path, major: i64, minor: i64) -> Result<Device> {
    let device = device(path, major, minor)?;
    if device == (Device { major: 0, minor: 0 }) {
        return Err(unsupported(path, "a character device 0:0"));
    }
    Ok(device)
}

pub(crate) fn device(path: &Path, major: i64, minor: i64) -> Result<Device> {
    let below = |number: i64, limit: u32| u32::try_from(number).ok().filter(|&it| it < limit);
    match (below(major, 1 << 12), below(minor, 1 << 20)) {
        (Some(major), Some(minor)) => Ok(Device { major, minor }),
        _ => Err(refused(path, "a device number that Linux does not have")),
    }
}
