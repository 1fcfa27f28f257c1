//! The operator's part: defaults, and rules for some of the snapshots. Reads no file.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Asked, GroupName, Inodes, Mode, Refusal, Request, Size, Thresholds, Unreadable};

/// Bound on a compiled pattern: it is matched at every Prepare.
const PATTERN_BYTES_MAX: usize = 1 << 20;
const RULES_MAX: usize = 1000;

/// What is counted when nothing is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accounting {
    /// Every snapshot, image layers too, so that Usage and Commit never walk.
    #[default]
    All,
    /// Those with a limit or with a mode of their own.
    Limited,
}

/// Defaults and rules as the configuration has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyText {
    /// For snapshots that nobody asked a size for; none without it.
    #[serde(deserialize_with = "checked::<Size, _>")]
    pub default_size: Option<String>,
    /// The same for inodes.
    #[serde(deserialize_with = "checked_count")]
    pub default_inodes: Option<u64>,
    /// The same for warnings, as `80%,95%`.
    #[serde(deserialize_with = "checked::<Thresholds, _>")]
    pub default_warn: Option<String>,
    /// What is counted when nothing is limited.
    pub accounting: Accounting,
    /// The first that matches counts.
    pub rules: Vec<RuleText>,
}

/// One rule: what it is for, and what it asks for. A condition that is missing is met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleText {
    /// Namespace of containerd, exactly.
    pub namespace: Option<String>,
    /// A regular expression that is found in the name (which is a container's id).
    #[serde(deserialize_with = "checked_pattern")]
    pub key: Option<String>,
    /// Name of the parent, exactly: the chain id of the image.
    pub parent: Option<String>,
    /// Most bytes.
    #[serde(deserialize_with = "checked::<Size, _>")]
    pub size: Option<String>,
    /// Bytes above which the kernel's grace time runs.
    #[serde(deserialize_with = "checked::<Size, _>")]
    pub soft_size: Option<String>,
    /// Most inodes.
    #[serde(deserialize_with = "checked_count")]
    pub inodes: Option<u64>,
    /// When to warn.
    #[serde(deserialize_with = "checked::<Thresholds, _>")]
    pub warn: Option<String>,
    /// With whom the limit is shared.
    #[serde(deserialize_with = "checked::<GroupName, _>")]
    pub group: Option<String>,
    /// What is done about it.
    pub mode: Option<Mode>,
}

/// Defaults and rules, checked.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What is counted when nothing is limited.
    pub accounting: Accounting,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
    /// For what neither labels nor that rule say.
    pub defaults: Asked,
}

/// A rule, checked.
#[derive(Debug, Clone)]
pub struct Rule {
    namespace: Option<String>,
    key: Option<regex::Regex>,
    parent: Option<String>,
    /// What it asks for.
    pub asked: Asked,
}

impl Policy {
    /// Checks what the configuration says.
    ///
    /// # Errors
    /// [`Refusal::Setting`] that names the field.
    pub fn new(text: &PolicyText) -> Result<Self, Refusal> {
        if text.rules.len() > RULES_MAX {
            let count = text.rules.len().to_string();
            let why = Unreadable::new(&count, "is too many", "up to 1000 rules are taken");
            return Err(why.in_setting("rules"));
        }
        let rules = text.rules.iter().enumerate();
        Ok(Self {
            accounting: text.accounting,
            rules: rules
                .map(|(index, rule)| Rule::new(rule, &format!("rules[{index}].")))
                .collect::<Result<_, _>>()?,
            defaults: Asked {
                bytes: parsed("default_size", text.default_size.as_deref())?,
                inodes: inodes("default_inodes", text.default_inodes)?,
                warn: parsed::<Thresholds>("default_warn", text.default_warn.as_deref())?,
                ..Asked::default()
            },
        })
    }

    /// What the first rule that matches asks for.
    #[must_use]
    pub fn rule_for(&self, request: &Request<'_>) -> Option<&Asked> {
        let rule = self.rules.iter().find(|rule| rule.matches(request));
        rule.map(|rule| &rule.asked)
    }
}

impl Rule {
    fn new(text: &RuleText, at: &str) -> Result<Self, Refusal> {
        let field = |name: &str| format!("{at}{name}");
        Ok(Self {
            namespace: text.namespace.clone(),
            key: text
                .key
                .as_deref()
                .map(|key| pattern(key).map_err(|why| why.in_setting(field("key"))))
                .transpose()?,
            parent: text.parent.clone(),
            asked: Asked {
                bytes: parsed::<Size>(&field("size"), text.size.as_deref())?,
                soft_bytes: parsed::<Size>(&field("soft_size"), text.soft_size.as_deref())?,
                inodes: inodes(&field("inodes"), text.inodes)?,
                warn: parsed::<Thresholds>(&field("warn"), text.warn.as_deref())?,
                group: parsed::<GroupName>(&field("group"), text.group.as_deref())?,
                mode: text.mode,
            },
        })
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let same = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        same(&self.namespace, Some(request.namespace()))
            && same(&self.parent, request.parent_name())
            && self
                .key
                .as_ref()
                .is_none_or(|key| key.is_match(request.name()))
    }
}

/// A text that is refused where it is read, so that its file and its key are told.
fn checked<'de, T, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    T: FromStr<Err = Unreadable>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    let value = text.as_deref().map(str::parse::<T>).transpose();
    value.map_err(D::Error::custom)?;
    Ok(text)
}

/// The same for a number of inodes.
fn checked_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let count = Option::<u64>::deserialize(deserializer)?;
    let value = count.map(|count| count.to_string().parse::<Inodes>());
    value.transpose().map_err(D::Error::custom)?;
    Ok(count)
}

/// The same for a regular expression.
fn checked_pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let value = text.as_deref().map(pattern).transpose();
    value.map_err(D::Error::custom)?;
    Ok(text)
}

fn pattern(text: &str) -> Result<regex::Regex, Unreadable> {
    regex::RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            let why = match error {
                regex::Error::CompiledTooBig(_) => "is too large when compiled".to_owned(),
                // The crate's text shows the pattern over several lines with a caret below it.
                error => error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .replace("error: ", "is not understood: "),
            };
            Unreadable::new(text, why, "a regular expression is taken, as ^web-")
        })
}

fn parsed<T>(field: &str, text: Option<&str>) -> Result<Option<T>, Refusal>
where
    T: FromStr<Err = Unreadable>,
{
    let read = text.map(|text| {
        text.parse()
            .map_err(|why: Unreadable| why.in_setting(field))
    });
    read.transpose()
}

fn inodes(field: &str, count: Option<u64>) -> Result<Option<Inodes>, Refusal> {
    parsed(field, count.map(|count| count.to_string()).as_deref())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn policy(text: &str) -> Result<Policy, String> {
        let text: PolicyText = toml::from_str(text).map_err(|error| error.to_string())?;
        Policy::new(&text).map_err(|refusal| refusal.to_string())
    }

    const RULES: &str = r#"
        default_size = "10g"
        default_inodes = 1000
        accounting = "limited"
        [[rules]]
        namespace = "k8s.io"
        key = "^web-[0-9]+$"
        size = "1g"
        [[rules]]
        parent = "sha256:abc"
        mode = "off"
        [[rules]]
        namespace = "default"
        warn = "50%"
        group = "all"
    "#;

    #[test]
    fn first_rule_that_matches_counts() {
        let policy = policy(RULES).unwrap();
        assert_eq!(policy.accounting, Accounting::Limited);
        let check = |key: &str, parent: Option<&str>, expected: Option<usize>| {
            let labels = BTreeMap::new();
            let request = Request {
                key,
                parent,
                labels: &labels,
            };
            let expected = expected.map(|index| &policy.rules[index].asked);
            assert_eq!(policy.rule_for(&request), expected, "{key} {parent:?}");
        };
        check("k8s.io/7/web-12", None, Some(0));
        check("k8s.io/7/web-12", Some("k8s.io/3/sha256:abc"), Some(0));
        check("k8s.io/7/web-x", Some("k8s.io/3/sha256:abc"), Some(1));
        check("default/7/web-12", Some("default/3/sha256:abcd"), Some(2));
        check("web-12", None, None);
        check("other/1/a/k8s.io", Some("sha256:abc"), Some(1));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let check = |text: &str, expected: &str| {
            let error = policy(text).err().unwrap();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("default_size = \"-1\"", "\"-1\" is negative");
        check("default_inodes = 0", "\"0\" is no limit");
        check("defalt_size = \"1g\"", "expected one of `default_size`");
        check(
            "[[rules]]\n[[rules]]\nkey = \"(\"",
            "\"(\" is not understood: unclosed group",
        );
        check("[[rules]]\nkey = \"(a{1000}){1000}\"", "too large");
        check("[[rules]]\nmode = \"none\"", "unknown variant");
        check("[[rules]]\nsize = \"x\"", "\"x\"");
        check(&"[[rules]]\n".repeat(1001), "up to 1000 rules");
    }
}
