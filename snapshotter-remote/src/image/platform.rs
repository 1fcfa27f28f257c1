//! For which machines an image is.

use std::{fmt, str::FromStr};

/// As images name it: `linux/amd64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture, as Go calls it.
    pub architecture: String,
}

impl Platform {
    /// That of this machine.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
        }
    }

    pub(crate) fn is(&self, os: &str, architecture: &str) -> bool {
        self.os == os && self.architecture == architecture
    }
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/');
        let parts = parts.filter(|(os, rest)| {
            let is_word = |word: &str| !word.is_empty() && !word.contains('/');
            is_word(os) && is_word(rest)
        });
        let (os, architecture) = parts.ok_or("no platform: OS/ARCHITECTURE, as in linux/amd64")?;
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}
