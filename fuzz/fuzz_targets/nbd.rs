//! What an NBD client sends to a store: nothing of it is wanted without a limit, and no read is of bytes that the disk has not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter_remote::nbd::{
    Event, Failure, Found, READ_BYTES_MAX, Security, Session, WANTED_BYTES_MAX,
};

/// Length of the disk.
const DISK_BYTES: u64 = 1 << 20;

fuzz_target!(|input: (bool, &[u8])| {
    let (needs_tls, mut bytes) = input;
    let security = if needs_tls { Security::Needed } else { Security::Plain };
    let mut session = Session::new(security);
    loop {
        let wants = session.wants();
        assert!((1..=WANTED_BYTES_MAX).contains(&wants), "it waits for nothing, or for too much");
        let Some((some, rest)) = bytes.split_at_checked(wants) else {
            return;
        };
        bytes = rest;
        let event = match session.take(some) {
            // An old client is told of no error, so it ends there.
            Event::Find(name) => match name.len() % 3 {
                0 => session.found(Found::Disk(DISK_BYTES)),
                1 => session.found(Found::Nothing),
                _ => session.found(Found::Unreadable),
            },
            event => event,
        };
        match event {
            Event::End(_) => return assert_eq!(session.wants(), 0),
            Event::StartTls(_) => session.encrypted(),
            Event::List => drop(session.listed(Some(&["x".to_owned()]))),
            Event::Read(read) => {
                assert!(session.is_transmitting() && (1..=READ_BYTES_MAX).contains(&read.bytes));
                assert!(read.offset + u64::from(read.bytes) <= DISK_BYTES);
                let _head = read.before_data(read.offset, read.bytes);
                let _hole = read.hole(read.offset, read.bytes);
                let _failed = read.failed(read.offset, Failure::Unreadable);
            }
            Event::Find(_) => unreachable!("it was found"),
            Event::More | Event::Send(_) | Event::Refuse(..) => {}
        }
    }
});
