//! Calls to the agent in a guest: one thread reads what it says, any thread asks.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest::call::{Answer, Call, Connect, Message, Process, Refusal, RefusalKind, Request};
use guest::wire;
use mux::{Link, Stream};
use network::Network;

use crate::{Error, Result};

/// Who waits for an answer, by the number of the request.
type Waiting = HashMap<u64, SyncSender<std::result::Result<Answer, Refusal>>>;

/// What the agent says by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News<'a> {
    /// A process has ended, with this code.
    Ended(&'a Process, u8),
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

/// The agent of one guest.
#[derive(Debug)]
pub(crate) struct Agent {
    link: Link,
    shared: Arc<Shared>,
    next: AtomicU64,
    sending: Mutex<()>,
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
            sending: Mutex::new(()),
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

    /// Asks, and does not wait: the answer is nobody's to know.
    pub(crate) fn post(&self, call: Call) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.send(&Request { number, call })?;
        Ok(())
    }

    fn send(&self, request: &Request) -> std::result::Result<(), wire::Error> {
        let _whole = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&self.shared.messages, request)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&self, what: &'static str, call: Call, limit: Duration) -> Result<Answer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::sync_channel(1);
        self.shared.waiting().insert(number, sender);
        let sent = self.send(&Request { number, call });
        let answer = match sent {
            Ok(()) => receiver.recv_timeout(limit),
            Err(wire::Error::Stream(_)) => Err(RecvTimeoutError::Disconnected),
            Err(error) => {
                self.shared.waiting().remove(&number);
                return Err(error.into());
            }
        };
        self.shared.waiting().remove(&number);
        match answer {
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
            Ok(Some(Message::Exited { process, code })) => tell(News::Ended(&process, code)),
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
