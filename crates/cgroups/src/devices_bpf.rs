//! A device list as a program for version 2 (BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! Pure: makes instructions, loads nothing. The kernel runs the program with `struct
//! bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, the low half of `access_type`
//! being the kind and the high half the access; the answer 1 allows.

use crate::devices::{DeviceList, DeviceSet};
use crate::resources::{Access, DeviceKind, Verdict};

/// 64-bit `dst &= imm`, `dst >>= imm`, `dst = imm`, `dst = src`; 32-bit load; `!=`, `==`; exit.
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const LOAD: u8 = 0x61;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
/// The context is not needed once its three words are loaded.
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The instructions, each a `struct bpf_insn` in native byte order.
pub(crate) fn program(list: &DeviceList) -> Vec<u64> {
    let mut code = vec![
        load(KIND, 0),
        instruction(COPY, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for (set, access) in &list.exceptions {
        code.extend(exception(*set, *access, list.default));
    }
    code.extend(answer(list.default));
    code
}

/// Tests, each of which jumps behind the answer when it fails; then the opposite of the default.
///
/// An exception that allows must cover every access asked for. One that denies does so when it
/// covers any: runc's program lets a read-write open pass a rule that denies writing; the kernel's
/// own version 1 code does not, and neither does this.
fn exception(set: DeviceSet, access: Access, default: Verdict) -> Vec<u64> {
    let (opposite, mask, jump) = match default {
        Verdict::Deny => (Verdict::Allow, Access::ALL.without(access), JUMP_UNEQUAL),
        Verdict::Allow => (Verdict::Deny, access, JUMP_EQUAL),
    };
    let kind = match set.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char | DeviceKind::All => 2,
    };
    let mut tests: Vec<Test> = vec![Test {
        register: KIND,
        jump: JUMP_UNEQUAL,
        value: kind,
    }];
    tests.extend(set.major.map(|value| Test {
        register: MAJOR,
        jump: JUMP_UNEQUAL,
        value,
    }));
    tests.extend(set.minor.map(|value| Test {
        register: MINOR,
        jump: JUMP_UNEQUAL,
        value,
    }));
    tests.push(Test {
        register: SCRATCH,
        jump,
        value: 0,
    });
    let answer = answer(opposite);
    let mut code = vec![
        instruction(COPY, SCRATCH, ACCESS, 0, 0),
        instruction(AND, SCRATCH, 0, 0, u32::from(mask.bits())),
    ];
    let mut left = tests.len();
    for test in tests {
        left -= 1;
        let behind = u8::try_from(left + answer.len()).expect("at most four tests");
        code.push(instruction(
            test.jump,
            test.register,
            0,
            i16::from(behind),
            test.value,
        ));
    }
    code.extend(answer);
    code
}

/// A comparison with a constant. The kernel extends the constant's sign, so that one above
/// `i32::MAX` equals nothing, as no device number does (12 and 20 bits).
struct Test {
    register: u8,
    jump: u8,
    value: u32,
}

fn answer(verdict: Verdict) -> [u64; 2] {
    let value = match verdict {
        Verdict::Allow => 1,
        Verdict::Deny => 0,
    };
    [
        instruction(SET, ANSWER, 0, 0, value),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn load(register: u8, offset: i16) -> u64 {
    instruction(LOAD, register, CONTEXT, offset, 0)
}

/// `struct bpf_insn`: opcode, two registers of four bits, offset, immediate.
fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    let registers = if cfg!(target_endian = "little") {
        source << 4 | destination
    } else {
        destination << 4 | source
    };
    let [offset0, offset1] = offset.to_ne_bytes();
    let [byte0, byte1, byte2, byte3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([
        opcode, registers, offset0, offset1, byte0, byte1, byte2, byte3,
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::devices::tests::{any_rule, rule};

    /// An access that the kernel asks a program about.
    #[derive(Debug, Clone, Copy)]
    struct Asked {
        kind: u32,
        access: u32,
        major: u32,
        minor: u32,
    }

    /// Runs a program as the kernel would, and nothing that the kernel would refuse: every jump
    /// goes forward to an instruction, no register is read before it is set.
    fn run(code: &[u64], asked: Asked) -> u64 {
        let context = [asked.access << 16 | asked.kind, asked.major, asked.minor];
        let mut registers: [Option<u64>; 11] = [None; 11];
        registers[usize::from(CONTEXT)] = Some(u64::MAX);
        let mut at = 0;
        loop {
            let bytes = code[at].to_ne_bytes();
            let (opcode, destination) = (bytes[0], usize::from(bytes[1] & 0xf));
            let source = usize::from(bytes[1] >> 4);
            let offset = i16::from_ne_bytes([bytes[2], bytes[3]]);
            let immediate = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let immediate = i64::from(immediate).cast_unsigned();
            let value = || registers[destination].expect("a register that is set");
            at += 1;
            match opcode {
                LOAD => {
                    assert_eq!(
                        registers[source],
                        Some(u64::MAX),
                        "only the context is loaded from"
                    );
                    let word = usize::try_from(offset).unwrap() / 4;
                    registers[destination] = Some(u64::from(context[word]));
                }
                COPY => registers[destination] = registers[source],
                SET => registers[destination] = Some(immediate),
                AND => registers[destination] = Some(value() & immediate),
                SHIFT_RIGHT => registers[destination] = Some(value() >> immediate),
                JUMP_UNEQUAL if value() != immediate => at += usize::try_from(offset).unwrap(),
                JUMP_EQUAL if value() == immediate => at += usize::try_from(offset).unwrap(),
                JUMP_UNEQUAL | JUMP_EQUAL => {}
                EXIT => return registers[usize::from(ANSWER)].expect("an answer"),
                other => panic!("no instruction of ours: {other:#x}"),
            }
        }
    }

    /// What version 1 of the kernel answers (security/device_cgroup.c).
    fn expected(list: &DeviceList, asked: Asked) -> bool {
        let about = |set: &DeviceSet| {
            (set.kind == DeviceKind::Block) == (asked.kind == 1)
                && set.major.is_none_or(|major| major == asked.major)
                && set.minor.is_none_or(|minor| minor == asked.minor)
        };
        let mut held = list.exceptions.iter().filter(|(set, _)| about(set));
        match list.default {
            Verdict::Deny => held.any(|(_, access)| asked.access & !u32::from(access.bits()) == 0),
            Verdict::Allow => !held.any(|(_, access)| asked.access & u32::from(access.bits()) != 0),
        }
    }

    fn check(list: &DeviceList) {
        let code = program(list);
        for kind in [1, 2] {
            for access in 1..8 {
                for (major, minor) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 7)] {
                    let asked = Asked {
                        kind,
                        access,
                        major,
                        minor,
                    };
                    let answer = run(&code, asked) == 1;
                    assert_eq!(answer, expected(list, asked), "{list:?} {asked:?}");
                }
            }
        }
    }

    #[test]
    fn default_rules_of_a_container_allow_what_they_name() {
        let rules = ["-a *:* rwm", "+c *:* m", "+c 1:3 rwm", "+b 8:0 r"].map(rule);
        let list = DeviceList::from_rules(&rules).unwrap();
        let code = program(&list);
        for (kind, access, major, minor, answer) in [
            (2, 6, 1, 3, 1),
            (2, 1, 7, 7, 1),
            (2, 2, 7, 7, 0),
            (1, 2, 8, 0, 1),
            (1, 6, 8, 0, 0),
            (1, 1, 8, 0, 0),
        ] {
            assert_eq!(
                run(
                    &code,
                    Asked {
                        kind,
                        access,
                        major,
                        minor
                    }
                ),
                answer
            );
        }
        check(&list);
    }

    #[test]
    fn read_write_open_does_not_pass_a_denial_of_writing() {
        let rules = ["+a *:* rwm", "-c 1:1 w"].map(rule);
        let code = program(&DeviceList::from_rules(&rules).unwrap());
        let asked = |access| Asked {
            kind: 2,
            access,
            major: 1,
            minor: 1,
        };
        assert_eq!(
            [2, 4, 6, 1].map(|access| run(&code, asked(access))),
            [1, 0, 0, 1]
        );
    }

    proptest! {
        #[test]
        fn program_answers_as_version_1_does(rules in proptest::collection::vec(any_rule(), 0..12)) {
            // A list that version 1 would misread is refused before.
            if let Ok(list) = DeviceList::from_rules(&rules) {
                check(&list);
            }
        }
    }
}
