//! Terminals of pid 1.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use launch::control::FailureKind;
use launch::plan::{InitPlan, TerminalSize};
use sys::ExitStatus;

use crate::host::{Container, refusal_of};
use crate::image::{Image, mount};

fn with_terminal(mut plan: InitPlan, rows: u16, columns: u16) -> InitPlan {
    plan.process.terminal = Some(TerminalSize { rows, columns });
    plan
}

/// All that comes from a terminal until its other end is closed, which reads as EIO.
pub(crate) fn text_of(master: OwnedFd) -> String {
    let mut text = Vec::new();
    let mut master = std::fs::File::from(master);
    let _end_of_terminal = master.read_to_end(&mut text);
    String::from_utf8(text).unwrap().replace('\r', "")
}

#[test]
fn a_terminal_is_controlling_sized_owned_and_the_console() {
    let image = Image::new();
    let script = "tty; stty size; stat -c '%u:%g %a' $(tty); echo by-tty >/dev/tty; \
                  echo by-console >/dev/console; for fd in 0 1 2; do readlink /proc/self/fd/$fd; done; \
                  read line; echo \"got $line\"; ls -1 /dev/pts";
    let mut plan = with_terminal(image.plan(script), 33, 111);
    plan.process.uid = 1000;
    let (container, masters) = Container::create(plan).unwrap();
    let [master] = <[OwnedFd; 1]>::try_from(masters).unwrap();
    container.start().unwrap();
    std::fs::File::from(master.try_clone().unwrap())
        .write_all(b"word\n")
        .unwrap();
    let text = text_of(master);
    assert_eq!(container.finish(), (String::new(), ExitStatus::Exited(0)));
    let lines: Vec<_> = text.lines().filter(|line| *line != "word").collect();
    assert_eq!(
        lines,
        [
            "/dev/pts/0",
            "33 111",
            "1000:5 620",
            "by-tty",
            "by-console",
            "/dev/pts/0",
            "/dev/pts/0",
            "/dev/pts/0",
            "got word",
            "0",
            "ptmx"
        ]
    );
}

#[test]
fn without_a_devpts_there_is_no_terminal() {
    let image = Image::new();
    let mut plan = with_terminal(image.plan("true"), 0, 0);
    plan.mounts.remove(2);
    let (text, kind) = refusal_of(plan.clone());
    assert_eq!(
        text,
        "terminal without /dev/pts/ptmx: no such file or directory"
    );
    assert_eq!(kind, FailureKind::Request);

    // CVE-2025-52565: an image with devices of its own.
    std::fs::create_dir(image.path("pts")).unwrap();
    image.write("pts/ptmx", "");
    plan.mounts.push(mount(
        "bind",
        image.path("pts").to_str().unwrap(),
        "/dev/pts",
        &["bind"],
    ));
    let (text, _) = refusal_of(plan);
    assert_eq!(text, "terminal without a devpts mount: /dev/pts/ptmx");
}

#[test]
fn a_console_that_is_a_link_is_refused() {
    let image = Image::new();
    let dev = image.outside("dev");
    std::fs::create_dir_all(dev.join("pts")).unwrap();
    std::os::unix::fs::symlink("/proc/uptime", dev.join("console")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dev.join("null")).unwrap();
    let mut plan = with_terminal(image.plan("true"), 0, 0);
    plan.mounts[1] = mount("bind", dev.to_str().unwrap(), "/dev", &["bind"]);
    let (text, kind) = refusal_of(plan);
    assert_eq!(text, "/dev/console of the image is a symbolic link");
    assert_eq!(kind, FailureKind::Request);
}
