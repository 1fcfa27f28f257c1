//! QEMU's monitor (QMP, qemu-qmp-ref(7)): one request at a time, each with a limit. QEMU is not believed
//! more than its guest: what it says is bounded.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Error, Result};

/// What one request may take. QEMU answers at once, unless its host is very busy.
const LIMIT: Duration = Duration::from_secs(20);

/// Longest line that QEMU may say, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Events that are remembered; only those of the request at hand matter.
const EVENTS_MAX: usize = 256;

/// A machine's monitor.
#[derive(Debug)]
pub(crate) struct Monitor(Mutex<Connection>);

#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    /// The beginning of a line whose end was not there in time.
    partial: Vec<u8>,
    /// By which the last request's answer is told from those of requests that were given up.
    last_id: u64,
    events: Vec<Value>,
}

impl Monitor {
    /// Takes over our end of the monitor's socket, on which nothing was said yet.
    pub(crate) fn new(socket: UnixStream) -> Result<Self> {
        let mut connection = Connection {
            reader: BufReader::new(socket),
            partial: Vec::new(),
            last_id: 0,
            events: Vec::new(),
        };
        let until = Instant::now() + LIMIT;
        // Its greeting.
        connection.line(until)?;
        connection.execute("qmp_capabilities", &json!({}), until)?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Has QEMU do something.
    ///
    /// # Errors
    /// What QEMU says against it; [`Error::NotRunning`] when it is gone.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connection.events.clear();
        connection.execute(command, arguments, Instant::now() + LIMIT)
    }

    /// Gives QEMU a file, as one that it opens under the name `/dev/fdset/SET`.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub(crate) fn add_file(&self, set: u16, file: BorrowedFd<'_>) -> Result<()> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connection.events.clear();
        let arguments = json!({"fdset-id": set});
        let until = Instant::now() + LIMIT;
        connection
            .execute_with("add-fd", &arguments, (&[file], until))
            .map(drop)
    }

    /// Takes a device away, and waits until it is gone.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub(crate) fn remove_device(&self, id: &str) -> Result<()> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connection.events.clear();
        let until = Instant::now() + LIMIT;
        connection.execute("device_del", &json!({"id": id}), until)?;
        let is_gone =
            |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == id;
        while !connection.events.iter().any(is_gone) {
            let said = connection.line(until)?;
            connection.remember(said);
        }
        Ok(())
    }
}

/// What the monitor calls the pipe for a state.
const STATE: &str = "state";

/// Saving and going on, where the memory is a file that stays where it is (`x-ignore-shared`).
impl Monitor {
    /// Has the machine stopped, and begins to write what is not memory into that pipe, whose end is that of
    /// the writing.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub(crate) fn save(&self, state: OwnedFd) -> Result<()> {
        self.with_state("migrate", state)
    }

    /// Whether all was written.
    ///
    /// # Errors
    /// [`Error::Monitor`] when it was not.
    pub(crate) fn is_saved(&self) -> Result<()> {
        let said = self.execute("query-migrate", &json!({}))?;
        match said["status"].as_str() {
            Some("completed") => Ok(()),
            _ => Err(Error::Monitor(format!("save a machine: it says {said}"))),
        }
    }

    /// Has the machine go on from the state in that pipe.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub(crate) fn go_on(&self, state: OwnedFd) -> Result<()> {
        self.with_state("migrate-incoming", state)
    }

    fn with_state(&self, command: &str, state: OwnedFd) -> Result<()> {
        let capability = json!({"capability": "x-ignore-shared", "state": true});
        let capabilities = json!({"capabilities": [capability]});
        self.execute("migrate-set-capabilities", &capabilities)?;
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + LIMIT;
        let named = json!({"fdname": STATE});
        connection.execute_with("getfd", &named, (&[state.as_fd()], until))?;
        // From here on it is QEMU's alone, so that its end is seen.
        drop(state);
        let uri = json!({"uri": format!("fd:{STATE}")});
        connection.execute(command, &uri, until).map(drop)
    }
}

impl Connection {
    fn execute(&mut self, command: &str, arguments: &Value, until: Instant) -> Result<Value> {
        self.execute_with(command, arguments, (&[], until))
    }

    fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        (descriptors, until): (&[BorrowedFd<'_>], Instant),
    ) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        let mut request = request.to_string();
        request.push('\n');
        self.send(request.as_bytes(), descriptors, until)?;
        loop {
            let mut said = self.line(until)?;
            let is_late = said.get("id").is_some_and(|it| *it != id);
            if is_late {
                continue;
            }
            if let Some(error) = said.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason is given");
                return Err(Error::Monitor(format!("{command}: {why}")));
            }
            match said.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => self.remember(said),
            }
        }
    }

    fn send(&self, request: &[u8], descriptors: &[BorrowedFd<'_>], until: Instant) -> Result<()> {
        let mut socket = self.reader.get_ref();
        socket.set_write_timeout(Some(left(until))).map_err(gone)?;
        let sent = sys::send_with_fds(socket, request, descriptors).map_err(gone)?;
        socket.write_all(&request[sent..]).map_err(|error| {
            // Nobody could tell where the next request begins. It may be closed already.
            let _closed = socket.shutdown(Shutdown::Both);
            gone(error)
        })
    }

    fn remember(&mut self, event: Value) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(event);
        }
    }

    fn line(&mut self, until: Instant) -> Result<Value> {
        loop {
            // Who talks without a pause is waited for no longer than who is silent.
            if Instant::now() >= until {
                return Err(gone(ErrorKind::TimedOut.into()));
            }
            let socket = self.reader.get_ref();
            socket.set_read_timeout(Some(left(until))).map_err(gone)?;
            let bytes = match self.reader.fill_buf() {
                Ok([]) => return Err(Error::NotRunning),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(gone(error)),
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            self.partial.extend_from_slice(&bytes[..taken]);
            self.reader.consume(taken);
            if self.partial.len() > LINE_BYTES_MAX {
                return Err(Error::Monitor("it says too much at once".to_owned()));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.partial);
                let said = serde_json::from_slice(&line);
                return said
                    .map_err(|error| Error::Monitor(format!("understand its answer: {error}")));
            }
        }
    }
}

/// What is left until then, and never nothing: that would be no limit.
fn left(until: Instant) -> Duration {
    let left = until.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

fn gone(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Error::NotRunning,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout {
            what: "QEMU's monitor",
            limit: LIMIT,
        },
        _ => Error::io("talk to QEMU's monitor")(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor on a socket into which a QEMU has written all that it will ever say.
    fn monitor(said: &[&str]) -> (Result<Monitor>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said.join("\n").as_bytes()).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        (Monitor::new(ours), theirs)
    }

    const UP: [&str; 2] = [r#"{"QMP": {}}"#, r#"{"return": {}}"#];

    #[test]
    fn answers_are_told_from_events_and_errors() {
        let event = r#"{"event": "DEVICE_DELETED", "data": {"device": "disk1"}}"#;
        let other = r#"{"event": "RESUME"}"#;
        let error = r#"{"error": {"class": "GenericError", "desc": "no such bus"}}"#;
        let said = [
            &UP[..],
            &[
                other,
                r#"{"return": 7}"#,
                error,
                r#"{"return": {}}"#,
                event,
                "",
            ],
        ]
        .concat();
        let (monitor, theirs) = monitor(&said);
        let monitor = monitor.unwrap();
        assert_eq!(monitor.execute("x", &json!({"a": 1})).unwrap(), json!(7));
        let refused = monitor.execute("device_add", &json!({})).unwrap_err();
        assert!(
            refused.to_string().ends_with("device_add: no such bus"),
            "{refused}"
        );
        monitor.remove_device("disk1").unwrap();
        let mut lines = BufReader::new(theirs).lines();
        let asked: Value = serde_json::from_str(&lines.nth(1).unwrap().unwrap()).unwrap();
        let expected = json!({"execute": "x", "arguments": {"a": 1}, "id": 2});
        assert_eq!(asked, expected);
        assert!(matches!(
            monitor.execute("x", &json!({})),
            Err(Error::NotRunning)
        ));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(matches!(monitor(&[]).0, Err(Error::NotRunning)));
        let (odd, _theirs) = monitor(&[UP[0], "odd\n"]);
        assert!(matches!(odd, Err(Error::Monitor(_))));
    }

    #[test]
    fn a_monitor_that_does_not_read_is_given_up_in_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all((UP.join("\n") + "\n").as_bytes()).unwrap();
        let Monitor(connection) = Monitor::new(ours).unwrap();
        let mut connection = connection.into_inner().unwrap();
        // More than fits on the way.
        let large = json!({"a": "x".repeat(8 << 20)});
        let error = connection.execute("large", &large, Instant::now());
        assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
        // A part of that went out.
        let error = connection.execute("next", &json!({}), Instant::now() + LIMIT);
        assert!(matches!(error, Err(Error::NotRunning)), "{error:?}");
    }

    #[test]
    fn answers_that_come_late_are_no_answers_to_the_next() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(UP.join("\n").as_bytes()).unwrap();
        theirs.write_all(b"\n{\"return\": 1, ").unwrap();
        let Monitor(connection) = Monitor::new(ours).unwrap();
        let mut connection = connection.into_inner().unwrap();
        let late = connection.execute("slow", &json!({}), Instant::now());
        assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
        theirs
            .write_all(b"\"id\": 2}\n{\"return\": 2, \"id\": 3}\n")
            .unwrap();
        let until = Instant::now() + LIMIT;
        let answer = connection.execute("next", &json!({}), until).unwrap();
        assert_eq!(answer, json!(2));
    }

    #[test]
    fn a_monitor_that_talks_without_a_pause_is_given_up_in_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all((UP.join("\n") + "\n").as_bytes()).unwrap();
        let Monitor(connection) = Monitor::new(ours).unwrap();
        let mut connection = connection.into_inner().unwrap();
        let events = "{\"event\": \"RESUME\"}\n".repeat(1000);
        let talks =
            std::thread::spawn(move || while theirs.write_all(events.as_bytes()).is_ok() {});
        let until = Instant::now() + Duration::from_millis(100);
        let error = connection.execute("x", &json!({}), until);
        assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
        drop(connection);
        talks.join().unwrap();
    }
}
