//! Pid 1 that starts further processes: what they are, what they have, who is told of their ends.

use std::io::Write;
use std::os::unix::net::UnixStream;

use launch::control::{self, Ended, FailureKind, FromStub, Received};
use launch::plan::{CapabilitySets, ExecPlan, InitPlan, PidOne};

use crate::host::{Container, Extras, exec_by_agent, read_all};
use crate::image::Image;

const KILL: u64 = 1 << 5;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

fn sets(all: u64) -> Option<CapabilitySets> {
    Some(CapabilitySets {
        bounding: all,
        effective: all,
        inheritable: 0,
        permitted: all,
        ambient: 0,
    })
}

fn with_agent(plan: InitPlan) -> Container {
    let plan = InitPlan {
        pid_one: PidOne::stub(),
        ..plan
    };
    let extras = Extras {
        agent: true,
        ..Extras::default()
    };
    Container::create_with(plan, extras).unwrap().0
}

fn exec(image: &Image, script: &str) -> ExecPlan {
    let mut process = image.plan(script).process;
    process.capabilities = sets(NET_RAW);
    ExecPlan {
        namespaces: Vec::new(),
        root: None,
        process,
    }
}

fn ended(connection: &UnixStream) -> Option<FromStub> {
    let received: Option<Received<FromStub>> = control::recv(connection).unwrap();
    Some(received?.message)
}

#[test]
fn it_starts_programs_with_what_they_may_have_and_tells_their_ends() {
    let image = Image::new();
    let mut plan = image.plan("sleep 1000");
    plan.process.capabilities = sets(NET_RAW | SYS_ADMIN);
    let container = with_agent(plan);
    // Before the start of the program, too.
    // Without a pipe of the shell's own, which it may still have open.
    let script = "grep -E '^Cap(Prm|Bnd)' /proc/self/status; \
                  for fd in /proc/$$/fd/*; do readlink $fd; done; exit 3";
    let (output, connection) = exec_by_agent(&container, exec(&image, script)).unwrap();
    let said = read_all(&output);
    let said: Vec<_> = said.lines().map(|line| line.split(":[").next()).collect();
    let rights = ["CapPrm:\t0000000000002000", "CapBnd:\t0000000000002000"];
    let own = [&rights[..], &["/dev/null", "pipe", "pipe"]].concat();
    assert_eq!(said, own.into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(ended(&connection), Some(FromStub::Ended(Ended::Exited(3))));
    assert_eq!(ended(&connection), None);
    container.start().unwrap();

    // A root in the container who may trace pid 1 gains no more than this.
    let script = "grep -E '^Cap(Prm|Bnd)' /proc/1/status | tr -d '\\t'; kill -KILL $$";
    let (output, connection) = exec_by_agent(&container, exec(&image, script)).unwrap();
    let mask = NET_RAW | SYS_ADMIN | KILL | 1 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 24;
    let mask = mask & sys::process::capget().unwrap().permitted;
    let of_pid_1 = format!("CapPrm:{mask:016x}\nCapBnd:{mask:016x}\n");
    assert_eq!(read_all(&output), of_pid_1);
    assert_eq!(
        ended(&connection),
        Some(FromStub::Ended(Ended::Signaled(9)))
    );
}

#[test]
fn another_user_has_his_groups_and_no_signals_blocked() {
    let image = Image::new();
    let container = with_agent(image.plan("sleep 1000"));
    container.start().unwrap();
    let mut plan = exec(&image, "id -u; id -g; grep SigBlk /proc/self/status");
    plan.process.uid = 12;
    plan.process.gid = 34;
    plan.process.capabilities = sets(0);
    let (output, _connection) = exec_by_agent(&container, plan).unwrap();
    assert_eq!(read_all(&output), "12\n34\nSigBlk:\t0000000000000000\n");
}

#[test]
fn whoever_is_silent_or_talks_nonsense_is_alone_with_it() {
    let image = Image::new();
    let container = with_agent(image.plan("sleep 1000"));
    container.start().unwrap();
    let silent = container.connect_to_agent();
    let mut nonsense = container.connect_to_agent();
    nonsense.write_all(&[1, 0, 0, 0, 0xff]).unwrap();
    assert_eq!(ended(&nonsense), Some(FromStub::Ended(Ended::Exited(255))));
    let (_output, connection) = exec_by_agent(&container, exec(&image, "exit 4")).unwrap();
    assert_eq!(ended(&connection), Some(FromStub::Ended(Ended::Exited(4))));
    // Its child ends when it goes.
    silent.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(
        ended(&silent),
        Some(FromStub::Ended(Ended::Exited(_)))
    ));

    let mut plan = exec(&image, "");
    plan.process.args = vec!["/no/foo".to_owned()];
    let failure = exec_by_agent(&container, plan).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Executable);
}

#[test]
fn the_end_of_the_program_is_told_and_takes_all_along() {
    let image = Image::new();
    let container = with_agent(image.plan("until [ -e /tmp/go ]; do :; done; exit 6"));
    container.start().unwrap();
    let (_output, connection) = exec_by_agent(&container, exec(&image, "sleep 1000")).unwrap();
    let (_other, orphans) = exec_by_agent(&container, exec(&image, ": >/tmp/go")).unwrap();
    assert_eq!(ended(&orphans), Some(FromStub::Ended(Ended::Exited(0))));
    assert_eq!(container.word(), Some(FromStub::Ended(Ended::Exited(6))));
    assert_eq!(container.word(), None);
    assert_eq!(ended(&connection), None);
    assert_eq!(container.finish().1.code(), 6);
}
