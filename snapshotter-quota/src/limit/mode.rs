//! What is done about the limit of a snapshot.

use std::{fmt, str::FromStr};

use super::Unreadable;

/// What is done about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It holds: writing fails above it.
    Hard,
    /// Usage is counted, and warned about; nothing fails.
    Account,
    /// Nothing at all.
    Off,
}

impl FromStr for Mode {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        match text {
            "hard" => Ok(Self::Hard),
            "account" => Ok(Self::Account),
            "off" => Ok(Self::Off),
            _ => Err(Unreadable::new(
                text,
                "is no mode",
                "the modes are hard, account and off",
            )),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hard => "hard",
            Self::Account => "account",
            Self::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_three_words() {
        for mode in [Mode::Hard, Mode::Account, Mode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for text in ["", "HARD", "soft", "off "] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }
}
