//! The one decision: what a writable snapshot may hold.

use std::collections::BTreeMap;

use super::{Accounting, Asked, Group, Inodes, Mode, Policy, Refusal, Size, Thresholds};

/// With this label containerd asks for the snapshot of an image layer.
const UNPACK: &str = "containerd.io/snapshot.ref";

/// A snapshot that is to be writable.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its key as containerd sends it, `NAMESPACE/NUMBER/NAME`.
    pub key: &'a str,
    /// The key of its parent.
    pub parent: Option<&'a str>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// What a writable snapshot may hold, and what is done about it.
///
/// Without limits the mode is never [`Mode::Hard`]; with [`Mode::Account`] they are what warnings
/// are about; with [`Mode::Off`] there is nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What is done.
    pub mode: Mode,
    /// Most bytes.
    pub bytes: Option<Size>,
    /// Bytes above which the kernel's grace time runs; never more than `bytes`.
    pub soft_bytes: Option<Size>,
    /// Most inodes.
    pub inodes: Option<Inodes>,
    /// When to warn.
    pub warn: Thresholds,
    /// With whom it is shared. A member without limits of its own has those of the others.
    pub group: Option<Group>,
}

impl Limit {
    /// Nothing is limited or counted.
    #[must_use]
    pub fn off() -> Self {
        Self::without_limits(Mode::Off)
    }

    /// Everything is counted, nothing limited.
    #[must_use]
    pub fn counted() -> Self {
        Self::without_limits(Mode::Account)
    }

    fn without_limits(mode: Mode) -> Self {
        Self {
            mode,
            bytes: None,
            soft_bytes: None,
            inodes: None,
            warn: Thresholds::default(),
            group: None,
        }
    }

    fn of(accounting: Accounting) -> Self {
        match accounting {
            Accounting::All => Self::counted(),
            Accounting::Limited => Self::off(),
        }
    }
}

impl<'a> Request<'a> {
    /// The namespace in the key; empty for a client that puts none there.
    #[must_use]
    pub fn namespace(&self) -> &'a str {
        split(self.key).0
    }

    /// The name in the key, which for a container is its id.
    #[must_use]
    pub fn name(&self) -> &'a str {
        split(self.key).1
    }

    /// The name in the parent's key, which for an image is its chain id.
    #[must_use]
    pub fn parent_name(&self) -> Option<&'a str> {
        self.parent.map(|key| split(key).1)
    }

    /// Whether it is for a layer of an image: labelled so, or named as containerd's unpacker names
    /// it, `extract-TIME-RANDOM ALGORITHM:HEX`. No container's id can look so: ids have no blank.
    #[must_use]
    pub fn is_unpack(&self) -> bool {
        let named = || {
            let (first, chain) = self.name().split_once(' ')?;
            Some(first.starts_with("extract-") && chain.contains(':'))
        };
        self.labels.contains_key(UNPACK) || named().unwrap_or(false)
    }
}

/// `NAMESPACE/NUMBER/NAME` of containerd's metadata layer.
fn split(key: &str) -> (&str, &str) {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(name))
            if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            (namespace, name)
        }
        _ => ("", key),
    }
}

/// Decides: a label counts before the rule, the rule before the defaults, each for itself. The
/// layers of an image are never limited, whatever its author wrote into labels.
///
/// # Errors
/// [`Refusal`] for labels of ours that make no sense, alone or together with the policy.
pub fn decide(policy: &Policy, request: &Request<'_>) -> Result<Limit, Refusal> {
    if request.is_unpack() {
        return Ok(Limit::of(policy.accounting));
    }
    let mut asked = Asked::from_labels(request.labels)?;
    if let Some(rule) = policy.rule_for(request) {
        asked = asked.or(rule);
    }
    let asked = asked.or(&policy.defaults);
    if let (Some(soft), Some(hard)) = (asked.soft_bytes, asked.bytes)
        && soft > hard
    {
        return Err(Refusal::Contradiction {
            left: format!("the soft size {soft}"),
            right: format!("the size {hard}"),
            why: "the soft one must not be above the other",
        });
    }
    let limited = asked.bytes.is_some() || asked.soft_bytes.is_some() || asked.inodes.is_some();
    let mode = match asked.mode {
        Some(Mode::Off) => return Ok(Limit::off()),
        Some(Mode::Account) => Mode::Account,
        Some(Mode::Hard) | None if limited => Mode::Hard,
        Some(Mode::Hard) => Mode::Account,
        None if asked.group.is_some() => Mode::Account,
        None => return Ok(Limit::of(policy.accounting)),
    };
    let group = asked.group.map(|name| Group {
        namespace: request.namespace().to_owned(),
        name,
    });
    Ok(Limit {
        mode,
        bytes: asked.bytes,
        soft_bytes: asked.soft_bytes,
        inodes: asked.inodes,
        warn: asked.warn.unwrap_or_default(),
        group,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limit::{
        DISK_QUOTA, GROUP, INODES, MAX_SIZE, MODE, PolicyText, RuleText, SOFT_SIZE, WARN,
    };

    fn policy() -> Policy {
        Policy::new(&PolicyText {
            default_size: Some("10g".into()),
            default_inodes: Some(1000),
            rules: vec![RuleText {
                key: Some("^web".into()),
                size: Some("20g".into()),
                soft_size: Some("15g".into()),
                warn: Some("80%".into()),
                ..RuleText::default()
            }],
            ..PolicyText::default()
        })
        .unwrap()
    }

    fn decided(policy: &Policy, key: &str, labels: &[(&str, &str)]) -> Result<Limit, Refusal> {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let request = Request {
            key,
            parent: None,
            labels: &labels,
        };
        decide(policy, &request)
    }

    /// Bytes in GiB, soft bytes in GiB, inodes, mode.
    type Summary = (Option<u64>, Option<u64>, Option<u64>, Mode);

    fn summary(limit: &Limit) -> Summary {
        let gibibytes = |size: Option<Size>| size.map(|size| size.bytes().get() >> 30);
        let inodes = limit.inodes.map(|inodes| inodes.count().get());
        (
            gibibytes(limit.bytes),
            gibibytes(limit.soft_bytes),
            inodes,
            limit.mode,
        )
    }

    #[test]
    fn label_counts_before_rule_before_default() {
        let check = |key: &str, pairs: &[(&str, &str)], expected: Summary| {
            let limit = decided(&policy(), key, pairs).unwrap();
            assert_eq!(summary(&limit), expected, "{key} {pairs:?}");
        };
        let hard = Mode::Hard;
        check("ns/1/a", &[], (Some(10), None, Some(1000), hard));
        check("ns/1/web", &[], (Some(20), Some(15), Some(1000), hard));
        check(
            "ns/1/web",
            &[(MAX_SIZE, "30g")],
            (Some(30), Some(15), Some(1000), hard),
        );
        check(
            "ns/1/a",
            &[(DISK_QUOTA, "1g"), (INODES, "5")],
            (Some(1), None, Some(5), hard),
        );
        let account = Mode::Account;
        check(
            "ns/1/a",
            &[(MODE, "account")],
            (Some(10), None, Some(1000), account),
        );
        check(
            "ns/1/a",
            &[(MODE, "off"), (MAX_SIZE, "1g")],
            (None, None, None, Mode::Off),
        );
    }

    #[test]
    fn without_a_limit_the_policy_says_what_is_counted() {
        let check = |accounting, pairs: &[(&str, &str)], expected: Mode| {
            let policy = Policy {
                accounting,
                ..Policy::default()
            };
            let limit = decided(&policy, "a", pairs).unwrap();
            assert_eq!(limit.mode, expected, "{accounting:?} {pairs:?}");
            assert_eq!((limit.bytes, limit.inodes), (None, None));
        };
        check(Accounting::All, &[], Mode::Account);
        check(Accounting::Limited, &[], Mode::Off);
        check(Accounting::Limited, &[(WARN, "80%")], Mode::Off);
        check(Accounting::Limited, &[(MODE, "account")], Mode::Account);
        check(Accounting::Limited, &[(MODE, "hard")], Mode::Account);
        check(Accounting::Limited, &[(GROUP, "pod")], Mode::Account);
        check(Accounting::All, &[(MODE, "off")], Mode::Off);
    }

    #[test]
    fn layers_of_images_are_never_limited() {
        let check = |key: &str, pairs: &[(&str, &str)], expected: Mode| {
            let limit = decided(&policy(), key, pairs).unwrap();
            assert_eq!(limit.mode, expected, "{key}");
        };
        check("ns/1/extract-17-x1Y sha256:0a", &[], Mode::Account);
        check(
            "ns/1/web",
            &[(UNPACK, "sha256:0a"), (MAX_SIZE, "bad"), (MODE, "off")],
            Mode::Account,
        );
        check("ns/1/extract-17", &[], Mode::Hard);
        check("ns/1/extract-17-sha256:0a", &[], Mode::Hard);
        check("ns/1/web extract-1 sha256:0a", &[], Mode::Hard);
    }

    #[test]
    fn keys_are_taken_apart_as_containerd_builds_them() {
        let check = |key: &str, namespace: &str, name: &str| {
            let labels = BTreeMap::new();
            let request = Request {
                key,
                parent: Some(key),
                labels: &labels,
            };
            assert_eq!((request.namespace(), request.name()), (namespace, name));
            assert_eq!(request.parent_name(), Some(name));
        };
        check("k8s.io/12/web", "k8s.io", "web");
        check("k8s.io/12/a/b/c", "k8s.io", "a/b/c");
        check("k8s.io/x/web", "", "k8s.io/x/web");
        check("k8s.io//web", "", "k8s.io//web");
        check("web", "", "web");
        check("", "", "");
    }

    #[test]
    fn a_group_is_of_its_namespace() {
        let group = |key: &str| {
            let pairs = [(GROUP, "pod"), (MAX_SIZE, "1g")];
            let limit = decided(&Policy::default(), key, &pairs).unwrap();
            limit.group.unwrap()
        };
        assert_eq!(group("a/1/x"), group("a/2/y"));
        assert_ne!(group("a/1/x"), group("b/1/x"));
        assert_eq!(group("a/1/x").to_string(), "a/pod");
    }

    #[test]
    fn a_soft_size_above_the_size_is_refused_wherever_both_come_from() {
        let check = |key: &str, pairs: &[(&str, &str)]| {
            let error = decided(&policy(), key, pairs).unwrap_err().to_string();
            assert!(error.contains("soft size"), "{error}");
        };
        check("a", &[(SOFT_SIZE, "2g"), (MAX_SIZE, "1g")]);
        check("a", &[(SOFT_SIZE, "11g")]);
        check("ns/1/web", &[(MAX_SIZE, "14g")]);
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_answer_makes_sense(
            key in "(ns/1/)?(web|a|extract-1 sha256:0)",
            size in proptest::option::of("[0-9]{1,4}[kgx]?"),
            soft in proptest::option::of("[0-9]{1,4}[kgx]?"),
            inodes in proptest::option::of("-?[0-9]{1,20}"),
            mode in proptest::option::of("hard|account|off|x"),
            group in proptest::option::of("[a/]{0,2}"),
        ) {
            let pairs = [
                (MAX_SIZE, size), (SOFT_SIZE, soft), (INODES, inodes), (MODE, mode), (GROUP, group),
            ];
            let labels: BTreeMap<String, String> = pairs
                .into_iter()
                .filter_map(|(label, value)| Some((label.to_owned(), value?)))
                .collect();
            for policy in [policy(), Policy::default()] {
                let request = Request { key: &key, parent: None, labels: &labels };
                let Ok(limit) = decide(&policy, &request) else { continue };
                let limited = limit.bytes.is_some() || limit.soft_bytes.is_some()
                    || limit.inodes.is_some();
                match limit.mode {
                    Mode::Hard => prop_assert!(limited),
                    Mode::Account => {}
                    Mode::Off => prop_assert_eq!(&limit, &Limit::off()),
                }
                if let (Some(soft), Some(hard)) = (limit.soft_bytes, limit.bytes) {
                    prop_assert!(soft <= hard);
                }
                if request.is_unpack() {
                    prop_assert!(!limited && limit.mode != Mode::Hard);
                }
            }
        }
    }
}
