//! Runs every test of the workspace, and sums up: one test program after the other, but for those of
//! this package, of which two run side by side, one that computes and one that waits, as long as
//! there are both.
//!
//! It does not begin where a disk has no room for it. What failed is shown again at the end. The last
//! line is `N passed, N failed, N skipped`; it exits with 1 when anything failed.

#![expect(clippy::print_stdout, reason = "this program is its output")]

use std::{
    collections::VecDeque,
    env,
    io::{self, BufRead, BufReader},
    mem,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use integration::{cache, skip::SKIPS_FILE, sweep::sweep_abandoned};
use nix::sys::statvfs::statvfs;

/// What cargo is asked first, in this order: what is quick fails first.
const FIRST: &[&[&str]] = &[
    &[
        "test",
        "--locked",
        "--no-fail-fast",
        "--workspace",
        "--exclude",
        "integration",
        "--exclude",
        "runlxc",
    ],
    &["test", "--locked", "-p", "integration", "--test", "tidy"],
    &["test", "--locked", "--no-fail-fast", "-p", "runlxc"],
    &["test", "--locked", "-p", "integration", "--lib", "--bins"],
];

/// Test programs that mostly compute, in compilers, in guests and on disks: they run beside the others, which
/// mostly wait. Longest first, so that both lanes end at about the same time.
const BUSY: &[&str] = &[
    "static_binaries",
    "quota_backends",
    "runv",
    "snapshots",
    "image_disks",
    "quota_kernels",
    "snapshot_kills",
    "security_modules",
    "checkpoints",
];

/// Test programs that look at the whole machine, and those that ran already.
const APART: &[&str] = &["tidy", "traces"];

/// How cargo starts a test program: so that one that hangs ends after 20 minutes (the slowest takes 5)
/// with timeout(1)'s status 124, and the tests after it still run.
const RUNNER: &str =
    r#"target."cfg(unix)".runner = ["timeout", "--foreground", "--kill-after=10", "1200"]"#;

#[derive(Debug, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// What tests that failed have printed: their beginnings, each with its title.
    failures: Vec<String>,
    /// How many more lines belong to the last of them, as long as what it printed goes on.
    lines_left: Option<usize>,
}

/// Of what a test that failed has printed, so many lines are shown again.
const SHOWN_AGAIN: usize = 12;

fn main() -> Result<ExitCode> {
    // What a run that was killed has left would be counted as this one's leaks.
    sweep_abandoned()?;
    // This program is where cargo builds.
    for place in [env::current_exe()?, cache::directory()?, env::temp_dir()] {
        has_room(&place)?;
    }
    let skips = tempfile::NamedTempFile::new()?;
    let mut counts = Counts::default();
    for words in FIRST {
        counts.add_all(run(words, Printed::AsItComes, skips.path())?);
    }
    let all = programs()?;
    let build = [&TESTS[..], &["--no-run"], &named(&all)].concat();
    counts.add_all(run(&build, Printed::AsItComes, skips.path())?);
    let waiting = all.iter().map(String::as_str);
    let waiting = waiting.filter(|program| !BUSY.contains(program)).collect();
    let busy = BUSY.iter().copied().collect();
    let queue = Mutex::new(Queue { busy, waiting });
    let lane = |own: Lane| -> Result<Counts> {
        let mut counts = Counts::default();
        // Not in the head of the loop, whose guard would live as long as its body.
        let next = || queue.lock().map_err(panicked).map(|mut it| it.next(own));
        while let Some(program) = next()? {
            counts.add_all(run_program(program, skips.path())?);
        }
        Ok(counts)
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| lane(Lane::Busy));
        counts.add_all(lane(Lane::Waiting)?);
        counts.add_all(beside.join().map_err(panicked)??);
        anyhow::Ok(())
    })?;
    counts.add_all(run_program("traces", skips.path())?);
    sum_up(counts, skips.path())
}

/// What has to be free, in bytes: test programs, and what tests have for a while. A first run writes some 10 GiB
/// of images and containerds into the cache beside that.
const ROOM: u64 = ROOM_GIB << 30;
const ROOM_GIB: u64 = 12;

/// A disk that gets full in the middle makes every test after that fail, for nothing that it is there to find.
fn has_room(place: &Path) -> Result<()> {
    let about =
        statvfs(place).with_context(|| format!("asking how much room {} has", place.display()))?;
    let free = about.blocks_available() * about.fragment_size();
    ensure!(
        free >= ROOM,
        "the disk of {} has {} MiB free, and the tests need {ROOM_GIB} GiB: make room there, or name other \
         places by CARGO_TARGET_DIR, POUCH_CACHE and TMPDIR",
        place.display(),
        free >> 20
    );
    Ok(())
}

/// How the test programs of this package are run.
const TESTS: [&str; 5] = ["test", "--locked", "-p", "integration", "--no-fail-fast"];

/// One test program of this package.
fn run_program(program: &str, skips: &Path) -> Result<Counts> {
    run(
        &[&TESTS[..], &["--test", program]].concat(),
        Printed::ByProgram,
        skips,
    )
}

fn panicked<E>(_panic: E) -> anyhow::Error {
    anyhow!("a lane panicked")
}

/// Which test programs one of two that run side by side takes first.
#[derive(Debug, Clone, Copy)]
enum Lane {
    Busy,
    Waiting,
}

/// The test programs that are still to be run.
#[derive(Debug)]
struct Queue<'a> {
    busy: VecDeque<&'a str>,
    waiting: VecDeque<&'a str>,
}

impl<'a> Queue<'a> {
    /// The first of a lane's own, else the last of the other's.
    fn next(&mut self, lane: Lane) -> Option<&'a str> {
        let (own, other) = match lane {
            Lane::Busy => (&mut self.busy, &mut self.waiting),
            Lane::Waiting => (&mut self.waiting, &mut self.busy),
        };
        own.pop_front().or_else(|| other.pop_back())
    }
}

/// `--test NAME` of each.
fn named(programs: &[String]) -> Vec<&str> {
    let words = programs.iter().map(String::as_str);
    words.flat_map(|program| ["--test", program]).collect()
}

/// The test programs of this package but those [`APART`], as cargo finds them: in files and in
/// folders.
fn programs() -> Result<Vec<String>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = Vec::new();
    for entry in tests.read_dir().context("reading the names of the tests")? {
        let path = entry?.path();
        let is_program =
            path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if is_program && !APART.contains(&name.as_ref()) {
            found.push(name.into_owned());
        }
    }
    for expected in BUSY {
        let is_there = found.iter().any(|name| name == expected);
        ensure!(is_there, "there is no test program {expected}");
    }
    found.sort();
    Ok(found)
}

/// What was skipped, and the counts.
fn sum_up(mut counts: Counts, skips: &Path) -> Result<ExitCode> {
    let mut reasons: Vec<String> = std::fs::read_to_string(skips)?
        .lines()
        .map(str::to_owned)
        .collect();
    reasons.sort();
    reasons.dedup();
    counts.skipped += u64::try_from(reasons.len())?;
    println!(
        "\n{}",
        if reasons.is_empty() {
            "nothing was skipped"
        } else {
            "skipped here:"
        }
    );
    for reason in &reasons {
        println!("  {}", reason.trim_start_matches("skipped: "));
    }
    for failure in &counts.failures {
        println!("\n{failure}");
    }
    println!(
        "\n{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// When what cargo prints is passed on.
#[derive(Debug, Clone, Copy)]
enum Printed {
    /// Line by line.
    AsItComes,
    /// A test program at a time, as another runs beside it.
    ByProgram,
}

/// One cargo command, and what it counted. By its name, not by env!("CARGO"): behind rustup that one
/// lets a dependency's own rust-toolchain file choose rustc.
#[expect(clippy::disallowed_methods, reason = "cargo is no container process")]
fn run(arguments: &[&str], printed: Printed, skips: &Path) -> Result<Counts> {
    let started = Instant::now();
    let mut block = format!("\n== cargo {}\n", arguments.join(" "));
    let mut counts = Counts::default();
    let (output, theirs) = io::pipe().context("a pipe for cargo")?;
    let mut child = Command::new("cargo")
        .args(arguments)
        .args(["--config", RUNNER])
        .env(SKIPS_FILE, skips)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()
        .context("starting cargo")?;
    let (said, heard) = mpsc::channel();
    let lines = said.clone();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(Said::Line(line)).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || said.send(Said::End(child.wait())));
    let mut end = None;
    loop {
        // What a killed test program leaves behind may hold the pipe open for ever.
        let next = match end {
            None => heard.recv().ok(),
            Some(_) => heard.recv_timeout(LAST_LINES).ok(),
        };
        match next {
            Some(Said::Line(line)) => {
                if line.trim_start().starts_with(BEGINS) {
                    print!("{}", mem::take(&mut block));
                }
                counts.add(&line);
                block = block + &line + "\n";
                if matches!(printed, Printed::AsItComes) {
                    print!("{}", mem::take(&mut block));
                }
            }
            Some(Said::End(status)) => end = Some(status),
            None => break,
        }
    }
    println!("{block}== {:.0} s", started.elapsed().as_secs_f32());
    let succeeded = end.context("cargo was not waited for")??.success();
    if !succeeded && counts.failed == 0 {
        // It was not built, or a program ended without counting its tests.
        counts.failed = 1;
        counts
            .failures
            .push(format!("---- cargo {}", arguments.join(" ")));
    }
    Ok(counts)
}

/// How cargo's line before each test program begins.
const BEGINS: &str = "Running ";

/// What comes from cargo.
enum Said {
    Line(String),
    End(io::Result<ExitStatus>),
}

/// For so long lines may still come out of the pipe after cargo's end.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Counts {
    fn add_all(&mut self, others: Self) {
        self.passed += others.passed;
        self.failed += others.failed;
        self.skipped += others.skipped;
        self.failures.extend(others.failures);
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; ...`, and what follows
    /// `---- NAME stdout ----`.
    fn add(&mut self, line: &str) {
        if line.starts_with("---- ") {
            self.failures.push(line.to_owned());
            self.lines_left = Some(SHOWN_AGAIN);
        } else if line == "failures:" {
            self.lines_left = None;
        } else if let (Some(last), Some(left)) = (self.failures.last_mut(), &mut self.lines_left) {
            // Why it failed may come after much else.
            if line.contains(" panicked at ") {
                *left = SHOWN_AGAIN;
            }
            if let Some(less) = left.checked_sub(1) {
                *last = format!("{last}\n{line}");
                *left = less;
            }
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let mut previous = 0;
        for word in result.split([' ', ';']) {
            match word {
                "passed" => self.passed += previous,
                "failed" => self.failed += previous,
                "ignored" => self.skipped += previous,
                number => previous = number.parse().unwrap_or(previous),
            }
        }
    }
}
