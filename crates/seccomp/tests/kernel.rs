//! The kernel takes our programs and does what they say. A filter belongs to a thread: each test
//! loads its own in one, and that thread ends with it.

use nix::errno::Errno;
use nix::sys::personality::{self, Persona};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::sethostname;
use seccomp::{Action, Arch, Arg, Operator, Profile, Rule, compile};
use seccompiler::{apply_filter, sock_filter};

fn rule(names: &[&str], action: Action, errno_ret: Option<u32>, args: Vec<Arg>) -> Rule {
    Rule {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        action,
        errno_ret,
        args,
    }
}

fn profile(default_action: Action, rules: Vec<Rule>) -> Profile {
    let architectures = vec![Arch::X86_64, Arch::X86, Arch::X32];
    Profile {
        default_action,
        default_errno: None,
        architectures,
        rules,
        flags: Vec::new(),
    }
}

/// Runs `probe` in a thread under the filter.
fn under<T: Send + 'static>(profile: &Profile, probe: impl FnOnce() -> T + Send + 'static) -> T {
    let native = Arch::native().expect("an architecture with a table");
    let program = compile(profile, native)
        .expect("a sound profile")
        .instructions;
    let filter: Vec<sock_filter> = program
        .iter()
        .map(|i| sock_filter {
            code: i.code(),
            jt: i.jt(),
            jf: i.jf(),
            k: i.k(),
        })
        .collect();
    let thread = std::thread::spawn(move || {
        apply_filter(&filter).expect("the kernel takes the program");
        probe()
    });
    thread.join().expect("the thread ends by itself")
}

fn connect_family(family: AddressFamily) -> nix::Result<()> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)
}

#[test]
fn a_listed_call_fails_with_its_errno_and_others_pass() {
    let rules = vec![
        rule(
            &["sethostname"],
            Action::Errno,
            Some(Errno::EDOM as u32),
            vec![],
        ),
        rule(&["mkdir", "mkdirat"], Action::Errno, None, vec![]),
    ];
    let dir = std::env::temp_dir().join(format!("seccomp-kernel-{}", std::process::id()));
    let (host, made, cwd) = under(&profile(Action::Allow, rules), move || {
        (
            sethostname("never"),
            std::fs::create_dir(dir),
            std::env::current_dir(),
        )
    });
    assert_eq!(host, Err(Errno::EDOM));
    assert_eq!(
        made.map_err(|e| e.raw_os_error()),
        Err(Some(Errno::EPERM as i32))
    );
    assert!(cwd.is_ok(), "{cwd:?}");
}

#[test]
fn arguments_decide() {
    const READ_IMPLIES_EXEC: u64 = 0x0040_0000;
    let arg = |index, op, value, value_two| Arg {
        index,
        value,
        value_two,
        op,
    };
    let unix = AddressFamily::Unix as u64;
    let rules = vec![
        rule(
            &["socket"],
            Action::Errno,
            Some(Errno::EACCES as u32),
            vec![arg(0, Operator::NotEqual, unix, 0)],
        ),
        rule(
            &["personality"],
            Action::Errno,
            Some(Errno::EXDEV as u32),
            vec![arg(
                0,
                Operator::MaskedEqual,
                READ_IMPLIES_EXEC,
                READ_IMPLIES_EXEC,
            )],
        ),
    ];
    let (local, inet, plain, masked) = under(&profile(Action::Allow, rules), || {
        (
            connect_family(AddressFamily::Unix),
            connect_family(AddressFamily::Inet),
            personality::set(Persona::ADDR_NO_RANDOMIZE),
            personality::set(Persona::ADDR_NO_RANDOMIZE | Persona::READ_IMPLIES_EXEC),
        )
    });
    assert_eq!((local, inet), (Ok(()), Err(Errno::EACCES)));
    assert_eq!((plain.err(), masked.err()), (None, Some(Errno::EXDEV)));
}

#[test]
fn only_what_is_listed_passes_when_the_default_refuses() {
    // What a thread needs to allocate, answer and end; no table of a real profile.
    let needed = [
        "read",
        "write",
        "close",
        "mmap",
        "munmap",
        "mprotect",
        "madvise",
        "brk",
        "futex",
        "exit",
        "rt_sigprocmask",
        "rt_sigaction",
        "sigaltstack",
        "getrandom",
        "sched_yield",
        "getpid",
        "set_robust_list",
        "rseq",
        "getcwd",
        "gettid",
        "clock_gettime",
        "mremap",
    ];
    let rules = vec![rule(&needed, Action::Allow, None, vec![])];
    let (cwd, host, file) = under(&profile(Action::Errno, rules), || {
        (
            std::env::current_dir().is_ok(),
            sethostname("never"),
            std::fs::metadata("/").err(),
        )
    });
    assert!(cwd);
    assert_eq!(host, Err(Errno::EPERM));
    assert!(file.is_some(), "stat is not listed");
}

#[test]
fn the_kernel_takes_thousands_of_rules_about_one_argument() {
    let errno = Some(Errno::EXDEV as u32);
    let rules = (0x100_0000..0x100_0000 + 2000)
        .map(|value| {
            let equal = Arg {
                index: 0,
                value,
                value_two: 0,
                op: Operator::Equal,
            };
            rule(&["personality"], Action::Errno, errno, vec![equal])
        })
        .collect();
    let only_native = Profile {
        architectures: Vec::new(),
        ..profile(Action::Allow, rules)
    };
    let asked = [0x100_0000, 0x100_07cf, 0x100_07d0].map(Persona::from_bits_retain);
    let answers = under(&only_native, move || {
        asked.map(|p| personality::set(p).err())
    });
    assert_eq!(answers, [Some(Errno::EXDEV), Some(Errno::EXDEV), None]);
}
