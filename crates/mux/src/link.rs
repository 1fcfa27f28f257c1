//! An end at work: one thread reads the port, one writes it, and streams are used from any thread.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::endpoint::{Endpoint, Got};

/// Writers wait while so many bytes wait for the port.
const OUTPUT_BYTES_MAX: usize = 512 << 10;

/// How much is read from the port at once.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    endpoint: Endpoint,
    /// Why there is no link any more.
    over: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Shared::wait`]; none when the deadline has passed.
    fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let waited = self.changed.wait_timeout(state, left);
        Some(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Nothing moves any more: every wait ends.
    fn end(&self, why: String) {
        let mut state = self.lock();
        state.over.get_or_insert(why);
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn broken(&self) -> Option<io::Error> {
        let why = self.over.as_ref()?;
        Some(io::Error::new(ErrorKind::BrokenPipe, why.clone()))
    }
}

/// One end and its two threads. Dropping it ends the link for all its streams; the reading thread ends
/// with its port.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(
        endpoint: Endpoint,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let state = Mutex::new(State {
            endpoint,
            over: None,
        });
        let shared = Arc::new(Shared {
            state,
            changed: Condvar::new(),
        });
        let (reading, writing) = (Arc::clone(&shared), Arc::clone(&shared));
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let mut this = Self {
            shared,
            threads: Vec::new(),
        };
        let read = move || reading.end(read_all(&reading, reader));
        this.threads.push(named("mux-read").spawn(read)?);
        let write = move || writing.end(write_all(&writing, writer));
        this.threads.push(named("mux-write").spawn(write)?);
        Ok(this)
    }

    /// Waits until the other end has answered.
    ///
    /// # Errors
    /// `TimedOut` after `limit`, or why there is no link.
    pub fn await_peer(&self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.endpoint.has_met() {
            if let Some(error) = state.broken() {
                return Err(error);
            }
            let waited = self.shared.wait_until(state, deadline);
            state = waited.ok_or(ErrorKind::TimedOut)?;
        }
        Ok(())
    }

    /// Opens a stream, at the host.
    ///
    /// # Errors
    /// When there is no link, or there are too many streams.
    pub fn open(&self) -> io::Result<Stream> {
        let mut state = self.shared.lock();
        if let Some(error) = state.broken() {
            return Err(error);
        }
        let id = state.endpoint.open().map_err(io::Error::other)?;
        drop(state);
        self.shared.changed.notify_all();
        Ok(self.stream(id))
    }

    /// Waits for the next stream that the host opens, at the guest; none when the link is over.
    #[must_use]
    pub fn accept(&self) -> Option<Stream> {
        let mut state = self.shared.lock();
        loop {
            if let Some(id) = state.endpoint.accept() {
                return Some(self.stream(id));
            }
            if state.over.is_some() {
                return None;
            }
            state = self.shared.wait(state);
        }
    }

    fn stream(&self, id: u32) -> Stream {
        Stream {
            shared: Arc::clone(&self.shared),
            id,
        }
    }

    /// Ends the link: every wait on a stream of it ends with an error.
    pub fn close(&self) {
        self.shared.end("the link was closed".to_owned());
    }

    /// Waits for both threads: the port must be closed, or the other end be gone.
    pub fn join(mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            // It ends by itself and has nothing to say.
            let _ended = thread.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads the port until its end; says why it ended.
fn read_all(shared: &Shared, mut reader: impl Read) -> String {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let bytes = match reader.read(&mut buffer) {
            Ok(0) => return "the other end is gone".to_owned(),
            Ok(bytes) => &buffer[..bytes],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return format!("the port cannot be read: {error}"),
        };
        let mut state = shared.lock();
        if let Err(violation) = state.endpoint.receive(bytes) {
            return format!("the other end broke the rules: {violation}");
        }
        drop(state);
        shared.changed.notify_all();
    }
}

/// Writes what streams have for the port until the link is over; says why it ended.
fn write_all(shared: &Shared, mut writer: impl Write) -> String {
    loop {
        let mut state = shared.lock();
        let output = loop {
            let output = state.endpoint.take_output();
            if !output.is_empty() {
                break output;
            }
            if let Some(why) = &state.over {
                return why.clone();
            }
            state = shared.wait(state);
        };
        drop(state);
        shared.changed.notify_all();
        if let Err(error) = writer.write_all(&output).and_then(|()| writer.flush()) {
            return format!("the port cannot be written: {error}");
        }
    }
}

/// One stream. Reading and writing block; a shared reference is enough for both, from two threads.
/// Dropping it ends both directions.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    id: u32,
}

impl Stream {
    /// Its number, by which the two ends speak of it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Says that this end writes no more.
    pub fn finish(&self) {
        self.shared.lock().endpoint.finish(self.id);
        self.shared.changed.notify_all();
    }

    /// To write as long as there is time: a write that would wait longer fails with `TimedOut`.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Until<'_> {
        Until {
            stream: self,
            deadline,
            has_written: false,
        }
    }

    /// Writes some of `data`; `wait` is for room, and gives none when there is no more time.
    fn write_some<'a>(
        &'a self,
        data: &[u8],
        wait: impl Fn(MutexGuard<'a, State>) -> Option<MutexGuard<'a, State>>,
    ) -> io::Result<usize> {
        let mut state = self.shared.lock();
        loop {
            if let Some(error) = state.broken() {
                return Err(error);
            }
            if state.endpoint.output_bytes() < OUTPUT_BYTES_MAX {
                match state.endpoint.write(self.id, data) {
                    None => return Err(ErrorKind::BrokenPipe.into()),
                    Some(0) if !data.is_empty() => {}
                    Some(bytes) => {
                        drop(state);
                        self.shared.changed.notify_all();
                        return Ok(bytes);
                    }
                }
            }
            state = wait(state).ok_or(ErrorKind::TimedOut)?;
        }
    }

    /// Says that this end reads no more.
    pub fn stop_reading(&self) {
        self.shared.lock().endpoint.stop_reading(self.id);
        self.shared.changed.notify_all();
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut state = self.shared.lock();
        loop {
            match state.endpoint.read(self.id, buffer) {
                Got::Bytes(bytes) => {
                    drop(state);
                    // There may be credit to send.
                    self.shared.changed.notify_all();
                    return Ok(bytes);
                }
                Got::End => return Ok(0),
                Got::Nothing => {}
            }
            if let Some(error) = state.broken() {
                return Err(error);
            }
            state = self.shared.wait(state);
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_some(data, |state| Some(self.shared.wait(state)))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that is written until a deadline.
#[derive(Debug)]
pub struct Until<'a> {
    stream: &'a Stream,
    deadline: Instant,
    has_written: bool,
}

impl Until<'_> {
    /// Whether a byte was written: a message that failed then has left its beginning in the stream.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.has_written
    }
}

impl Write for Until<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let shared = &self.stream.shared;
        let wait = |state| shared.wait_until(state, self.deadline);
        let bytes = self.stream.write_some(data, wait)?;
        self.has_written |= bytes > 0;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().endpoint.drop_stream(self.id);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn pair() -> (Link, Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = |endpoint, socket: &UnixStream| {
            let reader = socket.try_clone().unwrap();
            Link::start(endpoint, reader, socket.try_clone().unwrap()).unwrap()
        };
        let (host, guest) = (
            start(Endpoint::host(1), &ours),
            start(Endpoint::guest(), &theirs),
        );
        host.await_peer(SOON).unwrap();
        (host, guest, ours)
    }

    #[test]
    fn megabytes_pass_both_ways_at_once() {
        let (host, guest, socket) = pair();
        let ours = host.open().unwrap();
        let theirs = guest.accept().unwrap();
        assert_eq!(ours.id(), theirs.id());
        let data: Vec<u8> = (0..3_000_000_u32)
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
            .collect();
        let check = |stream: &Stream| {
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    (&mut &*stream).write_all(&data).unwrap();
                    stream.finish();
                });
                let mut read = Vec::new();
                (&mut &*stream).read_to_end(&mut read).unwrap();
                writer.join().unwrap();
                assert!(read == data);
            });
        };
        std::thread::scope(|scope| {
            scope.spawn(|| check(&ours));
            check(&theirs);
        });
        socket.shutdown(Shutdown::Both).unwrap();
        host.join();
        guest.join();
    }

    #[test]
    fn every_wait_ends_with_the_link() {
        let (host, guest, socket) = pair();
        // On another one than is written, which would give it something.
        let stream = host.open().unwrap();
        let _silent = guest.accept().unwrap();
        let _unread = host.open().unwrap();
        let theirs = guest.accept().unwrap();
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| (&mut &stream).read(&mut [0; 1]).unwrap_err().kind());
            let accepts = scope.spawn(|| guest.accept().is_none());
            let writes = scope.spawn(|| {
                let much = vec![0; 1 << 20];
                (&mut &theirs).write_all(&much).unwrap_err().kind()
            });
            socket.shutdown(Shutdown::Both).unwrap();
            assert_eq!(reads.join().unwrap(), ErrorKind::BrokenPipe);
            assert_eq!(writes.join().unwrap(), ErrorKind::BrokenPipe);
            assert!(accepts.join().unwrap());
        });
        assert!(host.open().is_err());
    }

    #[test]
    fn who_does_not_read_is_waited_for_so_long_and_no_longer() {
        let (host, guest, _socket) = pair();
        let ours = host.open().unwrap();
        let _unread = guest.accept().unwrap();
        let mut writer = ours.until(Instant::now() + Duration::from_millis(50));
        assert!(!writer.has_written());
        let failed = writer.write_all(&vec![0; 4 << 20]).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::TimedOut);
        assert!(writer.has_written());
        let mut late = ours.until(Instant::now());
        assert_eq!(late.write(&[0]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(!late.has_written());
    }

    #[test]
    fn a_peer_that_says_nothing_is_waited_for_so_long_and_no_longer() {
        let (ours, _silent) = UnixStream::pair().unwrap();
        let reader = ours.try_clone().unwrap();
        let link = Link::start(Endpoint::host(1), reader, ours).unwrap();
        let waited = link.await_peer(Duration::from_millis(10)).unwrap_err();
        assert_eq!(waited.kind(), ErrorKind::TimedOut);
    }
}
