//! Processes that join.

use std::os::unix::fs::MetadataExt;

use launch::control::FailureKind;
use launch::plan::{CapabilitySets, ExecPlan, JoinNamespace, Process, TerminalSize};
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use sys::ExitStatus;

use crate::host::{Container, Extras, Joining};
use crate::image::{Image, filter, mount, process};
use crate::terminal::text_of;

const ALL: [(CloneFlags, &str); 5] = [
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
];

fn joining(init: Pid, process: Process) -> ExecPlan {
    let namespaces = ALL.map(|(flag, name)| JoinNamespace {
        flag: flag.bits(),
        path: format!("/proc/{init}/ns/{name}"),
    });
    ExecPlan {
        namespaces: namespaces.to_vec(),
        root: None,
        process,
    }
}

fn running(image: &Image) -> Container {
    let mut plan = image.plan("sleep 1000");
    plan.hostname = Some("inside".to_owned());
    let (container, _) = Container::create(plan).unwrap();
    container.start().unwrap();
    container
}

#[test]
fn it_is_in_all_namespaces_and_a_child_of_who_started_it() {
    let image = Image::new();
    let container = running(&image);
    let script = "hostname; pwd; ls /; test $$ -lt 100 && echo low; readlink /proc/self/exe; \
                  ls /proc/self/fd; exit 9";
    let mut plan = joining(container.pid, process(&["sh", "-c", script]));
    plan.process.cwd = "/tmp".to_owned();
    let joining = Joining::prepare(plan).unwrap();
    let pid = joining.pid();
    for (_, name) in ALL {
        let number = |of: Pid| {
            std::fs::metadata(format!("/proc/{of}/ns/{name}"))
                .unwrap()
                .ino()
        };
        assert_eq!(number(pid), number(container.pid), "{name}");
    }
    // Closed to the container until it is the program (CVE-2016-9962).
    let environ = format!("/proc/{pid}/environ");
    assert_eq!(std::fs::metadata(environ).unwrap().uid(), 0);
    joining.start().unwrap();
    let (output, status) = joining.finish();
    assert_eq!(
        output,
        "inside\n/tmp\nbin\ndev\netc\nproc\nroot\nsys\ntmp\nlow\n/bin/busybox\n0\n1\n2\n3\n"
    );
    assert_eq!(status, ExitStatus::Exited(9));
}

#[test]
fn it_has_the_rights_and_the_home_of_its_user() {
    let image = Image::new();
    let container = running(&image);
    let mut process = process(&[
        "sh",
        "-c",
        "id -u; id -G; echo $HOME; ulimit -n; \
        grep -E 'CapBnd|NoNew|Seccomp:' /proc/self/status; mkdir /tmp/x; cat /proc/self/oom_score_adj",
    ]);
    process.uid = 1000;
    process.gid = 1000;
    process.additional_gids = vec![7];
    process.oom_score_adj = Some(77);
    process.rlimits = vec![(7, 100, 100)];
    process.capabilities = Some(CapabilitySets {
        bounding: 1,
        effective: 1,
        inheritable: 0,
        permitted: 1,
        ambient: 0,
    });
    process.seccomp = Some(filter(nix::libc::SYS_mkdir, 0x0005_0000 | 117));
    let joining = Joining::prepare(joining(container.pid, process)).unwrap();
    joining.start().unwrap();
    assert_eq!(
        joining.finish(),
        (
            "1000\n1000 7\n/home/u\n100\nCapBnd:\t0000000000000001\nNoNewPrivs:\t0\nSeccomp:\t2\n\
             mkdir: can't create directory '/tmp/x': Structure needs cleaning\n77"
                .to_owned()
                + "\n",
            ExitStatus::Exited(0)
        )
    );
}

#[test]
fn its_terminal_is_of_the_containers_devpts() {
    let image = Image::new();
    let container = running(&image);
    let mut process = process(&[
        "sh",
        "-c",
        "tty; stty size; echo x >/dev/tty; ls -l /dev/console 2>&1",
    ]);
    process.terminal = Some(TerminalSize {
        rows: 10,
        columns: 110,
    });
    let mut joining = Joining::prepare(joining(container.pid, process)).unwrap();
    let master = joining.master.take().unwrap();
    joining.start().unwrap();
    let text = text_of(master);
    assert_eq!(
        text,
        "/dev/pts/0\n10 110\nx\nls: /dev/console: No such file or directory\n"
    );
    assert_eq!(joining.finish().1, ExitStatus::Exited(1));
}

#[test]
fn what_cannot_be_is_told_in_runcs_words() {
    let image = Image::new();
    let container = running(&image);
    let check = |change: fn(&mut ExecPlan), text: &str, kind: FailureKind| {
        let mut plan = joining(container.pid, process(&["true"]));
        change(&mut plan);
        let failure = Joining::prepare(plan).map(|_| ()).unwrap_err();
        assert_eq!((failure.to_string().as_str(), failure.kind), (text, kind));
    };
    check(
        |plan| plan.process.args[0] = "foo".to_owned(),
        "exec: \"foo\": executable file not found in $PATH",
        FailureKind::Executable,
    );
    check(
        |plan| plan.process.cwd = "/no/such".to_owned(),
        "chdir to cwd (\"/no/such\") set in config.json failed: no such file or directory",
        FailureKind::Request,
    );
    check(
        |plan| plan.process.cwd = "/etc/passwd".to_owned(),
        "chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory",
        FailureKind::Request,
    );
    check(
        |plan| plan.namespaces[0].path = "/no/such/ns".to_owned(),
        "open namespace /no/such/ns: no such file or directory",
        FailureKind::Host,
    );
    check(
        |plan| plan.namespaces[0].path = "/dev/null".to_owned(),
        "join namespace /dev/null: invalid argument",
        FailureKind::Host,
    );
    check(
        |plan| {
            plan.process.env.push("X".to_owned());
        },
        "invalid environment variable: missing '='",
        FailureKind::Request,
    );
}

#[test]
fn it_joins_a_user_namespace_as_its_root() {
    let image = Image::new();
    let more = &["--user", "--map-root-user"];
    let mut plan = image.plan("sleep 1000");
    plan.mounts[2] = mount(
        "devpts",
        "devpts",
        "/dev/pts",
        &["newinstance", "ptmxmode=0666"],
    );
    let (container, _) = Container::create_with(
        plan,
        Extras {
            more,
            ..Extras::default()
        },
    )
    .unwrap();
    container.start().unwrap();
    let mut plan = joining(
        container.pid,
        process(&["sh", "-c", "id -u; cat /proc/self/uid_map"]),
    );
    let user = JoinNamespace {
        flag: CloneFlags::CLONE_NEWUSER.bits(),
        path: format!("/proc/{}/ns/user", container.pid),
    };
    plan.namespaces.insert(0, user);
    let joining = Joining::prepare(plan).unwrap();
    joining.start().unwrap();
    let expected = "0\n         0          0          1\n".to_owned();
    assert_eq!(joining.finish(), (expected, ExitStatus::Exited(0)));
}

#[test]
fn it_ends_when_its_host_side_does() {
    let image = Image::new();
    let container = running(&image);
    let joining = Joining::prepare(joining(container.pid, process(&["true"]))).unwrap();
    assert_eq!(joining.finish(), (String::new(), ExitStatus::Exited(0)));
}
