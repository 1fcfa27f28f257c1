//! What the stub says, which may have become another program, and what it is told.

#![no_main]

use std::{io::Write, os::unix::net::UnixStream};

use launch::control::{self, FromStub, ToStub};
use libfuzzer_sys::fuzz_target;

/// More does not fit into a socket that nobody reads.
const BYTES_MAX: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > BYTES_MAX {
        return;
    }
    let received = |says: fn(&UnixStream) -> bool| {
        let (mut theirs, ours) = UnixStream::pair().expect("sockets");
        theirs.write_all(bytes).expect("it fits");
        drop(theirs);
        while says(&ours) {}
    };
    received(|socket| matches!(control::recv::<FromStub>(socket), Ok(Some(_))));
    received(|socket| matches!(control::recv::<ToStub>(socket), Ok(Some(_))));
});
