//! What `ctr run` is asked for is what the process finds.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{check::check, images::Image, versions::Version};

use crate::RUNTIME;

/// Bits of the capability sets (linux/capability.h).
const CAP_CHOWN: u32 = 0;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

fn same(what: &str, got: &str, expected: &str) -> Result<()> {
    ensure!(
        got.trim() == expected.trim(),
        "{what}: expected {expected:?}, got {got:?}"
    );
    Ok(())
}

#[test]
fn environment_and_working_directory_are_as_asked() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let flags = [
            "--env",
            "ONE=first value",
            "--env",
            "EMPTY=",
            "--cwd",
            "/usr",
        ];
        let container = bench.container("env").flags(&flags);
        same(
            "env",
            &container.output("echo \"$ONE|${EMPTY-unset}|$PWD|$PATH\"")?,
            "first value||/usr|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )?;
        let task = container.detach(&["sleep", "600"])?;
        let in_tmp = task.exec_with(
            &["--cwd", "/tmp"],
            &["sh", "-c", "pwd >/dev/null; test $PWD = /tmp"],
        )?;
        in_tmp.success()?;
        same("exec env", &task.output("echo \"$ONE\"")?, "first value")?;
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn the_user_is_looked_up_in_the_container() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("user").detach(&["sleep", "600"])?;
        let as_app = ["sh", "-c", "test \"$(id -u):$(id -g)\" = 1000:1000"];
        task.exec_with(&["--user", "app"], &as_app)?.success()?;
        task.exec_with(
            &["--user", "1000:44"],
            &["sh", "-c", "test \"$(id -u):$(id -g)\" = 1000:44"],
        )?
        .success()?;
        task.kill_and_remove()?;
        if bench.version() == Version::V1_6 {
            // Its ctr run has no --user.
            return Ok(());
        }
        let container = bench.container("run-user").flags(&["--user", "app"]);
        same(
            "user",
            &container.output("id -u; id -g; touch /root/x 2>/dev/null || echo refused")?,
            "1000\n1000\nrefused",
        )
    });
}

#[test]
fn a_mount_is_there_and_keeps_its_options() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let shared = bench
            .containerd
            .work()
            .join(format!("shared-{:?}", bench.image));
        fs::create_dir(&shared)?;
        fs::write(shared.join("file"), "from the host\n")?;
        let mount = |destination: &str, options: &str| {
            format!(
                "type=bind,src={},dst={destination},options={options}",
                shared.display()
            )
        };
        let (read_only, writable) = (mount("/ro", "rbind:ro"), mount("/deep/rw", "rbind:rw"));
        let flags = [
            "--mount",
            &read_only,
            "--mount",
            &writable,
            "--mount",
            "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:noexec",
        ];
        let container = bench.container("mounts").flags(&flags);
        // In one write: of several, ctr may lose the last ones.
        let script = "echo \"$(cat /ro/file; touch /ro/x 2>/dev/null && echo written; \
                      echo 'from the container' >/deep/rw/answer; \
                      grep ' /scratch ' /proc/self/mounts | grep -o noexec)\"";
        same(
            "mounts",
            &container.output(script)?,
            "from the host\nnoexec",
        )?;
        let answer = fs::read_to_string(shared.join("answer")).context("the container's file")?;
        same("answer", &answer, "from the container")
    });
}

#[test]
fn a_read_only_root_refuses_writes() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let container = bench.container("read-only").flags(&["--read-only"]);
        same(
            "root",
            &container.output("touch /x 2>/dev/null && echo written || echo refused")?,
            "refused",
        )?;
        let container = bench.container("writable");
        same(
            "root",
            &container.output("touch /x && echo written")?,
            "written",
        )
    });
}

#[test]
fn capabilities_are_added_and_dropped() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let sets = |flags: &[&str]| -> Result<u64> {
            let container = bench.container("capabilities").flags(flags);
            let line = container.output("grep CapEff /proc/self/status")?;
            let digits = line
                .split_whitespace()
                .nth(1)
                .context("no capabilities shown")?;
            Ok(u64::from_str_radix(digits, 16)?)
        };
        let has = |set: u64, capability: u32| set & (1 << capability) != 0;
        let plain = sets(&[])?;
        ensure!(
            has(plain, CAP_CHOWN) && has(plain, CAP_NET_RAW),
            "plain: {plain:x}"
        );
        ensure!(!has(plain, CAP_SYS_ADMIN), "plain: {plain:x}");
        let changed = sets(&["--cap-add", "CAP_SYS_ADMIN", "--cap-drop", "CAP_CHOWN"])?;
        ensure!(
            has(changed, CAP_SYS_ADMIN) && !has(changed, CAP_CHOWN),
            "changed: {changed:x}"
        );
        Ok(())
    });
}

#[test]
fn a_privileged_container_has_what_the_host_has() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let container = bench.container("privileged").flags(&["--privileged"]);
        let status = fs::read_to_string("/proc/self/status")?;
        let host = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .context("CapBnd")?;
        let inside = container.output("grep CapBnd /proc/self/status")?;
        same(
            "CapBnd",
            inside.trim().trim_start_matches("CapBnd:"),
            host.trim_end(),
        )?;
        // Nothing of /proc is hidden from it, and /sys is writable.
        same(
            "sys",
            &container.output("grep -q ' /sys sysfs rw' /proc/self/mounts && echo writable")?,
            "writable",
        )
    });
}

#[test]
fn the_default_seccomp_profile_refuses_what_it_lists() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let script = "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo unshared || echo refused";
        let container = bench.container("seccomp").flags(&["--seccomp"]);
        let seen = container.output(script)?;
        let words: Vec<&str> = seen.split_whitespace().collect();
        ensure!(words == ["Seccomp:", "2", "refused"], "got {seen:?}");
        Ok(())
    });
}

#[test]
fn namespaces_are_its_own_unless_the_host_s_network_is_asked_for() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = "for n in pid mnt net uts ipc; do readlink /proc/self/ns/$n; done";
        let host = |name: &str| -> Result<String> {
            Ok(fs::read_link(format!("/proc/self/ns/{name}"))?
                .display()
                .to_string())
        };
        let own = bench.container("own").output(script)?;
        for name in ["pid", "mnt", "net", "uts", "ipc"] {
            let namespace = host(name)?;
            ensure!(!own.contains(&namespace), "{name} is the host's: {own}");
        }
        let shared = bench
            .container("host-net")
            .flags(&["--net-host"])
            .output(script)?;
        ensure!(
            shared.contains(&host("net")?),
            "the network is not the host's: {shared}"
        );
        Ok(())
    });
}

#[test]
fn a_user_namespace_maps_root_to_somebody_else() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        // The client before 2.0 sends the owner of the streams in a message of its own.
        let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        let script = "id -u; awk '{print $1, $2, $3}' /proc/self/uid_map; stat -c %u:%g /bin; \
                      touch /made && stat -c %u:%g /made";
        let seen = bench.container("mapped").flags(&flags).output(script)?;
        same("ids", &seen, "0\n0 100000 65536\n0:0\n0:0")
    });
}

#[test]
fn a_snapshot_that_is_mapped_when_it_is_mounted_belongs_to_the_container() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        if bench.version() != Version::V2_4 {
            // Their snapshotters map nothing.
            return Ok(());
        }
        let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        let flags = [&["--remap-labels"], &maps[..]].concat();
        let script = "stat -c %u:%g /bin /bin/busybox; chmod 700 /etc && touch /etc/made && stat -c %u:%g /etc/made";
        let seen = bench.container("labels").flags(&flags).output(script)?;
        same("owners", &seen, "0:0\n0:0\n0:0")
    });
}

#[test]
fn a_container_without_pivot_root_runs() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let container = bench.container("no-pivot").flags(&["--no-pivot"]);
        same("output", &container.output("echo ran")?, "ran")
    });
}

#[test]
fn init_is_process_one_and_sees_no_other() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let seen = bench
            .container("one")
            .output("echo $$; ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm; true")?;
        let lines: Vec<&str> = seen.lines().collect();
        // The shell, ls and wc.
        ensure!(
            lines.first() == Some(&"1") && lines.last() == Some(&"sh"),
            "got {seen:?}"
        );
        ensure!(lines[1].trim().parse::<u32>()? <= 3, "got {seen:?}");
        Ok(())
    });
}
