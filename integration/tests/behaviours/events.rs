//! Events come in order, each once.

use anyhow::ensure;
use integration::{
    check::check, events::Events, images::Image, runtime::Runtime, versions::Version,
};

use crate::RUNTIME;

#[test]
fn events_of_a_life_come_in_order() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let mut events = Events::follow(bench.containerd)?;
        let task = bench.container("life").detach(&["sleep", "600"])?;
        task.exec_with(&["--exec-id", "one"], &["sh", "-c", "exit 9"])?
            .with_code(9)?;
        let pid = i64::from(task.pid()?);
        task.kill_and_remove()?;
        // Stock's shim of 2.4 sometimes ends before it has sent its last event.
        let is_forgetful = RUNTIME == Runtime::Runc && bench.version() == Version::V2_4;
        let last = if is_forgetful {
            "/containers/delete"
        } else {
            "/tasks/delete"
        };
        let seen = events.of_container(&task.id, |event| event.topic == last)?;
        let topics: Vec<String> = seen
            .iter()
            .filter(|event| event.topic.starts_with("/tasks/"))
            .filter(|event| !(is_forgetful && event.topic == "/tasks/delete"))
            .map(|event| match event.topic.as_str() {
                "/tasks/exit" => {
                    format!("exit {} {}", event.text("id"), event.number("exit_status"))
                }
                "/tasks/exec-added" | "/tasks/exec-started" => {
                    format!(
                        "{} {}",
                        &event.topic["/tasks/".len()..],
                        event.text("exec_id")
                    )
                }
                topic => topic["/tasks/".len()..].to_owned(),
            })
            .collect();
        let mut expected = vec![
            "create".to_owned(),
            "start".to_owned(),
            "exec-added one".to_owned(),
            "exec-started one".to_owned(),
            "exit one 9".to_owned(),
            format!("exit {} 137", task.id),
        ];
        expected.extend((!is_forgetful).then(|| "delete".to_owned()));
        ensure!(topics == expected, "expected {expected:?}, got {topics:?}");
        for event in seen.iter().filter(|event| event.topic == "/tasks/start") {
            ensure!(
                event.number("pid") == pid,
                "the pid of start is not {pid}: {event:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn pausing_and_resuming_are_events() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let mut events = Events::follow(bench.containerd)?;
        let task = bench.container("pause-events").detach(&["sleep", "600"])?;
        task.pause()?;
        task.resume()?;
        task.kill_and_remove()?;
        let seen = events.of_container(&task.id, |event| event.topic == "/containers/delete")?;
        let topics: Vec<&str> = seen.iter().map(|event| event.topic.as_str()).collect();
        let paused = topics.iter().position(|&topic| topic == "/tasks/paused");
        let resumed = topics.iter().position(|&topic| topic == "/tasks/resumed");
        ensure!(paused.is_some() && paused < resumed, "got {topics:?}");
        Ok(())
    });
}

#[test]
fn running_out_of_memory_is_an_event_before_the_exit() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let mut events = Events::follow(bench.containerd)?;
        let limit = (16 << 20).to_string();
        let container = bench.container("oom").flags(&["--memory-limit", &limit]);
        // What tail keeps of a line without an end grows until it is killed.
        let task = container.detach(&["tail", "/dev/zero"])?;
        let code = task.remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        let seen = events.of_container(&task.id, |event| event.topic == "/containers/delete")?;
        let topics: Vec<&str> = seen.iter().map(|event| event.topic.as_str()).collect();
        let place = |wanted: &str| topics.iter().position(|&topic| topic == wanted);
        let (told, ended) = (place("/tasks/oom"), place("/tasks/exit"));
        ensure!(told.is_some(), "nobody was told: {topics:?}");
        // Stock's shim promises no order.
        ensure!(RUNTIME == Runtime::Runc || told < ended, "got {topics:?}");
        Ok(())
    });
}
