//! A connection to systemd: by the system's bus, or by its own socket where there is no bus.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;

use super::message::{self, Body, Call, Kind, Message, START_BYTES};
use crate::connect;

/// The bus of the system (D-Bus specification, "Well-known Message Bus Instances").
const SYSTEM: &str = "/run/dbus/system_bus_socket";

/// systemd's own socket, by which systemctl(1) asks it as root: also where there is no bus.
const PRIVATE: &str = "/run/systemd/private";

/// systemd's name on a bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";

/// The bus itself, as a peer.
const BUS: &str = "org.freedesktop.DBus";

/// Longest line of the authentication.
const LINE_BYTES_MAX: usize = 512;

/// So many signals that nobody waits for yet are kept.
const SIGNALS_MAX: usize = 256;

/// So long the first socket may take until it lets us in: its listener may be there without its program.
const FIRST_LIMIT: Duration = Duration::from_secs(3);

/// A peer's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error's name, e.g. `org.freedesktop.systemd1.UnitExists`.
    pub(super) name: String,
    /// In words.
    pub(super) text: String,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Bus,
    Systemd,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Bus {
    socket: File,
    peer: Peer,
    deadline: Instant,
    serial: u32,
    /// Signals that came while an answer was waited for.
    signals: Vec<Message>,
}

impl Bus {
    /// Connects; all that is done on it is over at `deadline`.
    ///
    /// # Errors
    /// Why neither socket can be used, or `TimedOut` of the second.
    pub(super) fn connect(deadline: Instant) -> Result<Self> {
        Self::connect_to([(SYSTEM, Peer::Bus), (PRIVATE, Peer::Systemd)], deadline)
    }

    fn connect_to(sockets: [(&str, Peer); 2], deadline: Instant) -> Result<Self> {
        let mut why = Vec::new();
        let mut kind = ErrorKind::NotFound;
        let first = FIRST_LIMIT.min(left(deadline)? / 2);
        let limits = [(Instant::now() + first).min(deadline), deadline];
        for ((path, peer), limit) in sockets.into_iter().zip(limits) {
            match Self::open(Path::new(path), peer, limit) {
                Ok(bus) => return Ok(Self { deadline, ..bus }),
                Err(error) => {
                    kind = error.kind();
                    why.push(format!("{path}: {error}"));
                }
            }
        }
        let kind = match kind {
            ErrorKind::TimedOut => kind,
            _ => ErrorKind::NotFound,
        };
        Err(Error::new(kind, why.join("; ")))
    }

    fn open(path: &Path, peer: Peer, deadline: Instant) -> Result<Self> {
        let socket = connect::within(path, left(deadline)?)?;
        let mut bus = Self {
            socket: socket.into(),
            peer,
            deadline,
            serial: 0,
            signals: Vec::new(),
        };
        bus.authenticate()?;
        if peer == Peer::Bus {
            bus.ask_bus("Hello", &Body::default())?;
        }
        Ok(bus)
    }

    /// By the credentials that the kernel tells the peer. Our last line goes with the first, as sd-bus(3) has it: systemd
    /// does not look at a first message that it has read together with that line, until another comes.
    fn authenticate(&mut self) -> Result<()> {
        let uid = geteuid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = self.line()?;
        if !answer.starts_with("OK ") {
            let why = format!("it does not let us in: {}", answer.trim());
            return Err(Error::new(ErrorKind::PermissionDenied, why));
        }
        Ok(())
    }

    /// Nothing comes after the line until a message was sent.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.extend(byte);
            if line.len() > LINE_BYTES_MAX {
                return Err(Error::new(ErrorKind::InvalidData, "it speaks no D-Bus"));
            }
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Has the peer tell us of `member` of systemd's manager.
    ///
    /// # Errors
    /// As of a call.
    pub(super) fn listen_for(&mut self, interface: &str, member: &str) -> Result<()> {
        if self.peer == Peer::Systemd {
            return Ok(());
        }
        let rule =
            format!("type='signal',sender='{SYSTEMD}',interface='{interface}',member='{member}'");
        self.ask_bus("AddMatch", &Body::default().text(&rule))
    }

    fn ask_bus(&mut self, member: &str, body: &Body) -> Result<()> {
        let call = Call {
            destination: Some(BUS),
            path: "/org/freedesktop/DBus",
            interface: BUS,
            member,
        };
        match self.perform(call, body)? {
            Ok(_answer) => Ok(()),
            Err(refusal) => Err(Error::other(format!("{member}: {}", refusal.text))),
        }
    }

    /// Calls systemd and waits for its answer.
    ///
    /// # Errors
    /// `TimedOut`, and what the socket says; systemd's refusal is no such error.
    pub(super) fn call(
        &mut self,
        path: &str,
        (interface, member): (&str, &str),
        body: &Body,
    ) -> Result<std::result::Result<Message, Refusal>> {
        let destination = match self.peer {
            Peer::Bus => Some(SYSTEMD),
            Peer::Systemd => None,
        };
        let call = Call {
            destination,
            path,
            interface,
            member,
        };
        self.perform(call, body)
    }

    fn perform(
        &mut self,
        call: Call<'_>,
        body: &Body,
    ) -> Result<std::result::Result<Message, Refusal>> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&message::encode(call, serial, body))?;
        loop {
            let message = self.next()?;
            if message.kind == Kind::Signal as u8 && self.signals.len() < SIGNALS_MAX {
                self.signals.push(message);
            } else if message.answers == Some(serial) {
                if message.kind == Kind::Error as u8 {
                    let text = message.explanation();
                    let name = message.error;
                    return Ok(Err(Refusal { name, text }));
                }
                return Ok(Ok(message));
            }
        }
    }

    /// The next signal, of any kind.
    ///
    /// # Errors
    /// `TimedOut`, and what the socket says.
    pub(super) fn signal(&mut self) -> Result<Message> {
        if !self.signals.is_empty() {
            return Ok(self.signals.remove(0));
        }
        loop {
            let message = self.next()?;
            if message.kind == Kind::Signal as u8 {
                return Ok(message);
            }
        }
    }

    fn next(&mut self) -> Result<Message> {
        let mut start = [0; START_BYTES];
        self.receive(&mut start)?;
        let mut bytes = start.to_vec();
        bytes.resize(START_BYTES + message::rest_of(&start)?, 0);
        self.receive(&mut bytes[START_BYTES..])?;
        message::decode(&bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let limit = left(self.deadline)?;
        setsockopt(&self.socket.as_fd(), sockopt::SendTimeout, &time(limit))?;
        self.socket.write_all(bytes).map_err(late)
    }

    fn receive(&mut self, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let limit = left(self.deadline)?;
            setsockopt(&self.socket.as_fd(), sockopt::ReceiveTimeout, &time(limit))?;
            match self.socket.read(into) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => into = &mut into[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(late(error)),
            }
        }
        Ok(())
    }
}

/// What is left until then, more than nothing: a socket's timeout of 0 is none.
fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn time(limit: Duration) -> TimeVal {
    TimeVal::milliseconds(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX / 1000))
}

/// A socket's timeout is EAGAIN.
fn late(error: Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Lets a client in and gives it to `serve`, on a thread; the socket's path lasts as the directory does.
    fn served(
        serve: impl FnOnce(UnixStream) + Send + 'static,
    ) -> (tempfile::TempDir, String, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
        (dir, path.to_str().unwrap().to_owned(), thread)
    }

    fn let_in(stream: &UnixStream) {
        let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("\0AUTH EXTERNAL 3"), "{line:?}");
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "BEGIN\r\n");
        let mut stream = stream;
        stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    }

    fn connect(path: &str, limit: Duration) -> Result<Bus> {
        let sockets = [("/nowhere", Peer::Bus), (path, Peer::Systemd)];
        Bus::connect_to(sockets, Instant::now() + limit)
    }

    #[test]
    fn where_there_is_no_bus_systemds_own_socket_is_asked() {
        let (_dir, path, thread) = served(|mut stream| {
            let_in(&stream);
            let mut start = [0; START_BYTES];
            stream.read_exact(&mut start).unwrap();
            let mut rest = vec![0; message::rest_of(&start).unwrap()];
            stream.read_exact(&mut rest).unwrap();
            let asked = message::decode(&[&start[..], &rest].concat()).unwrap();
            assert_eq!(asked.member, "Do");
        });
        let mut bus = connect(&path, SOON).unwrap();
        let answer = bus.call("/p", ("i.f", "Do"), &Body::default());
        // It went without an answer.
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_says_nothing_is_waited_for_within_the_limit() {
        let (_dir, path, thread) = served(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
        });
        let error = connect(&path, Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        thread.join().unwrap();
    }

    #[test]
    fn a_bus_that_says_nothing_leaves_time_for_systemds_own_socket() {
        let (_silent, bus, first) = served(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
        });
        let (_dir, path, second) = served(|stream| let_in(&stream));
        let sockets = [(bus.as_str(), Peer::Bus), (path.as_str(), Peer::Systemd)];
        let deadline = Instant::now() + Duration::from_secs(2);
        let connected = Bus::connect_to(sockets, deadline).unwrap();
        assert_eq!(connected.peer, Peer::Systemd);
        assert_eq!(connected.deadline, deadline);
        first.join().unwrap();
        second.join().unwrap();
    }

    #[test]
    fn both_sockets_are_named_when_neither_can_be_used() {
        let (_dir, path, thread) = served(|mut stream| {
            stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        });
        let error = connect(&path, SOON).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere: No such file"), "{error}");
        assert!(
            error.ends_with("it does not let us in: REJECTED EXTERNAL"),
            "{error}"
        );
        thread.join().unwrap();
    }
}
