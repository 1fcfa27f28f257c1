//! Rich containers by the command: pid 1 stays beside the program.

use serde_json::json;

use crate::harness::Place;

fn rich(script: &str) -> Place {
    let mut place = Place::new(script);
    place.config["annotations"] = json!({"org.pouch.rich.mode": "dumb-init"});
    place
}

#[test]
fn the_status_of_the_program_is_that_of_run() {
    let place = rich("cat /proc/1/comm; exit 7");
    let said = place.run_program();
    assert_eq!((said.code, said.out.as_str()), (7, "runlxc-init\n"));
    place.finish();
}

#[test]
fn a_container_lives_as_any_other_and_is_not_checkpointed() {
    let place = rich("sleep 600");
    place.create().ok();
    assert_eq!(place.status(), "created");
    place.on("start").ok();
    assert_eq!(place.status(), "running");
    let pid = place.state()["pid"].as_i64().unwrap();
    let table = place.on("ps").ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("runlxc-init init"), "{table}");
    let images = place.path("images");
    let words = [
        "checkpoint",
        "--image-path",
        images.to_str().unwrap(),
        &place.id,
    ];
    place.run(&words).fails_with(
        "checkpoint and restore of this container is not supported: its pid 1 is runlxc-init",
    );
    place.on("pause").ok();
    place.on("resume").ok();
    place.run(&["exec", &place.id, "true"]).ok();
    place.run(&["kill", &place.id, "TERM"]).ok();
    place.wait_stopped(pid.try_into().unwrap());
    place.on("delete").ok();
    place.finish();
}

#[test]
fn the_state_tells_which_mode_was_chosen() {
    let mut place = rich("sleep 600");
    place.config["annotations"] = json!({"org.pouch.rich.mode": "auto"});
    place.create().ok();
    let chosen = &place.state()["annotations"]["org.pouch.rich.mode"];
    assert_eq!(chosen, "dumb-init");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn one_that_was_not_started_is_killed_and_deleted() {
    let place = rich("true");
    place.create().ok();
    let pid = place.state()["pid"].as_i64().unwrap();
    place.run(&["kill", &place.id, "TERM"]).ok();
    place.wait_stopped(pid.try_into().unwrap());
    assert_eq!(place.status(), "stopped");
    place.on("delete").ok();
    place.finish();
}
