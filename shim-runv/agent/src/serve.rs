//! Answers the shim until the port dies: each request on a thread of its own, replies and ends of
//! processes as they come.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest::call::{
    Answer, Call, Connect, Create, Exec, Io, Message, Process, Request, Target, Written,
};
use guest::wire;
use mux::{Endpoint, Link, Stream};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use sys::Child;
use sys::pty::WindowSize;

use crate::container::{Container, kill_unmade};
use crate::containers::{Containers, GivenUp};
use crate::error::{Error, Result};
use crate::process::Mux;
use crate::{port, say};

/// Requests at once; a shim that asks for more waits.
const REQUESTS_MAX: usize = 256;

/// Who takes the streams that the shim has opened.
#[derive(Debug)]
struct Agent {
    link: Link,
    /// Opened by the shim and not yet asked for.
    streams: Mutex<BTreeMap<u32, Stream>>,
    messages: Stream,
    /// Held while a message is sent.
    sending: Mutex<()>,
    containers: Containers<Container>,
    /// Which process a pid is, from before it is watched until it was reaped.
    watched: Mutex<BTreeMap<i32, Process>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the shim; returns when it is gone or says so.
pub(crate) fn until_the_end() -> Result<()> {
    // Before any thread: all inherit it, and one takes the signal.
    let child_ended = SigSet::from(Signal::SIGCHLD);
    child_ended
        .thread_block()
        .map_err(Error::io("block SIGCHLD"))?;
    let reader = port::open(guest::PORT)?;
    let writer = reader
        .try_clone()
        .map_err(Error::io("duplicate the port"))?;
    let link =
        Link::start(Endpoint::guest(), reader, writer).map_err(Error::io("start a thread"))?;
    let Some(messages) = link.accept() else {
        return Ok(());
    };
    let agent = Arc::new(Agent {
        link,
        streams: Mutex::new(BTreeMap::new()),
        messages,
        sending: Mutex::new(()),
        containers: Containers::default(),
        watched: Mutex::new(BTreeMap::new()),
    });
    let reaper = Arc::clone(&agent);
    thread("reaper", move || reaper.reap(child_ended))?;
    agent.serve()
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    // It ends with the machine.
    thread
        .spawn(work)
        .map(drop)
        .map_err(Error::io("start a thread"))
}

impl Agent {
    fn serve(self: Arc<Self>) -> Result<()> {
        while let Some(request) = wire::receive::<Request>(&self.messages)? {
            if request.call == Call::PowerOff {
                return Ok(());
            }
            if Arc::strong_count(&self) > REQUESTS_MAX {
                let error = Error::Invalid(format!("more than {REQUESTS_MAX} requests at once"));
                self.reply(request.number, Err(error));
                continue;
            }
            let agent = Arc::clone(&self);
            thread("request", move || {
                let outcome = agent.answer(request.call);
                agent.reply(request.number, outcome);
            })?;
        }
        Ok(())
    }

    fn reply(&self, number: u64, outcome: Result<Answer>) {
        let outcome = outcome.map_err(|error| error.refusal());
        self.send(&Message::Reply { number, outcome });
    }

    fn send(&self, message: &Message) {
        let _whole = lock(&self.sending);
        // Without a shim the machine ends anyway.
        if let Err(error) = wire::send(&self.messages, message) {
            say(&format!("runv-agent: {}", Error::from(error).chain()));
        }
    }

    fn answer(self: &Arc<Self>, call: Call) -> Result<Answer> {
        match call {
            Call::Prepare { clock_ns, entropy } => prepare(clock_ns, &entropy),
            Call::Connect(request) => connect(&request),
            Call::Create(request) => self.create(&request),
            Call::Start(id) => self.container(&id)?.start().map(|()| Answer::Done),
            Call::Exec(request) => self.exec(&request),
            Call::Signal { target, signal } => self.signal(target, signal),
            Call::Resize { process, size } => {
                let size = WindowSize {
                    rows: size.rows,
                    columns: size.columns,
                };
                let container = self.container(&process.container)?;
                container.with(&process, |running| running.copying.resize(size))?;
                Ok(Answer::Done)
            }
            Call::Pause(id) => Ok(self
                .container(&id)?
                .cgroup()
                .freeze()
                .map(|()| Answer::Done)?),
            Call::Resume(id) => Ok(self
                .container(&id)?
                .cgroup()
                .thaw()
                .map(|()| Answer::Done)?),
            Call::Update {
                container,
                resources,
            } => {
                let parsed = bundle::parse_resources(&resources)?;
                let resources = bundle::resources(&parsed)?;
                self.container(&container)?.cgroup().apply(&resources)?;
                Ok(Answer::Done)
            }
            Call::Stats(id) => {
                let stats = self.container(&id)?.cgroup().stats()?;
                Ok(Answer::Stats(Box::new(stats)))
            }
            Call::Delete(id) => {
                match self.containers.give_up(&id)? {
                    GivenUp::Made(container) => {
                        container.delete()?;
                        self.containers.removed(&id, &container);
                    }
                    GivenUp::BeingMade => kill_unmade(&id)?,
                }
                Ok(Answer::Done)
            }
            Call::PowerOff => Ok(Answer::Done),
        }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.find(id)
    }

    fn create(self: &Arc<Self>, request: &Create) -> Result<Answer> {
        let being_made = self.containers.begin(&request.id)?;
        let mux = self.take_streams(request.io)?;
        let process = Process {
            container: request.id.clone(),
            exec: None,
        };
        let (container, init) = Container::create(request, mux)?;
        self.follow_oom(&container);
        if let Some(unwanted) = being_made.done(Arc::new(container)) {
            drop(init);
            unwanted.delete()?;
            return Err(Error::NotFound(format!(
                "who wants container {}",
                request.id
            )));
        }
        Ok(Answer::Pid(self.watch(init, process)))
    }

    /// From now on its kills for memory are told.
    fn follow_oom(self: &Arc<Self>, container: &Container) {
        let (agent, oom) = (Arc::clone(self), Arc::clone(&container.oom));
        let id = container.id.clone();
        let failed = |error: Error| say(&format!("runv-agent: {}", error.chain()));
        let follow = move || {
            oom.follow(|| agent.out_of_memory(&id))
                .unwrap_or_else(failed);
        };
        // A container runs without that rather than not.
        thread("oom", follow).unwrap_or_else(failed);
    }

    fn out_of_memory(&self, container: &str) {
        let container = container.to_owned();
        self.send(&Message::OutOfMemory { container });
    }

    fn exec(self: &Arc<Self>, request: &Exec) -> Result<Answer> {
        let container = self.container(&request.container)?;
        let mux = self.take_streams(request.io)?;
        let process = Process {
            container: request.container.clone(),
            exec: Some(request.id.clone()),
        };
        let child = container.exec(&request.id, &request.process, mux)?;
        Ok(Answer::Pid(self.watch(child, process)))
    }

    /// From now on its end is told, also when it was before.
    fn watch(&self, child: Child, process: Process) -> u32 {
        let pid = child.pid().as_raw();
        lock(&self.watched).insert(pid, process);
        sys::watch(child);
        pid.unsigned_abs()
    }

    fn signal(&self, target: Target, signal: i32) -> Result<Answer> {
        match target {
            Target::One(process) => {
                let container = self.container(&process.container)?;
                container.with(&process, |running| running.signal(signal))?;
            }
            Target::All(id) => self.container(&id)?.cgroup().kill_all(signal)?,
        }
        Ok(Answer::Done)
    }

    fn take_streams(&self, io: Io) -> Result<Mux> {
        let take = |id| self.take_stream(id).map(Arc::new);
        Ok(match io {
            Io::Streams {
                stdin,
                stdout,
                stderr,
            } => Mux::Streams {
                stdin: take(stdin)?,
                stdout: take(stdout)?,
                stderr: take(stderr)?,
            },
            Io::Terminal(stream) => Mux::Terminal(take(stream)?),
        })
    }

    /// The shim has opened it before it asked, so it has come.
    fn take_stream(&self, id: u32) -> Result<Stream> {
        let mut streams = lock(&self.streams);
        loop {
            if let Some(stream) = streams.remove(&id) {
                return Ok(stream);
            }
            let Some(stream) = self.link.accept() else {
                return Err(Error::NotFound(format!("stream {id}")));
            };
            streams.insert(stream.id(), stream);
        }
    }

    /// Tells the ends of processes, as long as there is a machine.
    fn reap(&self, child_ended: SigSet) {
        loop {
            for (pid, status) in sys::reap() {
                let Some(process) = lock(&self.watched).remove(&pid.as_raw()) else {
                    continue;
                };
                // Of a container that is being removed all end, and their streams with them.
                let mut written = Written::ALL;
                if let Ok(container) = self.container(&process.container) {
                    container.oom.tell(&|| self.out_of_memory(&container.id));
                    match container.ended(&process) {
                        Ok(known) => written = known,
                        Err(error) => say(&format!("runv-agent: {}", error.chain())),
                    }
                }
                let code = u8::try_from(status.code()).unwrap_or(crate::EXIT_FAILED);
                self.send(&Message::Exited {
                    process,
                    code,
                    written,
                });
            }
            if let Err(errno) = child_ended.wait() {
                say(&format!("runv-agent: wait for SIGCHLD: {errno}"));
                return;
            }
        }
    }
}

fn connect(request: &Connect) -> Result<Answer> {
    let links = request.network.links.iter().enumerate();
    let own = links.map(|(position, link)| (guest::first_mac(position), link.mac));
    network::readdress(&own.collect::<Vec<_>>())?;
    network::apply(&request.network)?;
    // Some are of links, by their names.
    for (name, value) in &request.sysctl {
        let path = launch::sysctl_path(name).map(|path| Path::new("/proc").join(path));
        let path =
            path.ok_or_else(|| Error::Invalid(format!("{name:?} is no kernel parameter")))?;
        std::fs::write(&path, value).map_err(Error::on(&format!("write {value:?} to"), &path))?;
    }
    Ok(Answer::Done)
}

fn prepare(clock_ns: u64, entropy: &[u8; 32]) -> Result<Answer> {
    let time = TimeSpec::from(Duration::from_nanos(clock_ns));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(Error::io("set the clock"))?;
    sys::reseed_random(entropy).map_err(Error::io("seed the kernel's random numbers"))?;
    Ok(Answer::Prepared {
        version: guest::VERSION,
    })
}
