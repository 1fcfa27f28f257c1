//! The census sees what is made and what is gone.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use super::*;
use crate::process::{Running, command};

fn scope(tag: &Tag) -> Scope {
    Scope {
        tag: tag.clone(),
        sockets: BTreeSet::new(),
        directories: Vec::new(),
        apart: Vec::new(),
    }
}

#[test]
fn a_process_a_cgroup_and_a_file_of_an_instance_are_seen_and_settle_when_they_go() {
    let tag = Tag::fresh().unwrap();
    let scope = scope(&tag);
    let take = || Census::of_instance(&scope);
    let before = take().unwrap();
    assert!(before.is_empty());

    let cgroup = machine::hierarchies().unwrap()[0]
        .join(tag.as_str())
        .join("container");
    fs::create_dir_all(&cgroup).unwrap();
    let program = Running::start(command("sleep").arg("600").env("WHOSE", tag.as_str())).unwrap();
    let left = Census::settle(&before, Duration::ZERO, take).unwrap();
    assert_eq!(left.count(Kind::Process), 1, "{left}");
    assert_eq!(left.count(Kind::Cgroup), 1, "{left}");

    drop(program);
    fs::remove_dir(&cgroup).unwrap();
    fs::remove_dir(cgroup.parent().unwrap()).unwrap();
    assert!(
        Census::settle(&before, Duration::from_secs(10), take)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_instance_does_not_see_what_belongs_to_another() {
    let [one, other] = [Tag::fresh().unwrap(), Tag::fresh().unwrap()];
    let _program = Running::start(command("sleep").arg("600").env("WHOSE", one.as_str())).unwrap();
    assert!(Census::of_instance(&scope(&other)).unwrap().is_empty());
    assert_eq!(
        Census::of_instance(&scope(&one))
            .unwrap()
            .count(Kind::Process),
        1
    );
}

#[test]
fn sockets_and_directories_named_by_the_scope_count() {
    let tag = Tag::fresh().unwrap();
    let directory = std::env::temp_dir().join(tag.as_str());
    fs::create_dir_all(directory.join("bundle")).unwrap();
    let mut scope = scope(&tag);
    scope.directories = vec![directory.clone(), PathBuf::from("/does/not/exist")];
    let census = Census::of_instance(&scope).unwrap();
    assert_eq!(census.count(Kind::RuntimeFile), 1, "{census}");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn descriptors_are_counted_by_what_they_are() {
    let pid = own_pid();
    let before = descriptors(pid).unwrap().get("/dev/full").copied();
    assert_eq!(before, None);
    let files: Vec<_> = (0..3)
        .map(|_| fs::File::open("/dev/full").unwrap())
        .collect();
    assert_eq!(descriptors(pid).unwrap()["/dev/full"], files.len());
}
