//! Option words of a mount that containerd sends for a root file system: those of every mount, and
//! `uidmap=` and `gidmap=`, which are work of ours. Touches no disk.

use crate::error::OptionError;
use crate::mount::{Extension, IdMap, IdRange, MountOptions, Scope};

const UID_KEY: &str = "uidmap=";
const GID_KEY: &str = "gidmap=";

/// As many ranges as the kernel takes (user_namespaces(7)).
const RANGES_MAX: usize = 340;

impl MountOptions {
    /// As [`MountOptions::parse`], and takes `uidmap=INSIDE:OUTSIDE:COUNT[,..]` and `gidmap=`, by
    /// which containerd ≥ 2.0 has the lower directories of an overlay, or a bind, show their owners
    /// mapped.
    ///
    /// # Errors
    /// [`OptionError`]; also for one of the two without the other, and for ranges that the kernel
    /// would refuse.
    pub fn parse_rootfs(words: &[String]) -> Result<Self, OptionError> {
        let value = |key: &str| words.iter().rev().find_map(|word| word.strip_prefix(key));
        let ours = |word: &String| word.starts_with(UID_KEY) || word.starts_with(GID_KEY);
        let others: Vec<String> = words.iter().filter(|word| !ours(word)).cloned().collect();
        let mut options = Self::parse(&others)?;
        let (uids, gids) = match (value(UID_KEY), value(GID_KEY)) {
            (None, None) => return Ok(options),
            (Some(uids), Some(gids)) => (uids, gids),
            (uids, _) => {
                let missing = if uids.is_some() { GID_KEY } else { UID_KEY };
                return Err(OptionError::IdMap {
                    word: missing.to_owned(),
                    why: "is missing: users and groups are mapped both or not at all".to_owned(),
                });
            }
        };
        let parse = |key: &str, text: &str| {
            let ranges = id_ranges(text);
            ranges.map_err(|why| OptionError::IdMap {
                word: format!("{key}{text}"),
                why,
            })
        };
        options.extensions.push(Extension::IdMap(IdMap {
            scope: Scope::Tree,
            uids: parse(UID_KEY, uids)?,
            gids: parse(GID_KEY, gids)?,
        }));
        Ok(options)
    }
}

/// Ranges as containerd writes them, `INSIDE:OUTSIDE:COUNT[,..]`.
///
/// # Errors
/// Says why the kernel would refuse them: empty, above 2³²−2, overlapping, or more than 340.
pub fn id_ranges(text: &str) -> Result<Vec<IdRange>, String> {
    let ranges: Vec<IdRange> = text.split(',').map(range).collect::<Result<_, _>>()?;
    if ranges.len() > RANGES_MAX {
        return Err(format!(
            "{} ranges, at most {RANGES_MAX} are taken",
            ranges.len()
        ));
    }
    let overlap = |begin: fn(&IdRange) -> u32| {
        let mut sorted: Vec<_> = ranges.iter().map(|one| (begin(one), one.count)).collect();
        sorted.sort_unstable();
        sorted.windows(2).any(|two| two[1].0 - two[0].0 < two[0].1)
    };
    if overlap(|range| range.inside) || overlap(|range| range.outside) {
        return Err("ranges overlap".to_owned());
    }
    Ok(ranges)
}

fn range(text: &str) -> Result<IdRange, String> {
    let wrong = || format!("{text:?} is not INSIDE:OUTSIDE:COUNT");
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let mut numbers = text.split(':').map(number);
    let mut next = || numbers.next().flatten();
    let (Some(inside), Some(outside), Some(count), None) = (next(), next(), next(), next()) else {
        return Err(wrong());
    };
    if text.split(':').count() != 3 {
        return Err(wrong());
    }
    // (u32)-1 is nobody at all.
    let ends_early = |begin: u32| begin.checked_add(count).is_some();
    if count == 0 || !ends_early(inside) || !ends_early(outside) {
        return Err(format!("{text:?} is empty or goes beyond 4294967294"));
    }
    Ok(IdRange {
        inside,
        outside,
        count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<MountOptions, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        MountOptions::parse_rootfs(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn maps_are_taken_out_and_the_rest_stays() {
        let words = ["ro", "index=off", "uidmap=0:1000:10,10:5:1", "gidmap=0:7:1"];
        let options = parse(&words).unwrap();
        assert_eq!(options.data, "index=off");
        assert_eq!(options.flags_set, crate::flags::RDONLY);
        let range = |inside, outside, count| IdRange {
            inside,
            outside,
            count,
        };
        let map = IdMap {
            scope: Scope::Tree,
            uids: vec![range(0, 1000, 10), range(10, 5, 1)],
            gids: vec![range(0, 7, 1)],
        };
        assert_eq!(options.extensions, [Extension::IdMap(map)]);
        let plain = ["ro", "lowerdir=/a"];
        let all: Vec<_> = plain.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(parse(&plain).unwrap(), MountOptions::parse(&all).unwrap());
    }

    #[test]
    fn maps_that_no_mount_can_have_are_refused_by_name() {
        let check = |words: &[&str], expected: &str| {
            let refusal = parse(words).unwrap_err();
            assert_eq!(refusal, expected, "{words:?}");
        };
        let both = "is missing: users and groups are mapped both or not at all";
        check(&["uidmap=0:1:1"], &format!("option \"gidmap=\" {both}"));
        check(&["gidmap=0:1:1"], &format!("option \"uidmap=\" {both}"));
        check(
            &["uidmap=0:1:1", "gidmap=0:1"],
            "option \"gidmap=0:1\" \"0:1\" is not INSIDE:OUTSIDE:COUNT",
        );
        check(
            &["uidmap=0:1:5,4:9:1", "gidmap=0:1:1"],
            "option \"uidmap=0:1:5,4:9:1\" ranges overlap",
        );
    }
}
