//! Runs every test of the workspace, one test program after the other, and sums up.
//!
//! The last line is `N passed, N failed, N skipped`; it exits with 1 when anything failed.

#![expect(clippy::print_stdout, reason = "this program is its output")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use integration::{skip::SKIPS_FILE, sweep::sweep_abandoned};

/// What cargo is asked, in this order: what is quick fails first.
const RUNS: &[&[&str]] = &[
    &[
        "test",
        "--locked",
        "--workspace",
        "--exclude",
        "integration",
        "--exclude",
        "runlxc",
    ],
    &["test", "--locked", "-p", "integration", "--test", "tidy"],
    &["test", "--locked", "-p", "runlxc"],
    &["test", "--locked", "-p", "integration", "--no-fail-fast"],
];

/// How cargo starts a test program: so that one that hangs ends after 20 minutes (the slowest takes 5)
/// with timeout(1)'s status 124, and the tests after it still run.
const RUNNER: &str =
    r#"target."cfg(unix)".runner = ["timeout", "--foreground", "--kill-after=10", "1200"]"#;

#[derive(Debug, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

fn main() -> Result<ExitCode> {
    // What a run that was killed has left would be counted as this one's leaks.
    sweep_abandoned()?;
    let skips = tempfile::NamedTempFile::new()?;
    let mut counts = Counts::default();
    for arguments in RUNS {
        let started = Instant::now();
        println!("\n== cargo {}", arguments.join(" "));
        let failed_before = counts.failed;
        let succeeded = run(arguments, skips.path(), &mut counts)?;
        if !succeeded && counts.failed == failed_before {
            // It was not built, or a program ended without counting its tests.
            counts.failed += 1;
        }
        println!("== {:.0} s", started.elapsed().as_secs_f32());
    }
    let mut reasons: Vec<String> = std::fs::read_to_string(skips.path())?
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

/// One cargo command; its output is passed on as it comes. True when it succeeded. By its name, not
/// by env!("CARGO"): behind rustup that one lets a dependency's own rust-toolchain file choose rustc.
#[expect(clippy::disallowed_methods, reason = "cargo is no container process")]
fn run(arguments: &[&str], skips: &Path, counts: &mut Counts) -> Result<bool> {
    let mut child = Command::new("cargo")
        .args(arguments)
        .args(["--config", RUNNER])
        .env(SKIPS_FILE, skips)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child
        .stdout
        .take()
        .context("cargo's standard output is a pipe")?;
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
                println!("{line}");
                counts.add(&line);
            }
            Some(Said::End(status)) => end = Some(status),
            None => break,
        }
    }
    Ok(end.context("cargo was not waited for")??.success())
}

/// What comes from cargo.
enum Said {
    Line(String),
    End(std::io::Result<ExitStatus>),
}

/// For so long lines may still come out of the pipe after cargo's end.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn add(&mut self, line: &str) {
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
