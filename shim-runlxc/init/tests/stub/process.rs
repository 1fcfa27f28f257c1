//! User, limits, working directory, descriptors, program.

use std::os::fd::OwnedFd;

use launch::control::FailureKind;
use launch::plan::CapabilitySets;
use sys::ExitStatus;

use crate::host::{Container, Extras, output_of, refusal_of};
use crate::image::{Image, copy_busybox, set_mode};

#[test]
fn the_user_its_groups_home_and_umask_are_those_of_the_plan() {
    let image = Image::new();
    let mut plan =
        image.plan("id -u; id -g; id -G; umask; echo $HOME $A; touch /tmp/x; stat -c %a /tmp/x");
    set_mode(&image.path("tmp"), 0o1777);
    plan.process.uid = 1000;
    plan.process.gid = 100;
    plan.process.additional_gids = vec![5, 7];
    plan.process.umask = Some(0o027);
    plan.process.env.extend(["A=1", "A=2"].map(str::to_owned));
    assert_eq!(
        output_of(plan.clone()),
        "1000\n100\n100 5 7\n0027\n/home/u 2\n640\n"
    );

    std::fs::remove_file(image.path("tmp/x")).unwrap();
    plan.process.umask = None;
    plan.process.env.push("HOME=/given".to_owned());
    assert_eq!(output_of(plan), "1000\n100\n100 5 7\n0022\n/given 2\n644\n");
}

#[test]
fn limits_are_set_and_do_not_hinder_the_set_up() {
    let image = Image::new();
    let mut plan = image.plan("ulimit -n; ulimit -H -n; ulimit -c");
    // As few descriptors as a shell can do with.
    plan.process.rlimits = vec![(7, 11, 12), (4, 0, 0)];
    assert_eq!(output_of(plan.clone()), "11\n12\n0\n");

    // Above what the kernel takes, whoever asks.
    plan.process.rlimits = vec![(7, 1, u64::MAX)];
    assert_eq!(
        refusal_of(plan.clone()).0,
        "set RLIMIT_NOFILE to 1:18446744073709551615: operation not permitted"
    );
    plan.process.rlimits = vec![(999, 1, 1)];
    assert_eq!(
        refusal_of(plan).0,
        "set rlimit 999 to 1:1: invalid argument"
    );
}

#[test]
fn the_working_directory_is_made_and_a_file_refused() {
    let image = Image::new();
    let mut plan = image.plan("pwd");
    plan.process.cwd = "/made/for/this".to_owned();
    assert_eq!(output_of(plan.clone()), "/made/for/this\n");

    for (cwd, errno) in [
        ("/etc/passwd", "not a directory"),
        ("/etc/passwd/x", "not a directory"),
    ] {
        plan.process.cwd = cwd.to_owned();
        let expected = (format!("mkdir {cwd}: {errno}"), FailureKind::Request);
        assert_eq!(refusal_of(plan.clone()), expected);
    }
}

#[test]
fn a_working_directory_may_be_closed_to_the_user() {
    let image = Image::new();
    set_mode(&image.path("root"), 0o700);
    let mut plan = image.plan("echo ok");
    plan.process.cwd = "/root".to_owned();
    plan.process.uid = 42;
    assert_eq!(output_of(plan), "ok\n");
}

#[test]
fn a_working_directory_outside_is_no_way_out() {
    // CVE-2024-21626: a descriptor of the host's tree that somebody left open.
    let image = Image::new();
    for number in 3..24 {
        let leaked = OwnedFd::from(std::fs::File::open("/").unwrap());
        let extras = Extras {
            fds: vec![leaked],
            ..Extras::default()
        };
        let mut plan = image.plan("ls");
        plan.process.cwd = format!("/proc/self/fd/{number}");
        let failed = Container::create_with(plan, extras).map(|_| ());
        let text = failed.unwrap_err().failure.to_string();
        let expected = [
            format!("mkdir /proc/self/fd/{number}: not a directory"),
            format!("mkdir /proc/self/fd/{number}: no such file or directory"),
            // It was one of the stub's own, which are closed before the program is looked for.
            format!(
                "chdir to cwd (\"/proc/self/fd/{number}\") set in config.json failed: \
                 no such file or directory"
            ),
        ];
        assert!(expected.contains(&text), "{text}");
    }
}

#[test]
fn a_preserved_descriptor_of_the_host_is_no_working_directory() {
    let image = Image::new();
    let kept = OwnedFd::from(std::fs::File::open("/").unwrap());
    let extras = Extras {
        fds: vec![kept],
        ..Extras::default()
    };
    let mut plan = image.plan("ls");
    plan.process.preserve_fds = 1;
    plan.process.cwd = "/proc/self/fd/3".to_owned();
    let failed = Container::create_with(plan, extras)
        .map(|_| ())
        .unwrap_err();
    assert!(
        failed.failure.step.contains("possible container breakout"),
        "{}",
        failed.failure
    );
}

#[test]
fn programs_that_cannot_run_are_named_at_create() {
    let image = Image::new();
    image.write("bin/plain", "#!/bin/sh\n");
    image.write("bin/private", "#!/bin/sh\n");
    set_mode(&image.path("bin/private"), 0o700);
    let check = |uid: u32, name: &str, why: &str| {
        let mut plan = image.plan("");
        plan.process.args = vec![name.to_owned()];
        plan.process.uid = uid;
        let expected = (format!("exec: \"{name}\": {why}"), FailureKind::Executable);
        assert_eq!(refusal_of(plan), expected);
    };
    check(0, "foo", "executable file not found in $PATH");
    check(0, "/no/foo", "stat /no/foo: no such file or directory");
    check(0, "/bin/plain", "permission denied");
    check(0, "/etc", "is a directory");
    check(1000, "/bin/private", "permission denied");
    check(1000, "private", "executable file not found in $PATH");
}

#[test]
fn programs_that_the_kernel_refuses_are_named_at_start() {
    let image = Image::new();
    for (name, text, why) in [
        (
            "script",
            "#!/mmnnttbb foo bar\n",
            "no such file or directory",
        ),
        ("garbage", "\x01\x02", "exec format error"),
    ] {
        image.write(name, text);
        set_mode(&image.path(name), 0o755);
        let mut plan = image.plan("");
        plan.process.args = vec![format!("/{name}")];
        let (container, _) = Container::create(plan).unwrap();
        let failure = container.start().unwrap_err();
        assert_eq!(failure.to_string(), format!("exec /{name}: {why}"));
        assert_eq!(failure.kind, FailureKind::Executable);
        assert_eq!(container.finish(), (String::new(), ExitStatus::Exited(255)));
    }
}

#[test]
fn a_program_closed_to_its_user_runs_by_capability() {
    let image = Image::new();
    std::fs::remove_file(image.path("bin/true")).unwrap();
    copy_busybox(&image.path("bin/true"));
    set_mode(&image.path("bin/true"), 0o744);
    let mut plan = image.plan("");
    plan.process.args = vec!["true".to_owned()];
    plan.process.uid = 1000;
    assert_eq!(refusal_of(plan.clone()).1, FailureKind::Executable);

    let dac_override = 1 << 1;
    plan.process.capabilities = Some(CapabilitySets {
        bounding: dac_override,
        effective: dac_override,
        inheritable: dac_override,
        permitted: dac_override,
        ambient: dac_override,
    });
    assert_eq!(output_of(plan), "");
}

#[test]
fn a_program_gets_three_descriptors_and_those_to_preserve() {
    let image = Image::new();
    for preserve_fds in [0, 2] {
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        let fds = ["/etc/hostname", "/", "/etc", "/proc"]
            .map(open)
            .into_iter()
            .collect();
        let extras = Extras {
            fds,
            ..Extras::default()
        };
        let mut plan = image.plan("");
        plan.process.args = ["/bin/ls", "/proc/self/fd"].map(str::to_owned).to_vec();
        plan.process.preserve_fds = preserve_fds;
        let (container, _) = Container::create_with(plan, extras).unwrap();
        container.wait_until_it_waits();
        let waiting = format!("/proc/{}/fd", container.pid);
        let targets: Vec<_> = std::fs::read_dir(waiting)
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
            .collect();
        container.start().unwrap();
        let (output, _) = container.finish();
        // The last one is the directory that is being listed.
        let expected = if preserve_fds == 0 {
            "0\n1\n2\n3\n"
        } else {
            "0\n1\n2\n3\n4\n5\n"
        };
        assert_eq!(output, expected);
        // While it waits it has the start socket and a signal descriptor instead, and nothing of the
        // host's tree.
        assert_eq!(targets.len(), expected.lines().count() + 1, "{targets:?}");
    }
}

#[test]
fn signals_are_as_a_new_program_expects() {
    let image = Image::new();
    let mut plan = image.plan("");
    // No shell in between, which has signals of its own to ignore.
    plan.process.args = ["/bin/grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"]
        .map(str::to_owned)
        .to_vec();
    let output = output_of(plan);
    let none = "0000000000000000";
    assert_eq!(
        output,
        format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")
    );
}

#[test]
fn standard_streams_belong_to_the_user() {
    let image = Image::new();
    let mut plan = image.plan("echo reopened >/dev/stdout; stat -L -c %u /proc/self/fd/1");
    plan.process.uid = 1000;
    assert_eq!(output_of(plan), "reopened\n1000\n");
}

#[test]
fn the_stub_cannot_be_looked_into_while_it_waits() {
    let image = Image::new();
    let (container, _) = Container::create(image.plan("true")).unwrap();
    let owner = |path: String| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().uid()
    };
    assert_eq!(owner(format!("/proc/{}/environ", container.pid)), 0);
    let mut plan = image.plan("true");
    plan.process.uid = 1000;
    let (container, _) = Container::create(plan).unwrap();
    assert_eq!(owner(format!("/proc/{}/environ", container.pid)), 0);
}
