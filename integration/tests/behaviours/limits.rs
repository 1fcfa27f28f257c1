//! Limits are written into the container's cgroup.

use std::fs;

use anyhow::{Result, ensure};
use integration::{
    cgroup::{self, CPU_SHARES, MEMORY_LIMIT, Value, expect},
    check::{Bench, check},
    images::Image,
    runtime::Runtime,
    versions::system_program,
};

use crate::RUNTIME;

const CPU_QUOTA: Value = Value {
    controller: "cpu",
    v1: "cpu.cfs_quota_us",
    v2: "cpu.max",
};
const PIDS_LIMIT: Value = Value {
    controller: "pids",
    v1: "pids.max",
    v2: "pids.max",
};

#[test]
fn limits_are_seen_in_the_cgroup_and_execs_are_in_it() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let flags = [
            "--memory-limit",
            "67108864",
            "--cpus",
            "0.5",
            "--cpu-shares",
            "512",
        ];
        let task = bench
            .container("limits")
            .flags(&flags)
            .detach(&["sleep", "600"])?;
        let pid = task.pid()?;
        expect(pid, MEMORY_LIMIT, "67108864", "67108864")?;
        expect(pid, CPU_QUOTA, "50000", "50000 100000")?;
        // Debian's runc is older than the curve that later ones and we follow.
        let weight = if RUNTIME == Runtime::Runc { "20" } else { "59" };
        expect(pid, CPU_SHARES, "512", weight)?;
        for controller in ["memory", "cpu", "pids", "freezer", "devices"] {
            let (directory, _) = cgroup::directory(pid, controller)?;
            ensure!(
                directory.ends_with(format!("{}/{}", bench.containerd.namespace, task.id)),
                "{controller}: it is in {}",
                directory.display()
            );
        }
        task.start_exec(&["--detach"], &["sleep", "601"])?
            .finish(integration::wait::SOON)?
            .success()?;
        let processes = task.processes()?;
        ensure!(
            processes.len() == 2,
            "expected init and the exec, got {processes:?}"
        );
        for pid in processes {
            expect(pid, MEMORY_LIMIT, "67108864", "67108864")?;
        }
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn no_more_processes_run_than_the_limit_says() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        // `ctr run` has no flag for it.
        let id = "pids";
        let config = config_with_pids_limit(bench, id, 8)?;
        let words = ["run", "--detach", "--runtime", RUNTIME.name(), "--config"];
        let words: Vec<&str> = words.into_iter().chain([config.as_str(), id]).collect();
        bench.ctr().call(&words)?.success()?;
        let task = bench.ctr().task(id);
        expect(task.pid()?, PIDS_LIMIT, "8", "8")?;
        // Closed, for a client that waits for the end of its streams.
        let script = "i=0; while [ $i -lt 20 ]; do busybox sleep 600 >&- 2>&- & i=$((i+1)); done";
        let refused = task.exec(&["/busybox", "sh", "-c", script])?;
        ensure!(refused.code() != 0, "all of them run: {refused}");
        ensure!(refused.stderr().contains("can't fork"), "{refused}");
        ensure!(task.processes()?.len() <= 8, "more than 8 run");
        task.kill_and_remove()?;
        Ok(())
    });
}

/// A config.json of a container with nothing but busybox and that limit.
fn config_with_pids_limit(bench: &Bench<'_>, id: &str, limit: i64) -> Result<String> {
    let work = bench.containerd.work();
    let root = work.join("pids-root");
    fs::create_dir(&root)?;
    for directory in ["dev", "proc"] {
        fs::create_dir(root.join(directory))?;
    }
    fs::copy(system_program("busybox")?, root.join("busybox"))?;
    bench.containerd.expect_container(id)?;
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/busybox", "sleep", "600"],
            "cwd": "/",
            "env": ["PATH=/"],
            "user": { "uid": 0, "gid": 0 },
        },
        "root": { "path": root },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/{}/{id}", bench.containerd.namespace),
            "resources": { "pids": { "limit": limit } },
        },
    });
    let path = work.join("pids.json");
    fs::write(&path, config.to_string())?;
    Ok(path.display().to_string())
}

#[test]
fn metrics_tell_the_use_and_the_limit() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let flags = ["--memory-limit", "67108864"];
        let task = bench
            .container("metrics")
            .flags(&flags)
            .detach(&["sleep", "600"])?;
        let metrics = task.metrics()?.to_string();
        ensure!(
            metrics.contains("67108864"),
            "the limit is not in {metrics}"
        );
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn devices_are_refused_but_for_the_usual_ones() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = "echo x >/dev/null && head -c 1 /dev/zero >/dev/null && echo usual; \
                      mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /tmp/kmsg 2>/dev/null >&2 && echo read || echo refused";
        let seen = bench.container("devices").output(script)?;
        ensure!(seen == "usual\nmade\nrefused\n", "got {seen:?}");
        Ok(())
    });
}
