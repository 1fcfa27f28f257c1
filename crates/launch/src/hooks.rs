//! Runs hooks: a program with the container's state on its standard input, and a time limit.
//!
//! Used on both sides: by the host for prestart, createRuntime, poststart and poststop, by the stub
//! for createContainer and startContainer. Must not decide what a failure means for the container.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{read, write};
use sys::{Child, ExitStatus, Spawn};

use crate::error::{Error, Result};
use crate::plan::Hook;

/// How much of a hook's standard error its failure repeats.
const STDERR_BYTES_MAX: usize = 4096;

/// How often an exit is looked for where the kernel has no pidfd (before 5.3) and a process that
/// the hook left behind keeps its standard error open.
const EXIT_CHECK: Duration = Duration::from_millis(50);

/// A point of the lifecycle (runtime-spec runtime.md, Lifecycle).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `prestart`, deprecated.
    Prestart,
    /// `createRuntime`.
    CreateRuntime,
    /// `createContainer`.
    CreateContainer,
    /// `startContainer`.
    StartContainer,
    /// `poststart`.
    Poststart,
    /// `poststop`.
    Poststop,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// Which hook, for messages: its stage, and its place in the list when there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Point of the lifecycle.
    pub stage: Stage,
    /// Place in its list.
    pub index: Option<usize>,
}

impl From<Stage> for Place {
    fn from(stage: Stage) -> Self {
        Self { stage, index: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hook", self.stage)?;
        self.index.map_or(Ok(()), |index| write!(f, " #{index}"))
    }
}

/// Runs hooks in their order and stops at the first that fails.
pub fn run_all(hooks: &[Hook], state_json: &str, stage: Stage) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        run(
            hook,
            state_json,
            Place {
                stage,
                index: Some(index),
            },
        )
    })
}

/// Runs one hook in the working directory of the caller, and waits for it.
///
/// It gets its own environment only, the state on standard input, nothing on standard output, and a
/// session of its own, so that all it started in there ends with it at its timeout.
pub fn run(hook: &Hook, state_json: &str, place: impl Into<Place>) -> Result<()> {
    let place = place.into();
    let started = start(hook).map_err(|source| Error::HookStart {
        place,
        path: hook.path.clone(),
        source,
    })?;
    let timeout = hook
        .timeout_s
        .map(|seconds| Duration::from_secs(seconds.into()));
    let mut run = Run {
        hook: started,
        unsent: state_json.as_bytes(),
        stderr: Tail::default(),
    };
    let end = run.finish(timeout.map(|limit| Instant::now() + limit));
    let stderr = run.stderr.text();
    let path = hook.path.clone();
    match end.map_err(|source| Error::HookStart {
        place,
        path: path.clone(),
        source,
    })? {
        End::Exit(ExitStatus::Exited(0)) => Ok(()),
        End::Exit(status) => {
            let status = status_words(status);
            Err(Error::HookStatus {
                place,
                path,
                status,
                stderr,
            })
        }
        End::Timeout => {
            let seconds = hook.timeout_s.unwrap_or_default();
            Err(Error::HookTimeout {
                place,
                path,
                seconds,
                stderr,
            })
        }
    }
}

/// A hook under way, and our ends of its pipes.
#[derive(Debug)]
struct Started {
    child: Child,
    /// None once all was written or the hook has closed it.
    stdin: Option<OwnedFd>,
    /// None once everybody has closed it.
    stderr: Option<OwnedFd>,
    /// Readable when the hook has ended; none before Linux 5.3.
    exited: Option<OwnedFd>,
}

fn start(hook: &Hook) -> io::Result<Started> {
    let (stdin_theirs, stdin) = sys::pipe_cloexec()?;
    let (stderr, stderr_theirs) = sys::pipe_cloexec()?;
    for ours in [&stdin, &stderr] {
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut spawn = Spawn::new(Path::new(&hook.path))
        .env_clear_set(
            hook.env
                .iter()
                .map(|entry| environment_entry(entry))
                .collect(),
        )
        .stdin(stdin_theirs.as_fd())
        .stderr(stderr_theirs.as_fd())
        .new_session();
    if let [name, arguments @ ..] = hook.args.as_slice() {
        spawn = spawn.argv0(name).args(arguments);
    }
    let child = spawn.spawn()?;
    let exited = sys::process::pidfd_open(child.pid()).ok();
    Ok(Started {
        child,
        stdin: Some(stdin),
        stderr: Some(stderr),
        exited,
    })
}

/// Name and value of an entry of a process's environment.
pub(crate) fn environment_entry(entry: &str) -> (OsString, OsString) {
    let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
    (name.into(), value.into())
}

/// How a hook ended.
enum End {
    Exit(ExitStatus),
    Timeout,
}

/// The copying to and from a hook until it ends.
struct Run<'a> {
    hook: Started,
    unsent: &'a [u8],
    stderr: Tail,
}

impl Run<'_> {
    fn finish(&mut self, deadline: Option<Instant>) -> io::Result<End> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return self.kill();
            }
            self.wait_for_something(left)?;
            self.feed();
            let status = self.hook.child.try_wait()?;
            self.collect();
            if let Some(status) = status {
                return Ok(End::Exit(status));
            }
        }
    }

    /// Ends the hook and all that is still in its session's first process group.
    fn kill(&mut self) -> io::Result<End> {
        match killpg(self.hook.child.pid(), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
        self.hook.child.wait()?;
        self.collect();
        Ok(End::Timeout)
    }

    /// Sleeps until a pipe is ready, the hook has ended, or `left` is over.
    fn wait_for_something(&mut self, left: Option<Duration>) -> io::Result<()> {
        let hook = &self.hook;
        let wanted = [
            (&hook.stdin, PollFlags::POLLOUT),
            (&hook.stderr, PollFlags::POLLIN),
            (&hook.exited, PollFlags::POLLIN),
        ];
        let mut fds: Vec<_> = wanted
            .iter()
            .filter_map(|(fd, flags)| fd.as_ref().map(|fd| PollFd::new(fd.as_fd(), *flags)))
            .collect();
        let left = if hook.exited.is_some() {
            left
        } else {
            Some(left.map_or(EXIT_CHECK, |left| left.min(EXIT_CHECK)))
        };
        // Rounded up, so that the last wait does not end a moment before the deadline.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes as much of the state as the pipe takes; a hook need not read it.
    fn feed(&mut self) {
        let Some(stdin) = &self.hook.stdin else {
            return;
        };
        while !self.unsent.is_empty() {
            match write(stdin, self.unsent) {
                Ok(count) => self.unsent = &self.unsent[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // EPIPE: the hook has closed its end.
                Err(_) => break,
            }
        }
        self.hook.stdin = None;
    }

    /// Reads what has arrived on the hook's standard error.
    fn collect(&mut self) {
        let Some(stderr) = &self.hook.stderr else {
            return;
        };
        if self.stderr.fill(stderr.as_fd()) == Source::Ended {
            self.hook.stderr = None;
        }
    }
}

#[derive(PartialEq)]
enum Source {
    Open,
    Ended,
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads until the source has no more for now. What came in between two calls is at most what a
    /// pipe holds, so this returns even while the writer goes on.
    fn fill(&mut self, source: BorrowedFd<'_>) -> Source {
        let mut buffer = [0; 4096];
        for _ in 0..64 {
            match read(source, &mut buffer) {
                Ok(0) => return Source::Ended,
                Ok(count) => self.push(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return Source::Ended,
            }
        }
        Source::Open
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(STDERR_BYTES_MAX);
        self.bytes.drain(..excess);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end().to_owned()
    }
}

/// An exit status in the words of Go's os/exec, which is what users of runc grep for.
#[must_use]
pub fn status_words(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited(code) => format!("exit status {code}"),
        ExitStatus::Signaled(number) => {
            let words = usize::try_from(number)
                .ok()
                .and_then(|at| SIGNAL_WORDS.get(at));
            words.map_or_else(
                || format!("signal: signal {number}"),
                |words| format!("signal: {words}"),
            )
        }
    }
}

/// By number, the same on every architecture this runs on.
const SIGNAL_WORDS: [&str; 32] = [
    "signal 0",
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        Hook {
            path: "/bin/busybox".to_owned(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["WORD=value with = in it".to_owned()],
            timeout_s: None,
        }
    }

    fn failure(script: &str) -> String {
        run(&shell(script), "{}", Stage::Poststart)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_hook_gets_the_state_its_own_environment_and_a_session() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!(
            "exec >{}; cat; echo \"$WORD,$HOME,$(env | grep -c .)\"; \
             test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo leader",
            out.display()
        );
        run(&shell(&script), "{\"id\":\"x\"}", Stage::Prestart).unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        // busybox adds PWD, SHLVL and OLDPWD itself.
        assert!(
            text.starts_with("{\"id\":\"x\"}value with = in it,,"),
            "{text}"
        );
        assert!(text.ends_with("leader\n"), "{text}");
    }

    #[test]
    fn a_state_larger_than_a_pipe_reaches_those_who_read_and_hurts_nobody_else() {
        let state = "x".repeat(1 << 20);
        run(&shell("test $(wc -c) = 1048576"), &state, Stage::Prestart).unwrap();
        run(&shell("exit 0"), &state, Stage::Prestart).unwrap();
        run(&shell("exec 0<&-; exit 0"), &state, Stage::Prestart).unwrap();
    }

    #[test]
    fn failures_tell_status_and_stderr() {
        assert_eq!(
            failure("echo why >&2; exit 3"),
            "error running poststart hook: /bin/busybox: exit status 3, stderr: why"
        );
        assert_eq!(
            failure("kill -SYS $$"),
            "error running poststart hook: /bin/busybox: signal: bad system call"
        );
    }

    #[test]
    fn a_flood_on_stderr_is_read_and_its_end_kept() {
        let text = failure("yes | head -c 1000000 >&2; echo last >&2; exit 1");
        assert!(text.ends_with("y\nlast"), "{text}");
        assert!(text.len() < STDERR_BYTES_MAX + 200);
    }

    #[test]
    fn a_hook_that_leaves_a_process_behind_is_over_when_it_exits_itself() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        run(
            &shell(&format!("sleep 1000 & echo $! >{}", pid.display())),
            "{}",
            Stage::Poststart,
        )
        .unwrap();
        let left: i32 = std::fs::read_to_string(pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // It is there still.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn at_its_timeout_a_hook_ends_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The child holds the only writing end: its death is our end of file.
        let script = format!(
            "(exec 3>{0}; echo up >&3; sleep 60) & echo slow >&2; sleep 60",
            fifo.display()
        );
        let hook = Hook {
            timeout_s: Some(1),
            ..shell(&script)
        };
        let reader = std::thread::spawn(move || std::fs::read_to_string(fifo).unwrap());
        let error = run(
            &hook,
            "{}",
            Place {
                stage: Stage::Poststop,
                index: Some(2),
            },
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "error running poststop hook #2: /bin/busybox: hook ran past specified timeout of 1.0s, \
             stderr: slow"
        );
        assert_eq!(reader.join().unwrap(), "up\n");
    }

    #[test]
    fn a_list_stops_at_its_first_failure_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let marks = dir.path().join("marks");
        let mark = |code: u8| shell(&format!("echo {code} >>{}; exit {code}", marks.display()));
        let error = run_all(&[mark(0), mark(7), mark(1)], "{}", Stage::CreateRuntime).unwrap_err();
        assert!(
            error.to_string().contains("createRuntime hook #1:"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(marks).unwrap(), "0\n7\n");
        let missing = Hook {
            path: "/no/such/hook".to_owned(),
            ..shell("")
        };
        let error = run_all(&[missing], "{}", Stage::Prestart).unwrap_err();
        assert_eq!(error.failure().errno, nix::libc::ENOENT);
    }
}
