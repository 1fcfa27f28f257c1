//! The operator's command.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bundle::Status;
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use shim_core::{Client, Code};

use crate::exec::{self, Ends};
use crate::home::Home;
use crate::image::{self, Image, Name, Source};
use crate::listed::{self, Room};
use crate::qemu::{self, Facts};
use crate::runtime::ROOT;
use crate::template::{self, Kind, Listed, Places};
use crate::virtiofsd::Virtiofsd;
use crate::{Error, Result, size};

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
    /// Lists containers: namespace, id, QEMU's pid and what it has of the host's memory in MiB; `pod` in
    /// place of both for one in its pod's machine, `ended` for one whose machine is gone, `unreadable` and why.
    Ps(Root),
    /// Prints what a container's guest wrote to its console.
    Console(One),
    /// Prints a container's OCI state: `running`, `paused` and so on as its shim says, `stopped` without one.
    State(One),
    /// Runs a program in a container that runs, as its own process is run, and stays with it: input, output, signals.
    /// The exit code is the program's, or 1 and a message when there is none.
    Exec {
        #[command(flatten)]
        one: One,
        /// It has a terminal, of the size of the caller's.
        #[arg(long, short)]
        tty: bool,
        /// The program, looked for in the container's PATH, and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
    /// Templates: booted machines that others go on from. They are made by themselves.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Says what is there and what is missing; the exit code is 1 when containers cannot run.
    Doctor,
}

/// Where shims keep the state of containers.
#[derive(Debug, clap::Args)]
struct Root {
    /// State root, where the runtime's options name another one.
    #[arg(long, default_value = ROOT)]
    root: PathBuf,
}

/// A container.
#[derive(Debug, clap::Args)]
struct One {
    #[command(flatten)]
    root: Root,
    /// Its namespace of containerd's, where several have a container of that id.
    #[arg(long, short)]
    namespace: Option<String>,
    /// Its id.
    id: String,
}

impl One {
    fn find(&self) -> Result<listed::Listed> {
        listed::find(&self.root.root, self.namespace.as_deref(), &self.id)
    }
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Makes a guest image from a distribution's kernel, in place of the one of that name.
    Build {
        /// Its name, for containers that ask for it by the annotation org.pouch.runv.guest; others get `default`.
        #[arg(long, default_value_t)]
        name: Name,
        /// The kernel: `/boot/vmlinuz-RELEASE`.
        #[arg(long)]
        kernel: PathBuf,
        /// Its modules: `/lib/modules/RELEASE`, plain or packed by gzip, xz or zstd.
        #[arg(long)]
        modules: PathBuf,
        /// The agent, if it is not beside this program.
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Lists guest images: name and release of the kernel.
    Ls,
    /// Removes a guest image; machines that run keep theirs.
    Rm {
        /// Its name.
        name: Name,
    },
}

#[derive(Debug, Subcommand)]
enum TemplateCommand {
    /// Lists them: those that are held, are being made, or could not be made, and why.
    Ls,
    /// Throws templates away; machines that went on from them stay.
    Rm {
        /// Their keys, as `ls` tells them.
        #[arg(required_unless_present = "all")]
        keys: Vec<String>,
        /// All of them.
        #[arg(long, conflicts_with = "keys")]
        all: bool,
    },
    /// Makes one, and waits for it; the first container then need not boot.
    Make {
        /// Name of their guest image.
        #[arg(long, default_value_t)]
        guest: Name,
        /// Memory of its machines in MiB: 256, 512, 1024, 2048 or 4096.
        #[arg(long, value_name = "MIB", default_value_t = size::MEMORY_MIB)]
        memory: u64,
        /// Their processors.
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        processors: u32,
        /// Their links: 0 without a network, 1 with that of CNI.
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        links: usize,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shim_core::log_to_stderr(tracing::Level::WARN);
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
        Command::Image(command) => images(command, &home, &mut out),
        Command::Ps(Root { root }) => {
            for it in listed::all(&root)? {
                say(&mut out, &container(&it));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Console(one) => {
            console(&one.find()?, &mut out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::State(one) => {
            say(&mut out, &format!("{:#}", state(&one.find()?)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Exec { one, tty, program } => {
            let it = one.find()?;
            let ends = match tty {
                true => Ends::Terminal,
                false => Ends::Pipes,
            };
            exec::run(it.bundle()?, &it.id, &program, ends).map(ExitCode::from)
        }
        Command::Template(command) => {
            templates(command, &home, &mut out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor => Ok(doctor(&home, &mut out)),
    }
}

fn console(it: &listed::Listed, out: &mut impl Write) -> Result<()> {
    if it.room == Room::Pod {
        let (id, why) = (
            &it.id,
            "it is in its pod's machine: ask for the console of the sandbox",
        );
        return Err(Error::Usage(format!(
            "container {id} has no console: {why}"
        )));
    }
    let text = fs::read(&it.console).map_err(Error::on("read", &it.console))?;
    for line in qemu::lines(&text) {
        say(out, &line);
    }
    Ok(())
}

/// A container's OCI state. Its shim knows it; without a shim its machine has ended.
fn state(it: &listed::Listed) -> Result<Value> {
    let bundle = it.bundle()?;
    let mut state = it.stopped.clone().unwrap_or_default();
    match Client::connect(bundle, &it.id).and_then(|shim| shim.state()) {
        Ok(told) => {
            state["status"] = json!(told.status);
            if told.status != Status::Stopped {
                state["pid"] = json!(told.pid);
            }
        }
        Err(error) if error.kind == Code::Unavailable => {}
        Err(error) => return Err(error.into()),
    }
    Ok(state)
}

/// A container as `ps` prints it.
fn container(it: &listed::Listed) -> String {
    let (qemu, memory) = match &it.room {
        Room::Own {
            qemu: Some(pid),
            memory,
        } => (pid.to_string(), (memory >> 20).to_string()),
        Room::Own { qemu: None, .. } => ("ended".to_owned(), String::new()),
        Room::Pod => ("pod".to_owned(), String::new()),
        Room::Unreadable(why) => ("unreadable".to_owned(), why.clone()),
    };
    let listed::Listed { namespace, id, .. } = it;
    format!("{namespace:<15}  {id:<30}  {qemu:<8}  {memory}")
        .trim_end()
        .to_owned()
}

fn images(command: ImageCommand, home: &Home, out: &mut impl Write) -> Result<ExitCode> {
    match command {
        ImageCommand::Build {
            name,
            kernel,
            modules,
            agent,
        } => {
            let source = Source {
                kernel,
                modules,
                agent,
            };
            let image = image::build(&source, home, &name)?;
            say(out, &format!("{}", image.kernel.display()));
            say(out, &format!("{}", image.initramfs.display()));
        }
        ImageCommand::Ls => {
            for (name, release) in Image::all(home)? {
                say(out, &format!("{name:<20}  {release}"));
            }
        }
        ImageCommand::Rm { name } => Image::remove(home, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn templates(command: TemplateCommand, home: &Home, out: &mut impl Write) -> Result<()> {
    let places = Places::of(home);
    match command {
        TemplateCommand::Ls => {
            for (key, listed) in template::list(&places)? {
                say(out, &format!("{key}  {}", line(&listed)));
            }
            Ok(())
        }
        TemplateCommand::Rm { keys, all } => {
            let known = template::list(&places)?.into_iter().map(|(key, _)| key);
            let known: Vec<_> = known.collect();
            let named = keys.iter().map(|text| {
                let found = known.iter().find(|key| key.to_string() == *text);
                let missing = || Error::Usage(format!("no template {text}: see runv template ls"));
                found.cloned().ok_or_else(missing)
            });
            let chosen = match all {
                true => known.clone(),
                false => named.collect::<Result<_>>()?,
            };
            for key in chosen {
                template::end(&places, &key)?;
            }
            Ok(())
        }
        TemplateCommand::Make {
            guest,
            memory,
            processors,
            links,
        } => {
            let kind = Kind {
                guest,
                memory_mib: memory,
                processors,
                links,
            };
            say(out, &template::make(home, &kind)?.to_string());
            Ok(())
        }
    }
}

fn line(listed: &Listed) -> String {
    match listed {
        Listed::Held(report) => {
            let machine = format!(
                "held by {}: {} MiB, processors {}, links {}",
                report.pid, report.memory_mib, report.processors, report.links
            );
            match &report.held {
                None => machine,
                Some(held) => format!(
                    "{machine}; {} KiB of the host, made {} s ago, taken {} times, last {} s ago",
                    held.bytes >> 10,
                    held.age_s,
                    held.uses,
                    held.unused_s
                ),
            }
        }
        Listed::Making => "being made".to_owned(),
        Listed::Failed(why) => format!("could not be made: {why}"),
        Listed::Left => "left by somebody who was killed: the next one removes it".to_owned(),
    }
}

/// What doctor says of templates: none is nothing that is missing.
fn templates_in_short(home: &Home) -> String {
    let listed = match template::list(&Places::of(home)) {
        Ok(listed) => listed,
        Err(error) => return error.chain(),
    };
    let count = |is: fn(&Listed) -> bool| listed.iter().filter(|(_, it)| is(it)).count();
    let held = count(|it| matches!(it, Listed::Held(_)));
    let failed = count(|it| matches!(it, Listed::Failed(_)));
    match (held, failed) {
        (0, 0) => "none: one is made after the first start of each kind".to_owned(),
        (held, 0) => format!("{held} held"),
        (held, failed) => {
            format!("{held} held, {failed} could not be made: see runv template ls")
        }
    }
}

fn doctor(home: &Home, out: &mut impl Write) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    say(
        out,
        &format!("accelerator  {}", Facts::read(Path::new("/"))),
    );
    let needs: [(&str, std::result::Result<PathBuf, Error>); 2] = [
        ("qemu", qemu::find()),
        (
            "guest image",
            Image::find(home, &Name::default()).map(|image| image.kernel),
        ),
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
    say(out, &format!("templates    {}", templates_in_short(home)));
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
        assert!(text.contains("templates    none"), "{text}");
    }
}
