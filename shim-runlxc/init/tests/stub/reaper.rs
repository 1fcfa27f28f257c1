//! The stub as pid 1 that stays, with the program as its child.

use launch::control::FailureKind;
use launch::plan::{CapabilitySets, Hook, InitPlan, PidOne, Restart, Rewrite, TerminalSize};
use nix::sys::signal::{Signal, kill};
use std::os::fd::OwnedFd;
use sys::ExitStatus;

use crate::host::{Container, Extras, refusal_of};
use crate::image::{Image, KILL_PROCESS, filter, mount};
use crate::terminal::text_of;

/// Longer than any signal takes; a program that does not get its own fails the test then. What a
/// shell says of a `sleep` that was signalled too is of no interest.
const WAIT: &str = "exec 2>/dev/null; n=0; \
                    while [ $n -lt 20 ]; do n=$((n+1)); sleep 1; done; echo waited";

fn with_reaper(plan: InitPlan) -> InitPlan {
    with_rewrites(plan, &[])
}

fn with_rewrites(plan: InitPlan, rewrites: &[(Signal, Option<Signal>)]) -> InitPlan {
    let rewrite = |&(from, to): &(Signal, Option<Signal>)| Rewrite {
        from: from as i32,
        to: to.map(|signal| signal as i32),
    };
    let rewrites = rewrites.iter().map(rewrite).collect();
    InitPlan {
        pid_one: PidOne::Stub {
            rewrites,
            services: None,
            restart: Restart::Never,
        },
        ..plan
    }
}

fn run(plan: InitPlan) -> (String, i32) {
    let (container, _) = Container::create(plan).unwrap();
    container.start().unwrap();
    let (output, status) = container.finish();
    (output, status.code())
}

#[test]
fn the_program_is_a_child_of_pid_1_and_its_status_is_the_containers() {
    let image = Image::new();
    let script = "cat /proc/1/comm; cut -d' ' -f4 /proc/$$/stat; \
                  [ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo leads; exit 7";
    let plan = with_reaper(image.plan(script));
    assert_eq!(run(plan), ("runlxc-init\n1\nleads\n".to_owned(), 7));
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("37", 165)] {
        let plan = with_reaper(image.plan(&format!("kill -{signal} $$; {WAIT}")));
        assert_eq!(run(plan), (String::new(), code), "{signal}");
    }
}

#[test]
fn orphans_are_reaped_and_do_not_end_the_container() {
    let image = Image::new();
    // The shell between the two ends first, or last: both orphans have to go.
    let script = "for i in 1 2 3; do \
                    sh -c 'sh -c \"exit 9\" & echo $! >/tmp/orphan'; orphan=$(cat /tmp/orphan); n=0; \
                    while [ -e /proc/$orphan ] && [ $n -lt 1000000 ]; do n=$((n+1)); done; \
                    [ -e /proc/$orphan ] && echo zombie $orphan; \
                  done; \
                  sleep 1000 & exit 4";
    assert_eq!(
        run(with_reaper(image.plan(script))),
        (String::new(), 4),
        "and what still runs ends with the program"
    );
}

#[test]
fn signals_reach_the_whole_group_of_the_program() {
    let image = Image::new();
    // What is in the background of a shell without job control is in its group.
    let script = format!(
        "sh -c 'trap \"echo child; exit\" TERM; echo >/tmp/up; {WAIT}' & \
         until [ -e /tmp/up ]; do :; done; trap 'wait; echo own; exit 5' TERM; kill -TERM 1; {WAIT}"
    );
    let plan = with_reaper(image.plan(&script));
    assert_eq!(run(plan), ("child\nown\n".to_owned(), 5));

    let script = format!("trap 'echo real-time; exit 6' 37; kill -37 1; {WAIT}");
    let plan = with_reaper(image.plan(&script));
    assert_eq!(run(plan), ("real-time\n".to_owned(), 6));
}

#[test]
fn signals_are_rewritten_or_kept_from_the_program() {
    let image = Image::new();
    let script = format!(
        "trap 'echo hup' HUP; trap 'echo term' TERM; trap 'echo quit; exit 3' QUIT; \
         kill -HUP 1; kill -TERM 1; {WAIT}"
    );
    let rewrites = [
        (Signal::SIGTERM, Some(Signal::SIGQUIT)),
        (Signal::SIGHUP, None),
    ];
    let plan = with_rewrites(image.plan(&script), &rewrites);
    assert_eq!(run(plan), ("quit\n".to_owned(), 3));
}

#[test]
fn a_container_that_was_not_started_ends_by_a_signal_and_without_a_host() {
    let image = Image::new();
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGUSR1, 138)] {
        let (container, _) = Container::create(with_reaper(image.plan("true"))).unwrap();
        container.wait_until_it_waits();
        kill(container.pid, signal).unwrap();
        assert_eq!(container.finish().1.code(), status);
    }
    let container = Container::hello(Extras::default());
    assert_eq!(container.abandon(), ExitStatus::Exited(0));
}

#[test]
fn what_cannot_run_is_named_as_ever() {
    let image = Image::new();
    let mut plan = with_reaper(image.plan(""));
    plan.process.args = vec!["/no/foo".to_owned()];
    let text = "exec: \"/no/foo\": stat /no/foo: no such file or directory";
    let expected = (text.to_owned(), FailureKind::Executable);
    assert_eq!(refusal_of(plan.clone()), expected);

    image.write("garbage", "\x01\x02");
    crate::image::set_mode(&image.path("garbage"), 0o755);
    plan.process.args = vec!["/garbage".to_owned()];
    let (container, _) = Container::create(plan).unwrap();
    let failure = container.start().unwrap_err();
    assert_eq!(failure.to_string(), "exec /garbage: exec format error");
    assert_eq!(container.finish(), (String::new(), ExitStatus::Exited(255)));
}

#[test]
fn hooks_run_before_the_program() {
    let image = Image::new();
    let mut plan = with_reaper(image.plan("cat /tmp/hook"));
    plan.start_container_hooks = vec![Hook {
        path: "/bin/sh".to_owned(),
        args: ["sh", "-c", "cat >/tmp/hook"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        timeout_s: Some(20),
    }];
    let state = "{\"status\":\"created\",\"pid\":1}".to_owned();
    assert_eq!(run(plan), (state, 0));
}

#[test]
fn pid_1_has_no_right_but_to_signal_and_nothing_of_the_host() {
    let image = Image::new();
    let script = "grep -E '^(Cap|Seccomp:|SigBlk)' /proc/1/status | tr -d '\\t'; \
                  for fd in /proc/1/fd/*; do readlink $fd; done; readlink /proc/1/cwd; \
                  sleep 1000 & readlink /proc/self/fd/3";
    let mut plan = with_reaper(image.plan(script));
    let (kill, setuid, sys_ptrace, net_raw) = (1 << 5, 1 << 7, 1 << 19, 1 << 13);
    let all = kill | setuid | sys_ptrace | net_raw;
    plan.process.capabilities = Some(CapabilitySets {
        bounding: all,
        effective: all,
        inheritable: 0,
        permitted: all,
        ambient: 0,
    });
    plan.process.seccomp = Some(filter(nix::libc::SYS_acct, KILL_PROCESS));
    plan.process.preserve_fds = 1;
    let kept = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
    let extras = Extras {
        fds: vec![kept],
        ..Extras::default()
    };
    let (container, _) = Container::create_with(plan, extras).unwrap();
    container.start().unwrap();
    let (output, _) = container.finish();
    let sets = "CapInh:0000000000000000\nCapPrm:0000000000000020\nCapEff:0000000000000020\n\
                CapBnd:00000000000820a0\nCapAmb:0000000000000000\nSeccomp:2\n";
    let (blocked, rest) = output.split_once('\n').unwrap();
    assert!(blocked.starts_with("SigBlk:ffffff"), "{output}");
    let open = "/dev/null\n/dev/null\n/dev/null\nanon_inode:[signalfd]\n/\n";
    assert_eq!(rest, format!("{sets}{open}/dev/zero\n"));
}

#[test]
fn a_program_of_another_user_is_signalled_too() {
    let image = Image::new();
    let script = format!("trap 'echo term; exit 5' TERM; echo >/tmp/up; {WAIT}");
    let mut plan = with_reaper(image.plan(&script));
    crate::image::set_mode(&image.path("tmp"), 0o1777);
    plan.process.uid = 1000;
    plan.process.capabilities = Some(CapabilitySets {
        bounding: 0,
        effective: 0,
        inheritable: 0,
        permitted: 0,
        ambient: 0,
    });
    let (container, _) = Container::create(plan).unwrap();
    container.start().unwrap();
    while !image.path("tmp/up").exists() {
        std::thread::yield_now();
    }
    kill(container.pid, Signal::SIGTERM).unwrap();
    assert_eq!(
        container.finish(),
        ("term\n".to_owned(), ExitStatus::Exited(5))
    );
}

#[test]
fn a_terminals_signals_reach_its_foreground_alone() {
    let image = Image::new();
    let script = format!(
        "tty; trap 'echo shell-int' INT; trap 'echo shell-term; kill %1; exit 4' TERM; set -m; \
         sh -c 'trap \"echo job-int; exit 3\" INT; trap \"echo job-term\" TERM; kill -INT 1; {WAIT}'; \
         echo job $?; sleep 1000 & kill -TERM 1; {WAIT}"
    );
    let mut plan = with_reaper(image.plan(&script));
    plan.process.terminal = Some(TerminalSize {
        rows: 0,
        columns: 0,
    });
    let (container, masters) = Container::create(plan).unwrap();
    let [master] = <[OwnedFd; 1]>::try_from(masters).unwrap();
    container.start().unwrap();
    let text = text_of(master);
    assert_eq!(container.finish().1, ExitStatus::Exited(4));
    assert_eq!(text, "/dev/pts/0\njob-int\njob 3\nshell-term\n");
}

#[test]
fn it_stays_in_a_user_namespace_too() {
    let image = Image::new();
    let mut plan = with_reaper(image.plan("cat /proc/1/comm; exit 2"));
    plan.mounts[2] = mount("devpts", "devpts", "/dev/pts", &["newinstance"]);
    let extras = Extras {
        more: &["--user", "--map-root-user"],
        user: Some(12345),
        ..Extras::default()
    };
    let (container, _) = Container::create_with(plan, extras).unwrap();
    container.start().unwrap();
    let (output, status) = container.finish();
    assert_eq!((output.as_str(), status.code()), ("runlxc-init\n", 2));
}

/// Answers ENOSYS to every system call that came after 2.6.32.
fn old_kernel() -> [u64; 4] {
    const LOAD: u64 = 0x20;
    const JUMP_IF_GREATER: u64 = 0x25;
    const RETURN: u64 = 0x06;
    const ALLOW: u64 = 0x7fff_0000;
    const ERRNO: u64 = 0x0005_0000;
    const LAST_CALL: u64 = 298;
    [
        LOAD,
        JUMP_IF_GREATER | 1 << 24 | LAST_CALL << 32,
        RETURN | (ERRNO | 38) << 32,
        RETURN | ALLOW << 32,
    ]
}

#[test]
fn it_needs_nothing_that_came_after_linux_2_6_32() {
    let image = Image::new();
    let script = format!("(sh -c true &); trap 'echo term; exit 5' TERM; kill -TERM 1; {WAIT}");
    let plan = with_reaper(image.plan(&script));
    // In a thread of its own: what it starts has its filter.
    let thread = std::thread::spawn(move || {
        sys::process::load_seccomp(&old_kernel(), 0).unwrap();
        assert!(sys::process::pidfd_open(sys::Pid::this()).is_err());
        run(plan)
    });
    assert_eq!(thread.join().unwrap(), ("term\n".to_owned(), 5));
}
