//! How fast the links of this thread's network namespace may be, by tc(8) in the namespace itself.
//!
//! ```text
//!   out   link: tbf at its root
//!   in    link ──ingress──> mirred ──> ifb `pouchINDEX`: tbf at its root ──> on, as if nothing had been
//! ```
//! An ifb because what comes in can be queued nowhere else, and a kernel without the action `police` has it.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcHandle, TcMessage};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::rtnetlink::Rtnetlink;
use crate::tie::{be_silent, is_absent, redirect, untie};
use crate::{Error, Result, token_bucket};

/// Before the number of a link: the name of the ifb that its packets take.
const IFB: &str = "pouch";

/// For one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As fast as it goes.
    Lifted,
    /// So many bytes a second.
    BytesPerSecond(u32),
}

/// What to change; none leaves a direction as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What comes in.
    pub ingress: Option<Limit>,
    /// What goes out.
    pub egress: Option<Limit>,
}

/// A link of the namespace.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    is_up: bool,
}

/// Limits each link of this thread's network namespace that is up, but for its loopback. May be repeated
/// with other limits; what is under way goes on.
///
/// # Errors
/// [`Error::NoLinks`]; [`Error::Taken`] and [`Error::Shaped`] where somebody else controls the traffic; what
/// the kernel says. Links before that one have their limits.
pub fn limit(limits: Limits) -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    let (links, helpers) = links(&mut kernel)?;
    let mut wanted = [limits.ingress, limits.egress].into_iter().flatten();
    let is_rate = |limit: Limit| limit != Limit::Lifted;
    if !links.iter().any(|link| link.is_up) && wanted.any(is_rate) {
        return Err(Error::NoLinks);
    }
    let foreign = foreign(&mut kernel)?;
    // A limit is lifted from one that is down, too: it may come up again.
    let of = |limit: Option<Limit>, link: &Link| limit.filter(|it| link.is_up || !is_rate(*it));
    for link in &links {
        match of(limits.egress, link) {
            Some(Limit::BytesPerSecond(_)) if foreign.contains(&link.index) => {
                return Err(Error::Shaped(link.name.clone()));
            }
            Some(Limit::BytesPerSecond(rate)) => set_rate(&mut kernel, link.index, rate)?,
            Some(Limit::Lifted) => lift_egress(&mut kernel, link.index)?,
            None => {}
        }
        match of(limits.ingress, link) {
            Some(Limit::BytesPerSecond(rate)) => limit_ingress(&mut kernel, link, &helpers, rate)?,
            Some(Limit::Lifted) => lift_ingress(&mut kernel, link.index, &helpers)?,
            None => {}
        }
    }
    Ok(())
}

/// Takes from this thread's network namespace what [`limit`] has put there. Idempotent.
///
/// # Errors
/// What the kernel says.
pub fn lift() -> Result<()> {
    let mut kernel = Rtnetlink::open()?;
    let (links, helpers) = links(&mut kernel)?;
    for link in links {
        lift_egress(&mut kernel, link.index)?;
        lift_ingress(&mut kernel, link.index, &helpers)?;
    }
    // Those of links that are gone.
    for helper in helpers {
        absent_is_fine(delete_link(&mut kernel, helper.index))?;
    }
    Ok(())
}

fn helper_of(index: u32) -> String {
    format!("{IFB}{index}")
}

/// Those that may be limited, and those that help.
fn links(kernel: &mut Rtnetlink) -> Result<(Vec<Link>, Vec<Link>)> {
    let all = Message::GetLink(LinkMessage::default());
    let (mut links, mut helpers) = (Vec::new(), Vec::new());
    for message in kernel.dump("list links", &all)? {
        let Message::NewLink(message) = message else {
            continue;
        };
        let flags = message.header.flags;
        let is_ifb = message.attributes.iter().any(is_ifb);
        let name = message.attributes.into_iter().find_map(|it| match it {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        let Some(name) = name.filter(|_| !flags.contains(LinkFlags::Loopback)) else {
            continue;
        };
        let link = Link {
            index: message.header.index,
            is_up: flags.contains(LinkFlags::Up),
            name,
        };
        // By its name, too, when the link that it was made for is gone.
        match is_ifb && is_helpers(&link.name) {
            true => helpers.push(link),
            false => links.push(link),
        }
    }
    Ok((links, helpers))
}

fn is_ifb(attribute: &LinkAttribute) -> bool {
    match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::Ifb)),
        _ => false,
    }
}

fn is_helpers(name: &str) -> bool {
    let number = name.strip_prefix(IFB);
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Links at whose root somebody has put something: what the kernel puts there itself has no handle.
fn foreign(kernel: &mut Rtnetlink) -> Result<Vec<u32>> {
    let all = Message::GetQueueDiscipline(TcMessage::default());
    let is_foreign = |message: &TcMessage| {
        let handle = u32::from(message.header.handle);
        message.header.parent == TcHandle::ROOT && handle != 0 && handle != token_bucket::HANDLE
    };
    let messages = kernel.dump("list queueing disciplines", &all)?;
    let foreign = messages.into_iter().filter_map(|message| match message {
        Message::NewQueueDiscipline(message) if is_foreign(&message) => {
            u32::try_from(message.header.index).ok()
        }
        _ => None,
    });
    Ok(foreign.collect())
}

fn set_rate(kernel: &mut Rtnetlink, index: u32, bytes_s: u32) -> Result<()> {
    let what = format!("limit link {index} to {bytes_s} bytes a second");
    let message = Message::NewQueueDiscipline(token_bucket::message(index, bytes_s));
    kernel.change(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
}

fn lift_egress(kernel: &mut Rtnetlink, index: u32) -> Result<()> {
    let what = format!("lift the limit of link {index}");
    let message = Message::DelQueueDiscipline(token_bucket::at_root(index));
    absent_is_fine(kernel.change(&what, message, 0))
}

fn absent_is_fine(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

fn limit_ingress(
    kernel: &mut Rtnetlink,
    link: &Link,
    helpers: &[Link],
    bytes_s: u32,
) -> Result<()> {
    let name = helper_of(link.index);
    if helpers.iter().any(|helper| helper.name == name) {
        // Whoever made it may have been killed before the rest.
        untie(&[link.index])?;
    } else {
        make_ifb(kernel, &name)?;
    }
    be_silent(&name)?;
    let index = if_nametoindex(name.as_str()).map_err(Error::io(format!("find ifb {name}")))?;
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    let what = format!("bring ifb {name} up");
    kernel.change(&what, Message::SetLink(up), 0)?;
    set_rate(kernel, index, bytes_s)?;
    redirect(kernel, link.index, index).map_err(|error| {
        let is_taken = error.errno() == Some(Errno::EEXIST as i32);
        if !is_taken {
            // The first error is the one to tell.
            let _left = untie(&[link.index]);
        }
        let _left = delete_link(kernel, index);
        if is_taken {
            Error::Taken(link.name.clone())
        } else {
            error
        }
    })
}

fn make_ifb(kernel: &mut Rtnetlink, name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    let what = format!("make ifb {name}, by which what comes in is limited");
    let message = Message::NewLink(message);
    kernel.change(&what, message, NLM_F_CREATE | NLM_F_EXCL)
}

/// First the way to the ifb: what is sent to none is lost.
fn lift_ingress(kernel: &mut Rtnetlink, index: u32, helpers: &[Link]) -> Result<()> {
    let name = helper_of(index);
    match helpers.iter().find(|helper| helper.name == name) {
        Some(helper) => {
            untie(&[index])?;
            absent_is_fine(delete_link(kernel, helper.index))
        }
        None => Ok(()),
    }
}

fn delete_link(kernel: &mut Rtnetlink, index: u32) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    kernel.change(
        &format!("delete link {index}"),
        Message::DelLink(message),
        0,
    )
}
