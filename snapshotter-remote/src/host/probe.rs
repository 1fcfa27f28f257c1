//! What the kernel can do with disks, found out with a small one. It leaves nothing behind.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use mounts::unmount_tree;
use nix::poll::{PollFd, PollFlags, poll};
use snapshot_core::{Error, Result, one_line};
use sys::{EventJournal, FuseDevice, PreContent, RequestJournal, Verdict};

use super::{
    attach::{Carrier, Memory, mount},
    files,
    lazy::{
        self, connection,
        fuse::{self, Asked, Message, Node},
        opener,
    },
};

/// What is in the only file of the disk.
const CONTENTS: &[u8] = b"what was written is what is read\n";

/// How long a read may take, in milliseconds.
const PATIENCE: u16 = 10_000;

/// As `lazy` mounts.
const FILES: (Carrier, Memory) = (Carrier::Files, Memory::Twice);

/// What the only file of a FUSE connection is called.
const NAME: &str = "blob";

/// A disk on which something is tried.
pub(super) struct Trial {
    directory: PathBuf,
    metadata: PathBuf,
    blob: File,
}

impl Trial {
    /// What disks can be mounted by, or why by nothing.
    pub(super) fn carrier(&self) -> Result<Carrier, String> {
        let mut said = Vec::new();
        for carrier in Carrier::ALL {
            match self.mounts((carrier, Memory::Twice), &self.blob) {
                Ok(()) => return Ok(carrier),
                Err(error) => said.push(format!("{carrier}: {}", one_line(&error))),
            }
        }
        Err(said.join("; "))
    }

    /// Whether reads of a disk can be answered one by one, or why not.
    pub(super) fn lazy(&self) -> Result<Carrier, String> {
        if let Err(error) = self.mounts(FILES, &self.blob) {
            return Err(format!(
                "{} (6.12, on ext4, xfs or btrfs): {}",
                Carrier::Files,
                one_line(&error)
            ));
        }
        if let Err(error) = lazy::holder_program() {
            return Err(error.to_string());
        }
        self.answers().map(|()| Carrier::Files).map_err(|error| {
            format!("pre-content events of fanotify (6.14, on ext4, xfs or btrfs): {error}")
        })
    }

    /// What disks can be mounted by whose readers are given what they ask for, or why by nothing.
    pub(super) fn served(&self) -> Result<Carrier, String> {
        if let Err(error) = lazy::holder_program() {
            return Err(error.to_string());
        }
        let mut said = Vec::new();
        for carrier in Carrier::ALL {
            match self.gives(carrier) {
                Ok(()) => return Ok(carrier),
                Err(error) => said.push(format!("{carrier}, by FUSE: {}", one_line(&error))),
            }
        }
        Err(said.join("; "))
    }

    /// Gives the kernel the blob's contents when it asks for them.
    fn gives(&self, carrier: Carrier) -> io::Result<()> {
        let device = FuseDevice::open()?;
        let journal = RequestJournal::new(1)?;
        // Until all is answered: without a mount there is nobody to be answered.
        let mount = &connection::mount(&device)?;
        let (told, tells) = sys::pipe_cloexec()?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let opened = opener::open(mount, &[NAME.to_owned()]);
                let read = opened.and_then(|files| {
                    let read = self.mounts((carrier, Memory::Once), &files[0]);
                    read.map_err(|error| io::Error::other(one_line(&error)))
                });
                drop(tells);
                read
            });
            let answered = self.give(&device, &journal, &told);
            // Whatever still waits is told that it fails.
            drop(device);
            let read = reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if !answered? && read.is_ok() {
                return Err(io::Error::other("a read did not ask"));
            }
            read
        })
    }

    /// Answers until the reader is done: whether there was a read.
    fn give(
        &self,
        device: &FuseDevice,
        journal: &RequestJournal,
        done: &OwnedFd,
    ) -> io::Result<bool> {
        let number = Node::number_of([1; 32]).expect("it is not the directory's");
        let bytes = self.blob.metadata()?.len();
        let node = Node { number, bytes };
        let mut has_given = false;
        loop {
            let mut fds =
                [device.as_fd(), done.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut fds, PATIENCE)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !device.read(journal, 0)? {
                if fds[1].any().unwrap_or_default() {
                    return Ok(has_given);
                }
                continue;
            }
            let request = journal.request(0);
            let message = Message::parse(&request.ok_or(io::ErrorKind::InvalidData)?);
            if let Asked::Read { at, bytes, .. } = message.asked {
                let mut contents = vec![0; bytes as usize];
                let count = self.blob.read_at(&mut contents, at)?;
                device.answer(&fuse::head(message.unique, count, 0), &contents[..count])?;
                has_given = true;
            } else {
                let is_it = |name: &[u8]| (name == NAME.as_bytes()).then_some(node);
                let answer = message.answer(1, is_it, |of| (of == number).then_some(node));
                if let Some(answer) = answer {
                    device.answer(&answer, &[])?;
                }
            }
            journal.clear(0);
        }
    }

    /// Empties the blob and puts its contents there when they are read.
    fn answers(&self) -> io::Result<()> {
        let bytes = self.blob.metadata()?.len();
        let mut contents = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.blob.read_exact_at(&mut contents, 0)?;
        self.blob.set_len(0)?;
        self.blob.set_len(bytes)?;
        let group = PreContent::new()?;
        group.watch(&self.blob)?;
        let journal = EventJournal::new(1)?;
        let (told, tells) = sys::pipe_cloexec()?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let read = self.mounts(FILES, &self.blob);
                drop(tells);
                read.map_err(io::Error::other)
            });
            let answered = self.answer(&group, &journal, &told, &contents);
            // Whatever still waits is let go.
            drop(group);
            let read = reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if !answered? {
                return Err(io::Error::other("a read was not told of"));
            }
            read
        })
    }

    /// Answers until the reader is done: whether there was anything to be answered.
    fn answer(
        &self,
        group: &PreContent,
        journal: &EventJournal,
        done: &OwnedFd,
        contents: &[u8],
    ) -> io::Result<bool> {
        let mut has_answered = false;
        loop {
            let mut fds =
                [group.as_fd(), done.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut fds, PATIENCE)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some(event) = group.read(journal, 0)? {
                self.blob.write_all_at(contents, 0)?;
                group.answer(event.file.as_raw_fd(), Verdict::Allow)?;
                journal.clear(0);
                has_answered = true;
            } else if fds[1].any().unwrap_or_default() {
                return Ok(has_answered);
            }
        }
    }

    /// In that directory, which goes with it.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub(super) fn make(directory: &Path) -> Result<Self> {
        clear(directory)?;
        let this = |blob| Self {
            directory: directory.to_owned(),
            metadata: directory.join("metadata"),
            blob,
        };
        files::make_directory(&directory.join("mounted"))?;
        let path = directory.join("blob");
        let mut options = File::options();
        let blob = options.read(true).write(true).create_new(true).open(&path);
        let this = this(blob.map_err(Error::io("make", path))?);
        let failed = |error: disk::Error| {
            let why = one_line(&error);
            Error::io("make a disk at", directory)(io::Error::new(kind_of(&error), why))
        };
        let layer = Layer::read(&tar()[..], &this.blob, &Limits::GENEROUS).map_err(failed)?;
        let mut tree = Tree::new();
        tree.apply(&layer, Digest([1; 32])).map_err(failed)?;
        let image = Image::of(&tree, Digest([1; 32]), Form::Devices).map_err(failed)?;
        let metadata = File::create(&this.metadata);
        let metadata = metadata.map_err(Error::io("make", &this.metadata))?;
        image.write(metadata).map_err(failed)?;
        Ok(this)
    }

    fn mounts(&self, how: (Carrier, Memory), blob: &File) -> Result<()> {
        let target = self.directory.join("mounted");
        let blob = blob
            .try_clone()
            .map_err(Error::io("open again", "a blob"))?;
        mount(how, (&self.metadata, &[blob]), &target, |_| Ok(()))?;
        let path = target.join("file");
        let read = fs::read(&path).map_err(Error::io("read", &path));
        unmount(&target)?;
        if read? == CONTENTS {
            return Ok(());
        }
        let why = "something else was read than was written";
        Err(Error::Precondition(why.to_owned()))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.directory) {
            let why = error.in_one_line();
            tracing::warn!(why, "what was tried is left");
        }
    }
}

/// Takes away what a trial, or one that was killed, has left.
fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        unmount(&directory.join("mounted"))?;
    }
    files::remove_directory(directory)
}

/// What kept it from being written, so that a full disk is known as one.
fn kind_of(error: &disk::Error) -> io::ErrorKind {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return error.kind();
        }
        source = cause.source();
    }
    io::ErrorKind::Other
}

/// Takes what is mounted there away.
pub(super) fn unmount(target: &Path) -> Result<()> {
    unmount_tree(target).map_err(|error| {
        let why = one_line(&error);
        Error::io("unmount", target)(io::Error::other(why))
    })
}

fn tar() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(CONTENTS.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    let written = archive.append_data(&mut header, "file", CONTENTS);
    written.expect("memory takes everything");
    archive.into_inner().expect("memory takes everything")
}
