//! Generic netlink (netlink(7)): messages taken apart, families found by name; must not know any.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    socket,
};

use crate::raw;

/// More than any message that is asked for here; what is longer is cut and then not understood.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8192;

/// Of struct nlmsghdr and of struct genlmsghdr.
const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;

/// The family of families, at a fixed number (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// Without the bits that say how the rest is encoded.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A family as the kernel numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family {
    /// Type of its messages.
    pub(crate) id: u16,
    /// The group asked for.
    pub(crate) group: u32,
}

/// A generic netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// Of the family.
    pub(crate) command: u8,
    /// What it carries, see [`attributes`].
    pub(crate) attributes: &'a [u8],
}

/// A socket that never blocks, with an address of its own.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkGeneric,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks the kernel, which answers before sending returns, for a family and one of its groups.
///
/// # Errors
/// NotFound without that family or group.
pub(crate) fn family(socket: impl AsFd, name: &str, group: &str) -> io::Result<Family> {
    let fd = socket.as_fd().as_raw_fd();
    send(fd, &family_request(name), MsgFlags::empty())?;
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let answer = receive(socket, &mut buffer)?;
    if let Some(error) = refusal(answer) {
        return Err(error);
    }
    family_in(answer, group).ok_or_else(|| {
        io::Error::new(
            ErrorKind::NotFound,
            format!("netlink family {name} has no group {group}"),
        )
    })
}

/// Makes a socket receive what is sent to a group.
pub(crate) fn join(socket: impl AsFd, group: u32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<u32>()).expect("4 fits");
    // SAFETY: NETLINK_ADD_MEMBERSHIP reads one u32, which outlives the call.
    raw::unit(
        unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const group).cast(),
                size,
            )
        }
        .into(),
    )
}

/// The next datagram from the kernel; those of other processes are dropped.
///
/// # Errors
/// WouldBlock when there is none; ENOBUFS when some were lost.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<&[u8]> {
    loop {
        let fd = socket.as_fd().as_raw_fd();
        let (count, sender) = recvfrom::<NetlinkAddr>(fd, buffer)?;
        if sender.is_some_and(|address| address.pid() == 0) {
            return Ok(&buffer[..count]);
        }
    }
}

/// The message at the beginning of a datagram, if it is of that family.
pub(crate) fn message(datagram: &[u8], family: u16) -> Option<Message<'_>> {
    let (kind, payload) = first(datagram)?;
    let (header, attributes) = payload.split_at_checked(GENERIC_HEADER_BYTES)?;
    (kind == family).then_some(Message {
        command: header[0],
        attributes,
    })
}

/// Numbers and contents of attributes, up to the first that is none.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Type and payload of the first message of a datagram.
fn first(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
    Some((kind, datagram.get(HEADER_BYTES..length)?))
}

fn refusal(datagram: &[u8]) -> Option<io::Error> {
    let (kind, payload) = first(datagram)?;
    let negative = i32::from_ne_bytes(*payload.first_chunk()?);
    (kind == NLMSG_ERROR).then(|| io::Error::from_raw_os_error(negative.saturating_neg()))
}

fn family_request(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    let length = u16::try_from(4 + name.len()).expect("names of families are literals");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    bytes.extend_from_slice(&name);
    bytes.resize(aligned(bytes.len()), 0);
    let length = u32::try_from(bytes.len()).expect("it has some dozen bytes");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&GENL_ID_CTRL.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes
}

fn family_in(datagram: &[u8], group: &str) -> Option<Family> {
    let message = message(datagram, GENL_ID_CTRL)?;
    let find = |wanted| attributes(message.attributes).find(|(kind, _)| *kind == wanted);
    let (_, id) = find(CTRL_ATTR_FAMILY_ID)?;
    let (_, groups) = find(CTRL_ATTR_MCAST_GROUPS)?;
    let number = attributes(groups).find_map(|(_, about)| {
        let find = |wanted| attributes(about).find(|(kind, _)| *kind == wanted);
        let (_, name) = find(CTRL_ATTR_MCAST_GRP_NAME)?;
        let (_, number) = find(CTRL_ATTR_MCAST_GRP_ID)?;
        (name.strip_suffix(&[0])? == group.as_bytes()).then_some(number)
    })?;
    Some(Family {
        id: u16::from_ne_bytes(*id.first_chunk()?),
        group: u32::from_ne_bytes(*number.first_chunk()?),
    })
}

/// To the next multiple of 4, where the next part begins.
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn family_that_every_kernel_has_is_found_and_joined() {
        let socket = open().unwrap();
        let found = family(&socket, "nlctrl", "notify").unwrap();
        assert_eq!(found.id, GENL_ID_CTRL);
        join(&socket, found.group).unwrap();
        let nothing = receive(&socket, &mut [0; 64]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

        let group = family(&socket, "nlctrl", "none").unwrap_err();
        assert_eq!(group.kind(), ErrorKind::NotFound, "{group}");
        let name = family(&socket, "none such", "notify").unwrap_err();
        assert_eq!(name.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn attributes_end_where_they_make_no_sense() {
        let bytes = [5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0x80, 3, 0, 9, 9];
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &[7][..]), (2, &[][..])]);
    }

    proptest! {
        #[test]
        fn any_datagram_is_taken_apart_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
            let _no_family = family_in(&bytes, "events");
            let _no_error = refusal(&bytes);
            let mut framed = bytes;
            let length = u32::try_from(framed.len()).unwrap().to_ne_bytes();
            if framed.len() >= HEADER_BYTES {
                framed[..4].copy_from_slice(&length);
                framed[4..6].copy_from_slice(&GENL_ID_CTRL.to_ne_bytes());
                let _family = family_in(&framed, "events");
            }
        }
    }
}
