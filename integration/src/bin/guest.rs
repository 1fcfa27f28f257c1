//! Runs one program, or one named test, on one Debian kernel.
//!
//! `guest 6.1 -p cgroups limits_reach_the_kernel_of_version_2` builds the test, prints what it
//! prints and exits as it does. In the guest there is cgroup v2 only, Debian's containerd 1.6,
//! runc and LXC, and nothing of the source tree.

#![expect(clippy::print_stdout, reason = "this program passes on output")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use integration::guest::{Guest, Wanted};

const USAGE: &str = "usage: guest 5.10|6.1|6.12|7.2 [-p PACKAGE] [--test TARGET] NAME\n   \
    or: guest 5.10|6.1|6.12|7.2 PROGRAM [ARGUMENT...]\n\
    The first form runs the test of that name (of package integration, if none is named), the second \
    a program: a path with a slash.\n\
    Our binaries beside this one come along; POUCH_GUEST_LIMIT_S (600) limits the run.";

/// What runs in the guest.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Test(Wanted),
    Program(PathBuf, Vec<String>),
}

fn main() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    let series = words.next().context(USAGE)?.parse()?;
    let (program, arguments) = match parse(words.collect())? {
        Asked::Program(program, arguments) => (program, arguments),
        Asked::Test(wanted) => {
            let test = wanted.find()?;
            println!("running {} of {}", test.name, test.program.display());
            let flags = ["--exact", "--nocapture"].map(str::to_owned);
            let arguments = std::iter::once(test.name).chain(flags).collect();
            (test.program, arguments)
        }
    };
    let limit = std::env::var("POUCH_GUEST_LIMIT_S")
        .ok()
        .map_or(Ok(600), |text| text.parse())?;
    let guest = Guest::running(series, &program, arguments, Duration::from_secs(limit))?;
    let outcome = guest.run(|line| println!("{line}"))?;
    Ok(ExitCode::from(u8::try_from(outcome.code)?))
}

fn parse(words: Vec<String>) -> Result<Asked> {
    if words.first().is_some_and(|word| word.contains('/')) {
        let mut words = words.into_iter();
        let program = PathBuf::from(words.next().context(USAGE)?);
        return Ok(Asked::Program(program, words.collect()));
    }
    let (mut package, mut target, mut name) = ("integration".to_owned(), None, None);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-p" | "--package" => package = words.next().context(USAGE)?,
            "--test" => target = Some(words.next().context(USAGE)?),
            _ if word.starts_with('-') || name.is_some() => bail!(USAGE),
            _ => name = Some(word),
        }
    }
    Ok(Asked::Test(Wanted {
        package,
        target,
        name: name.context(USAGE)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_asked_for_by_name_and_programs_by_path() {
        let parse = |words: &[&str]| parse(words.iter().map(|&word| word.to_owned()).collect());
        let wanted = |package: &str, target: Option<&str>| {
            Asked::Test(Wanted {
                package: package.to_owned(),
                target: target.map(str::to_owned),
                name: "name".to_owned(),
            })
        };
        assert_eq!(parse(&["name"]).unwrap(), wanted("integration", None));
        assert_eq!(
            parse(&["--test", "kernels", "name"]).unwrap(),
            wanted("integration", Some("kernels"))
        );
        assert_eq!(
            parse(&["-p", "cgroups", "name"]).unwrap(),
            wanted("cgroups", None)
        );
        let program = Asked::Program("/bin/ls".into(), vec!["-l".to_owned()]);
        assert_eq!(parse(&["/bin/ls", "-l"]).unwrap(), program);
        for wrong in [
            &[][..],
            &["-p"],
            &["-p", "cgroups"],
            &["a", "b"],
            &["--list", "a"],
        ] {
            parse(wrong).unwrap_err();
        }
    }
}
