//! From Hello to the end of the program.

use std::io::Write;

use launch::plan::{InitPlan, RootEntry, Toggle};
use nix::sys::signal::{Signal, kill};
use sys::ExitStatus;

use crate::host::{Container, Extras, output_of, refusal_of};
use crate::image::{Image, KILL_PROCESS, filter, mount, set_mode};

#[test]
fn a_program_runs_as_pid_1_on_its_own_root_and_its_status_arrives() {
    let image = Image::new();
    let plan = InitPlan {
        hostname: Some("inside".to_owned()),
        domainname: Some("nis.inside".to_owned()),
        ..image.plan(
            "echo $$ $(pwd) $(hostname) $(cat /proc/sys/kernel/domainname) $HOME; ls /; exit 7",
        )
    };
    let (container, masters) = Container::create(plan).unwrap();
    assert!(masters.is_empty());
    container.start().unwrap();
    let (output, status) = container.finish();
    assert_eq!(
        output,
        "1 / inside nis.inside /root\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n"
    );
    assert_eq!(status, ExitStatus::Exited(7));
}

#[test]
fn nothing_of_the_hosts_tree_is_left_in_the_namespace() {
    let image = Image::new();
    let script = "cut -d' ' -f5 /proc/self/mountinfo | sort; cd ..; pwd; ls /proc/1/root/";
    for entry in [RootEntry::Pivot, RootEntry::MoveChroot] {
        let mut plan = image.plan(script);
        plan.root.entry = entry;
        let output = output_of(plan);
        let points = "/\n/dev\n/dev/pts\n/proc\n/sys\n/\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n";
        if entry == RootEntry::Pivot {
            assert_eq!(output, points);
        } else {
            // The old root is below, out of reach of a process whose root is not the topmost.
            assert!(
                output.ends_with("/\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n"),
                "{output}"
            );
            assert!(!output.contains("/work"), "{output}");
        }
    }
}

#[test]
fn a_host_that_goes_away_leaves_no_stub_behind() {
    let container = Container::hello(Extras::default());
    assert_eq!(container.abandon(), ExitStatus::Exited(0));
}

#[test]
fn only_a_start_starts() {
    let image = Image::new();
    let (container, _) = Container::create(image.plan("echo started")).unwrap();
    drop(container.connect());
    container.connect().write_all(b"\x01\0\0\0\xff").unwrap();
    container.connect().write_all(&[0xff; 64]).unwrap();
    container.start().unwrap();
    assert_eq!(
        container.finish(),
        ("started\n".to_owned(), ExitStatus::Exited(0))
    );
}

#[test]
fn a_connection_that_says_nothing_keeps_nobody_from_starting() {
    let image = Image::new();
    let (container, _) = Container::create(image.plan("echo started")).unwrap();
    let silent = container.connect();
    container.start().unwrap();
    assert_eq!(container.finish().0, "started\n");
    drop(silent);
}

#[test]
fn a_signal_ends_a_container_that_was_not_started() {
    let image = Image::new();
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGUSR1, 138)] {
        let (container, _) = Container::create(image.plan("true")).unwrap();
        container.wait_until_it_waits();
        kill(container.pid, signal).unwrap();
        let (output, end) = container.finish();
        assert_eq!((output.as_str(), end.code()), ("", status));
    }
}

#[test]
fn parameters_are_those_of_the_containers_namespaces() {
    let image = Image::new();
    std::fs::create_dir_all(image.path("fake/sys/net/ipv4")).unwrap();
    image.write("fake/sys/net/ipv4/ip_forward", "fake");
    let mut plan = image.plan("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax");
    plan.sysctl = [("net.ipv4.ip_forward", "1"), ("kernel.msgmax", "4711")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    plan.readonly_paths = vec!["/proc/sys".to_owned()];
    assert_eq!(output_of(plan.clone()), "1\n4711\n");
    assert_ne!(
        std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(),
        "4711\n"
    );

    // Without a procfs, and with an image that has a /proc of its own making, they are set all the
    // same and the image's files stay untouched (CVE-2025-52881).
    plan.mounts.remove(0);
    plan.readonly_paths.clear();
    std::fs::remove_dir(image.path("proc")).unwrap();
    std::fs::rename(image.path("fake"), image.path("proc")).unwrap();
    assert!(Container::create(plan).is_ok());
    let untouched = std::fs::read_to_string(image.path("proc/sys/net/ipv4/ip_forward")).unwrap();
    assert_eq!(untouched, "fake");

    let mut plan = image.plan("true");
    plan.mounts.remove(0);
    plan.sysctl = vec![("net.ipv4.no_such".to_owned(), "1".to_owned())];
    let (text, _) = refusal_of(plan);
    assert_eq!(
        text,
        "write sysctl net.ipv4.no_such = \"1\": no such file or directory"
    );
}

#[test]
fn the_oom_score_is_set_also_where_it_could_not_be_later() {
    let image = Image::new();
    let mut plan = image.plan("cat /proc/self/oom_score_adj");
    plan.process.oom_score_adj = Some(321);
    plan.process.uid = 1000;
    assert_eq!(output_of(plan), "321\n");
}

fn in_user_namespace(plan: InitPlan, user: Option<u32>) -> Result<(String, ExitStatus), String> {
    let more = &["--user", "--map-root-user"];
    let extras = Extras {
        more,
        user,
        ..Extras::default()
    };
    let created = Container::create_with(plan, extras);
    let (container, _) = created.map_err(|failed| failed.failure.to_string())?;
    container.start().map_err(|failure| failure.to_string())?;
    Ok(container.finish())
}

/// A plan for a user namespace in which gid 5 is not mapped.
fn plan_without_gid_5(image: &Image, script: &str) -> InitPlan {
    let mut plan = image.plan(script);
    plan.mounts[2] = mount(
        "devpts",
        "devpts",
        "/dev/pts",
        &["newinstance", "ptmxmode=0666"],
    );
    plan
}

#[test]
fn a_user_namespace_gets_the_hosts_devices() {
    let image = Image::new();
    let script = "echo x >/dev/null; head -c2 /dev/zero | wc -c; cat /proc/self/uid_map";
    let mut plan = plan_without_gid_5(&image, script);
    plan.process.oom_score_adj = Some(500);
    for user in [0, 12345] {
        let map = format!("2\n         0 {user:10}          1\n");
        let user = Some(user).filter(|user| *user != 0);
        assert_eq!(
            in_user_namespace(plan.clone(), user),
            Ok((map, ExitStatus::Exited(0)))
        );
    }
    plan.process.uid = 1;
    let refused =
        "cannot setuid to an id that the user namespace lacks, user 1:0: invalid argument";
    assert_eq!(in_user_namespace(plan, None), Err(refused.to_owned()));
}

#[test]
fn a_closed_folder_on_the_way_to_the_root_is_named() {
    let image = Image::new();
    let closed = image.outside("");
    set_mode(&closed, 0o700);
    let refused = in_user_namespace(plan_without_gid_5(&image, "true"), Some(12345));
    let root = image.path("");
    assert_eq!(
        refused,
        Err(format!(
            "prepare root file system {}: no way through {} (mode 0700): permission denied",
            root.to_str().unwrap().trim_end_matches('/'),
            closed.to_str().unwrap().trim_end_matches('/'),
        ))
    );
}

/// A filter that kills who polls and would wait: the standard library looks at its descriptors when
/// a program begins.
fn no_waiting_poll() -> [u64; 6] {
    const LOAD: u64 = 0x20;
    const JUMP_IF_EQUAL: u64 = 0x15;
    const RETURN: u64 = 0x06;
    const ALLOW: u64 = 0x7fff_0000;
    const TIMEOUT: u64 = 32;
    let call = u64::try_from(nix::libc::SYS_poll).unwrap();
    [
        LOAD,
        JUMP_IF_EQUAL | 3 << 24 | call << 32,
        LOAD | TIMEOUT << 32,
        JUMP_IF_EQUAL | 1 << 16,
        RETURN | u64::from(KILL_PROCESS) << 32,
        RETURN | ALLOW << 32,
    ]
}

/// Every call that could wait for time to pass kills who makes it.
#[test]
fn nothing_is_waited_for_on_the_way_to_ready() {
    use nix::libc;
    let image = Image::new();
    let mut plan = image.plan("true");
    plan.masked_paths = ["/proc/kcore", "/proc/keys", "/sys/firmware"]
        .map(str::to_owned)
        .to_vec();
    plan.readonly_paths = ["/proc/sys", "/proc/bus"].map(str::to_owned).to_vec();
    plan.root.readonly = Toggle::On;
    // In a thread of its own: what it starts has its filters.
    let thread = std::thread::spawn(move || {
        for call in [
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_ppoll,
            libc::SYS_select,
            libc::SYS_pselect6,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
        ] {
            let filter = filter(call, KILL_PROCESS);
            sys::process::load_seccomp(&filter.program, filter.flags).unwrap();
        }
        sys::process::load_seccomp(&no_waiting_poll(), 0).unwrap();
        let (container, _) = Container::create(plan).unwrap();
        // Now it waits for the start, which proves that the filters are there.
        container.finish().1
    });
    assert_eq!(thread.join().unwrap().code(), 128 + 31);
}
