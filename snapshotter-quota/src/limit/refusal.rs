//! Why what was asked for is not taken; texts from outside are quoted, and never in full length.

/// Longest part of a text from outside in a message of ours.
const SHOWN_CHARS_MAX: usize = 64;

/// A request or a configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The value of a label of ours.
    #[error("label {label}: {source}")]
    Label {
        /// Its key.
        label: &'static str,
        /// What is wrong.
        source: Unreadable,
    },
    /// A label with our prefix that means nothing, most likely a slip.
    #[error("label {label:?} is not known; the nearest known one is {nearest}")]
    UnknownLabel {
        /// Its key, shortened.
        label: String,
        /// What may have been meant.
        nearest: &'static str,
    },
    /// Two values that cannot both hold.
    #[error("{left} and {right} contradict each other: {why}")]
    Contradiction {
        /// One, with its value.
        left: String,
        /// The other, with its value.
        right: String,
        /// What would be right.
        why: &'static str,
    },
    /// A value of the configuration.
    #[error("quota.{field}: {source}")]
    Setting {
        /// Which, as `rules[3].size`.
        field: String,
        /// What is wrong.
        source: Unreadable,
    },
    /// Less than any snapshot needs.
    #[error(
        "the {what} {value} is too small for a container's root directory: take {least} or more"
    )]
    TooSmall {
        /// What is limited.
        what: &'static str,
        /// To how much.
        value: String,
        /// What would be enough.
        least: u64,
    },
    /// A rule of Pouch's `--disk-quota`.
    #[error("rule {0}")]
    PathRule(#[source] Unreadable),
}

/// A text that is no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}; {taken}")]
pub struct Unreadable {
    text: String,
    why: String,
    taken: &'static str,
}

impl Unreadable {
    pub(crate) fn new(text: &str, why: impl Into<String>, taken: &'static str) -> Self {
        Self {
            text: shown(text),
            why: why.into(),
            taken,
        }
    }

    pub(crate) fn in_label(self, label: &'static str) -> Refusal {
        Refusal::Label {
            label,
            source: self,
        }
    }

    pub(crate) fn in_setting(self, field: impl Into<String>) -> Refusal {
        Refusal::Setting {
            field: field.into(),
            source: self,
        }
    }
}

/// The beginning of a text.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}
