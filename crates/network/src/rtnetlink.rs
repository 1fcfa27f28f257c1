//! Requests to the kernel's rtnetlink(7), in the network namespace of the thread that opens the socket;
//! must not know what is asked.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::{Error, Result};

/// What the kernel fills at most in one answer of a dump (netlink(7): 32 KiB since 4.4), and room.
const ANSWER_BYTES: usize = 64 << 10;

/// The kernel answers before sending returns; this only keeps a broken one from holding us for ever.
const ANSWER_S: i64 = 10;

/// Dumps that changed while they were read are read again so often.
const DUMPS_MAX: usize = 8;

/// A socket.
#[derive(Debug)]
pub(crate) struct Rtnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnetlink {
    /// Opens one in this thread's network namespace, where it stays.
    pub(crate) fn open() -> Result<Self> {
        let failed = || Error::io("open a netlink socket");
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map_err(failed())?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed())?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_S, 0))
            .map_err(failed())?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel do something; `flags` beside those of every request.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn change(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        self.send(what, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for answer in self.receive(what)? {
                if let NetlinkPayload::Error(error) = answer.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(Error::io(what)(error.to_io())),
                    };
                }
            }
        }
    }

    /// All that there is of a kind.
    ///
    /// # Errors
    /// The kernel's refusal; EAGAIN for what never stands still.
    pub(crate) fn dump(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS_MAX {
            if let Some(all) = self.dump_once(what, message.clone())? {
                return Ok(all);
            }
        }
        Err(Error::io(what)(Errno::EAGAIN))
    }

    /// None when it changed meanwhile.
    fn dump_once(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        self.send(what, message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let (mut all, mut is_whole) = (Vec::new(), true);
        loop {
            for answer in self.receive(what)? {
                is_whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => all.push(message),
                    NetlinkPayload::Done(_) => return Ok(is_whole.then_some(all)),
                    NetlinkPayload::Error(error) => return Err(Error::io(what)(error.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(Error::io(what))?;
        Ok(())
    }

    /// The messages of one datagram that answer the last request.
    fn receive(&self, what: &str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut buffer = vec![0; ANSWER_BYTES];
        let bytes = loop {
            let received = recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer);
            match received {
                // Other processes may send to this socket; only the kernel is believed.
                Ok((bytes, Some(sender))) if sender.pid() == 0 => break bytes,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io(what)(errno)),
            }
        };
        let mut rest = &buffer[..bytes];
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(|source| Error::Answer {
                what: what.to_owned(),
                source,
            })?;
            // netlink(7): each begins at a multiple of four.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}
