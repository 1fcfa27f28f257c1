//! The log on stderr: text or JSON, with the priorities of sd-daemon(3) when journald reads it.
//! The level can be changed while the daemon runs, the format cannot.

use std::{fmt, io, os::unix::fs::MetadataExt};

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{self, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::{Error, Result};

/// The table `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Least severity that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// Severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What somebody must act on.
    Error,
    /// What the daemon recovered from, too.
    Warn,
    /// What an operator would tell another, too.
    #[default]
    Info,
    /// Each request, too.
    Debug,
    /// What the libraries say, too.
    Trace,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `time LEVEL message field=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the level of the running log.
#[derive(Clone)]
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
    crate_name: &'static str,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").finish_non_exhaustive()
    }
}

impl Logging {
    /// Logs to stderr from now on, panics included. `crate_name` is the snapshotter's own, with
    /// underscores; other crates than it and this one are heard from `warn` on only.
    ///
    /// # Errors
    /// [`Error::Precondition`] when this process has a log already.
    pub fn start(config: LogConfig, crate_name: &'static str) -> Result<Self> {
        let destination = if is_journal(&io::stderr()) {
            Destination::Journal
        } else {
            Destination::Terminal
        };
        let (logging, subscriber) = Self::with(config, crate_name, destination, io::stderr);
        subscriber.try_init().map_err(|error| {
            Error::Precondition(format!(
                "the log of this process is set up already: {error}"
            ))
        })?;
        log_panics();
        Ok(logging)
    }

    fn with<W>(
        config: LogConfig,
        crate_name: &'static str,
        destination: Destination,
        writer: W,
    ) -> (Self, impl Subscriber + Send + Sync)
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, handle) = reload::Layer::new(targets(config.level, crate_name));
        let subscriber = tracing_subscriber::registry().with(filter).with(lines(
            config.format,
            destination,
            writer,
        ));
        let logging = Self {
            filter: handle,
            crate_name,
        };
        (logging, subscriber)
    }

    /// From now on this level counts.
    pub fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.filter.reload(targets(level, self.crate_name)) {
            tracing::warn!(%error, "the level of the log stays as it was");
        }
    }
}

fn targets(level: LogLevel, crate_name: &str) -> Targets {
    let (ours, others) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    Targets::new()
        .with_default(others)
        .with_target(env!("CARGO_CRATE_NAME"), ours)
        .with_target(crate_name.to_owned(), ours)
}

/// Who reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// journald: it keeps the time itself and wants the priority.
    Journal,
    /// Anything else.
    Terminal,
}

/// Whether a descriptor is journald's: JOURNAL_STREAM of systemd.exec(5).
fn is_journal(stream: &impl std::os::fd::AsFd) -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(file) = stream.as_fd().try_clone_to_owned() else {
        return false;
    };
    std::fs::File::from(file)
        .metadata()
        .is_ok_and(|metadata| named == format!("{}:{}", metadata.dev(), metadata.ino()))
}

type Line<S> = Box<dyn Layer<S> + Send + Sync>;

fn lines<S, W>(format: LogFormat, destination: Destination, writer: W) -> Line<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match (format, destination) {
        (LogFormat::Text, Destination::Terminal) => {
            Box::new(layer.event_format(format::format().with_target(false).with_ansi(false)))
        }
        (LogFormat::Text, Destination::Journal) => Box::new(
            layer.event_format(Prioritised(
                format::format()
                    .without_time()
                    .with_level(false)
                    .with_target(false)
                    .with_ansi(false),
            )),
        ),
        (LogFormat::Json, Destination::Terminal) => {
            Box::new(layer.json().flatten_event(true).with_target(false))
        }
        (LogFormat::Json, Destination::Journal) => Box::new(
            layer
                .fmt_fields(format::JsonFields::new())
                .event_format(Prioritised(
                    format::format()
                        .json()
                        .flatten_event(true)
                        .without_time()
                        .with_target(false),
                )),
        ),
    }
}

/// Puts the priority before the line.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG of sd-daemon.h.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// The release build aborts on a panic; what it was is in the log before.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("a panic without a text");
        tracing::error!(
            location = location.as_deref().unwrap_or("unknown"),
            reason = message,
            "the daemon panicked"
        );
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(config: LogConfig, destination: Destination, act: impl FnOnce(&Logging)) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (logging, subscriber) =
            Logging::with(config, "snapshotter_x", destination, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || act(&logging));
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn text_has_time_level_message_and_quoted_fields() {
        let line = logged(LogConfig::default(), Destination::Terminal, |_| {
            tracing::info!(snapshot = "k8s.io/7/a b", count = 3, "prepared");
        });
        assert!(
            line.ends_with(" INFO prepared snapshot=\"k8s.io/7/a b\" count=3\n"),
            "{line:?}"
        );
        assert!(line.starts_with("20"), "{line:?}");
    }

    #[test]
    fn journal_gets_priorities_and_no_time() {
        let text = logged(LogConfig::default(), Destination::Journal, |_| {
            tracing::error!("broken");
            tracing::warn!(key = "k", "odd");
            tracing::info!("usual");
        });
        assert_eq!(text, "<3>broken\n<4>odd key=\"k\"\n<6>usual\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let config = LogConfig {
            format: LogFormat::Json,
            ..LogConfig::default()
        };
        let line = logged(config, Destination::Terminal, |_| {
            tracing::info!(snapshot = "a\nb", "prepared");
        });
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "prepared");
        assert_eq!(object["snapshot"], "a\nb");
        assert_eq!(object["level"], "INFO");
        let line = logged(config, Destination::Journal, |_| {
            tracing::info!(snapshot = "a\nb", "prepared");
        });
        let object = line.strip_prefix("<6>").unwrap();
        let object: serde_json::Value = serde_json::from_str(object).unwrap();
        assert_eq!(object["snapshot"], "a\nb");
    }

    #[test]
    fn level_changes_while_it_runs_and_libraries_stay_quiet() {
        let text = logged(LogConfig::default(), Destination::Journal, |logging| {
            tracing::debug!("unheard");
            logging.set_level(LogLevel::Debug);
            tracing::debug!("heard");
            tracing::debug!(target: "snapshotter_x::driver", "heard of the snapshotter");
            tracing::info!(target: "h2::codec", "unheard of a library");
            tracing::warn!(target: "h2::codec", "heard of a library");
            logging.set_level(LogLevel::Error);
            tracing::warn!("unheard");
        });
        assert_eq!(
            text,
            "<7>heard\n<7>heard of the snapshotter\n<4>heard of a library\n"
        );
    }
}
