//! A store that is served: everything of a disk by HTTP alone, and nothing else, whoever asks and
//! however.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, fs::symlink, net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use disk::Digest;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use snapshotter_remote::{
    chunk::ChunkId,
    signature,
    store::{Name, Store},
    table::Table,
};
use tempfile::{TempDir, tempdir};

use super::{
    added::{add, layers},
    images::{Layout, flat, gzip, layer, noise, packed},
    server::{Answer, Server, command},
};

/// A store with one image; the chainID of that, and its disk.
pub(crate) fn store_of(layers: &[Vec<u8>]) -> (TempDir, Digest, Vec<u8>) {
    let directory = tempdir().unwrap();
    let image = directory.path().join("image");
    Layout::of(&packed(layers, &[gzip])).directory(&image);
    let store = Store::create(&directory.path().join("store")).unwrap();
    add(&store, &image).unwrap();
    let (chain_id, expected) = flat(layers);
    (directory, chain_id, expected)
}

/// A store with a chunk of 1 MiB, and the name of that.
fn store_of_noise() -> (TempDir, String) {
    let (directory, ..) = store_of(&[layer(&[("x", &noise(1, 4 << 20))])]);
    let chunks = directory.path().join("store/chunks");
    let directories = fs::read_dir(chunks).unwrap();
    let files = directories.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
    let longest = files
        .map(Result::unwrap)
        .max_by_key(|file| file.metadata().unwrap().len());
    let longest = longest.unwrap();
    assert!(longest.metadata().unwrap().len() > 300_000);
    let name = longest.file_name().into_string().unwrap();
    (directory, format!("chunks/{}/{name}", &name[..2]))
}

fn served(directory: &TempDir) -> std::path::PathBuf {
    directory.path().join("store")
}

/// An object, which must be there.
fn get(server: &Server, name: Name) -> Vec<u8> {
    let answer = server.get(&name.to_string(), &[]);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[test]
fn a_host_with_the_public_key_has_the_disk_by_http_alone() {
    let (directory, chain_id, expected) = store_of(&layers());
    let key = fs::read_to_string(served(&directory).join("key.pub")).unwrap();
    let key = key.parse().unwrap();
    let server = Server::start(&served(&directory), "");
    let manifest = get(&server, Name::Disk(chain_id));
    let manifest = signature::open(&manifest, chain_id, &[key]).unwrap();
    let mut disk = Vec::new();
    let chunk = |id: ChunkId| Ok(get(&server, Name::Chunk(id)));
    manifest.flat_metadata.restore(chunk, &mut disk).unwrap();
    for device in &manifest.devices {
        let bytes = get(&server, Name::Table(device.table));
        let table = Table::open("table", &bytes, device.table).unwrap();
        table.restore(chunk, &mut disk).unwrap();
    }
    assert!(disk == expected);
    for layer in &manifest.layers {
        let bytes = get(&server, Name::Layer(layer.diff_id));
        let name = Name::Layer(layer.diff_id).to_string();
        assert_eq!(bytes[..32], layer.stored);
        assert!(bytes == fs::read(served(&directory).join(name)).unwrap());
    }
}

#[test]
fn parts_and_versions_of_objects_are_as_caches_want_them() {
    let (directory, name) = store_of_noise();
    let bytes = fs::read(served(&directory).join(&name)).unwrap();
    let server = Server::start(&served(&directory), "");
    let whole = server.get(&name, &[]);
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    assert_eq!(whole.field("content-length"), bytes.len().to_string());
    assert_eq!(whole.field("content-type"), "application/zstd");
    assert_eq!(whole.field("accept-ranges"), "bytes");
    let forever = "public, max-age=31536000, immutable";
    assert_eq!(whole.field("cache-control"), forever);
    let digest = name.rsplit('/').next().unwrap();
    let tag = whole.field("etag").to_owned();
    let known = format!("\"{digest}-{:x}-", bytes.len());
    assert!(tag.starts_with(&known), "{tag} {known}");

    let last = bytes.len() - 1;
    for (range, from, to) in [
        ("bytes=0-0".to_owned(), 0, 0),
        ("bytes=1-300000".to_owned(), 1, 300_000),
        ("bytes=131072-".to_owned(), 131_072, last),
        ("bytes=-7".to_owned(), last - 6, last),
        (format!("bytes=5-{}", u64::MAX), 5, last),
    ] {
        let part = server.get(
            &name,
            &[&format!("Range: {range}"), &format!("If-Range: {tag}")],
        );
        assert_eq!(part.status, 206, "{range}: {part:?}");
        assert!(part.body == bytes[from..=to], "{range}");
        let expected = format!("bytes {from}-{to}/{}", bytes.len());
        assert_eq!(part.field("content-range"), expected);
        assert_eq!(part.field("etag"), tag);
    }
    let other = server.get(&name, &["Range: bytes=0-0", "If-Range: \"other\""]);
    assert_eq!((other.status, other.body == bytes), (200, true));
    let beyond = server.get(&name, &[&format!("Range: bytes={}-", bytes.len())]);
    assert_eq!(beyond.status, 416);
    assert_eq!(
        beyond.field("content-range"),
        format!("bytes */{}", bytes.len())
    );
    let same = server.get(
        &name,
        &[&format!("If-None-Match: \"x\", {tag}"), "Range: bytes=0-0"],
    );
    assert_eq!(
        (same.status, same.body.len(), same.field("etag")),
        (304, 0, tag.as_str())
    );
    let meant = server.get(&name, &[&format!("If-Match: {tag}")]);
    assert_eq!((meant.status, meant.body == bytes), (200, true));
    let other = server.get(&name, &["If-Match: \"other\""]);
    assert_eq!(other.status, 412);
    assert_eq!(other.field("cache-control"), "no-store");
    let head = server.ask("HEAD", &format!("/v1/{name}"), &["Range: bytes=0-0"]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.field("content-length"), bytes.len().to_string());
    // Damaged, and made again: as long as before.
    let path = served(&directory).join(&name);
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    let again = server.get(&name, &[&format!("If-None-Match: {tag}")]);
    assert_eq!(again.status, 200);
    assert_ne!(again.field("etag"), tag);
}

#[test]
fn a_manifest_is_asked_for_again_and_its_version_is_its_signature() {
    let (directory, chain_id, _) = store_of(&[layer(&[("x", b"x")])]);
    let server = Server::start(&served(&directory), "");
    let name = Name::Disk(chain_id).to_string();
    let first = server.get(&name, &[]);
    assert_eq!(first.field("cache-control"), "no-cache");
    let tag = first.field("etag").to_owned();
    let same = |tag: &str| {
        server
            .get(&name, &[&format!("If-None-Match: {tag}")])
            .status
    };
    assert_eq!(same(&tag), 304);
    // As if another key had signed it.
    let mut bytes = first.body.clone();
    let at = bytes.len() - 64;
    bytes[at] ^= 1;
    fs::write(served(&directory).join(&name), &bytes).unwrap();
    assert_eq!(same(&tag), 200);
}

#[test]
fn what_is_no_object_is_refused_with_a_line() {
    let (directory, name) = store_of_noise();
    let store = served(&directory);
    symlink(store.join("key"), store.join("tables").join("0".repeat(64))).unwrap();
    let mut server = Server::start(&store, "");
    let digits = name.rsplit('/').next().unwrap();
    let upper = name.to_uppercase().replace("CHUNKS", "chunks");
    let encoded = name.replace("chunks/", "chunks%2f");
    let absent = format!("tables/{}", "1".repeat(64));
    let linked = format!("tables/{}", "0".repeat(64));
    for (path, expected) in [
        (format!("/v1/{name}"), 200),
        (format!("http://elsewhere/v1/{name}"), 200),
        ("/v1/health".to_owned(), 200),
        ("/".to_owned(), 404),
        ("/v1/key".to_owned(), 404),
        ("/key".to_owned(), 404),
        (format!("/v1/chunks/{digits}"), 404),
        (format!("/v1/{name}/"), 404),
        (format!("/v1//{name}"), 404),
        (format!("/v1/{absent}"), 404),
        (format!("/v1/disks/2/{digits}"), 404),
        (format!("/v1/{linked}"), 500),
        ("/v1/key.pub".to_owned(), 400),
        ("/v1/../key".to_owned(), 400),
        (format!("/v1/chunks/../{name}"), 400),
        ("/v1/%2e%2e/key".to_owned(), 400),
        ("/v1/chunks/%00".to_owned(), 400),
        (format!("/v1/{encoded}"), 400),
        (format!("/v1/{upper}"), 400),
        (format!("/v1/{name}?x=1"), 400),
        (format!("/v1/{}", "a".repeat(20_000)), 400),
        ("/v1/\u{e9}".to_owned(), 400),
        ("/v1/\0".to_owned(), 400),
        ("*".to_owned(), 400),
    ] {
        let answer = server.ask("GET", &path, &[]);
        assert_eq!(answer.status, expected, "{path}: {answer:?}");
        if expected != 200 && !answer.body.is_empty() {
            assert_eq!(answer.text().matches('\n').count(), 1, "{answer:?}");
            assert_eq!(answer.field("cache-control"), "no-store");
        }
    }
    server.logs("an object cannot be read");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"] {
        let answer = server.ask(method, "/v1/health", &[]);
        assert_eq!(
            (answer.status, answer.field("allow")),
            (405, "GET, HEAD"),
            "{method}"
        );
    }
    let body = server.ask("GET", "/v1/health", &["Content-Length: 5"]);
    assert_eq!(body.status, 400, "{body:?}");
    let long = format!("X: {}", "x".repeat(100_000));
    assert_eq!(server.ask("GET", "/v1/health", &[&long]).status, 431);
    let many: Vec<String> = (0..100).map(|number| format!("X-{number}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(server.ask("GET", "/v1/health", &many).status, 431);
    assert_eq!(server.says(b"rubbish\r\n\r\n").status, 400);
    // And it goes on.
    assert_eq!(server.get(&name, &[]).status, 200);
}

#[test]
fn only_hosts_with_a_token_are_answered_and_the_tokens_change_while_it_runs() {
    let (directory, chain_id, _) = store_of(&[layer(&[("x", b"x")])]);
    let tokens = directory.path().join("tokens");
    let (one, other) = ("1".repeat(32), "2".repeat(32));
    let write = |text: &str| {
        fs::write(&tokens, text).unwrap();
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&format!("host-1 {one}\n"));
    let config = format!("token_file = {tokens:?}");
    let mut server = Server::start(&served(&directory), &config);
    let name = Name::Disk(chain_id).to_string();
    let with = |server: &Server, token: &str| {
        let field = format!("Authorization: Bearer {token}");
        server.get(&name, &[&field]).status
    };
    let without = server.get(&name, &[]);
    assert_eq!(
        (without.status, without.field("www-authenticate")),
        (401, "Bearer")
    );
    assert_eq!(
        server.get("tables", &[]).status,
        401,
        "nor is it told what there is"
    );
    assert_eq!(server.get("health", &[]).status, 200);
    assert_eq!((with(&server, &one), with(&server, &other)), (200, 401));
    let field = format!("Authorization: Bearer {one}");
    let cached = server
        .get(&name, &[&field])
        .field("cache-control")
        .to_owned();
    assert_eq!(cached, "private, no-cache");
    let layer = put_something_long(&served(&directory));
    let layer = server.ask("HEAD", &format!("/v1/{layer}"), &[&field]);
    let cached = layer.field("cache-control");
    assert_eq!(cached, "private, max-age=31536000, immutable");

    write(&format!("host-2 {other}\n"));
    server.signal(Signal::SIGHUP);
    server.hears("READY=1");
    assert_eq!((with(&server, &one), with(&server, &other)), (401, 200));
    write("");
    server.signal(Signal::SIGHUP);
    server.hears("READY=1");
    server.logs("stay as they were");
    assert_eq!((with(&server, &one), with(&server, &other)), (401, 200));
}

#[test]
fn silent_connections_are_closed_at_the_limit() {
    let (directory, name) = store_of_noise();
    let config = "[server]\nsilence_seconds = 1";
    let mut server = Server::start(&served(&directory), config);
    // Nothing, half a head, and a whole request that is followed by nothing.
    let words = [
        "",
        "GET /v1/health HT",
        "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let sockets = words.map(|word| {
        let mut socket = server.connect();
        socket.write_all(word.as_bytes()).unwrap();
        socket
    });
    let statuses = sockets.map(|socket| Answer::read(socket).status);
    assert!(statuses[0] == 0 || statuses[0] == 408, "{statuses:?}");
    assert!(statuses[1] == 0 || statuses[1] == 408, "{statuses:?}");
    assert_eq!(statuses[2], 200);
    // An answer that nobody takes.
    let long = put_something_long(&served(&directory));
    let _stuck = begin(&server, &long);
    server.logs("its answer was not taken");
    // One who asks and takes is served at the usual limit, however slow the machine is.
    let server = Server::start(&served(&directory), "");
    assert_eq!(server.get(&name, &[]).status, 200);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the pace of a client is its own")]
fn who_takes_steadily_gets_all_of_it_however_slow() {
    let (directory, _) = store_of_noise();
    let server = Server::start(&served(&directory), "[server]\nsilence_seconds = 2");
    let long = put_something_long(&served(&directory));
    let path = served(&directory).join(&long);
    let bytes = 5 << 20;
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    let mut socket = begin(&server, &long);
    // 250 kB each second, which is 500 kB in the time of silence.
    let mut buffer = [0; 25_000];
    let begun = Instant::now();
    let mut taken = 0;
    loop {
        let count = socket.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        taken += count as u64;
        let due = Duration::from_micros(taken * 4);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    assert!((bytes - 1000..bytes).contains(&taken), "{taken}");
}

/// Something under an object's name that is longer than what fits between two sockets.
pub(crate) const LONG_BYTES: u64 = 64 << 20;

pub(crate) fn put_something_long(store: &Path) -> String {
    let name = format!("layers/1/{}", "5".repeat(64));
    let file = fs::File::create(store.join(&name)).unwrap();
    file.set_len(LONG_BYTES).unwrap();
    name
}

/// Asks for an object and takes its beginning.
pub(crate) fn begin(server: &Server, name: &str) -> TcpStream {
    let mut socket = server.connect();
    let request = format!("GET /v1/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 1000];
    socket.read_exact(&mut first).unwrap();
    socket
}

#[test]
fn a_thousand_connections_beyond_the_limit_are_told_to_come_later() {
    // This process has its ends of them.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).unwrap();
    let (directory, name) = store_of_noise();
    let metrics = directory.path().join("metrics");
    let config = format!(
        "[metrics]\naddress = \"unix:{}\"\n[server]\nconnections_max = 10",
        metrics.display()
    );
    let server = Server::start(&served(&directory), &config);
    let mut places: Vec<TcpStream> = (0..10).map(|_| server.connect()).collect();
    let beyond: Vec<TcpStream> = (0..1000).map(|_| server.connect()).collect();
    for socket in beyond {
        let answer = Answer::read(socket);
        assert_eq!((answer.status, answer.field("retry-after")), (503, "1"));
        assert_eq!(answer.text(), "too many connections are open\n");
    }
    // Who has a place keeps it.
    for socket in &mut places {
        let request = format!("GET /v1/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        assert_eq!(Answer::read(socket).status, 200);
    }
    drop(places);
    let page = metrics_of(&metrics);
    for line in [
        "snapshotter_remote_store_connections_refused_total 1000",
        "snapshotter_remote_store_requests_total{object=\"chunk\",code=\"200\"} 10",
        "snapshotter_remote_store_answers_failed_total 0",
        "snapshotter_remote_store_connections_silent_total 0",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    let bytes = fs::metadata(served(&directory).join(&name)).unwrap().len() * 10;
    assert!(
        page.contains(&format!(
            "snapshotter_remote_store_sent_bytes_total {bytes}"
        )),
        "{page}"
    );
    assert!(
        page.contains("snapshotter_remote_store_connections "),
        "{page}"
    );
}

pub(crate) fn metrics_of(path: &Path) -> String {
    let mut socket = UnixStream::connect(path).unwrap();
    socket
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn a_server_that_is_killed_starts_again_at_its_address() {
    let (directory, name) = store_of_noise();
    let mut server = Server::start(&served(&directory), "");
    let address = server.address.to_string();
    let long = put_something_long(&served(&directory));
    let _cut = begin(&server, &long);
    server.signal(Signal::SIGKILL);
    server.end();
    let again = Server::start_at(&served(&directory), &address, "");
    let answer = again.get(&name, &[]);
    assert!(answer.body == fs::read(served(&directory).join(&name)).unwrap());
}

#[test]
fn its_end_waits_for_answers_and_no_longer_than_it_may() {
    let (directory, _) = store_of_noise();
    let long = put_something_long(&served(&directory));
    let mut server = Server::start(&served(&directory), "");
    let idle = server.connect();
    let mut begun = begin(&server, &long);
    server.signal(Signal::SIGTERM);
    server.hears("STOPPING=1");
    assert_eq!(Answer::read(idle).status, 0);
    let rest = std::io::copy(&mut begun, &mut std::io::sink()).unwrap();
    assert!((LONG_BYTES - 1000..LONG_BYTES).contains(&rest), "{rest}");
    assert_eq!(server.end(), Some(0));
    assert!(TcpStream::connect(server.address).is_err());

    let config = "[server]\ndrain_seconds = 1";
    let mut server = Server::start(&served(&directory), config);
    let _stuck = begin(&server, &long);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.end(), Some(0));
    server.logs("answers are cut off");
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let (directory, ..) = store_of(&[layer(&[("x", b"x")])]);
    let store = served(&directory);
    let check = |store: &Path, arguments: &[&str], config: &str, expected: &str| {
        let output = command(directory.path(), store, config)
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(expected) && said.lines().count() == 1,
            "{said}"
        );
    };
    check(
        &store,
        &["--listen", "0.0.0.0:0"],
        "",
        "0.0.0.0:0 can be reached from other hosts",
    );
    check(directory.path(), &[], "", "has no key, so it is no store");
    check(Path::new("/none"), &[], "", "reading /none: No such file");
    check(&store, &[], "lisen = 1", "listen");
    check(
        &store,
        &[],
        "[server]\nconnections_max = 0",
        "server.connections_max is 0",
    );
    let server = Server::start(&store, "");
    let taken = server.address.to_string();
    check(&store, &["--listen", &taken], "", "Address already in use");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, "x").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).unwrap();
    let file = tokens.to_str().unwrap();
    check(
        &store,
        &["--token-file", file],
        "",
        "everybody on this host can use it (mode 0644)",
    );
}
