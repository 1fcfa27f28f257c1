//! Every action in every state, and the words of refusals.

#![cfg(test)]

use std::fmt::Write;
use std::time::SystemTime;

use task::{Action, Exit, Kind, Role, State, accept};

const EXIT: Exit = Exit {
    code: 3,
    at: SystemTime::UNIX_EPOCH,
};

const STATES: [State; 11] = [
    State::Created,
    State::Starting,
    State::Running,
    State::Pausing,
    State::Paused,
    State::Resuming,
    State::Stopping(EXIT),
    State::Stopped(EXIT),
    State::Deleting(None),
    State::Deleting(Some(EXIT)),
    State::Deleted,
];

const ACTIONS: [Action; 14] = [
    Action::Start,
    Action::Exec,
    Action::Kill,
    Action::Pause,
    Action::Resume,
    Action::Resize,
    Action::CloseIo,
    Action::Update,
    Action::Checkpoint,
    Action::Delete,
    Action::Wait,
    Action::State,
    Action::Pids,
    Action::Stats,
];

/// A word for a state, without how it ended.
fn name(state: State) -> &'static str {
    match state {
        State::Created => "Created",
        State::Starting => "Starting",
        State::Running => "Running",
        State::Pausing => "Pausing",
        State::Paused => "Paused",
        State::Resuming => "Resuming",
        State::Stopping(_) => "Stopping",
        State::Stopped(_) => "Stopped",
        State::Deleting(None) => "Deleting-",
        State::Deleting(Some(_)) => "Deleting",
        State::Deleted => "Deleted",
    }
}

/// The next state, `ok` for the same, or the kind of refusal.
fn cell(role: Role, state: State, action: Action) -> String {
    match accept(role, state, action) {
        Ok(next) if next == state => "ok".to_owned(),
        Ok(next) => format!(">{}", name(next)),
        Err(refusal) if refusal.kind == Kind::NotFound => "NotF".to_owned(),
        Err(refusal) => {
            assert_eq!(refusal.kind, Kind::FailedPrecondition);
            "Prec".to_owned()
        }
    }
}

#[test]
fn every_action_in_every_state_is_decided() {
    let mut table = String::new();
    let mut row = |first: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: String = cells.map(|cell| format!("{cell:<11}")).collect();
        writeln!(table, "{}", format!("{first:<12}{cells}").trim_end()).unwrap();
    };
    row("", &mut STATES.iter().map(|state| name(*state).to_owned()));
    for action in ACTIONS {
        let both = STATES.iter().map(|state| {
            let [init, exec] = [Role::Init, Role::Exec].map(|role| cell(role, *state, action));
            if init == exec {
                init
            } else {
                format!("{init}|{exec}")
            }
        });
        row(&format!("{action:?}"), &mut { both });
    }
    assert_eq!(table, include_str!("accept.golden"), "\n{table}");
}

const STOPPED: State = State::Stopped(EXIT);

#[track_caller]
fn check(action: Action, refusals: &[(State, &str)]) {
    for (state, expected) in refusals {
        let refusal = accept(Role::Init, *state, action).unwrap_err();
        assert_eq!(refusal.message, *expected);
    }
}

#[test]
fn refusals_are_in_the_words_of_containerds_shim() {
    use State::{Created, Deleted, Paused, Running};
    check(
        Action::Start,
        &[
            (Running, "cannot start a running process"),
            (Paused, "cannot start a paused process"),
            (STOPPED, "cannot start a stopped process"),
            (Deleted, "container not created"),
        ],
    );
    check(
        Action::Exec,
        &[
            (Created, "cannot exec in a created state"),
            (Paused, "cannot exec in a paused state"),
            (STOPPED, "cannot exec in a stopped state"),
        ],
    );
    check(
        Action::Kill,
        &[
            (STOPPED, "process already finished"),
            (Deleted, "cannot kill a deleted process"),
        ],
    );
    check(
        Action::Pause,
        &[
            (Created, "cannot pause task in created state"),
            (Paused, "cannot pause a paused container"),
            (STOPPED, "cannot pause a stopped container"),
        ],
    );
    check(
        Action::Resume,
        &[
            (Created, "cannot resume task in created state"),
            (Running, "cannot resume a running process"),
            (STOPPED, "cannot resume a stopped container"),
        ],
    );
    check(
        Action::Resize,
        &[(STOPPED, "cannot resize a stopped container")],
    );
    check(
        Action::Update,
        &[(STOPPED, "cannot update a stopped container")],
    );
    check(
        Action::Checkpoint,
        &[
            (Created, "cannot checkpoint a task in created state"),
            (STOPPED, "cannot checkpoint a stopped container"),
        ],
    );
    check(
        Action::Delete,
        &[
            (Running, "cannot delete a running process"),
            (Paused, "cannot delete a paused process"),
            (Deleted, "cannot delete a deleted process"),
        ],
    );
}

#[test]
fn refusals_end_with_their_kind() {
    let refusal = accept(Role::Exec, State::Created, Action::Kill).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "process not created: failed precondition"
    );
    let refusal = accept(Role::Init, STOPPED, Action::Kill).unwrap_err();
    assert_eq!(refusal.to_string(), "process already finished: not found");
}
