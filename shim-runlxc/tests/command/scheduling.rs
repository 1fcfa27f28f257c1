//! How the kernel treats a container's processes besides their rights.

use std::fs;

use serde_json::json;

use crate::harness::Place;

/// Batch with nice 5, Linux32, memory of node 0.
fn check(pid: &str) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let stat = read("stat");
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((fields[16], fields[38]), ("5", "3"), "{stat}");
    assert_eq!(read("personality"), "00000008\n");
    let maps = read("numa_maps");
    assert!(maps.lines().all(|line| line.contains(" bind:0")), "{maps}");
}

#[test]
fn a_container_runs_on_all_cpus_whatever_its_caller_is_pinned_to() {
    let place = Place::new("grep Cpus_allowed_list: /proc/self/status");
    place.save();
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let all = all
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"))
        .unwrap();
    let run = || {
        sys::scheduling::set_cpu_affinity(0, &[0]).unwrap();
        place.run(&["run", "-b", place.bundle_str(), &place.id])
    };
    // The affinity of a thread, which what it starts inherits.
    let said = std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    assert_eq!(said.ok().trim_end(), all);
    place.finish();
}

#[test]
fn scheduling_reaches_init_and_execs() {
    let mut place = Place::new("exec sleep 100");
    place.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    place.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    place.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    place.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    place.create().ok();
    place.on("start").ok();
    check(&place.state()["pid"].to_string());
    let file = place.path("pid");
    let words = [
        "exec",
        "-d",
        "--pid-file",
        file.to_str().unwrap(),
        &place.id,
    ];
    place.run(&[&words[..], &["sleep", "100"]].concat()).ok();
    check(&fs::read_to_string(&file).unwrap());
    // Of config.json as well for a process that is described anew, as far as that says nothing else.
    let process = place.path("process.json");
    let spec = json!({"args": ["sleep", "100"], "cwd": "/", "env": ["PATH=/bin"]});
    fs::write(&process, spec.to_string()).unwrap();
    let words = ["--process", process.to_str().unwrap()];
    let words = [
        &["exec", "-d", "--pid-file", file.to_str().unwrap()],
        &words[..],
    ]
    .concat();
    place.run(&[&words[..], &[&place.id]].concat()).ok();
    check(&fs::read_to_string(&file).unwrap());
    let spec = json!({"args": ["cat", "/proc/self/stat"], "cwd": "/", "env": ["PATH=/bin"],
                      "scheduler": {"policy": "SCHED_OTHER", "nice": 7}});
    fs::write(&process, spec.to_string()).unwrap();
    let words = ["exec", "--process", process.to_str().unwrap(), &place.id];
    let stat = place.run(&words).ok();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((fields[16], fields[38]), ("7", "0"), "{stat}");
    let io = place
        .run(&["exec", &place.id, "busybox", "ionice", "-p", "1"])
        .ok();
    assert!(io.starts_with("idle"), "{io}");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn the_affinity_of_an_exec_is_the_final_one_and_that_of_no_init() {
    let mut place = Place::new("exec sleep 100");
    place.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    place.create().ok();
    place.on("start").ok();
    let list = |pid: &str| {
        let words = ["exec", &place.id, "grep", "Cpus_allowed_list", pid];
        place.run(&words).ok().trim().to_owned()
    };
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list"))
        .unwrap();
    assert_eq!(list("/proc/1/status"), own);
    assert_eq!(list("/proc/self/status"), "Cpus_allowed_list:\t0");
    let described = |more: serde_json::Value| {
        let mut spec = json!({"args": ["grep", "Cpus_allowed_list", "/proc/self/status"],
                              "cwd": "/", "env": ["PATH=/bin"]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let process = place.path("described.json");
        fs::write(&process, spec.to_string()).unwrap();
        let said = place.run(&["exec", "--process", process.to_str().unwrap(), &place.id]);
        said.ok().trim().to_owned()
    };
    assert_eq!(described(json!({})), "Cpus_allowed_list:\t0");
    let other = json!({"execCPUAffinity": {}});
    assert_eq!(described(other), own);
    let process = place.path("process.json");
    let spec = json!({"args": ["true"], "cwd": "/", "execCPUAffinity": {"initial": "4000"}});
    fs::write(&process, spec.to_string()).unwrap();
    place
        .run(&["exec", "--process", process.to_str().unwrap(), &place.id])
        .fails_with("process.execCPUAffinity.initial");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}
