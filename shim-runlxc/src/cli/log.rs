//! The log of the command in logrus's forms, which callers of runc parse.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use shim_core::{level_word, rfc3339};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::arguments::LogFormat;
use crate::{Error, Result};

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard error.
    Stderr,
    /// A file: failures are printed too.
    File,
}

/// Starts the log.
pub(crate) fn init(file: Option<&Path>, format: LogFormat, level: Level) -> Result<Target> {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        // It would be told on standard error, which may be what cannot be written to.
        .log_internal_errors(false)
        .event_format(Logrus { format });
    let (started, target) = match file {
        Some(path) => {
            let mut options = File::options();
            let file = options.create(true).append(true).mode(0o644).open(path);
            let file = file.map_err(Error::on("open log", path))?;
            (
                builder.with_writer(Mutex::new(file)).try_init(),
                Target::File,
            )
        }
        None => (builder.with_writer(io::stderr).try_init(), Target::Stderr),
    };
    // It can only be started twice by a test of this crate.
    debug_assert!(started.is_ok() || cfg!(test));
    Ok(target)
}

/// One line per event.
struct Logrus {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Logrus
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let time = rfc3339(now.as_secs() * 1_000_000_000);
        let level = level_word(*event.metadata().level());
        let line = match self.format {
            LogFormat::Json => json!({"level": level, "msg": said.0, "time": time}).to_string(),
            LogFormat::Text => format!("time={time:?} level={level} msg={:?}", said.0),
        };
        writeln!(writer, "{line}")
    }
}

/// Message and fields in one text.
#[derive(Default)]
struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = if field.name() == "message" {
            let after = std::mem::take(&mut self.0);
            write!(self.0, "{value:?}{after}")
        } else {
            write!(self.0, ", {}={value:?}", field.name())
        };
        written.expect("writing to a String does not fail");
    }
}
