//! Capability sets, no_new_privs and filters.

use launch::plan::{CapabilitySets, SeccompFilter, Toggle};
use sys::ExitStatus;

use crate::host::{Container, output_of};
use crate::image::{Image, KILL_PROCESS, filter};

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_BIND: u64 = 1 << 10;

/// SECCOMP_RET_ERRNO with EUCLEAN, which no file system here would give.
const ANSWER_EUCLEAN: u32 = 0x0005_0000 | 117;

fn sets(all: u64) -> CapabilitySets {
    CapabilitySets {
        bounding: all,
        effective: all,
        inheritable: 0,
        permitted: all,
        ambient: 0,
    }
}

const STATUS: &str = "sed -n 's/^Cap...:.*\\([0-9a-f]\\{8\\}\\)$/\\1/p; s/^NoNewPrivs:.//p; \
    s/^Seccomp:.//p' /proc/self/status | tr '\\n' ' '";

#[test]
fn the_sets_are_those_of_the_plan() {
    let image = Image::new();
    let mut plan = image.plan(STATUS);
    plan.process.capabilities = Some(sets(CHOWN | KILL));
    // Inheritable, permitted, effective, bounding, ambient, no_new_privs, filter.
    assert_eq!(
        output_of(plan.clone()),
        "00000000 00000021 00000021 00000021 00000000 0 0 "
    );

    plan.process.uid = 1000;
    assert_eq!(
        output_of(plan.clone()),
        "00000000 00000000 00000000 00000021 00000000 0 0 "
    );

    plan.process.capabilities = Some(CapabilitySets {
        inheritable: NET_BIND | KILL,
        ambient: NET_BIND | CHOWN,
        ..sets(CHOWN | KILL | NET_BIND)
    });
    plan.process.no_new_privs = Toggle::On;
    assert_eq!(
        output_of(plan),
        "00000420 00000400 00000400 00000421 00000400 1 0 "
    );
}

#[test]
fn what_cannot_be_granted_is_left_out() {
    let image = Image::new();
    let mut plan = image.plan(STATUS);
    plan.process.capabilities = Some(sets(u64::MAX));
    let own = sys::process::capget().unwrap().permitted;
    let text = output_of(plan.clone());
    assert!(text.starts_with("00000000 "), "{text}");
    let permitted = u32::from_str_radix(text.split(' ').nth(1).unwrap(), 16).unwrap();
    assert_eq!(u64::from(permitted), own & 0xffff_ffff);

    // In force but not permitted, inheritable but not in the bounding set.
    plan.process.capabilities = Some(CapabilitySets {
        bounding: KILL,
        effective: CHOWN | KILL,
        inheritable: CHOWN | KILL,
        permitted: KILL,
        ambient: CHOWN,
    });
    assert_eq!(
        output_of(plan),
        "00000020 00000020 00000020 00000020 00000000 0 0 "
    );
}

#[test]
fn filters_hold_for_root_and_users_with_and_without_no_new_privs() {
    let image = Image::new();
    for (uid, no_new_privs) in [
        (0, Toggle::Off),
        (0, Toggle::On),
        (1000, Toggle::Off),
        (1000, Toggle::On),
    ] {
        let mut plan = image.plan(&format!("{STATUS}; mkdir /tmp/x"));
        image.write("etc/marker", "");
        plan.process.uid = uid;
        plan.process.no_new_privs = no_new_privs;
        plan.process.capabilities = Some(sets(CHOWN));
        plan.process.seccomp = Some(filter(nix::libc::SYS_mkdir, ANSWER_EUCLEAN));
        let (container, _) = Container::create(plan).unwrap();
        container.start().unwrap();
        let (output, status) = container.finish();
        // CAP_SYS_ADMIN was there to load the filter and has gone since.
        let granted = if uid == 0 {
            "00000001 00000001"
        } else {
            "00000000 00000000"
        };
        let flag = i32::from(no_new_privs == Toggle::On);
        assert_eq!(
            output,
            format!(
                "00000000 {granted} 00000001 00000000 {flag} 2 \
                 mkdir: can't create directory '/tmp/x': Structure needs cleaning\n"
            )
        );
        assert_eq!(status, ExitStatus::Exited(1));
    }
}

#[test]
fn a_filter_that_kills_kills_the_program_and_not_the_set_up() {
    let image = Image::new();
    let mut plan = image.plan("echo before; mkdir /tmp/x; echo $?");
    plan.process.seccomp = Some(filter(nix::libc::SYS_mkdir, KILL_PROCESS));
    assert_eq!(output_of(plan), "before\nBad system call\n159\n");
}

#[test]
fn no_call_but_execve_is_needed_after_the_filter() {
    let image = Image::new();
    // What the stub itself does to become a user, denied with EUCLEAN.
    for call in [
        nix::libc::SYS_setuid,
        nix::libc::SYS_setgroups,
        nix::libc::SYS_prctl,
        nix::libc::SYS_chdir,
        nix::libc::SYS_setrlimit,
        nix::libc::SYS_close_range,
        nix::libc::SYS_getdents64,
        nix::libc::SYS_openat,
        nix::libc::SYS_recvmsg,
    ] {
        let mut plan = image.plan("");
        plan.process.args = ["/bin/busybox", "true"].map(str::to_owned).to_vec();
        plan.process.uid = 1000;
        plan.process.rlimits = vec![(7, 64, 64)];
        plan.process.capabilities = Some(sets(CHOWN));
        plan.process.seccomp = Some(filter(call, ANSWER_EUCLEAN));
        assert_eq!(output_of(plan), "", "call {call}");
    }
}

#[test]
fn a_filter_that_the_kernel_refuses_is_told_at_the_start() {
    let image = Image::new();
    let mut plan = image.plan("true");
    plan.process.seccomp = Some(SeccompFilter {
        program: vec![0xffff],
        flags: 0,
    });
    let (container, _) = Container::create(plan).unwrap();
    let failure = container.start().unwrap_err();
    assert_eq!(
        failure.to_string(),
        "load seccomp filter, flags 0x0: invalid argument"
    );
    assert_eq!(container.finish().1, ExitStatus::Exited(255));
}
