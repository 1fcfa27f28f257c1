//! Disks of a store by NBD: what qemu and libnbd read of them is what was exported to a file, and the kernel of a guest mounts one.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    certificates::Certificates,
    guest::{Guest, Series},
    images::Image,
    process::{Running, command, output_of},
    runtime::built,
    store::{FREE_PORT, Served, Store},
    wait::SOON,
};

use super::{converted::Converted, expected, store::store};

const LISTEN: &str = "[nbd]\nlisten = \"127.0.0.1:0\"\n";

/// A store with images, and its server.
struct Exported {
    store: Store,
    served: Served,
}

impl Exported {
    /// `more` is behind its table of NBD.
    fn of(images: &[Image], more: &str) -> Result<Self> {
        let store = Store::with_images(images)?;
        let served = Served::start_with(&store.path(), FREE_PORT, &format!("{LISTEN}{more}"))?;
        Ok(Self { store, served })
    }

    fn url(&self, scheme: &str, chain_id: &str) -> Result<String> {
        let address = self.served.nbd_address.as_ref().context("no address")?;
        Ok(format!("{scheme}://{address}/{chain_id}"))
    }

    /// The disk as a file.
    fn file(&self, chain_id: &str) -> Result<PathBuf> {
        let file = self.store.path().with_file_name("exported.erofs");
        store(&["export", chain_id, text(&file)?], &self.store.path())?;
        Ok(file)
    }
}

/// What a client says, which must end well.
fn said(words: &[&str]) -> Result<String> {
    let mut client = command(words[0]);
    output_of(client.args(&words[1..]), SOON * 6)
}

/// Why a client fails.
fn failure(words: &[&str]) -> Result<String> {
    let mut client = command(words[0]);
    let finished = Running::start(client.args(&words[1..]))?.finish(SOON * 6)?;
    ensure!(finished.clone().success().is_err(), "{finished}");
    Ok(finished.stderr())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}

#[test]
fn what_nbd_clients_read_is_the_disk() {
    let images = [Image::Debian, Image::Layers];
    let exported = Exported::of(&images, "").unwrap();
    let chain_ids = exported.store.chain_ids.clone();
    let listed = said(&[
        "nbdinfo",
        "--list",
        "--json",
        &exported.url("nbd", "").unwrap(),
    ])
    .unwrap();
    for chain_id in &chain_ids {
        assert!(listed.contains(chain_id), "{chain_id}: {listed}");
    }
    assert!(listed.contains("\"is_read_only\": true"), "{listed}");
    for chain_id in &chain_ids {
        let url = exported.url("nbd", chain_id).unwrap();
        let file = exported.file(chain_id).unwrap();
        // Structured replies, of one client that reads with several connections, and of one that also knows holes.
        let compared = [
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &url,
            text(&file).unwrap(),
        ];
        let compared = said(&compared).unwrap();
        assert!(compared.contains("Images are identical"), "{compared}");
        let copy = exported.store.path().with_file_name("copy");
        said(&["nbdcopy", &url, text(&copy).unwrap()]).unwrap();
        assert!(
            fs::read(&copy).unwrap() == fs::read(&file).unwrap(),
            "{chain_id}"
        );
        let size = said(&["nbdinfo", "--size", &url]).unwrap();
        assert_eq!(size.trim(), fs::metadata(&file).unwrap().len().to_string());
        // An odd piece of it, at once.
        let io = "read -v 12345 777";
        let of_url = said(&["qemu-io", "-r", "-f", "raw", "-c", io, &url]).unwrap();
        let of_file =
            said(&["qemu-io", "-r", "-f", "raw", "-c", io, text(&file).unwrap()]).unwrap();
        let dump = |said: &str| {
            said.lines()
                .filter(|line| line.contains(":  "))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(
            !dump(&of_file).is_empty() && dump(&of_url) == dump(&of_file),
            "{of_url}"
        );
        fs::remove_file(&file).unwrap();
    }
    let url = exported
        .url("nbd", &chain_ids[0].replace("sha256:", "sha256:f"))
        .unwrap();
    let why = failure(&["nbdinfo", "--size", &url]).unwrap();
    assert!(why.contains("no export named"), "{why}");
    exported.served.stop().unwrap();
}

/// A chunk that is damaged is an error for who reads it, and for nobody else.
#[test]
fn what_is_damaged_is_no_data() {
    let exported = Exported::of(&[Image::Debian], "").unwrap();
    let url = exported.url("nbd", &exported.store.chain_ids[0]).unwrap();
    let chunks = exported.store.objects("chunks").unwrap();
    let longest = chunks
        .iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let longest = longest.unwrap();
    let mut bytes = fs::read(longest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(longest, bytes).unwrap();
    let copy = exported.store.path().with_file_name("copy");
    let why = failure(&["nbdcopy", &url, text(&copy).unwrap()]).unwrap();
    assert!(why.contains("Input/output error"), "{why}");
    said(&["qemu-io", "-r", "-f", "raw", "-c", "read 0 4096", &url]).unwrap();
    exported.served.terminate().unwrap();
    let ended = exported.served.finish().unwrap();
    assert!(ended.stderr().contains("is damaged"), "{ended}");
}

#[test]
fn hosts_are_let_in_by_their_certificates() {
    let ours = Certificates::of(&["127.0.0.1", "host"]).unwrap();
    let others = Certificates::of(&["host"]).unwrap();
    let path = |file: &str| ours.path(file).display().to_string();
    let tls = format!(
        "[log]\nlevel = \"debug\"\n[tls]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\nclient_ca_file = \"{}\"\n",
        path("127.0.0.1"),
        path("127.0.0.1.key"),
        path("ca")
    );
    let exported = Exported::of(&[Image::Busybox], &tls).unwrap();
    let chain_id = &exported.store.chain_ids[0];
    // As libnbd looks for them.
    let shown = |name: &str, certificates: &Certificates| {
        let directory = exported.store.path().with_file_name(name);
        fs::create_dir(&directory).unwrap();
        for (file, of, from) in [
            ("ca-cert.pem", &ours, "ca"),
            ("client-cert.pem", certificates, "host"),
            ("client-key.pem", certificates, "host.key"),
        ] {
            fs::copy(of.path(from), directory.join(file)).unwrap();
        }
        let url = exported.url("nbds", chain_id).unwrap();
        format!("{url}?tls-certificates={}", directory.display())
    };
    let url = shown("ours", &ours);
    let copy = exported.store.path().with_file_name("copy");
    said(&["nbdcopy", &url, text(&copy).unwrap()]).unwrap();
    let file = exported.file(chain_id).unwrap();
    assert!(fs::read(&copy).unwrap() == fs::read(&file).unwrap());
    // By TLS 1.3 a client takes itself for let in before the server has looked: why it is not is in the log.
    failure(&["nbdinfo", "--size", &shown("others", &others)]).unwrap();
    let plain = exported.url("nbd", chain_id).unwrap();
    let why = failure(&["nbdinfo", "--size", &plain]).unwrap();
    assert!(why.to_lowercase().contains("tls"), "{why}");
    exported.served.terminate().unwrap();
    let log = exported.served.finish().unwrap().stderr();
    let refused: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("came to no TLS"))
        .collect();
    let is_right = refused.len() == 1 && refused[0].contains("invalid peer certificate");
    assert!(is_right, "{log}");
}

/// The store, its server and the kernel's client in one guest.
const SCRIPT: &str = "set -e; mkdir /tmp/s /tmp/disk; : >/tmp/log; tar -C /tmp/s -xf /payload/store.tar; \
    snapshotter-remote store serve --dir /tmp/s --listen 127.0.0.1:7070 --listen-nbd 127.0.0.1:10809 2>>/tmp/log & \
    timeout 120 tail -n +1 -f /tmp/log | grep -q -m1 ready || { cat /tmp/log; exit 1; }; \
    nbd-client -R -N $1 127.0.0.1 10809 /dev/nbd0 >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }; \
    mount -t erofs -o ro /dev/nbd0 /tmp/disk; list-tree /tmp/disk >/tmp/seen; umount /tmp/disk; \
    nbd-client -d /dev/nbd0 >/dev/null; diff /payload/expected /tmp/seen";

#[test]
fn a_guest_mounts_a_disk_that_its_kernel_reads_by_nbd() {
    let store = Store::with_images(&[Image::Layers]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (packed, listing) = (path("store.tar"), path("expected"));
    let from = store.path();
    said(&[
        "tar",
        "-C",
        text(&from).unwrap(),
        "-cf",
        text(&packed).unwrap(),
        ".",
    ])
    .unwrap();
    let converted = Converted::image(Image::Layers).unwrap();
    let expected = expected::listing(&converted).unwrap().to_string();
    fs::write(&listing, expected).unwrap();
    let guest = Guest {
        series: Series::V6_1,
        program: ["sh", "-c", SCRIPT, "sh", &store.chain_ids[0]]
            .map(str::to_owned)
            .to_vec(),
        payload: vec![
            env!("CARGO_BIN_EXE_list-tree").into(),
            built("snapshotter-remote").unwrap(),
            packed,
            listing,
        ],
        limit: Duration::from_secs(600),
    };
    let outcome = guest.run(|_| {}).unwrap();
    let is_same = outcome.code == 0 && outcome.output.is_empty();
    assert!(is_same, "{}", outcome.output);
}
