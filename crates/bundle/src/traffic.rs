//! How fast a container's network may be, as its annotations say.

use std::collections::BTreeMap;

use crate::{Error, Result, rich};

/// What comes in: `10mbit`, or `unlimited`.
pub const INGRESS: &str = "org.pouch.net.ingress";

/// What goes out.
pub const EGRESS: &str = "org.pouch.net.egress";

const UNLIMITED: &str = "unlimited";

/// tc's units, in bits a second.
const UNITS: [(&str, u64); 4] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

/// Below that nothing goes on that was meant to; above, the kernel's numbers end.
const BITS_MIN: u64 = 8_000;
const BITS_MAX: u64 = 32_000_000_000;

/// Limits of one network; none: nothing was said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What comes in.
    pub ingress: Option<Rate>,
    /// What goes out.
    pub egress: Option<Rate>,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// As fast as it goes.
    Unlimited,
    /// So many bytes a second.
    BytesPerSecond(u32),
}

impl Traffic {
    /// What these annotations ask for. Those of a container in a pod say nothing: the network is the
    /// sandbox's, which has the same ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no rate.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let rate = |key: &str| annotations.get(key).map(|text| rate(key, text)).transpose();
        let told = Self {
            ingress: rate(INGRESS)?,
            egress: rate(EGRESS)?,
        };
        if is_in_pod(annotations) {
            return Ok(Self::default());
        }
        Ok(told)
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// The annotation that something was said by, for messages.
    #[must_use]
    pub fn field(self) -> String {
        let key = if self.ingress.is_some() {
            INGRESS
        } else {
            EGRESS
        };
        format!("annotations.{key}")
    }
}

/// Whether the container shares the network of a sandbox of containerd's CRI.
#[must_use]
pub fn is_in_pod(annotations: &BTreeMap<String, String>) -> bool {
    let (key, sandbox) = rich::SANDBOX;
    annotations.get(key).is_some_and(|kind| kind != sandbox)
}

fn rate(key: &str, text: &str) -> Result<Rate> {
    if text == UNLIMITED {
        return Ok(Rate::Unlimited);
    }
    let refuse = |why: &str| {
        let why = format!("{text:?} {why}");
        Err(Error::invalid(format!("annotations.{key}"), why))
    };
    let mut units = UNITS.iter();
    let number = units.find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)));
    let Some((digits, unit)) = number else {
        return refuse(
            "is no rate: write 10mbit (bit, kbit, mbit, gbit, by the second) or unlimited",
        );
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = digits.parse::<u64>().ok().filter(|_| is_number);
    match bits.and_then(|bits| bits.checked_mul(*unit)) {
        Some(bits) if (BITS_MIN..=BITS_MAX).contains(&bits) => Ok(Rate::BytesPerSecond(
            u32::try_from(bits / 8).unwrap_or(u32::MAX),
        )),
        None if !is_number => refuse("is no rate: before its unit it has no whole number"),
        _ => refuse("is not between 8kbit and 32gbit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[(&str, &str)]) -> Result<Traffic> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Traffic::of(&words.iter().map(own).collect())
    }

    #[test]
    fn a_rate_is_a_number_with_a_unit_of_bits() {
        for (text, expected) in [
            ("unlimited", Rate::Unlimited),
            ("8kbit", Rate::BytesPerSecond(1_000)),
            ("8000bit", Rate::BytesPerSecond(1_000)),
            ("10mbit", Rate::BytesPerSecond(1_250_000)),
            ("32gbit", Rate::BytesPerSecond(4_000_000_000)),
        ] {
            let traffic = parse(&[(INGRESS, text)]).unwrap();
            assert_eq!((traffic.ingress, traffic.egress), (Some(expected), None));
            assert_eq!(parse(&[(EGRESS, text)]).unwrap().egress, Some(expected));
        }
        assert!(parse(&[]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for (text, why) in [
            (
                "10m",
                "is no rate: write 10mbit (bit, kbit, mbit, gbit, by the second) or unlimited",
            ),
            ("mbit", "is no rate: before its unit it has no whole number"),
            (
                "+1mbit",
                "is no rate: before its unit it has no whole number",
            ),
            (
                "1.5mbit",
                "is no rate: before its unit it has no whole number",
            ),
            ("7kbit", "is not between 8kbit and 32gbit"),
            ("33gbit", "is not between 8kbit and 32gbit"),
            (
                "99999999999999999999gbit",
                "is not between 8kbit and 32gbit",
            ),
        ] {
            let error = parse(&[(EGRESS, text)]).unwrap_err().to_string();
            assert_eq!(error, format!("annotations.{EGRESS}: {text:?} {why}"));
        }
    }

    #[test]
    fn the_network_of_a_pod_is_its_sandboxs() {
        let kind = rich::SANDBOX.0;
        let limit = (EGRESS, "1mbit");
        assert!(parse(&[limit, (kind, "container")]).unwrap().is_none());
        assert!(!parse(&[limit, (kind, "sandbox")]).unwrap().is_none());
        assert!(parse(&[(EGRESS, "1"), (kind, "container")]).is_err());
    }
}
