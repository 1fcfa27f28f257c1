//! Both ends beside each other, with what lies between them cut and reordered at random.

use proptest::prelude::*;

use super::*;

fn pass(from: &mut Endpoint, to: &mut Endpoint) {
    let bytes = from.take_output();
    to.receive(&bytes).unwrap();
}

fn settle(host: &mut Endpoint, guest: &mut Endpoint) {
    while host.output_bytes() + guest.output_bytes() > 0 {
        pass(host, guest);
        pass(guest, host);
    }
}

fn pair() -> (Endpoint, Endpoint) {
    let (mut host, mut guest) = (Endpoint::host(7), Endpoint::guest());
    settle(&mut host, &mut guest);
    assert!(host.has_met() && guest.has_met());
    (host, guest)
}

#[test]
fn a_stream_lives_until_both_ends_let_go_of_both_directions() {
    let (mut host, mut guest) = pair();
    let id = host.open().unwrap();
    assert_eq!(host.write(id, b"hello"), Some(5));
    host.finish(id);
    settle(&mut host, &mut guest);
    assert_eq!(guest.accept(), Some(id));
    let mut buffer = [0; 16];
    assert_eq!(guest.read(id, &mut buffer), Got::Bytes(5));
    assert_eq!(guest.read(id, &mut buffer), Got::End);
    assert_eq!(host.read(id, &mut buffer), Got::Nothing);
    assert_eq!(guest.write(id, b"bye"), Some(3));
    guest.drop_stream(id);
    settle(&mut host, &mut guest);
    assert_eq!(host.read(id, &mut buffer), Got::Bytes(3));
    assert_eq!(host.read(id, &mut buffer), Got::End);
    host.drop_stream(id);
    settle(&mut host, &mut guest);
    assert_eq!((host.streams(), guest.streams()), (0, 0));
}

#[test]
fn who_reads_no_more_stops_the_writer() {
    let (mut host, mut guest) = pair();
    let id = host.open().unwrap();
    settle(&mut host, &mut guest);
    guest.drop_stream(id);
    settle(&mut host, &mut guest);
    assert_eq!(host.write(id, b"x"), None);
    host.drop_stream(id);
    settle(&mut host, &mut guest);
    assert_eq!((host.streams(), guest.streams()), (0, 0));
}

#[test]
fn nobody_sends_more_than_there_is_credit_for() {
    let (mut host, mut guest) = pair();
    let id = host.open().unwrap();
    let much = vec![1; 1 << 20];
    let credit = usize::try_from(CREDIT_BYTES).unwrap();
    assert_eq!(host.write(id, &much), Some(credit));
    assert_eq!(host.write(id, &much), Some(0));
    settle(&mut host, &mut guest);
    let mut buffer = vec![0; credit];
    assert_eq!(guest.read(id, &mut buffer), Got::Bytes(credit));
    settle(&mut host, &mut guest);
    assert_eq!(host.write(id, &much), Some(credit));
}

#[test]
fn a_host_refuses_what_a_guest_must_not_say() {
    let check = |epoch, stream, body, violation| {
        let (mut host, _guest) = pair();
        let id = host.open().unwrap();
        assert_eq!(id, 1);
        let mut bytes = Vec::new();
        let frame = Frame {
            epoch,
            stream,
            body,
        };
        frame.write(&mut bytes);
        assert_eq!(host.receive(&bytes), Err(violation));
    };
    check(7, 1, Body::Open, Violation::Open(1));
    check(7, 2, Body::Data(b"x"), Violation::Stream(2));
    check(7, 0, Body::Fin, Violation::Stream(0));
    check(7, 1, Body::Credit(1), Violation::Credit(1));
    let (theirs, ours) = (8, 7);
    check(8, 1, Body::Fin, Violation::Epoch { theirs, ours });
    let (mut host, _guest) = pair();
    host.open().unwrap();
    let mut bytes = Vec::new();
    for body in [Body::Fin, Body::Data(b"x")] {
        let (epoch, stream) = (7, 1);
        Frame {
            epoch,
            stream,
            body,
        }
        .write(&mut bytes);
    }
    assert_eq!(host.receive(&bytes), Err(Violation::Data(1)));
}

#[test]
fn a_guest_serves_the_next_host_whatever_the_last_one_left() {
    let (mut host, mut guest) = pair();
    let id = host.open().unwrap();
    host.write(id, &[1; 5000]);
    let left = host.take_output();
    guest.receive(&left[..3000]).unwrap();
    guest.write(id, b"late");
    let late = guest.take_output();
    guest.forget();
    let mut next = Endpoint::host(8);
    // What the guest had on its way to the last host comes to this one.
    next.receive(&late[5..]).unwrap();
    settle(&mut next, &mut guest);
    assert!(next.has_met() && guest.has_met());
    assert_eq!(guest.streams(), 0);
    let id = next.open().unwrap();
    next.write(id, b"anew");
    settle(&mut next, &mut guest);
    assert_eq!(guest.accept(), Some(id));
    assert_eq!(guest.read(id, &mut [0; 8]), Got::Bytes(4));
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        host: bool,
        stream: usize,
        bytes: usize,
    },
    Read {
        host: bool,
        stream: usize,
        bytes: usize,
    },
    Move {
        from_host: bool,
        bytes: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (host, stream) = (any::<bool>(), 0..3_usize);
    prop_oneof![
        (host, stream.clone(), 0..50_000_usize).prop_map(|(host, stream, bytes)| Step::Write {
            host,
            stream,
            bytes
        }),
        (host, stream, 1..50_000_usize).prop_map(|(host, stream, bytes)| Step::Read {
            host,
            stream,
            bytes
        }),
        (any::<bool>(), 1..100_000_usize)
            .prop_map(|(from_host, bytes)| Step::Move { from_host, bytes }),
    ]
}

/// Bytes between the ends, and what each stream should give next.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    written: [u64; 3],
    read: [u64; 3],
}

/// The byte at a place of a stream, so that one that is lost, doubled or moved is seen.
fn byte_at(stream: usize, at: u64) -> u8 {
    u8::try_from((at.wrapping_mul(31) + at / 251 + stream as u64 * 7) % 256).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_in_order_however_it_is_cut(steps in prop::collection::vec(step(), 1..80)) {
        let (mut host, mut guest) = pair();
        let ids: Vec<u32> = (0..3).map(|_| host.open().unwrap()).collect();
        settle(&mut host, &mut guest);
        let mut ways = [Way::default(), Way::default()];
        for step in steps {
            match step {
                Step::Write { host: at_host, stream, bytes } => {
                    let (end, way) = if at_host { (&mut host, &mut ways[0]) } else { (&mut guest, &mut ways[1]) };
                    let from = way.written[stream];
                    let data: Vec<u8> = (from..from + bytes as u64).map(|at| byte_at(stream, at)).collect();
                    way.written[stream] += end.write(ids[stream], &data).unwrap() as u64;
                }
                Step::Read { host: at_host, stream, bytes } => {
                    let (end, way) = if at_host { (&mut host, &mut ways[1]) } else { (&mut guest, &mut ways[0]) };
                    let mut buffer = vec![0; bytes];
                    if let Got::Bytes(count) = end.read(ids[stream], &mut buffer) {
                        for byte in &buffer[..count] {
                            prop_assert_eq!(*byte, byte_at(stream, way.read[stream]));
                            way.read[stream] += 1;
                        }
                    }
                }
                Step::Move { from_host, bytes } => {
                    let (from, to, way) = if from_host { (&mut host, &mut guest, &mut ways[0]) } else { (&mut guest, &mut host, &mut ways[1]) };
                    way.bytes.extend(from.take_output());
                    let count = bytes.min(way.bytes.len());
                    let part: Vec<u8> = way.bytes.drain(..count).collect();
                    prop_assert_eq!(to.receive(&part), Ok(()));
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_an_end_panic_or_a_guest_deaf(noise in prop::collection::vec(any::<u8>(), 0..300), met in any::<bool>()) {
        let (mut host, mut guest) = if met { pair() } else { (Endpoint::host(7), Endpoint::guest()) };
        let _refused = host.receive(&noise);
        let heard = guest.receive(&noise);
        prop_assert!(matches!(heard, Ok(()) | Err(Violation::Version(_))));
        // A frame's header among the noise may announce what never comes: the port was closed.
        guest.forget();
        let mut next = Endpoint::host(9);
        settle(&mut next, &mut guest);
        prop_assert!(next.has_met());
    }
}
