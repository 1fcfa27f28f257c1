//! A bundle, a private state root, the `runlxc` command on them, and the proof that nothing is left.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// The command and its surroundings; `finish` proves that all is gone.
pub(crate) struct Place {
    temp: tempfile::TempDir,
    bundle: String,
    pub(crate) id: String,
    pub(crate) config: Value,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    /// Of failures their text alone.
    pub(crate) err: String,
}

/// What a line of the log says that tells of a failure; other lines are as they are.
fn failure(line: &str) -> String {
    let logged = line.strip_prefix("time=");
    let told = logged.and_then(|logged| logged.split_once(" level=error msg=\""));
    match told.and_then(|(_, told)| told.strip_suffix("\"\n")) {
        Some(told) => told.replace("\\\"", "\"") + "\n",
        None => line.to_owned(),
    }
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let err = text(&output.stderr);
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: err.split_inclusive('\n').map(failure).collect(),
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// A failure is one line that contains this.
    #[track_caller]
    pub(crate) fn fails_with(self, text: &str) {
        assert_ne!(self.code, 0, "{self:?}");
        assert!(self.err.contains(text), "{text:?} is not in {self:?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "{self:?}");
    }
}

impl Place {
    /// A bundle of busybox whose program is this shell script.
    pub(crate) fn new(script: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "f-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let temp = tempfile::Builder::new()
            .prefix("runlxc-test")
            .tempdir()
            .unwrap();
        let mut config: Value =
            serde_json::from_str(&bundle::example::text(launch::plan::Toggle::Off)).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        let bundle = temp.path().join("bundle").to_str().unwrap().to_owned();
        let place = Self {
            temp,
            bundle,
            id,
            config,
        };
        let rootfs = place.rootfs();
        for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
            fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "true", "echo", "sleep", "id", "tty", "pwd", "env", "ls", "stty", "kill",
            "hostname", "grep", "mount", "umount", "tail", "ip",
        ] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        // A user namespace's root must be able to get here.
        for folder in [place.temp.path(), &place.bundle(), &rootfs] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(folder, open).unwrap();
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        PathBuf::from(&self.bundle)
    }

    pub(crate) fn bundle_str(&self) -> &str {
        &self.bundle
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes config.json as it is now.
    pub(crate) fn save(&self) {
        fs::write(self.bundle().join("config.json"), self.config.to_string()).unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "the tests' one spawn function")]
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_runlxc"));
        let stub = program.with_file_name("runlxc-init");
        assert!(
            stub.exists(),
            "{} is not there: cargo build -p runlxc-init",
            stub.display()
        );
        let mut command = Command::new(program);
        command
            .arg("--root")
            .arg(self.root())
            .args(words)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        self.outcome(self.command(words))
    }

    /// The same of Debian's runc, which has a state root of its own.
    #[expect(clippy::disallowed_methods, reason = "the peer's one spawn function")]
    pub(crate) fn runc(&self, words: &[&str]) -> Said {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.path("runc"))
            .args(words)
            .stdin(Stdio::null());
        self.outcome(command)
    }

    /// [`Place::run`] where nothing is in /run yet, as after booting.
    pub(crate) fn run_on_empty_run(&self, words: &[&str]) -> Said {
        self.run_apart("--mount", "mount -t tmpfs none /run", words)
    }

    /// [`Place::run`] in a network of its own that this script has set up.
    pub(crate) fn run_in_network(&self, script: &str, words: &[&str]) -> Said {
        self.run_apart("--net", script, words)
    }

    #[expect(clippy::disallowed_methods, reason = "a wrapper around the command")]
    fn run_apart(&self, namespace: &str, script: &str, words: &[&str]) -> Said {
        let inner = self.command(words);
        let mut command = Command::new("unshare");
        command
            .args([namespace, "sh", "-ec"])
            .arg(format!("{script}; exec \"$0\" \"$@\""))
            .arg(inner.get_program())
            .args(inner.get_args())
            .stdin(Stdio::null());
        self.outcome(command)
    }

    /// [`Place::run`] of a copy of the program in a folder, beside whatever stub is there.
    #[expect(clippy::disallowed_methods, reason = "a copy of the command")]
    pub(crate) fn run_copy(&self, folder: &Path, words: &[&str]) -> Said {
        let inner = self.command(words);
        let copy = folder.join("runlxc");
        fs::copy(inner.get_program(), &copy).unwrap();
        let mut command = Command::new(copy);
        command.args(inner.get_args()).stdin(Stdio::null());
        self.outcome(command)
    }

    fn outcome(&self, mut command: Command) -> Said {
        // Through files: a container that lives on keeps a pipe open.
        let (out, err) = (self.path("out"), self.path("err"));
        command
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap());
        let status = command.status().unwrap();
        let (stdout, stderr) = (fs::read(out).unwrap(), fs::read(err).unwrap());
        Said::of(&Output {
            status,
            stdout,
            stderr,
        })
    }

    /// `runlxc WORD ID`
    pub(crate) fn on(&self, word: &str) -> Said {
        self.run(&[word, &self.id])
    }

    pub(crate) fn create(&self) -> Said {
        self.save();
        self.run(&["create", "--bundle", self.bundle_str(), &self.id])
    }

    /// `runlxc create ID` with a console socket, without writing config.json.
    pub(crate) fn create_with_console(&self, socket: &Path) -> Said {
        let socket = socket.to_str().unwrap();
        let words = [
            "create",
            &self.id,
            "-b",
            &self.bundle,
            "--console-socket",
            socket,
        ];
        self.run(&words)
    }

    /// `runlxc run ID` in the foreground.
    pub(crate) fn run_program(&self) -> Said {
        self.save();
        self.run(&["run", "--bundle", self.bundle_str(), &self.id])
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.on("state").ok()).unwrap()
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a container's init, which is a child of the host's pid 1 or of ours.
    pub(crate) fn wait_stopped(&self, pid: i32) {
        let pidfd = sys::process::pidfd_open(sys::Pid::from_raw(pid));
        if let Ok(pidfd) = pidfd {
            use std::os::fd::AsFd;
            let mut fds = [nix::poll::PollFd::new(
                pidfd.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            assert_ne!(
                nix::poll::poll(&mut fds, 20_000_u16).unwrap(),
                0,
                "pid {pid} does not end"
            );
        }
    }

    /// A program for a hook: appends its word and the state it got to the file `hooks`.
    pub(crate) fn hook(&self, word: &str) -> Value {
        let script = format!("echo {word} $(cat) >> {}", self.path("hooks").display());
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
    }

    /// The lines that hooks wrote: word and status.
    pub(crate) fn hooks(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.path("hooks")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (word, state) = line.split_once(' ').unwrap();
                let state: Value = serde_json::from_str(state).unwrap();
                (
                    word.to_owned(),
                    state["status"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    }

    pub(crate) fn console_listener(&self) -> UnixListener {
        UnixListener::bind(self.path("console.sock")).unwrap()
    }

    /// Proves that nothing is left of the container, and forgets the files.
    #[track_caller]
    pub(crate) fn finish(self) {
        let state = names(&self.root());
        assert!(state.is_empty(), "state root has {state:?}");
        let temp = self.temp.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(temp)).collect();
        assert!(mounts.is_empty(), "mounts: {mounts:?}");
        let processes = processes_of(temp);
        assert!(processes.is_empty(), "processes: {processes:?}");
        let name = runlxc::lxc_config::name_of(&self.root().join(&self.id));
        let mut cgroups = Vec::new();
        find(
            Path::new("/sys/fs/cgroup"),
            &|found| found.contains(&self.id) || found.contains(&name),
            &mut cgroups,
        );
        assert!(cgroups.is_empty(), "cgroups: {cgroups:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The container of a test that fails ends with it.
        if std::thread::panicking() {
            let _said = self.command(&["delete", "--force", &self.id]).output();
        }
    }
}

/// What is in a folder; nothing when it does not exist.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Command lines that name this folder, but for our own process.
fn processes_of(folder: &str) -> Vec<String> {
    let pids = names(Path::new("/proc"))
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(folder).then(|| format!("{pid}: {line}"))
    })
    .collect()
}

fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        if wanted(entry.file_name().to_str().unwrap_or_default()) {
            found.push(entry.path());
        }
        find(&entry.path(), wanted, found);
    }
}

/// The terminal that comes to a console socket.
pub(crate) fn receive_terminal(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 256];
    let (_, mut fds, _) = sys::recv_with_fds(&stream, &mut name).unwrap();
    fds.pop().unwrap()
}

/// All that comes out of a terminal until nobody has its other end.
pub(crate) fn read_terminal(master: OwnedFd) -> String {
    use std::io::Read;
    let (mut file, mut text, mut buffer) = (fs::File::from(master), Vec::new(), [0; 4096]);
    // EIO is how a master says that the slave is closed.
    while let Ok(count @ 1..) = file.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&text).replace("\r\n", "\n")
}

pub(crate) fn write_script(path: &Path, text: &str) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, executable).unwrap();
}

/// The file that freezes a cgroup, and what to write to it.
pub(crate) fn freezer(name: &str) -> (PathBuf, &'static str) {
    let version_1 = Path::new("/sys/fs/cgroup/freezer");
    if version_1.exists() {
        (version_1.join(name).join("freezer.state"), "FROZEN")
    } else {
        (
            Path::new("/sys/fs/cgroup").join(name).join("cgroup.freeze"),
            "1",
        )
    }
}
