//! Ties links to a machine: for each a tap in the same namespace, and what comes in at one goes out at the
//! other. A tap ends with its last descriptor; what is left of a link's side is removed by [`untie`].

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcHeader,
    TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::read::Found;
use crate::rtnetlink::Rtnetlink;
use crate::{Error, Result};

/// linux/if_ether.h: packets of all protocols.
const ETH_P_ALL: u16 = 3;

/// tc(8): the discipline of what comes in.
const INGRESS: &str = "ingress";

/// linux/pkt_sched.h: its handle, and the parent of its filters.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// Priority of the one filter.
const PRIORITY: u32 = 1;

/// The other ends of links, in their order.
#[derive(Debug)]
pub struct Tied {
    /// Descriptors of taps, for QEMU.
    pub taps: Vec<OwnedFd>,
}

/// Ties all links of this thread's network namespace that were found.
///
/// # Errors
/// What the kernel says; [`Error::Taken`] where somebody else was faster. Nothing is tied then.
pub fn tie(found: &Found) -> Result<Tied> {
    let mut kernel = Rtnetlink::open()?;
    let mut taps = Vec::new();
    for (position, index) in found.indexes.iter().enumerate() {
        let link = &found.network.links[position];
        match tie_one(&mut kernel, *index, position, link.mtu) {
            Ok(tap) => taps.push(tap),
            Err(error) => {
                // The first error is the one to tell.
                let _left = untie(&found.indexes[..position]);
                return Err(match error.errno() {
                    Some(code) if code == Errno::EEXIST as i32 => Error::Taken(link.name.clone()),
                    _ => error,
                });
            }
        }
    }
    Ok(Tied { taps })
}

/// Takes from links of this thread's network namespace what [`tie`] has put there. Idempotent; a link
/// that is gone is fine.
///
/// # Errors
/// What the kernel says.
pub fn untie(indexes: &[u32]) -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    for index in indexes {
        let what = format!("remove the ingress queueing discipline of link {index}");
        let message = Message::DelQueueDiscipline(ingress(*index));
        match kernel.change(&what, message, 0) {
            Err(error) if is_absent(&error) => {}
            other => other?,
        }
    }
    Ok(())
}

/// No such link, or none of its (EINVAL, since 2.6.32 for a discipline that is not there).
pub(crate) fn is_absent(error: &Error) -> bool {
    let absent = [Errno::ENODEV, Errno::ENOENT, Errno::EINVAL];
    absent
        .iter()
        .any(|errno| error.errno() == Some(*errno as i32))
}

fn tie_one(kernel: &mut Rtnetlink, link: u32, position: usize, mtu: u32) -> Result<OwnedFd> {
    let name = format!("runv{position}");
    let tap = sys::open_tap(&name).map_err(Error::io(format!("make tap {name}")))?;
    be_silent(&name)?;
    let index = if_nametoindex(name.as_str()).map_err(Error::io(format!("find tap {name}")))?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    let what = format!("bring tap {name} up with an MTU of {mtu}");
    kernel.change(&what, Message::SetLink(message), 0)?;
    redirect(kernel, index, link)?;
    redirect(kernel, link, index).inspect_err(|error| {
        if error.errno() != Some(Errno::EEXIST as i32) {
            // The first error is the one to tell.
            let _left = untie(&[link]);
        }
    })?;
    Ok(tap)
}

/// A tap is the machine's, and packets at an ifb are somebody else's: the kernel of the host has nothing
/// to say there.
pub(crate) fn be_silent(name: &str) -> Result<()> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    match fs::write(&path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(format!("write 1 to {}", path.display()))),
    }
}

fn ingress(index: u32) -> TcMessage {
    let header = TcHeader {
        index: index.cast_signed(),
        parent: TcHandle::INGRESS,
        handle: TcHandle::from(INGRESS_HANDLE),
        ..TcHeader::default()
    };
    let kind = TcAttribute::Kind(INGRESS.to_owned());
    TcMessage::from_parts(header, vec![kind])
}

/// All that comes in at one goes out at the other.
pub(crate) fn redirect(kernel: &mut Rtnetlink, from: u32, to: u32) -> Result<()> {
    let what = format!("add an ingress queueing discipline to link {from}");
    let discipline = Message::NewQueueDiscipline(ingress(from));
    kernel.change(&what, discipline, NLM_F_CREATE | NLM_F_EXCL)?;
    let what = format!("redirect link {from} to link {to}");
    let filter = Message::NewTrafficFilter(filter(from, to));
    kernel.change(&what, filter, NLM_F_CREATE | NLM_F_EXCL)
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let option = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![option]),
    ];
    // It matches the one word that is always there under no bit: so everything. `matchall` would say it
    // better, but came with Linux 4.8, and not all kernels of today have it.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ];
    let header = TcHeader {
        index: from.cast_signed(),
        parent: TcHandle::from(INGRESS_HANDLE),
        // tc(8): priority above, protocol in network order below.
        info: PRIORITY << 16 | u32::from(ETH_P_ALL.to_be()),
        ..TcHeader::default()
    };
    TcMessage::from_parts(
        header,
        vec![
            TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
            TcAttribute::Options(options),
        ],
    )
}
