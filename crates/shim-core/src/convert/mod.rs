//! The one place where containerd's messages become our structs and our structs its messages.
//! Decides nothing.

pub(crate) mod api;
pub(crate) mod bootstrap;
pub(crate) mod checkpoint;
pub(crate) mod events;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod options;
pub(crate) mod pod;

use std::time::SystemTime;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};

/// `google.protobuf.Timestamp`.
pub(crate) fn timestamp(time: SystemTime) -> MessageField<Timestamp> {
    let nanoseconds = crate::time::nanoseconds(time);
    MessageField::some(Timestamp {
        seconds: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanoseconds % 1_000_000_000).expect("less than a billion"),
        ..Default::default()
    })
}

/// A message in an `Any` under containerd's bare type URL: the message's full name.
fn any(message: &impl Message, type_url: &str) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value: encode(message),
        ..Default::default()
    })
}

/// The wire form of a message made here.
pub(crate) fn encode(message: &impl Message) -> Vec<u8> {
    message
        .write_to_bytes()
        .expect("a message without required fields can be encoded")
}

/// The kernel's pid as the wire wants it; 0 for what is none.
fn pid(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}
