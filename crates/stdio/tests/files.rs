//! Processes whose output goes to files.

#![cfg(test)]

mod scene;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use scene::{Noise, Scene, drain, null, open, process, uri, within, write_all};
use stdio::{Drained, Mode, Owner, Uri};

fn file_uri(path: &std::path::Path) -> Uri {
    Uri::parse(&format!("file://{}", path.display())).unwrap()
}

#[tokio::test]
async fn a_log_file_and_its_folders_are_made_as_containerds_shim_makes_them() {
    let scene = Scene::new();
    let log = scene.path("a/b/log");
    let mut process = process([&null(), &file_uri(&log), &null()]);
    process.stdout.write_all(b"hello\n").unwrap();
    let copier = process.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert_eq!(std::fs::read(&log).unwrap(), b"hello\n");
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let umask = 0o777 & !mode_of_a_new_folder(&scene);
    assert_eq!(mode(scene.path("a/b")), 0o755 & !umask);
    assert_eq!(mode(log), 0o644 & !umask);
}

/// Every bit the umask lets through.
fn mode_of_a_new_folder(scene: &Scene) -> u32 {
    let path = scene.path("probe");
    std::fs::create_dir(&path).unwrap();
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_are_appended_to_also_when_named_by_a_plain_path() {
    let scene = Scene::new();
    let (log, plain) = (scene.path("log"), scene.path("plain"));
    std::fs::write(&log, "before\n").unwrap();
    std::fs::write(&plain, "before\n").unwrap();
    let mut process = process([&null(), &file_uri(&log), &uri(&plain)]);
    process.stdout.write_all(b"output\n").unwrap();
    process.stderr.write_all(b"error\n").unwrap();
    // Somebody else appends, as log rotation may.
    let append = |path| File::options().append(true).open(path).unwrap();
    append(&log).write_all(b"between\n").unwrap();
    let copier = process.exit();
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert_eq!(std::fs::read(&log).unwrap(), b"before\nbetween\noutput\n");
    assert_eq!(std::fs::read(&plain).unwrap(), b"before\nerror\n");
}

#[tokio::test]
async fn both_streams_to_one_file_keep_their_order() {
    let scene = Scene::new();
    let log = scene.path("log");
    let mut process = process([&null(), &file_uri(&log), &file_uri(&log)]);
    let mut expected = String::new();
    for n in 0..2000 {
        expected.push_str(&process.write_to_either(n));
        tokio::task::yield_now().await;
    }
    assert_eq!(within(drain(&process.exit())).await, Drained::All);
    assert_eq!(std::fs::read(&log).unwrap(), expected.as_bytes());
}

#[tokio::test]
async fn much_output_arrives_unchanged() {
    let scene = Scene::new();
    let log = scene.path("log");
    let process = process([&null(), &file_uri(&log), &null()]);
    let bytes = Noise::new().bytes(20 << 20);
    let copier = process.copier;
    drop(
        within(write_all(process.stdout, bytes.clone()))
            .await
            .unwrap(),
    );
    assert_eq!(within(drain(&copier)).await, Drained::All);
    assert!(std::fs::read(&log).unwrap() == bytes);
}

#[tokio::test]
async fn what_is_no_file_is_refused_by_name() {
    let scene = Scene::new();
    let folder = scene.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(scene.path("file"), "").unwrap();
    let check = |uri: &Uri, expected: &str| {
        let mode = Mode::Pipes(Owner::default());
        let error = open([&null(), uri, &null()], mode).map(drop).unwrap_err();
        let shown = error
            .to_string()
            .replace(scene.dir.path().to_str().unwrap(), "");
        assert_eq!(shown, expected);
    };
    check(&file_uri(&folder), "open /folder for stdout");
    check(
        &file_uri(&scene.path("file/log")),
        "open /file/log for stdout",
    );
    check(
        &file_uri("/dev/full".as_ref()),
        "/dev/full for stdout is a device, not a file",
    );
}
