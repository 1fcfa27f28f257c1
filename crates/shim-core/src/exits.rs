//! Who learns that a process has ended. An exit may be reaped before the call that started the
//! process has returned its pid: such early exits are kept as long as a call is under way.
//!
//! ```text
//!   expect() ──> the runtime starts a process, watched ──> claim(pid) ──> drop(expectation)
//!                       │ it ends before the claim              │
//!                       └────────── early ──────────────────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use task::Exit;
use tokio::sync::mpsc;

/// Tells a container's actor that the process it claimed has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exited {
    pub(crate) pid: i32,
    pub(crate) exit: Exit,
}

/// The processes of all containers, and exits nobody has claimed yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exits {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    claims: HashMap<i32, mpsc::UnboundedSender<Exited>>,
    /// With the number of the exit, which tells a claim from one for an earlier life of the pid.
    early: HashMap<i32, (u64, Exit)>,
    /// How many expectations exist.
    expected: usize,
    /// Counts exits.
    exits: u64,
}

/// While it lives, unclaimed exits are kept.
#[derive(Debug)]
pub(crate) struct Expectation {
    exits: Exits,
    /// Exits before this one are of other processes.
    since: u64,
}

impl Exits {
    /// To be called before a call that may start a process.
    pub(crate) fn expect(&self) -> Expectation {
        let mut table = self.lock();
        table.expected += 1;
        Expectation {
            exits: self.clone(),
            since: table.exits,
        }
    }

    /// Takes the ends of all watched processes and tells who claimed them.
    pub(crate) fn reap(&self) {
        for (pid, status) in sys::reap() {
            let code = u32::try_from(status.code()).unwrap_or(255);
            self.ended(
                pid.as_raw(),
                Exit {
                    code,
                    at: SystemTime::now(),
                },
            );
        }
    }

    fn ended(&self, pid: i32, exit: Exit) {
        let mut table = self.lock();
        table.exits += 1;
        match table.claims.remove(&pid) {
            // An actor that is gone has no use for it.
            Some(claim) => drop(claim.send(Exited { pid, exit })),
            None if table.expected > 0 => {
                let number = table.exits;
                table.early.insert(pid, (number, exit));
            }
            None => tracing::debug!(pid, code = exit.code, "a process nobody claims has ended"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectation {
    /// Says who wants to know the end of `pid`. It is told at once when it has ended already.
    pub(crate) fn claim(&self, pid: i32, claim: &mpsc::UnboundedSender<Exited>) {
        let mut table = self.exits.lock();
        match table.early.remove(&pid) {
            Some((number, exit)) if number > self.since => drop(claim.send(Exited { pid, exit })),
            _ => drop(table.claims.insert(pid, claim.clone())),
        }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.exits.lock();
        table.expected -= 1;
        if table.expected == 0 {
            table.early = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: u32) -> Exit {
        Exit {
            code,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_exit_reaches_its_claimant_before_and_after_the_claim() {
        let exits = Exits::default();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let expectation = exits.expect();
        exits.ended(5, exit(1));
        expectation.claim(5, &sender);
        expectation.claim(6, &sender);
        exits.ended(6, exit(2));
        assert_eq!(
            receiver.try_recv(),
            Ok(Exited {
                pid: 5,
                exit: exit(1)
            })
        );
        assert_eq!(
            receiver.try_recv(),
            Ok(Exited {
                pid: 6,
                exit: exit(2)
            })
        );
    }

    #[test]
    fn an_exit_from_before_the_call_is_not_taken_for_its_process() {
        let exits = Exits::default();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let _other = exits.expect();
        exits.ended(5, exit(1));
        let expectation = exits.expect();
        expectation.claim(5, &sender);
        assert!(receiver.try_recv().is_err());
        exits.ended(5, exit(2));
        assert_eq!(
            receiver.try_recv(),
            Ok(Exited {
                pid: 5,
                exit: exit(2)
            })
        );
    }

    #[test]
    fn nothing_is_kept_when_nothing_is_expected() {
        let exits = Exits::default();
        drop(exits.expect());
        exits.ended(5, exit(1));
        let expectation = exits.expect();
        exits.ended(6, exit(1));
        assert_eq!(exits.lock().early.len(), 1);
        drop(expectation);
        assert_eq!(exits.lock().early.len(), 0);
    }
}
