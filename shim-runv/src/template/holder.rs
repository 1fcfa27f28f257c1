//! The process that makes a template and holds it, as long as it is of use.
//!
//! ```text
//!   claim ─> listen ─> make ────────> hold ──> end: unused, told to, not found any more
//!     │                  │ └─ fails     │ ^
//!     │                  v              v │ old: makes another one and holds this one until then
//!     │               the reason        make
//!     └─ another has it: nothing to do
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::TimeStampCounter;

use super::call::{END, HeldReport, LIMIT, LOOK, Listed, REFUSE, Report, TAKE, list};
use super::make::{Made, make};
use super::place::{Claim, Listener, Retry};
use super::start::{Kind, MADE, TOLD_FD};
use super::{Key, Places};
use crate::home::Home;
use crate::qemu::{self, Arguments};
use crate::{Error, Result};

/// First argument of a process that makes a template.
pub(crate) const WORD: &str = "hold-template";

/// Templates that are held at once; for another one, the longest unused goes.
const TEMPLATES_MAX: usize = 4;

/// One that nobody takes for so long goes, with the memory it has.
const UNUSED_MAX: Duration = Duration::from_secs(60 * 60);

/// From that age on, or after so many uses, another one is made in its place: what two machines of one
/// template have in common, as where the kernel's code is, is not worth guessing for long.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const USES_MAX: u64 = 10_000;

/// When making one in its place has failed, it is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// How often a holder sees whether it is found still.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Longest reason for which a template is thrown away, in bytes.
const REASON_BYTES_MAX: u64 = 4 << 10;

/// What is to be done with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Hold,
    Renew,
    End,
}

/// Of that age, unused for so long, taken so often.
fn course(age: Duration, unused: Duration, uses: u64) -> Course {
    if unused >= UNUSED_MAX {
        Course::End
    } else if age >= AGE_MAX || uses >= USES_MAX {
        Course::Renew
    } else {
        Course::Hold
    }
}

/// Runs the process if its command line says so.
#[must_use]
pub fn main_of(arguments: impl Iterator<Item = String>) -> Option<ExitCode> {
    let words: Vec<_> = arguments.skip(1).collect();
    let (WORD, words) = words
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))?
    else {
        return None;
    };
    let Some((kind, retry)) = Kind::parse(words) else {
        return Some(ExitCode::FAILURE);
    };
    let told = sys::take_inherited_fd(TOLD_FD).ok().map(File::from);
    // What it holds is worth less than a container.
    let _as_it_was = std::fs::write("/proc/self/oom_score_adj", "0");
    match run(kind, retry, told) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(_told) => Some(ExitCode::FAILURE),
    }
}

fn run(kind: Kind, retry: Retry, told: Option<File>) -> Result<()> {
    let clock = TimeStampCounter::watch();
    let home = Home::find()?;
    let places = Places::of(&home);
    let arguments = kind.arguments(&home, clock)?;
    let key = Key::of(&arguments, &qemu::find()?)?;
    let Some(claim) = places.claim(&key, retry)? else {
        return Ok(());
    };
    let listener = places.listen(&key)?;
    make_room(&places, &key);
    let making = Making::start(&arguments, &places, &key)?;
    let holder = Holder {
        kind,
        arguments,
        places,
        key,
        claim,
        listener,
        told,
        held: None,
        making: Some(making),
        tried: Instant::now(),
    };
    holder.hold()
}

/// Removes what nobody holds, and has the longest unused end so that there is room for one more.
fn make_room(places: &Places, own: &Key) {
    // Without the list there is nothing to see.
    let others = list(places).unwrap_or_default();
    let mut held = Vec::new();
    for (key, listed) in others.into_iter().filter(|(key, _)| key != own) {
        match listed {
            Listed::Held(report) => held.push((report.held.map_or(0, |it| it.unused_s), key)),
            Listed::Failed(_) | Listed::Left => {
                // Somebody else may be faster.
                let _faster = places.sweep(&key, Retry::Later);
            }
            Listed::Making => {}
        }
    }
    held.sort();
    for (_, key) in held.iter().skip(TEMPLATES_MAX - 1) {
        // It may have ended by itself.
        let _gone = super::end(places, key);
    }
}

/// A template that is being made, on a thread of its own.
#[derive(Debug)]
struct Making {
    thread: JoinHandle<Result<Made>>,
    /// Closed at its end.
    done: OwnedFd,
}

impl Making {
    fn start(arguments: &Arguments, places: &Places, key: &Key) -> Result<Self> {
        let (done, end) = sys::pipe_cloexec().map_err(Error::io("make a pipe"))?;
        let (arguments, places, key) = (arguments.clone(), places.clone(), key.clone());
        let thread = std::thread::Builder::new().name("make".to_owned());
        let make = move || {
            let made = make(&arguments, &places, &key);
            places.remove_making(&key);
            drop(end);
            made
        };
        let thread = thread.spawn(make).map_err(Error::io("start a thread"))?;
        Ok(Self { thread, done })
    }

    fn end(self) -> Result<Made> {
        let panicked = |_| Err(Error::Usage("its maker panicked".to_owned()));
        self.thread.join().unwrap_or_else(panicked)
    }
}

/// A template that was made.
#[derive(Debug)]
struct Held {
    made: Made,
    since: Instant,
    used: Instant,
    uses: u64,
}

impl Held {
    fn new(made: Made) -> Self {
        let now = Instant::now();
        Self {
            made,
            since: now,
            used: now,
            uses: 0,
        }
    }

    fn report(&self) -> io::Result<HeldReport> {
        Ok(HeldReport {
            bytes: self.made.memory.metadata()?.blocks() * 512,
            age_s: self.since.elapsed().as_secs(),
            unused_s: self.used.elapsed().as_secs(),
            uses: self.uses,
        })
    }
}

#[derive(Debug)]
struct Holder {
    kind: Kind,
    arguments: Arguments,
    places: Places,
    key: Key,
    claim: Claim,
    listener: Listener,
    /// Who waits for the first one.
    told: Option<File>,
    held: Option<Held>,
    making: Option<Making>,
    /// When the last one was begun.
    tried: Instant,
}

/// What a question has led to.
#[derive(Debug)]
enum Asked {
    /// It goes on.
    Answered,
    /// It is at its end, and why if another is not to be made.
    Ended(UnixStream, Option<String>),
}

impl Holder {
    /// Until there is nothing to hold any more.
    fn hold(mut self) -> Result<()> {
        while self.is_wanted() {
            match self.wait()? {
                Woken::Asked => {
                    // One that went away, or said nothing, sees that its connection is closed.
                    if let Ok(Asked::Ended(asker, why)) = self.asked() {
                        self.end(asker, why);
                        return Ok(());
                    }
                }
                Woken::Made => match self.made() {
                    Err(error) if self.held.is_none() => {
                        self.tell(&error.chain());
                        drop(self.listener);
                        self.claim.fail(&error.chain());
                        return Err(error);
                    }
                    // The old one is held on, and another is tried later.
                    Ok(()) | Err(_) => {}
                },
                Woken::Late => {}
            }
        }
        drop(self.listener);
        self.claim.remove();
        Ok(())
    }

    /// Whether it is worth while to go on; has another one made when this one is old.
    fn is_wanted(&mut self) -> bool {
        let Some(held) = &self.held else {
            return self.listener.is_found();
        };
        match course(held.since.elapsed(), held.used.elapsed(), held.uses) {
            Course::End => return false,
            Course::Renew if self.making.is_none() && self.tried.elapsed() >= RETRY_AFTER => {
                // Of another guest image it would be another's.
                let key = qemu::find().and_then(|program| Key::of(&self.arguments, &program));
                if key.is_ok_and(|key| key != self.key) {
                    return false;
                }
                self.tried = Instant::now();
                // Without threads there is another try.
                self.making = Making::start(&self.arguments, &self.places, &self.key).ok();
            }
            Course::Renew | Course::Hold => {}
        }
        self.listener.is_found()
    }

    fn wait(&self) -> Result<Woken> {
        let limit = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::MAX);
        let socket = PollFd::new(self.listener.socket.as_fd(), PollFlags::POLLIN);
        let done = self.making.as_ref().map(|making| making.done.as_fd());
        let mut fds = vec![socket];
        fds.extend(done.map(|done| PollFd::new(done, PollFlags::POLLIN)));
        match poll(&mut fds, limit) {
            Ok(0) | Err(Errno::EINTR) => Ok(Woken::Late),
            Ok(_) if fds[0].any().unwrap_or(false) => Ok(Woken::Asked),
            Ok(_) => Ok(Woken::Made),
            Err(errno) => Err(Error::io("wait for who wants a template")(errno)),
        }
    }

    fn made(&mut self) -> Result<()> {
        if let Some(making) = self.making.take() {
            self.held = Some(Held::new(making.end()?));
            self.tell(MADE);
        }
        Ok(())
    }

    fn tell(&mut self, word: &str) {
        if let Some(mut told) = self.told.take() {
            // Who waited may have gone.
            let _gone = writeln!(told, "{word}");
        }
    }

    fn asked(&mut self) -> io::Result<Asked> {
        let (mut asker, _nameless) = self.listener.socket.accept()?;
        asker.set_read_timeout(Some(LIMIT))?;
        asker.set_write_timeout(Some(LIMIT))?;
        let mut question = Vec::new();
        (&asker).take(REASON_BYTES_MAX).read_to_end(&mut question)?;
        let Some((word, rest)) = question.split_first() else {
            return Ok(Asked::Answered);
        };
        match (*word, &mut self.held) {
            (TAKE, Some(held)) => {
                held.used = Instant::now();
                held.uses += 1;
            }
            (TAKE, None) | (LOOK, _) => {}
            (END, _) => return Ok(Asked::Ended(asker, None)),
            (REFUSE, _) => {
                let why = String::from_utf8_lossy(rest).into_owned();
                return Ok(Asked::Ended(asker, Some(why)));
            }
            _ => return Ok(Asked::Answered),
        }
        let report = self.report()?;
        let files: Vec<BorrowedFd<'_>> = match (*word, &self.held) {
            (TAKE, Some(held)) => vec![held.made.memory.as_fd(), held.made.state.as_fd()],
            _ => Vec::new(),
        };
        let sent = sys::send_with_fds(&asker, &report, &files)?;
        asker.write_all(&report[sent..])?;
        Ok(Asked::Answered)
    }

    /// Takes away what it has on disk, then says so. The connection ends with this process, as a machine
    /// that is being made does.
    fn end(self, mut asker: UnixStream, why: Option<String>) {
        let report = self.report();
        drop(self.listener);
        self.places.remove_making(&self.key);
        match why {
            None => self.claim.remove(),
            Some(why) => self.claim.fail(&why),
        }
        if let Ok(report) = report {
            // Who asked may have gone; it has ended all the same.
            let _gone = asker.write_all(&report);
        }
        std::mem::forget(asker);
    }

    fn report(&self) -> io::Result<Vec<u8>> {
        let held = self.held.as_ref().map(Held::report).transpose()?;
        let report = Report {
            pid: std::process::id(),
            memory_mib: self.kind.memory_mib,
            processors: self.kind.processors,
            links: self.kind.links,
            held,
        };
        Ok(serde_json::to_vec(&report)?)
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Asked,
    Made,
    Late,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::super::make::sealed;
    use super::super::{end, take};
    use super::*;
    use crate::image::Image;
    use crate::size::Size;

    #[test]
    fn a_template_is_held_until_it_is_unused_and_renewed_when_it_is_old() {
        let short = Duration::from_secs(1);
        assert_eq!(course(short, short, 1), Course::Hold);
        assert_eq!(course(AGE_MAX, short, 1), Course::Renew);
        assert_eq!(course(short, short, USES_MAX), Course::Renew);
        assert_eq!(course(AGE_MAX, UNUSED_MAX, USES_MAX), Course::End);
    }

    /// A holder on a thread, of a machine that never was.
    fn holder(home: &Path, key: &Key) -> (Places, JoinHandle<Result<()>>) {
        let places = Places::of(&Home::at(home).unwrap());
        let claim = places.claim(key, Retry::Later).unwrap().unwrap();
        let image = Image {
            name: crate::image::Name::default(),
            kernel: "/none".into(),
            initramfs: "/none".into(),
        };
        let size = Size {
            memory_mib: 256,
            processors: 1,
        };
        let holder = Holder {
            kind: Kind {
                guest: crate::image::Name::default(),
                memory_mib: size.memory_mib,
                processors: size.processors,
                links: 2,
            },
            arguments: super::super::machine(image, size, 2, None),
            places: places.clone(),
            key: key.clone(),
            claim,
            listener: places.listen(key).unwrap(),
            told: None,
            held: Some(Held::new(Made {
                memory: sealed(b"memory").unwrap(),
                state: sealed(b"state").unwrap(),
            })),
            making: None,
            tried: Instant::now(),
        };
        (places, std::thread::spawn(|| holder.hold()))
    }

    #[test]
    fn who_asks_gets_what_nobody_can_change_until_it_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::parse("0123456789abcdef").unwrap();
        let (places, thread) = holder(directory.path(), &key);
        for _ in 0..2 {
            let (memory, state) = take(&places, &key).unwrap().parts().unwrap();
            let memory = File::from(memory);
            assert!(memory.write_at(b"x", 0).is_err() && memory.set_len(0).is_err());
            let state = io::read_to_string(File::from(state)).unwrap();
            assert_eq!(state, "state");
        }
        let (_, listed) = list(&places).unwrap().remove(0);
        let Listed::Held(report) = listed else {
            panic!("{listed:?}")
        };
        assert_eq!((report.links, report.memory_mib), (2, 256));
        assert_eq!(report.held.map(|held| held.uses), Some(2));
        end(&places, &key).unwrap();
        thread.join().unwrap().unwrap();
        assert!(take(&places, &key).is_none() && list(&places).unwrap().is_empty());
    }

    #[test]
    fn one_that_is_refused_is_not_made_again_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::parse("0123456789abcdef").unwrap();
        let (places, thread) = holder(directory.path(), &key);
        take(&places, &key).unwrap().refuse("it hangs");
        thread.join().unwrap().unwrap();
        let failed = vec![(key.clone(), Listed::Failed("it hangs".to_owned()))];
        assert_eq!(list(&places).unwrap(), failed);
        assert!(places.claim(&key, Retry::Later).unwrap().is_none());
        end(&places, &key).unwrap();
        assert!(list(&places).unwrap().is_empty());
    }
}
