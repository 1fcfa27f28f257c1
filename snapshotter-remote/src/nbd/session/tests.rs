//! Bytes as they are on the wire, spelled as doc/proto.md has them.

use super::*;

const OPTION: &[u8] = b"IHAVEOPT";
const REPLY: &[u8] = b"\x00\x03\xe8\x89\x04\x55\x65\xa9";
const REQUEST: &[u8] = b"\x25\x60\x95\x13";
const SIMPLE: &[u8] = b"\x67\x44\x66\x98";
const STRUCTURED: &[u8] = b"\x66\x8e\x33\xef";

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(data.len()).unwrap();
    [OPTION, &number.to_be_bytes(), &bytes.to_be_bytes(), data].concat()
}

fn replied(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(data.len()).unwrap();
    let head = [number, kind, bytes].map(u32::to_be_bytes).concat();
    [REPLY, &head, data].concat()
}

fn request(kind: u16, offset: u64, bytes: u32) -> Vec<u8> {
    let numbers = [&0_u16.to_be_bytes()[..], &kind.to_be_bytes(), b"a cookie"].concat();
    let place = [&offset.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
    [REQUEST, &numbers, &place].concat()
}

/// Gives it all of these bytes as it wants them: what follows from the last.
fn take(session: &mut Session, mut bytes: &[u8]) -> Event {
    loop {
        let (some, rest) = bytes.split_at(session.wants());
        assert!(!some.is_empty() && some.len() <= WANTED_BYTES_MAX);
        let event = session.take(some);
        if rest.is_empty() {
            return event;
        }
        assert_eq!(event, Event::More, "before {} bytes", rest.len());
        bytes = rest;
    }
}

/// Behind the client's flags: fixed newstyle, no zeroes.
fn haggling(security: Security) -> Session {
    let mut session = Session::new(security);
    assert_eq!(take(&mut session, b"\0\0\0\x03"), Event::More);
    session
}

/// With a disk of 16 KiB.
fn transmitting(is_structured: bool) -> Session {
    let mut session = haggling(Security::Plain);
    if is_structured {
        let sent = Event::Send(replied(8, 1, b""));
        assert_eq!(take(&mut session, &option(8, b"")), sent);
    }
    let go = take(&mut session, &option(7, b"\0\0\0\x01x\0\0"));
    assert_eq!(go, Event::Find("x".to_owned()));
    let Event::Send(_) = session.found(Found::Disk(16384)) else {
        panic!("it is there");
    };
    assert!(session.is_transmitting());
    session
}

#[test]
fn the_greeting_is_newstyle_and_fixed() {
    assert_eq!(&GREETING[..8], 0x4e42_444d_4147_4943_u64.to_be_bytes());
    assert_eq!(&GREETING[8..16], values::OPTION_MAGIC.to_be_bytes());
    assert_eq!(GREETING[16..], (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
}

#[test]
fn flags_that_nobody_offered_end_it() {
    for (flags, is_right) in [
        (0_u32, true),
        (1, true),
        (3, true),
        (4, false),
        (1 << 31, false),
    ] {
        let event = Session::new(Security::Plain).take(&flags.to_be_bytes());
        assert_eq!(event == Event::More, is_right, "{flags}");
    }
    // Without fixed newstyle there is one option.
    let mut session = Session::new(Security::Plain);
    session.take(&[0; 4]);
    assert_eq!(take(&mut session, &option(3, b"")), Event::End(Vec::new()));
}

#[test]
fn a_disk_is_chosen_with_all_that_is_told_of_it() {
    let mut session = haggling(Security::Plain);
    // INFO of `disk`, one kind: the block size.
    let data = b"\0\0\0\x04disk\0\x01\0\x03";
    let export = b"\0\0\0\0\0\0\0\0\x40\0\x01\x03";
    let blocks = b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0";
    for number in [6, 7] {
        assert_eq!(
            take(&mut session, &option(number, data)),
            Event::Find("disk".to_owned())
        );
        assert_eq!(session.wants(), 0, "it waits to be told");
        let expected = [
            replied(number, 3, export),
            replied(number, 3, blocks),
            replied(number, 1, b""),
        ];
        let sent = Event::Send(expected.concat());
        assert_eq!(session.found(Found::Disk(16384)), sent);
        assert_eq!(session.is_transmitting(), number == 7);
    }
}

#[test]
fn an_old_client_chooses_a_disk_by_its_name_alone() {
    let head = b"\0\0\0\0\0\0\x40\0\x01\x03";
    for (flags, zeroes) in [(b"\0\0\0\x03", 0), (b"\0\0\0\x01", 124), (b"\0\0\0\0", 124)] {
        let mut session = Session::new(Security::Plain);
        session.take(flags);
        let found = take(&mut session, &option(1, b"disk"));
        assert_eq!(found, Event::Find("disk".to_owned()));
        let sent = [&head[..], &vec![0; zeroes]].concat();
        assert_eq!(session.found(Found::Disk(16384)), Event::Send(sent));
        assert!(session.is_transmitting());
    }
    for found in [Found::Nothing, Found::Unreadable] {
        let mut session = haggling(Security::Plain);
        take(&mut session, &option(1, b"disk"));
        assert_eq!(session.found(found), Event::End(Vec::new()));
        assert_eq!(session.wants(), 0);
    }
}

#[test]
fn what_is_not_there_is_told_and_others_are_asked_for() {
    for (found, kind) in [(Found::Nothing, 6), (Found::Unreadable, 2)] {
        let mut session = haggling(Security::Plain);
        take(&mut session, &option(7, b"\0\0\0\0\0\0"));
        let Event::Send(sent) = session.found(found) else {
            panic!("it is told");
        };
        let kind = (1_u32 << 31) + kind;
        assert_eq!(sent[12..16], kind.to_be_bytes());
        assert!(sent.len() > 20, "with a text");
        assert_eq!(take(&mut session, &option(3, b"")), Event::List);
        let listed = session.listed(Some(&["one", "two"].map(str::to_owned)));
        let expected = [
            replied(3, 2, b"\0\0\0\x03one"),
            replied(3, 2, b"\0\0\0\x03two"),
            replied(3, 1, b""),
        ];
        assert_eq!(listed, expected.concat());
    }
}

#[test]
fn too_many_disks_are_told_as_such() {
    let mut session = haggling(Security::Plain);
    assert_eq!(take(&mut session, &option(3, b"")), Event::List);
    let listed = session.listed(None);
    assert_eq!(listed[12..16], ((1_u32 << 31) + 9).to_be_bytes());
    assert_eq!(session.wants(), 16);
}

#[test]
fn options_that_are_wrong_or_unknown_are_answered_and_others_may_follow() {
    let mut session = haggling(Security::Plain);
    let long = vec![0; WANTED_BYTES_MAX * 2 + 5];
    for (number, data, kind) in [
        (3, &b"x"[..], 3),
        (8, b"x", 3),
        (5, b"", 2),
        (5, b"x", 3),
        // GO: without a number of kinds, with one that is more than there is, and less; a name that is no text, has a NUL, or is
        // longer than its data.
        (7, b"\0\0\0\x01x", 3),
        (7, b"\0\0\0\x01x\0\x01", 3),
        (7, b"\0\0\0\x01x\0\0y", 3),
        (7, b"\0\0\0\x01\xff\0\0", 3),
        (7, b"\0\0\0\x01\0\0\0", 3),
        (7, b"\xff\xff\xff\xffx\0\0", 3),
        (7, b"", 3),
        (10, b"\0\0\0\0\0\0\0\0", 1),
        (4711, b"", 1),
        (4711, &long, 9),
        (7, &long, 9),
    ] {
        let sent = Event::Send(replied(number, (1 << 31) + kind, b""));
        assert_eq!(
            take(&mut session, &option(number, data)),
            sent,
            "{number} {kind}"
        );
    }
    let end = Event::End(replied(2, 1, b""));
    for data in [&b""[..], &long] {
        let mut session = haggling(Security::Plain);
        assert_eq!(take(&mut session, &option(2, data)), end);
        assert_eq!(session.wants(), 0);
    }
}

#[test]
fn what_is_no_option_ends_it() {
    let mut session = haggling(Security::Plain);
    let wrong = [b"IHAVEOPS", &[0; 8][..]].concat();
    assert_eq!(take(&mut session, &wrong), Event::End(Vec::new()));
    let mut session = haggling(Security::Plain);
    let long = [OPTION, &1_u32.to_be_bytes(), &4097_u32.to_be_bytes()].concat();
    assert_eq!(take(&mut session, &long), Event::End(Vec::new()));
}

#[test]
fn where_tls_is_needed_nothing_goes_before_it() {
    let mut session = haggling(Security::Needed);
    for number in [3, 6, 7, 8, 4711] {
        let sent = Event::Send(replied(number, (1 << 31) + 5, b""));
        assert_eq!(take(&mut session, &option(number, b"")), sent, "{number}");
        let long = option(number, &vec![0; WANTED_BYTES_MAX + 1]);
        assert_eq!(take(&mut session, &long), sent, "{number}, too long");
    }
    let begins = Event::StartTls(replied(5, 1, b""));
    assert_eq!(take(&mut session, &option(5, b"")), begins);
    session.encrypted();
    let again = Event::Send(replied(5, (1 << 31) + 3, b""));
    assert_eq!(take(&mut session, &option(5, b"")), again);
    assert_eq!(take(&mut session, &option(3, b"")), Event::List);

    let mut session = haggling(Security::Needed);
    let named = take(&mut session, &option(1, b"disk"));
    assert_eq!(named, Event::End(Vec::new()), "no error can be told");
}

#[test]
fn reads_are_answered_as_was_agreed() {
    for is_structured in [false, true] {
        let mut session = transmitting(is_structured);
        let Event::Read(read) = take(&mut session, &request(0, 4096, 8192)) else {
            panic!("it is a read");
        };
        assert_eq!((read.offset, read.bytes), (4096, 8192));
        let begun = read.before_data(4096, 4096);
        let went_on = read.before_data(8192, 4096);
        let hole = read.hole(8192, 4096);
        let failed = read.failed(8192, Failure::Unreadable);
        if is_structured {
            let head = |flags_and_type: &[u8], rest: &[u8]| {
                [STRUCTURED, flags_and_type, b"a cookie", rest].concat()
            };
            let data = |flags: &[u8], offset: &[u8]| {
                head(flags, &[b"\0\0\x10\x08\0\0\0\0\0\0", offset].concat())
            };
            assert_eq!(begun, data(b"\0\0\0\x01", b"\x10\0"));
            assert_eq!(went_on, data(b"\0\x01\0\x01", b"\x20\0"));
            let last = head(b"\0\x01\0\x02", b"\0\0\0\x0c\0\0\0\0\0\0\x20\0\0\0\x10\0");
            assert_eq!(hole, Some(last));
            let error = head(b"\0\x01\x80\x01", b"\0\0\0\x06\0\0\0\x05\0\0");
            assert_eq!(failed, Some(error));
        } else {
            assert_eq!(begun, [SIMPLE, b"\0\0\0\0a cookie"].concat());
            assert!(went_on.is_empty() && hole.is_none());
            assert_eq!(failed, None, "its answer has begun");
            let first = read.failed(4096, Failure::Unreadable).unwrap();
            assert_eq!(first, [SIMPLE, b"\0\0\0\x05a cookie"].concat());
        }
    }
}

#[test]
fn requests_that_are_wrong_or_would_write_are_refused_and_others_may_follow() {
    let mut session = transmitting(false);
    let refused = |code: u8, why| {
        let answer = [SIMPLE, &[0, 0, 0, code], b"a cookie"].concat();
        Event::Refuse(answer, why)
    };
    let invalid = refused(22, Failure::Invalid);
    for (kind, offset, bytes) in [
        (0, 0, 0),
        (0, 0, READ_BYTES_MAX + 1),
        (0, 16384, 1),
        (0, 16383, 2),
        (0, u64::MAX, 2),
        (3, 0, 0),
        (7, 0, 4096),
        (4711, 0, 0),
    ] {
        let event = take(&mut session, &request(kind, offset, bytes));
        assert_eq!(event, invalid, "{kind} {offset} {bytes}");
    }
    // A flag that was not offered.
    let mut flagged = request(0, 0, 1);
    flagged[5] = 1;
    assert_eq!(take(&mut session, &flagged), invalid);
    let read_only = refused(1, Failure::ReadOnly);
    for kind in [4, 6] {
        assert_eq!(take(&mut session, &request(kind, 0, 4096)), read_only);
    }
    // What it would write is thrown away.
    for bytes in [0_u32, 1, 4096, 100_000] {
        let written = vec![1; usize::try_from(bytes).unwrap()];
        let write = [request(1, 0, bytes), written].concat();
        assert_eq!(take(&mut session, &write), read_only, "{bytes}");
    }
    let Event::Read(_) = take(&mut session, &request(0, 16383, 1)) else {
        panic!("it goes on");
    };
    assert_eq!(
        take(&mut session, &request(2, 0, 0)),
        Event::End(Vec::new())
    );
}

#[test]
fn what_is_no_request_ends_it() {
    let mut session = transmitting(true);
    let mut wrong = request(0, 0, 1);
    wrong[0] ^= 1;
    assert_eq!(take(&mut session, &wrong), Event::End(Vec::new()));
    let mut session = transmitting(true);
    let long = request(1, 0, READ_BYTES_MAX + 1);
    assert_eq!(take(&mut session, &long), Event::End(Vec::new()));
}
