//! Lives of tasks, as their owner sees them.

#![cfg(test)]

use std::time::{Duration, SystemTime};

use task::{
    Accepted, Effect, Event, ExecId, Exit, Notice, Operation, ProcessName, Report, Request, Scope,
    Status, Task, WaiterId,
};

const INIT: i32 = 100;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn exit(code: u32) -> Exit {
    Exit { code, at: at(1) }
}

fn id(id: &str) -> ExecId {
    ExecId::new(id).unwrap()
}

fn exec(name: &str) -> ProcessName {
    ProcessName::Exec(id(name))
}

fn running() -> Task {
    let (mut task, _) = Task::new(INIT);
    start(&mut task, ProcessName::Init, INIT);
    task
}

fn start(task: &mut Task, process: ProcessName, pid: i32) -> Vec<Effect> {
    task.request(&Request::Start(process.clone())).unwrap();
    task.notice(Notice::Started { process, pid })
}

fn running_exec(task: &mut Task, name: &str, pid: i32) {
    task.request(&Request::Exec(id(name))).unwrap();
    start(task, exec(name), pid);
}

fn exited(task: &mut Task, pid: i32, code: u32) -> Vec<Effect> {
    let exit = exit(code);
    task.notice(Notice::Exited { pid, exit })
}

fn publish_exit(process: ProcessName, pid: i32, code: u32) -> Effect {
    let exit = exit(code);
    Effect::Publish(Event::Exited { process, pid, exit })
}

fn kill(process: ProcessName) -> Request {
    Request::Kill {
        process,
        signal: 9,
        scope: Scope::Process,
    }
}

fn wait(process: ProcessName, waiter: u64) -> Request {
    Request::Wait {
        process,
        waiter: WaiterId(waiter),
    }
}

fn answer(waiter: u64, code: u32) -> Effect {
    Effect::Answer {
        waiter: WaiterId(waiter),
        exit: exit(code),
    }
}

#[track_caller]
fn refused(task: &mut Task, request: &Request, expected: &str) {
    let refusal = task.request(request).unwrap_err();
    assert_eq!(refusal.to_string(), expected);
}

fn report(task: &mut Task, process: ProcessName) -> Report {
    match task.request(&Request::State(process)) {
        Ok(Accepted::State(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_life_is_told_in_order() {
    let (mut task, created) = Task::new(INIT);
    assert_eq!(created, Event::Created { pid: INIT });
    let begun = task.request(&Request::Start(ProcessName::Init)).unwrap();
    assert_eq!(begun, Accepted::Begin(Operation::Start(ProcessName::Init)));
    let effects = task.notice(Notice::Started {
        process: ProcessName::Init,
        pid: INIT,
    });
    assert_eq!(effects, [Effect::Publish(Event::Started { pid: INIT })]);
    let effects = exited(&mut task, INIT, 3);
    let told = publish_exit(ProcessName::Init, INIT, 3);
    assert_eq!(effects, [Effect::StopRest, told]);
    let stopped = Report {
        pid: INIT,
        status: Status::Stopped,
        exit: Some(exit(3)),
    };
    assert_eq!(report(&mut task, ProcessName::Init), stopped);
    task.request(&Request::Delete(ProcessName::Init)).unwrap();
    let effects = task.notice(Notice::Deleted {
        process: ProcessName::Init,
        at: at(9),
    });
    let deleted = Event::Deleted {
        pid: INIT,
        exit: exit(3),
    };
    assert_eq!(effects, [Effect::Publish(deleted)]);
    assert!(task.is_deleted());
    refused(
        &mut task,
        &Request::State(exec("a")),
        "container not created: not found",
    );
}

#[test]
fn an_init_that_ends_during_its_start_is_told_to_have_started_first() {
    let (mut task, _) = Task::new(INIT);
    task.request(&Request::Start(ProcessName::Init)).unwrap();
    assert_eq!(exited(&mut task, INIT, 0), []);
    let effects = task.notice(Notice::Started {
        process: ProcessName::Init,
        pid: INIT,
    });
    let expected = [
        Effect::Publish(Event::Started { pid: INIT }),
        Effect::StopRest,
        publish_exit(ProcessName::Init, INIT, 0),
    ];
    assert_eq!(effects, expected);
}

#[test]
fn an_init_that_fails_to_start_ends_without_having_started() {
    for early in [true, false] {
        let (mut task, _) = Task::new(INIT);
        task.request(&Request::Start(ProcessName::Init)).unwrap();
        let failed = Notice::StartFailed {
            process: ProcessName::Init,
            at: at(1),
        };
        let effects = if early {
            assert_eq!(exited(&mut task, INIT, 1), []);
            task.notice(failed)
        } else {
            assert_eq!(task.notice(failed), []);
            exited(&mut task, INIT, 1)
        };
        let told = publish_exit(ProcessName::Init, INIT, 1);
        assert_eq!(effects, [Effect::StopRest, told], "early: {early}");
    }
}

#[test]
fn the_end_of_init_is_told_after_those_of_its_execs() {
    let mut task = running();
    running_exec(&mut task, "a", 101);
    task.request(&Request::Exec(id("never-started"))).unwrap();
    assert_eq!(exited(&mut task, INIT, 0), [Effect::StopRest]);
    // Until it is told, clients are told that it runs; nothing new starts.
    assert_eq!(report(&mut task, ProcessName::Init).status, Status::Running);
    refused(
        &mut task,
        &Request::Start(exec("never-started")),
        "cannot exec in a stopped state: failed precondition",
    );
    refused(
        &mut task,
        &Request::Delete(ProcessName::Init),
        "cannot delete a running process: failed precondition",
    );
    let effects = exited(&mut task, 101, 137);
    let expected = [
        publish_exit(exec("a"), 101, 137),
        publish_exit(ProcessName::Init, INIT, 0),
    ];
    assert_eq!(effects, expected);
}

#[test]
fn the_end_of_init_waits_for_starts_under_way_but_not_for_ever() {
    let mut task = running();
    running_exec(&mut task, "a", 101);
    task.request(&Request::Exec(id("b"))).unwrap();
    task.request(&Request::Start(exec("b"))).unwrap();
    exited(&mut task, INIT, 0);
    assert_eq!(exited(&mut task, 101, 0).len(), 1);
    let effects = task.notice(Notice::RestOverdue);
    assert_eq!(effects, [publish_exit(ProcessName::Init, INIT, 0)]);
    assert_eq!(task.notice(Notice::RestOverdue), []);
    let effects = task.notice(Notice::StartFailed {
        process: exec("b"),
        at: at(2),
    });
    assert_eq!(effects, []);
}

#[test]
fn waiters_are_answered_when_the_end_is_told_and_at_once_afterwards() {
    let mut task = running();
    running_exec(&mut task, "a", 101);
    for (process, waiter) in [
        (ProcessName::Init, 1),
        (exec("a"), 2),
        (ProcessName::Init, 3),
    ] {
        let accepted = task.request(&wait(process, waiter)).unwrap();
        assert_eq!(accepted, Accepted::Waiting);
    }
    task.forget(WaiterId(3));
    exited(&mut task, INIT, 0);
    let effects = exited(&mut task, 101, 7);
    let expected = [
        publish_exit(exec("a"), 101, 7),
        answer(2, 7),
        publish_exit(ProcessName::Init, INIT, 0),
        answer(1, 0),
    ];
    assert_eq!(effects, expected);
    let accepted = task.request(&wait(exec("a"), 4)).unwrap();
    assert_eq!(accepted, Accepted::Exited(exit(7)));
}

#[test]
fn an_exec_that_fails_to_start_answers_who_waits_and_tells_no_end() {
    let mut task = running();
    task.request(&Request::Exec(id("a"))).unwrap();
    task.request(&wait(exec("a"), 1)).unwrap();
    task.request(&Request::Start(exec("a"))).unwrap();
    let effects = task.notice(Notice::StartFailed {
        process: exec("a"),
        at: at(1),
    });
    assert_eq!(effects, [answer(1, 255)]);
    task.request(&Request::Delete(exec("a"))).unwrap();
    let effects = task.notice(Notice::Deleted {
        process: exec("a"),
        at: at(2),
    });
    assert_eq!(effects, []);
    assert_eq!(task.execs().count(), 0);
}

#[test]
fn a_task_deleted_before_its_start_is_told_to_have_ended_first() {
    for told_early in [true, false] {
        let (mut task, _) = Task::new(INIT);
        task.request(&wait(ProcessName::Init, 1)).unwrap();
        task.request(&Request::Delete(ProcessName::Init)).unwrap();
        let mut effects = Vec::new();
        if told_early {
            effects.extend(exited(&mut task, INIT, 137));
        }
        effects.extend(task.notice(Notice::Deleted {
            process: ProcessName::Init,
            at: at(1),
        }));
        let deleted = Event::Deleted {
            pid: INIT,
            exit: exit(137),
        };
        let expected = [
            publish_exit(ProcessName::Init, INIT, 137),
            answer(1, 137),
            Effect::Publish(deleted),
        ];
        assert_eq!(effects, expected);
        assert_eq!(exited(&mut task, INIT, 137), []);
    }
}

#[test]
fn a_deletion_that_failed_can_be_asked_for_again() {
    let mut task = running();
    exited(&mut task, INIT, 0);
    let delete = Request::Delete(ProcessName::Init);
    task.request(&delete).unwrap();
    refused(
        &mut task,
        &delete,
        "process is being deleted: failed precondition",
    );
    task.notice(Notice::DeleteFailed {
        process: ProcessName::Init,
    });
    assert_eq!(report(&mut task, ProcessName::Init).exit, Some(exit(0)));
    task.request(&delete).unwrap();
}

#[test]
fn what_is_frozen_with_its_container_says_so_and_runs_nothing_new() {
    let mut task = running();
    running_exec(&mut task, "a", 101);
    task.request(&Request::Exec(id("b"))).unwrap();
    assert_eq!(
        task.request(&Request::Pause),
        Ok(Accepted::Begin(Operation::Pause))
    );
    assert_eq!(report(&mut task, exec("a")).status, Status::Pausing);
    assert_eq!(
        task.notice(Notice::Paused),
        [Effect::Publish(Event::Paused)]
    );
    assert_eq!(report(&mut task, exec("a")).status, Status::Paused);
    assert_eq!(report(&mut task, exec("b")).status, Status::Created);
    let message = "cannot exec in a paused state: failed precondition";
    refused(&mut task, &Request::Exec(id("c")), message);
    refused(&mut task, &Request::Start(exec("b")), message);
    assert_eq!(task.request(&kill(ProcessName::Init)), Ok(Accepted::Do));
    task.request(&Request::Resume).unwrap();
    assert_eq!(task.notice(Notice::ResumeFailed), []);
    task.request(&Request::Resume).unwrap();
    assert_eq!(
        task.notice(Notice::Resumed),
        [Effect::Publish(Event::Resumed)]
    );
    start(&mut task, exec("b"), 102);
}

#[test]
fn an_init_that_ends_while_frozen_is_not_told_to_be_paused() {
    let mut task = running();
    task.request(&Request::Pause).unwrap();
    exited(&mut task, INIT, 137);
    assert_eq!(task.notice(Notice::Paused), []);
    assert_eq!(report(&mut task, ProcessName::Init).status, Status::Stopped);
}

#[test]
fn exec_ids_are_taken_until_they_are_deleted() {
    let mut task = running();
    let added = task.request(&Request::Exec(id("a"))).unwrap();
    assert_eq!(added, Accepted::Added(Event::ExecAdded { id: id("a") }));
    refused(&mut task, &Request::Exec(id("a")), "id a: already exists");
    let missing = "process does not exist b: not found";
    for request in [
        Request::Start(exec("b")),
        Request::State(exec("b")),
        Request::Delete(exec("b")),
        Request::Resize(exec("b")),
        Request::CloseIo(exec("b")),
        kill(exec("b")),
        wait(exec("b"), 1),
    ] {
        refused(&mut task, &request, missing);
    }
    task.request(&Request::Delete(exec("a"))).unwrap();
    refused(&mut task, &Request::Exec(id("a")), "id a: already exists");
    task.notice(Notice::Deleted {
        process: exec("a"),
        at: at(1),
    });
    task.request(&Request::Exec(id("a"))).unwrap();
}

#[test]
fn a_pid_belongs_to_the_process_that_runs_under_it_now() {
    let mut task = running();
    running_exec(&mut task, "a", 101);
    exited(&mut task, 101, 0);
    assert_eq!(task.exec_with_pid(101), None);
    running_exec(&mut task, "b", 101);
    assert_eq!(task.exec_with_pid(101), Some(&id("b")));
    assert_eq!(exited(&mut task, 101, 5), [publish_exit(exec("b"), 101, 5)]);
    assert_eq!(exited(&mut task, 101, 5), []);
    assert_eq!(exited(&mut task, 4242, 5), []);
}
