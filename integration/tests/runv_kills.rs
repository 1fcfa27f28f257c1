//! kill -9 of each process of a container in a virtual machine at each step of its journal: all is told right and
//! nothing is left, on the host and in the network namespace of its links.
//!
//! Programs are held up where they open a file (`hold`), so a step is hit exactly. `POUCH_RUNV_KILLS=all` kills each
//! at each step where there is one, on every containerd; else the newest alone and less.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use integration::{
    census::{Process, processes},
    check::Bench,
    config::Config,
    containerd::{Containerd, SETTLE_LIMIT},
    ctr::Container,
    hold::{Hold, Opening, Watched},
    images::Image,
    network::NetworkNamespace,
    process::output_of,
    runtime::{BOOT, Home, Runtime},
    settle::settle,
    versions::{Installed, Version},
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runv;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// A moment in a container's life, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Its directory is made, and nothing is in the journal.
    Begun,
    /// The journal is there; hooks have run, links were read.
    Journalled,
    /// Links are tied, the cgroup is made and not known to be its own.
    CgroupMade,
    /// All is in the journal, and the template was taken.
    Recorded,
    /// QEMU is in the cgroup and about to be QEMU.
    Qemu,
    /// The machine is up; its disk is about to be plugged in.
    Up,
    /// The program runs.
    Running,
    /// The machine has ended; nothing of it is undone.
    Undoing,
    /// Only its directory is left.
    Removing,
}

const STEPS: [Step; 9] = [
    Step::Begun,
    Step::Journalled,
    Step::CgroupMade,
    Step::Recorded,
    Step::Qemu,
    Step::Up,
    Step::Running,
    Step::Undoing,
    Step::Removing,
];

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Shim,
    Containerd,
    Qemu,
    /// What serves volumes; such a machine boots.
    Virtiofsd,
    /// Pid 1 of the guest, with the guest.
    Agent,
    /// What holds the template.
    Holder,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    victim: Victim,
    step: Step,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.victim, self.step)
    }
}

impl Case {
    /// What a container that has ended by it exits with.
    fn codes(self) -> &'static [i32] {
        match self.victim {
            // containerd asks the shim's `delete`.
            Victim::Shim => &[137],
            Victim::Qemu | Victim::Virtiofsd | Victim::Agent => &[255],
            Victim::Containerd | Victim::Holder => &[137],
        }
    }
}

fn cases(is_whole: bool) -> Vec<Case> {
    let at = |victim: Victim, steps: &[Step]| -> Vec<Case> {
        steps.iter().map(|&step| Case { victim, step }).collect()
    };
    let lives = [Step::Up, Step::Running];
    let mut cases = at(Victim::Shim, &STEPS);
    cases.extend(at(Victim::Qemu, &lives));
    cases.extend(at(Victim::Agent, &[Step::Running]));
    cases.extend(match is_whole {
        true => at(Victim::Containerd, &STEPS),
        false => at(
            Victim::Containerd,
            &[Step::CgroupMade, Step::Up, Step::Undoing],
        ),
    });
    cases.extend(at(
        Victim::Virtiofsd,
        &lives[..if is_whole { 2 } else { 1 }],
    ));
    // After those the template is made anew.
    cases.extend(match is_whole {
        true => at(Victim::Holder, &STEPS[..7]),
        false => at(Victim::Holder, &[Step::CgroupMade]),
    });
    cases
}

/// By which openings steps are known, and how often each was seen in this life.
#[derive(Debug)]
struct Steps {
    /// The directory of all containers, and which of them it is about.
    root: PathBuf,
    id: String,
    layers: PathBuf,
    cgroup: String,
    seen: BTreeMap<String, u32>,
}

impl Steps {
    fn of(&mut self, opening: &Opening) -> Option<Step> {
        let name = self.name(opening)?;
        let times = self.seen.entry(name.clone()).or_default();
        *times += 1;
        match (name.as_str(), *times) {
            (".state.json", 1) => Some(Step::Begun),
            (".state.json", 2) => Some(Step::Journalled),
            (".state.json", 3) => Some(Step::CgroupMade),
            ("qemu.log", 1) => Some(Step::Recorded),
            ("qemu", 1) => Some(Step::Qemu),
            // First it was looked for.
            ("disk", 2) => Some(Step::Up),
            ("state.json", 1) => Some(Step::Undoing),
            // Whoever looks at it before does not remove it.
            ("directory", _) if self.seen.contains_key("state.json") => Some(Step::Removing),
            _ => None,
        }
    }

    fn name(&self, opening: &Opening) -> Option<String> {
        if opening.path == Path::new(QEMU) {
            // Other tests start it too.
            let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", opening.pid));
            return cgroup
                .is_ok_and(|it| it.contains(&self.cgroup))
                .then(|| "qemu".to_owned());
        }
        if opening.path.starts_with(&self.layers) {
            return Some("disk".to_owned());
        }
        // Of another container something may still be going on.
        let below = opening.path.strip_prefix(self.root.join(&self.id)).ok()?;
        match below.components().count() {
            0 => Some("directory".to_owned()),
            1 => Some(below.file_name()?.to_string_lossy().into_owned()),
            _ => None,
        }
    }
}

/// What is to be done at the next step that is waited for.
#[derive(Debug)]
struct Plan {
    steps: Steps,
    armed: Option<Case>,
    /// What came of it; none as long as the step was not reached.
    done: Option<Result<()>>,
}

/// One containerd with all that its containers need.
struct Scene<'a> {
    containerd: &'a Containerd,
    home: &'a Home,
    /// The network namespace that containers join, and its links.
    links: &'a NetworkNamespace,
    plan: &'a Mutex<Plan>,
}

fn pids(wanted: impl Fn(&Process) -> bool) -> Result<Vec<i32>> {
    let all = processes()?.into_values();
    Ok(all.filter(wanted).map(|it| it.pid).collect())
}

fn kill9(pids: &[i32], who: &str) -> Result<()> {
    ensure!(!pids.is_empty(), "there is no {who}");
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).with_context(|| format!("killing {who}"))?;
    }
    Ok(())
}

/// Kills; it opens nothing that is watched.
fn strike(containerd: &Containerd, home: &Home, victim: Victim) -> Result<()> {
    let tag = &containerd.tag;
    match victim {
        Victim::Shim => kill9(&shims(containerd)?, "shim"),
        Victim::Containerd => containerd.kill9(),
        Victim::Qemu => {
            let is_it = |it: &Process| it.command.starts_with(QEMU) && tag.is_in(&it.owner);
            kill9(&pids(is_it)?, "QEMU")
        }
        Victim::Virtiofsd => {
            let is_it = |it: &Process| it.command.contains("virtiofsd") && tag.is_in(&it.owner);
            kill9(&pids(is_it)?, "virtiofsd")
        }
        Victim::Holder => kill9(&makers(home)?, "holder"),
        Victim::Agent => Ok(()),
    }
}

/// Daemons of this containerd, and not what it runs to clean up.
fn shims(containerd: &Containerd) -> Result<Vec<i32>> {
    pids(|it| {
        it.command.contains("containerd-shim-runv-v2")
            && !it.command.ends_with(" delete")
            && !it.command.contains("hold-template")
            && containerd.tag.is_in(&it.command)
    })
}

/// Makers and holders of templates in this place.
fn makers(home: &Home) -> Result<Vec<i32>> {
    let (name, path) = home.variable();
    let place = format!("{name}={path}");
    pids(|it| it.command.contains(" hold-template ") && it.owner.contains(&place))
}

impl<'a> Scene<'a> {
    fn container(&self, id: &str, case: Case) -> Container<'a> {
        let bench = self.bench();
        let joined = format!("network:{}", self.links.path().display());
        let container = bench.ctr().container(id, bench.image, bench.runtime);
        let container = container.flags(&["--with-ns", &joined, "--cap-add", "CAP_SYS_ADMIN"]);
        match case.victim {
            Victim::Virtiofsd => container.bound(&self.containerd.work(), "/data"),
            _ => container,
        }
    }

    fn bench(&self) -> Bench<'a> {
        Bench {
            containerd: self.containerd,
            runtime: RUNTIME,
            image: Image::Busybox,
        }
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().expect("nobody panics while holding it")
    }

    /// One container, and its end by this case.
    fn check(&self, id: &str, case: Case) -> Result<()> {
        let known = self.containerd.census()?;
        let lived = self.live(id, case);
        if case.victim == Victim::Containerd {
            self.containerd.start_again()?;
        }
        self.plan().armed = None;
        // Also after an error: the next one needs the links.
        let settled = settle(&self.bench(), id, case.codes());
        lived.and(settled)?;
        self.is_free()?;
        // A shim that containerd has forgotten before it asked for a container ends after 60 s.
        let leaks = self.containerd.leaks_since(&known, SETTLE_LIMIT * 5)?;
        ensure!(leaks.is_empty(), "left behind:\n{leaks}");
        Ok(())
    }

    fn live(&self, id: &str, case: Case) -> Result<()> {
        let mut plan = self.plan();
        plan.steps.seen.clear();
        id.clone_into(&mut plan.steps.id);
        plan.done = None;
        plan.armed = (case.step != Step::Running).then_some(case);
        drop(plan);
        let task = self.bench().ctr().task(id);
        // What is killed may have it fail, but nothing hangs.
        let started = self.container(id, case).detach(&["sleep", "600"]);
        if case.step >= Step::Running {
            started?;
        }
        match (case.step, case.victim) {
            (Step::Running, Victim::Agent) => {
                let script = "mkdir /p && mount -t proc proc /p && echo c > /p/sysrq-trigger";
                // Nobody is there to tell how it ended.
                task.start_exec(&[], &["sh", "-c", script])?.finish(SOON)?;
                task.wait()?;
            }
            (Step::Running, victim) => {
                strike(self.containerd, self.home, victim)?;
                if matches!(victim, Victim::Qemu | Victim::Virtiofsd) {
                    // Until the shim has told it, all looks as if it ran.
                    task.wait()?;
                }
            }
            (Step::Undoing | Step::Removing, _) => {
                task.kill(Signal::SIGKILL)?;
                // As the creation: it may fail.
                let _ended = task.wait().and_then(|()| task.delete());
            }
            _ => {}
        }
        match (case.step, self.plan().done.take()) {
            (Step::Running, _) => Ok(()),
            (_, done) => done.context("the step was not reached")?,
        }
    }

    /// The namespace has its own links alone, and nothing redirects them.
    fn is_free(&self) -> Result<()> {
        let shown = |words: &[&str]| {
            let mut command = self.links.command(words[0]);
            output_of(command.args(&words[1..]), SOON)
        };
        until("links are free", SOON, Sources::none(), || {
            let links = shown(&["ip", "-o", "link"])?;
            let disciplines = shown(&["tc", "qdisc", "show"])?;
            let is_free = links.lines().count() == 3 && !disciplines.contains("ingress");
            Ok(is_free.then_some(()))
        })
    }

    /// As the others; a machine that has booted then has another template made, which may be killed too.
    fn check_holder(&self, id: &str, case: Case) -> Result<()> {
        let make = ["template", "make", "--links", "1"];
        // One that is there stays; on a busy machine one is thrown away that is slow.
        self.home.runv(&make)?;
        self.check(id, case)?;
        let listed = || self.home.runv(&["template", "ls"]);
        if case.step > Step::CgroupMade {
            // It had taken what it needs.
            return Ok(());
        }
        until(
            "another template is made or held",
            BOOT,
            Sources::none(),
            || Ok((!makers(self.home)?.is_empty()).then_some(())),
        )?;
        if !listed()?.contains("held by") {
            let makers = makers(self.home)?;
            let machines = pids(|it| makers.contains(&it.parent) && it.command.starts_with(QEMU))?;
            kill9(&makers, "maker")?;
            for machine in machines {
                for_end_of(machine, SOON)?;
            }
        }
        self.home.runv(&["template", "rm", "--all"])?;
        ensure!(listed()?.is_empty(), "{id}: {}", listed()?);
        Ok(())
    }
}

/// A namespace with two ends of one link, one of which is that of containers.
fn links() -> Result<NetworkNamespace> {
    let network = NetworkNamespace::new()?;
    for words in [
        &[
            "link", "add", "eth0", "type", "veth", "peer", "name", "other",
        ][..],
        &["address", "add", "10.213.0.2/24", "dev", "eth0"],
        &["link", "set", "eth0", "up"],
    ] {
        output_of(network.command("ip").args(words), SOON)?;
    }
    Ok(network)
}

fn kills_on(installed: &Installed, is_whole: bool) -> Result<Vec<String>> {
    let home = RUNTIME.home(1)?.context("runv has a place")?;
    let mut config = Config::with_images(&[Image::Busybox]);
    config.environment.push(home.variable());
    let containerd = Containerd::start(installed, &config)?;
    let root = Path::new("/run/containerd/runv").join(&containerd.namespace);
    let watched = Watched::mount(&root)?;
    let layers = PathBuf::from(home.variable().1).join("layers");
    std::fs::create_dir_all(&layers)?;
    let hold = Hold::new()?;
    hold.watch_mount(watched.path())?;
    hold.watch_directory(&layers)?;
    hold.watch_program(Path::new(QEMU))?;
    let plan = Mutex::new(Plan {
        steps: Steps {
            root,
            id: String::new(),
            layers,
            cgroup: containerd.namespace.clone(),
            seen: BTreeMap::new(),
        },
        armed: None,
        done: None,
    });
    let is_over = AtomicBool::new(false);
    let network = links()?;
    let failures = thread::scope(|scope| {
        let look = |opening: &Opening| {
            let mut plan = plan.lock().expect("nobody panics while holding it");
            let step = plan.steps.of(opening);
            if let Some(case) = plan.armed.filter(|case| Some(case.step) == step) {
                plan.armed = None;
                plan.done = Some(strike(&containerd, &home, case.victim));
            }
        };
        let (hold, is_over) = (&hold, &is_over);
        let server = scope.spawn(move || hold.serve(is_over, look));
        let scene = Scene {
            containerd: &containerd,
            home: &home,
            links: &network,
            plan: &plan,
        };
        let mut failures = all(&scene, is_whole);
        is_over.store(true, Ordering::Release);
        let served = server.join().expect("it does not panic");
        failures.extend(served.err().map(|error| format!("who holds up: {error:#}")));
        failures
    });
    drop((hold, watched, network));
    // What failed may have left something, which is told already.
    let finished = containerd.finish().err().filter(|_| failures.is_empty());
    let finished = finished.map(|error| format!("{error:#}"));
    Ok(failures.into_iter().chain(finished).collect())
}

/// What was wrong in each case.
fn all(scene: &Scene<'_>, is_whole: bool) -> Vec<String> {
    let version = scene.containerd.installed.version;
    let mut failures = Vec::new();
    for (number, case) in cases(is_whole).into_iter().enumerate() {
        let id = format!("case-{number}");
        let outcome = match case.victim {
            Victim::Holder => scene.check_holder(&id, case),
            _ => scene.check(&id, case),
        };
        if let Err(error) = outcome {
            let log = scene.containerd.log_tail();
            failures.push(format!("containerd {version}: {case}: {error:#}\n{log}"));
        }
    }
    failures
}

#[test]
fn who_is_killed_at_any_step_leaves_nothing_and_all_is_told_right() {
    let is_whole = std::env::var("POUCH_RUNV_KILLS").is_ok_and(|it| it == "all");
    let mut containerds = Version::available().unwrap();
    if !is_whole {
        containerds.drain(..containerds.len() - 1);
    }
    let failures = containerds.iter().map(|it| kills_on(it, is_whole).unwrap());
    let failures: Vec<_> = failures.flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
