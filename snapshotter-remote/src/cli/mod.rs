//! The command `snapshotter-remote`: its words over this crate's library. A failure is one line on
//! standard error.

mod arguments;
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
    let Command::Store(command) = arguments.command;
    match store::perform(&command) {
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
