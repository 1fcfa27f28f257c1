//! What is in a network namespace, as values; and what cannot be, refused by name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcMessage};

use crate::rtnetlink::Rtnetlink;
use crate::values::{Address, Link, Mac, Neighbour, Network, Route};
use crate::{Error, Result};

/// rtnetlink(7), `ifa_scope`: valid on this link only.
const SCOPE_LINK: u8 = 253;

/// linux/if_addr.h: not one that a router told.
const PERMANENT: u32 = 0x80;

/// A network and the kernel's numbers of its links, in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The network.
    pub network: Network,
    /// Numbers (`ifindex`) of its links.
    pub indexes: Vec<u32>,
}

/// Reads the network namespace of this thread. Links that are down and have no address are left out.
///
/// # Errors
/// [`Error::Unsupported`] with what a machine cannot be given, as two links with one hardware address;
/// [`Error::Taken`] for a link whose
/// traffic goes elsewhere.
pub fn read() -> Result<Found> {
    let mut kernel = Rtnetlink::open()?;
    let mut addresses = addresses(&mut kernel)?;
    let mut found = Found::default();
    let links = kernel.dump("list links", &Message::GetLink(LinkMessage::default()))?;
    for message in links {
        let Message::NewLink(message) = message else {
            continue;
        };
        let index = message.header.index;
        let own = addresses.remove(&index).unwrap_or_default();
        if let Some(link) = link(&message, own)? {
            refuse_twin(&link, &found)?;
            found.network.links.push(link);
            found.indexes.push(index);
        }
    }
    let disciplines = Message::GetQueueDiscipline(TcMessage::default());
    for message in kernel.dump("list queueing disciplines", &disciplines)? {
        if let Message::NewQueueDiscipline(message) = message {
            refuse_ingress(&message, &found)?;
        }
    }
    let routes = kernel.dump("list routes", &Message::GetRoute(RouteMessage::default()))?;
    for message in routes {
        if let Message::NewRoute(message) = message {
            found
                .network
                .routes
                .extend(route(&message, &found.indexes)?);
        }
    }
    let neighbours = Message::GetNeighbour(NeighbourMessage::default());
    for message in kernel.dump("list neighbours", &neighbours)? {
        if let Message::NewNeighbour(message) = message {
            let neighbour = neighbour(&message, &found.indexes);
            found.network.neighbours.extend(neighbour);
        }
    }
    Ok(found)
}

/// Addresses by link.
pub(crate) fn addresses(kernel: &mut Rtnetlink) -> Result<BTreeMap<u32, Vec<Address>>> {
    let all = Message::GetAddress(AddressMessage::default());
    let mut addresses: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
    for message in kernel.dump("list addresses", &all)? {
        if let Message::NewAddress(message) = message
            && let Some(address) = address(&message)
        {
            addresses
                .entry(message.header.index)
                .or_default()
                .push(address);
        }
    }
    Ok(addresses)
}

/// None: one that the guest gives itself, or learns as this namespace did.
fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer, mut broadcast) = (None, None, None);
    let mut flags = u32::from(message.header.flags.bits());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(all) => flags = all.bits(),
            _ => {}
        }
    }
    let peer = peer.or(local)?;
    let local = local.unwrap_or(peer);
    let scope = u8::from(message.header.scope);
    let is_own = local.is_ipv6() && scope == SCOPE_LINK;
    (!is_own && flags & PERMANENT != 0).then_some(Address {
        local,
        peer,
        prefix_bits: message.header.prefix_len,
        broadcast,
        scope,
    })
}

/// None: a loopback, or one that carries nothing.
fn link(message: &LinkMessage, addresses: Vec<Address>) -> Result<Option<Link>> {
    let flags = message.header.flags;
    let is_used = flags.contains(LinkFlags::Up) || !addresses.is_empty();
    if flags.contains(LinkFlags::Loopback) || !is_used {
        return Ok(None);
    }
    let (mut name, mut mac, mut mtu) = (String::new(), None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    match mac.filter(|_| is_ethernet) {
        Some(mac) => Ok(Some(Link {
            name,
            mac: Mac(mac),
            mtu,
            addresses,
        })),
        None => Err(Error::Unsupported {
            what: format!("link {name}"),
            why: "a virtual machine has Ethernet links only",
        }),
    }
}

/// A machine tells its links by their hardware addresses (of VLANs, ipvlans and a bridge's port and the
/// bridge they are the same).
fn refuse_twin(link: &Link, found: &Found) -> Result<()> {
    let twin = found.network.links.iter().find(|it| it.mac == link.mac);
    twin.map_or(Ok(()), |twin| {
        Err(Error::Unsupported {
            what: format!(
                "link {} with the hardware address of {}",
                link.name, twin.name
            ),
            why: "a virtual machine could not tell the two apart",
        })
    })
}

fn refuse_ingress(message: &TcMessage, found: &Found) -> Result<()> {
    let index = u32::try_from(message.header.index).unwrap_or(0);
    let Some(position) = found.indexes.iter().position(|known| *known == index) else {
        return Ok(());
    };
    let kinds = message.attributes.iter();
    let mut kinds = kinds.filter_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    match kinds.next() {
        Some("ingress" | "clsact") => Err(Error::Taken(found.network.links[position].name.clone())),
        _ => Ok(()),
    }
}

/// None: of another table, made by the kernel with an address or told by a router, or of a link that is
/// not copied.
fn route(message: &RouteMessage, indexes: &[u32]) -> Result<Option<Route>> {
    let header = &message.header;
    let is_copied = header.table == RouteHeader::RT_TABLE_MAIN
        && !matches!(
            header.protocol,
            RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
        )
        && !header.flags.contains(RouteFlags::Cloned);
    if !is_copied {
        return Ok(None);
    }
    let everywhere = match u8::from(header.address_family) {
        2 => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut destination, mut gateway, mut source) = (everywhere, None, None);
    let (mut index, mut priority, mut odd) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => destination = plain(ip).unwrap_or(everywhere),
            RouteAttribute::Gateway(ip) => gateway = plain(ip),
            RouteAttribute::PrefSource(ip) => source = plain(ip),
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Priority(number) => priority = Some(*number),
            RouteAttribute::MultiPath(_) => odd = Some("it has several next hops"),
            RouteAttribute::Via(_) => odd = Some("its next hop is of another family"),
            RouteAttribute::Encap(_) => odd = Some("its packets are wrapped"),
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast {
        odd = Some("it is none of the kind unicast");
    }
    if let Some(why) = odd {
        let what = format!(
            "the route to {destination}/{}",
            header.destination_prefix_length
        );
        return Err(Error::Unsupported { what, why });
    }
    let link = indexes.iter().position(|known| Some(*known) == index);
    Ok(link.map(|link| Route {
        link,
        destination,
        prefix_bits: header.destination_prefix_length,
        gateway,
        source,
        priority,
        scope: u8::from(header.scope),
        is_on_link: header.flags.contains(RouteFlags::Onlink),
    }))
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, indexes: &[u32]) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(&bytes[..]).ok();
            }
            _ => {}
        }
    }
    let index = message.header.ifindex;
    Some(Neighbour {
        link: indexes.iter().position(|known| *known == index)?,
        address: address?,
        mac: Mac(mac?),
    })
}
