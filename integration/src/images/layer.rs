//! A layer as data, and its tar: sorted, times zero, the same bytes every time.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use crate::random::Random;

/// The entries of a layer by path, without a leading slash.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: BTreeMap<String, Entry>,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub content: Content,
    /// Permission bits with set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory.
    Directory,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A file with pseudo-random bytes, which are made only when they are written.
    Random {
        /// What the bytes follow from.
        seed: u64,
        /// How many.
        length_bytes: u64,
    },
    /// A symbolic link.
    Symlink(String),
    /// A hard link to another entry.
    HardLink(String),
    /// A device node.
    Device(Device),
    /// A named pipe.
    Fifo,
}

/// A device node.
#[derive(Debug, Clone, Copy)]
pub enum Device {
    /// Character device: major, minor.
    Character(u32, u32),
    /// Block device: major, minor.
    Block(u32, u32),
}

impl Layer {
    /// Adds an entry of root.
    pub fn add(&mut self, path: &str, mode: u32, content: Content) -> &mut Entry {
        let entry = Entry {
            content,
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
        };
        self.insert(path, entry)
    }

    /// Adds an entry.
    pub fn insert(&mut self, path: &str, entry: Entry) -> &mut Entry {
        self.entries.insert(path.to_owned(), entry);
        self.entries.get_mut(path).expect("was just inserted")
    }

    /// Adds a directory of mode 0755.
    pub fn directory(&mut self, path: &str) -> &mut Entry {
        self.add(path, 0o755, Content::Directory)
    }

    /// Adds a file of mode 0644.
    pub fn file(&mut self, path: &str, text: &str) -> &mut Entry {
        self.add(path, 0o644, Content::File(text.as_bytes().to_vec()))
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Entry {
        self.add(path, 0o777, Content::Symlink(target.to_owned()))
    }

    /// Removes what a lower layer has at that path.
    pub fn whiteout(&mut self, path: &str) {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let separator = if directory.is_empty() { "" } else { "/" };
        self.file(&format!("{directory}{separator}.wh.{name}"), "");
    }

    /// Adds a directory that hides what lower layers have in it.
    pub fn opaque(&mut self, path: &str) {
        self.directory(path);
        self.file(&format!("{path}/.wh..wh..opq"), "");
    }

    /// Writes the tar. Hard links come last, since their targets must be there before them.
    pub fn write(&self, out: impl Write) -> Result<()> {
        let mut builder = Builder::new(out);
        let is_link = |entry: &Entry| matches!(entry.content, Content::HardLink(_));
        let links = self.entries.iter().filter(|(_, entry)| is_link(entry));
        let others = self.entries.iter().filter(|(_, entry)| !is_link(entry));
        for (path, entry) in others.chain(links) {
            append(&mut builder, path, entry).with_context(|| format!("writing entry {path}"))?;
        }
        builder.into_inner()?.flush()?;
        Ok(())
    }
}

fn append(builder: &mut Builder<impl Write>, path: &str, entry: &Entry) -> Result<()> {
    if !entry.xattrs.is_empty() {
        let named: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value))
            .collect();
        builder.append_pax_extensions(
            named
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        )?;
    }
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    header.set_mtime(0);
    header.set_size(0);
    match &entry.content {
        Content::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, format!("{path}/"), io::empty())?;
        }
        Content::File(bytes) => {
            header.set_size(u64::try_from(bytes.len())?);
            builder.append_data(&mut header, path, bytes.as_slice())?;
        }
        Content::Random { seed, length_bytes } => {
            header.set_size(*length_bytes);
            builder.append_data(&mut header, path, Random::new(*seed).take(*length_bytes))?;
        }
        Content::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, target)?;
        }
        Content::HardLink(target) => {
            header.set_entry_type(EntryType::Link);
            builder.append_link(&mut header, path, target)?;
        }
        Content::Device(device) => {
            let (kind, major, minor) = match device {
                Device::Character(major, minor) => (EntryType::Char, major, minor),
                Device::Block(major, minor) => (EntryType::Block, major, minor),
            };
            header.set_entry_type(kind);
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            builder.append_data(&mut header, path, io::empty())?;
        }
        Content::Fifo => {
            header.set_entry_type(EntryType::Fifo);
            builder.append_data(&mut header, path, io::empty())?;
        }
    }
    Ok(())
}
