//! Calls to the agent in a guest: one thread reads what it says, any thread asks.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest::call::{
    Answer, Call, Connect, Message, Process, Refusal, RefusalKind, Request, Written,
};
use guest::wire;
use mux::{Link, Stream};
use network::Network;

use crate::{Error, Result};

/// Who waits for an answer, by the number of the request.
type Waiting = HashMap<u64, SyncSender<std::result::Result<Answer, Refusal>>>;

/// What the agent says by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News<'a> {
    /// A process has ended, with this code, and had written so much.
    Ended(&'a Process, u8, Written),
    /// Processes of this container were killed for memory.
    OutOfMemory(&'a str),
    /// The agent is gone.
    Gone,
}

#[derive(Debug)]
struct Shared {
    messages: Stream,
    waiting: Mutex<Waiting>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose turn it is to send: messages go whole, and who waits gives up in time.
#[derive(Debug, Default)]
struct Turns {
    is_taken: Mutex<bool>,
    given_back: Condvar,
}

/// A turn. Dropped, it is the next one's.
#[derive(Debug)]
struct Turn<'a>(&'a Turns);

impl Turns {
    /// None when the deadline passes before.
    fn take(&self, deadline: Instant) -> Option<Turn<'_>> {
        // No code panics while it holds the lock.
        let is_taken = self.is_taken.lock();
        let is_taken = is_taken.unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.given_back.wait_timeout_while(is_taken, left, |it| *it);
        let (mut is_taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let was_taken = std::mem::replace(&mut *is_taken, true);
        // A turn that is not had must not be given back.
        (!was_taken).then(|| Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let is_taken = self.0.is_taken.lock();
        *is_taken.unwrap_or_else(PoisonError::into_inner) = false;
        self.0.given_back.notify_one();
    }
}

/// The agent of one guest.
#[derive(Debug)]
pub(crate) struct Agent {
    link: Link,
    shared: Arc<Shared>,
    next: AtomicU64,
    turns: Turns,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Agent {
    /// Takes over a link that has met its guest.
    pub(crate) fn new(link: Link, tell: impl Fn(News<'_>) + Send + 'static) -> Result<Self> {
        let messages = link
            .open()
            .map_err(Error::io("open a stream to the guest"))?;
        let shared = Arc::new(Shared {
            messages,
            waiting: Mutex::new(HashMap::new()),
        });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || read(&reading, &tell))
            .map_err(Error::io("start a thread"))?;
        Ok(Self {
            link,
            shared,
            next: AtomicU64::new(1),
            turns: Turns::default(),
            reader: Mutex::new(Some(reader)),
        })
    }

    /// Tells the guest what it cannot know, and asks for its version.
    pub(crate) fn prepare(&self, limit: Duration) -> Result<()> {
        let mut entropy = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut entropy))
            .map_err(Error::io("read /dev/urandom"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        let call = Call::Prepare {
            clock_ns: u64::try_from(now).unwrap_or(u64::MAX),
            entropy,
        };
        match self.ask("to prepare", call, limit)? {
            Answer::Prepared { version } if version == guest::VERSION => Ok(()),
            Answer::Prepared { version } => Err(Error::OtherAgent { theirs: version }),
            _ => Err(Error::Answer),
        }
    }

    /// Gives the guest its network.
    pub(crate) fn connect(
        &self,
        network: Network,
        sysctl: Vec<(String, String)>,
        limit: Duration,
    ) -> Result<()> {
        let call = Call::Connect(Box::new(Connect { network, sysctl }));
        self.tell("the network", call, limit)
    }

    /// Opens a stream for a process.
    pub(crate) fn stream(&self) -> Result<Stream> {
        self.link
            .open()
            .map_err(Error::io("open a stream to the guest"))
    }

    /// Asks for something that is just done.
    pub(crate) fn tell(&self, what: &'static str, call: Call, limit: Duration) -> Result<()> {
        match self.ask(what, call, limit)? {
            Answer::Done => Ok(()),
            _ => Err(Error::Answer),
        }
    }

    /// Asks, and does not wait: the answer is nobody's to know. The limit is for the sending.
    pub(crate) fn post(&self, what: &'static str, call: Call, limit: Duration) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.send(what, &Request { number, call }, limit)
    }

    fn send(&self, what: &'static str, request: &Request, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let late = Error::Timeout { what, limit };
        let Some(_turn) = self.turns.take(deadline) else {
            return Err(late);
        };
        let mut writer = self.shared.messages.until(deadline);
        match wire::send(&mut writer, request) {
            Ok(()) => Ok(()),
            Err(wire::Error::Stream(error)) if error.kind() == ErrorKind::TimedOut => {
                if writer.has_written() {
                    // Nobody could tell where the next message begins: the guest is lost.
                    self.link.close();
                }
                Err(late)
            }
            Err(wire::Error::Stream(_)) => Err(Error::NotRunning),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&self, what: &'static str, call: Call, limit: Duration) -> Result<Answer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let (sender, receiver) = mpsc::sync_channel(1);
        self.shared.waiting().insert(number, sender);
        let sent = self.send(what, &Request { number, call }, limit);
        let answer = sent.map(|()| receiver.recv_timeout(limit.saturating_sub(begun.elapsed())));
        self.shared.waiting().remove(&number);
        match answer? {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) if refusal.kind == RefusalKind::NotFound => Err(Error::NotRunning),
            Ok(Err(refusal)) => Err(Error::Guest(refusal)),
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout { what, limit }),
            Err(RecvTimeoutError::Disconnected) => Err(Error::NotRunning),
        }
    }

    /// Waits for the reading thread; the machine must have ended.
    pub(crate) fn join(&self) {
        self.link.close();
        let reader = self
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(reader) = reader {
            // It ends by itself and has nothing to say.
            let _ended = reader.join();
        }
    }
}

fn read(shared: &Shared, tell: &impl Fn(News<'_>)) {
    loop {
        match wire::receive::<Message>(&shared.messages) {
            Ok(Some(Message::Reply { number, outcome })) => {
                if let Some(sender) = shared.waiting().remove(&number) {
                    // Who asked may have given up.
                    let _late = sender.try_send(outcome);
                }
            }
            Ok(Some(Message::Exited {
                process,
                code,
                written,
            })) => tell(News::Ended(&process, code, written)),
            Ok(Some(Message::OutOfMemory { container })) => tell(News::OutOfMemory(&container)),
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(error = shim_core::chain(&error), "the agent says no more");
                break;
            }
        }
    }
    // Who waits, waits for nobody.
    shared.waiting().clear();
    tell(News::Gone);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::Receiver;

    use mux::Endpoint;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    /// An agent that reads only what a test reads, and where its end is told.
    fn deaf() -> (Agent, Link, Receiver<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let start = |endpoint, socket: UnixStream| {
            Link::start(endpoint, socket.try_clone().unwrap(), socket).unwrap()
        };
        let link = start(Endpoint::host(1), ours);
        let guest = start(Endpoint::guest(), theirs);
        link.await_peer(LONG).unwrap();
        let (sender, gone) = mpsc::channel();
        let tell = move |news: News<'_>| {
            if matches!(news, News::Gone) {
                sender.send(()).unwrap();
            }
        };
        (Agent::new(link, tell).unwrap(), guest, gone)
    }

    /// More than fits on the way.
    fn large() -> Call {
        Call::Update {
            container: "c".to_owned(),
            resources: vec![0; 4 << 20],
        }
    }

    #[test]
    fn a_guest_that_does_not_read_is_gone() {
        let (agent, guest, gone) = deaf();
        let _unread = guest.accept().unwrap();
        let error = agent.tell("the update", large(), SHORT).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        gone.recv_timeout(LONG).unwrap();
        let error = agent.tell("the start", Call::Start("c".to_owned()), LONG);
        assert!(matches!(error, Err(Error::NotRunning)));
    }

    #[test]
    fn who_waits_behind_a_long_message_gives_up_in_time() {
        let (agent, guest, gone) = deaf();
        let stream = guest.accept().unwrap();
        let start = || Call::Start("c".to_owned());
        std::thread::scope(|scope| {
            let long = scope.spawn(|| agent.tell("the update", large(), LONG));
            // It has begun.
            (&mut &stream).read_exact(&mut [0; 1]).unwrap();
            let error = agent.tell("the start", start(), SHORT).unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error}");
            assert!(gone.try_recv().is_err());
            agent.join();
            assert!(matches!(long.join().unwrap(), Err(Error::NotRunning)));
        });
    }
}
