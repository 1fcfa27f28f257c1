//! The daemon of snapshotter-quota is killed at random moments of random work; afterwards every
//! snapshot that was acknowledged is there, and in the end nothing is left.
//!
//! `POUCH_OPERATIONS` says how much is done in all (2,000), `POUCH_SEED` repeats a run as far as
//! threads let it.

#![expect(
    clippy::print_stdout,
    reason = "the seed and the figures are for the reader"
)]

mod act;
mod choice;
mod expected;
mod model;
mod operation;
mod place;
mod rules;
mod storm;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, ensure};
use integration::{
    guest::{Guest, Series},
    random::Random,
};
use place::Place;
use rules::BackEnd;

/// How much is done in all.
const OPERATIONS: u64 = 2000;

/// The disk and two processors are one storm's at a time.
static TURN: Mutex<()> = Mutex::new(());

const GUEST_LIMIT: Duration = Duration::from_secs(3600);

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A share of all operations, in percent, on one back end.
fn storm(back_end: BackEnd, filesystem: Option<&str>, percent: u64) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number_from("POUCH_SEED").map_or_else(Random::fresh_seed, Ok)?;
    let operations = number_from("POUCH_OPERATIONS").unwrap_or(OPERATIONS) * percent / 100;
    let on = filesystem.unwrap_or("the host's disk");
    println!("{back_end:?} on {on}: {operations} operations, repeated by POUCH_SEED={seed}");
    let place = Place::new(back_end, filesystem)?;
    let figures = storm::weather(place, back_end, operations, seed)?;
    println!("{back_end:?} on {on}: {figures}");
    Ok(())
}

#[test]
fn nothing_is_lost_or_left_on_btrfs() -> Result<()> {
    storm(BackEnd::Btrfs, Some("btrfs"), 55)
}

#[test]
fn nothing_is_lost_or_left_in_images() -> Result<()> {
    storm(BackEnd::Image, None, 15)
}

#[test]
fn nothing_is_lost_or_left_in_tmpfs() -> Result<()> {
    storm(BackEnd::Tmpfs, None, 15)
}

#[test]
fn nothing_is_lost_or_left_without_limits() -> Result<()> {
    storm(BackEnd::None, None, 10)
}

/// Kernels of Debian have project quota, this machine's need not: in a guest this same test is run
/// again.
#[test]
fn nothing_is_lost_or_left_in_projects() -> Result<()> {
    const NAME: &str = "nothing_is_lost_or_left_in_projects";
    let program = std::env::current_exe()?;
    if program.starts_with("/payload") {
        storm(BackEnd::Prjquota, Some("ext4"), 2)?;
        storm(BackEnd::Prjquota, Some("xfs"), 2)?;
        return storm(BackEnd::Pool, Some("ext4"), 1);
    }
    let words = [NAME, "--exact", "--nocapture"].map(str::to_owned);
    let mut guest = Guest::running(Series::V6_1, &program, words.to_vec(), GUEST_LIMIT)?;
    let at = guest.program.iter().position(|word| word == "env");
    for variable in ["POUCH_SEED", "POUCH_OPERATIONS"] {
        if let (Some(at), Some(number)) = (at, number_from(variable)) {
            guest.program.insert(at + 1, format!("{variable}={number}"));
        }
    }
    let outcome = guest.run(|line| {
        if line.contains(" operations") {
            println!("{line}");
        }
    })?;
    let held = outcome.code == 0 && outcome.output.contains("1 passed");
    ensure!(held, "{}", outcome.output);
    Ok(())
}
