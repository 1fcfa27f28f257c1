//! Processes whose output goes to log binaries, played by the shell.

#![cfg(test)]

mod scene;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use scene::{Noise, Scene, client_reads, drain, null, open, process, read_exact, uri, within};
use stdio::{Drained, Mode, Owner, Readiness, Uri};
use tokio::task::spawn_blocking;

/// A log binary that runs a script, its folder being `$1`.
fn shell(dir: &Path, script: &str, readiness: Readiness) -> Uri {
    Uri::Binary {
        path: "/bin/sh".into(),
        args: [
            "-c".into(),
            script.into(),
            "logger".into(),
            OsString::from(dir),
        ]
        .into(),
        readiness,
    }
}

/// Copies both streams to files and says that it is done.
const COPIES: &str = "exec 5>&-; cat <&3 >$1/out; cat <&4 >$1/err; echo done >$1/done";

#[tokio::test]
async fn one_binary_takes_both_streams_and_may_finish() {
    let scene = Scene::new();
    let logger = shell(scene.dir.path(), COPIES, Readiness::Close);
    let mut process = process([&null(), &logger, &logger]);
    let bytes = Noise::new().bytes(200_000);
    let (mut stdout, sent) = (process.stdout, bytes.clone());
    let writes = spawn_blocking(move || stdout.write_all(&sent).unwrap());
    process.stderr.write_all(b"an error\n").unwrap();
    within(writes).await.unwrap();
    drop(process.stderr);
    // Nothing of it passes through us: a drain has nothing to wait for.
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    within(process.copier.close(scene::LIMIT)).await;
    assert_eq!(std::fs::read(scene.path("done")).unwrap(), b"done\n");
    assert!(std::fs::read(scene.path("out")).unwrap() == bytes);
    assert_eq!(std::fs::read(scene.path("err")).unwrap(), b"an error\n");
}

#[tokio::test]
async fn it_is_told_whose_output_it_takes_and_nothing_else() {
    let scene = Scene::new();
    // A shell adds PWD by itself, and some add OLDPWD and _.
    let script = "env | grep -v -e ^PWD= -e ^OLDPWD= -e ^_= >$1/env; echo >&5";
    let logger = shell(scene.dir.path(), script, Readiness::Byte);
    let process = process([&null(), &logger, &null()]);
    within(process.exit().close(scene::LIMIT)).await;
    let env = std::fs::read_to_string(scene.path("env")).unwrap();
    let mut env: Vec<_> = env.lines().collect();
    env.sort_unstable();
    assert_eq!(
        env,
        ["CONTAINER_ID=some-id", "CONTAINER_NAMESPACE=some-namespace"]
    );
}

#[tokio::test]
async fn streams_to_two_binaries_reach_each_its_own() {
    let scene = Scene::new();
    let (one, two) = (scene.path("one"), scene.path("two"));
    for dir in [&one, &two] {
        std::fs::create_dir(dir).unwrap();
    }
    let loggers = [&one, &two].map(|dir| shell(dir, COPIES, Readiness::Close));
    let mut process = process([&null(), &loggers[0], &loggers[1]]);
    process.stdout.write_all(b"output\n").unwrap();
    process.stderr.write_all(b"error\n").unwrap();
    within(process.exit().close(scene::LIMIT)).await;
    let read = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    assert_eq!(
        (read(&one, "out"), read(&one, "err")),
        (b"output\n".to_vec(), vec![])
    );
    assert_eq!(
        (read(&two, "out"), read(&two, "err")),
        (vec![], b"error\n".to_vec())
    );
}

#[tokio::test]
async fn the_process_is_made_only_when_it_is_ready() {
    let scene = Scene::new();
    let script = "echo ready >$1/ready; echo >&5; cat <&3 >/dev/null";
    let logger = shell(scene.dir.path(), script, Readiness::Byte);
    let _process = process([&null(), &logger, &null()]);
    assert!(scene.path("ready").exists());
}

#[tokio::test]
async fn binaries_that_do_not_start_or_get_ready_are_errors() {
    let scene = Scene::new();
    let check = |logger: &Uri, expected: &str| {
        let mode = Mode::Pipes(Owner::default());
        let error = open([&null(), logger, &null()], mode)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.to_string(), expected);
        let error = open([&null(), logger, &null()], Mode::Terminal)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        &Uri::parse("binary:///no/such/logger").unwrap(),
        "start the log binary /no/such/logger",
    );
    check(
        &shell(scene.dir.path(), "exit 1", Readiness::Byte),
        "log binary /bin/sh ended or closed descriptor 5 before it was ready",
    );
}

#[tokio::test]
async fn a_binary_that_stays_is_asked_to_end() {
    let scene = Scene::new();
    let script = "trap 'echo asked >$1/asked; exit' TERM
        exec 5>&-
        while :; do read line <$1/never; done";
    let _never = scene.fifo("never");
    let logger = shell(scene.dir.path(), script, Readiness::Close);
    let process = process([&null(), &logger, &null()]);
    within(process.exit().close(Duration::from_millis(50))).await;
    assert_eq!(std::fs::read(scene.path("asked")).unwrap(), b"asked\n");
}

#[tokio::test]
async fn a_binary_outlives_a_copier_that_is_dropped() {
    let scene = Scene::new();
    let done = scene.fifo("done");
    let script = "exec 5>&-; cat <&3 >$1/done";
    let logger = shell(scene.dir.path(), script, Readiness::Close);
    let mut process = process([&null(), &logger, &null()]);
    drop(process.copier);
    process.stdout.write_all(b"still logged\n").unwrap();
    drop((process.stdout, process.stderr));
    assert_eq!(
        within(client_reads(&done)).await.unwrap(),
        b"still logged\n"
    );
}

#[tokio::test]
async fn a_terminals_output_reaches_a_binary_and_its_death_stops_nothing() {
    let scene = Scene::new();
    let script = "exec 5>&-; head -c 6 <&3 >$1/out";
    let logger = shell(scene.dir.path(), script, Readiness::Close);
    let input = scene.fifo("in");
    let (streams, _ends) = open([&uri(&input), &logger, &null()], Mode::Terminal).unwrap();
    let pty = sys::pty::Pty::open("/dev/ptmx".as_ref()).unwrap();
    let copier = streams.copy(Some(pty.master)).unwrap();
    let mut slave = std::fs::File::from(pty.slave);
    slave.write_all(b"hello").unwrap();
    // After 6 bytes the binary ends, and far more than all buffers hold follows.
    let writes = spawn_blocking(move || {
        for _ in 0..1000 {
            slave.write_all(&[b'x'; 1024]).unwrap();
        }
        slave
    });
    let slave = within(writes).await.unwrap();
    // Input is still copied.
    let mut client = std::fs::File::options().write(true).open(&input).unwrap();
    client.write_all(b"typed\n").unwrap();
    let (_slave, typed) = within(read_exact(slave, 6)).await.unwrap();
    assert_eq!(typed, b"typed\n");
    within(copier.close(scene::LIMIT)).await;
    assert_eq!(std::fs::read(scene.path("out")).unwrap(), b"hellox");
}
