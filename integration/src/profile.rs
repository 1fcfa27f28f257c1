//! Kernel profiles: a command runs as if the kernel were old.
//!
//! A seccomp filter answers ENOSYS to system calls the version lacks and EINVAL to prctl options
//! and clone flags it does not know; the personality UNAME26 gives a 2.6 release. What a filter
//! cannot show (flags that old kernels ignored in silence) is left to guests and unit tests.

use std::{ffi::OsString, io, os::unix::process::CommandExt, str::FromStr};

use anyhow::{Context, Result};

use crate::process::command;

/// PER_LINUX with UNAME26 (include/uapi/linux/personality.h).
const UNAME26: u64 = 0x0002_0000;

const PR_SET_SECCOMP: u32 = 22;
const PR_SET_CHILD_SUBREAPER: u32 = 36;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const PR_GET_NO_NEW_PRIVS: u32 = 39;
const PR_CAP_AMBIENT: u32 = 47;

const CLONE_NEWCGROUP: u32 = 0x0200_0000;
const CLONE_NEWUSER: u32 = 0x1000_0000;

/// x86-64 numbers of the system calls that the filter looks into.
const SYS_CLONE: u32 = 56;
const SYS_PRCTL: u32 = 157;
const SYS_UNSHARE: u32 = 272;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// What a kernel version answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// The last x86-64 system call number it has.
    pub last_call: u32,
    /// Calls above that which its vendor brought back.
    pub more_calls: &'static [u32],
    /// prctl(2) options it does not know.
    pub no_prctl: &'static [u32],
    /// clone(2) and unshare(2) flags it does not know.
    pub no_flags: u32,
    /// Whether uname(2) says 2.6.
    pub uname26: bool,
}

/// Options of prctl(2) that came with 3.4 and later.
const PRCTL_SINCE_3_4: &[u32] = &[
    PR_SET_SECCOMP,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NO_NEW_PRIVS,
    PR_GET_NO_NEW_PRIVS,
    PR_CAP_AMBIENT,
];

/// Every profile, oldest first. Numbers: the syscall tables of the versions; rhel6 as measured on
/// 2.6.32-642.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "2.6.32",
        last_call: 298,
        more_calls: &[],
        no_prctl: PRCTL_SINCE_3_4,
        no_flags: CLONE_NEWUSER | CLONE_NEWCGROUP,
        uname26: true,
    },
    Profile {
        name: "rhel6",
        last_call: 299,
        // clock_adjtime, syncfs, sendmmsg, setns, process_vm_readv, process_vm_writev.
        more_calls: &[305, 306, 307, 308, 310, 311],
        no_prctl: &[PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT],
        no_flags: CLONE_NEWUSER | CLONE_NEWCGROUP,
        uname26: true,
    },
    Profile {
        name: "3.2",
        last_call: 311,
        more_calls: &[],
        no_prctl: PRCTL_SINCE_3_4,
        no_flags: CLONE_NEWUSER | CLONE_NEWCGROUP,
        uname26: false,
    },
    Profile {
        name: "3.10",
        last_call: 313,
        more_calls: &[],
        no_prctl: &[PR_CAP_AMBIENT],
        no_flags: CLONE_NEWCGROUP,
        uname26: false,
    },
    Profile {
        name: "4.4",
        last_call: 325,
        more_calls: &[],
        no_prctl: &[],
        no_flags: CLONE_NEWCGROUP,
        uname26: false,
    },
    Profile {
        name: "4.19",
        last_call: 334,
        more_calls: &[],
        no_prctl: &[],
        no_flags: 0,
        uname26: false,
    },
    Profile {
        name: "5.10",
        last_call: 440,
        more_calls: &[],
        no_prctl: &[],
        no_flags: 0,
        uname26: false,
    },
];

impl FromStr for Profile {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        PROFILES
            .iter()
            .find(|profile| profile.name == text)
            .copied()
            .with_context(|| {
                let names: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
                format!("no kernel profile {text}: {}", names.join(", "))
            })
    }
}

impl Profile {
    /// Makes this process and all it starts live under the profile, and becomes the program.
    /// It returns only when something failed.
    pub fn exec(self, program: &OsString, arguments: &[OsString]) -> Result<()> {
        if self.uname26 {
            sys::process::personality(UNAME26).context("setting the personality UNAME26")?;
        }
        sys::process::load_seccomp(&self.filter(), 0).context("loading the filter")?;
        let error: io::Error = command(program).args(arguments).exec();
        Err(error).with_context(|| format!("running {}", program.to_string_lossy()))
    }

    /// The filter in the packing of struct sock_filter.
    fn filter(self) -> Vec<u64> {
        let mut code = vec![
            load(ARCH_OFFSET),
            jump_if_equal(AUDIT_ARCH_X86_64, 1, 0),
            ANSWER_ALLOW,
            load(NUMBER_OFFSET),
        ];
        for &call in self.more_calls {
            code.push(jump_if_equal(call, 0, 1));
            code.push(ANSWER_ALLOW);
        }
        code.push(jump_if_greater(self.last_call, 0, 1));
        code.push(answer_errno(nix::errno::Errno::ENOSYS));
        let refused = answer_errno(nix::errno::Errno::EINVAL);
        if !self.no_prctl.is_empty() {
            let count = u8::try_from(self.no_prctl.len()).expect("a handful of options");
            code.push(jump_if_equal(SYS_PRCTL, 0, 2 * count + 2));
            code.push(load(FIRST_ARGUMENT_OFFSET));
            for &option in self.no_prctl {
                code.push(jump_if_equal(option, 0, 1));
                code.push(refused);
            }
            code.push(load(NUMBER_OFFSET));
        }
        for call in [SYS_CLONE, SYS_UNSHARE]
            .into_iter()
            .filter(|_| self.no_flags != 0)
        {
            code.push(jump_if_equal(call, 0, 3));
            code.push(load(FIRST_ARGUMENT_OFFSET));
            code.push(jump_if_any_bit(self.no_flags, 0, 1));
            code.push(refused);
            code.push(load(NUMBER_OFFSET));
        }
        code.push(ANSWER_ALLOW);
        code
    }
}

// Offsets in struct seccomp_data; of the first argument, its low half.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const FIRST_ARGUMENT_OFFSET: u32 = 16;

// linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGT|K, JMP|JSET|K, RET|K.
const LOAD: u64 = 0x20;
const JUMP_EQUAL: u64 = 0x15;
const JUMP_GREATER: u64 = 0x25;
const JUMP_ANY_BIT: u64 = 0x45;
const RETURN: u64 = 0x06;

const ANSWER_ALLOW: u64 = RETURN | 0x7fff_0000 << 32;

fn answer_errno(errno: nix::errno::Errno) -> u64 {
    let number = u64::try_from(errno as i32).expect("errno is positive");
    RETURN | (0x0005_0000 | number) << 32
}

fn load(offset: u32) -> u64 {
    LOAD | u64::from(offset) << 32
}

fn jump_if_equal(value: u32, then: u8, or_else: u8) -> u64 {
    jump(JUMP_EQUAL, value, then, or_else)
}

fn jump_if_greater(value: u32, then: u8, or_else: u8) -> u64 {
    jump(JUMP_GREATER, value, then, or_else)
}

fn jump_if_any_bit(bits: u32, then: u8, or_else: u8) -> u64 {
    jump(JUMP_ANY_BIT, bits, then, or_else)
}

fn jump(code: u64, value: u32, then: u8, or_else: u8) -> u64 {
    code | u64::from(then) << 16 | u64::from(or_else) << 24 | u64::from(value) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would; true when it answers with ALLOW, else the errno.
    fn answer(profile: &str, call: u32, argument: u32) -> Option<u32> {
        let code = profile.parse::<Profile>().unwrap().filter();
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let (operation, k) = (code[at] & 0xffff, u32::try_from(code[at] >> 32).unwrap());
            let jump = |holds: bool| {
                1 + usize::try_from(code[at] >> (if holds { 16 } else { 24 }) & 0xff).unwrap()
            };
            at += match operation {
                LOAD => {
                    accumulator = match k {
                        NUMBER_OFFSET => call,
                        ARCH_OFFSET => AUDIT_ARCH_X86_64,
                        FIRST_ARGUMENT_OFFSET => argument,
                        other => panic!("load of {other}"),
                    };
                    1
                }
                JUMP_EQUAL => jump(accumulator == k),
                JUMP_GREATER => jump(accumulator > k),
                JUMP_ANY_BIT => jump(accumulator & k != 0),
                RETURN if k == 0x7fff_0000 => return None,
                RETURN => return Some(k & 0xffff),
                other => panic!("operation {other:#x}"),
            };
        }
    }

    #[test]
    fn each_profile_lacks_what_its_kernel_lacked() {
        let (enosys, einval) = (Some(38), Some(22));
        let check = |profile, call, argument, expected| {
            assert_eq!(
                answer(profile, call, argument),
                expected,
                "{profile} {call} {argument:#x}"
            );
        };
        check("2.6.32", 298, 0, None);
        check("2.6.32", 308, 0, enosys);
        check("rhel6", 308, 0, None);
        check("rhel6", 302, 0, enosys);
        check("3.10", 313, 0, None);
        check("3.10", 318, 0, enosys);
        check("5.10", 441, 0, enosys);
        check("2.6.32", SYS_PRCTL, PR_SET_CHILD_SUBREAPER, einval);
        check("rhel6", SYS_PRCTL, PR_SET_NO_NEW_PRIVS, None);
        check("3.10", SYS_PRCTL, PR_SET_CHILD_SUBREAPER, None);
        check("3.10", SYS_PRCTL, PR_CAP_AMBIENT, einval);
        check("4.4", SYS_PRCTL, PR_CAP_AMBIENT, None);
        check("3.2", SYS_CLONE, CLONE_NEWUSER | 17, einval);
        check("3.10", SYS_CLONE, CLONE_NEWUSER | 17, None);
        check("3.10", SYS_UNSHARE, CLONE_NEWCGROUP, einval);
        check("4.19", SYS_UNSHARE, CLONE_NEWCGROUP, None);
        check("2.6.32", SYS_CLONE, 17, None);
    }
}
