//! The command `snapshotter-quota`: its words over this crate's library. A failure is one line on
//! standard error.

mod arguments;
mod client;
mod containerd_config;
mod doctor;
mod events;
mod list;
mod parse;
mod print;
mod probe;
mod row;
mod seccomp;
mod set;
mod volumes;

use std::{
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser};

use self::{
    arguments::{Arguments, Command, Containerd, Serve},
    client::Client,
    containerd_config::{Cri, DropIn},
};
use sys::Kernel;

use crate::{Error, Result, config::Config, serve};

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
    match perform(arguments) {
        Ok(code) => code,
        // As with `ls | head -1`: the reader has what it wanted.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let text = error.in_one_line();
            // Nobody is left to tell when standard error is closed.
            let _closed = writeln!(std::io::stderr(), "snapshotter-quota: {text}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments) -> Result<ExitCode> {
    if let Command::Completion { shell } = arguments.command {
        let mut script = Vec::new();
        let mut command = Arguments::command();
        clap_complete::generate(shell, &mut command, "snapshotter-quota", &mut script);
        print::out(&String::from_utf8_lossy(&script))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Parse(parse) = &arguments.command {
        parse::parse(parse)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Volumes(asked) = &arguments.command {
        volumes::volumes(asked)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::read(arguments.config.as_deref())?;
    if let Some(address) = arguments.address {
        config.address = address;
    }
    let client = || Client::new(&config.address);
    match arguments.command {
        Command::Serve(serve) => {
            let address = config.address.clone();
            override_by(&mut config, &serve);
            let file = arguments.config;
            let reread = move || {
                let mut config = Config::read(file.as_deref())?;
                config.address.clone_from(&address);
                override_by(&mut config, &serve);
                Ok(config)
            };
            serve::serve(&config, Box::new(reread))?;
        }
        Command::Ls(list) => list::list(&client()?, &list)?,
        Command::Top(top) => list::top(&client()?, &top)?,
        Command::Get(get) => list::get(&client()?, &get)?,
        Command::Set(set) => set::set(&client()?, &set)?,
        Command::Lift(lift) => set::lift(&client()?, &lift)?,
        Command::Events(events) => events::events(&client()?, &events)?,
        Command::Doctor(doctor) => return doctor::doctor(&config, &doctor),
        Command::Probe(probe) => return probe::probe(&config, &probe),
        Command::Config(arguments::Config::Containerd(asked)) => containerd(&config, &asked)?,
        Command::Config(arguments::Config::Seccomp { profile }) => seccomp(profile.as_deref())?,
        Command::Completion { .. } | Command::Parse(_) | Command::Volumes(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts what the flags say over a configuration.
fn override_by(config: &mut Config, serve: &Serve) {
    if let Some(root) = &serve.root {
        config.root.clone_from(root);
    }
    if let Some(backend) = serve.backend {
        config.backend.kind = backend;
    }
    if let Some(containerd) = &serve.containerd {
        config.containerd = Some(containerd.clone());
    }
    if let Some(level) = serve.log_level {
        config.log.level = level;
    }
    if let Some(format) = serve.log_format {
        config.log.format = format;
    }
    if let Some(metrics) = &serve.metrics {
        config.metrics.address = Some(metrics.clone());
    }
}

fn containerd(config: &Config, asked: &Containerd) -> Result<()> {
    // The text may be made before there is a root to try it on.
    let maps_layers = Kernel::running().is_ok_and(|kernel| kernel.at_least(5, 19));
    print::out(&containerd_config::text(&DropIn {
        version: asked.config_version,
        name: &config.name,
        address: &config.address,
        root: asked.root.as_deref().unwrap_or(&config.root),
        cri: if asked.without_cri {
            Cri::Without
        } else {
            Cri::With
        },
        maps_layers,
    }))
}

/// Nobody's profile is longer.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

fn seccomp(file: Option<&Path>) -> Result<()> {
    let path = file.unwrap_or(Path::new("/dev/stdin"));
    let failed = || snapshot_core::Error::io("read the seccomp profile", path);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed())?;
    let read = file.take(PROFILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(failed())?;
    let profile = serde_json::from_str(&text)
        .map_err(|error| Error::Answered(format!("{} is no JSON: {error}", path.display())))?;
    print::json(&seccomp::closed(profile)?)
}
