//! Gives the links of this thread's network namespace, found by their hardware addresses, the names,
//! addresses and routes they have elsewhere; and other hardware addresses.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::rtnetlink::Rtnetlink;
use crate::values::{Address, Mac, Neighbour, Network, Route};
use crate::{Error, Result};

/// Gives each link that has the first hardware address the second one. Links must be down.
///
/// # Errors
/// [`Error::NoLink`] with the hardware address that no link has; what the kernel refuses, by name.
pub fn readdress(changes: &[(Mac, Mac)]) -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    let there = links(&mut kernel)?;
    for (from, to) in changes {
        let mut matching = there.iter().filter(|(mac, _)| mac == from);
        let (_, index) = matching
            .next()
            .ok_or_else(|| Error::NoLink(*from, to.to_string()))?;
        let address = vec![LinkAttribute::Address(to.0.to_vec())];
        set(&mut kernel, *index, address, LinkFlags::empty())?;
    }
    Ok(())
}

/// Applies all of it.
///
/// # Errors
/// [`Error::NoLink`] with the hardware address that no link has; what the kernel refuses, by name.
pub fn apply(network: &Network) -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    let there = links(&mut kernel)?;
    let mut indexes = Vec::new();
    for link in &network.links {
        let mut matching = there.iter().filter(|(mac, _)| *mac == link.mac);
        let (_, index) = matching
            .next()
            .ok_or_else(|| Error::NoLink(link.mac, link.name.clone()))?;
        indexes.push(*index);
    }
    // Names that they have now may be those that others are to have.
    for (position, index) in indexes.iter().enumerate() {
        let attributes = vec![LinkAttribute::IfName(format!("renamed{position}"))];
        set(&mut kernel, *index, attributes, LinkFlags::empty())?;
    }
    for (link, index) in network.links.iter().zip(&indexes) {
        let attributes = vec![
            LinkAttribute::IfName(link.name.clone()),
            LinkAttribute::Mtu(link.mtu),
        ];
        set(&mut kernel, *index, attributes, LinkFlags::empty())?;
        set(&mut kernel, *index, Vec::new(), LinkFlags::Up)?;
        for address in &link.addresses {
            add_address(&mut kernel, &link.name, *index, address)?;
        }
    }
    // A next hop must be in reach when its route comes.
    let (direct, far): (Vec<_>, Vec<_>) =
        network.routes.iter().partition(|it| it.gateway.is_none());
    for route in direct.into_iter().chain(far) {
        if let Some(index) = indexes.get(route.link) {
            add_route(&mut kernel, *index, route)?;
        }
    }
    for neighbour in &network.neighbours {
        if let Some(index) = indexes.get(neighbour.link) {
            add_neighbour(&mut kernel, *index, neighbour)?;
        }
    }
    Ok(())
}

fn links(kernel: &mut Rtnetlink) -> Result<Vec<(Mac, u32)>> {
    let all = Message::GetLink(LinkMessage::default());
    let mut links = Vec::new();
    for message in kernel.dump("list links", &all)? {
        let Message::NewLink(message) = message else {
            continue;
        };
        for attribute in &message.attributes {
            if let LinkAttribute::Address(bytes) = attribute
                && let Ok(mac) = <[u8; 6]>::try_from(&bytes[..])
                && !message.header.flags.contains(LinkFlags::Loopback)
            {
                links.push((Mac(mac), message.header.index));
            }
        }
    }
    Ok(links)
}

pub(crate) fn set(
    kernel: &mut Rtnetlink,
    index: u32,
    attributes: Vec<LinkAttribute>,
    flags: LinkFlags,
) -> Result<()> {
    let what = format!("set link {index} to {attributes:?} {flags:?}");
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    kernel.change(&what, Message::SetLink(message), 0)
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(crate) fn add_address(
    kernel: &mut Rtnetlink,
    link: &str,
    index: u32,
    address: &Address,
) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.local);
    message.header.prefix_len = address.prefix_bits;
    message.header.scope = AddressScope::from(address.scope);
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.local),
        AddressAttribute::Address(address.peer),
    ];
    if address.local.is_ipv6() {
        // Where it comes from it was found to be nobody else's.
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    let broadcast = address.broadcast.map(AddressAttribute::Broadcast);
    message.attributes.extend(broadcast);
    let what = format!("add address {} to link {link}", address.local);
    kernel.change(
        &what,
        Message::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn add_route(kernel: &mut Rtnetlink, index: u32, route: &Route) -> Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination);
    message.header.destination_prefix_length = route.prefix_bits;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::from(route.scope);
    message.header.kind = RouteType::Unicast;
    if route.is_on_link {
        message.header.flags = RouteFlags::Onlink;
    }
    let address = |ip: IpAddr| RouteAddress::from(ip);
    message.attributes = vec![RouteAttribute::Oif(index)];
    if route.prefix_bits > 0 {
        let destination = RouteAttribute::Destination(address(route.destination));
        message.attributes.push(destination);
    }
    let gateway = route.gateway.map(address).map(RouteAttribute::Gateway);
    let source = route.source.map(address).map(RouteAttribute::PrefSource);
    let priority = route.priority.map(RouteAttribute::Priority);
    message
        .attributes
        .extend([gateway, source, priority].into_iter().flatten());
    let what = format!(
        "add the route to {}/{}",
        route.destination, route.prefix_bits
    );
    kernel.change(
        &what,
        Message::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn add_neighbour(kernel: &mut Rtnetlink, index: u32, neighbour: &Neighbour) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let address = match neighbour.address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    let what = format!("add neighbour {}", neighbour.address);
    kernel.change(
        &what,
        Message::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}
