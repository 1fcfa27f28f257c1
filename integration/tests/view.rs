//! What a container sees of the machine: its own limits, by an lxcfs of the test's own.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::{Container, Task},
    images::Image,
    lxcfs::Lxcfs,
    process::{Finished, Running, command, output_of},
    runtime::{Runtime, built},
    versions::Version,
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runlxc;

const VIEW: [&str; 2] = ["--annotation", "org.pouch.view=lxcfs"];
const POUCH: [&str; 2] = ["--annotation", "io.kubernetes.lxcfs.enabled=true"];

const MEMORY_BYTES: u64 = 64 << 20;
const MEMORY_KIB: &str = "65536";

fn lxcfs(bench: &Bench<'_>) -> Result<Lxcfs> {
    Lxcfs::start(&bench.containerd.work().join("lxcfs"))
}

/// A container with a limit of memory, whose runtime is told of that lxcfs.
fn limited<'a>(bench: &Bench<'a>, name: &str, lxcfs: &Lxcfs) -> Result<Container<'a>> {
    let options = lxcfs.options();
    let options = options.to_str().context("it is UTF-8")?;
    let limit = MEMORY_BYTES.to_string();
    let flags = ["--runtime-config-path", options, "--memory-limit", &limit];
    Ok(bench.container(name).flags(&flags))
}

/// The first number after a word at the beginning of a line.
fn number_after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()
}

fn host_memory_kib() -> Result<String> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let total = number_after(&meminfo, "MemTotal:").context("no MemTotal")?;
    Ok(total.to_owned())
}

#[test]
fn programs_see_the_containers_limits_and_life() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let lxcfs = lxcfs(bench)?;
        for (name, more) in [
            ("view", &VIEW[..]),
            ("pouchs-words", &POUCH),
            (
                "rich",
                &[VIEW, ["--annotation", "org.pouch.rich.mode=dumb-init"]].concat(),
            ),
            ("read-only", &[&VIEW[..], &["--read-only"]].concat()),
        ] {
            let container = limited(bench, name, &lxcfs)?.flags(more);
            let task = container
                .flags(&["--cpus", "1"])
                .detach(&["sleep", "600"])?;
            let meminfo = task.output("cat /proc/meminfo")?;
            let total = number_after(&meminfo, "MemTotal:");
            ensure!(total == Some(MEMORY_KIB), "{name}: {meminfo}");
            let cpus =
                task.output("grep -c ^processor /proc/cpuinfo; grep -c '^cpu[0-9]' /proc/stat")?;
            ensure!(cpus == "1\n1\n", "{name}: {cpus:?}");
            let uptime = task.output("cat /proc/uptime")?;
            let seconds: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
            ensure!(seconds < 600.0, "{name}: up for {seconds} s");
            let rest = "cat /proc/loadavg /proc/swaps /proc/diskstats >/dev/null && \
                        cat /sys/devices/system/cpu/online && uptime >/dev/null";
            let online = task.output(rest)?;
            println!("{name}: online {online:?}, up {seconds} s");
            in_force(&task.output("cat /proc/self/mountinfo")?).with_context(|| name.to_owned())?;
            let protected = "ls /sys/firmware | wc -l; (: >/proc/sys/kernel/hostname) 2>&1; true";
            let protected = task.output(protected)?;
            let is_protected = protected.starts_with("0\n") && protected.contains("Read-only");
            ensure!(is_protected, "{name}: {protected:?}");
            task.kill_and_remove()?;
        }
        let ordinary = limited(bench, "ordinary", &lxcfs)?;
        let shown = ordinary
            .output("grep -c lxcfs /proc/self/mountinfo; grep MemTotal: /proc/meminfo; true")?;
        ensure!(shown.starts_with("0\n"), "{shown}");
        let total = number_after(&shown, "MemTotal:").map(str::to_owned);
        ensure!(total == Some(host_memory_kib()?), "{shown}");
        lxcfs.stop()
    });
}

/// Every file is there once, and cannot be written to.
fn in_force(mountinfo: &str) -> Result<()> {
    let mut targets = Vec::new();
    for line in mountinfo
        .lines()
        .filter(|line| line.contains(" fuse.lxcfs "))
    {
        let mut words = line.split(' ').skip(4);
        targets.extend(words.next());
        let options: Vec<_> = words.next().unwrap_or_default().split(',').collect();
        for word in ["ro", "nosuid", "nodev", "noexec"] {
            ensure!(options.contains(&word), "not {word}: {line}");
        }
    }
    targets.sort_unstable();
    let expected = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/sys/devices/system/cpu",
    ];
    ensure!(targets == expected, "{targets:?}");
    Ok(())
}

#[test]
fn without_an_lxcfs_a_view_is_refused_or_given_up_as_the_operator_says() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let lxcfs = lxcfs(bench)?;
        let refused = |name: &str, why: &str| -> Result<()> {
            let container = limited(bench, name, &lxcfs)?.flags(&VIEW);
            let refused = container.shell("true")?;
            ensure!(refused.code() != 0, "{name}: it ran");
            let named = format!("no lxcfs at {}: {why}", lxcfs.root().display());
            ensure!(refused.stderr().contains(&named), "{name}: {refused}");
            Ok(())
        };
        lxcfs.kill9()?;
        refused("dead", "it is dead")?;
        lxcfs.stop()?;
        refused(
            "stopped",
            "none is mounted there; install lxcfs and start it",
        )?;
        let optional = fs::read_to_string(lxcfs.options())? + "LxcfsOptional = true\n";
        fs::write(lxcfs.options(), optional)?;
        let optional = limited(bench, "optional", &lxcfs)?.flags(&VIEW);
        let shown = optional.output("grep MemTotal: /proc/meminfo")?;
        let total = number_after(&shown, "MemTotal:").map(str::to_owned);
        ensure!(total == Some(host_memory_kib()?), "{shown}");
        for (number, (annotation, why)) in [
            ("org.pouch.view=lxfs", "the nearest is lxcfs"),
            (
                "org.pouch.veiw=lxcfs",
                "the nearest known one is org.pouch.view",
            ),
            ("io.kubernetes.lxcfs.enabled=yes", "neither true nor false"),
        ]
        .into_iter()
        .enumerate()
        {
            let container = bench.container(&format!("misspelt-{number}"));
            let refused = container
                .flags(&["--annotation", annotation])
                .shell("true")?;
            ensure!(refused.code() != 0, "{annotation}: it ran");
            ensure!(refused.stderr().contains(why), "{annotation}: {refused}");
        }
        Ok(())
    });
}

/// The devices of all its lxcfs mounts, as a container has them; each target once.
fn devices(pid: i32) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let ours = table.lines().filter(|line| line.contains(" fuse.lxcfs "));
    let device = |line: &str| line.split(' ').nth(2).map(str::to_owned);
    Ok(ours.filter_map(device).collect())
}

/// Kills lxcfs and starts it again; how long after it answers all these processes have nothing but
/// the new one.
fn replaced(lxcfs: &Lxcfs, pids: &[i32]) -> Result<Duration> {
    let before = devices(pids[0])?;
    let before = before.first().context("there is no lxcfs")?.clone();
    lxcfs.kill9()?;
    for pid in pids {
        let dead = fs::read(format!("/proc/{pid}/root/proc/meminfo"));
        ensure!(dead.is_err(), "it was killed and answers");
    }
    lxcfs.start_again()?;
    let began = Instant::now();
    until("all see the new lxcfs", SOON, Sources::none(), || {
        let mut all = true;
        for pid in pids {
            let now = devices(*pid)?;
            all &= now.len() == 8 && now.iter().all(|device| *device != before);
        }
        Ok(all.then_some(()))
    })?;
    Ok(began.elapsed())
}

/// How many threads of a container's shim watch for lxcfs.
fn watchers(bench: &Bench<'_>, task: &Task<'_>) -> Result<usize> {
    let shim = bench.containerd.shim_of(&task.id)?.context("no shim")?;
    let mut count = 0;
    for thread in fs::read_dir(format!("/proc/{shim}/task"))? {
        // One that has ended meanwhile is none.
        let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        count += usize::from(name == "lxcfs\n");
    }
    Ok(count)
}

#[test]
fn when_lxcfs_is_killed_and_comes_back_every_running_container_sees_it() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let lxcfs = lxcfs(bench)?;
        let count = if bench.version() == Version::V2_4 {
            20
        } else {
            3
        };
        let mut tasks = Vec::new();
        for number in 0..count {
            let container = limited(bench, &format!("healed-{number}"), &lxcfs)?.flags(&VIEW);
            let flags: &[&str] = if number == 1 { &["--read-only"] } else { &[] };
            tasks.push(container.flags(flags).detach(&["sleep", "600"])?);
        }
        let ordinary = bench.container("unwatched").detach(&["sleep", "600"])?;
        let numbers = (watchers(bench, &ordinary)?, watchers(bench, &tasks[0])?);
        ensure!(numbers == (0, 1), "threads that watch: {numbers:?}");
        ordinary.kill_and_remove()?;
        let pids = tasks.iter().map(Task::pid).collect::<Result<Vec<_>>>()?;
        tasks[0].pause()?;
        for round in 1..=2 {
            let took = replaced(&lxcfs, &pids)?;
            println!("round {round}: {count} views right again {took:?} after lxcfs answered");
        }
        tasks[0].resume()?;
        for task in &tasks {
            let meminfo = task.output("cat /proc/meminfo")?;
            let total = number_after(&meminfo, "MemTotal:");
            ensure!(total == Some(MEMORY_KIB), "{}: {meminfo}", task.id);
            in_force(&task.output("cat /proc/self/mountinfo")?)?;
        }
        let orphan = tasks.pop().context("there are some")?;
        let processes = orphan.processes()?;
        let shim = bench.containerd.shim_of(&orphan.id)?.context("no shim")?;
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        processes
            .iter()
            .try_for_each(|pid| for_end_of(*pid, SOON))?;
        remove_behind_containerd(&orphan)?;
        for task in &tasks {
            task.kill_and_remove()?;
        }
        Ok(())
    });
}

/// Waits until containerd has cleaned up behind a shim, and removes what is left of the container.
fn remove_behind_containerd(task: &Task<'_>) -> Result<()> {
    until("the task is gone or stopped", SOON, Sources::none(), || {
        let status = task.status()?;
        let over = status.is_none_or(|status| status.state == "STOPPED");
        Ok(over.then_some(()))
    })?;
    if task.status()?.is_some() {
        task.delete()?;
    }
    task.remove_container()
}

/// The OCI command on a bundle of a program alone.
struct Oci<'a> {
    directory: &'a Path,
    lxcfs: &'a Lxcfs,
}

impl Oci<'_> {
    const ID: &'static str = "by-hand";

    /// Makes the bundle, with paths masked in what lxcfs shows.
    fn bundle(&self) -> Result<()> {
        let root = self.directory.join("rootfs");
        for folder in ["bin", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        self.call(&["spec", "--bundle", &self.directory.display().to_string()])?
            .success()?;
        let path = self.directory.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["annotations"] = serde_json::json!({ "org.pouch.view": "lxcfs" });
        config["process"]["args"] = serde_json::json!(["/bin/busybox", "sleep", "600"]);
        config["process"]["terminal"] = false.into();
        config["linux"]["cgroupsPath"] = format!("/pouch-test-view-{}", std::process::id()).into();
        config["linux"]["resources"]["memory"] = serde_json::json!({ "limit": MEMORY_BYTES });
        config["linux"]["resources"]["cpu"] = serde_json::json!({ "cpus": "0" });
        let masked = &mut config["linux"]["maskedPaths"];
        let masked = masked.as_array_mut().context("no masked paths")?;
        masked.extend(MASKED.map(Into::into));
        Ok(fs::write(&path, config.to_string())?)
    }

    fn words(&self, words: &[&str]) -> Result<Vec<String>> {
        let state = self.directory.join("state").display().to_string();
        let lxcfs = self.lxcfs.root().display().to_string();
        let program = built("runlxc")?.display().to_string();
        let all = [&program, "--root", &state, "--lxcfs-root", &lxcfs];
        let all = all.iter().chain(words).map(|&word| word.to_owned());
        Ok(all.collect())
    }

    fn call(&self, words: &[&str]) -> Result<Finished> {
        let words = self.words(words)?;
        Running::start(command(&words[0]).args(&words[1..]))?.finish(SOON)
    }

    /// Starts the container, which must not hold our pipes.
    fn run(&self) -> Result<()> {
        let bundle = self.directory.display().to_string();
        let words = self.words(&["run", "--detach", "--bundle", &bundle, Self::ID])?;
        let log = self.directory.join("log").display().to_string();
        let script = "log=$1; shift; exec \"$@\" >/dev/null 2>$log";
        let mut shell = command("sh");
        shell.args(["-c", script, "sh", &log]).args(&words);
        output_of(&mut shell, SOON)
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
            .map(drop)
    }

    fn shell(&self, script: &str) -> Result<Finished> {
        self.call(&["exec", Self::ID, "/bin/busybox", "sh", "-c", script])
    }
}

const MASKED: [&str; 2] = [
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/cpu0",
];

#[test]
fn the_oci_command_gives_a_container_another_lxcfs_and_keeps_its_masks() {
    let directory = tempfile::tempdir().unwrap();
    let lxcfs = Lxcfs::start(&directory.path().join("lxcfs")).unwrap();
    let oci = Oci {
        directory: directory.path(),
        lxcfs: &lxcfs,
    };
    let checked = by_hand(&oci);
    let deleted = oci.call(&["delete", "--force", Oci::ID]).unwrap();
    lxcfs.stop().unwrap();
    checked.unwrap();
    deleted.success().unwrap();
}

fn by_hand(oci: &Oci<'_>) -> Result<()> {
    oci.bundle()?;
    oci.run()?;
    let look = "busybox() { /bin/busybox \"$@\"; }; busybox grep MemTotal: /proc/meminfo && \
                busybox grep -c ^processor /proc/cpuinfo && busybox wc -c </sys/devices/system/cpu/possible && \
                busybox ls /sys/devices/system/cpu/cpu0 | busybox wc -l";
    let right = |when: &str| -> Result<()> {
        let seen = oci.shell(look)?.success()?.stdout();
        let total = number_after(&seen, "MemTotal:");
        ensure!(total == Some(MEMORY_KIB), "{when}: {seen}");
        ensure!(
            seen.ends_with("\n1\n0\n0\n"),
            "{when}, one CPU, masks: {seen}"
        );
        in_force(
            &oci.shell("/bin/busybox cat /proc/self/mountinfo")?
                .success()?
                .stdout(),
        )
    };
    right("at first")?;
    oci.lxcfs.kill9()?;
    oci.lxcfs.start_again()?;
    let dead = oci.shell("/bin/busybox cat /proc/meminfo")?;
    ensure!(dead.code() != 0, "nobody watches, and yet: {dead}");
    for _twice in 0..2 {
        oci.call(&["remount-lxcfs", Oci::ID])?.success()?;
        right("with the new one")?;
    }
    oci.lxcfs.stop()?;
    let refused = oci.call(&["remount-lxcfs", Oci::ID])?;
    ensure!(refused.stderr().contains("no lxcfs at"), "{refused}");
    Ok(())
}
