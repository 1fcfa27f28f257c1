//! Limits that were reached, as the kernel tells them (generic netlink family VFS_DQUOT).
//!
//! Must not be the only source: the kernel sends without waiting, and loses what does not fit. ext4
//! tells each crossing once, downwards too; xfs tells every write that failed, and nothing else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::netlink::{self, attributes};
use crate::project_quota::ProjectId;

const FAMILY: &str = "VFS_DQUOT";
const GROUP: &str = "events";

/// Of linux/quota.h.
const QUOTA_NL_C_WARNING: u8 = 1;
const QUOTA_NL_A_QTYPE: u16 = 1;
const QUOTA_NL_A_EXCESS_ID: u16 = 2;
const QUOTA_NL_A_WARNING: u16 = 3;
const QUOTA_NL_A_DEV_MAJOR: u16 = 4;
const QUOTA_NL_A_DEV_MINOR: u16 = 5;

/// Whose quota it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaOwner {
    /// A user's, by id.
    User(u32),
    /// A group's, by id.
    Group(u32),
    /// A project's.
    Project(ProjectId),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaWarning {
    /// Writing failed at the hard limit of bytes.
    BytesHardHit,
    /// The soft limit of bytes was passed: the grace time begins.
    BytesSoftHit,
    /// Writing failed, because the grace time of bytes was over.
    BytesGraceOver,
    /// Fewer bytes than the hard limit are used again.
    BytesBelowHard,
    /// Fewer bytes than the soft limit are used again.
    BytesBelowSoft,
    /// Creating failed at the hard limit of inodes.
    InodesHardHit,
    /// The soft limit of inodes was passed: the grace time begins.
    InodesSoftHit,
    /// Creating failed, because the grace time of inodes was over.
    InodesGraceOver,
    /// Fewer inodes than the hard limit are used again.
    InodesBelowHard,
    /// Fewer inodes than the soft limit are used again.
    InodesBelowSoft,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaEvent {
    /// Major number of the file system's device.
    pub device_major: u32,
    /// Minor number of it.
    pub device_minor: u32,
    /// Whose quota.
    pub owner: QuotaOwner,
    /// What happened.
    pub warning: QuotaWarning,
}

/// All such messages of the machine, from when it was opened.
///
/// Readable when there is one: its descriptor never blocks, and can be waited for by poll(2).
#[derive(Debug)]
pub struct QuotaEvents {
    socket: OwnedFd,
    family: u16,
}

impl QuotaEvents {
    /// Begins to listen. Needs no right; only the first network namespace is told anything.
    ///
    /// # Errors
    /// NotFound where the kernel does not tell (without CONFIG_QUOTA_NETLINK_INTERFACE, before
    /// 3.13, in another network namespace): usage must be asked for then.
    pub fn open() -> io::Result<Self> {
        let socket = netlink::open()?;
        let family = netlink::family(&socket, FAMILY, GROUP)?;
        netlink::join(&socket, family.group)?;
        Ok(Self {
            socket,
            family: family.id,
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// WouldBlock when there is none; ENOBUFS (once) when some were lost.
    pub fn next(&self) -> io::Result<QuotaEvent> {
        let mut buffer = [0; netlink::MESSAGE_BYTES_MAX];
        loop {
            let datagram = netlink::receive(&self.socket, &mut buffer)?;
            if let Some(event) = parse(datagram, self.family) {
                return Ok(event);
            }
        }
    }
}

impl AsFd for QuotaEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for QuotaEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// `None` for what is no event, or one that a later kernel invented.
fn parse(datagram: &[u8], family: u16) -> Option<QuotaEvent> {
    let message = netlink::message(datagram, family)?;
    if message.command != QUOTA_NL_C_WARNING {
        return None;
    }
    let number = |wanted| {
        let (_, bytes) = attributes(message.attributes).find(|(kind, _)| *kind == wanted)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (_, id) = attributes(message.attributes).find(|(kind, _)| *kind == QUOTA_NL_A_EXCESS_ID)?;
    let id = u32::try_from(u64::from_ne_bytes(id.try_into().ok()?)).ok()?;
    Some(QuotaEvent {
        device_major: number(QUOTA_NL_A_DEV_MAJOR)?,
        device_minor: number(QUOTA_NL_A_DEV_MINOR)?,
        owner: owner(number(QUOTA_NL_A_QTYPE)?, id)?,
        warning: warning(number(QUOTA_NL_A_WARNING)?)?,
    })
}

/// USRQUOTA, GRPQUOTA, PRJQUOTA.
fn owner(kind: u32, id: u32) -> Option<QuotaOwner> {
    Some(match kind {
        0 => QuotaOwner::User(id),
        1 => QuotaOwner::Group(id),
        2 => QuotaOwner::Project(ProjectId(id)),
        _ => return None,
    })
}

/// QUOTA_NL_IHARDWARN to QUOTA_NL_BSOFTBELOW.
fn warning(code: u32) -> Option<QuotaWarning> {
    Some(match code {
        1 => QuotaWarning::InodesHardHit,
        2 => QuotaWarning::InodesGraceOver,
        3 => QuotaWarning::InodesSoftHit,
        4 => QuotaWarning::BytesHardHit,
        5 => QuotaWarning::BytesGraceOver,
        6 => QuotaWarning::BytesSoftHit,
        7 => QuotaWarning::InodesBelowHard,
        8 => QuotaWarning::InodesBelowSoft,
        9 => QuotaWarning::BytesBelowHard,
        10 => QuotaWarning::BytesBelowSoft,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    const NUMBER: u16 = 0x11;

    fn datagram(command: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(&[command, 1, 0, 0]);
        for (kind, content) in attributes {
            let length = u16::try_from(4 + content.len()).unwrap();
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&NUMBER.to_ne_bytes());
        bytes
    }

    fn event(kind: u32, id: u64, code: u32) -> Vec<u8> {
        datagram(
            QUOTA_NL_C_WARNING,
            &[
                (QUOTA_NL_A_QTYPE, &kind.to_ne_bytes()),
                (QUOTA_NL_A_EXCESS_ID, &id.to_ne_bytes()),
                (QUOTA_NL_A_WARNING, &code.to_ne_bytes()),
                (QUOTA_NL_A_DEV_MAJOR, &7_u32.to_ne_bytes()),
                (QUOTA_NL_A_DEV_MINOR, &3_u32.to_ne_bytes()),
                (6, &0_u64.to_ne_bytes()),
                (7, &[]),
            ],
        )
    }

    #[test]
    fn warning_about_a_project_is_read() {
        let expected = QuotaEvent {
            device_major: 7,
            device_minor: 3,
            owner: QuotaOwner::Project(ProjectId(1001)),
            warning: QuotaWarning::BytesHardHit,
        };
        assert_eq!(parse(&event(2, 1001, 4), NUMBER), Some(expected));
    }

    #[test]
    fn what_is_no_event_is_none() {
        assert_eq!(
            parse(&event(2, 1001, 4), NUMBER + 1),
            None,
            "another family"
        );
        assert_eq!(
            parse(&event(3, 1001, 4), NUMBER),
            None,
            "another kind of quota"
        );
        assert_eq!(parse(&event(2, 1 << 32, 4), NUMBER), None, "no id");
        assert_eq!(parse(&event(2, 1001, 0), NUMBER), None, "no warning");
        assert_eq!(parse(&event(2, 1001, 11), NUMBER), None, "a later warning");
        assert_eq!(parse(&datagram(QUOTA_NL_C_WARNING, &[]), NUMBER), None);
        assert_eq!(parse(&datagram(2, &[]), NUMBER), None, "another command");
        let whole = event(2, 1001, 4);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length], NUMBER), None, "cut at {length}");
        }
    }

    #[test]
    fn kernel_that_does_not_tell_is_told_apart() {
        match QuotaEvents::open() {
            Ok(events) => {
                let nothing = events.next().unwrap_err();
                assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_without_a_panic(
            attributes in prop::collection::vec(
                (0_u16..9, prop::collection::vec(any::<u8>(), 0..10)),
                0..10,
            ),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let attributes: Vec<_> = attributes.iter().map(|(k, c)| (*k, &c[..])).collect();
            let mut bytes = datagram(QUOTA_NL_C_WARNING, &attributes);
            let _event = parse(&bytes, NUMBER);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _event = parse(&bytes, NUMBER);
        }
    }
}
