//! Against the kernel, in network namespaces of their own.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};

use crate::rtnetlink::Rtnetlink;
use crate::{
    Address, Error, HeldNamespace, Limit, Limits, Link, Mac, Neighbour, Network, Result, Route,
    apply, hand_over, lift, limit, read, readdress, tie, untie,
};

/// Two links that are each other's ends, in this thread's namespace.
fn veth(macs: [Mac; 2]) -> Result<()> {
    let [mut one, mut other] = macs.map(|mac| {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::Address(mac.0.to_vec()));
        message
    });
    let names = ["first", "second"].map(|name| LinkAttribute::IfName(name.to_owned()));
    let [name, other_name] = names;
    other.attributes.push(other_name);
    let peer = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)));
    let info = vec![LinkInfo::Kind(InfoKind::Veth), peer];
    one.attributes.extend([name, LinkAttribute::LinkInfo(info)]);
    let mut kernel = Rtnetlink::open()?;
    kernel.change(
        "make links",
        Message::NewLink(one),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn up(name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    let name = LinkAttribute::IfName(name.to_owned());
    message.attributes.push(name);
    Rtnetlink::open()?.change("set a link up", Message::SetLink(message), 0)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str, prefix_bits: u8, broadcast: Option<&str>) -> Address {
    Address {
        local: ip(text),
        peer: ip(text),
        prefix_bits,
        broadcast: broadcast.map(|text| text.parse().unwrap()),
        scope: 0,
    }
}

fn route(destination: &str, prefix_bits: u8, gateway: Option<&str>) -> Route {
    Route {
        link: 0,
        destination: ip(destination),
        prefix_bits,
        gateway: gateway.map(ip),
        source: None,
        // What the kernel gives routes of IPv6 that come without.
        priority: ip(destination).is_ipv6().then_some(1024),
        scope: if gateway.is_none() && ip(destination).is_ipv4() {
            253
        } else {
            0
        },
        is_on_link: false,
    }
}

/// Two links with all that is copied.
fn network(macs: [Mac; 2]) -> Network {
    let link = |name: &str, mac, mtu, addresses| Link {
        name: name.to_owned(),
        mac,
        mtu,
        addresses,
    };
    let first = vec![
        address("10.1.0.2", 24, Some("10.1.0.255")),
        address("fd00:1::2", 64, None),
    ];
    Network {
        links: vec![
            // Each has had the other's name before.
            link("second", macs[0], 1400, first),
            link("first", macs[1], 1500, vec![address("10.2.0.2", 16, None)]),
        ],
        routes: vec![
            route("0.0.0.0", 0, Some("10.1.0.1")),
            route("192.0.2.0", 24, None),
            route("::", 0, Some("fd00:1::1")),
        ],
        neighbours: vec![Neighbour {
            link: 0,
            address: ip("10.1.0.1"),
            mac: Mac([2, 0, 0, 0, 0, 9]),
        }],
    }
}

#[test]
fn a_network_that_is_applied_is_read_again() {
    let held = HeldNamespace::create().unwrap();
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let first_macs = [macs[1], Mac([2, 0, 0, 0, 0, 3])];
    let wanted = network(macs);
    let mut found = held
        .namespace()
        .run(|| {
            veth(first_macs)?;
            // One has what the other is to get.
            readdress(&[(first_macs[0], macs[0]), (first_macs[1], macs[1])])?;
            apply(&wanted)?;
            read()
        })
        .unwrap();
    let sorted = |network: &mut Network| {
        network.links.sort_by_key(|link| link.mac);
        for link in &mut network.links {
            link.addresses.sort_by_key(|address| address.local);
        }
        network
            .routes
            .sort_by_key(|route| (route.destination, route.prefix_bits));
    };
    // The kernel lists the newest link first or last, as it likes: positions follow.
    let first = found
        .network
        .links
        .iter()
        .position(|link| link.mac == macs[0]);
    let positions: Vec<_> = found
        .network
        .routes
        .iter()
        .map(|route| route.link)
        .collect();
    assert!(
        positions.iter().all(|link| Some(*link) == first),
        "{positions:?}"
    );
    assert_eq!(found.network.neighbours.len(), 1);
    for route in &mut found.network.routes {
        route.link = 0;
    }
    found.network.neighbours[0].link = 0;
    let mut wanted = wanted;
    sorted(&mut wanted);
    sorted(&mut found.network);
    assert_eq!(found.network, wanted);
    let strange = Network {
        links: vec![Link {
            mac: Mac([2, 0, 0, 0, 0, 7]),
            ..wanted.links[0].clone()
        }],
        ..Network::default()
    };
    let error = held.namespace().run(|| apply(&strange)).unwrap_err();
    assert!(matches!(error, Error::NoLink(..)), "{error}");
    let mac = strange.links[0].mac;
    let error = held
        .namespace()
        .run(|| readdress(&[(mac, mac)]))
        .unwrap_err();
    assert!(matches!(error, Error::NoLink(..)), "{error}");
}

#[test]
fn what_is_tied_is_taken_until_it_is_untied() {
    let held = HeldNamespace::create().unwrap();
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let inside = || {
        veth(macs)?;
        assert_eq!(read()?.network, Network::default(), "they are down");
        apply(&network(macs))?;
        let found = read()?;
        let tied = tie(&found)?;
        assert_eq!(tied.taps.len(), 2);
        assert!(matches!(read(), Err(Error::Taken(_))));
        // One that looked before the other tied; its taps have other names.
        assert!(tie(&found).is_err());
        drop(tied);
        assert!(matches!(tie(&found), Err(Error::Taken(_))));
        untie(&found.indexes)?;
        untie(&found.indexes)?;
        assert_eq!(read()?, found);
        let tied = tie(&found)?;
        drop(tied);
        untie(&found.indexes)?;
        untie(&[4000])
    };
    held.namespace().run(inside).unwrap();
}

#[test]
fn links_with_one_hardware_address_are_refused_by_name() {
    let held = HeldNamespace::create().unwrap();
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let inside = |macs| {
        veth(macs)?;
        up("first")?;
        up("second")?;
        read()
    };
    let found = held.namespace().run(|| inside(macs)).unwrap();
    assert_eq!(found.network.links.len(), 2);
    let held = HeldNamespace::create().unwrap();
    let twins = [macs[0]; 2];
    let inside = || inside(twins);
    let error = held.namespace().run(inside).unwrap_err().to_string();
    assert!(error.contains("with the hardware address of"), "{error}");
}

/// Kinds of the queueing disciplines of this namespace, but for those that the kernel gives itself.
fn disciplines() -> Result<Vec<String>> {
    let all = Message::GetQueueDiscipline(TcMessage::default());
    let messages = Rtnetlink::open()?.dump("list queueing disciplines", &all)?;
    let mut kinds = Vec::new();
    for message in messages {
        if let Message::NewQueueDiscipline(message) = message
            && message.header.handle != TcHandle::UNSPEC
        {
            kinds.extend(message.attributes.into_iter().find_map(|it| match it {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            }));
        }
    }
    kinds.sort();
    Ok(kinds)
}

/// Something at the root of a link that is not ours.
fn put_at_root(index: u32) -> Result<()> {
    let header = TcHeader {
        index: index.cast_signed(),
        parent: TcHandle::ROOT,
        handle: TcHandle::from(0x0001_0000),
        ..TcHeader::default()
    };
    let kind = TcAttribute::Kind("pfifo".to_owned());
    let message = TcMessage::from_parts(header, vec![kind]);
    let message = Message::NewQueueDiscipline(message);
    Rtnetlink::open()?.change("add pfifo", message, NLM_F_CREATE | NLM_F_EXCL)
}

const RATE: Option<Limit> = Some(Limit::BytesPerSecond(1_000_000));
const BOTH: Limits = Limits {
    ingress: RATE,
    egress: RATE,
};

#[test]
fn links_that_are_up_are_limited_in_each_direction_until_that_is_lifted() {
    let held = HeldNamespace::create().unwrap();
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let inside = || {
        veth(macs)?;
        assert!(matches!(limit(BOTH), Err(Error::NoLinks)), "both are down");
        up("first")?;
        up("second")?;
        let found = read()?;
        let check = |ingress, egress, kinds: &[&str]| {
            // What is there already is no hindrance.
            for _ in 0..2 {
                limit(Limits { ingress, egress })?;
                assert_eq!(disciplines()?, kinds);
            }
            Ok(())
        };
        let (keep, lifted) = (None, Some(Limit::Lifted));
        check(keep, RATE, &["tbf"; 2])?;
        let all = ["ingress", "ingress", "tbf", "tbf", "tbf", "tbf"];
        check(RATE, keep, &all)?;
        check(Some(Limit::BytesPerSecond(2_000_000)), keep, &all)?;
        check(keep, lifted, &all[..4])?;
        check(lifted, RATE, &["tbf"; 2])?;
        check(RATE, RATE, &all)?;
        lift()?;
        lift()?;
        assert!(disciplines()?.is_empty());
        assert_eq!(read()?, found, "no link is left");
        Ok(())
    };
    held.namespace().run(inside).unwrap();
}

#[test]
fn what_others_do_with_traffic_stays() {
    let held = HeldNamespace::create().unwrap();
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let inside = || {
        veth(macs)?;
        up("first")?;
        up("second")?;
        let found = read()?;
        let only_egress = Limits {
            ingress: None,
            egress: RATE,
        };
        put_at_root(found.indexes[0])?;
        assert!(matches!(limit(BOTH), Err(Error::Shaped(_))));
        lift()?;
        assert_eq!(disciplines()?, ["pfifo"]);
        let tied = tie(&found)?;
        let only_ingress = Limits {
            ingress: RATE,
            egress: None,
        };
        assert!(matches!(limit(only_ingress), Err(Error::Taken(_))));
        assert!(matches!(limit(only_egress), Err(Error::Shaped(_))));
        lift()?;
        // Those of the taps, too.
        let all = ["ingress", "ingress", "ingress", "ingress", "pfifo"];
        assert_eq!(disciplines()?, all);
        drop(tied);
        untie(&found.indexes)
    };
    held.namespace().run(inside).unwrap();
}

#[test]
fn links_are_handed_over_with_what_is_theirs_or_not_at_all() {
    let (from, to) = (
        HeldNamespace::create().unwrap(),
        HeldNamespace::create().unwrap(),
    );
    let (from, to) = (from.namespace(), to.namespace());
    let macs = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
    let wanted = network(macs);
    let before = from.run(|| {
        veth(macs)?;
        apply(&wanted)?;
        Ok(read()?.network)
    });
    let before = before.unwrap();
    let names = |pairs: &[(&str, &str)]| {
        let own = |(name, new): &(&str, &str)| ((*name).to_owned(), (*new).to_owned());
        pairs.iter().map(own).collect()
    };
    let refused = |pairs: &[(&str, &str)]| hand_over(&names(pairs), (from, to)).unwrap_err();
    let gone = refused(&[("first", "x"), ("none", "y")]);
    assert!(
        matches!(&gone, Error::NoSuchLink(name) if name == "none"),
        "{gone}"
    );
    let taken = refused(&[("first", "x"), ("second", "lo")]);
    assert!(
        matches!(&taken, Error::NameInUse(name) if name == "lo"),
        "{taken}"
    );
    let loopback = refused(&[("first", "x"), ("lo", "y")]);
    assert!(
        matches!(&loopback, Error::Loopback(name) if name == "lo"),
        "{loopback}"
    );
    // What was moved before one that the kernel refuses comes back.
    let kept = refused(&[("first", "x"), ("second", "a/b")]);
    assert!(matches!(&kept, Error::Io { .. }), "{kept}");
    let links = |network: Network| network.links;
    let is_first = |link: &Link| link.name == "first";
    let after = from.run(read).unwrap().network;
    assert_eq!(
        links(after).into_iter().find(is_first),
        links(before.clone()).into_iter().find(is_first),
    );
    assert_eq!(to.run(read).unwrap().network, Network::default());

    // A name with a number is none that another one is to have.
    hand_over(
        &names(&[("first", "eth%d"), ("second", "eth0")]),
        (from, to),
    )
    .unwrap();
    let mut there = links(to.run(read).unwrap().network);
    there.sort_by(|one, other| one.name.cmp(&other.name));
    let renamed = [("second", "eth0"), ("first", "eth1")].map(|(old, new)| {
        let mut all = before.links.iter();
        let link = all.find(|link| link.name == old).unwrap();
        let name = new.to_owned();
        Link {
            name,
            ..link.clone()
        }
    });
    assert_eq!(there, renamed);
    assert_eq!(from.run(read).unwrap().network, Network::default());
}
