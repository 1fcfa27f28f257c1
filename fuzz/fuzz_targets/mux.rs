//! What a guest sends to its host: frames of the mux, and the messages on its first stream.

#![no_main]

use guest::call::{Message, Request};
use libfuzzer_sys::fuzz_target;
use mux::{Endpoint, Got};

fuzz_target!(|bytes: &[u8]| {
    // The host's end, that has met its guest and opened streams; the bytes come in two parts.
    let (mut host, mut guest) = (Endpoint::host(1), Endpoint::guest());
    guest.receive(&host.take_output()).expect("a hello");
    host.receive(&guest.take_output()).expect("a hello");
    let streams = [(); 3].map(|()| host.open().expect("there is room"));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for part in [first, second] {
        if host.receive(part).is_err() {
            break;
        }
        for stream in streams {
            let mut buffer = [0; 100];
            while matches!(host.read(stream, &mut buffer), Got::Bytes(_)) {}
            host.write(stream, b"answer");
        }
    }
    // A guest outlives whatever its port says.
    let _version = guest.receive(bytes);
    let _message = guest::wire::receive::<Message>(bytes);
    let _request = guest::wire::receive::<Request>(bytes);
});
