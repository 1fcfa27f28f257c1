//! A container's priority in the files of its cgroup.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::Place;

/// The file of a container's cgroup, in whichever hierarchy.
fn find(id: &str, file: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let entries = std::fs::read_dir(root).unwrap();
    let hierarchies = entries.map(|entry| entry.unwrap().path());
    let mut places = hierarchies.chain([root.to_owned()]);
    let found = places.find_map(|place| {
        let path = place.join(id).join(file);
        path.exists().then_some(path)
    });
    found.unwrap()
}

#[test]
fn what_the_state_tells_is_what_the_files_have() {
    for word in ["online-high", "online", "offline", "best-effort"] {
        let mut place = Place::new("sleep 600");
        place.config["annotations"] = json!({"org.pouch.priority": word});
        place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
        place.config["linux"]["resources"]["cpu"] = json!({});
        place.create().ok();
        let state = place.state();
        let applied = state["annotations"]["org.pouch.priority.applied"]
            .as_str()
            .unwrap();
        // Every kernel has a weight for the processor, and those from 5.15 on idle cgroups.
        assert!(applied.starts_with("cpu."), "{word}: {applied}");
        for one in applied.split(", ").filter(|one| !one.contains(" refused ")) {
            let (file, value) = one.split_once('=').unwrap();
            let content = std::fs::read_to_string(find(&place.id, file)).unwrap();
            let last = content.split_whitespace().last();
            assert_eq!(last, Some(value), "{word}: {file}");
        }
        place.run(&["delete", "--force", &place.id]).ok();
        place.finish();
    }
}

#[test]
fn another_word_is_refused_with_the_nearest_one() {
    let mut place = Place::new("true");
    place.config["annotations"] = json!({"org.pouch.priority": "online-hihg"});
    place
        .create()
        .fails_with("\"online-hihg\" is no priority: the nearest is online-high");
    place.finish();
}
