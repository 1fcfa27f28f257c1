//! At which shares of its limit a snapshot is worth a warning.

use std::{fmt, str::FromStr};

use super::Unreadable;

const TAKEN: &str = "up to eight percentages from 1% to 100% are taken, as 80%,95%";
const COUNT_MAX: usize = 8;

/// Percentages of a limit, rising, none twice; none at all is possible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thresholds(Vec<u8>);

impl Thresholds {
    /// Not at all.
    pub const NONE: &'static Self = &Self(Vec::new());

    /// From the lowest.
    pub fn percentages(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied()
    }

    /// The highest that `used` of `limit` has reached.
    #[must_use]
    pub fn reached(&self, used: u64, limit: u64) -> Option<u8> {
        let reached =
            |percent: &&u8| u128::from(used) * 100 >= u128::from(limit) * u128::from(**percent);
        self.0.iter().rev().find(reached).copied()
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, percent) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{percent}%")?;
        }
        Ok(())
    }
}

impl FromStr for Thresholds {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let refuse = |why| Unreadable::new(text, why, TAKEN);
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        let mut percentages = Vec::new();
        for word in text.split(',') {
            let percent = word
                .strip_suffix('%')
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|number| number.parse::<u8>().ok())
                .filter(|percent| (1..=100).contains(percent))
                .ok_or_else(|| refuse("has a part that is no such percentage"))?;
            if percentages.contains(&percent) {
                return Err(refuse("has the same percentage twice"));
            }
            percentages.push(percent);
            if percentages.len() > COUNT_MAX {
                return Err(refuse("has more than eight percentages"));
            }
        }
        percentages.sort_unstable();
        Ok(Self(percentages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_and_sorted() {
        let check = |text: &str, shown: &str| {
            let read = text.parse::<Thresholds>().unwrap();
            assert_eq!(read.to_string(), shown, "{text}");
        };
        check("80%", "80%");
        check("95%,80%", "80%,95%");
        check("1%,100%", "1%,100%");
    }

    #[test]
    fn what_is_no_percentage_is_refused() {
        for text in [
            "",
            "80",
            "80%,",
            "0%",
            "101%",
            "+8%",
            "80 %",
            "80%,80%",
            "1%,2%,3%,4%,5%,6%,7%,8%,9%",
            "256%",
            "８０%",
        ] {
            let error = text.parse::<Thresholds>().unwrap_err();
            assert!(error.to_string().contains("80%,95%"), "{text}: {error}");
        }
    }

    #[test]
    fn highest_reached_threshold_is_told() {
        let thresholds = "80%,95%".parse::<Thresholds>().unwrap();
        assert_eq!(thresholds.reached(79, 100), None);
        assert_eq!(thresholds.reached(80, 100), Some(80));
        assert_eq!(thresholds.reached(94, 100), Some(80));
        assert_eq!(thresholds.reached(200, 100), Some(95));
        assert_eq!(thresholds.reached(u64::MAX, u64::MAX), Some(95));
        assert_eq!(Thresholds::default().reached(1, 1), None);
    }
}
