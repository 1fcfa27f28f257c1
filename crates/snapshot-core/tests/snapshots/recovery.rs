//! What a start makes of what it finds: after a good end, after a crash, after a loss.

use std::{fs, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use snapshot_core::{Error, Kind, Snapshots, rebuild};

use crate::{
    driver::{Step, TestDriver},
    root::{Root, key, labels},
};

#[test]
fn all_is_there_after_a_restart_and_numbers_go_on() {
    let mut root = Root::new();
    root.layer("layer", None);
    root.prepare("a", Some("layer")).unwrap();
    root.snapshots()
        .update(&key("a"), &[], &labels(&[("l", "1")]))
        .unwrap();
    let (infos, directories) = (root.list(&[]), root.directories());
    let mounts = root.snapshots().mounts(&key("a")).unwrap();
    root.reopen();
    assert_eq!(
        (root.list(&[]), root.directories()),
        (infos, directories.clone())
    );
    assert_eq!(root.snapshots().mounts(&key("a")).unwrap(), mounts);
    let recovered = root.driver.recovered();
    let found: Vec<_> = recovered
        .iter()
        .map(|(one, path)| (one.info.name.as_str(), path))
        .collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&("a", &root.directory_of("a"))));
    root.prepare("b", None).unwrap();
    let new = root
        .directories()
        .into_iter()
        .find(|name| !directories.contains(name));
    let number = |name: &str| name.parse::<u64>().unwrap();
    assert!(
        directories
            .iter()
            .all(|old| number(old) < number(new.as_ref().unwrap()))
    );
}

#[test]
fn what_has_no_record_is_swept_and_what_is_not_ours_stays() {
    let mut root = Root::new();
    let made = root
        .prepare("a", None)
        .map(|mounts| crate::root::directory(&mounts))
        .unwrap();
    root.close();
    let at = |name: &str| root.path("snapshots").join(name);
    // As a process leaves them that ends in the middle of Prepare and of Remove.
    for name in ["new-900", "901", "rm-902"] {
        fs::create_dir_all(at(name).join("fs/deep")).unwrap();
    }
    fs::copy(made.join("snapshot.json"), at("901").join("snapshot.json")).unwrap();
    fs::write(at("rm-902").join("snapshot.json"), "torn").unwrap();
    for foreign in ["foreign", "07", "lost-903"] {
        fs::create_dir(at(foreign)).unwrap();
    }
    root.reopen();
    root.snapshots().cleanup().unwrap();
    let own = made.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(
        root.directories(),
        [
            "07".to_owned(),
            own.clone(),
            "foreign".to_owned(),
            "lost-903".to_owned()
        ]
    );
    let mut released = root.driver.released();
    released.sort_by_key(|(id, _)| *id);
    let noted: Vec<_> = released
        .iter()
        .map(|(id, note)| (id.0, note.clone().map(|n| n.0)))
        .collect();
    let note = Some(format!("made as {own}"));
    assert_eq!(noted, [(900, None), (901, note), (902, None)]);
    assert_eq!(root.names(), ["a"]);
    // Numbers that stood on the disk are not given again.
    let next = root
        .prepare("b", None)
        .map(|mounts| crate::root::directory(&mounts))
        .unwrap();
    assert!(
        next.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 903
    );
}

#[test]
fn what_could_not_be_swept_is_tried_at_the_next_start() {
    let mut root = Root::new();
    root.prepare("a", None).unwrap();
    root.driver.fail(Step::Release);
    root.remove("a").unwrap();
    root.snapshots().cleanup().unwrap_err();
    root.driver.work_again();
    root.reopen();
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.directories().len(), 0);
}

#[test]
fn a_driver_that_cannot_recover_keeps_the_root_closed() {
    let mut root = Root::new();
    root.prepare("a", None).unwrap();
    root.driver.fail(Step::Recover);
    let refusal = root.try_open().unwrap_err();
    assert!(matches!(refusal, Error::Exhausted(_)), "{refusal}");
    root.driver.work_again();
    root.reopen();
    assert_eq!(root.names(), ["a"]);
}

#[test]
fn a_snapshot_without_its_directory_says_so_and_can_be_removed() {
    let mut root = Root::new();
    root.layer("lost", None);
    root.layer("top", Some("lost"));
    let parent = root.list(&["name==lost"]).remove(0);
    assert_eq!(parent.kind, Kind::Committed);
    root.prepare("active", Some("top")).unwrap();
    root.close();
    let lowest = root
        .directories()
        .into_iter()
        .min_by_key(|name| name.parse::<u64>().unwrap());
    fs::remove_dir_all(root.path("snapshots").join(lowest.unwrap())).unwrap();
    root.reopen();
    assert_eq!(root.names(), ["active", "lost", "top"]);
    assert_eq!(root.driver.recovered().len(), 2);
    let says = |outcome: Result<(), Error>| {
        let text = outcome.unwrap_err().in_one_line();
        assert!(
            text.starts_with("the directory of snapshot \"lost\""),
            "{text}"
        );
    };
    says(root.prepare("x", Some("lost")).map(drop));
    says(root.prepare("x", Some("top")).map(drop));
    says(root.snapshots().mounts(&key("active")).map(drop));
    says(root.commit("x", "active", None));
    root.snapshots()
        .update(&key("lost"), &[], &labels(&[("l", "1")]))
        .unwrap();
    root.snapshots().usage(&key("lost")).unwrap();
    for name in ["active", "top", "lost"] {
        root.remove(name).unwrap();
    }
    root.snapshots().cleanup().unwrap();
    root.layer("lost", None);
    root.prepare("x", Some("lost")).unwrap();
}

#[test]
fn a_sidecar_that_could_not_be_written_is_written_at_the_next_start() {
    let mut root = Root::new();
    root.prepare("a", None).unwrap();
    let directory = root.directory_of("a");
    // As with a quota that is used up: the file that is to take its place cannot be made.
    let obstacle = directory.join("snapshot.json.new");
    fs::create_dir(&obstacle).unwrap();
    root.snapshots()
        .update(&key("a"), &[], &labels(&[("l", "new")]))
        .unwrap();
    assert!(Root::sidecar(&directory).get("labels").is_none());
    fs::remove_dir(&obstacle).unwrap();
    root.reopen();
    assert_eq!(Root::sidecar(&directory)["labels"]["l"], "new");
    root.prepare("b", None).unwrap();
    root.reopen();
    assert_eq!(root.names(), ["a", "b"]);
}

#[test]
fn two_processes_do_not_share_a_root() {
    let root = Root::new();
    let refusal = Snapshots::open(root.folder.path(), TestDriver::new()).unwrap_err();
    let expected = format!("is in use by process {}", std::process::id());
    assert!(refusal.to_string().contains(&expected), "{refusal}");
    let refusal = rebuild(root.folder.path()).unwrap_err();
    assert!(refusal.to_string().contains(&expected), "{refusal}");
}

#[test]
fn an_empty_store_is_not_put_beside_full_directories() {
    let mut root = Root::new();
    root.prepare("a", None).unwrap();
    root.close();
    fs::remove_file(root.path("store.redb")).unwrap();
    let refusal = root.try_open().unwrap_err().in_one_line();
    assert!(refusal.contains("doctor --rebuild"), "{refusal}");
    assert_eq!(root.directories().len(), 1);
}

#[test]
fn a_lost_store_is_made_anew_from_the_directories() {
    let mut root = Root::new();
    root.layer("layer", None);
    root.layer("top", Some("layer"));
    root.prepare("a", Some("top")).unwrap();
    root.view("v", Some("layer")).unwrap();
    root.snapshots()
        .update(&key("a"), &[], &labels(&[("l", "1")]))
        .unwrap();
    for _ in 0..3 {
        root.prepare("gone", None).unwrap();
        root.remove("gone").unwrap();
    }
    root.snapshots().cleanup().unwrap();
    let before = root.list(&[]);
    let usage = root.snapshots().usage(&key("layer")).unwrap();
    root.close();
    let highest = root
        .directories()
        .iter()
        .map(|name| name.parse::<u64>().unwrap())
        .max();
    fs::write(root.path("store.redb"), "a store no more").unwrap();
    root.try_open().unwrap_err();

    let rebuilt = rebuild(root.folder.path()).unwrap();
    assert_eq!(rebuilt.restored, 4);
    assert_eq!(rebuilt.set_aside, []);
    assert_eq!(rebuilt.old_store, Some(root.path("store.redb.broken-0")));
    root.reopen();
    assert_eq!(root.list(&[]), before);
    assert_eq!(root.snapshots().usage(&key("layer")).unwrap(), usage);
    assert!(root.remove("layer").is_err());
    root.prepare("b", Some("top")).unwrap();
    let new = root.directory_of("b");
    let number: u64 = new.file_name().unwrap().to_str().unwrap().parse().unwrap();
    assert!(
        number > highest.unwrap() + 3,
        "numbers of what was removed do not come again"
    );
}

#[test]
fn directories_that_tell_nothing_are_set_aside_by_a_rebuild() {
    let mut root = Root::new();
    root.layer("torn", None);
    root.layer("on torn", Some("torn"));
    root.prepare("on that", Some("on torn")).unwrap();
    root.prepare("empty", None).unwrap();
    root.prepare("good", None).unwrap();
    let of = |root: &Root, name: &str| root.directory_of(name);
    let good = of(&root, "good");
    let empty = of(&root, "empty");
    let on_that = of(&root, "on that");
    root.close();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut numbers: Vec<u64> = root
        .directories()
        .iter()
        .map(|name| name.parse().unwrap())
        .collect();
    numbers.sort_unstable();
    let torn = root.path("snapshots").join(numbers[0].to_string());
    let text = fs::read(torn.join("snapshot.json")).unwrap();
    fs::write(torn.join("snapshot.json"), &text[..text.len() / 2]).unwrap();
    fs::remove_file(empty.join("snapshot.json")).unwrap();
    // A copy under another number, and an older one of the same name.
    let copies = [("5000", name(&good)), ("2", name(&good))];
    for (copy, of) in &copies {
        let at = root.path("snapshots").join(copy);
        if at.exists() {
            continue;
        }
        fs::create_dir(&at).unwrap();
        let text = fs::read_to_string(good.join("snapshot.json")).unwrap();
        fs::write(
            at.join("snapshot.json"),
            text.replace(&format!("\"id\":{of}"), "\"id\":5000"),
        )
        .unwrap();
    }
    fs::remove_file(root.path("store.redb")).unwrap();
    fs::remove_file(root.path("ids")).unwrap();

    let mut rebuilt = rebuild(root.folder.path()).unwrap();
    rebuilt.set_aside.sort_by_key(|(id, _)| *id);
    let why = |path: &Path| {
        let id: u64 = name(path).parse().unwrap();
        let found = rebuilt.set_aside.iter().find(|(other, _)| other.0 == id);
        found.map(|(_, why)| why.clone()).unwrap_or_default()
    };
    assert!(
        why(&torn).starts_with("its snapshot.json cannot be read: EOF"),
        "{rebuilt:?}"
    );
    assert_eq!(why(&empty), "it has no snapshot.json");
    assert_eq!(why(&on_that), "its parent \"on torn\" is not there");
    assert_eq!(why(&good), "number 5000 has the same name \"good\"");
    assert_eq!(rebuilt.restored, 1);
    root.reopen();
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.names(), ["good"]);
    let aside = root
        .directories()
        .iter()
        .filter(|name| name.starts_with("lost-"))
        .count();
    assert_eq!(aside, rebuilt.set_aside.len());
    root.prepare("next", None).unwrap();
    // Nothing says how far numbers were given, so many are skipped.
    assert!(name(&root.directory_of("next")).parse::<u64>().unwrap() > 1 << 20);
}

/// What is mounted cannot be renamed.
struct Kept<'a>(&'a Path);

impl<'a> Kept<'a> {
    fn new(path: &'a Path) -> Self {
        let none: Option<&str> = None;
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        Self(path)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_removed_snapshot_that_keeps_its_name_is_tried_again() {
    let root = Root::new();
    let sweep = || root.snapshots().cleanup();
    for name in ["a", "b"] {
        root.prepare(name, None).unwrap();
        let directory = root.directory_of(name);
        let kept = Kept::new(&directory);
        root.remove(name).unwrap();
        assert!(root.names().is_empty());
        for _twice in 0..2 {
            let refusal = sweep().unwrap_err();
            assert!(matches!(refusal, Error::Unavailable(_)), "{refusal:?}");
            let (count, why) = root.snapshots().left_over().unwrap();
            assert_eq!(count, 1);
            assert!(why.contains("rename"), "{why}");
        }
        assert!(directory.exists());
        drop(kept);
        if name == "a" {
            sweep().unwrap();
        } else {
            // The next one to be made finds it gone, or going.
            root.prepare("next", None).unwrap();
            assert_eq!(root.snapshots().left_over(), None);
            sweep().unwrap();
        }
        assert!(!directory.exists());
    }
    assert_eq!(root.directories().len(), 1, "{:?}", root.directories());
}
