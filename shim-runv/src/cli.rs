//! The operator's command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::home::Home;
use crate::image::{self, Image, Source};
use crate::machine::find_qemu;
use crate::qemu::Facts;
use crate::virtiofsd::Virtiofsd;
use crate::{Error, Result};

/// Virtual machines of containers: guest images, and what this host can do.
#[derive(Debug, Parser)]
#[command(name = "runv", version = crate::VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Guest images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Says what is there and what is missing; the exit code is 1 when containers cannot run.
    Doctor,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Makes the guest image of this host from a distribution's kernel, in place of the one that is there.
    Build {
        /// The kernel: `/boot/vmlinuz-RELEASE`.
        #[arg(long)]
        kernel: PathBuf,
        /// Its modules: `/lib/modules/RELEASE`, with plain .ko files.
        #[arg(long)]
        modules: PathBuf,
        /// The agent, if it is not beside this program.
        #[arg(long)]
        agent: Option<PathBuf>,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("runv: {}", error.chain()));
            ExitCode::FAILURE
        }
    }
}

fn say(out: &mut impl Write, line: &str) {
    // Nobody is left to be told that nobody listens.
    let _nobody = writeln!(out, "{line}");
}

fn run(command: Command) -> Result<ExitCode> {
    let home = Home::find()?;
    let mut out = std::io::stdout();
    match command {
        Command::Image(ImageCommand::Build {
            kernel,
            modules,
            agent,
        }) => {
            let source = Source {
                kernel,
                modules,
                agent,
            };
            let image = image::build(&source, &home)?;
            say(&mut out, &format!("{}", image.kernel.display()));
            say(&mut out, &format!("{}", image.initramfs.display()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor => Ok(doctor(&home, &mut out)),
    }
}

fn doctor(home: &Home, out: &mut impl Write) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    say(
        out,
        &format!("accelerator  {}", Facts::read(Path::new("/"))),
    );
    let needs: [(&str, std::result::Result<PathBuf, Error>); 2] = [
        ("qemu", find_qemu()),
        ("guest image", Image::find(home).map(|image| image.kernel)),
    ];
    for (what, found) in needs {
        let text = match found {
            Ok(path) => path.display().to_string(),
            Err(error) => {
                code = ExitCode::FAILURE;
                format!("missing: {}", error.chain())
            }
        };
        say(out, &format!("{what:<11}  {text}"));
    }
    let volumes = match Virtiofsd::find() {
        Ok(program) => program.path.display().to_string(),
        Err(error) => format!("copies only: {}", error.chain()),
    };
    say(out, &format!("{:<11}  {volumes}", "volumes"));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_guest_image_is_told_how_to_make_one() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path()).unwrap();
        let mut out = Vec::new();
        doctor(&home, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("accelerator  "), "{text}");
        assert!(text.contains("missing: no guest image"), "{text}");
        assert!(text.contains("runv image build"), "{text}");
        assert!(text.contains("\nvolumes "), "{text}");
    }
}
