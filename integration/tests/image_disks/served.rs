//! A store by HTTP, as hosts have it: an image of the harness, every object fetched, and of nothing but
//! these the same disk.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    images::Image,
    store::{FREE_PORT, Served},
    wait::SOON,
};

use super::{kernel::fsck, store::store};

/// What is served of a store; `key` is not.
const KINDS: [&str; 4] = ["chunks", "tables", "layers", "disks"];

/// What a request is answered with, fields and contents, over a connection that goes on.
fn get(socket: &mut TcpStream, name: &str, fields: &str) -> Result<(String, Vec<u8>)> {
    let request = format!("GET /v1/{name} HTTP/1.1\r\nHost: store\r\n{fields}\r\n");
    socket.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length
        .and_then(|rest| rest.lines().next())
        .context("no length")?;
    let mut body = vec![0; length.parse()?];
    socket.read_exact(&mut body)?;
    Ok((head, body))
}
/// Names of all files of these kinds.
fn names(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = KINDS.map(PathBuf::from).to_vec();
    while let Some(name) = pending.pop() {
        if directory.join(&name).is_dir() {
            for entry in fs::read_dir(directory.join(&name))? {
                pending.push(name.join(entry?.file_name()));
            }
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

fn mirror(image: Image) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let archive = image.archive()?;
    let archive = archive.to_str().context("a path that is text")?;
    let added = store(&["add", archive], &path("store"))?;
    let chain_id = added.split(' ').next().unwrap_or_default();
    let server = Served::start(&path("store"), FREE_PORT)?;
    let mut socket = TcpStream::connect(&server.address)?;
    socket.set_read_timeout(Some(SOON * 6))?;
    for name in names(&path("store"))? {
        let shown = name.to_str().context("a name that is text")?;
        let (head, whole) = get(&mut socket, shown, "")?;
        ensure!(head.starts_with("http/1.1 200 "), "{shown}: {head}");
        // And once more in three parts, as after an interruption.
        let (one, two) = (whole.len() / 3, whole.len() / 2);
        let mut parts = Vec::new();
        for range in [
            format!("0-{one}"),
            format!("{}-{two}", one + 1),
            format!("{}-", two + 1),
        ] {
            let (head, part) = get(&mut socket, shown, &format!("Range: bytes={range}\r\n"))?;
            ensure!(head.starts_with("http/1.1 206 "), "{shown} {range}: {head}");
            parts.extend(part);
        }
        ensure!(parts == whole, "{shown} has other bytes in parts");
        let file = path("mirror").join(&name);
        fs::create_dir_all(file.parent().context("it lies in a directory")?)?;
        fs::write(file, whole)?;
    }
    let (head, _) = get(&mut socket, "key", "")?;
    ensure!(
        head.starts_with("http/1.1 404 "),
        "the key is no object: {head}"
    );
    server.terminate()?;
    drop(socket);
    let ended = server.finish()?;
    if !ended.stderr().contains("ended") {
        bail!("it does not say that it has ended: {ended}");
    }
    for key in ["key", "key.pub"] {
        fs::copy(path("store").join(key), path("mirror").join(key))?;
    }
    let verified = store(&["verify"], &path("mirror"))?;
    ensure!(verified.ends_with(": 0 damaged or missing\n"), "{verified}");
    for name in ["store", "mirror"] {
        let file = path(&format!("{name}.erofs"));
        let file = file.to_str().context("a path that is text")?;
        store(&["export", chain_id, file], &path(name))?;
    }
    let (of_store, of_mirror) = (path("store.erofs"), path("mirror.erofs"));
    ensure!(
        fs::read(&of_store)? == fs::read(&of_mirror)?,
        "another disk"
    );
    fsck(&of_mirror, &[])
}

#[test]
fn what_is_fetched_by_http_is_the_disk_that_was_added() {
    for image in [Image::Busybox, Image::Layers] {
        mirror(image).with_context(|| image.key()).unwrap();
    }
}
