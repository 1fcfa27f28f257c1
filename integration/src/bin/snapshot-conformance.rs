//! Asks a snapshotter all that containerd's own test suite asks; one line for each case.
//!
//! `snapshot-conformance --address /run/snapshotter-quota/quota.sock --snapshotter quota`. It needs
//! root, for it mounts what it is given. It exits with 0 when all cases passed.

#![expect(clippy::print_stdout, reason = "this program is its output")]

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use integration::conformance::{CASES, Case, DirectoryRename, Target};

const USAGE: &str = "usage: snapshot-conformance --address SOCKET --snapshotter NAME [OPTION...]
  --address SOCKET     the snapshotter's socket, or containerd's own
  --snapshotter NAME   what requests name it
  --namespace NAME     a containerd namespace: needed on containerd's own socket
  --filter TEXT        only cases with that in their names, in any case
  --directory DIR      where to mount (TMPDIR)
  --keep-directories   do not rename directories of lower layers: overlayfs without redirect_dir
                       cannot, and containerd's suite leaves it out for overlayfs
  --list               print the names of the cases and end";

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match parse(&words)? {
        Task::Show(text) => {
            println!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        Task::Run(target, cases) => Ok(run(&target, &cases)),
    }
}

#[derive(Debug)]
enum Task {
    Show(String),
    Run(Target, Vec<Case>),
}

fn parse(words: &[String]) -> Result<Task> {
    let mut target = Target::proxy(PathBuf::new(), "");
    let mut filter = String::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} takes a value"))
        };
        match word.as_str() {
            "--address" => target.socket = value()?.into(),
            "--snapshotter" => target.snapshotter.clone_from(value()?),
            "--namespace" => target.namespace = Some(value()?.clone()),
            "--filter" => filter.clone_from(value()?),
            "--directory" => target.directory = value()?.into(),
            "--keep-directories" => target.directory_rename = DirectoryRename::LeftOut,
            "--list" => return Ok(Task::Show(names(&CASES))),
            "--help" | "-h" => return Ok(Task::Show(USAGE.to_owned())),
            _ => bail!("{word:?} is no option\n{USAGE}"),
        }
    }
    ensure!(
        !target.socket.as_os_str().is_empty() && !target.snapshotter.is_empty(),
        "{USAGE}"
    );
    let wanted = filter.to_lowercase();
    let cases: Vec<Case> = CASES
        .into_iter()
        .filter(|case| case.name.to_lowercase().contains(&wanted))
        .collect();
    ensure!(
        !cases.is_empty(),
        "no case is called {filter:?}; there are\n{}",
        names(&CASES)
    );
    Ok(Task::Run(target, cases))
}

fn names(cases: &[Case]) -> String {
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.join("\n")
}

fn run(target: &Target, cases: &[Case]) -> ExitCode {
    let mut failed = 0;
    for case in cases {
        match case.run(target) {
            Ok(()) => println!("passed {}", case.name),
            Err(error) => {
                failed += 1;
                println!("FAILED {}: {error:#}", case.name);
            }
        }
    }
    println!("{} passed, {failed} failed", cases.len() - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Task> {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        parse(&words)
    }

    #[test]
    fn options_make_a_target_and_choose_cases() {
        let words =
            "--address /s --snapshotter quota --namespace n --filter stat --keep-directories";
        let words: Vec<_> = words.split(' ').collect();
        let Task::Run(target, cases) = parsed(&words).unwrap() else {
            panic!("nothing to run");
        };
        assert_eq!(target.socket, PathBuf::from("/s"));
        assert_eq!(target.namespace.as_deref(), Some("n"));
        assert_eq!(target.directory_rename, DirectoryRename::LeftOut);
        assert_eq!(names(&cases), "StatActive\nStatComitted\nStatInWalk");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let known = ["--address", "/s", "--snapshotter", "q"];
        for (more, expected) in [
            (vec!["--filter", "nothing"], "no case is called"),
            (vec!["--nosuch"], "is no option"),
            (vec!["--filter"], "takes a value"),
        ] {
            let words: Vec<_> = known.iter().copied().chain(more).collect();
            let said = format!("{:#}", parsed(&words).unwrap_err());
            assert!(said.contains(expected), "{said}");
        }
        assert!(format!("{:#}", parsed(&[]).unwrap_err()).contains("usage"));
    }
}
