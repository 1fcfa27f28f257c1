//! The text of PouchContainer's `--disk-quota`: sizes for the root and for volumes by path.
//!
//! ```text
//!  rules = rule *( ("," | ";" | "&") rule )
//!  rule  = size | ".*" "=" size | path *( "&" path ) "=" size
//! ```
//!
//! A size alone is the rule `.*`: the root and every volume have that much each. Paths joined by
//! `&` before a size share it.

use std::str::FromStr;

use super::{Refusal, Size, Unreadable};

const TAKEN: &str = "rules are taken as 10g, /=10g&/data=20g, /abc&/def=10g or .*=10g";
const TEXT_BYTES_MAX: usize = 64 << 10;
const PATHS_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 4095;

/// A place in a container: absolute, without `.`, `..`, empty parts and a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPath(String);

impl ContainerPath {
    /// The path as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `/`: the snapshot itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }
}

impl FromStr for ContainerPath {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let refuse = |why| Err(Unreadable::new(text, why, TAKEN));
        let Some(below) = text.strip_prefix('/') else {
            return refuse("is no absolute path");
        };
        if text.len() > PATH_BYTES_MAX {
            return refuse("is longer than a path can be");
        }
        if text.chars().any(char::is_control) {
            return refuse("has a control character");
        }
        if text.contains(['*', '?', '[', ']', '(', ')', '|', '^', '$', '+', '\\']) {
            return refuse("is a pattern, and none but .* is taken");
        }
        let is_name = |part: &str| !matches!(part, "" | "." | "..");
        if !below.is_empty() && !below.split('/').all(is_name) {
            return refuse("has an empty part, a . or a .. in it");
        }
        Ok(Self(text.to_owned()))
    }
}

/// What a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The root and every volume, each for itself.
    Each,
    /// These together; at least one.
    Together(Vec<ContainerPath>),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// What it is for.
    pub place: Place,
    /// Most bytes.
    pub size: Size,
}

/// Rules in which no place is named twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRules(Vec<PathRule>);

impl PathRules {
    /// In the order of the text.
    pub fn rules(&self) -> impl Iterator<Item = &PathRule> {
        self.0.iter()
    }

    /// The rule for a place: one that names it, else the one for each.
    #[must_use]
    pub fn rule_for(&self, path: &ContainerPath) -> Option<&PathRule> {
        let named = |rule: &&PathRule| match &rule.place {
            Place::Together(paths) => paths.contains(path),
            Place::Each => false,
        };
        let each = |rule: &&PathRule| rule.place == Place::Each;
        let rules = || self.0.iter();
        rules().find(named).or_else(|| rules().find(each))
    }

    /// What the snapshot of the container may hold.
    #[must_use]
    pub fn root_size(&self) -> Option<Size> {
        let root = ContainerPath("/".to_owned());
        self.rule_for(&root).map(|rule| rule.size)
    }
}

impl FromStr for PathRules {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        read(text).map(Self).map_err(Refusal::PathRule)
    }
}

fn read(text: &str) -> Result<Vec<PathRule>, Unreadable> {
    if text.is_empty() {
        return Err(Unreadable::new(text, "is empty", TAKEN));
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(Unreadable::new(text, "is longer than 64 KiB", TAKEN));
    }
    let mut rules = Vec::new();
    for list in text.split([',', ';']) {
        // Paths that wait for the size that ends their rule.
        let mut paths = Vec::new();
        for word in list.split('&') {
            match word.split_once('=') {
                Some((".*", size)) if paths.is_empty() => rules.push(PathRule {
                    place: Place::Each,
                    size: size.parse()?,
                }),
                Some((path, size)) => {
                    paths.push(path.parse()?);
                    rules.push(PathRule {
                        place: Place::Together(std::mem::take(&mut paths)),
                        size: size.parse()?,
                    });
                }
                None if word.starts_with('/') => paths.push(word.parse()?),
                None if paths.is_empty() => rules.push(PathRule {
                    place: Place::Each,
                    size: word.parse()?,
                }),
                None => return Err(Unreadable::new(word, "is no path", TAKEN)),
            }
        }
        if !paths.is_empty() {
            return Err(Unreadable::new(list, "does not end with a size", TAKEN));
        }
    }
    no_place_twice(text, &rules)?;
    Ok(rules)
}

fn no_place_twice(text: &str, rules: &[PathRule]) -> Result<(), Unreadable> {
    let mut each = 0;
    let mut paths = Vec::new();
    for rule in rules {
        match &rule.place {
            Place::Each => each += 1,
            Place::Together(some) => paths.extend(some),
        }
    }
    if paths.len() > PATHS_MAX {
        return Err(Unreadable::new(text, "names more than 256 paths", TAKEN));
    }
    paths.sort_unstable();
    if each > 1 || paths.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Unreadable::new(text, "names a place twice", TAKEN));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `A B=1024;*=5`, to compare with.
    fn shown(rules: &PathRules) -> String {
        let rule = |rule: &PathRule| match &rule.place {
            Place::Each => format!("*={}", rule.size),
            Place::Together(paths) => {
                let paths: Vec<_> = paths.iter().map(ContainerPath::as_str).collect();
                format!("{}={}", paths.join(" "), rule.size)
            }
        };
        rules.rules().map(rule).collect::<Vec<_>>().join(";")
    }

    #[test]
    fn rules_are_read_as_pouch_writes_them() {
        let check = |text: &str, expected: &str, root: Option<u64>| {
            let rules: PathRules = text.parse().unwrap();
            assert_eq!(shown(&rules), expected, "{text}");
            let size = rules.root_size().map(|size| size.bytes().get());
            assert_eq!(size, root, "{text}");
        };
        check("10k", "*=10240", Some(10240));
        check(".*=10k", "*=10240", Some(10240));
        check("/=1k", "/=1024", Some(1024));
        check("/=1k&/data=2k", "/=1024;/data=2048", Some(1024));
        check("/=1k,/data=2k", "/=1024;/data=2048", Some(1024));
        check("/=1k;/data=2k", "/=1024;/data=2048", Some(1024));
        check("/abc&/def=1k", "/abc /def=1024", None);
        check("/&/abc=1k", "/ /abc=1024", Some(1024));
        check(
            "/a&/b=1k&/c=2k;.*=3k",
            "/a /b=1024;/c=2048;*=3072",
            Some(3072),
        );
        check("/a.b/c-d=1k", "/a.b/c-d=1024", None);
    }

    #[test]
    fn a_named_path_counts_before_each() {
        let rules: PathRules = "/data=1k,2k".parse().unwrap();
        let size = |path: &str| {
            let rule = rules.rule_for(&path.parse().unwrap()).unwrap();
            rule.size.bytes().get()
        };
        assert_eq!(size("/data"), 1024);
        assert_eq!(size("/data/below"), 2048);
        assert_eq!(size("/"), 2048);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let check = |text: &str, why: &str| {
            let error = text.parse::<PathRules>().unwrap_err();
            let error = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(error.contains(why), "{text}: {error}");
        };
        check("", "is empty");
        check("/=", "is empty");
        check("/", "does not end with a size");
        check("/a&/b", "does not end with a size");
        check("/a,/b=1k", "does not end with a size");
        check("/a&10k", "is no path");
        check("/a&.*=10k", "is no absolute path");
        check("a=1k", "is no absolute path");
        check("=1k", "is no absolute path");
        check("/a/../b=1k", "a . or a ..");
        check("/a/./b=1k", "a . or a ..");
        check("//=1k", "an empty part");
        check("/a/=1k", "an empty part");
        check("/a/*=1k", "is a pattern");
        check("/(a|b)=1k", "is a pattern");
        check("/a\nb=1k", "control character");
        check("/a=1k=2k", "unit that is not known");
        check("/a=1.5g", "is a fraction");
        check("/a=1k,/a=2k", "names a place twice");
        check("/a&/a=1k", "names a place twice");
        check("1k,.*=2k", "names a place twice");
        check("1k,,", "is empty");
        check(&format!("/{}=1k", "a".repeat(5000)), "longer than a path");
        check(&"/a&".repeat(30_000), "64 KiB");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[/a.*&=,;0-9k]{0,40}") {
            if let Ok(rules) = text.parse::<PathRules>() {
                prop_assert!(rules.rules().count() > 0);
            }
        }
    }
}
