//! A network as it is told from one namespace to another: plain values, no number of one kernel's in them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&parts.join(":"))
    }
}

/// All that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Links, but for the loopback.
    pub links: Vec<Link>,
    /// Routes of the main table that nobody but a person or program has made: those of addresses come
    /// with them.
    pub routes: Vec<Route>,
    /// Neighbours that are never asked for.
    pub neighbours: Vec<Neighbour>,
}

/// An Ethernet link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// By which it is found.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its addresses, but for those that it gives itself (IPv6 link-local).
    pub addresses: Vec<Address>,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub local: IpAddr,
    /// That of the other end, which is the same but for links from point to point.
    pub peer: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_bits: u8,
    /// Where broadcasts go.
    pub broadcast: Option<Ipv4Addr>,
    /// rtnetlink(7), `ifa_scope`.
    pub scope: u8,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its link, by position.
    pub link: usize,
    /// Where it leads; all zero and no prefix: everywhere.
    pub destination: IpAddr,
    /// Length of the destination's prefix in bits.
    pub prefix_bits: u8,
    /// The next hop; none: the link itself.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Of routes to the same destination the lowest is taken.
    pub priority: Option<u32>,
    /// rtnetlink(7), `rtm_scope`.
    pub scope: u8,
    /// The next hop is on the link, whatever its addresses say.
    pub is_on_link: bool,
}

/// A neighbour whose hardware address is set by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its link, by position.
    pub link: usize,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}
