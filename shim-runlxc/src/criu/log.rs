//! Why CRIU failed, in its own words: the last of the errors in its log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// So much of the end of a log is looked at, in bytes.
const TAIL_BYTES: u64 = 64 << 10;

/// The reason in a log file; none when there is no log or no error in it.
pub(super) fn reason_in_file(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
    reason(&String::from_utf8_lossy(&text))
}

/// The last two errors that say something: the cause, and what it was for. Earlier ones need not
/// have stopped anything.
pub(super) fn reason(log: &str) -> Option<String> {
    let said: Vec<_> = log.lines().filter_map(message).collect();
    let telling = |text: &&str| !is_empty_of_meaning(text);
    let mut told: Vec<_> = said.iter().copied().filter(telling).collect();
    if told.is_empty() {
        told.extend(said.last());
    }
    told.dedup();
    let last = &told[told.len().saturating_sub(2)..];
    (!last.is_empty()).then(|| last.join("; "))
}

/// `(00.064196) Error (criu/util.c:1534): TEXT`, with or without the time.
fn message(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, text) = rest.split_once("): ")?;
    Some(text.trim())
}

/// What CRIU says of a failure that it has named before, or that stops nothing.
fn is_empty_of_meaning(text: &str) -> bool {
    text.ends_with("FAILED.")
        || text.starts_with("exited, status=")
        || text.contains("Can't setup RLIMIT_NOFILE for self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_was_said_last_and_says_something() {
        let log = "(00.060000) Running pre-dump scripts\n\
                   (00.064196) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.069000) Error (criu/net.c:7): something else\n\
                   (00.070000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n\
                   (00.075000) Error (criu/cr-dump.c:1788): Dump files (pid: 7) failed with -1\n\
                   (00.080000) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        assert_eq!(
            reason(log).unwrap(),
            "inet: Connected TCP socket, consider using --tcp-established option.; Dump files (pid: 7) \
             failed with -1"
        );
        assert_eq!(
            reason("Error (criu/cr-dump.c:2111): Dumping FAILED.\n").unwrap(),
            "Dumping FAILED."
        );
        assert_eq!(reason("(00.1) all well\n"), None);
    }
}
