//! The life of a container and its execs as one state enum and one pure function.
//!
//! [`accept`] decides about one process; [`Task`] keeps the init of a container, its execs and who
//! waits for them, and says which events happen and in which order. Nothing here does anything:
//! the owner of a [`Task`] acts on what it returns and reports back with a [`Notice`].
//!
//! ```text
//!            Start             done            Pause             done
//!  Created ────────> Starting ──────> Running ───────> Pausing ──────────> Paused
//!   │   ▲               │              ▲ ▲ │              │                 │  ▲
//!   │   └─ failed, init ┤              │ │ │     failed   │          Resume │  │ failed
//!   │                   │              │ └─┼──────────────┘                 ▼  │
//!   │       failed, exec│              └───┼───────────────────────────── Resuming
//!   │                   │             done │
//!   │                   │                  │ exit (also of what is Created, Pausing, Paused,
//!   │                   │                  │ Resuming; one that comes while Starting is kept)
//!   │                   │                  ▼
//!   │ Delete            │              Stopping     init only, until its execs have ended
//!   │                   ▼                  │
//!   │                Stopped <─────────────┘
//!   │          Delete │   ▲
//!   │                 ▼   │ failed
//!   └────────────> Deleting ─────> Deleted
//!                            done
//! ```

mod error;
mod event;
mod exec_id;
mod process;
mod table;

pub use error::{Kind, Refusal};
pub use event::{Effect, Event, Notice};
pub use exec_id::ExecId;
pub use process::{Action, Exit, Role, State, Status, accept};
pub use table::{Accepted, Operation, ProcessName, Report, Request, Scope, Task, WaiterId};
