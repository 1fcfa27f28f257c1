//! Masked and read-only paths.

use launch::control::FailureKind;
use launch::plan::Toggle;

use crate::host::{output_of, refusal_of};
use crate::image::{Image, mount};

fn paths(list: &[&str]) -> Vec<String> {
    list.iter().map(|&path| path.to_owned()).collect()
}

#[test]
fn masked_paths_show_nothing_and_cannot_be_written() {
    let image = Image::new();
    image.write("etc/secret", "secret");
    for dir in ["one", "two"] {
        std::fs::create_dir(image.path(dir)).unwrap();
        image.write(&format!("{dir}/secret"), "secret");
    }
    let mut plan = image.plan(
        "cat /etc/secret; ls /one /two; touch /one/x; rm -f /etc/secret; \
         stat -c %d /one /two | sort -u | wc -l; grep -c ' /one ' /proc/mounts; \
         test -e /absent || echo absent",
    );
    plan.masked_paths = paths(&[
        "/etc/secret",
        "/one",
        "/two",
        "//one/",
        "/absent",
        "/etc/secret/x",
    ]);
    let output = output_of(plan);
    assert_eq!(
        output,
        "/one:\n\n/two:\n\
         touch: /one/x: Read-only file system\n\
         rm: can't remove '/etc/secret': Device or resource busy\n\
         1\n1\nabsent\n"
    );
    assert_eq!(
        std::fs::read_to_string(image.path("etc/secret")).unwrap(),
        "secret"
    );
}

#[test]
fn masking_one_name_leaves_the_other_names_of_a_file() {
    let image = Image::new();
    std::fs::hard_link(image.path("bin/busybox"), image.path("bin/hard")).unwrap();
    let mut plan = image.plan("/bin/hard true; echo $?; /bin/busybox echo still");
    plan.masked_paths = paths(&["/bin/hard"]);
    plan.process.args[0] = "/bin/busybox".to_owned();
    plan.process.args.insert(1, "sh".to_owned());
    assert_eq!(
        output_of(plan),
        "sh: /bin/hard: Permission denied\n126\nstill\n"
    );
}

#[test]
fn a_mask_made_of_something_else_is_refused() {
    // CVE-2025-31133: /dev/null of the image is a link to what the mask shall hide.
    let image = Image::new();
    let outside = image.outside("dev");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink("/proc/uptime", outside.join("null")).unwrap();
    let mut plan = image.plan("true");
    plan.mounts.truncate(1);
    plan.mounts
        .push(mount("bind", outside.to_str().unwrap(), "/dev", &["bind"]));
    plan.masked_paths = paths(&["/etc/passwd"]);
    let (text, kind) = refusal_of(plan);
    assert_eq!(
        text,
        "mask /etc/passwd: /dev/null of the container is not the null device"
    );
    assert_eq!(kind, FailureKind::Request);
}

#[test]
fn read_only_paths_and_roots_are_so_with_what_is_on_them() {
    let image = Image::new();
    for dir in ["ro", "ro/below", "rw"] {
        std::fs::create_dir(image.path(dir)).unwrap();
    }
    std::os::unix::fs::symlink("/ro", image.path("link")).unwrap();
    let mut plan =
        image.plan("for at in /ro /rw /dev /tmp /; do touch $at/x && echo wrote $at; done; true");
    plan.mounts[1] = mount("tmpfs", "tmpfs", "/dev", &["ro", "nosuid", "mode=755"]);
    plan.mounts.push(mount("tmpfs", "tmpfs", "/tmp", &["ro"]));
    plan.readonly_paths = paths(&["/link", "/absent"]);
    let denied = |at: &str| format!("touch: {at}/x: Read-only file system\n");
    let all: Vec<_> = ["/ro", "/dev", "/tmp"].map(denied).to_vec();
    assert_eq!(
        output_of(plan.clone()),
        format!("{}wrote /rw\n{}{}wrote /\n", all[0], all[1], all[2])
    );
    std::fs::remove_file(image.path("x")).unwrap();
    plan.root.readonly = Toggle::On;
    plan.readonly_paths.clear();
    assert_eq!(
        output_of(plan),
        ["/ro", "/rw", "/dev", "/tmp", "/"].map(denied).concat()
    );
}
