//! Signals on the command line.

use launch::signals;

use crate::{Error, Result};

/// The number of a signal.
pub(crate) fn parse(text: &str) -> Result<i32> {
    signals::parse(text).ok_or_else(|| Error::Usage(format!("unknown signal {text:?}")))
}
