//! The command `runlxc`: runc's commands, options and words over this crate's library.
//!
//! A failure is a line of the log. Where that goes to a file, standard error has it too, bare.

mod arguments;
mod checkpoint;
mod console;
mod cpuset;
mod events;
mod exec;
mod foreground;
mod lifecycle;
mod list;
mod log;
mod ps;
mod quantity;
mod signal;
mod stats;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches};
use launch::plan::Toggle;
use nix::unistd::{getegid, geteuid};
use tracing::Level;

use self::arguments::{Arguments, Command, LogFormat, Spec};
use self::lifecycle::Settings;
use self::log::Target;
use crate::components::Components;
use crate::host::{self, Host};
use crate::lxcfs::Lxcfs;
use crate::scope::CgroupManager;
use crate::{Error, Result, features};

/// What a failed exec exits with, as runc's: not to be taken for the program's own 1.
const EXEC_FAILED: u8 = 255;

/// The command's `main`.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    let parsed = command_line().try_get_matches_from(arguments);
    let arguments = match parsed.and_then(|words| Arguments::from_arg_matches(&words)) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => return fail_early(&usage(&error)),
        Err(help) => {
            // A closed standard stream is no reason to fail.
            let _closed = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if arguments.version {
        let printed = print(&version());
        return if printed.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let Some(command) = &arguments.command else {
        let _closed = command_line().print_help();
        return ExitCode::FAILURE;
    };
    let level = if arguments.debug {
        Level::DEBUG
    } else {
        Level::WARN
    };
    let target = match log::init(arguments.log.as_deref(), arguments.log_format, level) {
        Ok(target) => target,
        Err(error) => return fail_early(&error.chain()),
    };
    match perform(&arguments, command) {
        Ok(code) => code,
        Err(error) => {
            let code = match command {
                Command::Exec(_) => ExitCode::from(EXEC_FAILED),
                _ => ExitCode::FAILURE,
            };
            fail(target, &sentence(command, &error), code)
        }
    }
}

/// With help in the shape that runc's has, which scripts look at.
fn command_line() -> clap::Command {
    let help = |name: &str| {
        format!("NAME:\n   {name} - {{about}}\n\nUSAGE:\n   {{usage}}\n\n{{all-args}}")
    };
    Arguments::command()
        .help_template(help("runlxc"))
        .mut_subcommands(|command| {
            let template = help(&format!("runlxc {}", command.get_name()));
            command.help_template(template)
        })
}

/// What is wrong with the command line and what may have been meant, without the usage that follows.
fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let (first, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let tip = rest.trim_start().strip_prefix("tip: ");
    let tip = tip.map(|tip| tip.split("\n\n").next().unwrap_or_default());
    let in_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut first = in_line(first.trim_start_matches("error: "));
    if let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) {
        // runc's words.
        first = format!("No help topic for '{name}': {first}");
    }
    match tip {
        Some(tip) => format!("{first}; {}; see --help", in_line(tip)),
        None => format!("{first}; see --help"),
    }
}

/// runc prefixes the failures of these commands only.
fn sentence(command: &Command, error: &Error) -> String {
    let text = error.chain();
    match command {
        Command::Create(_) | Command::Run(_) => format!("runlxc {} failed: {text}", command.name()),
        Command::Exec(_) => format!("exec failed: {text}"),
        _ => text,
    }
}

/// As runc, whose callers look for its level in what standard error says.
fn fail(target: Target, text: &str, code: ExitCode) -> ExitCode {
    let text = text.replace('\n', " ");
    tracing::error!("{text}");
    if target == Target::File {
        // Nobody is left to tell when standard error is closed.
        let _closed = writeln!(std::io::stderr(), "{text}");
    }
    code
}

/// Before there is a log: in the form that it has by default.
fn fail_early(text: &str) -> ExitCode {
    match log::init(None, LogFormat::Text, Level::WARN) {
        Ok(target) => fail(target, text, ExitCode::FAILURE),
        Err(_) => ExitCode::FAILURE,
    }
}

fn perform(arguments: &Arguments, command: &Command) -> Result<ExitCode> {
    let root = absolute_root(&arguments.root)?;
    match command {
        Command::Create(create) => lifecycle::create(&root, create, settings(arguments)?),
        Command::Start(id) => lifecycle::start(&root, id),
        Command::Run(run) => lifecycle::run(&root, run, settings(arguments)?),
        Command::State(id) => list::state(&root, id),
        Command::Kill(kill) => lifecycle::kill(&root, kill),
        Command::Delete(delete) => lifecycle::delete(&root, delete),
        Command::Exec(exec) => exec::exec(&root, exec),
        Command::Pause(id) => lifecycle::pause(&root, id),
        Command::Resume(id) => lifecycle::resume(&root, id),
        Command::Update(update) => update::update(&root, update),
        Command::Ps(ps) => ps::ps(&root, ps),
        Command::Events(events) => events::events(&root, events),
        Command::Checkpoint(checkpoint) => checkpoint::checkpoint(&root, checkpoint),
        Command::Restore(restore) => checkpoint::restore(&root, restore, manager(arguments)),
        Command::RemountLxcfs(id) => lifecycle::remount_lxcfs(&root, id),
        Command::List(list) => list::list(&root, list),
        Command::Spec(spec) => write_spec(spec),
        Command::Features => print_features(),
    }
}

fn absolute_root(root: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(root).map_err(Error::on("resolve --root", root))?;
    if absolute == Path::new("/") {
        return Err(Error::Usage(
            "Option --root argument should not be set to /".into(),
        ));
    }
    Ok(absolute)
}

fn settings(arguments: &Arguments) -> Result<Settings> {
    let absolute = |option: &str, path: &Path| {
        let resolved = std::path::absolute(path);
        resolved.map_err(Error::on(&format!("resolve {option}"), path))
    };
    let of_operator = &arguments.components;
    Ok(Settings {
        lxcfs: Lxcfs {
            root: absolute("--lxcfs-root", &arguments.lxcfs.lxcfs_root)?,
            is_optional: arguments.lxcfs.lxcfs_optional,
        },
        components: Components {
            root: absolute("--components-root", &of_operator.components_root)?,
            always: of_operator.components.clone(),
            hooks_root: absolute("--hooks-root", &of_operator.hooks_root)?,
        },
        hardening_optional: host::hardening_optional(arguments.hardening_optional)?,
        cgroup_manager: manager(arguments),
    })
}

fn manager(arguments: &Arguments) -> CgroupManager {
    if arguments.systemd_cgroup {
        CgroupManager::Systemd
    } else {
        CgroupManager::Cgroupfs
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Error::io("write to standard output"))
}

fn version() -> String {
    let (version, spec) = (crate::VERSION, bundle::state::OCI_VERSION);
    let commit = if crate::REVISION.is_empty() {
        "unknown"
    } else {
        crate::REVISION
    };
    format!("runlxc version {version}\ncommit: {commit}\nspec: {spec}\n")
}

fn print_features() -> Result<ExitCode> {
    let document = features::document(&Host::detect()?);
    print(&format!("{document:#}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn write_spec(spec: &Spec) -> Result<ExitCode> {
    let path = spec.bundle.join(bundle::names::CONFIG);
    let unified = Host::detect()?.hierarchies.layout() == cgroups::Layout::V2;
    let own_cgroups = if unified { Toggle::On } else { Toggle::Off };
    let text = if spec.rootless {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        bundle::example::rootless(own_cgroups, uid, gid)
    } else {
        bundle::example::text(own_cgroups)
    };
    match std::fs::File::create_new(&path) {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .map_err(Error::on("write", &path))?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Usage(format!(
                "File {} exists. Remove it first",
                bundle::names::CONFIG
            )));
        }
        Err(e) => return Err(Error::on("create", &path)(e)),
    }
    Ok(ExitCode::SUCCESS)
}
