//! One guest, from the first instruction to its exit code.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    initramfs::{self, END_MARK, PayloadFile, START_MARK},
    kernel::{Kernel, Series},
    root,
};
use crate::{
    images::IMAGES,
    process::command,
    runtime::built,
    versions::{VERSIONS, Version},
};

/// A guest that is to be booted.
#[derive(Debug)]
pub struct Guest {
    /// Which kernel.
    pub series: Series,
    /// What lies in its /payload, which is also first on its PATH.
    pub payload: Vec<PathBuf>,
    /// The program and its arguments; its working directory is /payload.
    pub program: Vec<String>,
    /// From power-on to the exit code.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The program's exit code (128 + signal as a shell has it).
    pub code: i32,
    /// All it printed.
    pub output: String,
}

/// Memory of a guest in MiB: enough for a containerd with a few containers.
const MEMORY_MIB: u32 = 1536;

/// Ours, which come along when they are built.
const BINARIES: [&str; 5] = [
    "snapshotter-quota",
    "containerd-shim-runlxc-v2",
    "runlxc",
    "runlxc-init",
    "kernel-profile",
];

impl Guest {
    /// One that runs a program of this machine, with our binaries beside it. If it is a test
    /// program of ours, it is told which containerd and which images there are.
    pub fn running(
        series: Series,
        program: &Path,
        arguments: Vec<String>,
        limit: Duration,
    ) -> Result<Self> {
        let name = program.file_name().context("a program has a name")?;
        let name = name.to_string_lossy().into_owned();
        let mut payload = vec![program.to_owned()];
        let ours = BINARIES.iter().filter(|&&binary| binary != name);
        payload.extend(ours.filter_map(|binary| built(binary).ok()));
        // Where cargo tells tests of a package that its binaries are.
        let here = program
            .ancestors()
            .find(|dir| dir.join(BINARIES[1]).exists());
        let here = here.unwrap_or(Path::new("/payload/target")).display();
        let words = [
            "sh".to_owned(),
            "-c".to_owned(),
            "mkdir -p \"$0\" && ln -s /payload/* \"$0\" && exec \"$@\"".to_owned(),
            here.to_string(),
            "env".to_owned(),
            format!("{VERSIONS}={}", Version::V1_6),
            format!("{IMAGES}=busybox"),
            format!("/payload/{name}"),
        ];
        Ok(Self {
            series,
            payload,
            program: words.into_iter().chain(arguments).collect(),
            limit,
        })
    }

    /// Boots, passes each line on to `line` as it comes, and waits for the exit code.
    pub fn run(&self, line: impl FnMut(&str)) -> Result<Outcome> {
        self.run_with("", line)
    }

    /// As [`Guest::run`], with more words on the kernel's command line.
    pub fn run_with(&self, kernel_words: &str, line: impl FnMut(&str)) -> Result<Outcome> {
        self.run_beside(None, kernel_words, line)
    }

    /// The same, with a second disk, `/dev/vdb`, of which nothing is changed for good.
    pub fn run_beside(
        &self,
        second: Option<&Path>,
        kernel_words: &str,
        mut line: impl FnMut(&str),
    ) -> Result<Outcome> {
        let kernel = Kernel::get(self.series)?;
        let root = root::image()?;
        let disks: Vec<_> = [&*root].into_iter().chain(second).collect();
        let dir = tempfile::tempdir().context("a directory for the guest")?;
        let payload = self.payload_files()?;
        let initrd = initramfs::pack(&kernel, &payload, &self.program, dir.path())?;
        let console = dir.path().join("console.log");
        let mut qemu = Qemu::start(&kernel, kernel_words, &disks, &initrd, &console)?;
        let outcome = qemu.follow(self.limit, &mut line);
        outcome.with_context(|| {
            let log = std::fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&log).into_owned();
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!(
                "guest with kernel {}; its console:\n{}",
                self.series.number(),
                tail.join("\n")
            )
        })
    }

    fn payload_files(&self) -> Result<Vec<PayloadFile>> {
        self.payload
            .iter()
            .map(|source| {
                let name = source.file_name().context("a payload file has a name")?;
                Ok(PayloadFile {
                    name: name.to_string_lossy().into_owned(),
                    source: source.clone(),
                })
            })
            .collect()
    }
}

/// The virtual machine; killed when dropped.
#[derive(Debug)]
struct Qemu {
    child: Child,
}

impl Qemu {
    fn start(
        kernel: &Kernel,
        words: &str,
        disks: &[&Path],
        initrd: &Path,
        console: &Path,
    ) -> Result<Self> {
        // TCG by name: /dev/kvm may open and still not run a stock kernel. In one thread: in several,
        // a kernel that patches its own text may run a stale breakpoint, and panics.
        let child = command("qemu-system-x86_64")
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=single",
                "-cpu",
                "qemu64",
                "-smp",
                "2",
            ])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
                "-net",
                "none",
            ])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            // On a busy machine the emulated timer may be late for the kernel's check of it,
            // which is a panic.
            .arg(format!(
                "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check cgroup_no_v1=all {words}"
            ))
            .args(disks.iter().flat_map(|disk| {
                let drive = format!("file={},if=virtio,format=raw,snapshot=on", disk.display());
                ["-drive".to_owned(), drive]
            }))
            .args(["-device", "virtio-rng-pci"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(console.with_extension("qemu"))?)
            .spawn()
            .context("starting qemu-system-x86_64")?;
        Ok(Self { child })
    }

    /// Reads the second serial port until the end mark, at most for `limit`.
    fn follow(&mut self, limit: Duration, line: &mut impl FnMut(&str)) -> Result<Outcome> {
        let port = self
            .child
            .stdout
            .take()
            .context("the serial port is a pipe")?;
        let (sender, lines) = mpsc::channel();
        // It ends with the pipe, at the latest when QEMU is killed by drop.
        std::thread::spawn(move || {
            for read in BufReader::new(port).split(b'\n') {
                let Ok(bytes) = read else { return };
                let text = String::from_utf8_lossy(&bytes)
                    .trim_end_matches('\r')
                    .to_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let deadline = std::time::Instant::now() + limit;
        let (mut started, mut output) = (false, String::new());
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let text = match lines.recv_timeout(left) {
                Ok(text) => text,
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("no end after {limit:?}: {output}"),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the guest went away: {output}"),
            };
            if let Some(at) = text.find(END_MARK).filter(|_| started) {
                output.push_str(&text[..at]);
                let code = text[at + END_MARK.len()..].trim();
                return Ok(Outcome {
                    code: code.parse().context("exit code")?,
                    output,
                });
            }
            if started {
                line(&text);
                output.push_str(&text);
                output.push('\n');
            }
            started |= text.ends_with(START_MARK);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
