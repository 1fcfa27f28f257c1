//! What is refused, each in one line that names the field; and what is let pass beside it.

mod files;
mod linux;
mod process;
mod reading;
#[path = "../throwaway/mod.rs"]
mod throwaway;

use bundle::{Bundle, Plan, ProcessContext, Result, parse_process, parse_resources, process_plan};
use launch::plan::{
    CpuScheduler, Labels, MemoryPolicy, PidOne, PlannedMount, RootEntry, Scheduling, Toggle,
};
use mounts::{IdMap, IdRange, Scope};
use serde_json::{Value, json};
use throwaway::{HOST, bundle, context, plan};

/// A configuration with `value` at the JSON pointer `at` (`/-` at the end appends).
pub(crate) fn config(changes: &[(&str, Value)]) -> Vec<u8> {
    let mut config: Value =
        serde_json::from_str(&bundle::example::text(Toggle::Off)).expect("JSON");
    for (at, value) in changes {
        set(&mut config, at, value.clone());
    }
    serde_json::to_vec(&config).expect("JSON")
}

pub(crate) fn set(config: &mut Value, at: &str, value: Value) {
    let (parent, key) = at.rsplit_once('/').expect("a pointer");
    match config.pointer_mut(parent) {
        Some(Value::Array(list)) if key == "-" => list.push(value),
        Some(Value::Array(list)) => list[key.parse::<usize>().expect("an index")] = value,
        Some(Value::Object(object)) => drop(object.insert(key.to_owned(), value)),
        other => unreachable!("{at}: {other:?}"),
    }
}

pub(crate) fn planned(changes: &[(&str, Value)]) -> Result<Plan> {
    plan(&config(changes), &context())
}

/// The message with the chain of its sources.
pub(crate) fn message(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", message(source)),
        None => error.to_string(),
    }
}

pub(crate) fn check(changes: &[(&str, Value)], expected: &str) {
    let error = planned(changes).expect_err(expected);
    assert_eq!(message(&error), expected, "{changes:?}");
}

pub(crate) fn accepted(changes: &[(&str, Value)]) -> Plan {
    planned(changes).unwrap_or_else(|error| unreachable!("{changes:?}: {}", message(&error)))
}

pub(crate) fn check_one(at: &str, value: Value, expected: &str) {
    check(&[(at, value)], expected);
}

pub(crate) fn plan_of(changes: &[(&str, Value)], context: &bundle::PlanContext) -> Result<Plan> {
    plan(&config(changes), context)
}
