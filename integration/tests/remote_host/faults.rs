//! Stores that lie, are another's or are away: nothing is read that was not verified, what is cached goes on,
//! and what goes wrong is told.

use std::{fs, net::TcpListener, os::unix::fs::MetadataExt, path::Path, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    conformance::{Labels, mount_all},
    process::command,
    store::Store,
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::minor,
};

use super::{
    host::{BackEnd, Host, TARGET, program},
    lazy::{is_input_output_error, metric, only_read},
    truth::read_anew,
};

/// All is fetched before it is mounted; lazy.rs has what is fetched while it is read.
pub(crate) const COPY: &str = "[attach]\nkind = \"copy\"\n";

/// Changes a byte of each chunk; what they were comes back.
pub(crate) fn damage(store: &Store) -> Result<Vec<(std::path::PathBuf, Vec<u8>)>> {
    let mut whole = Vec::new();
    for path in store.objects("chunks")? {
        let bytes = fs::read(&path)?;
        let mut changed = bytes.clone();
        // Where zstd has contents.
        let at = bytes.len() * 2 / 3;
        changed[at] ^= 0x10;
        fs::write(&path, changed)?;
        whole.push((path, bytes));
    }
    Ok(whole)
}

#[test]
fn a_flipped_byte_is_refused_and_told_and_what_is_whole_again_is_read() {
    let host = Host::start(COPY).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let whole = damage(&host.store).unwrap();
    let refused = host.mount("c", &layer).unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
    let log = host.log().unwrap();
    assert!(log.contains("a store's object is refused"), "{log}");
    for (path, bytes) in whole {
        fs::write(path, bytes).unwrap();
    }
    let mounted = host.mount("c", &layer).unwrap();
    assert_eq!(&program(&mounted).unwrap()[..4], b"\x7fELF");
    mounted.unmount().unwrap();
    host.remove(&["c", &layer]).unwrap();
    host.finish().unwrap();
}

#[test]
fn a_disk_that_a_stranger_signed_is_unpacked() {
    let host = Host::start("").unwrap();
    let stranger = Store::with_images(&[integration::images::Image::Busybox]).unwrap();
    for (ours, theirs) in host
        .store
        .objects("disks")
        .unwrap()
        .iter()
        .zip(stranger.objects("disks").unwrap())
    {
        fs::copy(theirs, ours).unwrap();
    }
    assert_eq!(host.pull("extract").unwrap(), None);
    let log = host.log().unwrap();
    assert!(log.contains("not trusted here"), "{log}");
    host.remove(&["extract"]).unwrap();
    host.finish().unwrap();
}

#[test]
fn a_store_that_is_away_holds_up_nothing_that_is_cached() {
    let mut host = Host::start(&format!("deadline_seconds = 1\n{COPY}")).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    host.stop_store().unwrap();
    // The manifest is here, the rest is not.
    let refused = host.mount("a", &layer).unwrap_err().to_string();
    assert!(refused.contains("did not give"), "{refused}");
    host.start_store().unwrap();
    let mounted = host.mount("a", &layer).unwrap();
    let expected = program(&mounted).unwrap();
    host.stop_store().unwrap();
    // Under a container that runs, and for a new one.
    host.snapshotter.kill_and_restart().unwrap();
    assert!(program(&mounted).unwrap() == expected);
    let second = host.mount("b", &layer).unwrap();
    assert!(program(&second).unwrap() == expected);
    for mounted in [mounted, second] {
        mounted.unmount().unwrap();
    }
    // As after a start of the machine.
    host.take_mounts_away().unwrap();
    let mounts = host.client().unwrap().mounts("a").unwrap();
    let again = mount_all(&mounts, &host.snapshotter.work().join("a")).unwrap();
    assert!(program(&again).unwrap() == expected);
    again.unmount().unwrap();
    assert_eq!(host.pull("again").unwrap().unwrap(), layer);
    host.remove(&["a", "b"]).unwrap();
    host.finish_layer(&layer).unwrap();
    host.finish().unwrap();
}

/// A store that takes connections and never says anything is one that is away, when its time is over.
fn check_silence(by: BackEnd) -> Result<()> {
    let metrics = tempfile::tempdir()?;
    let metrics = metrics.path().join("metrics");
    let limits = "deadline_seconds = 1\nobject_seconds = 1\n";
    let mut host = Host::start(&format!("{limits}{}", only_read(by, &metrics)))?;
    let layer = host.pull("extract")?.context("it is no disk")?;
    let mounted = host.mount("a", &layer)?;
    host.stop_store()?;
    // Its connections are taken by the kernel.
    let silent = TcpListener::bind(&host.address)?;
    let program = mounted.point().join("bin/busybox");
    let read = || read_anew(&program, 0, 4 << 20);
    is_input_output_error(read())?;
    ensure!(host.log()?.contains("no answer within 1 seconds"));
    let unknown = format!("sha256:{}", "ab".repeat(32));
    let labels = Labels::from([(TARGET.to_owned(), unknown)]);
    let client = host.client()?;
    client.prepare("unknown", "", labels)?;
    ensure!(metric(&metrics, "layers_total{outcome=\"unreachable\"}")? == 1);
    drop(silent);
    host.start_store()?;
    until("the store is asked again", SOON, Sources::none(), || {
        Ok(read().ok().filter(|bytes| bytes.starts_with(b"\x7fELF")))
    })?;
    mounted.unmount()?;
    host.remove(&["unknown", "a", &layer])?;
    host.finish().map(drop)
}

#[test]
fn a_store_that_says_nothing_is_given_up_when_its_time_is_over() {
    for by in [BackEnd::Lazy, BackEnd::Fuse] {
        if by.is_there() {
            check_silence(by).unwrap();
        }
    }
}

/// Processes that unmount disks below a root and have not ended.
fn unmounting(root: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has none.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("unmount-served") && line.contains(&*root.to_string_lossy()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Who read it is gone, a read for it is not: the last of the disk waits for that one, and the daemon does not.
fn check_removed_while_read() -> Result<()> {
    let metrics = tempfile::tempdir()?;
    let metrics = metrics.path().join("metrics");
    let limits = "deadline_seconds = 600\nobject_seconds = 600\n";
    let mut host = Host::start(&format!("{limits}{}", only_read(BackEnd::Fuse, &metrics)))?;
    let layer = host.pull("extract")?.context("it is no disk")?;
    let mounted = host.mount("a", &layer)?;
    host.stop_store()?;
    // Its connections are taken by the kernel, and nothing is said.
    let silent = TcpListener::bind(&host.address)?;
    let mut read = command("cat");
    let read = read.arg(mounted.point().join("bin/busybox"));
    let mut reader = read.stdout(Stdio::null()).spawn()?;
    let waits = || metric(&metrics, "fault_waits_total");
    until("a read waits", SOON, Sources::none(), || {
        Ok((waits()? > 0).then_some(()))
    })?;
    reader.kill()?;
    reader.wait()?;
    mounted.unmount()?;
    host.remove(&["a", &layer])?;
    let root = host.snapshotter.root();
    ensure!(unmounting(&root)?.len() == 1, "nothing waits for the read");
    host.snapshotter.kill9()?;
    drop(silent);
    host.start_store()?;
    host.snapshotter.start_again()?;
    for pid in unmounting(&root)? {
        for_end_of(pid, SOON)?;
    }
    let layer = host.pull("again")?.context("it is no disk")?;
    let mounted = host.mount("b", &layer)?;
    ensure!(program(&mounted)?.starts_with(b"\x7fELF"));
    mounted.unmount()?;
    host.remove(&["b", &layer])?;
    host.finish().map(drop)
}

#[test]
fn a_disk_is_removed_while_a_read_of_it_hangs_and_the_daemon_can_be_killed_then() {
    if BackEnd::Fuse.is_there() {
        check_removed_while_read().unwrap();
    }
}

/// The kernel's number of the connection by which a daemon has the only blob open.
fn connection(host: &Host) -> Result<u64> {
    let blobs = host.cached("blobs")?;
    let name = blobs[0].file_name().context("it has a name")?;
    for entry in fs::read_dir(format!("/proc/{}/fd", host.snapshotter.pid()?))? {
        let path = entry?.path();
        // One that was closed meanwhile is not it; a file of a mount that is nowhere has its name for a path.
        let leads = fs::read_link(&path).unwrap_or_default();
        if leads.parent() == Some(Path::new("/")) && leads.file_name() == Some(name) {
            return Ok(minor(fs::metadata(&path)?.dev()));
        }
    }
    bail!("the daemon has no blob open by FUSE")
}

/// A connection that was aborted: the daemon ends, and the next one takes nothing of it over.
fn check_aborted(control: &Path) -> Result<()> {
    let host = Host::start("[attach]\nkind = \"fuse\"\n")?;
    let layer = host.pull("extract")?.context("it is no disk")?;
    let mounted = host.mount("a", &layer)?;
    ensure!(program(&mounted)?.starts_with(b"\x7fELF"));
    let daemon = host.snapshotter.pid()?;
    fs::write(control.join(format!("{}/abort", connection(&host)?)), "1")?;
    for_end_of(daemon, SOON)?;
    host.snapshotter.restart()?;
    ensure!(host.log()?.contains("was aborted"));
    let read = read_anew(&mounted.point().join("bin/busybox"), 0, 4 << 20);
    is_input_output_error(read)?;
    mounted.unmount()?;
    let mounted = host.mount("b", &layer)?;
    ensure!(program(&mounted)?.starts_with(b"\x7fELF"));
    mounted.unmount()?;
    host.remove(&["a", "b", &layer])?;
    host.finish().map(drop)
}

#[test]
fn a_connection_that_was_aborted_is_not_taken_over() {
    if !BackEnd::Fuse.is_there() {
        return;
    }
    let control = tempfile::tempdir().unwrap();
    let (kind, none) = (Some("fusectl"), None::<&str>);
    mount(kind, control.path(), kind, MsFlags::empty(), none).unwrap();
    let checked = check_aborted(control.path());
    umount2(control.path(), MntFlags::empty()).unwrap();
    checked.unwrap();
}

impl Host {
    /// Removes the last one that stands on a disk: nothing of it stays in the cache.
    fn finish_layer(&self, layer: &str) -> Result<()> {
        ensure!(self.cached("disks")?.len() == 1 && self.cached("blobs")?.len() == 1);
        self.remove(&[layer])?;
        ensure!(self.cached("disks")?.is_empty() && self.cached("blobs")?.is_empty());
        Ok(())
    }
}
