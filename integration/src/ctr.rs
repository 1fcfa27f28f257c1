//! `ctr`, the client that comes with containerd: every call has a limit, every id is noted.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    containerd::Containerd,
    images::Image,
    process::{Finished, Running, command},
    runtime::Runtime,
    terminal::{Size, Terminal},
    wait::{SOON, Sources, process_end, until},
};

/// Importing half a gigabyte takes a while.
const IMPORT_LIMIT: Duration = Duration::from_secs(300);

/// The client of one containerd.
#[derive(Debug, Clone, Copy)]
pub struct Ctr<'a> {
    containerd: &'a Containerd,
}

/// A container that is going to be run.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    ctr: Ctr<'a>,
    id: String,
    image: String,
    flags: Vec<String>,
}

/// A container whose process was started in the background.
#[derive(Debug, Clone)]
pub struct Task<'a> {
    ctr: Ctr<'a>,
    /// The container's id.
    pub id: String,
}

/// What `ctr tasks ls` says of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    /// The init process, 0 when there is none.
    pub pid: i32,
    /// `RUNNING`, `STOPPED` and so on.
    pub state: String,
}

impl<'a> Ctr<'a> {
    /// The client of that containerd.
    #[must_use]
    pub const fn of(containerd: &'a Containerd) -> Self {
        Self { containerd }
    }

    /// `ctr` with address and namespace, and these words.
    #[must_use]
    pub fn command<S: AsRef<str>>(&self, words: &[S]) -> Command {
        let mut ctr = command(&self.containerd.installed.ctr);
        ctr.arg("--address")
            .arg(self.containerd.address())
            .arg("--namespace")
            .arg(&self.containerd.namespace)
            .args(words.iter().map(AsRef::as_ref))
            .env_remove("CONTAINERD_SNAPSHOTTER");
        ctr
    }

    /// Runs it to its end, whatever the exit code.
    pub fn call<S: AsRef<str>>(&self, words: &[S]) -> Result<Finished> {
        self.start(words)?.finish(SOON)
    }

    /// Starts it.
    pub fn start<S: AsRef<str>>(&self, words: &[S]) -> Result<Running> {
        Running::start(&mut self.command(words))
    }

    /// Imports and unpacks an archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("paths of archives are UTF-8")?;
        self.start(&["images", "import", archive])?
            .finish(IMPORT_LIMIT)?
            .success()
            .map(drop)
    }

    /// `ctr snapshots` of that snapshotter, whatever the exit code.
    pub fn snapshots(&self, snapshotter: &str, words: &[&str]) -> Result<Finished> {
        let all = [&["snapshots", "--snapshotter", snapshotter], words].concat();
        self.call(&all)
    }

    /// Has what nothing refers to collected, and waits for it: containerd does that when a lease
    /// is deleted synchronously.
    pub fn collect_garbage(&self) -> Result<()> {
        const LEASE: &str = "collects-garbage";
        for words in [
            &["leases", "create", "--id", LEASE][..],
            &["leases", "delete", "--sync", LEASE],
        ] {
            self.call(words)?.success()?;
        }
        Ok(())
    }

    /// A container to be run from an image.
    #[must_use]
    pub fn container(&self, id: &str, image: Image, runtime: Runtime) -> Container<'a> {
        let flags = ["--runtime".to_owned(), runtime.name().to_owned()];
        Container {
            ctr: *self,
            id: id.to_owned(),
            image: image.reference(),
            flags: flags.to_vec(),
        }
    }

    /// A task that exists.
    #[must_use]
    pub fn task(&self, id: &str) -> Task<'a> {
        Task {
            ctr: *self,
            id: id.to_owned(),
        }
    }

    /// Every task: id and status.
    pub fn tasks(&self) -> Result<Vec<(String, TaskStatus)>> {
        let listed = self.call(&["tasks", "ls"])?.success()?.stdout();
        listed.lines().skip(1).map(parse_task).collect()
    }
}

/// `ID  PID  STATUS`.
fn parse_task(line: &str) -> Result<(String, TaskStatus)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words.len() == 3, "a task has three columns: {line:?}");
    let status = TaskStatus {
        pid: words[1].parse()?,
        state: words[2].to_owned(),
    };
    Ok((words[0].to_owned(), status))
}

impl<'a> Container<'a> {
    /// Adds flags of `ctr run`.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// An annotation of rich containers, `key=value` without its prefix.
    #[must_use]
    pub fn rich(self, annotation: &str) -> Self {
        let annotation = format!("org.pouch.rich.{annotation}");
        self.flags(&["--annotation", &annotation])
    }

    /// A file or directory of the host, which it can write.
    #[must_use]
    pub fn bound(self, source: &Path, target: &str) -> Self {
        let source = source.display();
        let mount = format!("type=bind,src={source},dst={target},options=rbind:rw");
        self.flags(&["--mount", &mount])
    }

    /// Of an image that containerd has under another name than the harness's.
    #[must_use]
    pub fn image(mut self, reference: &str) -> Self {
        reference.clone_into(&mut self.image);
        self
    }

    /// Its root is made by that snapshotter, for which the image is unpacked if it is not yet.
    #[must_use]
    pub fn snapshotter(self, name: &str) -> Self {
        self.flags(&["--snapshotter", name])
    }

    /// A label of the snapshot of its root.
    #[must_use]
    pub fn snapshotter_label(self, key: &str, value: &str) -> Self {
        self.flags(&["--snapshotter-label", &format!("{key}={value}")])
    }

    fn words(&self, mode: &[&str], program: &[&str]) -> Result<Vec<String>> {
        self.ctr.containerd.expect_container(&self.id)?;
        let fifos = self.ctr.containerd.fifos().display().to_string();
        let words = ["run", "--fifo-dir", &fifos]
            .iter()
            .chain(mode)
            .map(|&word| word.to_owned())
            .chain(self.flags.iter().cloned())
            .chain([self.image.clone(), self.id.clone()])
            .chain(program.iter().map(|&word| word.to_owned()))
            .collect();
        Ok(words)
    }

    /// Runs the program in the foreground to its end; the container is removed.
    pub fn run(&self, program: &[&str]) -> Result<Finished> {
        self.start(program)?.finish(SOON)
    }

    /// Runs a shell script like `run`.
    pub fn shell(&self, script: &str) -> Result<Finished> {
        self.run(&["sh", "-c", script])
    }

    /// What a shell script prints before it succeeds.
    pub fn output(&self, script: &str) -> Result<String> {
        printed(|| self.shell(script))
    }

    /// Starts the program in the foreground; the container is removed at its end.
    pub fn start(&self, program: &[&str]) -> Result<Running> {
        self.ctr.start(&self.words(&["--rm"], program)?)
    }

    /// Starts the program on a terminal; the container is removed at its end.
    pub fn terminal(&self, size: Size, program: &[&str]) -> Result<Terminal> {
        Terminal::start(
            &self.ctr.command(&self.words(&["--rm", "--tty"], program)?),
            size,
        )
    }

    /// Starts the program in the background.
    pub fn detach(&self, program: &[&str]) -> Result<Task<'a>> {
        self.ctr
            .call(&self.words(&["--detach"], program)?)?
            .success()?;
        Ok(self.ctr.task(&self.id))
    }
}

/// The output of something that prints. `ctr` itself loses that of about one short program in a
/// hundred, with any runtime: asked again. Whether the runtime loses any is judged at log files.
fn printed(run: impl Fn() -> Result<Finished>) -> Result<String> {
    for _ in 0..3 {
        let printed = run()?.success()?.stdout();
        if !printed.is_empty() {
            return Ok(printed);
        }
    }
    bail!("three times it succeeded and printed nothing")
}

impl Task<'_> {
    fn exec_words(&self, flags: &[&str], program: &[&str]) -> Vec<String> {
        let fifos = self.ctr.containerd.fifos().display().to_string();
        self.exec_words_to(&[&["--fifo-dir", &fifos], flags].concat(), program)
    }

    fn exec_words_to(&self, flags: &[&str], program: &[&str]) -> Vec<String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let exec_id = format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        ["tasks", "exec", "--exec-id", &exec_id]
            .iter()
            .chain(flags)
            .chain([self.id.as_str()].iter())
            .chain(program)
            .map(|&word| word.to_owned())
            .collect()
    }

    /// Runs a program in the container to its end.
    pub fn exec(&self, program: &[&str]) -> Result<Finished> {
        self.exec_with(&[], program)
    }

    /// Runs a program in the container to its end, with flags of `ctr tasks exec`.
    pub fn exec_with(&self, flags: &[&str], program: &[&str]) -> Result<Finished> {
        self.start_exec(flags, program)?.finish(SOON)
    }

    /// What a shell script that is run in the container prints before it succeeds.
    pub fn output(&self, script: &str) -> Result<String> {
        printed(|| self.exec(&["sh", "-c", script]))
    }

    /// Starts a program in the container, with flags of `ctr tasks exec`.
    pub fn start_exec(&self, flags: &[&str], program: &[&str]) -> Result<Running> {
        self.ctr.start(&self.exec_words(flags, program))
    }

    /// Starts a program in the container, whose output and errors go to that file.
    pub fn start_logged_exec(&self, log: &Path, program: &[&str]) -> Result<Running> {
        let address = format!("file://{}", log.display());
        let words = self.exec_words_to(&["--log-uri", &address], program);
        self.ctr.start(&words)
    }

    /// Starts eight programs in the container before it waits for any: each has its own exit code.
    pub fn exec_many_at_once(&self) -> Result<()> {
        let mut running = Vec::new();
        for number in 0..8 {
            let script = format!("exit {number}");
            running.push((number, self.start_exec(&[], &["sh", "-c", &script])?));
        }
        for (number, running) in running {
            running.finish(SOON)?.with_code(number)?;
        }
        Ok(())
    }

    /// Starts a program in the container on a terminal.
    pub fn exec_in_terminal(&self, size: Size, program: &[&str]) -> Result<Terminal> {
        Terminal::start(
            &self.ctr.command(&self.exec_words(&["--tty"], program)),
            size,
        )
    }

    fn call(&self, verb: &str, flags: &[&str]) -> Result<Finished> {
        let words: Vec<&str> = ["tasks", verb]
            .iter()
            .chain(flags)
            .chain([self.id.as_str()].iter())
            .copied()
            .collect();
        self.ctr.call(&words)
    }

    /// Sends a signal to the init process.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.call("kill", &["--signal", signal.as_str()])?
            .success()
            .map(drop)
    }

    /// Sends a signal to every process of the container.
    pub fn kill_all(&self, signal: Signal) -> Result<()> {
        self.call("kill", &["--all", "--signal", signal.as_str()])?
            .success()
            .map(drop)
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        self.call("pause", &[])?.success().map(drop)
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<()> {
        self.call("resume", &[])?.success().map(drop)
    }

    /// The process ids in it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let listed = self.call("ps", &[])?.success()?.stdout();
        listed
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .map(|pid| pid.parse().with_context(|| format!("no process id: {pid}")))
            .collect()
    }

    /// `ctr tasks metrics` in JSON.
    pub fn metrics(&self) -> Result<serde_json::Value> {
        let text = self
            .call("metrics", &["--format", "json"])?
            .success()?
            .stdout();
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Attaches to its standard streams, with that text as input, until it ends; that removes the task.
    pub fn attach(&self, input: &str) -> Result<Running> {
        let mut attach = self.ctr.command(&["tasks", "attach", &self.id]);
        Running::start_with_text(&mut attach, input)
    }

    /// What containerd says of it; `None` when there is no such task.
    pub fn status(&self) -> Result<Option<TaskStatus>> {
        Ok(self
            .ctr
            .tasks()?
            .into_iter()
            .find(|(id, _)| *id == self.id)
            .map(|(_, status)| status))
    }

    /// Its init process.
    pub fn pid(&self) -> Result<i32> {
        Ok(self
            .status()?
            .with_context(|| format!("there is no task {}", self.id))?
            .pid)
    }

    /// Waits until its init has ended and containerd knows.
    pub fn wait(&self) -> Result<()> {
        let status = self
            .status()?
            .with_context(|| format!("there is no task {}", self.id))?;
        let mut sources = Sources::none();
        if status.state != "STOPPED" && process_end(status.pid)?.is_some() {
            sources = sources.process(status.pid)?;
        }
        until(
            &format!("task {} is stopped", self.id),
            SOON,
            sources,
            || {
                let status = self.status()?;
                Ok(status
                    .is_none_or(|status| status.state == "STOPPED")
                    .then_some(()))
            },
        )
    }

    /// Waits for its end, removes task and container; the exit code comes back.
    pub fn remove(&self) -> Result<i32> {
        self.wait()?;
        let code = self.delete()?;
        self.remove_container()?;
        Ok(code)
    }

    /// Removes the container of a task that is gone.
    pub fn remove_container(&self) -> Result<()> {
        self.ctr
            .call(&["containers", "rm", &self.id])?
            .success()
            .map(drop)
    }

    /// Removes a stopped task; its exit code comes back.
    pub fn delete(&self) -> Result<i32> {
        let deleted = self.call("rm", &[])?;
        ensure!(
            self.status()?.is_none(),
            "the task is still there: {deleted}"
        );
        code_in(&deleted.stderr()).with_context(|| format!("no exit code: {deleted}"))
    }

    /// Kills every process in it, and removes task and container.
    pub fn kill_and_remove(&self) -> Result<i32> {
        self.kill(Signal::SIGKILL)?;
        self.remove()
    }
}

/// What `ctr tasks rm` warns of; it says nothing of 0 and exits with 0 itself.
fn code_in(stderr: &str) -> Result<i32> {
    let Some((_, rest)) = stderr.split_once("non-zero exit code ") else {
        return Ok(0);
    };
    let digits = rest
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    Ok(digits.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tasks_are_read_and_others_refused() {
        let status = TaskStatus {
            pid: 5487,
            state: "STOPPED".to_owned(),
        };
        assert_eq!(
            parse_task("c1      5487    STOPPED").unwrap(),
            ("c1".to_owned(), status)
        );
        assert!(parse_task("c1 STOPPED").is_err());
    }

    #[test]
    fn exit_codes_are_found_in_what_ctr_warns_of() {
        let warned = "time=\"x\" level=warning msg=\"task c1 exit with non-zero exit code 137\"";
        assert_eq!(code_in(warned).unwrap(), 137);
        assert_eq!(code_in("").unwrap(), 0);
    }
}
