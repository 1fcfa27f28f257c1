//! The operator's programs in containers that run: added through the container's shim, by the calls that containerd
//! makes. The caller stays with its program, and nothing of the two is on disk.
//!
//! ```text
//!   caller ── stdin ──> pipe ──> shim, which opens it as /proc/PID/fd/N ──> guest
//!          <─ stdout, stderr ─── pipes <──────────┘
//!          ── signals, window size ──> Task API ──┘
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bundle::names;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use shim_core::{Client, Code, Program, ShimError};
use stdio::{Flow, RawTerminal, Signals};
use sys::Signal;

use crate::{Error, Result};

/// A program that is killed because its caller cannot stay has so long to end; and when one has ended, others that
/// have its output may be silent for so long.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a program has to read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Three pipes.
    Pipes,
    /// A terminal of its own.
    Terminal,
}

/// The container's process with other arguments.
///
/// # Errors
/// What reading says; [`Error::Journal`] for what is no config.json.
fn process(bundle: &Path, arguments: &[String], ends: Ends) -> Result<Vec<u8>> {
    let path = bundle.join(names::CONFIG);
    let text = fs::read(&path).map_err(Error::on("read", &path))?;
    let wrong = |why: String| Error::Journal {
        path: path.clone(),
        why,
    };
    let mut config: Value = serde_json::from_slice(&text).map_err(|it| wrong(it.to_string()))?;
    let process = config.get_mut("process").map(Value::take);
    let Some(Value::Object(mut fields)) = process else {
        return Err(wrong("it has no process".to_owned()));
    };
    fields.insert("args".to_owned(), json!(arguments));
    fields.remove("consoleSize");
    if let (Ends::Terminal, Ok(term)) = (ends, std::env::var("TERM")) {
        let environment = fields.entry("env").or_insert_with(|| json!([]));
        let is_term = |it: &Value| it.as_str().is_some_and(|it| it.starts_with("TERM="));
        if let Some(environment) = environment.as_array_mut()
            && !environment.iter().any(is_term)
        {
            environment.push(json!(format!("TERM={term}")));
        }
    }
    Ok(Value::Object(fields).to_string().into_bytes())
}

/// Runs a program in a container until it has ended; gives its exit code.
///
/// # Errors
/// As [`process`]; what the shim says against it. Nothing is left then.
pub(crate) fn run(bundle: &Path, container: &str, arguments: &[String], ends: Ends) -> Result<u8> {
    let process = process(bundle, arguments, ends)?;
    let client = Client::connect(bundle, container)?;
    if client.is_outside_our_pids() {
        return Err(Error::Usage(format!(
            "the shim of container {container} is in another pid namespace, and cannot open pipes of a command in this \
             one: run it in that of containerd"
        )));
    }
    let waiting = Client::connect(bundle, container)?;
    // Threads begin with the mask of the one that makes them.
    let signals = Signals::take().map_err(Error::io("take signals"))?;
    let added = Added::start(&client, &process, ends)?;
    let Added { name, .. } = &added;
    let end = End::follow(waiting, name.clone())?;
    let raw = match ends {
        Ends::Terminal => RawTerminal::of_caller().map_err(Error::io("set the terminal"))?,
        Ends::Pipes => None,
    };
    Foreground {
        added,
        signals,
        end: Some(end),
        raw,
        input: Flow::default(),
    }
    .stay()
}

/// A program in its container, and our ends of its streams. Dropped, it is killed and deleted.
#[derive(Debug)]
struct Added<'a> {
    client: &'a Client,
    name: String,
    /// Whether it is to be killed before it is deleted.
    is_running: bool,
    /// None once its end was written.
    stdin: Option<OwnedFd>,
    /// With what was read there, and is to be written where.
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    from: OwnedFd,
    to: OwnedFd,
    /// Whether that is the caller's, and not /dev/null.
    is_taken: bool,
    flow: Flow,
}

impl Output {
    /// Whether nothing comes any more that anybody takes.
    fn is_over(&self) -> bool {
        self.flow.is_over() || !self.is_taken
    }

    /// Takes what comes and gives it to nobody, so that the program is not held up.
    fn take_for_nobody(&mut self) -> Result<()> {
        let path = Path::new("/dev/null");
        let nobody = File::options().write(true).open(path);
        self.to = nobody.map_err(Error::on("open", path))?.into();
        self.is_taken = false;
        self.flow = Flow::default();
        Ok(())
    }
}

impl<'a> Added<'a> {
    fn start(client: &'a Client, process: &[u8], ends: Ends) -> Result<Self> {
        let pipe = || sys::pipe_cloexec().map_err(Error::io("make a pipe"));
        let (stdin, our_stdin) = pipe()?;
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = match ends {
            Ends::Pipes => pipe().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            Ends::Terminal => (None, None),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        let name = format!("runv-{}-{now}", std::process::id());
        let error_path = stderr.as_ref().map(path);
        // What takes too long may be done yet: it is undone all the same.
        let mut this = Self {
            client,
            name,
            is_running: false,
            stdin: Some(our_stdin),
            outputs: Vec::new(),
        };
        client.exec(&Program {
            exec: &this.name,
            process_json: process,
            wants_terminal: ends == Ends::Terminal,
            stdin: &path(&stdin),
            stdout: &path(&stdout),
            stderr: error_path.as_deref(),
        })?;
        let started = client.start(&this.name);
        this.is_running = !matches!(&started, Err(error) if error.kind != Code::DeadlineExceeded);
        started?;
        // The shim has them; from here on their ends are seen.
        drop((stdin, stdout, stderr));
        let ours = [Some(our_stdout), our_stderr];
        let callers = [
            io::stdout().as_fd().try_clone_to_owned(),
            io::stderr().as_fd().try_clone_to_owned(),
        ];
        for (from, to) in ours.into_iter().zip(callers) {
            let Some(from) = from else { continue };
            this.outputs.push(Output {
                from,
                to: to.map_err(Error::io("duplicate a descriptor"))?,
                is_taken: true,
                flow: Flow::default(),
            });
        }
        Ok(this)
    }

    /// One that has ended is as good as told.
    fn unless_ended(&self, what: &'static str, outcome: std::result::Result<(), ShimError>) {
        if let Err(error) = outcome
            && error.kind != Code::NotFound
        {
            tracing::warn!(exec = self.name, %error, "{what} did not reach the program");
        }
    }
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        let Self { client, name, .. } = self;
        if self.is_running {
            // Whatever keeps it, `delete` says so.
            let _ended = client.kill(name, Signal::SIGKILL as u32);
            let _code = client.wait(name, Some(END_LIMIT));
        }
        // A shim that is gone has none.
        if let Err(error) = client.delete(name)
            && !matches!(error.kind, Code::NotFound | Code::Unavailable)
        {
            tracing::warn!(exec = name, %error, "the exec stays");
        }
    }
}

/// By which the shim opens our end of a pipe, as it would a fifo.
fn path(end: &OwnedFd) -> PathBuf {
    let (pid, number) = (std::process::id(), end.as_raw_fd());
    PathBuf::from(format!("/proc/{pid}/fd/{number}"))
}

/// A thread that waits for the end of a program.
#[derive(Debug)]
struct End {
    /// Ends when the thread does.
    is_told: OwnedFd,
    thread: JoinHandle<std::result::Result<u32, ShimError>>,
}

impl End {
    fn follow(client: Client, exec: String) -> Result<Self> {
        let (is_told, told) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
        let wait = move || {
            let code = client.wait(&exec, None);
            drop(told);
            code
        };
        let thread = Builder::new().name("wait".to_owned()).spawn(wait);
        let thread = thread.map_err(Error::io("start a thread"))?;
        Ok(Self { is_told, thread })
    }

    fn code(self) -> Result<u8> {
        let panicked = |_panic| Error::io("wait for the program")(io::Error::other("a panic"));
        let code = self.thread.join().map_err(panicked)??;
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

/// Whether something came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    ForSomething,
    InVain,
}

/// The caller, who stays.
#[derive(Debug)]
struct Foreground<'a> {
    added: Added<'a>,
    signals: Signals,
    /// Until it was told.
    end: Option<End>,
    raw: Option<RawTerminal>,
    input: Flow,
}

impl Foreground<'_> {
    fn stay(mut self) -> Result<u8> {
        self.resize();
        let mut code = None;
        loop {
            if let Some(code) = code
                && self.added.outputs.iter().all(Output::is_over)
            {
                return Ok(code);
            }
            if self.wait_for_something(code)? == Waited::InVain
                && let Some(code) = code
            {
                return Ok(code);
            }
            self.pass_signals()?;
            self.copy()?;
            let is_told = |end: &mut End| stdio::is_readable(end.is_told.as_fd());
            if let Some(end) = self.end.take_if(is_told) {
                code = Some(end.code()?);
                self.added.is_running = false;
                // Nobody reads it.
                self.added.stdin = None;
            }
        }
    }

    /// Without a limit as long as the program runs, or the caller is to take something. Once it has ended, somebody may
    /// have its output who does not end (a daemon), and others nothing more to come.
    fn wait_for_something(&self, code: Option<u8>) -> Result<Waited> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let end = self.end.iter();
        fds.extend(end.map(|it| PollFd::new(it.is_told.as_fd(), PollFlags::POLLIN)));
        let caller = io::stdin();
        if let Some(stdin) = &self.added.stdin {
            fds.extend(polled(&self.input, caller.as_fd(), stdin.as_fd()));
        }
        for Output { from, to, flow, .. } in &self.added.outputs {
            fds.extend(polled(flow, from.as_fd(), to.as_fd()));
        }
        let are_empty = !self.added.outputs.iter().any(|it| it.flow.has_some());
        let limit = match code {
            Some(_) if are_empty => PollTimeout::try_from(END_LIMIT).unwrap_or(PollTimeout::MAX),
            _ => PollTimeout::NONE,
        };
        match poll(&mut fds, limit) {
            Ok(0) => Ok(Waited::InVain),
            Ok(_) | Err(Errno::EINTR) => Ok(Waited::ForSomething),
            Err(errno) => Err(Error::io("poll")(errno)),
        }
    }

    fn copy(&mut self) -> Result<()> {
        if let Some(stdin) = &self.added.stdin {
            let caller = io::stdin();
            self.input.fill(caller.as_fd());
            self.input.empty_into(stdin.as_fd());
        }
        if self.input.is_over() && self.added.stdin.take().is_some() {
            let closed = self.added.client.close_stdin(&self.added.name);
            self.added.unless_ended("the end of its input", closed);
        }
        let mut are_broken = false;
        for it in &mut self.added.outputs {
            it.flow.fill(it.from.as_fd());
            it.flow.empty_into(it.to.as_fd());
            if it.flow.is_broken() {
                it.take_for_nobody()?;
                are_broken = true;
            }
        }
        if are_broken && self.added.is_running {
            // As who writes to such a pipe is told.
            let signal = Signal::SIGPIPE as u32;
            let told = self.added.client.kill(&self.added.name, signal);
            self.added.unless_ended("a broken pipe", told);
        }
        Ok(())
    }

    fn pass_signals(&self) -> Result<()> {
        let read = || self.signals.read().map_err(Error::io("read a signalfd"));
        while let Some(signal) = read()? {
            if signal == Signal::SIGWINCH as i32 && self.raw.is_some() {
                self.resize();
                continue;
            }
            let passed = self
                .added
                .client
                .kill(&self.added.name, signal.cast_unsigned());
            self.added.unless_ended("a signal", passed);
        }
        Ok(())
    }

    /// Gives the program's terminal the size of the caller's.
    fn resize(&self) {
        let Some(Ok(size)) = self.raw.as_ref().map(RawTerminal::size) else {
            return;
        };
        let resized = self.added.client.resize(&self.added.name, size);
        self.added.unless_ended("the size of the terminal", resized);
    }
}

/// What one direction waits for.
fn polled<'a>(flow: &Flow, from: BorrowedFd<'a>, to: BorrowedFd<'a>) -> Option<PollFd<'a>> {
    if flow.has_some() {
        Some(PollFd::new(to, PollFlags::POLLOUT))
    } else {
        let wants = flow.wants_more();
        wants.then(|| PollFd::new(from, PollFlags::POLLIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_the_containers_process_with_other_arguments() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join(names::CONFIG);
        let arguments = ["ls".to_owned(), "/".to_owned()];
        let check = |config: &str, expected: std::result::Result<Value, &str>| {
            fs::write(&path, config).unwrap();
            let made = process(bundle.path(), &arguments, Ends::Pipes);
            match expected {
                Ok(expected) => {
                    let made: Value = serde_json::from_slice(&made.unwrap()).unwrap();
                    assert_eq!(made, expected);
                }
                Err(expected) => {
                    let error = made.unwrap_err().to_string();
                    assert!(error.contains(expected), "{error}");
                }
            }
        };
        let config = r#"{"process": {"args": ["sh"], "cwd": "/", "consoleSize": {"height": 1, "width": 1}}}"#;
        check(config, Ok(json!({"args": ["ls", "/"], "cwd": "/"})));
        check("{}", Err("it has no process"));
        check("[]", Err("it has no process"));
        check("{", Err("config.json: "));
        fs::remove_file(&path).unwrap();
        let gone = process(bundle.path(), &arguments, Ends::Pipes);
        assert!(gone.unwrap_err().to_string().starts_with("read "));
    }

    #[test]
    fn a_pipe_is_opened_by_its_path_as_a_fifo_is() {
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        let other = File::options().read(true).write(true).open(path(&writer));
        let other = other.unwrap();
        drop(writer);
        io::Write::write_all(&mut &other, b"text").unwrap();
        drop(other);
        assert_eq!(io::read_to_string(File::from(reader)).unwrap(), "text");
    }
}
