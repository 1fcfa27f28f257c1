//! The same behaviours under other kernels, on cgroup v2 alone: this program runs itself in guests.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::guest::{Guest, Series};

/// What depends most on the kernel and on the version of cgroups.
const BEHAVIOURS: [&str; 11] = [
    "behaviours::events::running_out_of_memory_is_an_event_before_the_exit",
    "behaviours::exits::a_program_that_is_not_there_is_named_and_leaves_nothing",
    "behaviours::exits::the_exit_code_of_exec_is_that_of_the_process",
    "behaviours::exits::the_exit_code_of_run_is_that_of_the_process",
    "behaviours::limits::devices_are_refused_but_for_the_usual_ones",
    "behaviours::limits::limits_are_seen_in_the_cgroup_and_execs_are_in_it",
    "behaviours::limits::metrics_tell_the_use_and_the_limit",
    "behaviours::limits::no_more_processes_run_than_the_limit_says",
    "behaviours::signals::killing_all_ends_what_init_left_running",
    "behaviours::tasks::a_paused_container_stands_still_until_it_is_resumed",
    "behaviours::terminals::a_terminal_has_its_size_echoes_and_passes_the_exit_code",
];

/// Two at a time keep two processors busy.
const FLAGS: [&str; 2] = ["--exact", "--test-threads=2"];

/// From power-on to the last result, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

fn check_guest(series: Series) -> Result<()> {
    let this = std::env::current_exe()?;
    let arguments = BEHAVIOURS.iter().chain(&FLAGS);
    let arguments = arguments.map(|&word| word.to_owned()).collect();
    let outcome = Guest::running(series, &this, arguments, LIMIT)?.run(|_| {})?;
    let all = format!("{} passed; 0 failed", BEHAVIOURS.len());
    let held = outcome.code == 0 && outcome.output.contains(&all);
    ensure!(held, "{}", outcome.output);
    Ok(())
}

#[test]
fn behaviours_hold_on_kernel_6_1_with_cgroup_v2_alone() {
    check_guest(Series::V6_1).unwrap();
}

#[test]
fn behaviours_hold_on_kernel_6_12_with_cgroup_v2_alone() {
    check_guest(Series::V6_12).unwrap();
}
