//! A store that exports its disks by NBD, asked by a client that says what it is told to say: all bytes as they are, limits, an
//! end that leaves nobody with half an answer. integration/tests/image_disks/exported.rs asks it by qemu and libnbd.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};
use tempfile::tempdir;

use super::{
    added::layers,
    images::{layer, noise},
    served::{metrics_of, store_of},
    server::{Server, refuses},
};

const NBD: &str = "[nbd]\nlisten = \"127.0.0.1:0\"\n";

/// A client that has come as far as requests.
struct Client {
    socket: TcpStream,
    disk_bytes: u64,
}

impl Client {
    /// In plain text, by the name of the disk alone; nothing where it is not let in.
    fn of(server: &Server, name: &str) -> Option<Self> {
        let mut socket = TcpStream::connect(server.nbd_address.unwrap()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).ok()?;
        assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
        let length = u32::try_from(name.len()).unwrap().to_be_bytes();
        let said = [
            b"\0\0\0\x03IHAVEOPT\0\0\0\x01",
            &length[..],
            name.as_bytes(),
        ];
        socket.write_all(&said.concat()).ok()?;
        let mut chosen = [0; 10];
        socket.read_exact(&mut chosen).ok()?;
        let (bytes, flags) = chosen.split_first_chunk().unwrap();
        assert_eq!(
            flags,
            [1, 3],
            "it has flags, is read-only, and may be read by several connections"
        );
        Some(Self {
            socket,
            disk_bytes: u64::from_be_bytes(*bytes),
        })
    }

    fn ask(&mut self, kind: u16, offset: u64, bytes: u32) {
        let said = [
            &b"\x25\x60\x95\x13\0\0"[..],
            &kind.to_be_bytes(),
            b"a cookie",
            &offset.to_be_bytes(),
            &bytes.to_be_bytes(),
        ];
        self.socket.write_all(&said.concat()).unwrap();
    }

    /// The code of an answer, and its bytes if it has some.
    fn hears(&mut self, bytes: u32) -> (u32, Vec<u8>) {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head).unwrap();
        assert_eq!(
            (&head[..4], &head[8..]),
            (&b"\x67\x44\x66\x98"[..], &b"a cookie"[..])
        );
        let code = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let mut contents = vec![0; if code == 0 { bytes as usize } else { 0 }];
        self.socket.read_exact(&mut contents).unwrap();
        (code, contents)
    }

    fn read(&mut self, offset: u64, bytes: u32) -> (u32, Vec<u8>) {
        self.ask(0, offset, bytes);
        self.hears(bytes)
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.socket.read(&mut [0]), Ok(0))
    }
}

#[test]
fn every_byte_of_a_disk_comes_as_it_is() {
    // With holes: a sparse file's.
    let (directory, chain_id, expected) = store_of(&layers());
    let metrics = directory.path().join("metrics.sock");
    let config = format!("{NBD}[metrics]\naddress = \"unix:{}\"\n", metrics.display());
    let server = Server::start(&directory.path().join("store"), &config);
    let name = format!("sha256:{chain_id}");
    let mut client = Client::of(&server, &name).unwrap();
    let length = u64::try_from(expected.len()).unwrap();
    assert_eq!(client.disk_bytes, length);
    let mut other = Client::of(&server, &name).unwrap();
    for step in [4096_usize, 100_001] {
        let mut read = Vec::new();
        while read.len() < expected.len() {
            let count = step.min(expected.len() - read.len());
            let count = u32::try_from(count).unwrap();
            let (code, bytes) = client.read(read.len() as u64, count);
            assert_eq!(code, 0);
            read.extend(bytes);
        }
        assert!(read == expected, "{step}");
    }
    let whole = u32::try_from(length).unwrap();
    assert!(other.read(0, whole) == (0, expected), "all at once");
    // What is wrong, or would write, ends nothing.
    assert_eq!(client.read(length, 1).0, 22);
    // Who is answered again was counted before.
    assert_eq!(other.read(length, 1).0, 22);
    let page = metrics_of(&metrics);
    for counted in [
        format!("nbd_sent_bytes_total {}\n", 3 * length),
        "nbd_connections 2\n".to_owned(),
    ] {
        let counted = format!("snapshotter_remote_store_{counted}");
        assert!(page.contains(&counted), "{counted}{page}");
    }
    client.ask(1, 0, 3);
    client.socket.write_all(b"xyz").unwrap();
    assert_eq!(client.hears(0).0, 1);
    assert_eq!(client.read(0, 1).0, 0);
    client.ask(2, 0, 0);
    assert!(client.is_closed());
    for unknown in ["", "x", &name[7..], &format!("sha256:{}", "0".repeat(64))] {
        assert!(Client::of(&server, unknown).is_none(), "{unknown}");
    }
}

#[test]
fn what_is_damaged_is_an_error_and_never_other_bytes() {
    let (directory, chain_id, _) = store_of(&[layer(&[("x", &noise(1, 2 << 20))])]);
    let store = directory.path().join("store");
    let metrics = directory.path().join("metrics.sock");
    let metrics_at = format!(
        "[log]\nlevel = \"debug\"\n[metrics]\naddress = \"unix:{}\"\n",
        metrics.display()
    );
    let mut server = Server::start(&store, &format!("{NBD}{metrics_at}"));
    let name = format!("sha256:{chain_id}");
    let mut client = Client::of(&server, &name).unwrap();
    let damage = |directory: &str| {
        for entry in fs::read_dir(store.join(directory))
            .unwrap()
            .map(Result::unwrap)
        {
            let mut bytes = fs::read(entry.path()).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(entry.path(), bytes).unwrap();
        }
    };
    for first in 0..=u8::MAX {
        damage(&format!("chunks/{first:02x}"));
    }
    assert_eq!(client.read(0, 4096).0, 5);
    assert!(server.logs("cannot be read").contains("is damaged"));
    // Those who have it open go on with it.
    damage("disks/1");
    assert_eq!(client.read(4096, 1).0, 5);
    drop(client);
    // Nobody has: it is read again.
    server.logs("a connection of an NBD client has ended");
    assert!(Client::of(&server, &name).is_none());
    let why = server.logs("a disk cannot be exported");
    assert!(why.contains("is damaged"), "{why}");
    let page = metrics_of(&metrics);
    let counted = "snapshotter_remote_store_nbd_requests_total{outcome=\"unreadable\"} 2\n";
    assert!(page.contains(counted), "{page}");
}

#[test]
fn more_than_may_be_are_closed_and_the_end_waits_for_answers() {
    let (directory, chain_id, expected) = store_of(&[layer(&[("x", &noise(2, 24 << 20))])]);
    let two = format!("{NBD}connections_max = 2\n");
    let mut server = Server::start(&directory.path().join("store"), &two);
    let name = format!("sha256:{chain_id}");
    let mut idle = Client::of(&server, &name).unwrap();
    let mut busy = Client::of(&server, &name).unwrap();
    assert!(Client::of(&server, &name).is_none(), "one too many");
    // More than sockets keep, so the server is at it when it is told to end.
    let bytes = u32::try_from(expected.len()).unwrap();
    setsockopt(&busy.socket, sockopt::RcvBuf, &(128 << 10)).unwrap();
    busy.ask(0, 0, bytes);
    assert_eq!(busy.socket.peek(&mut [0]).unwrap(), 1);
    // What it has not come to is not answered, and takes nothing from what it is at.
    busy.ask(0, 0, 4096);
    server.signal(Signal::SIGTERM);
    server.hears("STOPPING=1");
    assert!(idle.is_closed());
    drop(idle);
    // The last of it is more than its side keeps: some of that is on the server's side when the server has ended.
    let mut answer = vec![0; 16 + expected.len()];
    let (first, last) = answer.split_at_mut(16 + expected.len() - (256 << 10));
    busy.socket.read_exact(first).unwrap();
    assert_eq!(server.end(), Some(0));
    busy.socket.read_exact(last).unwrap();
    assert!(answer[16..] == expected);
    assert!(busy.is_closed());
}

#[test]
fn who_says_or_takes_nothing_is_closed_and_who_has_a_disk_may_be_silent() {
    let (directory, chain_id, expected) = store_of(&[layer(&[("x", &noise(3, 24 << 20))])]);
    let config = format!("[server]\nsilence_seconds = 1\n{NBD}");
    let mut server = Server::start(&directory.path().join("store"), &config);
    let name = format!("sha256:{chain_id}");
    let mut idle = Client::of(&server, &name).unwrap();
    let mut silent = TcpStream::connect(server.nbd_address.unwrap()).unwrap();
    let mut stuck = Client::of(&server, &name).unwrap();
    stuck.ask(0, 0, u32::try_from(expected.len()).unwrap());
    server.logs("was not taken, or not ready, in time");
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18, "it says no more");
    assert!(idle.read(0, 4096) == (0, expected[..4096].to_vec()));
}

#[test]
fn who_haggles_and_chooses_nothing_is_closed() {
    let (directory, ..) = store_of(&layers());
    let config = format!("[server]\nsilence_seconds = 1\n{NBD}");
    let server = Server::start(&directory.path().join("store"), &config);
    // An option that nobody knows, again and again, and one whose data has no end in sight.
    let short = b"IHAVEOPT\0\0\x12\x67\0\0\0\0";
    let endless = b"IHAVEOPT\0\0\x12\x67\xff\xff\xff\xff";
    for (first, more) in [(short, &short[..]), (endless, &[0; 8192])] {
        let mut socket = TcpStream::connect(server.nbd_address.unwrap()).unwrap();
        let pace = Duration::from_millis(200);
        socket.set_read_timeout(Some(pace)).unwrap();
        socket
            .write_all(&[b"\0\0\0\x03", &first[..]].concat())
            .unwrap();
        let is_closed = (0..300).any(|_| {
            let mut heard = [0; 4096];
            // Until it has nothing more to say for a while.
            let end = loop {
                match socket.read(&mut heard) {
                    Ok(count) if count > 0 => {}
                    end => break end,
                }
            };
            let is_silent = end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            !is_silent || socket.write_all(more).is_err()
        });
        assert!(is_closed);
    }
}

#[test]
fn tokens_without_certificates_and_plain_text_for_others_are_refused() {
    let (directory, ..) = store_of(&layers());
    let store = directory.path().join("store");
    let place = tempdir().unwrap();
    let fails = |config: &str, why: &str| refuses(place.path(), &store, config, why);
    fails(
        &format!("token_file = \"x\"\n{NBD}"),
        "NBD has no place for a token",
    );
    fails("[nbd]\nlisten = \"0.0.0.0:0\"\n", "as plain text");
    fails(
        "[nbd]\nlisten = \"127.0.0.1:0\"\nconnections_max = 0\n",
        "nbd.connections_max is 0",
    );
}
