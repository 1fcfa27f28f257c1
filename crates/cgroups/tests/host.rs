//! The crate against the cgroups of this host, as root, each test under a name of its own that is
//! gone at its end.

#![expect(
    clippy::unwrap_used,
    reason = "a failure in what the tests share is a failure of the test"
)]

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cgroups::resources::{Access, DeviceKind, DeviceRule, Verdict};
use cgroups::{
    Cgroup, CgroupPaths, Controller, Error, Hierarchies, Kind, Layout, OomNews, OomWatch,
    Resources, Stats,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::{Child, ExitStatus, Signal, Spawn};

const LONG: Duration = Duration::from_secs(20);
const KILLED: ExitStatus = ExitStatus::Signaled(Signal::SIGKILL as i32);

/// A cgroup that its drop kills and removes.
struct Own(Cgroup);

impl Drop for Own {
    fn drop(&mut self) {
        // Mostly done by the test itself; where not, the test has failed already.
        let _killed = self.0.kill_all(Signal::SIGKILL as i32);
        let _deleted = self.0.delete();
    }
}

fn host() -> Hierarchies {
    Hierarchies::at_host().unwrap()
}

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("/cgroups-test-{}-{next}/own", std::process::id())
}

/// Which hierarchies a test takes.
#[derive(Debug, Clone, Copy)]
enum Take {
    All,
    /// As if there were no version 2.
    Legacy,
    /// As if there were nothing else.
    Unified,
}

fn create(hierarchies: &Hierarchies, take: Take) -> Option<Own> {
    let mut paths = CgroupPaths::new(hierarchies, &name()).unwrap();
    match take {
        Take::All => {}
        Take::Legacy => {
            paths.layout = Layout::V1;
            paths.dirs.retain(|dir| dir.kind != Kind::Unified);
        }
        Take::Unified => {
            paths.layout = Layout::V2;
            paths.dirs.retain(|dir| dir.kind == Kind::Unified);
        }
    }
    if paths.dirs.is_empty() {
        return None;
    }
    Some(Own(Cgroup::create_at(paths).unwrap()))
}

/// Whether the host's version 1 lacks a controller a test needs (Debian's kernels from 6.12 have
/// no memory and no cpuset there).
fn lacks(own: &Own, controllers: &[Controller]) -> bool {
    let paths = own.0.paths();
    paths.layout != Layout::V2 && controllers.iter().any(|one| paths.legacy(*one).is_none())
}

fn shell(script: &str) -> Child {
    Spawn::new(Path::new("/bin/sh"))
        .args(["-c", script])
        .spawn()
        .unwrap()
}

/// A shell that runs its script when [`Gate::open`] is called.
struct Gate {
    child: Child,
    pipe: fs::File,
}

impl Gate {
    fn new(script: &str) -> Self {
        let (read, write) = sys::pipe_cloexec().unwrap();
        let child = Spawn::new(Path::new("/bin/sh"))
            .args(["-c", &format!("read line; {script}")])
            .stdin(read)
            .spawn()
            .unwrap();
        Self {
            child,
            pipe: write.into(),
        }
    }

    fn open(&mut self) {
        self.pipe.write_all(b"\n").unwrap();
    }
}

fn ends(child: &mut Child) -> ExitStatus {
    child.wait_timeout(LONG).unwrap().expect("it ends in time")
}

#[test]
fn process_enters_every_hierarchy_and_nothing_is_left() {
    let host = host();
    for take in [Take::All, Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut child = shell("exec sleep 100");
        own.0.attach(child.pid()).unwrap();
        let memberships = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
        for dir in &own.0.paths().dirs {
            let below = dir
                .path
                .strip_prefix(&dir.mount_point)
                .unwrap()
                .display()
                .to_string();
            let line = memberships
                .lines()
                .find(|line| line.split(':').nth(1) == Some(&dir.names));
            assert!(
                line.unwrap().ends_with(&below),
                "{below} is not in {memberships}"
            );
        }
        assert!(own.0.procs().unwrap().contains(&child.pid()), "{take:?}");
        own.0.kill_all(Signal::SIGKILL as i32).unwrap();
        assert_eq!(ends(&mut child), KILLED);
        assert!(own.0.procs().unwrap().is_empty());
        own.0.delete().unwrap();
        for dir in &own.0.paths().dirs {
            assert!(!dir.path.exists(), "{}", dir.path.display());
        }
        own.0.delete().unwrap();
        own.0.kill_all(Signal::SIGKILL as i32).unwrap();
        assert!(own.0.procs().unwrap().is_empty());
    }
}

#[test]
fn cgroup_in_use_or_frozen_is_not_taken_over() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    let again = || Cgroup::create_at(own.0.paths().clone());
    assert_eq!(again().unwrap(), own.0);
    assert!(!own.0.is_in_use().unwrap());
    own.0.freeze().unwrap();
    assert!(own.0.is_in_use().unwrap());
    assert!(matches!(again(), Err(Error::Frozen { .. })));
    own.0.thaw().unwrap();
    let child = shell("exec sleep 100");
    own.0.attach(child.pid()).unwrap();
    assert!(matches!(again(), Err(Error::InUse { processes: 1, .. })));
    assert!(own.0.is_in_use().unwrap());
    assert!(own.0.exists(), "what is in use is not removed");
}

#[test]
fn limits_reach_the_kernel() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    let needed = [
        Controller::Cpu,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Pids,
    ];
    if own.0.paths().layout == Layout::V2 || lacks(&own, &needed) {
        return;
    }
    let mut resources = Resources::default();
    resources.cpu.shares = Some(512);
    resources.cpu.quota_us = Some(20_000);
    resources.cpu.period_us = Some(50_000);
    resources.cpu.cpus = Some("0".to_owned());
    resources.memory.limit = Some(64 << 20);
    resources.memory.swap = Some(96 << 20);
    resources.pids.limit = Some(77);
    resources.devices = default_devices();
    own.0.apply(&resources).unwrap();
    own.0.apply(&resources).unwrap();
    let read = |controller, name: &str| {
        let dir = own.0.paths().legacy(controller).unwrap();
        fs::read_to_string(dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(read(Controller::Cpu, "cpu.shares"), "512");
    assert_eq!(read(Controller::Cpu, "cpu.cfs_quota_us"), "20000");
    assert_eq!(read(Controller::Cpuset, "cpuset.cpus"), "0");
    assert!(!read(Controller::Cpuset, "cpuset.mems").is_empty());
    assert_eq!(
        read(Controller::Memory, "memory.limit_in_bytes"),
        "67108864"
    );
    assert_eq!(read(Controller::Pids, "pids.max"), "77");
    let mut listed: Vec<String> = read(Controller::Devices, "devices.list")
        .lines()
        .map(str::to_owned)
        .collect();
    listed.sort();
    assert_eq!(listed, ["b *:* m", "c *:* m", "c 1:3 rwm", "c 1:5 rwm"]);

    // An update: smaller and larger at once, devices left alone.
    let mut update = Resources::default();
    update.memory.limit = Some(32 << 20);
    update.memory.swap = Some(32 << 20);
    update.cpu.period_us = Some(10_000);
    update.cpu.quota_us = Some(5_000);
    own.0.apply(&update).unwrap();
    assert_eq!(
        read(Controller::Memory, "memory.memsw.limit_in_bytes"),
        "33554432"
    );
    update.memory.limit = Some(-1);
    update.memory.swap = None;
    own.0.apply(&update).unwrap();
    assert_eq!(read(Controller::Cpu, "cpu.cfs_period_us"), "10000");
    assert_eq!(read(Controller::Devices, "devices.list").lines().count(), 4);
}

#[test]
fn shares_end_what_is_idle() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    let paths = own.0.paths();
    let Some(cpu) = paths.legacy(Controller::Cpu).or(paths.unified()) else {
        return;
    };
    let read = |name: &str| fs::read_to_string(cpu.join(name)).ok();
    let idle = || read("cpu.idle");
    if idle().is_none() {
        println!("skipped: cpu.idle, which Linux has from 5.15");
        return;
    }
    let mut resources = Resources::default();
    resources.cpu.idle = Some(1);
    own.0.apply(&resources).unwrap();
    assert_eq!(idle().as_deref(), Some("1\n"));
    let mut update = Resources::default();
    update.cpu.shares = Some(1024);
    own.0.apply(&update).unwrap();
    assert_eq!(idle().as_deref(), Some("0\n"));
    let (name, expected) = match paths.layout {
        Layout::V2 => ("cpu.weight", "100\n"),
        _ => ("cpu.shares", "1024\n"),
    };
    assert_eq!(read(name).as_deref(), Some(expected));
}

#[test]
fn limits_reach_the_kernel_of_version_2() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    if own.0.paths().layout != Layout::V2 {
        return;
    }
    let mut resources = Resources::default();
    resources.cpu.shares = Some(1024);
    resources.cpu.quota_us = Some(20_000);
    resources.cpu.period_us = Some(50_000);
    resources.cpu.cpus = Some("0".to_owned());
    resources.memory.limit = Some(64 << 20);
    resources.memory.swap = Some(64 << 20);
    resources.memory.reservation = Some(8 << 20);
    resources.pids.limit = Some(77);
    resources.devices = default_devices();
    resources
        .unified
        .insert("memory.high".to_owned(), "60000000".to_owned());
    own.0.apply(&resources).unwrap();
    own.0.apply(&resources).unwrap();
    let dir = own.0.paths().unified().unwrap();
    for (name, expected) in [
        ("cpu.weight", "100"),
        ("cpu.max", "20000 50000"),
        ("cpuset.cpus", "0"),
        ("memory.max", "67108864"),
        ("memory.low", "8388608"),
        ("memory.high", "59998208"),
        ("pids.max", "77"),
    ] {
        assert_eq!(
            fs::read_to_string(dir.join(name)).unwrap().trim(),
            expected,
            "{name}"
        );
    }
    let mut update = Resources::default();
    update.memory.limit = Some(-1);
    update.pids.limit = Some(-1);
    own.0.apply(&update).unwrap();
    assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap(), "max\n");
    assert_eq!(fs::read_to_string(dir.join("pids.max")).unwrap(), "max\n");
}

/// An init that makes cgroups of its own leaves no room for processes in the container's.
#[test]
fn process_joins_beside_an_init_that_went_below() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    let init = shell("exec sleep 100");
    own.0.apply(&Resources::default()).unwrap();
    own.0.attach(init.pid()).unwrap();
    for dir in &own.0.paths().dirs {
        fs::create_dir(dir.path.join("init.scope")).unwrap();
    }
    own.0
        .attach_below(Path::new("init.scope"), init.pid())
        .unwrap();
    if own.0.paths().layout == Layout::V2 {
        let dir = own.0.paths().unified().unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    let exec = shell("exec sleep 100");
    let mut legacy = own.0.paths().clone();
    legacy.dirs.retain(|dir| dir.kind != Kind::Unified);
    Cgroup::from_paths(legacy).attach(exec.pid()).unwrap();
    own.0.attach_unified_beside(init.pid(), exec.pid()).unwrap();
    assert_eq!(own.0.procs().unwrap().len(), 2);
}

fn default_devices() -> Vec<DeviceRule> {
    let rule = |verdict, kind, major, minor, access| DeviceRule {
        verdict,
        kind,
        major,
        minor,
        access,
    };
    vec![
        rule(Verdict::Deny, DeviceKind::All, None, None, Access::ALL),
        rule(Verdict::Allow, DeviceKind::Char, None, None, Access::MKNOD),
        rule(Verdict::Allow, DeviceKind::Block, None, None, Access::MKNOD),
        rule(
            Verdict::Allow,
            DeviceKind::Char,
            Some(1),
            Some(3),
            Access::ALL,
        ),
        rule(
            Verdict::Allow,
            DeviceKind::Char,
            Some(1),
            Some(5),
            Access::ALL,
        ),
    ]
}

#[test]
fn devices_are_what_the_rules_say_in_both_versions() {
    let host = host();
    for take in [Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut resources = Resources {
            devices: default_devices(),
            ..Resources::default()
        };
        let open = |device: &str| {
            let mut gate = Gate::new(&format!("exec 3<{device}"));
            own.0.attach(gate.child.pid()).unwrap();
            gate.open();
            ends(&mut gate.child).code()
        };
        own.0.apply(&resources).unwrap();
        assert!(open("/dev/zero") == 0 && open("/dev/full") != 0, "{take:?}");
        // Replacing leaves no older program that would still forbid.
        resources.devices.push(DeviceRule {
            minor: Some(7),
            ..default_devices()[3]
        });
        own.0.apply(&resources).unwrap();
        assert!(
            open("/dev/full") == 0 && open("/dev/urandom") != 0,
            "{take:?}"
        );
        own.0.delete().unwrap();
    }
}

#[test]
fn frozen_processes_stand_still_and_still_die() {
    let host = host();
    for take in [Take::All, Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut gate = Gate::new("exit 7");
        own.0.attach(gate.child.pid()).unwrap();
        own.0.freeze().unwrap();
        assert!(own.0.is_frozen().unwrap());
        gate.open();
        assert!(
            gate.child
                .wait_timeout(Duration::from_millis(50))
                .unwrap()
                .is_none()
        );
        own.0.kill_all(Signal::SIGUSR1 as i32).unwrap();
        assert!(
            own.0.is_frozen().unwrap(),
            "{take:?}: what was frozen stays frozen"
        );
        own.0.thaw().unwrap();
        assert!(!own.0.is_frozen().unwrap());
        // The signal without a handler, or the exit, whichever the shell meets first.
        ends(&mut gate.child);

        let mut child = shell("exec sleep 100");
        own.0.attach(child.pid()).unwrap();
        own.0.freeze().unwrap();
        own.0.kill_all(Signal::SIGKILL as i32).unwrap();
        assert_eq!(ends(&mut child), KILLED, "{take:?}");
        assert!(!own.0.is_frozen().unwrap() || own.0.paths().layout == Layout::V2);
        own.0.delete().unwrap();
    }
}

#[test]
fn container_that_forks_all_the_time_is_killed_whole() {
    let host = host();
    for take in [Take::All, Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut gate = Gate::new("for i in 1 2 3 4; do (while :; do (:); done) & done; wait");
        own.0.attach(gate.child.pid()).unwrap();
        gate.open();
        let start = Instant::now();
        while own.0.procs().unwrap().len() < 3 {
            assert!(start.elapsed() < LONG);
            std::thread::yield_now();
        }
        own.0.kill_all(Signal::SIGKILL as i32).unwrap();
        assert!(own.0.procs().unwrap().is_empty(), "{take:?}");
        assert_eq!(ends(&mut gate.child), KILLED);
        own.0.delete().unwrap();
    }
}

#[test]
fn other_signals_reach_everybody_once() {
    let host = host();
    for take in [Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut children = [shell("exec sleep 100"), shell("exec sleep 100")];
        for dir in &own.0.paths().dirs {
            fs::create_dir(dir.path.join("below")).unwrap();
        }
        own.0.attach(children[0].pid()).unwrap();
        own.0
            .attach_below(Path::new("below"), children[1].pid())
            .unwrap();
        own.0.kill_all(Signal::SIGTERM as i32).unwrap();
        assert!(!own.0.is_frozen().unwrap());
        for child in &mut children {
            assert_eq!(ends(child), ExitStatus::Signaled(15), "{take:?}");
        }
        own.0.delete().unwrap();
    }
}

#[test]
fn cgroups_that_the_container_made_go_with_it() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    for dir in &own.0.paths().dirs {
        fs::create_dir_all(dir.path.join("init.scope/deep")).unwrap();
        fs::create_dir(dir.path.join("system.slice")).unwrap();
    }
    let child = shell("exec sleep 100");
    own.0.attach(child.pid()).unwrap();
    own.0
        .attach_below(Path::new("system.slice"), child.pid())
        .unwrap();
    assert_eq!(own.0.procs().unwrap(), [child.pid()]);
    assert!(own.0.attach_below(Path::new("../x"), child.pid()).is_err());
    drop(child);
    own.0.delete().unwrap();
    assert!(!own.0.exists());
}

#[test]
fn process_without_threads_moves_itself() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    let tasks = own.0.open_tasks().unwrap();
    own.0.apply(&Resources::default()).unwrap();
    let writes: Vec<String> = tasks
        .iter()
        .map(|(path, _)| format!("echo 0 > {}; ", path.display()))
        .collect();
    let mut gate = Gate::new(&format!("{} read again", writes.concat()));
    own.0.attach_unified(gate.child.pid()).unwrap();
    gate.open();
    let start = Instant::now();
    let inside = || {
        let memberships = fs::read_to_string(format!("/proc/{}/cgroup", gate.child.pid())).unwrap();
        memberships.matches("cgroups-test-").count()
    };
    while inside() < own.0.paths().dirs.len() {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    gate.open();
    ends(&mut gate.child);
}

#[test]
fn running_out_of_memory_is_told_before_the_end() {
    let host = host();
    let Some(own) = create(&host, Take::All) else {
        return;
    };
    if lacks(&own, &[Controller::Memory]) {
        return;
    }
    let mut resources = Resources::default();
    resources.memory.limit = Some(16 << 20);
    resources.memory.swap = Some(16 << 20);
    own.0.apply(&resources).unwrap();
    let mut watch = own.0.oom_watch().unwrap();
    assert_eq!(watch.take().unwrap(), OomNews::Nothing);
    let mut gate = Gate::new("exec tail /dev/zero");
    own.0.attach(gate.child.pid()).unwrap();
    gate.open();
    assert_eq!(ends(&mut gate.child), KILLED);
    assert_eq!(news(&mut watch), OomNews::OutOfMemory);
    if let Stats::V1(stats) = own.0.stats().unwrap() {
        assert!(stats.memory.oom.oom_kill >= 1);
    }
    own.0.delete().unwrap();
    assert_eq!(news(&mut watch), OomNews::Gone);
}

fn news(watch: &mut OomWatch) -> OomNews {
    let start = Instant::now();
    loop {
        let mut polled = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::from(1000_u16)).unwrap();
        let news = watch.take().unwrap();
        if news != OomNews::Nothing {
            return news;
        }
        assert!(start.elapsed() < LONG);
    }
}

#[test]
fn numbers_are_counted_and_end_with_the_cgroup() {
    let host = host();
    for take in [Take::Legacy, Take::Unified] {
        let Some(own) = create(&host, take) else {
            continue;
        };
        let mut gate = Gate::new("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; read again");
        own.0.attach(gate.child.pid()).unwrap();
        gate.open();
        let start = Instant::now();
        let (used_ns, tasks) = loop {
            let (used_ns, tasks) = match own.0.stats().unwrap() {
                Stats::V1(stats) => (stats.cpu.total_ns, stats.pids.current),
                Stats::V2(stats) => (stats.cpu.usage_us * 1000, stats.pids.current),
            };
            if used_ns > 1_000_000 || start.elapsed() > LONG {
                break (used_ns, tasks);
            }
            std::thread::yield_now();
        };
        assert!(
            used_ns > 1_000_000 && tasks == 1,
            "{take:?}: {used_ns} ns, {tasks} tasks"
        );
        own.0.kill_all(Signal::SIGKILL as i32).unwrap();
        own.0.delete().unwrap();
        assert!(own.0.stats().unwrap_err().is_not_found());
    }
}

#[test]
fn half_made_cgroup_is_taken_back() {
    let host = host();
    let mut paths = CgroupPaths::new(&host, &name()).unwrap();
    let last = paths.dirs.last_mut().unwrap();
    last.path = Path::new("/proc/self/nothing").to_owned();
    assert!(matches!(
        Cgroup::create_at(paths.clone()),
        Err(Error::Make { .. })
    ));
    for dir in &paths.dirs {
        assert!(!dir.path.exists(), "{}", dir.path.display());
        let parent = dir.path.parent().unwrap();
        assert!(
            !parent.exists() || parent.ends_with("self"),
            "{}",
            parent.display()
        );
    }
}
