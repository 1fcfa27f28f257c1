//! Each operation: what it does, what it refuses, who waits for whom, and what a failing driver
//! leaves behind.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    slice,
    sync::{Barrier, mpsc},
};

use snapshot_core::{Error, Field, Kind, Labels, Usage};

use crate::{
    driver::{STEPS, Step},
    root::{Root, directory, key, labels},
};

/// The variant of an error and its text.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>, variant: &str) -> String {
    let error = outcome.unwrap_err();
    let debug = format!("{error:?}");
    assert!(debug.starts_with(variant), "{debug} is not {variant}");
    error.in_one_line()
}

#[test]
fn a_layer_that_was_not_counted_at_its_commit_is_counted_when_it_is_asked_for() {
    let mut root = Root::new();
    root.driver.count_later();
    let made = directory(&root.prepare("a", None).unwrap());
    root.commit("layer", "a", None).unwrap();
    for inodes in 1..3 {
        let counted = root.snapshots().usage(&key("layer")).unwrap();
        assert_eq!(counted.inodes, inodes);
        fs::write(made.join(format!("fs/{inodes}")), "x").unwrap();
    }
    root.reopen();
    let counted = root.snapshots().usage(&key("layer")).unwrap();
    assert_eq!(counted.inodes, 3);
}

#[test]
fn a_layer_is_made_committed_stood_on_and_removed() {
    let root = Root::new();
    let made = directory(&root.prepare("a", None).unwrap());
    fs::write(made.join("fs/file"), vec![1; 10_000]).unwrap();
    root.commit("layer", "a", None).unwrap();
    let info = root.snapshots().stat(&key("layer")).unwrap();
    assert_eq!((info.kind, info.parent), (Kind::Committed, None));
    assert_eq!(info.created, info.updated);
    refused(root.snapshots().stat(&key("a")), "NotFound");
    let counted = root.snapshots().usage(&key("layer")).unwrap();
    assert_eq!(counted.inodes, 2);

    let mounts = root.prepare("b", Some("layer")).unwrap();
    assert_eq!(root.snapshots().mounts(&key("b")).unwrap(), mounts);
    let lower = format!("lowerdir={}/fs", made.display());
    assert!(mounts[0].options.contains(&lower), "{mounts:?}");
    let view = root.view("c", Some("layer")).unwrap();
    assert_eq!(view[0].source, format!("{}/fs", made.display()));
    assert_eq!(root.snapshots().usage(&key("c")).unwrap(), Usage::default());
    for name in ["b", "c", "layer"] {
        root.remove(name).unwrap();
    }
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.names().len() + root.directories().len(), 0);
    assert_eq!(root.driver.forgotten().len(), 3);
}

#[test]
fn refusals_have_containerds_codes() {
    let root = Root::new();
    root.layer("layer", None);
    root.layer("other", None);
    root.prepare("active", Some("layer")).unwrap();
    root.prepare("orphan", None).unwrap();
    root.view("view", Some("layer")).unwrap();
    let before = root.list(&[]);
    let snapshots = root.snapshots();

    for taken in ["active", "view", "layer"] {
        refused(root.prepare(taken, Some("layer")), "AlreadyExists");
        refused(root.view(taken, Some("layer")), "AlreadyExists");
    }
    refused(root.prepare("x", Some("none")), "NotFound");
    refused(root.prepare("x", Some("x")), "NotFound");
    refused(root.prepare("x", Some("active")), "Invalid");
    refused(root.view("x", Some("view")), "Invalid");

    refused(root.commit("x", "none", None), "NotFound");
    refused(root.commit("layer", "active", None), "AlreadyExists");
    refused(root.commit("active", "active", None), "AlreadyExists");
    refused(root.commit("x", "view", None), "Precondition");
    refused(root.commit("x", "layer", None), "Precondition");
    refused(root.commit("x", "active", Some("other")), "Invalid");
    refused(root.commit("x", "orphan", Some("none")), "NotFound");
    refused(root.commit("x", "orphan", Some("active")), "Precondition");
    refused(root.commit("x", "orphan", Some("orphan")), "Precondition");

    refused(root.remove("none"), "NotFound");
    let text = refused(root.remove("layer"), "Precondition");
    assert!(text.contains("remove"), "{text}");
    refused(snapshots.mounts(&key("none")), "NotFound");
    refused(snapshots.mounts(&key("layer")), "Precondition");
    refused(snapshots.usage(&key("none")), "NotFound");
    refused(snapshots.stat(&key("none")), "NotFound");
    refused(
        snapshots.update(&key("none"), &[], &Labels::new()),
        "NotFound",
    );
    let long = labels(&[("x", &"v".repeat(5000))]);
    refused(snapshots.update(&key("active"), &[], &long), "Invalid");
    refused(snapshots.prepare(&key("x"), None, long), "Invalid");

    assert_eq!(root.list(&[]), before);
    root.commit("x", "active", Some("layer")).unwrap();
    root.commit("y", "orphan", Some("x")).unwrap();
    let parent = snapshots.stat(&key("y")).unwrap().parent;
    assert_eq!(parent, Some(key("x")));
    refused(root.remove("x"), "Precondition");
}

#[test]
fn names_are_free_again_after_commit_and_remove() {
    let root = Root::new();
    root.prepare("a", None).unwrap();
    root.commit("b", "a", None).unwrap();
    root.prepare("a", Some("b")).unwrap();
    root.remove("a").unwrap();
    root.view("a", Some("b")).unwrap();
    root.remove("a").unwrap();
    root.prepare("a", None).unwrap();
    root.remove("b").unwrap();
    root.commit("b", "a", None).unwrap();
    assert_eq!(root.names(), ["b"]);
}

#[test]
fn labels_are_replaced_at_commit_and_changed_by_update() {
    let root = Root::new();
    let snapshots = root.snapshots();
    let first = labels(&[("a", "1"), ("b", "2"), ("empty", "")]);
    snapshots.prepare(&key("a"), None, first).unwrap();
    let stat = || snapshots.stat(&key("a")).unwrap();
    assert_eq!(stat().labels, labels(&[("a", "1"), ("b", "2")]));
    let created = stat().created;

    let to = labels(&[("b", ""), ("c", "3")]);
    let fields = ["b", "c"].map(|name| Field::Label(name.to_owned()));
    let after = snapshots.update(&key("a"), &fields, &to).unwrap();
    assert_eq!(after, stat());
    assert_eq!(after.labels, labels(&[("a", "1"), ("c", "3")]));
    assert_eq!(after.created, created);
    assert!(after.updated > created);
    let sidecar = Root::sidecar(&root.directory_of("a"));
    assert_eq!(sidecar["labels"], serde_json::json!({"a": "1", "c": "3"}));
    assert_eq!(root.list(&["labels.c==3"]), [after]);

    root.commit("b", "a", None).unwrap();
    assert_eq!(snapshots.stat(&key("b")).unwrap().labels, Labels::new());
    snapshots
        .update(&key("b"), &[], &labels(&[("d", "4")]))
        .unwrap();
    assert_eq!(root.list(&["kind==committed,labels.d"]).len(), 1);
}

#[test]
fn the_sidecar_says_what_the_store_says() {
    let root = Root::new();
    root.layer("layer", None);
    let made = directory(&root.prepare("a", Some("layer")).unwrap());
    let sidecar = Root::sidecar(&made);
    let told = |field: &str| sidecar[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (told("name"), told("kind"), told("parent")),
        ("a".into(), "active".into(), "layer".into())
    );
    assert_eq!(sidecar["created"], sidecar["updated"]);
    root.commit("b", "a", None).unwrap();
    let sidecar = Root::sidecar(&made);
    assert_eq!(
        (&sidecar["name"], &sidecar["kind"]),
        (&"b".into(), &"committed".into())
    );
    let note = sidecar["note"].as_str().unwrap();
    assert!(note.ends_with(", committed"), "{note}");
    assert_eq!(sidecar["usage"]["inodes"], 1);
    let mode = fs::metadata(made.join("snapshot.json"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn a_driver_that_fails_leaves_nothing_and_the_same_works_later() {
    for step in STEPS {
        let root = Root::new();
        root.layer("layer", None);
        root.prepare("active", Some("layer")).unwrap();
        root.snapshots().cleanup().unwrap();
        let (before, directories) = (root.list(&[]), root.directories());
        root.driver.fail(step);
        let all = || {
            let update = root
                .snapshots()
                .update(&key("active"), &[], &labels(&[("l", "1")]));
            [
                (
                    root.prepare("x", Some("layer")).map(drop),
                    vec![Step::Create, Step::CreateEnd, Step::Mounts],
                ),
                (
                    root.view("y", None).map(drop),
                    vec![Step::Create, Step::CreateEnd, Step::Mounts],
                ),
                (
                    root.snapshots().mounts(&key("active")).map(drop),
                    vec![Step::Mounts],
                ),
                (
                    root.snapshots().usage(&key("active")).map(drop),
                    vec![Step::Usage],
                ),
                (update.map(drop), vec![Step::Update, Step::Updated]),
                (root.commit("z", "active", None), vec![Step::Commit]),
            ]
        };
        for (outcome, steps) in all() {
            if steps.contains(&step) {
                let text = refused(outcome, "Exhausted");
                assert_eq!(text, format!("{step:?} fails in this test"));
            } else {
                outcome.unwrap();
            }
        }
        root.driver.work_again();
        for name in ["x", "y"] {
            let _either = root.remove(name);
        }
        root.snapshots().cleanup().unwrap();
        if step == Step::Commit {
            assert_eq!(root.names(), ["active", "layer"]);
            assert_eq!(root.directories(), directories);
        }
        if step == Step::Create {
            assert_eq!(root.list(&["kind==committed,name==layer"]), before[1..]);
        }
        // A number and its directory belong together, whatever went wrong.
        assert_eq!(root.names().len(), root.directories().len());
    }
}

#[test]
fn what_was_half_made_is_given_to_the_driver_with_what_it_had_noted() {
    let root = Root::new();
    for (step, noted) in [
        (Step::Create, false),
        (Step::CreateEnd, false),
        (Step::Mounts, true),
    ] {
        root.driver.fail(step);
        refused(root.prepare("a", None), "Exhausted");
        root.driver.work_again();
        root.snapshots().cleanup().unwrap();
        let released = root.driver.released();
        assert_eq!(released.len(), 1);
        assert_eq!(released[0].1.is_some(), noted, "{released:?}");
        assert_eq!(root.directories().len(), 0);
    }
    assert_eq!(root.names().len(), 0);
}

#[test]
fn only_one_of_many_gets_a_key() {
    let root = Root::new();
    root.layer("layer", None);
    let crowd = 12;
    let begin = Barrier::new(crowd);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let ask = || {
            begin.wait();
            root.prepare("same", Some("layer"))
                .map(|mounts| directory(&mounts))
        };
        let threads: Vec<_> = (0..crowd).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert_eq!(won[0].as_ref().unwrap(), &root.directory_of("same"));
    for outcome in lost {
        refused(outcome, "AlreadyExists");
    }
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.directories().len(), 2);
}

#[test]
fn a_parent_is_not_removed_while_something_is_made_on_it() {
    for step in [Step::Create, Step::Mounts] {
        let root = Root::new();
        root.layer("layer", None);
        root.driver.hold(step);
        std::thread::scope(|scope| {
            let child = scope.spawn(|| root.prepare("child", Some("layer")));
            root.driver.wait_for(step);
            let removal = scope.spawn(|| root.remove("layer"));
            root.driver.let_go(step);
            child.join().unwrap().unwrap();
            // Whoever was first, no child is without its parent.
            refused(removal.join().unwrap(), "Precondition");
        });
        root.snapshots().mounts(&key("child")).unwrap();
    }
}

#[test]
fn nothing_is_made_on_a_parent_that_goes() {
    let root = Root::new();
    root.layer("layer", None);
    for _ in 0..200 {
        let begin = Barrier::new(2);
        let (made, removed) = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                begin.wait();
                root.prepare("child", Some("layer"))
            });
            begin.wait();
            let removed = root.remove("layer");
            (made.join().unwrap(), removed)
        });
        match (made, removed) {
            (Ok(_), Err(Error::Precondition(_))) => root.remove("child").unwrap(),
            (Err(Error::NotFound(_)), Ok(())) => root.layer("layer", None),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn different_snapshots_do_not_wait_for_each_other() {
    let root = Root::new();
    root.layer("layer", None);
    root.driver.hold(Step::Commit);
    root.prepare("slow", Some("layer")).unwrap();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| root.commit("slow layer", "slow", None));
        root.driver.wait_for(Step::Commit);
        root.prepare("quick", Some("layer")).unwrap();
        root.snapshots().stat(&key("slow")).unwrap();
        root.snapshots().usage(&key("slow")).unwrap();
        assert_eq!(root.list(&["kind==active"]).len(), 2);
        root.remove("quick").unwrap();
        root.driver.let_go(Step::Commit);
        slow.join().unwrap().unwrap();
    });
}

#[test]
fn a_long_measurement_keeps_no_label_from_being_changed() {
    let root = Root::new();
    root.prepare("a", None).unwrap();
    root.driver.hold(Step::Usage);
    std::thread::scope(|scope| {
        let usage = scope.spawn(|| root.snapshots().usage(&key("a")));
        root.driver.wait_for(Step::Usage);
        root.snapshots()
            .update(&key("a"), &[], &labels(&[("l", "1")]))
            .unwrap();
        root.commit("b", "a", None).unwrap();
        root.remove("b").unwrap();
        root.snapshots().cleanup().unwrap();
        root.driver.let_go(Step::Usage);
        // It was removed meanwhile: that is what is said, and not that a path is missing.
        refused(usage.join().unwrap(), "NotFound");
    });
}

#[test]
fn remove_answers_before_anything_is_deleted_and_cleanup_after() {
    let root = Root::new();
    root.prepare("a", None).unwrap();
    root.driver.hold(Step::Release);
    root.remove("a").unwrap();
    refused(root.snapshots().stat(&key("a")), "NotFound");
    assert!(root.directories()[0].starts_with("rm-"));
    let (done, is_done) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            done.send(root.snapshots().cleanup()).unwrap();
        });
        root.driver.wait_for(Step::Release);
        assert!(is_done.try_recv().is_err());
        root.driver.let_go(Step::Release);
        is_done.recv().unwrap().unwrap();
    });
    assert_eq!(root.directories().len(), 0);
    // With nothing to wait for it returns at once.
    root.snapshots().cleanup().unwrap();
}

#[test]
fn cleanup_reports_what_is_left_and_tries_again() {
    let root = Root::new();
    for name in ["a", "b"] {
        root.prepare(name, None).unwrap();
    }
    root.driver.fail(Step::Release);
    for name in ["a", "b"] {
        root.remove(name).unwrap();
    }
    for _again in 0..2 {
        let text = refused(root.snapshots().cleanup(), "Unavailable");
        let expected = "2 directories of removed snapshots are left; the first: Release fails";
        assert!(text.starts_with(expected), "{text}");
    }
    root.driver.work_again();
    root.driver.fail(Step::Forget);
    // The directory is gone: what is left is for the driver to find.
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.directories().len(), 0);
}

#[test]
fn what_is_mounted_in_a_removed_snapshot_is_not_deleted() {
    let root = Root::new();
    let made = directory(&root.prepare("a", None).unwrap());
    let beside = root.path("beside");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("file"), "stays").unwrap();
    let inside = made.join("fs/mounted");
    fs::create_dir(&inside).unwrap();
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&beside), &inside, None::<&str>, bind, None::<&str>).unwrap();
    root.remove("a").unwrap();
    let outcome = root.snapshots().cleanup();
    let moved = root
        .path("snapshots")
        .join(&root.directories()[0])
        .join("fs/mounted");
    nix::mount::umount2(&moved, nix::mount::MntFlags::MNT_DETACH).unwrap();
    refused(outcome, "Unavailable");
    assert_eq!(fs::read_to_string(beside.join("file")).unwrap(), "stays");
    root.snapshots().cleanup().unwrap();
}

#[test]
fn labels_that_could_not_be_stored_are_taken_back() {
    let root = Root::new();
    root.prepare("a", None).unwrap();
    let old = labels(&[("l", "old")]);
    root.snapshots().update(&key("a"), &[], &old).unwrap();
    assert_eq!(root.driver.labels(), [old]);
    let odd = labels(&[("containerd.io/snapshot/uidmapping", "0:0:1")]);
    refused(root.snapshots().update(&key("a"), &[], &odd), "Invalid");
    let stat = root.snapshots().stat(&key("a")).unwrap();
    assert_eq!(stat.labels, labels(&[("l", "old")]));
}

#[test]
fn what_cannot_be_taken_back_is_done_when_labels_are_stored() {
    let root = Root::new();
    root.prepare("a", None).unwrap();
    let stat = || root.snapshots().stat(&key("a")).unwrap();
    let set = |value: &str| {
        let to = labels(&[("l", value)]);
        let done = root.snapshots().update(&key("a"), &[], &to);
        (to, done)
    };
    let (old, done) = set("old");
    done.unwrap();
    assert_eq!(root.driver.settled(), slice::from_ref(&old));
    assert_eq!(root.driver.labels(), slice::from_ref(&old));
    let before = stat();

    root.driver.fail(Step::Updated);
    let (new, done) = set("new");
    refused(done, "Exhausted");
    assert_eq!(root.driver.labels(), [new, old]);
    assert_eq!(stat(), before);
    root.driver.work_again();
    root.driver.fail(Step::Update);
    refused(set("new").1, "Exhausted");
    assert_eq!(root.driver.settled(), Vec::<Labels>::new());
    assert_eq!(stat(), before);
}

#[test]
fn contents_have_mode_and_owner_that_a_container_needs() {
    let root = Root::new();
    let about = |name: &str, below: &str| {
        let about = fs::metadata(root.directory_of(name).join(below)).unwrap();
        (about.mode() & 0o7777, about.uid(), about.gid())
    };
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let made = directory(&root.prepare("a", None).unwrap());
    nix::sys::stat::umask(umask);
    assert_eq!(about("a", "fs"), (0o755, 0, 0));
    assert_eq!(about("a", "work"), (0o711, 0, 0));
    assert_eq!(about("a", ""), (0o700, 0, 0));
    assert_eq!(
        fs::metadata(root.path("snapshots")).unwrap().mode() & 0o777,
        0o700
    );

    lchown(made.join("fs"), Some(7), Some(8)).unwrap();
    root.commit("layer", "a", None).unwrap();
    root.prepare("b", Some("layer")).unwrap();
    assert_eq!(about("b", "fs"), (0o755, 7, 8));

    let label = |name: &str, map: &str| (format!("containerd.io/snapshot/{name}"), map.to_owned());
    let maps = [
        label("uidmapping", "0:1000:9"),
        label("gidmapping", "0:2000:9"),
    ];
    let parent = key("layer");
    let snapshots = root.snapshots();
    snapshots
        .prepare(&key("c"), Some(&parent), maps.into())
        .unwrap();
    assert_eq!(about("c", "fs"), (0o755, 1000, 2000));
    let half = [label("uidmapping", "0:1000:9")];
    refused(snapshots.prepare(&key("d"), None, half.into()), "Invalid");
    snapshots.cleanup().unwrap();
    assert_eq!(root.directories().len(), 3);
}
