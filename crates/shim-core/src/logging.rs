//! The shim's log: lines as logrus writes them, into the fifo that containerd reads. Never blocks
//! and never dies when containerd is away: what the fifo has no room for is dropped.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use nix::fcntl::OFlag;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::time::rfc3339_fixed;

/// Opens the fifo, makes it descriptor 2 as well (so that a panic is seen), and logs into it from
/// now on. A bundle without a fifo (a shim started by hand) logs to descriptor 2 as it is.
pub(crate) fn to_fifo(path: &Path, debug: bool) -> io::Result<()> {
    match open(path) {
        Ok(fifo) => nix::unistd::dup2_stderr(&fifo)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    to_stderr(level_of(debug));
    Ok(())
}

/// What a shim tells.
pub(crate) fn level_of(debug: bool) -> Level {
    if debug { Level::DEBUG } else { Level::INFO }
}

/// Logs to descriptor 2 as it is from now on.
pub fn to_stderr(level: Level) {
    // A second initialisation (tests in one process) keeps the first.
    let _kept = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Logrus)
        .with_writer(Stderr)
        .try_init();
}

/// Read-write, so that opening never waits for a reader and writing never meets a closed pipe.
fn open(path: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
}

/// Descriptor 2, one write per line.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full fifo (containerd is away) drops the line; the log must not be the reason why a
        // container hangs.
        match io::stderr().write(line) {
            Ok(_) | Err(_) => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `time="2026-01-02T03:04:05.678901234Z" level=info msg="constant text" key=value`
struct Logrus;

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
        let mut line = Fields {
            message: String::new(),
            rest: String::new(),
        };
        event.record(&mut line);
        writeln!(
            writer,
            "time=\"{}\" level={} msg={}{}",
            rfc3339_fixed(SystemTime::now()),
            level_word(*event.metadata().level()),
            quoted(&line.message),
            line.rest
        )
    }
}

/// A level in logrus's words, which whoever reads our logs knows.
#[must_use]
pub fn level_word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else if !field.name().starts_with("log.") {
            self.rest
                .push_str(&format!(" {}={}", field.name(), quoted(value)));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

/// Quotes unless the text is one plain word, as logrus does.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("{text:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_bare_and_everything_else_is_quoted() {
        let check = |text: &str, expected: &str| assert_eq!(quoted(text), expected);
        check("abc", "abc");
        check("/run/x.sock", "/run/x.sock");
        check("two words", "\"two words\"");
        check("", "\"\"");
        check("line\nbreak \"q\"", "\"line\\nbreak \\\"q\\\"\"");
    }

    #[test]
    fn a_fifo_without_reader_neither_blocks_nor_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut fifo = open(&path).unwrap();
        // Far more than a pipe holds: the end is EAGAIN, not a wait.
        let end = std::iter::repeat_with(|| fifo.write_all(&[b'x'; 4096]))
            .take(1000)
            .find(Result::is_err);
        let error = end.expect("a pipe has an end").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
