//! Device rules boiled down to a default and its exceptions, which is all that the kernel keeps.
//!
//! Pure. Both versions go through it, so that a list of rules means the same under both
//! (runc's reason too); a list that version 1 would silently misread is refused.

use std::collections::BTreeMap;

use crate::resources::{Access, DeviceKind, DeviceRule, Verdict};
use crate::{Error, Result};

const FIELD: &str = "linux.resources.devices";

/// Which devices an exception is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceSet {
    /// Block or character; never [`DeviceKind::All`].
    pub(crate) kind: DeviceKind,
    /// None is any.
    pub(crate) major: Option<u32>,
    /// None is any.
    pub(crate) minor: Option<u32>,
}

impl DeviceSet {
    fn of(rule: &DeviceRule) -> Self {
        Self {
            kind: rule.kind,
            major: rule.major,
            minor: rule.minor,
        }
    }
}

/// What a devices cgroup does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceList {
    /// What happens to a device that no exception is about.
    pub(crate) default: Verdict,
    /// Accesses to which the opposite happens; none of them empty.
    pub(crate) exceptions: BTreeMap<DeviceSet, Access>,
}

impl DeviceList {
    /// Nothing is allowed.
    fn closed() -> Self {
        Self {
            default: Verdict::Deny,
            exceptions: BTreeMap::new(),
        }
    }

    /// The effect of rules in their order, from "nothing is allowed".
    pub(crate) fn from_rules(rules: &[DeviceRule]) -> Result<Self> {
        let mut list = Self::closed();
        for rule in rules {
            list.apply(rule)?;
        }
        Ok(list)
    }

    /// What devices.list of version 1 says. In a list that allows by default the kernel does not
    /// show the exceptions.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut list = Self::closed();
        for line in text.lines() {
            let mut words = line.split([' ', ':']);
            let (kind, major, minor, access) =
                (words.next()?, words.next()?, words.next()?, words.next()?);
            let kind = match kind {
                "a" => {
                    list = Self {
                        default: Verdict::Allow,
                        exceptions: BTreeMap::new(),
                    };
                    continue;
                }
                "b" => DeviceKind::Block,
                "c" => DeviceKind::Char,
                _ => return None,
            };
            let set = DeviceSet {
                kind,
                major: number(major)?,
                minor: number(minor)?,
            };
            list.except(set, Access::parse(access)?);
        }
        Some(list)
    }

    fn apply(&mut self, rule: &DeviceRule) -> Result<()> {
        if rule.kind == DeviceKind::All {
            *self = Self {
                default: rule.verdict,
                exceptions: BTreeMap::new(),
            };
            return Ok(());
        }
        let set = DeviceSet::of(rule);
        if rule.verdict == self.default {
            self.readmit(set, rule.access)
        } else {
            self.except(set, rule.access);
            Ok(())
        }
    }

    fn except(&mut self, set: DeviceSet, access: Access) {
        if !access.is_empty() {
            let old = self.exceptions.entry(set).or_default();
            *old = old.union(access);
        }
    }

    /// Takes an exception back. One that is part of a wider exception cannot be: version 1 would
    /// ignore that without a word.
    fn readmit(&mut self, set: DeviceSet, access: Access) -> Result<()> {
        let wider = |(major, minor)| DeviceSet {
            kind: set.kind,
            major,
            minor,
        };
        for wider in [(None, set.minor), (set.major, None), (None, None)].map(wider) {
            let held = self.exceptions.get(&wider).copied().unwrap_or_default();
            if wider != set && !held.intersection(access).is_empty() {
                let (rule, wider) = (line(set, access), line(wider, held));
                return Err(Error::Invalid {
                    field: FIELD,
                    why: format!("rule [{rule}] cannot punch a hole in wildcard rule [{wider}]"),
                });
            }
        }
        let left = self
            .exceptions
            .get(&set)
            .copied()
            .unwrap_or_default()
            .without(access);
        if left.is_empty() {
            self.exceptions.remove(&set);
        } else {
            self.exceptions.insert(set, left);
        }
        Ok(())
    }

    /// The least that must be written to devices.allow and devices.deny to get from here to
    /// `target`, what is new there in the order of `rules`, which the kernel's list has then, too. When
    /// both deny by default, nothing else loses access for a moment.
    pub(crate) fn transition(&self, target: &Self, rules: &[DeviceRule]) -> Vec<(Verdict, String)> {
        let opposite = match target.default {
            Verdict::Allow => Verdict::Deny,
            Verdict::Deny => Verdict::Allow,
        };
        let mut writes = Vec::new();
        let mut old = self.exceptions.clone();
        // The exceptions of a list that allows by default are unknown: start over.
        if self.default == Verdict::Allow || target.default == Verdict::Allow {
            writes.push((target.default, "a".to_owned()));
            old.clear();
        }
        let access = |list: &BTreeMap<DeviceSet, Access>, set: &DeviceSet| {
            list.get(set).copied().unwrap_or_default()
        };
        for (set, held) in &old {
            let dropped = held.without(access(&target.exceptions, set));
            if !dropped.is_empty() {
                writes.push((target.default, line(*set, dropped)));
            }
        }
        let mut wanted: Vec<_> = target.exceptions.iter().collect();
        wanted.sort_by_key(|(set, _)| rules.iter().position(|rule| DeviceSet::of(rule) == **set));
        for (set, wanted) in wanted {
            let gained = wanted.without(access(&old, set));
            if !gained.is_empty() {
                writes.push((opposite, line(*set, gained)));
            }
        }
        writes
    }
}

/// A number or a star of a rule; the outer none is neither.
fn number(word: &str) -> Option<Option<u32>> {
    if word == "*" {
        Some(None)
    } else {
        word.parse().ok().map(Some)
    }
}

/// A rule as version 1 reads it.
fn line(set: DeviceSet, access: Access) -> String {
    let kind = match set.kind {
        DeviceKind::All => 'a',
        DeviceKind::Block => 'b',
        DeviceKind::Char => 'c',
    };
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    format!(
        "{kind} {}:{} {access}",
        number(set.major),
        number(set.minor)
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    /// A rule from `+c 1:3 rwm` (allow) or `-a *:* rwm` (deny).
    pub(crate) fn rule(text: &str) -> DeviceRule {
        let (verdict, rest) = text.split_at(1);
        let mut words = rest.split([' ', ':']);
        let kind = match words.next().unwrap() {
            "a" => DeviceKind::All,
            "b" => DeviceKind::Block,
            _ => DeviceKind::Char,
        };
        DeviceRule {
            verdict: if verdict == "+" {
                Verdict::Allow
            } else {
                Verdict::Deny
            },
            kind,
            major: number(words.next().unwrap()).unwrap(),
            minor: number(words.next().unwrap()).unwrap(),
            access: Access::parse(words.next().unwrap()).unwrap(),
        }
    }

    fn rules(texts: &[&str]) -> Vec<DeviceRule> {
        texts.iter().map(|text| rule(text)).collect()
    }

    /// Writes from a devices.list to rules, shown as `+rule` or `-rule`.
    fn check(list: &str, texts: &[&str], expected: &[&str]) {
        let rules = rules(texts);
        let target = DeviceList::from_rules(&rules).unwrap();
        let writes = DeviceList::parse(list).unwrap().transition(&target, &rules);
        let shown: Vec<String> = writes
            .iter()
            .map(|(verdict, line)| match verdict {
                Verdict::Allow => format!("+{line}"),
                Verdict::Deny => format!("-{line}"),
            })
            .collect();
        assert_eq!(shown, expected, "{list:?} to {texts:?}");
    }

    #[test]
    fn new_cgroup_gets_one_denial_and_each_device_once() {
        check(
            "a *:* rwm\n",
            &[
                "-a *:* rwm",
                "+c 1:3 rw",
                "+c 1:3 m",
                "+c *:* m",
                "+c 5:2 rwm",
                "-c 5:2 w",
            ],
            &["-a", "+c 1:3 rwm", "+c *:* m", "+c 5:2 rm"],
        );
    }

    #[test]
    fn privileged_container_is_one_write() {
        check(
            "a *:* rwm\n",
            &["-a *:* rwm", "+c 1:3 r", "+a *:* rwm"],
            &["+a"],
        );
        check(
            "c 1:3 rwm\n",
            &["+a *:* rwm", "-b 8:0 w"],
            &["+a", "-b 8:0 w"],
        );
    }

    #[test]
    fn closed_list_changes_without_closing_first() {
        check("", &["+c 1:3 r"], &["+c 1:3 r"]);
        check(
            "c 1:3 rwm\nb 8:* r\n",
            &["+c 1:3 rw", "+b 8:* r"],
            &["-c 1:3 m"],
        );
        check(
            "c 1:3 r\nc 1:5 r\n",
            &["+c 1:3 rw"],
            &["-c 1:5 r", "+c 1:3 w"],
        );
        check("c 1:3 rwm\n", &["+c 1:3 mrw"], &[]);
    }

    #[test]
    fn hole_in_a_wildcard_is_refused() {
        for texts in [
            ["+c *:* m", "-c 1:3 m"],
            ["+c 1:* rw", "-c 1:3 r"],
            ["+c *:3 rw", "-c 1:3 w"],
        ] {
            assert!(DeviceList::from_rules(&rules(&texts)).is_err(), "{texts:?}");
        }
        for texts in [
            ["+c *:* m", "-c 1:3 r"],
            ["+c *:* m", "-b 1:3 m"],
            ["+c *:* m", "-c *:* m"],
        ] {
            assert!(DeviceList::from_rules(&rules(&texts)).is_ok(), "{texts:?}");
        }
    }

    #[test]
    fn text_that_is_no_list_is_none() {
        for text in ["x 1:3 r", "c 1 r", "c 1:3", "c 1:3 q", "c one:3 r"] {
            assert_eq!(DeviceList::parse(text), None, "{text}");
        }
    }

    /// Rules over so few numbers that they often meet.
    pub(crate) fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![
            1 => any::<bool>().prop_map(|_| DeviceKind::All),
            4 => any::<bool>().prop_map(|_| DeviceKind::Block),
            4 => any::<bool>().prop_map(|_| DeviceKind::Char),
        ];
        let verdict =
            any::<bool>().prop_map(|allow| if allow { Verdict::Allow } else { Verdict::Deny });
        let number = || proptest::option::of(0_u32..3);
        let access = proptest::sample::select(vec!["r", "w", "m", "rw", "rwm", "wm", ""]);
        (verdict, kind, number(), number(), access).prop_map(
            |(verdict, kind, major, minor, letters)| DeviceRule {
                verdict,
                kind,
                major,
                minor,
                access: Access::parse(letters).unwrap(),
            },
        )
    }

    /// What the kernel makes of one write (security/device_cgroup.c).
    fn written(list: &mut DeviceList, verdict: Verdict, text: &str) {
        if text == "a" {
            *list = DeviceList {
                default: verdict,
                exceptions: BTreeMap::new(),
            };
            return;
        }
        let DeviceRule {
            kind,
            major,
            minor,
            access,
            ..
        } = rule(&format!("+{text}"));
        let set = DeviceSet { kind, major, minor };
        let held = list.exceptions.get(&set).copied().unwrap_or_default();
        let held = if verdict == list.default {
            held.without(access)
        } else {
            held.union(access)
        };
        list.exceptions.insert(set, held);
        list.exceptions.retain(|_, access| !access.is_empty());
    }

    proptest! {
        #[test]
        fn writes_lead_from_any_list_to_any_other(
            before in proptest::collection::vec(any_rule(), 0..8),
            after in proptest::collection::vec(any_rule(), 0..8),
        ) {
            let rules = &after;
            let lists = (DeviceList::from_rules(&before), DeviceList::from_rules(rules));
            if let (Ok(before), Ok(after)) = lists {
                let mut reached = before.clone();
                for (verdict, text) in before.transition(&after, rules) {
                    written(&mut reached, verdict, &text);
                }
                prop_assert_eq!(reached, after);
            }
        }
    }
}
