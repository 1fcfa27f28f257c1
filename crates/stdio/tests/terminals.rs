//! Processes with terminals, clients with fifos.

#![cfg(test)]

mod scene;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use scene::{
    Noise, Scene, client_reads, drain, inherited, null, open, read_exact, read_to_end, uri, within,
    write_all,
};
use stdio::{Copier, Drained, Ends, Mode, Uri, WindowSize};
use sys::pty::Pty;

/// A process with a terminal, played by the test.
struct Process {
    copier: Copier,
    terminal: File,
    /// The terminal's number.
    number: u32,
}

fn process(stdin: &Uri, stdout: &Uri) -> Process {
    let (streams, ends) = open([stdin, stdout, &null()], Mode::Terminal).unwrap();
    assert!(matches!(ends, Ends::Terminal));
    let pty = Pty::open(Path::new("/dev/ptmx")).unwrap();
    Process {
        copier: streams.copy(Some(pty.master)).unwrap(),
        terminal: pty.slave.into(),
        number: pty.number,
    }
}

/// No line editing, no echo, no translation.
fn raw(terminal: &File) {
    let mut settings = tcgetattr(terminal).unwrap();
    cfmakeraw(&mut settings);
    tcsetattr(terminal, SetArg::TCSANOW, &settings).unwrap();
}

#[tokio::test]
async fn output_reaches_its_client_and_ends_with_the_process() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process(&null(), &uri(&out));
    let client = client_reads(&out);
    process.terminal.write_all(b"hello\n").unwrap();
    drop(process.terminal);
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    assert_eq!(within(client).await.unwrap(), b"hello\r\n");
}

#[tokio::test]
async fn what_is_in_the_terminal_at_the_end_is_in_the_fifo_when_drain_returns() {
    let scene = Scene::new();
    for size in [1, 100, 4095, 20_000] {
        let out = scene.fifo(&size.to_string());
        let process = process(&null(), &uri(&out));
        raw(&process.terminal);
        let bytes = Noise::new().bytes(size);
        drop(
            within(write_all(process.terminal, bytes.clone()))
                .await
                .unwrap(),
        );
        assert_eq!(within(drain(&process.copier)).await, Drained::All);
        assert!(scene::waiting_in(&out) == bytes, "{size}");
    }
}

#[tokio::test]
async fn ten_megabytes_arrive_unchanged() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let process = process(&null(), &uri(&out));
    raw(&process.terminal);
    let bytes = Noise::new().bytes(10 << 20);
    let client = client_reads(&out);
    drop(
        within(write_all(process.terminal, bytes.clone()))
            .await
            .unwrap(),
    );
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    assert!(within(client).await.unwrap() == bytes);
}

#[tokio::test]
async fn input_is_typed_and_echoed() {
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let process = process(&uri(&input), &uri(&out));
    let mut client = OpenOptions::new().write(true).open(&input).unwrap();
    client.write_all(b"typed\n").unwrap();
    let (terminal, typed) = within(read_exact(process.terminal, 6)).await.unwrap();
    assert_eq!(typed, b"typed\n");
    let client = client_reads(&out);
    drop(terminal);
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    assert_eq!(within(client).await.unwrap(), b"typed\r\n");
}

#[tokio::test]
async fn much_input_arrives_unchanged() {
    let scene = Scene::new();
    let input = scene.fifo("in");
    let process = process(&uri(&input), &null());
    raw(&process.terminal);
    let bytes = Noise::new().bytes(1 << 20);
    let client = OpenOptions::new().write(true).open(&input).unwrap();
    let writes = write_all(client, bytes.clone());
    let (_terminal, read) = within(read_exact(process.terminal, bytes.len()))
        .await
        .unwrap();
    within(writes).await.unwrap();
    assert!(read == bytes);
}

#[tokio::test]
async fn close_stdin_types_the_end_of_file_character() {
    for (typed, expected) in [("", ""), ("a line\n", "a line\n"), ("begun", "begun")] {
        let scene = Scene::new();
        let input = scene.fifo("in");
        let process = process(&uri(&input), &null());
        let mut client = OpenOptions::new().write(true).open(&input).unwrap();
        client.write_all(typed.as_bytes()).unwrap();
        drop(client);
        process.copier.close_stdin();
        let read = within(read_to_end(process.terminal)).await.unwrap();
        assert_eq!(read, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_terminal_has_the_size_it_is_told() {
    let process = process(&null(), &null());
    let size = WindowSize {
        rows: 50,
        columns: 132,
    };
    process.copier.resize(size).unwrap();
    assert_eq!(sys::pty::window_size(&process.terminal).unwrap(), size);
    let pipes = scene::process([&null(), &null(), &null()]);
    pipes.copier.resize(size).unwrap();
}

#[tokio::test]
async fn output_that_nobody_wants_does_not_stop_the_process() {
    let process = process(&null(), &null());
    let bytes = Noise::new().bytes(1 << 20);
    drop(within(write_all(process.terminal, bytes)).await.unwrap());
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
}

#[tokio::test]
async fn output_goes_to_a_file() {
    let scene = Scene::new();
    let log = scene.path("log");
    let uri = Uri::parse(&format!("file://{}", log.display())).unwrap();
    let mut process = process(&null(), &uri);
    process.terminal.write_all(b"hello\n").unwrap();
    drop(process.terminal);
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    assert_eq!(std::fs::read(log).unwrap(), b"hello\r\n");
}

/// The clock stands still unless everything waits: a task that spins would keep it from moving.
#[tokio::test(start_paused = true)]
async fn a_terminal_that_was_closed_can_be_opened_again_and_costs_nothing_meanwhile() {
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let mut process = process(&uri(&input), &uri(&out));
    let mut client = File::open(&out).unwrap();
    let mut typist = OpenOptions::new().write(true).open(&input).unwrap();
    let path = format!("/dev/pts/{}", process.number);
    for round in 0..3 {
        process.terminal.write_all(b"hello\n").unwrap();
        drop(process.terminal);
        let (back, bytes) = read_exact(client, 7).await.unwrap();
        assert_eq!(bytes, b"hello\r\n", "{round}");
        client = back;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut options = OpenOptions::new();
        process.terminal = options.read(true).write(true).open(&path).unwrap();
    }
    // Input that the process does not read fills the terminal: no spinning either.
    raw(&process.terminal);
    typist.write_all(&[b'x'; 65_536]).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_terminal, typed) = read_exact(process.terminal, 65_536).await.unwrap();
    assert!(typed.iter().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn a_process_that_inherited_the_terminal_does_not_hold_up_drain() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process(&null(), &uri(&out));
    let mut client = File::open(&out).unwrap();
    let mut daemon = File::from(inherited(&process.terminal));
    process.terminal.write_all(b"process\n").unwrap();
    drop(process.terminal);
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    let mut bytes = [0; 9];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"process\r\n");
    daemon.write_all(b"daemon\n").unwrap();
    assert_eq!(within(drain(&process.copier)).await, Drained::All);
    process.copier.close(Duration::ZERO).await;
    assert_eq!(within(read_to_end(client)).await.unwrap(), b"daemon\r\n");
}
