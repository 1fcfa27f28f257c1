//! Starting programs: the whole child is prepared before the fork; must not wait for it to end.
//!
//! The child between fork and execve calls only async-signal-safe functions and allocates
//! nothing, so any thread of any process may spawn.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::child::Child;
use crate::fork::{clone_into, clone_with, fork};
use crate::pointers::Pointers;
use crate::report::{
    BIRTH_LIMIT, CGROUPS, CHDIR, CLOCKS, EXECVE, FILE_LIMIT, MOVE_FDS, PDEATHSIG, PROFILE,
    RECORD_BYTES, SETNS, SETSID, SIGNALS, UNSHARE, USER, has_no_reader, read_record,
    readable_within, reap_failed, running_soon,
};
use crate::user::User;
use crate::{fd, process, raw};

/// A descriptor for a program: given away, or lent until the spawn is over.
#[derive(Debug)]
pub enum Source<'a> {
    /// Closed in this process after the spawn.
    Owned(OwnedFd),
    /// Stays open in this process.
    Borrowed(BorrowedFd<'a>),
}

impl From<OwnedFd> for Source<'_> {
    fn from(fd: OwnedFd) -> Self {
        Self::Owned(fd)
    }
}

impl<'a> From<BorrowedFd<'a>> for Source<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        Self::Borrowed(fd)
    }
}

impl AsFd for Source<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Owned(fd) => fd.as_fd(),
            Self::Borrowed(fd) => *fd,
        }
    }
}

/// A program to start.
///
/// It gets the descriptors given here and no others, default signal actions, an empty signal
/// mask, and `/dev/null` for the standard streams that are not given.
#[derive(Debug)]
#[must_use]
pub struct Spawn<'a> {
    program: PathBuf,
    argv0: Option<OsString>,
    args: Vec<OsString>,
    env: Option<Vec<(OsString, OsString)>>,
    fds: Vec<(RawFd, Source<'a>)>,
    cwd: Option<PathBuf>,
    session: Session,
    user: Option<User>,
    cgroups: Vec<OwnedFd>,
    file_bytes_max: Option<u64>,
    huge_pages: HugePages,
    namespaces: Vec<(OwnedFd, CloneFlags)>,
    clone: CloneFlags,
    unshare: CloneFlags,
    time_offsets: String,
    pdeath_signal: Option<Signal>,
    apparmor_profile: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Inherit,
    New,
}

/// Whether its memory may be huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HugePages {
    AsAsked,
    Never,
}

impl<'a> Spawn<'a> {
    /// The program at that path; `PATH` is not searched.
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            argv0: None,
            args: Vec::new(),
            env: None,
            fds: Vec::new(),
            cwd: None,
            session: Session::Inherit,
            user: None,
            cgroups: Vec::new(),
            file_bytes_max: None,
            huge_pages: HugePages::AsAsked,
            namespaces: Vec::new(),
            clone: CloneFlags::empty(),
            unshare: CloneFlags::empty(),
            time_offsets: String::new(),
            pdeath_signal: None,
            apparmor_profile: None,
        }
    }

    /// argv\[0\]; else the program's path.
    pub fn argv0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.argv0 = Some(name.as_ref().to_owned());
        self
    }

    /// More arguments after argv\[0\].
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// The whole environment; else it inherits ours.
    pub fn env_clear_set(mut self, env: Vec<(OsString, OsString)>) -> Self {
        self.env = Some(env);
        self
    }

    /// Lets the program have a descriptor under exactly that number.
    pub fn fd(mut self, target: RawFd, source: impl Into<Source<'a>>) -> Self {
        self.fds.retain(|(number, _)| *number != target);
        self.fds.push((target, source.into()));
        self
    }

    /// Standard input; else `/dev/null`.
    pub fn stdin(self, fd: impl Into<Source<'a>>) -> Self {
        self.fd(libc::STDIN_FILENO, fd)
    }

    /// Standard output; else `/dev/null`.
    pub fn stdout(self, fd: impl Into<Source<'a>>) -> Self {
        self.fd(libc::STDOUT_FILENO, fd)
    }

    /// Standard error; else `/dev/null`.
    pub fn stderr(self, fd: impl Into<Source<'a>>) -> Self {
        self.fd(libc::STDERR_FILENO, fd)
    }

    /// Working directory, looked up after namespaces are joined; else ours.
    pub fn cwd(mut self, directory: &Path) -> Self {
        self.cwd = Some(directory.to_owned());
        self
    }

    /// Makes it the leader of a session without a controlling terminal.
    pub fn new_session(mut self) -> Self {
        self.session = Session::New;
        self
    }

    /// Has it run as that user, instead of the caller.
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Has it move itself into cgroups before anything else, by writing `0` to these files (`tasks`, or
    /// `cgroup.procs` of version 2): there is no moment at which it is elsewhere. In a frozen one it is killed after
    /// a few seconds.
    pub fn enter_cgroups(mut self, files: Vec<OwnedFd>) -> Self {
        self.cgroups = files;
        self
    }

    /// How many bytes a file may get that it writes (RLIMIT_FSIZE, soft and hard): beyond that it is killed by
    /// SIGXFSZ. As the first process of a pid namespace it is not, unless it handles that signal (pid_namespaces(7)):
    /// its writes fail with EFBIG.
    pub fn limit_file_size(mut self, bytes: u64) -> Self {
        self.file_bytes_max = Some(bytes);
        self
    }

    /// Gives it no transparent huge pages, whatever it asks for, so that it has the memory it touches and no more
    /// (PR_SET_THP_DISABLE, kernel 3.15; before, it has them).
    pub fn without_huge_pages(mut self) -> Self {
        self.huge_pages = HugePages::Never;
        self
    }

    /// Makes a pid namespace in which it is the first process (kernel 2.6.24).
    pub fn new_pid_namespace(mut self) -> Self {
        self.clone |= CloneFlags::CLONE_NEWPID;
        self
    }

    /// Joins namespaces by setns(2) (kernel 3.0) in that order. A pid namespace holds its children,
    /// not itself.
    pub fn join_namespaces(mut self, namespaces: Vec<(OwnedFd, CloneFlags)>) -> Self {
        self.namespaces = namespaces;
        self
    }

    /// Makes new namespaces by unshare(2), after those to join.
    pub fn unshare(mut self, flags: CloneFlags) -> Self {
        self.unshare |= flags;
        self
    }

    /// Makes a time namespace (kernel 5.6) for its children; `offsets` as in time_namespaces(7).
    pub fn time_namespace(mut self, offsets: &str) -> Self {
        self.unshare |= CloneFlags::from_bits_retain(CLONE_NEWTIME);
        self.time_offsets = offsets.to_owned();
        self
    }

    /// Sends it that signal when the *thread* that spawns it ends. When this process ends before that is
    /// arranged, it does not become the program.
    pub fn pdeath_signal(mut self, signal: Signal) -> Self {
        self.pdeath_signal = Some(signal);
        self
    }

    /// Runs it under that AppArmor profile, whatever profile is attached to its path.
    pub fn apparmor_profile(mut self, name: &str) -> Self {
        self.apparmor_profile = Some(name.to_owned());
        self
    }

    /// Starts it; when this returns, the program runs.
    ///
    /// # Errors
    /// The errno of execve(2) itself; the errno of an earlier step as the source of an error that
    /// names the step; `InvalidInput` for a NUL byte in a string; `TimedOut` when it does not run in its cgroups.
    pub fn spawn(self) -> io::Result<Child> {
        let wait = |report: BorrowedFd<'_>| self.wait_for_entry(report);
        match self.clone.is_empty() {
            true => self.spawn_by(fork, wait),
            false => self.spawn_by(|run| clone_with(self.clone, run), wait),
        }
    }

    /// Only a cgroup can keep it from getting on.
    fn wait_for_entry(&self, report: BorrowedFd<'_>) -> io::Result<()> {
        match self.cgroups.is_empty() {
            true => Ok(()),
            false => running_soon(report),
        }
    }

    /// Starts it in a cgroup of version 2, whose directory is given, where that works: from Linux
    /// 5.7, unless the cgroup takes no processes, or lets none run. It says where the program runs.
    ///
    /// # Errors
    /// As [`Spawn::spawn`].
    pub fn spawn_into_cgroup(self, directory: BorrowedFd<'_>) -> io::Result<(Child, Place)> {
        let into = |run: &mut dyn FnMut() -> Infallible| clone_into(directory, self.clone, run);
        match self.spawn_by(into, |report| readable_within(report, BIRTH_LIMIT)) {
            Ok(child) => Ok((child, Place::Inside)),
            // Whatever else is wrong with it comes again.
            Err(_refused) => Ok((self.spawn()?, Place::Outside)),
        }
    }

    fn spawn_by(
        &self,
        fork: impl FnOnce(&mut dyn FnMut() -> Infallible) -> io::Result<Child>,
        wait: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Child> {
        let mut prepared = Prepared::new(self)?;
        let (mut report, child_report) = crate::pipe_cloexec()?;
        prepared.report = child_report.as_raw_fd();
        prepared.listener = report.as_raw_fd();
        let child = fork(&mut || run(&mut prepared))?;
        drop(child_report);
        wait(report.as_fd())?;
        let mut record = [0; RECORD_BYTES];
        match read_record(&mut report, &mut record)? {
            0 => Ok(child),
            _ => Err(reap_failed(child, record)),
        }
    }
}

/// Where a program was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the cgroup that was asked for.
    Inside,
    /// In the cgroup of this process.
    Outside,
}

/// Everything the child needs, in the form in which the kernel takes it.
struct Prepared {
    program: CString,
    argv: Pointers,
    envp: Pointers,
    cwd: Option<CString>,
    /// Target number, source number; the second is overwritten in the child.
    fds: Vec<(RawFd, RawFd)>,
    /// One above every target.
    above: RawFd,
    session: Session,
    user: Option<User>,
    cgroups: Vec<RawFd>,
    file_limit: Option<[libc::c_ulong; 2]>,
    huge_pages: HugePages,
    namespaces: Vec<(RawFd, libc::c_int)>,
    unshare: libc::c_int,
    time_offsets: String,
    pdeath_signal: Option<libc::c_ulong>,
    /// Who we are to the child; nobody where it is in a pid namespace of its own.
    parent: Option<Pid>,
    /// What to write to one of [`PROFILE_FILES`].
    change_profile: Option<String>,
    /// Where the child writes why it failed.
    report: RawFd,
    /// Where we read that.
    listener: RawFd,
    /// Owns the number in `fds` for standard streams that were not given, if any.
    _null: Option<OwnedFd>,
}

impl Prepared {
    fn new(spawn: &Spawn<'_>) -> io::Result<Self> {
        let bytes = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let name = spawn
            .argv0
            .clone()
            .unwrap_or_else(|| spawn.program.clone().into());
        let argv = [name].into_iter().chain(spawn.args.iter().cloned());
        let env = match &spawn.env {
            Some(env) => env.clone(),
            None => std::env::vars_os().collect(),
        };
        let mut fds: Vec<_> = spawn
            .fds
            .iter()
            .map(|(target, source)| (*target, source.as_fd().as_raw_fd()))
            .collect();
        let null = add_missing_streams(&mut fds)?;
        let above = fds.iter().map(|(target, _)| target + 1).max().unwrap_or(3);
        Ok(Self {
            program: bytes(&spawn.program)?,
            argv: Pointers::new(argv.map(OsStringExt::into_vec))?,
            envp: Pointers::new(env.into_iter().map(|(key, value)| assignment(key, &value)))?,
            cwd: spawn.cwd.as_deref().map(bytes).transpose()?,
            fds,
            above,
            session: spawn.session,
            user: spawn.user.clone(),
            cgroups: spawn.cgroups.iter().map(AsRawFd::as_raw_fd).collect(),
            file_limit: spawn.file_bytes_max.map(|bytes| [bytes, bytes]),
            huge_pages: spawn.huge_pages,
            namespaces: spawn
                .namespaces
                .iter()
                .map(|(fd, flags)| (fd.as_raw_fd(), flags.bits()))
                .collect(),
            unshare: spawn.unshare.bits(),
            time_offsets: spawn.time_offsets.clone(),
            pdeath_signal: spawn
                .pdeath_signal
                .map(|signal| (signal as i32).unsigned_abs().into()),
            parent: (!spawn.clone.contains(CloneFlags::CLONE_NEWPID)).then(Pid::this),
            change_profile: spawn
                .apparmor_profile
                .as_ref()
                .map(|name| format!("exec {name}")),
            report: -1,
            listener: -1,
            _null: null,
        })
    }
}

/// Lets standard streams that have no source be `/dev/null`, which is open as long as what is given.
fn add_missing_streams(fds: &mut Vec<(RawFd, RawFd)>) -> io::Result<Option<OwnedFd>> {
    let mut missing = vec![libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    missing.retain(|stream| !fds.iter().any(|(target, _)| target == stream));
    if missing.is_empty() {
        return Ok(None);
    }
    let mut options = std::fs::OpenOptions::new();
    let null = OwnedFd::from(options.read(true).write(true).open("/dev/null")?);
    fds.extend(missing.iter().map(|stream| (*stream, null.as_raw_fd())));
    Ok(Some(null))
}

fn assignment(key: OsString, value: &OsStr) -> Vec<u8> {
    let mut bytes = key.into_vec();
    bytes.push(b'=');
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// linux/sched.h; nix has no name for it.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// Where a process asks for the profile of its next program: AppArmor's own file since 5.8, else
/// the one that all security modules share.
const PROFILE_FILES: [&CStr; 2] = [c"/proc/self/attr/apparmor/exec", c"/proc/self/attr/exec"];

/// The child. Everything from here to the end of the process is async-signal-safe.
fn run(prepared: &mut Prepared) -> Infallible {
    let (step, errno) = match become_program(prepared) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let [a, b, c, d] = errno.to_ne_bytes();
    let record = [step, a, b, c, d];
    // SAFETY: pointer and length describe `record`, which the call only reads.
    unsafe { libc::write(prepared.report, record.as_ptr().cast(), record.len()) };
    // SAFETY: _exit runs no code of ours and does not return.
    unsafe { libc::_exit(127) }
}

/// Turns into the program, or gives the failed step and its errno.
fn become_program(prepared: &mut Prepared) -> Result<Infallible, (u8, i32)> {
    // Ours alone to have: see `die_with_parent`.
    raw::close(prepared.listener);
    for file in &prepared.cgroups {
        write_and_close(CGROUPS, *file, b"0")?;
    }
    if let Some(limit) = &prepared.file_limit {
        let resource = libc::c_long::from(libc::RLIMIT_FSIZE);
        // SAFETY: `limit` has the layout of the kernel's struct rlimit; the call only reads it.
        let done = unsafe { libc::syscall(libc::SYS_setrlimit, resource, limit.as_ptr()) };
        check(FILE_LIMIT, if done < 0 { -1 } else { 0 })?;
    }
    if prepared.huge_pages == HugePages::Never {
        // A kernel that does not know it has nothing to be told.
        // SAFETY: prctl takes numbers here and touches no memory.
        let _unknown = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    }
    if let Some(change) = &prepared.change_profile {
        change_profile(change.as_bytes())?;
    }
    if prepared.session == Session::New {
        // SAFETY: setsid has no arguments.
        check(SETSID, unsafe { libc::setsid() })?;
    }
    for (fd, flags) in &prepared.namespaces {
        // SAFETY: setns takes two numbers and touches no memory.
        check(SETNS, unsafe { libc::setns(*fd, *flags) })?;
    }
    if prepared.unshare != 0 {
        // SAFETY: unshare takes a number and touches no memory of ours.
        check(UNSHARE, unsafe { libc::unshare(prepared.unshare) })?;
    }
    if !prepared.time_offsets.is_empty() {
        // Before the first process is in it.
        let file = open_to_write(CLOCKS, c"/proc/self/timens_offsets")?;
        write_and_close(CLOCKS, file, prepared.time_offsets.as_bytes())?;
    }
    if let Some(cwd) = &prepared.cwd {
        // SAFETY: the path is NUL-terminated; the call only reads it.
        check(CHDIR, unsafe { libc::chdir(cwd.as_ptr()) })?;
    }
    move_fds(prepared)?;
    if let Some(user) = &prepared.user {
        user.wear().map_err(|errno| (USER, errno))?;
    }
    if let Some(signal) = prepared.pdeath_signal {
        die_with_parent(signal, prepared)?;
    }
    process::signals_to_default();
    check(SIGNALS, process::unblock_signals())?;
    let (argv, envp) = (prepared.argv.array.as_ptr(), prepared.envp.array.as_ptr());
    // SAFETY: path and strings are NUL-terminated, both arrays end with NULL.
    unsafe { libc::execve(prepared.program.as_ptr(), argv, envp) };
    Err((EXECVE, raw::errno()))
}

/// Has the signal come when the parent ends. The kernel forgets it when a process becomes another user
/// (prctl(2)), so this is behind that.
fn die_with_parent(signal: libc::c_ulong, prepared: &Prepared) -> Result<(), (u8, i32)> {
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
    check(PDEATHSIG, unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0)
    })?;
    let is_orphan = match prepared.parent {
        // SAFETY: getppid has no arguments and cannot fail.
        Some(parent) => parent.as_raw() != unsafe { libc::getppid() },
        // In a pid namespace of its own it has no parent, dead or alive; but who made it listens.
        None => has_no_reader(prepared.report),
    };
    if is_orphan {
        // The parent died before the call: no signal will come.
        return Err((PDEATHSIG, libc::ESRCH));
    }
    Ok(())
}

/// Before namespaces are joined, where `/proc` may be another.
fn change_profile(change: &[u8]) -> Result<(), (u8, i32)> {
    let [new, old] = PROFILE_FILES;
    let file = open_to_write(PROFILE, new).or_else(|_failure| open_to_write(PROFILE, old))?;
    write_and_close(PROFILE, file, change)
}

fn open_to_write(step: u8, path: &CStr) -> Result<RawFd, (u8, i32)> {
    // SAFETY: the path is NUL-terminated; the call only reads it.
    check(step, unsafe {
        libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)
    })
}

fn write_and_close(step: u8, file: RawFd, text: &[u8]) -> Result<(), (u8, i32)> {
    // SAFETY: pointer and length describe `text`, which the call only reads.
    let written = unsafe { libc::write(file, text.as_ptr().cast(), text.len()) };
    let failed = Err((step, raw::errno()));
    raw::close(file);
    if written < 0 { failed } else { Ok(()) }
}

/// Puts every source under its target. First all sources move above all targets, so that none
/// is overwritten before its turn; then whatever is open is close-on-exec; then the targets are
/// made, which dup2(2) makes stay open.
fn move_fds(prepared: &mut Prepared) -> Result<(), (u8, i32)> {
    let above = prepared.above.max(3);
    prepared.report = duplicate_above(prepared.report, above)?;
    for (_, source) in &mut prepared.fds {
        *source = duplicate_above(*source, above)?;
    }
    fd::close_on_exec_from(3).map_err(|errno| (MOVE_FDS, errno))?;
    for (target, source) in &prepared.fds {
        // SAFETY: dup2 takes two numbers; what it closes belongs to the child alone.
        check(MOVE_FDS, unsafe { libc::dup2(*source, *target) })?;
    }
    Ok(())
}

fn duplicate_above(fd: RawFd, least: RawFd) -> Result<RawFd, (u8, i32)> {
    // SAFETY: F_DUPFD_CLOEXEC takes numbers and touches no memory.
    check(MOVE_FDS, unsafe {
        libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least)
    })
}

fn check(step: u8, result: libc::c_int) -> Result<libc::c_int, (u8, i32)> {
    if result < 0 {
        return Err((step, raw::errno()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use nix::sys::signal::SigSet;

    use super::*;
    use crate::{ExitStatus, pipe_cloexec};

    const SH: &str = "/bin/sh";

    /// For what happens at once on a quiet host.
    const LIMIT: Duration = Duration::from_secs(60);

    fn sh(script: &str) -> Spawn<'static> {
        Spawn::new(Path::new(SH)).args(["-c", script])
    }

    /// What the program writes to standard output, and how it ended.
    fn output(spawn: Spawn<'_>) -> (String, ExitStatus) {
        let (reader, writer) = pipe_cloexec().unwrap();
        let mut child = spawn.stdout(writer).spawn().unwrap();
        let text = io::read_to_string(File::from(reader)).unwrap();
        (text, child.wait().unwrap())
    }

    fn pipe_with(text: &str) -> OwnedFd {
        let (reader, writer) = pipe_cloexec().unwrap();
        File::from(writer).write_all(text.as_bytes()).unwrap();
        reader
    }

    #[test]
    fn program_sees_its_arguments_environment_and_directory() {
        let env = [("A", "1"), ("B", "x y")].map(|(key, value)| (key.into(), value.into()));
        let spawn = sh("echo \"$0 $1 $A $B $PATH_OF_OURS\"; pwd; cat")
            .args(["zero", "one"])
            .env_clear_set(env.into())
            .cwd(Path::new("/proc"));
        let (text, status) = output(spawn);
        assert_eq!(text, "zero one 1 x y \n/proc\n");
        assert_eq!(status, ExitStatus::Exited(0));
        let (text, _) = output(sh("tr '\\0' ' ' < /proc/$$/cmdline").argv0("name"));
        assert!(text.starts_with("name -c "), "{text}");
        let (text, _) = output(sh("echo $PATH"));
        let ours = std::env::var("PATH").unwrap();
        assert_eq!(text.trim_end(), ours);
    }

    #[test]
    fn descriptors_may_swap_places_and_no_others_come_along() {
        let (one, two) = (pipe_with("one"), pipe_with("two"));
        let (first, second) = (one.as_raw_fd(), two.as_raw_fd());
        let leak = File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(
            &leak,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let script = format!("cd /proc/$$/fd; cat {first}; cat {second}; ls");
        let (text, _) = output(sh(&script).fd(second, one).fd(first, two.as_fd()));
        let mut expected = [0, 1, 2, first, second];
        expected.sort_unstable();
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        let mut listed: Vec<_> = text.strip_prefix("twoone").unwrap().lines().collect();
        listed.sort_by_key(|number| number.parse::<i32>().unwrap());
        assert_eq!(listed, expected);
        // What was lent is open here still.
        assert!(nix::fcntl::fcntl(&two, nix::fcntl::FcntlArg::F_GETFD).is_ok());
    }

    #[test]
    fn a_profile_that_cannot_be_had_is_no_program_without_it() {
        // Not loaded, or no AppArmor at all.
        let error = sh("exit 0")
            .apparmor_profile("pouch-no-such-profile")
            .spawn()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "change the AppArmor profile in the new process"
        );
    }

    #[test]
    fn streams_not_given_are_null() {
        let (text, _) = output(sh("readlink /proc/$$/fd/0 /proc/$$/fd/2"));
        assert_eq!(text, "/dev/null\n/dev/null\n");
    }

    #[test]
    fn signals_are_as_a_new_program_expects_them() {
        // Rust ignores SIGPIPE in this process.
        let (_, status) = output(sh("kill -PIPE $$"));
        assert_eq!(status, ExitStatus::Signaled(libc::SIGPIPE));
        let script = "grep -E '^Sig(Blk|Ign):' /proc/self/status";
        let thread = std::thread::spawn(move || {
            SigSet::all().thread_block().unwrap();
            let result = output(sh(script));
            let blocked = SigSet::thread_get_mask().unwrap();
            assert!(
                blocked.contains(Signal::SIGTERM),
                "our own mask is untouched"
            );
            result
        });
        let (text, _) = thread.join().unwrap();
        let none = "0000000000000000";
        assert_eq!(text, format!("SigBlk:\t{none}\nSigIgn:\t{none}\n"));
    }

    #[test]
    fn refusal_of_execve_is_its_errno_and_of_other_steps_has_their_name() {
        let check = |spawn: Spawn<'_>, errno: i32| {
            let error = spawn.spawn().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno), "{error}");
        };
        check(Spawn::new(Path::new("/no/such/program")), libc::ENOENT);
        check(Spawn::new(Path::new("/")), libc::EACCES);
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        // Made by another process: a copy of our table in a child of another test, open for
        // writing, would be ETXTBSY.
        let made = format!("echo no format > {0}; chmod 755 {0}", script.display());
        assert_eq!(output(sh(&made)).1, ExitStatus::Exited(0));
        check(Spawn::new(&script), libc::ENOEXEC);

        let error = sh("")
            .cwd(Path::new("/no/such/folder"))
            .spawn()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(error.to_string(), "chdir in the new process");
        let error = sh("a\0b").spawn().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn namespaces_are_made_and_joined() {
        let uts = "readlink /proc/self/ns/uts";
        let ours = fs::read_link("/proc/self/ns/uts").unwrap();
        let (told, stdout) = pipe_cloexec().unwrap();
        let (stdin, hold) = pipe_cloexec().unwrap();
        let child = sh(&format!("{uts}; exec >&-; read x"))
            .unshare(CloneFlags::CLONE_NEWUTS)
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .unwrap();
        let theirs = io::read_to_string(File::from(told)).unwrap();
        assert_ne!(Path::new(theirs.trim_end()), ours);
        let file = File::open(format!("/proc/{}/ns/uts", child.pid())).unwrap();
        let join = vec![(file.into(), CloneFlags::CLONE_NEWUTS)];
        let (joined, _) = output(sh(uts).join_namespaces(join));
        assert_eq!(joined, theirs);
        drop(hold);

        let wrong = vec![(File::open("/dev/null").unwrap().into(), CloneFlags::empty())];
        let error = sh("").join_namespaces(wrong).spawn().unwrap_err();
        assert_eq!(error.to_string(), "setns in the new process");
    }

    #[test]
    fn files_that_it_writes_are_limited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut child = sh("printf 12345678; printf 9")
            .limit_file_size(8)
            .stdout(OwnedFd::from(File::create(&path).unwrap()))
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Signaled(libc::SIGXFSZ));
        assert_eq!(fs::read(&path).unwrap(), b"12345678");

        let mut first = sh("printf 12345678; printf 9; exit 7")
            .new_pid_namespace()
            .limit_file_size(8)
            .stdout(OwnedFd::from(File::create(&path).unwrap()))
            .spawn()
            .unwrap();
        assert_eq!(first.wait().unwrap(), ExitStatus::Exited(7));
        assert_eq!(fs::read(&path).unwrap(), b"12345678");
    }

    #[test]
    fn it_is_the_first_of_a_pid_namespace_of_its_own() {
        let spawn = sh("echo $$; readlink /proc/self/ns/pid").new_pid_namespace();
        let (text, status) = output(spawn.pdeath_signal(Signal::SIGKILL));
        assert_eq!(status, ExitStatus::Exited(0));
        let ours = fs::read_link("/proc/self/ns/pid").unwrap();
        let (pid, namespace) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(pid, "1");
        assert_ne!(Path::new(namespace), ours);
    }

    #[test]
    fn it_is_in_its_cgroups_before_it_runs_or_does_not_run() {
        let _alone = FREEZING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = cgroup() {
            let procs = || {
                let file = File::options().write(true).open(path.join("cgroup.procs"));
                vec![OwnedFd::from(file.unwrap())]
            };
            let (text, _) = output(sh("grep ^0: /proc/self/cgroup").enter_cgroups(procs()));
            let gone = procs();
            fs::remove_dir(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(text, format!("0::/{name}\n"));
            let error = sh("exit 0").enter_cgroups(gone).spawn().unwrap_err();
            assert_eq!(error.to_string(), "enter its cgroups in the new process");
        }
    }

    #[test]
    fn below_a_frozen_cgroup_it_is_not_waited_for_for_ever() {
        let _alone = FREEZING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = cgroup() {
            let below = path.join("below");
            fs::create_dir(&below).unwrap();
            fs::write(path.join("cgroup.freeze"), "1").unwrap();
            let procs = File::options().write(true).open(below.join("cgroup.procs"));
            let spawn = sh("exit 0").enter_cgroups(vec![procs.unwrap().into()]);
            let error = spawn.spawn().unwrap_err();
            // It is gone, else this would be EBUSY.
            fs::remove_dir(&below).unwrap();
            fs::remove_dir(&path).unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let error = error.to_string();
            assert!(error.contains("may be frozen"), "{error}");
        }
    }

    #[test]
    fn huge_pages_are_kept_from_it_when_asked_to() {
        let enabled = |spawn: Spawn<'_>| output(spawn).0.trim().to_owned();
        let script = "grep THP_enabled /proc/self/status";
        assert_eq!(enabled(sh(script)), "THP_enabled:\t1");
        assert_eq!(enabled(sh(script).without_huge_pages()), "THP_enabled:\t0");
    }

    #[test]
    fn clocks_of_children_are_set_off() {
        let offsets = "cat /proc/self/timens_offsets; :";
        let (text, status) = output(sh(offsets).time_namespace("boottime 1000 5\nmonotonic -7 0"));
        assert_eq!(status, ExitStatus::Exited(0));
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        assert_eq!(words, ["monotonic", "-7", "0", "boottime", "1000", "5"]);
        let error = sh("").time_namespace("nonsense").spawn().unwrap_err();
        assert_eq!(error.to_string(), "set clocks off in the new process");
    }

    #[test]
    fn another_user_has_its_groups_and_no_capability() {
        let user = User {
            uid: 1234,
            gid: 1235,
            additional_gids: vec![7, 9],
        };
        let script = "id -u; id -g; id -G; grep CapEff /proc/self/status";
        let (text, _) = output(sh(script).user(user));
        assert_eq!(text, "1234\n1235\n1235 7 9\nCapEff:\t0000000000000000\n");
    }

    #[test]
    fn session_is_new_when_asked_for() {
        let session =
            "read pid name state ppid group session rest < /proc/self/stat; echo $session";
        let (text, _) = output(sh(&format!("{session}; echo $$")).new_session());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], lines[1]);
        let (text, _) = output(sh(session));
        let ours = nix::unistd::getsid(None).unwrap();
        assert_eq!(text.trim_end(), ours.to_string());
    }

    #[test]
    fn child_dies_with_the_thread_that_made_it_when_asked_to() {
        let check = |spawn: Spawn<'static>| {
            let spawn = spawn.pdeath_signal(Signal::SIGKILL);
            let mut child = std::thread::spawn(|| spawn.spawn().unwrap())
                .join()
                .unwrap();
            let status = child.wait_timeout(LIMIT).unwrap();
            assert_eq!(status, Some(ExitStatus::Signaled(libc::SIGKILL)));
        };
        let user = || User {
            uid: 1234,
            gid: 1235,
            additional_gids: Vec::new(),
        };
        let sleep = || sh("exec sleep 1000");
        check(sleep());
        check(sleep().user(user()));
        check(sleep().new_pid_namespace());
        check(sleep().user(user()).new_pid_namespace());
    }

    /// A pipe into which nothing can be written until something is read.
    fn full_pipe() -> (File, OwnedFd) {
        let (reader, writer) = pipe_cloexec().unwrap();
        let set = |flags| nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags));
        set(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        while nix::unistd::write(&writer, &[0; 4096]).is_ok() {}
        set(nix::fcntl::OFlag::empty()).unwrap();
        (reader.into(), writer)
    }

    #[test]
    fn child_whose_maker_is_dead_does_not_become_a_program_in_a_pid_namespace_either() {
        let (mut gate, shut) = full_pipe();
        let (told, stdout) = pipe_cloexec().unwrap();
        let user = User {
            uid: 1234,
            gid: 1235,
            additional_gids: Vec::new(),
        };
        let spawn = sh("echo it runs")
            .enter_cgroups(vec![shut])
            .stdout(stdout)
            .new_pid_namespace()
            .user(user)
            .pdeath_signal(Signal::SIGKILL);
        let mut prepared = Prepared::new(&spawn).unwrap();
        let mut maker = fork(&mut || {
            let flags = libc::c_long::from(libc::CLONE_NEWPID | libc::SIGCHLD);
            let mut ends = [-1; 2];
            // SAFETY: the array has room for two numbers, which the call writes.
            unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
            [prepared.listener, prepared.report] = ends;
            // SAFETY: as in `clone_with`.
            match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
                0 => run(&mut prepared),
                // SAFETY: _exit runs no code of ours and does not return.
                made => unsafe { libc::_exit(i32::from(made < 0)) },
            }
        })
        .unwrap();
        assert_eq!(maker.wait().unwrap(), ExitStatus::Exited(0));
        drop((prepared, spawn));
        // Only now is it in its cgroups.
        gate.read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(io::read_to_string(File::from(told)).unwrap(), "");
    }

    /// Held by tests that freeze a child, which then holds copies of all pipes of others, or that wait for one no
    /// longer than others freeze theirs.
    static FREEZING: Mutex<()> = Mutex::new(());

    /// A new cgroup of version 2, where the host mounts that.
    fn cgroup() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "))?;
        let mount_point = Path::new(mount.split(' ').nth(1)?);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = mount_point.join(format!("sys-spawn-{}-{number}", Pid::this()));
        fs::create_dir(&path).unwrap();
        Some(path)
    }

    #[test]
    fn program_starts_in_a_cgroup_or_where_we_are() {
        let _alone = FREEZING.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |directory: &File| {
            let (reader, writer) = pipe_cloexec().unwrap();
            let spawn = sh("grep ^0: /proc/self/cgroup; exit 3").stdout(writer);
            let (mut child, place) = spawn.spawn_into_cgroup(directory.as_fd()).unwrap();
            let text = io::read_to_string(File::from(reader)).unwrap();
            assert_eq!(child.wait().unwrap(), ExitStatus::Exited(3));
            (text, place)
        };
        let (ours, place) = told(&File::open("/").unwrap());
        assert_eq!(place, Place::Outside);
        if let Some(path) = cgroup() {
            let inside = told(&File::open(&path).unwrap());
            let first = sh("[ $$ = 1 ]").new_pid_namespace();
            let directory = File::open(&path).unwrap();
            let (mut first, place) = first.spawn_into_cgroup(directory.as_fd()).unwrap();
            assert_eq!(place, Place::Inside);
            assert_eq!(first.wait().unwrap(), ExitStatus::Exited(0));
            fs::write(path.join("cgroup.freeze"), "1").unwrap();
            let beside_frozen = told(&File::open(&path).unwrap());
            fs::remove_dir(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(inside, (format!("0::/{name}\n"), Place::Inside));
            assert!(!ours.contains(name));
            assert_eq!(beside_frozen, (ours, Place::Outside));
        }
        let refused = Spawn::new(Path::new("/nowhere"));
        let root = File::open("/").unwrap();
        let refused = refused.spawn_into_cgroup(root.as_fd());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn kernel_2_6_32_is_enough() {
        crate::old_kernel::in_thread(|| {
            let leak = File::open("/dev/null").unwrap();
            let keep = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
            nix::fcntl::fcntl(&leak, keep).unwrap();
            let script = "ls /proc/$$/fd; uname -r";
            let spawn = sh(script).new_session().pdeath_signal(Signal::SIGKILL);
            let (text, status) = output(spawn);
            assert!(text.starts_with("0\n1\n2\n2.6."), "{text}");
            assert_eq!(status, ExitStatus::Exited(0));
            let root = File::open("/").unwrap();
            let spawned = sh("exit 3").spawn_into_cgroup(root.as_fd());
            assert_eq!(spawned.unwrap().1, Place::Outside);
        });
    }

    #[test]
    fn many_threads_spawn_at_once() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for round in 0..20 {
                        let text = format!("{thread}.{round}");
                        let (told, _) = output(sh(&format!("echo {text}")));
                        assert_eq!(told.trim_end(), text);
                    }
                });
            }
        });
    }
}
