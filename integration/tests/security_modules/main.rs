//! AppArmor and SELinux, which are kernel's to have: runlxc in a guest with Debian's kernel 6.1.
//!
//! The containers' root is the guest's own, so that all its tools are there to look from inside.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use integration::{
    guest::{Guest, Series},
    process::{Running, command},
    runtime::built,
    wait::SOON,
};
use serde_json::{Value, json};

/// Profiles, and what is tried with them.
const APPARMOR: [(&str, &str); 2] = [
    ("profiles", include_str!("profiles")),
    ("apparmor.sh", include_str!("apparmor.sh")),
];

/// A policy, and what is tried with it.
const SELINUX: [(&str, &str); 2] = [
    ("policy.conf", include_str!("policy.conf")),
    ("selinux.sh", include_str!("selinux.sh")),
];

/// What the guest is given.
struct Payload {
    dir: tempfile::TempDir,
    files: Vec<PathBuf>,
}

impl Payload {
    fn new(texts: &[(&str, &str)]) -> Self {
        let mut payload = Self {
            dir: tempfile::tempdir().unwrap(),
            files: vec![built("runlxc").unwrap(), built("runlxc-init").unwrap()],
        };
        for (name, text) in texts {
            payload.add(name, text);
        }
        payload
    }

    fn add(&mut self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.files.push(path);
    }

    /// The config.json of `runlxc spec` with changes by their JSON pointers, as NAME.json.
    fn config(&mut self, name: &str, changes: &[(&str, Value)]) {
        let mut config = example(self.dir.path());
        config["process"]["terminal"] = json!(false);
        for (at, value) in changes {
            let (object, key) = at.rsplit_once('/').unwrap();
            config.pointer_mut(object).unwrap()[key] = value.clone();
        }
        self.add(&format!("{name}.json"), &config.to_string());
    }

    /// Runs the script of that name in a guest; it must succeed. Gives what it printed.
    fn run(self, script: &str, kernel_words: &str) -> String {
        let guest = Guest {
            series: Series::V6_1,
            payload: self.files,
            program: ["sh", &format!("/payload/{script}")]
                .map(str::to_owned)
                .to_vec(),
            limit: Duration::from_secs(240),
        };
        let outcome = guest.run_with(kernel_words, |_| {}).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.output);
        outcome.output
    }
}

fn example(dir: &Path) -> Value {
    let bundle = tempfile::tempdir_in(dir).unwrap();
    let mut spec = command(built("runlxc").unwrap());
    spec.args(["spec", "--bundle"]).arg(bundle.path());
    Running::start(&mut spec)
        .unwrap()
        .finish(SOON)
        .unwrap()
        .success()
        .unwrap();
    let text = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The lines of `output` after the heading `== WORD`, up to the next one; of lines of a log what they say.
fn section(output: &str, word: &str) -> Vec<String> {
    let heading = format!("== {word}");
    let lines = output.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("== "));
    let section: Vec<_> = lines.map(said).collect();
    assert!(!section.is_empty(), "nothing under {heading} in:\n{output}");
    section
}

/// `time="..." level=error msg="WHAT"` without what is before; other lines as they are.
fn said(line: &str) -> String {
    let message = line
        .strip_prefix("time=")
        .and_then(|line| line.split_once(" level=error msg="));
    let told = message.and_then(|(_, quoted)| serde_json::from_str(quoted).ok());
    told.unwrap_or_else(|| line.to_owned())
}

#[test]
fn containers_and_execs_run_under_their_apparmor_profiles() {
    const PROGRAM: &str = "cat /proc/self/attr/current /etc/pouch-secret 2>&1; exit 0";
    let mut payload = Payload::new(&APPARMOR);
    let args = || ("/process/args", json!(["sh", "-c", PROGRAM]));
    let profile = |name: &str| ("/process/apparmorProfile", json!(name));
    payload.config("confined", &[args(), profile("pouch-test")]);
    payload.config("unconfined", &[args(), profile("unconfined")]);
    payload.config("unnamed", &[args()]);
    payload.config("missing", &[args(), profile("pouch-missing")]);
    let sleep = ("/process/args", json!(["sleep", "1000"]));
    let hook = "cat /proc/self/attr/current > /dev/shm/hook";
    payload.config(
        "sleeper",
        &[
            sleep,
            profile("pouch-test"),
            (
                "/hooks",
                json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]}),
            ),
        ],
    );
    let output = payload.run("apparmor.sh", "");
    let check = |word: &str, expected: &[&str]| {
        assert_eq!(section(&output, word), expected, "{output}");
    };
    let confined = "pouch-test (enforce)";
    let denied = "cat: /etc/pouch-secret: Permission denied";
    check("confined", &[confined, denied]);
    check("unconfined", &["unconfined", "secret"]);
    check("unnamed", &["unconfined", "secret"]);
    let not_loaded =
        "\"pouch-missing\" is not loaded on this host: load it with apparmor_parser -r FILE";
    check(
        "missing",
        &[
            &format!("runlxc run failed: process.apparmorProfile: {not_loaded}"),
            "1",
        ],
    );
    check("exec", &[confined]);
    check("exec of another", &["pouch-other (enforce)"]);
    check("exec unconfined", &["unconfined"]);
    check(
        "exec missing",
        &[
            &format!("exec failed: process.apparmorProfile: {not_loaded}"),
            "255",
        ],
    );
    check("hook", &[confined]);
    check("stopped", &["nothing"]);
}

#[test]
fn containers_execs_mounts_and_keyrings_have_their_selinux_labels() {
    const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
    const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    let mut payload = Payload::new(&SELINUX);
    let look = "tr -d '\\0' < /proc/self/attr/current; echo; keyctl security @s; \
                stat -c %C /dev /dev/pts /dev/shm /dev/mqueue /sys/firmware";
    let args = ("/process/args", json!(["sh", "-c", look]));
    let label = |label: &str| ("/process/selinuxLabel", json!(label));
    let files = || ("/linux/mountLabel", json!(FILES));
    payload.config("labelled", &[args.clone(), label(PROCESS), files()]);
    payload.config("wrong", &[args, label("system_u:system_r:nobody_t:s0")]);
    payload.config(
        "sleeper",
        &[
            ("/process/args", json!(["sleep", "1000"])),
            label(PROCESS),
            files(),
        ],
    );
    let output = payload.run("selinux.sh", "security=selinux selinux=1 enforcing=0");
    let check = |word: &str, expected: &[&str]| {
        assert_eq!(section(&output, word), expected, "{output}");
    };
    check(
        "labelled",
        &[PROCESS, PROCESS, FILES, FILES, FILES, FILES, FILES],
    );
    check(
        "wrong",
        &[
            "runlxc run failed: process.selinuxLabel: \"system_u:system_r:nobody_t:s0\" is no label \
             of the SELinux policy on this host",
            "1",
        ],
    );
    check("exec", &[PROCESS]);
    check("exec of another", &["system_u:system_r:other_t:s0"]);
}
