//! The command line: runc's commands and options. Nothing is done here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::quantity;
use crate::criu::wire::CgroupsMode;
use crate::{components, host_scripts, lxcfs};

/// Where the state of containers is unless `--root` says otherwise.
pub(crate) const ROOT: &str = "/run/runlxc";

/// Containers by LXC: a command with the options of runc.
#[derive(Debug, Parser)]
#[command(
    name = "runlxc",
    disable_version_flag = true,
    arg_required_else_help = true,
    args_override_self = true
)]
pub(crate) struct Arguments {
    /// Directory of the containers' state, on a tmpfs
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
    /// File to write the log to, instead of standard error
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Log more
    #[arg(long)]
    pub(crate) debug: bool,
    /// Have systemd make the cgroup of a container, as a scope
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Taken for runc's sake; criu is looked for on the PATH
    #[arg(long, hide = true)]
    pub(crate) criu: Option<PathBuf>,
    /// Taken for runc's sake; only root can run containers
    #[arg(long, hide = true)]
    pub(crate) rootless: Option<String>,
    #[command(flatten)]
    pub(crate) lxcfs: Lxcfs,
    #[command(flatten)]
    pub(crate) components: Components,
    /// Run containers without what this kernel lacks of no_new_privs and seccomp
    #[arg(long)]
    pub(crate) hardening_optional: bool,
    /// Print versions
    #[arg(short = 'v', long)]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where the view of its limits comes from, for a container with org.pouch.view=lxcfs.
#[derive(Debug, Args)]
pub(crate) struct Lxcfs {
    /// Where lxcfs is mounted
    #[arg(long, value_name = "DIR", default_value = lxcfs::ROOT)]
    pub(crate) lxcfs_root: PathBuf,
    /// Run a container that asks for lxcfs without it where there is none
    #[arg(long)]
    pub(crate) lxcfs_optional: bool,
}

/// Operators' directories for rich containers.
#[derive(Debug, Args)]
pub(crate) struct Components {
    /// Where components lie that a container may ask for by org.pouch.rich.components
    #[arg(long, value_name = "DIR", default_value = components::ROOT)]
    pub(crate) components_root: PathBuf,
    /// Components that every rich container has
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = component)]
    pub(crate) components: Vec<String>,
    /// Where scripts lie that hooks of rich containers may name as host:NAME
    #[arg(long, value_name = "DIR", default_value = host_scripts::ROOT)]
    pub(crate) hooks_root: PathBuf,
}

fn component(name: &str) -> Result<String, String> {
    match bundle::rich::components::is_name(name) {
        true => Ok(name.to_owned()),
        false => Err("is no name of a component".to_owned()),
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// `time="..." level=error msg="..."`
    Text,
    /// One object per line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container
    Create(Create),
    /// Run the program of a created container
    Start(Id),
    /// Create and run a container
    Run(Run),
    /// Print the state of a container
    State(Id),
    /// Send a signal (default: SIGTERM) to the container's init process
    Kill(Kill),
    /// Remove all that is held by a container
    Delete(Delete),
    /// Run another process in a container
    Exec(Box<Exec>),
    /// Freeze all processes of a container
    Pause(Id),
    /// Thaw them
    Resume(Id),
    /// Change the limits of a container
    Update(Box<Update>),
    /// List the processes of a container
    Ps(Ps),
    /// Print what a container uses, and when it ran out of memory, as JSON
    Events(Events),
    /// Write a running container to files, by CRIU
    Checkpoint(Box<Checkpoint>),
    /// Bring a container back from such files, by CRIU
    Restore(Box<Restore>),
    /// Have a container see the lxcfs that is there now, after another was killed
    RemountLxcfs(Id),
    /// List containers
    List(List),
    /// Write a config.json to start from
    Spec(Spec),
    /// Print what this runtime can do, as JSON
    Features,
}

impl Command {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::Run(_) => "run",
            Self::State(_) => "state",
            Self::Kill(_) => "kill",
            Self::Delete(_) => "delete",
            Self::Exec(_) => "exec",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Update(_) => "update",
            Self::Ps(_) => "ps",
            Self::Events(_) => "events",
            Self::Checkpoint(_) => "checkpoint",
            Self::Restore(_) => "restore",
            Self::RemountLxcfs(_) => "remount-lxcfs",
            Self::List(_) => "list",
            Self::Spec(_) => "spec",
            Self::Features => "features",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// The container
    pub(crate) container_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The container
    pub(crate) container_id: String,
    /// The bundle's directory
    #[arg(short, long, default_value = ".", hide_default_value = true)]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the terminal's master
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process (Linux 5.3)
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not use pivot_root, for a root file system on a ramdisk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Pass N more descriptors (stdio + $LISTEN_FDS + N in total)
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub(crate) preserve_fds: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not remove the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Taken for runc's sake
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The container
    pub(crate) container_id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// To all processes of the container
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The container
    pub(crate) container_id: String,
    /// Kill it first if it still runs
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Table or JSON
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) format: ListFormat,
    /// Ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// The bundle's directory
    #[arg(short, long, default_value = ".", hide_default_value = true)]
    pub(crate) bundle: PathBuf,
    /// For a container in a user namespace whose root is the caller
    #[arg(long = "rootless", id = "rootless-spec")]
    pub(crate) rootless: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The container
    pub(crate) container_id: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// Unix socket that receives the terminal's master
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process (Linux 5.3)
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long)]
    pub(crate) cwd: Option<String>,
    /// Environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// User
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long)]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the process as in config.json
    #[arg(short, long)]
    pub(crate) process: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File to write the process id to
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Label of the process, for SELinux
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    /// Profile of the process, for AppArmor
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// One more capability
    #[arg(short, long, value_name = "CAP_NAME")]
    pub(crate) cap: Vec<String>,
    /// Pass N more descriptors
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub(crate) preserve_fds: u32,
    /// Cgroup below the container's own, which must be there
    #[arg(long, value_name = "[CONTROLLER,..:]PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Go on although the container is paused
    #[arg(long)]
    pub(crate) ignore_paused: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// The container
    pub(crate) container_id: String,
    /// File with the limits as config.json's linux.resources has them, or - for standard input;
    /// other options are ignored then
    #[arg(short, long, value_name = "FILE|-")]
    pub(crate) resources: Option<PathBuf>,
    /// An annotation that may change while a container runs: org.pouch.priority,
    /// org.pouch.net.ingress, org.pouch.net.egress
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    pub(crate) annotations: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) limits: Limits,
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not of the form KEY=VALUE".to_owned()),
    }
}

/// Limits by name; 0 leaves a value as it is, but for pids.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Weight of block devices, 10 to 1000
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// Length of a period (microseconds)
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// Processor time in a period (microseconds), -1 for no limit
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Unused processor time that may be saved up (microseconds)
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// Weight of processor time against other containers
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    /// Length of a real-time period (microseconds)
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Real-time in a real-time period (microseconds)
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// Processors, e.g. 0-3,7
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// 1: only when nobody else wants to run
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) cpu_idle: Option<i64>,
    /// Memory, e.g. 512m; -1 for no limit
    #[arg(long, value_parser = quantity::bytes, allow_negative_numbers = true, value_name = "BYTES")]
    pub(crate) memory: Option<i64>,
    /// Soft limit of memory
    #[arg(long, value_parser = quantity::bytes, allow_negative_numbers = true, value_name = "BYTES")]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_parser = quantity::bytes, allow_negative_numbers = true, value_name = "BYTES")]
    pub(crate) memory_swap: Option<i64>,
    /// Taken for runc's sake
    #[arg(long, hide = true, value_parser = quantity::bytes, allow_negative_numbers = true)]
    pub(crate) kernel_memory: Option<i64>,
    /// Taken for runc's sake
    #[arg(long, hide = true, value_parser = quantity::bytes, allow_negative_numbers = true)]
    pub(crate) kernel_memory_tcp: Option<i64>,
    /// Number of processes and threads, -1 for no limit
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Parts of the L3 cache, for a container with linux.intelRdt, as L3:0=7f0;1=1f
    #[arg(long)]
    pub(crate) l3_cache_schema: Option<String>,
    /// Memory bandwidth, for a container with linux.intelRdt, as MB:0=20;1=70
    #[arg(long)]
    pub(crate) mem_bw_schema: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// The container
    pub(crate) container_id: String,
    /// Options of ps(1); its table must have a column PID [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// The host's table, or pids as JSON
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) format: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The container
    pub(crate) container_id: String,
    /// How often to tell what it uses
    #[arg(long, value_parser = quantity::duration, default_value = "5s")]
    pub(crate) interval: Duration,
    /// Tell it once, now
    #[arg(long)]
    pub(crate) stats: bool,
}

/// What CRIU is told in both directions.
#[derive(Debug, Args)]
pub(crate) struct Criu {
    /// Folder of the images
    #[arg(long, default_value = "checkpoint", value_name = "DIR")]
    pub(crate) image_path: PathBuf,
    /// Folder for CRIU's log and work files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_path: Option<PathBuf>,
    /// Take open TCP connections along
    #[arg(long)]
    pub(crate) tcp_established: bool,
    /// Allow unix sockets whose other end is outside
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,
    /// Allow processes of a shell's session
    #[arg(long)]
    pub(crate) shell_job: bool,
    /// Take file locks along
    #[arg(long)]
    pub(crate) file_locks: bool,
    /// Memory is fetched when it is needed
    #[arg(long)]
    pub(crate) lazy_pages: bool,
    /// Limits of which cgroups are kept
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) manage_cgroups_mode: Option<CgroupsMode>,
    /// Namespace that is made and not filled; that of the network always is
    #[arg(long, value_name = "network")]
    pub(crate) empty_ns: Vec<EmptyNamespace>,
    /// Drop memory that is in several images
    #[arg(long)]
    pub(crate) auto_dedup: bool,
}

/// A namespace that need not be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmptyNamespace {
    Network,
}

#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    /// The container
    pub(crate) container_id: String,
    #[command(flatten)]
    pub(crate) criu: Criu,
    /// Folder of an earlier --pre-dump, relative to that of the images
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_path: Option<PathBuf>,
    /// Let it run on
    #[arg(long)]
    pub(crate) leave_running: bool,
    /// Leave out TCP connections that are being made
    #[arg(long)]
    pub(crate) tcp_skip_in_flight: bool,
    /// Give files without a name one
    #[arg(long)]
    pub(crate) link_remap: bool,
    /// Descriptor that a zero byte is written to when pages can be fetched
    #[arg(long, value_name = "FD")]
    pub(crate) status_fd: Option<i32>,
    /// Server that takes the memory
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) page_server: Option<String>,
    /// Memory alone, in advance; the container runs on
    #[arg(long)]
    pub(crate) pre_dump: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The container
    pub(crate) container_id: String,
    #[command(flatten)]
    pub(crate) criu: Criu,
    /// The bundle's directory
    #[arg(short, long, default_value = ".", hide_default_value = true)]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the terminal's master
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Taken for runc's sake
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
    /// Taken for runc's sake; CRIU enters the root
    #[arg(long, hide = true)]
    pub(crate) no_pivot: bool,
    /// Another label or profile of the processes
    #[arg(long, value_name = "TYPE:NAME")]
    pub(crate) lsm_profile: Option<String>,
    /// Another label of the mounts
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) lsm_mount_context: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Command {
        Arguments::try_parse_from(line.split(' '))
            .unwrap()
            .command
            .unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_may_come_after_the_id() {
        let Command::Create(create) = parse("runlxc create c1 --bundle /b --pid-file /p") else {
            panic!()
        };
        assert_eq!(
            (create.container_id.as_str(), create.bundle),
            ("c1", "/b".into())
        );
        let Command::Kill(kill) = parse("runlxc kill c1 --all 9") else {
            panic!()
        };
        assert_eq!((kill.signal.as_str(), kill.all), ("9", true));
        let Command::Delete(delete) = parse("runlxc delete c1 -f") else {
            panic!()
        };
        assert!(delete.force);
    }

    #[test]
    fn what_follows_the_id_of_an_exec_is_its_command() {
        let Command::Exec(exec) = parse("runlxc exec -t -u 1:2 --cap CAP_KILL c1 sh -c -t --user")
        else {
            panic!()
        };
        assert_eq!(exec.command, ["sh", "-c", "-t", "--user"]);
        assert_eq!((exec.tty, exec.user.as_deref()), (true, Some("1:2")));
        let Command::Exec(exec) = parse("runlxc exec c1 -x") else {
            panic!()
        };
        assert_eq!(exec.command, ["-x"]);
    }
}
