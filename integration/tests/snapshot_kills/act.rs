//! Doing an operation: a request to the daemon, and what a container would do with its files.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use integration::conformance::Snapshots;
use proto::{
    snapshots::{Info, Kind},
    types::Mount,
};
use tonic::Status;

use crate::operation::{Answer, Files, Leave, Operation};

/// The file that fills a snapshot.
const FILLING: &str = "filling";

/// Puts this thread under limits as a container's processes are, which never have CAP_SYS_RESOURCE
/// behind overlayfs: ext4 lets pass who has it.
pub(crate) fn be_limited() -> io::Result<()> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let mut sets = sys::process::capget()?;
    sets.effective &= !CAP_SYS_RESOURCE;
    sys::process::capset(&sets)
}

/// Does it; what the daemon refuses is the error.
pub(crate) fn act(client: &Snapshots, operation: &Operation) -> Result<Answer, Status> {
    match operation.clone() {
        Operation::Create {
            kind,
            key,
            parent,
            labels,
        } => {
            let parent = parent.unwrap_or_default();
            let mounts = match kind {
                Kind::View => client.view(&key, &parent, labels),
                _ => client.prepare(&key, &parent, labels),
            };
            Ok(right(directories_are_there(&mounts?)))
        }
        Operation::Commit { key, name, labels } => {
            client.commit(&name, &key, labels)?;
            Ok(Answer::Nothing)
        }
        Operation::Remove { key } => {
            client.remove(&key)?;
            Ok(Answer::Nothing)
        }
        Operation::Update { key, labels, mask } => {
            let info = Info {
                name: key,
                labels,
                ..Info::default()
            };
            let mask: Vec<&str> = mask.iter().map(String::as_str).collect();
            client.update(info, &mask).map(Answer::Info)
        }
        Operation::Stat { key } => client.stat(&key).map(Answer::Info),
        Operation::List { filter } => {
            let filters = [filter].map(|filter| (!filter.is_empty()).then_some(filter));
            let filters: Vec<String> = filters.into_iter().flatten().collect();
            client.list(&filters).map(Answer::Infos)
        }
        Operation::Usage { key } => {
            let usage = client.usage(&key)?;
            Ok(Answer::Usage((usage.size, usage.inodes)))
        }
        Operation::Mounts { key, layers } => {
            let mounts = client.mounts(&key)?;
            let checked = directories_are_there(&mounts);
            Ok(right(
                checked.and_then(|()| files_are_there(&mounts, &layers)),
            ))
        }
        Operation::Cleanup => {
            client.cleanup()?;
            Ok(Answer::Nothing)
        }
        Operation::Write { key, file, bytes } => {
            let upper = upper(&client.mounts(&key)?);
            Ok(written(write(&upper.join(&file), &text(&file, bytes))))
        }
        Operation::Fill { key, bytes, leave } => {
            let upper = upper(&client.mounts(&key)?);
            Ok(written(fill(&upper.join(FILLING), bytes, leave)))
        }
    }
}

fn right(checked: Result<()>) -> Answer {
    match checked {
        Ok(()) => Answer::Nothing,
        Err(error) => Answer::Wrong(format!("{error:#}")),
    }
}

fn written(wrote: io::Result<bool>) -> Answer {
    match wrote {
        Ok(is_whole) => Answer::Written(is_whole),
        Err(error) => Answer::Wrong(error.to_string()),
    }
}

/// What a file holds.
fn text(name: &str, bytes: u64) -> Vec<u8> {
    let length = usize::try_from(bytes).expect("files are small");
    name.bytes().cycle().take(length).collect()
}

/// False, and nothing is left of it, when there is no room for it.
fn write(path: &Path, text: &[u8]) -> io::Result<bool> {
    match fs::write(path, text) {
        Err(error) if is_full(&error) => {
            absent_is_fine(fs::remove_file(path))?;
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

fn is_full(error: &io::Error) -> bool {
    [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&error.kind())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// True when that much could be written.
fn fill(path: &Path, bytes: u64, leave: Leave) -> io::Result<bool> {
    let part = vec![7; 1 << 18];
    let count = bytes / part.len() as u64;
    let wrote = File::create(path).and_then(|mut file| {
        (0..count).try_for_each(|_| file.write_all(&part))?;
        // ext4 and xfs find a place for it only now.
        file.sync_all()
    });
    if leave == Leave::Nothing {
        // What a container has made it can delete, however full it is.
        absent_is_fine(fs::remove_file(path))?;
    }
    match wrote {
        Err(error) if is_full(&error) => Ok(false),
        other => other.map(|()| true),
    }
}

/// The directories of a mount: the writable one, and those below, nearest first.
fn directories(mounts: &[Mount]) -> (Option<PathBuf>, Vec<PathBuf>) {
    let Some(mount) = mounts.first() else {
        return (None, Vec::new());
    };
    if mount.r#type == "bind" {
        let source = PathBuf::from(&mount.source);
        return match mount.options.iter().any(|option| option == "rw") {
            true => (Some(source), Vec::new()),
            false => (None, vec![source]),
        };
    }
    let option = |name: &str| {
        let mut options = mount.options.iter();
        options.find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    };
    let lower = option("lowerdir").unwrap_or_default();
    let lower = lower.split(':').map(PathBuf::from).collect();
    (option("upperdir").map(PathBuf::from), lower)
}

fn upper(mounts: &[Mount]) -> PathBuf {
    directories(mounts).0.unwrap_or_default()
}

fn directories_are_there(mounts: &[Mount]) -> Result<()> {
    let (upper, lower) = directories(mounts);
    let work = upper.as_ref().map(|upper| upper.with_file_name("work"));
    for directory in upper.iter().chain(&work).chain(&lower) {
        ensure!(directory.is_dir(), "{directory:?} of {mounts:?} is missing");
    }
    ensure!(mounts.len() == 1, "one mount is enough: {mounts:?}");
    Ok(())
}

/// `layers` begins with the snapshot's own.
fn files_are_there(mounts: &[Mount], layers: &[Files]) -> Result<()> {
    let (upper, lower) = directories(mounts);
    // A view has nothing of its own; one without a parent shows its own empty directory.
    let own = usize::from(upper.is_none());
    let directories = upper.iter().chain(&lower);
    for (directory, files) in directories.zip(layers.iter().skip(own)) {
        for (name, bytes) in files {
            let path = directory.join(name);
            let found = fs::read(&path).map_err(|error| anyhow::anyhow!("{path:?}: {error}"))?;
            ensure!(found == text(name, *bytes), "{path:?} holds something else");
        }
    }
    Ok(())
}
