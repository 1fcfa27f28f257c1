//! A store in a bucket of a real server of S3: the same as one in a directory, whoever is killed, whoever has the wrong key, and whatever
//! goes away.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    images::Image,
    process::{Finished, Running, command},
    runtime::built,
    s3::{KEY_ID, S3Server, SECRET},
    skip::skip,
    store::{Place, Store},
    versions::Availability,
    wait::{SOON, Sources, is_readable, process_end, until},
};
use nix::sys::signal::Signal;

use super::{
    faults::{COPY, damage},
    host::{Host, program},
};

/// The kinds of objects that are the same bytes whoever signs.
const KINDS: [&str; 3] = ["chunks", "tables", "layers"];

/// Nothing is damaged.
const WHOLE: &str = ": 0 damaged or missing\n";

fn server() -> Result<Option<Arc<S3Server>>> {
    match S3Server::start()? {
        Availability::Ready(server) => Ok(Some(Arc::new(server))),
        Availability::Absent(why) => {
            skip("remote_host: a store in a bucket", &why);
            Ok(None)
        }
    }
}

fn store_command(place: &Place, words: &[&str]) -> Result<Command> {
    let mut command = command(built("snapshotter-remote")?);
    place.tell(command.arg("store").args(words));
    Ok(command)
}

fn run(place: &Place, words: &[&str]) -> Result<Finished> {
    Running::start(&mut store_command(place, words)?)?.finish(SOON * 10)
}

fn told(place: &Place, words: &[&str]) -> Result<String> {
    Ok(run(place, words)?.success()?.stdout())
}

/// An answer's status line and fields, and its contents.
fn get(address: &str, path: &str, range: Option<&str>) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON * 4))?;
    let range = range.map_or(String::new(), |range| format!("Range: bytes={range}\r\n"));
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{range}\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(end.context("an answer has a head")? + 4);
    Ok((String::from_utf8(answer)?.to_lowercase(), body))
}

fn field<'a>(head: &'a str, name: &str) -> Result<&'a str> {
    let line = head.lines().find_map(|line| line.strip_prefix(name));
    line.with_context(|| format!("no {name} in {head}"))
}

fn has_ended(running: &Running) -> Result<bool> {
    match process_end(running.pid())? {
        Some(end) => is_readable(end.as_fd(), Duration::ZERO),
        None => Ok(true),
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}

#[test]
fn a_store_in_a_bucket_is_that_of_a_directory() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let images = [Image::Busybox, Image::Layers];
    let here = Store::with_images(&images).unwrap();
    let there = Store::in_bucket(&server, "hall/1", &images).unwrap();
    assert_eq!(here.chain_ids, there.chain_ids);
    let list = |store: &Store| told(store.place(), &["ls"]).unwrap();
    assert_eq!(list(&here), list(&there));
    for kind in KINDS {
        let objects = |store: &Store| -> Vec<_> {
            let objects = store.objects(kind).unwrap().into_iter();
            let below = |path: &Path| path.strip_prefix(store.path()).unwrap().to_owned();
            objects
                .map(|path| (below(&path), fs::read(path).unwrap()))
                .collect()
        };
        assert!(objects(&here) == objects(&there), "other {kind}");
    }
    for (index, chain_id) in here.chain_ids.iter().enumerate() {
        let export = |store: &Store| {
            let file = store.beside().join(format!("disk-{index}"));
            told(store.place(), &["export", chain_id, text(&file).unwrap()]).unwrap();
            fs::read(file).unwrap()
        };
        assert!(export(&here) == export(&there), "another disk {chain_id}");
    }
    let verified = told(there.place(), &["verify"]).unwrap();
    assert!(verified.ends_with(WHOLE), "{verified}");
    let archive = Image::Busybox.archive().unwrap();
    let again = told(there.place(), &["add", text(&archive).unwrap()]).unwrap();
    assert!(again.ends_with("already there\n"), "{again}");
    served_alike(&here, &there).unwrap();
    on_a_host_and_away_again(there).unwrap();
}

/// Two servers of a bucket give the same as one of a directory, under the same tags.
fn served_alike(here: &Store, there: &Store) -> Result<()> {
    let (one, other) = (there.serve()?, there.serve()?);
    let expected = here.serve()?;
    for kind in KINDS {
        for file in here.objects(kind)? {
            let below = file.strip_prefix(here.path())?;
            let path = format!("/v1/{}", text(below)?);
            let (_, body) = get(&expected.address, &path, None)?;
            let (head, first) = get(&one.address, &path, None)?;
            let (same, second) = get(&other.address, &path, None)?;
            ensure!(head.contains(" 200 ok"), "{path}: {head}");
            ensure!(first == body && second == body, "{path}: other bytes");
            ensure!(field(&head, "etag: ")? == field(&same, "etag: ")?, "{path}");
            let (head, part) = get(&one.address, &path, Some("4-9"))?;
            ensure!(head.contains(" 206 partial"), "{path}: {head}");
            ensure!(part == body[4..10], "{path}: another part");
        }
    }
    let (head, _) = get(&one.address, &format!("/v1/chunks/00/{:064}", 0), None)?;
    ensure!(head.contains(" 404 "), "{head}");
    one.stop()?;
    other.stop()?;
    expected.stop()
}

/// A host mounts what is in the bucket; what is removed then is gone.
fn on_a_host_and_away_again(store: Store) -> Result<()> {
    let host = Host::of(store, COPY)?;
    let layer = host.pull("extract")?.context("the store has it")?;
    let mounted = host.mount("c", &layer)?;
    ensure!(program(&mounted)?.starts_with(b"\x7fELF"), "other bytes");
    mounted.unmount()?;
    host.remove(&["c", &layer])?;
    let store = host.finish()?;
    // It stands on the other one.
    let last = store.chain_ids.last().context("it has two images")?;
    told(store.place(), &["rm", "--prefixes", last])?;
    told(store.place(), &["gc"])?;
    for kind in ["chunks", "tables", "layers", "disks", "adding", "removing"] {
        let left = store.objects(kind).unwrap_or_default();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

/// An `add` of more than there is, when it has put something, and is stopped.
fn stopped_add(store: &Store) -> Result<Running> {
    let before = store.objects("chunks")?.len();
    let archive = Image::Debian.archive()?;
    let words = ["add", text(&archive)?];
    let adding = Running::start(&mut store_command(store.place(), &words)?)?;
    let sources = Sources::none().process(adding.pid())?;
    until("nothing is put", SOON * 4, sources, || {
        let put = store.objects("chunks")?.len();
        Ok((put > before + 3).then_some(()))
    })?;
    adding.signal(Signal::SIGSTOP)?;
    Ok(adding)
}

/// Who is in the way of `gc` by what that says, and by the words that are there.
fn in_the_way(store: &Store) -> Result<String> {
    let words = store.objects("adding")?;
    let [word] = words.as_slice() else {
        anyhow::bail!("not one adds: {words:?}");
    };
    let word = text(word.strip_prefix(store.path())?)?.to_owned();
    let gc = run(store.place(), &["gc"])?;
    gc.failing_with(&format!("--forget {word}` gives it up"))?;
    Ok(word)
}

fn is_whole(store: &Store) -> Result<()> {
    let verified = told(store.place(), &["verify"])?;
    ensure!(
        verified.contains(" 0 of them unused") && verified.ends_with(WHOLE),
        "{verified}"
    );
    Ok(())
}

#[test]
fn an_add_that_is_killed_damages_nothing_and_what_it_left_goes() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "killed", &[Image::Busybox]).unwrap();
    let place = store.place();
    let before = store.objects("chunks").unwrap().len();
    let adding = stopped_add(&store).unwrap();
    // Who adds is in the way of who removes, as long as he may live.
    let word = in_the_way(&store).unwrap();
    adding.signal(Signal::SIGKILL).unwrap();
    adding.finish(SOON).unwrap();
    let verified = told(place, &["verify"]).unwrap();
    assert!(verified.ends_with(WHOLE), "{verified}");
    assert_eq!(in_the_way(&store).unwrap(), word);
    let other = run(place, &["gc", "--forget", "disks/1"]).unwrap();
    other
        .failing_with("adding/ID or removing/ID is wanted")
        .unwrap();
    told(place, &["gc", "--forget", &word]).unwrap();
    assert_eq!(store.objects("chunks").unwrap().len(), before);
    assert!(store.objects("adding").unwrap_or_default().is_empty());
    is_whole(&store).unwrap();
}

#[test]
fn an_add_that_wakes_up_when_it_was_forgotten_leads_to_nothing_that_is_gone() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "woken", &[Image::Busybox]).unwrap();
    let before = store.objects("disks").unwrap();
    let adding = stopped_add(&store).unwrap();
    let word = in_the_way(&store).unwrap();
    told(store.place(), &["gc", "--forget", &word]).unwrap();
    adding.signal(Signal::SIGCONT).unwrap();
    let adding = adding.finish(SOON * 10).unwrap();
    adding
        .failing_with("another took it for dead, and its word away: nothing more is done")
        .unwrap();
    assert_eq!(store.objects("disks").unwrap(), before);
    // What it has put since then.
    told(store.place(), &["gc"]).unwrap();
    is_whole(&store).unwrap();
}

#[test]
fn an_add_that_is_interrupted_takes_its_word_back() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "interrupted", &[Image::Busybox]).unwrap();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let adding = stopped_add(&store).unwrap();
        in_the_way(&store).unwrap();
        adding.signal(signal).unwrap();
        adding.signal(Signal::SIGCONT).unwrap();
        adding.finish(SOON).unwrap().with_code(code).unwrap();
        assert!(store.objects("adding").unwrap_or_default().is_empty());
        told(store.place(), &["gc"]).unwrap();
        is_whole(&store).unwrap();
    }
}

#[test]
fn who_adds_and_who_cleans_up_do_not_harm_each_other() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "both", &[Image::Busybox]).unwrap();
    let place = store.place();
    told(place, &["gc"]).unwrap();
    let archives = [Image::Debian, Image::Layers].map(|image| image.archive().unwrap());
    let adding = archives.each_ref().map(|archive| {
        let words = ["add", text(archive).unwrap()];
        Running::start(&mut store_command(place, &words).unwrap()).unwrap()
    });
    for adding in adding {
        let sources = Sources::none().process(adding.pid()).unwrap();
        until("it does not end", SOON * 10, sources, || {
            let gc = run(place, &["gc"])?;
            if gc.code() != 0 {
                gc.failing_with("is being added to")?;
            }
            Ok(has_ended(&adding)?.then_some(()))
        })
        .unwrap();
        adding.finish(SOON).unwrap().success().unwrap();
    }
    let collected = told(place, &["gc"]).unwrap();
    assert_eq!(collected, "0.0 KiB removed\n");
    is_whole(&store).unwrap();
}

#[test]
fn a_flipped_byte_in_a_bucket_is_refused_and_told() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "flipped", &[Image::Busybox]).unwrap();
    let host = Host::of(store, COPY).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let whole = damage(&host.store).unwrap();
    let refused = host.mount("c", &layer).unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
    let log = host.log().unwrap();
    assert!(log.contains("a store's object is refused"), "{log}");
    let verify = run(host.store.place(), &["verify"]).unwrap();
    let verify = verify.with_code(1).unwrap();
    assert!(
        verify.stdout().contains(" is damaged: "),
        "{}",
        verify.stdout()
    );
    for (path, bytes) in whole {
        fs::write(path, bytes).unwrap();
    }
    let mounted = host.mount("c", &layer).unwrap();
    assert_eq!(&program(&mounted).unwrap()[..4], b"\x7fELF");
    mounted.unmount().unwrap();
    host.remove(&["c", &layer]).unwrap();
    host.finish().unwrap();
}

#[test]
fn what_a_bucket_lacks_or_refuses_is_one_line_that_says_what_to_do() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "told", &[Image::Busybox]).unwrap();
    let place = store.place();
    let refused = |change: &dyn Fn(&mut Command), expected: &str| {
        let mut ls = store_command(place, &["ls"]).unwrap();
        change(&mut ls);
        let finished = Running::start(&mut ls).unwrap().finish(SOON * 2).unwrap();
        let finished = finished.failing_with(expected).unwrap();
        assert_eq!(
            finished.stderr().lines().count(),
            1,
            "{}",
            finished.stderr()
        );
    };
    let set = |name: &'static str, value: &'static str| {
        move |ls: &mut Command| {
            ls.env(name, value);
        }
    };
    let credentials = "the credentials are refused: correct AWS_ACCESS_KEY_ID";
    refused(&set("AWS_ACCESS_KEY_ID", "stranger"), credentials);
    refused(&set("AWS_SECRET_ACCESS_KEY", "guessed"), credentials);
    refused(
        &|ls| {
            ls.env_remove("AWS_ACCESS_KEY_ID")
                .env("HOME", "/nonexistent");
        },
        "there are no credentials for s3://disks/told",
    );
    let other = |words: &[&str], expected: &str| {
        let mut command = command(built("snapshotter-remote").unwrap());
        command.arg("store").args(words);
        command.env("AWS_ACCESS_KEY_ID", KEY_ID);
        command.env("AWS_SECRET_ACCESS_KEY", SECRET);
        let finished = Running::start(&mut command).unwrap().finish(SOON * 2);
        finished.unwrap().failing_with(expected).unwrap();
    };
    let endpoint = format!("http://{}", server.address);
    let at = |url: &'static str| ["--store", url, "--s3-endpoint", &endpoint];
    let nothing = "s3://disks/nothing has no key, so it is no store";
    other(&[&["ls"], &at("s3://disks/nothing")[..]].concat(), nothing);
    let no_bucket = "there is no such bucket: make it, or correct its name";
    other(&[&["ls"], &at("s3://others")[..]].concat(), no_bucket);
    let archive = Image::Busybox.archive().unwrap();
    let add = [
        &["add", text(&archive).unwrap()],
        &at("s3://disks/told")[..],
    ]
    .concat();
    other(&add, "--key-file");
    let plain = [
        "ls",
        "--store",
        "s3://disks",
        "--s3-endpoint",
        "http://192.0.2.1",
    ];
    other(&plain, "--s3-plain-http");
}

#[test]
fn a_bucket_that_goes_away_is_told_and_its_server_goes_on_when_it_is_back() {
    let Some(server) = server().unwrap() else {
        return;
    };
    let store = Store::in_bucket(&server, "away", &[Image::Busybox]).unwrap();
    let served = store.serve().unwrap();
    let chunk = store.objects("chunks").unwrap().remove(0);
    let path = format!(
        "/v1/{}",
        text(chunk.strip_prefix(store.path()).unwrap()).unwrap()
    );
    server.stop().unwrap();
    let refused = run(store.place(), &["ls"]).unwrap();
    refused
        .failing_with("nobody answers there: see whether it is up")
        .unwrap();
    let (head, body) = get(&served.address, &path, None).unwrap();
    assert!(head.contains(" 502 "), "{head}");
    assert!(
        body.starts_with(b"the bucket that the store is in"),
        "{head}"
    );
    server.start_again().unwrap();
    let (head, body) = get(&served.address, &path, None).unwrap();
    assert!(
        head.contains(" 200 ") && body == fs::read(chunk).unwrap(),
        "{head}"
    );
    served.stop().unwrap();
}
