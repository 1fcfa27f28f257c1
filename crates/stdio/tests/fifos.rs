//! Processes with pipes, clients with fifos.

#![cfg(test)]

mod scene;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant as WallClock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use scene::{
    Noise, Scene, client_reads, drain, inherited, null, open, process, read_exact, read_to_end,
    uri, waiting_in, within, write_all,
};
use stdio::{Drained, Ends, Mode, Owner};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

#[tokio::test]
async fn output_reaches_its_client_and_ends_with_the_process() {
    let scene = Scene::new();
    let (out, err) = (scene.fifo("out"), scene.fifo("err"));
    let mut process = process([&null(), &uri(&out), &uri(&err)]);
    let (out, err) = (client_reads(&out), client_reads(&err));
    process.stdout.write_all(b"some output\n").unwrap();
    process.stderr.write_all(b"an error\n").unwrap();
    let copier = process.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert_eq!(within(out).await.unwrap(), b"some output\n");
    assert_eq!(within(err).await.unwrap(), b"an error\n");
}

#[tokio::test]
async fn a_stream_without_a_place_is_dev_null() {
    let mut process = process([&null(), &null(), &null()]);
    let mut nothing = Vec::new();
    process.stdin.read_to_end(&mut nothing).unwrap();
    process.stdout.write_all(&[0; 1 << 20]).unwrap();
    process.stderr.write_all(&[0; 1 << 20]).unwrap();
    assert_eq!(nothing, b"");
    assert_eq!(within(drain(&process.exit())).await, Drained::All);
}

#[tokio::test]
async fn a_client_that_opens_after_the_end_finds_all_and_the_end() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process([&null(), &uri(&out), &null()]);
    // Much at once, then many short lines: if each took a slot of the fifo, 16 would be all that
    // fits.
    let mut written = Noise::new().bytes(5000);
    process.stdout.write_all(&written).unwrap();
    tokio::task::yield_now().await;
    for number in 0..4000 {
        let line = format!("line {number:05}\n");
        process.stdout.write_all(line.as_bytes()).unwrap();
        written.extend(line.into_bytes());
        tokio::task::yield_now().await;
    }
    let copier = process.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert!(within(client_reads(&out)).await.unwrap() == written);
}

#[tokio::test]
async fn a_client_that_opens_after_a_silent_end_finds_the_end() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let copier = process([&null(), &uri(&out), &null()]).exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert_eq!(copier.opened(Instant::now()).await, Drained::All);
    assert_eq!(within(client_reads(&out)).await.unwrap(), b"");
}

#[tokio::test]
async fn what_is_in_the_pipes_at_the_end_is_in_the_fifo_when_drain_returns() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process([&null(), &uri(&out), &null()]);
    let bytes = Noise::new().bytes(60_000);
    process.stdout.write_all(&bytes).unwrap();
    let copier = process.exit();
    // The copy task has not run once.
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert_eq!(copier.opened(Instant::now()).await, Drained::Stalled);
    assert_eq!(waiting_in(&out), bytes);
}

#[tokio::test]
async fn a_client_that_leaves_takes_nothing_with_it() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let process = process([&null(), &uri(&out), &null()]);
    let bytes = Noise::new().bytes(3 << 20);
    let copier = process.copier;
    let writes = write_all(process.stdout, bytes.clone());
    let mut read = Vec::new();
    for count in [1, 100_000, 4096, 70_000, 1 << 20] {
        let client = File::open(&out).unwrap();
        let (client, part) = within(read_exact(client, count)).await.unwrap();
        drop(client);
        read.extend(part);
    }
    let rest = client_reads(&out);
    drop(within(writes).await.unwrap());
    read.extend(within(rest).await.unwrap());
    assert!(read == bytes, "{} of {} bytes", read.len(), bytes.len());
    assert_eq!(within(drain(&copier)).await, Drained::All);
}

#[tokio::test]
async fn a_stalled_client_holds_up_no_other_stream() {
    let scene = Scene::new();
    let (out, err) = (scene.fifo("out"), scene.fifo("err"));
    let process = process([&null(), &uri(&out), &uri(&err)]);
    let stalled = File::open(&out).unwrap();
    let bytes = Noise::new().bytes(1 << 20);
    let blocked = write_all(process.stdout, bytes.clone());
    let errors = client_reads(&err);
    drop(
        within(write_all(process.stderr, bytes.clone()))
            .await
            .unwrap(),
    );
    assert!(within(errors).await.unwrap() == bytes);
    assert!(!blocked.is_finished());
    let read = read_to_end(stalled);
    drop(within(blocked).await.unwrap());
    assert!(within(read).await.unwrap() == bytes);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_does_not_hold_up_drain_beyond_its_deadline() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process([&null(), &uri(&out), &null()]);
    let mut client = File::open(&out).unwrap();
    // Twice what a pipe holds: one half goes into the fifo.
    for _ in 0..2 {
        process.stdout.write_all(&[7; 65_536]).unwrap();
        while is_full(&process.stdout) {
            tokio::task::yield_now().await;
        }
    }
    let copier = process.exit();
    let deadline = Instant::now() + Duration::from_secs(3);
    let takes_a_little = async { client.read_exact(&mut [0; 8192]).unwrap() };
    let (drained, ()) = tokio::join!(copier.drain(deadline), takes_a_little);
    assert_eq!(drained, Drained::Stalled);
    assert!(Instant::now() >= deadline);
    copier.close(Duration::ZERO).await;
}

fn is_full(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
}

#[tokio::test]
async fn a_slow_client_gets_the_rest_after_drain_gave_up() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let process = process([&null(), &uri(&out), &null()]);
    let client = File::open(&out).unwrap();
    let bytes = Noise::new().bytes(65_536 + 50_000);
    let copier = process.copier;
    drop(
        within(write_all(process.stdout, bytes.clone()))
            .await
            .unwrap(),
    );
    assert_eq!(copier.drain(Instant::now()).await, Drained::Stalled);
    assert!(within(read_to_end(client)).await.unwrap() == bytes);
    assert_eq!(within(drain(&copier)).await, Drained::All);
}

#[tokio::test]
async fn a_process_that_inherited_a_stream_does_not_hold_up_drain() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process([&null(), &uri(&out), &null()]);
    let mut client = File::open(&out).unwrap();
    let mut daemon = File::from(inherited(&process.stdout));
    process.stdout.write_all(b"the process\n").unwrap();
    let copier = process.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    let mut bytes = [0; 12];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"the process\n");
    // Copying goes on for the daemon, and a later drain covers it.
    daemon.write_all(b"the daemon\n").unwrap();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    copier.close(Duration::ZERO).await;
    assert_eq!(within(read_to_end(client)).await.unwrap(), b"the daemon\n");
}

#[tokio::test]
async fn both_streams_to_one_fifo_keep_their_order() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let mut process = process([&null(), &uri(&out), &uri(&out)]);
    let client = client_reads(&out);
    let mut expected = String::new();
    for n in 0..500 {
        expected.push_str(&process.write_to_either(n));
    }
    let _copier = process.exit();
    assert_eq!(within(client).await.unwrap(), expected.as_bytes());
}

#[tokio::test]
async fn writes_of_all_sizes_arrive_in_order() {
    let scene = Scene::new();
    let out = scene.fifo("out");
    let process = process([&null(), &uri(&out), &null()]);
    let client = client_reads(&out);
    let (mut stdout, copier) = (process.stdout, process.copier);
    let written = spawn_blocking(move || {
        let mut noise = Noise::new();
        let mut all = Vec::new();
        for round in 0..2000 {
            let bound = [16, 300, 4096, 9000, 70_000][round % 5];
            let count = 1 + noise.below(bound);
            let bytes = noise.bytes(count);
            stdout.write_all(&bytes).unwrap();
            all.extend(bytes);
        }
        all
    });
    let written = within(written).await.unwrap();
    assert!(within(client).await.unwrap() == written);
    assert_eq!(within(drain(&copier)).await, Drained::All);
}

/// Also says how fast it was: `cargo test --release -- --nocapture`.
#[tokio::test]
async fn a_hundred_megabytes_arrive_unchanged() {
    const CHUNK: usize = 1 << 16;
    const CHUNKS: usize = 1600;
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let process = process([&uri(&input), &uri(&out), &null()]);
    let started = WallClock::now();
    let write = move |mut file: File| {
        let mut noise = Noise::new();
        let mut bytes = vec![0; CHUNK];
        for _ in 0..CHUNKS {
            noise.fill(&mut bytes);
            file.write_all(&bytes).unwrap();
        }
    };
    let check = move |mut file: File| {
        let mut noise = Noise::new();
        let (mut bytes, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
        for chunk in 0..CHUNKS {
            file.read_exact(&mut bytes).unwrap();
            noise.fill(&mut expected);
            assert!(bytes == expected, "chunk {chunk}");
        }
        assert_eq!(file.read(&mut bytes).unwrap(), 0);
    };
    let client_writes = OpenOptions::new().write(true).open(&input).unwrap();
    let client_reads = File::open(&out).unwrap();
    let (stdout, stdin, copier) = (process.stdout, process.stdin, process.copier);
    let writes = spawn_blocking(move || write(client_writes));
    let copies = spawn_blocking(move || {
        let (mut stdin, mut stdout) = (stdin, stdout);
        std::io::copy(&mut stdin, &mut stdout).unwrap();
    });
    let checks = spawn_blocking(move || check(client_reads));
    within(writes).await.unwrap();
    copier.close_stdin();
    within(copies).await.unwrap();
    within(checks).await.unwrap();
    let rate =
        f64::from(u32::try_from(CHUNK * CHUNKS).unwrap()) / 1e6 / started.elapsed().as_secs_f64();
    println!("{rate:.0} MB/s through stdin, a process, and stdout");
}

#[tokio::test]
async fn input_survives_clients_that_come_and_go() {
    let scene = Scene::new();
    let input = scene.fifo("in");
    let process = process([&uri(&input), &null(), &null()]);
    let (mut stdin, copier) = (process.stdin, process.copier);
    for text in ["one", "two", "three"] {
        let mut client = OpenOptions::new().write(true).open(&input).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        drop(client);
        let (back, bytes) = within(read_exact(stdin, text.len())).await.unwrap();
        assert_eq!(bytes, text.as_bytes());
        stdin = back;
    }
    copier.close_stdin();
    copier.close_stdin();
    assert_eq!(within(read_to_end(stdin)).await.unwrap(), b"");
}

#[tokio::test]
async fn close_stdin_ends_input_after_what_clients_have_written() {
    let scene = Scene::new();
    let input = scene.fifo("in");
    let process = process([&uri(&input), &null(), &null()]);
    let mut client = OpenOptions::new().write(true).open(&input).unwrap();
    let bytes = Noise::new().bytes(50_000);
    client.write_all(&bytes).unwrap();
    process.copier.close_stdin();
    // It has not closed its end yet: as with containerd's shim, that is still input.
    client.write_all(b"more").unwrap();
    let (stdin, read) = within(read_exact(process.stdin, bytes.len() + 4))
        .await
        .unwrap();
    assert!(read == [&bytes[..], b"more"].concat());
    drop(client);
    assert_eq!(within(read_to_end(stdin)).await.unwrap(), b"");
}

#[tokio::test]
async fn input_that_nobody_reads_ends_for_its_client() {
    let scene = Scene::new();
    let input = scene.fifo("in");
    let process = process([&uri(&input), &null(), &null()]);
    let mut client = OpenOptions::new().write(true).open(&input).unwrap();
    let copier = process.exit();
    let result = spawn_blocking(move || {
        loop {
            if let Err(error) = client.write_all(&[0; 4096]) {
                return error.kind();
            }
        }
    });
    assert_eq!(
        within(result).await.unwrap(),
        std::io::ErrorKind::BrokenPipe
    );
    assert_eq!(within(drain(&copier)).await, Drained::All);
}

#[tokio::test]
async fn pipes_belong_to_whom_the_options_say() {
    use std::os::unix::fs::MetadataExt;
    if !nix::unistd::geteuid().is_root() {
        // Only root can give files away.
        return;
    }
    let scene = Scene::new();
    let (input, out) = (scene.fifo("in"), scene.fifo("out"));
    let owner = Owner {
        uid: 1234,
        gid: 5678,
    };
    let uris = [&uri(&input), &uri(&out), &null()];
    let (_streams, ends) = open(uris, Mode::Pipes(owner)).unwrap();
    let Ends::Pipes { stdin, stdout, .. } = ends else {
        panic!("not pipes");
    };
    for end in [stdin, stdout] {
        let metadata = File::from(end).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    }
}

#[tokio::test]
async fn places_that_are_not_there_or_not_fifos_are_refused_by_name() {
    let scene = Scene::new();
    let (missing, folder) = (scene.path("missing"), scene.path("folder"));
    std::fs::create_dir(&folder).unwrap();
    let file = scene.path("file");
    std::fs::write(&file, "").unwrap();
    let check = |uris: [&stdio::Uri; 3], expected: &str| {
        let error = open(uris, Mode::Pipes(Owner::default()))
            .map(drop)
            .unwrap_err();
        let shown = error
            .to_string()
            .replace(scene.dir.path().to_str().unwrap(), "");
        assert_eq!(shown, expected);
    };
    check(
        [&uri(&missing), &null(), &null()],
        "open /missing for stdin",
    );
    check(
        [&null(), &uri(&missing), &null()],
        "open /missing for stdout",
    );
    check(
        [&null(), &null(), &uri(&missing)],
        "open /missing for stderr",
    );
    check([&null(), &uri(&folder), &null()], "open /folder for stdout");
    check(
        [&uri(&file), &null(), &null()],
        "/file for stdin is a file, not a fifo",
    );
    let tty = stdio::Uri::Fifo("/dev/zero".into());
    check(
        [&null(), &tty, &null()],
        "/dev/zero for stdout is a device, not a fifo or a file",
    );
    let log = stdio::Uri::File("/log".into());
    check(
        [&log, &null(), &null()],
        "/log for stdin is a log file, not a fifo",
    );
    let (streams, _ends) = open([&null(), &null(), &null()], Mode::Terminal).unwrap();
    let error = streams.copy(None).unwrap_err().to_string();
    assert_eq!(error, "no terminal was given");
}
