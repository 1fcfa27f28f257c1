//! `config seccomp`: a profile of system calls out of which nobody leaves a project quota. A pure
//! function over the profile, in the form of docker or of the runtime-spec.
//!
//! Who owns a file may take it out of its project by FS_IOC_FSSETXATTR (`X`, 32), take the mark
//! that hands a project on from a directory by FS_IOC_SETFLAGS (`f`, 2; ioctl_iflags(2)), or do
//! both by file_setattr(2) (Linux 6.17). A rule that refuses these does nothing beside one that
//! allows `ioctl` as a whole, which every usual profile has (tried with libseccomp 2.5). So `ioctl`
//! is allowed by its request: all but those that write (`_IOW`) and are of the types `X` and `f`.

use serde_json::{Value, json};

use crate::{Error, Result};

const IOCTL: &str = "ioctl";
const FILE_SETATTR: &str = "file_setattr";
const ALLOW: &str = "SCMP_ACT_ALLOW";

/// `_IOC_WRITE` alone in the bits 31 and 30 of a request, and its type in the bits 15 to 8
/// (asm-generic/ioctl.h; mips, powerpc and sparc number them otherwise and are not known here).
const REFUSED_MASK: u32 = 0xC000_FF00;
const REFUSED: [u32; 2] = [
    0x4000_0000 | (b'X' as u32) << 8,
    0x4000_0000 | (b'f' as u32) << 8,
];

/// One comparison of the request: its bits under the mask are these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Masked {
    mask: u32,
    bits: u32,
}

/// What is allowed: each request that is not refused fits at least one of these, no refused one
/// fits any. The kernel takes 32 bits of the request and seccomp compares 64, so that every
/// comparison needs a mask: `SCMP_CMP_NE` lets a request with a bit above them through.
fn allowed() -> Vec<Masked> {
    let mut all = Vec::new();
    split(&mut all, Masked { mask: 0, bits: 0 }, &REFUSED);
    all
}

/// The requests below `prefix` without those that are refused, bit by bit from the highest.
fn split(all: &mut Vec<Masked>, prefix: Masked, refused: &[u32]) {
    if refused.is_empty() {
        all.push(prefix);
        return;
    }
    let left = REFUSED_MASK & !prefix.mask;
    if left == 0 {
        return;
    }
    let bit = 1 << left.ilog2();
    for value in [0, bit] {
        let below = Masked {
            mask: prefix.mask | bit,
            bits: prefix.bits | value,
        };
        let inside: Vec<_> = refused
            .iter()
            .copied()
            .filter(|one| one & bit == value)
            .collect();
        split(all, below, &inside);
    }
}

/// The profile without the way out.
///
/// # Errors
/// [`Error::Answered`] for what is no profile, or one that has rules of its own for `ioctl`.
pub(super) fn closed(mut profile: Value) -> Result<Value> {
    let refuse = |why: &str| Error::Answered(format!("the seccomp profile {why}"));
    let is_open = profile["defaultAction"] == ALLOW;
    let rules = profile
        .get_mut("syscalls")
        .and_then(Value::as_array_mut)
        .ok_or_else(|| refuse("has no list `syscalls`"))?;
    let mut added = Vec::new();
    for rule in rules.iter_mut().filter(|rule| rule["action"] == ALLOW) {
        let template = rule.clone();
        let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) else {
            return Err(refuse("has a rule without `names`"));
        };
        names.retain(|name| name != FILE_SETATTR);
        if !names.iter().any(|name| name == IOCTL) {
            continue;
        }
        let has_arguments = template["args"]
            .as_array()
            .is_some_and(|arguments| !arguments.is_empty());
        if has_arguments {
            return Err(refuse("allows some requests of ioctl by rules of its own"));
        }
        names.retain(|name| name != IOCTL);
        added.extend(allowed().into_iter().map(|masked| {
            // Docker's conditions (`includes`, `excludes`) come along.
            let mut rule = template.clone();
            rule["names"] = json!([IOCTL]);
            rule["args"] = json!([argument(masked)]);
            rule
        }));
    }
    if is_open {
        added.extend(refusals());
    }
    rules.retain(|rule| rule["names"] != json!([]));
    rules.extend(added);
    Ok(profile)
}

/// For a profile that allows what it does not name.
fn refusals() -> Vec<Value> {
    let refused = |name: &str, arguments: Value| json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": arguments });
    let mut rules = vec![refused(FILE_SETATTR, json!([]))];
    rules.extend(REFUSED.map(|bits| {
        let masked = Masked {
            mask: REFUSED_MASK,
            bits,
        };
        refused(IOCTL, json!([argument(masked)]))
    }));
    rules
}

fn argument(masked: Masked) -> Value {
    json!({
        "index": 1,
        "value": masked.mask,
        "valueTwo": masked.bits,
        "op": "SCMP_CMP_MASKED_EQ",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FSSETXATTR: u32 = 0x401C_5820;
    const SETFLAGS: u32 = 0x4008_6602;
    const SETFLAGS_32: u32 = 0x4004_6602;
    const GETFLAGS: u32 = 0x8008_6601;
    const FSGETXATTR: u32 = 0x801C_581F;
    const TCGETS: u32 = 0x5401;

    fn is_allowed(request: u32) -> bool {
        allowed()
            .iter()
            .any(|masked| request & masked.mask == masked.bits)
    }

    #[test]
    fn requests_that_change_projects_are_refused_and_those_that_read_are_not() {
        for request in [FSSETXATTR, SETFLAGS, SETFLAGS_32] {
            assert!(!is_allowed(request), "{request:x}");
        }
        for request in [GETFLAGS, FSGETXATTR, TCGETS, 0, u32::MAX] {
            assert!(is_allowed(request), "{request:x}");
        }
        assert!(allowed().len() < 32, "{}", allowed().len());
    }

    proptest! {
        #[test]
        fn exactly_the_others_are_allowed(request: u32) {
            prop_assert_eq!(is_allowed(request), !REFUSED.contains(&(request & REFUSED_MASK)));
        }
    }

    #[test]
    fn a_list_of_what_is_allowed_loses_ioctl_and_gets_its_requests() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [],
            "syscalls": [
                { "names": ["read", "ioctl", "file_setattr"], "action": ALLOW },
                { "names": ["ioctl"], "action": ALLOW, "includes": { "caps": ["CAP_X"] } },
                { "names": ["clone"], "action": ALLOW, "args": [{ "index": 0 }] },
            ],
        });
        let closed = closed(profile).unwrap();
        let rules = closed["syscalls"].as_array().unwrap();
        assert_eq!(rules[0]["names"], json!(["read"]));
        assert_eq!(rules[1]["names"], json!(["clone"]));
        assert_eq!(rules.len(), 2 + 2 * allowed().len());
        assert_eq!(rules.last().unwrap()["includes"]["caps"][0], "CAP_X");
        assert_eq!(closed["archMap"], json!([]));
    }

    #[test]
    fn a_list_of_what_is_refused_gets_more() {
        let profile = json!({ "defaultAction": ALLOW, "syscalls": [] });
        let closed = closed(profile).unwrap();
        assert_eq!(closed["syscalls"].as_array().unwrap().len(), 3);
        assert_eq!(closed["syscalls"][1]["args"][0]["value"], REFUSED_MASK);
    }

    #[test]
    fn what_cannot_be_closed_is_refused() {
        for profile in [
            json!({}),
            json!({ "syscalls": [{ "action": ALLOW }] }),
            json!({ "syscalls": [
                { "names": ["ioctl"], "action": ALLOW, "args": [{ "index": 1 }] }
            ] }),
        ] {
            assert!(closed(profile.clone()).is_err(), "{profile}");
        }
    }
}
