//! A daemon that is started again on a disk that takes nothing more: what fills it can be removed.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
};

use nix::mount::{MsFlags, mount};
use sys::Signal;
use tonic::Code;

use crate::{
    disk::Disk,
    process::{Daemon, command},
};

const SIZE: &str = "containerd.io/snapshot/max-size";
const UNTRIED: &str = "the back end is used without a trial";

/// Writes until not even one block has room.
fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    for length in [1 << 20, 4096] {
        let block = vec![1; length];
        loop {
            match file.write_all(&block).and_then(|()| file.sync_data()) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
        }
    }
}

fn kill_and_start_again(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    daemon.start_again();
}

fn code_of_prepare(daemon: &Daemon, labels: &[(&str, &str)]) -> Code {
    let answer = daemon.try_prepare("default/9/next", labels);
    answer.map_or_else(|status| status.code(), |()| Code::Ok)
}

/// Two containers fill the disk, the second to the last block; `writable` is where they write.
fn it_starts_again(disk: &Disk, config: &str, writable: &str, labels: &[(&str, &str)]) {
    let mut daemon = Daemon::start_at(disk.path().join("root"), config);
    for number in [1, 2] {
        daemon.prepare(&format!("default/{number}/web"), labels);
    }
    let contents = |id: u64| {
        daemon
            .root()
            .join(format!("snapshots/{id}/{writable}/file"))
    };
    fs::write(contents(1), vec![1; 8 << 20]).unwrap();
    fill(&contents(2));
    for _twice in 0..2 {
        kill_and_start_again(&mut daemon);
        assert!(daemon.log().contains(UNTRIED), "{}", daemon.log());
        let table = daemon.run(&["ls"]);
        assert_eq!(table.stdout.lines().count(), 3, "{table:?}");
        assert_eq!(code_of_prepare(&daemon, labels), Code::ResourceExhausted);
        daemon.label("default/2/web", SIZE);
    }
    daemon.remove("default/2/web").unwrap();
    daemon.clean_up();
    assert_eq!(code_of_prepare(&daemon, labels), Code::Ok);
    daemon.stop();
}

#[test]
fn without_limits_it_starts_again_on_a_full_disk() {
    let disk = Disk::new("ext4", &["-q"], 64, "");
    it_starts_again(&disk, "[backend]\nkind = 'none'\n", "fs", &[]);
}

#[test]
fn on_btrfs_it_starts_again_on_a_full_disk() {
    let disk = Disk::new("btrfs", &["-q"], 400, "");
    it_starts_again(&disk, "", "rw/fs", &[(SIZE, "1g")]);
}

#[test]
fn with_images_it_starts_again_when_the_reserve_is_used_up() {
    let disk = Disk::new("ext4", &["-q"], 160, "");
    let config = "[backend]\nkind = 'image'\nimage_reserve = '96m'\n";
    let mut daemon = Daemon::start_at(disk.path().join("root"), config);
    let labels = [(SIZE, "8m")];
    daemon.prepare("default/1/web", &labels);
    fs::write(disk.path().join("others"), vec![1; 64 << 20]).unwrap();
    kill_and_start_again(&mut daemon);
    assert!(daemon.log().contains(UNTRIED), "{}", daemon.log());
    assert_eq!(code_of_prepare(&daemon, &labels), Code::ResourceExhausted);
    daemon.remove("default/1/web").unwrap();
    fs::remove_file(disk.path().join("others")).unwrap();
    assert_eq!(code_of_prepare(&daemon, &labels), Code::Ok);
    daemon.remove("default/9/next").unwrap();
    daemon.clean_up();
    daemon.stop();
}

#[test]
fn a_read_only_root_is_served() {
    for (kind, config) in [("ext4", "[backend]\nkind = 'none'\n"), ("btrfs", "")] {
        let disk = Disk::new(kind, &["-q"], 400, "");
        let mut daemon = Daemon::start_at(disk.path().join("root"), config);
        daemon.prepare("default/1/web", &[]);
        daemon.stop();
        let (none, flags): (Option<&str>, _) = (None, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        mount(none, disk.path(), none, flags, none).unwrap();
        daemon.start_again();
        let table = daemon.run(&["ls"]);
        assert_eq!(table.stdout.lines().count(), 2, "{table:?}");
        assert_eq!(code_of_prepare(&daemon, &[]), Code::FailedPrecondition);
        let refused = daemon.remove("default/1/web").unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        daemon.stop();
    }
}

#[test]
fn a_new_root_on_a_full_disk_is_refused() {
    let disk = Disk::new("ext4", &["-q"], 64, "");
    fs::create_dir(disk.path().join("root")).unwrap();
    fill(&disk.path().join("others"));
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let (root, address) = (disk.path().join("root"), directory.path().join("d.sock"));
    let text = format!("root = {root:?}\naddress = {address:?}\n[backend]\nkind = 'tmpfs'\n");
    fs::write(&config, text).unwrap();
    let refused = command(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("No space left"), "{refused:?}");
}
