//! Programs do what the profile says, on every architecture, by random profiles and calls.

mod machine;

use machine::{Call, expected, run};
use proptest::prelude::*;
use seccomp::{Action, Arch, Arg, Error, Operator, Profile, Rule, compile, number};

/// None of them is multiplexed on x86: their calls are checked apart.
const NAMES: [&str; 12] = [
    "read",
    "write",
    "openat",
    "personality",
    "clone",
    "ioctl",
    "execve",
    "waitid",
    "statx",
    "clone3",
    "uselib",
    "no_such_call",
];
const INTERESTING: [u64; 8] = [
    0,
    1,
    7,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    u64::MAX - 1,
    u64::MAX,
];

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(&INTERESTING[..]), 1 => any::<u64>()]
}

fn arg() -> impl Strategy<Value = Arg> {
    let op = prop::sample::select(&Operator::ALL[..]);
    (0..3u32, value(), value(), op).prop_map(|(index, value, value_two, op)| Arg {
        index,
        value,
        value_two,
        op,
    })
}

fn action() -> impl Strategy<Value = (Action, Option<u32>)> {
    (
        prop::sample::select(&Action::ALL[..]),
        prop::option::of(0..4096u32),
    )
        .prop_map(|(action, errno)| match action {
            Action::Errno | Action::Trace => (action, errno),
            _ => (action, None),
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let names = prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4);
    (names, action(), prop::collection::vec(arg(), 0..3)).prop_map(
        |(names, (action, errno_ret), args)| Rule {
            names: names.into_iter().map(str::to_owned).collect(),
            action,
            errno_ret,
            args,
        },
    )
}

fn profile() -> impl Strategy<Value = Profile> {
    let architectures = prop::collection::vec(prop::sample::select(&Arch::ALL[..]), 0..4);
    (action(), architectures, prop::collection::vec(rule(), 0..8)).prop_map(
        |((default_action, default_errno), architectures, rules)| Profile {
            default_action,
            default_errno,
            architectures,
            rules,
            flags: Vec::new(),
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    let number = (
        prop::sample::select(&Arch::ALL[..]),
        prop::sample::select(&NAMES[..]),
        0..4u32,
    )
        .prop_map(|(arch, name, off)| {
            let number = number(arch, name).unwrap_or(u32::MAX);
            (arch.audit(), number.wrapping_add(off))
        });
    let odd =
        (prop::sample::select(&Arch::ALL[..]), any::<u32>()).prop_map(|(a, n)| (a.audit(), n));
    let foreign = Just((0x8000_0016, 3));
    let number = prop_oneof![8 => number, 1 => odd, 1 => foreign];
    (number, prop::array::uniform6(value())).prop_map(|((audit, number), args)| Call {
        audit,
        number,
        args,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_program_answers_as_the_profile_reads(
        profile in profile(),
        native in prop::sample::select(&Arch::ALL[..]),
        calls in prop::collection::vec(call(), 64),
    ) {
        match compile(&profile, native) {
            Ok(program) => for call in &calls {
                let expected = expected(&profile, native, call);
                let actual = run(&program.instructions, call);
                prop_assert!(expected.contains(&actual), "{call:x?}: {actual:#x} not in {expected:x?}");
            },
            // Two rules with equal conditions and different actions: libseccomp's EEXIST.
            Err(Error::Conflict { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// Rules about one system call that have a lot in common.
fn crowd() -> impl Strategy<Value = Profile> {
    let value = || {
        let high = prop::sample::select(vec![0, 0, 0, 1, u64::from(u32::MAX)]);
        (high, 0..300_u64).prop_map(|(high, low)| high << 32 | low)
    };
    let op = prop_oneof![
        6 => Just(Operator::Equal),
        1 => prop::sample::select(&Operator::ALL[..]),
    ];
    let arg = (0..2_u32, value(), 0..300_u64, op).prop_map(|(index, value, value_two, op)| Arg {
        index,
        value,
        value_two,
        op,
    });
    let args = prop::collection::vec(arg, 1..3);
    let action = prop::sample::select(vec![Action::Allow, Action::Log]);
    prop::collection::vec((args, action), 1..300).prop_map(|rules| {
        // The same conditions twice would be a contradiction.
        let mut seen: Vec<Vec<Arg>> = Vec::new();
        let mut kept = Vec::new();
        for (mut args, action) in rules {
            args.sort_by_key(|arg| arg.index);
            if !seen.contains(&args) {
                seen.push(args.clone());
                kept.push(Rule {
                    action,
                    ..allow("ioctl", args)
                });
            }
        }
        simple(Action::Errno, kept)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn rules_that_share_comparisons_answer_as_each_alone(
        profile in crowd(),
        native in prop::sample::select(vec![Arch::X86_64, Arch::X86]),
        calls in prop::collection::vec((0..8_u64, 0..310_u64, 0..310_u64), 128),
    ) {
        match compile(&profile, native) {
            Ok(program) => for (highs, first, second) in calls {
                let high = |bit: u32| match (highs >> bit & 1, highs >> 2 & 1) {
                    (0, _) => 0,
                    (_, 0) => 1 << 32,
                    _ => u64::from(u32::MAX) << 32,
                };
                let call = Call {
                    audit: native.audit(),
                    number: number(native, "ioctl").expect("every architecture has it"),
                    args: [high(0) | first, high(1) | second, 0, 0, 0, 0],
                };
                let expected = expected(&profile, native, &call);
                let actual = run(&program.instructions, &call);
                prop_assert!(expected.contains(&actual), "{call:x?}: {actual:#x} not in {expected:x?}");
            },
            Err(Error::Conflict { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

fn simple(default_action: Action, rules: Vec<Rule>) -> Profile {
    Profile {
        default_action,
        default_errno: None,
        architectures: Vec::new(),
        rules,
        flags: vec![],
    }
}

fn allow(name: &str, args: Vec<Arg>) -> Rule {
    Rule {
        names: vec![name.to_owned()],
        action: Action::Allow,
        errno_ret: None,
        args,
    }
}

fn equal(index: u32, value: u64) -> Arg {
    Arg {
        index,
        value,
        value_two: 0,
        op: Operator::Equal,
    }
}

fn verdict(profile: &Profile, arch: Arch, name: &str, args: [u64; 6]) -> u32 {
    let program = compile(profile, arch).expect("a sound profile");
    let number = number(arch, name).expect("a call of this architecture");
    run(
        &program.instructions,
        &Call {
            audit: arch.audit(),
            number,
            args,
        },
    )
}

const ALLOWED: u32 = 0x7fff_0000;
const REFUSED: u32 = 0x0005_0001;

#[test]
fn jumps_beyond_255_instructions_arrive() {
    // Hundreds of different conditions on one call, and a call whose default lies behind them all.
    let mut rules: Vec<Rule> = (0..400)
        .map(|i| allow("personality", vec![equal(0, i * 2 + (i << 33))]))
        .collect();
    rules.push(allow("read", vec![]));
    rules.push(allow("statx", vec![]));
    let profile = simple(Action::Errno, rules);
    let check = |name: &str, arg: u64, expected| {
        assert_eq!(
            verdict(&profile, Arch::X86_64, name, [arg, 0, 0, 0, 0, 0]),
            expected
        );
    };
    check("read", 0, ALLOWED);
    check("statx", 0, ALLOWED);
    check("write", 0, REFUSED);
    for i in 0..400 {
        check("personality", i * 2 + (i << 33), ALLOWED);
        check("personality", i * 2 + 1 + (i << 33), REFUSED);
    }
}

/// 2000 rules about one system call fit, as they do with libseccomp, and each is kept.
#[test]
fn thousands_of_rules_about_one_argument_share_its_loads() {
    const RULES: u64 = 2000;
    let masked = |value| Arg {
        index: 0,
        value: 0xffff,
        value_two: value,
        op: Operator::MaskedEqual,
    };
    let one = |op| {
        move |value| {
            vec![Arg {
                index: 1,
                value,
                value_two: 0,
                op,
            }]
        }
    };
    type Args = Box<dyn Fn(u64) -> Vec<Arg>>;
    let kinds: [(&str, Args); 5] = [
        ("equal", Box::new(one(Operator::Equal))),
        ("masked", Box::new(move |value| vec![masked(value)])),
        ("less", Box::new(one(Operator::Less))),
        (
            "another first",
            Box::new(|value| vec![equal(0, 3), equal(1, value << 32 | 1)]),
        ),
        (
            "another later",
            Box::new(|value| vec![equal(0, value << 32 | 7), equal(3, 1 << 33)]),
        ),
    ];
    for (kind, args) in kinds {
        let rules = (1..=RULES).map(|value| allow("ioctl", args(value)));
        let profile = simple(Action::Errno, rules.collect());
        let size = match compile(&profile, Arch::X86_64) {
            Ok(program) => program.instructions.len(),
            Err(error) => panic!("{kind}: {error}"),
        };
        assert!(size < 4096, "{kind}: {size}");
        for value in [1, 2, 255, 256, 1000, RULES - 1, RULES] {
            let mut call = [0; 6];
            for arg in args(value) {
                let index = arg.index as usize;
                call[index] = match arg.op {
                    Operator::MaskedEqual => 0xabc_0000 | arg.value_two,
                    Operator::Less => arg.value - 1,
                    _ => arg.value,
                };
            }
            let answer = |call| verdict(&profile, Arch::X86_64, "ioctl", call);
            assert_eq!(answer(call), 0x7fff_0000, "{kind} {value}");
            call = [u64::MAX - 77; 6];
            assert_eq!(answer(call), 0x0005_0001, "{kind}");
        }
    }
}

#[test]
fn the_first_unconditional_rule_swallows_the_others() {
    let killed = |args| Rule {
        action: Action::KillThread,
        ..allow("read", args)
    };
    let check = |rules: Vec<Rule>, expected| {
        let profile = simple(Action::Errno, rules);
        assert_eq!(
            verdict(&profile, Arch::X86_64, "read", [1, 0, 0, 0, 0, 0]),
            expected
        );
    };
    check(
        vec![killed(vec![equal(0, 1)]), allow("read", vec![])],
        ALLOWED,
    );
    check(
        vec![allow("read", vec![]), killed(vec![equal(0, 1)])],
        ALLOWED,
    );
    check(vec![killed(vec![]), allow("read", vec![])], 0);
    // A mask without bits always holds.
    let any = Arg {
        index: 2,
        value: 0,
        value_two: 9,
        op: Operator::MaskedEqual,
    };
    check(
        vec![killed(vec![equal(0, 1)]), allow("read", vec![any])],
        ALLOWED,
    );
}

#[test]
fn a_shorter_rule_goes_before_the_longer_one_it_contains() {
    let longer = Rule {
        action: Action::KillThread,
        ..allow("read", vec![equal(0, 1), equal(1, 2)])
    };
    let profile = simple(
        Action::Errno,
        vec![longer, allow("read", vec![equal(0, 1)])],
    );
    assert_eq!(
        verdict(&profile, Arch::X86_64, "read", [1, 2, 0, 0, 0, 0]),
        ALLOWED
    );
    assert_eq!(
        verdict(&profile, Arch::X86_64, "read", [2, 2, 0, 0, 0, 0]),
        REFUSED
    );
}

#[test]
fn a_socket_call_on_x86_is_reached_both_ways() {
    let profile = simple(
        Action::Errno,
        vec![allow("connect", vec![]), allow("semop", vec![])],
    );
    let check = |name: &str, first: u64, expected| {
        assert_eq!(
            verdict(&profile, Arch::X86, name, [first, 9, 0, 0, 0, 0]),
            expected,
            "{name}"
        );
    };
    check("connect", 0, ALLOWED);
    check("socketcall", 3, ALLOWED);
    check("socketcall", 2, REFUSED);
    check("ipc", 1, ALLOWED);
    check("ipc", 2, REFUSED);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let profile = simple(Action::KillProcess, vec![allow("statx", vec![])]);
    assert_eq!(verdict(&profile, Arch::X86_64, "statx", [0; 6]), ALLOWED);
    assert_eq!(
        verdict(&profile, Arch::X86_64, "openat2", [0; 6]),
        0x0005_0000 + 38
    );
    assert_eq!(verdict(&profile, Arch::X86_64, "read", [0; 6]), 0x8000_0000);
}

#[test]
fn names_nobody_has_are_reported() {
    let mut profile = simple(
        Action::Errno,
        vec![allow("read", vec![]), allow("no_such", vec![])],
    );
    profile.rules.push(allow("send", vec![]));
    assert_eq!(
        compile(&profile, Arch::X86_64).unwrap().unknown,
        ["no_such", "send"]
    );
    profile.architectures.push(Arch::X86);
    assert_eq!(
        compile(&profile, Arch::X86_64).unwrap().unknown,
        ["no_such"]
    );
}

#[test]
fn malformed_rules_are_refused_by_name() {
    let check = |rules: Vec<Rule>, expected: &str| {
        let error = compile(&simple(Action::Errno, rules), Arch::X86_64).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let errno = |errno_ret| Rule {
        action: Action::Errno,
        errno_ret,
        ..allow("read", vec![])
    };
    check(
        vec![allow("read", vec![equal(6, 0)])],
        "system call read: argument index 6 is not below 6",
    );
    check(
        vec![allow("", vec![])],
        "a rule with an empty system call name",
    );
    check(vec![errno(Some(4096))], "errno 4096 is above 4095");
    check(
        vec![Rule {
            errno_ret: Some(1),
            ..allow("read", vec![])
        }],
        "action Allow takes no errno, 1 was given",
    );
    let killed = Rule {
        action: Action::KillThread,
        ..allow("read", vec![equal(0, 1)])
    };
    check(
        vec![allow("read", vec![equal(0, 1)]), killed],
        "system call read: the same conditions have two different actions",
    );
    let many = (0..3000)
        .map(|i| allow("read", vec![equal(0, i << 32 | i)]))
        .collect();
    let error = compile(&simple(Action::Errno, many), Arch::X86_64).unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { max: 4096, .. }),
        "{error}"
    );
}
