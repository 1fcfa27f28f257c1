//! Containers in virtual machines, by stock containerd: one guest at a time, under emulation where the
//! host has nothing better.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
    thread,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use integration::{
    census::processes,
    check::{Bench, check},
    config::Config,
    containerd::{Containerd, SETTLE_LIMIT},
    ctr::{Ctr, Task},
    events::Events,
    guest::Series,
    images::Image,
    process::{command, output_of},
    runtime::{BOOT, Home, Runtime, built},
    terminal,
    versions::Version,
    wait::{SOON, Sources, for_end_of, is_readable, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::MemfdFlags;

const RUNTIME: Runtime = Runtime::Runv;

/// The release of the host's kernel.
fn host_release() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(text.trim().to_owned())
}

#[test]
fn a_container_runs_on_its_guests_kernel_to_its_own_end() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let release = bench.container("release").output("uname -r")?;
        let release = release.trim();
        ensure!(release.ends_with("-cloud-amd64"), "the kernel is {release}");
        ensure!(release != host_release()?, "it is the host's");
        if bench.version() == Version::V2_4 {
            ends_and_streams(bench)?;
            runs_out_of_memory(bench)?;
        }
        a_life(bench)
    });
}

/// Exit codes, both outputs, input and root.
fn ends_and_streams(bench: &Bench<'_>) -> Result<()> {
    let script = "id -u; hostname; echo written > /etc/new; cat /etc/new; echo oops >&2; exit 7";
    let ended = bench.container("ends").shell(script)?;
    ensure!(ended.stderr().contains("oops"), "{ended}");
    ensure!(ended.stdout().ends_with("written\n"), "{ended}");
    ended.with_code(7)?;
    let missing = bench.container("missing").run(&["/no/such/program"])?;
    ensure!(missing.code() != 0, "{missing}");
    ensure!(missing.stderr().contains("/no/such/program"), "{missing}");
    Ok(())
}

/// Its guest's kernel kills, and containerd tells of it before the end.
fn runs_out_of_memory(bench: &Bench<'_>) -> Result<()> {
    let mut events = Events::follow(bench.containerd)?;
    let limit = (16 << 20).to_string();
    let container = bench.container("oom").flags(&["--memory-limit", &limit]);
    // What tail keeps of a line without an end grows until it is killed; an exec's is told while init runs.
    let script = "mkfifo /tmp/go; read line < /tmp/go; exec tail /dev/zero";
    let task = container.detach(&["sh", "-c", script])?;
    task.exec(&["tail", "/dev/zero"])?.with_code(137)?;
    events.of_container(&task.id, |event| event.topic == "/tasks/oom")?;
    task.exec(&["sh", "-c", "echo > /tmp/go"])?.success()?;
    let code = task.remove()?;
    ensure!(code == 137, "expected 137, got {code}");
    let seen = events.of_container(&task.id, |event| event.topic == "/containers/delete")?;
    let topics: Vec<_> = seen.iter().map(|event| event.topic.as_str()).collect();
    let place = |wanted: &str| topics.iter().position(|&topic| topic == wanted);
    let (told, ended) = (place("/tasks/oom"), place("/tasks/exit"));
    ensure!(told.is_some() && told < ended, "got {topics:?}");
    Ok(())
}

/// In the background: execs, a terminal, signals.
fn a_life(bench: &Bench<'_>) -> Result<()> {
    let script = "trap 'echo bye > /tmp/said; exit 9' TERM; while :; do sleep 1; done";
    let task = bench.container("life").detach(&["sh", "-c", script])?;
    let seen = task.output("echo $((6*7)); ps | grep -c 'trap'")?;
    ensure!(seen.starts_with("42\n"), "{seen:?}");
    // Its console is a file in the host's memory: it says nothing there, and cannot fill it.
    let level = task.output("cat /proc/sys/kernel/printk")?;
    ensure!(level.starts_with("1\t"), "{level:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", task.pid()?))?;
    let of_files = limits
        .lines()
        .find(|line| line.starts_with("Max file size"));
    ensure!(
        of_files.is_some_and(|line| line.matches("1048576").count() == 2),
        "{limits}"
    );
    // What the machine costs, below a limit of its own.
    let metrics = task.metrics()?;
    let memory = &metrics["memory"];
    // Version 2 of cgroups has numbers where version 1 has objects.
    let (used, limit) = match memory["usage"].is_object() {
        true => (&memory["usage"]["max"], &memory["usage"]["limit"]),
        false => (&memory["usage"], &memory["usage_limit"]),
    };
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
    let (used, limit) = (number(used), number(limit));
    ensure!(limit == (512 + 8 + 256) << 20, "{metrics}");
    ensure!(used < limit - (64 << 20), "{used} of {limit}");
    is_listed(task.pid()?)?;
    is_confined(task.pid()?)?;
    task.exec(&["sh", "-c", "exit 3"])?.with_code(3)?;
    let missing = task.exec(&["/no/such/program"])?;
    ensure!(missing.code() != 0, "{missing}");
    let mut terminal = task.exec_in_terminal(terminal::FIRST, &["sh", "-c", terminal::USES])?;
    terminal.is_a_programs()?;
    terminal.expect("30 100", SOON)?;
    terminal.finish(SOON)?;
    task.kill(Signal::SIGTERM)?;
    let code = task.remove()?;
    ensure!(code == 9, "expected 9, got {code}");
    Ok(())
}

/// QEMU has no rights, no neighbours and no files of the host but programs.
fn is_confined(pid: i32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.with_context(|| format!("no {name} in {status}"))
    };
    let uid: u32 = value("Uid")?
        .split('\t')
        .next()
        .unwrap_or_default()
        .parse()?;
    ensure!(uid >= 1_879_048_192, "{status}");
    ensure!(value("CapEff")? == "0000000000000000", "{status}");
    ensure!(value("CapPrm")? == "0000000000000000", "{status}");
    ensure!(
        value("NoNewPrivs")? == "1" && value("Seccomp")? == "2",
        "{status}"
    );
    ensure!(value("NSpid")? == format!("{pid}\t1"), "{status}");
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        let [its, ours] = [pid.to_string(), "self".to_owned()]
            .map(|of| fs::read_link(format!("/proc/{of}/ns/{kind}")));
        ensure!(its? != ours?, "{kind} is the host's");
    }
    let entries = fs::read_dir(format!("/proc/{pid}/root"))?;
    let names = entries.map(|it| Ok(it?.file_name().into_string().unwrap_or_default()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let shown = ["bin", "lib", "lib64", "proc", "sbin", "usr"];
    ensure!(
        names.iter().all(|it| shown.contains(&it.as_str())),
        "{names:?}"
    );
    Ok(())
}

/// `runv ps` tells QEMU's pid.
fn is_listed(pid: i32) -> Result<()> {
    let listed = output_of(command(built("runv")?).arg("ps"), SOON)?;
    let pids = listed.lines().map(|line| line.split_whitespace().nth(2));
    let is_there = pids.flatten().any(|it| it == pid.to_string());
    ensure!(is_there, "{pid} is not in {listed}");
    Ok(())
}

/// The newest containerd, with runv's own place.
fn one_containerd() -> Result<(Containerd, Home)> {
    let installed = Version::available()?
        .pop()
        .context("there is a containerd")?;
    let home = RUNTIME.home(0)?.context("runv has a place")?;
    let mut config = Config::with_images(&[Image::Busybox]);
    config.environment.push(home.variable());
    Ok((Containerd::start(&installed, &config)?, home))
}

/// With the newest containerd; what it said last is told with what failed.
fn check_newest(behaviour: impl FnOnce(&Containerd, &Home) -> Result<()>) -> Result<()> {
    let (containerd, home) = one_containerd()?;
    let outcome = behaviour(&containerd, &home);
    let log = containerd.log_tail();
    outcome.with_context(|| format!("its log ends:\n{log}"))?;
    containerd.finish()
}

#[test]
fn a_container_runs_on_the_kernel_that_it_asks_for() {
    check_newest(kernels).unwrap();
}

fn kernels(containerd: &Containerd, home: &Home) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let asking = |name: &str| format!("org.pouch.runv.guest={name}");
    for series in Series::ALL.into_iter().filter(|it| *it != Series::V6_1) {
        home.add(series)?;
        let number = series.number();
        let guest = asking(number);
        let limit = (64 << 20).to_string();
        let flags = [
            "--annotation",
            &guest,
            "--seccomp",
            "--memory-limit",
            &limit,
        ];
        let id = format!("on-{}", number.replace('.', "-"));
        let container = ctr.container(&id, Image::Busybox, RUNTIME).flags(&flags);
        // Its root can be written, its filter of system calls and its cgroup's limit are there: what tail
        // keeps of a line without an end grows until it is killed.
        let script = "mkfifo /tmp/go; read line < /tmp/go; exec tail /dev/zero";
        let task = container.detach(&["sh", "-c", script])?;
        let script = "uname -r; echo new >> /etc/passwd; grep Seccomp: /proc/self/status";
        let output = task.output(script)?;
        ensure!(
            output.starts_with(number) && output.ends_with("Seccomp:\t2\n"),
            "{number}: {output}"
        );
        task.exec(&["sh", "-c", "echo > /tmp/go"])?.success()?;
        let code = task.remove()?;
        ensure!(code == 137, "{number}: expected 137, got {code}");
    }
    let listed = home.runv(&["image", "ls"])?;
    let default = format!("{:<20}  {}", "default", home.release);
    ensure!(
        listed.starts_with(&default) && listed.lines().count() == Series::ALL.len(),
        "{listed}"
    );
    home.runv(&["image", "rm", "5.10"])?;
    let refused = |id: &str, guest: &str, expected: &str| {
        let guest = asking(guest);
        let container = ctr.container(id, Image::Busybox, RUNTIME);
        let ended = container.flags(&["--annotation", &guest]).run(&["true"])?;
        ensure!(ended.code() != 0, "{id} ran: {ended}");
        ensure!(ended.stderr().contains(expected), "{id}: {ended}");
        anyhow::Ok(())
    };
    refused("gone", "5.10", "runv image build --name 5.10")?;
    refused("outside", "../guest", "is no name of a guest image")
}

#[test]
fn whatever_is_killed_nothing_is_left() {
    check_newest(|containerd, _home| kills(containerd)).unwrap();
}

fn kills(containerd: &Containerd) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let container = |id| ctr.container(id, Image::Busybox, RUNTIME);

    // QEMU: its container has ended, with a status that says so.
    let task = container("kills-qemu").detach(&["sleep", "600"])?;
    kill(Pid::from_raw(task.pid()?), Signal::SIGKILL)?;
    let code = task.remove()?;
    ensure!(code == 255, "expected 255, got {code}");

    // The shim: the guest turns itself off, and containerd's clean-up does the rest.
    let data = mount(&containerd.work(), "/data", "rw");
    let with_volume = container("kills-shim").flags(&["--mount", &data]);
    let task = with_volume.detach(&["sleep", "600"])?;
    let qemu = task.pid()?;
    let shim = containerd.shim_of("kills-shim")?.context("it has a shim")?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    until("QEMU is gone", SETTLE_LIMIT, Sources::none(), || {
        Ok((!Path::new(&format!("/proc/{qemu}")).exists()).then_some(()))
    })?;
    until("containerd knows", SOON, Sources::none(), || {
        let status = task.status()?;
        Ok(status
            .is_none_or(|status| status.state == "STOPPED")
            .then_some(()))
    })?;
    if task.status()?.is_some() {
        task.delete()?;
    }
    task.remove_container()?;
    Ok(())
}

/// A bind as `ctr run --mount` takes it.
fn mount(source: &Path, target: &str, options: &str) -> String {
    let source = source.display();
    format!("type=bind,src={source},dst={target},options=rbind:{options}")
}

#[test]
fn volumes_are_the_hosts_own_whoever_changes_them() {
    check_newest(|containerd, _home| volumes(containerd)).unwrap();
}

fn volumes(containerd: &Containerd) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let at = |name: &str| containerd.work().join(name);
    for name in ["data", "read", "plain", "data/below"] {
        fs::create_dir(at(name))?;
    }
    for (name, text) in [
        ("data/there", "host"),
        ("file", "one"),
        ("secret", "s"),
        ("read/it", "r"),
    ] {
        fs::write(at(name), text)?;
    }
    let mounts = [
        mount(&at("data"), "/data", "rw"),
        mount(&at("read"), "/read", "ro"),
        mount(&at("plain"), "/plain", "rw:nosuid:nodev:noexec"),
        mount(&at("file"), "/etc/file", "rw"),
    ];
    let flags: Vec<_> = mounts
        .iter()
        .flat_map(|it| ["--mount", it.as_str()])
        .collect();
    let container = |id| ctr.container(id, Image::Busybox, RUNTIME).flags(&flags);
    let task = container("volumes").detach(&["sleep", "600"])?;
    let script = "cat /data/there /read/it /etc/file; echo new > /data/new; echo two > /etc/file; \
                  touch /read/no 2>/dev/null || echo kept; cp /bin/busybox /plain/x; \
                  /plain/x true 2>/dev/null || echo plain; grep ' /plain ' /proc/mounts";
    let seen = task.output(script)?;
    ensure!(seen.starts_with("hostronekept\nplain\n"), "{seen}");
    ensure!(seen.contains("rw,nosuid,nodev,noexec"), "{seen}");
    ensure!(fs::read_to_string(at("data/new"))? == "new\n");
    ensure!(fs::read_to_string(at("file"))? == "two\n");
    ensure!(fs::read_dir(at("read"))?.count() == 1);
    // The other way; names and attributes may be a second old.
    fs::write(at("data/below/later"), "later\n")?;
    fs::write(at("read/it"), "changed\n")?;
    let sees = |script: &str, expected: &str| {
        until(expected, SOON, Sources::none(), || {
            Ok((task.exec(&["sh", "-c", script])?.stdout() == expected).then_some(()))
        })
    };
    sees("cat /data/below/later", "later\n")?;
    sees("cat /read/it", "changed\n")?;
    // Links lead where they do in the container.
    let secret = at("secret").display().to_string();
    let script =
        format!("ln -s {secret} /data/link; ln -s ../secret /data/up; cat /data/link /data/up");
    ensure!(task.exec(&["sh", "-c", &script])?.code() != 0);
    ensure!(fs::read_link(at("data/link"))? == at("secret"));
    are_killed(containerd, &task)?;

    // What is left is the host's alone.
    let again = container("again").output("cat /data/new; rm -r /data/*")?;
    ensure!(again == "new\n", "{again:?}");
    ensure!(fs::read_dir(at("data"))?.count() == 0);
    Ok(())
}

/// virtiofsd lives in the container's cgroup; without it the machine has ended.
fn are_killed(containerd: &Containerd, task: &Task<'_>) -> Result<()> {
    let qemu = task.pid()?;
    let cgroup = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let all = processes()?.into_values();
    let served: Vec<_> = all.filter(|it| it.command.contains("virtiofsd")).collect();
    let mut ours = Vec::new();
    for process in served {
        // Another test's may end meanwhile.
        if cgroup(process.pid).is_ok_and(|it| cgroup(qemu).is_ok_and(|own| own == it)) {
            ours.push(process.pid);
        }
    }
    ensure!(ours.len() == 2, "{ours:?} serve {qemu}");
    kill(Pid::from_raw(ours[1]), Signal::SIGKILL)?;
    let code = task.remove()?;
    ensure!(code == 255, "expected 255, got {code}");
    let log = containerd.log_tail();
    ensure!(
        log.contains("virtiofsd has ended under a virtual machine"),
        "{log}"
    );
    Ok(())
}

#[test]
fn copies_of_a_template_are_machines_of_their_own_and_the_next_one_boots_without() {
    check_newest(|containerd, home| {
        copies(containerd)?;
        a_damaged_one_is_refused(containerd, home)?;
        holder_is_killed(containerd, home)
    })
    .unwrap();
}

/// Whether a machine went on from a template.
fn is_copy(task: &Task<'_>) -> Result<bool> {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", task.pid()?))?;
    ensure!(line.starts_with("/usr/bin/qemu-system"), "{line}");
    Ok(line.contains("-incoming"))
}

fn copies(containerd: &Containerd) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let start = |id: &'static str, flags: &[&str]| {
        let container = ctr.container(id, Image::Busybox, RUNTIME).flags(flags);
        container.detach(&["sleep", "600"])
    };
    let seconds = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map(|now| now.as_secs())
    };
    let first = start("first", &["--hostname", "one"])?;
    let second = start("second", &["--hostname", "two"])?;
    ensure!(is_copy(&first)? && is_copy(&second)?, "they have booted");
    let script = "hostname; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum; \
                  cat /proc/sys/kernel/random/uuid";
    let [one, two] = [first.output(script)?, second.output(script)?];
    ensure!(
        one.starts_with("one\n") && two.starts_with("two\n"),
        "{one} {two}"
    );
    let pairs = one.lines().zip(two.lines());
    ensure!(
        pairs.clone().count() == 4 && pairs.clone().all(|(one, two)| one != two),
        "{one} {two}"
    );
    let before = seconds()?;
    let told: u64 = second.output("date +%s")?.trim().parse()?;
    ensure!(before <= told && told <= seconds()?, "{told}");
    let never = start("never", &["--annotation", "org.pouch.runv.template=never"])?;
    ensure!(!is_copy(&never)?, "it has something in common with others");
    for task in [first, second, never] {
        task.kill_and_remove()?;
    }
    let other = ["--annotation", "org.pouch.runv.template=nevr"];
    let other = ctr
        .container("other", Image::Busybox, RUNTIME)
        .flags(&other);
    let ended = other.run(&["true"])?;
    ensure!(ended.stderr().contains("the nearest is never"), "{ended}");
    Ok(())
}

/// The holder of the one template that there is, and its key.
fn holder_of(home: &Home) -> Result<(i32, String)> {
    let listed = home.runv(&["template", "ls"])?;
    let (key, rest) = listed.split_once("  held by ").context("one is held")?;
    let (pid, _) = rest.split_once(':').context("its holder")?;
    Ok((pid.parse()?, key.trim().to_owned()))
}

fn is_held_again(home: &Home) -> Result<()> {
    until("another is made", BOOT, Sources::none(), || {
        let listed = home.runv(&["template", "ls"])?;
        Ok(listed.contains("held by").then_some(()))
    })
}

/// Answers in a holder's place, with memory of zeros and a state that is none, until it is told why it is refused.
fn hold_damaged(listener: &UnixListener) -> Result<String> {
    let memory = File::from(rustix::fs::memfd_create("zeros", MemfdFlags::CLOEXEC)?);
    memory.set_len(512 << 20)?;
    let mut state = tempfile::tempfile()?;
    state.write_all(b"no state of a machine")?;
    let held = r#"{"bytes": 0, "age_s": 0, "unused_s": 0, "uses": 0}"#;
    let report =
        format!(r#"{{"pid": 1, "memory_mib": 512, "processors": 1, "links": 0, "held": {held}}}"#);
    loop {
        ensure!(is_readable(listener.as_fd(), BOOT)?, "nobody takes it");
        let (mut asker, _) = listener.accept()?;
        let mut question = String::new();
        asker.read_to_string(&mut question)?;
        let files: &[BorrowedFd<'_>] = match question.starts_with('t') {
            true => &[memory.as_fd(), state.as_fd()],
            false => &[],
        };
        let sent = sys::send_with_fds(&asker, report.as_bytes(), files)?;
        asker.write_all(&report.as_bytes()[sent..])?;
        if let Some(why) = question.strip_prefix('r') {
            return Ok(why.to_owned());
        }
    }
}

/// A machine that does not go on from its template boots instead, and tells why.
fn a_damaged_one_is_refused(containerd: &Containerd, home: &Home) -> Result<()> {
    let (holder, key) = holder_of(home)?;
    kill(Pid::from_raw(holder), Signal::SIGKILL)?;
    for_end_of(holder, SOON)?;
    let socket = Path::new(&home.variable().1).join(format!("templates/{key}.socket"));
    fs::remove_file(&socket)?;
    let listener = UnixListener::bind(&socket)?;
    let container = Ctr::of(containerd).container("damaged", Image::Busybox, RUNTIME);
    let (task, why) = thread::scope(|scope| {
        let held = scope.spawn(|| hold_damaged(&listener));
        let task = container.detach(&["sleep", "600"]);
        (task, held.join().expect("it does not panic"))
    });
    let (task, why) = (task?, why?);
    ensure!(!is_copy(&task)?, "it goes on from nothing");
    task.exec(&["true"])?.success()?;
    ensure!(
        why.contains("QEMU said: ") && why.contains("migration"),
        "{why}"
    );
    let log = containerd.log_tail();
    ensure!(
        log.contains("no machine goes on from this template"),
        "{log}"
    );
    task.kill_and_remove()?;
    is_held_again(home)
}

/// Then there is none, until one is made after the next machine has booted.
fn holder_is_killed(containerd: &Containerd, home: &Home) -> Result<()> {
    kill(Pid::from_raw(holder_of(home)?.0), Signal::SIGKILL)?;
    let ctr = Ctr::of(containerd);
    let start = |id| {
        let container = ctr.container(id, Image::Busybox, RUNTIME);
        container.detach(&["sleep", "600"])
    };
    let booted = start("booted")?;
    ensure!(!is_copy(&booted)?, "of a template that is gone");
    is_held_again(home)?;
    let copy = start("copy")?;
    ensure!(is_copy(&copy)?, "it has booted");
    for task in [booted, copy] {
        task.kill_and_remove()?;
    }
    home.runv(&["template", "rm", "--all"])?;
    let listed = home.runv(&["template", "ls"])?;
    ensure!(listed.is_empty(), "{listed}");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_in_one_line_and_leaves_nothing() {
    check_newest(|containerd, home| refusals(containerd, &home.variable().1)).unwrap();
}

fn refusals(containerd: &Containerd, home: &str) -> Result<()> {
    let ctr = Ctr::of(containerd);
    let refused = |id: &str, flags: &[&str], expected: &str| {
        let container = ctr.container(id, Image::Busybox, RUNTIME).flags(flags);
        let ended = container.run(&["true"])?;
        ensure!(ended.code() != 0, "{id} ran: {ended}");
        ensure!(ended.stderr().contains(expected), "{id}: {ended}");
        anyhow::Ok(())
    };
    let annotation = "org.pouch.runv.volumes";
    let [copies, odd] = ["copied", "live"].map(|word| format!("{annotation}={word}"));
    refused("odd", &["--annotation", &odd], "neither shared nor copied")?;
    let written = mount(&containerd.work(), "/data", "rw");
    let flags = ["--annotation", &copies, "--mount", &written];
    refused("written", &flags, "can be written, and the annotation")?;
    refused(
        "outward",
        &["--mount", &mount(&containerd.work(), "/data", "rshared")],
        "does not reach the host",
    )?;
    fs::write(containerd.work().join("file"), "copied\n")?;
    let read = mount(&containerd.work(), "/data", "ro");
    let flags = ["--annotation", &copies, "--mount", &read];
    let copied = ctr.container("copied", Image::Busybox, RUNTIME);
    let copied = copied.flags(&flags).output("cat /data/file")?;
    ensure!(copied == "copied\n", "{copied:?}");
    let view = ["--annotation", "org.pouch.view=lxcfs"];
    refused("view", &view, "org.pouch.view")?;
    let initramfs = format!("{home}/guest/initramfs");
    fs::write(&initramfs, "no archive")?;
    refused("broken", &[], "the virtual machine did not come up")?;
    fs::remove_file(&initramfs)?;
    refused("none", &[], "runv image build")
}
