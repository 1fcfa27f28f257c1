//! Disks that are fetched while they are read: little for the first work, nothing for the second container, nothing wrong when
//! stores lie or are away, nobody in the way when all is here.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    conformance::Mounted,
    images::Image,
    process::{command, output_of},
    runtime::built,
    store::Store,
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    faults::damage,
    host::{BackEnd, Host, program},
    kills::{self, while_read},
    truth::{Truth, read_anew},
};

/// A part of the disk that the first work of a container may fetch.
const FIRST_WORK_PERCENT: u64 = 7;

/// What is added to `[store]`: only what is read is fetched.
pub(super) fn only_read(by: BackEnd, metrics: &Path) -> String {
    format!(
        "[attach]\nkind = \"{}\"\ncomplete_mebibytes = 0\nread_ahead_chunks = 0\n\
         [prefetch]\nrecord_seconds = 0\nmebibytes = 0\n[metrics]\naddress = \"unix:{}\"\n",
        by.name(),
        metrics.display()
    )
}

/// One of the daemon's numbers.
pub(super) fn metric(at: &Path, name: &str) -> Result<u64> {
    let mut stream = UnixStream::connect(at)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let name = format!("snapshotter_remote_{name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line
        .with_context(|| format!("no {name} in {text}"))?
        .parse()?)
}

/// A shell of the image that starts, reads and says something.
pub(super) fn first_work(mounted: &Mounted) -> Result<()> {
    let mut work = command("chroot");
    work.arg(mounted.point());
    work.args([
        "/bin/sh",
        "-c",
        "read -r line </etc/os-release && echo \"$line\"",
    ]);
    let said = output_of(&mut work, SOON)?;
    ensure!(said.contains("Debian"), "{said}");
    Ok(())
}

/// What an operator is told of a host.
pub(super) fn told(host: &Host, word: &str) -> Result<String> {
    let mut status = command(built("snapshotter-remote")?);
    status.arg(word).arg("--root").arg(host.snapshotter.root());
    status.arg("--address").arg(host.snapshotter.address());
    status.arg("--config").arg(host.snapshotter.config_file());
    output_of(&mut status, SOON)
}

fn check_first_work(host: &Host, metrics: &Path, layer: &str) -> Result<()> {
    let first = host.mount("first", layer)?;
    let metadata = metric(metrics, "fetched_bytes_total")?;
    first_work(&first)?;
    let fetched = metric(metrics, "fetched_bytes_total")?;
    let packed = host.store.objects("chunks")?;
    let packed = packed.iter().map(|path| Ok(fs::metadata(path)?.len()));
    let packed: u64 = packed.sum::<Result<u64>>()?;
    let percent = (fetched - metadata) * 100 / packed;
    println!(
        "first work: {} KiB fetched after {} KiB for metadata, {percent} % of {} KiB",
        (fetched - metadata) >> 10,
        metadata >> 10,
        packed >> 10
    );
    ensure!((1..=FIRST_WORK_PERCENT).contains(&percent), "{percent} %");
    ensure!(metric(metrics, "fault_waits_total")? > 0);
    let status = told(host, "status")?;
    let lazily = "mounted, the rest is fetched when it is read\ncache  ";
    ensure!(status.contains(lazily), "{status}");
    let second = host.mount("second", layer)?;
    first_work(&second)?;
    ensure!(
        metric(metrics, "fetched_bytes_total")? == fetched,
        "the second fetched something"
    );
    first.unmount()?;
    second.unmount()
}

/// What was read before is read without the store and by another daemon, which starts at once. Who waited for the daemon before
/// that waits for the store, and holds up nobody.
fn check_without_store(host: &mut Host, truth: &Truth, metrics: &Path, layer: &str) -> Result<()> {
    let third = host.mount("third", layer)?;
    let large = truth.largest("usr/lib/x86_64-linux-gnu")?;
    let before = metric(metrics, "fault_waits_total")?;
    host.stop_store()?;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| truth.check(third.point(), &large, 0, 64 << 20));
        until(
            "somebody waits for the store",
            SOON,
            Sources::none(),
            || Ok((metric(metrics, "fault_waits_total")? > before).then_some(())),
        )?;
        host.snapshotter.kill9()?;
        let begun = Instant::now();
        host.snapshotter.start_again()?;
        println!("start without a store: {:?}", begun.elapsed());
        truth.check(third.point(), Path::new("usr/bin/dash"), 0, 1 << 20)?;
        first_work(&third)?;
        ensure!(!waiting.is_finished(), "it was read without the store");
        ensure!(host.log()?.contains("who waited for the daemon before"));
        host.start_store()?;
        waiting.join().expect("it does not panic")
    })?;
    third.unmount()
}

/// What another back end has mounted is answered for by the one that is pinned later.
fn check_other_back_end(host: &mut Host, truth: &Truth, layer: &str) -> Result<()> {
    let mounted = host.mount("fourth", layer)?;
    host.snapshotter.stop()?;
    let config = host.store.config(&host.address) + "[attach]\nkind = \"copy\"\n";
    host.snapshotter.start_again_with(&config)?;
    let files = truth.files("etc")?;
    for file in files.iter().step_by(5) {
        truth.check(mounted.point(), file, 0, 1 << 20)?;
    }
    mounted.unmount()
}

/// What nobody has read comes by itself; then the store is needed no more, nor the daemon where nobody is given bytes by it.
fn check_completed(
    host: &mut Host,
    truth: &Truth,
    (by, metrics): (BackEnd, &Path),
    layer: &str,
) -> Result<()> {
    let config = host.store.config(&host.address) + &only_read(by, metrics);
    let config = config.replace("complete_mebibytes = 0", "complete_after_seconds = 0");
    host.snapshotter.stop()?;
    host.snapshotter.start_again_with(&config)?;
    let mounted = host.mount("fifth", layer)?;
    until("all is fetched", SOON * 4, Sources::none(), || {
        Ok(told(host, "status")?
            .contains("(100 %), mounted\n")
            .then_some(()))
    })?;
    until("nothing is watched", SOON, Sources::none(), || {
        Ok((metric(metrics, "blobs_watched")? == 0).then_some(()))
    })?;
    host.stop_store()?;
    if by == BackEnd::Lazy {
        host.snapshotter.kill9()?;
    }
    for file in truth.files("usr/bin")?.iter().step_by(7) {
        truth.check(mounted.point(), file, 0, 1 << 20)?;
    }
    host.start_store()?;
    if by == BackEnd::Lazy {
        host.snapshotter.start_again()?;
    }
    mounted.unmount()
}

fn check_fetched(by: BackEnd) {
    if !by.is_there() {
        return;
    }
    let metrics = tempfile::tempdir().unwrap();
    let metrics = metrics.path().join("metrics");
    let store = Store::with_images(&[Image::Debian]).unwrap();
    let truth = Truth::of(&store).unwrap();
    let mut host = Host::of(store, &only_read(by, &metrics)).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    check_first_work(&host, &metrics, &layer).unwrap();
    check_without_store(&mut host, &truth, &metrics, &layer).unwrap();
    check_other_back_end(&mut host, &truth, &layer).unwrap();
    check_completed(&mut host, &truth, (by, &metrics), &layer).unwrap();
    truth.end().unwrap();
    host.remove(&["first", "second", "third", "fourth", "fifth", &layer])
        .unwrap();
    host.finish().unwrap();
}

#[test]
fn what_is_read_is_fetched_once_and_the_rest_by_and_by() {
    check_fetched(BackEnd::Lazy);
}

#[test]
fn what_is_asked_for_by_fuse_is_fetched_once_and_the_rest_by_and_by() {
    check_fetched(BackEnd::Fuse);
}

pub(super) fn is_input_output_error(read: Result<Vec<u8>>) -> Result<()> {
    let error = read.err().context("it was read")?;
    let io = error.downcast_ref::<std::io::Error>();
    let is = io.is_some_and(|error| error.raw_os_error() == Some(nix::libc::EIO));
    ensure!(is, "{error:#}");
    Ok(())
}

/// The image's one large file, read by the kernel anew.
fn busybox(mounted: &Mounted) -> Result<Vec<u8>> {
    read_anew(&mounted.point().join("bin/busybox"), 0, 4 << 20)
}

/// The store goes: an error when the deadline is over.
fn check_absence(host: &mut Host, mounted: &Mounted) -> Result<()> {
    host.stop_store()?;
    let begun = Instant::now();
    is_input_output_error(busybox(mounted))?;
    let took = begun.elapsed();
    println!("EIO {took:?} after the store has gone, with a deadline of a second");
    // It is late where the machine is busy.
    let least = Duration::from_millis(500);
    ensure!((least..SOON).contains(&took), "{took:?}");
    host.start_store()
}

fn check_damage(host: &Host, metrics: &Path, mounted: &Mounted) -> Result<()> {
    let whole = damage(&host.store)?;
    until("a chunk is refused", SOON, Sources::none(), || {
        is_input_output_error(busybox(mounted))?;
        Ok((metric(metrics, "objects_refused_total")? >= 2).then_some(()))
    })?;
    ensure!(host.log()?.contains("a store's object is refused"));
    ensure!(metric(metrics, "faults_failed_total")? >= 1);
    for (path, bytes) in whole {
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// The pid of this host's holder, which has the environment of its daemon.
fn holder(host: &Host) -> Result<i32> {
    let work = host.snapshotter.work().display().to_string();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_holder =
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "fd-holder\n");
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        if is_holder && String::from_utf8_lossy(&environment).contains(&work) {
            let pid = path.file_name().and_then(|name| name.to_str());
            return Ok(pid.context("a number")?.parse()?);
        }
    }
    anyhow::bail!("nobody holds what the daemon of {work} needs")
}

/// Both are killed.
fn kill_both(host: &Host) -> Result<()> {
    let holder = holder(host)?;
    host.snapshotter.kill9()?;
    kill(Pid::from_raw(holder), Signal::SIGKILL)?;
    for_end_of(holder, SOON)
}

/// What the log says of a disk for which nobody was there.
fn said_of(by: BackEnd) -> &'static str {
    match by {
        BackEnd::Lazy => "may have read zeros",
        BackEnd::Fuse => "are told of errors",
    }
}

/// What was mounted then is said, and what is mounted after that is watched, or served.
fn check_both(host: &Host, by: BackEnd, mounted: &Mounted) -> Result<()> {
    kill_both(host)?;
    if by == BackEnd::Fuse {
        is_input_output_error(busybox(mounted))?;
    }
    host.snapshotter.start_again()?;
    ensure!(host.log()?.contains(said_of(by)));
    Ok(())
}

/// Also of a disk that cannot be verified any more.
fn check_both_and_the_manifest(host: &Host, by: BackEnd) -> Result<()> {
    kill_both(host)?;
    for disk in host.cached("disks")? {
        fs::write(disk.join("manifest"), "damaged")?;
    }
    host.snapshotter.start_again()?;
    let told = host.log()?.matches(said_of(by)).count();
    ensure!(told == 2, "told {told} times");
    Ok(())
}

/// A second daemon on the root is refused before it takes readers away from the first.
fn check_second(host: &Host) -> Result<()> {
    let mut second = command(built("snapshotter-remote")?);
    second
        .arg("serve")
        .arg("--root")
        .arg(host.snapshotter.root());
    let config = host.snapshotter.work().join("second.toml");
    fs::write(&config, host.store.config(&host.address))?;
    second.arg("--config").arg(config);
    let address = host.snapshotter.work().join("second.sock");
    second.arg("--address").arg(address);
    let refused = output_of(&mut second, SOON).err();
    let refused = format!("{:#}", refused.context("two daemons have one root")?);
    let first = format!("is in use by process {}", host.snapshotter.pid()?);
    ensure!(refused.contains(&first), "{refused}");
    ensure!(!refused.contains("disks are mounted"), "{refused}");
    Ok(())
}

/// The holder is killed, then the daemon: readers wait all the same, and read what is right.
fn check_holder(host: &Host, truth: &Truth, mounted: &Mounted) -> Result<()> {
    let first = holder(host)?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    until("another holder", SOON, Sources::none(), || {
        Ok(host.log()?.contains("was started again").then_some(()))
    })?;
    ensure!(holder(host)? != first);
    host.snapshotter.kill9()?;
    std::thread::scope(|scope| {
        let file = Path::new("bin/busybox");
        let reader = scope.spawn(|| truth.check(mounted.point(), file, 0, 4 << 20));
        host.snapshotter.start_again()?;
        reader.join().expect("it does not panic")
    })
}

/// A snapshot is removed from under its container: an error, of this daemon and of the next, until nobody has the blob open.
fn check_removed(host: &Host) -> Result<()> {
    let layer = host.pull("again")?.context("no disk was found")?;
    let mounted = host.mount("c", &layer)?;
    host.remove(&["c", &layer])?;
    ensure!(host.cached("blobs")?.is_empty());
    is_input_output_error(busybox(&mounted))?;
    host.snapshotter.restart()?;
    is_input_output_error(busybox(&mounted))?;
    mounted.unmount()
}

/// Which back end the daemon has, as its log says.
fn mounted_by(host: &Host) -> Result<String> {
    let log = host.log()?;
    let line = log.lines().find(|line| line.contains("disks are mounted"));
    let line = line.context("it does not say by what")?;
    let by = line.split("back_end=").nth(1).context("no back end")?;
    Ok(format!("back end {}", by.replace(" by=", ", by ")))
}

fn check_refused(by: BackEnd) {
    if !by.is_there() {
        return;
    }
    let metrics = tempfile::tempdir().unwrap();
    let metrics = metrics.path().join("metrics");
    let config = format!("deadline_seconds = 1\n{}", only_read(by, &metrics));
    let mut host = Host::start(&config).unwrap();
    println!("{}", mounted_by(&host).unwrap());
    let truth = Truth::of(&host.store).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let mounted = host.mount("a", &layer).unwrap();
    check_absence(&mut host, &mounted).unwrap();
    check_both(&host, by, &mounted).unwrap();
    mounted.unmount().unwrap();
    let mounted = host.mount("between", &layer).unwrap();
    check_both_and_the_manifest(&host, by).unwrap();
    mounted.unmount().unwrap();
    let mounted = host.mount("b", &layer).unwrap();
    check_second(&host).unwrap();
    check_damage(&host, &metrics, &mounted).unwrap();
    check_holder(&host, &truth, &mounted).unwrap();
    truth.end().unwrap();
    mounted.unmount().unwrap();
    host.remove(&["a", "between", "b", &layer]).unwrap();
    check_removed(&host).unwrap();
    host.finish().unwrap();
}

#[test]
fn who_reads_what_cannot_be_had_is_told_and_never_reads_zeros() {
    check_refused(BackEnd::Lazy);
}

#[test]
fn who_asks_by_fuse_for_what_cannot_be_had_is_told_and_never_reads_zeros() {
    check_refused(BackEnd::Fuse);
}

/// A file system in memory.
struct Memory(tempfile::TempDir);

impl Memory {
    fn new() -> Result<Self> {
        let this = Self(tempfile::tempdir()?);
        mount_memory(this.0.path())?;
        Ok(this)
    }
}

fn mount_memory(at: &Path) -> Result<()> {
    let (kind, none) = (Some("tmpfs"), None::<&str>);
    Ok(mount(kind, at, kind, MsFlags::empty(), none)?)
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A test that has failed left something on it.
        let _is_gone = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// It is read, before and after each time that one daemon goes and the next comes.
fn check_through_kills(host: &Host, mounted: &Mounted) -> Result<()> {
    let truth = Truth::of(&host.store)?;
    while_read(&truth, mounted, ("", 1), |reads| {
        kills::kill(host, 3, reads)
    })?;
    ensure!(program(mounted)?.starts_with(b"\x7fELF"));
    truth.end()
}

/// EROFS reads no files in memory, so blobs come by FUSE and loop devices.
#[test]
fn a_cache_in_memory_is_read_by_loop_devices_and_is_told_why() {
    if !BackEnd::Fuse.is_there() {
        return;
    }
    let memory = Memory::new().unwrap();
    let root = memory.0.path();
    let store = Store::with_images(&[Image::Busybox]).unwrap();
    let host = Host::at(store, "", Some(root.to_owned())).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let mounted = host.mount("c", &layer).unwrap();
    let log = host.log().unwrap();
    assert!(
        log.contains("back_end=fuse by=EROFS from loop devices"),
        "{log}"
    );
    // Where udev looks at loop devices, some is here already.
    assert!(!told(&host, "status").unwrap().contains("(100 %)"));
    check_through_kills(&host, &mounted).unwrap();
    // As if a doctor had been killed.
    let left = root.join("doctor/probe/mounted");
    fs::create_dir_all(&left).unwrap();
    mount_memory(&left).unwrap();
    let doctor = told(&host, "doctor").unwrap();
    assert!(!left.exists(), "it is left");
    assert!(
        doctor.contains("back end lazy does not work: EROFS from files"),
        "{doctor}"
    );
    mounted.unmount().unwrap();
    host.remove(&["c", &layer]).unwrap();
    let store = host.finish().unwrap();
    let pinned = "[attach]\nkind = \"lazy\"\n";
    let refused = Host::at(store, pinned, Some(root.to_owned()))
        .err()
        .unwrap();
    let refused = format!("{refused:#}");
    assert!(refused.contains("no back end works here"), "{refused}");
    umount2(root, MntFlags::empty()).unwrap();
}
