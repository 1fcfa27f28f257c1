//! Which bytes of an object are meant, and whether the client has them already (RFC 9110, 13 and 14).
//! Pure.

/// What a request says of an object, as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// If-Match.
    pub(super) matches: Option<String>,
    /// If-None-Match.
    pub(super) none_match: Option<String>,
    /// Range, of GET only (14.2).
    pub(super) range: Option<String>,
    /// If-Range.
    pub(super) if_range: Option<String>,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selected {
    /// All of it.
    Whole,
    /// From the first to the last, both included.
    Part {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// Nothing, because the client means other bytes.
    Failed,
    /// Nothing, because the client has it.
    NotModified,
    /// Nothing, because it has no such bytes.
    NotSatisfiable,
}

impl Conditions {
    /// Of an object of that length and version; `tag` is quoted.
    pub(super) fn select(&self, tag: &str, bytes: u64) -> Selected {
        if let Some(matches) = &self.matches
            && !has_strong_tag(matches, tag)
        {
            return Selected::Failed;
        }
        if let Some(none_match) = &self.none_match
            && has_tag(none_match, tag)
        {
            return Selected::NotModified;
        }
        let Some(range) = &self.range else {
            return Selected::Whole;
        };
        // A date, or the tag of other bytes: the client wants all of the new ones (13.1.5).
        if self
            .if_range
            .as_deref()
            .is_some_and(|wanted| wanted.trim() != tag)
        {
            return Selected::Whole;
        }
        part(range, bytes)
    }
}

/// Whether a list of tags has that one; weak ones never do (13.1.1).
fn has_strong_tag(list: &str, tag: &str) -> bool {
    let mut tags = list.split(',').map(str::trim);
    tags.any(|one| one == "*" || one == tag)
}

/// Whether a list of tags has that one; weak ones count here (13.1.2).
fn has_tag(list: &str, tag: &str) -> bool {
    list.split(',').map(str::trim).any(|one| {
        let one = one.strip_prefix("W/").unwrap_or(one);
        one == "*" || one == tag
    })
}

/// One range of bytes. Several, other units and what is no range do not count, as 14.2 allows.
fn part(range: &str, bytes: u64) -> Selected {
    let Some((unit, set)) = range.split_once('=') else {
        return Selected::Whole;
    };
    let Some((first, last)) = set.trim().split_once('-') else {
        return Selected::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selected::Whole;
    }
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => within(first, last, bytes),
        (Some(first), None) if last.is_empty() => within(first, u64::MAX, bytes),
        (None, Some(0)) if first.is_empty() => Selected::NotSatisfiable,
        (None, Some(count)) if first.is_empty() => {
            within(bytes.saturating_sub(count), u64::MAX, bytes)
        }
        _ => Selected::Whole,
    }
}

fn within(first: u64, last: u64, bytes: u64) -> Selected {
    if first >= bytes {
        return Selected::NotSatisfiable;
    }
    let last = last.min(bytes - 1);
    Selected::Part { first, last }
}

/// Digits alone; more than a number holds is as much as it holds.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"tag\"";

    #[test]
    fn ranges_are_taken_as_rfc_9110_says() {
        let check = |range: &str, expected| {
            let conditions = Conditions {
                range: Some(range.to_owned()),
                ..Conditions::default()
            };
            assert_eq!(conditions.select(TAG, 10), expected, "{range}");
        };
        let part = |first, last| Selected::Part { first, last };
        check("bytes=0-0", part(0, 0));
        check("bytes=2-4", part(2, 4));
        check("Bytes=2-4", part(2, 4));
        check("bytes=2-", part(2, 9));
        check("bytes=2-10", part(2, 9));
        check("bytes=2-99999999999999999999999", part(2, 9));
        check("bytes=-3", part(7, 9));
        check("bytes=-30", part(0, 9));
        check("bytes=10-", Selected::NotSatisfiable);
        check("bytes=10-12", Selected::NotSatisfiable);
        check("bytes=99999999999999999999999-", Selected::NotSatisfiable);
        check("bytes=-0", Selected::NotSatisfiable);
        for ignored in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=4-2",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes=0x1-2",
        ] {
            check(ignored, Selected::Whole);
        }
    }

    #[test]
    fn an_empty_object_has_no_ranges() {
        let ranged = |range: &str| Conditions {
            range: Some(range.to_owned()),
            ..Conditions::default()
        };
        assert_eq!(ranged("bytes=0-").select(TAG, 0), Selected::NotSatisfiable);
        assert_eq!(ranged("bytes=-1").select(TAG, 0), Selected::NotSatisfiable);
    }

    #[test]
    fn tags_decide_before_ranges() {
        let check = |none_match: Option<&str>, if_range: Option<&str>, expected| {
            let conditions = Conditions {
                matches: None,
                none_match: none_match.map(str::to_owned),
                range: Some("bytes=0-0".to_owned()),
                if_range: if_range.map(str::to_owned),
            };
            assert_eq!(conditions.select(TAG, 10), expected, "{conditions:?}");
        };
        let part = Selected::Part { first: 0, last: 0 };
        check(None, None, part);
        check(Some("\"tag\""), None, Selected::NotModified);
        check(Some("\"other\", W/\"tag\""), None, Selected::NotModified);
        check(Some("*"), None, Selected::NotModified);
        check(Some("tag"), None, part);
        check(Some("\"other\""), None, part);
        check(None, Some("\"tag\""), part);
        check(None, Some("\"other\""), Selected::Whole);
        check(None, Some("W/\"tag\""), Selected::Whole);
        check(None, Some("Mon, 01 Jan 2024 00:00:00 GMT"), Selected::Whole);
    }

    #[test]
    fn other_bytes_than_those_that_are_meant_are_not_sent() {
        let check = |matches: &str, expected| {
            let conditions = Conditions {
                matches: Some(matches.to_owned()),
                none_match: Some("\"tag\"".to_owned()),
                ..Conditions::default()
            };
            assert_eq!(conditions.select(TAG, 10), expected, "{matches}");
        };
        check("\"other\"", Selected::Failed);
        check("W/\"tag\"", Selected::Failed);
        check("\"other\", \"tag\"", Selected::NotModified);
        check("*", Selected::NotModified);
    }
}
