//! What is so in every rich container whose pid 1 is the image's own init: its program is what the
//! container is for those outside. Must not know which init it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    ctr::{Container, Task},
    listing::Listing,
    terminal::Size,
    wait::SOON,
};

/// The terminal of [`a_terminal_is_the_programs`].
const SIZE: Size = Size {
    rows: 37,
    columns: 111,
};

/// Its output and its exit code are the container's, also when it is killed, and when processes are
/// left. `rich` makes a container by its name.
pub fn ends_as_the_program<'a>(rich: impl Fn(&str) -> Container<'a>) -> Result<()> {
    for code in [0, 3, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let ended = rich(&format!("code-{code}")).shell(&script)?;
        ensure!(
            ended.code() == code && ended.stdout() == "out\n" && ended.stderr().contains("err\n"),
            "{code}: {ended}"
        );
    }
    rich("killed").shell("kill -KILL $$")?.with_code(137)?;
    rich("left")
        .shell("sleep 600 & setsid sleep 600 & exit 3")?
        .with_code(3)?;
    Ok(())
}

/// With a policy it is started again until it has ended well, or until a stop.
pub fn is_started_again<'a>(rich: impl Fn(&str) -> Container<'a>) -> Result<()> {
    let script = "echo x >>/tmp/runs; [ $(grep -c x /tmp/runs) -ge 3 ] || exit 5; echo third";
    let ended = rich("failing").rich("restart=on-failure").shell(script)?;
    let ended = ended.with_code(0)?;
    ensure!(ended.stdout() == "third\n", "{ended}");
    let task = rich("always").rich("restart=always").detach(&[
        "sh",
        "-c",
        "trap 'exit 7' TERM; echo x >>/tmp/runs; while [ $(grep -c x /tmp/runs) -ge 3 ]; do sleep 1 & wait; done",
    ])?;
    let third = "until [ $(grep -c x /tmp/runs) -ge 3 ]; do sleep 0.05; done";
    task.exec(&["sh", "-c", third])?.success()?;
    task.kill(Signal::SIGTERM)?;
    let code = task.remove()?;
    ensure!(code == 7, "expected 7, got {code}");
    Ok(())
}

/// A terminal is the program's, with its size; the init says nothing there (`silent` is in what it
/// would say).
pub fn a_terminal_is_the_programs(container: &Container<'_>, silent: &str) -> Result<()> {
    let mut terminal = container.terminal(SIZE, &["sh"])?;
    terminal.type_text("tty; stty size; echo up $((40+2))\n")?;
    terminal.expect("37 111", SOON)?;
    terminal.expect("up 42", SOON)?;
    terminal.type_text("exit 9\n")?;
    let (code, shown) = terminal.finish(SOON)?;
    ensure!(code == 9, "expected 9, got {code}: {shown:?}");
    ensure!(!shown.contains(silent), "{shown:?}");
    Ok(())
}

/// Kills the program's parent, by the word that `runlxc-init` is started with for it: the container
/// ends as one that was killed.
pub fn ends_with_the_programs_parent(task: &Task<'_>, word: &str) -> Result<()> {
    let expected = format!("/run/runlxc/init\0{word}\0");
    let is_parent = |pid: &&i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline"));
        words.is_ok_and(|words| words == expected.as_bytes())
    };
    let processes = task.processes()?;
    let parent = processes.iter().find(is_parent);
    let parent = parent.context("the program has no such parent")?;
    kill(Pid::from_raw(*parent), Signal::SIGKILL)?;
    let code = task.remove()?;
    ensure!(code == 137, "parent: expected 137, got {code}");
    Ok(())
}

/// The container with each of these keys and values of `org.pouch.rich.` does not run, and says why.
pub fn refuses<'a>(
    rich: impl Fn(&str) -> Container<'a>,
    cases: &[(&str, &str, &str)],
) -> Result<()> {
    for (number, (key, value, why)) in cases.iter().enumerate() {
        let container = rich(&format!("refused-{number}")).rich(&format!("{key}={value}"));
        let refused = container.shell("true")?;
        ensure!(refused.code() != 0, "{value}: it ran");
        ensure!(refused.stderr().contains(why), "{value}: {refused}");
    }
    Ok(())
}

/// What the container has changed of its image, which is on an overlay, by the paths from its root.
pub fn changes(task: &Task<'_>) -> Result<Vec<String>> {
    below(Path::new(&of_overlay(task, "upperdir")?))
}

/// An option of the overlay that is the container's root.
fn of_overlay(task: &Task<'_>, option: &str) -> Result<String> {
    let mounts = task.output("cat /proc/self/mountinfo")?;
    let root = mounts.lines().find(|line| line.contains(" / / "));
    let value = root
        .and_then(|line| line.split(&format!("{option}=")).nth(1))
        .and_then(|rest| rest.split(',').next())
        .context("the root is no overlay")?;
    Ok(value.to_owned())
}

/// The layers of an image below a container, byte by byte.
#[derive(Debug)]
pub struct Layers(Vec<(PathBuf, Listing)>);

impl Layers {
    /// As they are now, below the container's own.
    pub fn of(task: &Task<'_>) -> Result<Self> {
        let directories = of_overlay(task, "lowerdir")?;
        let layers = directories.split(':').map(|path| {
            let path = PathBuf::from(path);
            let listing = Listing::of(&path)?;
            Ok((path, listing))
        });
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// Fails if a byte, an owner, a mode or a time of them has changed.
    pub fn is_the_same(&self) -> Result<()> {
        for (path, before) in &self.0 {
            let now = Listing::of(path)?;
            ensure!(now == *before, "{} has changed", path.display());
            ensure!(now.entries.len() > 1, "{} is empty", path.display());
        }
        Ok(())
    }
}

/// Everything below a directory, by its path from there.
fn below(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            let path = entry.path();
            found.push(path.strip_prefix(directory)?.display().to_string());
        }
    }
    Ok(found)
}
