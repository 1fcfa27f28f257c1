//! Pods in virtual machines through CRI, on every containerd: one machine for a pod, whose containers share
//! what a pod shares, come and go, and end with it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use integration::{
    census::processes,
    config::RUNV_BY_SHIM,
    cri::{Access, Container, Cri, Pod, PodNetwork},
    node::{self, Node, check, shell},
    process::{Running, command},
    runtime::{Runtime, built},
    terminal::{self, Terminal},
    versions::{Installed, Version},
    wait::{SOON, Sources, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SERVER: &str = "mkdir -p /www; hostname > /www/index.html; echo mine > /dev/shm/shared; \
                      exec httpd -f -p 8080 -h /www";

/// Pids of the machines of one instance.
fn machines(node: &Node<'_>) -> Result<BTreeSet<i32>> {
    let all = processes()?.into_values();
    let ours =
        all.filter(|it| it.command.contains("qemu-system") && node.containerd.tag.is_in(&it.owner));
    Ok(ours.map(|it| it.pid).collect())
}

#[test]
fn a_pod_is_a_machine_whose_containers_come_and_go() {
    check(Runtime::Runv, |node| {
        shares(node, &node.pod("shop", PodNetwork::Own)?)?;
        // Which containerd it is makes no difference.
        if node.containerd.installed.version == Version::V2_4 {
            is_shared_until_it_is_lost(node)?;
        }
        Ok(())
    });
}

/// Those before it have no such service. One that is not there is told by name, and is no success where all must be.
fn on_newest(behaviour: impl Fn(&Node<'_>) -> Result<()>) -> Result<()> {
    let is_it = |it: &Installed| it.version == Version::V2_4;
    match Version::available()?.into_iter().find(is_it) {
        Some(installed) => node::on(&installed, Runtime::Runv, behaviour),
        None => Ok(()),
    }
}

#[test]
fn a_pod_without_a_sandbox_container_is_one_as_well() {
    let outcome = on_newest(|node| {
        let of_shim = |name| {
            let pod = node.pod(name, PodNetwork::Own)?;
            let handler = RUNV_BY_SHIM.to_owned();
            anyhow::Ok(Pod { handler, ..pod })
        };
        let host = Pod {
            network: PodNetwork::Node,
            ..of_shim("host")?
        };
        let error = node.cri.run_pod(&host).err().context("it has the host's")?;
        let error = format!("{error:#}");
        let why = "linux.namespaces: none of the kind network is not supported";
        ensure!(error.contains(why), "{error}");
        ensure!(machines(node)?.is_empty(), "its machine is left");
        shares_what_it_is_given(node, &of_shim("bare")?)?;
        leaves_nothing_of_a_killed_shim(node, &of_shim("killed")?)?;
        outlives_containerd_and_not_its_machine(node, &of_shim("outlives")?)
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// What containerd has no part in here: the pod's files, and its memory. The rest is as in every pod.
fn shares_what_it_is_given(node: &Node<'_>, pod: &Pod) -> Result<()> {
    let cri = &node.cri;
    let pod_id = cri.run_pod(pod)?;
    let start = |name: &str| {
        let id = cri.create(pod, &pod_id, &shell(name, "sleep 100000"))?;
        cri.start(&id).map(|()| id)
    };
    let (one, other) = (start("one")?, start("other")?);
    ensure!(machines(node)?.len() == 1, "one machine for a pod");
    let seen = |id: &str, script: &str| {
        Ok::<_, anyhow::Error>(cri.exec(id, &["sh", "-c", script])?.stdout)
    };
    let own = "cat /etc/hostname; ip -4 -o address show eth0; echo mine > /dev/shm/shared";
    let own = seen(&one, own)?;
    ensure!(own.starts_with(&format!("{}\n", pod.name)), "{own}");
    ensure!(own.contains(&cri.pod_address(&pod_id)?), "{own}");
    let shared = seen(&other, "cat /dev/shm/shared /etc/resolv.conf /etc/hosts")?;
    ensure!(shared.starts_with("mine\n"), "{shared}");
    ensure!(shared.contains("localhost"), "{shared}");
    is_operated(&other, seen)?;
    cri.remove_pod(&pod_id)?;
    ensure!(machines(node)?.is_empty(), "the machine ends with its pod");
    Ok(())
}

/// containerd has `delete` called for the sandbox only, which goes for all that was in its machine.
fn leaves_nothing_of_a_killed_shim(node: &Node<'_>, pod: &Pod) -> Result<()> {
    let cri = &node.cri;
    let pod_id = cri.run_pod(pod)?;
    let id = cri.create(pod, &pod_id, &shell("one", "sleep 100000"))?;
    cri.start(&id)?;
    let state = |id: &str| Path::new("/run/containerd/runv/k8s.io").join(id);
    ensure!(state(&id).exists() && state(&pod_id).exists());
    let shims = processes()?.into_values().filter(|it| {
        it.command.contains("containerd-shim-runv-v2") && node.containerd.tag.is_in(&it.owner)
    });
    let shims: Vec<_> = shims.map(|it| it.pid).collect();
    ensure!(!shims.is_empty(), "it has a shim");
    for shim in shims {
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    }
    until("its container has exited", SOON, Sources::none(), || {
        Ok(cri.has_exited(&id)?.then_some(()))
    })?;
    cri.remove_pod(&pod_id)?;
    for left in [state(&id), state(&pod_id)] {
        ensure!(!left.exists(), "{} is left", left.display());
    }
    ensure!(machines(node)?.is_empty(), "the machine is left");
    Ok(())
}

#[test]
fn limits_grow_as_far_as_the_pod_said_and_no_further() {
    check(Runtime::Runv, |node| {
        // Which containerd it is makes no difference.
        if node.containerd.installed.version != Version::V2_4 {
            return Ok(());
        }
        let cri = &node.cri;
        let max =
            |what: &str, number: &str| (format!("org.pouch.runv.{what}-max"), number.to_owned());
        let pod = Pod {
            annotations: vec![max("memory", "1024"), max("processors", "2")],
            ..node.pod("roomy", PodNetwork::Own)?
        };
        let pod_id = cri.run_pod(&pod)?;
        let container = Container {
            memory_bytes: 128 << 20,
            ..shell("grows", "echo started; sleep 100000")
        };
        let id = cri.create(&pod, &pod_id, &container)?;
        cri.start(&id)?;
        // A program's memory, which is the container's.
        let takes = |mib: u32| {
            let script = format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1");
            Ok::<_, anyhow::Error>(cri.exec(&id, &["sh", "-c", &script])?.code)
        };
        ensure!(takes(300)? == 137, "it has 128 MiB");
        cri.update(&id, 1 << 30, 200_000)?;
        ensure!(takes(300)? == 0, "it has 1 GiB");
        let script = "nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
        let seen = || Ok::<_, anyhow::Error>(cri.exec(&id, &["sh", "-c", script])?.stdout);
        let processors = thread::available_parallelism()?.get().min(2);
        let expected = format!("{processors}\n{}\n200000 100000\n", 1 << 30);
        ensure!(seen()? == expected, "{}", seen()?);
        let refused = cri.update(&id, 4 << 30, 200_000);
        let refused = format!("{:#}", refused.err().context("it has no 4 GiB")?);
        let why = "more than the 2048 MiB of the virtual machine";
        ensure!(refused.contains(why), "{refused}");
        ensure!(seen()? == expected, "{}", seen()?);
        larger_than_its_machine(node, &pod, &pod_id)?;
        cri.remove_pod(&pod_id)
    });
}

/// What a container was created with is not asked for again by an update of something else, in which CRI says it.
fn larger_than_its_machine(node: &Node<'_>, pod: &Pod, pod_id: &str) -> Result<()> {
    let cri = &node.cri;
    let container = Container {
        memory_bytes: 4 << 30,
        ..shell("large", "echo started; sleep 100000")
    };
    let id = cri.create(pod, pod_id, &container)?;
    cri.start(&id)?;
    let seen = || {
        let script = "cat /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/memory.max";
        Ok::<_, anyhow::Error>(cri.exec(&id, &["sh", "-c", script])?.stdout)
    };
    let before = seen()?;
    let memory = format!("\n{}\n", 4_u64 << 30);
    ensure!(before.ends_with(&memory), "{before}");
    cri.update_shares(&id, 512)?;
    let after = seen()?;
    ensure!(after != before && after.ends_with(&memory), "{after}");
    Ok(())
}

/// A directory that nobody writes, as of a token or a configuration, and an emptyDir as the kubelet has it.
fn volumes(node: &Node<'_>) -> Result<Vec<(PathBuf, String, Access)>> {
    let work = node.containerd.work();
    let [token, cache] =
        ["token", "pods/uid/volumes/kubernetes.io~empty-dir/cache"].map(|it| work.join(it));
    for path in [&token, &cache] {
        fs::create_dir_all(path)?;
    }
    fs::write(token.join("ca"), "secret\n")?;
    Ok(vec![
        (token, "/token".to_owned(), Access::Read),
        (cache, "/cache".to_owned(), Access::Write),
    ])
}

/// containerd is killed and finds the pod again; the machine is killed, and what is left goes.
fn outlives_containerd_and_not_its_machine(node: &Node<'_>, pod: &Pod) -> Result<()> {
    let pod_id = node.cri.run_pod(pod)?;
    let start = |cri: &Cri, name: &str| {
        let id = cri.create(pod, &pod_id, &shell(name, "sleep 100000"))?;
        cri.start(&id).map(|()| id)
    };
    let before = start(&node.cri, "before")?;
    node.containerd.kill_and_restart()?;
    // The connection went with it.
    let cri = &Cri::connect(&node.containerd.address())?;
    let after = start(cri, "after")?;
    for id in [&before, &after] {
        let ran = cri.exec(id, &["hostname"])?;
        ensure!(ran.stdout == "outlives\n", "{ran:?}");
    }
    let machine = machines(node)?.pop_first().context("it has a machine")?;
    kill(Pid::from_raw(machine), Signal::SIGKILL)?;
    for id in [&before, &after] {
        until("its container has exited", SOON, Sources::none(), || {
            Ok(cri.has_exited(id)?.then_some(()))
        })?;
        let status = cri.status(id)?;
        ensure!(status.exit_code == 255, "{status:?}");
    }
    cri.remove_pod(&pod_id)
}

fn shares(node: &Node<'_>, pod: &Pod) -> Result<()> {
    let cri = &node.cri;
    let pod_id = cri.run_pod(pod)?;
    let address = cri.pod_address(&pod_id)?;
    let volumes = volumes(node)?;
    let start = |name: &str, script: &str| {
        let container = Container {
            volumes: volumes.clone(),
            ..shell(name, script)
        };
        let id = cri.create(pod, &pod_id, &container)?;
        cri.start(&id).map(|()| id)
    };
    let server = start("server", SERVER)?;
    let client = start("client", "echo started; sleep 100000")?;
    let pods = machines(node)?;
    ensure!(pods.len() == 1, "one machine for a pod");
    for pid in pods {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        ensure!(line.contains("-incoming"), "of no template: {line}");
    }
    let reached = || {
        until(
            "the server answers on localhost",
            SOON,
            Sources::none(),
            || {
                let fetch = ["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"];
                let ran = cri.exec(&client, &fetch)?;
                Ok((ran.stdout == format!("{}\n", pod.name)).then_some(()))
            },
        )
    };
    reached()?;

    are_shared(node, &pod.name, [&server, &client], &address)?;
    let stats = cri.stats(&client)?;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
    ensure!(memory.is_some_and(|bytes| bytes.value > 0), "{memory:?}");

    // One restarts, another comes and goes; the client is not disturbed.
    cri.stop(&server, 1)?;
    ensure!(
        cri.status(&server)?.exit_code == 137,
        "{:?}",
        cri.status(&server)?
    );
    cri.remove(&server)?;
    start("server", SERVER)?;
    reached()?;
    let job = start("job", "exit 9")?;
    until("the job has exited", SOON, Sources::none(), || {
        Ok(cri.has_exited(&job)?.then_some(()))
    })?;
    ensure!(cri.status(&job)?.exit_code == 9, "{:?}", cri.status(&job)?);
    cri.remove(&job)?;
    leaves_nothing_when_it_fails(node, (pod, &pod_id, &client), &volumes)?;
    // The guest takes its part of a disk away on its own time, after the monitor's word.
    until(
        "disks of containers that are gone go",
        SOON,
        Sources::none(),
        || {
            let script = ["sh", "-c", "ls -d /sys/block/sd* | wc -l"];
            Ok((cri.exec(&client, &script)?.stdout == "5\n").then_some(()))
        },
    )?;
    cri.remove_pod(&pod_id)?;
    ensure!(machines(node)?.is_empty(), "the machine ends with its pod");
    Ok(())
}

/// A container that fails after half of its create, with its disks plugged in and mounted and its init alive.
fn leaves_nothing_when_it_fails(
    node: &Node<'_>,
    (pod, pod_id, client): (&Pod, &str, &str),
    volumes: &[(PathBuf, String, Access)],
) -> Result<()> {
    let cri = &node.cri;
    // Of the whole guest: neither has a namespace. Version 1 alone counts by controller.
    let script = "cat /proc/cgroups; ls -d /sys/fs/erofs/sd* /sys/block/sd*";
    let seen = || Ok::<_, anyhow::Error>(cri.exec(client, &["sh", "-c", script])?.stdout);
    let before = seen()?;
    ensure!(before.contains("/sys/fs/erofs/sd"), "{before}");
    let (token, ..) = &volumes[0];
    let below_a_file = (token.clone(), "/bin/busybox/below".to_owned(), Access::Read);
    let container = Container {
        volumes: vec![volumes[0].clone(), below_a_file],
        ..shell("half", "true")
    };
    let id = cri.create(pod, pod_id, &container)?;
    let error = cri.start(&id).err().context("it starts")?;
    let error = format!("{error:#}");
    ensure!(error.contains("/bin/busybox/below"), "{error}");
    until(
        "nothing of it is left in the guest",
        SOON,
        Sources::none(),
        || Ok((seen()? == before).then_some(())),
    )?;
    cri.remove(&id)
}

/// The operator's program is in that container, not in its sandbox nor in another of the pod.
fn is_operated(id: &str, seen: impl Fn(&str, &str) -> Result<String>) -> Result<()> {
    let exec = |flags: &[&str], script: &str| {
        let mut runv = command(built("runv")?);
        runv.args(["exec", "--namespace", "k8s.io"]).args(flags);
        runv.args([id, "sh", "-c", script]);
        anyhow::Ok(runv)
    };
    let script = "for it in mnt pid cgroup; do readlink /proc/self/ns/$it; done; hostname";
    let its = seen(id, script)?;
    let mut program = exec(&[], &format!("{script}; cat; echo oops >&2; exit 5"))?;
    let ended = Running::start_with_text(&mut program, "typed\n")?.finish(SOON)?;
    ensure!(ended.stdout() == format!("{its}typed\n"), "{ended}");
    ensure!(ended.stderr() == "oops\n", "{ended}");
    ended.with_code(5)?;
    let mut running = Running::start(&mut exec(&[], "echo ready; exec sleep 1000")?)?;
    running.wait_for_output(SOON, |text| text.contains("ready").then_some(()))?;
    running.signal(Signal::SIGTERM)?;
    running.finish(SOON)?.with_code(128 + 15)?;
    let mut terminal = Terminal::start(&exec(&["--tty"], terminal::USES)?, terminal::FIRST)?;
    terminal.is_a_programs()?;
    let (code, shown) = terminal.finish(SOON)?;
    ensure!(code == 0, "{code}: {shown}");
    Ok(())
}

/// What containers of a pod share, and what not.
fn are_shared(
    node: &Node<'_>,
    name: &str,
    [server, client]: [&str; 2],
    address: &str,
) -> Result<()> {
    let cri = &node.cri;
    let seen = |id: &str, script: &str| {
        Ok::<_, anyhow::Error>(cri.exec(id, &["sh", "-c", script])?.stdout)
    };
    let own = seen(
        client,
        "uname -r; hostname; ip -4 -o address show eth0; cat /dev/shm/shared",
    )?;
    let release_and_name = format!("-cloud-amd64\n{name}\n");
    ensure!(own.contains(&release_and_name), "{own}");
    ensure!(own.contains(address) && own.ends_with("mine\n"), "{own}");
    let volumes = seen(
        server,
        "cat /token/ca; echo new > /cache/file; touch /token/x || echo kept",
    )?;
    ensure!(volumes == "secret\nkept\n", "{volumes}");
    let volumes = seen(client, "cat /token/ca /cache/file")?;
    ensure!(volumes == "secret\nnew\n", "{volumes}");
    let resolver = seen(client, "cat /etc/resolv.conf /etc/hosts")?;
    ensure!(resolver.contains("localhost"), "{resolver}");
    for (kind, is_shared) in [
        ("ipc", true),
        ("uts", true),
        ("net", true),
        ("mnt", false),
        ("pid", false),
    ] {
        let [one, other] =
            [server, client].map(|id| seen(id, &format!("readlink /proc/self/ns/{kind}")));
        ensure!((one? == other?) == is_shared, "{kind}");
    }
    is_operated(client, seen)
}

/// Whether who serves the volumes of this node has a directory open.
fn is_held(node: &Node<'_>, directory: &Path) -> Result<bool> {
    let wanted = fs::metadata(directory)?;
    let all = processes()?.into_values();
    let serving =
        all.filter(|it| it.command.contains("virtiofsd") && node.containerd.tag.is_in(&it.owner));
    for process in serving {
        // What is closed meanwhile is not open.
        let open = fs::read_dir(format!("/proc/{}/fd", process.pid))?.flatten();
        let open = open.filter_map(|it| fs::metadata(it.path()).ok());
        if open
            .into_iter()
            .any(|it| (it.dev(), it.ino()) == (wanted.dev(), wanted.ino()))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Volumes of the host, a container that is killed for memory, and the end of the machine.
fn is_shared_until_it_is_lost(node: &Node<'_>) -> Result<()> {
    let cri = &node.cri;
    let mut pod = node.pod("lost", PodNetwork::Own)?;
    pod.annotations = vec![("org.pouch.runv.volumes".to_owned(), "shared".to_owned())];
    let pod_id = cri.run_pod(&pod)?;
    let data = node.containerd.work().join("claim");
    fs::create_dir(&data)?;
    fs::write(data.join("message"), "")?;
    let lent = node.containerd.work().join("lent");
    fs::create_dir(&lent)?;
    fs::write(lent.join("seen"), "")?;
    let with = |name: &str, access: Access, script: &str| {
        let message = (data.join("message"), "/message".to_owned(), Access::Write);
        let mut volumes = vec![(data.clone(), "/data".to_owned(), access), message];
        if access == Access::Read {
            volumes.push((lent.clone(), "/lent".to_owned(), Access::Write));
        }
        let container = Container {
            volumes,
            memory_bytes: 32 << 20,
            ..shell(name, script)
        };
        let id = cri.create(&pod, &pod_id, &container)?;
        cri.start(&id).map(|()| id)
    };
    let id = with("one", Access::Write, "echo mine > /data/one; sleep 100000")?;
    let reader = with(
        "reader",
        Access::Read,
        "touch /data/two || cat /data/one > /message; cat /lent/*; exec tail /dev/zero",
    )?;
    until("the reader has exited", SOON, Sources::none(), || {
        Ok(cri.has_exited(&reader)?.then_some(()))
    })?;
    let status = cri.status(&reader)?;
    ensure!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    ensure!(fs::read_to_string(data.join("message"))? == "mine\n");
    cri.remove(&reader)?;
    until(
        "the reader's volume is let go of",
        SOON,
        Sources::none(),
        || Ok((!is_held(node, &lent)? && is_held(node, &data)?).then_some(())),
    )?;
    // Its volumes were its own; this one's are there still.
    let again = cri.exec(&id, &["sh", "-c", "cat /message && rm /data/one"])?;
    ensure!(again.stdout == "mine\n", "{again:?}");
    ensure!(!data.join("one").exists() && !data.join("two").exists());

    let machine = machines(node)?.pop_first().context("it has a machine")?;
    kill(Pid::from_raw(machine), Signal::SIGKILL)?;
    until("its container has exited", SOON, Sources::none(), || {
        Ok(cri.has_exited(&id)?.then_some(()))
    })?;
    ensure!(cri.status(&id)?.exit_code == 255, "{:?}", cri.status(&id)?);
    cri.remove_pod(&pod_id)
}
