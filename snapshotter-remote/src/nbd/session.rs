//! What one connection has come to, and what follows from what its client sends.

use super::{
    fields::{Fields, Writing, length},
    read::{Read, refusal},
    values::{
        self, FIXED_NEWSTYLE, Failure, NO_ZEROES, PREFERRED_BYTES, READ_BYTES_MAX,
        TRANSMISSION_FLAGS, command, info, option, reply,
    },
};

/// What a server says first: `NBDMAGIC`, `IHAVEOPT`, fixed newstyle and no zeroes.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";

/// The longest run of bytes that is wanted at once: data of an option.
pub const WANTED_BYTES_MAX: usize = 8192;

/// A name may not be longer (doc/proto.md, "Conventions").
const NAME_BYTES_MAX: usize = 4096;

/// What is written is read to be thrown away, and no more than what a client may send at once.
const WRITTEN_BYTES_MAX: u32 = READ_BYTES_MAX;

/// Whether TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// It never is.
    Plain,
    /// Nothing else is answered before it is (`FORCEDTLS`).
    Needed,
    /// It is.
    Encrypted,
}

/// What is to be done about what has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More is read.
    More,
    /// This is sent.
    Send(Vec<u8>),
    /// This is sent, TLS begins, and [`Session::encrypted`] is told.
    StartTls(Vec<u8>),
    /// [`Session::listed`] is told which disks there are.
    List,
    /// [`Session::found`] is told of the disk of that name.
    Find(String),
    /// Those bytes of the disk are sent.
    Read(Read),
    /// This is sent: a request was refused.
    Refuse(Vec<u8>, Failure),
    /// This is sent, and the connection ends.
    End(Vec<u8>),
}

/// What was found under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A disk of so many bytes.
    Disk(u64),
    /// None of that name.
    Nothing,
    /// One that cannot be read.
    Unreadable,
}

/// One connection, from its greeting on.
#[derive(Debug)]
pub struct Session {
    security: Security,
    phase: Phase,
    is_fixed: bool,
    has_zeroes: bool,
    is_structured: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client's flags.
    Flags,
    /// The head of an option.
    Option,
    /// Its data.
    Data { option: u32, bytes: usize },
    /// The rest of data of an option that is too long: thrown away.
    Excess { option: u32, left: u32 },
    /// Nothing, before somebody has looked for disks: for that option.
    Looking(u32),
    /// The head of a request, of a disk of so many bytes.
    Request(u64),
    /// What a refused request would write, of so many bytes: thrown away.
    Written { disk: u64, cookie: u64, left: u32 },
    /// Nothing any more.
    End,
}

impl Session {
    /// With a client who is sent [`GREETING`].
    #[must_use]
    pub fn new(security: Security) -> Self {
        Self {
            security,
            phase: Phase::Flags,
            is_fixed: false,
            has_zeroes: true,
            is_structured: false,
        }
    }

    /// How many bytes are to be read before something follows from them: at least 1 and at most [`WANTED_BYTES_MAX`];
    /// 0 as long as it waits to be told of what it asked for, or has ended.
    #[must_use]
    pub fn wants(&self) -> usize {
        let at_most = |left: u32| {
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            left.min(WANTED_BYTES_MAX)
        };
        match self.phase {
            Phase::Flags => 4,
            Phase::Option => 16,
            Phase::Data { bytes, .. } => bytes,
            Phase::Excess { left, .. } | Phase::Written { left, .. } => at_most(left),
            Phase::Request(_) => 28,
            Phase::Looking(_) | Phase::End => 0,
        }
    }

    /// Whether a disk was chosen: requests come now, whenever the client wants.
    #[must_use]
    pub fn is_transmitting(&self) -> bool {
        matches!(self.phase, Phase::Request(_) | Phase::Written { .. })
    }

    /// What follows from these bytes, as many as it [wants](Session::wants).
    pub fn take(&mut self, bytes: &[u8]) -> Event {
        debug_assert_eq!(bytes.len(), self.wants(), "as many as it wants");
        let mut fields = Fields(bytes);
        match self.phase {
            Phase::Flags => self.flags(&mut fields),
            Phase::Option => self.option(&mut fields),
            Phase::Data { option, .. } => self.data(option, bytes),
            Phase::Excess { option, left } => {
                self.too_long(option, left.saturating_sub(length(bytes.len())))
            }
            Phase::Request(disk) => self.request(&mut fields, disk),
            Phase::Written { disk, cookie, left } => {
                self.written(disk, cookie, left.saturating_sub(length(bytes.len())))
            }
            Phase::Looking(_) | Phase::End => None,
        }
        .unwrap_or_else(|| self.end_with(Vec::new()))
    }

    /// TLS is spoken from now on.
    pub fn encrypted(&mut self) {
        self.security = Security::Encrypted;
    }

    /// The disks there are; none where they are too many, or cannot be listed.
    ///
    /// Sent at once, so there should not be too many.
    pub fn listed(&mut self, names: Option<&[String]>) -> Vec<u8> {
        self.phase = Phase::Option;
        let Some(names) = names else {
            let text =
                "the store cannot list its disks, or they are too many: ask for one by its name";
            return answer(option::LIST, reply::ERR_TOO_BIG, text.as_bytes());
        };
        let mut sent = Vec::new();
        for name in names {
            let data = Writing::default().u32(length(name.len()));
            let data = data.bytes(name.as_bytes()).done();
            sent.extend(answer(option::LIST, reply::SERVER, &data));
        }
        sent.extend(answer(option::LIST, reply::ACK, &[]));
        sent
    }

    /// What was found of the disk that was asked for.
    pub fn found(&mut self, found: Found) -> Event {
        let Phase::Looking(option) = self.phase else {
            return self.end_with(Vec::new());
        };
        self.phase = Phase::Option;
        match (found, option) {
            (Found::Disk(bytes), option::EXPORT_NAME) => {
                self.phase = Phase::Request(bytes);
                let sent = Writing::default().u64(bytes).u16(TRANSMISSION_FLAGS);
                let zeroes = if self.has_zeroes { &[0; 124][..] } else { &[] };
                Event::Send(sent.bytes(zeroes).done())
            }
            // No error can be told.
            (_, option::EXPORT_NAME) => self.end_with(Vec::new()),
            (Found::Disk(bytes), _) => {
                if option == option::GO {
                    self.phase = Phase::Request(bytes);
                }
                let export = Writing::default().u16(info::EXPORT).u64(bytes);
                let export = export.u16(TRANSMISSION_FLAGS).done();
                let blocks = Writing::default().u16(info::BLOCK_SIZE).u32(1);
                let blocks = blocks.u32(PREFERRED_BYTES).u32(READ_BYTES_MAX).done();
                let sent = [
                    answer(option, reply::INFO, &export),
                    answer(option, reply::INFO, &blocks),
                    answer(option, reply::ACK, &[]),
                ];
                Event::Send(sent.concat())
            }
            (Found::Nothing, _) => {
                let text =
                    "the store has no such disk: sha256:CHAINID names one, as `store ls` shows it";
                Event::Send(answer(option, reply::ERR_UNKNOWN, text.as_bytes()))
            }
            (Found::Unreadable, _) => {
                let text = "the store has that disk and cannot read it; its log says why";
                Event::Send(answer(option, reply::ERR_POLICY, text.as_bytes()))
            }
        }
    }

    fn flags(&mut self, fields: &mut Fields<'_>) -> Option<Event> {
        let flags = fields.u32()?;
        let (fixed, no_zeroes) = (u32::from(FIXED_NEWSTYLE), u32::from(NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return None;
        }
        self.is_fixed = flags & fixed != 0;
        self.has_zeroes = flags & no_zeroes == 0;
        self.phase = Phase::Option;
        Some(Event::More)
    }

    fn option(&mut self, fields: &mut Fields<'_>) -> Option<Event> {
        let is_option = fields.u64()? == values::OPTION_MAGIC;
        let (option, bytes) = (fields.u32()?, fields.u32()?);
        // Only in fixed newstyle there are others, and TLS.
        let is_known = self.is_fixed || option == option::EXPORT_NAME;
        if !is_option || !is_known {
            return None;
        }
        let count = usize::try_from(bytes).ok()?;
        if option == option::EXPORT_NAME && count > NAME_BYTES_MAX {
            return None;
        }
        if count > WANTED_BYTES_MAX {
            return self.too_long(option, bytes);
        }
        self.phase = Phase::Data {
            option,
            bytes: count,
        };
        match count {
            0 => self.data(option, &[]),
            _ => Some(Event::More),
        }
    }

    /// Data of an option that nobody needs so much of.
    fn too_long(&mut self, option: u32, left: u32) -> Option<Event> {
        if left > 0 {
            self.phase = Phase::Excess { option, left };
            return Some(Event::More);
        }
        self.phase = Phase::Option;
        let kind = match (option, self.security) {
            (option::ABORT, _) => return Some(self.end_with(answer(option, reply::ACK, &[]))),
            (option::STARTTLS, _) => reply::ERR_TOO_BIG,
            (_, Security::Needed) => reply::ERR_TLS_REQD,
            _ => reply::ERR_TOO_BIG,
        };
        Some(Event::Send(answer(option, kind, &[])))
    }

    /// An option with all its data.
    fn data(&mut self, option: u32, data: &[u8]) -> Option<Event> {
        self.phase = Phase::Option;
        let is_bare = data.is_empty();
        let refused = |kind| Some(Event::Send(answer(option, kind, &[])));
        match (option, self.security) {
            (option::ABORT, _) => Some(self.end_with(answer(option, reply::ACK, &[]))),
            (option::STARTTLS, Security::Needed) if is_bare => {
                Some(Event::StartTls(answer(option, reply::ACK, &[])))
            }
            (option::STARTTLS, Security::Plain) if is_bare => refused(reply::ERR_POLICY),
            (option::STARTTLS, _) => refused(reply::ERR_INVALID),
            // No error can be told.
            (option::EXPORT_NAME, Security::Needed) => None,
            (_, Security::Needed) => refused(reply::ERR_TLS_REQD),
            (option::EXPORT_NAME, _) => self.find(option, name(data)?),
            (option::GO | option::INFO, _) => match asked(data) {
                Some(name) => self.find(option, name),
                None => refused(reply::ERR_INVALID),
            },
            (option::LIST, _) if is_bare => {
                self.phase = Phase::Looking(option);
                Some(Event::List)
            }
            (option::STRUCTURED_REPLY, _) if is_bare => {
                self.is_structured = true;
                refused(reply::ACK)
            }
            (option::LIST | option::STRUCTURED_REPLY, _) => refused(reply::ERR_INVALID),
            _ => refused(reply::ERR_UNSUP),
        }
    }

    fn find(&mut self, option: u32, name: String) -> Option<Event> {
        self.phase = Phase::Looking(option);
        Some(Event::Find(name))
    }

    fn request(&mut self, fields: &mut Fields<'_>, disk: u64) -> Option<Event> {
        let is_request = fields.u32()? == values::REQUEST_MAGIC;
        let (flags, kind) = (fields.u16()?, fields.u16()?);
        let (cookie, offset, bytes) = (fields.u64()?, fields.u64()?, fields.u32()?);
        if !is_request {
            return None;
        }
        match kind {
            command::DISC => Some(self.end_with(Vec::new())),
            command::READ => {
                let is_there = offset
                    .checked_add(u64::from(bytes))
                    .is_some_and(|end| end <= disk);
                let is_right = flags == 0 && (1..=READ_BYTES_MAX).contains(&bytes) && is_there;
                let is_structured = self.is_structured;
                Some(match is_right {
                    true => Event::Read(Read {
                        cookie,
                        offset,
                        bytes,
                        is_structured,
                    }),
                    false => self.refuse(cookie, Failure::Invalid),
                })
            }
            // Behind it comes what it would write.
            command::WRITE if bytes > WRITTEN_BYTES_MAX => None,
            command::WRITE => self.written(disk, cookie, bytes),
            command::TRIM | command::WRITE_ZEROES => Some(self.refuse(cookie, Failure::ReadOnly)),
            _ => Some(self.refuse(cookie, Failure::Invalid)),
        }
    }

    fn written(&mut self, disk: u64, cookie: u64, left: u32) -> Option<Event> {
        if left > 0 {
            self.phase = Phase::Written { disk, cookie, left };
            return Some(Event::More);
        }
        self.phase = Phase::Request(disk);
        Some(self.refuse(cookie, Failure::ReadOnly))
    }

    fn refuse(&self, cookie: u64, why: Failure) -> Event {
        Event::Refuse(refusal(cookie, self.is_structured, why), why)
    }

    fn end_with(&mut self, sent: Vec<u8>) -> Event {
        self.phase = Phase::End;
        Event::End(sent)
    }
}

/// The reply to an option.
fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = Writing::default().u64(values::OPTION_REPLY_MAGIC);
    let head = head.u32(option).u32(kind).u32(length(data.len()));
    head.bytes(data).done()
}

/// A name as the protocol has it.
fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_name = text.len() <= NAME_BYTES_MAX && !text.contains('\0');
    is_name.then(|| text.to_owned())
}

/// The name in the data of `GO` and `INFO`. Which kinds of information are asked for is left alone: all there are, are sent.
fn asked(data: &[u8]) -> Option<String> {
    let mut fields = Fields(data);
    let count = fields.u32()?;
    let name = name(fields.bytes(count)?)?;
    let kinds = fields.u16()?;
    let rest = fields.bytes(u32::from(kinds) * 2)?;
    (rest.len() == usize::from(kinds) * 2 && fields.0.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
