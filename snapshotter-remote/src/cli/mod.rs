//! The command `snapshotter-remote`: its words over this crate's library. A failure is one line on
//! standard error.

mod arguments;
mod care;
mod daemon;
mod ending;
mod host;
mod store;

use std::{
    error::Error as _,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use self::arguments::{Arguments, Command};
use crate::{Error, Result};

/// The command's `main`.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed standard stream is no reason to fail.
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(u8::MAX));
        }
    };
    let performed = match arguments.command {
        Command::Store(command) => store::perform(&command),
        Command::Serve(asked) => host::serve(&asked),
        Command::Pull(asked) => host::pull(&asked),
        Command::Status(asked) => host::status(&asked),
        Command::Pin(asked) => host::pin(&asked),
        Command::Unpin(asked) => host::unpin(&asked),
        Command::Warm(asked) => care::warm(&asked),
        Command::Verify(asked) => care::verify(&asked),
        Command::Gc(asked) => care::gc(&asked),
        Command::Doctor(asked) => host::doctor(&asked),
        Command::OpenServed(asked) => host::open_served(&asked),
        Command::UnmountServed(asked) => Ok(host::unmount_served(&asked)),
    };
    match performed {
        Ok(code) => code,
        // As with `ls | head -1`: the reader has what it wanted.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _closed = writeln!(io::stderr(), "snapshotter-remote: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and what it came from.
fn in_one_line(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Writes to standard output.
fn out(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Error::Output)
}

/// For people: one place behind the point.
fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut shift = 10;
    let mut unit = units[0];
    for next in &units[1..] {
        if bytes >> shift < 1024 {
            break;
        }
        shift += 10;
        unit = next;
    }
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Arguments, bytes};

    #[test]
    fn every_word_of_the_command_is_understood_in_one_way() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn lengths_are_told_in_the_unit_that_fits() {
        assert_eq!(bytes(0), "0.0 KiB");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
    }
}
