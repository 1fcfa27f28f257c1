//! Moves links from one network namespace to another one, with what belongs to them; must not move one
//! when another one of the same request cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::net::if_::if_nametoindex;

use crate::apply::{add_address, set};
use crate::namespace::Namespace;
use crate::read::addresses;
use crate::rtnetlink::Rtnetlink;
use crate::values::Address;
use crate::{Error, Result};

/// rtnetlink(7), RT_SCOPE_UNIVERSE: what means the same elsewhere.
const SCOPE_UNIVERSE: u8 = 0;

/// In a new name: a number.
const NUMBER: &str = "%d";

/// A link as it is where it comes from.
struct Carried<'a> {
    name: &'a str,
    new_name: String,
    addresses: Vec<Address>,
    flags: LinkFlags,
}

/// Moves links, by their names, from one namespace to the other, where they have other names (`%d` is a
/// number that is free there) and are up. Hardware address and MTU stay, and so do addresses that are
/// permanent and of global scope (config-linux.md, Network devices); routes do not. If one cannot be
/// moved, those before it are given back, without their routes.
///
/// # Errors
/// [`Error::NoSuchLink`]; [`Error::Loopback`]; [`Error::NameInUse`]; what the kernel refuses, by name.
pub fn hand_over(
    names: &BTreeMap<String, String>,
    (from, to): (&Namespace, &Namespace),
) -> Result<()> {
    let mut links = from.run(|| look(names))?;
    let there = to.run(|| links_by_name(&mut Rtnetlink::open()?))?;
    number_names(&mut links, there.into_keys().collect())?;
    for (position, link) in links.iter().enumerate() {
        let moved = carry((link.name, &link.new_name), (from, to))
            .and_then(|()| to.run(|| set_up(&link.new_name, &link.addresses, LinkFlags::Up)));
        if let Err(error) = moved {
            for link in links[..=position].iter().rev() {
                give_back(link, (from, to));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Gives names with a number one that is free, when the others have theirs.
fn number_names(links: &mut [Carried<'_>], mut taken: BTreeSet<String>) -> Result<()> {
    for link in links.iter().filter(|it| !it.new_name.contains(NUMBER)) {
        if !taken.insert(link.new_name.clone()) {
            return Err(Error::NameInUse(link.new_name.clone()));
        }
    }
    for link in links {
        if let Some((before, after)) = link.new_name.split_once(NUMBER) {
            let mut numbered = (0u32..).map(|number| format!("{before}{number}{after}"));
            let free = numbered.find(|name| !taken.contains(name));
            link.new_name = free.expect("a namespace has not 4294967296 links");
            taken.insert(link.new_name.clone());
        }
    }
    Ok(())
}

/// As far as it goes: what is told is why another one was not moved.
fn give_back(link: &Carried<'_>, (from, to): (&Namespace, &Namespace)) {
    // The kernel moves a link before it refuses its new name.
    let _not_there = carry((&link.new_name, link.name), (to, from))
        .or_else(|_not_there| carry((link.name, link.name), (to, from)));
    let was_up = link.flags & LinkFlags::Up;
    let _not_there = from.run(|| set_up(link.name, &link.addresses, was_up));
}

/// The links with these names in this thread's namespace.
fn look(names: &BTreeMap<String, String>) -> Result<Vec<Carried<'_>>> {
    let mut kernel = Rtnetlink::open()?;
    let mut addresses = addresses(&mut kernel)?;
    let there = links_by_name(&mut kernel)?;
    let mut links = Vec::new();
    for (name, new_name) in names {
        let found = there.get(name).copied();
        let (index, flags) = found.ok_or_else(|| Error::NoSuchLink(name.clone()))?;
        // To be asked, the kernel wants it down, and with it whoever uses it.
        if flags.contains(LinkFlags::Loopback) {
            return Err(Error::Loopback(name.clone()));
        }
        let mut addresses = addresses.remove(&index).unwrap_or_default();
        addresses.retain(|address| address.scope == SCOPE_UNIVERSE);
        links.push(Carried {
            name,
            new_name: new_name.clone(),
            addresses,
            flags,
        });
    }
    Ok(links)
}

/// Numbers (`ifindex`) and flags of the links of this thread's namespace.
fn links_by_name(kernel: &mut Rtnetlink) -> Result<BTreeMap<String, (u32, LinkFlags)>> {
    let all = Message::GetLink(LinkMessage::default());
    let mut links = BTreeMap::new();
    for message in kernel.dump("list links", &all)? {
        let Message::NewLink(message) = message else {
            continue;
        };
        let mut attributes = message.attributes.into_iter();
        let name = attributes.find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        let found = (message.header.index, message.header.flags);
        links.extend(name.map(|name| (name, found)));
    }
    Ok(links)
}

/// Of a link in this thread's namespace.
fn index_of(name: &str) -> Result<u32> {
    if_nametoindex(name).map_err(Error::io(format!("find link {name}")))
}

/// Moves one; it is down then, and has no address.
fn carry((name, new_name): (&str, &str), (from, to): (&Namespace, &Namespace)) -> Result<()> {
    let target = to.descriptor()?;
    from.run(|| {
        let mut kernel = Rtnetlink::open()?;
        let index = index_of(name)?;
        // One that is up is not renamed.
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        kernel.change(
            &format!("set link {name} down"),
            Message::SetLink(message.clone()),
            0,
        )?;
        message.header.change_mask = LinkFlags::empty();
        // Both at once, so that its name is never that of another one there.
        message.attributes = vec![
            LinkAttribute::NetNsFd(target.as_raw_fd()),
            LinkAttribute::IfName(new_name.to_owned()),
        ];
        let what = format!("move link {name} as {new_name} to another network namespace");
        kernel.change(&what, Message::SetLink(message), 0)
    })
}

/// Gives a link of this thread's namespace addresses, and sets it up if `flags` say so.
fn set_up(name: &str, addresses: &[Address], flags: LinkFlags) -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    let index = index_of(name)?;
    for address in addresses {
        add_address(&mut kernel, name, index, address)?;
    }
    set(&mut kernel, index, Vec::new(), flags)
}
