//! The command line as values.

use std::{path::PathBuf, sync::LazyLock, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use snapshot_core::daemon::{LogFormat, LogLevel, MetricsAddress};

use super::volumes::volume;
use crate::{
    backend::{Kind, Volume},
    config::Choice,
    limit::PathRules,
};

/// What `--version` says; `build.rs` tells the commit.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("POUCH_REVISION").unwrap_or("unknown");
    format!("{}\ncommit: {commit}", env!("CARGO_PKG_VERSION"))
});

/// Overlayfs with a limit for each container, changed while it runs.
///
/// `serve` is the daemon that containerd talks to; the other commands ask it, or explain.
#[derive(Debug, Parser)]
#[command(name = "snapshotter-quota", version = VERSION.as_str())]
pub(super) struct Arguments {
    /// Configuration file; conf.d/*.toml beside it is read after it.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub(super) config: Option<PathBuf>,
    /// Socket of the daemon; overrides the configuration.
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        help_heading = "Everywhere"
    )]
    pub(super) address: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon.
    Serve(Serve),
    /// List writable snapshots with what they hold and may hold.
    Ls(List),
    /// Show the fullest snapshots, again and again.
    Top(Top),
    /// Show one snapshot.
    Get(Get),
    /// Change the limit of a snapshot while it is in use.
    Set(Set),
    /// Take the limit of a snapshot away for a while, to clean up in a full container.
    Lift(Lift),
    /// Show what happened to limits.
    Events(Events),
    /// Look for what is not as it should be; with --rebuild, make the store anew from the disk.
    Doctor(Doctor),
    /// Try which back ends work here.
    Probe(Probe),
    /// Explain a text of PouchContainer's --disk-quota, such as '/=10g&/data=20g'.
    Parse(Parse),
    /// Limit directories that containers have as volumes by such a text.
    Volumes(Volumes),
    /// Print configuration for others.
    #[command(subcommand)]
    Config(Config),
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs: exact numbers.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct Printed {
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

/// Run the daemon. Flags override the configuration.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Directory of all snapshots; its file system decides which back end works.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Back end: auto, prjquota, btrfs, pool, image, tmpfs or none.
    #[arg(long, value_name = "KIND")]
    pub(super) backend: Option<Choice>,
    /// containerd's own socket, for `set` and for its event stream.
    #[arg(long, value_name = "SOCKET")]
    pub(super) containerd: Option<PathBuf>,
    /// Least severity that is logged.
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    pub(super) log_level: Option<LogLevel>,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    pub(super) log_format: Option<LogFormat>,
    /// Where metrics are served: unix:/PATH or 127.0.0.1:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) metrics: Option<MetricsAddress>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Key, name, or the beginning of a name (4 characters at least); all without it.
    pub(super) name: Option<String>,
    /// Views and committed snapshots too.
    #[arg(long, short)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) printed: Printed,
}

#[derive(Debug, Args)]
pub(super) struct Top {
    /// How many are shown.
    #[arg(long, short, default_value_t = 20)]
    pub(super) number: usize,
    /// Time between two pictures.
    #[arg(long, short, value_parser = duration, default_value = "2s")]
    pub(super) interval: Duration,
    /// Show one picture and end.
    #[arg(long)]
    pub(super) once: bool,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    /// Key, name, or the beginning of a name (4 characters at least).
    pub(super) key: String,
    #[command(flatten)]
    pub(super) printed: Printed,
}

/// `default` takes a label away, so that rules and defaults of the configuration count again.
#[derive(Debug, Args)]
#[command(override_usage = "snapshotter-quota set [OPTIONS] <KEY> [SIZE]")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["size", "soft_size", "inodes", "warn", "mode"]))]
pub(super) struct Set {
    /// Key, name, or the beginning of a name (4 characters at least).
    pub(super) key: String,
    /// Most bytes: 20g, 512m, 10737418240, or default.
    pub(super) size: Option<String>,
    /// Bytes above which the kernel's grace time runs, or default.
    #[arg(long, value_name = "SIZE")]
    pub(super) soft_size: Option<String>,
    /// Most inodes, or default.
    #[arg(long, value_name = "N")]
    pub(super) inodes: Option<String>,
    /// When to warn: 80%,95%, or default.
    #[arg(long, value_name = "PERCENTAGES")]
    pub(super) warn: Option<String>,
    /// hard, account, off, or default.
    #[arg(long)]
    pub(super) mode: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Lift {
    /// Key, name, or the beginning of a name (4 characters at least).
    pub(super) key: String,
    /// For how long: 90s, 10m, 1h, at most a day.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(super) duration: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Key, name, or the beginning of a name (4 characters at least); all without it.
    pub(super) name: Option<String>,
    /// Go on with what happens from now on.
    #[arg(long, short)]
    pub(super) follow: bool,
    #[command(flatten)]
    pub(super) printed: Printed,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Make the store anew from the files beside the snapshots. The daemon must not run; what
    /// was kept of the old store stays beside the new one.
    #[arg(long)]
    pub(super) rebuild: bool,
    /// Directory of all snapshots; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    #[command(flatten)]
    pub(super) printed: Printed,
}

#[derive(Debug, Args)]
pub(super) struct Probe {
    /// Directory whose file system is tried; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Only this back end.
    #[arg(long, value_name = "KIND")]
    pub(super) backend: Option<Kind>,
    #[command(flatten)]
    pub(super) printed: Printed,
}

#[derive(Debug, Args)]
pub(super) struct Parse {
    /// The rules: paths joined by & share a size; rules end with a size.
    pub(super) rules: PathRules,
    #[command(flatten)]
    pub(super) printed: Printed,
}

/// Limit directories of this host by a text of PouchContainer's --disk-quota. Needs ext4 or xfs
/// with project quota, and directories that are empty the first time. The rule for / is for the
/// snapshot and not applied here.
#[derive(Debug, Args)]
pub(super) struct Volumes {
    /// The rules.
    pub(super) rules: PathRules,
    /// Where the container sees it, and where it is: /data=/srv/web/data.
    #[arg(required = true, value_name = "PATH=DIRECTORY", value_parser = volume)]
    pub(super) volumes: Vec<Volume>,
    #[command(flatten)]
    pub(super) printed: Printed,
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// The drop-in that makes containerd use this snapshotter.
    Containerd(Containerd),
    /// A seccomp profile without the way out of a project quota.
    Seccomp {
        /// The profile, as docker or the runtime-spec have it; standard input without it.
        profile: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Containerd {
    /// Version of containerd's configuration: 2 for containerd 1.6 and 1.7, 3 for 2.x.
    #[arg(long = "version", value_name = "VERSION", default_value = "3")]
    pub(super) config_version: ConfigVersion,
    /// Leave the tables out that make it the snapshotter of Kubernetes' pods.
    #[arg(long)]
    pub(super) without_cri: bool,
    /// Directory of all snapshots; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
}

/// Which form of containerd's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ConfigVersion {
    /// containerd 1.6 and 1.7.
    #[value(name = "2")]
    Two,
    /// containerd 2.x.
    #[value(name = "3")]
    Three,
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    Ok(match text {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return Err("error, warn, info, debug and trace are known".to_owned()),
    })
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text and json are known".to_owned()),
    }
}

/// From one second to one day.
fn duration(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let taken = "a time is such as 60s, 10m or 1h, from 1s to 24h";
    let duration = humantime::parse_duration(text).map_err(|why| format!("{why}; {taken}"))?;
    if !(Duration::from_secs(1)..=DAY).contains(&duration) {
        return Err(taken.to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent_and_every_part_has_its_help() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(
                    argument.get_help().is_some() || argument.is_global_set(),
                    "{} {}",
                    sub.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn times_are_from_a_second_to_a_day() {
        let check = |text: &str, expected: Option<u64>| {
            let read = duration(text).ok().map(|time| time.as_secs());
            assert_eq!(read, expected, "{text}");
        };
        check("60s", Some(60));
        check("10m", Some(600));
        check("24h", Some(86_400));
        check("25h", None);
        check("0s", None);
        check("60", None);
        check("", None);
        check("s", None);
        check("-1s", None);
        check("1h 30m", Some(5400));
        check("1d", Some(86_400));
        check("500ms", None);
        check("６s", None);
        check("99999999999999999999h", None);
    }

    #[test]
    fn set_wants_something_to_set() {
        let parse = |words: &[&str]| {
            let words = [&["snapshotter-quota"], words].concat();
            Arguments::try_parse_from(words)
        };
        assert!(parse(&["set", "web"]).is_err());
        assert!(parse(&["set", "web", "20g"]).is_ok());
        assert!(parse(&["set", "web", "--inodes", "7"]).is_ok());
    }
}
